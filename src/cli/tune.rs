//! `tune`: finds this device's fastest kernels for the shapes of models, and caches them on disk.

use super::bench::chosen;
use crate::error::Result;
use crate::flags::TuneArgs;
use crate::gpu::{Gpu, Tuning, Variant};
use crate::kernels::shapes::{MODELS, ModelShape};
use crate::kernels::tune::{TunedProduct, tune};
use crate::progress::ProgressReporter;
use crate::workflow::tuning_cache;

/// Runs `jointwise tune`.
pub fn run(args: &TuneArgs) -> Result<()> {
    super::bench::measurable(&args.tokens, args.seconds)?;
    let models = chosen("models", &args.models, &MODELS, |m| m.name)?;
    let gpu = Gpu::open_with(&args.device.options()?)?;
    let on_cpu = gpu.caps().is_cpu;
    let models = if on_cpu && args.models.is_empty() { models[..1].to_vec() } else { models };
    let tokens = match args.tokens.as_slice() {
        [] if on_cpu => vec![512],
        [] => vec![512, 2048],
        typed => typed.to_vec(),
    };
    let found = measure(&gpu, &models, &tokens, args)?;
    let caps = gpu.caps();
    let mut all = tuning_cache::kept(caps).unwrap_or_default();
    let n = found.len();
    all.merge(found);
    let (path, text) = tuning_cache::keep(caps, all)?;
    if args.json {
        return say!("{text}");
    }
    say!("{n} classes kept in {}", path.display())
}

fn measure(gpu: &Gpu, models: &[ModelShape], tokens: &[usize], args: &TuneArgs) -> Result<Tuning> {
    let mut progress = None;
    let mut told = Ok(());
    let name = |v: Option<Variant>| v.map_or("baseline", Variant::name);
    let tuning = pollster::block_on(tune(gpu, models, tokens, args.seconds, &mut |tuned: &TunedProduct, total| {
        let progress = progress.get_or_insert_with(|| ProgressReporter::items("tuning", total));
        progress.advance(1);
        if args.json || told.is_err() {
            return;
        }
        let times: Vec<String> = tuned.us.iter().map(|&(v, us)| format!("{} {us:.0}", name(v))).collect();
        told = progress.suspend(|| say!("{:<36} {:<10} {} us", tuned.class, name(tuned.fastest()), times.join(", ")));
    }))?;
    told?;
    Ok(tuning)
}
