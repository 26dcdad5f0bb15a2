//! RMSNorm: y = x·(w + offset)/√(mean x² + eps), over rows of D or over heads of E inside a wider slot.

use super::row_vec4s::{self, BASELINE, BLOCK_ROWS, FLIGHT, ROWS, RowLanes};
use super::shapes::ModelShape;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel, column_sum};
use crate::gpu::{Caps, CountedWork, Recording, Shader, Slot, Variant, grid_1d};
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
    /// Counts `flops` per element, and the elements of `tensors` tensors of these rows.
    fn work(&self, flops: u64, tensors: u64) -> CountedWork {
        let n = (self.count() * self.width) as u64;
        CountedWork::new(flops * n, 4 * tensors * n)
    }
    /// Returns whether rmsnorm_rows.wgsl may be used.
    fn in_vec4s(&self, rec: &Recording) -> bool {
        row_vec4s::in_vec4s(rec, &[self.width, self.x_start, self.x_stride, self.y_start, self.y_stride])
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
const BLOCK: usize = BLOCK_ROWS;

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

/// Returns the division of rows in the forward pass, which keeps x and w in registers.
fn forward_lanes(width: usize) -> RowLanes {
    RowLanes::new(width, 2)
}

/// Returns the division of rows in the gradient of x, which keeps x, g and w in registers.
fn backward_lanes(width: usize) -> RowLanes {
    RowLanes::new(width, 3)
}

fn shaders_rows(width: usize, groups: usize) -> [Shader; 3] {
    let (forward, backward) = (forward_lanes(width), backward_lanes(width));
    let shader = |lanes: RowLanes, entry| {
        lanes.shader("rmsnorm_rows", entry).unroll("FLIGHT", FLIGHT).with("GROUPS", groups as f64)
    };
    [
        shader(forward, "rmsnorm_rows_fwd"),
        shader(backward, "rmsnorm_rows_bwd_x"),
        shader(backward, "rmsnorm_rows_bwd_w"),
    ]
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
    let (shader, grid) = if rows.in_vec4s(rec) {
        let [fwd, _, _] = shaders_rows(rows.width, rows.groups);
        (fwd, forward_lanes(rows.width).grid(rows.count()))
    } else {
        (shader("rmsnorm_fwd"), grid_1d(rows.count(), 1))
    };
    rec.dispatch(&shader, &params, &[x, w, r_saved, y], grid, rows.work(4, 2));
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
    let (shader, grid) = if rows.in_vec4s(rec) {
        let [_, bwd_x, _] = shaders_rows(rows.width, rows.groups);
        (bwd_x, backward_lanes(rows.width).grid(rows.count()))
    } else {
        (shader("rmsnorm_bwd_x"), grid_1d(rows.count(), 1))
    };
    let tensors = if accumulate { 4 } else { 3 };
    rec.dispatch(&shader, &params, &[x, w, r_saved, d_y, d_x], grid, rows.work(8, tensors));
}

/// Computes d_w (D) += Σ_t d_y·x·r.
pub fn rmsnorm_bwd_w(rec: &mut Recording, rows: &RmsnormRows, x: &Slot, r_saved: &Slot, d_y: &Slot, d_w: &Slot) {
    let params = params(rows, 0.0, 0.0, false);
    let blocks = rows.count().div_ceil(BLOCK);
    let partial = rec.gpu().alloc_activation(blocks * rows.width);
    let (shader, grid) = if rows.in_vec4s(rec) {
        let [_, _, bwd_w] = shaders_rows(rows.width, rows.groups);
        (bwd_w, row_vec4s::block_grid(rows.count(), rows.width))
    } else {
        (shader("rmsnorm_bwd_w"), [rows.width.div_ceil(64) as u32, blocks as u32, 1])
    };
    rec.dispatch(&shader, &params, &[x, r_saved, d_y, &partial], grid, rows.work(3, 2));
    column_sum::column_sum(rec, &partial, blocks, rows.width, 0, rows.width, d_w);
}

/// RMSNorm kernels: `rmsnorm_fwd`, `rmsnorm_bwd_x`, `rmsnorm_bwd_w`, and their `rmsnorm_rows_` variants.
pub struct RmsnormKernels;

impl Kernel for RmsnormKernels {
    fn name(&self) -> &'static str {
        "rmsnorm"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["rmsnorm", "rmsnorm_rows"]
    }
    fn variants(&self) -> Vec<Shader> {
        let baseline = ["rmsnorm_fwd", "rmsnorm_bwd_x", "rmsnorm_bwd_w"].map(shader);
        // A head, a narrow model, and both sides of what stays in registers.
        baseline
            .into_iter()
            .chain(
                [(64, 9), (576, 1), (4096, 1), (8196, 1)]
                    .into_iter()
                    .flat_map(|(width, groups)| shaders_rows(width, groups)),
            )
            .collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("RmsnormParams", size_of::<RmsnormParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let heads = heads(3, 12);
        let all = [(2, 3), (3, 63), (2, 64), (65, 65), (130, 300)].map(|(t, d)| (RmsnormRows::contiguous(t, d), 0.0));
        let all = all.into_iter().chain([(heads, 1.0), (RmsnormRows::contiguous(7, 96), 1.0)]);
        let baseline = all.map(|(rows, offset)| RmsnormCase { rows, offset, allowed: BASELINE });
        // Both sides of vec4s per invocation, of invocations per row, of rows per workgroup and block, and of what stays in registers.
        let shapes = [(1, 4), (65, 8), (3, 60), (64, 64), (130, 252), (66, 256), (2, 260), (2, 2052)];
        let wide = [(3, 4096), (2, 4100), (2, 8196)];
        let rows = shapes.into_iter().chain(wide).map(|(t, d)| (RmsnormRows::contiguous(t, d), 0.0));
        let rows = rows.chain([
            (heads, 1.0),
            (self::heads(9, 64), 0.0),
            (self::heads(1, 96), 0.0),
            (RmsnormRows::contiguous(7, 96), 1.0),
        ]);
        let rows = rows.map(|(rows, offset)| RmsnormCase { rows, offset, allowed: ROWS });
        baseline.chain(rows).map(|case| Box::new(case) as Box<dyn Case>).collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
        let rows = RmsnormRows::contiguous(t, model.d_model);
        vec![Box::new(RmsnormCase { rows, offset: 0.0, allowed: row_vec4s::taken(caps) })]
    }
    fn variant_cases(&self, variant: Variant, _: &Caps) -> Vec<Box<dyn Case>> {
        if variant != Variant::Rows {
            return Vec::new();
        }
        let all =
            [(RmsnormRows::contiguous(66, 260), 1.0), (RmsnormRows::contiguous(3, 4100), 0.0), (heads(3, 64), 0.0)];
        all.map(|(rows, offset)| Box::new(RmsnormCase { rows, offset, allowed: ROWS }) as Box<dyn Case>).into()
    }
}

/// Returns the rows of 5 tokens' heads, inside wider slots.
fn heads(groups: usize, width: usize) -> RmsnormRows {
    let inside = groups * width;
    RmsnormRows { tokens: 5, groups, width, x_start: 4, x_stride: inside + 24, y_start: 8, y_stride: inside + 16 }
}

struct RmsnormCase {
    rows: RmsnormRows,
    offset: f32,
    allowed: &'static [Variant],
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
        let suffix = row_vec4s::suffix(self.allowed);
        format!("T={tokens} groups={groups} D={width} {at} offset={}{suffix}", self.offset)
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
        rec.with_variants(self.allowed, |rec| {
            rmsnorm_fwd(rec, &self.rows, EPS, self.offset, &x[0], &x[1], &r, &y);
            rmsnorm_bwd_x(rec, &self.rows, self.offset, true, &x[0], &x[1], &r, &d_y[0], &d_x);
            rmsnorm_bwd_w(rec, &self.rows, &x[0], &r, &d_y[0], &d_w);
        });
        CaseOutputs { y: vec![y, r], d_x: vec![Some(d_x), Some(d_w)] }
    }
    fn reduction_len(&self) -> usize {
        self.rows.count().max(self.rows.width)
    }
    fn is_supported(&self, caps: &Caps) -> bool {
        self.allowed.iter().all(|variant| caps.variants.contains(variant))
    }
    fn cost(&self) -> Cost {
        let n = (self.rows.count() * self.rows.width) as u64;
        Cost { bytes: 4 * 8 * n, flops: 15 * n }
    }
}
