//! Long work writes lines to standard error where that is not a terminal.

mod program;

use program::{Ran, Sandbox, rows};

fn sandbox() -> Sandbox {
    let s = Sandbox::new();
    s.copy("mistral-odd/model", "model");
    s.write("rows.jsonl", rows("mistral-odd").join("\n"));
    s
}

/// Runs the program with a line every 5 ms, and returns its standard error.
fn run(s: &Sandbox, args: &[&str]) -> String {
    Ran::of(s.command(args).env("JOINTWISE_PROGRESS_SECONDS", "0.005")).ok().stderr
}

/// Finds the lines of a task: "scoring: 3 of 7, 51 per second, 0 s left".
fn lines<'a>(stderr: &'a str, task: &str) -> Vec<&'a str> {
    stderr.lines().filter_map(|line| line.strip_prefix(task)?.strip_prefix(": ")).collect()
}

#[test]
fn scoring_and_training_write_lines() {
    let s = sandbox();
    let n = rows("mistral-odd").len();
    let first = run(&s, &["score", "--model", "model", "--data", "rows.jsonl", "--out", "scores.jsonl"]);
    for task in ["checking the device's kernels", "scoring"] {
        assert!(!lines(&first, task).is_empty(), "{task}: {first}");
    }
    let of_all = format!(" of {n}, ");
    assert!(lines(&first, "scoring").iter().all(|line| line.contains(&of_all)), "{first}");

    let train = [
        "train",
        "--model",
        "model",
        "--data",
        "rows.jsonl",
        "--output-dir",
        "out",
        "--max-steps",
        "3",
        "--eval-data",
        "rows.jsonl",
    ];
    let trained = run(&s, &train);
    let steps = lines(&trained, "training");
    assert!(!steps.is_empty() && steps.iter().all(|line| line.contains(" of 3, ")), "{trained}");
    assert!(trained.contains("\nstep 3/3  loss "), "{trained}");
}
