//! Several processes of a launcher, of which each would do all of the work, are refused.

mod program;

use program::{Ran, Sandbox, fixture, rows};

#[test]
fn several_processes_are_refused() {
    let sandbox = Sandbox::new();
    let model = fixture("mistral-odd/model").to_str().expect("UTF-8").to_string();
    let data = sandbox.write("rows.jsonl", rows("mistral-odd").join("\n"));
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
    let study = sandbox.write("study.toml", program::smallest_study());
    let sweeps = [
        ["study", &study, "--output-dir", "out"].to_vec(),
        [&["evaluate"][..], &inputs, &["--grader", "--output-dir", "out"]].concat(),
    ];
    let before = sandbox.listing();
    for args in sweeps {
        if !cfg!(feature = "mpi") {
            with(&[("SLURM_NTASKS", "2")], &args).said(2, &["SLURM_NTASKS", "2 processes", "do all of the work"]);
        }
        // A job is one process's. A batch script of Slurm's may have room for several.
        let job = [&args[..], &["--job", "99"]].concat();
        with(&[("PMI_SIZE", "3")], &job)
            .said(2, &["PMI_SIZE says that 3 processes", &format!("start `{} --job`", args[0])]);
        with(&[("SLURM_NTASKS", "4")], &job)
            .said(2, &[if args[0] == "study" { "there are jobs 1 to 10" } else { "rows.jsonl:1" }]);
    }
    assert_eq!(sandbox.listing(), before);
    with(&[("PMI_SIZE", "3")], &["study", &study, "--output-dir", "out", "--list-jobs"]).ok();
    let generate = ["generate", "--model", &model, "--prompt", "Why?"];
    with(&[("PMI_SIZE", "3")], &generate).said(2, &["PMI_SIZE says that 3 processes", "start `generate` once"]);
    assert_eq!(sandbox.listing(), before);
    // One process is no reason to refuse anything, and a plan may be made by many.
    let plan = ["plan", "--model", &model];
    with(&[("PMI_SIZE", "3")], &plan).ok();
    with(&[("PMI_SIZE", "1"), ("SLURM_NTASKS", "4")], &["check", "--model", &model, "--data", &data]).ok();
}
