//! Commands over many rows begin with the first one: what is done is there before the last row is, and stays when that fails.

mod program;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use program::{Sandbox, fixture};
use serde_json::{Value, json};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");

fn prompts(n: usize) -> String {
    (0..n).map(|i| format!("{{\"prompt\":\"Add {} and 7.\"}}\n", 11 + i)).collect()
}

const MANY: [&str; 7] = ["--batch-size", "1", "--max-new-tokens", "48", "--ignore-eos", "--prompts", "prompts.jsonl"];

/// Rows are written as they are answered. A program that is killed behind the first has written some, not all.
#[test]
fn generate_shows_rows_as_they_are_answered() {
    const N: usize = 30;
    let s = Sandbox::new();
    s.write("prompts.jsonl", prompts(N));
    for more in [&["--json"][..], &["--out", "-"], &[]] {
        let args = [&["generate", "--model", DEMO][..], &MANY, more].concat();
        let mut child = s.command(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a program");
        let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut first = String::new();
        out.read_line(&mut first).expect("a line");
        child.kill().expect("killed");
        child.wait().expect("ended");
        let rest = out.lines().count();
        assert!(!first.is_empty() && rest + 1 < N, "{more:?}: {} lines", rest + 1);
        if !more.is_empty() {
            let row: Value = serde_json::from_str(&first).expect("a whole row");
            assert_eq!(row["instruction"], "Add 11 and 7.");
        }
    }
}

/// Ctrl-C ends it behind the batch under way.
#[cfg(unix)]
#[test]
fn generate_ends_in_order() {
    const N: usize = 60;
    let s = Sandbox::new();
    s.write("prompts.jsonl", prompts(N));
    let args = [&["generate", "--model", DEMO, "--json"][..], &MANY].concat();
    let mut child = s.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a program");
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut text = String::new();
    out.read_line(&mut text).expect("a line");
    // SAFETY: a system call with two numbers. The child was not waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
    std::io::Read::read_to_string(&mut out, &mut text).expect("UTF-8");
    let ended = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{said}");
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a whole row")).collect();
    let n = rows.len();
    assert!((1..N).contains(&n) && said.contains(&format!("note: {n} of {N} prompts were answered")), "{said}");
}

/// What was answered before a prompt that cannot be is in the file.
#[test]
fn generate_keeps_what_it_has_where_a_later_prompt_fails() {
    let s = Sandbox::new();
    let model = fixture("mistral-odd/model");
    let generate = |model: &str, file: &str, more: &[&str]| {
        let fixed = ["generate", "--model", model, "--prompts", file, "--template", "none", "--max-new-tokens", "1"];
        s.run(&[&fixed[..], &["--batch-size", "2", "--temperature", "0"], more].concat())
    };
    let texts = ["one", "two", "three", "four $", "five"];
    let rows = |texts: &[&str]| texts.iter().map(|t| format!("{}\n", json!({"prompt": t}))).collect::<String>();
    s.write("prompts.jsonl", rows(&texts));
    let whole = generate(model.to_str().expect("UTF-8"), "prompts.jsonl", &["--json"]).ok().lines();
    // A token of the fourth prompt alone is one that no number stands for.
    let ids = |row: &Value| -> BTreeSet<u64> {
        row["prompt_ids"].as_array().expect("ids").iter().filter_map(Value::as_u64).collect()
    };
    let others: BTreeSet<u64> = [0, 1, 2, 4].into_iter().flat_map(|i| ids(&whole[i])).collect();
    let bad = *ids(&whole[3]).difference(&others).next().expect("a token of its own") as usize;
    s.copy("mistral-odd/model", "model");
    program::edit(&s.path("model/model.safetensors"), |tensors| {
        let embedding = tensors.get_mut("model.embed_tokens.weight").expect("an embedding");
        let (mut values, width) = (embedding.values(), embedding.shape[1]);
        values[bad * width..(bad + 1) * width].fill(f32::NAN);
        embedding.set(&values);
    });
    let ran = generate("model", "prompts.jsonl", &["--out", "answers.jsonl"]);
    ran.said(1, &["prompt 4", "not"]);
    assert!(ran.stderr.contains("note: 2 of 5 prompts were answered"), "{}", ran.stderr);
    let text = fs::read_to_string(s.path("answers.jsonl")).expect("a file");
    let kept: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect();
    assert_eq!(kept, whole[..2]);
    // The first batch fails: nothing is left behind.
    s.write("bad.jsonl", rows(&["four $", "five"]));
    let before = s.listing();
    generate("model", "bad.jsonl", &["--out", "none.jsonl"]).said(1, &["prompt 1"]);
    assert_eq!(s.listing(), before);
}

/// A local judge answers the first question before it has looked at the last, which is too long.
#[test]
fn a_local_judge_begins_with_the_first_question() {
    let s = Sandbox::new();
    let row = |i: usize, response: &str| {
        json!({"instruction": format!("Add {i} and 7."), "response_0": response, "response_1": "8"}).to_string() + "\n"
    };
    let long = "a b c d e f g h ".repeat(40);
    let rows: String = (0..6).map(|i| row(i, if i == 5 { &long } else { "7" })).collect();
    s.write("rows.jsonl", rows);
    s.write("prompt.txt", "{instruction} {response_a} or {response_b}?");
    for (out, more) in [("letters", &[][..]), ("written", &["--answer", "generate", "--max-tokens", "4"])] {
        let fixed = ["judge", "--data", "rows.jsonl", "--model", DEMO, "--template", "none", "--prompt", "prompt.txt"];
        let limits = ["--max-length", "120", "--batch-tokens", "1", "--output-dir", out];
        s.run(&[&fixed[..], &limits, more].concat()).said(1, &["without an answer"]);
        let text = fs::read_to_string(s.path(out).join("answers.jsonl")).expect("answers");
        let rows: Vec<Value> = text.lines().skip(1).map(|line| serde_json::from_str(line).expect("a row")).collect();
        assert_eq!(rows.len(), 12, "{text}");
        // The last answer is on its way when the questions behind it are looked at.
        let has_failed: Vec<bool> = rows.iter().map(|row| row.get("failed").is_some()).collect();
        assert!(rows[0]["row"] == "rows.jsonl:1" && !has_failed[..9].contains(&true), "{out}: {text}");
        assert_eq!(has_failed.iter().filter(|failed| **failed).count(), 2, "{out}: {text}");
    }
}
