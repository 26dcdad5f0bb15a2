//! Several processes of a launcher, of which each would do all of the work, are refused.

mod program;

use program::{Ran, Sandbox, fixture, rows};

#[test]
fn several_processes_are_refused() {
    let sandbox = Sandbox::new();
    let model = fixture("mistral-odd/model").to_str().expect("UTF-8").to_string();
    let data = sandbox.write("rows.jsonl", rows("mistral-odd").join("\n"));
    let before = sandbox.listing();
    let with = |variables: &[(&str, &str)], args: &[&str]| {
        let mut command = sandbox.command(args);
        Ran::of(command.envs(variables.iter().copied()))
    };
    let inputs = ["--model", &model, "--data", &data];
    for (command, out) in [("train", "--output-dir"), ("sft", "--output-dir"), ("score", "--out"), ("grad", "--out")] {
        let args = [&[command][..], &inputs, &[out, "out"]].concat();
        if !cfg!(feature = "mpi") {
            for variable in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"] {
                let parts = [variable, "2 processes were started", "built without MPI", "--features mpi"];
                with(&[(variable, "2")], &args).said(2, &parts);
            }
        }
    }
    let generate = ["generate", "--model", &model, "--prompt", "Why?"];
    with(&[("PMI_SIZE", "3")], &generate).said(2, &["PMI_SIZE says that 3 processes", "start `generate` once"]);
    assert_eq!(sandbox.listing(), before);
    // One process is no reason to refuse anything, and a plan may be made by many.
    let plan = ["plan", "--model", &model];
    with(&[("PMI_SIZE", "3")], &plan).ok();
    with(&[("PMI_SIZE", "1"), ("SLURM_NTASKS", "4")], &["check", "--model", &model, "--data", &data]).ok();
}
