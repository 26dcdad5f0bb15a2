//! Gather and scatter of rows by index: hidden states that predict a scored token, and new keys and values for the KV cache.

use super::row_vec4s::{self, BASELINE, FLIGHT, ROWS};
use super::shapes::ModelShape;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, CountedWork, Gpu, Recording, Shader, Slot, Variant, uniform_bytes_in_parts};
use crate::rng::Rng;

/// Indices of gathered rows, and for each source row the outputs that use it.
#[derive(Debug)]
pub struct GatherIndices {
    rows: Slot,
    starts: Slot,
    uses: Slot,
    n: usize,
    t: usize,
}

impl GatherIndices {
    /// Uploads the indices `rows`, each below `t`, the number of source rows.
    pub fn new(gpu: &Gpu, rows: &[u32], t: usize) -> Self {
        let mut uses: Vec<u32> = (0..rows.len() as u32).collect();
        uses.sort_by_key(|&r| rows[r as usize]);
        let starts: Vec<u32> = (0..=t as u32).map(|x| uses.partition_point(|&r| rows[r as usize] < x) as u32).collect();
        Self { rows: gpu.upload(rows), starts: gpu.upload(&starts), uses: gpu.upload(&uses), n: rows.len(), t }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GatherParams {
    width: u32,
    start: u32,
    stride: u32,
    n: u32,
}

fn shader(entry: &'static str) -> Shader {
    Shader::new("gather", entry).with("WG", 64.0)
}

fn shader_rows(entry: &'static str) -> Shader {
    Shader::new("gather_rows", entry).unroll("FLIGHT", FLIGHT)
}

/// vec4s of columns and rows per workgroup of gather_rows.wgsl: its COLUMNS and BLOCK.
const BLOCK: [usize; 2] = [16, 4 * FLIGHT];

fn params(width: usize, n: usize) -> GatherParams {
    GatherParams { width: width as u32, start: 0, stride: 0, n: n as u32 }
}

fn grid(width: usize, rows: usize) -> [u32; 2] {
    [width.div_ceil(64) as u32, rows as u32]
}

fn grid_rows(width: usize, rows: usize) -> [u32; 2] {
    [(width / 4).div_ceil(BLOCK[0]) as u32, rows.div_ceil(BLOCK[1]) as u32]
}

/// Computes y (N, width): the rows of x at `indices`.
pub fn gather_fwd(rec: &mut Recording, indices: &GatherIndices, width: usize, x: &Slot, y: &Slot) {
    let (shader, grid) = if row_vec4s::in_vec4s(rec, &[width]) {
        (shader_rows("gather_rows_fwd"), grid_rows(width, indices.n))
    } else {
        (shader("gather_fwd"), grid(width, indices.n))
    };
    let work = CountedWork::new(0, 8 * (indices.n * width) as u64);
    rec.dispatch_in_parts(&shader, &params(width, indices.n), &[&indices.rows, x, y], grid, work);
}

/// Computes d_x (T, width) from d_y (N, width); all rows are written.
pub fn gather_bwd(rec: &mut Recording, indices: &GatherIndices, width: usize, d_y: &Slot, d_x: &Slot) {
    let slots = [&indices.starts, &indices.uses, d_y, d_x];
    let (shader, grid) = if row_vec4s::in_vec4s(rec, &[width]) {
        (shader_rows("gather_rows_bwd"), grid_rows(width, indices.t))
    } else {
        (shader("gather_bwd"), grid(width, indices.t))
    };
    rec.dispatch_in_parts(&shader, &params(width, indices.t), &slots, grid, (indices.n * width) as u64);
}

/// Writes `y[rows[r]]` (width) = `x[r, start .. start + width]` for the `n` distinct indices `rows`, which are on the device.
#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's parameters and bindings")]
pub fn gather_scatter(
    rec: &mut Recording,
    rows: &Slot,
    n: usize,
    x: &Slot,
    start: usize,
    stride: usize,
    width: usize,
    y: &Slot,
) {
    let work = CountedWork::new(0, 8 * (n * width) as u64);
    let params = GatherParams { start: start as u32, stride: stride as u32, ..params(width, n) };
    rec.dispatch_in_parts(&shader("gather_scatter"), &params, &[rows, x, y], grid(width, n), work);
}

/// Gather kernels: `gather_fwd`, `gather_bwd`, `gather_scatter`, `gather_rows_fwd`, `gather_rows_bwd`.
pub struct GatherKernels;

impl Kernel for GatherKernels {
    fn name(&self) -> &'static str {
        "gather"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["gather", "gather_rows"]
    }
    fn variants(&self) -> Vec<Shader> {
        let baseline = ["gather_fwd", "gather_bwd", "gather_scatter"].map(shader);
        baseline.into_iter().chain(["gather_rows_fwd", "gather_rows_bwd"].map(shader_rows)).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("GatherParams", uniform_bytes_in_parts::<GatherParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let make = |rows: &[u32], t, width| GatherCase { rows: rows.to_vec(), t, width, allowed: BASELINE };
        let baseline = [make(&[0], 1, 1), make(&[2, 0, 2, 3], 5, 65), make(&[9, 1, 4, 4, 4], 10, 64)];
        // Both sides of an invocation's rows, of a workgroup's rows, and of its columns.
        let rows = [(1, 1, 4), (4, 3, 60), (5, 10, 64), (16, 15, 68), (17, 40, 252), (40, 17, 260), (9, 200, 576)];
        let rows = rows.map(|(n, t, width)| some_rows(n, t, width));
        baseline.into_iter().chain(rows).map(|case| Box::new(case) as Box<dyn Case>).collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
        // Half of the tokens predict a scored token, as in responses.
        let rows = (0..t as u32).filter(|r| r % 2 == 1).collect();
        vec![Box::new(GatherCase { rows, t, width: model.d_model, allowed: row_vec4s::taken(caps) })]
    }
    fn variant_cases(&self, variant: Variant, _: &Caps) -> Vec<Box<dyn Case>> {
        match variant {
            Variant::Rows => vec![Box::new(some_rows(40, 17, 68))],
            _ => Vec::new(),
        }
    }
}

/// Returns the case of `n` rows of `t`, the last of which has no use, of gather_rows.wgsl.
fn some_rows(n: usize, t: usize, width: usize) -> GatherCase {
    let mut rng = Rng::new(n as u64, 5);
    let rows = (0..n).map(|_| rng.below((t as u32 - 1).max(1))).collect();
    GatherCase { rows, t, width, allowed: ROWS }
}

/// Case of y = `x[rows]`, whose rows are then scattered without their first column.
struct GatherCase {
    rows: Vec<u32>,
    t: usize,
    width: usize,
    allowed: &'static [Variant],
}

impl Case for GatherCase {
    fn label(&self) -> String {
        let suffix = row_vec4s::suffix(self.allowed);
        format!("{} of {} width={}{suffix}", self.rows.len(), self.t, self.width)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        vec![HostTensor::normal(rng, self.t * self.width)]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let y: Vec<f64> =
            self.rows.iter().flat_map(|&r| x[0][r as usize * self.width..][..self.width].to_vec()).collect();
        // Row n goes to row 2n, without its first column.
        let mut scattered = vec![0.0; 2 * self.rows.len() * self.width];
        for n in 0..self.rows.len() {
            for i in 0..self.width - 1 {
                scattered[2 * n * (self.width - 1) + i] = y[n * self.width + 1 + i];
            }
        }
        vec![y, scattered]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut d = vec![0.0; x[0].len()];
        for (n, &r) in self.rows.iter().enumerate() {
            for i in 0..self.width {
                d[r as usize * self.width + i] += d_y[0][n * self.width + i];
            }
        }
        vec![d]
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.rows.len() * self.width]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let (gpu, n) = (rec.gpu(), self.rows.len());
        let indices = GatherIndices::new(gpu, &self.rows, self.t);
        let (y, d_x, scattered) = (
            gpu.alloc_activation(n * self.width),
            gpu.alloc_activation(x[0].len()),
            gpu.alloc_activation(2 * n * self.width),
        );
        rec.clear(&scattered);
        rec.with_variants(self.allowed, |rec| {
            gather_fwd(rec, &indices, self.width, &x[0], &y);
            gather_bwd(rec, &indices, self.width, &d_y[0], &d_x);
        });
        let targets = gpu.upload(&(0..n as u32).map(|r| 2 * r).collect::<Vec<_>>());
        gather_scatter(rec, &targets, n, &y, 1, self.width, self.width - 1, &scattered);
        CaseOutputs { y: vec![y, scattered], d_x: vec![Some(d_x)] }
    }
    fn reduction_len(&self) -> usize {
        self.rows.len()
    }
    fn is_supported(&self, caps: &Caps) -> bool {
        self.allowed.iter().all(|variant| caps.variants.contains(variant))
    }
    fn cost(&self) -> Cost {
        let n = (self.rows.len() * self.width) as u64;
        Cost { bytes: 4 * 6 * n, flops: n }
    }
}
