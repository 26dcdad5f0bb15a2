//! Passes of a decoder of which single token embeddings are trained ([`super::trained_tokens`]).
//!
//! The trained rows are copied to their places in the embedding before a forward pass; for a pass without the adapter, the base's rows
//! are. The backward pass sees the trained rows as an embedding, and as a tied LM head, of a few rows.

use super::decoder::{Decoder, TokenSlots};
use super::weights::RowShard;
use crate::gpu::{Recording, Slot};
use crate::kernels::embedding::embedding_bwd_w;
use crate::kernels::logprob::{HeadShard, LmHead, LogprobSaved, logprob_bwd};
use crate::kernels::storage::WeightFormat;

impl Decoder {
    /// Puts the trained rows into the embedding, or the base's rows where the pass is without the adapter.
    pub fn put_trained_tokens(&self, rec: &mut Recording, with_lora: bool) {
        let Some(tokens) = &self.tokens else { return };
        let (from, d) = (if with_lora { tokens.rows.slot() } else { &tokens.base }, self.description.d_model);
        for (i, &id) in tokens.spec.ids.iter().enumerate() {
            let id = id as usize;
            let holds = |part: &&RowShard| (part.first..part.first + part.rows).contains(&id);
            let Some(part) = self.embedding.parts.iter().find(holds) else { continue };
            rec.copy(&from.slice_unaligned(i * d, d), &part.w.slice_unaligned((id - part.first) * d, d));
        }
    }

    /// Adds the gradients of the trained rows as inputs, from that of the residual stream before the first layer.
    pub(super) fn trained_tokens_backward(&self, rec: &mut Recording, tokens: &TokenSlots, d_h: &Slot) {
        if let (Some(trained), Some(numbers)) = (&self.tokens, &tokens.trained)
            && let Some(d_w) = trained.rows.grad()
        {
            embedding_bwd_w(rec, &trained.shard(), self.description.embed_scale, &numbers.ids, d_h, d_w);
        }
    }

    /// Adds the gradients of the trained rows as rows of a tied LM head. `saved` and `d_logp` are those of the whole head, of N predictions.
    pub(super) fn trained_head_backward(
        &self,
        rec: &mut Recording,
        tokens: &TokenSlots,
        n: usize,
        saved: LogprobSaved<'_>,
        d_logp: &Slot,
    ) {
        let (Some(trained), Some(numbers), None) = (&self.tokens, &tokens.trained, &self.head) else { return };
        let shard = HeadShard { first: 0, rows: trained.rows.rows, w: trained.rows.slot(), d_w: trained.rows.grad() };
        let head = LmHead { pages: vec![shard], storage: WeightFormat::F32, ..self.head(n) };
        let saved = LogprobSaved { targets: &numbers.targets, ..saved };
        // The whole head has computed d_x, these rows' part included.
        let d_x = rec.gpu().alloc_activation(n * self.description.d_model);
        logprob_bwd(rec, &head, n, saved, d_logp, &d_x);
    }
}
