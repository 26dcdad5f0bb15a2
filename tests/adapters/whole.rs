//! Modules and single tokens that an adapter trains whole: PEFT's `modules_to_save` and `trainable_token_indices`.

use std::collections::BTreeMap;
use std::path::Path;

use jointwise::gpu::{DeviceChoice, Gpu};
use jointwise::model::load::LoraSpec;
use jointwise::model::lora_config::LoraConfig;
use jointwise::model::peft::Adapter;
use jointwise::model::saved::RecomputePolicy;
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::program::{Sandbox, Tensor, fixture, metrics, read_tensors, relative_l2, rows};
use crate::{TOLERANCE, describe, farthest, gradients, json_of, logps, lora, numbers, peft};

/// `modules_to_save` of PEFT: log-probs of the adapted model, and the gradients of all that is trained.
#[test]
fn whole_modules_are_pefts() {
    let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device");
    for (name, want) in json_of(&peft("expected.json"))["whole"].as_object().expect("adapters") {
        let model = peft(want["model"].as_str().expect("a folder"));
        let d = describe(&model);
        assert_eq!(d.tied, name.ends_with("-tied") || name == "tied");
        let lora = Adapter::open(peft(name), &d).unwrap_or_else(|e| panic!("{name}: {e}")).lora;
        let n_whole = if d.tied { 1 } else { 2 };
        assert_eq!(
            (lora.whole.len(), lora.tokens.is_some()),
            if name.starts_with("tokens") { (0, true) } else { (n_whole, false) }
        );
        let ids: Vec<u32> = numbers(&want["ids"]).iter().map(|&id| id as u32).collect();
        let (base, adapted) = (numbers(&want["base"]), numbers(&want["logps"]));
        assert!(farthest(&logps(&gpu, &model, None, &ids), &base) < TOLERANCE, "{name}");
        assert!(farthest(&logps(&gpu, &model, Some(lora.clone()), &ids), &adapted) < TOLERANCE, "{name}");
        let without = LoraSpec { whole: BTreeMap::new(), tokens: None, ..lora.clone() };
        assert!(farthest(&logps(&gpu, &model, Some(without), &ids), &adapted) > 1e-2, "{name}");

        let (loss, found) = gradients(&gpu, &model, lora, (0, RecomputePolicy::Everything), &ids);
        assert!((loss - want["loss"].as_f64().expect("a loss")).abs() < 1e-5, "{name}: {loss}");
        let expected = read_tensors(&peft(&format!("{name}.safetensors")));
        assert_eq!(found.len(), expected.len());
        for (tensor, values) in &found {
            let peft_name =
                if tensor.starts_with("base_model.") { tensor.clone() } else { format!("base_model.model.{tensor}") };
            let want = expected[&peft_name].values();
            assert!(relative_l2(values, &want) < 1e-4, "{name} {tensor}: {:.1e}", relative_l2(values, &want));
            let nudged: Vec<f32> = want.iter().map(|x| 1.01 * x).collect();
            assert!(relative_l2(values, &nudged) > 1e-3, "{name} {tensor}");
        }
    }
}

#[test]
fn whole_modules_that_cannot_be_used_are_named() {
    let d = describe(&peft("tiny-tied"));
    let changed = |name: &str, field: &str, value: Value| {
        let sandbox = Sandbox::new();
        let mut config = json_of(&peft(name).join("adapter_config.json"));
        config[field] = value;
        sandbox.write("adapter_config.json", config.to_string());
        let weights = "adapter_model.safetensors";
        std::fs::copy(peft(name).join(weights), sandbox.path(weights)).expect("a copy");
        Adapter::open(sandbox.path(""), &d).expect_err("a refusal").to_string()
    };
    let said = |error: String, parts: &[&str]| assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    said(changed("tied", "ensure_weight_tying", json!(false)), &["`ensure_weight_tying`", "unties the head"]);
    let norm = json!(["embed_tokens", "norm"]);
    said(changed("tied", "modules_to_save", norm), &["`modules_to_save`", "`norm`", "embed_tokens, lm_head"]);
    said(changed("tied", "modules_to_save", json!([])), &["is not the base's own"]);
    // An adapter of an untied model: its head is another matrix.
    said(changed("untied", "ensure_weight_tying", json!(true)), &["another matrix than the embedding"]);
    let settings = LoraConfig { modules_to_save: vec!["norm".into()], ..lora(&["q_proj"]) };
    let error = Adapter::new(&d, &settings, "base", 0).expect_err("a refusal").to_string();
    said(error, &["--modules-to-save", "`norm`", "embed_tokens, lm_head"]);
    let settings = LoraConfig { modules_to_save: vec!["lm_head".into()], ..lora(&["q_proj"]) };
    let written = Adapter::new(&d, &settings, "base", 0).expect("an adapter").config.to_json(&d);
    assert_eq!(
        (&written["modules_to_save"], &written["ensure_weight_tying"]),
        (&json!(["embed_tokens"]), &json!(true))
    );
}

/// Values of an F32 or a BF16 tensor.
fn decoded(tensor: &Tensor) -> Vec<f32> {
    if tensor.dtype == Dtype::F32 {
        return tensor.values();
    }
    tensor.bytes.as_chunks().0.iter().map(|&[a, b]| f32::from_le_bytes([0, 0, a, b])).collect()
}

/// Training of whole modules: the reference keeps the start's, a run goes on from its result, and `merge` gives the adapted model.
#[test]
fn whole_modules_are_trained_and_merged() {
    let s = Sandbox::new();
    for family in ["mistral-odd", "qwen3"] {
        let model = fixture(family).join("model");
        let model = model.to_str().expect("UTF-8");
        let data = s.write("rows.jsonl", rows(family)[..4].join("\n"));
        let [out, merged] = ["out", "merged"].map(|name| s.text(&format!("{family}-{name}")));
        let train = ["train", "--model", model, "--data", &data, "--batch-size", "4", "--learning-rate", "1e-2"];
        let flags = ["--modules-to-save", "embed_tokens,lm_head", "--max-steps", "2", "--output-dir", &out];
        s.run(&[&train[..], &flags].concat()).ok();
        let losses: Vec<f64> =
            metrics(Path::new(&out)).iter().map(|line| line["loss"].as_f64().expect("a loss")).collect();
        assert!((losses[0] - 2f64.ln()).abs() < 1e-6 && losses[1] < losses[0] - 1e-3, "{family}: {losses:?}");
        let start = read_tensors(&Path::new(model).join("model.safetensors"));
        let result = read_tensors(&Path::new(&out).join("adapter_model.safetensors"));
        let whole: Vec<&String> = result.keys().filter(|name| !name.contains(".lora_")).collect();
        assert_eq!(whole.len(), 2, "{family}: {whole:?}");
        for name in whole {
            let before = start.get(name.trim_start_matches("base_model.model."));
            let before = before.unwrap_or(&start["model.embed_tokens.weight"]);
            assert!(relative_l2(&result[name].values(), &decoded(before)) > 1e-3, "{family} {name}");
        }
        s.run(&["merge", "--model", model, "--adapter", &out, "--output-dtype", "f32", "--output-dir", &merged]).ok();
        let score = |policy: &[&str]| {
            let flags = ["score", "--data", &data, "--reference"];
            let base = if policy.len() == 2 { model } else { "base" };
            let last = s.run(&[&flags[..], &[base], policy].concat()).ok().lines().pop().expect("a summary");
            last["summary"]["loss"].as_f64().expect("a loss")
        };
        let (adapted, merged) = (score(&["--model", model, "--adapter", &out]), score(&["--model", &merged]));
        assert!((adapted - merged).abs() < 1e-5 && (adapted - 2f64.ln()).abs() > 1e-3, "{family}: {adapted} {merged}");
        // Another run from the result, with the base as its reference: its first loss is that of the scores.
        let more = s.text(&format!("{family}-more"));
        let flags = ["--adapter", &out, "--reference", "base", "--max-steps", "1", "--output-dir", &more];
        s.run(&[&train[..], &flags].concat()).ok();
        let first = metrics(Path::new(&more))[0]["loss"].as_f64().expect("a loss");
        assert!((first - adapted).abs() < 1e-5, "{family}: {first} {adapted}");
    }
}

/// Training of single tokens' embeddings: the reference keeps the start's, rows of other tokens stay, a run goes on from its result, and
/// `merge` gives the adapted model.
#[test]
fn single_tokens_are_trained_and_merged() {
    let s = Sandbox::new();
    for family in ["mistral-odd", "qwen3"] {
        let folder = fixture(family).join("model");
        let (model, d) = (folder.to_str().expect("UTF-8"), describe(&folder));
        let vocabulary = json_of(&folder.join("tokenizer.json"))["model"]["vocab"].clone();
        let data = s.write("rows.jsonl", rows(family)[..4].join("\n"));
        // A token that the rows have: its name is the vocabulary's.
        let tokens = [" the", "the", "e"].map(|text| text.replace(' ', "\u{120}"));
        let tokens: Vec<&String> = tokens.iter().filter(|token| vocabulary.get(token).is_some()).collect();
        let ids: Vec<u64> = tokens.iter().map(|token| vocabulary[token].as_u64().expect("an id")).collect();
        let listed = tokens.iter().map(|token| token.as_str()).collect::<Vec<_>>().join(",");
        let [out, merged, more] = ["out", "merged", "more"].map(|name| s.text(&format!("{family}-{name}")));
        let train = ["train", "--model", model, "--data", &data, "--batch-size", "4", "--learning-rate", "1e-2"];
        let flags = ["--train-tokens", &listed, "--max-steps", "3", "--output-dir", &out];
        s.run(&[&train[..], &flags].concat()).ok();
        let loss = |out: &str, i: usize| metrics(Path::new(out))[i]["loss"].as_f64().expect("a loss");
        assert!((loss(&out, 0) - 2f64.ln()).abs() < 1e-6 && loss(&out, 2) < loss(&out, 0) - 1e-3, "{family}");
        assert_eq!(
            json_of(&Path::new(&out).join("adapter_config.json"))["trainable_token_indices"]["embed_tokens"],
            json!(ids)
        );

        s.run(&["merge", "--model", model, "--adapter", &out, "--output-dtype", "f32", "--output-dir", &merged]).ok();
        let start = decoded(&read_tensors(&folder.join("model.safetensors"))["model.embed_tokens.weight"]);
        let after = read_tensors(&Path::new(&merged).join("model.safetensors"))["model.embed_tokens.weight"].values();
        let rows = start.chunks(d.d_model).zip(after.chunks(d.d_model)).enumerate();
        let changed: Vec<u64> = rows.filter(|(_, (a, b))| a != b).map(|(id, _)| id as u64).collect();
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        assert!(changed == sorted && !ids.is_empty(), "{family}: {changed:?} {ids:?}");

        let score = |policy: &[&str], reference: &str| {
            let args = [&["score", "--data", &data, "--reference", reference][..], policy].concat();
            let last = s.run(&args).ok().lines().pop().expect("a summary");
            last["summary"]["loss"].as_f64().expect("a loss")
        };
        let adapted = score(&["--model", model, "--adapter", &out], "base");
        let whole = score(&["--model", &merged], model);
        assert!((adapted - whole).abs() < 1e-5 && (adapted - 2f64.ln()).abs() > 1e-3, "{family}: {adapted} {whole}");
        // Two more steps: the base as the reference gives the scores' loss, the start as the reference ln 2.
        for (reference, want) in [("base", adapted), ("initial", 2f64.ln())] {
            let (first, out) = (out.clone(), format!("{more}-{reference}"));
            let flags = ["--adapter", &first, "--reference", reference, "--max-steps", "2"];
            let flags = [&flags[..], &["--output-dir", &out]].concat();
            s.run(&[&train[..], &flags].concat()).ok();
            assert!((loss(&out, 0) - want).abs() < 1e-5, "{family} {reference}: {} {want}", loss(&out, 0));
        }
        s.refused(
            &[&train[..], &["--output-dir", "no", "--train-tokens", "<|no such token|>"]].concat(),
            &["--train-tokens", "<|no such token|>"],
        );
    }
}
