//! KV cache for generation.

use super::description::ModelConfig;
use crate::gpu::{Gpu, Slot};

/// KV cache: keys and values of earlier tokens, (capacity, 2K·E) per layer.
#[derive(Debug)]
pub struct KvCache {
    /// Keys and values per layer.
    pub layers: Vec<Slot>,
    /// Cache row to which each new token's key and value are written: (T), u32.
    pub rows: Slot,
}

impl KvCache {
    /// Allocates keys and values of every layer for `rows` tokens, over all prompts together: (rows, 2K·E) per layer.
    pub fn allocate_layers(gpu: &Gpu, d: &ModelConfig, rows: usize) -> Vec<Slot> {
        d.layers.iter().map(|_| gpu.alloc_activation(rows * 2 * d.n_kv_heads * d.head_dim)).collect()
    }
}
