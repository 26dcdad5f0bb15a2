//! The library as a user of it sees it: the examples run, and do what the command line does.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use jointwise::{Error, GenerateOptions, Gpu, LoraConfig, Policy, Preferences, Recipe, Template, TrainingOptions};
use serde_json::Value;

/// Builds an example, which `cargo test` has done unless only this file's tests are run, and runs it.
fn example(name: &str, arguments: &[&str]) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_jointwise")).with_file_name("examples").join(name);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--example", name]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    assert!(cargo.status().unwrap().success());
    let done = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    let [out, err] = [done.stdout, done.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(done.status.success(), "{name}: {err}");
    assert!(err.is_empty(), "a library writes nothing to standard error: {err}");
    out
}

/// Lines of code: neither blank nor comments.
fn lines_of_code(name: &str) -> usize {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

fn program(arguments: &[&str]) -> String {
    let done = Command::new(env!("CARGO_BIN_EXE_jointwise")).args(arguments).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");

/// Preferences between responses to one instruction.
fn preferences(dir: &Path) -> PathBuf {
    let path = dir.join("prefs.jsonl");
    let row = |i: usize| {
        let (a, b) = (i % 7 + 2, i % 5 + 3);
        format!(r#"{{"instruction": "Add {a} and {b}.", "chosen": " {}", "rejected": " I do not know."}}"#, a + b)
    };
    fs::write(&path, (0..40).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    path
}

#[test]
fn scoring_two_responses_takes_few_lines_and_equals_the_program() {
    assert!(lines_of_code("score.rs") <= 15, "{}", lines_of_code("score.rs"));
    let shown = example("score", &[MODEL]);
    let dir = tempfile::tempdir().unwrap();
    let (rows, out) = (dir.path().join("rows.jsonl"), dir.path().join("scores.jsonl"));
    fs::write(&rows, r#"{"instruction": "Say hello.", "chosen": " Hello!", "rejected": " No."}"#).unwrap();
    let [rows, out] = [&rows, &out].map(|path| path.to_str().unwrap());
    program(&["score", "--model", MODEL, "--data", rows, "--template", "paper", "--out", out]);
    let row: Value = serde_json::from_str(fs::read_to_string(out).unwrap().lines().next().unwrap()).unwrap();
    for (line, side) in shown.lines().zip(["chosen", "rejected"]) {
        let numbers: Vec<f64> =
            line.split('=').skip(1).map(|text| text.split_whitespace().next().unwrap().parse().unwrap()).collect();
        assert!((numbers[0] - row[side]["logp"].as_f64().unwrap()).abs() < 1e-3, "{line}");
        assert!((numbers[1] - row[side]["logp_response"].as_f64().unwrap()).abs() < 1e-3, "{line}");
    }
    assert_eq!(shown.lines().count(), 2);
}

#[test]
fn responses_are_those_of_the_program() {
    let (gpu, policy) = (Gpu::open_best().unwrap(), Policy::open(MODEL).unwrap());
    let instructions = ["Say hello.", "Add 2 and 3.", "Name a colour, and say why you like it."];
    let said = |temperature: f32, seed: u64| {
        let options = GenerateOptions { temperature, seed, max_new_tokens: 16, batch_size: 2, ..Default::default() };
        policy.generate(&gpu, &instructions, &Template::Paper, &options).unwrap()
    };
    let sampled = said(1.0, 7);
    let prompts = instructions.map(|text| ["--prompt", text]).concat();
    let same = ["--template", "paper", "--seed", "7", "--max-new-tokens", "16", "--batch-size", "2", "--json"];
    let shown = program(&[&["generate", "--model", MODEL], &prompts[..], &same].concat());
    let rows = shown.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    assert_eq!(rows.map(|row| row["response"].as_str().unwrap().to_string()).collect::<Vec<_>>(), sampled);
    assert_ne!(said(1.0, 8), sampled);
    assert_eq!(said(0.0, 7), said(0.0, 8), "the likeliest tokens need no seed");
    let too_long = GenerateOptions { max_new_tokens: 100_000, ..GenerateOptions::default() };
    let error = policy.generate(&gpu, &instructions, &Template::Paper, &too_long).unwrap_err().to_string();
    assert!(error.contains("max-new-tokens"), "{error}");
}

#[test]
fn training_takes_few_lines_and_equals_the_program() {
    assert!(lines_of_code("train.rs") <= 25, "{}", lines_of_code("train.rs"));
    let dir = tempfile::tempdir().unwrap();
    let (data, first, second) = (preferences(dir.path()), dir.path().join("first"), dir.path().join("second"));
    let [data, first, second] = [&data, &first, &second].map(|path| path.to_str().unwrap());
    let shown = example("train", &[data, first]);
    assert_eq!(shown.lines().count(), 60);
    let loss = |line: &str| line.split_whitespace().nth(2).unwrap().parse::<f64>().unwrap();
    let losses: Vec<f64> = shown.lines().map(loss).collect();
    assert!((losses[0] - std::f64::consts::LN_2).abs() < 1e-4 && losses[59] < 0.6 * losses[0], "{losses:?}");
    for name in [
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "README.md",
        "metrics.jsonl",
        "report.html",
    ] {
        assert!(Path::new(first).join(name).exists(), "{name}");
    }
    let same =
        ["--objective", "jpo", "--learning-rate", "2e-4", "--max-steps", "60", "--lora-r", "16", "--lora-alpha", "32"];
    let rest = ["--lora-targets", "all-linear", "--model", "models/demo", "--data", data, "--output-dir", second];
    program(&[&["train"][..], &same, &rest].concat());
    let weights = |dir: &str| fs::read(Path::new(dir).join("adapter_model.safetensors")).unwrap();
    assert!(weights(first) == weights(second), "the library and the program train the same adapter");
}

#[test]
fn a_loss_of_ones_own_trains() {
    let dir = tempfile::tempdir().unwrap();
    let shown = example("custom_loss", &[preferences(dir.path()).to_str().unwrap()]);
    let number = |line: &str, n: usize| line.split_whitespace().nth(n).unwrap().parse::<f64>().unwrap();
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 10);
    // 1 − σ(0) + σ(0) before the first update.
    assert!((number(lines[0], 2) - 1.0).abs() < 1e-4, "{}", lines[0]);
    assert!(number(lines[9], 2) < 0.99 && number(lines[9], 4) > 0.0, "{shown}");
}

#[test]
fn a_judge_of_ones_own_makes_preferences() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, out) = (dir.path().join("rows.jsonl"), dir.path().join("judged"));
    let comparisons = [("long words", "short"), ("a", "b"), ("x", "much longer")];
    let line =
        |(a, b): &(&str, &str)| format!(r#"{{"instruction": "Say it.", "response_0": "{a}", "response_1": "{b}"}}"#);
    fs::write(&rows, comparisons.iter().map(line).collect::<Vec<_>>().join("\n")).unwrap();
    let [rows, out] = [&rows, &out].map(|path| path.to_str().unwrap());
    let shown = example("judge", &[rows, out]);
    assert!(shown.starts_with("2 preferences and 1 ties"), "{shown}");
    let preferences = fs::read_to_string(Path::new(out).join("preferences.jsonl")).unwrap();
    let chosen: Vec<Value> =
        preferences.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["r_chosen"].clone()).collect();
    assert_eq!(chosen, ["short", "x"]);
    // A second call asks nothing again.
    let answers = fs::read(Path::new(out).join("answers.jsonl")).unwrap();
    example("judge", &[rows, out]);
    assert_eq!(fs::read(Path::new(out).join("answers.jsonl")).unwrap(), answers);
}

#[test]
fn rows_that_a_loss_cannot_take_are_refused_and_a_stopped_run_is_not_finished() {
    let dir = tempfile::tempdir().unwrap();
    let gpu = Gpu::open_best().unwrap();
    let policy = Policy::open(MODEL).unwrap().with_lora(LoraConfig::default()).unwrap();
    let data = Preferences::read(preferences(dir.path()), &policy).unwrap();
    let refused = policy.train(&gpu, &data, &Recipe::sft()).err().unwrap().to_string();
    assert!(refused.contains("prefs.jsonl:1") && refused.contains("one text to imitate"), "{refused}");
    let stop = AtomicBool::new(true);
    let options = TrainingOptions { stop: &stop, ..TrainingOptions::default() };
    let training = policy.train_with(&gpu, &data, &Recipe::default(), options, &mut |_| ()).unwrap();
    assert!(matches!(training.finish(), Err(Error::Stopped { step: 0 })));
}

/// Between two steps a program may use the device: the run does not notice.
#[test]
fn scoring_between_steps_changes_no_step() {
    let dir = tempfile::tempdir().unwrap();
    let gpu = Gpu::open_best().unwrap();
    let policy = Policy::open(MODEL).unwrap().with_lora(LoraConfig::all_linear(4)).unwrap();
    let data = Preferences::read(preferences(dir.path()), &policy).unwrap();
    let recipe = Recipe { learning_rate: 1e-3, max_steps: Some(5), batch_size: 4, ..Recipe::default() };
    let losses = |scores: bool| -> Vec<u64> {
        let training = policy.train(&gpu, &data, &recipe).unwrap();
        let step = |step: jointwise::Result<jointwise::TrainingStep>| {
            if scores {
                policy.score(&gpu, "Say hello to everybody.", &[" Hello, everybody!"; 9], &Template::Paper).unwrap();
            }
            step.unwrap().loss.to_bits()
        };
        training.map(step).collect()
    };
    let alone = losses(false);
    assert_eq!(alone, losses(true));
    assert!(alone.len() == 5 && alone[0] != alone[4], "the run learns");
}
