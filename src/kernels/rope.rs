//! Rotary position embedding (RoPE), in place, forward and backward: every scaling of [`RopeScaling`], whole or partial heads, halves or
//! neighbours as pairs, and a query scale that depends on the position.

use std::f64::consts::TAU;

use super::shapes::ModelShape;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, CountedWork, Gpu, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

/// Parameters of a rotary table.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RopeConfig {
    /// θ, the base of the frequencies.
    pub theta: f64,
    /// Leading dimensions of a head that rotate (even, ≤ E).
    pub rotary_dim: usize,
    /// Whether the pairs are neighbours, (2i, 2i + 1), as in GLM-4 (`rotate_half` in transformers' `modeling_glm4.py`). Otherwise they are
    /// (i, i + rotary_dim/2) (`modeling_llama.py`).
    pub interleaved: bool,
    /// Scaling of the frequencies.
    pub scaling: RopeScaling,
    /// Factor on rotated queries that depends on the position (Ministral 3).
    pub query_scale: Option<QueryScale>,
}

impl RopeConfig {
    /// Returns an unscaled table whose pairs are halves of the rotating dimensions.
    pub fn plain(theta: f64, rotary_dim: usize) -> Self {
        Self { theta, rotary_dim, interleaved: false, scaling: RopeScaling::Default, query_scale: None }
    }
}

/// Factor 1 + β·ln(1 + ⌊position/original⌋) on queries behind RoPE: `get_llama_4_attn_scale` in transformers' `modeling_ministral3.py`.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct QueryScale {
    /// β, `llama_4_scaling_beta`.
    pub beta: f64,
    /// `original_max_position_embeddings`: positions below it have the factor 1.
    pub original_max_positions: f64,
}

impl QueryScale {
    /// Returns the factor at a position.
    pub fn at(&self, position: usize) -> f64 {
        1.0 + self.beta * (position as f64 / self.original_max_positions).floor().ln_1p()
    }
}

/// Scaling of RoPE's inverse frequencies.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub enum RopeScaling {
    /// Unscaled frequencies.
    Default,
    /// All frequencies divided by the factor.
    Linear {
        /// Divisor of all frequencies.
        factor: f64,
    },
    /// Scaling of Llama 3.1: low frequencies are divided by the factor, high ones kept, those between interpolated.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// `low_freq_factor`.
        low: f64,
        /// `high_freq_factor`.
        high: f64,
        /// `original_max_position_embeddings`.
        original_max_positions: f64,
    },
    /// YaRN (arXiv 2309.00071): low frequencies are divided by the factor, high ones kept, those between interpolated by their index.
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Rotations over the original context at and above which a frequency is kept.
        beta_fast: f64,
        /// Rotations over the original context at and below which a frequency is divided.
        beta_slow: f64,
        /// Whether the ends of the ramp are rounded to whole indices.
        truncate: bool,
        /// `original_max_position_embeddings`.
        original_max_positions: f64,
        /// Factor on cos and sin, `attention_factor`.
        attention_factor: f64,
    },
    /// Proportional (Gemma 4): only the first pairs rotate, with the frequencies that they would have if all did.
    Proportional {
        /// Number of pairs that rotate.
        rotating_pairs: usize,
        /// Divisor of all frequencies.
        factor: f64,
    },
    /// LongRoPE (arXiv 2402.13753): each frequency has a divisor for short sequences, and another for long ones.
    LongRope {
        /// Divisors for sequences of at most `original_max_positions` tokens.
        short: Vec<f64>,
        /// Divisors for longer sequences, at all of their positions.
        long: Vec<f64>,
        /// `original_max_position_embeddings`.
        original_max_positions: usize,
        /// Factor on cos and sin for both kinds of sequences, `attention_factor`.
        attention_factor: f64,
    },
}

impl RopeScaling {
    /// Returns the length in tokens above which a sequence uses other frequencies at all of its positions.
    pub fn long_above(&self) -> Option<usize> {
        match self {
            Self::LongRope { original_max_positions, .. } => Some(*original_max_positions),
            _ => None,
        }
    }

    /// Returns the factor on cos and sin.
    fn attention_factor(&self) -> f64 {
        match self {
            Self::Yarn { attention_factor, .. } | Self::LongRope { attention_factor, .. } => *attention_factor,
            Self::Default | Self::Linear { .. } | Self::Llama3 { .. } | Self::Proportional { .. } => 1.0,
        }
    }
}

/// Computes the inverse frequencies (rotary_dim/2), as transformers does (`modeling_rope_utils.py`: `_compute_linear_scaling_rope_parameters`,
/// `_compute_llama3_parameters`, `_compute_yarn_parameters`, `_compute_longrope_parameters`, `_compute_proportional_rope_parameters`).
/// `long`: those of sequences longer than [`RopeScaling::long_above`].
pub fn inverse_frequencies(rope: &RopeConfig, long: bool) -> Vec<f64> {
    let dim = rope.rotary_dim as f64;
    let plain = (0..rope.rotary_dim / 2).map(|i| rope.theta.powf(-(2.0 * i as f64) / dim));
    let scale = |(i, f): (usize, f64)| match &rope.scaling {
        RopeScaling::Default => f,
        RopeScaling::Linear { factor } => f / factor,
        RopeScaling::Llama3 { factor, low, high, original_max_positions } => {
            let wavelength = TAU / f;
            let smooth = (original_max_positions / wavelength - low) / (high - low);
            if wavelength > original_max_positions / low {
                f / factor
            } else if wavelength < original_max_positions / high {
                f
            } else {
                (1.0 - smooth) * f / factor + smooth * f
            }
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_max_positions, .. } => {
            // Index of the frequency that makes this many rotations over the original context.
            let index_of = |n: f64| dim * (original_max_positions / (n * TAU)).ln() / (2.0 * rope.theta.ln());
            let (low, high) = (index_of(*beta_fast), index_of(*beta_slow));
            let (low, high) = if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
            let (low, high) = (low.max(0.0), high.min(dim - 1.0));
            let width = if low == high { 0.001 } else { high - low };
            let divided = ((i as f64 - low) / width).clamp(0.0, 1.0);
            f * (1.0 - divided) + f / factor * divided
        }
        RopeScaling::Proportional { rotating_pairs, factor } => {
            if i < *rotating_pairs {
                f / factor
            } else {
                0.0
            }
        }
        RopeScaling::LongRope { short, long: long_divisors, .. } => f / if long { long_divisors[i] } else { short[i] },
    };
    plain.enumerate().map(scale).collect()
}

/// RoPE cache on the device: cos and sin of every angle, per position.
#[derive(Debug, Clone)]
pub struct RopeCache {
    table: Slot,
    /// Table of the queries, where they have a scale of their own.
    query_table: Option<Slot>,
    half: usize,
    interleaved: bool,
}

impl RopeCache {
    /// Computes and uploads cos and sin for positions below `n_positions`. With LongRoPE, two rows per position: [`rotary_row`].
    pub fn new(gpu: &Gpu, rope: &RopeConfig, n_positions: usize) -> Self {
        let lengths: &[bool] = if rope.scaling.long_above().is_some() { &[false, true] } else { &[false] };
        let frequencies: Vec<Vec<f64>> = lengths.iter().map(|&long| inverse_frequencies(rope, long)).collect();
        let table = |scale: &dyn Fn(usize) -> f64| {
            let mut table = Vec::with_capacity(n_positions * rope.rotary_dim * lengths.len());
            for position in 0..n_positions {
                let scale = scale(position);
                for f in frequencies.iter().flatten() {
                    let (sin, cos) = (position as f64 * f).sin_cos();
                    table.extend([(scale * cos) as f32, (scale * sin) as f32]);
                }
            }
            gpu.upload(&table)
        };
        let factor = rope.scaling.attention_factor();
        let query_scale = rope.query_scale.as_ref();
        Self {
            table: table(&|_| factor),
            query_table: query_scale.map(|scale| table(&|position| factor * scale.at(position))),
            half: rope.rotary_dim / 2,
            interleaved: rope.interleaved,
        }
    }
}

/// Returns the row of a [`RopeCache`] for a position in a sequence of `length` tokens. `long_above`: [`RopeScaling::long_above`].
pub fn rotary_row(position: u32, length: usize, long_above: Option<usize>) -> u32 {
    long_above.map_or(position, |limit| 2 * position + u32::from(length > limit))
}

/// Heads to rotate: `heads` of `head_dim` elements side by side from `start`, in rows of `stride` elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeHeads {
    /// T, the number of tokens.
    pub tokens: usize,
    /// Number of heads; query and key heads count together, where they are neighbours.
    pub heads: usize,
    /// Number of query heads, which come first.
    pub queries: usize,
    /// E, the size of a head.
    pub head_dim: usize,
    /// First element.
    pub start: usize,
    /// Elements per token.
    pub stride: usize,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RopeParams {
    n: u32,
    heads: u32,
    head_dim: u32,
    half: u32,
    start: u32,
    stride: u32,
    sign: f32,
    interleaved: u32,
}

fn shader() -> Shader {
    Shader::new("rope", "rope").with("WG", 64.0)
}

/// Rotates x in place; `rows` (T) are the tokens' rows of the cache. `backward` rotates gradients in the other direction.
pub fn rope(rec: &mut Recording, heads: &RopeHeads, backward: bool, rows: &Slot, turns: &RopeCache, x: &Slot) {
    let mut rotate = |first: usize, count: usize, table: &Slot| {
        let n = heads.tokens * count * turns.half;
        let params = RopeParams {
            n: n as u32,
            heads: count as u32,
            head_dim: heads.head_dim as u32,
            half: turns.half as u32,
            start: (heads.start + first * heads.head_dim) as u32,
            stride: heads.stride as u32,
            sign: if backward { -1.0 } else { 1.0 },
            interleaved: u32::from(turns.interleaved),
        };
        // Reads and writes pairs, and reads their angles: the table's rows are shared by heads.
        let work = CountedWork::new(6 * n as u64, 16 * n as u64 + 8 * (heads.tokens * turns.half) as u64);
        rec.dispatch(&shader(), &params, &[rows, table, x], grid_1d(n, 64), work);
    };
    match &turns.query_table {
        None => rotate(0, heads.heads, &turns.table),
        Some(query_table) => {
            rotate(0, heads.queries, query_table);
            rotate(heads.queries, heads.heads - heads.queries, &turns.table);
        }
    }
}

/// RoPE kernel: `rope`.
pub struct RopeKernels;

impl Kernel for RopeKernels {
    fn name(&self) -> &'static str {
        "rope"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["rope"]
    }
    fn variants(&self) -> Vec<Shader> {
        vec![shader()]
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("RopeParams", size_of::<RopeParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let make = |tokens, heads, head_dim, rope| {
            let heads =
                RopeHeads { tokens, heads, queries: heads / 2, head_dim, start: 3, stride: heads * head_dim + 7 };
            Box::new(RopeCase { heads, rope }) as Box<dyn Case>
        };
        let plain = |rotary_dim| RopeConfig::plain(10_000.0, rotary_dim);
        let scaled = |rotary_dim, scaling| RopeConfig { scaling, ..plain(rotary_dim) };
        let llama3 = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_max_positions: 64.0 };
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            original_max_positions: 64.0,
            attention_factor: 1.25,
        };
        let long = RopeScaling::LongRope {
            short: vec![1.0, 1.5, 2.0],
            long: vec![1.0, 4.0, 9.0],
            original_max_positions: 8,
            attention_factor: 1.125,
        };
        let query_scale = Some(QueryScale { beta: 0.5, original_max_positions: 8.0 });
        vec![
            make(1, 1, 2, plain(2)),
            make(33, 3, 16, plain(16)),
            make(9, 2, 10, scaled(6, RopeScaling::Linear { factor: 8.0 })),
            make(20, 5, 16, scaled(16, llama3)),
            make(21, 3, 16, scaled(16, yarn.clone())),
            make(17, 2, 8, scaled(6, long)),
            make(13, 3, 10, RopeConfig { interleaved: true, ..plain(6) }),
            make(35, 5, 8, RopeConfig { query_scale, ..scaled(8, yarn) }),
            make(19, 3, 16, scaled(16, RopeScaling::Proportional { rotating_pairs: 2, factor: 1.0 })),
            make(5, 2, 10, scaled(10, RopeScaling::Proportional { rotating_pairs: 3, factor: 4.0 })),
        ]
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        let (queries, heads) = (model.n_heads, model.n_heads + model.n_kv_heads);
        let heads =
            RopeHeads { tokens: t, heads, queries, head_dim: model.head_dim, start: 0, stride: model.qkv_width() };
        let plain = RopeConfig::plain(10_000.0, model.head_dim);
        let neighbours = RopeConfig { interleaved: true, ..plain.clone() };
        [plain, neighbours].map(|rope| Box::new(RopeCase { heads, rope }) as Box<dyn Case>).into()
    }
}

/// Case of rotated heads. Token t is at position t + 1; with LongRoPE, every second token belongs to a long sequence.
struct RopeCase {
    heads: RopeHeads,
    rope: RopeConfig,
}

impl RopeCase {
    fn is_long(&self, t: usize) -> bool {
        self.rope.scaling.long_above().is_some() && t % 2 == 1
    }

    /// Rotates by the formulas of `apply_rotary_pos_emb` in transformers' `modeling_llama.py`, `modeling_phi3.py` (the first `rotary_dim`
    /// dimensions) and `modeling_glm4.py` (neighbouring pairs).
    fn turn(&self, x: &[f64], sign: f64) -> Vec<f64> {
        let (mut y, half) = (x.to_vec(), self.rope.rotary_dim / 2);
        for t in 0..self.heads.tokens {
            let frequencies = inverse_frequencies(&self.rope, self.is_long(t));
            for head in 0..self.heads.heads {
                let at = self.heads.start + t * self.heads.stride + head * self.heads.head_dim;
                let scale = self.rope.query_scale.filter(|_| head < self.heads.queries).map_or(1.0, |s| s.at(t + 1));
                let scale = scale * self.rope.scaling.attention_factor();
                for (i, f) in frequencies.iter().enumerate() {
                    let (sin, cos) = ((t + 1) as f64 * f).sin_cos();
                    let (first, second) =
                        if self.rope.interleaved { (at + 2 * i, at + 2 * i + 1) } else { (at + i, at + half + i) };
                    let (a, b) = (x[first], x[second]);
                    y[first] = scale * (a * cos - sign * b * sin);
                    y[second] = scale * (b * cos + sign * a * sin);
                }
            }
        }
        y
    }
}

impl Case for RopeCase {
    fn label(&self) -> String {
        let RopeHeads { tokens, heads, head_dim, start, stride, .. } = self.heads;
        let RopeConfig { theta, rotary_dim, interleaved, ref scaling, query_scale } = self.rope;
        let scaling = match scaling {
            RopeScaling::Default => "",
            RopeScaling::Linear { .. } => " linear",
            RopeScaling::Llama3 { .. } => " llama3",
            RopeScaling::Yarn { .. } => " yarn",
            RopeScaling::Proportional { .. } => " proportional",
            RopeScaling::LongRope { .. } => " longrope",
        };
        let pairs = if interleaved { " interleaved" } else { "" };
        let scale = if query_scale.is_some() { " query scale" } else { "" };
        format!(
            "T={tokens} H={heads} E={head_dim} x={start}+{stride} rotary={rotary_dim} theta={theta}{scaling}{pairs}{scale}"
        )
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        vec![HostTensor::normal(rng, self.heads.start + self.heads.tokens * self.heads.stride)]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![self.turn(&x[0], 1.0)]
    }
    fn backward(&self, _: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![self.turn(&d_y[0], -1.0)]
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.heads.start + self.heads.tokens * self.heads.stride]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let gpu = rec.gpu();
        let limit = self.rope.scaling.long_above();
        let length = |t| if self.is_long(t) { usize::MAX } else { 0 };
        let rows: Vec<u32> = (0..self.heads.tokens).map(|t| rotary_row(t as u32 + 1, length(t), limit)).collect();
        let (rows, turns) = (gpu.upload(&rows), RopeCache::new(gpu, &self.rope, self.heads.tokens + 1));
        let (y, d_x) = (gpu.alloc_activation(x[0].len()), gpu.alloc_activation(x[0].len()));
        rec.copy(&x[0], &y);
        rec.copy(&d_y[0], &d_x);
        rope(rec, &self.heads, false, &rows, &turns, &y);
        rope(rec, &self.heads, true, &rows, &turns, &d_x);
        CaseOutputs { y: vec![y], d_x: vec![Some(d_x)] }
    }
    fn reduction_len(&self) -> usize {
        2
    }
    fn cost(&self) -> Cost {
        let n = (self.heads.tokens * self.heads.heads * self.rope.rotary_dim) as u64;
        Cost { bytes: 2 * 12 * n, flops: 6 * n }
    }
}
