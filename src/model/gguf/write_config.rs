//! Metadata of a GGUF file from a model's configuration. A setting that llama.cpp has no key for is refused.

use super::super::description::{ModelConfig, RopeConfig, RopeScaling};
use super::architecture::{GEMMA3_27B_LAYERS, GgufArchitecture};
use super::metadata::MetaValue;

/// Metadata of a model, and what the user must know about it.
#[derive(Debug, Clone, Default)]
pub struct ConfigMetadata {
    /// Keys with their values, in the order of the file.
    pub values: Vec<(String, MetaValue)>,
    /// Remarks for the user.
    pub notes: Vec<String>,
}

fn float(value: f64) -> MetaValue {
    MetaValue::F32(value as f32)
}

/// Returns the metadata of a model: the keys behind `{architecture}.`.
///
/// # Errors
/// The reason, where a setting cannot be said in a GGUF file of this architecture.
pub fn config_metadata(d: &ModelConfig, architecture: GgufArchitecture) -> Result<ConfigMetadata, String> {
    let mut all = ConfigMetadata::default();
    let mut put = |name: &str, value: MetaValue| all.values.push((format!("{}.{name}", architecture.name()), value));
    let mut size = |name: &str, n: usize| match u32::try_from(n) {
        Ok(n) => {
            put(name, MetaValue::U32(n));
            Ok(())
        }
        Err(_) => Err(format!("{name} = {n} does not fit 32 bits")),
    };
    size("block_count", d.layers.len())?;
    size("context_length", d.max_positions)?;
    size("embedding_length", d.d_model)?;
    size("feed_forward_length", d.d_ff)?;
    size("attention.head_count", d.n_heads)?;
    size("attention.head_count_kv", d.n_kv_heads)?;
    size("attention.key_length", d.head_dim)?;
    size("attention.value_length", d.head_dim)?;
    size("rope.dimension_count", d.head_dim)?;
    size("vocab_size", d.vocab)?;
    put("attention.layer_norm_rms_epsilon", MetaValue::F32(d.norm.eps));
    let rope = d.ropes.first().ok_or("it has no rotary table")?;
    if rope.rotary_dim != d.head_dim || rope.query_scale.is_some() {
        return Err("its rotary table has no form in GGUF".into());
    }
    put("rope.freq_base", float(rope.theta));
    for (name, value) in scaling(rope, d)? {
        put(name, value);
    }
    if architecture == GgufArchitecture::Qwen2 && d.n_heads * d.head_dim != d.d_model {
        let widths = format!("{}·{}, not {}", d.n_heads, d.head_dim, d.d_model);
        return Err(format!("its query heads have a width of {widths}, as llama.cpp wants for this architecture"));
    }
    let usual = 1.0 / (d.head_dim as f64).sqrt();
    let windows: Vec<Option<usize>> = d.layers.iter().map(|layer| layer.window).collect();
    if architecture == GgufArchitecture::Gemma3 {
        gemma3(d, &windows, &mut put)?;
    } else {
        if !is_close(f64::from(d.attention_scale), usual) {
            return Err(format!("its attention scale {} is not 1/√E, which llama.cpp has", d.attention_scale));
        }
        if let Some(window) = windows.iter().flatten().next().filter(|window| **window < d.max_positions) {
            if architecture != GgufArchitecture::Llama {
                return Err(format!("its sliding window of {window} has no form in GGUF"));
            }
            let name = architecture.name();
            all.notes.push(format!(
                "llama.cpp's architecture `{name}` has no sliding window: texts of more than {window} tokens are computed without it there"
            ));
        }
    }
    Ok(all)
}

fn is_close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * b.abs()
}

/// Returns the keys of rotary scaling. Llama 3.1's is a tensor instead.
fn scaling(rope: &RopeConfig, d: &ModelConfig) -> Result<Vec<(&'static str, MetaValue)>, String> {
    let kind = |name: &str| ("rope.scaling.type", MetaValue::Text(name.into()));
    match &rope.scaling {
        RopeScaling::Default | RopeScaling::Llama3 { .. } => Ok(Vec::new()),
        RopeScaling::Linear { factor } => Ok(vec![kind("linear"), ("rope.scaling.factor", float(*factor))]),
        &RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_max_positions, attention_factor } => {
            let magnitude = 0.1 * factor.ln() + 1.0;
            let is_plain = truncate && beta_fast == 32.0 && beta_slow == 1.0 && is_close(attention_factor, magnitude);
            if !is_plain || original_max_positions > d.max_positions as f64 {
                return Err("its YaRN has parameters that are not llama.cpp's defaults".into());
            }
            let original = MetaValue::U32(original_max_positions as u32);
            Ok(vec![
                kind("yarn"),
                ("rope.scaling.factor", float(factor)),
                ("rope.scaling.original_context_length", original),
            ])
        }
        RopeScaling::LongRope { .. } => Err("its LongRoPE has no form in GGUF here".into()),
        RopeScaling::Proportional { .. } => Err("its proportional RoPE has no form in GGUF here".into()),
    }
}

/// Adds the keys of Gemma 3: windows, the rotary base of layers with one, and the soft cap on logits.
fn gemma3(d: &ModelConfig, windows: &[Option<usize>], put: &mut impl FnMut(&str, MetaValue)) -> Result<(), String> {
    let divisor = if d.layers.len() == GEMMA3_27B_LAYERS { d.d_model / d.n_heads } else { d.head_dim };
    if !is_close(f64::from(d.attention_scale), 1.0 / (divisor as f64).sqrt()) {
        return Err(format!("its query_pre_attn_scalar is not {divisor}, which llama.cpp takes"));
    }
    if let Some(cap) = d.logit_softcap {
        put("final_logit_softcapping", MetaValue::F32(cap));
    }
    let Some(window) = windows.iter().copied().flatten().next() else { return Ok(()) };
    let full = windows.iter().position(Option::is_none).map_or(windows.len() + 1, |first| first + 1);
    let is_full = |i: usize| (i + 1).is_multiple_of(full);
    if !windows.iter().enumerate().all(|(i, window)| window.is_none() == is_full(i)) {
        return Err("its layers with a sliding window have no period".into());
    }
    let local = d.ropes.get(1).ok_or("it has one rotary table, expected two")?;
    if local.scaling != RopeScaling::Default {
        return Err("the rotary table of its layers with a window is scaled".into());
    }
    put("attention.sliding_window", MetaValue::U32(window as u32));
    put("attention.sliding_window_pattern", MetaValue::U32(full as u32));
    put("rope.freq_base_swa", float(local.theta));
    Ok(())
}
