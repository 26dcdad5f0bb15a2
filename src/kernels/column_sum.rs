//! Column sums, `out[i] += Σ_t x[t, i]`, in a fixed order: gradients of biases and norm weights.

use super::shapes::ModelShape;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, Recording, Shader, Slot};
use crate::rng::Rng;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ColumnSumParams {
    rows: u32,
    width: u32,
    start: u32,
    stride: u32,
    block: u32,
    accumulate: u32,
    pad: [u32; 2],
}

/// Rows per sum of the first stage.
const BLOCK: usize = 64;

fn shader() -> Shader {
    Shader::new("column_sum", "column_sum").with("WG", 64.0)
}

#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's parameters and bindings")]
fn stage(
    rec: &mut Recording,
    x: &Slot,
    rows: usize,
    stride: usize,
    start: usize,
    width: usize,
    block: usize,
    out: &Slot,
    add: bool,
) {
    let params = ColumnSumParams {
        rows: rows as u32,
        width: width as u32,
        start: start as u32,
        stride: stride as u32,
        block: block as u32,
        accumulate: u32::from(add),
        pad: [0; 2],
    };
    let grid = [width.div_ceil(64) as u32, rows.div_ceil(block) as u32, 1];
    rec.dispatch(&shader(), &params, &[x, out], grid, (rows * width) as u64);
}

/// Computes out (width) += sums of columns `start..start + width` of x (rows, stride).
pub fn column_sum(rec: &mut Recording, x: &Slot, rows: usize, stride: usize, start: usize, width: usize, out: &Slot) {
    if rows <= BLOCK {
        return stage(rec, x, rows, stride, start, width, BLOCK, out, true);
    }
    let blocks = rows.div_ceil(BLOCK);
    let partial = rec.gpu().alloc_activation(blocks * width);
    stage(rec, x, rows, stride, start, width, BLOCK, &partial, false);
    column_sum(rec, &partial, blocks, width, 0, width, out);
}

/// Column-sum kernel: `column_sum`, run in stages.
pub struct ColumnSum;

impl Kernel for ColumnSum {
    fn name(&self) -> &'static str {
        "column_sum"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["column_sum"]
    }
    fn variants(&self) -> Vec<Shader> {
        vec![shader()]
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("ColumnSumParams", size_of::<ColumnSumParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let shapes = [(1, 1), (63, 65), (64, 64), (65, 63), (200, 130), (4200, 3)];
        shapes.map(|(rows, width)| Box::new(ColumnSumCase { rows, width }) as Box<dyn Case>).into()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        vec![Box::new(ColumnSumCase { rows: t, width: model.qkv_width() })]
    }
}

struct ColumnSumCase {
    rows: usize,
    width: usize,
}

/// Columns of x on either side of the summed ones.
const MARGIN: usize = 3;

impl Case for ColumnSumCase {
    fn label(&self) -> String {
        format!("rows={} width={}", self.rows, self.width)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        vec![HostTensor::normal(rng, self.rows * (self.width + 2 * MARGIN))]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let stride = self.width + 2 * MARGIN;
        vec![(0..self.width).map(|i| (0..self.rows).map(|t| x[0][t * stride + MARGIN + i]).sum()).collect()]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        let out = rec.gpu().alloc_activation(self.width);
        rec.clear(&out);
        column_sum(rec, &x[0], self.rows, self.width + 2 * MARGIN, MARGIN, self.width, &out);
        CaseOutputs { y: vec![out], d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        self.rows
    }
    fn cost(&self) -> Cost {
        let n = (self.rows * self.width) as u64;
        Cost { bytes: 4 * n, flops: n }
    }
}
