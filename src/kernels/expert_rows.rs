//! Rows of tokens in the order of experts: gathered before the experts' products, and added up per token behind them.
//!
//! No kernel scatters. Each token sums its k rows in the order of its choices, so a token's result does not depend on the others.

use super::router::{ExpertChoice, SortedRows};
use super::shapes::ModelShape;
use super::value::{ROW_WORKGROUP, in_values, row_lanes, width};
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, CountedWork, Recording, Shader, Slot, uniform_bytes_in_parts};
use crate::rng::Rng;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ExpertRowsParams {
    rows: u32,
    width: u32,
    top_k: u32,
    pad: u32,
}

fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}

fn shader(entry: &'static str, width: usize) -> Shader {
    let shader = Shader::new("expert_rows", entry)
        .with("WG", ROW_WORKGROUP as f64)
        .with("LANES", row_lanes(width, &[width]) as f64);
    in_values(shader, &[width])
}

fn sum_shader(width: usize, weighted: bool, residual: bool, accumulate: bool) -> Shader {
    shader("expert_rows_sum", width)
        .with("WEIGHTED", flag(weighted))
        .with("RESIDUAL", flag(residual))
        .with("ACCUMULATE", flag(accumulate))
}

fn params(rows: usize, width: usize, top_k: usize) -> ExpertRowsParams {
    ExpertRowsParams { rows: rows as u32, width: width as u32, top_k: top_k as u32, pad: 0 }
}

fn grid(rows: usize, columns: usize) -> [u32; 2] {
    [(columns / width(&[columns])).div_ceil(ROW_WORKGROUP) as u32, rows as u32]
}

/// Gathers rows of x (T, width) into y (T·k, width), in the order of experts.
pub fn expert_rows_gather(rec: &mut Recording, [t, top_k, width]: [usize; 3], source: &Slot, x: &Slot, y: &Slot) {
    let (rows, work) = (t * top_k, CountedWork::new(0, (8 * t * top_k * width) as u64));
    let params = params(rows, width, top_k);
    rec.dispatch_in_parts(&shader("expert_rows_gather", width), &params, &[source, x, y], grid(rows, width), work);
}

/// Addends of [`expert_rows_sum`] beside the rows.
#[derive(Debug, Clone, Copy, Default)]
pub struct RowSum<'a> {
    /// Weight of each choice: (T, k); ones where it is absent.
    pub weights: Option<&'a Slot>,
    /// Residual: (T, width).
    pub residual: Option<&'a Slot>,
    /// Whether to add to y instead of replacing it.
    pub accumulate: bool,
}

/// Sums each token's k rows of x (T·k, width) into y (T, width).
pub fn expert_rows_sum(
    rec: &mut Recording,
    [t, top_k, width]: [usize; 3],
    row_of: &Slot,
    x: &Slot,
    sum: RowSum,
    y: &Slot,
) {
    let RowSum { weights, residual, accumulate } = sum;
    let shader = sum_shader(width, weights.is_some(), residual.is_some(), accumulate);
    // A binding that nothing reads holds x.
    let slots = [row_of, x, y, weights.unwrap_or(x), residual.unwrap_or(x)];
    let elements = t * width * (top_k + 1 + usize::from(residual.is_some()) + usize::from(accumulate));
    let work = CountedWork::new((2 * t * top_k * width) as u64, 4 * elements as u64);
    rec.dispatch_in_parts(&shader, &params(t, width, top_k), &slots, grid(t, width), work);
}

/// Computes y (T·k, width): each row of x times its choice's weight.
pub fn expert_rows_weigh(
    rec: &mut Recording,
    width: usize,
    rows: &SortedRows,
    choice: &ExpertChoice,
    x: &Slot,
    y: &Slot,
) {
    let n = rows.source.len();
    let work = CountedWork::new((n * width) as u64, (8 * n * width) as u64);
    let slots = [&rows.source, x, y, &choice.weights];
    let params = params(n, width, 1);
    rec.dispatch_in_parts(&shader("expert_rows_weigh", width), &params, &slots, grid(n, width), work);
}

/// Computes the gradient of the weights (T, k) of y = Σ_j w_j·(a_j·Wᵀ). On entry, `d` (T·k, width) is d_y·W of each row, without the weight;
/// on return it is the gradient of a.
pub fn expert_rows_bwd(
    rec: &mut Recording,
    width: usize,
    rows: &SortedRows,
    choice: &ExpertChoice,
    (a, d): (&Slot, &Slot),
    d_weights: &Slot,
) {
    let n = rows.source.len();
    let slots = [&rows.source, &choice.weights, a, d, d_weights];
    let work = CountedWork::new((4 * n * width) as u64, (12 * n * width) as u64);
    let groups = n.div_ceil(ROW_WORKGROUP / row_lanes(width, &[width]));
    let (shader, params) = (shader("expert_rows_bwd", width), params(n, width, 1));
    rec.dispatch_in_parts(&shader, &params, &slots, [groups as u32, 1], work);
}

/// Row kernels: `expert_rows_gather`, `expert_rows_sum`, `expert_rows_weigh`, `expert_rows_bwd`.
pub struct ExpertRowsKernels;

impl Kernel for ExpertRowsKernels {
    fn name(&self) -> &'static str {
        "expert_rows"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["expert_rows"]
    }
    fn variants(&self) -> Vec<Shader> {
        let of_width = |width: usize| {
            let others = ["expert_rows_gather", "expert_rows_weigh", "expert_rows_bwd"];
            let others = others.map(|entry| shader(entry, width));
            let sums = [(true, true, false), (true, false, false), (false, false, false), (false, false, true)];
            let sums = sums.map(|(weighted, residual, adds)| sum_shader(width, weighted, residual, adds));
            others.into_iter().chain(sums)
        };
        [5, 4].into_iter().flat_map(of_width).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("ExpertRowsParams", uniform_bytes_in_parts::<ExpertRowsParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let shapes = [(1, 1, 1), (3, 2, 5), (17, 4, 64), (9, 3, 260), (65, 2, 68), (5, 8, 12)];
        let gathers = shapes.map(|(t, top_k, width)| Box::new(ExpertGatherCase { t, top_k, width }) as Box<dyn Case>);
        let sums = shapes.into_iter().flat_map(|(t, top_k, width)| {
            [false, true].map(|residual| {
                Box::new(SumCase { rows: ExpertGatherCase { t, top_k, width }, residual }) as Box<dyn Case>
            })
        });
        gathers.into_iter().chain(sums).collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        let rows = || ExpertGatherCase { t, top_k: 8, width: model.d_model };
        vec![Box::new(rows()), Box::new(SumCase { rows: rows(), residual: true })]
    }
}

/// Case of a gather; its backward pass is a sum without weights.
pub(super) struct ExpertGatherCase {
    pub t: usize,
    pub top_k: usize,
    pub width: usize,
}

impl ExpertGatherCase {
    fn shape(&self) -> [usize; 3] {
        [self.t, self.top_k, self.width]
    }

    /// Returns a permutation of the choices: the choice of each row.
    pub fn source(&self) -> Vec<u32> {
        let mut rng = Rng::new((self.t * self.top_k) as u64, 31);
        let mut all: Vec<u32> = (0..(self.t * self.top_k) as u32).collect();
        (1..all.len()).rev().for_each(|i| all.swap(i, rng.below(i as u32 + 1) as usize));
        all
    }

    /// Uploads the order of rows. It has no tiles, because no product reads them.
    pub fn sorted(&self, rec: &Recording) -> SortedRows {
        let source = self.source();
        let mut row_of = vec![0_u32; source.len()];
        source.iter().enumerate().for_each(|(row, &c)| row_of[c as usize] = row as u32);
        let gpu = rec.gpu();
        let none = gpu.alloc_activation(1);
        SortedRows {
            offsets: none.clone(),
            tiles: none,
            n_tiles: 0,
            tile_rows: 1,
            row_of: gpu.upload(&row_of),
            source: gpu.upload(&source),
        }
    }
}

impl Case for ExpertGatherCase {
    fn label(&self) -> String {
        format!("gather T={} k={} width={}", self.t, self.top_k, self.width)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        vec![HostTensor::normal(rng, self.t * self.width)]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let row = |c: u32| &x[0][c as usize / self.top_k * self.width..][..self.width];
        vec![self.source().into_iter().flat_map(row).copied().collect()]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut d_x = vec![0.0; x[0].len()];
        for (row, c) in self.source().into_iter().enumerate() {
            for i in 0..self.width {
                d_x[c as usize / self.top_k * self.width + i] += d_y[0][row * self.width + i];
            }
        }
        vec![d_x]
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.t * self.top_k * self.width]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let sorted = self.sorted(rec);
        let y = rec.gpu().alloc_activation(self.t * self.top_k * self.width);
        let d_x = rec.gpu().alloc_activation(x[0].len());
        expert_rows_gather(rec, self.shape(), &sorted.source, &x[0], &y);
        // Adds the sum to zeros.
        rec.clear(&d_x);
        let sum = RowSum { accumulate: true, ..RowSum::default() };
        expert_rows_sum(rec, self.shape(), &sorted.row_of, &d_y[0], sum, &d_x);
        CaseOutputs { y: vec![y], d_x: vec![Some(d_x)] }
    }
    fn reduction_len(&self) -> usize {
        self.top_k
    }
    fn cost(&self) -> Cost {
        let n = (self.t * self.top_k * self.width) as u64;
        Cost { bytes: 4 * 4 * n, flops: n }
    }
}

/// Case of y[t] = Σ_j w_j·x_j (+ residual): the backward pass is that of a product with the identity.
struct SumCase {
    rows: ExpertGatherCase,
    residual: bool,
}

impl Case for SumCase {
    fn label(&self) -> String {
        let ExpertGatherCase { t, top_k, width } = self.rows;
        format!("sum T={t} k={top_k} width={width}{}", if self.residual { " residual" } else { "" })
    }
    /// Draws x (T·k, width) in the order of experts, w (T, k) and the residual (T, width).
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let ExpertGatherCase { t, top_k, width } = self.rows;
        let residual = if self.residual { t * width } else { 0 };
        let mut all = vec![HostTensor::normal(rng, t * top_k * width), HostTensor::normal(rng, t * top_k)];
        all.extend((residual > 0).then(|| HostTensor::normal(rng, residual)));
        all
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let ExpertGatherCase { t, top_k, width } = self.rows;
        let mut y = if self.residual { x[2].clone() } else { vec![0.0; t * width] };
        let mut weighted = vec![0.0; x[0].len()];
        for (row, c) in self.rows.source().into_iter().enumerate() {
            for i in 0..width {
                weighted[row * width + i] = x[1][c as usize] * x[0][row * width + i];
                y[c as usize / top_k * width + i] += weighted[row * width + i];
            }
        }
        vec![y, weighted]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let ExpertGatherCase { top_k, width, .. } = self.rows;
        let (mut d_x, mut d_w) = (vec![0.0; x[0].len()], vec![0.0; x[1].len()]);
        for (row, c) in self.rows.source().into_iter().enumerate() {
            for i in 0..width {
                let d = d_y[0][c as usize / top_k * width + i];
                d_x[row * width + i] = x[1][c as usize] * d;
                d_w[c as usize] += x[0][row * width + i] * d;
            }
        }
        let d_residual = self.residual.then(|| d_y[0].clone());
        [d_x, d_w].into_iter().chain(d_residual).collect()
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.rows.t * self.rows.width]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let (gpu, shape) = (rec.gpu(), self.rows.shape());
        let sorted = self.rows.sorted(rec);
        let choice = ExpertChoice { chosen: sorted.source.clone(), weights: x[1].clone() };
        let y = gpu.alloc_activation(self.rows.t * self.rows.width);
        let sum = RowSum { weights: Some(&x[1]), residual: x.get(2), accumulate: false };
        expert_rows_sum(rec, shape, &sorted.row_of, &x[0], sum, &y);
        let [d_x, weighted] = [(); 2].map(|()| gpu.alloc_activation(x[0].len()));
        let d_w = gpu.alloc_activation(x[1].len());
        expert_rows_gather(rec, shape, &sorted.source, &d_y[0], &d_x);
        expert_rows_bwd(rec, self.rows.width, &sorted, &choice, (&x[0], &d_x), &d_w);
        expert_rows_weigh(rec, self.rows.width, &sorted, &choice, &x[0], &weighted);
        let d_residual = self.residual.then(|| Some(d_y[0].clone()));
        CaseOutputs { y: vec![y, weighted], d_x: [Some(d_x), Some(d_w)].into_iter().chain(d_residual).collect() }
    }
    fn reduction_len(&self) -> usize {
        self.rows.width.max(self.rows.top_k)
    }
    fn cost(&self) -> Cost {
        let n = (self.rows.t * self.rows.top_k * self.rows.width) as u64;
        Cost { bytes: 4 * 8 * n, flops: 6 * n }
    }
}
