//! Supported model families: defaults of transformers' configuration classes, refused fields, and limits on sizes.

use serde_json::Value;

/// Default values of a family's configuration class.
pub(super) struct FamilySpec {
    pub(super) kind: ModelFamily,
    pub(super) architecture: &'static str,
    pub(super) model_type: &'static str,
    /// `num_key_value_heads` where the field is absent; `None` means H, as null in the file does.
    pub(super) kv_heads: Option<usize>,
    /// `head_dim` where the field is absent; `None` means D/H.
    pub(super) head_dim: Option<usize>,
    pub(super) max_positions: usize,
    pub(super) eps: f64,
    pub(super) theta: f64,
    pub(super) tied: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ModelFamily {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
    Gpt2,
}

const LLAMA: FamilySpec = FamilySpec {
    kind: ModelFamily::Llama,
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    kv_heads: None,
    head_dim: None,
    max_positions: 2048,
    eps: 1e-6,
    theta: 1e4,
    tied: false,
};

pub(super) const FAMILIES: [FamilySpec; 8] = [
    LLAMA,
    FamilySpec {
        kind: ModelFamily::Mistral,
        architecture: "MistralForCausalLM",
        model_type: "mistral",
        kv_heads: Some(8),
        max_positions: 131_072,
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Qwen2,
        architecture: "Qwen2ForCausalLM",
        model_type: "qwen2",
        kv_heads: Some(32),
        max_positions: 32_768,
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Qwen3,
        architecture: "Qwen3ForCausalLM",
        model_type: "qwen3",
        kv_heads: Some(32),
        head_dim: Some(128),
        max_positions: 32_768,
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Gemma2,
        architecture: "Gemma2ForCausalLM",
        model_type: "gemma2",
        kv_heads: Some(4),
        head_dim: Some(256),
        max_positions: 8192,
        tied: true,
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Gemma3,
        architecture: "Gemma3ForCausalLM",
        model_type: "gemma3_text",
        kv_heads: Some(4),
        head_dim: Some(256),
        max_positions: 131_072,
        theta: 1e6,
        tied: true,
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Phi3,
        architecture: "Phi3ForCausalLM",
        model_type: "phi3",
        max_positions: 4096,
        eps: 1e-5,
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Gpt2,
        architecture: "GPT2LMHeadModel",
        model_type: "gpt2",
        max_positions: 1024,
        eps: 1e-5,
        tied: true,
        ..LLAMA
    },
];

/// Fields that change a model's computation and are refused, each with the value (besides null) that leaves the computation unchanged.
pub(super) const REFUSED: [(&str, DisabledValue); 22] = [
    ("quantization_config", DisabledValue::None),
    ("compression_config", DisabledValue::None),
    ("pretraining_tp", DisabledValue::One),
    ("add_cross_attention", DisabledValue::False),
    ("is_encoder_decoder", DisabledValue::False),
    ("scale_attn_by_inverse_layer_idx", DisabledValue::False),
    ("use_bidirectional_attention", DisabledValue::False),
    ("pruned_heads", DisabledValue::Empty),
    ("num_experts", DisabledValue::None),
    ("num_local_experts", DisabledValue::None),
    ("n_routed_experts", DisabledValue::None),
    ("dual_chunk_attention_config", DisabledValue::None),
    ("residual_multiplier", DisabledValue::One),
    ("embedding_multiplier", DisabledValue::One),
    ("attention_multiplier", DisabledValue::None),
    ("logits_scaling", DisabledValue::One),
    ("logit_scale", DisabledValue::One),
    ("clip_qkv", DisabledValue::None),
    ("use_qk_norm", DisabledValue::False),
    ("no_rope_layers", DisabledValue::Empty),
    ("alibi", DisabledValue::False),
    ("attention_chunk_size", DisabledValue::None),
];

pub(super) enum DisabledValue {
    None,
    False,
    One,
    Empty,
}

impl DisabledValue {
    pub(super) fn is(&self, value: &Value) -> bool {
        match self {
            Self::None => false,
            Self::False => value == false,
            Self::One => value.as_f64() == Some(1.0),
            Self::Empty => {
                value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(|map| map.is_empty())
            }
        }
    }
}

/// Largest accepted sizes: no product of two sizes overflows 32 bits, and no file can make the program allocate without bound.
pub(super) mod limit {
    pub const WIDTH: usize = 1 << 20;
    pub const FEED_FORWARD: usize = 1 << 24;
    pub const VOCAB: usize = 1 << 24;
    pub const HEADS: usize = 1 << 12;
    pub const HEAD_DIM: usize = 1 << 12;
    pub const LAYERS: usize = 1 << 10;
    pub const POSITIONS: usize = 1 << 30;
}
