//! Adapters as PEFT makes and reads them: the fixtures of `tests/peft` (see make.py there), and new adapters of the program. Each
//! comparison has a control that must fail.

mod program;
#[path = "adapters/several.rs"]
mod several;
#[path = "adapters/whole.rs"]
mod whole;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use jointwise::data::batch::{Example, Sequence};
use jointwise::gpu::{DeviceChoice, Gpu};
use jointwise::model::checkpoint::Checkpoint;
use jointwise::model::decoder::Decoder;
use jointwise::model::description::ModelConfig;
use jointwise::model::load::{LoadOptions, LoraSpec, TrainMode};
use jointwise::model::lora_config::LoraConfig;
use jointwise::model::peft::Adapter;
use jointwise::model::saved::RecomputePolicy;
use jointwise::model::weights::{BaseDtype, WeightSource};
use jointwise::objective::{SftLoss, TrainingLoss};
use jointwise::train::scoring::score;
use jointwise::train::trainer::Trainer;
use program::{Sandbox, fixture, read_tensors, relative_l2, rows};
use serde_json::{Value, json};

/// Largest difference of a log-probability from PyTorch's in float64.
const TOLERANCE: f64 = 2e-5;

fn peft(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peft").join(name)
}

fn json_of(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn describe(model: &Path) -> ModelConfig {
    let config = model.join("config.json");
    ModelConfig::from_json(&config, &std::fs::read_to_string(&config).expect("text")).expect("a configuration")
}

/// Token log-probs of a model with an adapter.
fn logps(gpu: &Gpu, model: &Path, lora: Option<LoraSpec>, ids: &[u32]) -> Vec<f64> {
    let source: Rc<dyn WeightSource> = Rc::new(Checkpoint::open(model).expect("a checkpoint"));
    let options = LoadOptions::frozen(BaseDtype::Auto, lora, ids.len());
    let decoder = Decoder::load(gpu, &describe(model), &source, &options).expect("weights");
    let example = Example { row: 0, sequences: vec![Sequence::new(ids.to_vec(), 1)], desirable: None };
    let scored = pollster::block_on(score(gpu, &decoder, &[&example], true, true, 4096, &mut |_| ())).expect("scores");
    scored[0].token_logps.iter().map(|&x| f64::from(x)).collect()
}

fn farthest(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |most, (a, b)| f64::max(most, (a - b).abs()))
}

#[test]
fn adapters_of_peft_are_read_as_peft_reads_them() {
    let (expected, model) = (json_of(&peft("expected.json")), fixture("mistral-odd/model"));
    let (d, gpu) = (describe(&model), pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device"));
    let ids: Vec<u32> = numbers(&expected["ids"]).iter().map(|&id| id as u32).collect();
    let base = numbers(&expected["base"]);
    assert!(farthest(&logps(&gpu, &model, None, &ids), &base) < TOLERANCE);
    let adapters = expected["adapters"].as_object().expect("adapters");
    assert!(adapters.len() >= 11);
    for (name, want) in adapters {
        let lora = Adapter::open(peft(name), &d).unwrap_or_else(|e| panic!("{name}: {e}")).lora;
        let modules = want["modules"].as_object().expect("modules");
        assert!(lora.modules.keys().eq(modules.keys().collect::<std::collections::BTreeSet<_>>()), "{name}");
        for (module, want) in modules {
            let found = [lora.rank_of(module) as f64, f64::from(lora.scale_of(module))];
            assert!(farthest(&found, &numbers(want)) < 1e-6, "{name} {module}: {found:?}, PEFT {want}");
        }
        let want = numbers(&want["logps"]);
        let found = logps(&gpu, &model, Some(lora.clone()), &ids);
        assert!(farthest(&found, &want) < TOLERANCE, "{name}: {:.1e}", farthest(&found, &want));
        // Another scale, and no adapter, are told.
        let twice = LoraSpec { scale: 1.3 * lora.scale, ..lora };
        let changed = logps(&gpu, &model, Some(twice.clone()), &ids);
        assert!(twice.exceptions.len() == twice.modules.len() || farthest(&changed, &want) > 1e-3, "{name}");
        assert!(farthest(&base, &want) > 1e-2, "{name}");
    }
}

/// A field that PEFT refuses is named; a field that is lost gives another adapter, which the tensors do not fit.
#[test]
fn what_peft_refuses_is_refused() {
    let (expected, d) = (json_of(&peft("expected.json")), describe(&fixture("mistral-odd/model")));
    for (field, fields) in expected["refused"].as_object().expect("fields") {
        let sandbox = Sandbox::new();
        let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4});
        config.as_object_mut().expect("an object").extend(fields.as_object().expect("fields").clone());
        sandbox.write("adapter_config.json", config.to_string());
        let error = Adapter::open(sandbox.path(""), &d).expect_err(field).to_string();
        assert!(error.contains(&format!("`{field}`")) && error.contains("PEFT"), "{error}");
    }
    for (name, field) in [
        ("patterns", "rank_pattern"),
        ("layers", "layers_to_transform"),
        ("excluded", "exclude_modules"),
        ("pattern-of-targets", "target_modules"),
    ] {
        let sandbox = Sandbox::new();
        let mut config = json_of(&peft(name).join("adapter_config.json"));
        config[field] = if field == "target_modules" { json!("all-linear") } else { Value::Null };
        sandbox.write("adapter_config.json", config.to_string());
        let weights = "adapter_model.safetensors";
        std::fs::copy(peft(name).join(weights), sandbox.path(weights)).expect("a copy");
        let error = Adapter::open(sandbox.path(""), &d).expect_err(name).to_string();
        assert!(error.contains(".lora_"), "{name}: {error}");
    }
}

/// Gradients of the mean loss of one text in a training step of SFT: (loss, values by name).
fn gradients(gpu: &Gpu, model: &Path, lora: LoraSpec, (seed, keep): Way, ids: &[u32]) -> (f64, Gradients) {
    let source: Rc<dyn WeightSource> = Rc::new(Checkpoint::open(model).expect("a checkpoint"));
    let options =
        LoadOptions { trained: TrainMode::Lora, ..LoadOptions::frozen(BaseDtype::Auto, Some(lora), ids.len()) };
    let decoder = Decoder::load(gpu, &describe(model), &source, &options).expect("weights");
    let trainer = Trainer { gpu, decoder, goal: TrainingLoss::Sft(SftLoss::Nll), share_prefix: true, keep, seed };
    let example = Example { row: 0, sequences: vec![Sequence::new(ids.to_vec(), 1)], desirable: None };
    let step = pollster::block_on(trainer.gradients(&[&example], &[], 1)).expect("gradients");
    let read = pollster::block_on(trainer.read_gradients(&[&example])).expect("gradients");
    (step.outcome.loss_sum / (ids.len() - 1) as f64, read.into_iter().map(|(name, _, values)| (name, values)).collect())
}

type Gradients = BTreeMap<String, Vec<f32>>;

/// Seed of a step, and the activations that it keeps.
type Way = (u64, RecomputePolicy);

/// A step's gradients are PyTorch's with the same mask, bit-identical whatever is recomputed; without dropout, those of no dropout.
#[test]
fn dropout_has_pytorch_s_gradients() {
    let (expected, model) = (json_of(&peft("expected.json")), fixture("mistral-odd/model"));
    let d = describe(&model);
    let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device");
    let ids: Vec<u32> = numbers(&expected["ids"]).iter().map(|&id| id as u32).collect();
    let adapter = Adapter::open(peft("dropout"), &d).expect("an adapter");
    assert_eq!(adapter.config.dropout, 0.3);
    let with = |dropout: f64| LoraSpec { dropout, ..adapter.lora.clone() };
    let want = read_tensors(&peft("dropout.safetensors"));
    let worst = |found: &Gradients| {
        assert!(found.keys().eq(want.keys()));
        found.iter().map(|(name, values)| relative_l2(values, &want[name].values())).fold(0.0, f64::max)
    };
    let (loss, found) = gradients(&gpu, &model, with(0.3), (7, RecomputePolicy::Everything), &ids);
    assert!((loss - expected["dropout_loss"].as_f64().expect("a loss")).abs() < 1e-5, "{loss}");
    assert!(worst(&found) < 1e-4, "{:.1e}", worst(&found));
    for keep in RecomputePolicy::TRAINING {
        assert!(gradients(&gpu, &model, with(0.3), (7, keep), &ids) == (loss, found.clone()), "{keep:?}");
    }
    // Another seed, another probability and no dropout are told.
    for (p, seed) in [(0.3, 8), (0.31, 7), (0.0, 7)] {
        let (_, other) = gradients(&gpu, &model, with(p), (seed, RecomputePolicy::Everything), &ids);
        assert!(worst(&other) > 1e-2, "{p} {seed}");
    }
}

fn lora(targets: &[&str]) -> LoraConfig {
    let targets = targets.iter().map(|t| t.to_string()).collect();
    LoraConfig { rank: 2, alpha: 8.0, targets, ..LoraConfig::default() }
}

/// Layers and exclusions of a new adapter. `layers_to_transform` needs a list of names in PEFT, and a wrapped model a pattern.
#[test]
fn a_new_adapter_has_the_layers_that_were_asked_for() {
    let d = describe(&fixture("mistral-odd/model"));
    let made = |settings: &LoraConfig| Adapter::new(&d, settings, "base", 0).expect("an adapter");
    let some = made(&LoraConfig { layers: vec![1], exclude: vec!["mlp.up_proj".into()], ..lora(&["all-linear"]) });
    assert_eq!(some.lora.modules.len(), 6);
    assert!(some.lora.modules.keys().all(|name| name.starts_with("model.layers.1.") && !name.ends_with("up_proj")));
    let written = some.config.to_json(&d);
    assert_eq!((&written["layers_to_transform"], &written["exclude_modules"]), (&json!([1]), &json!(["mlp.up_proj"])));
    assert_eq!(written["target_modules"].as_array().map(Vec::len), Some(7), "PEFT wants a list of names");
    assert_eq!(made(&lora(&["all-linear"])).config.to_json(&d)["target_modules"], "all-linear");

    let root = made(&LoraConfig { rslora: true, ..lora(&["q_proj"]) });
    assert!((root.lora.scale - 8.0 / 2f32.sqrt()).abs() < 1e-6 && made(&lora(&["q_proj"])).lora.scale == 4.0);
    assert_eq!(root.config.to_json(&d)["use_rslora"], true);

    let wrapped = describe(&fixture("ministral3/model"));
    let settings = LoraConfig { layers: vec![1], exclude: vec!["o_proj".into()], ..lora(&["all-linear"]) };
    let some = Adapter::new(&wrapped, &settings, "base", 0).expect("an adapter");
    let names: Vec<&String> = some.lora.modules.keys().collect();
    assert!(names.len() == 6 && names.iter().all(|n| n.contains(".layers.1.") && !n.ends_with("o_proj")), "{names:?}");
    let written = some.config.to_json(&wrapped);
    let pattern = written["target_modules"].as_str().expect("a pattern");
    assert!(pattern.contains(r"language_model\.") && pattern.contains(r"layers\.(?:1)\."), "{pattern}");
    assert_eq!(written.get("layers_to_transform"), None);

    for (settings, parts) in [
        (LoraConfig { layers: vec![2], ..lora(&["q_proj"]) }, &["--lora-layers", "2 is not a layer", "0-1"][..]),
        (LoraConfig { exclude: vec!["c_attn".into()], ..lora(&["q_proj"]) }, &["--lora-exclude", "`c_attn`", "q_proj"]),
        (LoraConfig { exclude: vec!["q_proj".into()], ..lora(&["q_proj"]) }, &["--lora-exclude", "leaves no module"]),
    ] {
        let error = Adapter::new(&d, &settings, "base", 0).expect_err("a refusal").to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

/// The flags reach the adapter that a run writes, and reading it gives the same modules.
#[test]
fn flags_of_a_new_adapter() {
    let s = Sandbox::new();
    let (model, data) = (fixture("mistral-odd/model"), s.write("rows.jsonl", rows("mistral-odd").join("\n")));
    let train = ["train", "--model", model.to_str().expect("UTF-8"), "--data", &data, "--max-steps", "1"];
    let flags = ["--lora-targets", "q_proj,up_proj,down_proj", "--lora-layers", "1", "--lora-exclude", "up_proj"];
    s.run(&[&train[..], &["--batch-size", "2", "--rslora", "--output-dir", "out"], &flags].concat()).ok();
    let config = json_of(&s.path("out/adapter_config.json"));
    assert_eq!((&config["use_rslora"], &config["layers_to_transform"]), (&json!(true), &json!([1])));
    let names: Vec<String> = read_tensors(&s.path("out/adapter_model.safetensors")).into_keys().collect();
    let module = |name: &str| ["A", "B"].map(|x| format!("base_model.model.model.layers.1.{name}.lora_{x}.weight"));
    assert_eq!(names, [module("mlp.down_proj"), module("self_attn.q_proj")].concat());
    let read = Adapter::open(s.path("out"), &describe(&model)).expect("the run's adapter");
    assert_eq!(read.lora.modules.len(), 2);
    s.refused(&[&train[..], &["--output-dir", "no", "--lora-layers", "3-1"]].concat(), &["--lora-layers", "`3-1`"]);
    s.refused(&[&train[..], &["--output-dir", "no", "--lora-layers", "7"]].concat(), &["--lora-layers", "0-1"]);
}

/// The text, the command and the flags of a run of supervised fine-tuning with dropout.
fn sft(s: &Sandbox) -> Vec<String> {
    let row = |line: String| {
        let row: Value = serde_json::from_str(&line).expect("JSON");
        json!({"instruction": row["i_chosen"], "response": row["r_chosen"]}).to_string()
    };
    let data = s.write("sft.jsonl", rows("mistral-odd").into_iter().map(row).collect::<Vec<_>>().join("\n"));
    let model = fixture("mistral-odd/model").to_str().expect("UTF-8").to_string();
    let flags =
        "--max-steps 4 --save-steps 2 --batch-size 2 --gradient-accumulation-steps 2 --learning-rate 1e-2 --seed 3";
    let start = ["sft", "--model", &model, "--data", &data].map(String::from);
    start.into_iter().chain(flags.split(' ').map(String::from)).collect()
}

/// Dropout of a run: zero is none, `--recompute` and a resumed run are bit-identical, and the result says what it was trained with.
#[test]
fn dropout_is_the_same_however_a_run_goes() {
    let s = Sandbox::new();
    let args = sft(&s);
    let start: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = |out: &str| std::fs::read(s.path(out).join("adapter_model.safetensors")).expect("a result");
    let run = |out: &str, more: &[&str]| {
        s.run(&[&start[..], &["--output-dir", out], more].concat()).ok();
        result(out)
    };
    let dropped = run("dropped", &["--lora-dropout", "0.2", "--recompute", "none"]);
    for recompute in ["elementwise", "linear", "block"] {
        assert!(run(recompute, &["--lora-dropout", "0.2", "--recompute", recompute]) == dropped, "{recompute}");
    }
    let plain = run("plain", &[]);
    assert!(run("zero", &["--lora-dropout", "0"]) == plain && plain != dropped);
    assert_eq!(json_of(&s.path("dropped/adapter_config.json"))["lora_dropout"], json!(0.2));
    assert_eq!(json_of(&s.path("plain/adapter_config.json"))["lora_dropout"], json!(0.0));

    // A run that was killed after its second step.
    let mut child = s.command(&[&start[..], &["--output-dir", "killed", "--lora-dropout", "0.2"]].concat());
    let mut child = child.stderr(std::process::Stdio::null()).spawn().expect("the program starts");
    while !s.path("killed/checkpoint-2").is_dir() {
        assert!(child.try_wait().expect("a child").is_none(), "the run ended before its first checkpoint");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    if !s.path("killed/adapter_model.safetensors").exists() {
        let other = [&start[..], &["--output-dir", "killed", "--resume", "--lora-dropout", "0.1"]].concat();
        assert_eq!(s.run(&other).status, 2, "another probability is another run");
        assert!(run("killed", &["--lora-dropout", "0.2", "--resume"]) == dropped);
    }
}

#[test]
fn dropout_is_for_adapters_of_sft() {
    let s = Sandbox::new();
    let args = sft(&s);
    let start: Vec<&str> = args.iter().map(String::as_str).chain(["--output-dir", "no", "--lora-dropout"]).collect();
    s.refused(&[&start[..], &["1"]].concat(), &["--lora-dropout", "is not in 0 .. 1"]);
    s.refused(&[&start[..], &["0.1", "--full"]].concat(), &["--lora-dropout", "--full"]);
    let data = s.write("rows.jsonl", rows("mistral-odd").join("\n"));
    let train = ["train", "--model", start[2], "--data", &data, "--output-dir", "no", "--lora-dropout", "0.1"];
    s.refused(&train, &["--lora-dropout", "same tokens", "TRL"]);
}
