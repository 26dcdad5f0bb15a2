//! Training run: steps, evaluations, checkpoints, metrics. A run may be interrupted at any moment, and resumes with bit-identical results.

mod data;

pub use data::{RunData, evaluate};

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use web_time::Instant;

use super::across_ranks::exchange::slowest_rank;
use super::across_ranks::{check_same_state, send_state};
use super::checkpoint::{self, ResumedRun};
use super::metrics::{EvalMetrics, METRICS, MetricsLine, MetricsLog, StepMetrics};
use super::settings::TrainSettings;
use super::state::TrainingState;
use super::step_launches::{StepLaunch, TimedLaunches, time_step};
use super::steps::{StepInFlight, StepRunner};
use super::tensorboard::EventWriter;
use super::trainer::{RecordedStep, Trainer};
use crate::error::{Error, Result};
use crate::files::{make_folder, remove_dir_all};
use crate::ranks::Ranks;

/// Folder for the state with the lowest evaluation loss.
pub const BEST: &str = "best";
/// Folder for TensorBoard's files.
pub const EVENTS: &str = "runs";

/// Interval of checkpoints in steps, and the number of checkpoints kept.
#[derive(Debug, Clone, Copy)]
pub struct CheckpointSettings {
    /// Steps between checkpoints.
    pub save_steps: usize,
    /// Number of checkpoints that are kept.
    pub save_total_limit: usize,
}

/// Event that a run reports.
pub enum TrainingEvent<'a> {
    /// A step has finished.
    Step(&'a StepMetrics),
    /// An evaluation has finished.
    Eval(&'a EvalMetrics),
    /// A checkpoint cannot be read, so the run resumes from an older one.
    Damaged(&'a Error),
    /// A note, such as that the output folder is not as an interrupted run leaves it.
    Note(&'a str),
    /// Rows are being scored with the reference.
    Scored {
        /// Rows scored so far.
        done: usize,
        /// Rows of this pass.
        total: usize,
    },
    /// Rows are being evaluated.
    Evaluated {
        /// Rows evaluated so far.
        done: usize,
        /// Rows of the evaluation.
        total: usize,
    },
}

/// Output folder of a run, with the values that must match when the run is resumed.
#[derive(Debug, Clone)]
pub struct RunOutput {
    /// Path of the folder (`--output-dir`).
    pub dir: PathBuf,
    /// Hash of settings, data and model.
    pub fingerprint: String,
    /// Time that the chat template prints, if it prints any ([`TrainingState::time`]).
    pub time: Option<u64>,
    /// Interval of checkpoints.
    pub cadence: CheckpointSettings,
    /// Whether the run resumes from the last checkpoint.
    pub resume: bool,
}

/// Step after which ranks compare their speeds. The steps before it may compile kernels.
const SPEEDS_AFTER: usize = 3;

/// Training run between two steps.
///
/// Rank 0 alone has an output folder, where there are several ranks. All ranks take the same decisions: whether to save, evaluate or stop.
///
/// With an output folder, the run writes metrics, TensorBoard events and checkpoints there, and can resume from a checkpoint. Without one,
/// it exists only in memory.
pub struct TrainingRun<'a> {
    trainer: Trainer<'a>,
    data: RunData<'a>,
    output: Option<RunFiles>,
    /// Steps between checkpoints, and between evaluations.
    every: [Option<usize>; 2],
    steps: StepRunner,
    /// Next step, where it was recorded while the last one ran.
    next: Option<StepInFlight<RecordedStep<'a, 'a>>>,
    /// Whether each step is recorded while the step before it runs.
    records_ahead: bool,
    /// All metrics of this run, in order.
    lines: Vec<MetricsLine>,
    end: Option<RunEnd>,
}

/// End of a run that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunEnd {
    /// All steps are done.
    Finished,
    /// The run was stopped on request. With an output folder, there is a checkpoint of its steps, if it has done any.
    Interrupted,
}

impl<'a> TrainingRun<'a> {
    /// Starts a run, or resumes it from the last checkpoint. If steps change the reference, the reference values of all rows are computed
    /// first; `stop` interrupts this.
    ///
    /// # Errors
    /// [`Error::File`] for a checkpoint of other settings, [`Error::Gpu`], [`Error::NotFinite`].
    pub async fn start(
        trainer: Trainer<'a>,
        settings: TrainSettings,
        mut data: RunData<'a>,
        output: Option<RunOutput>,
        eval_steps: Option<usize>,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(&TrainingEvent<'_>),
    ) -> Result<Self> {
        let (n, ranks) = (data.n_rows(), data.ranks());
        let every = ranks.broadcast([output.as_ref().map(|o| o.cadence.save_steps), eval_steps])?;
        let (fingerprint, time) = output.as_ref().map_or_else(Default::default, |o| (o.fingerprint.clone(), o.time));
        let n_ranks = settings.n_ranks;
        let fresh = TrainingState { step: 0, num_tokens: 0, best: None, fingerprint, time, n_ranks };
        let resumes = output.as_ref().filter(|output| output.resume);
        let kept = resumes.map_or(Ok(Vec::new()), |o| checkpoint::steps(&o.dir, &o.fingerprint))?;
        let kept = ranks.broadcast(kept)?;
        // The rows are scored before a checkpoint replaces the weights that score. The run may resume from any of these checkpoints, so
        // rows count from the first.
        let first = TrainingState { step: kept.first().copied().unwrap_or(0), ..fresh.clone() };
        data.deals_batches_of(settings.batch_size);
        let steps = StepRunner::over(ranks, settings.clone(), n, first);
        let is_prepared = data.prepare_all(&trainer, &steps, stop, on_event).await?;
        if ranks.any(!is_prepared) {
            let state = TrainingState { step: kept.last().copied().unwrap_or(0), ..fresh };
            let (steps, end) = (StepRunner::over(ranks, settings.clone(), n, state), Some(RunEnd::Interrupted));
            return Ok(Self {
                trainer,
                data,
                output: None,
                every,
                steps,
                next: None,
                records_ahead: false,
                lines: Vec::new(),
                end,
            });
        }
        let resumed = match resumes {
            Some(o) => checkpoint::resume(trainer.gpu, &trainer.decoder.arena, &o.dir, &o.fingerprint)?,
            None => ResumedRun::default(),
        };
        resumed.damaged.iter().for_each(|e| on_event(&TrainingEvent::Damaged(e)));
        if let Some(dir) = &resumed.unchecked {
            on_event(&TrainingEvent::Note(&format!("{} has no checksums, and is taken unchecked", dir.display())));
        }
        let state = ranks.broadcast(resumed.state)?;
        if state.is_some() {
            send_state(trainer.gpu, &trainer.decoder.arena, ranks).await?;
        }
        let steps = StepRunner::over(ranks, settings.clone(), n, state.unwrap_or(fresh));
        let mut run = Self {
            trainer,
            data,
            output: None,
            every,
            steps,
            next: None,
            records_ahead: false,
            lines: Vec::new(),
            end: None,
        };
        if let Some(output) = output {
            run.output = Some(run.open_files(output, on_event)?);
        }
        // A step's checkpoint is written before its evaluation, which may therefore be missing or incomplete.
        if run.evaluates_after(run.steps.state.step) {
            let epoch = run.steps.epoch();
            run.evaluate_step(epoch, on_event).await?;
        }
        Ok(run)
    }

    fn open_files(&self, output: RunOutput, on_event: &mut dyn FnMut(&TrainingEvent<'_>)) -> Result<RunFiles> {
        let (step, max_steps) = (self.steps.state.step, self.steps.schedule.max_steps);
        if step > max_steps {
            let dir = output.dir.join(format!("checkpoint-{step}"));
            return Err(Error::file(dir, format!("is of step {step}, but the run has only {max_steps} steps")));
        }
        let log_path = output.dir.join(METRICS);
        let log = match step as u64 {
            0 => {
                if output.resume && log_path.exists() {
                    on_event(&TrainingEvent::Note("there is no checkpoint yet: the run starts at step 1"));
                }
                MetricsLog::create(&log_path)?
            }
            step => {
                let (log, missing) = MetricsLog::resume(&log_path, step, self.evaluates_after(step as usize))?;
                if missing > 0 {
                    let text =
                        format!("{}: {missing} of {step} steps are missing: curves have a gap", log_path.display());
                    on_event(&TrainingEvent::Note(&text));
                }
                log
            }
        };
        let events = EventWriter::create(&output.dir.join(EVENTS), (step > 0).then_some(step as u64))?;
        Ok(RunFiles { output, log, events })
    }

    /// Does the next step, then writes the checkpoint and runs the evaluation that are due. Returns `None` where the run has ended
    /// ([`Self::end`]): after the last step, or because `stop` is set, in which case a checkpoint is written.
    ///
    /// # Errors
    /// [`Error::NotFinite`], [`Error::Gpu`], [`Error::File`]. Files that were written before remain intact.
    pub async fn step(
        &mut self,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(&TrainingEvent<'_>),
    ) -> Result<Option<StepMetrics>> {
        if self.end.is_some() {
            return Ok(None);
        }
        let (done, max_steps) = (self.steps.state.step, self.steps.schedule.max_steps);
        if done >= max_steps {
            self.end = Some(RunEnd::Finished);
            return Ok(None);
        }
        // Ranks prepare a step together, so they agree before it on whether to stop.
        let ranks = self.data.ranks();
        let stops = ranks.any(stop.load(Ordering::Relaxed))
            || self.next.is_none()
                && ranks.any(!self.data.prepare_step(&self.trainer, &self.steps, stop, on_event).await?);
        if stops {
            self.end = Some(RunEnd::Interrupted);
            self.check_state().await?;
            self.save_checkpoint(None).await?;
            return Ok(None);
        }
        let started = Instant::now();
        let number = done + 1;
        let running = match self.next.take() {
            Some(recorded) => recorded,
            None => self.steps.record(&self.trainer, &self.data.rows().0),
        }
        .submit();
        let last = number == max_steps;
        let evaluates = self.evaluates_after(number);
        let saves = last || is_due(self.every[0], number);
        // Records the next step while the device works, unless a checkpoint or an evaluation comes in between and records something else.
        if self.records_ahead && !evaluates && !saves {
            let (mut rows, scorer) = self.data.rows();
            if self.steps.is_prepared(scorer, &mut rows) {
                self.next = Some(self.steps.record(&self.trainer, &rows));
            }
        }
        let metrics = self.steps.finish(&self.trainer, running, started).await?;
        if self.data.sends_state {
            send_state(self.trainer.gpu, &self.trainer.decoder.arena, self.data.ranks()).await?;
        }
        self.push_line(metrics.line())?;
        on_event(&TrainingEvent::Step(&metrics));
        if number == SPEEDS_AFTER
            && let Some(cost) = metrics.exchange
            && let Some(note) = slowest_rank(&self.data.ranks().gather(cost.computed)?)
        {
            on_event(&TrainingEvent::Note(&note));
        }

        if saves {
            self.check_state().await?;
        }
        // The last step's checkpoint is removed once the result is written ([`forget_last`]), so it must not displace an older one.
        if saves && (!last || evaluates) {
            self.save_checkpoint(last.then_some(1)).await?;
        }
        if evaluates {
            self.evaluate_step(metrics.epoch, on_event).await?;
        }
        Ok(Some(metrics))
    }

    /// Sets whether each step is recorded while the step before it runs, which hides the host's work. Between two steps, nothing else may
    /// then be recorded on the device, because it could overwrite the inputs of the recorded step.
    pub fn record_ahead(&mut self, ahead: bool) {
        self.records_ahead = ahead;
    }

    /// Returns how the run ended; `None` while it has not.
    pub fn end(&self) -> Option<RunEnd> {
        self.end
    }

    /// Returns the ranks of the run.
    pub fn ranks(&self) -> Ranks {
        self.data.ranks()
    }

    /// Returns the state after the last step.
    pub fn state(&self) -> &TrainingState {
        &self.steps.state
    }

    /// Returns the number of steps of the whole run.
    pub fn max_steps(&self) -> usize {
        self.steps.schedule.max_steps
    }

    /// Returns the trainer with the current policy.
    pub fn trainer(&self) -> &Trainer<'a> {
        &self.trainer
    }

    /// Returns the kernel launches of a step: of the recorded next one, else of the last one again.
    ///
    /// # Errors
    /// [`Error::Gpu`].
    pub async fn step_launches(&mut self) -> Result<Vec<StepLaunch>> {
        if let Some(next) = &self.next {
            return Ok(next.recorded().launches());
        }
        let (mut rows, scorer) = self.data.rows();
        Ok(self.steps.record_again(scorer, &self.trainer, &mut rows).await?.launches())
    }

    /// Times each launch of the last step, or of the first where there was none, for about `seconds`. The run goes on as without it.
    ///
    /// # Errors
    /// [`Error::Gpu`]; [`Error::Flag`] where steps are recorded ahead.
    pub async fn time_step(&mut self, seconds: f64) -> Result<TimedLaunches> {
        if self.next.is_some() {
            return Err(Error::flag("record-ahead", "the next step is recorded, and nothing else may run before it"));
        }
        let (mut rows, scorer) = self.data.rows();
        let step = self.steps.record_again(scorer, &self.trainer, &mut rows).await?;
        time_step(&self.trainer, step, seconds).await
    }

    /// Returns the metrics of the steps and evaluations since this run was started or resumed.
    pub fn lines(&self) -> &[MetricsLine] {
        &self.lines
    }

    /// Writes a checkpoint of the last step, where there is an output folder. `more` is added to the limit of kept checkpoints.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Gpu`].
    pub async fn save_checkpoint(&self, more: Option<usize>) -> Result<()> {
        let Some(RunFiles { output, .. }) = &self.output else { return Ok(()) };
        let limit = output.cadence.save_total_limit + more.unwrap_or(0);
        let (gpu, arena) = (self.trainer.gpu, &self.trainer.decoder.arena);
        checkpoint::save(gpu, arena, &self.steps.state, &output.dir, limit).await.map(drop)
    }

    /// Checks before a checkpoint that the weights are finite, and that all ranks have the same.
    async fn check_state(&self) -> Result<()> {
        let step = self.steps.state.step;
        self.trainer.check_weights(step).await?;
        check_same_state(self.trainer.gpu, &self.trainer.decoder.arena, step, self.data.ranks()).await
    }

    fn evaluates_after(&self, step: usize) -> bool {
        let is_last = step == self.steps.schedule.max_steps;
        self.data.has_eval() && step > 0 && (is_last || is_due(self.every[1], step))
    }

    fn push_line(&mut self, line: MetricsLine) -> Result<()> {
        if let Some(files) = &mut self.output {
            files.log.append(&line)?;
            files.events.line(&line)?;
        }
        self.lines.push(line);
        Ok(())
    }

    /// Evaluates after a step, and saves the state where its evaluation loss is the lowest so far.
    async fn evaluate_step(&mut self, epoch: f64, on_event: &mut dyn FnMut(&TrainingEvent<'_>)) -> Result<()> {
        let found = self.data.evaluate(&self.trainer, on_event).await?;
        let Some((total, seconds)) = found else { return Ok(()) };
        let step = self.steps.state.step;
        if !total.loss().is_finite() {
            return Err(Error::NotFinite { place: format!("step {step}, evaluation"), what: "the loss".into() });
        }
        let metrics = EvalMetrics { step: step as u64, epoch, loss: total.loss(), seconds, pairs: total.pairs() };
        self.push_line(metrics.line())?;
        on_event(&TrainingEvent::Eval(&metrics));
        if self.steps.state.best.is_none_or(|(best, _)| total.loss() < best) {
            self.steps.state.best = Some((total.loss(), step));
            check_same_state(self.trainer.gpu, &self.trainer.decoder.arena, step, self.data.ranks()).await?;
            self.save_best().await?;
        }
        Ok(())
    }

    /// Writes `best/checkpoint-N`, the state with the lowest evaluation loss.
    async fn save_best(&self) -> Result<()> {
        let Some(RunFiles { output, .. }) = &self.output else { return Ok(()) };
        let dir = output.dir.join(BEST);
        make_folder(&dir)?;
        checkpoint::save(self.trainer.gpu, &self.trainer.decoder.arena, &self.steps.state, &dir, 1).await.map(drop)
    }
}

fn is_due(every: Option<usize>, step: usize) -> bool {
    every.is_some_and(|every| every > 0 && step.is_multiple_of(every))
}

/// Removes the checkpoint of the last step. It is not needed once the result is written.
///
/// # Errors
/// [`Error::File`].
pub fn forget_last(dir: &Path, state: &TrainingState) -> Result<()> {
    let last = checkpoint::list(dir).into_iter().find(|(step, _)| *step == state.step);
    last.map_or(Ok(()), |(_, dir)| remove_dir_all(&dir).map_err(|e| Error::file(&dir, e)))
}

/// Open files of a run.
struct RunFiles {
    output: RunOutput,
    log: MetricsLog,
    events: EventWriter,
}
