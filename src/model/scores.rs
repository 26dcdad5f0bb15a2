//! Log-probabilities of a packed micro-batch, and their gradients: hidden states that predict something are gathered, normed, and
//! walked through the head in tiles.

use super::decoder::{Decoder, TokenSlots};
use super::description::ModelConfig;
use super::saved::{ForwardSaved, RecomputePolicy};
use crate::error::Result;
use crate::gpu::{Gpu, Recording, Role, Slot};
use crate::kernels::attention::SegmentTable;
use crate::kernels::gather::{GatherIndices, gather_bwd, gather_fwd};
use crate::kernels::logprob::{self, logprob_bwd, logprob_fwd};
use crate::kernels::objective::{SequenceSpans, objective_bwd, objective_sums};
use crate::kernels::packed_batch::PackedBatch;
use crate::objective::LossInputs;
use crate::objective::TrainingLoss;

/// Default number of tokens per forward pass that saves nothing for a backward one.
pub const DEFAULT_SCORE_TOKENS: usize = 4096;

/// A micro-batch on the device.
#[derive(Debug)]
pub struct MicroBatch {
    /// T tokens.
    pub tokens: TokenSlots,
    /// Rows of each sequence's predictions.
    pub spans: SequenceSpans,
    indices: GatherIndices,
    targets: Slot,
    /// N predictions.
    pub rows: usize,
}

impl MicroBatch {
    /// Uploads.
    pub fn new(gpu: &Gpu, d: &ModelConfig, batch: &PackedBatch) -> Self {
        let hidden: Vec<u32> = batch.rows.iter().map(|r| r.hidden).collect();
        let targets: Vec<u32> = batch.rows.iter().map(|r| r.target).collect();
        let segments = SegmentTable::of_batch(gpu, batch, d.head_dim, &d.windows());
        Self {
            tokens: TokenSlots::new(gpu, d, &batch.ids, &batch.positions, segments),
            spans: SequenceSpans::new(gpu, batch),
            indices: GatherIndices::new(gpu, &hidden, batch.ids.len()),
            targets: gpu.upload(&targets),
            rows: batch.rows.len(),
        }
    }
}

/// A forward pass up to the scores.
#[derive(Debug)]
pub struct BatchScores {
    trace: ForwardSaved,
    picked: Slot, // (N, D), the residual stream
    normed: Slot, // (N, D)
    stats: Slot,
    lse: Slot, // (N)
    /// (N), log-probability of each target.
    pub logp: Slot,
    /// (S, 2), sums over instruction and response.
    pub sums: Slot,
}

impl Decoder {
    /// Scores of every sequence. `with_lora` off: the base model's. `keep`: what [`Decoder::score_backward`] will find.
    pub fn score(
        &self,
        rec: &mut Recording,
        micro: &MicroBatch,
        with_lora: bool,
        keep: RecomputePolicy,
    ) -> BatchScores {
        let (gpu, d, n) = (rec.gpu(), self.description.d_model, micro.rows);
        let trace = self.forward(rec, &micro.tokens, None, with_lora, keep);
        let picked = gpu.alloc_activation(n * d);
        gather_fwd(rec, &micro.indices, d, &trace.h, &picked);
        let (normed, stats) = self.norm(rec, &self.final_norm, n, &picked);
        let (lse, sums) = (gpu.alloc_activation(n), gpu.alloc_activation(2 * micro.spans.len()));
        // Read when the next step is recorded already: not one of the activations that it finds free.
        let logp = gpu.alloc_persistent(Role::Batch, n);
        logprob_fwd(rec, &self.head(n), n, &normed, &micro.targets, &logp, &lse);
        objective_sums(rec, &micro.spans, &logp, &sums);
        BatchScores { trace, picked, normed, stats, lse, logp, sums }
    }

    /// Adds to all gradients that of the goal's loss, summed over the micro-batch.
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
        let d_normed = gpu.alloc_activation(n * d);
        let saved = logprob::LogprobSaved { x: &scores.normed, targets: &micro.targets, lse: &scores.lse };
        logprob_bwd(rec, &self.head(n), n, saved, &d_logp, &d_normed);
        let d_picked = gpu.alloc_activation(n * d);
        let BatchScores { trace, picked, stats, .. } = scores;
        self.norm_backward(rec, &self.final_norm, n, &picked, &stats, &d_normed, &d_picked, false);
        drop((d_normed, picked, stats));
        let d_h = gpu.alloc_activation(micro.tokens.t * d);
        gather_bwd(rec, &micro.indices, d, &d_picked, &d_h);
        drop(d_picked);
        self.backward(rec, &micro.tokens, trace, &d_h);
    }

    /// Log-probability of every prediction (N), without gradients, read back.
    ///
    /// # Errors
    /// [`crate::Error::Gpu`].
    pub async fn read_scores(&self, gpu: &Gpu, batch: &PackedBatch, with_lora: bool) -> Result<Vec<f32>> {
        let micro = MicroBatch::new(gpu, &self.description, batch);
        let mut rec = gpu.record();
        let scores = self.score(&mut rec, &micro, with_lora, RecomputePolicy::Nothing);
        rec.submit();
        Ok(gpu.read::<f32>(&[&scores.logp]).await?.concat())
    }
}
