//! Kernel families, one file each: launchers, f64 twin, cases, cost. [`REGISTRY`] lists all families for tests and benches.
//!
//! A family's WGSL has the stem of its Rust file in `shaders/`. Launchers append to a [`crate::gpu::Recording`] and choose variants from
//! its device's caps.

pub mod activation;
pub mod adamw;
pub mod add;
pub mod attention;
pub mod attention_sinks;
mod case;
pub mod causal_conv;
pub mod ceiling;
pub mod column_sum;
pub mod columns;
pub mod conv_gates;
pub mod delta_gates;
pub mod delta_rule;
pub mod description;
pub mod dropout;
pub mod embedding;
pub mod expert_bias;
pub mod expert_rows;
pub mod gated_rmsnorm;
pub mod gather;
pub mod global_norm;
pub mod l2norm;
pub mod layernorm;
pub mod logprob;
pub mod matmul;
pub mod measure;
pub mod moments;
pub mod objective;
pub mod output_gate;
pub mod pack;
pub mod packed_batch;
pub mod rmsnorm;
pub mod rope;
pub mod router;
mod row_vec4s;
pub mod sample;
pub mod shader_checks;
pub mod shapes;
pub mod storage;
pub mod tunable;
pub mod tune;
mod value;

pub use case::{Case, CaseOutputs, Cost, HostTensor, tolerance};

use crate::error::{Error, Result};
use crate::gpu::{Caps, Gpu, MatmulPrecision, Recording, Shader, Slot, Variant};
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
    &columns::ColumnsKernels,
    &attention::FlashAttention,
    &attention_sinks::AttentionSinksKernels,
    &output_gate::OutputGateKernels,
    &causal_conv::CausalConvKernels,
    &conv_gates::ConvGatesKernels,
    &l2norm::L2normKernels,
    &delta_gates::DeltaGatesKernels,
    &delta_rule::DeltaRuleKernels,
    &gated_rmsnorm::GatedRmsnormKernels,
    &dropout::DropoutKernels,
    &add::AddKernels,
    &router::RouterKernels,
    &expert_rows::ExpertRowsKernels,
    &expert_bias::ExpertBiasKernels,
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
    /// Appends the case's kernels to a recording.
    fn new(rec: &mut Recording<'_>, case: &'c dyn Case, rng: &mut Rng) -> Self {
        let gpu = rec.gpu();
        let inputs = case.inputs(rng);
        let x: Vec<Vec<f64>> = inputs.iter().map(HostTensor::to_f64).collect();
        let y = case.forward(&x);
        let d_y: Vec<HostTensor> =
            y.iter().take(case.differentiable()).map(|y| HostTensor::normal(rng, y.len())).collect();
        let d_x = case.backward(&x, &d_y.iter().map(HostTensor::to_f64).collect::<Vec<_>>());
        let upload = |hosts: &[HostTensor]| hosts.iter().map(|h| h.upload(gpu)).collect::<Vec<_>>();
        let out = case.launch(rec, &upload(&inputs), &upload(&d_y));
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
    Ok(errors(gpu, &[case], rng).await?[0])
}

/// Runs cases like [`verify`] and returns their errors. It submits once, so that all their kernels are compiled in parallel, and waits for the
/// device once, because a wait may take a browser 100 ms.
///
/// # Errors
/// [`crate::Error::Gpu`].
async fn errors(gpu: &Gpu, cases: &[&dyn Case], rng: &mut Rng) -> Result<Vec<f64>> {
    let mut rec = gpu.record();
    let launched: Vec<LaunchedCase<'_>> = cases.iter().map(|case| LaunchedCase::new(&mut rec, *case, rng)).collect();
    rec.submit();
    let slots: Vec<&Slot> = launched.iter().flat_map(|case| case.compared().map(|(slot, ..)| slot)).collect();
    let words = gpu.read::<u32>(&slots).await?;
    let mut words = words.as_slice();
    let mut errors = Vec::with_capacity(cases.len());
    for case in &launched {
        let (own, others) = words.split_at(case.compared().count());
        errors.push(case.error(own));
        words = others;
    }
    Ok(errors)
}

/// Number of [`Kernel::cases`] per family that [`self_test`] runs.
const SELF_TEST_CASES: usize = 4;

/// Largest error of some cases on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseCheck {
    /// Number of cases that were run; the other numbers are 0 where it is 0.
    pub n_cases: usize,
    /// Label of the case with the largest error.
    pub case: String,
    /// Largest error as a multiple of its case's tolerance: above 1, the device is wrong.
    pub error: f64,
    /// Tolerance of the case with the largest error, relative to the largest magnitude of its tensor.
    pub tolerance: f64,
}

impl CaseCheck {
    /// Returns the largest of the errors of cases.
    fn worst<'c>(checked: impl Iterator<Item = (&'c dyn Case, f64)>) -> Self {
        let mut worst = Self { n_cases: 0, case: String::new(), error: 0.0, tolerance: 0.0 };
        for (case, error) in checked {
            worst.n_cases += 1;
            if worst.n_cases == 1 || error > worst.error {
                (worst.case, worst.error, worst.tolerance) = (case.label(), error, case.tolerance());
            }
        }
        worst
    }
}

/// Number of cases whose tensors [`check_cases`] holds at once.
const CASES_AT_ONCE: usize = 32;

/// Returns the errors of any number of cases. It waits for the device once in 32 cases.
async fn errors_in_groups(gpu: &Gpu, cases: &[&dyn Case], rng: &mut Rng) -> Result<Vec<f64>> {
    let mut all = Vec::with_capacity(cases.len());
    for group in cases.chunks(CASES_AT_ONCE) {
        all.extend(errors(gpu, group, rng).await?);
    }
    Ok(all)
}

/// Runs cases like [`verify`] and returns the largest error. It waits for the device once in 32 cases.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn check_cases(gpu: &Gpu, cases: &[Box<dyn Case>], rng: &mut Rng) -> Result<CaseCheck> {
    let cases: Vec<&dyn Case> = cases.iter().map(AsRef::as_ref).collect();
    let errors = errors_in_groups(gpu, &cases, rng).await?;
    Ok(CaseCheck::worst(cases.into_iter().zip(errors)))
}

/// Returns the first four cases of a family, which every device supports.
pub fn first_cases(kernel: &dyn Kernel) -> Vec<Box<dyn Case>> {
    kernel.cases().into_iter().take(SELF_TEST_CASES).collect()
}

/// Returns all cases of a family whose variants the device supports.
pub fn supported_cases(kernel: &dyn Kernel, caps: &Caps) -> Vec<Box<dyn Case>> {
    kernel.cases().into_iter().filter(|case| case.is_supported(caps)).collect()
}

/// Runs the [`first_cases`] of every kernel family, and returns (family, largest error of [`verify`]).
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn self_test(gpu: &Gpu) -> Result<Vec<(&'static str, f64)>> {
    let mut rng = Rng::new(0, 0);
    let mut results = Vec::new();
    for kernel in REGISTRY {
        let check = check_cases(gpu, &first_cases(*kernel), &mut rng).await?;
        results.push((kernel.name(), check.error));
    }
    Ok(results)
}

/// Checks each variant of a device with small random cases of every family that has it: those whose weights are stored in one of `formats`,
/// and those without weights.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn check_variants(gpu: &Gpu, formats: &[WeightFormat]) -> Result<Vec<(Variant, CaseCheck)>> {
    let is_needed = |case: &dyn Case| case.weight_format().is_none_or(|format| formats.contains(&format));
    let of_variant = |variant| {
        let all = REGISTRY.iter().flat_map(move |k| k.variant_cases(variant, gpu.caps()));
        all.filter(|case| is_needed(case.as_ref()))
    };
    let variants = &gpu.caps().variants;
    let cases: Vec<Vec<Box<dyn Case>>> = variants.iter().map(|&variant| of_variant(variant).collect()).collect();
    let all: Vec<&dyn Case> = cases.iter().flatten().map(AsRef::as_ref).collect();
    let mut errors = errors_in_groups(gpu, &all, &mut Rng::new(0, 1)).await?.into_iter();
    let mut check = |cases: &[Box<dyn Case>]| CaseCheck::worst(cases.iter().map(AsRef::as_ref).zip(errors.by_ref()));
    Ok(variants.iter().zip(&cases).map(|(&variant, cases)| (variant, check(cases))).collect())
}

/// Checks products and attention of the device's precision with each family's first cases; `None` at the highest precision.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn check_precision(gpu: &Gpu) -> Result<Option<CaseCheck>> {
    let precision = gpu.caps().matmul_precision;
    if precision == MatmulPrecision::Highest {
        return Ok(None);
    }
    let cases: Vec<_> = REGISTRY.iter().flat_map(|k| k.precision_cases(precision).into_iter().take(AT_START)).collect();
    check_cases(gpu, &cases, &mut Rng::new(0, 1)).await.map(Some)
}

/// Checks a device's variants with small random cases, as [`check_variants`] does, and switches off those that fail. Also returns the failed ones.
///
/// # Errors
/// [`crate::Error::Gpu`]: also where products of the requested precision are wrong.
pub async fn with_checked_variants(gpu: Gpu, formats: &[WeightFormat]) -> Result<(Gpu, Vec<Variant>)> {
    let checks = check_variants(&gpu, formats).await?;
    let (right, wrong): (Vec<_>, Vec<_>) = checks.into_iter().partition(|(_, check)| check.error <= 1.0);
    if check_precision(&gpu).await?.is_some_and(|check| check.error > 1.0) {
        let (name, device) = (gpu.caps().matmul_precision.name(), &gpu.caps().name);
        return Err(Error::Gpu(format!("--matmul-precision {name}: {device} computes wrongly; choose highest")));
    }
    gpu.release_free_memory();
    let variants = |checks: Vec<(Variant, CaseCheck)>| checks.into_iter().map(|(variant, _)| variant).collect();
    Ok((gpu.with_variants(variants(right)), variants(wrong)))
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
