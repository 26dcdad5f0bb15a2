//! `plan`: the memory of a run, counted by running the same program on a device that only counts allocations.

use std::collections::BTreeMap;

use serde_json::json;

use crate::error::Result;
use crate::flags::{PlanArgs, PlannedRun, plan_run, planned_caps, with_config};
use crate::gpu::{Caps, Ledger};
use crate::train::memory_plan::MemoryPlan;
use crate::train::step_estimate::{GpuDataSheet, KernelEstimate, StepEstimate};
use crate::workflow::fitting_changes::{FittingChange, advice};
use crate::workflow::memory_demand::{fits, memory_for, memory_text};

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

/// Says in words whether the run fits.
fn verdict(caps: &Caps, ledger: &Ledger) -> String {
    let Some(most) = memory_for(caps) else {
        return "whether it fits is unknown: the device does not say what memory it has (--device-memory SIZE does)"
            .into();
    };
    let fits = if fits(caps, ledger) == Some(false) { "does not fit" } else { "fits" };
    let [takes, most] = [ledger.peak_bytes(), most].map(mib);
    format!("it {fits}: it takes {takes:.1} MiB, and may take {most:.1}; the device has {}", memory_text(caps))
}

/// Runs `jointwise plan`.
pub fn run(args: PlanArgs) -> Result<()> {
    let PlanArgs { train: args, sft, limits, estimate, device_memory } = args;
    let config = args.config.clone();
    let args = with_config(args, config.as_deref(), "train")?;
    let data_sheet = estimate.as_deref().map(GpuDataSheet::named).transpose()?;
    let mut caps = match data_sheet {
        Some(gpu) => gpu.caps(args.model.device.options()?.matmul_precision.unwrap_or_default())?,
        None => planned_caps(&args.model.device, limits)?,
    };
    if device_memory.is_some() {
        (caps.memory_bytes, caps.free_memory_bytes) = (device_memory, None);
    }
    let mut found = plan_run(&args, sft, &caps)?;
    if let Some(first) = found.changes.first().filter(|_| args.auto_fit) {
        note!("note: --auto-fit: planned with {}", first.flags());
        let mut args = args.clone();
        args.apply(&first.settings);
        found = plan_run(&args, sft, &caps)?;
    }
    let PlannedRun { base_dtype, is_full, settings, recompute, step_work, memory_plan, peaks, changes } = found;
    let base_dtype = base_dtype.name();
    let MemoryPlan { ledger, cost, trained, model } = memory_plan;
    let estimate = data_sheet.map(|gpu| (gpu, gpu.estimate(&step_work, caps.matmul_precision)));
    if args.json {
        let roles: serde_json::Map<_, _> = ledger
            .peak_by_role()
            .into_iter()
            .filter_map(|(role, bytes)| Some((serde_json::to_value(role).ok()?.as_str()?.to_string(), json!(bytes))))
            .collect();
        let mut line = json!({
            "peak_bytes": ledger.peak_bytes(), "roles": roles, "trained_parameters": trained, "parameters": model.parameters,
            "active_parameters": model.active, "tokens": cost.tokens, "dispatches": cost.dispatches, "flops": cost.flops,
            "recompute": recompute, "peak_bytes_by_recompute": peaks.iter().copied().collect::<BTreeMap<_, _>>(),
            "base_dtype": base_dtype, "optim": settings.optim.name(),
            "param_dtype": settings.param_dtype.name(), "saved_dtype": settings.saved_dtype.name(), "device": caps.name,
            "device_memory_bytes": caps.memory_bytes, "free_memory_bytes": caps.free_memory_bytes,
            "fits": fits(&caps, &ledger), "would_fit_with": changes.iter().map(would_fit).collect::<Vec<_>>(),
        });
        if let (Some((gpu, estimate)), Some(object)) = (&estimate, line.as_object_mut()) {
            object.insert("estimate".into(), estimate_json(gpu, estimate));
        }
        return say!("{line}");
    }
    say!("{trained} trained parameters{}; largest micro-batch {} tokens\n", model.of_experts(), cost.tokens)?;
    for (role, bytes) in ledger.peak_by_role() {
        let name = serde_json::to_value(role).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default();
        say!("{name:<12} {:>10.1} MiB", mib(bytes))?;
    }
    say!("{:<12} {:>10.1} MiB", "peak", mib(ledger.peak_bytes()))?;
    if let Some(bytes) = caps.memory_bytes {
        let whose = if device_memory.is_some() { "--device-memory" } else { &caps.name };
        say!("{:<12} {:>10.1} MiB  ({whose})", "device", mib(bytes))?;
    }
    for (name, bytes) in &peaks {
        say!("{:<12} {:>10.1} MiB  with --recompute {name}", "peak", mib(*bytes))?;
    }
    let (base, optim, params) = (base_dtype, settings.optim.name(), settings.param_dtype.name());
    let saved = settings.saved_dtype.name();
    say!("\n--recompute {recompute} --saved-dtype {saved} --base-dtype {base} --optim {optim} --param-dtype {params}")?;
    say!("a micro-batch: {} dispatches, {:.1} GFLOP", cost.dispatches, cost.flops as f64 / 1e9)?;
    say!("{}", verdict(&caps, &ledger))?;
    if fits(&caps, &ledger) == Some(false) {
        say!("{}", advice(&changes, is_full))?;
    }
    match estimate {
        Some((gpu, estimate)) => print_estimate(gpu, &estimate),
        None => Ok(()),
    }
}

fn print_estimate(gpu: &GpuDataSheet, estimate: &StepEstimate) -> Result<()> {
    say!("\nESTIMATE of a step on {}. Nothing was measured.", gpu.title)?;
    say!("Data sheet: {}. Each dispatch takes at least its bytes or its operations at these rates.", gpu.rates())?;
    say!("Bytes: what is read and written, each element once. Real kernels reach a part of these rates.\n")?;
    say!("{:<26} {:>10} {:>10} {:>10} {:>10} {:>6}", "kernel", "dispatches", "MiB", "GFLOP", "least ms", "%")?;
    let total = estimate.least_us();
    for kernel in &estimate.kernels {
        say!(
            "{:<26} {:>10} {:>10.1} {:>10.2} {:>10.3} {:>6.1}  {}",
            kernel.entry,
            kernel.dispatches,
            mib(kernel.work.bytes),
            kernel.work.flops as f64 / 1e9,
            kernel.least_us / 1e3,
            100.0 * kernel.least_us / total.max(1e-9),
            bound(kernel),
        )?;
    }
    let (n, work) = estimate.total();
    let (bytes, gflop) = (mib(work.bytes), work.flops as f64 / 1e9);
    say!("{:<26} {n:>10} {bytes:>10.1} {gflop:>10.2} {:>10.3}", "a step", total / 1e3)
}

/// Says what bounds a kernel, with the memory's part of the time where both bound some of its dispatches.
fn bound(kernel: &KernelEstimate) -> String {
    match 100.0 * kernel.memory_bound_us / kernel.least_us.max(1e-9) {
        memory if memory < 0.5 => "arithmetic".into(),
        memory if memory >= 99.5 => "memory".into(),
        memory => format!("memory {memory:.0} %, arithmetic {:.0} %", 100.0 - memory),
    }
}

fn estimate_json(gpu: &GpuDataSheet, estimate: &StepEstimate) -> serde_json::Value {
    let kernels = estimate.kernels.iter().map(|k| {
        json!({
            "kernel": k.entry, "dispatches": k.dispatches, "bytes": k.work.bytes, "flops": k.work.flops,
            "least_us": k.least_us, "memory_bound_us": k.memory_bound_us,
        })
    });
    json!({
        "gpu": gpu.title, "is_measured": false, "least_seconds": estimate.least_us() / 1e6,
        "kernels": kernels.collect::<Vec<_>>(),
    })
}

fn would_fit(change: &FittingChange) -> serde_json::Value {
    json!({"flags": change.flags(), "peak_bytes": change.peak_bytes})
}
