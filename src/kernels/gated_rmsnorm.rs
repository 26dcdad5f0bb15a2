//! Gated RMSNorm of linear attention's outputs: y = o/√(mean o² + eps)·w·silu(z), per value head.

use super::row_vec4s::BLOCK_ROWS;
use super::shapes::ModelShape;
use super::value::{ROW_WORKGROUP, in_values, row_lanes, width};
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel, column_sum};
use crate::gpu::{Caps, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

/// Rows per partial sum of d_w.
const BLOCK: usize = BLOCK_ROWS;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GatedRmsnormParams {
    rows: u32,
    width: u32,
    eps: f32,
    block: u32,
}

fn params(rows: usize, width: usize, eps: f32) -> GatedRmsnormParams {
    GatedRmsnormParams { rows: rows as u32, width: width as u32, eps, block: BLOCK as u32 }
}

fn shader(entry: &'static str, width: usize) -> Shader {
    let shader = Shader::new("gated_rmsnorm", entry)
        .with("WG", ROW_WORKGROUP as f64)
        .with("LANES", row_lanes(width, &[width]) as f64);
    in_values(shader, &[width])
}

fn grid(rows: usize, width: usize) -> [u32; 3] {
    grid_1d(rows, ROW_WORKGROUP / row_lanes(width, &[width]))
}

/// Computes y from o, z (rows, width) and w (width); saves r = 1/√(mean o² + eps) (rows). Rows are tokens × value heads.
#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's parameters and bindings")]
pub fn gated_rmsnorm_fwd(
    rec: &mut Recording,
    rows: usize,
    width: usize,
    eps: f32,
    o: &Slot,
    z: &Slot,
    w: &Slot,
    r_saved: &Slot,
    y: &Slot,
) {
    let flops = 10 * (rows * width) as u64;
    let (shader, grid) = (shader("gated_rmsnorm_fwd", width), grid(rows, width));
    rec.dispatch(&shader, &params(rows, width, eps), &[o, z, w, r_saved, y], grid, flops);
}

/// Computes d_o and d_z (rows, width) from d_y; all of both is written.
#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's bindings, in order")]
pub fn gated_rmsnorm_bwd(
    rec: &mut Recording,
    rows: usize,
    width: usize,
    o: &Slot,
    z: &Slot,
    w: &Slot,
    r_saved: &Slot,
    d_y: &Slot,
    d_o: &Slot,
    d_z: &Slot,
) {
    let flops = 20 * (rows * width) as u64;
    let (shader, grid) = (shader("gated_rmsnorm_bwd", width), grid(rows, width));
    rec.dispatch(&shader, &params(rows, width, 0.0), &[o, z, w, r_saved, d_y, d_o, d_z], grid, flops);
}

/// Computes d_w (width) += Σ over rows of d_y·o·r·silu(z).
#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's bindings, in order")]
pub fn gated_rmsnorm_bwd_w(
    rec: &mut Recording,
    rows: usize,
    width: usize,
    o: &Slot,
    z: &Slot,
    r_saved: &Slot,
    d_y: &Slot,
    d_w: &Slot,
) {
    let blocks = rows.div_ceil(BLOCK);
    let partial = rec.gpu().alloc_activation(blocks * width);
    let grid = [(width / self::width(&[width])).div_ceil(ROW_WORKGROUP) as u32, blocks as u32, 1];
    let flops = 8 * (rows * width) as u64;
    let shader = shader("gated_rmsnorm_bwd_w", width);
    rec.dispatch(&shader, &params(rows, width, 0.0), &[o, z, r_saved, d_y, &partial], grid, flops);
    column_sum::column_sum(rec, &partial, blocks, width, 0, width, d_w);
}

/// Gated RMSNorm kernels: `gated_rmsnorm_fwd`, `gated_rmsnorm_bwd`, `gated_rmsnorm_bwd_w`.
pub struct GatedRmsnormKernels;

const ENTRIES: [&str; 3] = ["gated_rmsnorm_fwd", "gated_rmsnorm_bwd", "gated_rmsnorm_bwd_w"];

impl Kernel for GatedRmsnormKernels {
    fn name(&self) -> &'static str {
        "gated_rmsnorm"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["gated_rmsnorm"]
    }
    fn variants(&self) -> Vec<Shader> {
        [5, 128].into_iter().flat_map(|width| ENTRIES.map(|entry| shader(entry, width))).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("GatedRmsnormParams", size_of::<GatedRmsnormParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        // Both sides of Values per invocation, of invocations per row, and of rows per workgroup and block.
        let cases = [(2, 3), (65, 5), (64, 8), (130, 60), (7, 66), (66, 128), (3, 260), (2, 67)];
        cases.map(|(rows, width)| Box::new(GatedRmsnormCase { rows, width }) as Box<dyn Case>).into()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        vec![Box::new(GatedRmsnormCase { rows: t * model.n_heads, width: model.head_dim })]
    }
}

const EPS: f32 = 1e-5;

struct GatedRmsnormCase {
    rows: usize,
    width: usize,
}

impl GatedRmsnormCase {
    /// Returns r of a row: `Qwen3NextRMSNormGated` of transformers 5.24.0, models/qwen3_next/modeling_qwen3_next.py (`Qwen3_5RMSNormGated` in
    /// models/qwen3_5/modular_qwen3_5.py), which multiplies by its weight, then by silu(z).
    fn r(&self, o: &[f64], row: usize) -> f64 {
        let o = &o[row * self.width..][..self.width];
        1.0 / (o.iter().map(|o| o * o).sum::<f64>() / self.width as f64 + f64::from(EPS)).sqrt()
    }
}

impl Case for GatedRmsnormCase {
    fn label(&self) -> String {
        format!("rows={} dv={}", self.rows, self.width)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let n = self.rows * self.width;
        vec![HostTensor::normal(rng, n), HostTensor::normal(rng, n), HostTensor::normal(rng, self.width)]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let r: Vec<f64> = (0..self.rows).map(|row| self.r(&x[0], row)).collect();
        let y = |n: usize| {
            let (o, z) = (x[0][n], x[1][n]);
            o * r[n / self.width] * x[2][n % self.width] * z / (1.0 + (-z).exp())
        };
        vec![(0..self.rows * self.width).map(y).collect(), r]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (mut d_o, mut d_z, mut d_w) = (vec![0.0; x[0].len()], vec![0.0; x[1].len()], vec![0.0; self.width]);
        for row in 0..self.rows {
            let (r, start) = (self.r(&x[0], row), row * self.width);
            let mut d_r = 0.0;
            for i in 0..self.width {
                let (o, z, w, d) = (x[0][start + i], x[1][start + i], x[2][i], d_y[0][start + i]);
                let s = 1.0 / (1.0 + (-z).exp());
                d_w[i] += d * o * r * z * s;
                d_z[start + i] = d * o * r * w * (s + z * s * (1.0 - s));
                d_o[start + i] = d * r * w * z * s;
                d_r += d * o * w * z * s;
            }
            for i in 0..self.width {
                d_o[start + i] -= d_r * r.powi(3) * x[0][start + i] / self.width as f64;
            }
        }
        vec![d_o, d_z, d_w]
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.rows * self.width]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let (rows, width, n) = (self.rows, self.width, self.rows * self.width);
        let [y, r, d_o, d_z, d_w] = [n, rows, n, n, width].map(|n| rec.gpu().alloc_activation(n));
        gated_rmsnorm_fwd(rec, rows, width, EPS, &x[0], &x[1], &x[2], &r, &y);
        gated_rmsnorm_bwd(rec, rows, width, &x[0], &x[1], &x[2], &r, &d_y[0], &d_o, &d_z);
        rec.clear(&d_w);
        gated_rmsnorm_bwd_w(rec, rows, width, &x[0], &x[1], &r, &d_y[0], &d_w);
        CaseOutputs { y: vec![y, r], d_x: vec![Some(d_o), Some(d_z), Some(d_w)] }
    }
    fn reduction_len(&self) -> usize {
        self.rows.max(self.width)
    }
    fn cost(&self) -> Cost {
        let n = (self.rows * self.width) as u64;
        Cost { bytes: 4 * 8 * n, flops: 38 * n }
    }
}
