//! Log-probabilities of a packed micro-batch, and their gradients. Hidden states that predict a scored token are gathered, normed, and
//! multiplied with the head in tiles of the vocabulary.

use super::decoder::{Decoder, TokenSlots};
use super::description::ModelConfig;
use super::recurrent_tokens::RecurrentTokens;
use super::saved::{ForwardSaved, RecomputePolicy};
use super::trained_tokens::TrainedTokenNumbers;
use crate::error::Result;
use crate::gpu::{Gpu, Recording, Role, Slot};
use crate::kernels::attention::SegmentTable;
use crate::kernels::embedding::TokenIds;
use crate::kernels::gather::{GatherIndices, gather_bwd, gather_fwd};
use crate::kernels::logprob::{self, LogprobOutputs, logprob_bwd, logprob_fwd};
use crate::kernels::objective::{
    SequenceSpans, objective_bwd, objective_dynamic, objective_log_weights, objective_sums,
};
use crate::kernels::packed_batch::PackedBatch;
use crate::objective::LossInputs;
use crate::objective::TrainingLoss;

/// Default number of tokens per forward pass where nothing is saved for a backward pass.
pub const DEFAULT_SCORE_TOKENS: usize = 4096;

/// Micro-batch on the device.
#[derive(Debug)]
pub struct MicroBatch {
    /// Its T tokens.
    pub tokens: TokenSlots,
    /// Rows of predictions of each sequence.
    pub spans: SequenceSpans,
    indices: GatherIndices,
    targets: Slot,
    /// N, the number of predictions.
    pub rows: usize,
}

impl MicroBatch {
    /// Uploads the batch.
    pub fn new(gpu: &Gpu, d: &ModelConfig, batch: &PackedBatch) -> Self {
        let hidden: Vec<u32> = batch.rows.iter().map(|r| r.hidden).collect();
        let targets: Vec<u32> = batch.rows.iter().map(|r| r.target).collect();
        let segments = SegmentTable::of_batch(gpu, batch, &d.windowed_heads());
        let (lengths, recurrent) = (batch.sequence_lengths(), RecurrentTokens::of_batch(gpu, d, batch));
        Self {
            tokens: TokenSlots::new(gpu, d, &batch.ids, &batch.positions, &lengths, segments, recurrent),
            spans: SequenceSpans::new(gpu, batch),
            indices: GatherIndices::new(gpu, &hidden, batch.ids.len()),
            targets: gpu.upload(&targets),
            rows: batch.rows.len(),
        }
    }
}

impl MicroBatch {
    /// Uploads the batch for a training step of a decoder. `dropout_seed`: that of the micro-batch.
    pub fn for_training(gpu: &Gpu, decoder: &Decoder, batch: &PackedBatch, dropout_seed: u64) -> Self {
        let mut micro = Self::new(gpu, &decoder.description, batch);
        micro.tokens.dropout_seed = Some(dropout_seed);
        let targets: Vec<u32> = batch.rows.iter().map(|r| r.target).collect();
        micro.tokens.trained = decoder.tokens.as_ref().map(|tokens| TrainedTokenNumbers {
            ids: TokenIds::new(gpu, &tokens.spec.numbers(&batch.ids)),
            targets: gpu.upload(&tokens.spec.numbers(&targets)),
        });
        micro
    }
}

/// Result of a forward pass up to the scores, with the values that the backward pass needs.
#[derive(Debug)]
pub struct BatchScores {
    trace: ForwardSaved,
    picked: Slot, // (N, D), gathered rows of the residual stream
    normed: Slot, // (N, D)
    stats: Slot,
    lse: Slot, // (N)
    /// Log-probability of each target: (N).
    pub logp: Slot,
    /// Sums over instruction tokens, over response tokens and over the response's tail, and the logarithm of WPO's weight: (S, 4).
    pub sums: Slot,
    /// log Σ_v p_v² at each prediction, where it was asked for: (N).
    pub log_squares: Option<Slot>,
}

/// Log-probabilities of a batch's predictions, on the host.
#[derive(Debug, Clone)]
pub struct PredictionScores {
    /// Log-probability of each target: (N).
    pub logp: Vec<f32>,
    /// log Σ_v p_v², where it was asked for: (N).
    pub log_squares: Option<Vec<f32>>,
}

impl Decoder {
    /// Computes the scores of every sequence. Without `with_lora`, those of the base model. `keep` decides which activations are saved for
    /// [`Decoder::score_backward`]. With `with_squares`, log Σ_v p_v² is computed in the same pass over the vocabulary, and WPO's weights.
    pub fn score(
        &self,
        rec: &mut Recording,
        micro: &MicroBatch,
        with_lora: bool,
        keep: RecomputePolicy,
        with_squares: bool,
    ) -> BatchScores {
        let (gpu, d, n) = (rec.gpu(), self.description.d_model, micro.rows);
        let trace = self.forward(rec, &micro.tokens, None, with_lora, keep);
        let picked = gpu.alloc_activation(n * d);
        gather_fwd(rec, &micro.indices, d, &trace.h, &picked);
        let (normed, stats) = self.norm(rec, &self.final_norm, n, &picked);
        let (lse, sums) = (gpu.alloc_activation(n), gpu.alloc_activation(4 * micro.spans.len()));
        // logp is read after the next step was recorded, so its memory must not be among the free activations that the next step reuses.
        let logp = gpu.alloc_persistent(Role::Batch, n);
        let log_squares = with_squares.then(|| gpu.alloc_persistent(Role::Batch, n));
        let out = LogprobOutputs { logp: &logp, lse: &lse, log_squares: log_squares.as_ref() };
        logprob_fwd(rec, &self.head(n), n, &normed, &micro.targets, out);
        objective_sums(rec, &micro.spans, &logp, &sums);
        if let Some(log_squares) = &log_squares {
            objective_log_weights(rec, &micro.spans, &logp, log_squares, &sums);
        }
        BatchScores { trace, picked, normed, stats, lse, logp, sums, log_squares }
    }

    /// Adds to all gradients those of the loss `goal`, summed over the micro-batch.
    pub fn score_backward(
        &self,
        rec: &mut Recording,
        micro: &MicroBatch,
        scores: BatchScores,
        goal: &TrainingLoss,
        known: &LossInputs,
    ) {
        let (gpu, d, n) = (rec.gpu(), self.description.d_model, micro.rows);
        let d_logp = gpu.alloc_activation(n);
        objective_bwd(rec, &goal.terms(known.paired), &micro.spans, &scores.sums, known, &d_logp);
        if goal.is_dynamic() {
            objective_dynamic(rec, n, &scores.logp, &d_logp);
        }
        let d_normed = gpu.alloc_activation(n * d);
        let saved = logprob::LogprobSaved { x: &scores.normed, targets: &micro.targets, lse: &scores.lse };
        logprob_bwd(rec, &self.head(n), n, saved, &d_logp, &d_normed);
        self.trained_head_backward(rec, &micro.tokens, n, saved, &d_logp);
        let d_picked = gpu.alloc_activation(n * d);
        let BatchScores { trace, picked, stats, .. } = scores;
        self.norm_backward(rec, &self.final_norm, n, &picked, &stats, &d_normed, &d_picked, false);
        drop((d_normed, picked, stats));
        let d_h = gpu.alloc_activation(micro.tokens.t * d);
        gather_bwd(rec, &micro.indices, d, &d_picked, &d_h);
        drop(d_picked);
        self.backward(rec, &micro.tokens, trace, &d_h);
    }

    /// Computes the log-probability of every prediction (N), and with `with_squares` log Σ_v p_v², without gradients, and reads them back.
    ///
    /// # Errors
    /// [`crate::Error::Gpu`].
    pub async fn read_scores(
        &self,
        gpu: &Gpu,
        batch: &PackedBatch,
        with_lora: bool,
        with_squares: bool,
    ) -> Result<PredictionScores> {
        let micro = MicroBatch::new(gpu, &self.description, batch);
        let mut rec = gpu.record();
        let scores = self.score(&mut rec, &micro, with_lora, RecomputePolicy::Nothing, with_squares);
        rec.submit();
        let slots: Vec<&Slot> = std::iter::once(&scores.logp).chain(&scores.log_squares).collect();
        let mut read = gpu.read::<f32>(&slots).await?.into_iter();
        Ok(PredictionScores { logp: read.next().unwrap_or_default(), log_squares: read.next() })
    }
}
