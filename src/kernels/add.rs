//! Addition of the residual stream where a norm follows the branch. Elsewhere, [`super::matmul::Epilogue`] adds the residual stream and
//! biases. A bias's gradient is [`super::column_sum`].

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
}

fn shader(value_width: usize) -> Shader {
    of_width(Shader::new("add", "add").with("WG", 64.0), value_width)
}

/// Computes y = a + b, elementwise over y's length.
pub fn add(rec: &mut Recording, a: &Slot, b: &Slot, y: &Slot) {
    let n = y.len();
    let value_width = row_vec4s::value_width(rec, &[n]);
    let grid = grid_1d(n / value_width, 64);
    rec.dispatch(&shader(value_width), &AddParams { n: n as u32 }, &[a, b, y], grid, n as u64);
}

/// Addition kernel: `add`.
pub struct AddKernels;

impl Kernel for AddKernels {
    fn name(&self) -> &'static str {
        "add"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["add"]
    }
    fn variants(&self) -> Vec<Shader> {
        [1, 4].map(shader).into()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("AddParams", size_of::<AddParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let baseline = [(1, 1), (3, 21), (64, 1), (65, 130)].map(|shape| (shape, BASELINE));
        let rows = [(1, 4), (64, 4), (65, 132)].map(|shape| (shape, ROWS));
        let case = |((rows, width), allowed)| Box::new(AddCase { rows, width, allowed }) as Box<dyn Case>;
        baseline.into_iter().chain(rows).map(case).collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
        vec![Box::new(AddCase { rows: t, width: model.d_model, allowed: row_vec4s::taken(caps) })]
    }
    fn variant_cases(&self, variant: Variant, _: &Caps) -> Vec<Box<dyn Case>> {
        match variant {
            Variant::Rows => vec![Box::new(AddCase { rows: 65, width: 132, allowed: ROWS })],
            _ => Vec::new(),
        }
    }
}

/// Case of y = a + b.
struct AddCase {
    rows: usize,
    width: usize,
    allowed: &'static [Variant],
}

impl Case for AddCase {
    fn label(&self) -> String {
        format!("rows={} width={}{}", self.rows, self.width, row_vec4s::suffix(self.allowed))
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let n = self.rows * self.width;
        vec![HostTensor::normal(rng, n), HostTensor::normal(rng, n)]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![x[0].iter().zip(&x[1]).map(|(a, b)| a + b).collect()]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        let y = rec.gpu().alloc_activation(x[0].len());
        rec.with_variants(self.allowed, |rec| add(rec, &x[0], &x[1], &y));
        CaseOutputs { y: vec![y], d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        1
    }
    fn cost(&self) -> Cost {
        let n = (self.rows * self.width) as u64;
        Cost { bytes: 4 * 3 * n, flops: n }
    }
}
