//! Kernel families, one file each: launchers, f64 twin, cases, cost. [`REGISTRY`] lists all families for tests and benches.
//!
//! A family's WGSL has the stem of its Rust file in `shaders/`. Launchers append to a [`crate::gpu::Recording`] and choose variants from
//! its device's caps.

pub mod activation;
pub mod adamw;
pub mod add;
pub mod attention;
mod case;
pub mod ceiling;
pub mod column_sum;
pub mod embedding;
pub mod gather;
pub mod global_norm;
pub mod layernorm;
pub mod logprob;
pub mod matmul;
pub mod measure;
pub mod moments;
pub mod objective;
pub mod pack;
pub mod packed_batch;
pub mod rmsnorm;
pub mod rope;
mod row_vec4s;
pub mod sample;
pub mod shapes;
pub mod storage;
pub mod tunable;
pub mod tune;

pub use case::{Case, CaseOutputs, Cost, HostTensor, tolerance};

use crate::error::{Error, Result};
use crate::gpu::{Caps, Gpu, MatmulPrecision, Shader, Slot, Variant};
use crate::rng::Rng;
use shapes::ModelShape;
use storage::WeightFormat;

/// Kernel family: kernels that share a file, an f64 twin and cases.
pub trait Kernel: Sync {
    /// Returns the stem of the Rust file and of the main WGSL file.
    fn name(&self) -> &'static str;
    /// Returns the family's modules in `shaders/`.
    fn modules(&self) -> &'static [&'static str];
    /// Returns every specialisation that some device may use.
    fn variants(&self) -> Vec<Shader>;
    /// Returns the uniform structs: (WGSL name, Rust size in bytes).
    fn uniforms(&self) -> Vec<(&'static str, usize)>;
    /// Returns cases with shapes on both sides of every tile edge.
    fn cases(&self) -> Vec<Box<dyn Case>>;
    /// Returns the cases to time: the computations of a step of `model` over `t` tokens, in the variants that the device supports. Empty
    /// where the model does not use the family.
    fn benches(&self, model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>>;
    /// Returns the cases that [`with_checked_variants`] runs: every entry point of a variant that the device may use, at the edges of its
    /// tiles. Empty where the family lacks the variant.
    fn variant_cases(&self, variant: Variant, caps: &Caps) -> Vec<Box<dyn Case>> {
        let _ = (variant, caps);
        Vec::new()
    }
    /// Returns the cases of a precision below the highest, for a device with cooperative matrices. [`with_checked_variants`] runs the first
    /// `AT_START`. The others are for tests, because a CPU's driver takes seconds to compile each of their shaders.
    fn precision_cases(&self, precision: MatmulPrecision) -> Vec<Box<dyn Case>> {
        let _ = precision;
        Vec::new()
    }
}

/// Number of [`Kernel::precision_cases`] per family that are checked at start-up.
const AT_START: usize = 2;

/// Every kernel family, in the order of a forward pass.
pub const REGISTRY: &[&dyn Kernel] = &[
    &embedding::EmbeddingKernels,
    &rmsnorm::RmsnormKernels,
    &layernorm::LayernormKernels,
    &matmul::MatmulKernels,
    &rope::RopeKernels,
    &attention::FlashAttention,
    &add::AddKernels,
    &activation::ActivationKernels,
    &pack::PackKernels,
    &gather::GatherKernels,
    &logprob::LogprobKernels,
    &objective::ObjectiveKernels,
    &column_sum::ColumnSum,
    &global_norm::GlobalNorm,
    &adamw::AdamwKernels,
    &sample::SampleKernels,
    &ceiling::PeakKernels,
];

/// Case that runs on a device, with the values that its twin computes.
struct LaunchedCase<'c> {
    case: &'c dyn Case,
    out: CaseOutputs,
    y: Vec<Vec<f64>>,
    d_x: Vec<Vec<f64>>,
}

impl<'c> LaunchedCase<'c> {
    fn new(gpu: &Gpu, case: &'c dyn Case, rng: &mut Rng) -> Self {
        let inputs = case.inputs(rng);
        let x: Vec<Vec<f64>> = inputs.iter().map(HostTensor::to_f64).collect();
        let y = case.forward(&x);
        let d_y: Vec<HostTensor> =
            y.iter().take(case.differentiable()).map(|y| HostTensor::normal(rng, y.len())).collect();
        let d_x = case.backward(&x, &d_y.iter().map(HostTensor::to_f64).collect::<Vec<_>>());
        let upload = |hosts: &[HostTensor]| hosts.iter().map(|h| h.upload(gpu)).collect::<Vec<_>>();
        let mut rec = gpu.record();
        let out = case.launch(&mut rec, &upload(&inputs), &upload(&d_y));
        rec.submit();
        Self { case, out, y, d_x }
    }

    /// Returns the outputs and gradients to compare: slot, the twin's values, and whether they must be equal exactly.
    fn compared(&self) -> impl Iterator<Item = (&Slot, &[f64], bool)> {
        let outputs = self.out.y.iter().zip(&self.y).enumerate();
        let outputs = outputs.map(|(i, (slot, want))| (slot, want.as_slice(), self.case.exact(i)));
        let gradients = self.out.d_x.iter().zip(&self.d_x);
        let gradients = gradients.filter_map(|(slot, want)| Some((slot.as_ref()?, want.as_slice(), false)));
        outputs.chain(gradients).filter(|(_, want, _)| !want.is_empty())
    }

    /// Computes the largest error of words that were read from the slots of [`Self::compared`].
    fn error(&self, words: &[Vec<u32>]) -> f64 {
        let errors = self.compared().zip(words).map(|((_, want, exact), got)| match exact {
            true if got.iter().zip(want).all(|(&g, &w)| f64::from(g) == w) => 0.0,
            true => f64::INFINITY,
            false => {
                let got: Vec<f64> = got.iter().map(|&word| f64::from(f32::from_bits(word))).collect();
                error_over_tolerance(&got, want, self.case.tolerance())
            }
        });
        errors.fold(0.0, f64::max)
    }
}

/// Runs a case on a device and compares outputs and gradients with its twin. Returns the largest error as a multiple of the tolerance; a
/// value above 1 means that the device computes wrongly.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn verify(gpu: &Gpu, case: &dyn Case, rng: &mut Rng) -> Result<f64> {
    verify_all(gpu, [case], rng).await
}

/// Runs cases like [`verify`] and returns the largest error of all. It waits for the device once, because a wait may take a browser 100 ms.
///
/// # Errors
/// [`crate::Error::Gpu`].
async fn verify_all<'c>(gpu: &Gpu, cases: impl IntoIterator<Item = &'c dyn Case>, rng: &mut Rng) -> Result<f64> {
    let launched: Vec<LaunchedCase<'_>> = cases.into_iter().map(|case| LaunchedCase::new(gpu, case, rng)).collect();
    let slots: Vec<&Slot> = launched.iter().flat_map(|case| case.compared().map(|(slot, ..)| slot)).collect();
    let words = gpu.read::<u32>(&slots).await?;
    let mut words = words.as_slice();
    let mut worst: f64 = 0.0;
    for case in &launched {
        let (own, others) = words.split_at(case.compared().count());
        worst = worst.max(case.error(own));
        words = others;
    }
    Ok(worst)
}

/// Runs the first four cases of every kernel family, and returns (family, largest error of [`verify`]).
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn self_test(gpu: &Gpu) -> Result<Vec<(&'static str, f64)>> {
    let mut rng = Rng::new(0, 0);
    let mut results = Vec::new();
    for kernel in REGISTRY {
        let mut worst: f64 = 0.0;
        for case in kernel.cases().iter().take(4) {
            worst = worst.max(verify(gpu, case.as_ref(), &mut rng).await?);
        }
        results.push((kernel.name(), worst));
    }
    Ok(results)
}

/// Checks a device's variants with small random cases: those whose weights are stored in one of `formats`, and those without weights.
/// Returns the variants that failed.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn failing_variants(gpu: &Gpu, formats: &[WeightFormat]) -> Result<Vec<Variant>> {
    let mut rng = Rng::new(0, 1);
    let mut wrong = Vec::new();
    for &variant in &gpu.caps().variants {
        let cases: Vec<Box<dyn Case>> = REGISTRY.iter().flat_map(|k| k.variant_cases(variant, gpu.caps())).collect();
        let is_needed = |case: &&dyn Case| case.weight_format().is_none_or(|format| formats.contains(&format));
        let needed = cases.iter().map(AsRef::as_ref).filter(is_needed);
        if verify_all(gpu, needed, &mut rng).await? > 1.0 {
            wrong.push(variant);
        }
    }
    Ok(wrong)
}

/// Checks a device's variants with small random cases, and disables those that fail. Returns the device and the failed variants.
///
/// # Errors
/// [`crate::Error::Gpu`], also where products of the requested precision are wrong.
pub async fn with_checked_variants(gpu: Gpu) -> Result<(Gpu, Vec<Variant>)> {
    let wrong = failing_variants(&gpu, &WeightFormat::ALL).await?;
    let right = gpu.caps().variants.iter().copied().filter(|variant| !wrong.contains(variant)).collect();
    let mut rng = Rng::new(0, 1);
    let precision = gpu.caps().matmul_precision;
    if precision != MatmulPrecision::Highest {
        for case in REGISTRY.iter().flat_map(|k| k.precision_cases(precision).into_iter().take(AT_START)) {
            if verify(&gpu, case.as_ref(), &mut rng).await? > 1.0 {
                let (name, device) = (precision.name(), &gpu.caps().name);
                return Err(Error::Gpu(format!(
                    "--matmul-precision {name}: {device} computes wrongly; choose highest"
                )));
            }
        }
    }
    Ok((gpu.with_variants(right), wrong))
}

/// Computes the largest error of `got`, relative to the largest magnitude of `want`, as a multiple of `tolerance`; infinite where a value
/// is NaN.
pub fn error_over_tolerance(got: &[f64], want: &[f64], tolerance: f64) -> f64 {
    let scale = want.iter().fold(1e-30, |m: f64, x| m.max(x.abs()));
    let worst = got.iter().zip(want).fold(0.0, |m: f64, (g, w)| {
        let e = (g - w).abs();
        if e.is_nan() { f64::INFINITY } else { m.max(e) }
    });
    worst / scale / tolerance
}
