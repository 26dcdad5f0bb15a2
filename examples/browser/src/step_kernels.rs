//! The kernels of a training step for the page: formula, WGSL, launches, work and times.

use std::collections::HashMap;

use jointwise::Result;
use jointwise::gpu::{LaunchTimes, Shader, TimingMethod};
use jointwise::kernels::Cost;
use jointwise::kernels::description::KernelDescription;
use jointwise::kernels::measure::DevicePeaks;
use jointwise::train::step_launches::{StepLaunch, StepPhase};
use serde::Serialize;

/// Kernel that a step launched.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepKernel {
    /// Entry point.
    pub entry: &'static str,
    /// Values of the module's constants, as `name = value`.
    pub constants: Vec<String>,
    /// Modules that replace imported ones.
    pub substitutions: Vec<&'static str>,
    /// Formula, source and workgroups.
    #[serde(flatten)]
    pub description: KernelDescription,
}

/// Launch of a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LaunchLine {
    /// Index of the kernel in [`StepKernels::kernels`].
    pub kernel: usize,
    /// Part of the step.
    pub phase: StepPhase,
    /// Scope: `L3` is layer 3.
    pub scope: String,
    /// Workgroups along x, y and z.
    pub workgroups: [u32; 3],
    /// Bytes read and written, as the launcher counts them.
    pub bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
}

/// All kernels of a step, and their launches in order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepKernels {
    /// Each kernel once, in the order of their first launches.
    pub kernels: Vec<StepKernel>,
    /// Every launch.
    pub launches: Vec<LaunchLine>,
}

impl StepKernels {
    /// Describes the launches of a step.
    ///
    /// # Errors
    /// Does not fail in practice: a shader that was launched has a source.
    pub fn new(step: Vec<StepLaunch>) -> Result<Self> {
        let (mut kernels, mut launches, mut known) = (Vec::new(), Vec::new(), HashMap::new());
        for StepLaunch { phase, launch } in step {
            let key = launch.shader.key();
            let kernel = match known.get(&key) {
                Some(&kernel) => kernel,
                None => {
                    kernels.push(describe(&launch.shader)?);
                    known.insert(key, kernels.len() - 1);
                    kernels.len() - 1
                }
            };
            let (workgroups, bytes, flops) = (launch.workgroups, launch.work.bytes, launch.work.flops);
            launches.push(LaunchLine { kernel, phase, scope: launch.scope, workgroups, bytes, flops });
        }
        Ok(Self { kernels, launches })
    }
}

fn describe(shader: &Shader) -> Result<StepKernel> {
    Ok(StepKernel {
        entry: shader.entry,
        constants: shader.constants.iter().map(|(name, value)| format!("{name} = {value}")).collect(),
        substitutions: shader.substitutions.iter().map(|(_, taken)| *taken).collect(),
        description: KernelDescription::new(shader)?,
    })
}

/// Times of [`StepKernels::launches`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepTimes {
    /// Method of timing.
    pub method: TimingMethod,
    /// Most repetitions per launch.
    pub repetitions: usize,
    /// Time of the whole step, submitted as in training, in µs.
    pub whole_us: f64,
    /// Time per launch in µs; `None` for a launch that is too short to be timed.
    pub launches_us: Vec<Option<f64>>,
    /// Least time per launch in µs at the device's peak rates, by its bytes or by its operations.
    pub least_us: Vec<f64>,
}

/// A step's kernels with their times, of one recording: a training step between two calls would have other launches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TimedStep {
    /// Kernels and launches.
    #[serde(flatten)]
    pub kernels: StepKernels,
    /// Times of the launches.
    #[serde(flatten)]
    pub times: StepTimes,
}

impl StepTimes {
    /// Puts the measured times beside the least times at the device's peak rates.
    pub fn new(times: LaunchTimes, step: &[StepLaunch], peaks: &DevicePeaks) -> Self {
        let LaunchTimes { method, repetitions, whole_us, launches_us } = times;
        let cost = |one: &StepLaunch| Cost { bytes: one.launch.work.bytes, flops: one.launch.work.flops };
        let least_us = step.iter().map(|one| peaks.least_us(&cost(one))).collect();
        Self { method, repetitions, whole_us, launches_us, least_us }
    }
}
