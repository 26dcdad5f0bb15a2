//! Per-layer inputs of Gemma 4 E2B and E4B: weights from which they are computed, and packed tokens as their table is read.

use std::ops::Range;

use super::description::PerLayerInputs;
use super::linear::Linear;
use super::weights::Weight;
use crate::gpu::Gpu;
use crate::kernels::embedding::TokenIds;

/// Weights from which the per-layer inputs are computed.
#[derive(Debug, Clone)]
pub struct PerLayerWeights {
    /// Table of tokens: (rows, L·P).
    pub embedding: Weight,
    /// Projection of the token embedding: (L·P, D).
    pub projection: Linear,
    /// Norm of each layer's part of the projection: (P).
    pub norm: Weight,
}

impl PerLayerWeights {
    /// Returns whether any of the weights is trained.
    pub(super) fn trained(&self) -> bool {
        self.embedding.trained() || self.projection.trained() || self.norm.trained()
    }
}

/// Token ids by ranges, as the table of per-layer inputs is read.
#[derive(Debug)]
pub(super) struct PerLayerIds {
    pub tokens: Range<usize>,
    pub ids: TokenIds,
}

impl PerLayerIds {
    /// Divides the tokens of a batch into ranges whose per-layer inputs fit a binding.
    pub fn new(gpu: &Gpu, inputs: &PerLayerInputs, ids: &[u32]) -> Vec<Self> {
        let most = gpu.caps().max_binding_bytes as usize / 4 / inputs.projection.n_out;
        // Slices of a slot must begin at multiples of 64 elements.
        let rows = if ids.len() <= most { ids.len() } else { (most / 64 * 64).max(64) };
        let range = |first: usize| {
            let tokens = first..(first + rows).min(ids.len());
            Self { ids: TokenIds::new(gpu, &ids[tokens.clone()]), tokens }
        };
        (0..ids.len()).step_by(rows.max(1)).map(range).collect()
    }
}
