//! Gates before and behind a short convolution (LFM2): m = b·x goes into it, and y = c·(s + bias) comes out, where b, c and x are thirds of one
//! projection.

use super::column_sum::column_sum;
use super::shapes::ModelShape;
use super::value::{in_values, width};
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ConvGatesParams {
    n: u32,
    width: u32,
    pad: [u32; 2],
}

fn shader(entry: &'static str, d_model: usize, bias: bool) -> Shader {
    let shader = Shader::new("conv_gates", entry).with("WG", 64.0).with("BIAS", f64::from(u8::from(bias)));
    in_values(shader, &[d_model])
}

/// Runs an entry over T tokens of D elements. `shape`: T and D.
fn run(rec: &mut Recording, entry: &'static str, shape: [usize; 2], bias: bool, slots: &[&Slot]) {
    let [t, d_model] = shape;
    let n = t * d_model / width(&[d_model]);
    let params = ConvGatesParams { n: n as u32, width: d_model as u32, pad: [0; 2] };
    rec.dispatch(&shader(entry, d_model, bias), &params, slots, grid_1d(n, 64), 2 * (t * d_model) as u64);
}

/// Computes m (T, D) from gated (T, 3·D). `shape`: T and D.
pub fn conv_gates_in_fwd(rec: &mut Recording, shape: [usize; 2], gated: &Slot, m: &Slot) {
    run(rec, "conv_gates_in_fwd", shape, false, &[gated, m]);
}

/// Computes y (T, D) from gated (T, 3·D), s (T, D), which is the convolution of m, and its bias (D). `shape`: T and D.
pub fn conv_gates_out_fwd(
    rec: &mut Recording,
    shape: [usize; 2],
    gated: &Slot,
    s: &Slot,
    bias: Option<&Slot>,
    y: &Slot,
) {
    run(rec, "conv_gates_out_fwd", shape, bias.is_some(), &[gated, s, bias.unwrap_or(s), y]);
}

/// Gradients that [`conv_gates_out_bwd`] writes.
#[derive(Clone, Copy)]
pub struct ConvGatesGradients<'a> {
    /// Gradient of s: (T, D).
    pub d_s: &'a Slot,
    /// Gradient of gated, of which the columns of c are written: (T, 3·D).
    pub d_gated: &'a Slot,
    /// Gradient of the bias, which is added to: (D). `None` where it is not trained, or there is none.
    pub d_bias: Option<&'a Slot>,
}

/// Computes the gradients of s, of c and of the bias from d_y (T, D). `shape`: T and D.
pub fn conv_gates_out_bwd(
    rec: &mut Recording,
    shape: [usize; 2],
    gated: &Slot,
    s: &Slot,
    bias: Option<&Slot>,
    d_y: &Slot,
    gradients: ConvGatesGradients,
) {
    let ConvGatesGradients { d_s, d_gated, d_bias } = gradients;
    run(rec, "conv_gates_out_bwd", shape, bias.is_some(), &[gated, s, bias.unwrap_or(s), d_y, d_s, d_gated]);
    if let Some(d_bias) = d_bias {
        let [t, d_model] = shape;
        column_sum(rec, d_s, t, d_model, 0, d_model, d_bias);
    }
}

/// Computes the gradients of b and x in d_gated (T, 3·D) from d_m (T, D). `shape`: T and D.
pub fn conv_gates_in_bwd(rec: &mut Recording, shape: [usize; 2], gated: &Slot, d_m: &Slot, d_gated: &Slot) {
    run(rec, "conv_gates_in_bwd", shape, false, &[gated, d_m, d_gated]);
}

/// Kernels of the gates: `conv_gates_in_fwd`, `conv_gates_out_fwd`, `conv_gates_out_bwd`, `conv_gates_in_bwd`.
pub struct ConvGatesKernels;

const INNER: [&str; 2] = ["conv_gates_in_fwd", "conv_gates_in_bwd"];
const OUTER: [&str; 2] = ["conv_gates_out_fwd", "conv_gates_out_bwd"];

impl Kernel for ConvGatesKernels {
    fn name(&self) -> &'static str {
        "conv_gates"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["conv_gates"]
    }
    fn variants(&self) -> Vec<Shader> {
        let each = |entry, bias| [5, 4].map(|d_model| shader(entry, d_model, bias));
        let inner = INNER.into_iter().flat_map(|entry| each(entry, false));
        inner
            .chain(OUTER.into_iter().flat_map(|entry| [false, true].into_iter().flat_map(move |b| each(entry, b))))
            .collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("ConvGatesParams", size_of::<ConvGatesParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let shapes = [(1, 1), (3, 5), (16, 8), (67, 20), (5, 260)];
        let each = shapes.into_iter().flat_map(|(t, d_model)| {
            [false, true].map(|bias| Box::new(ConvGatesCase { t, d_model, bias }) as Box<dyn Case>)
        });
        each.collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        vec![Box::new(ConvGatesCase { t, d_model: model.d_model, bias: false })]
    }
}

/// Case of both gates, around a given s in place of the convolution.
struct ConvGatesCase {
    t: usize,
    d_model: usize,
    bias: bool,
}

impl ConvGatesCase {
    /// Returns (element of (T, D), its column, the index of its b in gated) of every element: `Lfm2ShortConv` of transformers 5.24.0,
    /// models/lfm2/modular_lfm2.py: in_proj(h).chunk(3), B * x, C * conv.
    fn elements(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let (n, d) = (self.t * self.d_model, self.d_model);
        (0..n).map(move |i| (i, i % d, i / d * 3 * d + i % d))
    }
    /// Returns the bias of a column.
    fn bias(&self, x: &[Vec<f64>], column: usize) -> f64 {
        if self.bias { x[2][column] } else { 0.0 }
    }
}

impl Case for ConvGatesCase {
    fn label(&self) -> String {
        format!("T={} D={}{}", self.t, self.d_model, if self.bias { " bias" } else { "" })
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let n = self.t * self.d_model;
        vec![HostTensor::normal(rng, 3 * n), HostTensor::normal(rng, n), HostTensor::normal(rng, self.d_model)]
    }
    /// Computes m and y.
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let d = self.d_model;
        let m = self.elements().map(|(_, _, b)| x[0][b] * x[0][b + 2 * d]);
        let y = self.elements().map(|(i, column, b)| x[0][b + d] * (x[1][i] + self.bias(x, column)));
        vec![m.collect(), y.collect()]
    }
    /// d_y has the gradients of m and of y.
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let d = self.d_model;
        let (mut d_gated, mut d_s) = (vec![0.0; x[0].len()], vec![0.0; x[1].len()]);
        let mut d_bias = vec![0.0; if self.bias { d } else { 0 }];
        for (i, column, b) in self.elements() {
            d_gated[b] = d_y[0][i] * x[0][b + 2 * d];
            d_gated[b + 2 * d] = d_y[0][i] * x[0][b];
            d_gated[b + d] = d_y[1][i] * (x[1][i] + self.bias(x, column));
            d_s[i] = d_y[1][i] * x[0][b + d];
            d_bias.iter_mut().skip(column).take(1).for_each(|sum| *sum += d_s[i]);
        }
        vec![d_gated, d_s, d_bias]
    }
    fn differentiable(&self) -> usize {
        2
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.t * self.d_model; 2]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let (shape, n, bias) = ([self.t, self.d_model], self.t * self.d_model, self.bias.then_some(&x[2]));
        let [m, y, d_s, d_gated] = [n, n, n, 3 * n].map(|n| rec.gpu().alloc_activation(n));
        let d_bias = self.bias.then(|| rec.gpu().alloc_activation(self.d_model));
        d_bias.iter().for_each(|d_bias| rec.clear(d_bias));
        conv_gates_in_fwd(rec, shape, &x[0], &m);
        conv_gates_out_fwd(rec, shape, &x[0], &x[1], bias, &y);
        let gradients = ConvGatesGradients { d_s: &d_s, d_gated: &d_gated, d_bias: d_bias.as_ref() };
        conv_gates_out_bwd(rec, shape, &x[0], &x[1], bias, &d_y[1], gradients);
        conv_gates_in_bwd(rec, shape, &x[0], &d_y[0], &d_gated);
        CaseOutputs { y: vec![m, y], d_x: vec![Some(d_gated), Some(d_s), d_bias] }
    }
    fn reduction_len(&self) -> usize {
        self.t
    }
    fn cost(&self) -> Cost {
        let n = (self.t * self.d_model) as u64;
        Cost { bytes: 4 * 17 * n, flops: 8 * n }
    }
}
