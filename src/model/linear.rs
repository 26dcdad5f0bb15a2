//! y = x·Wᵀ + b, with low-rank additions that are never merged, and the residual stream: y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ + b + h, one pass over y where
//! `rides_along` says so.

use super::description::Module;
use super::weights::Weight;
use crate::gpu::{Recording, Slot};
use crate::kernels::column_sum;
use crate::kernels::matmul::{Epilogue, Matrix, Operands, Orientation, Product, Second, matmul, matmul_with};
use crate::kernels::storage::Storage;

/// A linear layer on the device.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Name and place.
    pub module: Module,
    /// (n_out, n_in).
    pub w: Weight,
    /// (n_out).
    pub b: Option<Weight>,
    /// A, B and s.
    pub lora: Option<Lora>,
}

/// A low-rank addition.
#[derive(Debug, Clone)]
pub struct Lora {
    /// (R, n_in).
    pub a: Weight,
    /// (n_out, R).
    pub b: Weight,
    /// s = α/R.
    pub scale: f32,
}

/// Columns of a slot that a module reads or writes.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    /// (T, stride).
    pub slot: &'a Slot,
    /// First column.
    pub column: usize,
    /// Elements a token.
    pub stride: usize,
}

impl<'a> Columns<'a> {
    /// The whole width.
    pub fn all(slot: &'a Slot, stride: usize) -> Self {
        Self { slot, column: 0, stride }
    }
    fn from(self, more: usize) -> Matrix<'a> {
        Matrix { slot: self.slot, start: self.column + more, stride: self.stride }
    }
}

fn product(orientation: Orientation, storage: Storage, [m, n, k]: [usize; 3], alpha: f32, accumulate: bool) -> Product {
    Product { orientation, storage, m, n, k, alpha, accumulate }
}

impl Linear {
    /// y (T, n_out) from x (T, n_in), plus a residual that is laid out as y. Returns s·x·Aᵀ (T, R), saved for the backward pass, when the
    /// addition is on.
    pub fn forward(
        &self,
        rec: &mut Recording,
        t: usize,
        x: &Slot,
        residual: Option<&Slot>,
        y: Columns,
        with_lora: bool,
    ) -> Option<Slot> {
        let (k, x) = (self.w.cols, Matrix::new(x, self.w.cols));
        let xa = self.lora.as_ref().filter(|_| with_lora).map(|lora| {
            let r = lora.a.rows;
            let xa = rec.gpu().slot(t * r);
            let p = product(Orientation::Forward, lora.a.storage, [t, r, k], lora.scale, false);
            matmul(rec, &p, x, Matrix::new(lora.a.slot(), k), Matrix::new(&xa, r));
            xa
        });
        for part in &self.w.parts {
            let p = product(Orientation::Forward, self.w.storage, [t, part.rows, k], 1.0, false);
            let second = self.lora.as_ref().zip(xa.as_ref()).map(|(Lora { a, b, .. }, xa)| {
                let b_rows = Matrix { slot: b.slot(), start: part.first * a.rows, stride: a.rows };
                Second { storage: b.storage, k: a.rows, a: Matrix::new(xa, a.rows), b: b_rows }
            });
            let bias = self.b.as_ref().map(|b| (b.slot(), part.first));
            let epilogue = Epilogue { bias, residual };
            let w = Matrix::new(&part.w, k);
            matmul_with(rec, &p, Operands { a: x, b: w, second, epilogue, c: y.from(part.first) });
        }
        xa
    }

    /// d_x (T, n_in) from d_y (T, n_out), added when `accumulate`; gradients of whatever is trained. `d_x` may be absent.
    #[expect(clippy::too_many_arguments, reason = "what forward saw, and where gradients go")]
    pub fn backward(
        &self,
        rec: &mut Recording,
        t: usize,
        x: &Slot,
        xa: Option<&Slot>,
        d_y: Columns,
        d_x: Option<&Slot>,
        accumulate: bool,
    ) {
        let (k, n) = (self.w.cols, self.w.rows);
        let lora = self.lora.as_ref().zip(xa).map(|(lora, xa)| {
            let r = lora.a.rows;
            let d_xa = rec.gpu().slot(t * r);
            let p = product(Orientation::BackwardX, lora.b.storage, [t, r, n], lora.scale, false);
            matmul(rec, &p, d_y.from(0), Matrix::new(lora.b.slot(), r), Matrix::new(&d_xa, r));
            (lora, xa, d_xa)
        });
        let mut second = lora.as_ref().map(|(Lora { a, .. }, _, d_xa)| Second {
            storage: a.storage,
            k: a.rows,
            a: Matrix::new(d_xa, a.rows),
            b: Matrix::new(a.slot(), k),
        });
        for (i, part) in self.w.parts.iter().enumerate() {
            if let Some(d_x) = d_x {
                let p = product(Orientation::BackwardX, self.w.storage, [t, k, part.rows], 1.0, accumulate || i > 0);
                let w = Matrix::new(&part.w, k);
                let operands = Operands::new(d_y.from(part.first), w, Matrix::new(d_x, k));
                matmul_with(rec, &p, Operands { second: second.take(), ..operands });
            }
            if let Some(d_w) = &part.d_w {
                let p = product(Orientation::BackwardW, Storage::F32, [part.rows, k, t], 1.0, true);
                matmul(rec, &p, d_y.from(part.first), Matrix::new(x, k), Matrix::new(d_w, k));
            }
        }
        if let Some(d_b) = self.b.as_ref().and_then(Weight::grad) {
            column_sum::column_sum(rec, d_y.slot, t, d_y.stride, d_y.column, self.w.rows, d_b);
        }
        let Some((lora, xa, d_xa)) = lora else { return };
        let r = lora.a.rows;
        if let Some(d_b) = lora.b.grad() {
            let p = product(Orientation::BackwardW, Storage::F32, [n, r, t], 1.0, true);
            matmul(rec, &p, d_y.from(0), Matrix::new(xa, r), Matrix::new(d_b, r));
        }
        if let Some(d_a) = lora.a.grad() {
            let p = product(Orientation::BackwardW, Storage::F32, [r, k, t], 1.0, true);
            matmul(rec, &p, Matrix::new(&d_xa, r), Matrix::new(x, k), Matrix::new(d_a, k));
        }
    }

    /// Whether anything here is trained.
    pub fn trained(&self) -> bool {
        self.w.trained() || self.lora.as_ref().is_some_and(|l| l.a.trained())
    }
}
