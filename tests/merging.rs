//! `merge`, by value: W + s·B·A in f64 for rank-stabilised adapters, Conv1D's (in, out) weights, and square modules, whose transposition no shape
//! shows; and what an index says of its shards.

mod program;

use std::path::Path;

use jointwise::model::description::ModelConfig;
use jointwise::rng::Rng;
use program::{Sandbox, Tensor, Tensors, fixture, read_tensors, write_tensors};
use safetensors::Dtype;
use serde_json::{Value, json};

fn f32s(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
}

/// A module of a checkpoint: its weight's name, (n_out, n_in), and whether it is stored (in, out).
struct Module {
    name: String,
    n_out: usize,
    n_in: usize,
    transposed: bool,
}

fn modules(model: &Path, names: &[&str]) -> Vec<Module> {
    let config = model.join("config.json");
    let d = ModelConfig::from_json(&config, &std::fs::read_to_string(&config).expect("text")).expect("a configuration");
    let specs = d.tensors();
    let of = |spec: &jointwise::model::description::TensorSpec| {
        let name = spec.name.strip_suffix(".weight")?.to_string();
        let is_named = names.iter().any(|n| name.ends_with(&format!(".{n}")));
        let (a, b) = (*spec.shape.first()?, *spec.shape.get(1)?);
        let (n_out, n_in) = if spec.transposed { (b, a) } else { (a, b) };
        is_named.then_some(Module { name, n_out, n_in, transposed: spec.transposed })
    };
    specs.iter().filter_map(of).collect()
}

/// A random adapter of these modules, written as PEFT does; its A and B by module.
fn adapter(dir: &Path, modules: &[Module], targets: &[&str], rank: usize, rslora: bool) -> Vec<(Vec<f32>, Vec<f32>)> {
    let mut rng = Rng::new(7, rank as u64);
    let mut tensors = Tensors::new();
    let mut pairs = Vec::new();
    for m in modules {
        let mut draw = |n: usize| (0..n).map(|_| 0.3 * rng.normal()).collect::<Vec<f32>>();
        let (a, b) = (draw(rank * m.n_in), draw(m.n_out * rank));
        let name = |x: &str| format!("base_model.model.{}.lora_{x}.weight", m.name);
        tensors.insert(name("A"), f32s(&a, &[rank, m.n_in]));
        tensors.insert(name("B"), f32s(&b, &[m.n_out, rank]));
        pairs.push((a, b));
    }
    std::fs::create_dir(dir).expect("a folder");
    write_tensors(&dir.join("adapter_model.safetensors"), &tensors);
    let config = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 6, "use_rslora": rslora,
        "target_modules": targets, "bias": "none", "fan_in_fan_out": modules.iter().all(|m| m.transposed)});
    std::fs::write(dir.join("adapter_config.json"), config.to_string()).expect("a file");
    pairs
}

/// The largest difference of a weight from W + s·B·A, or (transposed the wrong way) from W + s·(B·A)ᵀ where that has the shape.
fn error(
    m: &Module,
    (a, b): &(Vec<f32>, Vec<f32>),
    [before, after]: [&Tensor; 2],
    s: f64,
    rank: usize,
    wrongly: bool,
) -> f64 {
    let (before, after) = (before.values(), after.values());
    assert_eq!(before.len(), after.len());
    let mut worst: f64 = 0.0;
    for (o, i) in (0..m.n_out).flat_map(|o| (0..m.n_in).map(move |i| (o, i))) {
        let product: f64 = (0..rank).map(|r| f64::from(b[o * rank + r]) * f64::from(a[r * m.n_in + i])).sum();
        let at = if m.transposed != wrongly { i * m.n_out + o } else { o * m.n_in + i };
        worst = worst.max((f64::from(before[at]) + s * product - f64::from(after[at])).abs());
    }
    worst
}

fn check(family: &str, targets: &[&str], square: &str, n_square: usize) {
    let model = fixture(family).join("model");
    let modules = modules(&model, targets);
    assert!(modules.len() >= 2 * targets.len() && modules.iter().any(|m| m.n_out != m.n_in));
    let before = read_tensors(&model.join("model.safetensors"));
    let rank = 4;
    for (rslora, s) in [(false, 6.0 / 4.0), (true, 6.0 / 2.0)] {
        let sandbox = Sandbox::new();
        let pairs = adapter(&sandbox.path("adapter"), &modules, targets, rank, rslora);
        let model = model.to_str().expect("UTF-8");
        sandbox.run(&["merge", "--model", model, "--adapter", "adapter", "--output-dir", "merged"]).ok();
        let after = read_tensors(&sandbox.path("merged/model.safetensors"));
        assert!(before.keys().eq(after.keys()));
        let mut squares = 0;
        for (m, pair) in modules.iter().zip(&pairs) {
            let name = format!("{}.weight", m.name);
            let both = [&before[&name], &after[&name]];
            assert_eq!(both[0].shape, both[1].shape);
            let at = format!("{family} {name} rslora={rslora}");
            let found = error(m, pair, both, s, rank, false);
            assert!(found < 1e-6, "{at}: {found:.1e}");
            // The other scale, and a square module the other way round, are told.
            assert!(error(m, pair, both, 4.5 - s, rank, false) > 1e-2, "{at}");
            if m.n_out == m.n_in {
                squares += 1;
                assert!(name.contains(square) && error(m, pair, both, s, rank, true) > 1e-2, "{at}");
            }
        }
        assert_eq!(squares, n_square, "{family}");
        let merged = |name: &str| modules.iter().any(|m| name == format!("{}.weight", m.name));
        assert!(
            before.iter().filter(|(name, _)| !merged(name)).all(|(name, tensor)| after[name] == *tensor),
            "{family}"
        );
    }
}

#[test]
fn conv1d_square_and_rank_stabilised() {
    check("gpt2-odd", &["c_attn", "c_proj", "c_fc"], "attn.c_proj", 2);
}

#[test]
fn linear_square_and_rank_stabilised() {
    check("mistral-odd", &["q_proj", "k_proj", "o_proj", "down_proj"], "_proj", 4);
}

/// The values' bytes, without headers, as transformers counts them.
#[test]
fn an_index_says_how_large_its_shards_are() {
    let sandbox = Sandbox::new();
    let model = fixture("mistral-odd/model");
    let specs = read_tensors(&model.join("model.safetensors"));
    use jointwise::model::save::{OutputDtype, TensorToWrite, write_model};
    let plan = |dtype| -> Vec<TensorToWrite> {
        specs.iter().map(|(name, t)| TensorToWrite { name: name.clone(), shape: t.shape.clone(), dtype }).collect()
    };
    for (dtype, bytes) in [(OutputDtype::F32, 4), (OutputDtype::Bf16, 2)] {
        let plan = plan(dtype);
        let dir = sandbox.path(&format!("{bytes}"));
        std::fs::create_dir(&dir).expect("a folder");
        let values = &mut |i: usize| Ok(vec![0.5; plan[i].shape.iter().product()]);
        write_model(&dir, &plan, 60_000, values).expect("shards");
        let index = std::fs::read_to_string(dir.join("model.safetensors.index.json")).expect("an index");
        let index: Value = serde_json::from_str(&index).expect("JSON");
        let shards: std::collections::BTreeSet<&str> =
            index["weight_map"].as_object().expect("a map").values().filter_map(Value::as_str).collect();
        assert!(shards.len() > 1, "{shards:?}");
        for shard in &shards {
            let tensors = read_tensors(&dir.join(shard));
            let size: usize = tensors.values().map(|t| t.bytes.len()).sum();
            assert!(size <= 60_000 || tensors.len() == 1, "{shard}: {size} bytes");
        }
        let held: usize =
            shards.iter().flat_map(|s| read_tensors(&dir.join(s)).into_values()).map(|t| t.bytes.len()).sum();
        let elements: usize = specs.values().map(|t| t.shape.iter().product::<usize>()).sum();
        assert_eq!(index["metadata"]["total_size"].as_u64(), Some((bytes * elements) as u64));
        assert_eq!(held, bytes * elements);
    }
}

/// PEFT's start: A uniform in ±1/√n_in, B zero, so that nothing is changed yet.
#[test]
fn a_new_adapter_begins_as_pefts_does() {
    use jointwise::model::lora_config::LoraConfig;
    use jointwise::model::peft::Adapter;
    let model = fixture("mistral-odd").join("model");
    let config = model.join("config.json");
    let d = ModelConfig::from_json(&config, &std::fs::read_to_string(&config).expect("text")).expect("a configuration");
    let targets = vec!["q_proj".into(), "down_proj".into()];
    let settings = LoraConfig { rank: 16, alpha: 32.0, targets, ..LoraConfig::default() };
    let lora = Adapter::new(&d, &settings, "base", 1).expect("an adapter").lora;
    assert_eq!((lora.scale, lora.modules.len()), (2.0, 4));
    for (name, (a, b)) in &lora.modules {
        let bound = 1.0 / (a.len() as f64 / 16.0).sqrt();
        let largest = a.iter().fold(0.0, |m: f64, &v| m.max(f64::from(v).abs()));
        let square = a.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / a.len() as f64;
        assert!(largest <= bound && largest > 0.97 * bound, "{name}: {largest}, not {bound}");
        assert!((square / (bound * bound / 3.0) - 1.0).abs() < 0.15, "{name}: {square}");
        assert!(b.iter().all(|&v| v == 0.0) && !b.is_empty(), "{name}");
    }
}
