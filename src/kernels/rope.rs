//! Rotary position embedding (RoPE), in place, forward and backward: default, linear and llama3 scaling, whole or partial heads.

use std::f64::consts::TAU;

use super::shapes::ModelShape;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, CountedWork, Gpu, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

/// Parameters of RoPE's inverse frequencies.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RopeConfig {
    /// θ, the base of the frequencies.
    pub theta: f64,
    /// Leading dimensions of a head that rotate (even, ≤ E); pairs are (i, i + rotary_dim/2).
    pub rotary_dim: usize,
    /// Scaling of the frequencies.
    pub scaling: RopeScaling,
}

/// Scaling of RoPE's inverse frequencies.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
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
}

/// Computes the inverse frequencies (rotary_dim/2), as transformers does (`modeling_rope_utils.py`).
pub fn inverse_frequencies(rope: &RopeConfig) -> Vec<f64> {
    let dim = rope.rotary_dim as f64;
    let plain = (0..rope.rotary_dim / 2).map(|i| rope.theta.powf(-(2.0 * i as f64) / dim));
    let scale = |f: f64| match rope.scaling {
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
    };
    plain.map(scale).collect()
}

/// RoPE cache on the device: cos and sin of every angle, per position.
#[derive(Debug, Clone)]
pub struct RopeCache {
    table: Slot,
    half: usize,
}

impl RopeCache {
    /// Computes and uploads cos and sin for positions below `n_positions`.
    pub fn new(gpu: &Gpu, rope: &RopeConfig, n_positions: usize) -> Self {
        let frequencies = inverse_frequencies(rope);
        let mut table = Vec::with_capacity(n_positions * frequencies.len() * 2);
        for position in 0..n_positions {
            for f in &frequencies {
                let angle = position as f64 * f;
                table.extend([angle.cos() as f32, angle.sin() as f32]);
            }
        }
        Self { table: gpu.upload(&table), half: frequencies.len() }
    }
}

/// Heads to rotate: `heads` of `head_dim` elements side by side from `start`, in rows of `stride` elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeHeads {
    /// T, the number of tokens.
    pub tokens: usize,
    /// Number of heads; query and key heads count together, where they are neighbours.
    pub heads: usize,
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
    pad: u32,
}

fn shader() -> Shader {
    Shader::new("rope", "rope").with("WG", 64.0)
}

/// Rotates x in place by its tokens' positions; `backward` rotates gradients in the other direction.
pub fn rope(rec: &mut Recording, heads: &RopeHeads, backward: bool, positions: &Slot, turns: &RopeCache, x: &Slot) {
    let n = heads.tokens * heads.heads * turns.half;
    let params = RopeParams {
        n: n as u32,
        heads: heads.heads as u32,
        head_dim: heads.head_dim as u32,
        half: turns.half as u32,
        start: heads.start as u32,
        stride: heads.stride as u32,
        sign: if backward { -1.0 } else { 1.0 },
        pad: 0,
    };
    // Reads and writes pairs, and reads their angles: the table's rows are shared by heads.
    let work = CountedWork::new(6 * n as u64, 16 * n as u64 + 8 * (heads.tokens * turns.half) as u64);
    rec.dispatch(&shader(), &params, &[positions, &turns.table, x], grid_1d(n, 64), work);
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
        let make = |tokens, heads, head_dim, rotary_dim, scaling| {
            let heads = RopeHeads { tokens, heads, head_dim, start: 3, stride: heads * head_dim + 7 };
            Box::new(RopeCase { heads, rope: RopeConfig { theta: 10_000.0, rotary_dim, scaling } }) as Box<dyn Case>
        };
        let llama3 = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_max_positions: 64.0 };
        vec![
            make(1, 1, 2, 2, RopeScaling::Default),
            make(33, 3, 16, 16, RopeScaling::Default),
            make(9, 2, 10, 6, RopeScaling::Linear { factor: 8.0 }),
            make(20, 5, 16, 16, llama3),
        ]
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        let heads = model.n_heads + model.n_kv_heads;
        let heads = RopeHeads { tokens: t, heads, head_dim: model.head_dim, start: 0, stride: model.qkv_width() };
        let rope = RopeConfig { theta: 10_000.0, rotary_dim: model.head_dim, scaling: RopeScaling::Default };
        vec![Box::new(RopeCase { heads, rope })]
    }
}

struct RopeCase {
    heads: RopeHeads,
    rope: RopeConfig,
}

impl RopeCase {
    fn turn(&self, x: &[f64], sign: f64) -> Vec<f64> {
        let (mut y, half) = (x.to_vec(), self.rope.rotary_dim / 2);
        for t in 0..self.heads.tokens {
            for head in 0..self.heads.heads {
                let at = self.heads.start + t * self.heads.stride + head * self.heads.head_dim;
                for (i, f) in inverse_frequencies(&self.rope).iter().enumerate() {
                    let (sin, cos) = ((t + 1) as f64 * f).sin_cos();
                    let (a, b) = (x[at + i], x[at + half + i]);
                    y[at + i] = a * cos - sign * b * sin;
                    y[at + half + i] = b * cos + sign * a * sin;
                }
            }
        }
        y
    }
}

impl Case for RopeCase {
    fn label(&self) -> String {
        let RopeHeads { tokens, heads, head_dim, start, stride } = self.heads;
        let RopeConfig { theta, rotary_dim, ref scaling } = self.rope;
        let scaling = match scaling {
            RopeScaling::Default => "",
            RopeScaling::Linear { .. } => " linear",
            RopeScaling::Llama3 { .. } => " llama3",
        };
        format!("T={tokens} H={heads} E={head_dim} x={start}+{stride} rotary={rotary_dim} theta={theta}{scaling}")
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
        let positions: Vec<u32> = (1..=self.heads.tokens as u32).collect();
        let (positions, turns) = (gpu.upload(&positions), RopeCache::new(gpu, &self.rope, self.heads.tokens + 1));
        let (y, d_x) = (gpu.alloc_activation(x[0].len()), gpu.alloc_activation(x[0].len()));
        rec.copy(&x[0], &y);
        rec.copy(&d_y[0], &d_x);
        rope(rec, &self.heads, false, &positions, &turns, &y);
        rope(rec, &self.heads, true, &positions, &turns, &d_x);
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
