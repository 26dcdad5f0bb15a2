//! Column sums, `out[i] += Σ_t x[t, i]`, in a fixed order: gradients of biases and norm weights.

use super::row_vec4s::{self, BASELINE, BLOCK_ROWS, FLIGHT, ROWS};
use super::shapes::ModelShape;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, CountedWork, Recording, Shader, Slot, Variant};
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
const BLOCK: usize = BLOCK_ROWS;

fn shader() -> Shader {
    Shader::new("column_sum", "column_sum").with("WG", 64.0)
}

fn shader_rows() -> Shader {
    Shader::new("column_sum_rows", "column_sum_rows").unroll("FLIGHT", FLIGHT)
}

#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's parameters and bindings")]
fn stage(rec: &mut Recording, x: &Slot, rows: usize, stride: usize, start: usize, width: usize, out: &Slot, add: bool) {
    let params = ColumnSumParams {
        rows: rows as u32,
        width: width as u32,
        start: start as u32,
        stride: stride as u32,
        block: BLOCK as u32,
        accumulate: u32::from(add),
        pad: [0; 2],
    };
    let (shader, grid) = if row_vec4s::in_vec4s(rec, &[start, stride, width]) {
        (shader_rows(), row_vec4s::block_grid(rows, width))
    } else {
        (shader(), [width.div_ceil(64) as u32, rows.div_ceil(BLOCK) as u32, 1])
    };
    let n = (rows * width) as u64;
    rec.dispatch(&shader, &params, &[x, out], grid, CountedWork::new(n, 4 * n));
}

/// Computes out (width) += sums of columns `start..start + width` of x (rows, stride).
pub fn column_sum(rec: &mut Recording, x: &Slot, rows: usize, stride: usize, start: usize, width: usize, out: &Slot) {
    if rows <= BLOCK {
        return stage(rec, x, rows, stride, start, width, out, true);
    }
    let blocks = rows.div_ceil(BLOCK);
    let partial = rec.gpu().alloc_activation(blocks * width);
    stage(rec, x, rows, stride, start, width, &partial, false);
    column_sum(rec, &partial, blocks, width, 0, width, out);
}

/// Column-sum kernel: `column_sum`, or `column_sum_rows`, run in stages.
pub struct ColumnSum;

impl Kernel for ColumnSum {
    fn name(&self) -> &'static str {
        "column_sum"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["column_sum", "column_sum_rows"]
    }
    fn variants(&self) -> Vec<Shader> {
        vec![shader(), shader_rows()]
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("ColumnSumParams", size_of::<ColumnSumParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let shapes = [(1, 1), (63, 65), (64, 64), (65, 63), (200, 130), (4200, 3)];
        let baseline = shapes.map(|(rows, width)| ColumnSumCase { rows, width, margin: 3, allowed: BASELINE });
        // Both sides of rows per turn and per block, and of columns per workgroup.
        let shapes = [(1, 4), (15, 60), (16, 64), (17, 68), (63, 252), (64, 4), (65, 260), (200, 132), (4200, 4)];
        let rows = shapes.map(|(rows, width)| ColumnSumCase { rows, width, margin: 4, allowed: ROWS });
        baseline.into_iter().chain(rows).map(|case| Box::new(case) as Box<dyn Case>).collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
        let allowed = row_vec4s::taken(caps);
        vec![Box::new(ColumnSumCase {
            rows: t,
            width: model.qkv_width(),
            margin: if allowed.is_empty() { 3 } else { 4 },
            allowed,
        })]
    }
    fn variant_cases(&self, variant: Variant, _: &Caps) -> Vec<Box<dyn Case>> {
        match variant {
            Variant::Rows => vec![Box::new(ColumnSumCase { rows: 200, width: 132, margin: 4, allowed: ROWS })],
            _ => Vec::new(),
        }
    }
}

struct ColumnSumCase {
    rows: usize,
    width: usize,
    /// Columns of x on either side of the summed ones.
    margin: usize,
    allowed: &'static [Variant],
}

impl Case for ColumnSumCase {
    fn label(&self) -> String {
        format!("rows={} width={}{}", self.rows, self.width, row_vec4s::suffix(self.allowed))
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        vec![HostTensor::normal(rng, self.rows * (self.width + 2 * self.margin))]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let stride = self.width + 2 * self.margin;
        vec![(0..self.width).map(|i| (0..self.rows).map(|t| x[0][t * stride + self.margin + i]).sum()).collect()]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        let out = rec.gpu().alloc_activation(self.width);
        rec.clear(&out);
        let stride = self.width + 2 * self.margin;
        rec.with_variants(self.allowed, |rec| {
            column_sum(rec, &x[0], self.rows, stride, self.margin, self.width, &out);
        });
        CaseOutputs { y: vec![out], d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        self.rows
    }
    fn is_supported(&self, caps: &Caps) -> bool {
        self.allowed.iter().all(|variant| caps.variants.contains(variant))
    }
    fn cost(&self) -> Cost {
        let n = (self.rows * self.width) as u64;
        Cost { bytes: 4 * n, flops: n }
    }
}
