//! Supported model families: defaults of transformers' configuration classes, refused fields, and limits on sizes.

use serde_json::Value;

use super::description::QkNorm;

/// Norms of a layer by their names inside it: before and after attention, before and after the MLP.
#[derive(Clone, Copy)]
pub(super) struct NormNames {
    pub(super) attn: Option<&'static str>,
    pub(super) attn_post: Option<&'static str>,
    pub(super) mlp: Option<&'static str>,
    pub(super) mlp_post: Option<&'static str>,
}

/// Linear layers of a gated MLP by their names inside a layer: gate and up, or one that holds both, and down.
#[derive(Clone, Copy)]
pub(super) struct MlpNames {
    pub(super) up: &'static [&'static str],
    pub(super) down: &'static str,
    /// Field of `config.json` with the MLP's width.
    pub(super) width: &'static str,
}

/// Modules of attention by their names inside a layer.
#[derive(Clone, Copy)]
pub(super) struct AttentionNames {
    /// Norms of queries and keys, where the family has them.
    pub(super) qk_norms: [&'static str; 2],
    /// Projection of attention's output.
    pub(super) out: &'static str,
}

/// Biases of the projections around attention.
#[derive(Clone, Copy)]
pub(super) enum AttentionBias {
    Never,
    /// Biases of q, k and v.
    Qkv,
    /// Biases of q, k, v and o where `attention_bias` is on, which is off by default.
    ByField,
    /// Biases of q, k and v where `attention_bias` is on, which is on by default.
    QkvByField,
    /// Biases of q, k, v and o where `attention_bias` is on, which is on by default.
    AllByField,
}

/// Layers with a sliding window, where `layer_types` does not list them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Windows {
    /// None; `sliding_window` is ignored.
    None,
    /// All layers; `sliding_window` has a default, or none.
    All(Option<usize>),
    /// All but each n-th layer; `sliding_window` has a default.
    ExceptEvery(usize, usize),
    /// Layers from `max_window_layers` on, if `use_sliding_window` is on.
    From,
    /// Layers whose queries and keys are not rotated, if `use_sliding_window` is on.
    NotRotated,
    /// All layers, if `use_sliding_window` is on; `sliding_window` has a default.
    AllIfUsed(usize),
}

/// Default values of a family's configuration class, and the structure of its layers.
pub(super) struct FamilySpec {
    pub(super) kind: ModelFamily,
    pub(super) architecture: &'static str,
    pub(super) model_type: &'static str,
    /// `num_attention_heads` where the field may be absent.
    pub(super) heads: Option<usize>,
    /// `vocab_size` where the field may be absent.
    pub(super) vocab: Option<usize>,
    /// `num_key_value_heads` where the field is absent; `None` means H, as null in the file does.
    pub(super) kv_heads: Option<usize>,
    /// `head_dim` where the field is absent; `None` means D/H.
    pub(super) head_dim: Option<usize>,
    pub(super) max_positions: usize,
    pub(super) eps: f64,
    pub(super) theta: f64,
    /// `partial_rotary_factor` where the field is absent; `None` where the family does not read the field.
    pub(super) partial_rotary: Option<f64>,
    /// Whether pairs of rotating dimensions are neighbours.
    pub(super) interleaved: bool,
    pub(super) tied: bool,
    pub(super) norms: NormNames,
    /// Final norm by its name inside the model.
    pub(super) final_norm: &'static str,
    /// Field of `config.json` with the norms' epsilon.
    pub(super) eps_field: &'static str,
    pub(super) qk_norm: QkNorm,
    pub(super) attention: AttentionNames,
    pub(super) fused_qkv: bool,
    pub(super) mlp: MlpNames,
    pub(super) attention_bias: AttentionBias,
    /// Whether `mlp_bias` is read.
    pub(super) mlp_bias: bool,
    pub(super) windows: Windows,
    /// Fields among [`REFUSED`] that the family reads.
    pub(super) reads: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ModelFamily {
    Llama,
    Mistral,
    Ministral3,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Qwen35,
    Gemma2,
    Gemma3,
    Gemma4,
    Gemma4Unified,
    Phi3,
    SmolLm3,
    Granite,
    GraniteMoeHybrid,
    Olmo2,
    Olmo3,
    Glm4,
    GptOss,
    Lfm2,
    Gpt2,
}

impl ModelFamily {
    /// Returns whether the family is Gemma 4, in either class.
    pub(super) fn is_gemma4(self) -> bool {
        matches!(self, Self::Gemma4 | Self::Gemma4Unified)
    }
}

const GEMMA_NORMS: NormNames = NormNames {
    attn: Some("input_layernorm"),
    attn_post: Some("post_attention_layernorm"),
    mlp: Some("pre_feedforward_layernorm"),
    mlp_post: Some("post_feedforward_layernorm"),
};

const OLMO_NORMS: NormNames = NormNames { attn: None, mlp: None, ..GEMMA_NORMS };

const SEPARATE_MLP: MlpNames =
    MlpNames { up: &["mlp.gate_proj", "mlp.up_proj"], down: "mlp.down_proj", width: "intermediate_size" };

const FUSED_MLP: MlpNames = MlpNames { up: &["mlp.gate_up_proj"], ..SEPARATE_MLP };

const GRANITE_FIELDS: [&str; 4] =
    ["embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"];

const LLAMA: FamilySpec = FamilySpec {
    kind: ModelFamily::Llama,
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    heads: None,
    vocab: None,
    kv_heads: None,
    head_dim: None,
    max_positions: 2048,
    eps: 1e-6,
    theta: 1e4,
    partial_rotary: None,
    interleaved: false,
    tied: false,
    norms: NormNames {
        attn: Some("input_layernorm"),
        attn_post: None,
        mlp: Some("post_attention_layernorm"),
        mlp_post: None,
    },
    final_norm: "norm",
    eps_field: "rms_norm_eps",
    qk_norm: QkNorm::None,
    attention: AttentionNames { qk_norms: ["self_attn.q_norm", "self_attn.k_norm"], out: "self_attn.o_proj" },
    fused_qkv: false,
    mlp: SEPARATE_MLP,
    attention_bias: AttentionBias::ByField,
    mlp_bias: false,
    windows: Windows::None,
    reads: &[],
};

/// Gemma 4 E2B, E4B and 31B. The 12B model is another class in transformers, with other defaults and fewer fields.
const GEMMA4: FamilySpec = FamilySpec {
    kind: ModelFamily::Gemma4,
    architecture: "Gemma4ForCausalLM",
    model_type: "gemma4_text",
    kv_heads: Some(4),
    head_dim: Some(256),
    max_positions: 131_072,
    tied: true,
    norms: GEMMA_NORMS,
    qk_norm: QkNorm::PerHead,
    windows: Windows::ExceptEvery(6, 512),
    reads: &["use_bidirectional_attention"],
    ..LLAMA
};

pub(super) const FAMILIES: [FamilySpec; 21] = [
    FamilySpec { mlp_bias: true, ..LLAMA },
    FamilySpec {
        kind: ModelFamily::Mistral,
        architecture: "MistralForCausalLM",
        model_type: "mistral",
        kv_heads: Some(8),
        max_positions: 131_072,
        attention_bias: AttentionBias::Never,
        windows: Windows::All(Some(4096)),
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Ministral3,
        architecture: "Ministral3ForCausalLM",
        model_type: "ministral3",
        kv_heads: Some(8),
        head_dim: Some(128),
        max_positions: 262_144,
        eps: 1e-5,
        theta: 1e6,
        attention_bias: AttentionBias::Never,
        windows: Windows::All(None),
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Qwen2,
        architecture: "Qwen2ForCausalLM",
        model_type: "qwen2",
        kv_heads: Some(32),
        max_positions: 32_768,
        attention_bias: AttentionBias::Qkv,
        windows: Windows::From,
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Qwen3,
        architecture: "Qwen3ForCausalLM",
        model_type: "qwen3",
        kv_heads: Some(32),
        head_dim: Some(128),
        max_positions: 32_768,
        qk_norm: QkNorm::PerHead,
        windows: Windows::From,
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Qwen3Moe,
        architecture: "Qwen3MoeForCausalLM",
        model_type: "qwen3_moe",
        kv_heads: Some(4),
        max_positions: 32_768,
        qk_norm: QkNorm::PerHead,
        windows: Windows::AllIfUsed(4096),
        reads: &["num_experts", "num_local_experts"],
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Qwen35,
        architecture: "Qwen3_5ForCausalLM",
        model_type: "qwen3_5_text",
        kv_heads: Some(4),
        head_dim: Some(256),
        max_positions: 32_768,
        partial_rotary: Some(0.25),
        qk_norm: QkNorm::PerHead,
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
        norms: GEMMA_NORMS,
        windows: Windows::ExceptEvery(2, 4096),
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Gemma3,
        architecture: "Gemma3ForCausalLM",
        model_type: "gemma3_text",
        heads: Some(8),
        vocab: Some(262_208),
        kv_heads: Some(4),
        head_dim: Some(256),
        max_positions: 131_072,
        theta: 1e6,
        tied: true,
        norms: GEMMA_NORMS,
        qk_norm: QkNorm::PerHead,
        windows: Windows::ExceptEvery(6, 4096),
        ..LLAMA
    },
    GEMMA4,
    FamilySpec {
        kind: ModelFamily::Gemma4Unified,
        architecture: "Gemma4UnifiedForCausalLM",
        model_type: "gemma4_unified_text",
        max_positions: 262_144,
        windows: Windows::ExceptEvery(6, 1024),
        ..GEMMA4
    },
    FamilySpec {
        kind: ModelFamily::Phi3,
        architecture: "Phi3ForCausalLM",
        model_type: "phi3",
        max_positions: 4096,
        eps: 1e-5,
        partial_rotary: Some(1.0),
        fused_qkv: true,
        mlp: FUSED_MLP,
        attention_bias: AttentionBias::Never,
        windows: Windows::All(None),
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::SmolLm3,
        architecture: "SmolLM3ForCausalLM",
        model_type: "smollm3",
        kv_heads: Some(4),
        max_positions: 32_768,
        theta: 2e6,
        tied: true,
        mlp_bias: true,
        windows: Windows::NotRotated,
        // transformers' class does not read `pretraining_tp`, which the model on the hub has.
        reads: &["no_rope_layers", "pretraining_tp"],
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Granite,
        architecture: "GraniteForCausalLM",
        model_type: "granite",
        mlp_bias: true,
        reads: &GRANITE_FIELDS,
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::GraniteMoeHybrid,
        architecture: "GraniteMoeHybridForCausalLM",
        model_type: "granitemoehybrid",
        mlp: MlpNames {
            up: &["shared_mlp.input_linear"],
            down: "shared_mlp.output_linear",
            width: "shared_intermediate_size",
        },
        reads: &[GRANITE_FIELDS[0], GRANITE_FIELDS[1], GRANITE_FIELDS[2], GRANITE_FIELDS[3], "num_local_experts"],
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Olmo2,
        architecture: "Olmo2ForCausalLM",
        model_type: "olmo2",
        eps: 1e-5,
        norms: OLMO_NORMS,
        qk_norm: QkNorm::Whole,
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Olmo3,
        architecture: "Olmo3ForCausalLM",
        model_type: "olmo3",
        eps: 1e-5,
        theta: OLMO3_THETA,
        norms: OLMO_NORMS,
        qk_norm: QkNorm::Whole,
        windows: Windows::ExceptEvery(4, 4096),
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Glm4,
        architecture: "Glm4ForCausalLM",
        model_type: "glm4",
        kv_heads: Some(2),
        head_dim: Some(128),
        max_positions: 131_072,
        eps: 1.5625e-7,
        partial_rotary: Some(0.5),
        interleaved: true,
        norms: NormNames {
            attn: Some("input_layernorm"),
            attn_post: Some("post_self_attn_layernorm"),
            mlp: Some("post_attention_layernorm"),
            mlp_post: Some("post_mlp_layernorm"),
        },
        mlp: FUSED_MLP,
        attention_bias: AttentionBias::QkvByField,
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::GptOss,
        architecture: "GptOssForCausalLM",
        model_type: "gpt_oss",
        kv_heads: Some(8),
        head_dim: Some(64),
        max_positions: 131_072,
        eps: 1e-5,
        theta: 1.5e5,
        attention_bias: AttentionBias::AllByField,
        windows: Windows::ExceptEvery(2, 128),
        reads: &["num_experts", "num_local_experts"],
        ..LLAMA
    },
    FamilySpec {
        kind: ModelFamily::Lfm2,
        architecture: "Lfm2ForCausalLM",
        model_type: "lfm2",
        kv_heads: Some(8),
        max_positions: 128_000,
        eps: 1e-5,
        theta: 1e6,
        tied: true,
        norms: NormNames { attn: Some("operator_norm"), attn_post: None, mlp: Some("ffn_norm"), mlp_post: None },
        final_norm: "embedding_norm",
        eps_field: "norm_eps",
        qk_norm: QkNorm::PerHead,
        attention: AttentionNames {
            qk_norms: ["self_attn.q_layernorm", "self_attn.k_layernorm"],
            out: "self_attn.out_proj",
        },
        mlp: MlpNames {
            up: &["feed_forward.w1", "feed_forward.w3"],
            down: "feed_forward.w2",
            // [`super::config`] reads further fields that decide about the width.
            width: "intermediate_size",
        },
        attention_bias: AttentionBias::Never,
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

/// `rope_theta` of OLMo 3 where the field is absent.
pub(super) const OLMO3_THETA: f64 = 5e5;

/// Architecture around a language model, whose configuration is in `text_config`.
pub(super) struct WrapperSpec {
    pub(super) architecture: &'static str,
    pub(super) model_type: &'static str,
    /// `model_type` of language models that it may hold; the first where the field is absent.
    pub(super) text: &'static [&'static str],
    /// `tie_word_embeddings` where neither configuration has the field.
    pub(super) tied: bool,
}

pub(super) const WRAPPERS: [WrapperSpec; 5] = [
    WrapperSpec {
        architecture: "Gemma3ForConditionalGeneration",
        model_type: "gemma3",
        text: &["gemma3_text"],
        tied: true,
    },
    WrapperSpec {
        architecture: "Gemma4ForConditionalGeneration",
        model_type: "gemma4",
        text: &["gemma4_text"],
        tied: true,
    },
    WrapperSpec {
        architecture: "Gemma4UnifiedForConditionalGeneration",
        model_type: "gemma4_unified",
        text: &["gemma4_unified_text"],
        tied: true,
    },
    WrapperSpec {
        architecture: "Mistral3ForConditionalGeneration",
        model_type: "mistral3",
        text: &["mistral", "ministral3"],
        tied: true,
    },
    WrapperSpec {
        architecture: "Qwen3_5ForConditionalGeneration",
        model_type: "qwen3_5",
        text: &["qwen3_5_text"],
        tied: false,
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
    pub const EXPERTS: usize = crate::kernels::router::MOST_EXPERTS;
    pub const CONV_TAPS: usize = 1 << 6;
    pub const POSITIONS: usize = 1 << 30;
}
