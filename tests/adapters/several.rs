//! Several adapters on one copy of a model, and flags of a new adapter beside one that is there.

use std::path::Path;
use std::rc::Rc;

use jointwise::data::batch::{Example, Sequence};
use jointwise::gpu::{DeviceChoice, Gpu, Role};
use jointwise::model::checkpoint::Checkpoint;
use jointwise::model::decoder::Decoder;
use jointwise::model::load::{LoadOptions, LoraSpec};
use jointwise::model::peft::Adapter;
use jointwise::model::weights::{BaseDtype, WeightSource};
use jointwise::train::scoring::score;
use serde_json::Value;

use crate::program::{Sandbox, fixture, rows};
use crate::{describe, farthest, json_of, logps, numbers, peft};

fn logps_of(gpu: &Gpu, decoder: &Decoder, ids: &[u32]) -> Vec<f64> {
    let example = Example { row: 0, sequences: vec![Sequence::new(ids.to_vec(), 1)], desirable: None };
    let scored = pollster::block_on(score(gpu, decoder, &[&example], true, true, 4096, &mut |_| ())).expect("scores");
    scored[0].token_logps.iter().map(|&x| f64::from(x)).collect()
}

fn frozen_bytes(gpu: &Gpu) -> u64 {
    gpu.ledger().peak_by_role().into_iter().find(|(role, _)| *role == Role::Frozen).map_or(0, |(_, bytes)| bytes)
}

/// Adapters loaded one after the other over one copy of the weights have the log-probs of each alone, to the bit: plain ones, ones that bring whole modules or
/// single tokens, and none. No frozen weight is loaded twice but what an adapter replaces.
#[test]
fn adapters_share_the_weights_of_their_model() {
    let expected = json_of(&peft("expected.json"));
    let ids: Vec<u32> = numbers(&expected["ids"]).iter().map(|&id| id as u32).collect();
    let adapted = |model: &Path, names: &[Option<&str>]| {
        let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device");
        let (d, source) = (describe(model), Rc::new(Checkpoint::open(model).expect("a checkpoint")));
        let source: Rc<dyn WeightSource> = source;
        let ids: Vec<u32> = ids.iter().map(|id| id % d.vocab as u32).collect();
        let lora = |name: &Option<&str>| -> Option<LoraSpec> {
            name.map(|name| Adapter::open(peft(name), &d).expect("an adapter").lora)
        };
        let mut before: Option<Decoder> = None;
        let (mut all, mut bytes) = (Vec::new(), Vec::new());
        for name in names {
            let options = LoadOptions::frozen(BaseDtype::Auto, lora(name), ids.len());
            let decoder = match before.take() {
                None => Decoder::load(&gpu, &d, &source, &options),
                Some(before) => before.load_beside(&gpu, &source, &options),
            };
            let decoder = decoder.expect("weights");
            let found = logps_of(&gpu, &decoder, &ids);
            assert_eq!(found, logps(&gpu, model, lora(name), &ids), "{name:?}");
            all.push(found);
            before = Some(decoder);
        }
        // Apart from the comparison, on a device that does nothing else.
        let plan = Gpu::plan(gpu.caps().clone());
        let mut held: Vec<Decoder> = Vec::new();
        for name in names {
            let options = LoadOptions::frozen(BaseDtype::Auto, lora(name), ids.len());
            held.push(match held.last() {
                None => Decoder::load(&plan, &d, &source, &options).expect("weights"),
                Some(before) => before.load_beside(&plan, &source, &options).expect("weights"),
            });
            bytes.push(frozen_bytes(&plan));
        }
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| farthest(a, b) > 1e-3), "{names:?}: two adapters are the same");
        }
        bytes
    };
    let plain = adapted(&fixture("mistral-odd/model"), &[Some("rslora"), Some("layers"), None, Some("patterns")]);
    // Rotary tables are each decoder's own.
    assert!(plain.windows(2).all(|two| two[1] - two[0] < plain[0] / 20), "{plain:?}");
    for (model, whole, tokens) in [("tiny-tied", "tied", "tokens-tied"), ("tiny-untied", "untied", "tokens-untied")] {
        adapted(&peft(model), &[Some(whole), None, Some(tokens)]);
        adapted(&peft(model), &[Some(tokens), Some(whole), None]);
    }
}

/// `generate` with several adapters gives each one's rows as it gives them alone, under its name.
#[test]
fn several_adapters_answer_the_same_prompts() {
    let s = Sandbox::new();
    let model = fixture("mistral-odd/model");
    let generate = ["generate", "--model", model.to_str().expect("UTF-8"), "--max-new-tokens", "6", "--seed", "3"];
    let prompts = ["--prompt", "Say hello.", "--prompt", "Name a colour.", "--json"];
    let places = ["rslora", "layers"].map(|name| peft(name).to_str().expect("UTF-8").to_string());
    let run = |more: &[&str]| s.run(&[&generate[..], &prompts, more].concat()).ok().lines();
    let both = run(&["--adapter", &format!("one={}", places[0]), "--adapter", &places[1]]);
    assert_eq!(both.len(), 4);
    let mut expected = Vec::new();
    for (place, name) in places.iter().zip(["one", "layers"]) {
        for mut row in run(&["--adapter", place]) {
            assert_eq!(row.get("adapter"), None);
            row["adapter"] = name.into();
            expected.push(row);
        }
    }
    assert_eq!(both, expected);
    assert_ne!(both[0]["ids"], both[2]["ids"], "the adapters answer differently");
    let text =
        s.run(&[&generate[..], &prompts[..2], &["--adapter", &places[0], "--adapter", &places[1]]].concat()).ok();
    let found = String::from_utf8(text.stdout.into()).expect("UTF-8");
    assert!(found.contains("[rslora]\n") && found.contains("[layers]\n"), "{found}");
    s.refused(
        &[&generate[..], &prompts, &["--adapter", &places[0], "--adapter", &places[0]]].concat(),
        &["--adapter", "rslora"],
    );
}

/// Flags of a new adapter that contradict the adapter of `--adapter`, or `--full`, are refused; those that say what it is are not.
#[test]
fn flags_of_a_new_adapter_beside_an_adapter() {
    let s = Sandbox::new();
    let (model, data) = (fixture("mistral-odd/model"), s.write("rows.jsonl", rows("mistral-odd")[..4].join("\n")));
    let model = model.to_str().expect("UTF-8");
    let start = ["train", "--model", model, "--data", &data, "--max-steps", "1", "--batch-size", "2"];
    let new =
        ["--lora-r", "4", "--lora-alpha", "6", "--lora-targets", "q_proj,down_proj", "--lora-layers", "1", "--rslora"];
    s.run(&[&start[..], &new, &["--output-dir", "first"]].concat()).ok();
    let on = [&start[..], &["--adapter", "first", "--output-dir"]].concat();
    s.run(&[&on[..], &["same"], &new[..]].concat()).ok();
    s.run(&[&on[..], &["less", "--lora-layers", "1"]].concat()).ok();
    for (flags, parts) in [
        (&["--lora-r", "8"][..], &["--lora-r", "has R 4", "--adapter"][..]),
        (&["--lora-alpha", "8"], &["--lora-alpha", "has alpha 6"]),
        (&["--lora-targets", "q_proj"], &["--lora-targets", "2 modules (down_proj, q_proj)"]),
        (&["--lora-layers", "0-1"], &["--lora-layers", "2 modules"]),
        (&["--lora-exclude", "q_proj"], &["--lora-exclude", "2 modules"]),
        (&["--modules-to-save", "lm_head"], &["--modules-to-save", "no whole modules"]),
        (&["--preset", "paper"], &["--preset", "has R 4"]),
    ] {
        s.refused(&[&on[..], &["no"], flags].concat(), parts);
        let plan = ["plan", "--model", model, "--data", &data, "--adapter", "first"];
        s.run(&[&plan[..], flags].concat()).said(2, parts);
        if flags[0] != "--preset" {
            s.refused(&[&start[..], &["--output-dir", "no", "--full"], flags].concat(), &[flags[0], "--full"]);
        }
    }
    let plain = ["--output-dir", "plain", "--lora-targets", "q_proj"];
    s.run(&[&start[..], &plain].concat()).ok();
    let on = [&start[..], &["--adapter", "plain", "--output-dir", "no", "--rslora"]].concat();
    s.refused(&on, &["--rslora", "alpha/R"]);
}

/// `evaluate` over a base and two adapters on it gives each one's responses as alone.
#[test]
fn evaluated_adapters_answer_as_alone() {
    let s = Sandbox::new();
    let model = fixture("mistral-odd/model");
    let data = s.write("prompts.jsonl", "{\"prompt\": \"Say hello.\"}\n{\"prompt\": \"Name a colour.\"}");
    let places = ["rslora", "layers"].map(|name| peft(name).to_str().expect("UTF-8").to_string());
    let evaluate = ["evaluate", "--model", model.to_str().expect("UTF-8"), "--data", &data, "--no-judge"];
    let evaluate = [&evaluate[..], &["--max-new-tokens", "6", "--temperatures", "1", "--output-dir"]].concat();
    let all = [&["all"][..], &["--checkpoint", &places[0], "--checkpoint", model.to_str().expect("UTF-8")]].concat();
    s.run(&[&evaluate[..], &all, &["--checkpoint", &places[1]]].concat()).ok();
    let responses = |folder: &str| -> Vec<(String, Value)> {
        let files = s.listing().into_keys().filter(|path| path.starts_with(folder) || path.starts_with(s.path(folder)));
        let files = files.filter(|path| path.to_string_lossy().contains("responses"));
        let read = |path: std::path::PathBuf| {
            let path = if path.is_absolute() { path } else { s.path(&path.to_string_lossy()) };
            let text = std::fs::read_to_string(&path).expect("text");
            let rows = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect::<Vec<Value>>();
            (path.file_name().expect("a name").to_string_lossy().to_string(), Value::from(rows))
        };
        files.filter(|path| !path.is_dir()).map(read).collect()
    };
    let together = responses("all");
    assert_eq!(together.len(), 3, "{together:?}");
    for (i, place) in places.iter().enumerate() {
        let folder = format!("alone-{i}");
        s.run(&[&evaluate[..], &[&folder, "--checkpoint", place]].concat()).ok();
        let alone = responses(&folder);
        assert!(alone.len() == 1 && together.contains(&alone[0]), "{alone:?} {together:?}");
    }
}
