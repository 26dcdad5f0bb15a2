//! `adapter_config.json`: which modules have an adapter, and with which rank and scale.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::super::description::ModelConfig;
use super::super::load::linear_modules;
use super::pattern::{FieldReason, NamePattern, first_fit, fits, read_patterns};
use super::targets::{LoraTargets, ModuleFilter, is_off};
use crate::error::{Error, Result};
use crate::model::lora_config::LoraConfig;

/// Largest rank of an adapter.
pub(super) const MAX_RANK: usize = 4096;

/// Refused fields: they change the computation, or which modules have an adapter. Each is allowed where it is absent, null, false or empty.
const REFUSED: [&str; 13] = [
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
    "megatron_config",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "loftq_config",
];

/// Fields that choose modules, ranks and scales. They are written as they were read.
const CARRIED: [&str; 5] =
    ["rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern", "exclude_modules"];

/// Fields that are read, or that do not change a finished adapter.
const KNOWN: [&str; 21] = [
    "peft_type",
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "target_modules",
    "lora_alpha",
    "lora_dropout",
    "fan_in_fan_out",
    "bias",
    "use_rslora",
    "init_lora_weights",
    "megatron_core",
    "qalora_group_size",
    "ensure_weight_tying",
    "modules_to_save",
    "trainable_token_indices",
    "runtime_config",
];

/// Fields with more settings for the initial values of `lora_A` and `lora_B`.
const STARTS: [&str; 3] = ["eva_config", "corda_config", "lora_ga_config"];

/// Advice for adapters that are not supported.
pub(super) const MERGE: &str = "merge it with PEFT (merge_and_unload) and give the result as --model";

/// Initialisations of `lora_A` and `lora_B` that leave the base's weights unchanged.
const PLAIN_STARTS: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// Parsed `adapter_config.json`.
#[derive(Debug, Clone)]
pub struct AdapterConfig {
    /// R, the rank.
    pub rank: usize,
    /// α, the numerator of the scale.
    pub alpha: f64,
    /// Whether s is α/√R (rsLoRA) instead of α/R.
    pub rslora: bool,
    /// Selection of modules: `target_modules`.
    pub targets: LoraTargets,
    /// Dropout with which the adapter was trained. Training applies its own setting's, not this.
    pub dropout: f64,
    /// Names of modules that the adapter brings whole: `modules_to_save`.
    pub modules_to_save: Vec<String>,
    /// Whether a saved embedding is the tied LM head, too (`ensure_weight_tying`). Without it, PEFT unties them.
    pub ties: bool,
    /// Ids of tokens whose embeddings the adapter brings, by the name of the embedding: `trainable_token_indices`.
    pub tokens: Option<(String, Vec<u32>)>,
    /// Base model: `base_model_name_or_path`.
    pub base: Option<String>,
    /// `bias`, unless it is `none`: which biases were trained. An adapter that holds trained biases is refused.
    pub bias: Option<String>,
    /// Fields that are set and are not known to this program.
    pub unknown: Vec<String>,
    ranks: Vec<NamePattern<usize>>,
    alphas: Vec<NamePattern<f64>>,
    filter: ModuleFilter,
    /// Fields among [`CARRIED`] that are set.
    carried: Map<String, Value>,
}

/// Compares the fields as written. The regular expressions follow from them.
impl PartialEq for AdapterConfig {
    fn eq(&self, other: &Self) -> bool {
        let plain = |c: &Self| {
            let whole = (c.modules_to_save.clone(), c.ties, c.tokens.clone());
            let rest = (c.targets.clone(), c.dropout, c.base.clone(), c.bias.clone(), c.carried.clone());
            (c.rank, c.alpha, c.rslora, whole, rest)
        };
        plain(self) == plain(other)
    }
}

impl AdapterConfig {
    /// Creates the configuration of a new adapter.
    pub(super) fn new(settings: &LoraConfig, targets: LoraTargets, base: &str) -> Self {
        let mut config = Self {
            rank: settings.rank,
            alpha: settings.alpha,
            rslora: settings.rslora,
            targets,
            dropout: 0.0,
            modules_to_save: Vec::new(),
            ties: false,
            tokens: None,
            base: Some(base.into()),
            bias: None,
            unknown: Vec::new(),
            ranks: Vec::new(),
            alphas: Vec::new(),
            filter: ModuleFilter::default(),
            carried: Map::new(),
        };
        // PEFT has no layers beside a pattern, which names them itself.
        if !settings.layers.is_empty() && matches!(config.targets, LoraTargets::Names(_)) {
            config.carried.insert("layers_to_transform".into(), json!(settings.layers));
        }
        if !settings.exclude.is_empty() {
            config.carried.insert("exclude_modules".into(), json!(settings.exclude));
        }
        let carried = &config.carried;
        config.filter = ModuleFilter::read(&config.targets, &|field| carried.get(field))
            .expect("a pattern of our own, and numbers and names");
        config
    }

    /// Reads the text of an `adapter_config.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Line`] for a text that is not JSON; [`Error::Field`] for a field that is missing, out of range, or not supported.
    pub fn from_json(path: &Path, text: &str) -> Result<Self> {
        let config: Value =
            serde_json::from_str(text).map_err(|e| Error::line(path, e.line(), format!("not JSON: {e}")))?;
        let fields = config.as_object().ok_or_else(|| Error::file(path, "expected a JSON object"))?;
        let get = |field: &str| fields.get(field).filter(|v| !v.is_null());
        let bad = |field: &str, reason: String| Error::field(path, field, reason);
        if let Some(field) = REFUSED.into_iter().find(|f| get(f).is_some_and(|v| !is_off(v))) {
            return Err(bad(field, format!("is not supported: {MERGE}")));
        }
        match get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            Some(other) => return Err(bad("peft_type", format!("`{other}` is not supported (LORA is)"))),
            None => return Err(bad("peft_type", "expected `LORA`".into())),
        }
        let bias = match get("bias") {
            None => None,
            Some(Value::String(bias)) if bias == "none" => None,
            Some(Value::String(bias)) if ["all", "lora_only"].contains(&bias.as_str()) => Some(bias.clone()),
            Some(other) => return Err(bad("bias", format!("expected none, all or lora_only, found {other}"))),
        };
        if let Some(start) = get("init_lora_weights")
            && !start.is_boolean()
            && !start.as_str().is_some_and(|s| PLAIN_STARTS.contains(&s))
        {
            return Err(bad("init_lora_weights", format!("{start} is not supported: it changes the base's weights")));
        }
        let number = |field: &str| get(field).and_then(Value::as_f64).filter(|x| x.is_finite());
        let shown = |field: &str| fields.get(field).map_or("nothing".into(), Value::to_string);
        let alpha = number("lora_alpha").filter(|a| *a > 0.0);
        let rslora = get("use_rslora").map_or(Some(false), Value::as_bool);
        let rank = |value: &Value| as_rank(value).ok_or_else(|| format!("expected 1 ..= {MAX_RANK}, found {value}"));
        let positive = |value: &Value| {
            let alpha = value.as_f64().filter(|a| *a > 0.0 && a.is_finite());
            alpha.ok_or_else(|| format!("expected numbers above 0, found {value}"))
        };
        let targets = LoraTargets::read(get("target_modules")).map_err(|reason| bad("target_modules", reason))?;
        Ok(Self {
            rank: get("r")
                .and_then(as_rank)
                .ok_or_else(|| bad("r", format!("expected 1 ..= {MAX_RANK}, found {}", shown("r"))))?,
            alpha: alpha.ok_or_else(|| {
                bad("lora_alpha", format!("expected a number above 0, found {}", shown("lora_alpha")))
            })?,
            rslora: rslora.ok_or_else(|| bad("use_rslora", "expected true or false".into()))?,
            dropout: number("lora_dropout").unwrap_or(0.0),
            modules_to_save: read_names(get("modules_to_save")).map_err(|reason| bad("modules_to_save", reason))?,
            ties: get("ensure_weight_tying").and_then(Value::as_bool).unwrap_or(false),
            tokens: read_tokens(get("trainable_token_indices").filter(|v| !is_off(v)))
                .map_err(|reason| bad("trainable_token_indices", reason))?,
            base: get("base_model_name_or_path").and_then(Value::as_str).map(String::from),
            bias,
            unknown: fields
                .iter()
                .filter(|(name, value)| is_unknown(name, value))
                .map(|(name, _)| name.clone())
                .collect(),
            ranks: read_patterns(get("rank_pattern"), rank).map_err(|reason| bad("rank_pattern", reason))?,
            alphas: read_patterns(get("alpha_pattern"), positive).map_err(|reason| bad("alpha_pattern", reason))?,
            filter: ModuleFilter::read(&targets, &get).map_err(|(field, reason)| bad(field, reason))?,
            targets,
            carried: CARRIED
                .into_iter()
                .filter_map(|name| Some((name.into(), get(name).filter(|v| !is_off(v))?.clone())))
                .collect(),
        })
    }

    /// Returns R of a module: that of the first matching entry of `rank_pattern`, else the adapter's.
    ///
    /// # Errors
    /// The field and the reason, where an entry cannot be matched.
    pub(super) fn rank_of(&self, module: &str) -> Result<usize, FieldReason> {
        Ok(first_fit("rank_pattern", &self.ranks, module)?.unwrap_or(self.rank))
    }

    /// Returns s of a module: α/R, or α/√R.
    ///
    /// # Errors
    /// Fails like [`AdapterConfig::rank_of`].
    pub(super) fn scale_of(&self, module: &str) -> Result<f32, FieldReason> {
        let alpha = first_fit("alpha_pattern", &self.alphas, module)?.unwrap_or(self.alpha);
        let rank = self.rank_of(module)? as f64;
        Ok((alpha / if self.rslora { rank.sqrt() } else { rank }) as f32)
    }

    /// Returns s of modules that no pattern matches: α/R, or α/√R.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }

    /// Returns whether a linear module has an adapter, by `exclude_modules`, `target_modules` and `layers_to_transform`.
    ///
    /// # Errors
    /// Fails like [`AdapterConfig::rank_of`].
    pub(super) fn selects(&self, module: &str) -> Result<bool, FieldReason> {
        self.filter.selects(module, &self.targets)
    }

    /// Returns the entries of `rank_pattern` and `alpha_pattern` that match none of these modules.
    ///
    /// # Errors
    /// Fails like [`AdapterConfig::rank_of`].
    pub(super) fn unused_patterns<'a>(
        &self,
        modules: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<Vec<String>, FieldReason> {
        let ranks = self.ranks.iter().map(|p| ("rank_pattern", &p.text, &p.regex));
        let alphas = self.alphas.iter().map(|p| ("alpha_pattern", &p.text, &p.regex));
        let mut names = Vec::new();
        for (field, text, regex) in ranks.chain(alphas) {
            let mut is_used = false;
            for module in modules.clone() {
                is_used = is_used || fits(field, regex, module)?;
            }
            if !is_used {
                names.push(text.clone());
            }
        }
        names.dedup();
        Ok(names)
    }

    /// Returns the contents of `adapter_config.json`, in the form that PEFT reads.
    pub fn to_json(&self, d: &ModelConfig) -> Value {
        let mut config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "bias": "none",
            "fan_in_fan_out": linear_modules(d).all(|m| m.transposed),
            "inference_mode": true,
            "init_lora_weights": true,
            "target_modules": self.targets.to_json(),
        });
        if let Some(fields) = config.as_object_mut() {
            fields.extend(self.carried.clone());
            if let Some((embedding, ids)) = &self.tokens {
                fields.insert("trainable_token_indices".into(), json!({embedding: ids}));
            }
            if !self.modules_to_save.is_empty() {
                fields.insert("modules_to_save".into(), json!(self.modules_to_save));
                fields.insert("ensure_weight_tying".into(), json!(self.ties));
            }
        }
        config
    }
}

/// Returns whether a field is set and unknown to this program.
fn is_unknown(name: &str, value: &Value) -> bool {
    let lists: [&[&str]; 4] = [&KNOWN, &STARTS, &CARRIED, &REFUSED];
    !value.is_null() && !is_off(value) && !lists.iter().any(|list| list.contains(&name))
}

/// Reads a list of token ids of `embed_tokens`, or an object of one such list.
fn read_tokens(value: Option<&Value>) -> Result<Option<(String, Vec<u32>)>, String> {
    let Some(value) = value else { return Ok(None) };
    let (name, list) = match value {
        Value::Array(list) => ("embed_tokens", list),
        Value::Object(map) => match map.iter().next() {
            Some((name, Value::Array(list))) if map.len() == 1 => (name.as_str(), list),
            _ => return Err(format!("expected ids of the embedding alone, found {value}: {MERGE}")),
        },
        other => return Err(format!("expected a list of token ids, found {other}")),
    };
    let mut ids = Vec::with_capacity(list.len());
    for value in list {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.filter(|id| !ids.contains(id));
        ids.push(id.ok_or_else(|| format!("expected token ids, each once, found {value}"))?);
    }
    Ok(Some((name.into(), ids)))
}

/// Reads a list of names.
fn read_names(value: Option<&Value>) -> Result<Vec<String>, String> {
    let name = |v: &Value| v.as_str().map(String::from).ok_or_else(|| format!("expected names, found {v}"));
    match value {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(name).collect(),
        Some(other) => Err(format!("expected a list of names, found {other}")),
    }
}

fn as_rank(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|r| usize::try_from(r).ok()).filter(|r| (1..=MAX_RANK).contains(r))
}
