//! Attention sinks: a learnt logit per query head that joins the softmax and has no value (`sinks` of `GptOssAttention` in transformers'
//! `modeling_gpt_oss.py`).
//!
//! They are a pass behind attention's forward kernels, over o and lse, so that all implementations of attention have them. Attention's
//! backward kernels need no change, because they compute probabilities from lse.

use super::column_sum::column_sum;
use super::shapes::ModelShape;
use super::value::{in_values, width};
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, CountedWork, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

/// Rows of attention to which sinks are added: T tokens, H query heads, and E, the size of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkRows {
    /// T, the number of tokens.
    pub tokens: usize,
    /// H, the number of query heads.
    pub heads: usize,
    /// E, the size of a head.
    pub head_dim: usize,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SinksParams {
    n: u32,
    heads: u32,
    width: u32,
    pad: u32,
}

fn shader_fwd(head_dim: usize) -> Shader {
    in_values(Shader::new("attention_sinks", "attention_sinks_fwd").with("WG", 64.0), &[head_dim])
}

fn shader_bwd() -> Shader {
    Shader::new("attention_sinks", "attention_sinks_bwd").with("WG", 64.0)
}

impl SinkRows {
    fn params(&self, n: usize) -> SinksParams {
        SinksParams { n: n as u32, heads: self.heads as u32, width: self.head_dim as u32, pad: 0 }
    }
}

/// Adds the sinks (H) to attention over keys alone: scales its outputs o (T, H·E) in place, and computes `lse` (T, H) with the sinks from
/// `lse_keys` (T, H) without them.
pub fn attention_sinks_fwd(rec: &mut Recording, rows: &SinkRows, sinks: &Slot, lse_keys: &Slot, o: &Slot, lse: &Slot) {
    let (n, n_rows) = (rows.tokens * rows.heads * rows.head_dim, rows.tokens * rows.heads);
    let values = n / width(&[rows.head_dim]);
    let work = CountedWork::new(n as u64, 4 * (2 * n + 2 * n_rows) as u64);
    let slots = [sinks, lse_keys, o, lse];
    rec.dispatch(&shader_fwd(rows.head_dim), &rows.params(values), &slots, grid_1d(values, 64), work);
}

/// Adds to `d_sinks` (H) the gradient of the sinks, from lse (T, H) with them, and `delta` (T, H), the products d_o·o of attention's
/// backward pass. Overwrites `delta`.
pub fn attention_sinks_bwd(
    rec: &mut Recording,
    rows: &SinkRows,
    sinks: &Slot,
    lse: &Slot,
    delta: &Slot,
    d_sinks: &Slot,
) {
    let n = rows.tokens * rows.heads;
    let work = CountedWork::new(3 * n as u64, 12 * n as u64);
    rec.dispatch(&shader_bwd(), &rows.params(n), &[sinks, lse, delta], grid_1d(n, 64), work);
    column_sum(rec, delta, rows.tokens, rows.heads, 0, rows.heads, d_sinks);
}

/// Kernels of sinks: `attention_sinks_fwd`, `attention_sinks_bwd`.
pub struct AttentionSinksKernels;

impl Kernel for AttentionSinksKernels {
    fn name(&self) -> &'static str {
        "attention_sinks"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["attention_sinks"]
    }
    fn variants(&self) -> Vec<Shader> {
        vec![shader_fwd(5), shader_fwd(64), shader_bwd()]
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("SinksParams", size_of::<SinksParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let shapes = [(1, 1, 1), (3, 2, 5), (16, 4, 8), (65, 3, 20), (200, 2, 64)];
        let cases = shapes.map(|(tokens, heads, head_dim)| SinkRows { tokens, heads, head_dim });
        cases.map(|rows| Box::new(SinksCase { rows }) as Box<dyn Case>).into()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        let rows = SinkRows { tokens: t, heads: model.n_heads, head_dim: model.head_dim };
        vec![Box::new(SinksCase { rows })]
    }
}

/// Case of sinks on given outputs and log-sum-exps of attention, and of the sinks' gradient from a given delta. The cases of attention with
/// sinks compare this gradient with finite differences.
struct SinksCase {
    rows: SinkRows,
}

impl SinksCase {
    fn n_rows(&self) -> usize {
        self.rows.tokens * self.rows.heads
    }

    /// Returns the logarithm of e^lse + e^sink of a row.
    fn lse(&self, x: &[Vec<f64>], row: usize) -> f64 {
        let (sink, keys) = (x[0][row % self.rows.heads], x[1][row]);
        keys.max(sink) + (-(keys - sink).abs()).exp().ln_1p()
    }
}

impl Case for SinksCase {
    fn label(&self) -> String {
        let SinkRows { tokens, heads, head_dim } = self.rows;
        format!("T={tokens} H={heads} E={head_dim}")
    }
    /// Draws sinks, and of each row the log-sum-exp over keys, the outputs and delta. Of every four tokens, one has keys beside which its
    /// sinks are nothing, and one has sinks beside which its keys are nothing.
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let far = |row: usize| [0.0, 0.0, 90.0, -90.0][row / self.rows.heads % 4];
        let lse = (0..self.n_rows()).map(|row| rng.normal() + far(row)).collect();
        let [sinks, o, delta] =
            [self.rows.heads, self.n_rows() * self.rows.head_dim, self.n_rows()].map(|n| HostTensor::normal(rng, n));
        vec![sinks, HostTensor::F32(lse), o, delta]
    }
    /// Computes o, lse, and the sinks' gradient.
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let lse: Vec<f64> = (0..self.n_rows()).map(|row| self.lse(x, row)).collect();
        let of_keys = |n: usize| (x[1][n / self.rows.head_dim] - lse[n / self.rows.head_dim]).exp();
        let o = x[2].iter().enumerate().map(|(n, o)| o * of_keys(n)).collect();
        let mut d_sinks = vec![0.0; self.rows.heads];
        for (row, delta) in x[3].iter().enumerate() {
            let sink = row % self.rows.heads;
            d_sinks[sink] -= (x[0][sink] - lse[row]).exp() * delta;
        }
        vec![o, lse, d_sinks]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        let [o, delta] = [&x[2], &x[3]].map(|like| rec.gpu().alloc_activation(like.len()));
        let [lse, d_sinks] = [self.n_rows(), self.rows.heads].map(|n| rec.gpu().alloc_activation(n));
        rec.copy(&x[2], &o);
        rec.copy(&x[3], &delta);
        rec.clear(&d_sinks);
        attention_sinks_fwd(rec, &self.rows, &x[0], &x[1], &o, &lse);
        attention_sinks_bwd(rec, &self.rows, &x[0], &lse, &delta, &d_sinks);
        CaseOutputs { y: vec![o, lse, d_sinks], d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        self.rows.tokens
    }
    fn cost(&self) -> Cost {
        let (n, rows) = ((self.n_rows() * self.rows.head_dim) as u64, self.n_rows() as u64);
        Cost { bytes: 4 * (2 * n + 6 * rows), flops: n + 6 * rows }
    }
}
