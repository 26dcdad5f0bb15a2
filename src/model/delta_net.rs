//! Gated delta net: weights that belong to no linear layer, and packed tokens as its kernels read them.

use super::description::ModelConfig;
use super::weights::Weight;
use crate::gpu::{Gpu, Slot};
use crate::kernels::causal_conv::ConvTable;
use crate::kernels::delta_gates::DecayInputs;
use crate::kernels::delta_rule::{DeltaChunks, OuterStates, Segment};
use crate::kernels::packed_batch::PackedBatch;

/// Weights of a delta net that belong to no linear layer.
#[derive(Debug, Clone)]
pub struct DeltaNetWeights {
    /// Logarithm of each value head's decay rate: (Hv).
    pub a_log: Weight,
    /// Bias of each value head's decay: (Hv).
    pub dt_bias: Weight,
    /// Causal convolution: (2·Hk·dk + Hv·dv, K).
    pub conv: Weight,
    /// Gated norm: (dv).
    pub norm: Weight,
}

impl DeltaNetWeights {
    /// Returns all weights.
    pub fn all(&self) -> [&Weight; 4] {
        [&self.dt_bias, &self.a_log, &self.conv, &self.norm]
    }

    /// Returns the decay's inputs; `a` (T, Hv) is the output of `in_proj_a`.
    pub(super) fn decay<'a>(&'a self, a: &'a Slot) -> DecayInputs<'a> {
        DecayInputs { a, a_log: self.a_log.slot(), dt_bias: self.dt_bias.slot() }
    }
}

/// Packed tokens as delta nets read them.
#[derive(Debug)]
pub enum DeltaTokens {
    /// Segments, whose states and convolutions begin anew or continue from a prefix.
    Segments {
        /// Tokens that the convolution reads.
        conv: ConvTable,
        /// Chunks of the segments.
        chunks: DeltaChunks,
        /// Number of segments, and each segment's last token with its row in the cache (S, 2), u32, where the segments are prompts.
        ends: Option<(usize, Slot)>,
    },
    /// One more token of each sequence, with the sequence's row in the cache: (T), u32.
    Next(Slot),
}

impl DeltaTokens {
    /// Describes a packed batch; `None` for models without delta nets.
    pub fn of_batch(gpu: &Gpu, d: &ModelConfig, batch: &PackedBatch) -> Option<Self> {
        let net = d.delta_net()?;
        let segments = Segment::of_batch(batch);
        let conv = ConvTable::new(gpu, &segments, net.taps);
        Some(Self::Segments { conv, chunks: DeltaChunks::of_batch(gpu, batch), ends: None })
    }

    /// Describes whole prompts of the given lengths in tokens, whose states are stored in the cache's rows from 0 on.
    pub fn of_prompts(gpu: &Gpu, d: &ModelConfig, lengths: &[usize]) -> Option<Self> {
        let net = d.delta_net()?;
        let mut start = 0;
        let segment = |&len: &usize| {
            start += len;
            Segment { start: start - len, len, prefix: None }
        };
        let segments: Vec<Segment> = lengths.iter().map(segment).collect();
        let ends: Vec<u32> = (0..).zip(&segments).flat_map(|(row, s)| [(s.start + s.len - 1) as u32, row]).collect();
        let conv = ConvTable::new(gpu, &segments, net.taps);
        let chunks = DeltaChunks::new(gpu, &segments, OuterStates { last: true, first: false });
        Some(Self::Segments { conv, chunks, ends: Some((segments.len(), gpu.upload(&ends))) })
    }

    /// Describes one more token of each sequence; `rows` are the sequences' rows in the cache.
    pub fn of_next(gpu: &Gpu, d: &ModelConfig, rows: &[u32]) -> Option<Self> {
        d.delta_net().map(|_| Self::Next(gpu.upload(rows)))
    }
}
