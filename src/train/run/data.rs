//! Rows of a training run, with their reference values.

use std::sync::atomic::AtomicBool;

use web_time::Instant;

use super::TrainingEvent;
use crate::data::batch::Example;
use crate::error::Result;
use crate::model::scores::DEFAULT_SCORE_TOKENS;
use crate::ranks::Ranks;
use crate::train::metrics::MetricsAccumulator;
use crate::train::outcome::{BatchResult, RowReference, known};
use crate::train::reference::{ReferenceScorer, RowReferences, ScoringEvent, ScoringWatch, TrainingRows};
use crate::train::scoring::{self, ScoringPass};
use crate::train::steps::{StepRunner, tally};
use crate::train::trainer::Trainer;

/// Rows that a run trains and evaluates on, with their reference values.
pub struct RunData<'a> {
    examples: &'a [Example],
    references: RowReferences,
    /// Evaluation examples with their reference values.
    eval: Option<(&'a [Example], RowReferences)>,
    scorer: ReferenceScorer<'a>,
    /// Ranks that micro-batches are dealt to.
    ranks: Ranks,
    batch_size: usize,
    /// Whether rank 0 sends its parameters after each step, because devices of other kinds would round them otherwise.
    pub(super) sends_state: bool,
}

/// Reports the progress of a scorer as events of the run.
fn scoring<'a>(on_event: &'a mut dyn FnMut(&TrainingEvent<'_>)) -> impl FnMut(&ScoringEvent<'_>) + 'a {
    move |scoring| match *scoring {
        ScoringEvent::Rows { done, total } => on_event(&TrainingEvent::Scored { done, total }),
        ScoringEvent::NotKept(error) => {
            on_event(&TrainingEvent::Note(&format!("reference scores are not kept: {error}")))
        }
    }
}

impl<'a> RunData<'a> {
    /// Creates the data of a run. `scorer` computes a row's reference values when the run is about to use the row.
    pub fn new(examples: &'a [Example], eval: Option<&'a [Example]>, scorer: ReferenceScorer<'a>) -> Self {
        let references = scorer.rows(examples.len());
        let eval = eval.map(|eval| (eval, scorer.rows(eval.len())));
        Self { examples, references, eval, scorer, ranks: Ranks::alone(), batch_size: 1, sends_state: false }
    }

    /// Deals the micro-batches to ranks. `are_alike`: whether their devices give the same bits.
    #[must_use]
    pub fn over(self, ranks: Ranks, are_alike: bool) -> Self {
        Self { ranks, sends_state: !are_alike, scorer: self.scorer.over(ranks, are_alike), ..self }
    }

    /// Returns the ranks that micro-batches are dealt to.
    pub(super) fn ranks(&self) -> Ranks {
        self.ranks
    }

    /// Sets the number of rows of a micro-batch.
    pub(super) fn deals_batches_of(&mut self, rows: usize) {
        self.batch_size = rows.max(1);
    }

    /// Returns the number of training rows.
    pub(super) fn n_rows(&self) -> usize {
        self.examples.len()
    }

    /// Tells whether there are evaluation rows.
    pub(super) fn has_eval(&self) -> bool {
        self.eval.is_some()
    }

    /// Returns the training examples with their reference values, and the scorer.
    pub(super) fn rows(&mut self) -> (TrainingRows<'a, '_>, &mut ReferenceScorer<'a>) {
        (TrainingRows { examples: self.examples, references: &mut self.references }, &mut self.scorer)
    }

    /// Computes the reference values of all rows that steps will use, and of the evaluation rows, if the first step changes the reference's
    /// weights.
    pub(super) async fn prepare_all(
        &mut self,
        trainer: &Trainer<'_>,
        steps: &StepRunner,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(&TrainingEvent<'_>),
    ) -> Result<bool> {
        if !self.scorer.precedes_steps(&trainer.decoder) {
            return Ok(true);
        }
        let mut tell = scoring(on_event);
        let mut watch = ScoringWatch { stop, tell: &mut tell };
        let (mut rows, scorer) = self.rows();
        let found = scorer.find(&trainer.decoder, &mut rows, &steps.rows_left(), &mut watch).await?;
        Ok(found && self.prepare_eval(trainer, &mut watch).await?)
    }

    /// Computes the reference values of the next step's rows.
    pub(super) async fn prepare_step(
        &mut self,
        trainer: &Trainer<'_>,
        steps: &StepRunner,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(&TrainingEvent<'_>),
    ) -> Result<bool> {
        let mut tell = scoring(on_event);
        let mut watch = ScoringWatch { stop, tell: &mut tell };
        let (mut rows, scorer) = self.rows();
        steps.prepare(scorer, trainer, &mut rows, &mut watch).await
    }

    /// Computes the reference values of the evaluation rows.
    async fn prepare_eval(&mut self, trainer: &Trainer<'_>, watch: &mut ScoringWatch<'_>) -> Result<bool> {
        let Some((examples, references)) = &mut self.eval else { return Ok(true) };
        let all: Vec<usize> = (0..examples.len()).collect();
        self.scorer.find(&trainer.decoder, &mut TrainingRows { examples, references }, &all, watch).await
    }

    /// Evaluates the evaluation rows; `None` where there are none.
    pub(super) async fn evaluate(
        &mut self,
        trainer: &Trainer<'_>,
        on_event: &mut dyn FnMut(&TrainingEvent<'_>),
    ) -> Result<Option<(MetricsAccumulator, f64)>> {
        // An evaluation that is due is completed even when the run is asked to stop.
        let stop = AtomicBool::new(false);
        {
            let mut tell = scoring(&mut *on_event);
            self.prepare_eval(trainer, &mut ScoringWatch { stop: &stop, tell: &mut tell }).await?;
        }
        let Some((examples, references)) = &mut self.eval else { return Ok(None) };
        let started = Instant::now();
        let n_rows = examples.len();
        let tell = &mut |done| on_event(&TrainingEvent::Evaluated { done, total: n_rows });
        let (batch_size, ranks) = (self.batch_size, self.ranks);
        let total = evaluate(trainer, &TrainingRows { examples, references }, batch_size, ranks, tell).await?;
        Ok(Some((total, started.elapsed().as_secs_f64())))
    }
}

/// Computes loss and pair metrics over rows whose reference values are known, without gradients. Batches are dealt to `ranks`. Calls `tell`
/// with the number of rows so far.
///
/// # Errors
/// [`crate::Error::Gpu`]; those of [`Ranks::gather`].
pub async fn evaluate(
    trainer: &Trainer<'_>,
    rows: &TrainingRows<'_, '_>,
    batch_size: usize,
    ranks: Ranks,
    tell: &mut dyn FnMut(usize),
) -> Result<MetricsAccumulator> {
    let mut total = MetricsAccumulator::default();
    let examples: Vec<&Example> = rows.examples.iter().collect();
    for (i, chunk) in examples.chunks(batch_size.max(1)).enumerate().filter(|(i, _)| ranks.owns(*i)) {
        let pass = ScoringPass {
            with_lora: true,
            share_prefix: trainer.share_prefix,
            max_tokens: DEFAULT_SCORE_TOKENS,
            with_squares: trainer.goal.is_weighted(),
        };
        let scored = scoring::score_pass(trainer.gpu, &trainer.decoder, chunk, pass, &mut |_| ()).await?;
        let sums: Vec<_> = scored.iter().map(|s| s.sums).collect();
        let first = i * batch_size.max(1);
        let reference: Vec<RowReference> = (first..first + chunk.len()).map(|row| rows.references.get(row)).collect();
        let tokens = chunk.iter().map(|e| e.n_tokens(trainer.sharing())).sum();
        let known = known(&trainer.goal, chunk, &reference, &examples);
        tally(&trainer.goal, &BatchResult::new(&trainer.goal, &sums, &known, tokens), &mut total);
        tell(first + chunk.len());
    }
    if ranks.are_several() {
        tell(examples.len());
    }
    total.over(ranks)
}
