//! Activation functions of the MLP, gated or plain: SiLU, GELU by erf, GELU by tanh; and gpt-oss's clamped SwiGLU.

use super::row_vec4s::{self, BASELINE, ROWS};
use super::shapes::ModelShape;
use super::value::of_width;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, Recording, Shader, Slot, Variant, grid_1d};
use crate::rng::Rng;

/// Activation function f of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub enum Activation {
    /// x·σ(x).
    Silu,
    /// x·Φ(x), by erf.
    Gelu,
    /// GELU's tanh form (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// (v + 1)·g·σ(α·g) of a gated MLP, with g = min(gate, c), and v = up between −c and c: clamped values have no gradient
    /// (`GptOssExperts` in transformers' `modeling_gpt_oss.py`).
    ClampedSwiglu {
        /// c, `swiglu_limit`.
        limit: f32,
        /// α.
        alpha: f32,
    },
}

/// Shape of an MLP's inner part: y = f(u), or f(gate)·up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MlpShape {
    /// T, the number of tokens.
    pub tokens: usize,
    /// F, the inner width.
    pub width: usize,
    /// Whether u is (T, 2F), gate and up side by side; else u is (T, F).
    pub gated: bool,
    /// Activation function f.
    pub activation: Activation,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ActivationParams {
    n: u32,
    width: u32,
    gated: u32,
    pad: u32,
}

fn params(mlp: &MlpShape) -> ActivationParams {
    ActivationParams {
        n: (mlp.tokens * mlp.width) as u32,
        width: mlp.width as u32,
        gated: u32::from(mlp.gated),
        pad: 0,
    }
}

fn shader(entry: &'static str, activation: Activation, value_width: usize) -> Shader {
    let shader = Shader::new("activation", entry).with("WG", 64.0);
    let shader = match activation {
        Activation::Silu => shader.with("KIND", 0.0),
        Activation::Gelu => shader.with("KIND", 1.0),
        Activation::GeluTanh => shader.with("KIND", 2.0),
        Activation::ClampedSwiglu { limit, alpha } => {
            shader.with("KIND", 3.0).with("LIMIT", f64::from(limit)).with("ALPHA", f64::from(alpha))
        }
    };
    of_width(shader, value_width)
}

fn run(rec: &mut Recording, entry: &'static str, mlp: &MlpShape, slots: &[&Slot], flops: usize) {
    assert!(mlp.gated || !matches!(mlp.activation, Activation::ClampedSwiglu { .. }), "clamped SwiGLU has a gate");
    let (n, value_width) = (mlp.tokens * mlp.width, row_vec4s::value_width(rec, &[mlp.width]));
    let shader = shader(entry, mlp.activation, value_width);
    rec.dispatch(&shader, &params(mlp), slots, grid_1d(n / value_width, 64), (flops * n) as u64);
}

/// Computes y (T, F) from u.
pub fn activation_fwd(rec: &mut Recording, mlp: &MlpShape, u: &Slot, y: &Slot) {
    run(rec, "activation_fwd", mlp, &[u, y], 8);
}

/// Computes d_u from u and d_y (T, F).
pub fn activation_bwd(rec: &mut Recording, mlp: &MlpShape, u: &Slot, d_y: &Slot, d_u: &Slot) {
    run(rec, "activation_bwd", mlp, &[u, d_y, d_u], 16);
}

/// Activation kernels: `activation_fwd`, `activation_bwd`.
pub struct ActivationKernels;

const CLAMPED: Activation = Activation::ClampedSwiglu { limit: 2.5, alpha: 1.702 };
const KINDS: [Activation; 4] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, CLAMPED];

impl Kernel for ActivationKernels {
    fn name(&self) -> &'static str {
        "activation"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["activation"]
    }
    fn variants(&self) -> Vec<Shader> {
        let entries = ["activation_fwd", "activation_bwd"].map(|entry| [1, 4].map(|value_width| (entry, value_width)));
        let all =
            KINDS.iter().flat_map(|&kind| entries.iter().flatten().map(move |&(entry, n)| shader(entry, kind, n)));
        all.collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("ActivationParams", size_of::<ActivationParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let baseline = [(1, 1, true), (3, 65, true), (64, 5, false), (70, 64, true)];
        let rows = [(1, 4, true), (3, 68, true), (64, 12, false), (70, 64, true)];
        let each = baseline.map(|shape| (shape, BASELINE)).into_iter().chain(rows.map(|shape| (shape, ROWS)));
        let all = each.flat_map(|((tokens, width, gated), allowed)| {
            let kinds = KINDS.into_iter().filter(move |kind| gated || *kind != CLAMPED);
            kinds.map(move |activation| MlpCase { mlp: MlpShape { tokens, width, gated, activation }, allowed })
        });
        all.map(|case| Box::new(case) as Box<dyn Case>).collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
        let mlp = MlpShape { tokens: t, width: model.d_ff, gated: true, activation: Activation::Silu };
        vec![Box::new(MlpCase { mlp, allowed: row_vec4s::taken(caps) })]
    }
    fn variant_cases(&self, variant: Variant, _: &Caps) -> Vec<Box<dyn Case>> {
        let case = |activation| -> Box<dyn Case> {
            Box::new(MlpCase { mlp: MlpShape { tokens: 3, width: 68, gated: true, activation }, allowed: ROWS })
        };
        if variant == Variant::Rows { KINDS.map(case).into() } else { Vec::new() }
    }
}

struct MlpCase {
    mlp: MlpShape,
    allowed: &'static [Variant],
}

/// Computes Φ(x) by Simpson's rule over the density, independently of erf.
fn phi(x: f64) -> f64 {
    let density = |z: f64| (-0.5 * z * z).exp() / std::f64::consts::TAU.sqrt();
    let n = 400;
    let h = x / f64::from(n);
    let inner: f64 = (1..n).map(|i| density(f64::from(i) * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    0.5 + h / 3.0 * (density(0.0) + inner + density(x))
}

/// Computes y of a gate and an up, by definition, and its derivatives.
fn gated(kind: Activation, gate: f64, up: f64) -> (f64, [f64; 2]) {
    let Activation::ClampedSwiglu { limit, alpha } = kind else {
        let f = activate(kind, gate);
        return (f * up, [slope(kind, gate) * up, f]);
    };
    let (limit, alpha) = (f64::from(limit), f64::from(alpha));
    let (g, v) = (gate.min(limit), up.max(-limit).min(limit) + 1.0);
    let s = 1.0 / (1.0 + (-alpha * g).exp());
    let d_gate = if gate <= limit { v * (s + alpha * g * s * (1.0 - s)) } else { 0.0 };
    (v * g * s, [d_gate, if up.abs() <= limit { g * s } else { 0.0 }])
}

fn activate(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::ClampedSwiglu { .. } => unreachable!("clamped SwiGLU has a gate"),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * phi(x),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
    }
}

fn slope(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::ClampedSwiglu { .. } => unreachable!("clamped SwiGLU has a gate"),
        Activation::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            s * (1.0 + x * (1.0 - s))
        }
        Activation::Gelu => phi(x) + x * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt(),
        Activation::GeluTanh => {
            let c = (2.0 / std::f64::consts::PI).sqrt();
            let h = (c * (x + 0.044715 * x.powi(3))).tanh();
            0.5 * (1.0 + h) + 0.5 * x * (1.0 - h * h) * c * (1.0 + 3.0 * 0.044715 * x * x)
        }
    }
}

impl Case for MlpCase {
    fn label(&self) -> String {
        let MlpShape { tokens, width, gated, activation } = self.mlp;
        let (gated, suffix) = (if gated { " gated" } else { "" }, row_vec4s::suffix(self.allowed));
        format!("T={tokens} F={width} {activation:?}{gated}{suffix}")
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let n = self.mlp.tokens * self.mlp.width * if self.mlp.gated { 2 } else { 1 };
        // Wide enough for both branches of erf.
        let mut u: Vec<f32> = (0..n).map(|_| 1.7 * rng.normal()).collect();
        u[0] = 1.0; // one output is near 1, because errors are relative to the largest; where all are near zero, 1 + tanh loses its digits in f32
        vec![HostTensor::F32(u)]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (kind, f) = (self.mlp.activation, self.mlp.width);
        if !self.mlp.gated {
            return vec![x[0].iter().map(|&u| activate(kind, u)).collect()];
        }
        let row = |u: &[f64]| (0..f).map(|i| gated(kind, u[i], u[f + i]).0).collect::<Vec<_>>();
        vec![x[0].chunks(2 * f).flat_map(row).collect()]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (kind, f) = (self.mlp.activation, self.mlp.width);
        if !self.mlp.gated {
            return vec![x[0].iter().zip(&d_y[0]).map(|(&u, d)| slope(kind, u) * d).collect()];
        }
        let row = |(u, d): (&[f64], &[f64])| {
            let half = |part: usize| (0..f).map(move |i| gated(kind, u[i], u[f + i]).1[part] * d[i]);
            half(0).chain(half(1)).collect::<Vec<_>>()
        };
        vec![x[0].chunks(2 * f).zip(d_y[0].chunks(f)).flat_map(row).collect()]
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.mlp.tokens * self.mlp.width]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let (y, d_u) =
            (rec.gpu().alloc_activation(self.mlp.tokens * self.mlp.width), rec.gpu().alloc_activation(x[0].len()));
        rec.with_variants(self.allowed, |rec| {
            activation_fwd(rec, &self.mlp, &x[0], &y);
            activation_bwd(rec, &self.mlp, &x[0], &d_y[0], &d_u);
        });
        CaseOutputs { y: vec![y], d_x: vec![Some(d_u)] }
    }
    fn reduction_len(&self) -> usize {
        1
    }
    fn cost(&self) -> Cost {
        let n = (self.mlp.tokens * self.mlp.width) as u64;
        Cost { bytes: 4 * 9 * n, flops: 24 * n }
    }
}
