//! L2 normalisation of the queries and keys of linear attention, per head and in place: q/‖q‖·dk^−½ and k/‖k‖.

use super::delta_rule::DeltaHeads;
use super::shapes::ModelShape;
use super::value::{ROW_WORKGROUP, in_values, row_lanes};
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

/// ε under the root: the default of transformers' `l2norm`.
const EPS: f32 = 1e-6;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct L2normParams {
    rows: u32,
    key_heads: u32,
    width: u32,
    stride: u32,
    eps: f32,
    q_scale: f32,
    pad: [u32; 2],
}

fn shader(entry: &'static str, heads: &DeltaHeads) -> Shader {
    let sizes = [heads.key_dim, heads.width()];
    let shader = Shader::new("l2norm", entry)
        .with("WG", ROW_WORKGROUP as f64)
        .with("LANES", row_lanes(heads.key_dim, &sizes) as f64);
    in_values(shader, &sizes)
}

fn run(rec: &mut Recording, entry: &'static str, heads: &DeltaHeads, t: usize, slots: &[&Slot]) {
    let rows = t * 2 * heads.key_heads;
    let params = L2normParams {
        rows: rows as u32,
        key_heads: heads.key_heads as u32,
        width: heads.key_dim as u32,
        stride: heads.width() as u32,
        eps: EPS,
        q_scale: 1.0 / (heads.key_dim as f32).sqrt(),
        pad: [0; 2],
    };
    let lanes = row_lanes(heads.key_dim, &[heads.key_dim, heads.width()]);
    let flops = 4 * (rows * heads.key_dim) as u64;
    rec.dispatch(&shader(entry, heads), &params, slots, grid_1d(rows, ROW_WORKGROUP / lanes), flops);
}

/// Normalises the heads of q and k in `qkv` (T, 2·Hk·dk + Hv·dv), in place; q is also scaled by dk^−½. Saves r = 1/√(Σ x² + 1e-6) (T, 2·Hk).
pub fn l2norm_fwd(rec: &mut Recording, heads: &DeltaHeads, t: usize, qkv: &Slot, r_saved: &Slot) {
    run(rec, "l2norm_fwd", heads, t, &[qkv, r_saved]);
}

/// Turns the gradients of the normalised heads in `d_qkv` into those of the heads before, in place. `qkv` has the normalised heads.
pub fn l2norm_bwd(rec: &mut Recording, heads: &DeltaHeads, t: usize, qkv: &Slot, r_saved: &Slot, d_qkv: &Slot) {
    run(rec, "l2norm_bwd", heads, t, &[qkv, r_saved, d_qkv]);
}

/// L2 norm kernels: `l2norm_fwd`, `l2norm_bwd`.
pub struct L2normKernels;

fn heads(key_heads: usize, key_dim: usize, value_dim: usize) -> DeltaHeads {
    DeltaHeads { key_heads, value_heads: key_heads, key_dim, value_dim }
}

impl Kernel for L2normKernels {
    fn name(&self) -> &'static str {
        "l2norm"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["l2norm"]
    }
    fn variants(&self) -> Vec<Shader> {
        let sizes = [heads(1, 6, 8), heads(1, 128, 128)];
        sizes.iter().flat_map(|heads| ["l2norm_fwd", "l2norm_bwd"].map(|entry| shader(entry, heads))).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("L2normParams", size_of::<L2normParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        // Both sides of Values per invocation, of invocations per row, and of rows per workgroup.
        let cases = [(heads(1, 3, 1), 3), (heads(2, 6, 8), 9), (heads(1, 4, 4), 65), (heads(3, 60, 5), 7)];
        let more = [(heads(2, 128, 64), 5), (heads(1, 256, 8), 3)];
        cases.into_iter().chain(more).map(|(heads, t)| Box::new(L2normCase { heads, t }) as Box<dyn Case>).collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        vec![Box::new(L2normCase { heads: heads(model.n_heads, model.head_dim, model.head_dim), t })]
    }
}

struct L2normCase {
    heads: DeltaHeads,
    t: usize,
}

impl L2normCase {
    /// Returns for each row: its first element, its factor dk^−½ or 1, and r, as `l2norm` of transformers 5.24.0,
    /// models/qwen3_next/modeling_qwen3_next.py, and its caller `torch_chunk_gated_delta_rule`, which scales q.
    fn each(&self, x: &[f64]) -> Vec<(usize, f64, f64)> {
        let (h, d) = (&self.heads, self.heads.key_dim);
        let row = |n: usize| {
            let (t, head) = (n / (2 * h.key_heads), n % (2 * h.key_heads));
            let start = t * h.width() + head * d;
            let squares: f64 = x[start..start + d].iter().map(|x| x * x).sum();
            let scale = if head < h.key_heads { (d as f64).powf(-0.5) } else { 1.0 };
            (start, scale, 1.0 / (squares + f64::from(EPS)).sqrt())
        };
        (0..self.t * 2 * h.key_heads).map(row).collect()
    }
}

impl Case for L2normCase {
    fn label(&self) -> String {
        let DeltaHeads { key_heads, key_dim, .. } = self.heads;
        format!("T={} Hk={key_heads} dk={key_dim} stride={}", self.t, self.heads.width())
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        vec![HostTensor::normal(rng, self.t * self.heads.width())]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (mut y, rows) = (x[0].clone(), self.each(&x[0]));
        for &(start, scale, r) in &rows {
            y[start..start + self.heads.key_dim].iter_mut().for_each(|y| *y *= scale * r);
        }
        vec![y, rows.iter().map(|row| row.2).collect()]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut d_x = d_y[0].clone();
        for (start, scale, r) in self.each(&x[0]) {
            let row = start..start + self.heads.key_dim;
            let along: f64 = row.clone().map(|i| x[0][i] * d_y[0][i]).sum();
            row.for_each(|i| d_x[i] = scale * (r * d_y[0][i] - r.powi(3) * along * x[0][i]));
        }
        vec![d_x]
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.t * self.heads.width()]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let gpu = rec.gpu();
        let (y, d_x) = (gpu.alloc_activation(x[0].len()), gpu.alloc_activation(x[0].len()));
        let r = gpu.alloc_activation(self.t * 2 * self.heads.key_heads);
        rec.copy(&x[0], &y);
        rec.copy(&d_y[0], &d_x);
        l2norm_fwd(rec, &self.heads, self.t, &y, &r);
        l2norm_bwd(rec, &self.heads, self.t, &y, &r, &d_x);
        CaseOutputs { y: vec![y, r], d_x: vec![Some(d_x)] }
    }
    fn reduction_len(&self) -> usize {
        self.heads.key_dim
    }
    fn cost(&self) -> Cost {
        let n = (self.t * self.heads.key_width()) as u64;
        Cost { bytes: 4 * 5 * n, flops: 8 * n }
    }
}
