//! Data parallel training over MPI: several ranks train like one process, and whatever is wrong on one rank ends all of them.
//!
//!     cargo test --release --features mpi --test mpi

mod program;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use program::{Ran, Sandbox, fixture, metrics, read_tensors, rows, update_error};
use serde_json::{Value, json};

/// Largest difference of a loss between several ranks and one process, whose sums of gradients have another order.
const NOISE: f64 = 1e-6;
const ADAPTER: &str = "adapter_model.safetensors";

/// Tells whether MPI's launcher is there; without it the tests are skipped.
fn has_mpirun() -> bool {
    let is_there = Command::new("mpirun").arg("--version").output().is_ok_and(|out| out.status.success());
    if !is_there {
        eprintln!("skipped: mpirun is not installed");
    }
    is_there
}

/// Starts programs with `mpirun`: each with its number of ranks and its arguments.
fn mpirun(sandbox: &Sandbox, programs: &[(usize, Vec<&str>)]) -> Command {
    let plain = sandbox.command(&[]);
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe"]);
    for (i, (n, args)) in programs.iter().enumerate() {
        command.args((i > 0).then_some(":")).args(["-n", &n.to_string()]).arg(plain.get_program()).args(args);
    }
    command.current_dir(sandbox.path("")).env("XDG_CACHE_HOME", sandbox.path("cache"));
    command
}

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
        let flags = ["--lora-r", "4", "--learning-rate", "1e-2", "--seed", "3", "--max-steps", "10"];
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
        Ran::of(&mut mpirun(&self.sandbox, &[(n, self.args(out, more))]))
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

    /// Two runs with the same losses, metrics and results to f32 noise.
    #[track_caller]
    fn close(&self, a: &str, b: &str) {
        let loss = self.difference(a, b, "loss");
        assert!((0.0..=NOISE).contains(&loss), "{a}, {b}: losses differ by {loss}");
        let norm = self.difference(a, b, "grad_norm");
        assert!((0.0..=1e-4).contains(&norm), "{a}, {b}: norms differ by {norm}");
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
            let batch = format!("global batch: 1 rows x {parts_of_rank} micro-batches x {n} ranks = 6 rows a step");
            assert!(ran.stderr.contains(&batch), "{}", ran.stderr);
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
    let started = Instant::now();
    let ran = Ran::of(&mut mpirun(&setting.sandbox, &[(1, first), (1, second)]));
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    let errors: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("error:")).collect();
    assert_eq!(errors.len(), 1, "{}", ran.stderr);
    parts.iter().for_each(|part| assert!(errors[0].contains(part), "`{part}` is not in {}", errors[0]));
    assert!(!setting.sandbox.path("out").join(ADAPTER).exists());
    // Opening the device and its self-test are part of this, so it is more than the ten seconds that an error may take.
    assert!(started.elapsed() < Duration::from_secs(120), "{:?}", started.elapsed());
    let _ = fs::remove_dir_all(setting.sandbox.path("out"));
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

/// The launcher says two, and MPI knows of this process alone: it would train alone, beside another one that does the same.
#[test]
fn a_rank_that_is_alone_is_refused() {
    let setting = Setting::pairs(4);
    let mut command = setting.sandbox.command(&setting.args("out", &[]));
    Ran::of(command.env("SLURM_NTASKS", "2")).said(2, &["SLURM_NTASKS says that 2 processes", "MPI knows of one"]);
    assert!(!setting.sandbox.path("out").exists());
}
