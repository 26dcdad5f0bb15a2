//! What a device computes, and how fast: the kernels of the registry at the shapes of a small model, each verified first.

use jointwise::gpu::Gpu;
use jointwise::kernels::measure::{Ceilings, time};
use jointwise::kernels::shapes::MODELS;
use jointwise::kernels::{Kernel, REGISTRY, verify};
use jointwise::rng::Rng;
use jointwise::{Error, Result};
use serde::Serialize;

/// Tokens of a micro-batch: enough to fill a GPU, and short on a software adapter.
const TOKENS: usize = 128;
/// Cases of a kernel that are verified before it is timed.
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

fn named(name: &str) -> Result<&'static dyn Kernel> {
    REGISTRY.iter().find(|k| k.name() == name).copied().ok_or_else(|| Error::flag("kernels", name))
}

/// Errors of at most so many cases, spread over all of them.
async fn errors(gpu: &Gpu, kernel: &dyn Kernel, most: usize) -> Result<Vec<(String, f64)>> {
    let mut rng = Rng::new(0, 0);
    let mut found = Vec::new();
    let cases = kernel.cases();
    for case in cases.iter().step_by(cases.len().div_ceil(most).max(1)) {
        found.push((case.label(), verify(gpu, case.as_ref(), &mut rng).await?));
    }
    Ok(found)
}

/// At most so many cases of a kernel, each with its largest error as a multiple of the tolerance.
///
/// # Errors
/// As [`measure`].
pub async fn cases(gpu: &Gpu, name: &str, most: usize) -> Result<Vec<(String, f64)>> {
    errors(gpu, named(name)?, most).await
}

/// Verifies a kernel and times it.
///
/// # Errors
/// [`Error::Gpu`]; [`Error::Flag`] for a name that is none.
pub async fn measure(gpu: &Gpu, name: &str, ceilings: &Ceilings) -> Result<Measured> {
    let kernel = named(name)?;
    let error = errors(gpu, kernel, VERIFIED).await?.into_iter().map(|(_, error)| error).fold(0.0, f64::max);
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
