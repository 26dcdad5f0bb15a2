//! Optimiser step: micro-batches forward and backward, division of the sum once, clipping, AdamW.

use crate::data::batch::{Example, PrefixSharing};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, PlannedWork, Recording, Role, Slot};
use crate::kernels::adamw::{AdamwStep, ParamBucket, adamw};
use crate::kernels::dropout::micro_batch_seed;
use crate::kernels::global_norm::global_norm;
use crate::kernels::packed_batch::{PackedBatch, SequenceSpan};
use crate::kernels::storage::WeightFormat;
use crate::model::decoder::Decoder;
use crate::model::saved::RecomputePolicy;
use crate::model::scores::{MicroBatch, PredictionScores};
use crate::model::weights;
use crate::objective::{LossInputs, SequenceLogps, TrainingLoss};
use crate::ranks::{Ranks, ReduceDtype};

use super::across_ranks::exchange::{ExchangeCost, GradientExchange, sections};
use super::outcome::{BatchResult, RowReference, known};
use super::scoring::sums;

/// Constants of the optimiser, equal for all steps.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AdamwConfig {
    /// β1, decay rate of the first moment.
    pub adam_beta1: f64,
    /// β2, decay rate of the second moment.
    pub adam_beta2: f64,
    /// ε, added to the root of the second moment.
    pub adam_epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of the gradients; 0 disables clipping.
    pub max_grad_norm: f64,
}

/// Trainer of a decoder.
pub struct Trainer<'g> {
    /// Device that the decoder is on.
    pub gpu: &'g Gpu,
    /// Policy that is trained.
    pub decoder: Decoder,
    /// Loss to minimise.
    pub goal: TrainingLoss,
    /// Whether shared instructions are computed once.
    pub share_prefix: bool,
    /// Activations that the forward pass saves for the backward pass. The choice changes memory and time, not results.
    pub keep: RecomputePolicy,
    /// Seed of stochastic rounding, and of dropout.
    pub seed: u64,
}

/// Micro-batch that is recorded.
struct RecordedMicroBatch<'g> {
    recording: Recording<'g>,
    /// Number of launches of the forward pass.
    n_forward: usize,
    scores: PendingScores,
}

struct PendingScores {
    /// Log-probabilities (N), read back after the step. Metrics sum them in f64, like the reference scores, so that ties are exact.
    logp: Slot,
    /// log Σ_v p_v² (N), where the loss weighs pairs.
    log_squares: Option<Slot>,
    spans: Vec<SequenceSpan>,
    tokens: usize,
    known: LossInputs,
}

/// Inputs of a step's update besides the gradients.
#[derive(Debug, Clone, Copy)]
pub struct StepUpdate<'a> {
    /// AdamW's constants, equal for all steps.
    pub optimiser: &'a AdamwConfig,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Number of the step, from 1.
    pub number: usize,
    /// Ranks that the step's micro-batches are dealt to.
    pub ranks: Ranks,
    /// Data type in which the ranks exchange gradients.
    pub reduce_dtype: ReduceDtype,
}

/// Step that is recorded, but not submitted.
pub struct RecordedStep<'g, 'e> {
    pub(super) gpu: &'g Gpu,
    /// Clearing of the gradients, each micro-batch, the update.
    pub(super) recordings: Vec<Recording<'g>>,
    /// Number of launches of each micro-batch's forward pass.
    pub(super) n_forward: Vec<usize>,
    running: SubmittedStep<'g, 'e>,
}

impl<'g, 'e> RecordedStep<'g, 'e> {
    /// Returns the step's dispatches by their work, where the device only counts.
    pub fn planned_work(&self) -> PlannedWork {
        let mut all = PlannedWork::new();
        for (&dispatch, n) in self.recordings.iter().flat_map(Recording::planned_work) {
            *all.entry(dispatch).or_default() += n;
        }
        all
    }

    /// Submits the step to the device. Of several ranks, each begins to exchange its gradients as they become final.
    pub fn submit(mut self) -> SubmittedStep<'g, 'e> {
        if let Some(summed) = &mut self.running.summed
            && let Some(last) = self.recordings.pop()
        {
            self.recordings.into_iter().for_each(Recording::submit);
            let SummedUpdate { sections, ranks, reduce_dtype, exchange, .. } = summed;
            let mut begun = GradientExchange::begin(self.gpu, sections.clone(), *ranks, *reduce_dtype);
            last.submit_watched(sections, &mut |_| begun.next_is_final());
            *exchange = Some(begun);
        } else {
            self.recordings.into_iter().for_each(Recording::submit);
        }
        self.running
    }
}

/// Step that was submitted to the device.
pub struct SubmittedStep<'g, 'e> {
    pending: Vec<PendingScores>,
    norm: Slot,
    /// Examples of this rank.
    examples: Vec<&'e Example>,
    number: usize,
    /// Update of one of several ranks.
    summed: Option<SummedUpdate<'g>>,
}

/// Update of one of several ranks, which follows the sum of their gradients.
struct SummedUpdate<'g> {
    /// Norm, clipping and AdamW.
    recording: Recording<'g>,
    /// Gradients in the order in which they are exchanged.
    sections: Vec<Vec<Slot>>,
    ranks: Ranks,
    reduce_dtype: ReduceDtype,
    /// Exchange that began with the submission.
    exchange: Option<GradientExchange<'g>>,
}

/// Results of a step.
#[derive(Debug, Clone)]
pub struct StepResult {
    /// Losses and scores before the update.
    pub outcome: BatchResult,
    /// Norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Cost of the exchange of gradients; `None` for a single rank.
    pub exchange: Option<ExchangeCost>,
}

impl<'g> Trainer<'g> {
    /// Returns the rule for computing shared instructions once.
    pub fn sharing(&self) -> PrefixSharing {
        PrefixSharing::new(self.share_prefix, &self.decoder.description)
    }

    /// Records the gradients of the summed loss over `examples`, in micro-batches of `batch_size`, which are added to the arena's
    /// gradients. `number`: the step's. Of several ranks, each records its own micro-batches.
    fn accumulate(
        &self,
        examples: &[&Example],
        reference: &[RowReference],
        batch_size: usize,
        (number, ranks): (usize, Ranks),
    ) -> Vec<RecordedMicroBatch<'g>> {
        let mut all = Vec::new();
        let micro_batches = (0..examples.len()).step_by(batch_size.max(1)).enumerate();
        for (k, first) in micro_batches.filter(|(k, _)| ranks.owns(*k)) {
            let range = first..(first + batch_size).min(examples.len());
            let batch = PackedBatch::pack(&examples[range.clone()], self.sharing());
            let dropout_seed = micro_batch_seed(self.seed, number, k);
            let micro = MicroBatch::for_training(self.gpu, &self.decoder, &batch, dropout_seed);
            let mut rec = self.gpu.record();
            let scores = self.decoder.score(&mut rec, &micro, true, self.keep, self.goal.is_weighted());
            let (logp, log_squares, n_forward) = (scores.logp.clone(), scores.log_squares.clone(), rec.n_launches());
            let reference = reference.get(range.clone()).unwrap_or_default();
            let known = known(&self.goal, &examples[range], reference, examples);
            self.decoder.score_backward(&mut rec, &micro, scores, &self.goal, &known);
            let scores = PendingScores { logp, log_squares, tokens: batch.ids.len(), spans: batch.spans, known };
            all.push(RecordedMicroBatch { recording: rec, n_forward, scores });
        }
        all
    }

    fn clear_gradients(&self) -> Recording<'g> {
        let mut rec = self.gpu.record();
        self.decoder.arena.pages.iter().for_each(|page| rec.clear(&page.grads));
        rec
    }

    /// Returns the number of terms of the mean loss: rows, or response tokens for SFT.
    fn divisor(&self, examples: &[&Example]) -> usize {
        match self.goal {
            TrainingLoss::Preference(_) => examples.len(),
            TrainingLoss::Sft(_) => examples.iter().map(|e| e.sequences[0].n_response()).sum(),
        }
    }

    /// Reads scores, and the norm where it is computed already.
    async fn read(&self, pending: Vec<PendingScores>, norm: Option<&Slot>) -> Result<StepResult> {
        let of = |p: &'_ PendingScores| std::iter::once(p.logp.clone()).chain(p.log_squares.clone());
        let slots: Vec<Slot> = pending.iter().flat_map(of).chain(norm.cloned()).collect();
        let mut read = self.gpu.read::<f32>(&slots.iter().collect::<Vec<_>>()).await?.into_iter();
        let mut total = BatchResult::default();
        for p in &pending {
            let logp = read.next().unwrap_or_default();
            let scores = PredictionScores { logp, log_squares: p.log_squares.as_ref().and_then(|_| read.next()) };
            let sums: Vec<SequenceLogps> = p.spans.iter().map(|span| sums(span, &scores)).collect();
            total.add(BatchResult::new(&self.goal, &sums, &p.known, p.tokens));
        }
        let grad_norm = f64::from(read.next().and_then(|n| n.first().copied()).unwrap_or(f32::NAN));
        Ok(StepResult { outcome: total, grad_norm, exchange: None })
    }

    /// Takes one optimiser step on the mean loss of `examples`.
    ///
    /// # Errors
    /// Fails like [`Self::finish`].
    pub async fn step(
        &self,
        examples: &[&Example],
        reference: &[RowReference],
        batch_size: usize,
        optimiser: &AdamwConfig,
        learning_rate: f64,
        number: usize,
    ) -> Result<StepResult> {
        let (ranks, reduce_dtype) = (Ranks::alone(), ReduceDtype::F32);
        let update = StepUpdate { optimiser, learning_rate, number, ranks, reduce_dtype };
        self.finish(self.record(examples.to_vec(), reference.to_vec(), batch_size, &update).submit()).await
    }

    /// Records a step on the mean loss of `examples`, those of all ranks, without submitting it. It may be recorded while the step before it
    /// runs, unless something else is recorded in between.
    pub fn record<'e>(
        &self,
        examples: Vec<&'e Example>,
        reference: Vec<RowReference>,
        batch_size: usize,
        update: &StepUpdate,
    ) -> RecordedStep<'g, 'e> {
        let mut recordings = vec![self.clear_gradients()];
        let (mut pending, mut n_forward) = (Vec::new(), Vec::new());
        for micro in self.accumulate(&examples, &reference, batch_size, (update.number, update.ranks)) {
            recordings.push(micro.recording);
            n_forward.push(micro.n_forward);
            pending.push(micro.scores);
        }
        let scale = 1.0 / self.divisor(&examples).max(1) as f64;
        let norm = self.gpu.alloc_persistent(Role::Batch, 1);
        let optimiser = update.optimiser;
        let adam = AdamwStep {
            learning_rate: update.learning_rate,
            beta1: optimiser.adam_beta1,
            beta2: optimiser.adam_beta2,
            eps: optimiser.adam_epsilon,
            weight_decay: optimiser.weight_decay,
            max_norm: optimiser.max_grad_norm,
            step: update.number as u32,
            scale,
            seed: self.seed,
        };
        let mut rec = self.gpu.record();
        rec.scope("");
        let pages = &self.decoder.arena.pages;
        global_norm(&mut rec, &gradients(pages), scale as f32, &norm);
        pages.iter().for_each(|page| adamw(&mut rec, &adam, page, &norm));
        let StepUpdate { number, ranks, reduce_dtype, .. } = *update;
        let summed = if ranks.are_several() {
            let sections = sections(&self.decoder);
            Some(SummedUpdate { recording: rec, sections, ranks, reduce_dtype, exchange: None })
        } else {
            recordings.push(rec);
            None
        };
        let own = examples.chunks(batch_size.max(1)).enumerate().filter(|(k, _)| ranks.owns(*k));
        let examples = own.flat_map(|(_, rows)| rows.to_vec()).collect();
        let running = SubmittedStep { pending, norm, examples, number, summed };
        RecordedStep { gpu: self.gpu, recordings, n_forward, running }
    }

    /// Waits for a submitted step.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming step, rows and tensor, where the step has left the parameters unchanged; [`Error::Gpu`].
    pub async fn finish(&self, running: SubmittedStep<'_, '_>) -> Result<StepResult> {
        let SubmittedStep { pending, norm, examples, number, summed } = running;
        let (mut is_updated, mut cost) = (true, None);
        if let Some(SummedUpdate { recording, exchange, .. }) = summed {
            cost = exchange.map(GradientExchange::finish).transpose()?.flatten();
            is_updated = cost.is_some();
            if is_updated {
                recording.submit();
            }
        }
        let step = self.read(pending, is_updated.then_some(&norm)).await?;
        let step = StepResult { exchange: cost, ..step };
        if !step.grad_norm.is_finite() || !step.outcome.loss_sum.is_finite() {
            let place = format!("step {number}, rows {}", row_numbers(&examples));
            return Err(self.not_finite(place, &step).await?);
        }
        Ok(step)
    }

    /// Computes the gradients of the mean loss over `examples`, not clipped. They stay in the arena as sums.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming rows and tensor; [`Error::Gpu`].
    pub async fn gradients(
        &self,
        examples: &[&Example],
        reference: &[RowReference],
        batch_size: usize,
    ) -> Result<StepResult> {
        self.gradients_over(Ranks::alone(), examples, reference, batch_size).await
    }

    /// Computes gradients like [`Self::gradients`]. Of several ranks, each computes those of its own micro-batches, and has the sums over all; the
    /// result's scores are of its own.
    ///
    /// # Errors
    /// Those of [`Self::gradients`].
    pub async fn gradients_over(
        &self,
        ranks: Ranks,
        examples: &[&Example],
        reference: &[RowReference],
        batch_size: usize,
    ) -> Result<StepResult> {
        self.clear_gradients().submit();
        let mut pending = Vec::new();
        for micro in self.accumulate(examples, reference, batch_size, (0, ranks)) {
            micro.recording.submit();
            pending.push(micro.scores);
        }
        if ranks.are_several() {
            // A gradient that is not finite is found below.
            GradientExchange::begin(self.gpu, sections(&self.decoder), ranks, ReduceDtype::F32).finish()?;
        }
        let norm = self.gpu.alloc_activation(1);
        let scale = 1.0 / self.divisor(examples).max(1) as f64;
        let mut rec = self.gpu.record();
        global_norm(&mut rec, &gradients(&self.decoder.arena.pages), scale as f32, &norm);
        rec.submit();
        let step = self.read(pending, Some(&norm)).await?;
        if !step.grad_norm.is_finite() || !step.outcome.loss_sum.is_finite() {
            return Err(self.not_finite(format!("rows {}", row_numbers(examples)), &step).await?);
        }
        Ok(step)
    }

    /// Reads the arena's gradients, divided by the mean's number of terms: (name, shape, values) of each tensor.
    ///
    /// # Errors
    /// [`Error::Gpu`].
    pub async fn read_gradients(&self, examples: &[&Example]) -> Result<Vec<(String, Vec<usize>, Vec<f32>)>> {
        let scale = 1.0 / self.divisor(examples).max(1) as f64;
        let mut all = Vec::new();
        for weight in self.decoder.trained_weights() {
            let mut values = weights::read_back(self.gpu, weight, true).await?;
            values.iter_mut().for_each(|v| *v = (f64::from(*v) * scale) as f32);
            all.push((weight.spec.name.clone(), weight.spec.shape.clone(), values));
        }
        Ok(all)
    }

    /// Checks that the trained weights are finite. A step's loss cannot show this, because it is computed before the update.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming step and tensor; [`Error::Gpu`].
    pub async fn check_weights(&self, step: usize) -> Result<()> {
        let norm = self.gpu.alloc_activation(1);
        let mut rec = self.gpu.record();
        let params = |p: &ParamBucket| (p.params.clone(), p.storage);
        global_norm(&mut rec, &self.decoder.arena.pages.iter().map(params).collect::<Vec<_>>(), 1.0, &norm);
        rec.submit();
        if self.gpu.read::<f32>(&[&norm]).await?.concat().iter().all(|n| n.is_finite()) {
            return Ok(());
        }
        // The norm may overflow although every weight is finite.
        match self.first_not_finite(self.decoder.trained_weights(), false).await? {
            Some(what) => Err(Error::NotFinite {
                place: format!("step {step}, after the update"),
                what: format!("the weight {what}"),
            }),
            None => Ok(()),
        }
    }

    async fn not_finite(&self, place: String, result: &StepResult) -> Result<Error> {
        let mut what = self.first_not_finite(self.decoder.weights(), false).await?.map(|w| format!("the weight {w}"));
        if what.is_none() {
            let trained = self.first_not_finite(self.decoder.trained_weights(), false).await?;
            what = trained.map(|w| format!("the weight {w}"));
        }
        if what.is_none() {
            let gradient = self.first_not_finite(self.decoder.trained_weights(), true).await?;
            let loss = if result.outcome.loss_sum.is_finite() { "" } else { "the loss, and " };
            what = gradient.map(|w| format!("{loss}the gradient of {w}"));
        }
        let what = what.unwrap_or_else(|| "the loss".into());
        Ok(Error::NotFinite { place, what })
    }

    /// Returns the first tensor with a value (or a gradient) that is not finite, in quotes.
    async fn first_not_finite(&self, tensors: Vec<&weights::Weight>, gradient: bool) -> Result<Option<String>> {
        for weight in tensors {
            if weights::read_back(self.gpu, weight, gradient).await?.iter().any(|v| !v.is_finite()) {
                return Ok(Some(format!("`{}`", weight.spec.name)));
            }
        }
        Ok(None)
    }
}

/// Returns the buckets' gradients in the form that [`global_norm`] takes.
fn gradients(pages: &[ParamBucket]) -> Vec<(Slot, WeightFormat)> {
    pages.iter().map(|p| (p.grads.clone(), WeightFormat::F32)).collect()
}

fn row_numbers(examples: &[&Example]) -> String {
    examples.iter().map(|e| e.row.to_string()).collect::<Vec<_>>().join(", ")
}
