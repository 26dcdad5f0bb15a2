//! Rows as tokens that the program keeps: a second start reads them, and nothing else finds them.
#![expect(clippy::unwrap_used, reason = "tests")]

mod program;

use std::fs;
use std::path::PathBuf;

use program::{Ran, Sandbox, rows};

/// Rows that are worth keeping.
const ROWS: usize = 1200;

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.copy("llama3-scaling/model", "model");
    let rows = rows("llama3-scaling");
    let lines: Vec<String> =
        (0..ROWS).map(|i| rows[i % rows.len()].replacen("{\"", &format!("{{\"id\": {i}, \""), 1)).collect();
    sandbox.write("rows.jsonl", lines.join("\n"));
    sandbox
}

fn check(s: &Sandbox, more: &[&str]) -> Ran {
    let args = ["check", "--model", "model", "--rows", "1", "--data", "rows.jsonl"];
    s.run(&[&args[..], more].concat()).ok()
}

fn kept(s: &Sandbox) -> Vec<PathBuf> {
    let entries = fs::read_dir(s.path("cache/jointwise/tokens")).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn a_second_start_reads_the_tokens_of_the_first() {
    let s = sandbox();
    let first = check(&s, &["--max-length", "60"]);
    let files = kept(&s);
    assert_eq!(files.len(), 1);
    assert!(first.stderr.contains("columns that are not read: `id` (1200 rows)"), "{}", first.stderr);
    assert!(first.stderr.contains("1200 rows: ") && first.stdout.contains("dropped: rows.jsonl:"), "{}", first.stderr);
    let bytes = fs::read(&files[0]).unwrap();
    let second = check(&s, &["--max-length", "60"]);
    assert_eq!((second.stdout, &second.stderr), (first.stdout.clone(), &first.stderr));
    assert_eq!((kept(&s), fs::read(&files[0]).unwrap()), (files.clone(), bytes.clone()));
    // It is read: one word of another file in its place is seen by its checksum, and the file is written anew.
    let mut damaged = bytes.clone();
    let at = bytes.len() - 40;
    damaged[at] ^= 1;
    fs::write(&files[0], damaged).unwrap();
    let third = check(&s, &["--max-length", "60"]);
    assert_eq!(third.stdout, first.stdout);
    let told = third.stderr.replace(&first.stderr, "");
    assert!(told.contains("kept tokens are damaged") && told.contains("the rows are tokenised again"), "{told}");
    assert_eq!(fs::read(&files[0]).unwrap(), bytes);
    // A folder that cannot be made costs the next start its time alone.
    fs::remove_dir_all(s.path("cache")).unwrap();
    s.write("cache", "a file");
    let fourth = check(&s, &["--max-length", "60"]);
    assert_eq!(fourth.stdout, first.stdout);
    assert!(fourth.stderr.contains("note: the tokens are not kept for the next start: "), "{}", fourth.stderr);
}

#[test]
fn other_rows_tokenizers_templates_and_limits_have_other_names() {
    let s = sandbox();
    let mut known = Vec::new();
    let mut is_new = |what: &str, more: &[&str], expected: bool| {
        check(&s, more);
        let files = kept(&s);
        assert_eq!(files.len() > known.len(), expected, "{what}");
        known = files;
    };
    is_new("the first", &[], true);
    is_new("the same again", &[], false);
    is_new("a template", &["--template", "none"], true);
    is_new("a limit", &["--max-length", "90"], true);
    is_new("what happens beyond it", &["--max-length", "90", "--on-overflow", "truncate-prompt"], true);
    is_new("a purpose", &["--sft"], true);
    is_new("no end", &["--no-eos"], true);
    is_new("a rule for bad rows", &["--on-bad-row", "skip"], true);
    is_new("a map", &["--map", "system=absent"], true);
    let path = s.path("model/tokenizer_config.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{config} ")).unwrap();
    is_new("a tokenizer", &[], true);
    fs::write(&path, config).unwrap();
    is_new("the first tokenizer", &[], false);
    let text = fs::read_to_string(s.path("rows.jsonl")).unwrap();
    s.write("rows.jsonl", text.replacen("\"id\": 3,", "\"id\": 4,", 1));
    is_new("a file", &[], true);
    s.write("rows.jsonl", &text);
    is_new("the first file", &[], false);
    // The same contents in a folder are told by other names.
    fs::create_dir(s.path("folder")).unwrap();
    fs::copy(s.path("rows.jsonl"), s.path("folder/rows.jsonl")).unwrap();
    let args = ["check", "--model", "model", "--data", "folder"];
    assert!(s.run(&args).ok().stderr.contains("folder: columns that are not read"));
    assert_eq!(kept(&s).len(), known.len() + 1);
    // Few rows are not kept, nor is a part of them.
    s.run(&["check", "--model", "model", "--data", "rows.jsonl", "--limit", "1100"]).ok();
    s.write("few.jsonl", rows("llama3-scaling").join("\n"));
    s.run(&["check", "--model", "model", "--data", "few.jsonl"]).ok();
    assert_eq!(kept(&s).len(), known.len() + 1);
}

#[test]
fn the_first_rows_can_be_looked_at_alone() {
    let s = sandbox();
    let good = fs::read_to_string(s.path("rows.jsonl")).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    s.write("rows.jsonl", format!("{}\nnot a row\n", lines[..700].join("\n")));
    let n_rows = |ran: Ran| ran.ok().lines()[0]["n_rows"].as_u64().unwrap();
    let look =
        |data: &str, limit: &str| s.run(&["check", "--model", "model", "--data", data, "--json", "--limit", limit]);
    for limit in [1, 511, 512, 513, 700] {
        assert_eq!(n_rows(look("rows.jsonl", &limit.to_string())), limit);
    }
    look("rows.jsonl", "701").said(2, &["rows.jsonl:701: malformed JSON"]);
    look("rows.jsonl", "0").said(2, &["--limit"]);
    // Of every form, and no file behind them.
    s.write("list.json", format!("{{\"data\": [{}, nothing", lines[..3].join(",")));
    s.write("rows.csv", "prompt,chosen,rejected\na,b,c\nd,e,f\n\"open");
    for (name, n) in [("list.json", 3), ("rows.csv", 2)] {
        let args = ["check", "--model", "model", "--data", name, "absent.jsonl", "--json", "--limit", &n.to_string()];
        assert_eq!(n_rows(s.run(&args)), n, "{name}");
    }
    let parquet = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parquet/joint.parquet");
    assert_eq!(n_rows(look(parquet, "5")), 5);
    assert_eq!(n_rows(look(parquet, "100")), 7);
}
