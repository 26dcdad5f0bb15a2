//! Conversion of Hugging Face's `config.json`, of transformers 4 and 5, into a [`ModelConfig`]. Unsupported settings are refused by name.
//!
//! Defaults are those of `configuration_*.py` in transformers 4.57, which 5.23 shares; sizes have no defaults. Fields that these classes
//! ignore are ignored here too. Where an ignored field would have added tensors, [`super::checkpoint::Checkpoint::verify`] notes them.

use std::path::Path;

use serde_json::{Map, Value};

use super::description::{
    Activation, LayerConfig, LinearSpec, ModelConfig, NormKind, NormSpec, RopeConfig, RopeScaling,
};
use super::families::{FAMILIES, FamilySpec, ModelFamily, REFUSED, limit};
use crate::error::{Error, Result};

/// JSON object of the file, with its place for messages.
struct ConfigReader<'a> {
    path: &'a Path,
    /// Prefix of a field's name in messages: empty or `rope_scaling.`.
    at: String,
    fields: &'a Map<String, Value>,
}

/// Formats a value for a message, shortened.
fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".into(),
        Value::Array(_) => "a list".into(),
        Value::String(s) if s.len() > 60 => "a long text".into(),
        other => other.to_string(),
    }
}

impl<'a> ConfigReader<'a> {
    fn bad(&self, field: &str, reason: impl ToString) -> Error {
        Error::field(self.path, format!("{}{field}", self.at), reason)
    }

    /// Returns a field's value; null counts as absent.
    fn get(&self, field: &str) -> Option<&'a Value> {
        self.fields.get(field).filter(|v| !v.is_null())
    }

    fn is_null(&self, field: &str) -> bool {
        self.fields.get(field).is_some_and(Value::is_null)
    }

    /// Reads a whole number in 1 ..= max.
    fn size(&self, field: &str, max: usize, default: Option<usize>) -> Result<usize> {
        let Some(value) = self.get(field) else {
            return default.ok_or_else(|| self.bad(field, "is missing"));
        };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=max).contains(&n) => Ok(n),
            _ => Err(self.bad(field, format!("expected a whole number in 1 ..= {max}, found {}", shown(value)))),
        }
    }

    /// Reads a number above 0 that f32 can represent.
    fn number(&self, field: &str, default: Option<f64>) -> Result<f64> {
        let Some(value) = self.get(field) else {
            return default.ok_or_else(|| self.bad(field, "is missing"));
        };
        match value.as_f64() {
            Some(x) if x as f32 > 0.0 && (x as f32).is_finite() => Ok(x),
            _ => Err(self.bad(field, format!("expected a number above 0, found {}", shown(value)))),
        }
    }

    /// Reads a number like [`Self::number`], except that null gives `None` and an absent field the default.
    fn optional(&self, field: &str, default: Option<f64>) -> Result<Option<f64>> {
        match self.fields.get(field) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.number(field, None).map(Some),
        }
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.bad(field, format!("expected true or false, found {}", shown(value))))
    }

    fn text(&self, field: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.bad(field, format!("expected a text, found {}", shown(value))))
    }

    fn object(&self, field: &str) -> Result<Option<ConfigReader<'a>>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_object() {
            Some(fields) => Ok(Some(ConfigReader { path: self.path, at: format!("{}{field}.", self.at), fields })),
            None => Err(self.bad(field, format!("expected an object, found {}", shown(value)))),
        }
    }

    fn activation(&self, field: &str, default: &str) -> Result<Activation> {
        match self.text(field)?.unwrap_or(default) {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" | "gelu_python" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            other => {
                Err(self
                    .bad(field, format!("`{other}` is not supported (silu, gelu, gelu_new, gelu_pytorch_tanh are)")))
            }
        }
    }

    fn family(&self) -> Result<&'static FamilySpec> {
        let supported = |of: fn(&FamilySpec) -> &'static str| FAMILIES.each_ref().map(of).join(", ");
        let model_type = self.text("model_type")?;
        let Some(list) = self.get("architectures") else {
            let by_type = FAMILIES.iter().find(|f| Some(f.model_type) == model_type);
            let reason = || format!("is missing; supported: {}", supported(|f| f.architecture));
            return by_type.ok_or_else(|| self.bad("architectures", reason()));
        };
        let name = match list.as_array().map(Vec::as_slice) {
            Some([Value::String(name)]) => name,
            _ => return Err(self.bad("architectures", format!("expected a list of one name, found {list}"))),
        };
        let family = FAMILIES.iter().find(|f| f.architecture == name).ok_or_else(|| {
            let reason = format!("`{name}` is not supported; supported: {}", supported(|f| f.architecture));
            self.bad("architectures", reason)
        })?;
        match model_type {
            Some(other) if other != family.model_type => {
                let reason = format!("expected `{}` for {name}, found `{other}`", family.model_type);
                Err(self.bad("model_type", reason))
            }
            _ => Ok(family),
        }
    }
}

impl ConfigReader<'_> {
    /// Reads the parameters of a rotary table from `own`, an object of `rope_scaling` or `rope_parameters`. `theta` and `partial` are the
    /// defaults for fields that `own` lacks.
    fn rope(&self, own: Option<&ConfigReader>, theta: f64, partial: f64, head_dim: usize) -> Result<RopeConfig> {
        let none = Map::new();
        let none = ConfigReader { path: self.path, at: String::new(), fields: &none };
        let own = own.unwrap_or(&none);
        let kind = own.text("rope_type")?.or(own.text("type")?).unwrap_or("default");
        let scaling = match kind {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: own.number("factor", None)? },
            "llama3" => RopeScaling::Llama3 {
                factor: own.number("factor", None)?,
                low: own.number("low_freq_factor", None)?,
                high: own.number("high_freq_factor", None)?,
                original_max_positions: own.number("original_max_position_embeddings", None)?,
            },
            other => {
                return Err(own.bad("rope_type", format!("`{other}` is not supported (default, linear, llama3 are)")));
            }
        };
        if let RopeScaling::Llama3 { low, high, .. } = scaling
            && high <= low
        {
            return Err(own.bad("high_freq_factor", format!("{high} is not above low_freq_factor = {low}")));
        }
        let known: &[&str] = match kind {
            "default" => &[],
            "linear" => &["factor"],
            _ => &["factor", "low_freq_factor", "high_freq_factor"],
        };
        let always = ["rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"];
        if let Some(name) = own.fields.keys().find(|k| !known.contains(&&***k) && !always.contains(&&***k))
            && own.get(name).is_some()
        {
            return Err(own.bad(name, format!("is not supported with rope type `{kind}`")));
        }
        let theta = own.number("rope_theta", Some(theta))?;
        let partial = own.number("partial_rotary_factor", Some(partial))?;
        let rotary_dim = (head_dim as f64 * partial) as usize;
        if partial > 1.0 || rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            let reason =
                format!("{rotary_dim} rotating dimensions of {head_dim}: expected an even number, at most all");
            return Err(if partial == 1.0 {
                self.bad("head_dim", reason)
            } else {
                own.bad("partial_rotary_factor", reason)
            });
        }
        Ok(RopeConfig { theta, rotary_dim, scaling })
    }

    /// Reads the rotary tables of a model: one, or for Gemma 3 one for full layers and one for sliding layers.
    fn ropes(&self, family: &FamilySpec, head_dim: usize) -> Result<Vec<RopeConfig>> {
        let partial = self.number("partial_rotary_factor", Some(1.0))?;
        let theta = self.number("rope_theta", Some(family.theta))?;
        let (scaling, parameters) = (self.object("rope_scaling")?, self.object("rope_parameters")?);
        if let (Some(_), Some(_)) = (&scaling, &parameters) {
            return Err(self.bad("rope_scaling", "conflicts with `rope_parameters`: remove one of the two"));
        }
        let nested = parameters.as_ref().is_some_and(|p| p.fields.contains_key("full_attention"));
        let ropes = if family.kind == ModelFamily::Gemma3 {
            let local_theta = self.number("rope_local_base_freq", Some(1e4))?;
            let (mut full, mut local) = (scaling, None);
            if let Some(p) = &parameters {
                let stray = p.fields.keys().find(|k| !["full_attention", "sliding_attention"].contains(&k.as_str()));
                if let Some(stray) = stray {
                    return Err(p.bad(stray, "expected entries `full_attention` and `sliding_attention` only"));
                }
                (full, local) = (p.object("full_attention")?, p.object("sliding_attention")?);
            }
            vec![
                self.rope(full.as_ref(), theta, partial, head_dim)?,
                self.rope(local.as_ref(), local_theta, partial, head_dim)?,
            ]
        } else if nested {
            return Err(self.bad("rope_parameters", "one rotary table a layer type is not supported for this family"));
        } else {
            if let Some(p) = &parameters
                && let (Some(a), Some(b)) = (self.get("rope_theta"), p.get("rope_theta"))
                && a.as_f64() != b.as_f64()
            {
                return Err(self.bad("rope_theta", format!("{a} contradicts `rope_parameters.rope_theta`, {b}")));
            }
            vec![self.rope(scaling.or(parameters).as_ref(), theta, partial, head_dim)?]
        };
        if family.kind != ModelFamily::Phi3 && ropes.iter().any(|r| r.rotary_dim != head_dim) {
            return Err(self.bad("partial_rotary_factor", "is not supported for this family"));
        }
        Ok(ropes)
    }

    /// Reads the window of each layer.
    fn windows(&self, family: &FamilySpec, n_layers: usize) -> Result<Vec<Option<usize>>> {
        let kind = family.kind;
        let qwen = matches!(kind, ModelFamily::Qwen2 | ModelFamily::Qwen3);
        let on = match kind {
            ModelFamily::Llama | ModelFamily::Gpt2 => false,
            ModelFamily::Qwen2 | ModelFamily::Qwen3 => self.flag("use_sliding_window", false)?,
            _ => true,
        };
        let default = if kind == ModelFamily::Phi3 { None } else { Some(4096) };
        let window = match on {
            true if self.is_null("sliding_window") => None,
            true if default.is_none() && self.get("sliding_window").is_none() => None,
            true => Some(self.size("sliding_window", limit::POSITIONS, default)?),
            false => None,
        };
        let pattern =
            if kind == ModelFamily::Gemma3 { self.size("sliding_window_pattern", limit::LAYERS, Some(6))? } else { 2 };
        let full_below = match self.get("max_window_layers").filter(|_| qwen) {
            Some(n) => n.as_u64().ok_or_else(|| self.bad("max_window_layers", "expected a whole number"))?,
            None => 28,
        };
        let rule = |i: usize| match kind {
            ModelFamily::Gemma2 | ModelFamily::Gemma3 => !(i + 1).is_multiple_of(pattern),
            ModelFamily::Qwen2 | ModelFamily::Qwen3 => window.is_some() && i as u64 >= full_below,
            _ => window.is_some(),
        };
        let mut slides: Vec<bool> = (0..n_layers).map(rule).collect();
        if let Some(types) = self.get("layer_types") {
            let listed = self.layer_types(types, n_layers)?;
            if !matches!(kind, ModelFamily::Gemma2 | ModelFamily::Gemma3) && !qwen && listed != slides {
                return Err(self.bad("layer_types", format!("a {} has layers of one kind only", family.architecture)));
            }
            slides = listed;
        }
        if slides.contains(&true) && window.is_none() {
            return Err(self.bad("sliding_window", "has no value, yet there are layers of type sliding_attention"));
        }
        Ok(slides.into_iter().map(|s| window.filter(|_| s)).collect())
    }

    fn layer_types(&self, types: &Value, n_layers: usize) -> Result<Vec<bool>> {
        let types = types.as_array().ok_or_else(|| self.bad("layer_types", "expected a list"))?;
        if types.len() != n_layers {
            let reason = format!("has {} entries for num_hidden_layers = {n_layers}", types.len());
            return Err(self.bad("layer_types", reason));
        }
        let of = |t: &Value| match t.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => {
                let reason = format!("{} is not supported (full_attention, sliding_attention are)", shown(t));
                Err(self.bad("layer_types", reason))
            }
        };
        types.iter().map(of).collect()
    }
}

impl ModelConfig {
    /// Reads the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Line`] for a text that is not JSON; [`Error::Field`] for a field that is missing, out of range, or not supported.
    pub fn from_json(path: impl AsRef<Path>, text: &str) -> Result<Self> {
        let path = path.as_ref();
        let value: Value =
            serde_json::from_str(text).map_err(|e| Error::line(path, e.line(), format!("not JSON: {e}")))?;
        let fields = value.as_object().ok_or_else(|| Error::file(path, "expected a JSON object"))?;
        let c = ConfigReader { path, at: String::new(), fields };
        let family = c.family()?;
        for (field, neutral) in &REFUSED {
            if let Some(value) = c.get(field).filter(|v| !neutral.is(v)) {
                return Err(c.bad(field, format!("{} is not supported", shown(value))));
            }
        }
        if family.kind == ModelFamily::Gpt2 { gpt2(&c, family) } else { rotary(&c, family) }
    }
}

fn module(name: String, n_out: usize, n_in: usize, column: usize, bias: bool) -> LinearSpec {
    LinearSpec { name, n_out, n_in, column, bias, transposed: false }
}

fn gpt2(c: &ConfigReader, family: &FamilySpec) -> Result<ModelConfig> {
    let d = c.size("n_embd", limit::WIDTH, None)?;
    let heads = c.size("n_head", limit::HEADS, None)?;
    let f = c.size("n_inner", limit::FEED_FORWARD, Some(4 * d))?;
    let vocab = c.size("vocab_size", limit::VOCAB, None)?;
    let n_layers = c.size("n_layer", limit::LAYERS, None)?;
    if !d.is_multiple_of(heads) {
        return Err(c.bad("n_head", format!("{heads} does not divide n_embd = {d}")));
    }
    let e = d / heads;
    if e > limit::HEAD_DIM {
        return Err(c.bad("n_head", format!("heads of {e} are too wide (at most {})", limit::HEAD_DIM)));
    }
    let conv = |name: String, n_out, n_in| LinearSpec { transposed: true, ..module(name, n_out, n_in, 0, true) };
    let layer = |i: usize| {
        let at = format!("transformer.h.{i}");
        LayerConfig {
            window: None,
            rope: None,
            attn_norm: format!("{at}.ln_1"),
            attn_post_norm: None,
            mlp_norm: format!("{at}.ln_2"),
            mlp_post_norm: None,
            q_norm: None,
            k_norm: None,
            qkv: vec![conv(format!("{at}.attn.c_attn"), 3 * d, d)],
            out: conv(format!("{at}.attn.c_proj"), d, d),
            up: vec![conv(format!("{at}.mlp.c_fc"), f, d)],
            down: conv(format!("{at}.mlp.c_proj"), d, f),
        }
    };
    Ok(ModelConfig {
        architecture: family.architecture.into(),
        d_model: d,
        n_heads: heads,
        n_kv_heads: heads,
        head_dim: e,
        d_ff: f,
        vocab,
        max_positions: c.size("n_positions", limit::POSITIONS, Some(family.max_positions))?,
        norm: NormSpec {
            kind: NormKind::Layer,
            eps: c.number("layer_norm_epsilon", Some(family.eps))? as f32,
            weight_offset: 0.0,
        },
        qk_norm: false,
        post_norms: false,
        ropes: Vec::new(),
        position_embedding: Some("transformer.wpe.weight".into()),
        layers: (0..n_layers).map(layer).collect(),
        attention_scale: if c.flag("scale_attn_weights", true)? { (1.0 / (e as f64).sqrt()) as f32 } else { 1.0 },
        attention_softcap: None,
        logit_softcap: None,
        activation: c.activation("activation_function", "gelu_new")?,
        gated: false,
        embed_scale: 1.0,
        embedding: "transformer.wte.weight".into(),
        final_norm: "transformer.ln_f".into(),
        head: module("lm_head".into(), vocab, d, 0, false),
        tied: c.flag("tie_word_embeddings", family.tied)?,
    })
}

/// Reads the numbers of heads: (H, K, E).
fn heads(c: &ConfigReader, family: &FamilySpec, d: usize) -> Result<(usize, usize, usize)> {
    let h = c.size("num_attention_heads", limit::HEADS, None)?;
    let default_kv = if c.is_null("num_key_value_heads") { h } else { family.kv_heads.unwrap_or(h) };
    let kv = c.size("num_key_value_heads", limit::HEADS, Some(default_kv))?;
    if !h.is_multiple_of(kv) {
        return Err(c.bad("num_key_value_heads", format!("{kv} does not divide num_attention_heads = {h}")));
    }
    if family.head_dim.is_none() && c.get("head_dim").is_none() && !d.is_multiple_of(h) {
        return Err(c.bad("num_attention_heads", format!("{h} does not divide hidden_size = {d}")));
    }
    let e = c.size("head_dim", limit::HEAD_DIM, Some(family.head_dim.unwrap_or(d / h)))?;
    if e > limit::HEAD_DIM {
        let reason = format!("heads of {e} are too wide (at most {})", limit::HEAD_DIM);
        return Err(c.bad("num_attention_heads", reason));
    }
    Ok((h, kv, e))
}

/// Reads the configuration of a model with RoPE: Llama and similar families.
fn rotary(c: &ConfigReader, family: &FamilySpec) -> Result<ModelConfig> {
    let kind = family.kind;
    let gemma = matches!(kind, ModelFamily::Gemma2 | ModelFamily::Gemma3);
    let d = c.size("hidden_size", limit::WIDTH, None)?;
    let (h, kv, e) = heads(c, family, d)?;
    let (f, vocab) =
        (c.size("intermediate_size", limit::FEED_FORWARD, None)?, c.size("vocab_size", limit::VOCAB, None)?);
    let n_layers = c.size("num_hidden_layers", limit::LAYERS, None)?;
    let (windows, ropes) = (c.windows(family, n_layers)?, c.ropes(family, e)?);

    let (qkv_bias, out_bias) = match kind {
        ModelFamily::Qwen2 => (true, false),
        ModelFamily::Mistral | ModelFamily::Phi3 => (false, false),
        _ => {
            let bias = c.flag("attention_bias", false)?;
            (bias, bias)
        }
    };
    let mlp_bias = kind == ModelFamily::Llama && c.flag("mlp_bias", false)?;
    let (q, k) = (h * e, kv * e);
    let qk_norm = matches!(kind, ModelFamily::Qwen3 | ModelFamily::Gemma3);
    let layer = |(i, &window): (usize, &Option<usize>)| {
        let at = format!("model.layers.{i}");
        let attn = |name: &str, n_out, column| module(format!("{at}.self_attn.{name}"), n_out, d, column, qkv_bias);
        let up = |name: &str, n_out, column| module(format!("{at}.mlp.{name}"), n_out, d, column, mlp_bias);
        let named = |yes: bool, name: &str| yes.then(|| format!("{at}.{name}"));
        LayerConfig {
            window,
            rope: Some(usize::from(kind == ModelFamily::Gemma3 && window.is_some())),
            attn_norm: format!("{at}.input_layernorm"),
            attn_post_norm: named(gemma, "post_attention_layernorm"),
            mlp_norm: format!("{at}.{}", if gemma { "pre_feedforward_layernorm" } else { "post_attention_layernorm" }),
            mlp_post_norm: named(gemma, "post_feedforward_layernorm"),
            q_norm: named(qk_norm, "self_attn.q_norm"),
            k_norm: named(qk_norm, "self_attn.k_norm"),
            qkv: if kind == ModelFamily::Phi3 {
                vec![attn("qkv_proj", q + 2 * k, 0)]
            } else {
                vec![attn("q_proj", q, 0), attn("k_proj", k, q), attn("v_proj", k, q + k)]
            },
            out: module(format!("{at}.self_attn.o_proj"), d, q, 0, out_bias),
            up: if kind == ModelFamily::Phi3 {
                vec![up("gate_up_proj", 2 * f, 0)]
            } else {
                vec![up("gate_proj", f, 0), up("up_proj", f, f)]
            },
            down: module(format!("{at}.mlp.down_proj"), d, f, 0, mlp_bias),
        }
    };
    let scale_of = if gemma { c.number("query_pre_attn_scalar", Some(256.0))? } else { e as f64 };
    let attention_cap = c.optional("attn_logit_softcapping", (kind == ModelFamily::Gemma2).then_some(50.0))?;
    if attention_cap.is_some() && kind != ModelFamily::Gemma2 {
        return Err(c.bad("attn_logit_softcapping", "is supported for Gemma2ForCausalLM only"));
    }
    let logit_cap = c.optional("final_logit_softcapping", (kind == ModelFamily::Gemma2).then_some(30.0))?;
    if logit_cap.is_some() && !gemma {
        return Err(c.bad("final_logit_softcapping", "is supported for Gemma 2 and 3 only"));
    }
    let (act_field, act_default) =
        if gemma { ("hidden_activation", "gelu_pytorch_tanh") } else { ("hidden_act", "silu") };
    Ok(ModelConfig {
        architecture: family.architecture.into(),
        d_model: d,
        n_heads: h,
        n_kv_heads: kv,
        head_dim: e,
        d_ff: f,
        vocab,
        max_positions: c.size("max_position_embeddings", limit::POSITIONS, Some(family.max_positions))?,
        norm: NormSpec {
            kind: NormKind::Rms,
            eps: c.number("rms_norm_eps", Some(family.eps))? as f32,
            weight_offset: if gemma { 1.0 } else { 0.0 },
        },
        qk_norm,
        post_norms: gemma,
        ropes,
        position_embedding: None,
        layers: windows.iter().enumerate().map(layer).collect(),
        attention_scale: (1.0 / scale_of.sqrt()) as f32,
        attention_softcap: attention_cap.map(|x| x as f32),
        logit_softcap: logit_cap.map(|x| x as f32),
        activation: c.activation(act_field, act_default)?,
        gated: true,
        embed_scale: if gemma { (d as f64).sqrt() as f32 } else { 1.0 },
        embedding: "model.embed_tokens.weight".into(),
        final_norm: "model.norm".into(),
        head: module("lm_head".into(), vocab, d, 0, false),
        tied: c.flag("tie_word_embeddings", family.tied)?,
    })
}
