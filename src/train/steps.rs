//! The steps of a run, one after the other: which rows, at which rate, and what is told of them. Where the results go is the caller's.

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
use crate::train::settings::TrainSettings;

/// Adds an outcome to metrics.
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

/// A run between two steps.
#[derive(Debug)]
pub struct StepRunner {
    /// Steps done.
    pub state: TrainingState,
    /// Rates, and how many steps there are.
    pub schedule: LrSchedule,
    settings: TrainSettings,
    order: EpochSampler,
    /// Steps recorded: `state.step`, or one more.
    recorded: usize,
}

/// A step that is recorded, or on its way.
pub struct StepInFlight<S> {
    step: S,
    learning_rate: f64,
    epoch: f64,
}

impl<'e> StepInFlight<RecordedStep<'_, 'e>> {
    /// Starts it.
    pub fn submit(self) -> StepInFlight<SubmittedStep<'e>> {
        StepInFlight { step: self.step.submit(), learning_rate: self.learning_rate, epoch: self.epoch }
    }
}

impl StepRunner {
    /// Starts at the first step, or at the step where `state` was kept, over `n` rows.
    pub fn new(settings: TrainSettings, n: usize, state: TrainingState) -> Self {
        let mut order = EpochSampler::new(n, settings.seed, settings.shuffle, SamplerState::default());
        (0..state.step).for_each(|_| drop(order.take(settings.rows_per_step())));
        let (schedule, recorded) = (settings.schedule(n), state.step);
        Self { state, schedule, settings, order, recorded }
    }

    /// Tells whether the reference of all rows of the next step is known.
    pub fn is_prepared(&self, scorer: &ReferenceScorer<'_>, rows: &mut TrainingRows<'_, '_>) -> bool {
        self.order.next_rows(self.settings.rows_per_step()).iter().all(|&row| scorer.knows(rows, row))
    }

    /// Finds out the reference of the next step's rows, and in the same block of some of the steps behind it. Nothing may be recorded that is not
    /// submitted. Says whether the next step can be: not where it was stopped.
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

    /// Unknown rows of the next step, and of further ones of its epoch while they have no more tokens than a block.
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

    /// The rows of all steps that are left, each once, in the order of their first step.
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

    /// Records the next step, which is prepared; nothing runs. May be done while the one before it runs, unless something else is recorded in between.
    pub fn record<'g, 'e>(
        &mut self,
        trainer: &Trainer<'g>,
        rows: &TrainingRows<'e, '_>,
    ) -> StepInFlight<RecordedStep<'g, 'e>> {
        self.recorded += 1;
        let taken = self.order.take(self.settings.rows_per_step());
        let examples: Vec<&Example> = taken.iter().map(|&i| &rows.examples[i]).collect();
        let reference: Vec<RowReference> = taken.iter().map(|&i| rows.references.get(i)).collect();
        let learning_rate = self.schedule.rate(self.recorded - 1);
        let update = StepUpdate { optimiser: &self.settings.optimiser, learning_rate, number: self.recorded };
        let step = trainer.record(examples, reference, self.settings.batch_size, &update);
        StepInFlight { step, learning_rate, epoch: self.order.epochs() }
    }

    /// Gives the passes over the data up to the last step that was recorded, a fraction.
    pub fn epoch(&self) -> f64 {
        self.order.epochs()
    }

    /// Waits for a step that began at `started`.
    ///
    /// # Errors
    /// Fails like [`Trainer::finish`].
    pub async fn finish(
        &mut self,
        trainer: &Trainer<'_>,
        next: StepInFlight<SubmittedStep<'_>>,
        started: Instant,
    ) -> Result<StepMetrics> {
        let StepInFlight { step, learning_rate, epoch } = next;
        let step = trainer.finish(step).await?;
        self.state.step += 1;
        self.state.num_tokens += step.outcome.tokens as u64;
        let mut total = MetricsAccumulator::default();
        tally(&trainer.goal, &step.outcome, &mut total);
        Ok(StepMetrics {
            step: self.state.step as u64,
            epoch,
            loss: total.loss(),
            grad_norm: step.grad_norm,
            learning_rate,
            tokens: step.outcome.tokens as u64,
            num_tokens: self.state.num_tokens,
            seconds: started.elapsed().as_secs_f64(),
            pairs: total.pairs(),
            ..StepMetrics::default()
        })
    }
}
