//! Linear layers with an unmerged LoRA addition and an optional residual: y = m·(x·Wᵀ + s·(x·Aᵀ)·Bᵀ) + b + h. Everything is computed in one
//! pass over y where the addition can be fused.

use super::description::LinearSpec;
use super::weights::Weight;
use crate::gpu::{Recording, Slot};
use crate::kernels::column_sum;
use crate::kernels::dropout::{DropoutMask, dropout};
use crate::kernels::matmul::{
    Epilogue, LinearPass, LowRank, MatmulDesc, MatmulOperands, OperandMatrix, matmul, matmul_with,
};
use crate::kernels::storage::WeightFormat;

/// Linear layer on the device.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Name and sizes of the module.
    pub module: LinearSpec,
    /// W: (n_out, n_in).
    pub w: Weight,
    /// b: (n_out).
    pub b: Option<Weight>,
    /// Low-rank addition, with A, B and s.
    pub lora: Option<LoraWeights>,
    /// m, the factor on the product: 1, or [`super::description::ModelConfig::residual_scale`] at a branch's end.
    pub scale: f32,
}

/// Low-rank addition (LoRA).
#[derive(Debug, Clone)]
pub struct LoraWeights {
    /// A: (R, n_in).
    pub a: Weight,
    /// B: (n_out, R).
    pub b: Weight,
    /// s = α/R, or α/√R with rsLoRA.
    pub scale: f32,
    /// Probability with which a training step drops an element of x before A.
    pub dropout: f64,
}

/// Use of low-rank additions in a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoraPass {
    /// No additions: the base model.
    Off,
    /// Additions without dropout: scoring and generation.
    Plain,
    /// Additions with dropout, where they have any: a training step.
    Training {
        /// Seed of the micro-batch's masks.
        seed: u64,
        /// Number of the first token among the micro-batch's.
        first: usize,
    },
}

impl LoraPass {
    /// Returns the pass of a range of tokens that begins at `first`.
    pub fn from_token(self, first: usize) -> Self {
        match self {
            Self::Training { seed, .. } => Self::Training { seed, first },
            other => other,
        }
    }
}

/// Columns of a slot that a module reads or writes.
#[derive(Clone, Copy)]
pub struct WeightColumns<'a> {
    /// Slot that holds the columns: (T, stride).
    pub slot: &'a Slot,
    /// First column.
    pub column: usize,
    /// Elements per token.
    pub stride: usize,
}

impl<'a> WeightColumns<'a> {
    /// Describes all columns of a slot.
    pub fn all(slot: &'a Slot, stride: usize) -> Self {
        Self { slot, column: 0, stride }
    }
    fn from(self, more: usize) -> OperandMatrix<'a> {
        OperandMatrix { start: self.column + more, ..OperandMatrix::new(self.slot, self.stride) }
    }
}

/// Input of linear layers.
#[derive(Clone, Copy)]
pub struct LinearInput<'a> {
    /// x: (T, n_in).
    pub x: &'a Slot,
    /// Absmax of its rows ([`row_absmax`](crate::kernels::matmul::row_absmax)), where several layers read x and the precision needs it.
    pub absmax: Option<&'a Slot>,
}

impl<'a> From<&'a Slot> for LinearInput<'a> {
    fn from(x: &'a Slot) -> Self {
        Self { x, absmax: None }
    }
}

fn product(
    orientation: LinearPass,
    storage: WeightFormat,
    [m, n, k]: [usize; 3],
    alpha: f32,
    accumulate: bool,
) -> MatmulDesc {
    MatmulDesc { orientation, storage, m, n, k, alpha, accumulate }
}

impl Linear {
    /// Computes y (T, n_out) from x (T, n_in), plus a residual that is laid out like y. With the low-rank addition, returns s·x·Aᵀ (T, R),
    /// which the backward pass needs.
    pub fn forward(
        &self,
        rec: &mut Recording,
        t: usize,
        x: LinearInput<'_>,
        residual: Option<&Slot>,
        y: WeightColumns,
        pass: LoraPass,
    ) -> Option<Slot> {
        let LinearInput { x, absmax } = x;
        let k = self.w.cols;
        let xa = self.lora.as_ref().filter(|_| pass != LoraPass::Off).map(|lora| {
            let r = lora.a.rows;
            let xa = rec.gpu().alloc_activation(t * r);
            let p = product(LinearPass::Forward, lora.a.storage, [t, r, k], lora.scale, false);
            let dropped = self.dropped(rec, lora, x, pass);
            let x = OperandMatrix::new(dropped.as_ref().unwrap_or(x), k);
            matmul(rec, &p, x, OperandMatrix::new(lora.a.slot(), k), OperandMatrix::new(&xa, r));
            xa
        });
        let x = OperandMatrix::new(x, k).with_absmax(absmax);
        for part in &self.w.parts {
            let p = product(LinearPass::Forward, self.w.storage, [t, part.rows, k], self.scale, false);
            let second = self.lora.as_ref().zip(xa.as_ref()).map(|(LoraWeights { a, b, .. }, xa)| {
                let b_rows = OperandMatrix { start: part.first * a.rows, ..OperandMatrix::new(b.slot(), a.rows) };
                LowRank { storage: b.storage, k: a.rows, a: OperandMatrix::new(xa, a.rows), b: b_rows }
            });
            let bias = self.b.as_ref().map(|b| (b.slot(), part.first));
            let epilogue = Epilogue { bias, residual };
            let w = OperandMatrix::new(&part.w, k).with_absmax(part.absmax.as_ref());
            matmul_with(rec, &p, MatmulOperands { a: x, b: w, second, epilogue, c: y.from(part.first) });
        }
        xa
    }

    /// Returns the mask of x in a training step; `None` where nothing is dropped.
    fn mask(&self, lora: &LoraWeights, pass: LoraPass) -> Option<DropoutMask> {
        match pass {
            LoraPass::Training { seed, first } if lora.dropout > 0.0 => {
                Some(DropoutMask::new(lora.dropout, seed, &self.module.name, first * self.w.cols))
            }
            _ => None,
        }
    }

    /// Computes x with dropout; `None` where nothing is dropped.
    fn dropped(&self, rec: &mut Recording, lora: &LoraWeights, x: &Slot, pass: LoraPass) -> Option<Slot> {
        let mask = self.mask(lora, pass)?;
        let y = rec.gpu().alloc_activation(x.len());
        dropout(rec, &mask, false, x, &y);
        Some(y)
    }

    /// Computes d_x (T, n_in) from d_y (T, n_out), added to `d_x` when `accumulate`, and the gradients of trained weights. `d_x` may be
    /// absent. So may x, where nothing of the layer is trained.
    #[expect(clippy::too_many_arguments, reason = "values of the forward pass, and slots for gradients")]
    pub fn backward(
        &self,
        rec: &mut Recording,
        t: usize,
        x: Option<&Slot>,
        xa: Option<&Slot>,
        d_y: WeightColumns,
        d_x: Option<&Slot>,
        accumulate: bool,
        pass: LoraPass,
    ) {
        assert!(x.is_some() || !self.trained(), "{}: a trained layer needs its input", self.module.name);
        let (k, n) = (self.w.cols, self.w.rows);
        let lora = self.lora.as_ref().zip(xa).map(|(lora, xa)| {
            let r = lora.a.rows;
            let d_xa = rec.gpu().alloc_activation(t * r);
            let p = product(LinearPass::BackwardX, lora.b.storage, [t, r, n], lora.scale, false);
            matmul(rec, &p, d_y.from(0), OperandMatrix::new(lora.b.slot(), r), OperandMatrix::new(&d_xa, r));
            (lora, xa, d_xa)
        });
        let mask = lora.as_ref().and_then(|(lora, ..)| self.mask(lora, pass));
        let mut second = lora.as_ref().filter(|_| mask.is_none()).map(|(LoraWeights { a, .. }, _, d_xa)| LowRank {
            storage: a.storage,
            k: a.rows,
            a: OperandMatrix::new(d_xa, a.rows),
            b: OperandMatrix::new(a.slot(), k),
        });
        for (i, part) in self.w.parts.iter().enumerate() {
            if let Some(d_x) = d_x {
                let p =
                    product(LinearPass::BackwardX, self.w.storage, [t, k, part.rows], self.scale, accumulate || i > 0);
                let w = OperandMatrix::new(&part.w, k).with_absmax(part.absmax.as_ref());
                let operands = MatmulOperands::new(d_y.from(part.first), w, OperandMatrix::new(d_x, k));
                matmul_with(rec, &p, MatmulOperands { second: second.take(), ..operands });
            }
            if let (Some(d_w), Some(x)) = (&part.d_w, x) {
                let p = product(LinearPass::BackwardW, WeightFormat::F32, [part.rows, k, t], self.scale, true);
                matmul(rec, &p, d_y.from(part.first), OperandMatrix::new(x, k), OperandMatrix::new(d_w, k));
            }
        }
        if let Some(d_b) = self.b.as_ref().and_then(Weight::grad) {
            column_sum::column_sum(rec, d_y.slot, t, d_y.stride, d_y.column, self.w.rows, d_b);
        }
        let Some((lora, xa, d_xa)) = lora else { return };
        let r = lora.a.rows;
        // With dropout, the addition's part of d_x passes the mask first.
        if let (Some(mask), Some(d_x)) = (&mask, d_x) {
            let d_dropped = rec.gpu().alloc_activation(t * k);
            let p = product(LinearPass::BackwardX, lora.a.storage, [t, k, r], self.scale, false);
            let (d_xa, a) = (OperandMatrix::new(&d_xa, r), OperandMatrix::new(lora.a.slot(), k));
            matmul(rec, &p, d_xa, a, OperandMatrix::new(&d_dropped, k));
            dropout(rec, mask, true, &d_dropped, d_x);
        }
        if let Some(d_b) = lora.b.grad() {
            let p = product(LinearPass::BackwardW, WeightFormat::F32, [n, r, t], self.scale, true);
            matmul(rec, &p, d_y.from(0), OperandMatrix::new(xa, r), OperandMatrix::new(d_b, r));
        }
        if let (Some(d_a), Some(x)) = (lora.a.grad(), x) {
            let p = product(LinearPass::BackwardW, WeightFormat::F32, [r, k, t], self.scale, true);
            let dropped = self.dropped(rec, lora, x, pass);
            let x = OperandMatrix::new(dropped.as_ref().unwrap_or(x), k);
            matmul(rec, &p, OperandMatrix::new(&d_xa, r), x, OperandMatrix::new(d_a, k));
        }
    }

    /// Returns whether any weight of the layer is trained.
    pub fn trained(&self) -> bool {
        self.w.trained() || self.lora.as_ref().is_some_and(|l| l.a.trained())
    }
}
