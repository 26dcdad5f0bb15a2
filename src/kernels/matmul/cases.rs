//! Cases of matrix products: all three of a linear layer together, and single ones.

use super::{
    Epilogue, LinearPass, LowRank, MatmulDesc, MatmulImpl, MatmulOperands, OperandMatrix, WeightFormat, launch,
};
use crate::gpu::{Caps, Gpu, MatmulPrecision, Recording, Slot, Variant};
use crate::kernels::storage::PackedWeight;
use crate::kernels::{Case, CaseOutputs, Cost, HostTensor};
use crate::rng::Rng;

/// Case of y = 0.5·x·Wᵀ and its gradients: all three products, with C in the middle of a wider slot.
pub(super) struct LinearCase {
    pub t: usize,
    pub n_out: usize,
    pub n_in: usize,
    pub storage: WeightFormat,
    /// Allowed variants; none of them is the baseline.
    pub allowed: Vec<Variant>,
    /// Precision: one below the highest replaces every variant by cooperative matrices.
    pub precision: MatmulPrecision,
}

/// Case of one product, to time it.
#[derive(Debug, Clone)]
pub(super) struct ProductCase {
    pub orientation: LinearPass,
    pub storage: WeightFormat,
    pub t: usize,
    pub n_out: usize,
    pub n_in: usize,
    pub allowed: Vec<Variant>,
    pub precision: MatmulPrecision,
}

impl ProductCase {
    pub fn ways(&self, caps: &Caps) -> Vec<MatmulImpl> {
        let gpu = Gpu::plan(caps.clone());
        let (p, [(_, a_stride), (_, b_stride)]) = (self.product(), self.shapes());
        let slot = gpu.alloc_activation(1);
        let matrices = [a_stride, b_stride, p.n].map(|stride| OperandMatrix::new(&slot, stride));
        super::candidates(caps, &p, matrices, &self.allowed)
    }
    pub fn product(&self) -> MatmulDesc {
        let (m, n, k) = match self.orientation {
            LinearPass::Forward => (self.t, self.n_out, self.n_in),
            LinearPass::BackwardX => (self.t, self.n_in, self.n_out),
            LinearPass::BackwardW => (self.n_out, self.n_in, self.t),
        };
        MatmulDesc { orientation: self.orientation, storage: self.storage, m, n, k, alpha: 1.0, accumulate: false }
    }
    /// Returns (rows, columns) of A and of B, as stored.
    fn shapes(&self) -> [(usize, usize); 2] {
        let (x, w, y) = ((self.t, self.n_in), (self.n_out, self.n_in), (self.t, self.n_out));
        match self.orientation {
            LinearPass::Forward => [x, w],
            LinearPass::BackwardX => [y, w],
            LinearPass::BackwardW => [y, x],
        }
    }
}

impl Case for ProductCase {
    fn label(&self) -> String {
        let Self { orientation, storage, t, n_out, n_in, .. } = self;
        format!("{orientation:?} {storage:?} T={t} out={n_out} in={n_in}")
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let [(a_rows, a_columns), (rows, columns)] = self.shapes();
        let a = HostTensor::normal(rng, a_rows * a_columns);
        let b = (0..rows * columns).map(|_| rng.normal()).collect();
        let words = PackedWeight::new(self.storage, b, columns).part(0, rows, columns);
        vec![a, HostTensor::Packed { values: self.storage.unpack(&words, rows, columns), words }]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (p, [(_, a_stride), (_, b_stride)]) = (self.product(), self.shapes());
        let at = |m: usize, k: usize| {
            if p.orientation == LinearPass::BackwardW { k * a_stride + m } else { m * a_stride + k }
        };
        let bt = |k: usize, n: usize| {
            if p.orientation == LinearPass::Forward { n * b_stride + k } else { k * b_stride + n }
        };
        let value = |i: usize| (0..p.k).map(|k| x[0][at(i / p.n, k)] * x[1][bt(k, i % p.n)]).sum();
        vec![(0..p.m * p.n).map(value).collect()]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        let (p, [(_, a_stride), (_, b_stride)]) = (self.product(), self.shapes());
        let y = rec.gpu().alloc_activation(p.m * p.n);
        launch(
            rec,
            &p,
            MatmulOperands::new(
                OperandMatrix::new(&x[0], a_stride),
                OperandMatrix::new(&x[1], b_stride),
                OperandMatrix::new(&y, p.n),
            ),
            &self.allowed,
            self.precision,
        );
        CaseOutputs { y: vec![y], d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        self.product().k
    }
    fn precision(&self) -> MatmulPrecision {
        self.precision
    }
    fn cost(&self) -> Cost {
        let p = self.product();
        let [(a_rows, a_columns), (b_rows, b_columns)] = self.shapes();
        let words = a_rows * a_columns + self.storage.words(b_rows, b_columns) + p.m * p.n;
        Cost { bytes: 4 * words as u64, flops: 2 * (p.m * p.n * p.k) as u64 }
    }
}

const ALPHA: f32 = 0.5;
const COLUMN: usize = 4;
/// Rows of W before the multiplied ones: NF4's scales then begin inside a group.
const BEFORE: usize = 3;

impl LinearCase {
    fn product(&self, orientation: LinearPass) -> MatmulDesc {
        let (m, n, k) = match orientation {
            LinearPass::Forward => (self.t, self.n_out, self.n_in),
            LinearPass::BackwardX => (self.t, self.n_in, self.n_out),
            LinearPass::BackwardW => (self.n_out, self.n_in, self.t),
        };
        let storage = if orientation == LinearPass::BackwardW { WeightFormat::F32 } else { self.storage };
        MatmulDesc { orientation, storage, m, n, k, alpha: ALPHA, accumulate: true }
    }
}

impl Case for LinearCase {
    fn label(&self) -> String {
        let variant = match self.precision {
            MatmulPrecision::Highest => self.allowed.first().map_or("baseline", |v| v.name()),
            below => below.name(),
        };
        format!("T={} out={} in={} {:?} {variant}", self.t, self.n_out, self.n_in, self.storage)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let w = (0..(BEFORE + self.n_out) * self.n_in).map(|_| rng.normal()).collect();
        let words = PackedWeight::new(self.storage, w, self.n_in).part(BEFORE, self.n_out, self.n_in);
        let values = self.storage.unpack(&words, self.n_out, self.n_in);
        vec![HostTensor::normal(rng, self.t * self.n_in), HostTensor::Packed { values, words }]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let width = self.n_out + COLUMN;
        let mut y = vec![0.0; self.t * width];
        for t in 0..self.t {
            for n in 0..self.n_out {
                let row = &x[0][t * self.n_in..][..self.n_in];
                let sum: f64 = row.iter().zip(&x[1][n * self.n_in..]).map(|(a, b)| a * b).sum();
                y[t * width + COLUMN + n] = f64::from(ALPHA) * sum;
            }
        }
        vec![y]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let width = self.n_out + COLUMN;
        let (mut d_x, mut d_w) = (vec![0.0; x[0].len()], vec![0.0; x[1].len()]);
        for t in 0..self.t {
            for n in 0..self.n_out {
                let d = f64::from(ALPHA) * d_y[0][t * width + COLUMN + n];
                for k in 0..self.n_in {
                    d_x[t * self.n_in + k] += d * x[1][n * self.n_in + k];
                    d_w[n * self.n_in + k] += d * x[0][t * self.n_in + k];
                }
            }
        }
        vec![d_x, d_w]
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.t * (self.n_out + COLUMN)]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let (gpu, width) = (rec.gpu(), self.n_out + COLUMN);
        let (allowed, precision) = (self.allowed.as_slice(), self.precision);
        let (y, d_x, d_w) = (
            gpu.alloc_activation(self.t * width),
            gpu.alloc_activation(x[0].len()),
            gpu.alloc_activation(self.n_out * self.n_in),
        );
        [&y, &d_x, &d_w].iter().for_each(|s| rec.clear(s));
        let (input, weight) = (OperandMatrix::new(&x[0], self.n_in), OperandMatrix::new(&x[1], self.n_in));
        let out = OperandMatrix::new(&y, width).columns_from(COLUMN);
        let d_out = OperandMatrix::new(&d_y[0], width).columns_from(COLUMN);
        launch(rec, &self.product(LinearPass::Forward), MatmulOperands::new(input, weight, out), allowed, precision);
        let operands = MatmulOperands::new(d_out, weight, OperandMatrix::new(&d_x, self.n_in));
        launch(rec, &self.product(LinearPass::BackwardX), operands, allowed, precision);
        let operands = MatmulOperands::new(d_out, input, OperandMatrix::new(&d_w, self.n_in));
        launch(rec, &self.product(LinearPass::BackwardW), operands, allowed, precision);
        CaseOutputs { y: vec![y], d_x: vec![Some(d_x), Some(d_w)] }
    }
    fn reduction_len(&self) -> usize {
        self.n_in.max(self.n_out).max(self.t)
    }
    fn precision(&self) -> MatmulPrecision {
        self.precision
    }
    fn is_supported(&self, caps: &Caps) -> bool {
        self.allowed.iter().all(|variant| caps.variants.contains(variant))
    }
    fn cost(&self) -> Cost {
        let weight = 4 * self.storage.words(self.n_out, self.n_in);
        let bytes = 2 * 4 * self.t * (self.n_in + self.n_out) + 2 * weight + 4 * self.n_out * self.n_in;
        Cost { bytes: bytes as u64, flops: 6 * (self.t * self.n_out * self.n_in) as u64 }
    }
}

/// Case of a second pair: y = 0.5·(x·Wᵀ + x2·W2ᵀ) and d_x = 0.5·(d_y·W + x2·V), both as outputs.
pub(super) struct LowRankCase {
    /// W, T and the implementation.
    pub linear: LinearCase,
    /// K2, the rank of the second pair.
    pub rank: usize,
}

impl LowRankCase {
    /// Shapes (T, n_out, n_in, W's storage, rank): on both sides of a slice of 16, with few columns and rows, and with a rank that takes
    /// two passes.
    pub const SHAPES: [(usize, usize, usize, WeightFormat, usize); 8] = [
        (1, 4, 4, WeightFormat::F32, 4),
        (3, 5, 64, WeightFormat::F32, 8),
        (70, 132, 260, WeightFormat::F32, 8),
        (33, 68, 128, WeightFormat::Bf16, 16),
        (37, 132, 132, WeightFormat::Bf16, 20),
        (33, 12, 72, WeightFormat::Int8, 64),
        (129, 124, 192, WeightFormat::Nf4, 8),
        (33, 68, 36, WeightFormat::F32, 6),
    ];
}

impl Case for LowRankCase {
    fn label(&self) -> String {
        format!("R={} {}", self.rank, self.linear.label())
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let LinearCase { t, n_out, n_in, .. } = self.linear;
        let mut all = self.linear.inputs(rng);
        let others = [t * n_out, t * self.rank, n_out * self.rank, self.rank * n_in];
        all.extend(others.map(|n| HostTensor::normal(rng, n)));
        all
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let LinearCase { t, n_out, n_in, .. } = self.linear;
        let r = self.rank;
        let alpha = f64::from(ALPHA);
        let sum = |n: usize, term: &dyn Fn(usize) -> f64| (0..n).map(term).sum::<f64>();
        let y = |i: usize| {
            let (t, n) = (i / n_out, i % n_out);
            let second = sum(r, &|k| x[3][t * r + k] * x[4][n * r + k]);
            alpha * (sum(n_in, &|k| x[0][t * n_in + k] * x[1][n * n_in + k]) + second)
        };
        let d_x = |i: usize| {
            let (t, n) = (i / n_in, i % n_in);
            let second = sum(r, &|k| x[3][t * r + k] * x[5][k * n_in + n]);
            alpha * (sum(n_out, &|k| x[2][t * n_out + k] * x[1][k * n_in + n]) + second)
        };
        vec![(0..t * n_out).map(y).collect(), (0..t * n_in).map(d_x).collect()]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        let LinearCase { t, n_out, n_in, ref allowed, precision, .. } = self.linear;
        let (r, gpu) = (self.rank, rec.gpu());
        let (y, d_x) = (gpu.alloc_activation(t * n_out), gpu.alloc_activation(t * n_in));
        let mut product = |orientation, a, c, b2| {
            let p = MatmulDesc { accumulate: false, ..self.linear.product(orientation) };
            let second = Some(LowRank { storage: WeightFormat::F32, k: r, a: OperandMatrix::new(&x[3], r), b: b2 });
            let operands = MatmulOperands { second, ..MatmulOperands::new(a, OperandMatrix::new(&x[1], n_in), c) };
            launch(rec, &p, operands, allowed, precision);
        };
        product(
            LinearPass::Forward,
            OperandMatrix::new(&x[0], n_in),
            OperandMatrix::new(&y, n_out),
            OperandMatrix::new(&x[4], r),
        );
        product(
            LinearPass::BackwardX,
            OperandMatrix::new(&x[2], n_out),
            OperandMatrix::new(&d_x, n_in),
            OperandMatrix::new(&x[5], n_in),
        );
        CaseOutputs { y: vec![y, d_x], d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        self.linear.n_in.max(self.linear.n_out) + self.rank
    }
    fn precision(&self) -> MatmulPrecision {
        self.linear.precision
    }
    fn is_supported(&self, caps: &Caps) -> bool {
        self.linear.is_supported(caps)
    }
    fn cost(&self) -> Cost {
        let LinearCase { t, n_out, n_in, storage, .. } = self.linear;
        let words = 2 * t * (n_in + n_out + self.rank) + 2 * storage.words(n_out, n_in) + self.rank * (n_in + n_out);
        let flops = 2 * t * (2 * n_out * n_in + self.rank * (n_in + n_out));
        Cost { bytes: 4 * words as u64, flops: flops as u64 }
    }
}

/// Case of y = 0.5·(x·Wᵀ + x2·W2ᵀ) + bias + residual, with C in the middle of a wider slot.
pub(super) struct EpilogueCase {
    linear: LinearCase,
    /// K2, the rank of the second pair; 0 without a second pair.
    rank: usize,
    bias: bool,
    residual: bool,
}

/// Shape of a case: (T, n_out, n_in, W's storage, rank, bias, residual).
type EpilogueShape = (usize, usize, usize, WeightFormat, usize, bool, bool);

/// First element of the bias. It is not aligned to a vec4, because a trained weight may be split anywhere.
const BIAS_START: usize = 3;

impl EpilogueCase {
    /// Shapes with one pair, with two pairs, and with two pairs in two passes; with few and with many rows and columns; with bias and
    /// residual, together and each alone.
    pub const SHAPES: [EpilogueShape; 9] = [
        (1, 4, 4, WeightFormat::F32, 0, true, true),
        (3, 5, 64, WeightFormat::F32, 8, true, false),
        (40, 12, 36, WeightFormat::F32, 0, false, true),
        (70, 132, 260, WeightFormat::F32, 0, true, true),
        (33, 68, 128, WeightFormat::Bf16, 16, true, true),
        (37, 132, 132, WeightFormat::Bf16, 0, true, false),
        (33, 12, 72, WeightFormat::Int8, 0, true, true),
        (129, 124, 192, WeightFormat::Nf4, 64, false, true),
        (33, 68, 36, WeightFormat::F32, 6, true, true),
    ];

    pub fn new(shape: EpilogueShape, allowed: Vec<Variant>, precision: MatmulPrecision) -> Self {
        let (t, n_out, n_in, storage, rank, bias, residual) = shape;
        Self { linear: LinearCase { t, n_out, n_in, storage, allowed, precision }, rank, bias, residual }
    }
}

impl Case for EpilogueCase {
    fn label(&self) -> String {
        let Self { linear, rank, bias, residual } = self;
        format!("R={rank} bias={bias} residual={residual} {}", linear.label())
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let LinearCase { t, n_out, .. } = self.linear;
        let mut all = self.linear.inputs(rng);
        // Operands that the case leaves out are never read.
        let others = [t * self.rank, n_out * self.rank, BIAS_START + n_out, t * (n_out + COLUMN)];
        all.extend(others.map(|n| HostTensor::normal(rng, n.max(1))));
        all
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let LinearCase { t, n_out, .. } = self.linear;
        let (r, width) = (self.rank, n_out + COLUMN);
        let mut y = self.linear.forward(x).remove(0);
        for (t, n) in (0..t).flat_map(|t| (0..n_out).map(move |n| (t, n))) {
            let at = t * width + COLUMN + n;
            let second: f64 = (0..r).map(|k| x[2][t * r + k] * x[3][n * r + k]).sum();
            y[at] += f64::from(ALPHA) * second;
            y[at] += if self.bias { x[4][BIAS_START + n] } else { 0.0 };
            y[at] += if self.residual { x[5][at] } else { 0.0 };
        }
        vec![y]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        let LinearCase { t, n_out, n_in, ref allowed, precision, .. } = self.linear;
        let (r, width) = (self.rank, n_out + COLUMN);
        let y = rec.gpu().alloc_activation(t * width);
        rec.clear(&y);
        let p = MatmulDesc { accumulate: false, ..self.linear.product(LinearPass::Forward) };
        let second = LowRank {
            storage: WeightFormat::F32,
            k: r,
            a: OperandMatrix::new(&x[2], r),
            b: OperandMatrix::new(&x[3], r),
        };
        let epilogue =
            Epilogue { bias: self.bias.then_some((&x[4], BIAS_START)), residual: self.residual.then_some(&x[5]) };
        let c = OperandMatrix::new(&y, width).columns_from(COLUMN);
        let operands = MatmulOperands::new(OperandMatrix::new(&x[0], n_in), OperandMatrix::new(&x[1], n_in), c);
        let operands = MatmulOperands { second: (r > 0).then_some(second), epilogue, ..operands };
        launch(rec, &p, operands, allowed, precision);
        CaseOutputs { y: vec![y], d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        self.linear.n_in + self.rank + 2
    }
    fn precision(&self) -> MatmulPrecision {
        self.linear.precision
    }
    fn is_supported(&self, caps: &Caps) -> bool {
        self.linear.is_supported(caps)
    }
    fn cost(&self) -> Cost {
        let LinearCase { t, n_out, n_in, storage, .. } = self.linear;
        let added = usize::from(self.bias) * n_out + usize::from(self.residual) * t * n_out;
        let words = t * (n_in + n_out + self.rank) + storage.words(n_out, n_in) + self.rank * n_out + added;
        let flops = 2 * t * n_out * (n_in + self.rank) + t * n_out * usize::from(self.bias) + t * n_out;
        Cost { bytes: 4 * words as u64, flops: flops as u64 }
    }
}

/// Case of C ← C + 0.5·A·B in all three products: y, d_x and d_W, each with earlier values.
pub(super) struct AccumulateCase {
    pub linear: LinearCase,
}

impl AccumulateCase {
    /// Shapes (T, n_out, n_in) and W's storage: few rows, many rows and columns, and a quantised weight.
    pub const SHAPES: [(usize, usize, usize, WeightFormat); 3] =
        [(3, 5, 12, WeightFormat::F32), (70, 132, 140, WeightFormat::Bf16), (129, 124, 64, WeightFormat::Nf4)];
    /// Shape that a device's check at start-up computes. It is only one, because CPU variants compile a pipeline for each storage format.
    pub const CHECKED: (usize, usize, usize, WeightFormat) = (33, 68, 36, WeightFormat::F32);
}

impl Case for AccumulateCase {
    fn label(&self) -> String {
        format!("accumulated {}", self.linear.label())
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let LinearCase { t, n_out, n_in, .. } = self.linear;
        let mut all = self.linear.inputs(rng);
        all.extend([t * n_out, t * n_out, t * n_in, n_out * n_in].map(|n| HostTensor::normal(rng, n)));
        all
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let LinearCase { t, n_out, n_in, .. } = self.linear;
        let mut sums = vec![x[3].clone(), x[4].clone(), x[5].clone()];
        for (t, n, k) in (0..t).flat_map(|t| (0..n_out).flat_map(move |n| (0..n_in).map(move |k| (t, n, k)))) {
            let (x_tk, w_nk, d_tn) = (x[0][t * n_in + k], x[1][n * n_in + k], x[2][t * n_out + n]);
            sums[0][t * n_out + n] += f64::from(ALPHA) * x_tk * w_nk;
            sums[1][t * n_in + k] += f64::from(ALPHA) * d_tn * w_nk;
            sums[2][n * n_in + k] += f64::from(ALPHA) * d_tn * x_tk;
        }
        sums
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        let LinearCase { n_out, n_in, ref allowed, precision, .. } = self.linear;
        let sums = [3, 4, 5].map(|i| rec.gpu().alloc_activation(x[i].len()));
        x[3..].iter().zip(&sums).for_each(|(before, sum)| rec.copy(before, sum));
        let (input, weight, d_out) =
            (OperandMatrix::new(&x[0], n_in), OperandMatrix::new(&x[1], n_in), OperandMatrix::new(&x[2], n_out));
        let products = [
            (LinearPass::Forward, input, weight, n_out),
            (LinearPass::BackwardX, d_out, weight, n_in),
            (LinearPass::BackwardW, d_out, input, n_in),
        ];
        for ((orientation, a, b, stride), sum) in products.into_iter().zip(&sums) {
            let operands = MatmulOperands::new(a, b, OperandMatrix::new(sum, stride));
            launch(rec, &self.linear.product(orientation), operands, allowed, precision);
        }
        CaseOutputs { y: sums.into(), d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        self.linear.reduction_len() + 1
    }
    fn precision(&self) -> MatmulPrecision {
        self.linear.precision
    }
    fn is_supported(&self, caps: &Caps) -> bool {
        self.linear.is_supported(caps)
    }
    fn cost(&self) -> Cost {
        self.linear.cost()
    }
}
