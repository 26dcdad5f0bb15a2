//! Search for a device's fastest variants, for the shapes of some models.

use web_time::Instant;

use super::matmul;
use super::measure::PreparedCase;
use super::shapes::ModelShape;
use super::tunable::TunableProduct;
use crate::error::Result;
use crate::gpu::{Gpu, Tuning, Variant};

/// Measured times of a class of shapes.
#[derive(Debug, Clone)]
pub struct TunedProduct {
    /// Name of the class in [`Tuning`].
    pub class: String,
    /// Device time of every variant that supports the class, in µs; the default choice comes first.
    pub us: Vec<(Option<Variant>, f64)>,
}

impl TunedProduct {
    /// Returns the fastest variant: the default choice, unless another is faster beyond noise.
    pub fn fastest(&self) -> Option<Variant> {
        let (guess, limit) = (self.us[0].0, self.us[0].1 / LEAST_GAIN);
        let best = self.us.iter().filter(|u| u.1 < limit).min_by(|a, b| a.1.total_cmp(&b.1));
        best.map_or(guess, |u| u.0)
    }
}

/// Smallest speed-up at which a variant replaces the default choice.
const LEAST_GAIN: f64 = 1.05;
/// Runs per variant; the fastest one counts.
const RUNS: usize = 3;

/// Measures the matrix products of `models` for about `seconds` in all. Classes that are not reached in this time keep their default
/// choice. Calls `tell` with each measured class and the number of classes.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn tune(
    gpu: &Gpu,
    models: &[ModelShape],
    tokens: &[usize],
    seconds: f64,
    tell: &mut dyn FnMut(&TunedProduct, usize),
) -> Result<Tuning> {
    let started = Instant::now();
    let mut tuning = Tuning::default();
    let mut classes: Vec<TunableProduct> = Vec::new();
    for model in models {
        for &t in tokens {
            for tunable in matmul::tunable(model, t, gpu.caps()) {
                if tunable.cases.len() > 1 && classes.iter().all(|c| c.class != tunable.class) {
                    classes.push(tunable);
                }
            }
        }
    }
    let total = classes.len();
    for TunableProduct { class, cases } in classes {
        if started.elapsed().as_secs_f64() > seconds {
            break;
        }
        let mut us = Vec::new();
        for (variant, case) in &cases {
            let mut prepared = PreparedCase::new(gpu, case.as_ref()).await?;
            let mut best = f64::INFINITY;
            for _ in 0..RUNS {
                best = best.min(prepared.run().await?.us);
            }
            us.push((*variant, best));
        }
        let tuned = TunedProduct { class, us };
        tell(&tuned, total);
        tuning.set(tuned.class.clone(), tuned.fastest());
    }
    Ok(tuning)
}
