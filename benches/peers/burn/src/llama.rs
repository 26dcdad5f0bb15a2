//! A llama of Burn's modules. Fields have Hugging Face's names: by them the checkpoint is read.
//!
//! S sequences, T tokens, D model, H heads, E head size, F feed-forward, V vocabulary.

use std::path::Path;

use burn::module::Module;
use burn::nn::{
    Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig, RotaryEncoding, RotaryEncodingConfig,
};
use burn::store::{ModuleSnapshot, PyTorchToBurnAdapter, SafetensorsStore};
use burn::tensor::activation::silu;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Device, Int, Tensor};
use serde::Deserialize;

/// `config.json`.
#[derive(Deserialize)]
pub struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    rope_theta: f32,
}

#[derive(Module, Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    rope: RotaryEncoding,
    n_heads: usize,
}

#[derive(Module, Debug)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

#[derive(Module, Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

/// The model; its head is the embedding's weight.
#[derive(Module, Debug)]
pub struct Llama {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
}

impl Attention {
    fn new(config: &Config, device: &Device) -> Self {
        let (d, n_heads) = (config.hidden_size, config.num_attention_heads);
        let linear = || LinearConfig::new(d, d).with_bias(false).init(device);
        let rope = RotaryEncodingConfig::new(config.max_position_embeddings, d / n_heads).with_theta(config.rope_theta);
        Self {
            q_proj: linear(),
            k_proj: linear(),
            v_proj: linear(),
            o_proj: linear(),
            rope: rope.init(device),
            n_heads,
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [s, t, d] = x.dims();
        let heads = |y: Tensor<3>| y.reshape([s, t, self.n_heads, d / self.n_heads]).swap_dims(1, 2); // (S, H, T, E)
        let q = self.rope.forward(heads(self.q_proj.forward(x.clone())));
        let k = self.rope.forward(heads(self.k_proj.forward(x.clone())));
        let v = heads(self.v_proj.forward(x));
        let causal = AttentionModuleOptions { is_causal: true, ..Default::default() };
        let y = attention(q, k, v, None, None, causal);
        self.o_proj.forward(y.swap_dims(1, 2).reshape([s, t, d]))
    }

    /// Burn turns pairs of neighbours, Hugging Face pairs half a head apart: the columns of q and k, (D, D) here, change places.
    fn neighbours(self) -> Self {
        let n_heads = self.n_heads;
        let change = move |w: Tensor<2>| {
            let [d, columns] = w.dims();
            w.reshape([d, n_heads, 2, columns / n_heads / 2]).swap_dims(2, 3).reshape([d, columns])
        };
        let moved = |mut linear: Linear| {
            linear.weight = linear.weight.map(|w| change(w).detach().require_grad());
            linear
        };
        Self { q_proj: moved(self.q_proj), k_proj: moved(self.k_proj), ..self }
    }
}

impl Layer {
    fn new(config: &Config, device: &Device) -> Self {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        let norm = || RmsNormConfig::new(d).with_epsilon(config.rms_norm_eps).init(device);
        Self {
            input_layernorm: norm(),
            self_attn: Attention::new(config, device),
            post_attention_layernorm: norm(),
            mlp: Mlp { gate_proj: linear(d, f), up_proj: linear(d, f), down_proj: linear(f, d) },
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = x.clone() + self.self_attn.forward(self.input_layernorm.forward(x));
        let h = self.post_attention_layernorm.forward(x.clone());
        let gated = silu(self.mlp.gate_proj.forward(h.clone())) * self.mlp.up_proj.forward(h);
        x + self.mlp.down_proj.forward(gated)
    }
}

impl Llama {
    /// From a Hugging Face folder.
    pub fn load(folder: &Path, device: &Device) -> Self {
        let text = std::fs::read_to_string(folder.join("config.json")).expect("config.json");
        let config: Config = serde_json::from_str(&text).expect("config.json");
        let mut model = Self {
            embed_tokens: EmbeddingConfig::new(config.vocab_size, config.hidden_size).init(device),
            layers: (0..config.num_hidden_layers).map(|_| Layer::new(&config, device)).collect(),
            norm: RmsNormConfig::new(config.hidden_size).with_epsilon(config.rms_norm_eps).init(device),
        };
        // Every parameter must be in the file: the store fails otherwise.
        let mut store = SafetensorsStore::from_file(folder.join("model.safetensors"))
            .with_from_adapter(PyTorchToBurnAdapter)
            .with_key_remapping(r"^model\.", "");
        model.load_from(&mut store).expect("model.safetensors");
        let layers = model.layers.into_iter().map(|l| Layer { self_attn: l.self_attn.neighbours(), ..l }).collect();
        Self { layers, ..model }
    }

    /// Logits (S, T, V) of ids (S, T).
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let x = self.layers.iter().fold(self.embed_tokens.forward(ids), |x, layer| layer.forward(x));
        self.norm.forward(x).matmul(self.embed_tokens.weight.val().transpose().unsqueeze())
    }
}
