//! `info`: devices, the features of the chosen device, and a self-test of every kernel.

use serde_json::json;

use crate::error::Result;
use crate::flags::InfoArgs;
use crate::gpu::{Gpu, list_devices};
use crate::kernels::{Kernel, REGISTRY, check_cases, self_test as test_first_cases, supported_cases};
use crate::progress::ProgressReporter;
use crate::rng::Rng;
use crate::workflow::bug_report::tell_bug_report;

/// Runs `jointwise info`.
pub fn run(args: &InfoArgs) -> Result<()> {
    if args.report {
        let asked = args.device.variant.as_ref().map(|_| "--variant");
        return tell_bug_report(&args.device.options()?, asked, args.all_cases, &|part| say!("{part}"));
    }
    let devices = pollster::block_on(list_devices());
    let gpu = Gpu::open_untested(&args.device.options()?)?;
    let caps = gpu.caps();
    let results = {
        let _progress = ProgressReporter::uncounted("checking the device's kernels");
        self_test(&gpu, args.all_cases)?
    };
    let failed: Vec<&str> = results.iter().filter(|(_, error)| *error > 1.0).map(|(name, _)| *name).collect();
    if args.json {
        let device = json!({
            "name": caps.name,
            "backend": caps.backend,
            "driver": caps.driver,
            "is_cpu": caps.is_cpu,
            "variants": caps.variants,
            "tuning": caps.tuning,
            "max_binding_bytes": caps.max_binding_bytes,
            "workgroup_bytes": caps.workgroup_bytes,
            "subgroup": caps.subgroup,
            "f16": caps.f16,
            "cooperative": caps.cooperative,
            "timestamps": caps.timestamps,
            "memory_bytes": caps.memory_bytes,
            "free_memory_bytes": caps.free_memory_bytes,
        });
        say!("{}", json!({"devices": devices, "device": device, "self_test_failed": failed}))?;
        return Ok(());
    }
    for d in &devices {
        say!("{}: {} ({}, {}) {}", d.index, d.name, d.backend, d.kind, d.driver)?;
    }
    say!("\nchosen: {} ({})", caps.name, caps.backend)?;
    say!("  driver               {}", caps.driver)?;
    let variants: Vec<&str> = std::iter::once("baseline").chain(caps.variants.iter().map(|v| v.name())).collect();
    say!("  kernels              {}", variants.join(", "))?;
    say!("  tuned                {} classes of shapes (jointwise tune)", caps.tuning.len())?;
    let gib = |bytes: Option<u64>| bytes.map(|b| format!("{:.1} GiB", b as f64 / (1u64 << 30) as f64));
    let memory = gib(caps.memory_bytes).unwrap_or("unknown".into());
    let free = gib(caps.free_memory_bytes).map_or(String::new(), |free| format!(", {free} free"));
    say!("  memory               {memory}{free}")?;
    say!("  largest binding      {} MiB", caps.max_binding_bytes >> 20)?;
    say!("  workgroup memory     {} KiB", caps.workgroup_bytes >> 10)?;
    let subgroups = caps.subgroup.map_or("none".into(), |(least, most)| format!("{least} to {most} invocations"));
    let yes = |has| if has { "yes" } else { "no" };
    say!("  subgroups            {subgroups}")?;
    let cooperative =
        caps.cooperative.map_or("no".into(), |c| format!("{0}×{0}, f16 to f32 (--matmul-precision)", c.edge));
    say!("  cooperative matrices {cooperative}")?;
    say!("  f16, timestamps      {}, {}", yes(caps.f16), yes(caps.timestamps))?;
    say!("\nself-test: error as a part of the tolerance")?;
    for (name, error) in &results {
        say!("  {name:<14} {error:>8.3}  {}", if *error <= 1.0 { "ok" } else { "FAILED" })?;
    }
    if failed.is_empty() { Ok(()) } else { Err(crate::Error::Gpu(format!("self-test failed: {}", failed.join(", ")))) }
}

/// Runs the first cases of every kernel family, or all cases, and returns (family, largest error as a part of the tolerance).
fn self_test(gpu: &Gpu, all_cases: bool) -> Result<Vec<(&'static str, f64)>> {
    if !all_cases {
        return pollster::block_on(test_first_cases(gpu));
    }
    let mut rng = Rng::new(0, 0);
    let check = |kernel: &&'static dyn Kernel| {
        pollster::block_on(check_cases(gpu, &supported_cases(*kernel, gpu.caps()), &mut rng))
            .map(|check| (kernel.name(), check.error))
    };
    REGISTRY.iter().map(check).collect()
}
