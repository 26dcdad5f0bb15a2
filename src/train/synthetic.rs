//! Model with random weights, and rows of random tokens, for benchmarks.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::data::batch::{Example, Sequence};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernels::shapes::ModelShape;
use crate::model::decoder::Decoder;
use crate::model::description::{ModelConfig, TensorSpec};
use crate::model::load::{LoadOptions, LoraSpec, TrainMode, linear_modules};
use crate::model::weights::{BaseDtype, TrainOptions, WeightSource};
use crate::rng::Rng;
use crate::train::settings::TrainDefaults;

/// Standard deviation of the weights.
const STD: f32 = 0.02;
/// Rank R of the adapter; `SCALE` is α/R. Both are the paper's.
const RANK: usize = 8;
const SCALE: f32 = 2.0;

/// Source of random weights.
struct RandomSource {
    bf16: bool,
}

impl WeightSource for RandomSource {
    fn is_bf16(&self, _: &TensorSpec) -> bool {
        self.bf16
    }
    fn values(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let n = spec.shape.iter().product();
        if spec.shape.len() == 1 {
            return Ok(vec![1.0; n]);
        }
        let mut rng = Rng::new(n as u64, 11);
        // Uniform values, because a large model has too many weights for normally distributed ones to be drawn quickly.
        let bound = STD * 3.0f32.sqrt();
        let value = |_| bound * (2.0 * rng.next_f32() - 1.0);
        let round = |v: f32| if self.bf16 { half::bf16::from_f32(v).to_f32() } else { v };
        Ok((0..n).map(value).map(round).collect())
    }
}

/// Returns the description of a model of this shape.
///
/// # Errors
/// None for the shapes of [`crate::kernels::shapes`].
pub fn description(shape: &ModelShape) -> Result<ModelConfig> {
    ModelConfig::from_json(shape.name, &shape.config_json())
}

/// Creates a decoder with random weights: every parameter is trained in f32, or only an adapter on all linear modules of a bf16 base.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub fn decoder(gpu: &Gpu, d: &ModelConfig, full: bool, n_positions: usize) -> Result<Decoder> {
    let source: Rc<dyn WeightSource> = Rc::new(RandomSource { bf16: !full });
    let options = LoadOptions {
        base: BaseDtype::Auto,
        trained: if full { TrainMode::Full } else { TrainMode::Lora },
        lora: (!full).then(|| adapter(d)),
        training: TrainOptions { optim: Some(TrainDefaults::OPTIM), ..TrainOptions::NONE },
        n_positions,
    };
    Decoder::load(gpu, d, &source, &options)
}

fn adapter(d: &ModelConfig) -> LoraSpec {
    let mut rng = Rng::new(0, 12);
    let mut modules = BTreeMap::new();
    for m in linear_modules(d) {
        let mut some = |n: usize| (0..n).map(|_| STD * rng.normal()).collect::<Vec<f32>>();
        modules.insert(m.name.clone(), (some(RANK * m.n_in), some(m.n_out * RANK)));
    }
    LoraSpec { rank: RANK, scale: SCALE, modules, ..LoraSpec::default() }
}

/// Lengths of a pair's sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowLengths {
    /// Equal lengths; the first third of each sequence is an instruction of its own.
    Equal,
    /// Equal lengths; the first two thirds are an instruction that both sequences share.
    Shared,
    /// Lengths evenly from a quarter of the full length up to it; the longest occurs.
    Mixed,
}

/// Creates pairs of two sequences of at most `length` tokens.
pub fn pairs(n: usize, length: usize, vocab: usize, lengths: RowLengths) -> Vec<Example> {
    let mut rng = Rng::new(n as u64, 13);
    let mut ids = |n: usize| (0..n).map(|_| rng.below(vocab as u32)).collect::<Vec<u32>>();
    let mut rows = Vec::new();
    for row in 0..n {
        let shared = ids(2 * length / 3);
        let sequence = |side: usize| match lengths {
            RowLengths::Equal => Sequence::new(ids(length), (length / 3).max(1)),
            RowLengths::Shared => {
                let response_start = shared.len();
                Sequence::new([shared.clone(), ids(length - response_start)].concat(), response_start)
            }
            RowLengths::Mixed => {
                let (place, places) = (2 * row + side, (2 * n).saturating_sub(1).max(1));
                let n = length - 3 * length / 4 * place / places;
                Sequence::new(ids(n), (n / 3).max(1))
            }
        };
        rows.push(Example { row, sequences: [0, 1].map(sequence).into(), desirable: None });
    }
    rows
}
