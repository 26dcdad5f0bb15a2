//! Log-probabilities of a packed micro-batch, and their gradients: hidden states that predict something are gathered, normed, and
//! walked through the head in tiles.

use super::decoder::{Decoder, Tokens};
use super::description::Description;
use super::trace::{Keep, Trace};
use crate::error::Result;
use crate::gpu::{Gpu, Recording, Role, Slot};
use crate::kernels::attention::Segments;
use crate::kernels::gather::{Picks, gather_bwd, gather_fwd};
use crate::kernels::logprob::{self, logprob_bwd, logprob_fwd};
use crate::kernels::objective::{Spans, objective_bwd, objective_sums};
use crate::kernels::packed_batch::Batch;
use crate::objective::Goal;
use crate::objective::Known;

/// Default number of tokens per forward pass that saves nothing for a backward one.
pub const DEFAULT_SCORE_TOKENS: usize = 4096;

/// A micro-batch on the device.
#[derive(Debug)]
pub struct Micro {
    /// T tokens.
    pub tokens: Tokens,
    /// Rows of each sequence's predictions.
    pub spans: Spans,
    picks: Picks,
    targets: Slot,
    /// N predictions.
    pub rows: usize,
}

impl Micro {
    /// Uploads.
    pub fn new(gpu: &Gpu, d: &Description, batch: &Batch) -> Self {
        let hidden: Vec<u32> = batch.rows.iter().map(|r| r.hidden).collect();
        let targets: Vec<u32> = batch.rows.iter().map(|r| r.target).collect();
        let segments = Segments::of_batch(gpu, batch, d.head_dim, &d.windows());
        Self {
            tokens: Tokens::new(gpu, d, &batch.ids, &batch.positions, segments),
            spans: Spans::new(gpu, batch),
            picks: Picks::new(gpu, &hidden, batch.ids.len()),
            targets: gpu.upload(&targets),
            rows: batch.rows.len(),
        }
    }
}

/// A forward pass up to the scores.
#[derive(Debug)]
pub struct Scores {
    trace: Trace,
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
    pub fn score(&self, rec: &mut Recording, micro: &Micro, with_lora: bool, keep: Keep) -> Scores {
        let (gpu, d, n) = (rec.gpu(), self.description.d_model, micro.rows);
        let trace = self.forward(rec, &micro.tokens, None, with_lora, keep);
        let picked = gpu.slot(n * d);
        gather_fwd(rec, &micro.picks, d, &trace.h, &picked);
        let (normed, stats) = self.norm(rec, &self.final_norm, n, &picked);
        let (lse, sums) = (gpu.slot(n), gpu.slot(2 * micro.spans.len()));
        // Read when the next step is recorded already: not one of the activations that it finds free.
        let logp = gpu.lasting(Role::Batch, n);
        logprob_fwd(rec, &self.head(n), n, &normed, &micro.targets, &logp, &lse);
        objective_sums(rec, &micro.spans, &logp, &sums);
        Scores { trace, picked, normed, stats, lse, logp, sums }
    }

    /// Adds to all gradients that of the goal's loss, summed over the micro-batch.
    pub fn score_backward(&self, rec: &mut Recording, micro: &Micro, scores: Scores, goal: &Goal, known: &Known) {
        let (gpu, d, n) = (rec.gpu(), self.description.d_model, micro.rows);
        let d_logp = gpu.slot(n);
        objective_bwd(rec, &goal.terms(known.paired), &micro.spans, &scores.sums, known, &d_logp);
        let d_normed = gpu.slot(n * d);
        let saved = logprob::Saved { x: &scores.normed, targets: &micro.targets, lse: &scores.lse };
        logprob_bwd(rec, &self.head(n), n, saved, &d_logp, &d_normed);
        let d_picked = gpu.slot(n * d);
        let Scores { trace, picked, stats, .. } = scores;
        self.norm_backward(rec, &self.final_norm, n, &picked, &stats, &d_normed, &d_picked, false);
        drop((d_normed, picked, stats));
        let d_h = gpu.slot(micro.tokens.t * d);
        gather_bwd(rec, &micro.picks, d, &d_picked, &d_h);
        drop(d_picked);
        self.backward(rec, &micro.tokens, trace, &d_h);
    }

    /// Log-probability of every prediction (N), without gradients, read back.
    ///
    /// # Errors
    /// [`crate::Error::Gpu`].
    pub async fn read_scores(&self, gpu: &Gpu, batch: &Batch, with_lora: bool) -> Result<Vec<f32>> {
        let micro = Micro::new(gpu, &self.description, batch);
        let mut rec = gpu.record();
        let scores = self.score(&mut rec, &micro, with_lora, Keep::Nothing);
        rec.submit();
        Ok(gpu.read::<f32>(&[&scores.logp]).await?.concat())
    }
}
