//! A training run: steps, evaluations, checkpoints, metrics. It may be interrupted at any moment, and resumes with bit-identical results.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use web_time::Instant;

use super::checkpoint::{self, Resumed};
use super::metrics::{Accumulator, EvalMetrics, Line, METRICS, MetricsLog, StepMetrics};
use super::outcome::{Outcome, Reference, known};
use super::reference::{ReferenceScorer, Rows, Scoring, Watch};
use super::state::State;
use super::steps::{Steps, tally};
use super::tensorboard::EventWriter;
use super::trainer::{self, Trainer};
use crate::data::batch::Example;
use crate::error::{Error, Result};
use crate::files::{make_folder, remove_dir_all};
use crate::model::scores::DEFAULT_SCORE_TOKENS;
use crate::train::settings::TrainSettings;

/// The folder of the step with the lowest evaluation loss.
pub const BEST: &str = "best";
/// The folder of TensorBoard's files.
pub const EVENTS: &str = "runs";

/// Intervals of checkpoints and evaluations, in steps, and the number of checkpoints kept.
#[derive(Debug, Clone, Copy)]
pub struct Cadence {
    /// Steps between checkpoints.
    pub save_steps: usize,
    /// Checkpoints kept.
    pub save_total_limit: usize,
    /// Steps between evaluations; `None`: at the end.
    pub eval_steps: Option<usize>,
}

/// Event that a run reports.
pub enum Event<'a> {
    /// A step was done.
    Step(&'a StepMetrics),
    /// An evaluation was done.
    Eval(&'a EvalMetrics),
    /// A checkpoint cannot be read: the run goes on from an older one.
    Damaged(&'a Error),
    /// The folder is not quite as an interrupted run leaves it.
    Note(&'a str),
    /// Rows are scored with the reference.
    Scored {
        /// So far.
        done: usize,
        /// Rows of this pass.
        total: usize,
    },
    /// Rows are evaluated.
    Evaluated {
        /// Rows so far.
        done: usize,
        /// Rows of the evaluation.
        total: usize,
    },
}

/// Data that a run learns from, what it is evaluated on, and its reference.
pub struct RunData<'a> {
    /// Rows to learn from.
    pub rows: Rows<'a>,
    /// Rows for evaluations.
    pub eval: Option<Rows<'a>>,
    /// Scores both with the reference, as the run comes to them.
    pub scorer: ReferenceScorer<'a>,
}

/// Tells a run's events what a scorer tells.
fn scoring<'a>(on_event: &'a mut dyn FnMut(&Event<'_>)) -> impl FnMut(&Scoring<'_>) + 'a {
    move |scoring| match *scoring {
        Scoring::Rows { done, total } => on_event(&Event::Scored { done, total }),
        Scoring::NotKept(error) => on_event(&Event::Note(&format!("reference scores are not kept: {error}"))),
    }
}

impl RunData<'_> {
    /// Finds out the reference of every row that steps will visit and of evaluation rows, where the first step changes what it is made of.
    async fn prepare_all(
        &mut self,
        trainer: &Trainer<'_>,
        steps: &Steps,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(&Event<'_>),
    ) -> Result<bool> {
        if !self.scorer.precedes_steps(&trainer.decoder) {
            return Ok(true);
        }
        let mut tell = scoring(on_event);
        let mut watch = Watch { stop, tell: &mut tell };
        let found = self.scorer.find(&trainer.decoder, &mut self.rows, &steps.rows_left(), &mut watch).await?;
        Ok(found && self.prepare_eval(trainer, &mut watch).await?)
    }

    /// Finds out the reference of the next step's rows.
    async fn prepare_step(
        &mut self,
        trainer: &Trainer<'_>,
        steps: &Steps,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(&Event<'_>),
    ) -> Result<bool> {
        let mut tell = scoring(on_event);
        let mut watch = Watch { stop, tell: &mut tell };
        steps.prepare(&mut self.scorer, trainer, &mut self.rows, &mut watch).await
    }

    /// Finds out the reference of evaluation rows.
    async fn prepare_eval(&mut self, trainer: &Trainer<'_>, watch: &mut Watch<'_>) -> Result<bool> {
        let Some(eval) = &mut self.eval else { return Ok(true) };
        let all: Vec<usize> = (0..eval.examples.len()).collect();
        self.scorer.find(&trainer.decoder, eval, &all, watch).await
    }

    /// Returns the loss and metrics of evaluation rows, where there are any.
    async fn evaluate(
        &mut self,
        trainer: &Trainer<'_>,
        batch_size: usize,
        on_event: &mut dyn FnMut(&Event<'_>),
    ) -> Result<Option<(Accumulator, f64)>> {
        // An evaluation that is due is done, even when the run is to stop.
        let stop = AtomicBool::new(false);
        {
            let mut tell = scoring(&mut *on_event);
            self.prepare_eval(trainer, &mut Watch { stop: &stop, tell: &mut tell }).await?;
        }
        let Some(eval) = &self.eval else { return Ok(None) };
        let started = Instant::now();
        let n_rows = eval.examples.len();
        let tell = &mut |done| on_event(&Event::Evaluated { done, total: n_rows });
        let total = evaluate(trainer, eval, batch_size, tell).await?;
        Ok(Some((total, started.elapsed().as_secs_f64())))
    }
}

/// Result of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// Steps done.
    pub state: State,
    /// The run was stopped on request before `max_steps`. There is a checkpoint of the steps done, if there are any.
    pub interrupted: bool,
}

/// Computes loss and pair metrics over rows whose reference is known, without gradients. Tells `tell` the rows so far.
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn evaluate(
    trainer: &Trainer<'_>,
    rows: &Rows<'_>,
    batch_size: usize,
    tell: &mut dyn FnMut(usize),
) -> Result<Accumulator> {
    let mut total = Accumulator::default();
    let examples: Vec<&Example> = rows.examples.iter().collect();
    for (i, chunk) in examples.chunks(batch_size.max(1)).enumerate() {
        let scored = trainer::score(
            trainer.gpu,
            &trainer.decoder,
            chunk,
            true,
            trainer.share_prefix,
            DEFAULT_SCORE_TOKENS,
            &mut |_| (),
        )
        .await?;
        let sums: Vec<_> = scored.iter().map(|s| s.sums).collect();
        let first = i * batch_size.max(1);
        let reference: Vec<Reference> = (first..first + chunk.len()).map(|row| rows.references.get(row)).collect();
        let tokens = chunk.iter().map(|e| e.n_tokens(trainer.share_prefix)).sum();
        let known = known(&trainer.goal, chunk, &reference, &examples);
        tally(&trainer.goal, &Outcome::of(&trainer.goal, &sums, &known, tokens), &mut total);
        tell(first + chunk.len());
    }
    Ok(total)
}

/// Output folder of a run, with the values that a resumed run must match.
pub struct Output<'a> {
    /// `--output-dir`.
    pub dir: &'a Path,
    /// Settings, data and model, hashed.
    pub fingerprint: &'a str,
    /// The time that the chat template prints, where it prints one ([`State::time`]).
    pub time: Option<u64>,
    /// Intervals of checkpoints and evaluations.
    pub cadence: Cadence,
    /// Go on from the last checkpoint.
    pub resume: bool,
}

/// Trains until `max_steps`, or until `stop` is set: then the step under way ends and a checkpoint is written.
///
/// # Errors
/// [`crate::Error::NotFinite`], [`crate::Error::Gpu`], [`crate::Error::File`]. What was written before stays whole.
pub async fn run(
    trainer: &Trainer<'_>,
    settings: &TrainSettings,
    data: &mut RunData<'_>,
    output: &Output<'_>,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(&Event<'_>),
) -> Result<Ended> {
    let gpu = trainer.gpu;
    let arena = &trainer.decoder.arena;
    let n = data.rows.examples.len();
    let fresh = State { step: 0, num_tokens: 0, best: None, fingerprint: output.fingerprint.into(), time: output.time };
    let kept = if output.resume { checkpoint::steps(output.dir, output.fingerprint)? } else { Vec::new() };
    // Before a checkpoint takes the place of the weights that score; it may be any of those.
    let first = State { step: kept.first().copied().unwrap_or(0), ..fresh.clone() };
    if !data.prepare_all(trainer, &Steps::new(settings.clone(), n, first), stop, on_event).await? {
        let state = State { step: kept.last().copied().unwrap_or(0), ..fresh };
        return Ok(Ended { state, interrupted: true });
    }
    let resumed = if output.resume {
        checkpoint::resume(gpu, arena, output.dir, output.fingerprint)?
    } else {
        Resumed::default()
    };
    resumed.damaged.iter().for_each(|e| on_event(&Event::Damaged(e)));
    if let Some(dir) = &resumed.unchecked {
        on_event(&Event::Note(&format!("{} has no checksums, and is taken unchecked", dir.display())));
    }
    let mut steps = Steps::new(settings.clone(), n, resumed.state.unwrap_or(fresh));
    let max_steps = steps.schedule.max_steps;
    if steps.state.step > max_steps {
        let dir = output.dir.join(format!("checkpoint-{}", steps.state.step));
        return Err(Error::file(dir, format!("is of step {} of {max_steps}", steps.state.step)));
    }
    let is_due = |every: Option<usize>, step: usize| every.is_some_and(|e| e > 0 && step.is_multiple_of(e));
    let has_eval = data.eval.is_some();
    let evaluates_after =
        |step: usize| has_eval && step > 0 && (step == max_steps || is_due(output.cadence.eval_steps, step));
    let log_path = output.dir.join(METRICS);
    let log = match steps.state.step as u64 {
        0 => {
            if output.resume && log_path.exists() {
                on_event(&Event::Note("there is no checkpoint yet: the run starts at step 1"));
            }
            MetricsLog::create(&log_path)?
        }
        step => {
            let (log, missing) = MetricsLog::resume(&log_path, step, evaluates_after(steps.state.step))?;
            if missing > 0 {
                let text = format!("{}: {missing} of {step} steps are missing: curves have a gap", log_path.display());
                on_event(&Event::Note(&text));
            }
            log
        }
    };
    let events =
        EventWriter::create(&output.dir.join(EVENTS), (steps.state.step > 0).then_some(steps.state.step as u64))?;

    let mut told = Told { log, events, on_event };
    // A step's checkpoint comes before its evaluation, which may not have ended.
    if evaluates_after(steps.state.step) {
        let epoch = steps.epoch();
        evaluate_step(trainer, settings, data, &mut steps.state, epoch, output, &mut told).await?;
    }
    let mut next = None;
    let mut interrupted = false;
    while steps.state.step < max_steps {
        if stop.load(Ordering::Relaxed) {
            interrupted = true;
            break;
        }
        if next.is_none() && !data.prepare_step(trainer, &steps, stop, told.on_event).await? {
            continue;
        }
        let started = Instant::now();
        let number = steps.state.step + 1;
        let running = next.take().unwrap_or_else(|| steps.record(trainer, &data.rows)).submit();
        let last = number == max_steps;
        let evaluates = evaluates_after(number);
        let saves = last || is_due(Some(output.cadence.save_steps), number);
        // While the device works; not across what records something else.
        if !evaluates && !saves && steps.is_prepared(&data.scorer, &mut data.rows) {
            next = Some(steps.record(trainer, &data.rows));
        }
        let metrics = steps.finish(trainer, running, started).await?;
        told.line(&metrics.line())?;
        (told.on_event)(&Event::Step(&metrics));

        if saves {
            trainer.check_weights(number).await?;
        }
        // The last step's goes when the result is there ([`forget_last`]), and takes no older one's place.
        if saves && (!last || evaluates) {
            let keep = output.cadence.save_total_limit + usize::from(last);
            checkpoint::save(gpu, arena, &steps.state, output.dir, keep).await?;
        }
        if evaluates {
            evaluate_step(trainer, settings, data, &mut steps.state, metrics.epoch, output, &mut told).await?;
        }
    }
    if interrupted {
        trainer.check_weights(steps.state.step).await?;
        checkpoint::save(gpu, arena, &steps.state, output.dir, output.cadence.save_total_limit).await?;
    }
    Ok(Ended { state: steps.state, interrupted })
}

/// Removes the checkpoint of the last step, which was there for what came behind it: the result is whole.
///
/// # Errors
/// [`Error::File`].
pub fn forget_last(dir: &Path, state: &State) -> Result<()> {
    let last = checkpoint::list(dir).into_iter().find(|(step, _)| *step == state.step);
    last.map_or(Ok(()), |(_, dir)| remove_dir_all(&dir).map_err(|e| Error::file(&dir, e)))
}

/// Destinations of a run's metrics.
struct Told<'a> {
    log: MetricsLog,
    events: EventWriter,
    on_event: &'a mut dyn FnMut(&Event<'_>),
}

impl Told<'_> {
    fn line(&mut self, line: &Line) -> Result<()> {
        self.log.append(line)?;
        self.events.line(line)
    }
}

/// Evaluates after a step, and keeps the state where it is the best so far.
async fn evaluate_step(
    trainer: &Trainer<'_>,
    settings: &TrainSettings,
    data: &mut RunData<'_>,
    state: &mut State,
    epoch: f64,
    output: &Output<'_>,
    told: &mut Told<'_>,
) -> Result<()> {
    let found = data.evaluate(trainer, settings.batch_size, told.on_event).await?;
    let Some((total, seconds)) = found else { return Ok(()) };
    if !total.loss().is_finite() {
        return Err(Error::NotFinite { place: format!("step {}, evaluation", state.step), what: "the loss".into() });
    }
    let metrics = EvalMetrics { step: state.step as u64, epoch, loss: total.loss(), seconds, pairs: total.pairs() };
    told.line(&metrics.line())?;
    (told.on_event)(&Event::Eval(&metrics));
    if state.best.is_none_or(|(best, _)| total.loss() < best) {
        state.best = Some((total.loss(), state.step));
        save_best(trainer, state, output).await?;
    }
    Ok(())
}

/// `best/checkpoint-N`: the state with the lowest evaluation loss.
async fn save_best(trainer: &Trainer<'_>, state: &State, output: &Output<'_>) -> Result<()> {
    let dir = output.dir.join(BEST);
    make_folder(&dir)?;
    checkpoint::save(trainer.gpu, &trainer.decoder.arena, state, &dir, 1).await?;
    Ok(())
}
