//! Memory: what `plan` says is what a step takes, and nothing of T×V exists.

mod program;

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use jointwise::Result;
use jointwise::data::batch::{Example, Sequence};
use jointwise::gpu::{Caps, DeviceChoice, Gpu, MatmulPrecision, Role, Variant};
use jointwise::kernels::logprob::{HeadShard, LmHead, LogprobOutputs, LogprobSaved, logprob_bwd, logprob_fwd};
use jointwise::kernels::moments::Optim;
use jointwise::kernels::shapes::{MODELS, ModelShape};
use jointwise::kernels::storage::WeightFormat;
use jointwise::kernels::{error_over_tolerance, tolerance};
use jointwise::model::decoder::Decoder;
use jointwise::model::description::{ModelConfig, TensorSpec};
use jointwise::model::load::{LoadOptions, TrainMode};
use jointwise::model::lora_config::LoraConfig;
use jointwise::model::peft::Adapter;
use jointwise::model::saved::{RecomputePolicy, SavedDtype};
use jointwise::model::weights::{BaseDtype, TrainOptions, WeightSource};
use jointwise::objective::PreferenceLoss;
use jointwise::objective::TrainingLoss;
use jointwise::train::memory_plan::plan_memory;
use jointwise::train::outcome::RowReference;
use jointwise::train::synthetic::{self, RowLengths};
use jointwise::train::trainer::Trainer;
use program::{Ran, fixture};
use proptest::prelude::*;
use serde_json::{Value, json};

/// One pair of 2×1024 tokens on a vocabulary of 151,936: the head's kernels need at most 64 MiB beside their inputs and outputs.
#[test]
fn the_head_of_a_large_vocabulary_needs_little_scratch() {
    for is_cpu in [false, true] {
        let gpu = Gpu::plan(Caps { is_cpu, variants: Variant::default_for(is_cpu, 0), ..Caps::baseline() });
        let (rows, vocab, width) = (2048, 151_936, 896);
        let scratch =
            |gpu: &Gpu| gpu.ledger().peak_by_role().into_iter().find(|r| r.0 == Role::Activations).map_or(0, |r| r.1);
        // Two pages: the matrix is larger than a binding.
        let halves: Vec<_> = (0..2).map(|_| gpu.alloc_persistent(Role::Frozen, vocab / 2 * width / 2)).collect();
        let pages =
            halves.iter().enumerate().map(|(i, w)| HeadShard { first: i * vocab / 2, rows: vocab / 2, w, d_w: None });
        let head = LmHead {
            pages: pages.collect(),
            storage: WeightFormat::Bf16,
            width,
            scale: 1.0,
            softcap: None,
            tile: LmHead::tile_for(rows),
        };
        let input = |n| gpu.alloc_persistent(Role::Batch, n);
        let (x, targets, logp, lse) = (input(rows * width), input(rows), input(rows), input(rows));
        let (d_logp, d_x) = (input(rows), input(rows * width));
        let mut rec = gpu.record();
        let out = LogprobOutputs { logp: &logp, lse: &lse, log_squares: None };
        logprob_fwd(&mut rec, &head, rows, &x, &targets, out);
        logprob_bwd(&mut rec, &head, rows, LogprobSaved { x: &x, targets: &targets, lse: &lse }, &d_logp, &d_x);
        let bytes = scratch(&gpu);
        assert!(bytes > 1 << 20 && bytes <= 64 << 20, "is_cpu={is_cpu}: {bytes} bytes");
        assert!((bytes as usize) < rows * vocab, "as much as T×V bytes");
    }
}

/// A checkpoint that is planned with: matrices of bf16, no values.
struct Planned;

impl WeightSource for Planned {
    fn is_bf16(&self, _: &TensorSpec) -> bool {
        true
    }
    fn values(&self, _: &TensorSpec) -> Result<Vec<f32>> {
        panic!("a plan reads nothing")
    }
}

/// Peak bytes of a LoRA step (r 8) on one pair of 2×`length` tokens, within WebGPU's baseline (bindings of 128 MiB); and the frozen weights'.
fn planned(config: &str, targets: &str, length: usize, base: BaseDtype, keep: RecomputePolicy) -> (u64, u64) {
    planned_within(&Caps::baseline(), config, targets, length, base, keep)
}

/// The same within other limits.
fn planned_within(
    caps: &Caps,
    config: &str,
    targets: &str,
    length: usize,
    base: BaseDtype,
    keep: RecomputePolicy,
) -> (u64, u64) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs").join(config);
    let json: Value = serde_json::from_str(&std::fs::read_to_string(&path).expect("text")).expect("JSON");
    let d = ModelConfig::from_json(&path, &json["config"].to_string()).expect("a configuration");
    let settings = LoraConfig { targets: targets.split(',').map(String::from).collect(), ..LoraConfig::paper() };
    let lora = Some(Adapter::new(&d, &settings, config, 0).expect("an adapter").lora);
    let training = TrainOptions { optim: Some(Optim::Adamw), ..TrainOptions::NONE };
    let options = LoadOptions { trained: TrainMode::Lora, lora, training, n_positions: length, base };
    let side = |first| Sequence::new([vec![first], vec![0; length - 1]].concat(), length / 2);
    let pair = Example { row: 0, sequences: vec![side(0), side(1)], desirable: None };
    let load = |gpu: &Gpu| Decoder::load(gpu, &d, &(Rc::new(Planned) as Rc<dyn WeightSource>), &options);
    let goal = TrainingLoss::Preference(PreferenceLoss::default());
    let plan = plan_memory(caps, load, &goal, &[&pair], true, keep).expect("a plan");
    let frozen = plan.ledger.peak_by_role().into_iter().find(|r| r.0 == Role::Frozen).map_or(0, |r| r.1);
    let (peak, mib) = (plan.ledger.peak_bytes(), 1_048_576.0);
    println!(
        "{config} {targets} 2x{length} {base:?} {keep:?} bindings of {} MiB: {:.1} MiB, frozen {:.1} MiB",
        caps.max_binding_bytes >> 20,
        peak as f64 / mib,
        frozen as f64 / mib
    );
    (peak, frozen)
}

/// Four bits are what makes seven billion parameters trainable in 7 GiB.
#[test]
fn a_model_of_seven_billion_parameters_fits_seven_gib() {
    let (block, all) = (RecomputePolicy::Inputs, RecomputePolicy::Everything);
    for keep in [all, block] {
        let plan = |base| planned("smollm2-135m.json", "all-linear", 512, base, keep);
        let [(auto, _), (int8, _), (nf4, _)] = [BaseDtype::Auto, BaseDtype::Int8, BaseDtype::Nf4].map(plan);
        assert!(nf4 < int8 && int8 < auto);
    }
    let plan = |base, keep| planned("mistral-7b-v0.1.json", "q_proj,k_proj,v_proj", 1024, base, keep);
    let (peak, frozen) = plan(BaseDtype::Nf4, block);
    assert!(peak <= 7 << 30, "{peak}");
    // 6,979,321,856 weights of 4.127 bits, and 262,144,000 of embedding and head, of 16.
    let expected = 6_979_321_856.0 * 4.127 / 8.0 + 262_144_000.0 * 2.0;
    assert!((frozen as f64 / expected - 1.0).abs() < 1e-3, "{frozen} {expected}");
    for (base, keep) in [(BaseDtype::Nf4, all), (BaseDtype::Int8, block), (BaseDtype::Auto, block)] {
        assert!(plan(base, keep).0 > 7 << 30, "{base:?}");
    }
}

/// `plan --limits baseline` of a model on one pair of 2×1024 tokens.
fn plan_for(model: &Path, memory: &str, more: &[&str]) -> Value {
    let mut program = Command::new(env!("CARGO_BIN_EXE_jointwise"));
    program.args(["plan", "--json", "--limits", "baseline", "--device-memory", memory, "--model"]).arg(model);
    let batch = if more.contains(&"--batch-size") { &[][..] } else { &["--batch-size", "1"] };
    let plan = Ran::of(program.args(batch).args(more)).ok().lines().pop().expect("an object");
    assert_eq!(plan["device"], "baseline");
    plan
}

/// Checks what docs/memory-and-speed.md says of an 8 GB card, with a checkpoint that has Mistral-7B's names and shapes, and a hole for values.
#[cfg(unix)]
#[test]
fn a_model_of_seven_billion_parameters_fits_a_card_of_8_gb() {
    let dir = tempfile::tempdir().expect("a folder");
    let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs/mistral-7b-v0.1.json");
    let shapes: Value = serde_json::from_str(&std::fs::read_to_string(shapes).expect("text")).expect("JSON");
    std::fs::write(dir.path().join("config.json"), shapes["config"].to_string()).expect("a file");
    let mut end = 0;
    let header = shapes["tensors"].as_object().expect("tensors").iter().map(|(name, shape)| {
        let start = end;
        end += 2 * shape.as_array().expect("a shape").iter().filter_map(Value::as_u64).product::<u64>();
        (name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}))
    });
    let header = Value::Object(header.collect()).to_string();
    let file = dir.path().join("model.safetensors");
    std::fs::write(&file, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).expect("a file");
    let file = std::fs::File::options().append(true).open(file).expect("a file");
    file.set_len(8 + header.len() as u64 + end).expect("a sparse file");

    let nf4 = ["--base-dtype", "nf4"];
    for (memory, base, recompute, fits) in [
        ("8GB", &nf4[..], "linear", true),
        ("8GiB", &nf4, "linear", true),
        ("7GB", &nf4, "block", true),
        ("6.5GB", &nf4, "block", false),
        ("8GiB", &["--base-dtype", "int8"], "block", false),
        ("24GB", &["--base-dtype", "bf16"], "linear", true),
    ] {
        let plan = plan_for(dir.path(), memory, &[base, &["--preset", "paper"]].concat());
        println!("{memory} {base:?}: {plan}");
        assert_eq!((&plan["recompute"], &plan["fits"]), (&json!(recompute), &json!(fits)), "{memory} {base:?}");
    }
    // Larger bindings, as GPUs have them, let more be computed at once.
    let [peak, large] = [128 << 20, 2 << 30].map(|max_binding_bytes| {
        let caps = Caps { max_binding_bytes, ..Caps::baseline() };
        planned_within(
            &caps,
            "mistral-7b-v0.1.json",
            "q_proj,k_proj,v_proj",
            1024,
            BaseDtype::Nf4,
            RecomputePolicy::Inputs,
        )
        .0
    });
    let paper = [&nf4[..], &["--preset", "paper"]].concat();
    assert_eq!(plan_for(dir.path(), "7GB", &paper)["peak_bytes"], peak);
    assert!(peak <= large && large <= 8_000_000_000 / 10 * 9, "{peak} {large}");
}

/// Configurations of models in docs/models.md's table of cards.
const MODELS_ON_CARDS: [&str; 19] = [
    "qwen3.5-0.8b",
    "lfm2.5-1.2b",
    "olmo-2-1b",
    "granite-3.3-2b",
    "smollm3-3b",
    "granite-4.0-micro",
    "ministral-3-3b",
    "phi-4-mini",
    "gemma-3-4b",
    "gemma-4-e2b",
    "olmo-3-7b",
    "gemma-4-e4b",
    "qwen2.5-7b-yarn",
    "glm-4-9b-0414",
    "gemma-4-12b",
    "gpt-oss-20b",
    "mistral-small-3.1-24b",
    "qwen3.5-27b",
    "qwen3-30b-a3b",
];

/// Makes docs/models.md's table of cards: the longest pair of 2×T tokens, T a power of two from 512 to 8192, that fits with nine tenths of a card's
/// memory. LoRA (r 8) on all linear layers, nf4, `--recompute block`, bindings of 2 GiB. The document must have these rows.
#[test]
fn real_models_on_cards_of_8_to_24_gb() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let caps = Caps { max_binding_bytes: 2 << 30, ..Caps::baseline() };
    let rows = MODELS_ON_CARDS.map(|name| {
        let config = root.join(format!("tests/configs/{name}.json"));
        let json: Value = serde_json::from_str(&std::fs::read_to_string(&config).expect("text")).expect("JSON");
        let d = ModelConfig::from_json(&config, &json["config"].to_string()).expect("a configuration");
        let billions = json["resolved"]["parameters"].as_f64().expect("a number") / 1e9;
        let mut longest = [None; 4];
        for length in [512, 1024, 2048, 4096, 8192].into_iter().filter(|&length| length <= d.max_positions) {
            let config = format!("{name}.json");
            let (peak, _) =
                planned_within(&caps, &config, "all-linear", length, BaseDtype::Nf4, RecomputePolicy::Inputs);
            for (longest, gb) in longest.iter_mut().zip([8, 12, 16, 24]) {
                if peak <= gb * 900_000_000 {
                    *longest = Some(length);
                }
            }
        }
        let cells = longest.map(|length| length.map_or("–".into(), |length: usize| length.to_string()));
        format!("| {name} | {billions:.2} | {} |", cells.join(" | "))
    });
    println!("{}", rows.join("\n"));
    let document = std::fs::read_to_string(root.join("docs/models.md")).expect("docs/models.md");
    for row in rows {
        assert!(document.contains(&row), "docs/models.md lacks: {row}");
    }
}

/// As memory shrinks, `auto` computes more again; a tenth of it is left to others.
#[test]
fn a_plan_for_other_memory() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    // Enough rows that the choices take different numbers of the pool's blocks.
    let run = ["--batch-size", "4", "--lora-targets", "all-linear"];
    let peaks = plan_for(&demo, "1GiB", &run)["peak_bytes_by_recompute"].clone();
    let least = |recompute: &str| (peaks[recompute].as_f64().expect("bytes") / 0.9 / 1_048_576.0).ceil();
    let plan = |mib: f64, more: &[&str]| {
        let plan = plan_for(&demo, &format!("{mib}MiB"), &[&run, more].concat());
        assert_eq!(plan["device_memory_bytes"], (mib * 1_048_576.0) as u64);
        (plan["recompute"].clone(), plan["fits"].clone())
    };
    let [all, products, attention, inputs] = ["none", "elementwise", "linear", "block"].map(least);
    for (mib, recompute, fits) in [
        (all, "none", true),
        (all - 1.0, "elementwise", true),
        (products, "elementwise", true),
        (products - 1.0, "linear", true),
        (attention, "linear", true),
        (attention - 1.0, "block", true),
        (inputs, "block", true),
        (inputs - 1.0, "block", false),
    ] {
        assert_eq!(plan(mib, &[]), (json!(recompute), json!(fits)), "{mib} MiB");
    }
    assert_eq!(plan(all - 1.0, &["--recompute", "none"]), (json!("none"), json!(false)));

    // In words; and where the memory is not known.
    let words = |more: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_jointwise"));
        program.args(["plan", "--limits", "baseline", "--model"]).arg(&demo).args(run).args(more);
        Ran::of(&mut program).ok().stdout
    };
    let memory = |mib: f64| words(&["--device-memory", &format!("{mib}MiB")]);
    assert!(memory(inputs).contains("\nit fits: "), "{}", memory(inputs));
    assert!(memory(inputs - 1.0).contains("\nit does not fit: "), "{}", memory(inputs - 1.0));
    assert!(words(&[]).contains("\nwhether it fits is unknown: "), "{}", words(&[]));
    let unknown: Value = serde_json::from_str(&words(&["--json"])).expect("JSON");
    assert_eq!((&unknown["fits"], &unknown["device_memory_bytes"]), (&Value::Null, &Value::Null));
    assert!(unknown.as_object().expect("an object").contains_key("fits"));
}

/// `plan --estimate` counts the work of a whole step for a GPU that is not here, and says that nothing was measured.
#[test]
fn a_step_is_estimated_for_a_gpu_that_is_not_here() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let run = |gpu: &str, more: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_jointwise"));
        program.args(["plan", "--batch-size", "1", "--max-length", "256", "--estimate", gpu, "--model"]).arg(&demo);
        Ran::of(program.args(more))
    };
    let estimate = |gpu: &str, more: &[&str]| -> Value {
        serde_json::from_str(&run(gpu, &[&["--json"], more].concat()).ok().stdout).expect("JSON")
    };
    let sum = |plan: &Value, key: &str| -> f64 {
        let kernels = plan["estimate"]["kernels"].as_array().expect("kernels");
        kernels.iter().map(|kernel| kernel[key].as_f64().expect("a number")).sum()
    };
    let kernel = |plan: &Value, name: &str, key: &str| -> f64 {
        let kernels = plan["estimate"]["kernels"].as_array().expect("kernels");
        kernels.iter().find(|k| k["kernel"] == name).unwrap_or_else(|| panic!("no {name}: {plan}"))[key]
            .as_f64()
            .expect("a number")
    };
    let full = estimate("rx-7900-xtx", &["--full"]);
    assert_eq!(full["estimate"]["is_measured"], false);
    // Parameter, gradient and both moments in f32, of tensors that are padded to 256 bytes each.
    let trained = full["trained_parameters"].as_f64().expect("a number");
    let adamw = kernel(&full, "adamw", "bytes") / (16.0 * trained);
    assert!((1.0..1.05).contains(&adamw), "{adamw}");
    // The micro-batch, and the update.
    let flops = full["flops"].as_f64().expect("a number");
    assert!((flops..1.05 * flops).contains(&sum(&full, "flops")), "{full}");
    let least = full["estimate"]["least_seconds"].as_f64().expect("a number");
    assert!((least - 1e-6 * sum(&full, "least_us")).abs() < 1e-9 && least >= flops / 61.4e12, "{full}");
    let twice = estimate("rx-7900-xtx", &["--full", "--gradient-accumulation-steps", "2"]);
    for name in ["matmul_tiles", "adamw"] {
        let ratio = kernel(&twice, name, "flops") / kernel(&full, name, "flops");
        assert_eq!(ratio, if name == "adamw" { 1.0 } else { 2.0 }, "{name}");
    }
    let lora = estimate("rx-7900-xtx", &["--lora-targets", "all-linear"]);
    assert!(kernel(&lora, "adamw", "bytes") < 0.5 * kernel(&full, "adamw", "bytes"), "{lora}");
    // Cooperative matrices where the GPU's drivers have some that kernels take.
    let medium = estimate("rtx-4090", &["--full", "--matmul-precision", "medium"]);
    assert!(kernel(&medium, "matmul_coop", "flops") > 0.0);
    run("arc-a770", &["--matmul-precision", "high"]).said(2, &["--matmul-precision", "cooperative matrices"]);
    let words = run("arc-a770", &[]).ok().stdout;
    for part in ["ESTIMATE of a step on Intel Arc A770", "Nothing was measured", "560 GB/s", "\nmatmul_tiles "] {
        assert!(words.contains(part), "{part}: {words}");
    }
    run("rtx-9999", &[]).said(2, &["--estimate", "rtx-4090"]);
    run("arc-a770", &["--limits", "baseline"]).said(2, &["--limits", "--estimate"]);
}

/// A vocabulary of 151,936 instead of 4,096 costs its weights (and in full tuning their gradients and moments), and nothing else.
#[test]
fn a_vocabulary_costs_its_weights_alone() {
    let small = MODELS[0];
    for full in [true, false] {
        let peaks = [4096, 151_936].map(|vocab| {
            let shape = ModelShape { vocab, ..small };
            let examples = synthetic::pairs(4, 256, vocab, RowLengths::Equal);
            let examples: Vec<&Example> = examples.iter().collect();
            let d = synthetic::description(&shape).expect("a model");
            let load = |gpu: &Gpu| synthetic::decoder(gpu, &d, full, 256);
            let goal = TrainingLoss::Preference(PreferenceLoss::default());
            let plan = plan_memory(&Caps::baseline(), load, &goal, &examples, true, RecomputePolicy::Everything)
                .expect("a plan")
                .ledger;
            let by_role = plan.peak_by_role();
            (by_role.iter().map(|(_, bytes)| bytes).sum::<u64>(), by_role)
        });
        let weights = (151_936 - 4096) * small.d_model as u64;
        let expected = if full { 4 * 4 * weights } else { 2 * weights };
        let grown = peaks[1].0 - peaks[0].0;
        println!("full={full}: {} MiB for {} MiB of weights", grown >> 20, expected >> 20);
        assert!(grown.abs_diff(expected) <= 1 << 20, "full={full}: {grown} bytes, {expected} expected");
        let of = |i: usize, role| peaks[i].1.iter().find(|r| r.0 == role).map(|r| r.1);
        assert_eq!(of(0, Role::Activations), of(1, Role::Activations), "full={full}");
    }
}

/// What is kept in bf16 takes less, the more layers there are; a layer's input that is kept alone is not rounded.
#[test]
fn saved_in_bf16_takes_less() {
    for (shape, pairs, most) in [(MODELS[0], 4, 0.85), (MODELS[1], 1, 0.85)] {
        let d = synthetic::description(&shape).expect("a model");
        let examples = synthetic::pairs(pairs, 256, shape.vocab, RowLengths::Equal);
        let examples: Vec<&Example> = examples.iter().collect();
        let plan = |saved_dtype, keep| {
            let load = |gpu: &Gpu| Ok(Decoder { saved_dtype, ..synthetic::decoder(gpu, &d, false, 256)? });
            let goal = TrainingLoss::Preference(PreferenceLoss::default());
            let ledger = plan_memory(&Caps::baseline(), load, &goal, &examples, true, keep).expect("a plan").ledger;
            let kept = ledger.peak_by_role().into_iter().find(|r| r.0 == Role::Activations).map_or(0, |r| r.1);
            let [peak, kept] = [ledger.peak_bytes(), kept].map(|bytes| bytes as f64 / 1_048_576.0);
            println!("{} {keep:?} {saved_dtype:?}: peak {peak:.1} MiB, activations {kept:.1} MiB", shape.name);
            kept
        };
        let [all, products, attention, inputs] = RecomputePolicy::TRAINING.map(|keep| plan(SavedDtype::F32, keep));
        let [few, same, linear, block] = RecomputePolicy::TRAINING.map(|keep| plan(SavedDtype::Bf16, keep));
        assert!(few == same && few <= most * products && few < all, "{}: {few} {products} {all}", shape.name);
        assert!(block >= inputs && linear >= attention, "{}: {block} {inputs}, {linear} {attention}", shape.name);
    }
}

/// Where the MLP of a micro-batch does not fit a binding, its tokens are computed in parts: the same losses to the bit, the same gradients.
#[test]
fn small_bindings_change_no_result() {
    let shape = TINY;
    let examples = synthetic::pairs(2, 60, shape.vocab, RowLengths::Mixed);
    let examples: Vec<&Example> = examples.iter().collect();
    let run = |max_binding: u64, full: bool| {
        let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device").with_max_binding(max_binding);
        let d = synthetic::description(&shape).expect("a model");
        let decoder = synthetic::decoder(&gpu, &d, full, 60).expect("weights");
        let goal = TrainingLoss::Preference(PreferenceLoss::default());
        let trainer =
            Trainer { gpu: &gpu, decoder, goal, share_prefix: true, keep: RecomputePolicy::Everything, seed: 0 };
        let step = pollster::block_on(trainer.gradients(&examples, &[[-300.0; 2]; 2].map(RowReference::from), 2))
            .expect("gradients");
        let gradients = pollster::block_on(trainer.read_gradients(&examples)).expect("gradients");
        (step.outcome.loss_sum, gradients, gpu.ledger().largest_activation())
    };
    for full in [true, false] {
        let ((loss, gradients, widest), (again, in_parts, narrower)) = (run(1 << 30, full), run(128 << 10, full));
        assert!(widest > 128 << 10 && narrower <= 128 << 10, "{widest} {narrower}");
        assert_eq!(loss, again);
        for ((name, _, want), (_, _, got)) in gradients.iter().zip(&in_parts) {
            let [want, got] = [want, got].map(|g| g.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
            let (error, size) = (
                error_over_tolerance(&got, &want, tolerance(MatmulPrecision::Highest, 120)),
                want.iter().fold(0.0, |m: f64, x| m.max(x.abs())),
            );
            assert!(size > 0.0 && error <= 1.0, "{name}: {error:.2} × the tolerance");
            let other: Vec<f64> = want.iter().map(|x| x * 1.001).collect();
            assert!(
                error_over_tolerance(&got, &other, tolerance(MatmulPrecision::Highest, 120)) > 1.0,
                "{name}: a wrong gradient passes"
            );
        }
    }
}

const TINY: ModelShape = ModelShape {
    name: "tiny",
    d_model: 64,
    n_heads: 4,
    n_kv_heads: 2,
    head_dim: 16,
    d_ff: 192,
    vocab: 96,
    n_layers: 2,
    tied: true,
    qk_norm: false,
};

/// Loss and gradients of one micro-batch of two pairs, `tokens` long, full or with LoRA; and how often kernels were dispatched.
fn micro_batch(gpu: Gpu, shape: &ModelShape, tokens: usize, full: bool) -> (f64, Vec<Vec<f32>>, usize) {
    let examples = synthetic::pairs(2, tokens, shape.vocab, RowLengths::Mixed);
    let examples: Vec<&Example> = examples.iter().collect();
    let d = synthetic::description(shape).expect("a model");
    let decoder = synthetic::decoder(&gpu, &d, full, tokens).expect("weights");
    let goal = TrainingLoss::Preference(PreferenceLoss::default());
    gpu.start_profile();
    let trainer = Trainer { gpu: &gpu, decoder, goal, share_prefix: true, keep: RecomputePolicy::Everything, seed: 0 };
    let step = pollster::block_on(trainer.gradients(&examples, &[[-300.0; 2]; 2].map(RowReference::from), 2));
    let step = step.expect("gradients");
    let gradients = pollster::block_on(trainer.read_gradients(&examples)).expect("gradients");
    let profile = gpu.end_profile().expect("timestamps");
    let dispatches = profile.rows().iter().map(|row| row.1).sum();
    (step.outcome.loss_sum, gradients.into_iter().map(|g| g.2).collect(), dispatches)
}

/// Where kernels are expected to be slow, they are dispatched in parts of their grids: the same bits.
#[test]
fn parts_of_dispatches_change_no_bit() {
    for variants in [Variant::default_for(true, 0), Variant::default_for(false, 0), Vec::new()] {
        let run = |speed: f64| {
            let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device");
            micro_batch(gpu.with_variants(variants.clone()).with_expected_speed(speed), &TINY, 60, true)
        };
        let ((loss, gradients, once), (again, in_parts, often)) = (run(1e12), run(1e6));
        assert!(often > once + 100, "{variants:?}: {once} dispatches, then {often}");
        assert_eq!(loss.to_bits(), again.to_bits(), "{variants:?}");
        assert_eq!(gradients, in_parts, "{variants:?}");
        assert!(gradients.iter().flatten().any(|&g| g != 0.0));
    }
}

/// More rows of a matrix than a grid has workgroups (65,535): a step, full and with LoRA.
#[test]
fn a_vocabulary_beyond_a_grid_does_its_step() {
    let shape = ModelShape { vocab: 70_000, d_model: 32, n_heads: 2, n_kv_heads: 2, d_ff: 64, n_layers: 1, ..TINY };
    for full in [true, false] {
        let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device");
        let (loss, gradients, _) = micro_batch(gpu, &shape, 40, full);
        assert!(loss.is_finite() && gradients.iter().flatten().any(|&g| g != 0.0), "full={full}: {loss}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any shape that a configuration may have plans its step by the rules of every variant, or is refused by a flag's name.
    #[test]
    fn any_shape_plans_a_step(
        vocab in prop_oneof![1..300_usize, 49_000..52_000_usize, 65_000..66_000_usize, 120_000..160_000_usize],
        (head_dim, n_kv_heads, ratio) in (prop_oneof![1..20_usize, Just(64), Just(80), Just(128)], 1..4_usize, 1..5_usize),
        d_model in prop_oneof![1..70_usize, Just(256), Just(768), Just(2048)],
        d_ff in prop_oneof![1..300_usize, 1000..20_000_usize],
        tied: bool,
        full: bool,
        tokens in prop_oneof![8 => 8..80_usize, 4 => 500..3000_usize, 1 => Just(40_000)],
    ) {
        // Rotations pair the dimensions of a head, and quantised or shared matrices its columns.
        let (head_dim, d_model) = (head_dim.next_multiple_of(2), d_model.next_multiple_of(2));
        let shape = ModelShape {
            name: "any",
            d_model,
            n_heads: n_kv_heads * ratio,
            n_kv_heads,
            head_dim,
            d_ff: d_ff.next_multiple_of(2),
            vocab,
            n_layers: 1,
            tied,
            qk_norm: false,
        };
        let d = match synthetic::description(&shape) {
            Ok(d) => d,
            Err(error) => {
                prop_assert!(error.to_string().contains("field "), "{error}");
                return Ok(());
            }
        };
        let examples = synthetic::pairs(1, tokens, vocab, RowLengths::Mixed);
        let examples: Vec<&Example> = examples.iter().collect();
        for (variants, is_cpu) in
            [(Vec::new(), false), (Variant::default_for(false, 0), false), (Variant::default_for(true, 0), true), (vec![Variant::Cpu], true)]
        {
            let caps = Caps { variants: variants.clone(), is_cpu, subgroup: is_cpu.then_some((8, 8)), ..Caps::baseline() };
            let load = |gpu: &Gpu| synthetic::decoder(gpu, &d, full, tokens);
            let goal = TrainingLoss::Preference(PreferenceLoss::default());
            match plan_memory(&caps, load, &goal, &examples, true, RecomputePolicy::Everything) {
                Ok(plan) => prop_assert!(plan.ledger.peak_bytes() > 0),
                // One row of so many tokens may be too wide for a binding; a short one never is.
                Err(error) => prop_assert!(tokens > 100 && error.to_string().starts_with("--"), "{variants:?}: {error}"),
            }
        }
    }
}

/// An adapter that a run goes on from is its reference, and is held beside the one that is trained.
#[test]
fn the_adapter_that_a_run_starts_from_is_planned() {
    let (model, adapter) = (fixture("mistral-odd/model"), fixture("lora-mistral/adapter"));
    let data = fixture("mistral-odd").join("prefs.jsonl");
    let peaks_of_roles = |more: &[&str]| -> u64 {
        let mut program = Command::new(env!("CARGO_BIN_EXE_jointwise"));
        program.args(["plan", "--json", "--limits", "baseline", "--model"]).arg(&model);
        program.arg("--data").arg(&data).arg("--adapter").arg(&adapter);
        let plan = Ran::of(program.args(more)).ok().lines().pop().expect("an object");
        plan["roles"].as_object().expect("roles").values().map(|bytes| bytes.as_u64().expect("bytes")).sum()
    };
    let tensors = program::read_tensors(&adapter.join("adapter_model.safetensors"));
    // Each on a multiple of 256 bytes.
    let held: u64 = tensors.values().map(|t| (t.bytes.len() as u64).next_multiple_of(256)).sum();
    let (initial, base) = (peaks_of_roles(&[]), peaks_of_roles(&["--reference", "base"]));
    assert_eq!(initial - base, held);
    assert_eq!(peaks_of_roles(&["--reference-free"]), base);
}

/// Where the base is the reference, its embedding is held beside the one that is trained whole, and nothing else of it.
#[test]
fn replaced_tensors_are_planned() {
    let (model, data) = (fixture("mistral-odd/model"), fixture("mistral-odd").join("prefs.jsonl"));
    let roles = |more: &[&str]| -> Value {
        let mut program = Command::new(env!("CARGO_BIN_EXE_jointwise"));
        program.args(["plan", "--json", "--limits", "baseline", "--model"]).arg(&model).arg("--data").arg(&data);
        Ran::of(program.args(["--modules-to-save", "lm_head"]).args(more)).ok().lines().pop().expect("an object")
    };
    let tensors = program::read_tensors(&model.join("model.safetensors"));
    let head = tensors.get("lm_head.weight").unwrap_or(&tensors["model.embed_tokens.weight"]).bytes.len() as u64;
    let frozen = |plan: Value| plan["roles"]["frozen"].as_u64().expect("bytes");
    let (base, free) = (frozen(roles(&["--reference", "base"])), frozen(roles(&["--reference-free"])));
    let more = base - free;
    assert!((head..2 * head + 4096).contains(&more), "{more} bytes more, a head of {head}");
}

/// `plan` against the ledger of a run: full and LoRA, preferences and SFT, weights of 4 and 8 bits, moments of 8, parts computed again.
#[test]
fn a_step_takes_what_plan_says() {
    let family = fixture("mistral-odd");
    let (odd, data) = (family.join("model"), family.join("prefs.jsonl"));
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let (full, lora) = (&["--full"][..], &["--lora-targets", "all-linear"][..]);
    let quantised = |base| ["--lora-targets", "all-linear", "--recompute", "block", "--base-dtype", base];
    let (int8, nf4) = (quantised("int8"), quantised("nf4"));
    let few_bits = ["--full", "--optim", "adamw8bit", "--param-dtype", "bf16"];
    let elementwise = ["--lora-targets", "all-linear", "--recompute", "elementwise"];
    let saved = ["--full", "--recompute", "none", "--saved-dtype", "bf16"];
    let adapter = fixture("lora-mistral/adapter");
    let goes_on = ["--adapter", adapter.to_str().expect("UTF-8")];
    let whole = ["--modules-to-save", "embed_tokens,lm_head", "--reference", "base"];
    let cases = [
        (&odd, "train", &whole[..], 0.1),
        (&odd, "train", &goes_on[..], 0.1),
        (&odd, "train", full, 0.1),
        (&odd, "train", lora, 0.1),
        (&odd, "sft", full, 0.1),
        (&demo, "train", &few_bits[..], 0.05),
        (&odd, "sft", lora, 0.1),
        (&demo, "train", &int8[..], 0.05),
        (&demo, "train", &nf4[..], 0.05),
        (&demo, "train", &elementwise[..], 0.05),
        (&demo, "train", &saved[..], 0.01),
    ];
    for (model, command, method, tolerance) in cases {
        let dir = tempfile::tempdir().expect("a folder");
        let run = |command: &str, more: &[&str]| -> f64 {
            let mut program = Command::new(env!("CARGO_BIN_EXE_jointwise"));
            program.arg(command).args(["--batch-size", "8", "--json", "--model"]).arg(model).arg("--data").arg(&data);
            program.env("XDG_CACHE_HOME", dir.path());
            let ran = Ran::of(program.args(method).args(more)).ok();
            let line: Value = ran.lines().pop().expect("an object");
            line["peak_bytes"].as_f64().expect("peak_bytes")
        };
        let planned = run("plan", if command == "sft" { &["--sft"] } else { &[] });
        let out = dir.path().join("out");
        let taken = run(command, &["--num-train-epochs", "2", "--output-dir", out.to_str().expect("UTF-8")]);
        assert!((taken / planned - 1.0).abs() <= tolerance, "{command} {method:?}: planned {planned}, taken {taken}");
    }
}
