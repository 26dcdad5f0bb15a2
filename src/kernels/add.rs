//! Addition of the residual stream where a norm follows the branch. Elsewhere, [`super::matmul::Epilogue`] adds the residual stream and
//! biases. A bias's gradient is [`super::column_sum`].

use super::shapes::ModelShape;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AddParams {
    n: u32,
}

fn shader() -> Shader {
    Shader::new("add", "add").with("WG", 64.0)
}

/// Computes y = a + b, elementwise over y's length.
pub fn add(rec: &mut Recording, a: &Slot, b: &Slot, y: &Slot) {
    rec.dispatch(&shader(), &AddParams { n: y.len() as u32 }, &[a, b, y], grid_1d(y.len(), 64), y.len() as u64);
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
        vec![shader()]
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("AddParams", size_of::<AddParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        [(1, 1), (3, 21), (64, 1), (65, 130)]
            .map(|(rows, width)| Box::new(AddCase { rows, width }) as Box<dyn Case>)
            .into()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        vec![Box::new(AddCase { rows: t, width: model.d_model })]
    }
}

/// Case of y = a + b.
struct AddCase {
    rows: usize,
    width: usize,
}

impl Case for AddCase {
    fn label(&self) -> String {
        format!("rows={} width={}", self.rows, self.width)
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
        add(rec, &x[0], &x[1], &y);
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
