//! Weights and pages in parts, as where bindings are small: a bias behind a weight in several parts, and the chances that pages draw.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use jointwise::data::batch::Example;
use jointwise::gpu::{DeviceChoice, Gpu};
use jointwise::kernels::adamw::{AdamwStep, adamw};
use jointwise::kernels::moments::Optim;
use jointwise::kernels::storage::WeightFormat;
use jointwise::model::checkpoint::Checkpoint;
use jointwise::model::decoder::Decoder;
use jointwise::model::description::ModelConfig;
use jointwise::model::load::{LoadOptions, TrainMode};
use jointwise::model::lora_config::LoraConfig;
use jointwise::model::peft::Adapter;
use jointwise::model::saved::RecomputePolicy;
use jointwise::model::weights::{BaseDtype, ParamDtype, TrainOptions, WeightSource};
use jointwise::objective::PreferenceLoss;
use jointwise::objective::TrainingLoss;
use jointwise::rng::Rng;
use jointwise::train::outcome::RowReference;
use jointwise::train::synthetic::{self, RowLengths};
use jointwise::train::trainer::Trainer;

/// A binding of 64 rows of 36 columns: of GPT-2's fixture, q, k and v of 108 rows are in two parts.
const SMALL: u64 = 64 * 36 * 4;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/gpt2-odd/model")
}

fn decoder(gpu: &Gpu, full: bool, training: TrainOptions) -> Decoder {
    let dir = model();
    let config = dir.join("config.json");
    let text = std::fs::read_to_string(&config).expect("a configuration");
    let d = ModelConfig::from_json(&config, &text).expect("a configuration");
    let settings = LoraConfig { rank: 4, targets: vec!["all-linear".into()], ..LoraConfig::default() };
    let mut lora = Adapter::new(&d, &settings, "base", 3).expect("an adapter").lora;
    // A new adapter's B is zero, and any rows of it are alike.
    let mut rng = Rng::new(5, 0);
    lora.modules.values_mut().flat_map(|(_, b)| b).for_each(|value| *value = 0.05 * rng.normal());
    let (trained, lora) = if full { (TrainMode::Full, None) } else { (TrainMode::Lora, Some(lora)) };
    let options = LoadOptions { trained, lora, training, n_positions: d.max_positions, base: BaseDtype::Auto };
    let source: Rc<dyn WeightSource> = Rc::new(Checkpoint::open(&dir).expect("a checkpoint"));
    Decoder::load(gpu, &d, &source, &options).expect("weights")
}

fn open(max_binding: u64) -> Gpu {
    pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device").with_max_binding(max_binding)
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let error = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    error / norm(&mut b.iter().map(|&b| f64::from(b))).max(1e-30)
}

/// Each part of a weight has its own rows of the bias, frozen or trained: losses and gradients are those of the whole weight.
#[test]
fn a_bias_behind_a_weight_in_several_parts() {
    let examples = synthetic::pairs(2, 40, 384, RowLengths::Mixed);
    let examples: Vec<&Example> = examples.iter().collect();
    let reference = [[-100.0; 2]; 2].map(RowReference::from);
    for full in [false, true] {
        let run = |max_binding: u64| {
            let gpu = open(max_binding);
            let decoder = decoder(&gpu, full, TrainOptions::NONE);
            let qkv = &decoder.weights().into_iter().find(|w| w.spec.name.ends_with("h.0.attn.c_attn.weight")).cloned();
            let parts = qkv.as_ref().expect("GPT-2's q, k and v").parts.len();
            let goal = TrainingLoss::Preference(PreferenceLoss::default());
            let trainer =
                Trainer { gpu: &gpu, decoder, goal, share_prefix: true, keep: RecomputePolicy::Everything, seed: 0 };
            let step = pollster::block_on(trainer.gradients(&examples, &reference, 2)).expect("gradients");
            let gradients = pollster::block_on(trainer.read_gradients(&examples)).expect("gradients");
            (parts, step.outcome, gradients)
        };
        let ((one, whole, want), (several, in_parts, got)) = (run(1 << 30), run(SMALL));
        assert_eq!((one, several), (1, 2), "full={full}");
        let logps = |outcome: &jointwise::train::outcome::BatchResult| -> Vec<f32> {
            outcome.rows.iter().flatten().map(|s| (s.sums.instruction + s.sums.response) as f32).collect()
        };
        let error = relative(&logps(&in_parts), &logps(&whole));
        assert!(error < 1e-6, "full={full}: log-probs differ by {error:.1e}");
        assert_eq!(got.len(), want.len());
        let all = |gradients: &[(String, Vec<usize>, Vec<f32>)]| {
            gradients.iter().flat_map(|g| g.2.clone()).collect::<Vec<_>>()
        };
        let size = relative(&all(&want), &vec![0.0; all(&want).len()]);
        assert!(size > 1.0, "no gradients");
        for ((name, _, want), (_, _, got)) in want.iter().zip(&got) {
            // K's bias has no gradient but rounding.
            let error =
                if name.ends_with("c_attn.bias") { relative(&got[72..], &want[72..]) } else { relative(got, want) };
            assert!(error < 2e-4, "full={full} {name}: gradients differ by {error:.1e}");
        }
    }
}

/// Pages of trained bf16 that hold the same values and get the same gradients are rounded by chances of their own.
#[test]
fn pages_draw_different_chances() {
    let gpu = open(SMALL);
    let training = TrainOptions { optim: Some(Optim::Adamw), param_dtype: ParamDtype::Bf16, ..TrainOptions::NONE };
    let decoder = decoder(&gpu, true, training);
    let pages: Vec<_> = decoder.arena.pages.iter().filter(|page| page.storage == WeightFormat::Bf16).collect();
    let n = 1024;
    let pages: Vec<_> = pages.into_iter().filter(|page| page.len >= n).collect();
    assert!(pages.len() > 4, "{} pages", pages.len());
    let a = AdamwStep {
        learning_rate: 1e-3,
        beta1: 0.0,
        beta2: 0.0,
        eps: 1e-20,
        weight_decay: 0.0,
        max_norm: 0.0,
        step: 1,
        scale: 1.0,
        seed: 0,
    };
    let update = |page: &jointwise::kernels::adamw::ParamBucket| -> Vec<u32> {
        // 1.5 in both halves of each word.
        gpu.write(&page.params, &vec![0x3fc0_3fc0_u32; n / 2]);
        gpu.write(&page.grads, &vec![1.0_f32; n]);
        let mut rec = gpu.record();
        adamw(&mut rec, &a, page, &gpu.upload(&[1.0_f32]));
        rec.submit();
        pollster::block_on(gpu.read::<u32>(&[&page.params])).expect("readback").concat()[..n / 2].to_vec()
    };
    let rounded: Vec<Vec<u32>> = pages.iter().map(|page| update(page)).collect();
    for (i, one) in rounded.iter().enumerate() {
        // Some were rounded one way, some the other; and again the same way.
        assert!(one.iter().any(|w| *w != one[0]), "page {i}: nothing was left to chance");
        assert!(rounded[i + 1..].iter().all(|other| other != one), "page {i} draws another page's chances");
    }
    assert_eq!(update(pages[1]), rounded[1]);
}
