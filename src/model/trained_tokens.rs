//! Embeddings of single tokens that are trained (PEFT's `trainable_token_indices`), beside a frozen embedding.
//!
//! The trained rows are a small matrix of their own; `trained_token_passes` puts them into the embedding.

use std::rc::Rc;

use super::weights::Weight;
use crate::gpu::{Gpu, Role, Slot};
use crate::kernels::embedding::{TokenIds, VocabShard};
use crate::kernels::storage::WeightFormat;

/// Tokens of an adapter whose embeddings are trained.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrainedTokensSpec {
    /// Token ids, each once.
    pub ids: Vec<u32>,
    /// Name of the rows in PEFT's files.
    pub name: String,
    /// Rows (n, D); `None` for the base's own.
    pub rows: Option<Rc<Vec<f32>>>,
}

impl TrainedTokensSpec {
    /// Writes the rows to their places in an embedding of width `d_model`.
    pub fn apply(&self, embedding: &mut [f32], d_model: usize) {
        let Some(rows) = &self.rows else { return };
        for (&id, row) in self.ids.iter().zip(rows.chunks(d_model)) {
            embedding[id as usize * d_model..][..d_model].copy_from_slice(row);
        }
    }

    /// Returns the tokens' rows of an embedding of width `d_model`.
    pub fn rows_of(&self, embedding: &[f32], d_model: usize) -> Vec<f32> {
        self.ids.iter().flat_map(|&id| embedding[id as usize * d_model..][..d_model].iter().copied()).collect()
    }

    /// Returns tokens as numbers of the trained rows; tokens that are not trained as n, which is none of them.
    pub fn numbers(&self, tokens: &[u32]) -> Vec<u32> {
        let number = |id: &u32| self.ids.iter().position(|trained| trained == id).unwrap_or(self.ids.len()) as u32;
        tokens.iter().map(number).collect()
    }
}

/// Trained token embeddings on the device.
#[derive(Debug, Clone)]
pub struct TrainedTokens {
    /// Token ids.
    pub spec: TrainedTokensSpec,
    /// Trained rows: (n, D) f32.
    pub rows: Weight,
    pub(super) base: Slot, // (n, D) f32, the base's rows
}

/// Tokens and targets of a micro-batch as numbers of the trained rows.
#[derive(Debug)]
pub struct TrainedTokenNumbers {
    /// Inputs: (T).
    pub ids: TokenIds,
    /// Targets: (N).
    pub targets: Slot,
}

impl TrainedTokens {
    /// Uploads the base's rows (n, D), which a plan does without.
    pub(super) fn new(gpu: &Gpu, spec: TrainedTokensSpec, rows: Weight, base: Option<&[f32]>) -> Self {
        assert!(rows.parts.len() == 1 && rows.storage == WeightFormat::F32, "few rows, which are not rounded");
        let slot = gpu.alloc_persistent(Role::Frozen, rows.rows * rows.cols);
        if let Some(base) = base {
            gpu.write(&slot, base);
        }
        Self { spec, rows, base: slot }
    }

    /// Returns the rows as a shard of a vocabulary of n tokens.
    pub(super) fn shard(&self) -> VocabShard {
        VocabShard { first: 0, rows: self.rows.rows, width: self.rows.cols, storage: WeightFormat::F32 }
    }
}
