//! RMSNorm: y = x·(w + offset)/√(mean x² + eps), over rows of D or over heads of E inside a wider slot.

use super::shapes::ModelShape;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel, column_sum};
use crate::gpu::{Caps, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

/// Rows to normalise: `tokens × groups` rows of `width` elements. The groups of a token lie side by side, and tokens are a stride apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsnormRows {
    /// T, the number of tokens.
    pub tokens: usize,
    /// Rows per token: 1, or the number of heads.
    pub groups: usize,
    /// Elements per row: D, or E.
    pub width: usize,
    /// First element of x (and d_x).
    pub x_start: usize,
    /// Elements per token in x (and d_x).
    pub x_stride: usize,
    /// First element of y (and d_y).
    pub y_start: usize,
    /// Elements per token in y (and d_y).
    pub y_stride: usize,
}

impl RmsnormRows {
    /// Describes T contiguous rows of D.
    pub fn contiguous(tokens: usize, width: usize) -> Self {
        Self { tokens, groups: 1, width, x_start: 0, x_stride: width, y_start: 0, y_stride: width }
    }
    /// Returns the number of rows, tokens × groups, which is also the length of the saved statistics.
    pub fn count(&self) -> usize {
        self.tokens * self.groups
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RmsnormParams {
    rows: u32,
    groups: u32,
    width: u32,
    block: u32,
    x_start: u32,
    x_stride: u32,
    y_start: u32,
    y_stride: u32,
    eps: f32,
    offset: f32,
    accumulate: u32,
    pad: u32,
}

/// Rows per partial sum of d_w.
const BLOCK: usize = 64;

fn params(rows: &RmsnormRows, eps: f32, offset: f32, accumulate: bool) -> RmsnormParams {
    RmsnormParams {
        rows: rows.count() as u32,
        groups: rows.groups as u32,
        width: rows.width as u32,
        block: BLOCK as u32,
        x_start: rows.x_start as u32,
        x_stride: rows.x_stride as u32,
        y_start: rows.y_start as u32,
        y_stride: rows.y_stride as u32,
        eps,
        offset,
        accumulate: u32::from(accumulate),
        pad: 0,
    }
}

fn shader(entry: &'static str) -> Shader {
    Shader::new("rmsnorm", entry).with("WG", 64.0)
}

/// Computes y from x (T, D) and w (D); saves r = 1/√(mean x² + eps) (rows).
#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's parameters and bindings")]
pub fn rmsnorm_fwd(
    rec: &mut Recording,
    rows: &RmsnormRows,
    eps: f32,
    offset: f32,
    x: &Slot,
    w: &Slot,
    r_saved: &Slot,
    y: &Slot,
) {
    let params = params(rows, eps, offset, false);
    let flops = 4 * (rows.count() * rows.width) as u64;
    rec.dispatch(&shader("rmsnorm_fwd"), &params, &[x, w, r_saved, y], grid_1d(rows.count(), 1), flops);
}

/// Computes d_x from d_y; adds to d_x when `accumulate`.
#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's bindings, in order")]
pub fn rmsnorm_bwd_x(
    rec: &mut Recording,
    rows: &RmsnormRows,
    offset: f32,
    accumulate: bool,
    x: &Slot,
    w: &Slot,
    r_saved: &Slot,
    d_y: &Slot,
    d_x: &Slot,
) {
    let params = params(rows, 0.0, offset, accumulate);
    let flops = 8 * (rows.count() * rows.width) as u64;
    rec.dispatch(&shader("rmsnorm_bwd_x"), &params, &[x, w, r_saved, d_y, d_x], grid_1d(rows.count(), 1), flops);
}

/// Computes d_w (D) += Σ_t d_y·x·r.
pub fn rmsnorm_bwd_w(rec: &mut Recording, rows: &RmsnormRows, x: &Slot, r_saved: &Slot, d_y: &Slot, d_w: &Slot) {
    let params = params(rows, 0.0, 0.0, false);
    let blocks = rows.count().div_ceil(BLOCK);
    let partial = rec.gpu().alloc_activation(blocks * rows.width);
    let grid = [rows.width.div_ceil(64) as u32, blocks as u32, 1];
    let flops = 3 * (rows.count() * rows.width) as u64;
    rec.dispatch(&shader("rmsnorm_bwd_w"), &params, &[x, r_saved, d_y, &partial], grid, flops);
    column_sum::column_sum(rec, &partial, blocks, rows.width, 0, rows.width, d_w);
}

/// RMSNorm kernels: `rmsnorm_fwd`, `rmsnorm_bwd_x`, `rmsnorm_bwd_w`.
pub struct RmsnormKernels;

impl Kernel for RmsnormKernels {
    fn name(&self) -> &'static str {
        "rmsnorm"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["rmsnorm"]
    }
    fn variants(&self) -> Vec<Shader> {
        ["rmsnorm_fwd", "rmsnorm_bwd_x", "rmsnorm_bwd_w"].map(shader).into()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("RmsnormParams", size_of::<RmsnormParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let heads = RmsnormRows { tokens: 5, groups: 3, width: 12, x_start: 4, x_stride: 60, y_start: 8, y_stride: 52 };
        let all = [(2, 3), (3, 63), (2, 64), (65, 65), (130, 300)].map(|(t, d)| (RmsnormRows::contiguous(t, d), 0.0));
        let all = all.into_iter().chain([(heads, 1.0), (RmsnormRows::contiguous(7, 96), 1.0)]);
        all.map(|(rows, offset)| Box::new(RmsnormCase { rows, offset }) as Box<dyn Case>).collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        vec![Box::new(RmsnormCase { rows: RmsnormRows::contiguous(t, model.d_model), offset: 0.0 })]
    }
}

struct RmsnormCase {
    rows: RmsnormRows,
    offset: f32,
}

const EPS: f32 = 1e-5;

impl RmsnormCase {
    /// Returns for each row: its first element in x, its first element in y, and r.
    fn each(&self, x: &[f64]) -> Vec<(usize, usize, f64)> {
        let s = &self.rows;
        let row = |i: usize| {
            let (t, group) = (i / s.groups, i % s.groups);
            let (from, to) =
                (s.x_start + t * s.x_stride + group * s.width, s.y_start + t * s.y_stride + group * s.width);
            let mean = x[from..from + s.width].iter().map(|v| v * v).sum::<f64>() / s.width as f64;
            (from, to, 1.0 / (mean + f64::from(EPS)).sqrt())
        };
        (0..s.count()).map(row).collect()
    }
    fn y_len(&self) -> usize {
        self.rows.y_start + self.rows.tokens * self.rows.y_stride
    }
}

impl Case for RmsnormCase {
    fn label(&self) -> String {
        let RmsnormRows { tokens, groups, width, x_start, x_stride, y_start, y_stride } = self.rows;
        let at = format!("x={x_start}+{x_stride} y={y_start}+{y_stride}");
        format!("T={tokens} groups={groups} D={width} {at} offset={}", self.offset)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let n = self.rows.x_start + self.rows.tokens * self.rows.x_stride;
        vec![HostTensor::normal(rng, n), HostTensor::normal(rng, self.rows.width)]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut y = vec![0.0; self.y_len()];
        let rows = self.each(&x[0]);
        for &(from, to, r) in &rows {
            for i in 0..self.rows.width {
                y[to + i] = x[0][from + i] * (x[1][i] + f64::from(self.offset)) * r;
            }
        }
        vec![y, rows.iter().map(|row| row.2).collect()]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let d = self.rows.width;
        let (mut d_x, mut d_w) = (vec![0.0; x[0].len()], vec![0.0; d]);
        for (from, to, r) in self.each(&x[0]) {
            let g: Vec<f64> = (0..d).map(|i| d_y[0][to + i] * (x[1][i] + f64::from(self.offset))).collect();
            let pull = r.powi(3) / d as f64 * (0..d).map(|i| g[i] * x[0][from + i]).sum::<f64>();
            for i in 0..d {
                d_x[from + i] = r * g[i] - x[0][from + i] * pull;
                d_w[i] += d_y[0][to + i] * x[0][from + i] * r;
            }
        }
        vec![d_x, d_w]
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.y_len()]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let gpu = rec.gpu();
        let (y, r) = (gpu.alloc_activation(self.y_len()), gpu.alloc_activation(self.rows.count()));
        let (d_x, d_w) = (gpu.alloc_activation(x[0].len()), gpu.alloc_activation(self.rows.width));
        [&y, &d_x, &d_w].iter().for_each(|s| rec.clear(s));
        rmsnorm_fwd(rec, &self.rows, EPS, self.offset, &x[0], &x[1], &r, &y);
        rmsnorm_bwd_x(rec, &self.rows, self.offset, true, &x[0], &x[1], &r, &d_y[0], &d_x);
        rmsnorm_bwd_w(rec, &self.rows, &x[0], &r, &d_y[0], &d_w);
        CaseOutputs { y: vec![y, r], d_x: vec![Some(d_x), Some(d_w)] }
    }
    fn reduction_len(&self) -> usize {
        self.rows.count().max(self.rows.width)
    }
    fn cost(&self) -> Cost {
        let n = (self.rows.count() * self.rows.width) as u64;
        Cost { bytes: 4 * 8 * n, flops: 15 * n }
    }
}
