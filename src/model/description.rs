//! Description of a decoder, with nothing left to decide: every default filled in, every family expressed in the same fields.
//!
//! [`super::config`] turns a Hugging Face `config.json` into a [`ModelConfig`]; the decoder reads nothing else.

use std::collections::BTreeSet;

pub use crate::kernels::activation::Activation;
pub use crate::kernels::rope::{RopeConfig, RopeScaling};

/// A decoder-only transformer. Dimensions as in the crate's legend: D, H, K, E, F, V, L.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ModelConfig {
    /// Hugging Face's class name, `LlamaForCausalLM`.
    pub architecture: String,
    /// D, width of the residual stream.
    pub d_model: usize,
    /// H, query heads.
    pub n_heads: usize,
    /// K, key and value heads; divides H.
    pub n_kv_heads: usize,
    /// E, width of a head.
    pub head_dim: usize,
    /// F, width of the MLP.
    pub d_ff: usize,
    /// V, rows of the embedding.
    pub vocab: usize,
    /// Longest sequence that the model was made for, in tokens.
    pub max_positions: usize,
    /// All norms but those of `qk_norm` act on D; the latter on E. One kind, epsilon and offset for all.
    pub norm: NormSpec,
    /// RMS norm of each query and key head before RoPE (Qwen3, Gemma 3).
    pub qk_norm: bool,
    /// Norms after attention and after the MLP, before the residual addition (Gemma 2 and 3).
    pub post_norms: bool,
    /// Distinct rotary tables; empty for learned positions (GPT-2).
    pub ropes: Vec<RopeConfig>,
    /// Learned position embedding (V is not involved): tensor name, or `None` with RoPE.
    pub position_embedding: Option<String>,
    /// L entries.
    pub layers: Vec<LayerConfig>,
    /// Factor on q·k, usually 1/√E.
    pub attention_scale: f32,
    /// Gemma 2: s ← c·tanh(s/c) on attention scores.
    pub attention_softcap: Option<f32>,
    /// Gemma 2: the same on logits.
    pub logit_softcap: Option<f32>,
    /// The MLP's non-linearity.
    pub activation: Activation,
    /// down(act(gate)·up) when true, down(act(up)) when false.
    pub gated: bool,
    /// Factor on token embeddings (Gemma: √D, rounded to bf16 where HF does so).
    pub embed_scale: f32,
    /// Tensor name of the token embedding.
    pub embedding: String,
    /// Tensor name of the final norm without `.weight`.
    pub final_norm: String,
    /// The head's module; its weight is the embedding's when `tied`.
    pub head: LinearSpec,
    /// The head shares the embedding's weight.
    pub tied: bool,
}

/// y = (x − mean?)·r·(w + offset) (+ b).
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct NormSpec {
    /// Kind of the norm.
    pub kind: NormKind,
    /// Inside the root.
    pub eps: f32,
    /// Added to the weight: 1 for Gemma, else 0.
    pub weight_offset: f32,
}

/// Root mean square, or mean and variance with a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum NormKind {
    /// RMSNorm: no mean, no bias.
    Rms,
    /// LayerNorm: with mean and bias.
    Layer,
}

/// Decoder layer, by Hugging Face's names.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LayerConfig {
    /// Sliding window W: key j is visible to query i iff 0 ≤ i − j < W.
    pub window: Option<usize>,
    /// Index into [`ModelConfig::ropes`].
    pub rope: Option<usize>,
    /// Norm before attention (name without `.weight`).
    pub attn_norm: String,
    /// Norm after attention, with `post_norms`.
    pub attn_post_norm: Option<String>,
    /// Norm before the MLP.
    pub mlp_norm: String,
    /// Norm after the MLP, with `post_norms`.
    pub mlp_post_norm: Option<String>,
    /// Norm of the query heads, with `qk_norm`.
    pub q_norm: Option<String>,
    /// Norm of the key heads, with `qk_norm`.
    pub k_norm: Option<String>,
    /// Fill the columns of qkv: (T, (H + 2K)·E), in the order q, k, v; one module where it is fused (Phi-3, GPT-2).
    pub qkv: Vec<LinearSpec>,
    /// (D, H·E).
    pub out: LinearSpec,
    /// Fill the columns of (T, 2F) as gate, up when gated (one module in Phi-3), of (T, F) when plain.
    pub up: Vec<LinearSpec>,
    /// (D, F).
    pub down: LinearSpec,
}

/// A linear layer: y = x·Wᵀ + b, W: (n_out, n_in).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LinearSpec {
    /// Hugging Face's name, `model.layers.0.self_attn.q_proj`; its tensors are `{name}.weight` and `{name}.bias`.
    pub name: String,
    /// Rows of W.
    pub n_out: usize,
    /// Columns of W.
    pub n_in: usize,
    /// First column in the layer's output slot.
    pub column: usize,
    /// Whether there is a bias.
    pub bias: bool,
    /// The checkpoint stores Wᵀ (GPT-2's Conv1D): (n_in, n_out).
    pub transposed: bool,
}

/// A tensor that a checkpoint of a [`ModelConfig`] must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Hugging Face's name.
    pub name: String,
    /// Shape as stored in the file.
    pub shape: Vec<usize>,
    /// The engine keeps the transpose (GPT-2's Conv1D).
    pub transposed: bool,
}

impl LinearSpec {
    /// `{name}.weight` and, with a bias, `{name}.bias`, as stored.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let shape = if self.transposed { vec![self.n_in, self.n_out] } else { vec![self.n_out, self.n_in] };
        let mut all = vec![TensorSpec { name: format!("{}.weight", self.name), shape, transposed: self.transposed }];
        if self.bias {
            all.push(TensorSpec { name: format!("{}.bias", self.name), shape: vec![self.n_out], transposed: false });
        }
        all
    }
}

impl ModelConfig {
    /// Columns of a layer's qkv slot: (H + 2K)·E.
    pub fn qkv_width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// The layers' windows, each once.
    pub fn windows(&self) -> Vec<Option<usize>> {
        let all: BTreeSet<Option<usize>> = self.layers.iter().map(|l| l.window).collect();
        all.into_iter().collect()
    }

    /// Every tensor of the checkpoint, in the order of Hugging Face's `named_parameters`, roughly: embeddings, layers, final
    /// norm, head. Tied: no head.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let plain = |name: &str, shape: Vec<usize>| TensorSpec { name: name.into(), shape, transposed: false };
        let mut all = vec![plain(&self.embedding, vec![self.vocab, self.d_model])];
        if let Some(name) = &self.position_embedding {
            all.push(plain(name, vec![self.max_positions, self.d_model]));
        }
        let norm = |name: &str, width: usize| {
            let mut n = vec![plain(&format!("{name}.weight"), vec![width])];
            if self.norm.kind == NormKind::Layer {
                n.push(plain(&format!("{name}.bias"), vec![width]));
            }
            n
        };
        for layer in &self.layers {
            all.extend(norm(&layer.attn_norm, self.d_model));
            all.extend(layer.qkv.iter().chain([&layer.out]).flat_map(LinearSpec::tensors));
            for name in layer.q_norm.iter().chain(&layer.k_norm) {
                all.extend(norm(name, self.head_dim));
            }
            for name in layer.attn_post_norm.iter().chain([&layer.mlp_norm]) {
                all.extend(norm(name, self.d_model));
            }
            all.extend(layer.up.iter().chain([&layer.down]).flat_map(LinearSpec::tensors));
            for name in layer.mlp_post_norm.iter() {
                all.extend(norm(name, self.d_model));
            }
        }
        all.extend(norm(&self.final_norm, self.d_model));
        if !self.tied {
            all.extend(self.head.tensors());
        }
        all
    }
}
