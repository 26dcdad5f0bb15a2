//! `bench`: every kernel at the shapes of real models, verified and then timed; or whole optimiser steps. Each time stands beside the
//! least that the device could take, by its own measured ceilings.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::output::check_place;
use super::steps;
use crate::error::{Error, Result};
use crate::flags::BenchArgs;
use crate::gpu::{Caps, Gpu};
use crate::kernels::matmul;
use crate::kernels::measure::{DevicePeaks, time};
use crate::kernels::shapes::{MODELS, ModelShape, TOKENS};
use crate::kernels::{Case, Kernel, REGISTRY, verify};
use crate::model::folder::{MAX_CONFIG_BYTES, read_file};
use crate::progress::ProgressReporter;
use crate::report::roofline::{self, RooflinePoint};
use crate::rng::Rng;
use crate::validate::{at_least_one, at_most, not_negative};

/// Results of a run, as `--json` prints them and `--compare` reads them.
#[derive(Debug, Serialize, Deserialize)]
struct BenchResults {
    version: String,
    device: String,
    driver: String,
    backend: String,
    ceilings: DevicePeaks,
    cases: Vec<MeasuredCase>,
}

/// Measurements of one case.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct MeasuredCase {
    kernel: String,
    model: String,
    tokens: usize,
    case: String,
    /// Median time per run, in µs.
    us: f64,
    /// Half the interquartile range, as a fraction of the median.
    noise: f64,
    bytes: u64,
    flops: u64,
    /// Least time by the device's ceilings, as a fraction of the measured time.
    of_ceiling: f64,
    /// Time per entry point, in µs.
    entries_us: Vec<(String, f64)>,
}

/// Most elements of a matrix of `--product`: 4 GiB.
const MOST_ELEMENTS: usize = 1 << 30;

/// Runs `jointwise bench`.
pub fn run(args: &BenchArgs) -> Result<()> {
    measurable(&args.tokens, args.seconds)?;
    not_negative("most-seconds", args.most_seconds)?;
    let product = match args.product[..] {
        [] => None,
        [m, n, k] if m.min(n).min(k) > 0 => {
            let largest = m.saturating_mul(n).max(m.saturating_mul(k)).max(k.saturating_mul(n));
            at_most("product", largest, MOST_ELEMENTS)?;
            Some([m, n, k])
        }
        _ => return Err(Error::flag("product", "it is three numbers above 0: M,N,K")),
    };
    let models = chosen("models", &args.models, &MODELS, |m| m.name)?;
    let kernels = chosen("kernels", &args.kernels, REGISTRY, |k| k.name())?;
    let earlier = args.compare.as_deref().map(read).transpose()?;
    let svg = args.svg.as_deref().map(|path| check_place("svg", path, &args.compare)).transpose()?;
    let gpu = Gpu::open_with(&args.device.options()?)?;
    let on_cpu = gpu.caps().is_cpu;
    let models = if on_cpu && args.models.is_empty() { models[..2].to_vec() } else { models };
    let tokens = match (args.tokens.as_slice(), on_cpu) {
        ([], true) => vec![512],
        ([], false) => TOKENS.to_vec(),
        (typed, _) => typed.to_vec(),
    };
    if let Some(step) = args.step {
        return models.iter().try_for_each(|m| tokens.iter().try_for_each(|&t| steps::run(args, &gpu, m, t, step)));
    }
    let ceilings = pollster::block_on(DevicePeaks::measure(&gpu, args.seconds))?;
    if !args.json {
        say!("{} {}", gpu.caps().name, gpu.caps().driver)?;
        say!("copy {:.1} GB/s, f32 multiply-adds {:.1} GFLOP/s\n", ceilings.copy_gb_s, ceilings.fma_gflop_s)?;
        say!("{HEAD}{}", if earlier.is_some() { "   before" } else { "" })?;
    }
    let work = match product {
        Some([m, n, k]) => {
            let case = matmul::product(m, n, k, gpu.caps());
            vec![KernelBench { kernel: &matmul::MatmulKernels, model: "product", tokens: m, case }]
        }
        None => benches(&kernels, &models, &tokens, gpu.caps()),
    };
    let mut cases = Vec::new();
    let mut verified = None;
    let progress = ProgressReporter::items("measuring kernels", work.len());
    for KernelBench { kernel, model, tokens, case } in work {
        progress.advance(1);
        let line = format!("{} {model} T={tokens} {}", kernel.name(), case.label());
        if args.filter.as_ref().is_some_and(|f| !line.contains(f)) {
            continue;
        }
        if let Some(why) = left_out(&gpu, case.as_ref(), &ceilings, args.most_seconds) {
            progress.note(&format!("left out: {line}: {why}"));
            continue;
        }
        if product.is_some_and(|[m, n, k]| m.saturating_mul(n).saturating_mul(k) <= SOON) {
            check(&gpu, kernel, &[case.as_ref()])?;
        } else if verified.replace(kernel.name()) != Some(kernel.name()) {
            let cases = kernel.cases();
            let taken = cases.iter().map(AsRef::as_ref).filter(|case| case.is_supported(gpu.caps()));
            check(&gpu, kernel, &taken.collect::<Vec<_>>())?;
        }
        let timing = pollster::block_on(time(&gpu, case.as_ref(), args.seconds))?;
        let m = MeasuredCase {
            kernel: kernel.name().into(),
            model: model.into(),
            tokens,
            case: case.label(),
            us: timing.median_us(),
            noise: timing.noise(),
            bytes: timing.cost.bytes,
            flops: timing.cost.flops,
            of_ceiling: ceilings.least_us(&timing.cost) / timing.median_us(),
            entries_us: timing.by_entry_us,
        };
        if !args.json {
            progress.suspend(|| say!("{}{}", row(&m), earlier.as_ref().map_or(String::new(), |e| verdict(e, &m))))?;
        }
        cases.push(m);
    }
    drop(progress);
    let caps = gpu.caps();
    if let Some(path) = &svg {
        let point = |m: &MeasuredCase| RooflinePoint {
            kernel: m.kernel.clone(),
            intensity: m.flops as f64 / m.bytes as f64,
            gflop_s: m.flops as f64 / m.us / 1e3,
        };
        let points: Vec<RooflinePoint> = cases.iter().filter(|m| m.flops > 0).map(point).collect();
        roofline::write(path, &format!("{} {}", caps.name, caps.driver), &ceilings, &points)?;
    }
    if args.json {
        let results = BenchResults {
            version: env!("CARGO_PKG_VERSION").into(),
            device: caps.name.clone(),
            driver: caps.driver.clone(),
            backend: caps.backend.clone(),
            ceilings,
            cases,
        };
        say!("{}", serde_json::to_string_pretty(&results).map_err(|e| Error::file("standard output", e))?)?;
    }
    Ok(())
}

/// Case to be timed, with its kernel, its model and the number of tokens.
struct KernelBench {
    kernel: &'static dyn Kernel,
    model: &'static str,
    tokens: usize,
    case: Box<dyn Case>,
}

/// Returns the kernels' cases at the models' shapes.
fn benches(kernels: &[&'static dyn Kernel], models: &[ModelShape], tokens: &[usize], caps: &Caps) -> Vec<KernelBench> {
    let mut all = Vec::new();
    for &kernel in kernels {
        for model in models {
            for &tokens in tokens {
                let cases = kernel.benches(model, tokens, caps).into_iter();
                all.extend(cases.map(|case| KernelBench { kernel, model: model.name, tokens, case }));
            }
        }
    }
    all
}

/// Returns the items of `from` that were named, or all items where none was named.
pub fn chosen<T: Copy>(
    flag: &'static str,
    names: &[String],
    from: &[T],
    name: impl Fn(&T) -> &'static str,
) -> Result<Vec<T>> {
    if names.is_empty() {
        return Ok(from.to_vec());
    }
    let find = |typed: &String| {
        let all = || from.iter().map(&name).collect::<Vec<_>>().join(", ");
        from.iter()
            .find(|x| name(x) == typed)
            .copied()
            .ok_or_else(|| Error::flag(flag, format!("unknown `{typed}`: expected one of {}", all())))
    };
    names.iter().map(find).collect()
}

/// Most multiply-adds of a `--product` that is verified itself. A larger product would take its CPU twin too long.
const SOON: usize = 1 << 31;

/// Verifies a kernel against its CPU twin, so that no time of a wrong kernel is shown.
fn check(gpu: &Gpu, kernel: &dyn Kernel, cases: &[&dyn Case]) -> Result<()> {
    let mut rng = Rng::new(0, 3);
    for case in cases {
        let error = pollster::block_on(verify(gpu, *case, &mut rng))?;
        if error > 1.0 {
            let text = format!("{} computes wrongly: {}: {error:.1} times the tolerance", kernel.name(), case.label());
            return Err(Error::Gpu(text));
        }
    }
    Ok(())
}

/// Factor from a case's least time to the time that is guessed before it is run. Slow kernels on software drivers take this long.
const GUESS: f64 = 30.0;

/// Returns why a case is not run on this device, or `None` where it is run.
fn left_out(gpu: &Gpu, case: &dyn Case, ceilings: &DevicePeaks, most_seconds: f64) -> Option<String> {
    let guess = GUESS * ceilings.least_us(&case.cost()) / 1e6;
    if guess > most_seconds {
        return Some(format!("a run may take {guess:.0} s (--most-seconds)"));
    }
    // On a device that only counts, for the largest of its buffers.
    let plan = Gpu::plan(gpu.caps().clone());
    let inputs: Vec<_> = case.inputs(&mut Rng::new(0, 0)).iter().map(|h| h.upload(&plan)).collect();
    let d_y: Vec<_> = case.d_y_lens().iter().map(|&n| plan.alloc_activation(n)).collect();
    case.launch(&mut plan.record(), &inputs, &d_y);
    let largest = inputs.iter().map(|s| s.bytes()).max().unwrap_or(0).max(plan.ledger().largest_activation());
    (largest > gpu.caps().max_binding_bytes).then(|| format!("{} MiB do not fit a binding", largest >> 20))
}

const HEAD: &str = "kernel       model            T       us   noise     GB/s  GFLOP/s  ceiling";

fn row(m: &MeasuredCase) -> String {
    let (gb_s, gflop_s) = (m.bytes as f64 / m.us / 1e3, m.flops as f64 / m.us / 1e3);
    // Families with several cases a model.
    let case = if ["matmul", "adamw"].contains(&m.kernel.as_str()) { format!("  {}", m.case) } else { String::new() };
    format!(
        "{:<12} {:<12} {:>5} {:>8.0} {:>6.1}% {gb_s:>8.2} {gflop_s:>8.1} {:>7.1}%{case}",
        m.kernel,
        m.model,
        m.tokens,
        m.us,
        100.0 * m.noise,
        100.0 * m.of_ceiling,
    )
}

/// Least relative change that is reported as a change, even where the noise of the runs is smaller.
const LEAST_CHANGE: f64 = 0.03;

/// Compares a case with the same case of an earlier run, in words.
fn verdict(earlier: &BenchResults, now: &MeasuredCase) -> String {
    let same = |m: &&MeasuredCase| {
        (&m.kernel, &m.model, m.tokens, &m.case) == (&now.kernel, &now.model, now.tokens, &now.case)
    };
    let Some(before) = earlier.cases.iter().find(same) else { return "   new".into() };
    let (ratio, noise) = (now.us / before.us, (3.0 * (now.noise + before.noise)).max(LEAST_CHANGE));
    let word = match ratio {
        r if r > 1.0 + noise => "slower",
        r if r < 1.0 / (1.0 + noise) => "faster",
        _ => "same",
    };
    format!("   {:.0} us, {:.2} times: {word}", before.us, ratio)
}

fn read(path: &Path) -> Result<BenchResults> {
    let text = read_file(path, MAX_CONFIG_BYTES)?;
    serde_json::from_str(&text).map_err(|e| Error::line(path, e.line(), e))
}

/// Most tokens of a micro-batch that is measured.
const MOST_MEASURED_TOKENS: usize = 1 << 20;
/// Most seconds that measuring may take: a day.
const MOST_MEASURED_SECONDS: f64 = 86_400.0;

/// Checks the flags of `bench` and `tune`.
///
/// # Errors
/// [`Error::Flag`] for tokens that no memory holds, and for more than a day.
pub(super) fn measurable(tokens: &[usize], seconds: f64) -> Result<()> {
    tokens
        .iter()
        .try_for_each(|&n| at_least_one("tokens", n).and_then(|()| at_most("tokens", n, MOST_MEASURED_TOKENS)))?;
    not_negative("seconds", seconds)?;
    match seconds > MOST_MEASURED_SECONDS {
        true => Err(Error::flag("seconds", format!("{seconds} is above {MOST_MEASURED_SECONDS}, the most"))),
        false => Ok(()),
    }
}
