//! Token mixers of layers: what attention and delta nets have in common.

use super::linear::WeightColumns;
use super::saved::{MixerElementwise, MixerSaved};
use crate::gpu::Slot;

/// Result of a layer's token mixer.
pub(super) struct MixerOutput {
    /// Input of the layer's output projection: (T, H·E), or (T, Hv·dv) of a delta net.
    pub y: Slot,
    /// Results that the backward pass reads.
    pub saved: MixerSaved,
    /// Results that the backward pass can recompute from `saved`.
    pub elementwise: MixerElementwise,
    /// s·x·Aᵀ of each input projection: (T, R).
    pub xa: Vec<Option<Slot>>,
}

/// Columns of a slot that an input projection writes, or that hold the gradient of its output.
pub(super) struct LinearOutput {
    /// (T, stride).
    pub slot: Slot,
    /// First column.
    pub column: usize,
    /// Elements per token.
    pub stride: usize,
}

impl LinearOutput {
    /// Describes all columns of a slot.
    pub fn all(slot: &Slot, stride: usize) -> Self {
        Self { slot: slot.clone(), column: 0, stride }
    }

    /// Returns the columns as linear layers take them.
    pub fn columns(&self) -> WeightColumns<'_> {
        WeightColumns { slot: &self.slot, column: self.column, stride: self.stride }
    }
}
