//! PEFT's LoRA adapters, read and written: `adapter_config.json` and `adapter_model.safetensors`.

mod config;
mod existing;
mod new_adapter;
mod pattern;
mod targets;
mod whole_modules;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub use config::AdapterConfig;
use config::MERGE;
pub use existing::differing_part;
pub use new_adapter::new_config;
use pattern::FieldReason;
use sha2::{Digest, Sha256};
use targets::ALL_LINEAR;
pub use targets::LoraTargets;
pub use write::{encode_adapter, merged, write_adapter};

use super::checkpoint::Checkpoint;
use super::description::{LinearSpec, ModelConfig};
use super::folder::{MAX_CONFIG_BYTES, inside, read_inside};
use super::load::{LoraSpec, linear_modules, lora_names};
use super::side_files::SideFiles;
use super::tensor_file::{TensorFile, shape_text};
use crate::error::{Error, Result};

/// File of an adapter's configuration.
pub const CONFIG: &str = "adapter_config.json";
/// File of an adapter's weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// File of weights as a pickle, which is not read.
const PICKLED: &str = "adapter_model.bin";

/// Prefix of every name in PEFT's files.
const PREFIX: &str = "base_model.model.";

/// LoRA adapter as read from a folder, or newly created.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// R, s and matrices.
    pub lora: LoraSpec,
    /// Contents of `adapter_config.json`.
    pub config: AdapterConfig,
    /// Notes for the user: names in `target_modules` that match no module of this model (PEFT ignores them too), saved copies of the base's
    /// weights, and unknown fields.
    pub notes: Vec<String>,
    /// Other files of the adapter's folder.
    pub side: SideFiles,
    /// SHA-256 of the configuration's text and the tensors, in hexadecimal; empty for a new adapter.
    pub digest: String,
}

/// Returns the file's tensors by PEFT's names. Corrects names that another program wrote without the prefix, or with the adapter's name in
/// them.
fn canonical_names(file: &TensorFile) -> Result<BTreeMap<String, &str>> {
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    for stored in file.tensors().keys() {
        let mut name = if stored.starts_with("base_model.") { stored.clone() } else { format!("{PREFIX}{stored}") };
        // Such as `lora_A.default.weight`.
        if let Some((module, rest)) = name.split_once(".lora_")
            && let [side, adapter, "weight"] = rest.split('.').collect::<Vec<_>>().as_slice()
            && !adapter.is_empty()
        {
            name = format!("{module}.lora_{side}.weight");
        }
        if let Some(other) = names.insert(name, stored) {
            return Err(Error::tensor(file.path(), stored, format!("is the same matrix as `{other}`")));
        }
    }
    Ok(names)
}

impl Adapter {
    /// Reads an adapter of a model.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Field`], or [`Error::Tensor`] where a matrix is missing or belongs to another base model.
    pub fn open(dir: impl AsRef<Path>, d: &ModelConfig) -> Result<Self> {
        Self::open_on(dir, d, None)
    }

    /// Reads an adapter of a model. Where `base` is given, weights of the base that were saved with the adapter are compared with it.
    ///
    /// # Errors
    /// Fails like [`Adapter::open`]; also [`Error::Tensor`] for a weight that differs from the base's.
    pub fn open_on(dir: impl AsRef<Path>, d: &ModelConfig, base: Option<&Checkpoint>) -> Result<Self> {
        let dir = dir.as_ref();
        let (path, text) = (dir.join(CONFIG), read_inside(dir, CONFIG, MAX_CONFIG_BYTES)?);
        let config = AdapterConfig::from_json(&path, &text)?;
        if !dir.join(WEIGHTS).exists() && dir.join(PICKLED).exists() {
            return Err(Error::file(dir, format!("holds {PICKLED}, which is not read: convert it to {WEIGHTS}")));
        }
        let file = TensorFile::open(inside(dir, WEIGHTS)?)?;
        let names = canonical_names(&file)?;
        let absent = match &config.targets {
            LoraTargets::Names(targets) => select(d, targets).1,
            LoraTargets::AllLinear | LoraTargets::Pattern(_) => Vec::new(),
        };
        let of_field = |(field, reason): FieldReason| Error::field(&path, field, reason);
        let mut targeted = Vec::new();
        for module in linear_modules(d) {
            if config.selects(&module.name).map_err(of_field)? {
                targeted.push(module);
            }
        }
        refuse_other_targets(&path, &config, d, &names)?;
        if targeted.is_empty() {
            let reason = format!("names no module of this model, which has {}", available(d));
            return Err(Error::field(&path, "target_modules", reason));
        }
        let bad = |name: &str, reason: String| Error::tensor(file.path(), name, reason);
        let read = |name: &str, shape: [usize; 2]| {
            let stored_name = names.get(name).ok_or_else(|| bad(name, "is missing".into()))?;
            let stored = &file.tensors()[*stored_name];
            if stored.shape != shape {
                let (ours, theirs) = (shape_text(&shape), shape_text(&stored.shape));
                return Err(bad(stored_name, format!("expected {ours} for this base model, file has {theirs}")));
            }
            file.values(stored_name, stored)
        };
        let mut lora = LoraSpec { rank: config.rank, scale: config.scale(), ..LoraSpec::default() };
        let mut known = BTreeSet::new();
        for module in targeted {
            let [name_a, name_b] = lora_names(&module.name);
            let rank = config.rank_of(&module.name).map_err(of_field)?;
            let scale = config.scale_of(&module.name).map_err(of_field)?;
            let (a, b) = (read(&name_a, [rank, module.n_in])?, read(&name_b, [module.n_out, rank])?);
            lora.insert(&module.name, rank, scale, (a, b));
            known.extend([name_a, name_b]);
        }
        let (whole, of_modules) = whole_modules::read(dir, &config, d, &file, &names)?;
        lora.whole = whole;
        known.extend(of_modules);
        lora.tokens = whole_modules::read_rows(dir, &config, d, &file, &names)?;
        known.extend(lora.tokens.iter().map(|tokens| tokens.name.clone()));
        let mut notes = Vec::new();
        if !absent.is_empty() {
            notes.push(format!("target_modules that this model does not have: {}", absent.join(", ")));
        }
        let unused = config.unused_patterns(lora.modules.keys().map(String::as_str)).map_err(of_field)?;
        if !unused.is_empty() {
            notes.push(format!("rank_pattern, alpha_pattern: names that fit no module here: {}", unused.join(", ")));
        }
        if !config.unknown.is_empty() {
            notes.push(format!("fields that are not known and not used: {}", config.unknown.join(", ")));
        }
        let mut copies = Vec::new();
        for (name, stored_name) in names.iter().filter(|(name, _)| !known.contains(*name)) {
            match saved_weight(name, d) {
                Some(weight) => {
                    compare_with_base(&file, stored_name, &weight, d, base, &path, &config)?;
                    copies.push(weight);
                }
                None => {
                    return Err(bad(
                        stored_name,
                        format!("belongs to no module that target_modules names in this {}", d.architecture),
                    ));
                }
            }
        }
        if !copies.is_empty() {
            notes.push(format!("saved with the adapter, and the base's own: {}", copies.join(", ")));
        }
        let (side, digest) = (SideFiles::read(dir), digest(&text, &file)?);
        Ok(Self { lora, config, notes, side, digest })
    }
}

/// Computes SHA-256 of a configuration and tensors, in hexadecimal.
fn digest(config: &str, file: &TensorFile) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(config);
    for (name, stored) in file.tensors() {
        hash.update(format!("\0{name}\0{:?}{:?}\0", stored.dtype, stored.shape));
        file.pieces(stored, |bytes| {
            hash.update(bytes);
            Ok(())
        })?;
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Refuses adapters of the embedding or the head: PEFT supports them, this program does not.
fn refuse_other_targets(
    path: &Path,
    config: &AdapterConfig,
    d: &ModelConfig,
    names: &BTreeMap<String, &str>,
) -> Result<()> {
    let embedding = d.embedding.trim_end_matches(".weight");
    for module in [embedding, &d.head.name] {
        let begins = format!("{PREFIX}{module}.lora_");
        if names.keys().any(|name| name.starts_with(&begins)) {
            let reason = format!("{} has {module}, where no adapter is supported: {MERGE}", config.targets);
            return Err(Error::field(path, "target_modules", reason));
        }
    }
    Ok(())
}

/// Returns the name in the model of the base's weight of which a tensor in an adapter's file is a copy.
fn saved_weight(name: &str, d: &ModelConfig) -> Option<String> {
    let name = name.strip_prefix(PREFIX)?.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".");
    let is_head = name == format!("{}.weight", d.head.name);
    (is_head || d.tensors().iter().any(|spec| spec.name == name)).then_some(name)
}

/// Compares a weight that was saved with an adapter with the base's own weight. PEFT would load the saved one.
fn compare_with_base(
    file: &TensorFile,
    stored_name: &str,
    weight: &str,
    d: &ModelConfig,
    base: Option<&Checkpoint>,
    config_path: &Path,
    config: &AdapterConfig,
) -> Result<()> {
    let stored = &file.tensors()[stored_name];
    let bad = |reason: String| Error::tensor(file.path(), stored_name, reason);
    let own = if d.tied && weight == format!("{}.weight", d.head.name) { d.embedding.as_str() } else { weight };
    let expected = [d.vocab, d.d_model];
    if own == d.embedding && stored.shape != expected {
        let (ours, theirs) = (shape_text(&expected), shape_text(&stored.shape));
        return Err(bad(format!(
            "is {theirs}, the base's is {ours}: the adapter was trained with added tokens. Give --model a base that was resized and saved with them"
        )));
    }
    let is_same = match base {
        Some(base) => {
            base.info(own).is_some_and(|(_, shape)| shape == stored.shape)
                && base.read_f32(own)? == file.values(stored_name, stored)?
        }
        None => false,
    };
    match &config.bias {
        _ if is_same => Ok(()),
        Some(bias) if weight.ends_with(".bias") => Err(Error::field(
            config_path,
            "bias",
            format!("{bias}: the trained bias {weight} is not supported: {MERGE}"),
        )),
        _ => Err(bad(format!("is not the base's own: weights that were trained whole are not supported: {MERGE}"))),
    }
}

/// Returns the modules that names match, by their last component or a longer suffix as in PEFT, and the names that match none.
fn select<'a>(d: &'a ModelConfig, names: &[String]) -> (Vec<&'a LinearSpec>, Vec<String>) {
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

/// Lists the names of a model's modules: "down_proj, q_proj, ... (or all-linear)".
fn available(d: &ModelConfig) -> String {
    let names: BTreeSet<&str> = linear_modules(d).filter_map(|m| m.name.rsplit('.').next()).collect();
    format!("{} (or {ALL_LINEAR})", names.into_iter().collect::<Vec<_>>().join(", "))
}
