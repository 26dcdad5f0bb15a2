//! Residual sums and biases. A bias's gradient is [`super::column_sum`].

use super::shapes::ModelShape;
use super::{Case, Cost, Host, Kernel, Outputs};
use crate::gpu::{Caps, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AddParams {
    n: u32,
    width: u32,
    start: u32,
    stride: u32,
}

fn shader(entry: &'static str) -> Shader {
    Shader::new("add", entry).with("WG", 64.0)
}

fn flat(n: usize) -> AddParams {
    AddParams { n: n as u32, width: 0, start: 0, stride: 0 }
}

/// y = a + b, elementwise over y's length.
pub fn add(rec: &mut Recording, a: &Slot, b: &Slot, y: &Slot) {
    rec.dispatch(&shader("add"), &flat(y.len()), &[a, b, y], grid_1d(y.len(), 64), y.len() as u64);
}

/// y += a, over a's length.
pub fn add_into(rec: &mut Recording, a: &Slot, y: &Slot) {
    rec.dispatch(&shader("add_into"), &flat(a.len()), &[a, y], grid_1d(a.len(), 64), a.len() as u64);
}

/// y[t, start..] += b, for `rows` rows of `stride`.
pub fn bias_fwd(rec: &mut Recording, b: &Slot, rows: usize, start: usize, stride: usize, y: &Slot) {
    let n = rows * b.len();
    let params = AddParams { n: n as u32, width: b.len() as u32, start: start as u32, stride: stride as u32 };
    rec.dispatch(&shader("bias_fwd"), &params, &[b, y], grid_1d(n, 64), n as u64);
}

/// The family.
pub struct Add;

impl Kernel for Add {
    fn name(&self) -> &'static str {
        "add"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["add"]
    }
    fn variants(&self) -> Vec<Shader> {
        ["add", "add_into", "bias_fwd"].map(shader).into()
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

/// y = a + b; y += a; y[:, 1..] += bias.
struct AddCase {
    rows: usize,
    width: usize,
}

impl Case for AddCase {
    fn label(&self) -> String {
        format!("rows={} width={}", self.rows, self.width)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<Host> {
        let n = self.rows * (self.width + 1);
        vec![Host::normal(rng, n), Host::normal(rng, n), Host::normal(rng, self.width)]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let stride = self.width + 1;
        let bias = |n: usize| if n.is_multiple_of(stride) { 0.0 } else { x[2][n % stride - 1] };
        vec![(0..x[0].len()).map(|n| 2.0 * x[0][n] + x[1][n] + bias(n)).collect()]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> Outputs {
        let y = rec.gpu().slot(x[0].len());
        add(rec, &x[0], &x[1], &y);
        add_into(rec, &x[0], &y);
        bias_fwd(rec, &x[2], self.rows, 1, self.width + 1, &y);
        Outputs { y: vec![y], d_x: Vec::new() }
    }
    fn reduction(&self) -> usize {
        4
    }
    fn cost(&self) -> Cost {
        let n = (self.rows * (self.width + 1)) as u64;
        Cost { bytes: 4 * 8 * n, flops: 3 * n }
    }
}
