//! Conversion of Hugging Face's `config.json`, of transformers 4 and 5, into a [`ModelConfig`]. Unsupported settings are refused by name.
//!
//! Defaults are those of `configuration_*.py` in transformers 4.57 and 5.24. Sizes have none, except in Gemma 3, whose checkpoints on the hub
//! lack some. Fields that these classes ignore are ignored here too. Where an ignored field would have added tensors,
//! [`super::checkpoint::Checkpoint::verify`] notes them.

use std::path::Path;

use serde_json::{Map, Value};

use super::description::{
    Activation, DeltaNetConfig, KeysValues, LayerConfig, LinearSpec, MlpConfig, ModelConfig, NormKind, NormSpec,
    QkNorm, TokenMixer,
};
use super::families::{
    AttentionBias, FAMILIES, FamilySpec, ModelFamily, REFUSED, WRAPPERS, Windows, WrapperSpec, limit,
};
use crate::error::{Error, Result};

mod experts;
mod gemma4;
mod gpt_oss;
mod lfm2;
mod rotary;

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

    /// Returns the one name in `architectures`; `None` where the field is absent.
    fn architecture(&self) -> Result<Option<&'a str>> {
        let Some(list) = self.get("architectures") else { return Ok(None) };
        match list.as_array().map(Vec::as_slice) {
            Some([Value::String(name)]) => Ok(Some(name)),
            _ => Err(self.bad("architectures", format!("expected a list of one name, found {list}"))),
        }
    }

    /// Checks that `model_type`, where it is given, is the one of an architecture.
    fn check_model_type(&self, expected: &str, architecture: &str) -> Result<()> {
        match self.text("model_type")? {
            Some(other) if other != expected => {
                Err(self.bad("model_type", format!("expected `{expected}` for {architecture}, found `{other}`")))
            }
            _ => Ok(()),
        }
    }

    /// Returns the wrapper that the configuration describes, if it is one.
    fn wrapper(&self) -> Result<Option<&'static WrapperSpec>> {
        let model_type = self.text("model_type")?;
        let Some(name) = self.architecture()? else {
            return Ok(WRAPPERS.iter().find(|w| Some(w.model_type) == model_type));
        };
        let Some(wrapper) = WRAPPERS.iter().find(|w| w.architecture == name) else { return Ok(None) };
        self.check_model_type(wrapper.model_type, name)?;
        Ok(Some(wrapper))
    }

    fn family(&self) -> Result<&'static FamilySpec> {
        let model_type = self.text("model_type")?;
        let supported = || {
            let names = FAMILIES.iter().map(|f| f.architecture).chain(WRAPPERS.iter().map(|w| w.architecture));
            format!("supported: {}", names.collect::<Vec<_>>().join(", "))
        };
        let Some(name) = self.architecture()? else {
            let by_type = FAMILIES.iter().find(|f| Some(f.model_type) == model_type);
            return by_type.ok_or_else(|| self.bad("architectures", format!("is missing; {}", supported())));
        };
        let family = FAMILIES.iter().find(|f| f.architecture == name);
        let family =
            family.ok_or_else(|| self.bad("architectures", format!("`{name}` is not supported; {}", supported())))?;
        self.check_model_type(family.model_type, name)?;
        Ok(family)
    }

    /// Returns the family of the language model inside a wrapper; `self` is its `text_config`.
    fn text_family(&self, wrapper: &WrapperSpec) -> Result<&'static FamilySpec> {
        let name = self.text("model_type")?.unwrap_or(wrapper.text[0]);
        let family = FAMILIES.iter().find(|f| f.model_type == name && wrapper.text.contains(&name));
        family.ok_or_else(|| {
            let reason = format!(
                "`{name}` is not supported inside {}; supported: {}",
                wrapper.architecture,
                wrapper.text.join(", ")
            );
            self.bad("model_type", reason)
        })
    }

    /// Refuses settings that no family has, or that this one does not have.
    fn refuse_unsupported(&self, family: &FamilySpec) -> Result<()> {
        for (field, neutral) in REFUSED.iter().filter(|(field, _)| !family.reads.contains(field)) {
            if let Some(value) = self.get(field).filter(|v| !neutral.is(v)) {
                return Err(self.bad(field, format!("{} is not supported", shown(value))));
            }
        }
        Ok(())
    }
}

impl ConfigReader<'_> {
    /// Reads the window of each layer. `rotates` says in which layers queries and keys are rotated.
    fn windows(&self, family: &FamilySpec, rotates: &[bool]) -> Result<Vec<Option<usize>>> {
        let (n_layers, rule) = (rotates.len(), family.windows);
        let on = match rule {
            Windows::None => false,
            Windows::From | Windows::NotRotated | Windows::AllIfUsed(_) => self.flag("use_sliding_window", false)?,
            Windows::All(_) | Windows::ExceptEvery(..) => true,
        };
        let default = match rule {
            Windows::All(default) => default,
            Windows::NotRotated => None,
            Windows::ExceptEvery(_, default) | Windows::AllIfUsed(default) => Some(default),
            Windows::None | Windows::From => Some(4096),
        };
        let window = match on {
            true if self.is_null("sliding_window") => None,
            true if default.is_none() && self.get("sliding_window").is_none() => None,
            true => Some(self.size("sliding_window", limit::POSITIONS, default)?),
            false => None,
        };
        let period = match rule {
            Windows::ExceptEvery(n, _) if family.kind == ModelFamily::Gemma3 => {
                self.size("sliding_window_pattern", limit::LAYERS, Some(n))?
            }
            Windows::ExceptEvery(n, _) => n,
            _ => 1,
        };
        let full_below = match self.get("max_window_layers").filter(|_| rule == Windows::From) {
            Some(n) => n.as_u64().ok_or_else(|| self.bad("max_window_layers", "expected a whole number"))?,
            None => 28,
        };
        let slides = |i: usize| match rule {
            Windows::None => false,
            Windows::All(_) | Windows::AllIfUsed(_) => window.is_some(),
            Windows::ExceptEvery(..) => !(i + 1).is_multiple_of(period),
            Windows::From => window.is_some() && i as u64 >= full_below,
            Windows::NotRotated => window.is_some() && !rotates[i],
        };
        let mut slides: Vec<bool> = (0..n_layers).map(slides).collect();
        let types = match family.kind {
            ModelFamily::GraniteMoeHybrid => {
                let types = self.get("layer_types").or(self.get("layers_block_type"));
                Some(types.ok_or_else(|| self.bad("layer_types", "is missing: Mamba layers are not supported"))?)
            }
            // [`ConfigReader::delta_layers`] and [`ConfigReader::short_convs`] read them.
            ModelFamily::Qwen35 | ModelFamily::Lfm2 => None,
            _ => self.get("layer_types"),
        };
        if let Some(types) = types {
            let listed = self.layer_types(types, family, n_layers)?;
            if matches!(rule, Windows::None | Windows::All(_) | Windows::AllIfUsed(_)) && listed != slides {
                return Err(self.bad("layer_types", format!("a {} has layers of one kind only", family.architecture)));
            }
            slides = listed;
        }
        // The last layer is a full one, as in `Gemma4TextConfig.__post_init__`.
        if let Some(last) = slides.last_mut().filter(|_| family.kind.is_gemma4()) {
            *last = false;
        }
        // transformers slides the layers of `layer_types` only where `use_sliding_window` is on.
        if rule == Windows::NotRotated && !on {
            slides.fill(false);
        }
        if slides.contains(&true) && window.is_none() {
            return Err(self.bad("sliding_window", "has no value, yet there are layers of type sliding_attention"));
        }
        Ok(slides.into_iter().map(|s| window.filter(|_| s)).collect())
    }

    /// Reads which layers have a sliding window.
    fn layer_types(&self, types: &Value, family: &FamilySpec, n_layers: usize) -> Result<Vec<bool>> {
        let slides = |t: &str| match t {
            "sliding_attention" => Some(true),
            "full_attention" => Some(false),
            "attention" if family.kind == ModelFamily::GraniteMoeHybrid => Some(false),
            _ => None,
        };
        self.each_layer_type(types, n_layers, "full_attention, sliding_attention", slides)
    }

    /// Reads a property of each layer from its type.
    fn each_layer_type(
        &self,
        types: &Value,
        n_layers: usize,
        supported: &str,
        read: impl Fn(&str) -> Option<bool>,
    ) -> Result<Vec<bool>> {
        let types = types.as_array().ok_or_else(|| self.bad("layer_types", "expected a list"))?;
        if types.len() != n_layers {
            let reason = format!("has {} entries for num_hidden_layers = {n_layers}", types.len());
            return Err(self.bad("layer_types", reason));
        }
        let unsupported =
            |t: &Value| self.bad("layer_types", format!("{} is not supported ({supported} are)", shown(t)));
        types.iter().map(|t| t.as_str().and_then(&read).ok_or_else(|| unsupported(t))).collect()
    }

    /// Reads which layers have a delta net; the others have attention.
    fn delta_layers(&self, family: &FamilySpec, n_layers: usize) -> Result<Vec<bool>> {
        if family.kind != ModelFamily::Qwen35 {
            return Ok(vec![false; n_layers]);
        }
        let Some(types) = self.get("layer_types") else {
            let interval = self.size("full_attention_interval", limit::LAYERS, Some(4))?;
            return Ok((1..=n_layers).map(|i| !i.is_multiple_of(interval)).collect());
        };
        let has_delta_net = |t: &str| match t {
            "linear_attention" => Some(true),
            "full_attention" => Some(false),
            _ => None,
        };
        self.each_layer_type(types, n_layers, "full_attention, linear_attention", has_delta_net)
    }

    /// Reads the sizes of a delta net; the layer's tensors are under `at`.
    fn delta_net(&self, at: &str) -> Result<DeltaNetConfig> {
        let head_count = |field: &str, default| self.size(field, limit::HEADS, Some(default));
        let width = |field: &str| self.size(field, limit::HEAD_DIM, Some(128));
        let net = DeltaNetConfig {
            key_heads: head_count("linear_num_key_heads", 16)?,
            value_heads: head_count("linear_num_value_heads", 32)?,
            key_dim: width("linear_key_head_dim")?,
            value_dim: width("linear_value_head_dim")?,
            taps: self.size("linear_conv_kernel_dim", limit::CONV_TAPS, Some(4))?,
            conv: format!("{at}.conv1d"),
            a_log: format!("{at}.A_log"),
            dt_bias: format!("{at}.dt_bias"),
            norm: format!("{at}.norm"),
        };
        let DeltaNetConfig { key_heads, value_heads, taps, .. } = net;
        if !value_heads.is_multiple_of(key_heads) {
            let reason = format!("{key_heads} does not divide linear_num_value_heads = {value_heads}");
            return Err(self.bad("linear_num_key_heads", reason));
        }
        if taps < 2 {
            return Err(self.bad("linear_conv_kernel_dim", "expected at least 2"));
        }
        Ok(net)
    }

    /// Reads in which layers queries and keys are rotated.
    fn rotating_layers(&self, family: &FamilySpec, n_layers: usize) -> Result<Vec<bool>> {
        match family.kind {
            ModelFamily::SmolLm3 => match self.get("no_rope_layers") {
                None => {
                    let period = self.size("no_rope_layer_interval", limit::LAYERS, Some(4))?;
                    Ok((1..=n_layers).map(|i| !i.is_multiple_of(period)).collect())
                }
                Some(list) => {
                    let bits = list.as_array().filter(|bits| bits.len() == n_layers);
                    let bits = bits.and_then(|bits| bits.iter().map(|bit| bit.as_u64().filter(|&b| b < 2)).collect());
                    let reason = || format!("expected a list of {n_layers} numbers, each 0 or 1");
                    let bits: Vec<u64> = bits.ok_or_else(|| self.bad("no_rope_layers", reason()))?;
                    Ok(bits.iter().map(|&bit| bit == 1).collect())
                }
            },
            ModelFamily::GraniteMoeHybrid => match self.text("position_embedding_type")? {
                Some("rope") => Ok(vec![true; n_layers]),
                None | Some("nope") => Ok(vec![false; n_layers]),
                Some(other) => {
                    let reason = format!("`{other}` is not supported (rope, nope are)");
                    Err(self.bad("position_embedding_type", reason))
                }
            },
            _ => Ok(vec![true; n_layers]),
        }
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
        if let Some(wrapper) = c.wrapper()? {
            let text = c.object("text_config")?.ok_or_else(|| c.bad("text_config", "is missing"))?;
            let family = text.text_family(wrapper)?;
            c.refuse_unsupported(family)?;
            text.refuse_unsupported(family)?;
            // transformers 5 reads the outer configuration's field, earlier versions the inner one's.
            let inner = text.flag("tie_word_embeddings", wrapper.tied)?;
            let tied = c.flag("tie_word_embeddings", inner)?;
            let d = rotary(&text, family, Some(wrapper))?;
            return Ok(Self { architecture: wrapper.architecture.into(), tied, ..d });
        }
        let family = c.family()?;
        c.refuse_unsupported(family)?;
        if family.kind == ModelFamily::Gpt2 { gpt2(&c, family) } else { rotary(&c, family, None) }
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
            mixer: TokenMixer::Attention { output_gate: false },
            window: None,
            rope: None,
            n_kv_heads: heads,
            head_dim: e,
            keys_values: KeysValues::Own,
            d_ff: f,
            attn_norm: Some(format!("{at}.ln_1")),
            attn_post_norm: None,
            mlp_norm: Some(format!("{at}.ln_2")),
            mlp_post_norm: None,
            q_norm: None,
            k_norm: None,
            sinks: None,
            qkv: vec![conv(format!("{at}.attn.c_attn"), 3 * d, d)],
            out: conv(format!("{at}.attn.c_proj"), d, d),
            mlp: MlpConfig::Dense {
                up: vec![conv(format!("{at}.mlp.c_fc"), f, d)],
                down: conv(format!("{at}.mlp.c_proj"), d, f),
            },
            per_layer: None,
            scalar: None,
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
        wrapped: false,
        qk_norm: QkNorm::None,
        value_norm: false,
        ropes: Vec::new(),
        position_embedding: Some("transformer.wpe.weight".into()),
        layers: (0..n_layers).map(layer).collect(),
        attention_scale: if c.flag("scale_attn_weights", true)? { (1.0 / (e as f64).sqrt()) as f32 } else { 1.0 },
        attention_softcap: None,
        logit_softcap: None,
        activation: c.activation("activation_function", "gelu_new")?,
        gated: false,
        embed_scale: 1.0,
        per_layer_inputs: None,
        residual_scale: 1.0,
        logit_scale: 1.0,
        embedding: "transformer.wte.weight".into(),
        final_norm: "transformer.ln_f".into(),
        head: module("lm_head".into(), vocab, d, 0, false),
        tied: c.flag("tie_word_embeddings", family.tied)?,
    })
}

/// Reads the numbers of heads: (H, K, E).
fn heads(c: &ConfigReader, family: &FamilySpec, d: usize) -> Result<(usize, usize, usize)> {
    let h = c.size("num_attention_heads", limit::HEADS, family.heads)?;
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

/// Reads the configuration of a model like Llama, alone or inside a wrapper.
fn rotary(c: &ConfigReader, family: &FamilySpec, wrapper: Option<&WrapperSpec>) -> Result<ModelConfig> {
    let kind = family.kind;
    let gemma4 = kind.is_gemma4();
    let gemma = gemma4 || matches!(kind, ModelFamily::Gemma2 | ModelFamily::Gemma3);
    let granite = matches!(kind, ModelFamily::Granite | ModelFamily::GraniteMoeHybrid);
    if kind == ModelFamily::GraniteMoeHybrid {
        match c.get("num_local_experts") {
            Some(n) if n.as_u64() == Some(0) => {}
            Some(n) => return Err(c.bad("num_local_experts", format!("{} is not supported: 0 is", shown(n)))),
            None => return Err(c.bad("num_local_experts", "is missing; 0 is supported")),
        }
    }
    let d = c.size("hidden_size", limit::WIDTH, None)?;
    let (h, kv, e) = heads(c, family, d)?;
    let f = match kind {
        ModelFamily::Lfm2 => c.lfm2_mlp_width()?,
        _ => c.size(family.mlp.width, limit::FEED_FORWARD, None)?,
    };
    let vocab = c.size("vocab_size", limit::VOCAB, family.vocab)?;
    let n_layers = c.size("num_hidden_layers", limit::LAYERS, None)?;
    let max_positions = c.size("max_position_embeddings", limit::POSITIONS, Some(family.max_positions))?;
    let rotates = c.rotating_layers(family, n_layers)?;
    let windows = c.windows(family, &rotates)?;
    let base = if wrapper.is_some() { "model.language_model" } else { "model" };
    let of_gemma4 =
        if gemma4 { Some(gemma4::Gemma4Layers::read(c, family, base, [d, h, kv, e, f], &windows)?) } else { None };
    let of_experts = match kind {
        ModelFamily::Qwen3Moe => Some(experts::ExpertLayers::of_qwen3(c, n_layers)?),
        ModelFamily::GptOss => Some(experts::ExpertLayers::of_gpt_oss(c, n_layers)?),
        _ => None,
    };
    let ropes = match &of_gemma4 {
        Some(layers) => c.gemma4_ropes(family, layers.head_dims(), max_positions)?,
        None if rotates.contains(&true) => c.ropes(family, e, max_positions)?,
        None => Vec::new(),
    };
    let longest = ropes.iter().filter_map(rotary::longest).max().unwrap_or(0);

    let (qkv_bias, out_bias) = match family.attention_bias {
        AttentionBias::Never => (false, false),
        AttentionBias::Qkv => (true, false),
        AttentionBias::QkvByField => (c.flag("attention_bias", true)?, false),
        AttentionBias::ByField => {
            let bias = c.flag("attention_bias", false)?;
            (bias, bias)
        }
        AttentionBias::AllByField => {
            let bias = c.flag("attention_bias", true)?;
            (bias, bias)
        }
    };
    let mlp_bias = family.mlp_bias && c.flag("mlp_bias", false)?;
    let multiplier = |field: &str| if granite { c.number(field, Some(1.0)) } else { Ok(1.0) };
    let residual_scale = multiplier("residual_multiplier")? as f32;
    for (field, is_on) in [("attention_bias", out_bias), ("mlp_bias", mlp_bias)] {
        if is_on && residual_scale != 1.0 {
            return Err(c.bad(field, "true is not supported with a residual_multiplier"));
        }
    }
    let output_gate = kind == ModelFamily::Qwen35;
    let delta_layers = c.delta_layers(family, n_layers)?;
    let short_convs = (kind == ModelFamily::Lfm2).then(|| c.short_convs(n_layers)).transpose()?;
    let layer = |(i, &window): (usize, &Option<usize>)| {
        let at = format!("{base}.layers.{i}");
        let attn = |name: &str, n_out, column| module(format!("{at}.self_attn.{name}"), n_out, d, column, qkv_bias);
        let own = of_gemma4.as_ref().map(|layers| layers.layer(i));
        let (kv, e, f) = own.as_ref().map_or((kv, e, f), |own| (own.n_kv_heads, own.head_dim, own.d_ff));
        let keys_values = own.as_ref().map_or(KeysValues::Own, |own| own.keys_values);
        let experts = of_experts.as_ref().and_then(|experts| experts.layer(&at, i, d));
        let f = experts.as_ref().map_or(f, |(width, _)| *width);
        let experts = experts.map(|(_, experts)| MlpConfig::Experts(experts));
        let (q, k) = (h * e, kv * e);
        let q_rows = if output_gate { 2 * q } else { q };
        let up_width = 2 * f / family.mlp.up.len();
        let up = |(i, name): (usize, &&str)| module(format!("{at}.{name}"), up_width, d, i * up_width, mlp_bias);
        let named = |name: &str| format!("{at}.{name}");
        let qk_norm = |name: &str| (family.qk_norm != QkNorm::None).then(|| named(name));
        let attention = LayerConfig {
            mixer: TokenMixer::Attention { output_gate },
            window,
            // Where there are two tables, the second is that of sliding layers.
            rope: rotates[i].then(|| usize::from(ropes.len() > 1 && window.is_some())),
            n_kv_heads: kv,
            head_dim: e,
            keys_values,
            d_ff: f,
            attn_norm: family.norms.attn.map(named),
            attn_post_norm: family.norms.attn_post.map(named),
            mlp_norm: family.norms.mlp.map(named),
            mlp_post_norm: family.norms.mlp_post.map(named),
            q_norm: qk_norm(family.attention.qk_norms[0]),
            k_norm: qk_norm(family.attention.qk_norms[1]).filter(|_| !matches!(keys_values, KeysValues::OfLayer(_))),
            sinks: (kind == ModelFamily::GptOss).then(|| named("self_attn.sinks")),
            qkv: match keys_values {
                KeysValues::Own if family.fused_qkv => vec![attn("qkv_proj", q + 2 * k, 0)],
                KeysValues::Own => vec![attn("q_proj", q_rows, 0), attn("k_proj", k, q), attn("v_proj", k, q + k)],
                KeysValues::KeysAsValues => vec![attn("q_proj", q_rows, 0), attn("k_proj", k, q)],
                KeysValues::OfLayer(_) => vec![attn("q_proj", q_rows, 0)],
            },
            out: module(named(family.attention.out), d, q, 0, out_bias),
            mlp: experts.unwrap_or_else(|| MlpConfig::Dense {
                up: family.mlp.up.iter().enumerate().map(up).collect(),
                down: module(named(family.mlp.down), d, f, 0, mlp_bias),
            }),
            per_layer: own.and_then(|own| own.per_layer),
            scalar: gemma4.then(|| named("layer_scalar")),
        };
        if let Some(convs) = short_convs.as_ref().filter(|convs| convs.has(i)) {
            return Ok(convs.layer(&at, d, attention));
        }
        if !delta_layers[i] {
            return Ok(attention);
        }
        let net = c.delta_net(&named("linear_attn"))?;
        let linear = |name: &str, n_out, n_in| module(named(&format!("linear_attn.{name}")), n_out, n_in, 0, false);
        let inputs = ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"].into_iter().zip(net.input_widths());
        Ok(LayerConfig {
            rope: None,
            q_norm: None,
            k_norm: None,
            qkv: inputs.map(|(name, width)| linear(name, width, d)).collect(),
            out: linear("out_proj", d, net.heads().value_width()),
            mixer: TokenMixer::DeltaNet(net),
            ..attention
        })
    };
    let attention_scale = match kind {
        _ if gemma4 => 1.0,
        _ if gemma => 1.0 / c.number("query_pre_attn_scalar", Some(256.0))?.sqrt(),
        _ if granite => multiplier("attention_multiplier")?,
        _ => 1.0 / (e as f64).sqrt(),
    };
    let attention_cap = c.optional("attn_logit_softcapping", (kind == ModelFamily::Gemma2).then_some(50.0))?;
    if attention_cap.is_some() && kind != ModelFamily::Gemma2 {
        return Err(c.bad("attn_logit_softcapping", "is supported for Gemma2ForCausalLM only"));
    }
    let logit_cap = c.optional("final_logit_softcapping", (kind == ModelFamily::Gemma2).then_some(30.0))?;
    if logit_cap.is_some() && !gemma {
        return Err(c.bad("final_logit_softcapping", "is supported for Gemma only"));
    }
    let (act_field, act_default) =
        if gemma { ("hidden_activation", "gelu_pytorch_tanh") } else { ("hidden_act", "silu") };
    let activation = match kind {
        // `Lfm2MLP` reads no activation function.
        ModelFamily::Lfm2 => Activation::Silu,
        ModelFamily::GptOss => c.clamped_swiglu()?,
        _ => c.activation(act_field, act_default)?,
    };
    let tying = if kind == ModelFamily::Lfm2 && c.get("tie_embedding").is_some() {
        "tie_embedding"
    } else {
        "tie_word_embeddings"
    };
    Ok(ModelConfig {
        architecture: family.architecture.into(),
        d_model: d,
        n_heads: h,
        n_kv_heads: kv,
        head_dim: e,
        d_ff: f,
        vocab,
        max_positions: max_positions.max(longest),
        wrapped: wrapper.is_some(),
        norm: NormSpec {
            kind: NormKind::Rms,
            eps: c.number(family.eps_field, Some(family.eps))? as f32,
            weight_offset: if gemma && !gemma4 || kind == ModelFamily::Qwen35 { 1.0 } else { 0.0 },
        },
        qk_norm: family.qk_norm,
        value_norm: gemma4,
        layers: windows.iter().enumerate().map(layer).collect::<Result<_>>()?,
        ropes,
        position_embedding: None,
        attention_scale: attention_scale as f32,
        attention_softcap: attention_cap.map(|x| x as f32),
        logit_softcap: logit_cap.map(|x| x as f32),
        activation,
        gated: true,
        embed_scale: if gemma { (d as f64).sqrt() } else { multiplier("embedding_multiplier")? } as f32,
        per_layer_inputs: of_gemma4.and_then(|layers| layers.inputs),
        residual_scale,
        logit_scale: (1.0 / multiplier("logits_scaling")?) as f32,
        embedding: format!("{base}.embed_tokens.weight"),
        final_norm: format!("{base}.{}", family.final_norm),
        head: module("lm_head".into(), vocab, d, 0, false),
        tied: c.flag(tying, family.tied)?,
    })
}
