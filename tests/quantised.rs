//! Frozen weights in eight and four bits: bitsandbytes' values, and training on them is training on what they stand for.

mod program;

use std::f64::consts::LN_2;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use jointwise::Result;
use jointwise::gpu::{DeviceChoice, Gpu};
use jointwise::kernels::storage::{DYNAMIC, PackedWeight, WeightFormat};
use jointwise::model::decoder::Decoder;
use jointwise::model::description::{ModelConfig, TensorSpec};
use jointwise::model::load::{LoadOptions, TrainMode, linear_modules};
use jointwise::model::weights::{BaseDtype, TrainOptions, WeightSource, read_back, transpose};
use jointwise::rng::Rng;
use program::{Sandbox, Tensors, metrics, read_tensors, relative_l2, rows, write_tensors};
use safetensors::Dtype;

/// A matrix quantised and dequantised.
fn through(storage: WeightFormat, values: Vec<f32>, cols: usize) -> Vec<f32> {
    let rows = values.len() / cols;
    storage.unpack(&PackedWeight::new(storage, values, cols).part(0, rows, cols), rows, cols)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Values of a tensor of F32 or BF16.
fn values(tensors: &Tensors, name: &str) -> Vec<f32> {
    jointwise::model::checkpoint::to_f32(tensors[name].dtype, &tensors[name].bytes)
}

#[test]
fn values_are_those_of_bitsandbytes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/quantised/bitsandbytes.safetensors");
    let theirs = read_tensors(&path);
    assert_eq!(bits(&*DYNAMIC), bits(&values(&theirs, "dynamic_map")));
    for (name, input, storage, other) in [
        ("nf4", "weight", WeightFormat::Nf4, WeightFormat::Int8),
        ("int8", "rows", WeightFormat::Int8, WeightFormat::Nf4),
    ] {
        let (weight, want) = (values(&theirs, input), values(&theirs, name));
        let cols = theirs[input].shape[1];
        assert!(weight.len() == want.len() && cols == 192, "{name}");
        let differ = |got: Vec<f32>| got.iter().zip(&want).filter(|(g, w)| g.to_bits() != w.to_bits()).count();
        assert_eq!(differ(through(storage, weight.clone(), cols)), 0, "{name}");
        // The comparison can fail: by another storage, other blocks, a weight that moves the scale of its block.
        assert!(differ(through(other, weight.clone(), cols)) > 1000, "{name}");
        assert!(differ(through(storage, transpose(&weight, weight.len() / cols, cols), cols)) > 1000, "{name}");
        let mut moved = weight;
        moved[2000] = 3.0;
        assert!(differ(through(storage, moved, cols)) > 20, "{name}");
    }
}

/// Random values by name, stored as f32.
struct Random;

impl WeightSource for Random {
    fn is_bf16(&self, _: &TensorSpec) -> bool {
        false
    }
    fn values(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let mut rng = Rng::new(spec.name.bytes().map(u64::from).sum(), 1);
        Ok((0..spec.shape.iter().product()).map(|_| rng.normal()).collect())
    }
}

/// GPT-2's matrices are held transposed, and quantised as they are held; nothing but linear weights is.
#[test]
fn what_is_held_is_quantised_and_the_rest_is_not() {
    let config = r#"{"architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_head": 2, "n_layer": 1, "n_positions": 16,
        "vocab_size": 20}"#;
    let d = ModelConfig::from_json("config.json", config).expect("GPT-2");
    let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device");
    let linear: Vec<String> = linear_modules(&d).map(|m| format!("{}.weight", m.name)).collect();
    for (base, storage) in [
        (BaseDtype::Int8, WeightFormat::Int8),
        (BaseDtype::Nf4, WeightFormat::Nf4),
        (BaseDtype::Bf16, WeightFormat::Bf16),
    ] {
        let options =
            LoadOptions { trained: TrainMode::Nothing, lora: None, training: TrainOptions::NONE, n_positions: 8, base };
        let source: Rc<dyn WeightSource> = Rc::new(Random);
        let decoder = Decoder::load(&gpu, &d, &source, &options).expect("a decoder");
        let mut seen = 0;
        for weight in decoder.weights() {
            let (spec, stored) = (&weight.spec, Random.values(&weight.spec).expect("values"));
            let got = pollster::block_on(read_back(&gpu, weight, false)).expect("readback");
            if !linear.contains(&spec.name) {
                assert_eq!(bits(&got), bits(&stored), "{base:?} {}", spec.name);
                continue;
            }
            seen += 1;
            assert!(spec.transposed && weight.storage == storage, "{}", spec.name);
            let (n_in, n_out) = (spec.shape[0], spec.shape[1]);
            let held = through(storage, transpose(&stored, n_in, n_out), n_in);
            assert_eq!(bits(&got), bits(&transpose(&held, n_out, n_in)), "{base:?} {}", spec.name);
            assert_ne!(bits(&got), bits(&stored));
        }
        assert_eq!(seen, linear.len());
    }
}

fn demo_model() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo").to_str().expect("UTF-8").to_string()
}

/// The demo model with its linear weights replaced by what a storage makes of them, all in f32.
fn dequantised(sandbox: &Sandbox, storage: WeightFormat, name: &str) -> PathBuf {
    let (from, to) = (PathBuf::from(demo_model()), sandbox.path(name));
    fs::create_dir_all(&to).expect("a folder");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        fs::copy(from.join(file), to.join(file)).expect("a copy");
    }
    let text = fs::read_to_string(to.join("config.json")).expect("text");
    let d = ModelConfig::from_json("config.json", &text).expect("a configuration");
    let linear: Vec<String> = linear_modules(&d).map(|m| format!("{}.weight", m.name)).collect();
    let mut tensors = read_tensors(&from.join("model.safetensors"));
    let names: Vec<String> = tensors.keys().cloned().collect();
    for name in names {
        let old = values(&tensors, &name);
        let tensor = tensors.get_mut(&name).expect("a tensor");
        let new = if linear.contains(&name) { through(storage, old, tensor.shape[1]) } else { old };
        tensor.dtype = Dtype::F32;
        tensor.set(&new);
    }
    write_tensors(&to.join("model.safetensors"), &tensors);
    to
}

fn same(a: f64, b: f64) -> bool {
    (a - b).abs() <= 2e-5 * (1.0 + b.abs())
}

/// LoRA on a quantised base is LoRA on a checkpoint of the dequantised values, and is not LoRA on the checkpoint as it was.
#[test]
fn training_on_a_quantised_base_is_training_on_its_values() {
    let sandbox = Sandbox::new();
    let data = sandbox.write("prefs.jsonl", rows("mistral-odd")[..8].join("\n"));
    let model = demo_model();
    for (base, storage) in [("nf4", WeightFormat::Nf4), ("int8", WeightFormat::Int8)] {
        let plain = dequantised(&sandbox, storage, &format!("plain-{base}"));
        let plain = plain.to_str().expect("UTF-8");
        let run = |model: &str, base: &str, out: &str| {
            let out = sandbox.text(out);
            let mut args = vec!["train", "--model", model, "--base-dtype", base, "--data", &data, "--output-dir", &out];
            args.extend(["--max-steps", "3", "--batch-size", "4", "--learning-rate", "1e-2"]);
            sandbox.run(&[args, vec!["--lora-targets", "all-linear"]].concat()).ok();
            metrics(Path::new(&out))
        };
        let (quantised, dequantised, as_it_was) = (
            run(&model, base, &format!("q-{base}")),
            run(plain, "auto", &format!("d-{base}")),
            run(&model, "auto", &format!("a-{base}")),
        );
        let number = |line: &serde_json::Value, name: &str| line[name].as_f64().expect("a number");
        // The reference is the same base: scores of another are not taken from the cache.
        assert!((number(&quantised[0], "loss") - LN_2).abs() < 1e-6, "{}", quantised[0]);
        for (q, d) in quantised.iter().zip(&dequantised) {
            for name in ["loss", "grad_norm", "logps/chosen"] {
                assert!(same(number(q, name), number(d, name)), "{base} {name}: {q} {d}");
            }
        }
        let differs = |name: &str| !same(number(&quantised[2], name), number(&as_it_was[2], name));
        assert!(differs("loss") && differs("grad_norm") && differs("logps/chosen"), "{base}: {quantised:?}");
        let card = fs::read_to_string(sandbox.path(&format!("q-{base}/README.md"))).expect("a card");
        assert!(card.contains(&format!("| base-dtype | {base} |")), "{card}");

        // Gradients and scores with the adapter that came of it.
        let adapter = sandbox.text(&format!("q-{base}"));
        let grad = |model: &str, base: &str, out: &str| {
            let out = sandbox.text(out);
            let args = ["grad", "--model", model, "--base-dtype", base, "--adapter", &adapter, "--data", &data];
            sandbox.run(&[&args[..], &["--reference", "base", "--out", &out]].concat()).ok();
            let tensors = read_tensors(Path::new(&out));
            tensors.values().flat_map(|t| t.values()).collect::<Vec<f32>>()
        };
        let q = grad(&model, base, "q.safetensors");
        let error = relative_l2(&q, &grad(plain, "auto", "d.safetensors"));
        assert!(error < 1e-4, "{base}: {error}");
        let error = relative_l2(&q, &grad(&model, "auto", "a.safetensors"));
        assert!(error > 1e-3, "{base}: gradients of the unquantised model pass: {error}");
        let score = |model: &str, base: &str| {
            let args = ["score", "--model", model, "--base-dtype", base, "--adapter", &adapter, "--data", &data];
            sandbox.run(&args).ok().lines()[0]["chosen"]["logp"].as_f64().expect("logp")
        };
        let (q, d, a) = (score(&model, base), score(plain, "auto"), score(&model, "auto"));
        assert!(same(q, d) && !same(q, a), "{base}: {q} {d} {a}");
    }
}

/// The same adapter is not gone on with over another base.
#[test]
fn a_run_is_resumed_on_its_own_base() {
    let sandbox = Sandbox::new();
    let data = sandbox.write("prefs.jsonl", rows("mistral-odd")[..4].join("\n"));
    let (model, out) = (demo_model(), sandbox.text("out"));
    let run = |base, more: &[&str]| {
        let args = ["train", "--model", &model, "--data", &data, "--output-dir", &out, "--base-dtype", base];
        sandbox.run(&[&args[..], &["--max-steps", "2", "--save-steps", "1", "--batch-size", "2"], more].concat())
    };
    run("nf4", &[]).ok();
    run("auto", &["--resume"]).said(2, &["checkpoint-", "other settings"]);
    run("nf4", &["--resume"]).ok();
}

#[test]
fn what_cannot_be_quantised_is_told() {
    let sandbox = Sandbox::new();
    let data = sandbox.write("prefs.jsonl", rows("mistral-odd")[..2].join("\n"));
    let (demo, odd) = (demo_model(), sandbox.copy("mistral-odd/model", "model"));
    for base in ["nf4", "int8"] {
        let parts = ["--base-dtype", base, "--full"];
        for command in ["train", "sft", "plan"] {
            let args = [command, "--model", &demo, "--data", &data, "--full", "--base-dtype", base];
            let out: &[&str] = if command == "plan" { &[] } else { &["--output-dir", "out"] };
            sandbox.refused(&[&args[..], out].concat(), &parts);
        }
        let args = ["grad", "--model", &demo, "--data", &data, "--out", "g.safetensors", "--base-dtype", base];
        sandbox.refused(&args, &["--base-dtype", base, "--adapter"]);
    }
    sandbox.run(&["plan", "--model", &demo, "--base-dtype", "int4"]).said(2, &["--base-dtype", "nf4"]);
    // Columns that fit no block: bf16, with a note.
    let plan = |base: &str| {
        let model = odd.to_str().expect("UTF-8");
        let ran = sandbox.run(&["plan", "--model", model, "--data", &data, "--json", "--base-dtype", base]).ok();
        (ran.lines()[0]["roles"]["frozen"].as_u64().expect("bytes"), ran.stderr)
    };
    let ((nf4, note), (bf16, silence), (f32, _)) = (plan("nf4"), plan("bf16"), plan("f32"));
    assert!(nf4 == bf16 && bf16 < f32, "{nf4} {bf16} {f32}");
    assert!(note.contains("14 of 14 linear weights are held as bf16") && !silence.contains("note: 14"), "{note}");
}
