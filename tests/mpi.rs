//! Data parallel training over MPI: several ranks train like one process, and whatever is wrong on one rank ends all of them.
//!
//!     cargo test --release --features mpi --test mpi

mod launched;
mod program;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

#[cfg(target_os = "linux")]
use launched::kill_rank;
use launched::{Program, ends, has_mpirun, mpirun, rank};
use program::{Ran, Sandbox, fixture, metrics, read_tensors, rows, update_error};
use serde_json::{Value, json};

/// Largest difference of a loss between several ranks and one process, whose sums of gradients have another order.
const NOISE: f64 = 1e-6;
const ADAPTER: &str = "adapter_model.safetensors";

struct Setting {
    sandbox: Sandbox,
    command: &'static str,
    model: String,
    data: String,
    flags: Vec<&'static str>,
}

impl Setting {
    fn new(command: &'static str, lines: &[String], flags: &[&'static str]) -> Self {
        let sandbox = Sandbox::new();
        let model = fixture("mistral-odd/model").to_str().expect("UTF-8").to_string();
        let data = sandbox.write("rows.jsonl", lines.join("\n"));
        Self { sandbox, command, model, data, flags: flags.to_vec() }
    }

    /// Preferences, trained for ten steps: two and a half epochs, of which the last batch is short.
    fn pairs(n: usize) -> Self {
        Self::pairs_for(n, "10")
    }

    fn pairs_for(n: usize, steps: &'static str) -> Self {
        let flags = ["--lora-r", "4", "--learning-rate", "1e-2", "--seed", "3", "--max-steps", steps];
        Self::new("train", &rows("mistral-odd")[..n], &flags)
    }

    fn args<'a>(&'a self, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut all = vec![self.command, "--model", &self.model, "--data", &self.data, "--output-dir", out];
        all.extend(&self.flags);
        all.extend(more);
        all
    }

    fn one(&self, out: &str, more: &[&str]) -> Ran {
        self.sandbox.run(&self.args(out, more))
    }

    fn several(&self, n: usize, out: &str, more: &[&str]) -> Ran {
        Ran::of(&mut mpirun(&self.sandbox, &[Program { n, variable: None, args: self.args(out, more) }]))
    }

    fn metrics(&self, out: &str) -> Vec<Value> {
        metrics(&self.sandbox.path(out))
    }

    /// Largest difference of a number of two runs' metrics; infinity where lines differ in number.
    fn difference(&self, a: &str, b: &str, name: &str) -> f64 {
        let [a, b] = [a, b].map(|out| self.metrics(out));
        if a.len() != b.len() {
            return f64::INFINITY;
        }
        let of = |line: &Value| line.get(name).map(|value| value.as_f64().expect("a number"));
        let pairs = a.iter().zip(&b).filter_map(|(a, b)| Some((of(a)? - of(b)?).abs()));
        pairs.fold(f64::NEG_INFINITY, f64::max)
    }

    /// Two runs with the same losses and metrics to f32 noise.
    #[track_caller]
    fn close(&self, a: &str, b: &str) {
        self.close_by(NOISE, a, b);
    }

    #[track_caller]
    fn close_by(&self, most: f64, a: &str, b: &str) {
        let loss = self.difference(a, b, "loss");
        assert!((0.0..=most).contains(&loss), "{a}, {b}: losses differ by {loss}");
        let norm = self.difference(a, b, "grad_norm");
        assert!((0.0..=100.0 * most).contains(&norm), "{a}, {b}: norms differ by {norm}");
        for name in ["tokens", "num_tokens", "learning_rate", "epoch", "rewards/accuracies"] {
            assert!(self.difference(a, b, name) <= 0.0, "{a}, {b}: {name}");
        }
    }

    /// Two runs with the same bits.
    #[track_caller]
    fn same(&self, a: &str, b: &str) {
        assert_eq!(self.metrics(a), self.metrics(b));
        let bits = |out: &str| fs::read(self.sandbox.path(out).join(ADAPTER)).expect("a result");
        assert!(bits(a) == bits(b), "{ADAPTER} differs");
    }
}

#[test]
fn ranks_train_like_one_process() {
    if !has_mpirun() {
        return;
    }
    // 23 pairs in steps of six: the last step of an epoch has five.
    let setting = Setting::pairs(23);
    let parts = |n: &'static str| ["--batch-size", "1", "--gradient-accumulation-steps", n];
    setting.one("one", &parts("6")).ok();
    assert_eq!(setting.metrics("one").len(), 10);
    for (n, parts_of_rank) in [(1, "6"), (2, "3"), (3, "2")] {
        let out = format!("ranks-{n}");
        let ran = setting.several(n, &out, &parts(parts_of_rank)).ok();
        setting.close("one", &out);
        let [a, b] = ["one", &out].map(|out| read_tensors(&setting.sandbox.path(out).join(ADAPTER)));
        let start = a.iter().map(|(name, tensor)| {
            let mut zero = tensor.clone();
            zero.set(&vec![0.0; tensor.values().len()]);
            (name.clone(), zero)
        });
        let error = update_error(&b, &a, &start.collect());
        assert!(error < 1e-4, "{n} ranks: results differ by {error}");
        if n > 1 {
            let first = ran.stderr.lines().next().unwrap_or_default();
            assert!(first.starts_with(&format!("{n} ranks: ranks 0-{} on ", n - 1)), "{first}");
            assert!(ran.stderr.contains("global batch: 6 rows a step"), "{}", ran.stderr);
            assert_eq!(ran.stderr.matches("step 1/10").count(), 1, "rank 0 alone reports: {}", ran.stderr);
        }
    }
    // The control: a step of other rows is told from noise.
    setting.several(2, "other", &parts("2")).ok();
    assert!(setting.difference("one", "other", "loss") > 100.0 * NOISE);
}

/// Twenty pairs in steps of six: of the last two, which are one micro-batch, rank 0 has both. With evaluation.
#[test]
fn an_uneven_last_batch_and_evaluation_are_those_of_one_process() {
    if !has_mpirun() {
        return;
    }
    let setting = Setting::pairs(20);
    let held_out = setting.sandbox.write("held-out.jsonl", rows("mistral-odd")[19..].join("\n"));
    let parts = |n: &'static str| ["--batch-size", "2", "--gradient-accumulation-steps", n];
    let eval = ["--eval-data", &held_out, "--eval-steps", "4"];
    setting.one("one", &[&parts("3")[..], &eval].concat()).ok();
    setting.several(3, "three", &[&parts("1")[..], &eval].concat()).ok();
    setting.close("one", "three");
    let eval_loss = setting.difference("one", "three", "eval_loss");
    assert!((0.0..=NOISE).contains(&eval_loss), "{eval_loss}");
    assert!(setting.difference("one", "three", "eval_rewards/accuracies") <= 0.0);
    assert!(setting.sandbox.path("three/best").join(ADAPTER).is_file());
}

#[test]
fn two_runs_are_the_same_and_a_resumed_one_too() {
    if !has_mpirun() {
        return;
    }
    let setting = Setting::pairs(23);
    let flags =
        ["--batch-size", "2", "--gradient-accumulation-steps", "2", "--save-steps", "3", "--save-total-limit", "9"];
    setting.several(2, "whole", &flags).ok();
    setting.several(2, "again", &flags).ok();
    setting.same("whole", "again");
    // As a run that was killed after step 4 leaves its folder.
    let killed = |name: &str| {
        let [from, to] = ["whole", name].map(|name| setting.sandbox.path(name));
        copy_folder(&from.join("checkpoint-3"), &to.join("checkpoint-3"));
        let log = fs::read_to_string(from.join("metrics.jsonl")).expect("a log");
        let lines: Vec<&str> = log.lines().take(4).collect();
        fs::write(to.join("metrics.jsonl"), lines.join("\n") + "\n").expect("a log");
    };
    let resume = [&flags[..], &["--resume"]].concat();
    killed("resumed");
    let ran = setting.several(2, "resumed", &resume).ok();
    assert!(!ran.stderr.contains("the run began with"), "{}", ran.stderr);
    setting.same("whole", "resumed");

    // With another number of ranks: the same rows, other bits, and the run says so.
    killed("alone");
    let ran = setting.one("alone", &resume).ok();
    assert!(ran.stderr.contains("the run began with 2 ranks and goes on with 1"), "{}", ran.stderr);
    setting.close("whole", "alone");
    killed("three");
    let ran = setting.several(3, "three", &resume).ok();
    assert!(ran.stderr.contains("the run began with 2 ranks and goes on with 3"), "{}", ran.stderr);
    setting.close("whole", "three");
    // Other settings are refused, by rank 0.
    let refused = setting.several(2, "resumed", &[&resume[..], &["--beta", "0.3"]].concat());
    assert_eq!(refused.status, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("error: rank 0: resumed/checkpoint-"), "{}", refused.stderr);
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for file in fs::read_dir(from).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        fs::copy(&file, to.join(file.file_name().expect("a name"))).expect("a copy");
    }
}

/// Each rank has one text: a short and a long one. The mean is over tokens, not over ranks.
#[test]
fn tokens_weigh_the_mean_of_supervised_tuning() {
    if !has_mpirun() {
        return;
    }
    let texts = ["Yes.", "The green fades first; red pigments made late in the season then show, and the leaves fall."];
    let lines = texts.map(|text| json!({"instruction": "Why?", "response": text}).to_string());
    let flags = ["--lora-r", "4", "--learning-rate", "1e-30", "--no-shuffle", "--batch-size", "1"];
    let setting = Setting::new("sft", &lines, &flags);
    setting.one("rows", &["--max-steps", "2"]).ok();
    setting.one("one", &["--max-steps", "2", "--gradient-accumulation-steps", "2"]).ok();
    setting.several(2, "two", &["--max-steps", "2"]).ok();
    let losses =
        |out: &str| setting.metrics(out).iter().map(|l| l["loss"].as_f64().expect("a loss")).collect::<Vec<_>>();
    let (of_rows, one, two) = (losses("rows"), losses("one"), losses("two"));
    assert!((one[0] - two[0]).abs() <= NOISE && (one[1] - two[1]).abs() <= NOISE, "{one:?} {two:?}");
    assert!(setting.difference("one", "two", "grad_norm") < 1e-4);
    // The control: the mean of the ranks' means is another number.
    assert!(((of_rows[0] + of_rows[1]) / 2.0 - two[0]).abs() > 1e-3, "{of_rows:?} {two:?}");
}

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
    let compile = Command::new("mpicc").args(["-shared", "-fPIC", "-o"]).args([&fault, &source]).status();
    if !compile.is_ok_and(|status| status.success()) {
        return eprintln!("skipped: mpicc cannot compile {}", source.display());
    }
    let args = setting.args("out", &["--save-steps", "1", "--batch-size", "2"]);
    let variable = Some(format!("LD_PRELOAD={}", fault.display()));
    let faulty = Program { n: 1, variable, args: args.clone() };
    let run = mpirun(&setting.sandbox, &[rank(args.clone()), faulty, rank(args)]);
    ends(run, 1, &["error: rank 0: step 3: rank 1 has other parameters or moments than rank 0"]);
    assert!(setting.sandbox.path("out/checkpoint-2").is_dir() && !setting.sandbox.path("out/checkpoint-3").exists());
}

/// Other kernels round otherwise: rank 0's parameters are sent, so that the ranks have the same.
#[test]
fn devices_that_differ_work_together() {
    if !has_mpirun() {
        return;
    }
    let setting = Setting::pairs(20);
    let parts = |n: &'static str| ["--batch-size", "2", "--gradient-accumulation-steps", n, "--save-steps", "2"];
    setting.one("one", &parts("2")).ok();
    let args = setting.args("two", &parts("1"));
    let other = Program { n: 1, variable: Some("JOINTWISE_VARIANT=baseline".into()), args: args.clone() };
    let ran = Ran::of(&mut mpirun(&setting.sandbox, &[rank(args), other])).ok();
    assert!(ran.stderr.contains("note: devices differ"), "{}", ran.stderr);
    setting.close_by(1e-4, "one", "two");
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
    for (victim, line) in [(0, 25), (1, 50), (1, 71)] {
        let args = setting.args("killed", &resume);
        let mut run = mpirun(&setting.sandbox, &[Program { n: 2, variable: None, args }]);
        let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("mpirun starts");
        while n_lines() < line {
            assert!(run.try_wait().expect("a child").is_none(), "the run ended before line {line}");
            std::thread::sleep(Duration::from_millis(1));
        }
        kill_rank(run, (victim, 2));
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

/// The launcher says two, and MPI knows of this process alone: it would do all of the work, beside another one that does the same.
#[test]
fn a_rank_that_is_alone_is_refused() {
    let setting = Setting::pairs(4);
    let mut command = setting.sandbox.command(&setting.args("out", &[]));
    Ran::of(command.env("SLURM_NTASKS", "2")).said(2, &["SLURM_NTASKS says that 2 processes", "MPI knows of one"]);
    assert!(!setting.sandbox.path("out").exists());
}
