//! Influence of lengths on a win rate: the rate by ratio of lengths, and the rate for equal lengths.
//!
//! The length-controlled rate is that of AlpacaEval 2 (Dubois, Galambosi, Liang, Hashimoto 2024, arXiv 2404.04475) without its instruction
//! difficulty. With d_i the difference of lengths in characters, and sd the standard deviation of d,
//!
//! ```text
//! x_i = tanh(d_i / sd)        P(win_i) = σ(θ + φ·x_i)        rate = σ(θ), which is P(win) where d = 0
//! ```
//!
//! (θ, φ) maximise Σ w_i·[y_i·log P + (1 − y_i)·log(1 − P)] − φ²/(2·2.5²), where y is 1 for a win, ½ for a tie, 0 for a loss. There are
//! four differences from AlpacaEval. There is no term for the difficulty of an instruction, because it needs the answers of many models to
//! the same instructions. AlpacaEval's models prompted to be short and to be long are not part of the fit. A normal prior of standard
//! deviation 2.5 on φ replaces an L1 penalty chosen by cross-validation, so that the fit has a maximum even if every longer answer wins. θ
//! is not penalised. White space around texts does not count towards lengths.

/// Standard deviation of the prior on φ.
const PRIOR_SD: f64 = 2.5;
/// Largest number of Newton steps; a fit takes about five.
const MOST_STEPS: usize = 50;
/// Tolerance of θ and φ.
const TOLERANCE: f64 = 1e-10;

/// Lower ends of the ranges of length ratios.
pub const RATIOS: [f64; 4] = [0.0, 1.0, 1.5, 3.0];
/// Names of the ranges.
pub const RATIO_NAMES: [&str; 4] = ["below 1", "1 to 1.5", "1.5 to 3", "3 and more"];

/// Returns the length of a response: its characters without the white space around it.
pub fn length(text: &str) -> usize {
    text.trim().chars().count()
}

/// Returns the index in [`RATIOS`] of the range that contains `ours / theirs`. Two empty texts have ratio 1.
pub fn ratio_bin(ours: usize, theirs: usize) -> usize {
    let ratio = if ours == theirs { 1.0 } else { ours as f64 / theirs as f64 };
    RATIOS.iter().rposition(|&from| ratio >= from).unwrap_or(0)
}

/// Returns tanh(d/sd) of each difference d, where sd is the sample standard deviation (divisor n − 1). If all differences are equal, the
/// lengths explain nothing: returns zeros where they are 0, else `None`.
pub fn features(differences: &[f64]) -> Option<Vec<f64>> {
    let n = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / n;
    let sd = (differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    match sd > 0.0 {
        true => Some(differences.iter().map(|d| (d / sd).tanh()).collect()),
        false if differences.iter().all(|&d| d == 0.0) => Some(vec![0.0; differences.len()]),
        false => None,
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Returns whether a step decreased an objective that is maximised. NaN counts as a decrease.
fn is_worse(next: f64, best: f64) -> bool {
    next < best || next.is_nan()
}

/// Fits [`features`] `x` to the weighted outcomes `y` in 0 ..= 1. Returns (rate, φ). The rate is 1 or 0 where everything was won or lost,
/// and NaN where all weights are 0.
pub fn length_controlled(x: &[f64], y: &[f64], weights: &[f64]) -> (f64, f64) {
    let total: f64 = weights.iter().sum();
    let won: f64 = y.iter().zip(weights).map(|(y, w)| y * w).sum();
    if total <= 0.0 || total.is_nan() {
        return (f64::NAN, f64::NAN);
    }
    if won <= 0.0 || won >= total {
        return (won / total, 0.0);
    }
    let precision = 1.0 / (PRIOR_SD * PRIOR_SD);
    let objective = |theta: f64, phi: f64| {
        let likelihood: f64 = (x.iter().zip(y).zip(weights))
            .map(|((x, y), w)| {
                let z = theta + phi * x;
                // y·log σ(z) + (1 − y)·log σ(−z) = y·z − log(1 + e^z)
                w * (y * z - z.max(0.0) - (-z.abs()).exp().ln_1p())
            })
            .sum();
        likelihood - 0.5 * precision * phi * phi
    };
    let (mut theta, mut phi) = ((won / (total - won)).ln(), 0.0);
    let mut best = objective(theta, phi);
    for _ in 0..MOST_STEPS {
        let (mut g, mut h) = ([0.0, -precision * phi], [0.0, 0.0, precision]);
        for ((x, y), w) in x.iter().zip(y).zip(weights) {
            let p = sigmoid(theta + phi * x);
            let (residual, curvature) = (w * (y - p), w * p * (1.0 - p));
            g = [g[0] + residual, g[1] + residual * x];
            h = [h[0] + curvature, h[1] + curvature * x, h[2] + curvature * x * x];
        }
        let determinant = h[0] * h[2] - h[1] * h[1];
        let step = [(h[2] * g[0] - h[1] * g[1]) / determinant, (h[0] * g[1] - h[1] * g[0]) / determinant];
        // The objective is concave, so a step that is short enough does not decrease it.
        let mut scale = 1.0;
        let mut next = objective(theta + step[0], phi + step[1]);
        while is_worse(next, best) && scale > 1e-6 {
            scale *= 0.5;
            next = objective(theta + scale * step[0], phi + scale * step[1]);
        }
        if is_worse(next, best) {
            break;
        }
        (theta, phi, best) = (theta + scale * step[0], phi + scale * step[1], next);
        if scale * step[0].abs().max(step[1].abs()) < TOLERANCE {
            break;
        }
    }
    (sigmoid(theta), phi)
}
