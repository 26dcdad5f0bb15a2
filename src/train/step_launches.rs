//! The kernel launches of an optimiser step, and their times.

use std::collections::BTreeMap;
use std::path::Path;

use super::state;
use super::trainer::{RecordedStep, Trainer};
use crate::error::Result;
use crate::gpu::{LaunchTimes, RecordedLaunch, Recording, Shader};

/// Part of a step that a launch belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepPhase {
    /// Scores of a micro-batch's sequences.
    Forward,
    /// Loss and gradients of a micro-batch; also what is recomputed for them.
    Backward,
    /// Norm of the gradients, and the new weights.
    Update,
}

/// Kernel launch of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepLaunch {
    /// Part of the step.
    pub phase: StepPhase,
    /// Shader, workgroups, bytes and operations.
    pub launch: RecordedLaunch,
}

/// Kernel launches of a step, with their times.
#[derive(Debug, Clone, PartialEq)]
pub struct TimedLaunches {
    /// Launches in the order in which they run.
    pub launches: Vec<StepLaunch>,
    /// Time of each launch.
    pub times: LaunchTimes,
}

/// Times each launch of a step for about `seconds`. The trained weights and their moments are restored afterwards, so that a run can go on.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn time_step(trainer: &Trainer<'_>, step: RecordedStep<'_, '_>, seconds: f64) -> Result<TimedLaunches> {
    let (arena, path) = (&trainer.decoder.arena, Path::new("state.safetensors"));
    let mut saved = Vec::new();
    state::encode(trainer.gpu, arena, path, &mut saved).await?;
    let launches = step.launches();
    let times = step.time(seconds).await?;
    state::restore(trainer.gpu, arena, path, &saved)?;
    Ok(TimedLaunches { launches, times })
}

impl RecordedStep<'_, '_> {
    /// Returns every kernel launch of the step, in the order in which they run. Empty on a device that only counts.
    ///
    /// # Examples
    /// ```
    /// use std::collections::BTreeMap;
    /// use jointwise::train::step_launches::StepLaunch;
    /// /// Returns the bytes that each kernel of a step moves.
    /// fn bytes_by_kernel(launches: &[StepLaunch]) -> BTreeMap<&'static str, u64> {
    ///     let mut all = BTreeMap::new();
    ///     for StepLaunch { launch, .. } in launches {
    ///         *all.entry(launch.shader.entry).or_default() += launch.work.bytes;
    ///     }
    ///     all
    /// }
    /// # assert!(bytes_by_kernel(&[]).is_empty());
    /// ```
    pub fn launches(&self) -> Vec<StepLaunch> {
        let last = self.recordings.len().saturating_sub(1);
        let of_recording = |(i, recording): (usize, &Recording<'_>)| {
            // The first recording clears the gradients, and launches nothing.
            let n_forward = i.checked_sub(1).and_then(|i| self.n_forward.get(i)).copied().unwrap_or(0);
            let phase = move |launch| match launch {
                _ if i == last => StepPhase::Update,
                n if n < n_forward => StepPhase::Forward,
                _ => StepPhase::Backward,
            };
            let launches = recording.launches().into_iter().enumerate();
            launches.map(move |(n, launch)| StepLaunch { phase: phase(n), launch }).collect::<Vec<_>>()
        };
        self.recordings.iter().enumerate().flat_map(of_recording).collect()
    }

    /// Returns the step's shaders, each once.
    pub fn shaders(&self) -> Vec<Shader> {
        let mut by_key = BTreeMap::new();
        for shader in self.launches().into_iter().map(|one| one.launch.shader) {
            by_key.entry(shader.key()).or_insert(shader);
        }
        by_key.into_values().collect()
    }

    /// Times each of [`Self::launches`] for about `seconds`. Trained weights and moments are wrong afterwards, because updates have run more than
    /// once: [`time_step`] restores them.
    ///
    /// # Errors
    /// [`crate::Error::Gpu`].
    pub async fn time(self, seconds: f64) -> Result<LaunchTimes> {
        self.gpu.time_launches(self.recordings, seconds).await
    }
}
