//! Checks of the kernels that a program needs, and of no others: compiling all variants takes a software adapter half a minute.
//!
//! A program's shaders are those that it recorded on a device that only counts ([`Gpu::recorded_shaders`]). Each is checked by the
//! variants' cases, as at the start of the command-line program ([`super::check_variants`]).

use std::collections::BTreeSet;

use super::{Case, CaseCheck, HostTensor, REGISTRY, errors_in_groups};
use crate::error::Result;
use crate::gpu::{Caps, Gpu, Shader, Slot, Variant};
use crate::rng::Rng;

/// Case of a variant, with the shaders that it launches.
pub struct VariantCase {
    /// Variant that the case checks.
    pub variant: Variant,
    /// Case to verify.
    pub case: Box<dyn Case>,
    /// Every shader that the case launches.
    pub shaders: Vec<Shader>,
}

/// Returns the shaders that a case launches on a device with these capabilities.
pub fn case_shaders(caps: &Caps, case: &dyn Case) -> Vec<Shader> {
    let plan = Gpu::plan(caps.clone());
    let inputs: Vec<Slot> =
        case.inputs(&mut Rng::new(0, 0)).iter().map(|host: &HostTensor| host.upload(&plan)).collect();
    let d_y: Vec<Slot> = case.d_y_lens().into_iter().map(|n| plan.alloc_activation(n)).collect();
    case.launch(&mut plan.record(), &inputs, &d_y);
    plan.recorded_shaders()
}

/// Returns the number of specialised parts in which two shaders of one entry point differ; `None` for different entry points.
fn differences(a: &Shader, b: &Shader) -> Option<usize> {
    fn unshared<T: PartialEq>(a: &[T], b: &[T]) -> usize {
        a.iter().filter(|x| !b.contains(x)).count() + b.iter().filter(|x| !a.contains(x)).count()
    }
    // A size that differs is nearer than another storage format or another epilogue, which are other code.
    let code = 16 * unshared(&a.substitutions, &b.substitutions);
    let sizes = unshared(&a.constants, &b.constants) + unshared(&a.unrolled, &b.unrolled);
    ((a.module, a.entry) == (b.module, b.entry)).then_some(code + sizes)
}

/// Returns cases of the device's variants that together launch each of `shaders`, or the most similar specialisation that has a case.
/// Shaders of entry points without such a case have no alternative that the device could use instead, and are left out. Of several cases, those
/// that compile the fewest other shaders are taken, and then all that compile none.
pub fn variant_cases_of(caps: &Caps, shaders: &[Shader]) -> Vec<VariantCase> {
    let of_variant = |&variant: &Variant| {
        let cases = REGISTRY.iter().flat_map(move |kernel| kernel.variant_cases(variant, caps));
        cases.map(move |case| VariantCase { variant, shaders: case_shaders(caps, case.as_ref()), case })
    };
    let is_near = |case: &VariantCase| {
        case.shaders.iter().any(|launched| shaders.iter().any(|needed| differences(launched, needed).is_some()))
    };
    let all: Vec<VariantCase> = caps.variants.iter().flat_map(of_variant).filter(is_near).collect();
    let mut compiled: BTreeSet<String> = BTreeSet::new();
    let mut taken = vec![false; all.len()];
    for needed in shaders {
        let nearest =
            |case: &VariantCase| case.shaders.iter().filter_map(|launched| differences(launched, needed)).min();
        let others =
            |case: &VariantCase| case.shaders.iter().filter(|shader| !compiled.contains(&shader.key())).count();
        let found = (0..all.len()).filter_map(|i| Some((nearest(&all[i])?, others(&all[i]), i))).min();
        if let Some((_, _, i)) = found {
            taken[i] = true;
            compiled.extend(all[i].shaders.iter().map(Shader::key));
        }
    }
    let compiles_none = |case: &VariantCase| case.shaders.iter().all(|shader| compiled.contains(&shader.key()));
    let chosen = all.into_iter().zip(taken).filter(|(case, taken)| *taken || compiles_none(case));
    chosen.map(|(case, _)| case).collect()
}

/// Result of [`check_shaders`].
#[derive(Debug, Clone, PartialEq)]
pub struct ShaderChecks {
    /// Largest error per variant that has cases.
    pub variants: Vec<(Variant, CaseCheck)>,
    /// Number of shaders that were compiled and run.
    pub n_shaders: usize,
}

impl ShaderChecks {
    /// Returns the variants that computed wrongly.
    pub fn wrong(&self) -> Vec<Variant> {
        self.variants.iter().filter(|(_, check)| check.error > 1.0).map(|(variant, _)| *variant).collect()
    }
}

/// Checks the variants of a device as far as a program uses them: `shaders` are the program's.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn check_shaders(gpu: &Gpu, shaders: &[Shader]) -> Result<ShaderChecks> {
    check_cases_of(gpu, &variant_cases_of(gpu.caps(), shaders)).await
}

/// Verifies cases of variants on a device.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn check_cases_of(gpu: &Gpu, chosen: &[VariantCase]) -> Result<ShaderChecks> {
    let cases: Vec<&dyn Case> = chosen.iter().map(|one| one.case.as_ref()).collect();
    let errors = errors_in_groups(gpu, &cases, &mut Rng::new(0, 1)).await?;
    let checked = |&variant: &Variant| {
        let own = chosen.iter().zip(&errors).filter(move |(one, _)| one.variant == variant);
        let check = CaseCheck::worst(own.map(|(one, error)| (one.case.as_ref(), *error)));
        (check.n_cases > 0).then_some((variant, check))
    };
    let keys: BTreeSet<String> = chosen.iter().flat_map(|one| &one.shaders).map(Shader::key).collect();
    Ok(ShaderChecks { variants: gpu.caps().variants.iter().filter_map(checked).collect(), n_shaders: keys.len() })
}
