//! Whatever is wrong on one rank ends all of them, with its message, and the run can go on.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::fault_layer;
use crate::harness::{ADAPTER, Setting};
#[cfg(target_os = "linux")]
use crate::launched::kill_rank;
use crate::launched::{Program, ends, has_mpirun, mpirun, rank, ranks};
use crate::program::{Ran, edit, fixture, rows};

/// Runs two ranks with different arguments: status 2, one message with every part, and soon.
#[track_caller]
fn refused(setting: &Setting, args: [Vec<&str>; 2], parts: &[&str]) {
    let [first, second] = args;
    ends(mpirun(&setting.sandbox, &[rank(first), rank(second)]), 2, parts);
    assert!(!setting.sandbox.path("out").join(ADAPTER).exists());
    let _ = fs::remove_dir_all(setting.sandbox.path("out"));
}

/// The control of the checksums: one rank gets another sum of gradients than the others, once.
#[test]
fn ranks_that_drift_apart_are_found() {
    if !has_mpirun() {
        return;
    }
    let setting = Setting::pairs(12);
    let [source, fault] = [fixture("../mpi/fault.c"), setting.sandbox.path("fault.so")];
    let compiler = std::env::var("MPICC").unwrap_or_else(|_| "mpicc".into());
    let compile = Command::new(compiler).args(["-shared", "-fPIC", "-o"]).args([&fault, &source]).status();
    if !compile.is_ok_and(|status| status.success()) {
        return eprintln!("skipped: mpicc cannot compile {}", source.display());
    }
    let args = setting.args("out", &["--save-steps", "1", "--batch-size", "2"]);
    let variables = vec![("LD_PRELOAD", fault.display().to_string())];
    let faulty = Program { n: 1, variables, args: args.clone() };
    let run = mpirun(&setting.sandbox, &[rank(args.clone()), faulty, rank(args)]);
    ends(run, 1, &["error: rank 0: step 3: rank 1 has other parameters or moments than rank 0"]);
    assert!(setting.sandbox.path("out/checkpoint-2").is_dir() && !setting.sandbox.path("out/checkpoint-3").exists());
}

/// A rank that is killed ends the others, and the run goes on to the same bits.
#[cfg(target_os = "linux")]
#[test]
fn a_killed_rank_ends_all_and_the_run_resumes() {
    if !has_mpirun() {
        return;
    }
    let setting = Setting::pairs_for(23, "120");
    let flags = ["--batch-size", "2", "--save-steps", "20"];
    setting.several(2, "whole", &flags).ok();
    let log = setting.sandbox.path("killed/metrics.jsonl");
    let n_lines = || fs::read_to_string(&log).map_or(0, |text| text.matches('\n').count());
    let resume = [&flags[..], &["--resume"]].concat();
    for (i, line) in [3, 14, 25, 37, 50, 58, 71, 83, 96, 110].into_iter().enumerate() {
        let args = setting.args("killed", &resume);
        let mut run = mpirun(&setting.sandbox, &[ranks(2, args)]);
        let said = setting.sandbox.path(&format!("said-{line}"));
        let stderr = fs::File::create(&said).expect("a file");
        let mut run = run.stdout(Stdio::null()).stderr(stderr).spawn().expect("mpirun starts");
        while n_lines() < line {
            let ended = run.try_wait().expect("a child");
            assert!(ended.is_none(), "before line {line}: {}", fs::read_to_string(&said).unwrap_or_default());
            std::thread::sleep(Duration::from_millis(1));
        }
        kill_rank(run, (i % 2, 2));
    }
    setting.several(2, "killed", &resume).ok();
    setting.same("whole", "killed");
}

#[test]
fn what_differs_on_a_rank_is_refused_by_name() {
    if !has_mpirun() {
        return;
    }
    let setting = Setting::pairs(12);
    let mut lines = rows("mistral-odd")[..12].to_vec();
    lines.swap(3, 4);
    let other = setting.sandbox.write("other.jsonl", lines.join("\n"));
    lines[6] = "{\"i_chosen\": 7}".into();
    let bad = setting.sandbox.write("bad.jsonl", lines.join("\n"));
    let args = |more: &[&'static str]| setting.args("out", more);
    refused(&setting, [args(&[]), args(&["--beta", "0.2"])], &["rank 1 has --beta 0.2, and rank 0 has --beta 0.1"]);
    refused(&setting, [args(&[]), args(&["--lora-alpha", "3"])], &["rank 1 has another model or adapter"]);
    let with = |data: &'_ str| {
        let mut args: Vec<String> = setting.args("out", &[]).into_iter().map(String::from).collect();
        let at = args.iter().position(|arg| *arg == setting.data).expect("the data");
        args[at] = data.into();
        args
    };
    for (data, part) in [(&other, "rank 1 has other rows in --data"), (&bad, "error: rank 1: ")] {
        let args = with(data);
        refused(&setting, [setting.args("out", &[]), args.iter().map(String::as_str).collect()], &[part]);
    }
}

/// A row of rank 1 has a number that is not finite, and rank 0 has none.
#[test]
fn a_loss_that_is_not_finite_on_one_rank_ends_all() {
    if !has_mpirun() {
        return;
    }
    let mut setting = Setting::pairs(2);
    // The embedding of a token that the second row alone has.
    let ids = |row: &Value| -> Vec<u64> {
        let sides = ["chosen", "rejected"].map(|side| row[side]["ids"].as_array().expect("ids").clone());
        sides.concat().iter().map(|id| id.as_u64().expect("an id")).collect()
    };
    let scored = setting.sandbox.run(&["score", "--tokens", "--model", &setting.model, "--data", &setting.data]).ok();
    let scored = scored.lines();
    let (first, second) = (ids(&scored[0]), ids(&scored[1]));
    let token = second.into_iter().find(|id| !first.contains(id)).expect("a token") as usize;
    let model = setting.sandbox.copy("mistral-odd/model", "model");
    edit(&model.join("model.safetensors"), |tensors| {
        let embeddings = tensors.get_mut("model.embed_tokens.weight").expect("embeddings");
        let (mut values, columns) = (embeddings.values(), embeddings.shape[1]);
        values[token * columns] = f32::NAN;
        embeddings.set(&values);
    });
    setting.model = model.to_str().expect("UTF-8").into();
    let args = setting.args("out", &["--batch-size", "1", "--no-shuffle"]);
    let parts = ["error: rank 1: step 1, rows 1: the weight `model.embed_tokens.weight`"];
    ends(mpirun(&setting.sandbox, &[ranks(2, args)]), 1, &parts);
    assert!(!setting.sandbox.path("out").join(ADAPTER).exists());
}

/// A rank whose device is lost ends the others, and the run goes on to the same bits.
#[cfg(target_os = "linux")]
#[test]
fn a_lost_device_ends_all_and_the_run_resumes() {
    if !has_mpirun() {
        return;
    }
    let setting = Setting::pairs(23);
    let layer = setting.sandbox.path("layer");
    fs::create_dir_all(&layer).expect("a folder");
    if let Err(reason) = fault_layer::compile(&layer) {
        return eprintln!("skipped: {reason}");
    }
    let flags = ["--batch-size", "2", "--save-steps", "2", "--save-total-limit", "9"];
    let log = setting.sandbox.path("counts");
    let with_layer = |out: &'static str, more: &[(&'static str, String)]| {
        let mut variables = vec![
            ("VK_LAYER_PATH", layer.display().to_string()),
            ("VK_INSTANCE_LAYERS", fault_layer::LAYER.into()),
            ("FAULT_LOG", log.display().to_string()),
        ];
        variables.extend_from_slice(more);
        let args = setting.args(out, &flags);
        mpirun(&setting.sandbox, &[rank(args.clone()), Program { n: 1, variables, args }])
    };
    Ran::of(&mut with_layer("whole", &[])).ok();
    // The second run does not check kernels, which takes submissions of its own.
    Ran::of(&mut with_layer("again", &[])).ok();
    setting.same("whole", "again");
    let counts = fs::read_to_string(&log).expect("counts");
    let counts: Value = serde_json::from_str(counts.lines().last().expect("a line")).expect("JSON");
    let lost_at = counts["submissions"].as_u64().expect("a number") * 3 / 4;
    let lost = with_layer("lost", &[("FAULT_LOST_SUBMIT", lost_at.to_string())]);
    ends(lost, 1, &["error: rank 1: ", " was lost: "]);
    assert!(setting.sandbox.path("lost/checkpoint-2").is_dir());
    setting.several(2, "lost", &[&flags[..], &["--resume"]].concat()).ok();
    setting.same("whole", "lost");
}

/// Rank 0 alone says what every rank would say before MPI is started.
#[test]
fn a_mistyped_flag_is_told_once() {
    if !has_mpirun() {
        return;
    }
    let setting = Setting::pairs(4);
    let all = Ran::of(&mut mpirun(&setting.sandbox, &[ranks(3, setting.args("out", &["--lerning-rate", "1"]))]));
    assert_eq!(all.status, 2, "{}", all.stderr);
    assert_eq!(all.stderr.matches("--lerning-rate").count(), 1, "{}", all.stderr);
    // That of one rank is told, too.
    let programs = [rank(setting.args("out", &[])), rank(setting.args("out", &["--lerning-rate", "1"]))];
    let one = Ran::of(&mut mpirun(&setting.sandbox, &programs));
    assert_eq!((one.status, one.stderr.matches("--lerning-rate").count()), (2, 1), "{}", one.stderr);
}

/// The launcher says two, and MPI knows of this process alone: it would train alone, beside another one that does the same.
#[test]
fn a_rank_that_is_alone_is_refused() {
    let setting = Setting::pairs(4);
    let mut command = setting.sandbox.command(&setting.args("out", &[]));
    Ran::of(command.env("SLURM_NTASKS", "2")).said(2, &["SLURM_NTASKS says that 2 processes", "MPI knows of one"]);
    assert!(!setting.sandbox.path("out").exists());
}
