//! Shapes of real models, for benchmarks: every kernel is timed at sizes at which it will be used.

/// Shape of a decoder like Llama's or Qwen3's, as its `config.json` gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// Name that `--models` takes.
    pub name: &'static str,
    /// D, the hidden size.
    pub d_model: usize,
    /// H, the number of query heads.
    pub n_heads: usize,
    /// K, the number of key and value heads.
    pub n_kv_heads: usize,
    /// E, the size of a head.
    pub head_dim: usize,
    /// F, the inner width of the MLP.
    pub d_ff: usize,
    /// V, the size of the vocabulary.
    pub vocab: usize,
    /// L, the number of layers.
    pub n_layers: usize,
    /// Whether the LM head shares the embedding's weight.
    pub tied: bool,
    /// Whether queries and keys are normalised per head, as in Qwen3.
    pub qk_norm: bool,
}

/// The models of `jointwise bench`, the smallest first.
pub const MODELS: [ModelShape; 6] = [
    ModelShape {
        name: "llama-7m",
        d_model: 288,
        n_heads: 6,
        n_kv_heads: 6,
        head_dim: 48,
        d_ff: 768,
        vocab: 4096,
        n_layers: 6,
        tied: true,
        qk_norm: false,
    },
    ModelShape {
        name: "smollm2-135m",
        d_model: 576,
        n_heads: 9,
        n_kv_heads: 3,
        head_dim: 64,
        d_ff: 1536,
        vocab: 49_152,
        n_layers: 30,
        tied: true,
        qk_norm: false,
    },
    ModelShape {
        name: "qwen2.5-0.5b",
        d_model: 896,
        n_heads: 14,
        n_kv_heads: 2,
        head_dim: 64,
        d_ff: 4864,
        vocab: 151_936,
        n_layers: 24,
        tied: true,
        qk_norm: false,
    },
    ModelShape {
        name: "qwen3-0.6b",
        d_model: 1024,
        n_heads: 16,
        n_kv_heads: 8,
        head_dim: 128,
        d_ff: 3072,
        vocab: 151_936,
        n_layers: 28,
        tied: true,
        qk_norm: true,
    },
    ModelShape {
        name: "llama-3.2-1b",
        d_model: 2048,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 64,
        d_ff: 8192,
        vocab: 128_256,
        n_layers: 16,
        tied: true,
        qk_norm: false,
    },
    ModelShape {
        name: "mistral-7b",
        d_model: 4096,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 128,
        d_ff: 14_336,
        vocab: 32_000,
        n_layers: 32,
        tied: false,
        qk_norm: false,
    },
];

/// Tokens per micro-batch, for `--tokens`.
pub const TOKENS: [usize; 4] = [128, 512, 2048, 8192];

impl ModelShape {
    /// Returns the columns of q, k and v together.
    pub fn qkv_width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// Returns the elements of a layer's matrices.
    pub fn layer_parameters(&self) -> usize {
        self.d_model * (self.qkv_width() + self.n_heads * self.head_dim + 3 * self.d_ff)
    }

    /// Returns the model's `config.json` in Hugging Face's form.
    pub fn config_json(&self) -> String {
        let (class, model_type) =
            if self.qk_norm { ("Qwen3ForCausalLM", "qwen3") } else { ("LlamaForCausalLM", "llama") };
        serde_json::json!({
            "architectures": [class],
            "model_type": model_type,
            "hidden_size": self.d_model,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.d_ff,
            "vocab_size": self.vocab,
            "num_hidden_layers": self.n_layers,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e4,
            "hidden_act": "silu",
        })
        .to_string()
    }
}
