//! `bench --step`: whole optimiser steps of JPO on random weights and rows.

use std::time::Instant;

use serde_json::json;

use crate::data::batch::Example;
use crate::error::Result;
use crate::flags::{BenchArgs, RowsArg, StepArg};
use crate::gpu::Gpu;
use crate::kernels::shapes::ModelShape;
use crate::model::saved::RecomputePolicy;
use crate::objective::PreferenceLoss;
use crate::objective::TrainingLoss;
use crate::train::memory_plan::{MicroCost, reserve};
use crate::train::outcome::RowReference;
use crate::train::settings::TrainDefaults;
use crate::train::synthetic::{self, RowLengths};
use crate::train::trainer::Trainer;

/// Most tokens per sequence.
const SEQUENCE: usize = 256;

/// Rows of a step, with the way that they are computed.
struct StepWorkload {
    name: &'static str,
    lengths: RowLengths,
    share_prefix: bool,
}

/// Returns the workloads to time. Where there are two, the first is compared with the second.
fn workloads(rows: RowsArg) -> Vec<StepWorkload> {
    let load = |name, lengths, share_prefix| StepWorkload { name, lengths, share_prefix };
    match rows {
        RowsArg::Joint => vec![load("joint pairs", RowLengths::Equal, true)],
        RowsArg::Conditional => vec![
            load("one instruction a pair, two thirds of a row, computed once", RowLengths::Shared, true),
            load("computed twice", RowLengths::Shared, false),
        ],
        RowsArg::Mixed => vec![
            load("lengths of a quarter to the whole, packed", RowLengths::Mixed, true),
            load("padded to the longest", RowLengths::Equal, true),
        ],
    }
}

/// Measurements of one workload's steps.
struct TimedSteps {
    cost: MicroCost,
    pairs: usize,
    first: f64,
    /// Seconds per step, rising.
    runs: Vec<f64>,
    /// Kernels, dispatches and device time of one more step.
    profile: Option<crate::gpu::KernelProfile>,
    peak_bytes: u64,
}

impl TimedSteps {
    fn seconds(&self) -> f64 {
        self.runs[self.runs.len() / 2]
    }
}

fn time(
    args: &BenchArgs,
    gpu: &Gpu,
    model: &ModelShape,
    pairs: usize,
    step: StepArg,
    load: &StepWorkload,
) -> Result<TimedSteps> {
    let d = synthetic::description(model)?;
    let decoder = synthetic::decoder(gpu, &d, step == StepArg::Full, SEQUENCE)?;
    let examples = synthetic::pairs(pairs, SEQUENCE, model.vocab, load.lengths);
    let examples: Vec<&Example> = examples.iter().collect();
    let goal = TrainingLoss::Preference(PreferenceLoss::default());
    let cost = reserve(gpu, &decoder, &goal, &examples, load.share_prefix, RecomputePolicy::Everything);
    let trainer =
        Trainer { gpu, decoder, goal, share_prefix: load.share_prefix, keep: RecomputePolicy::Everything, seed: 0 };
    let reference = vec![RowReference::default(); pairs];
    let step_once = |number| {
        let started = Instant::now();
        let rate = TrainDefaults::LEARNING_RATE_LORA;
        let done = trainer.step(&examples, &reference, pairs, &TrainDefaults::OPTIMISER, rate, number);
        pollster::block_on(done).map(|_| started.elapsed().as_secs_f64())
    };
    let first = step_once(1)?;
    let mut runs = Vec::new();
    let started = Instant::now();
    while runs.len() < 3 || (started.elapsed().as_secs_f64() < 10.0 * args.seconds && runs.len() < 50) {
        runs.push(step_once(2 + runs.len())?);
    }
    runs.sort_by(f64::total_cmp);
    gpu.start_profile();
    step_once(2 + runs.len())?;
    let profile = gpu.end_profile();
    Ok(TimedSteps { cost, pairs, first, runs, profile, peak_bytes: gpu.ledger().peak_bytes() })
}

/// Prints time, tokens per second, memory and device time per kernel. Where there are two workloads, also prints how much faster the first one is.
pub fn run(args: &BenchArgs, gpu: &Gpu, model: &ModelShape, t: usize, step: StepArg) -> Result<()> {
    let pairs = t.div_ceil(2 * SEQUENCE);
    let step_name = format!("{step:?}").to_lowercase();
    let mut all: Vec<(StepWorkload, TimedSteps)> = Vec::new();
    for load in workloads(args.rows.unwrap_or(RowsArg::Joint)) {
        let timed = time(args, gpu, model, pairs, step, &load)?;
        if !args.json {
            print_timing(model, &step_name, &load, &timed)?;
        }
        all.push((load, timed));
    }
    let ratio = (all.len() == 2).then(|| all[1].1.seconds() / all[0].1.seconds());
    if !args.json {
        return ratio.map_or(Ok(()), |r| say!("{}: {r:.2} times faster", model.name));
    }
    let caps = gpu.caps();
    let loads = all.iter().map(|(load, timed)| {
        json!({
            "rows": load.name, "pairs": timed.pairs, "tokens": timed.cost.tokens, "first_seconds": timed.first,
            "seconds": timed.seconds(), "runs_seconds": timed.runs, "flops": timed.cost.flops,
            "tokens_per_second": timed.cost.tokens as f64 / timed.seconds(), "peak_bytes": timed.peak_bytes,
            "kernels_us": timed.profile.as_ref().map_or(Vec::new(), |p| p.rows()),
        })
    });
    let mut line = json!({"device": caps.name, "driver": caps.driver, "model": model.name, "step": step_name});
    if let Some(object) = line.as_object_mut() {
        match ratio {
            None => object.extend(loads.flat_map(|l| l.as_object().cloned().unwrap_or_default())),
            Some(ratio) => {
                object.insert("workloads".into(), loads.collect());
                object.insert("times_faster".into(), ratio.into());
            }
        }
    }
    say!("{line}")
}

fn print_timing(model: &ModelShape, step: &str, load: &StepWorkload, timed: &TimedSteps) -> Result<()> {
    let (seconds, tokens) = (timed.seconds(), timed.cost.tokens as f64);
    say!(
        "{}, {step} step, {} pairs of 2 × {SEQUENCE} tokens, {}: first {:.2} s, then {seconds:.3} s ({:.0} tokens/s, {:.1} GFLOP/s), {:.0} MiB",
        model.name,
        timed.pairs,
        load.name,
        timed.first,
        tokens / seconds,
        timed.cost.flops as f64 / seconds / 1e9,
        timed.peak_bytes as f64 / 1_048_576.0,
    )?;
    match &timed.profile {
        Some(profile) => say!("{}", profile.table()),
        None => Ok(()),
    }
}
