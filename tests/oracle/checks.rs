//! How results are compared: metrics, tolerances, and that each comparison can fail.

use std::fmt::Display;

/// Tolerances: those of `tools/parity.py`, or tighter. Stock float32 PyTorch stays 10 times or more below each.
pub mod tolerance {
    /// Sequence log-probs, relative.
    pub const SEQUENCE: f64 = 5e-6;
    /// Token log-probs, absolute.
    pub const TOKEN: f64 = 5e-5;
    /// β times a difference of sequence log-probs, absolute.
    pub const REWARD: f64 = 5e-4;
    /// Parts of a sequence's log-prob, absolute.
    pub const PART: f64 = 1e-3;
    /// Mean losses, relative.
    pub const LOSS: f64 = 3e-4;
    /// A row's loss, relative, absolute below 1.
    pub const ROW_LOSS: f64 = 5e-4;
    /// A gradient tensor, relative L2; see [`super::gradients`] for tensors of almost no gradient.
    pub const GRADIENT: f64 = 3e-4;
    /// The same with fewer bits: products of `--matmul-precision medium`, `--saved-dtype bf16`; it leaves a cosine above 0.9999.
    pub const GRADIENT_MEDIUM: f64 = 1e-2;
    /// Weights after ten steps, L2 of the error relative to the update.
    pub const UPDATE: f64 = 5e-3;
    /// The same for a bias of K, whose gradient is small against its noise.
    pub const UPDATE_K_BIAS: f64 = 3e-2;
    /// The same for adapters.
    pub const UPDATE_LORA: f64 = 1e-3;
    /// Losses of the ten steps, absolute.
    pub const STEP_LOSS: f64 = 5e-4;
    /// Their gradient norms, relative.
    pub const STEP_NORM: f64 = 1e-3;
    /// Their learning rates, absolute.
    pub const STEP_RATE: f64 = 1e-9;
    /// Sequence log-probs after ten steps, relative L2.
    pub const TRAINED: f64 = 1e-5;
    /// Merged weights, absolute.
    pub const MERGED: f64 = 1e-6;
    /// A directional derivative against differences of the loss, relative.
    pub const SLOPE: f64 = 1e-2;
}

/// How two arrays are compared.
#[derive(Clone, Copy)]
pub enum Metric {
    /// max |a − b|
    Abs,
    /// max |a − b| / |b|
    Rel,
    /// max |a − b| / max(|b|, 1)
    Mixed,
    /// ‖a − b‖ / ‖b‖
    L2,
    /// ‖a − b‖ / the number
    L2Over(f64),
}

impl Metric {
    /// Infinity for arrays of different lengths and for NaN.
    pub fn error(self, got: &[f64], want: &[f64]) -> f64 {
        if got.len() != want.len() || got.is_empty() {
            return f64::INFINITY;
        }
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let l2 = || norm(&mut got.iter().zip(want).map(|(g, w)| g - w));
        let worst = |scale: fn(f64) -> f64| {
            got.iter().zip(want).fold(0.0, |m: f64, (g, w)| {
                let e = (g - w).abs() / scale(*w);
                if e.is_nan() { f64::INFINITY } else { m.max(e) }
            })
        };
        let e = match self {
            Self::Abs => worst(|_| 1.0),
            Self::Rel => worst(|w| w.abs().max(1e-12)),
            Self::Mixed => worst(|w| w.abs().max(1.0)),
            Self::L2 => l2() / norm(&mut want.iter().copied()).max(1e-30),
            Self::L2Over(scale) => l2() / scale.max(1e-12),
        };
        if e.is_nan() { f64::INFINITY } else { e }
    }

    /// `want` with its largest element moved by ten tolerances.
    pub fn nudged(self, want: &[f64], tol: f64) -> Vec<f64> {
        let mut out = want.to_vec();
        let norm = want.iter().map(|v| v * v).sum::<f64>().sqrt();
        if let Some(x) = out.iter_mut().max_by(|a, b| a.abs().total_cmp(&b.abs())) {
            *x += 10.0
                * tol
                * match self {
                    Self::Abs => 1.0,
                    Self::Rel => x.abs().max(1e-12),
                    Self::Mixed => x.abs().max(1.0),
                    Self::L2 => norm.max(1e-30),
                    Self::L2Over(scale) => scale.max(1e-12),
                };
        }
        out
    }
}

/// The checks of one family; reports all failures at its end.
pub struct Checks {
    family: String,
    ran: usize,
    pub failed: Vec<String>,
}

impl Checks {
    pub fn new(family: &str) -> Self {
        Self { family: family.into(), ran: 0, failed: Vec::new() }
    }

    /// `got` within `tol` of `want`, and not of a nudged `want`.
    pub fn close(&mut self, name: impl Display, metric: Metric, got: &[f64], want: &[f64], tol: f64) {
        self.ran += 1;
        let e = metric.error(got, want);
        println!("{} {name}: {e:.3e} (<= {tol:.0e})", self.family);
        if e > tol {
            self.failed.push(format!("{name}: {e:.3e} > {tol:.0e}"));
        } else if metric.error(got, &metric.nudged(want, tol)) <= tol {
            self.failed.push(format!("{name}: the nudged expectation passes too"));
        }
    }

    /// Exact equality; a changed `want` could not pass.
    pub fn equal<T: PartialEq + std::fmt::Debug + ?Sized>(&mut self, name: impl Display, got: &T, want: &T) {
        self.ran += 1;
        if got != want {
            self.failed.push(format!("{name}: {got:?}, expected {want:?}"));
        }
    }

    pub fn finish(self) {
        assert!(self.ran > 0, "{}: nothing was checked", self.family);
        let n = self.failed.len();
        assert!(n == 0, "{}: {n} of {} checks failed:\n  {}", self.family, self.ran, self.failed.join("\n  "));
    }
}

#[test]
fn comparators_refuse_what_they_should() {
    for m in [Metric::Abs, Metric::Rel, Metric::Mixed, Metric::L2, Metric::L2Over(3.0)] {
        let want = [1.0, -2.0, 0.5];
        assert!(m.error(&want, &want) < 1e-15);
        assert!(m.error(&want, &m.nudged(&want, 1e-4)) > 1e-4);
        assert!(m.error(&[1.0, f64::NAN, 0.5], &want).is_infinite());
        assert!(m.error(&want[..2], &want).is_infinite());
        assert!(m.error(&[], &[]).is_infinite());
    }
}
