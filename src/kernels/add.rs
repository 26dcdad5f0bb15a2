//! Addition of the residual stream where a norm follows the branch. Elsewhere, [`super::matmul::Epilogue`] adds the residual stream and
//! biases. A bias's gradient is [`super::column_sum`]. The sum may have a factor: `layer_scalar` of Gemma 4.

use super::row_vec4s::{self, BASELINE, ROWS};
use super::shapes::ModelShape;
use super::value::of_width;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, Recording, Shader, Slot, Variant, grid_1d};
use crate::rng::Rng;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AddParams {
    n: u32,
    scale: f32,
}

fn shader(entry: &'static str, value_width: usize) -> Shader {
    of_width(Shader::new("add", entry).with("WG", 64.0), value_width)
}

/// Runs an entry elementwise over the length of the last slot.
fn run(rec: &mut Recording, entry: &'static str, scale: f32, slots: &[&Slot]) {
    let n = slots.last().map_or(0, |slot| slot.len());
    let value_width = row_vec4s::value_width(rec, &[n]);
    let grid = grid_1d(n / value_width, 64);
    rec.dispatch(&shader(entry, value_width), &AddParams { n: n as u32, scale }, slots, grid, n as u64);
}

/// Computes y = scale·(a + b), elementwise over y's length.
pub fn add(rec: &mut Recording, scale: f32, a: &Slot, b: &Slot, y: &Slot) {
    run(rec, "add", scale, &[a, b, y]);
}

/// Multiplies x by `scale` in place: the gradient of [`add`] for both a and b, from that of y.
pub fn scale(rec: &mut Recording, scale: f32, x: &Slot) {
    run(rec, "scale", scale, &[x]);
}

/// Addition kernels: `add`, `scale`.
pub struct AddKernels;

impl Kernel for AddKernels {
    fn name(&self) -> &'static str {
        "add"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["add"]
    }
    fn variants(&self) -> Vec<Shader> {
        ["add", "scale"].into_iter().flat_map(|entry| [1, 4].map(|value_width| shader(entry, value_width))).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("AddParams", size_of::<AddParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let baseline = [(1, 1, 1.0), (3, 21, 0.7), (64, 1, 1.0), (65, 130, -1.5)].map(|shape| (shape, BASELINE));
        let rows = [(1, 4, 1.0), (64, 4, 0.7), (65, 132, 1.0)].map(|shape| (shape, ROWS));
        let case = |((rows, width, scale), allowed)| Box::new(AddCase { rows, width, scale, allowed }) as Box<dyn Case>;
        baseline.into_iter().chain(rows).map(case).collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
        vec![Box::new(AddCase { rows: t, width: model.d_model, scale: 1.0, allowed: row_vec4s::taken(caps) })]
    }
    fn variant_cases(&self, variant: Variant, _: &Caps) -> Vec<Box<dyn Case>> {
        match variant {
            Variant::Rows => vec![Box::new(AddCase { rows: 65, width: 132, scale: 0.7, allowed: ROWS })],
            _ => Vec::new(),
        }
    }
}

/// Case of y = scale·(a + b): `residual + hidden_states`, then `hidden_states *= self.layer_scalar` in `Gemma4TextDecoderLayer.forward` of
/// transformers 5.24.0, models/gemma4/modeling_gemma4.py.
struct AddCase {
    rows: usize,
    width: usize,
    scale: f32,
    allowed: &'static [Variant],
}

impl Case for AddCase {
    fn label(&self) -> String {
        let suffix = row_vec4s::suffix(self.allowed);
        format!("rows={} width={} scale={}{suffix}", self.rows, self.width, self.scale)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let n = self.rows * self.width;
        vec![HostTensor::normal(rng, n), HostTensor::normal(rng, n)]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![x[0].iter().zip(&x[1]).map(|(a, b)| f64::from(self.scale) * (a + b)).collect()]
    }
    fn backward(&self, _: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let d: Vec<f64> = d_y[0].iter().map(|d| f64::from(self.scale) * d).collect();
        vec![d.clone(), d]
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.rows * self.width]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let [y, d] = [(); 2].map(|()| rec.gpu().alloc_activation(x[0].len()));
        rec.copy(&d_y[0], &d);
        rec.with_variants(self.allowed, |rec| {
            add(rec, self.scale, &x[0], &x[1], &y);
            scale(rec, self.scale, &d);
        });
        CaseOutputs { y: vec![y], d_x: vec![Some(d.clone()), Some(d)] }
    }
    fn reduction_len(&self) -> usize {
        1
    }
    fn cost(&self) -> Cost {
        let n = (self.rows * self.width) as u64;
        Cost { bytes: 4 * 5 * n, flops: 3 * n }
    }
}
