//! Reference scores, computed only for rows that a run is about to use: a run may end before it has used all rows. A row's scores are
//! bit-identical whatever is scored beside it, so they do not depend on when they are computed.

use std::sync::atomic::{AtomicBool, Ordering};

use super::across_ranks::shares::{ROWS_PER_ROUND, deal};
use super::outcome::RowReference;
use super::score_store::{RowKey, ScoreStore, SideSums};
use super::scoring::{ScoredSequence, batches_by_tokens, score};
use super::similarity::{mean_instruction, prompt_embeddings};
use crate::data::batch::{Example, PrefixSharing};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::model::decoder::Decoder;
use crate::model::weights::Weight;
use crate::objective::{Objective, PreferenceLoss, SequenceLogps};
use crate::ranks::Ranks;

/// Largest number of forward passes per block of scoring between two steps. The number begins at one, so that the first step starts soon,
/// and doubles, so that later steps are rarely interrupted.
const MOST_PASSES: usize = 16;

/// Model that computes the reference scores.
pub enum ReferenceModel<'a> {
    /// No model: no loss of the run uses reference scores.
    Unneeded,
    /// The policy itself, before its first step.
    Untrained,
    /// The policy without its adapter.
    WithoutAdapter,
    /// The policy with its adapter as it was loaded ([`Decoder::keep_start`]).
    Start,
    /// Another model.
    Other(OtherModel<'a>),
}

/// Reference model that is loaded when the first row is scored.
pub struct OtherModel<'a> {
    load: Box<dyn Fn() -> Result<Decoder> + 'a>,
    loaded: Option<Box<Decoder>>,
}

impl<'a> OtherModel<'a> {
    /// Creates the model from the function that loads it.
    pub fn new(load: impl Fn() -> Result<Decoder> + 'a) -> Self {
        Self { load: Box::new(load), loaded: None }
    }

    fn decoder(&mut self) -> Result<&Decoder> {
        let loaded = match self.loaded.take() {
            Some(decoder) => decoder,
            None => Box::new((self.load)()?),
        };
        Ok(self.loaded.insert(loaded))
    }
}

/// Reference values of the rows of a data set, by row number.
#[derive(Debug, Clone)]
pub struct RowReferences {
    /// Reference scores of a row's sequences, each summed over the objective's tokens; `None` until they are known.
    scores: Vec<Option<[f64; 2]>>,
    /// Prompt embeddings of a row's instructions; empty where no loss compares instructions.
    prompt_embeddings: Vec<Option<[Vec<f32>; 2]>>,
    /// Mean over all instructions, which is subtracted from each prompt embedding.
    mean: Option<Vec<f64>>,
}

impl RowReferences {
    /// Returns a row's reference scores, and its prompt embeddings where a loss compares them.
    ///
    /// # Panics
    /// Panics where the row was not scored: [`ReferenceScorer::find`] must be called first.
    pub fn get(&self, row: usize) -> RowReference {
        let Some(scores) = self.scores[row] else { unreachable!("row {row} has no reference yet") };
        let prompt_embeddings = self.prompt_embeddings.get(row).map_or_else(Default::default, |found| {
            found.clone().unwrap_or_else(|| unreachable!("row {row} has no prompt_embeddings yet"))
        });
        RowReference { scores, prompt_embeddings }
    }

    /// Returns the scores that are known. A run that continues elsewhere need not recompute them.
    pub fn scores(&self) -> &[Option<[f64; 2]>] {
        &self.scores
    }

    /// Sets scores that came from [`RowReferences::scores`].
    pub fn set_scores(&mut self, scores: Vec<Option<[f64; 2]>>) {
        assert_eq!(scores.len(), self.scores.len(), "scores of other rows");
        self.scores = scores;
    }

    fn is_known(&self, row: usize) -> bool {
        self.scores[row].is_some() && self.prompt_embeddings.get(row).is_none_or(Option::is_some)
    }
}

/// Training rows with their reference values.
pub struct TrainingRows<'e, 'r> {
    /// Examples in the data's order.
    pub examples: &'e [Example],
    /// Reference values of the examples, in the same order.
    pub references: &'r mut RowReferences,
}

/// Progress of a scorer.
#[derive(Debug)]
pub enum ScoringEvent<'a> {
    /// Number of rows that were scored, among those that this pass must score.
    Rows {
        /// Rows scored so far.
        done: usize,
        /// Rows of the pass.
        total: usize,
    },
    /// Scores could not be stored, and will have to be recomputed.
    NotKept(&'a Error),
}

/// Controls a pass of scoring: a flag that ends it early, and a callback for its progress.
pub struct ScoringWatch<'a> {
    /// Ends the pass, once set, after the rows that are on the device.
    pub stop: &'a AtomicBool,
    /// Callback for events.
    pub tell: &'a mut dyn FnMut(&ScoringEvent<'_>),
}

/// Scorer of rows with a run's reference.
pub struct ReferenceScorer<'a> {
    gpu: &'a Gpu,
    model: ReferenceModel<'a>,
    objective: Objective,
    /// Weight of a longer response's tail in the scores ([`PreferenceLoss::tail_weight`]).
    tail_weight: f64,
    compares_instructions: bool,
    max_tokens: usize,
    store: Option<ScoreStore>,
    passes: usize,
    /// Ranks that share out the rows. All of them then know the scores of all rows that were found.
    ranks: Ranks,
    /// Whether the ranks' devices give the same bits, so that the store of one device may have the scores of all.
    are_alike: bool,
}

/// Returns the sums of each example's sequences, from the scores of the sequences of all examples. `tail_weight` is the weight of the
/// response tokens past the length of the pair's shorter response.
fn side_sums(examples: &[&Example], scored: &[ScoredSequence], tail_weight: f64) -> Vec<SideSums> {
    let mut rest = scored.iter().map(|s| [s.sums.instruction, s.sums.weighted_score(Objective::Dpo, tail_weight)]);
    let two = |e: &&Example| [0, 1].map(|side| if side < e.sequences.len() { rest.next() } else { None });
    examples.iter().map(two).map(|sides| sides.map(Option::unwrap_or_default)).collect()
}

/// Returns the objective's scores of a row's sequences.
fn scores(objective: Objective, sums: SideSums) -> [f64; 2] {
    sums.map(|[instruction, response]| {
        SequenceLogps { instruction, response, ..SequenceLogps::default() }.score(objective)
    })
}

impl<'a> ReferenceScorer<'a> {
    /// Creates the scorer of a run with the loss `preference`: `model` is the reference, `max_tokens` the size of a forward pass, and
    /// `store` keeps the scores on disk. A loss that needs no reference does not use `model`.
    pub fn new(
        gpu: &'a Gpu,
        preference: &PreferenceLoss,
        model: ReferenceModel<'a>,
        max_tokens: usize,
        store: Option<ScoreStore>,
    ) -> Self {
        Self {
            gpu,
            model: if preference.needs_reference() { model } else { ReferenceModel::Unneeded },
            objective: preference.objective,
            tail_weight: preference.tail_weight(),
            compares_instructions: preference.compares_instructions(),
            max_tokens,
            store,
            passes: 1,
            ranks: Ranks::alone(),
            are_alike: true,
        }
    }

    /// Shares out the rows among ranks. All of them must then look for the same rows at the same time. `are_alike`: whether their devices give
    /// the same bits; the store then gets the other ranks' scores, too.
    #[must_use]
    pub fn over(self, ranks: Ranks, are_alike: bool) -> Self {
        Self { ranks, are_alike, ..self }
    }

    /// Creates the scorer of a run without a reference: supervised fine-tuning.
    pub fn unneeded(gpu: &'a Gpu) -> Self {
        Self::new(
            gpu,
            &PreferenceLoss { reference_free: true, ..PreferenceLoss::default() },
            ReferenceModel::Unneeded,
            0,
            None,
        )
    }

    /// Creates an empty table for `n` rows.
    pub fn rows(&self, n: usize) -> RowReferences {
        let none = matches!(self.model, ReferenceModel::Unneeded).then_some([0.0; 2]);
        let prompt_embeddings = if self.compares_instructions { vec![None; n] } else { Vec::new() };
        RowReferences { scores: vec![none; n], prompt_embeddings, mean: None }
    }

    /// Returns whether the reference values of all rows must be known before the first step, because steps change the reference's weights,
    /// or the embeddings by which instructions are compared.
    pub fn precedes_steps(&self, policy: &Decoder) -> bool {
        let embeddings = [Some(&policy.embedding), policy.position_embedding.as_ref()];
        let rows = policy.tokens.iter().map(|tokens| &tokens.rows);
        let mut embeddings = embeddings.into_iter().flatten().chain(rows);
        matches!(self.model, ReferenceModel::Untrained) || self.compares_instructions && embeddings.any(Weight::trained)
    }

    /// Returns the number of tokens of rows that the next block between two steps may score.
    pub(super) fn block_tokens(&self) -> usize {
        self.passes * self.max_tokens * self.ranks.n()
    }

    /// Doubles the size of the next block, up to the limit.
    pub(super) fn grow_block(&mut self) {
        self.passes = (2 * self.passes).min(MOST_PASSES);
    }

    /// Returns a row's sums from the store.
    fn stored(&self, rows: &TrainingRows<'_, '_>, row: usize) -> Option<SideSums> {
        self.store.as_ref()?.get(RowKey::new(&rows.examples[row], self.tail_weight))
    }

    /// Returns whether a row's reference values are known, after looking for them in the store. Several ranks look there only in [`Self::find`],
    /// because they must agree.
    pub fn knows(&self, rows: &mut TrainingRows<'_, '_>, row: usize) -> bool {
        if rows.references.scores[row].is_none()
            && !self.ranks.are_several()
            && let Some(sums) = self.stored(rows, row)
        {
            rows.references.scores[row] = Some(scores(self.objective, sums));
        }
        rows.references.is_known(row)
    }

    /// Sets the scores of all rows from `scored`, a pass over the untrained policy, where that is the reference.
    pub fn take(&self, rows: &mut TrainingRows<'_, '_>, scored: &[ScoredSequence]) {
        if !matches!(self.model, ReferenceModel::Untrained) {
            return;
        }
        let examples: Vec<&Example> = rows.examples.iter().collect();
        for (known, sums) in rows.references.scores.iter_mut().zip(side_sums(&examples, scored, self.tail_weight)) {
            known.get_or_insert(scores(self.objective, sums));
        }
    }

    /// Computes the unknown reference values of the `wanted` rows, and stores the scores after each pass. Returns whether all of them are
    /// known; false where the pass was stopped.
    ///
    /// # Errors
    /// [`Error::Gpu`]; errors of loading another model.
    pub async fn find(
        &mut self,
        policy: &Decoder,
        rows: &mut TrainingRows<'_, '_>,
        wanted: &[usize],
        watch: &mut ScoringWatch<'_>,
    ) -> Result<bool> {
        let unknown: Vec<usize> = wanted.iter().copied().filter(|&row| !self.knows(rows, row)).collect();
        self.find_prompt_embeddings(policy, rows, &unknown).await?;
        let unscored: Vec<usize> = unknown.into_iter().filter(|&row| rows.references.scores[row].is_none()).collect();
        let (mut done, total) = (0, unscored.len());
        if total > 0 {
            (watch.tell)(&ScoringEvent::Rows { done, total });
        }
        if !self.ranks.are_several() {
            return Ok(self.score_rows(policy, rows, &unscored, (done, total), watch).await?.1);
        }
        for round in unscored.chunks(ROWS_PER_ROUND * self.ranks.n()) {
            let is_whole = self.find_in_shares(policy, rows, round, (done, total), watch).await?;
            if !is_whole {
                return Ok(false);
            }
            done += round.len();
            (watch.tell)(&ScoringEvent::Rows { done, total });
        }
        Ok(true)
    }

    /// Scores rows, each by one of the ranks, and exchanges the scores. Rows that a rank finds in its store are that rank's. `progress` is the
    /// number of rows that were scored before, of all. Returns whether all are known, on every rank; false where any rank was stopped.
    async fn find_in_shares(
        &mut self,
        policy: &Decoder,
        rows: &mut TrainingRows<'_, '_>,
        round: &[usize],
        progress: (usize, usize),
        watch: &mut ScoringWatch<'_>,
    ) -> Result<bool> {
        let stored: Vec<Option<SideSums>> = round.iter().map(|&row| self.stored(rows, row)).collect();
        let is_stored = stored.iter().map(Option::is_some).collect::<Vec<bool>>();
        let shares = deal(&self.ranks.gather(is_stored)?);
        let own = || (0..round.len()).filter(|&i| shares[i] == self.ranks.rank());
        let unscored: Vec<usize> = own().filter(|&i| stored[i].is_none()).map(|i| round[i]).collect();
        let mut known: Vec<(usize, SideSums)> = own().filter_map(|i| Some((round[i], stored[i]?))).collect();
        let (scored, is_whole) = self.score_rows(policy, rows, &unscored, progress, watch).await?;
        known.extend(scored);
        // As bits, because JSON has no infinities.
        let bits = known.iter().map(|&(row, sums)| (row, sums.map(|side| side.map(f64::to_bits)))).collect::<Vec<_>>();
        let all = self.ranks.gather((bits, is_whole))?;
        let this_rank = self.ranks.rank();
        for (rank, (found, _)) in all.iter().enumerate().filter(|(rank, _)| *rank != this_rank) {
            let found = found.iter().map(|&(row, sums)| (row, sums.map(|side| side.map(f64::from_bits))));
            let found: Vec<(usize, SideSums)> = found.collect();
            if let Some((row, _)) = found.iter().find(|(row, _)| *row >= rows.examples.len()) {
                return Err(Error::Ranks(format!("rank {rank} scored row {row}, which this rank does not have")));
            }
            if self.are_alike {
                self.store(rows, &found, watch);
            }
            self.set(rows, &found);
        }
        self.set(rows, &known);
        Ok(all.iter().all(|(_, is_whole)| *is_whole))
    }

    /// Scores rows on this rank, and stores the scores after each pass. Returns them, and whether there are all; false where the pass was
    /// stopped.
    async fn score_rows(
        &mut self,
        policy: &Decoder,
        rows: &mut TrainingRows<'_, '_>,
        unscored: &[usize],
        (before, total): (usize, usize),
        watch: &mut ScoringWatch<'_>,
    ) -> Result<(Vec<(usize, SideSums)>, bool)> {
        let examples: Vec<&Example> = unscored.iter().map(|&row| &rows.examples[row]).collect();
        let mut all = Vec::with_capacity(unscored.len());
        for group in batches_by_tokens(&examples, PrefixSharing::new(true, &policy.description), self.max_tokens) {
            if watch.stop.load(Ordering::Relaxed) {
                return Ok((all, false));
            }
            let sums = self.score(policy, &group).await?;
            let found: Vec<(usize, SideSums)> = unscored[all.len()..].iter().copied().zip(sums).collect();
            self.store(rows, &found, watch);
            self.set(rows, &found);
            all.extend(found);
            (watch.tell)(&ScoringEvent::Rows { done: before + all.len(), total });
        }
        Ok((all, true))
    }

    /// Sets the scores of rows.
    fn set(&self, rows: &mut TrainingRows<'_, '_>, found: &[(usize, SideSums)]) {
        for &(row, sums) in found {
            rows.references.scores[row] = Some(scores(self.objective, sums));
        }
    }

    /// Stores the scores of rows on disk.
    fn store(&mut self, rows: &TrainingRows<'_, '_>, found: &[(usize, SideSums)], watch: &mut ScoringWatch<'_>) {
        if let Some(store) = &mut self.store {
            let key = |row: usize| RowKey::new(&rows.examples[row], self.tail_weight);
            let kept: Vec<_> = found.iter().map(|&(row, sums)| (key(row), sums)).collect();
            if let Err(error) = store.append(&kept) {
                (watch.tell)(&ScoringEvent::NotKept(&error));
            }
        }
    }

    /// Scores rows in one forward pass.
    async fn score(&mut self, policy: &Decoder, group: &[&Example]) -> Result<Vec<SideSums>> {
        let (decoder, with_lora) = match &mut self.model {
            ReferenceModel::Unneeded => return Ok(vec![SideSums::default(); group.len()]),
            ReferenceModel::Untrained => (policy, true),
            ReferenceModel::WithoutAdapter => (policy, false),
            ReferenceModel::Start => match &policy.start {
                Some(start) => (&**start, true),
                None => unreachable!("the policy's start was not kept"),
            },
            ReferenceModel::Other(other) => (other.decoder()?, true),
        };
        let scored = score(self.gpu, decoder, group, with_lora, true, self.max_tokens, &mut |_| ()).await?;
        Ok(side_sums(group, &scored, self.tail_weight))
    }

    /// Computes the prompt embeddings of the `unknown` rows' instructions, where a loss compares them.
    async fn find_prompt_embeddings(
        &self,
        policy: &Decoder,
        rows: &mut TrainingRows<'_, '_>,
        unknown: &[usize],
    ) -> Result<()> {
        let (examples, references) = (rows.examples, &mut *rows.references);
        let unembedded = |row: &usize| references.prompt_embeddings.get(*row).is_some_and(Option::is_none);
        let unembedded: Vec<usize> = unknown.iter().copied().filter(unembedded).collect();
        if unembedded.is_empty() {
            return Ok(());
        }
        let (gpu, most) = (self.gpu, self.max_tokens);
        if references.mean.is_none() {
            references.mean = Some(mean_instruction(gpu, policy, examples, most).await?);
        }
        let mean = references.mean.as_deref().unwrap_or_default();
        let of_rows: Vec<&Example> = unembedded.iter().map(|&row| &examples[row]).collect();
        let found = prompt_embeddings(gpu, policy, &of_rows, mean, most).await?;
        for (row, found) in unembedded.into_iter().zip(found) {
            references.prompt_embeddings[row] = Some(found);
        }
        Ok(())
    }
}
