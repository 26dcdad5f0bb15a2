//! Rows of tokens in the order of experts: gathered before the experts' products, and added up per token behind them.
//!
//! No kernel scatters. Each token sums its k rows in the order of its choices, so a token's result does not depend on the others.

use super::router::{ExpertChoice, SortedRows};
use super::shapes::ModelShape;
use super::storage::WeightFormat;
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
    start: u32,
    stride: u32,
    bias_width: u32,
    bias_first: u32,
    bias_step: u32,
}

fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}

fn shader(entry: &'static str, width: usize) -> Shader {
    in_values(Shader::new("expert_rows", entry).with("WG", ROW_WORKGROUP as f64), &[width])
}

fn sum_shader(width: usize, weighted: bool, residual: bool, accumulate: bool) -> Shader {
    shader("expert_rows_sum", width)
        .with("WEIGHTED", flag(weighted))
        .with("RESIDUAL", flag(residual))
        .with("ACCUMULATE", flag(accumulate))
}

fn backward_shader(width: usize, stores_a: bool) -> Shader {
    let lanes = row_lanes(width, &[width]);
    shader("expert_rows_bwd", width).with("LANES", lanes as f64).with("STORE_A", flag(stores_a))
}

fn bias_shader(weighted: bool) -> Shader {
    shader("expert_rows_bwd_bias", 1).with("WEIGHTED", flag(weighted))
}

fn bias_weights_shader(width: usize) -> Shader {
    shader("expert_rows_bwd_bias_w", 1).with("LANES", row_lanes(width, &[1]) as f64)
}

fn params(rows: usize, width: usize, top_k: usize) -> ExpertRowsParams {
    ExpertRowsParams { rows: rows as u32, width: width as u32, top_k: top_k as u32, ..bytemuck::Zeroable::zeroed() }
}

/// Columns of a slot of rows to which biases of experts belong: column `start + i` has element `first + step·i` of its expert's bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BiasColumns {
    /// First column.
    pub start: usize,
    /// Elements per row of the slot.
    pub stride: usize,
    /// Number of columns.
    pub width: usize,
    /// First element of an expert's bias.
    pub first: usize,
    /// Elements from one column's to the next one's: 2 where gate and up alternate.
    pub step: usize,
    /// Elements of an expert's bias.
    pub bias_width: usize,
}

impl BiasColumns {
    fn params(self, rows: usize) -> ExpertRowsParams {
        let Self { start, stride, width, first, step, bias_width } = self;
        ExpertRowsParams {
            start: start as u32,
            stride: stride as u32,
            bias_width: bias_width as u32,
            bias_first: first as u32,
            bias_step: step as u32,
            ..params(rows, width, 1)
        }
    }

    fn grid(self, rows: usize) -> [u32; 2] {
        [self.width.div_ceil(ROW_WORKGROUP) as u32, rows as u32]
    }
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

/// Computes the gradient of the weights (T, k) of y = Σ_j w_j·(a_j·Wᵀ). On entry, `d` (T·k, width) is d_y·W of each row, without the weight;
/// on return it is the gradient of a. Where `a_weighted` is given, it becomes w·a, from which the gradient of W follows.
#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's parameters and bindings")]
pub fn expert_rows_bwd(
    rec: &mut Recording,
    [t, top_k, width]: [usize; 3],
    rows: &SortedRows,
    choice: &ExpertChoice,
    a: &Slot,
    d: &Slot,
    d_weights: &Slot,
    a_weighted: Option<&Slot>,
) {
    let n = t * top_k;
    let mut slots = vec![&rows.source, &choice.weights, a, d, d_weights];
    slots.extend(a_weighted);
    let elements = n * width * (3 + usize::from(a_weighted.is_some()));
    let work = CountedWork::new((4 * n * width) as u64, 4 * elements as u64);
    let groups = n.div_ceil(ROW_WORKGROUP / row_lanes(width, &[width]));
    let shader = backward_shader(width, a_weighted.is_some());
    rec.dispatch_in_parts(&shader, &params(n, width, top_k), &slots, [groups as u32, 1], work);
}

/// Adds the biases (X, bias_width), f32 or bf16, of each row's expert to columns of y (T·k, stride).
pub fn expert_rows_bias(
    rec: &mut Recording,
    columns: BiasColumns,
    rows: &SortedRows,
    choice: &ExpertChoice,
    (bias, storage): (&Slot, WeightFormat),
    y: &Slot,
) {
    let n = rows.source.len();
    let work = CountedWork::new((n * columns.width) as u64, (12 * n * columns.width) as u64);
    let slots = [&rows.source, bias, &choice.chosen, y];
    rec.dispatch_in_parts(
        &storage.select(shader("expert_rows_bias", 1)),
        &columns.params(n),
        &slots,
        columns.grid(n),
        work,
    );
}

/// Adds the gradient of the biases (X, bias_width) from columns of d_y (T·k, stride). With `weighted`, d_y is that of each row's weighted
/// value.
pub fn expert_rows_bwd_bias(
    rec: &mut Recording,
    columns: BiasColumns,
    rows: &SortedRows,
    weighted: Option<&ExpertChoice>,
    d_y: &Slot,
    d_bias: &Slot,
) {
    let (n, experts) = (rows.source.len(), rows.offsets.len() - 1);
    let work = CountedWork::new((2 * n * columns.width) as u64, (4 * (n + experts) * columns.width) as u64);
    // A binding that nothing reads holds d_y.
    let slots = [&rows.source, &rows.offsets, d_y, weighted.map_or(d_y, |choice| &choice.weights), d_bias];
    let shader = bias_shader(weighted.is_some());
    rec.dispatch_in_parts(&shader, &columns.params(n), &slots, columns.grid(experts), work);
}

/// Adds the biases' part of the gradient of the weights (T, k): Σ_i bias·d_y, with the gradient d_y (T·k, width) of each row's weighted
/// value. `bias`: (X, width).
pub fn expert_rows_bwd_bias_w(
    rec: &mut Recording,
    width: usize,
    rows: &SortedRows,
    choice: &ExpertChoice,
    (bias, storage): (&Slot, WeightFormat),
    d_y: &Slot,
    d_weights: &Slot,
) {
    let n = rows.source.len();
    let work = CountedWork::new((2 * n * width) as u64, (8 * n * width) as u64);
    let slots = [&rows.source, bias, &choice.chosen, d_y, d_weights];
    let shader = storage.select(bias_weights_shader(width));
    let groups = n.div_ceil(ROW_WORKGROUP / row_lanes(width, &[1]));
    rec.dispatch_in_parts(&shader, &params(n, width, 1), &slots, [groups as u32, 1], work);
}

/// Row kernels: `expert_rows_gather`, `expert_rows_sum`, `expert_rows_bwd`, and those of biases.
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
            let gather = shader("expert_rows_gather", width);
            let sums = [(true, true, false), (true, false, false), (false, false, false), (false, false, true)];
            let sums = sums.map(|(weighted, residual, adds)| sum_shader(width, weighted, residual, adds));
            let backward = [false, true].map(|stores_a| backward_shader(width, stores_a));
            std::iter::once(gather).chain(sums).chain(backward)
        };
        let formats = [WeightFormat::F32, WeightFormat::Bf16];
        let of_biases = [shader("expert_rows_bias", 1), bias_weights_shader(64)].into_iter();
        let of_biases = of_biases.flat_map(|shader| formats.map(|storage| storage.select(shader.clone())));
        let of_biases = of_biases.chain([false, true].map(bias_shader));
        [5, 4].into_iter().flat_map(of_width).chain(of_biases).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("ExpertRowsParams", uniform_bytes_in_parts::<ExpertRowsParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let shapes = [(1, 1, 1), (3, 2, 5), (17, 4, 64), (9, 3, 260), (65, 2, 68), (5, 8, 12)];
        let gathers = shapes.map(|(t, top_k, width)| Box::new(GatherCase { t, top_k, width }) as Box<dyn Case>);
        let sums = shapes.into_iter().flat_map(|(t, top_k, width)| {
            [false, true]
                .map(|residual| Box::new(SumCase { rows: GatherCase { t, top_k, width }, residual }) as Box<dyn Case>)
        });
        let biases = shapes.into_iter().flat_map(|(t, top_k, width)| {
            [(false, WeightFormat::F32), (true, WeightFormat::F32), (true, WeightFormat::Bf16)].map(
                |(weighted, storage)| {
                    let rows = GatherCase { t, top_k, width };
                    Box::new(BiasCase { rows, weighted, storage }) as Box<dyn Case>
                },
            )
        });
        gathers.into_iter().chain(sums).chain(biases).collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        let rows = || GatherCase { t, top_k: 8, width: model.d_model };
        vec![Box::new(rows()), Box::new(SumCase { rows: rows(), residual: true })]
    }
}

/// Case of a gather; its backward pass is a sum without weights.
struct GatherCase {
    t: usize,
    top_k: usize,
    width: usize,
}

impl GatherCase {
    fn shape(&self) -> [usize; 3] {
        [self.t, self.top_k, self.width]
    }

    /// Returns a permutation of the choices: the choice of each row.
    fn source(&self) -> Vec<u32> {
        let mut rng = Rng::new((self.t * self.top_k) as u64, 31);
        let mut all: Vec<u32> = (0..(self.t * self.top_k) as u32).collect();
        (1..all.len()).rev().for_each(|i| all.swap(i, rng.below(i as u32 + 1) as usize));
        all
    }

    /// Uploads the order of rows. It has no tiles, because no product reads them.
    fn sorted(&self, rec: &Recording) -> SortedRows {
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

impl Case for GatherCase {
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
    rows: GatherCase,
    residual: bool,
}

impl Case for SumCase {
    fn label(&self) -> String {
        let GatherCase { t, top_k, width } = self.rows;
        format!("sum T={t} k={top_k} width={width}{}", if self.residual { " residual" } else { "" })
    }
    /// Draws x (T·k, width) in the order of experts, w (T, k) and the residual (T, width).
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let GatherCase { t, top_k, width } = self.rows;
        let residual = if self.residual { t * width } else { 0 };
        let mut all = vec![HostTensor::normal(rng, t * top_k * width), HostTensor::normal(rng, t * top_k)];
        all.extend((residual > 0).then(|| HostTensor::normal(rng, residual)));
        all
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let GatherCase { t, top_k, width } = self.rows;
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
        let GatherCase { top_k, width, .. } = self.rows;
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
        expert_rows_bwd(rec, shape, &sorted, &choice, &x[0], &d_x, &d_w, Some(&weighted));
        // Without `a_weighted`, the kernel computes the same.
        let again = gpu.alloc_activation(x[0].len());
        expert_rows_gather(rec, shape, &sorted.source, &d_y[0], &again);
        expert_rows_bwd(rec, shape, &sorted, &choice, &x[0], &again, &d_w, None);
        let d_residual = self.residual.then(|| Some(d_y[0].clone()));
        CaseOutputs { y: vec![y, weighted], d_x: [Some(again), Some(d_w)].into_iter().chain(d_residual).collect() }
    }
    fn reduction_len(&self) -> usize {
        self.rows.width.max(self.rows.top_k)
    }
    fn cost(&self) -> Cost {
        let n = (self.rows.t * self.rows.top_k * self.rows.width) as u64;
        Cost { bytes: 4 * 8 * n, flops: 6 * n }
    }
}

/// Experts of [`BiasCase`].
const EXPERTS: usize = 3;

/// Case of biases: those of gate and up, which alternate, or one that is added before the router's weight: y = w·(x + bias).
struct BiasCase {
    rows: GatherCase,
    weighted: bool,
    storage: WeightFormat,
}

impl BiasCase {
    /// Returns the choice and the expert of each row, by expert. The second expert has no rows.
    fn experts(&self) -> (Vec<u32>, Vec<usize>) {
        let n = (self.rows.t * self.rows.top_k) as u32;
        let expert = |c: u32| if c % 2 == 0 { 0 } else { 2 };
        let mut source = self.rows.source();
        source.sort_by_key(|&c| expert(c));
        let of_rows = source.iter().map(|&c| expert(c)).collect();
        assert_eq!(source.len(), n as usize);
        (source, of_rows)
    }

    /// Returns the columns of y that have biases: all of them, or gate and up, each `width` wide.
    fn columns(&self) -> Vec<BiasColumns> {
        let width = self.rows.width;
        if self.weighted {
            return vec![BiasColumns { start: 0, stride: width, width, first: 0, step: 1, bias_width: width }];
        }
        let half =
            |n| BiasColumns { start: n * width, stride: 2 * width, width, first: n, step: 2, bias_width: 2 * width };
        vec![half(0), half(1)]
    }

    /// Returns the elements per row of y.
    fn stride(&self) -> usize {
        self.columns()[0].stride
    }

    /// Returns (index in y, index in the bias, row) of each element.
    fn elements(&self) -> Vec<(usize, usize, usize)> {
        let (_, experts) = self.experts();
        let mut all = Vec::new();
        for (row, &e) in experts.iter().enumerate() {
            for c in self.columns() {
                let place = |i| (row * c.stride + c.start + i, e * c.bias_width + c.first + c.step * i, row);
                all.extend((0..c.width).map(place));
            }
        }
        all
    }
}

impl Case for BiasCase {
    fn label(&self) -> String {
        let GatherCase { t, top_k, width } = self.rows;
        let weighted = if self.weighted { " weighted" } else { "" };
        format!("bias T={t} k={top_k} width={width} {:?}{weighted}", self.storage)
    }
    /// Draws x (T·k, stride), the biases (X, stride), and w (T, k) of a weighted case.
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let (n, stride) = (self.rows.t * self.rows.top_k, self.stride());
        let bias = match self.storage {
            WeightFormat::Bf16 => HostTensor::normal_bf16(rng, EXPERTS * stride),
            _ => HostTensor::normal(rng, EXPERTS * stride),
        };
        let mut all = vec![HostTensor::normal(rng, n * stride), bias];
        all.extend(self.weighted.then(|| HostTensor::normal(rng, n)));
        all
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (source, _) = self.experts();
        let mut y = vec![0.0; x[0].len()];
        for (at, bias, row) in self.elements() {
            let w = if self.weighted { x[2][source[row] as usize] } else { 1.0 };
            y[at] = w * (x[0][at] + x[1][bias]);
        }
        vec![y]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (source, _) = self.experts();
        let mut d: Vec<Vec<f64>> = x.iter().map(|x| vec![0.0; x.len()]).collect();
        for (at, bias, row) in self.elements() {
            let c = source[row] as usize;
            let w = if self.weighted { x[2][c] } else { 1.0 };
            d[0][at] = w * d_y[0][at];
            d[1][bias] += w * d_y[0][at];
            if self.weighted {
                d[2][c] += (x[0][at] + x[1][bias]) * d_y[0][at];
            }
        }
        d
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.rows.t * self.rows.top_k * self.stride()]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let (gpu, n, width) = (rec.gpu(), self.rows.t * self.rows.top_k, self.rows.width);
        let (source, experts) = self.experts();
        let mut chosen = vec![0_u32; n];
        source.iter().zip(&experts).for_each(|(&c, &e)| chosen[c as usize] = e as u32);
        let offsets: Vec<u32> = (0..=EXPERTS).map(|e| experts.partition_point(|&own| own < e) as u32).collect();
        let rows = SortedRows { offsets: gpu.upload(&offsets), source: gpu.upload(&source), ..self.rows.sorted(rec) };
        let weights = x.get(2).cloned().unwrap_or_else(|| gpu.alloc_activation(n));
        let choice = ExpertChoice { chosen: gpu.upload(&chosen), weights };
        let y = gpu.alloc_activation(x[0].len());
        rec.copy(&x[0], &y);
        for columns in self.columns() {
            expert_rows_bias(rec, columns, &rows, &choice, (&x[1], self.storage), &y);
        }
        let d_bias = gpu.alloc_activation(EXPERTS * self.stride());
        rec.clear(&d_bias);
        for columns in self.columns() {
            let weighted = self.weighted.then_some(&choice);
            expert_rows_bwd_bias(rec, columns, &rows, weighted, &d_y[0], &d_bias);
        }
        if !self.weighted {
            return CaseOutputs { y: vec![y], d_x: vec![Some(d_y[0].clone()), Some(d_bias)] };
        }
        // The rest of a product with the identity: the sum of one row per choice, and its gradients.
        let (d_x, d_w) = (gpu.alloc_activation(x[0].len()), gpu.alloc_activation(n));
        rec.copy(&d_y[0], &d_x);
        let shape = [n, 1, width];
        expert_rows_bwd(rec, shape, &rows, &choice, &x[0], &d_x, &d_w, None);
        expert_rows_bwd_bias_w(rec, width, &rows, &choice, (&x[1], self.storage), &d_y[0], &d_w);
        // Each row gets the weight of its own choice.
        let unread = gpu.alloc_activation(n);
        expert_rows_bwd(rec, shape, &rows, &choice, &x[0], &y, &unread, None);
        CaseOutputs { y: vec![y], d_x: vec![Some(d_x), Some(d_bias), Some(d_w)] }
    }
    fn reduction_len(&self) -> usize {
        (self.rows.t * self.rows.top_k).max(self.rows.width)
    }
    fn cost(&self) -> Cost {
        let n = (self.rows.t * self.rows.top_k * self.stride()) as u64;
        Cost { bytes: 4 * 6 * n, flops: 6 * n }
    }
}
