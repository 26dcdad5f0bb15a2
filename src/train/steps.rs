//! The steps of a run: the rows of each step, its learning rate and its metrics. The caller stores the results.

use std::sync::atomic::AtomicBool;

use web_time::Instant;

use super::lr_schedule::LrSchedule;
use super::metrics::{MetricsAccumulator, SideScores, StepMetrics};
use super::outcome::{BatchResult, RowReference, SequenceResult};
use super::reference::{ReferenceScorer, ScoringWatch, TrainingRows};
use super::state::TrainingState;
use super::trainer::{RecordedStep, StepUpdate, SubmittedStep, Trainer};
use crate::data::batch::Example;
use crate::data::order::{EpochSampler, SamplerState};
use crate::error::Result;
use crate::objective::TrainingLoss;
use crate::ranks::{Ranks, ReduceDtype};
use crate::train::settings::TrainSettings;

/// Adds the results of a batch to metrics.
pub fn tally(goal: &TrainingLoss, outcome: &BatchResult, into: &mut MetricsAccumulator) {
    into.add_loss(outcome.loss_sum, outcome.n, outcome.tokens);
    let TrainingLoss::Preference(p) = goal else { return };
    let side = |s: &SequenceResult| SideScores {
        reward: s.outcome.reward,
        logp: s.sums.score(p.objective),
        logp_instruction: s.sums.instruction,
        logp_response: s.sums.response,
    };
    for row in &outcome.rows {
        match row.as_slice() {
            [chosen, rejected] => into.add_pair([&side(chosen), &side(rejected)]),
            labelled => labelled.iter().for_each(|s| into.add_side(s.desirable, &side(s))),
        }
    }
}

/// Runner of a run's steps.
#[derive(Debug)]
pub struct StepRunner {
    /// State after the last finished step.
    pub state: TrainingState,
    /// Learning-rate schedule, which also has the number of steps.
    pub schedule: LrSchedule,
    settings: TrainSettings,
    order: EpochSampler,
    /// Number of recorded steps: `state.step`, or one more.
    recorded: usize,
    /// Rows of the last recorded step; empty before the first.
    last: Vec<usize>,
    /// Ranks that the micro-batches of each step are dealt to.
    ranks: Ranks,
}

/// Step that is recorded, or submitted to the device.
pub struct StepInFlight<S> {
    step: S,
    learning_rate: f64,
    epoch: f64,
}

impl<'g, 'e> StepInFlight<RecordedStep<'g, 'e>> {
    /// Returns the recorded step, for its launches.
    pub fn recorded(&self) -> &RecordedStep<'g, 'e> {
        &self.step
    }

    /// Submits the step to the device.
    pub fn submit(self) -> StepInFlight<SubmittedStep<'g, 'e>> {
        StepInFlight { step: self.step.submit(), learning_rate: self.learning_rate, epoch: self.epoch }
    }
}

impl StepRunner {
    /// Starts over `n` rows at the step of `state`.
    pub fn new(settings: TrainSettings, n: usize, state: TrainingState) -> Self {
        Self::over(Ranks::alone(), settings, n, state)
    }

    /// Starts over `n` rows at the step of `state`, with the micro-batches of each step dealt to ranks.
    pub fn over(ranks: Ranks, settings: TrainSettings, n: usize, state: TrainingState) -> Self {
        let mut order = EpochSampler::new(n, settings.seed, settings.shuffle, SamplerState::default());
        let last = (0..state.step).map(|_| order.take(settings.rows_per_step())).last().unwrap_or_default();
        let (schedule, recorded) = (settings.schedule(n), state.step);
        Self { state, schedule, settings, order, recorded, last, ranks }
    }

    /// Returns those of a step's rows that this rank computes, with their places in the step.
    fn own<'r>(&self, rows: &'r [usize]) -> impl Iterator<Item = (usize, usize)> + use<'r> {
        let (ranks, batch_size) = (self.ranks, self.settings.batch_size);
        rows.iter().copied().enumerate().filter(move |(place, _)| ranks.owns(place / batch_size))
    }

    /// Returns whether the reference values of all rows of the next step are known.
    pub fn is_prepared(&self, scorer: &ReferenceScorer<'_>, rows: &mut TrainingRows<'_, '_>) -> bool {
        self.order.next_rows(self.settings.rows_per_step()).iter().all(|&row| scorer.knows(rows, row))
    }

    /// Computes the reference values of the next step's rows, and in the same block those of some later steps. No step may be recorded and
    /// not yet submitted. Returns whether the next step is prepared; false where the pass was stopped.
    ///
    /// # Errors
    /// Fails like [`ReferenceScorer::find`].
    pub async fn prepare(
        &self,
        scorer: &mut ReferenceScorer<'_>,
        trainer: &Trainer<'_>,
        rows: &mut TrainingRows<'_, '_>,
        watch: &mut ScoringWatch<'_>,
    ) -> Result<bool> {
        if self.is_prepared(scorer, rows) {
            return Ok(true);
        }
        let block = self.block(scorer, rows);
        scorer.grow_block();
        scorer.find(&trainer.decoder, rows, &block, watch).await
    }

    /// Returns the rows without reference values of the next step, and of later steps of its epoch until a block is full.
    fn block(&self, scorer: &ReferenceScorer<'_>, rows: &mut TrainingRows<'_, '_>) -> Vec<usize> {
        let (mut order, mut block, mut tokens) = (self.order.clone(), Vec::new(), 0);
        for _ in self.recorded..self.schedule.max_steps {
            for row in order.take(self.settings.rows_per_step()) {
                if !scorer.knows(rows, row) {
                    tokens += rows.examples[row].n_tokens(true);
                    block.push(row);
                }
            }
            if tokens >= scorer.block_tokens() || order.position().epoch > self.order.position().epoch {
                break;
            }
        }
        block
    }

    /// Returns the rows of all remaining steps, each once, in the order of their first step.
    pub fn rows_left(&self) -> Vec<usize> {
        let (mut order, mut seen, mut left) = (self.order.clone(), vec![false; self.order.len()], Vec::new());
        for _ in self.recorded..self.schedule.max_steps {
            let taken = order.take(self.settings.rows_per_step());
            left.extend(taken.into_iter().filter(|&row| !std::mem::replace(&mut seen[row], true)));
            if left.len() == seen.len() {
                break;
            }
        }
        left
    }

    /// Records the next step, which must be prepared, without submitting it. It may be recorded while the step before it runs, unless
    /// something else is recorded in between.
    pub fn record<'g, 'e>(
        &mut self,
        trainer: &Trainer<'g>,
        rows: &TrainingRows<'e, '_>,
    ) -> StepInFlight<RecordedStep<'g, 'e>> {
        self.recorded += 1;
        let taken = self.order.take(self.settings.rows_per_step());
        let examples: Vec<&Example> = taken.iter().map(|&i| &rows.examples[i]).collect();
        let mut reference = vec![RowReference::default(); taken.len()];
        self.own(&taken).for_each(|(place, row)| reference[place] = rows.references.get(row));
        self.last = taken;
        let learning_rate = self.schedule.rate(self.recorded - 1);
        let TrainSettings { optimiser, reduce_dtype, .. } = &self.settings;
        let (number, ranks, reduce_dtype) = (self.recorded, self.ranks, *reduce_dtype);
        let update = StepUpdate { optimiser, learning_rate, number, ranks, reduce_dtype };
        let step = trainer.record(examples, reference, self.settings.batch_size, &update);
        StepInFlight { step, learning_rate, epoch: self.order.epochs() }
    }

    /// Records the last step again, or the first where there was none, for its launches and their times. It must not be submitted.
    ///
    /// # Errors
    /// Fails like [`ReferenceScorer::find`].
    pub async fn record_again<'g, 'e>(
        &self,
        scorer: &mut ReferenceScorer<'_>,
        trainer: &Trainer<'g>,
        rows: &mut TrainingRows<'e, '_>,
    ) -> Result<RecordedStep<'g, 'e>> {
        let taken = match self.last.is_empty() {
            true => self.order.clone().take(self.settings.rows_per_step()),
            false => self.last.clone(),
        };
        let mut watch = ScoringWatch { stop: &AtomicBool::new(false), tell: &mut |_| () };
        scorer.find(&trainer.decoder, rows, &taken, &mut watch).await?;
        let examples: Vec<&Example> = taken.iter().map(|&i| &rows.examples[i]).collect();
        let reference: Vec<RowReference> = taken.iter().map(|&i| rows.references.get(i)).collect();
        let number = self.recorded.max(1);
        let (optimiser, learning_rate) = (&self.settings.optimiser, self.schedule.rate(number - 1));
        let (ranks, reduce_dtype) = (Ranks::alone(), ReduceDtype::F32);
        let update = StepUpdate { optimiser, learning_rate, number, ranks, reduce_dtype };
        Ok(trainer.record(examples, reference, self.settings.batch_size, &update))
    }

    /// Returns the number of passes over the data up to the last recorded step, a fraction.
    pub fn epoch(&self) -> f64 {
        self.order.epochs()
    }

    /// Waits for a step that was submitted at `started`.
    ///
    /// # Errors
    /// Fails like [`Trainer::finish`].
    pub async fn finish(
        &mut self,
        trainer: &Trainer<'_>,
        next: StepInFlight<SubmittedStep<'_, '_>>,
        started: Instant,
    ) -> Result<StepMetrics> {
        let StepInFlight { step, learning_rate, epoch } = next;
        let step = trainer.finish(step).await?;
        self.state.step += 1;
        let mut total = MetricsAccumulator::default();
        tally(&trainer.goal, &step.outcome, &mut total);
        let total = total.over(self.ranks)?;
        self.state.num_tokens += total.tokens();
        Ok(StepMetrics {
            step: self.state.step as u64,
            epoch,
            loss: total.loss(),
            grad_norm: step.grad_norm,
            learning_rate,
            tokens: total.tokens(),
            num_tokens: self.state.num_tokens,
            seconds: started.elapsed().as_secs_f64(),
            pairs: total.pairs(),
            exchange: step.exchange,
            ..StepMetrics::default()
        })
    }
}
