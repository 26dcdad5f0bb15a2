//! Output gate of full attention: y = o·σ(gate), where the projection of queries gives, per head, a query and then its gate.

use super::shapes::ModelShape;
use super::value::{in_values, width};
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

/// Place of heads in a slot, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadPlace {
    /// First element.
    pub start: usize,
    /// Elements per token.
    pub stride: usize,
    /// Elements from one head's start to the next one's.
    pub head_stride: usize,
}

impl HeadPlace {
    /// Returns the place of queries in (T, H·2·E), per head a query and then its gate.
    pub fn queries(heads: usize, head_dim: usize) -> Self {
        Self { start: 0, stride: 2 * heads * head_dim, head_stride: 2 * head_dim }
    }
    /// Returns the place of gates in (T, H·2·E), per head a query and then its gate.
    pub fn gates(heads: usize, head_dim: usize) -> Self {
        Self { start: head_dim, ..Self::queries(heads, head_dim) }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct OutputGateParams {
    n: u32,
    heads: u32,
    width: u32,
    x: [u32; 3],
    y: [u32; 3],
    pad: [u32; 3],
}

fn words(place: &HeadPlace) -> [u32; 3] {
    [place.start, place.stride, place.head_stride].map(|n| n as u32)
}

fn sizes(head_dim: usize, places: [&HeadPlace; 2]) -> [usize; 7] {
    let [x, y] = places;
    [head_dim, x.start, x.stride, x.head_stride, y.start, y.stride, y.head_stride]
}

fn shader(entry: &'static str, sizes: &[usize]) -> Shader {
    in_values(Shader::new("output_gate", entry).with("WG", 64.0), sizes)
}

/// Runs an entry over T tokens of (heads, head_dim).
fn run(
    rec: &mut Recording,
    entry: &'static str,
    t: usize,
    heads: [usize; 2],
    places: [&HeadPlace; 2],
    slots: &[&Slot],
) {
    let sizes = sizes(heads[1], places);
    let elements = t * heads[0] * heads[1];
    let n = elements / width(&sizes);
    let params = OutputGateParams {
        n: n as u32,
        heads: heads[0] as u32,
        width: heads[1] as u32,
        x: words(places[0]),
        y: words(places[1]),
        pad: [0; 3],
    };
    rec.dispatch(&shader(entry, &sizes), &params, slots, grid_1d(n, 64), 8 * elements as u64);
}

/// Computes y (T, H·E) from o (T, H·E) and the gates at `place` in `gate`. `heads`: H and E.
pub fn output_gate_fwd(
    rec: &mut Recording,
    t: usize,
    heads: [usize; 2],
    place: &HeadPlace,
    o: &Slot,
    gate: &Slot,
    y: &Slot,
) {
    run(rec, "output_gate_fwd", t, heads, [place; 2], &[o, gate, y]);
}

/// Computes d_o (T, H·E), and the gates' gradients at `place` in d_gate, from d_y (T, H·E).
#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's bindings, in order")]
pub fn output_gate_bwd(
    rec: &mut Recording,
    t: usize,
    heads: [usize; 2],
    place: &HeadPlace,
    o: &Slot,
    gate: &Slot,
    d_y: &Slot,
    d_o: &Slot,
    d_gate: &Slot,
) {
    run(rec, "output_gate_bwd", t, heads, [place; 2], &[o, gate, d_y, d_o, d_gate]);
}

/// Copies T tokens' heads from one place in x to another in y: queries out of the projection, and their gradients back. `heads`: H and E.
pub fn output_gate_copy(
    rec: &mut Recording,
    t: usize,
    heads: [usize; 2],
    [x_place, y_place]: [&HeadPlace; 2],
    x: &Slot,
    y: &Slot,
) {
    run(rec, "output_gate_copy", t, heads, [x_place, y_place], &[x, y]);
}

/// Output gate's kernels: `output_gate_fwd`, `output_gate_bwd`, `output_gate_copy`.
pub struct OutputGateKernels;

const ENTRIES: [&str; 3] = ["output_gate_fwd", "output_gate_bwd", "output_gate_copy"];

impl Kernel for OutputGateKernels {
    fn name(&self) -> &'static str {
        "output_gate"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["output_gate"]
    }
    fn variants(&self) -> Vec<Shader> {
        ENTRIES.into_iter().flat_map(|entry| [5, 4].map(|size| shader(entry, &[size]))).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("OutputGateParams", size_of::<OutputGateParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let cases = [(1, 1, 1), (3, 2, 5), (16, 2, 8), (13, 3, 20), (5, 2, 256)];
        cases.map(|(t, heads, head_dim)| Box::new(OutputGateCase { t, heads, head_dim }) as Box<dyn Case>).into()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        vec![Box::new(OutputGateCase { t, heads: model.n_heads, head_dim: model.head_dim })]
    }
}

/// Case of a gated output, and of queries copied out of the projection and back.
struct OutputGateCase {
    t: usize,
    heads: usize,
    head_dim: usize,
}

impl OutputGateCase {
    /// Returns the index in (T, H·2·E) of the n-th query element; its gate is E later. `Qwen3NextAttention` of transformers 5.24.0,
    /// models/qwen3_next/modeling_qwen3_next.py: q_proj(h).view(..., heads, 2·head_dim).chunk(2), then attn_output * sigmoid(gate).
    fn query(&self, n: usize) -> usize {
        n / self.head_dim * 2 * self.head_dim + n % self.head_dim
    }
    fn n(&self) -> usize {
        self.t * self.heads * self.head_dim
    }
}

impl Case for OutputGateCase {
    fn label(&self) -> String {
        format!("T={} H={} E={}", self.t, self.heads, self.head_dim)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        vec![HostTensor::normal(rng, self.n()), HostTensor::normal(rng, 2 * self.n())]
    }
    /// Computes y, and the queries.
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let y = (0..self.n()).map(|n| x[0][n] / (1.0 + (-x[1][self.query(n) + self.head_dim]).exp()));
        vec![y.collect(), (0..self.n()).map(|n| x[1][self.query(n)]).collect()]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (mut d_o, mut d_q) = (vec![0.0; self.n()], vec![0.0; 2 * self.n()]);
        for n in 0..self.n() {
            let s = 1.0 / (1.0 + (-x[1][self.query(n) + self.head_dim]).exp());
            d_o[n] = d_y[0][n] * s;
            d_q[self.query(n) + self.head_dim] = d_y[0][n] * x[0][n] * s * (1.0 - s);
            d_q[self.query(n)] = d_y[1][n];
        }
        vec![d_o, d_q]
    }
    fn differentiable(&self) -> usize {
        2
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.n(); 2]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let (t, heads, n) = (self.t, [self.heads, self.head_dim], self.n());
        let [y, q, d_o, d_q] = [n, n, n, 2 * n].map(|n| rec.gpu().alloc_activation(n));
        let [queries, gates] =
            [HeadPlace::queries(self.heads, self.head_dim), HeadPlace::gates(self.heads, self.head_dim)];
        let packed = HeadPlace { start: 0, stride: self.heads * self.head_dim, head_stride: self.head_dim };
        output_gate_copy(rec, t, heads, [&queries, &packed], &x[1], &q);
        output_gate_fwd(rec, t, heads, &gates, &x[0], &x[1], &y);
        output_gate_copy(rec, t, heads, [&packed, &queries], &d_y[1], &d_q);
        output_gate_bwd(rec, t, heads, &gates, &x[0], &x[1], &d_y[0], &d_o, &d_q);
        CaseOutputs { y: vec![y, q], d_x: vec![Some(d_o), Some(d_q)] }
    }
    fn reduction_len(&self) -> usize {
        1
    }
    fn cost(&self) -> Cost {
        let n = self.n() as u64;
        Cost { bytes: 4 * 12 * n, flops: 14 * n }
    }
}
