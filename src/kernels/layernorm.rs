//! LayerNorm: y = (x − mean)/√(var + eps)·(w + offset) + b, over rows of D.

use super::row_vec4s::{self, BASELINE, BLOCK_ROWS, FLIGHT, ROWS, RowLanes};
use super::shapes::ModelShape;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel, column_sum};
use crate::gpu::{Caps, Recording, Shader, Slot, Variant, grid_1d};
use crate::rng::Rng;

/// Shape of a LayerNorm: T rows of D.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayernormRows {
    /// T, the number of rows.
    pub rows: usize,
    /// D, elements per row.
    pub width: usize,
    /// Added to the weight.
    pub offset: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct LayernormParams {
    rows: u32,
    width: u32,
    block: u32,
    accumulate: u32,
    eps: f32,
    offset: f32,
    pad: [u32; 2],
}

/// Rows per partial sum of d_w.
const BLOCK: usize = BLOCK_ROWS;

fn params(s: &LayernormRows, eps: f32, accumulate: bool) -> LayernormParams {
    LayernormParams {
        rows: s.rows as u32,
        width: s.width as u32,
        block: BLOCK as u32,
        accumulate: u32::from(accumulate),
        eps,
        offset: s.offset,
        pad: [0; 2],
    }
}

fn shader(entry: &'static str) -> Shader {
    Shader::new("layernorm", entry).with("WG", 64.0)
}

/// Returns the division of rows, of which three arrays stay in registers: x, w and b, or x, g and w.
fn row_lanes(width: usize) -> RowLanes {
    RowLanes::new(width, 3)
}

fn shader_rows(entry: &'static str, width: usize) -> Shader {
    row_lanes(width).shader("layernorm_rows", entry).unroll("FLIGHT", FLIGHT)
}

const ENTRIES_ROWS: [&str; 3] = ["layernorm_rows_fwd", "layernorm_rows_bwd_x", "layernorm_rows_bwd_w"];

/// Computes y from x (T, D), w and b (D); saves mean and r = 1/√(var + eps) (T, 2).
#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's bindings, in order")]
pub fn layernorm_fwd(
    rec: &mut Recording,
    s: &LayernormRows,
    eps: f32,
    x: &Slot,
    w: &Slot,
    b: &Slot,
    stats: &Slot,
    y: &Slot,
) {
    let flops = 7 * (s.rows * s.width) as u64;
    let (shader, grid) = if row_vec4s::in_vec4s(rec, &[s.width]) {
        (shader_rows("layernorm_rows_fwd", s.width), row_lanes(s.width).grid(s.rows))
    } else {
        (shader("layernorm_fwd"), grid_1d(s.rows, 1))
    };
    rec.dispatch(&shader, &params(s, eps, false), &[x, w, b, stats, y], grid, flops);
}

/// Computes d_x from d_y; adds to d_x when `accumulate`.
#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's bindings, in order")]
pub fn layernorm_bwd_x(
    rec: &mut Recording,
    s: &LayernormRows,
    accumulate: bool,
    x: &Slot,
    w: &Slot,
    stats: &Slot,
    d_y: &Slot,
    d_x: &Slot,
) {
    let flops = 12 * (s.rows * s.width) as u64;
    let slots = [x, w, stats, d_y, d_x];
    let (shader, grid) = if row_vec4s::in_vec4s(rec, &[s.width]) {
        (shader_rows("layernorm_rows_bwd_x", s.width), row_lanes(s.width).grid(s.rows))
    } else {
        (shader("layernorm_bwd_x"), grid_1d(s.rows, 1))
    };
    rec.dispatch(&shader, &params(s, 0.0, accumulate), &slots, grid, flops);
}

/// Computes d_w (D) += Σ_t d_y·h, where h = (x − mean)·r, and d_b (D) += Σ_t d_y.
pub fn layernorm_bwd_w(
    rec: &mut Recording,
    s: &LayernormRows,
    x: &Slot,
    stats: &Slot,
    d_y: &Slot,
    d_w: &Slot,
    d_b: &Slot,
) {
    let blocks = s.rows.div_ceil(BLOCK);
    let partial = rec.gpu().alloc_activation(blocks * s.width);
    let flops = 4 * (s.rows * s.width) as u64;
    let (shader, grid) = if row_vec4s::in_vec4s(rec, &[s.width]) {
        (shader_rows("layernorm_rows_bwd_w", s.width), row_vec4s::block_grid(s.rows, s.width))
    } else {
        (shader("layernorm_bwd_w"), [s.width.div_ceil(64) as u32, blocks as u32, 1])
    };
    rec.dispatch(&shader, &params(s, 0.0, false), &[x, stats, d_y, &partial], grid, flops);
    column_sum::column_sum(rec, &partial, blocks, s.width, 0, s.width, d_w);
    column_sum::column_sum(rec, d_y, s.rows, s.width, 0, s.width, d_b);
}

/// LayerNorm kernels: `layernorm_fwd`, `layernorm_bwd_x`, `layernorm_bwd_w`, and their `layernorm_rows_` variants.
pub struct LayernormKernels;

impl Kernel for LayernormKernels {
    fn name(&self) -> &'static str {
        "layernorm"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["layernorm", "layernorm_rows"]
    }
    fn variants(&self) -> Vec<Shader> {
        let baseline = ["layernorm_fwd", "layernorm_bwd_x", "layernorm_bwd_w"].map(shader);
        // Narrow models, and both sides of what stays in registers.
        let rows =
            [64, 768, 4096, 5124].into_iter().flat_map(|width| ENTRIES_ROWS.map(|entry| shader_rows(entry, width)));
        baseline.into_iter().chain(rows).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("LayernormParams", size_of::<LayernormParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let baseline = [(1, 5, 0.0), (3, 63, 0.0), (65, 64, 1.0), (130, 65, 0.0)];
        // Both sides of vec4s per invocation, of invocations per row, of rows per workgroup and block, and of what stays in registers.
        let rows = [(1, 4), (3, 60), (65, 64), (130, 252), (66, 256), (2, 260), (2, 2052), (3, 4096), (2, 5124)];
        let baseline = baseline.map(|(rows, width, offset)| (LayernormRows { rows, width, offset }, BASELINE));
        let rows = rows.map(|(rows, width)| (LayernormRows { rows, width, offset: (rows % 2) as f32 }, ROWS));
        let all = baseline.into_iter().chain(rows);
        all.map(|(shape, allowed)| Box::new(LayernormCase { shape, allowed }) as Box<dyn Case>).collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
        let shape = LayernormRows { rows: t, width: model.d_model, offset: 0.0 };
        vec![Box::new(LayernormCase { shape, allowed: row_vec4s::taken(caps) })]
    }
    fn variant_cases(&self, variant: Variant, _: &Caps) -> Vec<Box<dyn Case>> {
        if variant != Variant::Rows {
            return Vec::new();
        }
        let case = |(rows, width)| -> Box<dyn Case> {
            Box::new(LayernormCase { shape: LayernormRows { rows, width, offset: 1.0 }, allowed: ROWS })
        };
        [(66, 260), (3, 5124)].map(case).into()
    }
}

struct LayernormCase {
    shape: LayernormRows,
    allowed: &'static [Variant],
}

const EPS: f64 = 1e-5;

/// Computes (mean, r) of a row.
fn stats(row: &[f64]) -> (f64, f64) {
    let mean = row.iter().sum::<f64>() / row.len() as f64;
    let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / row.len() as f64;
    (mean, 1.0 / (variance + EPS).sqrt())
}

impl Case for LayernormCase {
    fn label(&self) -> String {
        let LayernormRows { rows, width, offset } = self.shape;
        format!("rows={rows} D={width} offset={offset}{}", row_vec4s::suffix(self.allowed))
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        [self.shape.rows * self.shape.width, self.shape.width, self.shape.width]
            .map(|n| HostTensor::normal(rng, n))
            .into()
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let row = |row: &[f64]| {
            let (mean, r) = stats(row);
            let scaled = row.iter().zip(&x[1]).zip(&x[2]);
            scaled.map(|((v, w), b)| (v - mean) * r * (w + f64::from(self.shape.offset)) + b).collect::<Vec<_>>()
        };
        vec![x[0].chunks(self.shape.width).flat_map(row).collect()]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (d, n) = (self.shape.width, self.shape.width as f64);
        let (mut d_x, mut d_w, mut d_b) = (Vec::new(), vec![0.0; d], vec![0.0; d]);
        for (row, d_row) in x[0].chunks(d).zip(d_y[0].chunks(d)) {
            let (mean, r) = stats(row);
            let h: Vec<f64> = row.iter().map(|v| (v - mean) * r).collect();
            let g: Vec<f64> = d_row.iter().zip(&x[1]).map(|(dy, w)| dy * (w + f64::from(self.shape.offset))).collect();
            let even = g.iter().sum::<f64>() / n;
            let along = g.iter().zip(&h).map(|(g, h)| g * h).sum::<f64>() / n;
            for i in 0..d {
                d_x.push(r * (g[i] - even - h[i] * along));
                d_w[i] += d_row[i] * h[i];
                d_b[i] += d_row[i];
            }
        }
        vec![d_x, d_w, d_b]
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.shape.rows * self.shape.width]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let gpu = rec.gpu();
        let (y, stats) = (gpu.alloc_activation(x[0].len()), gpu.alloc_activation(2 * self.shape.rows));
        let (d_x, d_w, d_b) = (
            gpu.alloc_activation(x[0].len()),
            gpu.alloc_activation(self.shape.width),
            gpu.alloc_activation(self.shape.width),
        );
        [&d_x, &d_w, &d_b].iter().for_each(|s| rec.clear(s));
        rec.with_variants(self.allowed, |rec| {
            layernorm_fwd(rec, &self.shape, EPS as f32, &x[0], &x[1], &x[2], &stats, &y);
            layernorm_bwd_x(rec, &self.shape, true, &x[0], &x[1], &stats, &d_y[0], &d_x);
            layernorm_bwd_w(rec, &self.shape, &x[0], &stats, &d_y[0], &d_w, &d_b);
        });
        CaseOutputs { y: vec![y], d_x: vec![Some(d_x), Some(d_w), Some(d_b)] }
    }
    fn reduction_len(&self) -> usize {
        self.shape.rows.max(self.shape.width)
    }
    fn is_supported(&self, caps: &Caps) -> bool {
        self.allowed.iter().all(|variant| caps.variants.contains(variant))
    }
    fn cost(&self) -> Cost {
        let n = (self.shape.rows * self.shape.width) as u64;
        Cost { bytes: 4 * 9 * n, flops: 23 * n }
    }
}
