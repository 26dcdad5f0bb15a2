//! Bad input: one line that names file, line, field, tensor or flag; status 2; nothing left behind; no panic.

mod program;

#[cfg(target_os = "linux")]
#[path = "robustness/numbers.rs"]
mod numbers;
#[cfg(target_os = "linux")]
#[path = "robustness/terminal.rs"]
mod terminal;

use std::fs;
use std::path::Path;
use std::process::Command;
#[cfg(target_os = "linux")]
use std::process::Stdio;

use program::{Ran, Sandbox, edit, rows};
use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};

const MODEL: &str = "mistral-odd/model";
const Q_PROJ: &str = "model.layers.1.self_attn.q_proj.weight";

/// A sandbox with a good model and good data.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.copy(MODEL, "model");
    sandbox.write("rows.jsonl", rows("mistral-odd").join("\n"));
    sandbox
}

const SCORE: &[&str] = &["score", "--model", "model", "--data", "rows.jsonl", "--out", "scores.jsonl"];
const TRAIN: &[&str] = &[
    "train",
    "--model",
    "model",
    "--data",
    "rows.jsonl",
    "--output-dir",
    "out",
    "--max-steps",
    "2",
    "--batch-size",
    "2",
];
const GENERATE: &[&str] = &["generate", "--model", "model", "--prompt", "Hello", "--max-new-tokens", "4"];

fn with<'a>(command: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [command, more].concat()
}

/// Both `score` and `train` refuse what was done to the folder.
#[track_caller]
fn both_refuse(sandbox: &Sandbox, parts: &[&str]) {
    sandbox.refused(SCORE, parts);
    sandbox.refused(TRAIN, parts);
}

fn edit_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON");
    change(&mut value);
    fs::write(path, value.to_string()).expect("a file");
}

// ------------------------------------------------------------------------------------------------------ checkpoints

#[test]
fn weights_that_are_missing_or_cut() {
    let s = sandbox();
    let file = s.path("model/model.safetensors");
    let whole = fs::read(&file).expect("weights");
    for keep in [0, 4, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..keep]).expect("a file");
        both_refuse(&s, &["model/model.safetensors"]);
    }
    fs::write(&file, [&whole[..], b"more"].concat()).expect("a file");
    both_refuse(&s, &["model/model.safetensors"]);
    fs::remove_file(&file).expect("removed");
    both_refuse(&s, &["model", "model.safetensors"]);
    fs::remove_dir_all(s.path("model")).expect("removed");
    both_refuse(&s, &["model"]);
}

#[test]
fn tensors_that_do_not_fit() {
    let refuse = |parts: &[&str], change: &dyn Fn(&mut program::Tensors)| {
        let s = sandbox();
        edit(&s.path("model/model.safetensors"), change);
        both_refuse(&s, parts);
    };
    refuse(&["model.safetensors", Q_PROJ, "missing"], &|t| drop(t.remove(Q_PROJ)));
    refuse(&["model.safetensors", Q_PROJ, "(36, 36)", "(18, 72)"], &|t| {
        t.get_mut(Q_PROJ).expect("q_proj").shape = vec![18, 72];
    });
    refuse(&["model.safetensors", Q_PROJ, "I32"], &|t| t.get_mut(Q_PROJ).expect("q_proj").dtype = Dtype::I32);
    // One that is no part of the model is left unused, and named.
    let s = sandbox();
    edit(&s.path("model/model.safetensors"), |t| {
        let extra = t[Q_PROJ].clone();
        t.insert("model.layers.7.extra".into(), extra);
    });
    let ran = s.run(SCORE).ok();
    let note = "note: model: 1 tensor is no part of this MistralForCausalLM and not used, as in transformers: model.layers.7.extra";
    assert!(ran.stderr.lines().any(|line| line == note), "{}", ran.stderr);
}

#[test]
fn indices_that_lead_outside() {
    let s = sandbox();
    fs::rename(s.path("model/model.safetensors"), s.path("outside.safetensors")).expect("moved");
    let names: Vec<String> = program::read_tensors(&s.path("outside.safetensors")).into_keys().collect();
    let absolute = s.text("outside.safetensors");
    for target in
        ["../outside.safetensors", absolute.as_str(), "absent.safetensors", "..", "", "a/../../outside.safetensors"]
    {
        let map: serde_json::Map<_, _> = names.iter().map(|n| (n.clone(), json!(target))).collect();
        s.write("model/model.safetensors.index.json", json!({ "weight_map": map }).to_string());
        both_refuse(&s, &["model/"]);
    }
    for bad in ["{", "[]", "{}", r#"{"weight_map": 3}"#, r#"{"weight_map": {"a": 1}}"#] {
        s.write("model/model.safetensors.index.json", bad);
        both_refuse(&s, &["model.safetensors.index.json"]);
    }
    #[cfg(unix)]
    {
        fs::remove_file(s.path("model/model.safetensors.index.json")).expect("removed");
        std::os::unix::fs::symlink("../outside.safetensors", s.path("model/model.safetensors")).expect("a link");
        both_refuse(&s, &["model.safetensors"]);
    }
}

#[test]
fn configs_that_are_not_understood() {
    let s = sandbox();
    let path = s.path("model/config.json");
    let good = fs::read(&path).expect("a config");
    let refuse = |parts: &[&str], change: &dyn Fn(&mut Value)| {
        fs::write(&path, &good).expect("a file");
        edit_json(&path, change);
        both_refuse(&s, parts);
    };
    refuse(&["config.json", "MambaForCausalLM"], &|c| {
        c["architectures"] = json!(["MambaForCausalLM"]);
        c["model_type"] = json!("mamba");
    });
    refuse(&["config.json", "hidden_size"], &|c| c["hidden_size"] = json!("wide"));
    refuse(&["config.json", "hidden_size"], &|c| drop(c.as_object_mut().expect("object").remove("hidden_size")));
    refuse(&["config.json", "num_hidden_layers"], &|c| c["num_hidden_layers"] = json!(-1));
    refuse(&["config.json"], &|c| c["vocab_size"] = json!(1_u64 << 60));
    refuse(&["config.json", "hidden_act"], &|c| c["hidden_act"] = json!("swoosh"));
    for bad in ["", "{", "[]", "null", "{\"architectures\": 3}"] {
        fs::write(&path, bad).expect("a file");
        both_refuse(&s, &["model/config.json"]);
    }
    fs::remove_file(&path).expect("removed");
    both_refuse(&s, &["model/config.json"]);
}

#[test]
fn tokenizers() {
    let s = sandbox();
    let path = s.path("model/tokenizer.json");
    let good = fs::read(&path).expect("a tokenizer");
    fs::write(&path, &good[..good.len() / 2]).expect("a file");
    both_refuse(&s, &["model/tokenizer.json"]);
    fs::remove_file(&path).expect("removed");
    both_refuse(&s, &["model/tokenizer.json"]);
    fs::write(&path, &good).expect("a file");

    // `tokenizers` itself panics at these.
    for (part, value) in [
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
        ("decoder", json!(3)),
        ("model", json!({"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]})),
        ("model", json!({"type": "Unigram", "vocab": [], "unk_id": 7})),
    ] {
        edit_json(&path, |t| t[part] = value.clone());
        both_refuse(&s, &["model/tokenizer.json"]);
        fs::write(&path, &good).expect("a file");
    }

    // It panics at these when it is used, or takes gigabytes.
    let check = ["check", "--model", "model", "--data", "rows.jsonl"];
    for (part, value) in [
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "A".repeat(1000)})),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="})),
        // A trie that leads out of itself.
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8AAA=="})),
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
    ] {
        edit_json(&path, |t| t[part] = value.clone());
        s.refused(&check, &["model/tokenizer.json"]);
        fs::write(&path, &good).expect("a file");
    }
    edit_json(&path, |t| t["decoder"] = json!({"type": "Strip", "content": "a", "start": 100, "stop": 100}));
    assert!(!s.run(&check).ok().stderr.contains("panicked"));
    let decoders = [("e", 100), ("\u{0}", 0)].map(|(content, start)| (content, start, 1_u64 << 40));
    for (content, start, stop) in decoders {
        let all = json!({"type": "Replace", "pattern": {"Regex": "[\\s\\S]"}, "content": content});
        let strip = json!({"type": "Strip", "content": content, "start": start, "stop": stop});
        edit_json(&path, |t| t["decoder"] = json!({"type": "Sequence", "decoders": [all, strip]}));
        s.run(&with(GENERATE, &["--ignore-eos"])).said(2, &["model/tokenizer.json", "its decoder fails"]);
        fs::write(&path, &good).expect("a file");
    }

    // Without BOS or EOS it works, with a note; training asks for an end that can be learnt.
    for name in ["bos_token", "eos_token"] {
        edit_json(&s.path("model/tokenizer_config.json"), |c| c[name] = Value::Null);
        edit_json(&s.path("model/config.json"), |c| c[format!("{name}_id")] = Value::Null);
        let ran = s.run(&["check", "--model", "model", "--data", "rows.jsonl"]).ok();
        // The special tokens' map goes on naming it, which counts for nothing where the tokenizer's configuration says null.
        let start = format!("note: the tokenizer has no {}", name[..3].to_uppercase());
        let note = ran.stderr.lines().find(|line| line.starts_with(&start));
        assert!(
            note.is_some_and(|note| note.contains("special_tokens_map.json") && note.contains(": the ")),
            "{}",
            ran.stderr
        );
    }
    s.refused(TRAIN, &["--model", "neither the tokenizer nor config.json names an EOS", "--no-eos"]);
    let scored = s.run(&["score", "--model", "model", "--data", "rows.jsonl"]).ok();
    assert_eq!(scored.lines().len(), 25);
}

#[test]
fn chat_templates_that_take_too_much() {
    let s = sandbox();
    let args = ["check", "--model", "model", "--data", "rows.jsonl", "--template", "chat"];
    s.write(
        "model/chat_template.jinja",
        "{{ bos_token }}\n{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    );
    s.refused(&args, &["rows.jsonl:1: ", "model/chat_template.jinja: chat template, line 2: ", "fuel"]);
    s.write("model/chat_template.jinja", "\n\n{{ [1] * 3 }}");
    s.refused(&args, &["model/chat_template.jinja: chat template, line 3: `*` of a list"]);
    s.write("model/chat_template.jinja", "{{ raise_exception('\u{1b}[31m\u{7}' ~ 'evil' * 100000) }}");
    let ran = s.run(&args);
    ran.said(2, &["rows.jsonl:1: ", "the template says: \\u{1b}[31m\\u{7}evil", "…"]);
    assert!(ran.stderr.len() < 1200 && !ran.stderr.contains('\u{1b}'), "{}", ran.stderr);
}

/// Every file of a model or an adapter: a link out of the folder, a device, a pipe that nobody writes to.
#[cfg(unix)]
#[test]
fn files_that_are_no_files_of_the_folder() {
    use std::os::unix::fs::symlink;
    let s = sandbox();
    s.copy("lora-mistral/adapter", "adapter");
    let refuse = |args: &[&str], file: &str| {
        let path = s.path(file);
        let good = fs::read(&path).ok();
        let _ = fs::remove_file(&path);
        s.write("secret", good.clone().unwrap_or_else(|| b"{}".into()));
        for to in ["../secret", "/dev/zero", "/dev/null"] {
            symlink(to, &path).expect("a link");
            s.refused(args, &[file, "is a link out of the checkpoint's folder"]);
            fs::remove_file(&path).expect("removed");
        }
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        s.refused(args, &[file, "is not a regular file"]);
        fs::remove_file(&path).expect("removed");
        if let Some(good) = good {
            fs::write(&path, good).expect("a file");
        }
    };
    let check = ["check", "--model", "model", "--data", "rows.jsonl"];
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"] {
        refuse(&check, &format!("model/{file}"));
    }
    refuse(GENERATE, "model/generation_config.json");
    let merge = ["merge", "--model", "model", "--adapter", "adapter", "--output-dir", "merged"];
    refuse(&merge, "adapter/adapter_config.json");
    refuse(&merge, "adapter/adapter_model.safetensors");
    fs::remove_file(s.path("model/model.safetensors")).expect("removed");
    refuse(&check, "model/model.safetensors.index.json");
}

/// The hub's cache, where every file is a link to a blob.
#[cfg(unix)]
#[test]
fn a_snapshot_of_the_hub_is_read() {
    let s = sandbox();
    let (blobs, snapshot) = (s.path("models--a--b/blobs"), s.path("models--a--b/snapshots/0123"));
    fs::create_dir_all(&blobs).expect("a folder");
    fs::create_dir_all(&snapshot).expect("a folder");
    for entry in fs::read_dir(s.path("model")).expect("a folder").flatten() {
        let name = entry.file_name();
        fs::rename(entry.path(), blobs.join(&name)).expect("moved");
        std::os::unix::fs::symlink(Path::new("../../blobs").join(&name), snapshot.join(&name)).expect("a link");
    }
    s.run(&["check", "--model", "models--a--b/snapshots/0123", "--data", "rows.jsonl"]).ok();
}

#[test]
fn what_files_say_is_one_short_line() {
    let s = sandbox();
    let path = s.path("model/config.json");
    let evil = format!("a\nb\u{1b}[31m{}", "x".repeat(1_000_000));
    edit_json(&path, |c| c["architectures"] = json!([evil]));
    let ran = s.run(SCORE);
    ran.said(2, &["model/config.json", "a\\nb\\u{1b}[31m", "…"]);
    assert!(ran.stderr.chars().count() < 1100 && !ran.stderr.contains('\u{1b}'));

    let s = sandbox();
    s.run(&with(TRAIN, &["--map", "a\nb=c"])).said(2, &["--map", "a\\nb"]);
    // In a note.
    s.copy("lora-mistral/adapter", "adapter");
    edit_json(&s.path("adapter/adapter_config.json"), |c| {
        c["target_modules"].as_array_mut().expect("names").push(json!("a\nerror: \u{1b}[31m"));
    });
    let ran = s.run(&["merge", "--model", "model", "--adapter", "adapter", "--output-dir", "merged"]).ok();
    assert!(ran.stderr.contains("that this model does not have: a\\nerror: \\u{1b}[31m\n"), "{}", ran.stderr);
}

#[test]
fn a_device_is_checked_once_and_again_where_that_was_lost() {
    let s = sandbox();
    let checks = || s.run(SCORE).ok().stderr.contains("checks its kernels");
    let first = checks();
    assert!(!checks(), "once");
    let kept: Vec<_> = fs::read_dir(s.path("cache/jointwise/checked")).expect("a folder").flatten().collect();
    assert_eq!(kept.len(), 1);
    for broken in ["", "{", "{\"wrong\": 3}"] {
        fs::write(kept[0].path(), broken).expect("a file");
        // On a GPU it says nothing.
        assert_eq!(checks(), first, "{broken}");
    }
    // Without the variants that failed.
    let mut record: Value = serde_json::from_slice(&fs::read(kept[0].path()).expect("a file")).expect("JSON");
    record["wrong"] = json!(["lanes", "cpu", "rows", "flash", "tiles32", "tiles64", "tiles128"]);
    fs::write(kept[0].path(), record.to_string()).expect("a file");
    let ran = s.run(SCORE).ok();
    assert!(
        ran.stderr.contains("failed the self-test on") && !ran.stderr.contains("checks its kernels"),
        "{}",
        ran.stderr
    );
}

#[test]
fn weights_of_nan_stop_the_run() {
    let s = sandbox();
    edit(&s.path("model/model.safetensors"), |t| {
        let tensor = t.get_mut(Q_PROJ).expect("q_proj");
        let mut values = tensor.values();
        values[5] = f32::NAN;
        tensor.set(&values);
    });
    let args = with(TRAIN, &["--no-shuffle"]);
    s.run(&with(&args, &["--full"])).said(1, &["step 1", "rows 0, 1", Q_PROJ]);
    assert!(!s.path("out/model.safetensors").exists());
    fs::remove_dir_all(s.path("out")).expect("removed");
    s.run(&args).said(1, &["step 1", "rows 0, 1", Q_PROJ]);
    assert!(!s.path("out/adapter_model.safetensors").exists());
}

#[test]
fn results_are_numbers() {
    let s = sandbox();
    // The last update makes weights that no later step would meet.
    let args = ["train", "--model", "model", "--data", "rows.jsonl", "--output-dir", "out", "--max-steps", "1"];
    s.run(&with(&args, &["--full", "--learning-rate", "3e38", "--weight-decay", "1e3"]))
        .said(1, &["step 1, after the update", "the weight `"]);
    assert!(!s.path("out/model.safetensors").exists());
    // What float16 can't hold is refused, and the steps are kept.
    let start =
        ["train", "--model", "model", "--data", "rows.jsonl", "--output-dir", "kept", "--full", "--max-steps", "1"];
    let large = with(&start, &["--learning-rate", "1e6", "--batch-size", "2"]);
    s.run(&with(&large, &["--output-dtype", "f16"])).said(2, &["kept/model.safetensors", "does not fit float16"]);
    s.run(&with(&large, &["--output-dtype", "f32", "--resume"])).ok();
    assert!(s.path("kept/model.safetensors").is_file());

    edit(&s.path("model/model.safetensors"), |t| {
        let tensor = t.get_mut(Q_PROJ).expect("q_proj");
        let n = tensor.values().len();
        tensor.set(&vec![f32::NAN; n]);
    });
    s.run(SCORE).said(1, &["row 0", "log-probability"]);
    s.run(&["grad", "--model", "model", "--data", "rows.jsonl", "--out", "g.safetensors"])
        .said(1, &["rows 0, 1", Q_PROJ]);
    s.run(GENERATE).said(1, &["prompt 1", "logit"]);
    assert!(!s.path("scores.jsonl").exists() && !s.path("g.safetensors").exists());
}

#[test]
fn adapters_that_do_not_fit() {
    let s = sandbox();
    s.copy("lora-mistral/adapter", "adapter");
    let commands = [with(SCORE, &["--adapter", "adapter"]), with(TRAIN, &["--adapter", "adapter"])];
    let merge = vec!["merge", "--model", "model", "--adapter", "adapter", "--output-dir", "merged"];
    let refuse = |parts: &[&str]| commands.iter().chain([&merge]).for_each(|c| s.refused(c, parts));

    let weights = s.path("adapter/adapter_model.safetensors");
    let good = fs::read(&weights).expect("weights");
    fs::write(&weights, &good[..good.len() / 2]).expect("a file");
    refuse(&["adapter/adapter_model.safetensors"]);
    fs::write(&weights, &good).expect("a file");
    edit(&weights, |t| {
        let name = t.keys().next().expect("a tensor").clone();
        t.remove(&name);
    });
    refuse(&["adapter/adapter_model.safetensors", "lora_A"]);
    fs::write(&weights, &good).expect("a file");
    let config = s.path("adapter/adapter_config.json");
    let good = fs::read(&config).expect("a config");
    edit_json(&config, |c| c["peft_type"] = json!("IA3"));
    refuse(&["adapter/adapter_config.json", "peft_type"]);
    fs::write(&config, &good).expect("a file");
    edit_json(&config, |c| c["r"] = json!(5));
    refuse(&["adapter/"]);
    fs::write(&config, "{").expect("a file");
    refuse(&["adapter/adapter_config.json"]);
    fs::write(&config, &good).expect("a file");

    // Of another base: shapes or modules differ.
    fs::remove_dir_all(s.path("model")).expect("removed");
    s.copy("qwen3/model", "model");
    refuse(&["adapter/adapter_model.safetensors", "q_proj"]);
    // And none at all.
    fs::remove_dir_all(s.path("adapter")).expect("removed");
    refuse(&["adapter"]);
}

// ------------------------------------------------------------------------------------------------------------- rows

#[test]
fn rows_that_are_malformed() {
    let s = sandbox();
    let good = rows("mistral-odd");
    let refuse = |line: &str, parts: &[&str]| {
        let mut all = good.clone();
        all[16] = line.into();
        s.write("rows.jsonl", all.join("\n"));
        both_refuse(&s, &[&["rows.jsonl:17: "], parts].concat());
        s.refused(&["check", "--model", "model", "--data", "rows.jsonl"], &[&["rows.jsonl:17: "], parts].concat());
    };
    refuse("{\"i_chosen\": \"a\", ", &[]);
    refuse("[1, 2]", &[]);
    refuse("\u{0}\u{1}", &[]);
    refuse(r#"{"i_chosen": "a", "r_chosen": "b", "i_reject": "c"}"#, &["r_reject", "missing"]);
    refuse(r#"{"i_chosen": "a", "r_chosen": "", "i_reject": "c", "r_reject": "d"}"#, &["the chosen response is empty"]);
    refuse(r#"{"i_chosen": "a", "r_chosen": 3, "i_reject": "c", "r_reject": "d"}"#, &["r_chosen", "number"]);
    refuse(r#"{"prompt": "a", "chosen": "b"}"#, &["rejected"]);
    let nested = format!("{{\"prompt\": {}1{}}}", "[".repeat(2000), "]".repeat(2000));
    refuse(&nested, &[]);

    let bytes = [good[..16].join("\n").into_bytes(), b"\n{\"prompt\": \"\xff\xfe\"}\n".to_vec()].concat();
    s.write("rows.jsonl", bytes);
    both_refuse(&s, &["rows.jsonl:17: ", "UTF-8"]);
    s.write("rows.jsonl", "\n\n");
    both_refuse(&s, &["rows.jsonl"]);
    fs::remove_file(s.path("rows.jsonl")).expect("removed");
    both_refuse(&s, &["rows.jsonl"]);
    fs::create_dir(s.path("rows.jsonl")).expect("a folder");
    both_refuse(&s, &["rows.jsonl"]);
}

/// Skipped only where asked, counted, the first ten named, and no more of them than allowed.
#[test]
fn bad_rows_are_skipped_where_asked() {
    let s = sandbox();
    let good = rows("mistral-odd");
    let mut all = [good.clone(), good.clone()].concat();
    for (i, bad) in
        [r#"{"prompt": "a", "chosen": "", "rejected": "b"}"#, r#"{"prompt": "\ud800", "chosen": "a", "rejected": "b"}"#]
            .into_iter()
            .chain(vec!["{"; 10])
            .enumerate()
    {
        all.insert(2 * i + 1, bad.into());
    }
    s.write("clean.jsonl", [&good[..], &good[..]].concat().join("\n"));
    s.write("rows.jsonl", all.join("\n"));
    both_refuse(&s, &["rows.jsonl:2: ", "the chosen response is empty"]);
    let skip = ["--on-bad-row", "skip"];
    let score = |more: &[&str]| with(SCORE, &[&skip, more].concat()).into_iter().map(String::from).collect::<Vec<_>>();
    let strs = |args: &[String]| s.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let ran = strs(&score(&[]));
    ran.said(2, &["--max-bad-rows: 12 of 60 rows are bad, more than 1%", "rows.jsonl:2: the chosen response is empty"]);
    assert_eq!(ran.stderr.matches("note: skipped: ").count(), 10, "{}", ran.stderr);
    strs(&score(&["--max-bad-rows", "19%"])).said(2, &["--max-bad-rows"]);
    let ran = strs(&score(&["--max-bad-rows", "0.2"])).ok();
    assert!(ran.stderr.contains("60 rows: 48 kept, 0 dropped, 12 bad rows skipped"), "{}", ran.stderr);
    let lines = |file: &str| -> Vec<Value> {
        let text = fs::read_to_string(s.path(file)).expect("scores");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let skipped = lines("scores.jsonl");
    s.run(&["score", "--model", "model", "--data", "clean.jsonl", "--out", "clean.out"]).ok();
    let clean = lines("clean.out");
    assert_eq!(skipped.len(), clean.len());
    assert_eq!(skipped[1]["row"], 2, "rows keep their numbers");
    assert_eq!(skipped[1]["chosen"], clean[1]["chosen"]);
    assert_eq!(skipped.last(), clean.last(), "the summary");
    for (args, parts) in [
        (vec!["--max-bad-rows", "3"], vec!["--max-bad-rows", "--on-bad-row skip"]),
        (vec!["--on-bad-row", "skip", "--max-bad-rows", "1.5"], vec!["--max-bad-rows", "1% or 0.01"]),
        (vec!["--on-bad-row", "skip", "--max-bad-rows", "-1"], vec!["--max-bad-rows", "1% or 0.01"]),
    ] {
        s.refused(&with(SCORE, &args), &parts);
    }
    // In a settings file as text or a number; a run goes on with the rows that it began with, however many might be skipped.
    let train = |out: &str, more: &[&str]| {
        let args =
            with(&TRAIN[..5], &["--max-steps", "2", "--save-steps", "1", "--batch-size", "2", "--config", "run.toml"]);
        s.run(&with(&with(&args, &["--output-dir", out]), more))
    };
    s.write("run.toml", "on-bad-row = \"skip\"\nmax-bad-rows = 2.5");
    train("out", &[]).said(2, &["run.toml", "max-bad-rows"]);
    for (out, limit) in [("text", "\"20%\""), ("share", "0.2"), ("count", "12")] {
        s.write("run.toml", format!("on-bad-row = \"skip\"\nmax-bad-rows = {limit}"));
        let ran = train(out, &[]).ok();
        assert!(ran.stderr.contains("12 bad rows skipped"), "{}", ran.stderr);
    }
    train("count", &["--resume"]).ok();
    s.write("run.toml", "on-bad-row = \"skip\"\nmax-bad-rows = 13");
    train("count", &["--resume"]).ok();
    let fewer: Vec<&String> = all.iter().enumerate().filter(|(i, _)| *i != 2).map(|(_, line)| line).collect();
    s.write("rows.jsonl", fewer.iter().map(|line| line.as_str()).collect::<Vec<_>>().join("\n"));
    train("count", &["--resume"]).said(2, &["other settings, data or model"]);
}

/// A line without an end, a device without one; a pipe is read.
#[cfg(target_os = "linux")]
#[test]
fn rows_without_an_end() {
    let s = sandbox();
    for device in ["/dev/zero", "/dev/null"] {
        s.refused(&["check", "--model", "model", "--data", device], &[device, "is neither a file nor a pipe"]);
    }
    let good = fs::read_to_string(s.path("rows.jsonl")).expect("rows");
    s.write("rows.jsonl", format!("{good}\n"));
    let file = fs::File::options().append(true).open(s.path("rows.jsonl")).expect("a file");
    file.set_len(1 << 40).expect("a sparse file");
    both_refuse(&s, &["rows.jsonl:25: ", "longer than 64 MiB"]);

    let piped = |name: &str, text: &[u8]| {
        let mut command = s.command(&["check", "--model", "model", "--data", name]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), text).expect("read");
        let ended = child.wait_with_output().expect("it ends");
        (ended.status.success(), String::from_utf8_lossy(&ended.stderr).into_owned())
    };
    for name in ["/dev/stdin", "-"] {
        let (done, told) = piped(name, good.as_bytes());
        assert!(done, "{told}");
    }
    let (done, told) = piped("-", b"prompt,chosen,rejected\n\"Q\n\",a,b\nQ,a\n");
    assert!(!done && told.contains("standard input:4: the row has 2 cells, the header 3 columns"), "{told}");
    let (done, told) = piped("-", b"PAR1 and more");
    assert!(!done && told.contains("standard input: Parquet cannot be read from a pipe"), "{told}");
    // A file as standard input is one.
    let parquet = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parquet/plain.parquet");
    let mut command = s.command(&["check", "--model", "model", "--data", "-", "--sft", "--json"]);
    let ran = Ran::of(command.stdin(fs::File::open(parquet).expect("a file"))).ok();
    assert_eq!(ran.lines()[0]["n_rows"], 3);
}

#[test]
fn prompts_are_named_by_file_and_line() {
    let s = sandbox();
    let args = [
        "generate",
        "--model",
        "model",
        "--prompt",
        "Hello",
        "--prompts",
        "p.jsonl",
        "--max-new-tokens",
        "4",
        "--template",
        "paper",
    ];
    let refuse = |second: Value, parts: &[&str]| {
        s.write("p.jsonl", format!("{{\"prompt\": \"ok\"}}\n\n{second}\n"));
        s.refused(&args, &[&["p.jsonl:3: "], parts].concat());
    };
    refuse(json!({"prompt": "word ".repeat(400)}), &["--max-new-tokens", "positions"]);
    refuse(
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}),
        &["--template chat"],
    );
    refuse(json!({"prompt": 3}), &["`prompt`"]);
}

#[test]
fn rows_that_do_not_fit() {
    let s = sandbox();
    let mut all = rows("mistral-odd");
    all[4] = json!({"prompt": "word ".repeat(300), "chosen": "a", "rejected": "b"}).to_string();
    s.write("rows.jsonl", all.join("\n"));
    let limit = ["--max-length", "200", "--on-overflow", "error"];
    let parts = ["rows.jsonl:5: ", "the chosen side", "--max-length is 200"];
    s.refused(&with(SCORE, &limit), &parts);
    s.refused(&with(TRAIN, &limit), &parts);
    // By default it is left out, with a note.
    let ran = s.run(&["check", "--model", "model", "--data", "rows.jsonl", "--max-length", "200"]).ok();
    assert!(ran.stderr.contains("1 dropped") || ran.stdout.contains("1 dropped"), "{}{}", ran.stdout, ran.stderr);
    s.refused(&with(TRAIN, &["--max-length", "4"]), &["--max-length", "no row fits"]);

    // Nothing scored: without an end, a response that the tokenizer swallows whole.
    edit_json(&s.path("model/tokenizer_config.json"), |c| c["bos_token"] = Value::Null);
    edit_json(&s.path("model/tokenizer.json"), |t| {
        t["normalizer"] = json!({"type": "Replace", "pattern": {"String": "#"}, "content": ""});
    });
    all[4] = json!({"prompt": "a", "chosen": "###", "rejected": "b"}).to_string();
    s.write("rows.jsonl", all.join("\n"));
    let parts = ["rows.jsonl:5: ", "the chosen side has no token to score"];
    s.refused(&with(SCORE, &["--template", "none", "--no-eos"]), &parts);
    s.refused(&with(TRAIN, &["--template", "none", "--no-eos"]), &parts);
}

// ------------------------------------------------------------------------------------------------------------ flags

#[test]
fn flags_out_of_range() {
    let s = sandbox();
    let huge = usize::MAX.to_string();
    let cases: &[(&str, &[&str])] = &[
        ("beta", &["-1", "0", "nan", "inf", "1e-300"]),
        ("label-smoothing", &["-0.1", "0.5"]),
        ("sft-weight", &["-1", "1e39"]),
        ("learning-rate", &["0", "-0.001", "nan", "1e39"]),
        ("batch-size", &["0", "-1", &huge]),
        ("gradient-accumulation-steps", &["0"]),
        ("warmup-ratio", &["2", "-0.1"]),
        ("max-length", &["0", "1", "257", &huge]),
        ("max-steps", &["0", &huge]),
        ("num-train-epochs", &["0", "-1", "1e18"]),
        ("adam-beta1", &["1", "-0.5", "0.99999999999"]),
        ("adam-beta2", &["1.5"]),
        ("adam-epsilon", &["0", "-1e-8", "1e-300"]),
        ("weight-decay", &["-0.1", "1e39"]),
        ("max-grad-norm", &["-1"]),
        ("lora-r", &["0"]),
        ("lora-alpha", &["0", "-1", "nan", "1e-300"]),
        ("save-steps", &["0"]),
        ("save-total-limit", &["0"]),
        ("eval-steps", &["0"]),
        ("logging-steps", &["0"]),
        ("lora-targets", &["no_such_proj", "q_proj,no_such_proj"]),
        ("device", &["99", "no such device"]),
        ("template", &["no placeholder"]),
        ("map", &["prompt", "unheard=of"]),
        ("on-bad-row", &["ignore"]),
    ];
    let train: Vec<&str> = TRAIN[..TRAIN.len() - 4].to_vec();
    for (flag, values) in cases {
        for value in *values {
            let typed = format!("--{flag}");
            s.refused(&with(&train, &[&typed, value]), &[&typed]);
        }
    }
    for (flag, values) in [
        ("--temperature", ["-1", "nan"]),
        ("--top-p", ["0", "1.5"]),
        ("--batch-size", ["0", "0"]),
        ("--max-new-tokens", ["0", &huge]),
        ("--device", ["99", "no such device"]),
    ] {
        for value in values {
            let args: Vec<&str> = if flag == "--max-new-tokens" { GENERATE[..5].to_vec() } else { GENERATE.to_vec() };
            s.refused(&with(&args, &[flag, value]), &[flag]);
        }
    }
    s.refused(&["generate", "--model", "model"], &["--prompt"]);
    s.refused(&["train", "--data", "rows.jsonl", "--output-dir", "out"], &["--model"]);
    s.refused(&["train", "--model", "model", "--output-dir", "out"], &["--data"]);
    s.refused(&["train", "--model", "model", "--data", "rows.jsonl"], &["--output-dir"]);
    s.refused(&with(TRAIN, &["--full", "--adapter", "absent"]), &["absent"]);
    s.refused(&with(TRAIN, &["--reference", "absent"]), &["--reference", "absent"]);
    s.refused(&with(SCORE, &["--reference", "absent"]), &["--reference", "absent"]);
}

#[test]
fn batches_that_no_device_holds() {
    let s = sandbox();
    let plan = ["plan", "--model", "model", "--max-length", "256", "--batch-size"];
    s.refused(&with(&plan, &["16777216"]), &["--batch-size", "tokens"]);
    s.refused(&with(&plan, &["4096"]), &["--batch-size", "a binding of this device"]);
}

/// Whose memory is planned for; `train` takes what its device has.
#[test]
fn devices_that_cannot_be_planned_for() {
    let s = sandbox();
    let plan = ["plan", "--model", "model", "--max-length", "64", "--batch-size", "1"];
    for size in ["8", "", "GiB", "8gib", "8 gigabytes", "0GiB", "-8GiB", "nanGiB", "1e3MiB", "99999999999999999GiB"] {
        s.refused(&with(&plan, &["--device-memory", size]), &["--device-memory", "expected"]);
    }
    s.refused(&with(&plan, &["--limits", "none"]), &["--limits", "baseline"]);
    s.refused(&with(&plan, &["--device", "99"]), &["--device: 99", "no such device"]);
    let baseline = with(&plan, &["--limits", "baseline"]);
    s.refused(&with(&baseline, &["--device", "0"]), &["--limits", "with --device"]);
    s.refused(&with(&baseline, &["--variant", "tiles64"]), &["--limits", "with --variant"]);
    s.refused(&with(&baseline, &["--matmul-precision", "high"]), &["--matmul-precision", "baseline", "high"]);
    s.write("run.toml", "device = \"0\"");
    s.refused(&with(&baseline, &["--config", "run.toml"]), &["--limits", "with --device"]);
    s.write("run.toml", "device-memory = \"8GiB\"");
    s.refused(&with(&plan, &["--config", "run.toml"]), &["run.toml", "device-memory"]);
    s.refused(&with(TRAIN, &["--device-memory", "8GiB"]), &["--device-memory", "--help"]);
    s.run(&with(&baseline, &["--matmul-precision", "highest", "--device-memory", "8GiB"])).ok();
}

/// Standard error may be closed or full: a run does not end for that.
#[test]
fn nobody_listens() {
    let s = sandbox();
    let program = env!("CARGO_BIN_EXE_jointwise");
    let mut shell = Command::new("sh");
    shell.current_dir(s.path("")).env("XDG_CACHE_HOME", s.path("cache"));
    let script = format!("{program} {} 2>/dev/full", TRAIN.join(" "));
    assert_eq!(Ran::of(shell.args(["-c", &script])).status, 0);
    assert!(s.path("out/adapter_model.safetensors").is_file());
}

/// The demo replaces its own results and nothing else.
#[test]
fn the_demo_keeps_off_other_folders() {
    let s = sandbox();
    fs::create_dir(s.path("mine")).expect("a folder");
    s.write("mine/report.html", "mine");
    s.write("mine/thesis.tex", "mine");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let demo = ["demo", "--output-dir", "mine", "--model", demo.to_str().expect("UTF-8")];
    s.refused(&demo, &["mine", "not empty"]);
    s.refused(&with(&demo, &["--device", "99"]), &["--device"]);
    s.refused(&with(&demo, &["--prompts", "0"]), &["--prompts"]);
}

#[test]
fn flags_that_are_mistyped() {
    let s = sandbox();
    for (args, part) in [
        (with(TRAIN, &["--learning-rat", "1"]), "--learning-rat"),
        (with(TRAIN, &["--learning-rate", "fast"]), "--learning-rate"),
        (with(TRAIN, &["--beta"]), "--beta"),
        (with(TRAIN, &["--loss", "squared"]), "--loss"),
        (with(TRAIN, &["--on-overflow", "explode"]), "--on-overflow"),
        (vec!["trian"], "trian"),
    ] {
        s.refused(&args, &[part, "--help"]);
    }
}

#[test]
fn settings_files() {
    let s = sandbox();
    let train = with(TRAIN, &["--config", "run.toml"]);
    s.refused(&train, &["run.toml"]);
    for (text, parts) in [
        ("learning-rat = 1", ["run.toml", "learning-rat"]),
        ("learning_rate = 1", ["run.toml", "learning_rate"]),
        ("learning-rate = \"fast\"", ["run.toml", "learning-rate"]),
        ("batch-size = -1", ["run.toml", "batch-size"]),
        ("loss = \"squared\"", ["run.toml", "loss"]),
        ("on-overflow = \"explode\"", ["run.toml", "on-overflow"]),
        ("learning-rate = = 3", ["run.toml", "line 1"]),
        ("[train]\nbeta = 1", ["run.toml", "train"]),
        ("config = \"other.toml\"", ["run.toml", "config"]),
        ("resume = 1", ["run.toml", "resume"]),
        ("beta = -1.0", ["--beta", "-1"]),
    ] {
        s.write("run.toml", text);
        s.refused(&train, &parts);
    }
    // A good key works, and a flag wins over it.
    s.write("run.toml", "beta = -1.0\nlearning-rate = 1e-4");
    s.refused(&with(&train, &["--beta", "0.1", "--device", "99"]), &["--device: 99"]);
}

// ----------------------------------------------------------------------------------------------------------- outputs

#[test]
fn folders_that_exist() {
    let s = sandbox();
    fs::create_dir(s.path("out")).expect("a folder");
    s.write("out/precious.txt", "mine");
    s.refused(TRAIN, &["out", "exists"]);
    s.copy("lora-mistral/adapter", "adapter");
    s.refused(&["merge", "--model", "model", "--adapter", "adapter", "--output-dir", "out"], &["out", "exists"]);
    s.write("file", "mine");
    s.refused(&["merge", "--model", "model", "--adapter", "adapter", "--output-dir", "file"], &["file"]);
    s.refused(&with(&TRAIN[..5], &["--output-dir", "file/out"]), &["file"]);
    // As a merge leaves it that was killed: what it was writing is swept. Without its lock the folder is somebody's.
    let merge = ["merge", "--model", "model", "--adapter", "adapter", "--output-dir", "killed"];
    fs::create_dir_all(s.path("killed/.partial")).expect("a folder");
    s.write("killed/.partial/model.safetensors", "half");
    s.refused(&merge, &["killed exists and is not empty"]);
    s.write("killed/.jointwise.lock", "1\nx\n");
    s.run(&merge).ok();
    assert!(s.path("killed/model.safetensors").is_file());
    assert!(!s.path("killed/.partial").exists() && !s.path("killed/.jointwise.lock").exists());
}

/// Before anything is computed for it: the device is not even opened.
#[test]
fn outputs_that_cannot_be_written() {
    let s = sandbox();
    fs::create_dir(s.path("folder")).expect("a folder");
    let rows = fs::read(s.path("rows.jsonl")).expect("rows");
    for (out, reason) in
        [("absent/scores.jsonl", "does not exist"), ("folder", "is a folder"), ("./rows.jsonl", "is also an input")]
    {
        for command in ["score", "grad"] {
            let args = [command, "--model", "model", "--data", "rows.jsonl", "--device", "99", "--out", out];
            s.refused(&args, &["--out", out, reason]);
        }
        let args = ["generate", "--model", "model", "--prompts", "rows.jsonl", "--device", "99", "--out", out];
        s.refused(&args, &["--out", out, reason]);
    }
    assert_eq!(fs::read(s.path("rows.jsonl")).expect("rows"), rows);
}

#[cfg(target_os = "linux")]
#[test]
fn a_device_that_is_full() {
    let s = sandbox();
    let score = ["score", "--model", "model", "--data", "rows.jsonl"];
    s.refused(&with(&score, &["--out", "/dev/full"]), &["/dev/full", "No space left"]);
    use std::os::unix::fs::FileTypeExt;
    assert!(fs::metadata("/dev/full").expect("a device").file_type().is_char_device());
    let full = || Stdio::from(fs::File::create("/dev/full").expect("a device"));
    let check = ["check", "--model", "model", "--data", "rows.jsonl"];
    for args in [&score[..], &check, &with(&check, &["--json"]), &["plan", "--model", "model"], GENERATE] {
        let output = s.command(args).stdout(full()).stderr(Stdio::piped()).spawn().and_then(|c| c.wait_with_output());
        let out = output.expect("the program starts");
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        let ran = Ran { status: out.status.code().unwrap_or(-1), stdout: String::new(), stderr };
        ran.said(2, &["standard output", "No space left"]);
    }
}

/// Written to, and still there: what is no regular file is never replaced.
#[cfg(unix)]
#[test]
fn outputs_that_are_no_files() {
    use std::os::unix::fs::{FileTypeExt, symlink};
    let s = sandbox();
    let score = ["score", "--model", "model", "--data", "rows.jsonl", "--out"];
    let expected = s.run(&score[..5]).ok().stdout;
    assert!(expected.contains("summary"));
    let with_out = |out: &str| s.run(&with(&score, &[out])).ok();

    // Standard output by its names, behind what is there already.
    for name in ["-", "/dev/stdout"] {
        assert_eq!(with_out(name).stdout, expected, "{name}");
        let program = env!("CARGO_BIN_EXE_jointwise");
        let script = format!("echo first > all && {program} {} {name} >> all 2>/dev/null", score.join(" "));
        let mut shell = Command::new("sh");
        shell.current_dir(s.path("")).env("XDG_CACHE_HOME", s.path("cache")).args(["-c", &script]);
        assert_eq!(Ran::of(&mut shell).status, 0);
        assert_eq!(fs::read_to_string(s.path("all")).expect("a file"), format!("first\n{expected}"), "{name}");
    }
    assert!(!s.path("-").exists());
    // An open descriptor, likewise.
    let script = format!(
        "echo first > all && {} {} /dev/fd/3 3>> all 2>/dev/null",
        env!("CARGO_BIN_EXE_jointwise"),
        score.join(" ")
    );
    let mut shell = Command::new("sh");
    shell.current_dir(s.path("")).env("XDG_CACHE_HOME", s.path("cache")).args(["-c", &script]);
    assert_eq!(Ran::of(&mut shell).stdout, "");
    assert_eq!(fs::read_to_string(s.path("all")).expect("a file"), format!("first\n{expected}"));
    s.refused(
        &["grad", "--model", "model", "--data", "rows.jsonl", "--out", "-"],
        &["--out", "standard output", "name a file"],
    );

    // A pipe.
    assert!(Command::new("mkfifo").arg(s.path("pipe")).status().expect("mkfifo").success());
    let pipe = s.path("pipe");
    let reader = std::thread::spawn(move || fs::read_to_string(pipe).expect("text"));
    with_out("pipe");
    assert_eq!(reader.join().expect("read"), expected);
    assert!(fs::symlink_metadata(s.path("pipe")).expect("a pipe").file_type().is_fifo());

    // A link leads to its file, which is replaced as a whole; to nothing, or into a circle, it is refused.
    fs::create_dir(s.path("elsewhere")).expect("a folder");
    s.write("elsewhere/scores.jsonl", "old");
    symlink("elsewhere/scores.jsonl", s.path("link")).expect("a link");
    with_out("link");
    assert!(s.path("link").is_symlink());
    assert_eq!(fs::read_to_string(s.path("elsewhere/scores.jsonl")).expect("scores"), expected);
    assert_eq!(fs::read_dir(s.path("elsewhere")).expect("a folder").count(), 1);
    symlink("nowhere", s.path("dangling")).expect("a link");
    s.refused(&with(&score, &["dangling", "--device", "99"]), &["--out", "dangling", "does not exist"]);
    symlink("rows.jsonl", s.path("input")).expect("a link");
    s.refused(&with(&score, &["input", "--device", "99"]), &["--out", "is also an input"]);
}

/// A file system of 64 KiB at a folder, until it is dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn at(dir: &'a Path) -> Option<Self> {
        fs::create_dir(dir).expect("a folder");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "none"]).arg(dir).output();
        mount.is_ok_and(|out| out.status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_disk_that_is_full() {
    let s = sandbox();
    s.copy("lora-mistral/adapter", "adapter");
    let path = s.path("disk");
    let Some(_disk) = SmallDisk::at(&path) else {
        println!("skipped: this user may not mount a tmpfs");
        return;
    };
    let merge = ["merge", "--model", "model", "--adapter", "adapter", "--output-dir", "disk/merged"];
    s.refused(&merge, &["disk/merged", "No space left"]);
    s.refused(&["grad", "--model", "model", "--data", "rows.jsonl", "--out", "disk/grad"], &["disk/grad", "No space"]);

    // In the middle of a run: what was whole stays, nothing half-written.
    let train = ["train", "--model", "model", "--data", "rows.jsonl", "--output-dir", "disk/run", "--full"];
    s.run(&with(&train, &["--max-steps", "3", "--save-steps", "2"])).said(2, &["disk/run", "No space left"]);
    let left: Vec<_> = s.listing().into_keys().filter(|p| p.starts_with(s.path("disk/run"))).collect();
    let bad = |p: &&std::path::PathBuf| {
        let name = p.to_string_lossy();
        name.contains("tmp") && name.contains("checkpoint")
            || name.contains("safetensors")
            || name.ends_with(".partial")
    };
    assert_eq!(left.iter().find(bad), None, "{left:?}");
}

// ------------------------------------------------------------------------------------------------------------ noise

/// `check` reads configuration, header, tokenizer and rows, and needs no device.
fn survives(s: &Sandbox) -> Result<(), TestCaseError> {
    let ran = s.run(&["check", "--model", "model", "--data", "rows.jsonl", "--rows", "1"]);
    prop_assert!(ran.status == 0 || ran.status == 2, "status {}: {}", ran.status, ran.stderr);
    prop_assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    let errors = ran.stderr.lines().filter(|l| l.starts_with("error: ")).count();
    prop_assert_eq!(errors, usize::from(ran.status == 2), "{}", ran.stderr);
    Ok(())
}

/// Flips bits (position as a part of the length), then cuts to a part of it.
fn damage(bytes: &mut Vec<u8>, flips: &[(f64, u8)], keep: f64) {
    for (at, bit) in flips {
        let at = (at * bytes.len() as f64) as usize;
        bytes[at] ^= 1 << bit;
    }
    bytes.truncate((keep * bytes.len() as f64) as usize);
}

fn damages() -> impl Strategy<Value = (Vec<(f64, u8)>, f64)> {
    let flips = prop::collection::vec((0.0..1.0, 0..8_u8), 1..4);
    (flips, prop_oneof![3 => Just(1.0), 1 => 0.0..1.0])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_headers_never_panic((flips, keep) in damages()) {
        let s = sandbox();
        let path = s.path("model/model.safetensors");
        let whole = fs::read(&path).expect("weights");
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
        let mut head = whole[..header].to_vec();
        damage(&mut head, &flips, keep);
        fs::write(&path, [&head[..], &whole[header..]].concat()).expect("a file");
        survives(&s)?;
    }

    #[test]
    fn damaged_configs_never_panic((flips, keep) in damages(), which in 0..3_usize) {
        let s = sandbox();
        let path = s.path("model").join(["config.json", "tokenizer_config.json", "tokenizer.json"][which]);
        let mut bytes = fs::read(&path).expect("a file");
        damage(&mut bytes, &flips, keep);
        fs::write(&path, bytes).expect("a file");
        survives(&s)?;
    }

    #[test]
    fn damaged_rows_never_panic((flips, keep) in damages()) {
        let s = sandbox();
        let mut bytes = rows("mistral-odd").join("\n").into_bytes();
        damage(&mut bytes, &flips, keep);
        s.write("rows.jsonl", bytes);
        survives(&s)?;
    }
}
