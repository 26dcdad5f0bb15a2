//! Values of a pass that several layers read, and their gradients: keys and values that layers lend, and per-layer inputs.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::gpu::Slot;

/// Per-layer inputs of a range of tokens. There is one range for all tokens, unless they would not fit a binding.
#[derive(Debug)]
pub(super) struct PerLayerChunk {
    pub tokens: Range<usize>, // t tokens
    pub p: Slot,              // (t, L·P)
}

/// Values that several layers read.
#[derive(Debug, Default)]
pub(super) struct SharedValues {
    /// Keys and values of each lender, normed and rotated: (T, 2K·E). Generation has them in its cache instead.
    pub lent: BTreeMap<usize, Slot>,
    /// Per-layer inputs of ranges of tokens.
    pub per_layer: Vec<PerLayerChunk>,
    /// (T, D), the token embedding from which the per-layer inputs were computed, where there will be a backward pass.
    pub x0: Option<Slot>,
}

/// Gradients of [`SharedValues`], summed from the last layer to the first one.
#[derive(Debug)]
pub(super) struct SharedGradients {
    /// Gradients of the keys and values of each lender: (T, 2K·E).
    pub d_lent: BTreeMap<usize, Slot>,
    /// Gradients of the per-layer inputs, by ranges of tokens: (t, L·P); empty where nothing needs them.
    pub d_per_layer: Vec<Slot>,
    /// Lowest layer that has a backward pass.
    pub lowest: usize,
}
