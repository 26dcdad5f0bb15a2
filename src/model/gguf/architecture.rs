//! Architectures of GGUF files: names of their tensors, and the order of the rows of queries and keys. The names are those of
//! `MODEL_TENSORS` in gguf's `constants.py`.

use super::super::description::ModelConfig;

/// Architecture of llama.cpp that this program reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufArchitecture {
    /// Llama, Mistral, SmolLM2.
    Llama,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3, dense.
    Qwen3,
    /// Gemma 2: adapters only.
    Gemma2,
    /// Gemma 3.
    Gemma3,
    /// Phi-3: adapters only.
    Phi3,
}

/// Linear layers by Hugging Face's name inside a layer, and by GGUF's.
const LINEAR: [(&str, &str); 7] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Linear layers of Phi-3, which hold several projections.
const FUSED: [(&str, &str); 2] = [("self_attn.qkv_proj", "attn_qkv"), ("mlp.gate_up_proj", "ffn_up")];

/// Norms of a layer with two of them.
const TWO_NORMS: [(&str, &str); 2] = [("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")];

/// Norms of a layer of Gemma.
const FOUR_NORMS: [(&str, &str); 4] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

/// Norms of queries and keys.
const QK_NORMS: [(&str, &str); 2] = [("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm")];

/// Tensors outside of the layers: Hugging Face's name behind `model.` or alone, and GGUF's.
const OUTSIDE: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// Number of layers of Gemma 3 27B, by which llama.cpp knows it: it divides this model's scores by √(D/H), not by √E.
pub const GEMMA3_27B_LAYERS: usize = 62;

/// Prefixes of layers in Hugging Face's names: of a model, and of one inside a model with images.
const PREFIXES: [&str; 2] = ["model.layers.", "model.language_model.layers."];

impl GgufArchitecture {
    /// Architectures whose models are read and written, not adapters alone.
    pub const MODELS: [Self; 4] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Gemma3];
    /// All architectures.
    pub const ALL: [Self; 6] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Gemma2, Self::Gemma3, Self::Phi3];

    /// Returns the name in `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
            Self::Phi3 => "phi3",
        }
    }

    /// Returns Hugging Face's class and `model_type` of a model that is read.
    pub fn class(self) -> (&'static str, &'static str) {
        match self {
            Self::Llama => ("LlamaForCausalLM", "llama"),
            Self::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
            Self::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
            Self::Gemma2 => ("Gemma2ForCausalLM", "gemma2"),
            Self::Gemma3 => ("Gemma3ForCausalLM", "gemma3_text"),
            Self::Phi3 => ("Phi3ForCausalLM", "phi3"),
        }
    }

    /// Returns the architecture of an adapter on a model. A model with images counts as its language model.
    pub fn of_adapter(d: &ModelConfig) -> Option<Self> {
        match d.architecture.as_str() {
            "MistralForCausalLM" => Some(Self::Llama),
            "Gemma3ForConditionalGeneration" => Some(Self::Gemma3),
            name => Self::ALL.into_iter().find(|architecture| architecture.class().0 == name),
        }
    }

    /// Returns the architecture of a model that can be written.
    pub fn of_model(d: &ModelConfig) -> Option<Self> {
        Self::of_adapter(d).filter(|architecture| Self::MODELS.contains(architecture) && !d.wrapped)
    }

    /// Tells whether norms are stored with 1 added to them (Gemma).
    pub fn adds_one_to_norms(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// Returns the pairs of names inside a layer: Hugging Face's and GGUF's.
    fn layer_names(self) -> Vec<(&'static str, &'static str)> {
        let norms: &[_] = if self.adds_one_to_norms() { &FOUR_NORMS } else { &TWO_NORMS };
        let qk_norms: &[_] = if matches!(self, Self::Qwen3 | Self::Gemma3) { &QK_NORMS } else { &[] };
        let fused: &[_] = if self == Self::Phi3 { &FUSED } else { &[] };
        let is_replaced = |name: &str| self == Self::Phi3 && !matches!(name, "self_attn.o_proj" | "mlp.down_proj");
        let linear = LINEAR.iter().filter(|(name, _)| !is_replaced(name));
        linear.chain(fused).chain(norms).chain(qk_norms).copied().collect()
    }

    /// Returns GGUF's name of a tensor: `blk.0.attn_q.weight` for `model.layers.0.self_attn.q_proj.weight`.
    pub fn gguf_name(self, name: &str) -> Option<String> {
        if let Some((_, gguf)) = OUTSIDE.iter().find(|(hf, _)| *hf == name) {
            return Some((*gguf).into());
        }
        let inside = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix))?;
        let (layer, rest) = inside.split_once('.')?;
        let (module, part) = rest.rsplit_once('.')?;
        let names = self.layer_names();
        let (_, gguf) = names.iter().find(|(hf, _)| *hf == module)?;
        Some(format!("blk.{layer}.{gguf}.{part}"))
    }

    /// Returns Hugging Face's name of a tensor, the inverse of [`GgufArchitecture::gguf_name`].
    pub fn hf_name(self, name: &str) -> Option<String> {
        if let Some((hf, _)) = OUTSIDE.iter().find(|(_, gguf)| *gguf == name) {
            return Some((*hf).into());
        }
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let (module, part) = rest.rsplit_once('.').filter(|(_, part)| ["weight", "bias"].contains(part))?;
        let is_number = !layer.is_empty() && layer.bytes().all(|b| b.is_ascii_digit());
        let names = self.layer_names();
        let (hf, _) = names.iter().find(|(_, gguf)| *gguf == module).filter(|_| is_number)?;
        Some(format!("model.layers.{layer}.{hf}.{part}"))
    }

    /// Returns the order of a tensor's rows in a file, by Hugging Face's name; `None` where it is Hugging Face's own. `heads` is (H, K).
    pub fn row_order(self, hf_name: &str, rows: usize, (heads, kv_heads): (usize, usize)) -> Option<RopeRows> {
        let module = hf_name.rsplit_once('.').map_or(hf_name, |(module, _)| module);
        let heads = match self {
            Self::Llama if module.ends_with(".q_proj") => heads,
            Self::Llama if module.ends_with(".k_proj") => kv_heads,
            _ => return None,
        };
        // A matrix of another size is refused where it is read.
        let fits = heads > 0 && rows.is_multiple_of(2 * heads);
        fits.then(|| RopeRows { head_dim: rows / heads })
    }
}

/// Order of the rows of queries and keys in a file of the architecture `llama`. Its rotary pairs are neighbours, rows 2j and 2j + 1 of a
/// head. Hugging Face's are rows j and j + E/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeRows {
    /// E, rows of a head.
    head_dim: usize,
}

impl RopeRows {
    /// Returns the row in a GGUF file of a row of Hugging Face's.
    pub fn in_gguf(self, row: usize) -> usize {
        let (head, i, half) = (row / self.head_dim, row % self.head_dim, self.head_dim / 2);
        head * self.head_dim + 2 * (i % half) + i / half
    }

    /// Moves the rows of a matrix with `columns` columns from Hugging Face's order to that of a GGUF file.
    pub fn to_gguf(self, values: &[f32], columns: usize) -> Vec<f32> {
        let mut moved = vec![0.0; values.len()];
        for (row, from) in values.chunks_exact(columns).enumerate() {
            moved[self.in_gguf(row) * columns..][..columns].copy_from_slice(from);
        }
        moved
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for architecture in GgufArchitecture::ALL {
            for (hf, gguf) in architecture.layer_names() {
                let (hf, gguf) = (format!("model.layers.12.{hf}.weight"), format!("blk.12.{gguf}.weight"));
                assert_eq!(architecture.gguf_name(&hf).as_deref(), Some(gguf.as_str()));
                assert_eq!(architecture.hf_name(&gguf), Some(hf));
            }
        }
        let llama = GgufArchitecture::Llama;
        assert_eq!(llama.hf_name("output_norm.weight").unwrap(), "model.norm.weight");
        assert_eq!(llama.gguf_name("model.layers.0.self_attn.q_proj.bias").unwrap(), "blk.0.attn_q.bias");
        let phi = GgufArchitecture::Phi3;
        assert_eq!(phi.gguf_name("model.layers.3.mlp.gate_up_proj.weight").unwrap(), "blk.3.ffn_up.weight");
        assert_eq!(phi.gguf_name("model.layers.3.self_attn.q_proj.weight"), None);
        for unknown in ["blk.0.attn_q.scale", "blk.x.attn_q.weight", "blk..attn_q.weight", "blk.0.ffn_gate_exps.weight"]
        {
            assert_eq!(llama.hf_name(unknown), None, "{unknown}");
        }
        let wrapped = "model.language_model.layers.1.mlp.up_proj.weight";
        assert_eq!(GgufArchitecture::Gemma3.gguf_name(wrapped).unwrap(), "blk.1.ffn_up.weight");
    }

    #[test]
    fn rotary_pairs_are_neighbours_in_a_file() {
        let rows = GgufArchitecture::Llama.row_order("model.layers.0.self_attn.k_proj.weight", 12, (4, 2)).unwrap();
        assert_eq!((0..12).map(|row| rows.in_gguf(row)).collect::<Vec<_>>(), [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        assert_eq!(rows.to_gguf(&values, 1), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0]);
        assert!(GgufArchitecture::Qwen2.row_order("model.layers.0.self_attn.q_proj.weight", 12, (4, 2)).is_none());
        assert!(GgufArchitecture::Llama.row_order("model.layers.0.self_attn.v_proj.weight", 12, (4, 2)).is_none());
    }
}
