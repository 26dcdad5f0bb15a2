//! Cache for generation: keys and values of attention, states of delta nets, and windows of convolutions.

use super::description::{ModelConfig, TokenMixer};
use crate::gpu::{Gpu, Slot};
use crate::kernels::causal_conv::window_len;

/// Cache of all layers, and where new tokens are stored in it.
#[derive(Debug)]
pub struct KvCache {
    /// Cache of each layer.
    pub layers: Vec<LayerCache>,
    /// Row of [`LayerCache::Keys`] to which each new token's key and value are written: (T), u32.
    pub rows: Slot,
}

/// Cache of one layer.
#[derive(Debug, Clone)]
pub enum LayerCache {
    /// Keys and values of earlier tokens: (capacity, 2K·E). Layers that take them from another layer have that layer's cache.
    Keys(Slot),
    /// State of a delta net for each prompt.
    Delta {
        /// Last inputs of the causal convolution: (prompts, K − 1, 2·Hk·dk + Hv·dv).
        window: Slot,
        /// States: (prompts, Hv, dk, dv), heads padded as in [`crate::kernels::delta_rule::DeltaHeads::state_len`].
        states: Slot,
    },
    /// Last inputs of a short convolution: (prompts, K − 1, D).
    Conv(Slot),
}

impl KvCache {
    /// Allocates the cache of every layer: keys and values for `rows` tokens, over all prompts together, and states for `prompts` prompts.
    pub fn allocate_layers(gpu: &Gpu, d: &ModelConfig, rows: usize, prompts: usize) -> Vec<LayerCache> {
        let mut all: Vec<LayerCache> = Vec::with_capacity(d.layers.len());
        for layer in &d.layers {
            let cache = match (&layer.mixer, layer.lender()) {
                (_, Some(lender)) => all[lender].clone(),
                (TokenMixer::Attention { .. }, None) => {
                    LayerCache::Keys(gpu.alloc_activation(rows * 2 * layer.n_kv_heads * layer.head_dim))
                }
                (TokenMixer::ShortConv(conv), None) => {
                    LayerCache::Conv(gpu.alloc_activation(prompts * window_len(d.d_model, conv.taps)))
                }
                (TokenMixer::DeltaNet(net), None) => LayerCache::Delta {
                    window: gpu.alloc_activation(prompts * window_len(net.heads().width(), net.taps)),
                    states: gpu.alloc_activation(prompts * net.heads().state_len()),
                },
            };
            all.push(cache);
        }
        all
    }
}
