//! Notes on settings that were left out, such as the template and the objective; and schedules as transformers names them.
#![expect(clippy::unwrap_used, reason = "tests")]

mod program;

use std::path::Path;

use program::Sandbox;

const TEXTS: &str = r#"{"prompt": "Say red.", "chosen": " red", "rejected": " blue"}
{"prompt": "Say blue.", "chosen": " blue", "rejected": " red"}
"#;

fn demo() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo").to_str().unwrap().into()
}

#[test]
fn the_first_line_about_rows_names_their_template_and_why() {
    let s = Sandbox::new();
    s.write("texts.jsonl", TEXTS);
    let chat = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}"#;
    s.write("chats.jsonl", chat);
    let model = demo();
    let first = |more: &[&str]| {
        let ran = s.run(&[&["check", "--model", &model, "--rows", "0"], more].concat()).ok();
        ran.stderr.lines().find(|line| line.starts_with("template: ")).map(String::from).unwrap()
    };
    assert_eq!(first(&["--data", "texts.jsonl"]), "template: paper (the rows are texts)");
    assert_eq!(first(&["--data", "chats.jsonl"]), "template: chat (the rows are conversations)");
    assert_eq!(first(&["--data", "chats.jsonl", "--template", "paper"]), "template: paper (--template)");
    assert_eq!(first(&["--data", "texts.jsonl", "--template", "trl"]), "template: plain (--template)");
    let bos = |template: &str| {
        let args = ["check", "--model", &model, "--data", "texts.jsonl", "--template", template];
        s.run(&args).ok().stderr.contains("note: BOS, <s>, stands before each text")
    };
    assert!(bos("none") && !bos("plain") && !bos("paper"));
}

#[test]
fn check_tells_what_trl_would_tokenise() {
    let s = Sandbox::new();
    s.write("texts.jsonl", TEXTS);
    let model = demo();
    let like_trl = |more: &[&str]| -> Vec<String> {
        let args = ["check", "--model", &model, "--data", "texts.jsonl", "--rows", "0", "--like-trl"];
        let ran = s.run(&[&args[..], more].concat()).ok();
        ran.stdout.lines().skip_while(|line| !line.starts_with("as TRL")).map(String::from).collect()
    };
    let same = "4 of 4 sequences have the same tokens, 4 also score the same ones";
    assert!(like_trl(&["--template", "trl"])[0].contains(same));
    let paper = like_trl(&[]);
    assert!(paper[0].contains("0 of 4 sequences"), "{paper:?}");
    assert!(paper[1].contains("texts.jsonl:1: the chosen side: token 0 is <s> here, S"), "{paper:?}");
    assert_eq!(paper.len(), 4, "the first three differences");
    // Where this program leaves rows out, TRL cuts their responses, but for prompts that fill the limit.
    let short = like_trl(&["--template", "trl", "--max-length", "14"]);
    assert!(short[0].contains("left out here"), "{short:?}");
    let args = ["check", "--model", &model, "--data", "texts.jsonl", "--like-trl", "--json", "--template", "none"];
    let report = s.run(&args).ok().lines().remove(0);
    assert_eq!((&report["like_trl"]["n_sequences"], &report["like_trl"]["n_same"]), (&4.into(), &0.into()));
}

#[test]
fn an_objective_left_out_is_told_where_it_matters() {
    let s = Sandbox::new();
    s.write("rows.jsonl", TEXTS);
    let model = demo();
    let note = |out: &str, more: &[&str]| {
        let args = ["train", "--model", &model, "--data", "rows.jsonl", "--max-steps", "1", "--output-dir", out];
        s.run(&[&args[..], more].concat()).ok().stderr.contains("TRL's is --objective dpo")
    };
    assert!(note("a", &["--loss", "ipo"]));
    assert!(!note("b", &["--loss", "sigmoid=1,sft=0.5"]), "the same loss under both");
    assert!(!note("c", &["--loss", "ipo", "--objective", "jpo"]), "it was chosen");
    let scores = |more: &[&str]| {
        let args = ["score", "--model", &model, "--data", "rows.jsonl", "--out", "scores.jsonl"];
        s.run(&[&args[..], more].concat()).ok().stderr.contains("TRL's is --objective dpo")
    };
    assert!(scores(&["--loss", "kto"]) && !scores(&[]));
}

#[test]
fn warm_ups_and_cycles_are_transformers() {
    let s = Sandbox::new();
    s.write("rows.jsonl", TEXTS);
    let model = demo();
    let args = ["train", "--model", &model, "--data", "rows.jsonl", "--max-steps", "5", "--batch-size", "1"];
    let rates = |out: &str, more: &[&str]| -> Vec<f64> {
        s.run(&[&args[..], &["--output-dir", out, "--learning-rate", "1e-3"], more].concat()).ok();
        let lines = std::fs::read_to_string(s.path(out).join("metrics.jsonl")).unwrap();
        let rate = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["learning_rate"].as_f64();
        lines.lines().filter_map(rate).collect()
    };
    // 0.3 of 5 steps, rounded up, are 2.
    let part = rates("part", &["--warmup-steps", "0.3", "--lr-scheduler-type", "constant_with_warmup"]);
    assert_eq!(part, [0.0, 5e-4, 1e-3, 1e-3, 1e-3]);
    let restarts = rates("restarts", &["--lr-scheduler-type", "cosine_with_restarts", "--lr-num-cycles", "5"]);
    assert_eq!(restarts, [1e-3; 5]);
    let refused =
        |more: &[&str], said: &str| s.run(&[&args[..], &["--output-dir", "x"], more].concat()).said(2, &[said]);
    refused(&["--warmup-steps", "1.5"], "--warmup-steps: 1.5 is neither");
    refused(&["--warmup-steps", "0.1", "--warmup-ratio", "0.1"], "--warmup-ratio gives too");
    refused(&["--lr-num-cycles", "2"], "--lr-num-cycles: needs");
}
