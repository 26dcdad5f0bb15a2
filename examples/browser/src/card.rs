//! Verifies and times the kernels of the registry on a device, at the shapes of a small model.

use jointwise::gpu::Gpu;
use jointwise::kernels::measure::{DevicePeaks, time};
use jointwise::kernels::shapes::MODELS;
use jointwise::kernels::{Kernel, REGISTRY, verify};
use jointwise::rng::Rng;
use jointwise::{Error, Result};
use serde::Serialize;

/// Number of tokens per micro-batch. It is enough to fill a GPU, and small enough for a software adapter.
const TOKENS: usize = 128;
/// Number of cases to verify before a kernel is timed.
const VERIFIED: usize = 4;
/// Approximate time per measured case, in seconds.
const SECONDS: f64 = 0.2;

/// Measurement of a kernel at one shape.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CardLine {
    /// Label of the case.
    pub case: String,
    /// Median time per run in µs, measured by the clock, because a browser rounds timestamps.
    pub us: f64,
    /// Throughput in GB/s, over the bytes that must move.
    pub gb_s: f64,
    /// Throughput in GFLOP/s.
    pub gflop_s: f64,
    /// Least time at the device's peak rates, divided by the measured time.
    pub of_ceiling: f64,
}

/// Result of verifying and timing a kernel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Largest error as a multiple of the tolerance. Above 1, the kernel computes wrongly.
    pub error: f64,
    /// One measurement per shape.
    pub lines: Vec<CardLine>,
}

/// Returns the names of all kernels.
pub fn kernels() -> Vec<&'static str> {
    REGISTRY.iter().map(|k| k.name()).collect()
}

/// Measures the device's peak rates.
///
/// # Errors
/// [`Error::Gpu`].
pub async fn ceilings(gpu: &Gpu) -> Result<DevicePeaks> {
    DevicePeaks::measure(gpu, SECONDS).await
}

fn named(name: &str) -> Result<&'static dyn Kernel> {
    REGISTRY.iter().find(|k| k.name() == name).copied().ok_or_else(|| Error::flag("kernels", name))
}

/// Verifies at most `most` cases, spread over all cases of the kernel. Returns each case's label and error.
async fn errors(gpu: &Gpu, kernel: &dyn Kernel, most: usize) -> Result<Vec<(String, f64)>> {
    let mut rng = Rng::new(0, 0);
    let mut found = Vec::new();
    let cases = kernel.cases();
    for case in cases.iter().step_by(cases.len().div_ceil(most).max(1)) {
        found.push((case.label(), verify(gpu, case.as_ref(), &mut rng).await?));
    }
    Ok(found)
}

/// Verifies at most `most` cases of a kernel. Returns each case's label, and its largest error as a multiple of the tolerance.
///
/// # Errors
/// Fails like [`measure`].
pub async fn cases(gpu: &Gpu, name: &str, most: usize) -> Result<Vec<(String, f64)>> {
    errors(gpu, named(name)?, most).await
}

/// Verifies and times a kernel.
///
/// # Errors
/// [`Error::Gpu`]; [`Error::Flag`] if no kernel has this name.
pub async fn measure(gpu: &Gpu, name: &str, ceilings: &DevicePeaks) -> Result<Measured> {
    let kernel = named(name)?;
    let error = errors(gpu, kernel, VERIFIED).await?.into_iter().map(|(_, error)| error).fold(0.0, f64::max);
    let mut lines = Vec::new();
    for case in kernel.benches(&MODELS[0], TOKENS, gpu.caps()) {
        let timing = time(gpu, case.as_ref(), SECONDS).await?;
        lines.push(CardLine {
            case: case.label(),
            us: timing.median_us(),
            gb_s: timing.gb_s(),
            gflop_s: timing.gflop_s(),
            of_ceiling: ceilings.least_us(&timing.cost) / timing.median_us(),
        });
    }
    Ok(Measured { kernel: kernel.name(), error, lines })
}
