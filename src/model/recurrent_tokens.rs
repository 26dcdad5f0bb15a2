//! Packed tokens as layers read them whose results depend on a state of the tokens before: delta nets and short convolutions.

use super::description::ModelConfig;
use crate::gpu::{Gpu, Slot};
use crate::kernels::causal_conv::ConvTable;
use crate::kernels::delta_rule::{DeltaChunks, OuterStates, Segment};
use crate::kernels::packed_batch::PackedBatch;

/// Packed tokens as delta nets and short convolutions read them.
#[derive(Debug)]
pub enum RecurrentTokens {
    /// Segments, whose states and convolutions begin anew or continue from a prefix.
    Segments {
        /// Tokens that the convolution reads.
        conv: ConvTable,
        /// Chunks of the segments, where the model has delta nets.
        chunks: Option<DeltaChunks>,
        /// Number of segments, and each segment's last token with its row in the cache (S, 2), u32, where the segments are prompts.
        ends: Option<(usize, Slot)>,
    },
    /// One more token of each sequence, with the sequence's row in the cache: (T), u32.
    Next(Slot),
}

impl RecurrentTokens {
    /// Describes a packed batch; `None` for models without such layers.
    pub fn of_batch(gpu: &Gpu, d: &ModelConfig, batch: &PackedBatch) -> Option<Self> {
        let taps = d.conv_taps()?;
        let conv = ConvTable::new(gpu, &Segment::of_batch(batch), taps);
        let chunks = d.delta_net().map(|_| DeltaChunks::of_batch(gpu, batch));
        Some(Self::Segments { conv, chunks, ends: None })
    }

    /// Describes whole prompts of the given lengths in tokens, whose states are stored in the cache's rows from 0 on.
    pub fn of_prompts(gpu: &Gpu, d: &ModelConfig, lengths: &[usize]) -> Option<Self> {
        let taps = d.conv_taps()?;
        let mut start = 0;
        let segment = |&len: &usize| {
            start += len;
            Segment { start: start - len, len, prefix: None }
        };
        let segments: Vec<Segment> = lengths.iter().map(segment).collect();
        let ends: Vec<u32> = (0..).zip(&segments).flat_map(|(row, s)| [(s.start + s.len - 1) as u32, row]).collect();
        let conv = ConvTable::new(gpu, &segments, taps);
        let outer = OuterStates { last: true, first: false };
        let chunks = d.delta_net().map(|_| DeltaChunks::new(gpu, &segments, outer));
        Some(Self::Segments { conv, chunks, ends: Some((segments.len(), gpu.upload(&ends))) })
    }

    /// Describes one more token of each sequence; `rows` are the sequences' rows in the cache.
    pub fn of_next(gpu: &Gpu, d: &ModelConfig, rows: &[u32]) -> Option<Self> {
        d.conv_taps().map(|_| Self::Next(gpu.upload(rows)))
    }
}
