//! Folders of models and adapters as they are found: what is in them is used, and what was in them when a run began.

mod program;

use std::fs;
use std::path::Path;
use std::time::Duration;

use program::{Sandbox, edit, read_tensors, rows};
use serde_json::{Value, json};

const CHECK: &[&str] = &["check", "--model", "model", "--data", "rows.jsonl", "--sft", "--json"];
const PLAIN: &[&str] = &["--template", "none"];

/// A sandbox with a model, an adapter of it without a tokenizer, and a conversation.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.copy("mistral-odd/model", "model");
    sandbox.copy("lora-mistral/adapter", "adapter");
    let row = json!({"messages": [{"role": "user", "content": "Say hi"}, {"role": "assistant", "content": "hi"}]});
    sandbox.write("rows.jsonl", row.to_string());
    sandbox
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

fn edit_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = read_json(path);
    change(&mut value);
    fs::write(path, value.to_string()).expect("a file");
}

fn remove(value: &mut Value, name: &str) {
    value.as_object_mut().expect("an object").remove(name);
}

/// Ids of the first row of a `check`, and what was said.
fn checked(s: &Sandbox, more: &[&str]) -> (Vec<u64>, String) {
    let ran = s.run(&[CHECK, more].concat()).ok();
    let tokens = ran.lines()[0]["rows"][0]["sides"][0]["tokens"].as_array().expect("tokens").clone();
    (tokens.iter().map(|t| t["id"].as_u64().expect("an id")).collect(), ran.stderr)
}

// --------------------------------------------------------------------------------------------------- special tokens

#[test]
fn tokens_that_only_a_class_or_config_json_names() {
    let s = sandbox();
    s.write("rows.jsonl", r#"{"prompt": "hi", "completion": "there"}"#);
    let named = checked(&s, PLAIN).0;
    assert_eq!((named[0], *named.last().expect("tokens")), (1, 2));
    for file in ["special_tokens_map.json", "generation_config.json"] {
        fs::remove_file(s.path("model").join(file)).expect("removed");
    }
    let config = s.path("model/tokenizer_config.json");
    fs::write(&config, r#"{"model_max_length": 1024}"#).expect("a file");
    let (ids, told) = checked(&s, PLAIN);
    assert_eq!(ids, named);
    assert!(told.contains("eos_token_id, 2 `</s>`, is used as EOS: the tokenizer's files name none"), "{told}");
    edit_json(&s.path("model/config.json"), |c| {
        ["bos_token_id", "eos_token_id"].into_iter().for_each(|n| remove(c, n))
    });
    fs::write(&config, r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#).expect("a file");
    let (ids, told) = checked(&s, PLAIN);
    assert!(ids == named[1..named.len() - 1] && told.contains("the tokenizer has no EOS"), "{ids:?} {told}");
    fs::write(&config, r#"{"tokenizer_class": "LlamaTokenizerFast"}"#).expect("a file");
    let (ids, told) = checked(&s, PLAIN);
    assert!(ids == named && !told.contains("note: "), "{ids:?} {told}");
}

#[test]
fn an_end_that_is_never_learnt_is_refused_unless_asked_for() {
    let s = sandbox();
    s.write("rows.jsonl", r#"{"prompt": "hi", "completion": "there"}"#);
    let ends = checked(&s, PLAIN).0.len();
    assert_eq!(checked(&s, &[PLAIN, &["--no-eos"]].concat()).0.len(), ends - 1);
    edit_json(&s.path("model/tokenizer_config.json"), |c| remove(c, "eos_token"));
    edit_json(&s.path("model/config.json"), |c| remove(c, "eos_token_id"));
    let train = [
        "sft",
        "--model",
        "model",
        "--data",
        "rows.jsonl",
        "--template",
        "none",
        "--max-steps",
        "1",
        "--output-dir",
        "out",
    ];
    s.refused(&train, &["--model: model: neither the tokenizer nor config.json names an EOS", "--no-eos"]);
    let scored = s.run(&["score", "--model", "model", "--data", "rows.jsonl", "--template", "none"]).ok();
    assert!(scored.stderr.contains("note: the tokenizer has no EOS"), "{}", scored.stderr);
    s.run(&[&train[..], &["--no-eos"]].concat()).ok();
}

#[test]
fn an_answer_ends_at_any_end_that_config_json_names() {
    let s = sandbox();
    fs::remove_file(s.path("model/generation_config.json")).expect("removed");
    let ask =
        ["generate", "--model", "model", "--prompt", "Say hi", "--max-new-tokens", "8", "--temperature", "0", "--json"];
    let ids = |more: &[&str]| s.run(&[&ask[..], more].concat()).ok().lines()[0]["ids"].clone();
    let all: Vec<u64> = serde_json::from_value(ids(&["--ignore-eos"])).expect("ids");
    let stop = all[2];
    let at = all.iter().position(|id| *id == stop).expect("it is there");
    edit_json(&s.path("model/config.json"), |c| c["eos_token_id"] = json!([2, stop]));
    assert_eq!(ids(&[]), json!(all[..=at]));
}

// --------------------------------------------------------------------------------------------------------- adapters

const TUNED: &str = "{% for m in messages %}TUNED {{ m.role }} {{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}TUNED assistant {% endif %}";

/// Gives the adapter's folder the model's tokenizer, with a template of its own.
fn with_own_tokenizer(s: &Sandbox) {
    for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        fs::copy(s.path("model").join(file), s.path("adapter").join(file)).expect("a copy");
    }
    s.write("adapter/chat_template.jinja", TUNED);
}

/// The template of a folder, wherever it is.
fn template(dir: &Path) -> String {
    let in_config =
        || read_json(&dir.join("tokenizer_config.json"))["chat_template"].as_str().unwrap_or_default().into();
    fs::read_to_string(dir.join("chat_template.jinja")).unwrap_or_else(|_| in_config())
}

#[test]
fn an_adapters_own_template_is_used_and_goes_with_the_result() {
    let s = sandbox();
    with_own_tokenizer(&s);
    let chat = ["--adapter", "adapter", "--template", "chat"];
    let (own, told) = checked(&s, &chat);
    let note = "note: adapter: the adapter's own tokenizer is used, which differs from the base's in chat template";
    assert!(told.lines().any(|line| line == note), "{told}");
    assert_ne!(own, checked(&s, &["--template", "chat"]).0);
    // Where the base has none, too.
    edit_json(&s.path("model/tokenizer_config.json"), |c| remove(c, "chat_template"));
    assert_eq!(checked(&s, &chat).0, own);
    s.refused(&["check", "--model", "model", "--data", "rows.jsonl", "--template", "chat"], &["no chat template"]);

    let score = ["score", "--model", "model", "--data", "rows.jsonl", "--tokens"];
    let scored = s.run(&[&score[..], &chat].concat()).ok();
    assert_eq!(scored.lines()[0]["text"]["ids"], json!(own));
    let merge = s.run(&["merge", "--model", "model", "--adapter", "adapter", "--output-dir", "merged"]).ok();
    assert!(merge.stderr.contains("the adapter's own tokenizer is used"), "{}", merge.stderr);
    assert_eq!(template(&s.path("merged")), TUNED);
    let train = ["sft", "--model", "model", "--data", "rows.jsonl", "--max-steps", "1", "--output-dir", "out"];
    s.run(&[&train[..], &chat].concat()).ok();
    assert_eq!(template(&s.path("out")), TUNED);
    // What was trained has a tokenizer of its own, the same as it was trained with.
    let again = checked(&s, &["--adapter", "out", "--template", "chat"]);
    assert_eq!(again.0, own);

    // A template alone; and a tokenizer whose folder has none, so that the base's is left.
    s.copy("mistral-odd/model", "model");
    for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        fs::remove_file(s.path("adapter").join(file)).expect("removed");
    }
    assert_eq!(checked(&s, &chat).0, own);
    fs::remove_file(s.path("adapter/chat_template.jinja")).expect("removed");
    fs::copy(s.path("model/tokenizer.json"), s.path("adapter/tokenizer.json")).expect("a copy");
    s.write("adapter/tokenizer_config.json", r#"{"bos_token": "<s>", "eos_token": "</s>"}"#);
    let (ids, told) = checked(&s, &chat);
    assert_eq!(ids, checked(&s, &["--template", "chat"]).0);
    assert!(told.contains("note: adapter: the adapter's tokenizer has no chat template: the base's is used"), "{told}");
    assert!(!told.contains("differs"), "{told}");
}

#[test]
fn an_adapter_with_more_tokens_than_its_base_is_refused() {
    let s = sandbox();
    with_own_tokenizer(&s);
    edit_json(&s.path("adapter/tokenizer_config.json"), |c| {
        c["added_tokens_decoder"]["509"] = json!({"content": "<tool>", "special": true});
    });
    let chat = ["--adapter", "adapter", "--template", "chat"];
    let parts = ["adapter/tokenizer.json", "1 added tokens and needs 510 ids", "509 rows", "resized"];
    s.refused(&[CHECK, &chat].concat(), &parts);
    s.refused(&["merge", "--model", "model", "--adapter", "adapter", "--output-dir", "merged"], &parts);
    // With the embedding that was resized for them.
    edit(&s.path("adapter/adapter_model.safetensors"), |t| {
        let mut embedding = read_tensors(&s.path("model/model.safetensors"))["model.embed_tokens.weight"].clone();
        embedding.bytes.extend([0; 4 * 36]);
        embedding.shape[0] += 1;
        t.insert("base_model.model.model.embed_tokens.weight".into(), embedding);
    });
    s.refused(
        &[CHECK, &chat].concat(),
        &["embed_tokens.weight", "is (510, 36), the base's is (509, 36)", "added tokens"],
    );
}

// ---------------------------------------------------------------------------------------------- folders that change

/// The model's folder is emptied of its side files and its weights are cut short while a run goes on.
#[test]
fn a_folder_that_changes_under_a_run_does_not_reach_its_result() {
    let s = sandbox();
    s.write("rows.jsonl", rows("mistral-odd").join("\n"));
    s.write("model/chat_template.jinja", TUNED);
    fs::create_dir(s.path("model/additional_chat_templates")).expect("a folder");
    s.write("model/additional_chat_templates/tools.jinja", "tools");
    for (kind, flag) in [("lora", "--no-shuffle"), ("full", "--full")] {
        let out = s.path(kind);
        let args =
            ["train", "--model", "model", "--data", "rows.jsonl", "--batch-size", "2", "--max-steps", "40", flag];
        let mut child = s.command(&[&args[..], &["--output-dir", kind]].concat()).spawn().expect("it starts");
        let begun = || fs::metadata(out.join("metrics.jsonl")).is_ok_and(|meta| meta.len() > 0);
        while !begun() {
            assert!(child.try_wait().expect("a status").is_none(), "it ended before its first step");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!out.join("tokenizer.json").exists(), "the run is over");
        let before: Vec<(String, Vec<u8>)> = [
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "chat_template.jinja",
            "additional_chat_templates/tools.jinja",
            "config.json",
            "model.safetensors",
        ]
        .map(|name| (name.to_string(), fs::read(s.path("model").join(name)).expect("a file")))
        .into();
        for (name, bytes) in &before {
            fs::write(s.path("model").join(name), &bytes[..1]).expect("a file");
        }
        assert!(!out.join("tokenizer.json").exists(), "the run was over before the change");
        assert!(child.try_wait().expect("a status").is_none(), "the run was over before the change");
        assert!(child.wait().expect("it ends").success());
        for (name, bytes) in &before {
            fs::write(s.path("model").join(name), bytes).expect("a file");
        }
        for (name, bytes) in &before[..5] {
            assert!(fs::read(out.join(name)).expect(name) == *bytes, "{kind}: {name}");
        }
        if kind == "full" {
            assert_eq!(read_json(&out.join("config.json"))["vocab_size"], 509);
            s.run(&["check", "--model", kind, "--data", "rows.jsonl"]).ok();
        }
    }
}

/// A license that goes with the result and cannot be read is told before any work: no device is opened, nothing is written.
#[test]
fn a_side_file_that_cannot_be_copied_is_told_first() {
    let s = sandbox();
    fs::create_dir(s.path("model/LICENSE")).expect("a folder");
    let parts = ["model/LICENSE: is not a regular file"];
    let sft = ["sft", "--model", "model", "--data", "rows.jsonl", "--device", "99", "--output-dir", "out"];
    s.refused(&sft, &parts);
    s.refused(&[&sft[..], &["--full"]].concat(), &parts);
    s.refused(&["merge", "--model", "model", "--adapter", "adapter", "--output-dir", "out"], &parts);
    fs::remove_dir(s.path("model/LICENSE")).expect("removed");
    s.refused(&sft, &["99"]);
}
