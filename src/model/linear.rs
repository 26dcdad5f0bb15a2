//! y = x·Wᵀ + b, with low-rank additions that are never merged: y += s·(x·Aᵀ)·Bᵀ.

use super::description::Module;
use super::weights::Weight;
use crate::gpu::{Recording, Slot};
use crate::kernels::matmul::{Matrix, Orientation, Product, matmul};
use crate::kernels::storage::Storage;
use crate::kernels::{add, column_sum};

/// A linear layer on the device.
#[derive(Debug)]
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
#[derive(Debug)]
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
    /// y (T, n_out) from x (T, n_in). Returns x·Aᵀ (T, R), saved for the backward pass, when the addition is on.
    pub fn forward(&self, rec: &mut Recording, t: usize, x: &Slot, y: Columns, with_lora: bool) -> Option<Slot> {
        let (k, x) = (self.w.cols, Matrix::new(x, self.w.cols));
        for part in &self.w.parts {
            let p = product(Orientation::Forward, self.w.storage, [t, part.rows, k], 1.0, false);
            matmul(rec, &p, x, Matrix::new(&part.w, k), y.from(part.first));
        }
        if let Some(b) = &self.b {
            add::bias_fwd(rec, b.slot(), t, y.column, y.stride, y.slot);
        }
        let lora = self.lora.as_ref().filter(|_| with_lora)?;
        let r = lora.a.rows;
        let xa = rec.gpu().slot(t * r);
        let p = product(Orientation::Forward, lora.a.storage, [t, r, k], 1.0, false);
        matmul(rec, &p, x, Matrix::new(lora.a.slot(), k), Matrix::new(&xa, r));
        let p = product(Orientation::Forward, lora.b.storage, [t, self.w.rows, r], lora.scale, true);
        matmul(rec, &p, Matrix::new(&xa, r), Matrix::new(lora.b.slot(), r), y.from(0));
        Some(xa)
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
        let k = self.w.cols;
        for (i, part) in self.w.parts.iter().enumerate() {
            if let Some(d_x) = d_x {
                let p = product(Orientation::BackwardX, self.w.storage, [t, k, part.rows], 1.0, accumulate || i > 0);
                matmul(rec, &p, d_y.from(part.first), Matrix::new(&part.w, k), Matrix::new(d_x, k));
            }
            if let Some(d_w) = &part.d_w {
                let p = product(Orientation::BackwardW, Storage::F32, [part.rows, k, t], 1.0, true);
                matmul(rec, &p, d_y.from(part.first), Matrix::new(x, k), Matrix::new(d_w, k));
            }
        }
        if let Some(d_b) = self.b.as_ref().and_then(Weight::grad) {
            column_sum::column_sum(rec, d_y.slot, t, d_y.stride, d_y.column, self.w.rows, d_b);
        }
        let (Some(lora), Some(xa)) = (&self.lora, xa) else { return };
        let (r, n) = (lora.a.rows, self.w.rows);
        let d_xa = rec.gpu().slot(t * r);
        let p = product(Orientation::BackwardX, lora.b.storage, [t, r, n], lora.scale, false);
        matmul(rec, &p, d_y.from(0), Matrix::new(lora.b.slot(), r), Matrix::new(&d_xa, r));
        if let Some(d_b) = lora.b.grad() {
            let p = product(Orientation::BackwardW, Storage::F32, [n, r, t], lora.scale, true);
            matmul(rec, &p, d_y.from(0), Matrix::new(xa, r), Matrix::new(d_b, r));
        }
        if let Some(d_a) = lora.a.grad() {
            let p = product(Orientation::BackwardW, Storage::F32, [r, k, t], 1.0, true);
            matmul(rec, &p, Matrix::new(&d_xa, r), Matrix::new(x, k), Matrix::new(d_a, k));
        }
        if let Some(d_x) = d_x {
            let p = product(Orientation::BackwardX, lora.a.storage, [t, k, r], 1.0, true);
            matmul(rec, &p, Matrix::new(&d_xa, r), Matrix::new(lora.a.slot(), k), Matrix::new(d_x, k));
        }
    }

    /// Whether anything here is trained.
    pub fn trained(&self) -> bool {
        self.w.trained() || self.lora.as_ref().is_some_and(|l| l.a.trained())
    }
}
