//! Configuration of a GGUF file's model as a Hugging Face `config.json`. A key that changes the computation and is not known is refused by
//! name.

use serde_json::{Map, Value, json};

use super::super::description::RopeScaling;
use super::architecture::{GEMMA3_27B_LAYERS, GgufArchitecture};
use super::file::GgufFile;
use super::rope::{ROPE_FREQS, scaling_of_divisors};
use crate::error::{Error, Result};

/// Keys behind `{architecture}.` that are read, or that change nothing.
const KNOWN: [&str; 18] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.causal",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.dimension_count",
    "final_logit_softcapping",
    "rope.scaling.finetuned",
];

/// Keys of rotary scaling that are read.
const SCALING: [&str; 3] = ["rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"];

/// Each how many layers one of Gemma 3 has no window, where the file does not say.
const GEMMA3_PERIOD: u64 = 6;
/// θ where the file has none.
const DEFAULT_THETA: f64 = 1e4;

/// Configuration that was read.
#[derive(Debug, Clone)]
pub struct GgufModelConfig {
    /// Architecture of the file.
    pub architecture: GgufArchitecture,
    /// (H, K): query heads, and key heads.
    pub heads: (usize, usize),
    /// Contents of `config.json`.
    pub json: Value,
}

/// Values behind `{architecture}.`.
struct ArchitectureKeys<'f> {
    file: &'f GgufFile,
    architecture: GgufArchitecture,
}

impl ArchitectureKeys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name())
    }

    fn bad(&self, name: &str, reason: impl ToString) -> Error {
        self.file.metadata.bad(&self.key(name), reason)
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        self.file.metadata.size(&self.key(name))
    }

    fn required(&self, name: &str) -> Result<u64> {
        self.file.metadata.required_size(&self.key(name))
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        self.file.metadata.number(&self.key(name))
    }

    /// Refuses keys that are not known. Experts and other parts of larger models have such keys.
    fn refuse_unknown(&self) -> Result<()> {
        let prefix = self.key("");
        for key in self.file.metadata.keys() {
            let Some(name) = key.strip_prefix(&prefix) else { continue };
            let is_off = matches!(self.file.metadata.size(key), Ok(Some(0)));
            if !KNOWN.contains(&name) && !SCALING.contains(&name) && !is_off {
                return Err(self.file.metadata.bad(key, "is not supported"));
            }
        }
        if self.file.metadata.flag(&self.key("attention.causal"))? == Some(false) {
            return Err(self.bad("attention.causal", "false is not supported"));
        }
        Ok(())
    }

    /// Reads rotary scaling as `rope_scaling`; null where there is none.
    fn scaling(&self, theta: f64, head_dim: u64) -> Result<Value> {
        let kind = self.file.metadata.text(&self.key("rope.scaling.type"))?.unwrap_or("none");
        let factor =
            || self.number("rope.scaling.factor")?.ok_or_else(|| self.bad("rope.scaling.factor", "is missing"));
        let scaling = match kind {
            "none" => Value::Null,
            "linear" => json!({"rope_type": "linear", "factor": factor()?}),
            "yarn" => json!({
                "rope_type": "yarn",
                "factor": factor()?,
                "original_max_position_embeddings": self.required("rope.scaling.original_context_length")?,
            }),
            other => {
                let reason = format!("`{other}` is not supported (none, linear, yarn are)");
                return Err(self.bad("rope.scaling.type", reason));
            }
        };
        let Some(table) = self.file.tensor(ROPE_FREQS) else { return Ok(scaling) };
        let bad = |reason: &str| Error::tensor(self.file.path(), ROPE_FREQS, reason);
        if !scaling.is_null() {
            return Err(bad("is there beside rope.scaling.type, which is not supported"));
        }
        if table.n_values != head_dim / 2 {
            return Err(bad(&format!("has {} values, expected {}", table.n_values, head_dim / 2)));
        }
        match scaling_of_divisors(&self.file.values(table)?, theta, head_dim as usize) {
            Some(RopeScaling::Llama3 { factor, low, high, original_max_positions }) => Ok(json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original_max_positions as u64,
            })),
            _ => Err(bad("is not the rotary table of Llama 3.1 to 3.3, which is supported")),
        }
    }
}

/// Reads the configuration of a file's model.
///
/// # Errors
/// [`Error::Field`] for a key that is missing, malformed or not supported; [`Error::Tensor`] for a rotary table that is not known.
pub fn read_config(file: &GgufFile) -> Result<GgufModelConfig> {
    let metadata = &file.metadata;
    let kind = metadata.text("general.type")?.unwrap_or("model");
    if kind != "model" {
        return Err(metadata.bad("general.type", format!("expected `model`, found `{kind}`")));
    }
    let name = metadata.required_text("general.architecture")?;
    let architecture = GgufArchitecture::MODELS.into_iter().find(|a| a.name() == name).ok_or_else(|| {
        let known = GgufArchitecture::MODELS.map(GgufArchitecture::name).join(", ");
        metadata.bad("general.architecture", format!("`{name}` is not supported ({known} are)"))
    })?;
    let keys = ArchitectureKeys { file, architecture };
    keys.refuse_unknown()?;
    let (width, layers) = (keys.required("embedding_length")?, keys.required("block_count")?);
    let heads = keys.required("attention.head_count")?;
    let kv_heads = keys.size("attention.head_count_kv")?.unwrap_or(heads);
    for (name, n) in [("attention.head_count", heads), ("attention.head_count_kv", kv_heads)] {
        if n == 0 || n > width {
            return Err(keys.bad(name, format!("expected a whole number in 1 ..= {width}, found {n}")));
        }
    }
    let head_dim = keys.size("attention.key_length")?.unwrap_or(width / heads);
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = keys.size(name)?.filter(|n| *n != head_dim) {
            return Err(keys.bad(name, format!("{other} is not supported beside heads of {head_dim}")));
        }
    }
    let embedding = file.tensor("token_embd.weight");
    let embedding = embedding.ok_or_else(|| Error::tensor(file.path(), "token_embd.weight", "is missing"))?;
    let vocab = embedding.shape[0];
    if let Some(other) = keys.size("vocab_size")?.filter(|n| *n != vocab as u64) {
        return Err(keys.bad("vocab_size", format!("{other}, but token_embd.weight has {vocab} rows")));
    }
    let epsilon = keys.number("attention.layer_norm_rms_epsilon")?;
    let epsilon = epsilon.ok_or_else(|| keys.bad("attention.layer_norm_rms_epsilon", "is missing"))?;
    let theta = keys.number("rope.freq_base")?.unwrap_or(DEFAULT_THETA);
    let has = |name: &str| file.tensor(name).is_some();
    let (class, model_type) = architecture.class();
    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": keys.required("feed_forward_length")?,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": keys.required("context_length")?,
        "rms_norm_eps": epsilon,
        "rope_theta": theta,
        "rope_scaling": keys.scaling(theta, head_dim)?,
        "vocab_size": vocab,
        "tie_word_embeddings": !has("output.weight"),
        "dtype": if embedding.kind.is_quantised() { "float32" } else { torch_name(embedding.kind.name()) },
    });
    let mut fields = config.as_object_mut().map_or_else(Map::new, std::mem::take);
    match architecture {
        GgufArchitecture::Llama => {
            fields.insert("attention_bias".into(), json!(has("blk.0.attn_q.bias")));
            fields.insert("mlp_bias".into(), json!(has("blk.0.ffn_down.bias")));
        }
        GgufArchitecture::Gemma3 => gemma3(&keys, &mut fields, (width, layers, heads, head_dim))?,
        _ => {}
    }
    let own_windows = architecture == GgufArchitecture::Gemma3;
    for name in [
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "rope.freq_base_swa",
        "final_logit_softcapping",
    ] {
        if !own_windows && metadata.get(&keys.key(name)).is_some() {
            return Err(keys.bad(name, format!("is not supported for the architecture `{}`", architecture.name())));
        }
    }
    let heads = (heads as usize, kv_heads as usize);
    Ok(GgufModelConfig { architecture, heads, json: Value::Object(fields) })
}

/// Adds the fields of Gemma 3: windows, the rotary base of layers with one, the scale of scores, and the soft cap on logits.
fn gemma3(
    keys: &ArchitectureKeys<'_>,
    fields: &mut Map<String, Value>,
    (width, layers, heads, head_dim): (u64, u64, u64, u64),
) -> Result<()> {
    let period = keys.size("attention.sliding_window_pattern")?.unwrap_or(GEMMA3_PERIOD);
    // A file without a window has full attention in all layers: each layer is the last of its period.
    let (window, period) = match keys.size("attention.sliding_window")? {
        Some(window) if window > 0 => (window, period),
        _ => (1, 1),
    };
    fields.insert("sliding_window".into(), json!(window));
    fields.insert("sliding_window_pattern".into(), json!(period));
    fields.insert("rope_local_base_freq".into(), json!(keys.number("rope.freq_base_swa")?.unwrap_or(DEFAULT_THETA)));
    let scalar = if layers == GEMMA3_27B_LAYERS as u64 { width / heads } else { head_dim };
    fields.insert("query_pre_attn_scalar".into(), json!(scalar));
    fields.insert("final_logit_softcapping".into(), json!(keys.number("final_logit_softcapping")?));
    Ok(())
}

/// Returns PyTorch's name of a type.
fn torch_name(kind: &str) -> &'static str {
    match kind {
        "BF16" => "bfloat16",
        "F16" => "float16",
        _ => "float32",
    }
}
