//! PEFT's LoRA adapters: `adapter_config.json` and `adapter_model.safetensors`, in and out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::description::{Description, Module};
use super::folder::{MAX_CONFIG_BYTES, inside, read_inside};
use super::load::{LoraSpec, linear_modules, lora_names};
use super::save::{OutputDtype, Planned, encode_safetensors, write_safetensors, write_text};
use super::tensor_file::{TensorFile, shape_text};
use crate::config::{LoraSettings, positive};
use crate::error::{Error, Result};
use crate::rng::Rng;

/// What an adapter's folder says of it.
pub const CONFIG: &str = "adapter_config.json";
/// Its weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// Every linear module but the head.
const ALL_LINEAR: &str = "all-linear";
const MAX_RANK: usize = 4096;

/// Fields that change the computation, or which modules have an adapter, and are refused unless absent, null, false or empty.
const REFUSED: [&str; 20] = [
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "layers_to_transform",
    "layers_pattern",
    "exclude_modules",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "megatron_config",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "loftq_config",
];

/// How `lora_A` and `lora_B` began, where the base's weights stayed what they were.
const PLAIN_STARTS: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// Which modules have an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// `all-linear`: all but the head.
    AllLinear,
    /// Last components or longer suffixes of modules' names.
    Names(Vec<String>),
    /// A regular expression of Python's. It is not understood: the adapter's tensors say which modules it matched.
    Pattern(String),
}

impl Targets {
    /// From names as typed, where `all-linear` may stand among them.
    fn typed(names: &[String]) -> Self {
        if names.iter().any(|n| n == ALL_LINEAR) { Self::AllLinear } else { Self::Names(names.to_vec()) }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::AllLinear => json!(ALL_LINEAR),
            Self::Names(names) => json!(names),
            Self::Pattern(pattern) => json!(pattern),
        }
    }
}

/// `adapter_config.json`, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// R.
    pub rank: usize,
    /// α.
    pub alpha: f64,
    /// s = α/√R instead of α/R.
    pub rslora: bool,
    /// `target_modules`.
    pub targets: Targets,
    /// Dropout of the training that made it: not applied here.
    pub dropout: f64,
    /// `base_model_name_or_path`.
    pub base: Option<String>,
}

impl AdapterConfig {
    /// From the text of an `adapter_config.json`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Line`]: no JSON; [`Error::Field`]: missing, out of range, or not supported.
    pub fn from_json(path: &Path, text: &str) -> Result<Self> {
        let config: Value =
            serde_json::from_str(text).map_err(|e| Error::line(path, e.line(), format!("no JSON: {e}")))?;
        let fields = config.as_object().ok_or_else(|| Error::file(path, "expected a JSON object"))?;
        let get = |field: &str| fields.get(field).filter(|v| !v.is_null());
        let bad = |field: &str, reason: String| Error::field(path, field, reason);
        let off = |value: &Value| match value {
            Value::Bool(on) => !on,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if let Some(field) = REFUSED.into_iter().find(|f| get(f).is_some_and(|v| !off(v))) {
            return Err(bad(field, "is not supported".into()));
        }
        match get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            Some(other) => return Err(bad("peft_type", format!("`{other}` is not supported (LORA is)"))),
            None => return Err(bad("peft_type", "expected `LORA`".into())),
        }
        if let Some(bias) = get("bias").filter(|b| *b != "none") {
            return Err(bad("bias", format!("{bias} is not supported (\"none\" is)")));
        }
        if let Some(start) = get("init_lora_weights")
            && !start.is_boolean()
            && !start.as_str().is_some_and(|s| PLAIN_STARTS.contains(&s))
        {
            return Err(bad("init_lora_weights", format!("{start} is not supported: it changes the base's weights")));
        }
        let number = |field: &str| get(field).and_then(Value::as_f64).filter(|x| x.is_finite());
        let shown = |field: &str| fields.get(field).map_or("nothing".into(), Value::to_string);
        let rank = get("r").and_then(Value::as_u64).and_then(|r| usize::try_from(r).ok());
        let rank = rank.filter(|r| (1..=MAX_RANK).contains(r));
        let alpha = number("lora_alpha").filter(|a| *a > 0.0);
        let rslora = get("use_rslora").map_or(Some(false), Value::as_bool);
        Ok(Self {
            rank: rank.ok_or_else(|| bad("r", format!("expected 1 ..= {MAX_RANK}, found {}", shown("r"))))?,
            alpha: alpha.ok_or_else(|| {
                bad("lora_alpha", format!("expected a number above 0, found {}", shown("lora_alpha")))
            })?,
            rslora: rslora.ok_or_else(|| bad("use_rslora", "expected true or false".into()))?,
            targets: read_targets(get("target_modules")).map_err(|reason| bad("target_modules", reason))?,
            dropout: number("lora_dropout").unwrap_or(0.0),
            base: get("base_model_name_or_path").and_then(Value::as_str).map(String::from),
        })
    }

    /// s: α/R, or α/√R.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }

    /// As PEFT reads it back.
    pub fn to_json(&self, d: &Description) -> Value {
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "use_rslora": self.rslora,
            "bias": "none",
            "fan_in_fan_out": linear_modules(d).all(|m| m.transposed),
            "inference_mode": true,
            "init_lora_weights": true,
            "target_modules": self.targets.to_json(),
        })
    }
}

fn read_targets(value: Option<&Value>) -> Result<Targets, String> {
    match value {
        Some(Value::String(all)) if all == ALL_LINEAR => Ok(Targets::AllLinear),
        Some(Value::String(pattern)) if !pattern.is_empty() => Ok(Targets::Pattern(pattern.clone())),
        Some(Value::Array(list)) if !list.is_empty() => {
            let name = |v: &Value| v.as_str().map(String::from).ok_or_else(|| format!("expected names, found {v}"));
            list.iter().map(name).collect::<Result<_, _>>().map(Targets::Names)
        }
        _ => Err(format!("expected a list of names, a pattern, or \"{ALL_LINEAR}\"")),
    }
}

/// An adapter.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// R, s and values.
    pub lora: LoraSpec,
    /// As `adapter_config.json` has it.
    pub config: AdapterConfig,
    /// Names among `target_modules` that match no module of this model; PEFT passes them over too.
    pub absent: Vec<String>,
}

impl Adapter {
    /// Reads an adapter of a model.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Field`], or [`Error::Tensor`] where a matrix is missing or is of another base model.
    pub fn open(dir: impl AsRef<Path>, d: &Description) -> Result<Self> {
        let dir = dir.as_ref();
        let (path, text) = (dir.join(CONFIG), read_inside(dir, CONFIG, MAX_CONFIG_BYTES)?);
        let config = AdapterConfig::from_json(&path, &text)?;
        let file = TensorFile::open(inside(dir, WEIGHTS)?)?;
        let held = |m: &Module| lora_names(&m.name).iter().any(|n| file.tensors().contains_key(n));
        let (targeted, absent) = match &config.targets {
            Targets::AllLinear => (linear_modules(d).collect(), Vec::new()),
            Targets::Names(names) => select(d, names),
            Targets::Pattern(_) => (linear_modules(d).filter(|m| held(m)).collect(), Vec::new()),
        };
        if targeted.is_empty() {
            let reason = match &config.targets {
                Targets::Pattern(_) => format!("{WEIGHTS} holds no module of this model, which has {}", available(d)),
                _ => format!("names no module of this model, which has {}", available(d)),
            };
            return Err(Error::field(&path, "target_modules", reason));
        }
        let bad = |name: &str, reason: String| Error::tensor(file.path(), name, reason);
        let read = |name: &str, shape: [usize; 2]| {
            let stored = file.tensors().get(name).ok_or_else(|| bad(name, "is missing".into()))?;
            if stored.shape != shape {
                let (ours, theirs) = (shape_text(&shape), shape_text(&stored.shape));
                return Err(bad(name, format!("expected {ours} for this base model, file has {theirs}")));
            }
            file.values(name, stored)
        };
        let mut modules = BTreeMap::new();
        let mut known = BTreeSet::new();
        for module in targeted {
            let [name_a, name_b] = lora_names(&module.name);
            let a = read(&name_a, [config.rank, module.n_in])?;
            let b = read(&name_b, [module.n_out, config.rank])?;
            modules.insert(module.name.clone(), (a, b));
            known.extend([name_a, name_b]);
        }
        if let Some(name) = file.tensors().keys().find(|n| !known.contains(*n)) {
            return Err(bad(
                name,
                format!("belongs to no module that target_modules names in this {}", d.architecture),
            ));
        }
        Ok(Self { lora: LoraSpec { rank: config.rank, scale: config.scale(), modules }, config, absent })
    }

    /// A new adapter: A uniform in ±1/√n_in (PEFT's Kaiming with a = √5), B zero, so that it changes nothing yet.
    ///
    /// # Errors
    /// [`Error::Flag`]: a target that matches no module, a rank or alpha out of range.
    pub fn new(d: &Description, settings: &LoraSettings, base: &str, seed: u64) -> Result<Self> {
        if !(1..=MAX_RANK).contains(&settings.rank) {
            return Err(Error::flag("lora-r", format!("expected 1 ..= {MAX_RANK}, found {}", settings.rank)));
        }
        positive("lora-alpha", settings.alpha)?;
        let config = AdapterConfig {
            rank: settings.rank,
            alpha: settings.alpha,
            rslora: false,
            targets: Targets::typed(&settings.targets),
            dropout: 0.0,
            base: Some(base.into()),
        };
        let (targeted, absent) = match &config.targets {
            Targets::Names(names) => select(d, names),
            Targets::AllLinear | Targets::Pattern(_) => (linear_modules(d).collect(), Vec::new()),
        };
        if let Some(target) = absent.first() {
            let reason = format!("`{target}` matches no module; this model has {}", available(d));
            return Err(Error::flag("lora-targets", reason));
        }
        if targeted.is_empty() {
            return Err(Error::flag("lora-targets", format!("names no module; this model has {}", available(d))));
        }
        let mut rng = Rng::new(seed, 0x10ca);
        let mut modules = BTreeMap::new();
        for module in targeted {
            let bound = 1.0 / (module.n_in as f32).sqrt();
            let a = (0..settings.rank * module.n_in).map(|_| (2.0 * rng.next_f32() - 1.0) * bound).collect();
            modules.insert(module.name.clone(), (a, vec![0.0; module.n_out * settings.rank]));
        }
        Ok(Self { lora: LoraSpec { rank: settings.rank, scale: config.scale(), modules }, config, absent })
    }
}

/// Modules that names match, by their last component or a longer suffix, as PEFT matches them; and the names that match none.
fn select<'a>(d: &'a Description, names: &[String]) -> (Vec<&'a Module>, Vec<String>) {
    let mut hit = BTreeSet::new();
    let wanted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let modules = linear_modules(d).filter(|module| {
        let starts = std::iter::once(0).chain(module.name.match_indices('.').map(|(at, _)| at + 1));
        let found: Vec<&str> = starts.filter_map(|at| wanted.get(&module.name[at..]).copied()).collect();
        hit.extend(found.iter().copied());
        !found.is_empty()
    });
    let modules = modules.collect();
    (modules, wanted.into_iter().filter(|name| !hit.contains(name)).map(String::from).collect())
}

/// "down_proj, q_proj, ... (or all-linear)".
fn available(d: &Description) -> String {
    let names: BTreeSet<&str> = linear_modules(d).filter_map(|m| m.name.rsplit('.').next()).collect();
    format!("{} (or {ALL_LINEAR})", names.into_iter().collect::<Vec<_>>().join(", "))
}

/// Gives a module's A (0) or B (1).
type Sides<'a> = dyn FnMut(&str, usize) -> Result<Vec<f32>> + 'a;

/// Writes an adapter into a folder. The config comes last.
///
/// # Errors
/// [`Error::File`]; whatever `values` says.
pub fn write_adapter(
    dir: &Path,
    config: &AdapterConfig,
    d: &Description,
    lora: &LoraSpec,
    dtype: OutputDtype,
    values: &mut Sides,
) -> Result<()> {
    let (tensors, sources) = planned(d, lora, dtype);
    write_safetensors(&dir.join(WEIGHTS), &tensors, &mut |i| values(&sources[i].0, sources[i].1))?;
    write_text(&dir.join(CONFIG), &format!("{:#}\n", config.to_json(d)))
}

/// The same files by name, in memory.
///
/// # Errors
/// Whatever `values` says.
pub fn encode_adapter(
    config: &AdapterConfig,
    d: &Description,
    lora: &LoraSpec,
    dtype: OutputDtype,
    values: &mut Sides,
) -> Result<[(&'static str, Vec<u8>); 2]> {
    let (tensors, sources) = planned(d, lora, dtype);
    let mut weights = Vec::new();
    encode_safetensors(Path::new(WEIGHTS), &mut weights, &tensors, &mut |i| values(&sources[i].0, sources[i].1))?;
    Ok([(WEIGHTS, weights), (CONFIG, format!("{:#}\n", config.to_json(d)).into_bytes())])
}

/// An adapter's tensors, and each one's module and side.
fn planned(d: &Description, lora: &LoraSpec, dtype: OutputDtype) -> (Vec<Planned>, Vec<(String, usize)>) {
    let mut tensors = Vec::new();
    let mut sources = Vec::new();
    for module in linear_modules(d).filter(|m| lora.modules.contains_key(&m.name)) {
        let shapes = [vec![lora.rank, module.n_in], vec![module.n_out, lora.rank]];
        for (i, (name, shape)) in lora_names(&module.name).into_iter().zip(shapes).enumerate() {
            tensors.push(Planned { name, shape, dtype });
            sources.push((module.name.clone(), i));
        }
    }
    (tensors, sources)
}

/// W + s·B·A, in f64, (n_out, n_in).
pub fn merged(w: &[f32], a: &[f32], b: &[f32], rank: usize, scale: f32) -> Vec<f32> {
    let n_in = a.len() / rank;
    let row = |(w, b): (&[f32], &[f32])| {
        let value = |i: usize| {
            let sum: f64 = (0..rank).map(|r| f64::from(b[r]) * f64::from(a[r * n_in + i])).sum();
            (f64::from(w[i]) + f64::from(scale) * sum) as f32
        };
        (0..n_in).map(value).collect::<Vec<_>>()
    };
    w.chunks(n_in).zip(b.chunks(rank)).flat_map(row).collect()
}
