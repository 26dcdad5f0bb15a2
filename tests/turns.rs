//! Conversations through the whole program: what is learnt of several turns, and the date that a template prints.
#![expect(clippy::unwrap_used, reason = "tests")]

mod program;

use std::fs;

use program::{Sandbox, metrics, read_tensors, relative_l2};
use serde_json::{Value, json};

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn sandbox(template: &str) -> Sandbox {
    let s = Sandbox::new();
    s.copy("qwen3/model", "model");
    s.write("model/chat_template.jinja", template);
    s
}

fn conversation(words: &[&str]) -> Value {
    let message = |(i, text): (usize, &&str)| json!({"role": (["user", "assistant"][i % 2]), "content": text});
    json!({"messages": words.iter().enumerate().map(message).collect::<Vec<_>>()})
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// Gradients of a file's rows, and the mean loss.
fn gradients(s: &Sandbox, data: &str, more: &[&str]) -> (f64, Vec<f32>) {
    let args = ["grad", "--sft", "--model", "model", "--template", "chat", "--data", data, "--out", "g.safetensors"];
    let said = s.run(&[&args, more].concat()).ok();
    let all = read_tensors(&s.path("g.safetensors")).values().flat_map(program::Tensor::values).collect();
    (said.lines()[0]["loss"].as_f64().unwrap(), all)
}

/// A conversation of three answers is learnt as its beginnings are, each for its last answer: the same tokens, seen from the same tokens.
#[test]
fn every_turn_is_learnt_as_alone() {
    let s = sandbox(CHATML);
    let words = ["Say hi", "hi", "And bye", "bye bye", "Once more", "hi again"];
    let whole = conversation(&words);
    let beginnings: Vec<Value> = [2, 4, 6].map(|n| conversation(&words[..n])).into();
    s.write("whole.jsonl", lines(std::slice::from_ref(&whole)));
    s.write("alone.jsonl", lines(&beginnings));
    let (loss, gradient) = gradients(&s, "whole.jsonl", &[]);
    let (alone_loss, alone) = gradients(&s, "alone.jsonl", &["--last-turn-only"]);
    assert!((loss - alone_loss).abs() < 1e-5 * loss, "{loss} {alone_loss}");
    let error = relative_l2(&gradient, &alone);
    assert!(error < 1e-5, "{error}");
    // The last answer alone is something else.
    let (last_loss, last) = gradients(&s, "whole.jsonl", &["--last-turn-only"]);
    assert!((last_loss - loss).abs() > 1e-3 * loss && relative_l2(&last, &gradient) > 0.1, "{last_loss} {loss}");

    // The loss is minus the mean of the tokens that `check` shows as scored.
    let args = ["--model", "model", "--data", "whole.jsonl", "--template", "chat"];
    let checked = s.run(&[&["check", "--sft", "--json"], &args[..]].concat()).ok().lines().remove(0);
    let scored = s.run(&[&["score", "--tokens"], &args[..]].concat()).ok().lines();
    let tokens = checked["rows"][0]["sides"][0]["tokens"].as_array().unwrap();
    let text = &scored[0]["text"];
    let ids: Vec<&Value> = tokens.iter().map(|token| &token["id"]).collect();
    assert_eq!(ids, text["ids"].as_array().unwrap().iter().collect::<Vec<_>>());
    let logps = text["token_logps"].as_array().unwrap();
    let sum = |conditional: bool| -> f64 {
        let of = tokens.iter().zip(logps).skip(1).filter(|(token, _)| token["conditional"] == conditional);
        of.map(|(_, logp)| logp.as_f64().unwrap()).sum()
    };
    let n = tokens.iter().filter(|token| token["conditional"] == true).count();
    assert_eq!(scored[1]["summary"]["n_scored"], n);
    for (name, sum) in [("logp_response", sum(true)), ("logp_instruction", sum(false))] {
        assert!((text[name].as_f64().unwrap() - sum).abs() < 1e-4, "{name}: {} {sum}", text[name]);
    }
    assert!((loss + sum(true) / n as f64).abs() < 1e-5, "{loss} {}", sum(true));
    // Each token's log-probability is that of the beginnings, in the tokens' order.
    let args =
        ["score", "--tokens", "--model", "model", "--data", "alone.jsonl", "--template", "chat", "--last-turn-only"];
    for row in &s.run(&args).ok().lines()[..3] {
        let part = row["text"]["token_logps"].as_array().unwrap();
        for (a, b) in part.iter().zip(logps).skip(1) {
            assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-5, "{a} {b}");
        }
    }
}

/// Steps of `sft` divide by the tokens of every turn: two rows with unlike numbers of turns, in one batch and accumulated.
#[test]
fn a_step_is_the_mean_over_all_turns() {
    let s = sandbox(CHATML);
    let rows = [conversation(&["Say hi", "hi", "And bye", "bye bye"]), conversation(&["One", "a"])];
    s.write("rows.jsonl", lines(&rows));
    let args = [
        "sft",
        "--model",
        "model",
        "--template",
        "chat",
        "--data",
        "rows.jsonl",
        "--max-steps",
        "1",
        "--no-shuffle",
        "--learning-rate",
        "1e-3",
    ];
    s.run(&[&args[..], &["--batch-size", "2", "--output-dir", "a"]].concat()).ok();
    s.run(&[&args[..], &["--batch-size", "1", "--gradient-accumulation-steps", "2", "--output-dir", "b"]].concat())
        .ok();
    let (loss, _) = gradients(&s, "rows.jsonl", &[]);
    for out in ["a", "b"] {
        let first = metrics(&s.path(out)).remove(0);
        assert!((first["loss"].as_f64().unwrap() - loss).abs() < 1e-5, "{first} {loss}");
    }
    s.refused(
        &["train", "--model", "model", "--data", "rows.jsonl", "--last-turn-only", "--output-dir", "c"],
        &["--last-turn-only", "is only for sft"],
    );
    // What no training does is not shown, and what would change nothing is not taken.
    let check = ["check", "--model", "model", "--data", "rows.jsonl", "--template", "chat", "--last-turn-only"];
    s.refused(&check, &["--last-turn-only", "is only for sft"]);
    s.run(&[&check[..], &["--sft"]].concat()).ok();
    s.write("pairs.jsonl", r#"{"prompt": "Say hi", "chosen": "hi", "rejected": "no"}"#);
    let score = ["score", "--model", "model", "--data", "pairs.jsonl", "--template", "chat", "--last-turn-only"];
    s.refused(&score, &["--last-turn-only", "is only for sft"]);
    s.run(&score[..7]).ok();
}

/// A run whose template prints the time goes on with the time that it began at, and leaves the template of its own beside the result.
#[test]
fn the_date_is_kept() {
    let s = sandbox(CHATML);
    let dated = format!("{{{{ strftime_now('%d %b %Y %H:%M:%S') }}}}\n{CHATML}");
    s.write("own.jinja", &dated);
    s.write("rows.jsonl", lines(&(0..4).map(|i| conversation(&["Say", &i.to_string()])).collect::<Vec<_>>()));
    let args = [
        "sft",
        "--model",
        "model",
        "--data",
        "rows.jsonl",
        "--chat-template",
        "own.jinja",
        "--batch-size",
        "2",
        "--save-steps",
        "1",
        "--max-steps",
        "3",
    ];
    let run = |out: &str, more: &[&str]| s.run(&[&args[..], &["--output-dir", out], more].concat());
    run("whole", &[]).ok();
    assert_eq!(fs::read_to_string(s.path("whole/chat_template.jinja")).unwrap(), dated);
    // As if it had been killed after its second step, a day ago.
    let state = s.path("whole/checkpoint-2/state.json");
    let kept: Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    assert!(kept["time"].is_u64(), "{kept}");
    let before = fs::read(s.path("whole/adapter_model.safetensors")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let again = run("whole", &["--resume"]).ok();
    assert!(again.stderr.contains("3 steps"), "{}", again.stderr);
    assert_eq!(fs::read(s.path("whole/adapter_model.safetensors")).unwrap(), before);
    // Killed between the two renames that replace its only checkpoint: the time is the old one's.
    let _ = fs::remove_dir_all(s.path("whole/checkpoint-1"));
    fs::rename(s.path("whole/checkpoint-2"), s.path("whole/.checkpoint-2.old")).unwrap();
    let again = run("whole", &["--resume"]).ok();
    assert!(state.exists() && !again.stderr.contains("no checkpoint yet"), "{}", again.stderr);
    assert_eq!(fs::read(s.path("whole/adapter_model.safetensors")).unwrap(), before);
    // Without the time that was kept, it is another run.
    let mut lost = kept.clone();
    lost.as_object_mut().unwrap().remove("time");
    for n in [1, 2] {
        let path = s.path(&format!("whole/checkpoint-{n}/state.json"));
        if path.exists() {
            fs::remove_file(path.with_file_name("B3SUMS")).unwrap();
            fs::write(path, lost.to_string()).unwrap();
        }
    }
    run("whole", &["--resume"]).said(2, &["is of a run with other settings, data or model"]);
}

/// Fingerprints hold what a reference and a template are, not where they lie.
#[test]
fn moved_files_resume() {
    let s = sandbox(CHATML);
    s.copy("qwen3/model", "reference");
    s.write("own.jinja", CHATML);
    let pair = json!({"prompt": "Say hi", "chosen": "hi", "rejected": "no"});
    s.write("rows.jsonl", lines(&[pair.clone(), pair]));
    let run = |template: &str, reference: &str, more: &[&str]| {
        let args = [
            "train",
            "--model",
            "model",
            "--data",
            "rows.jsonl",
            "--chat-template",
            template,
            "--reference",
            reference,
        ];
        let rest = ["--batch-size", "1", "--save-steps", "1", "--max-steps", "2", "--output-dir", "out"];
        s.run(&[&args[..], &rest, more].concat())
    };
    run("own.jinja", "reference", &[]).ok();
    fs::rename(s.path("reference"), s.path("elsewhere")).unwrap();
    fs::rename(s.path("own.jinja"), s.path("moved.jinja")).unwrap();
    run("moved.jinja", "elsewhere", &["--resume"]).ok();
    s.write("moved.jinja", CHATML.replace("user", "USER").replace("<|im_end|>\n", "<|im_end|>"));
    run("moved.jinja", "elsewhere", &["--resume"]).said(2, &["is of a run with other settings, data or model"]);
}

/// `--chat-template` where it has no meaning, and where there are several.
#[test]
fn chat_templates_are_chosen_by_name() {
    let s = sandbox(CHATML);
    s.write("rows.jsonl", lines(&[conversation(&["Say hi", "hi"])]));
    fs::create_dir(s.path("model/additional_chat_templates")).unwrap();
    s.write("model/additional_chat_templates/other.jinja", format!("other {CHATML}"));
    fn check<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["check", "--sft", "--json", "--model", "model", "--data", "rows.jsonl"], more].concat()
    }
    let first = |more: &[&str]| {
        let report = s.run(&check(more)).ok().lines().remove(0);
        let tokens = report["rows"][0]["sides"][0]["tokens"].as_array().unwrap().clone();
        tokens.iter().map(|token| token["text"].as_str().unwrap()).collect::<String>()
    };
    assert!(first(&["--template", "chat"]).starts_with("<|im_start|>user"));
    assert!(first(&["--chat-template", "other"]).starts_with("other <|im_start|>user"));
    s.refused(
        &check(&["--chat-template", "othr"]),
        &["--chat-template", "`othr` is neither a file nor", "default, other"],
    );
    s.refused(
        &check(&["--chat-template", "other", "--template", "paper"]),
        &["--chat-template: needs --template chat"],
    );
    fs::remove_file(s.path("model/chat_template.jinja")).unwrap();
    s.write("model/additional_chat_templates/second.jinja", CHATML);
    s.refused(&check(&["--template", "chat"]), &["--template: chat: ", "(other, second)", "--chat-template NAME"]);
    let said = s
        .run(&[
            "generate",
            "--model",
            "model",
            "--chat-template",
            "second",
            "--prompt",
            "Hi",
            "--max-new-tokens",
            "2",
            "--json",
        ])
        .ok();
    assert!(said.lines()[0]["prompt_ids"].as_array().unwrap().len() > 3);
}

/// A local judge whose template prints the time goes on with the time of its answers, wherever its model lies now; another template is another judge.
#[test]
fn a_judge_keeps_its_date() {
    let dated = format!("{{{{ strftime_now('%H:%M:%S') }}}}\n{CHATML}");
    let s = sandbox(&dated);
    let row = json!({"instruction": "Say hi", "response_0": "hi", "response_1": "no"});
    s.write("rows.jsonl", lines(&[row]));
    s.write("prompt.txt", "{instruction} {response_a} {response_b}");
    let judge = |model: &str, more: &[&str]| {
        s.run(
            &[
                &[
                    "judge",
                    "--model",
                    model,
                    "--data",
                    "rows.jsonl",
                    "--prompt",
                    "prompt.txt",
                    "--output-dir",
                    "out",
                    "--json",
                ],
                more,
            ]
            .concat(),
        )
    };
    let first = judge("model", &[]).ok().lines().remove(0);
    assert_eq!(first["asked"], 2, "{first}");
    fs::rename(s.path("model"), s.path("moved")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let again = judge("moved", &["--resume"]).ok().lines().remove(0);
    assert_eq!((&again["asked"], &again["reused"]), (&json!(0), &json!(2)));
    s.write("moved/chat_template.jinja", CHATML);
    judge("moved", &["--resume"]).said(2, &["--resume", "holds answers of another judge"]);
}

/// Responses of an evaluation are made with one date.
#[test]
fn an_evaluation_keeps_its_date() {
    let dated = format!("{{{{ strftime_now('%H:%M:%S') }}}}\n{CHATML}");
    let s = sandbox(&dated);
    s.write("test.jsonl", lines(&[json!({"instruction": "Say hi", "gold_response": "hi"})]));
    let evaluate = |more: &[&str]| {
        let args = [
            "evaluate",
            "--model",
            "model",
            "--data",
            "test.jsonl",
            "--no-judge",
            "--template",
            "chat",
            "--max-new-tokens",
            "2",
        ];
        s.run(&[&args[..], &["--output-dir", "out"], more].concat())
    };
    let time = || {
        let settings: Value = serde_json::from_slice(&fs::read(s.path("out/settings.json")).unwrap()).unwrap();
        settings["time"].as_u64().unwrap()
    };
    evaluate(&["--temperatures", "0"]).ok();
    let begun = time();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    evaluate(&["--temperatures", "0,1", "--resume"]).ok();
    assert_eq!(time(), begun);
    s.write("model/chat_template.jinja", CHATML);
    evaluate(&["--temperatures", "0,1", "--resume"])
        .said(2, &["--resume", "had other weights, or another chat template"]);
}
