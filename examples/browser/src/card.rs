//! What a device computes, and how fast: the kernels of the registry at the shapes of a small model, each verified first.

use jointwise::gpu::Gpu;
use jointwise::kernels::measure::{Ceilings, time};
use jointwise::kernels::shapes::MODELS;
use jointwise::kernels::{REGISTRY, verify};
use jointwise::rng::Rng;
use jointwise::{Error, Result};
use serde::Serialize;

/// Tokens of a micro-batch: enough to fill a GPU, and short on a software adapter.
const TOKENS: usize = 128;
/// Cases of a kernel that are verified.
const VERIFIED: usize = 4;
/// For a case, about.
const SECONDS: f64 = 0.2;

/// A kernel at a shape.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Which case.
    pub case: String,
    /// The middle run, by the clock: a browser rounds timestamps.
    pub us: f64,
    /// Over the bytes that must move.
    pub gb_s: f64,
    /// Over its operations.
    pub gflop_s: f64,
    /// The least time by the ceilings, as a part of the measured one.
    pub of_ceiling: f64,
}

/// A kernel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Its name.
    pub kernel: &'static str,
    /// Largest error as a multiple of the tolerance: above 1 it computes wrongly.
    pub error: f64,
    /// Its shapes.
    pub lines: Vec<Line>,
}

/// Names of all kernels.
pub fn kernels() -> Vec<&'static str> {
    REGISTRY.iter().map(|k| k.name()).collect()
}

/// What the device can do at most.
///
/// # Errors
/// [`Error::Gpu`].
pub async fn ceilings(gpu: &Gpu) -> Result<Ceilings> {
    Ceilings::measure(gpu, SECONDS).await
}

/// Verifies a kernel and times it.
///
/// # Errors
/// [`Error::Gpu`]; [`Error::Flag`] for a name that is none.
pub async fn measure(gpu: &Gpu, name: &str, ceilings: &Ceilings) -> Result<Measured> {
    let kernel = REGISTRY.iter().find(|k| k.name() == name).ok_or_else(|| Error::flag("kernels", name))?;
    let mut rng = Rng::new(0, 0);
    let mut error: f64 = 0.0;
    for case in kernel.cases().iter().take(VERIFIED) {
        error = error.max(verify(gpu, case.as_ref(), &mut rng).await?);
    }
    let mut lines = Vec::new();
    for case in kernel.benches(&MODELS[0], TOKENS, gpu.caps()) {
        let timing = time(gpu, case.as_ref(), SECONDS).await?;
        lines.push(Line {
            case: case.label(),
            us: timing.median_us(),
            gb_s: timing.gb_s(),
            gflop_s: timing.gflop_s(),
            of_ceiling: ceilings.least_us(&timing.cost) / timing.median_us(),
        });
    }
    Ok(Measured { kernel: kernel.name(), error, lines })
}
