//! Biases of experts, on rows in the order of experts.

use super::expert_rows::{ExpertGatherCase, expert_rows_bwd, expert_rows_weigh};
use super::router::{ExpertChoice, SortedRows};
use super::shapes::ModelShape;
use super::storage::WeightFormat;
use super::value::{ROW_WORKGROUP, row_lanes};
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, CountedWork, Recording, Shader, Slot, uniform_bytes_in_parts};
use crate::rng::Rng;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ExpertBiasParams {
    rows: u32,
    width: u32,
    start: u32,
    stride: u32,
    bias_width: u32,
    bias_first: u32,
    bias_step: u32,
    pad: u32,
}

fn params(rows: usize, width: usize) -> ExpertBiasParams {
    ExpertBiasParams { rows: rows as u32, width: width as u32, ..bytemuck::Zeroable::zeroed() }
}

/// Specialises an entry point. Only sums along a row of `width` share the row among lanes.
fn shader(entry: &'static str, width: usize) -> Shader {
    let lanes = row_lanes(width, &[1]) as f64;
    Shader::new("expert_bias", entry).with("WG", ROW_WORKGROUP as f64).with("LANES", lanes)
}

fn bias_shader(weighted: bool) -> Shader {
    shader("expert_bias_bwd", 1).with("WEIGHTED", f64::from(u8::from(weighted)))
}

fn bias_weights_shader(width: usize) -> Shader {
    shader("expert_bias_bwd_w", width)
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
    fn params(self, rows: usize) -> ExpertBiasParams {
        let Self { start, stride, width, first, step, bias_width } = self;
        ExpertBiasParams {
            start: start as u32,
            stride: stride as u32,
            bias_width: bias_width as u32,
            bias_first: first as u32,
            bias_step: step as u32,
            ..params(rows, width)
        }
    }

    fn grid(self, rows: usize) -> [u32; 2] {
        [self.width.div_ceil(ROW_WORKGROUP) as u32, rows as u32]
    }
}

/// Adds the biases (X, bias_width), f32 or bf16, of each row's expert to columns of y (T·k, stride).
pub fn expert_bias_fwd(
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
        &storage.select(shader("expert_bias_fwd", 1)),
        &columns.params(n),
        &slots,
        columns.grid(n),
        work,
    );
}

/// Adds the gradient of the biases (X, bias_width) from columns of d_y (T·k, stride). With `weighted`, d_y is that of each row's weighted
/// value.
pub fn expert_bias_bwd(
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
pub fn expert_bias_bwd_w(
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
    rec.dispatch_in_parts(&shader, &params(n, width), &slots, [groups as u32, 1], work);
}

/// Bias kernels: `expert_bias_fwd`, `expert_bias_bwd`, `expert_bias_bwd_w`.
pub struct ExpertBiasKernels;

impl Kernel for ExpertBiasKernels {
    fn name(&self) -> &'static str {
        "expert_bias"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["expert_bias"]
    }
    fn variants(&self) -> Vec<Shader> {
        let formats = [WeightFormat::F32, WeightFormat::Bf16];
        let reading = [shader("expert_bias_fwd", 1), bias_weights_shader(64)].into_iter();
        let reading = reading.flat_map(|shader| formats.map(|storage| storage.select(shader.clone())));
        reading.chain([false, true].map(bias_shader)).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("ExpertBiasParams", uniform_bytes_in_parts::<ExpertBiasParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let shapes = [(1, 1, 1), (3, 2, 5), (17, 4, 64), (9, 3, 260), (65, 2, 68), (5, 8, 12)];
        let kinds = [(false, WeightFormat::F32), (true, WeightFormat::F32), (true, WeightFormat::Bf16)];
        let cases = shapes.into_iter().flat_map(|(t, top_k, width)| {
            kinds.map(|(weighted, storage)| {
                // Rows of bf16 are whole words.
                let rows = ExpertGatherCase {
                    t,
                    top_k,
                    width: if storage == WeightFormat::F32 { width } else { width + width % 2 },
                };
                Box::new(BiasCase { rows, weighted, storage }) as Box<dyn Case>
            })
        });
        cases.collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        let rows = ExpertGatherCase { t, top_k: 4, width: model.d_model };
        vec![Box::new(BiasCase { rows, weighted: true, storage: WeightFormat::F32 })]
    }
}

/// Experts of [`BiasCase`].
const EXPERTS: usize = 3;

/// Case of biases: those of gate and up, which alternate, or one that is added before the router's weight: y = w·(x + bias).
struct BiasCase {
    rows: ExpertGatherCase,
    weighted: bool,
    storage: WeightFormat,
}

impl BiasCase {
    /// Returns the choice and the expert of each row, by expert. The second expert has no rows.
    fn experts(&self) -> (Vec<u32>, Vec<usize>) {
        let n = (self.rows.t * self.rows.top_k) as u32;
        let expert = |c: u32| if c.is_multiple_of(2) { 0 } else { 2 };
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
        let ExpertGatherCase { t, top_k, width } = self.rows;
        let weighted = if self.weighted { " weighted" } else { "" };
        format!("T={t} k={top_k} width={width} {:?}{weighted}", self.storage)
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
            expert_bias_fwd(rec, columns, &rows, &choice, (&x[1], self.storage), &y);
        }
        let d_bias = gpu.alloc_activation(EXPERTS * self.stride());
        rec.clear(&d_bias);
        for columns in self.columns() {
            let weighted = self.weighted.then_some(&choice);
            expert_bias_bwd(rec, columns, &rows, weighted, &d_y[0], &d_bias);
        }
        if !self.weighted {
            return CaseOutputs { y: vec![y], d_x: vec![Some(d_y[0].clone()), Some(d_bias)] };
        }
        // The rest of a product with the identity: the sum of one row per choice, and its gradients.
        let (d_x, d_w) = (gpu.alloc_activation(x[0].len()), gpu.alloc_activation(n));
        rec.copy(&d_y[0], &d_x);
        expert_rows_bwd(rec, width, &rows, &choice, (&x[0], &d_x), &d_w);
        expert_bias_bwd_w(rec, width, &rows, &choice, (&x[1], self.storage), &d_y[0], &d_w);
        let weighted = gpu.alloc_activation(x[0].len());
        expert_rows_weigh(rec, width, &rows, &choice, &y, &weighted);
        CaseOutputs { y: vec![weighted], d_x: vec![Some(d_x), Some(d_bias), Some(d_w)] }
    }
    fn reduction_len(&self) -> usize {
        (self.rows.t * self.rows.top_k).max(self.rows.width)
    }
    fn cost(&self) -> Cost {
        let n = (self.rows.t * self.rows.top_k * self.stride()) as u64;
        Cost { bytes: 4 * 6 * n, flops: 6 * n }
    }
}
