//! Models and adapters that are evaluated, by their names.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::open_model::{ChatTemplateChoice, OpenModel, weights_digest};
use crate::data::prompt_template::Template;
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::model::decoder::Decoder;
use crate::model::hub::{self, HubId};
use crate::model::load::{LoadOptions, LoraSpec};
use crate::model::peft;
use crate::model::weights::BaseDtype;

/// Value of `--against` that stands for the rows' own responses.
pub const GOLD: &str = "gold";

/// Names of models and adapters to evaluate, as the user gave them.
#[derive(Debug, Clone, Copy)]
pub struct EvaluatedModelNames<'a> {
    /// Base model of adapters, which is evaluated itself where nothing else is named.
    pub model: Option<&'a str>,
    /// `[NAME=]DIR` of models and adapters.
    pub checkpoints: &'a [String],
    /// `NAME=DIR,DIR` of models whose results are averaged.
    pub groups: &'a [String],
    /// `gold`, or `[NAME=]DIR` of the model whose responses others are compared with.
    pub against: Option<&'a str>,
    /// Chat template around prompts.
    pub chat: ChatTemplateChoice<'a>,
    /// Data type of linear weights.
    pub base_dtype: BaseDtype,
}

/// Checkpoint that the user named: a folder or a hub id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedModel {
    /// Name in tables and in names of files.
    pub name: String,
    /// Name of its method. Results of one method are averaged.
    pub method: String,
    /// Folder or hub id.
    pub place: String,
}

/// Replaces the characters that a file's name cannot have on every system.
fn plain(text: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = text.chars().map(fits).collect();
    name.trim_matches(['-', '.']).into()
}

/// Splits `NAME=DIR` into name and place. A plain `DIR` has no name.
fn named(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, place)) if !name.contains(['/', '\\']) && !Path::new(text).exists() => (Some(name), place),
        _ => (None, text),
    }
}

fn last_part(place: &str) -> String {
    plain(place.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default())
}

/// Lists the checkpoints that are evaluated, in the order of the flags.
///
/// # Errors
/// [`Error::Flag`] where nothing is named, or two checkpoints have one name.
pub fn evaluated_models(args: &EvaluatedModelNames<'_>) -> Result<Vec<NamedModel>> {
    let mut found = Vec::new();
    let one = |flag: &'static str, name: Option<&str>, method: Option<&str>, place: &str| {
        if place.is_empty() || name.is_some_and(|name| plain(name).is_empty()) {
            return Err(Error::flag(flag, format!("expected [NAME=]DIR, found `{place}`")));
        }
        let name = name.map_or_else(|| last_part(place), plain);
        Ok(NamedModel { method: method.map_or_else(|| name.clone(), String::from), name, place: place.into() })
    };
    for text in args.checkpoints {
        let (name, place) = named(text);
        found.push(one("checkpoint", name, None, place)?);
    }
    for text in args.groups {
        let Some((method, places)) = text.split_once('=').filter(|(name, _)| !plain(name).is_empty()) else {
            return Err(Error::flag("group", format!("expected NAME=DIR,DIR, found `{text}`")));
        };
        for place in places.split(',') {
            found.push(one("group", None, Some(&plain(method)), place)?);
        }
    }
    if found.is_empty() {
        let model = args.model.ok_or_else(|| {
            Error::flag(
                "model",
                "is missing: a Hugging Face folder, a GGUF file or a hub id, or --checkpoint DIR of a model",
            )
        })?;
        found.push(one("model", None, None, model)?);
    }
    // Where two have the same last part, the whole path tells them apart.
    let names: Vec<String> = found.iter().map(|c| c.name.clone()).collect();
    for checkpoint in &mut found {
        if names.iter().filter(|name| **name == checkpoint.name).count() > 1
            && checkpoint.name == last_part(&checkpoint.place)
        {
            let alone = checkpoint.method == checkpoint.name;
            checkpoint.name = plain(&checkpoint.place);
            if alone {
                checkpoint.method = checkpoint.name.clone();
            }
        }
    }
    for (i, checkpoint) in found.iter().enumerate() {
        if found[..i].iter().any(|before| before.name == checkpoint.name) {
            let reason = format!("two are called {}: NAME=DIR tells them apart", checkpoint.name);
            return Err(Error::flag("checkpoint", reason));
        }
    }
    Ok(found)
}

/// Returns the checkpoint of `--against`; `None` is gold. A checkpoint that is evaluated too keeps its name.
///
/// # Errors
/// [`Error::Flag`].
pub fn opponent(args: &EvaluatedModelNames<'_>, all: &[NamedModel]) -> Result<Option<NamedModel>> {
    let Some(text) = args.against.filter(|text| *text != GOLD) else { return Ok(None) };
    let (name, place) = named(text);
    if let Some(same) = all.iter().find(|c| c.place == place) {
        return match all.len() {
            1 => Err(Error::flag("against", "is the only checkpoint: it is not compared with itself")),
            _ => Ok(Some(same.clone())),
        };
    }
    let name = name.map_or_else(|| last_part(place), plain);
    if name.is_empty() || name == GOLD || all.iter().any(|c| c.name == name) {
        let reason = format!("another checkpoint is called `{name}`: NAME=DIR tells them apart");
        return Err(Error::flag("against", reason));
    }
    Ok(Some(NamedModel { method: name.clone(), name, place: place.into() }))
}

/// A checkpoint that was read and verified; its model's weights stay on disk.
pub struct EvaluatedModel {
    /// Name, method and place of the checkpoint.
    pub named: NamedModel,
    /// The model, shared by the adapters on it.
    pub model: Rc<OpenModel>,
    /// Tokenizer of the model, or of the adapter's folder.
    pub tokenizer: Rc<Tokenizer>,
    /// Tokens that end a response.
    pub stop_ids: Vec<u32>,
    /// Adapter on the model.
    lora: Option<LoraSpec>,
    /// Digest of the weights: the model's and the adapter's.
    digest: String,
}

/// Base model, which several checkpoints may share.
struct EvaluatedBase {
    name: String,
    model: Rc<OpenModel>,
    /// The model's own tokenizer, made when a checkpoint first uses it, because an adapter may bring its own.
    tokenizer: Option<Rc<Tokenizer>>,
    digest: String,
}

/// Fetches a place that is not a local folder from the hub, where it can be an id there: a model's, an adapter's, or a folder of a repository that holds an
/// adapter.
pub(super) fn on_hub(place: &str) -> Option<Result<PathBuf>> {
    let of_checkpoint = |error| match error {
        Error::Flag { flag: "adapter", reason } => Error::flag("checkpoint", reason),
        other => other,
    };
    match HubId::parse(place) {
        Some(_) => Some(hub::resolve(place)),
        None if hub::is_repository_folder(place) => Some(hub::resolve_adapter(Path::new(place)).map_err(of_checkpoint)),
        None => None,
    }
}

/// Reads and verifies the named checkpoints. A base model that several of them share is read once.
///
/// # Errors
/// [`Error::Flag`] for an adapter without `--model`; those of the folders.
pub fn open_evaluated(args: &EvaluatedModelNames<'_>, all: &[NamedModel]) -> Result<Vec<EvaluatedModel>> {
    let chat = args.chat;
    let mut bases: Vec<EvaluatedBase> = Vec::new();
    let mut found = Vec::new();
    for named in all {
        let local = Path::new(&named.place);
        // An id on the hub may be an adapter's or a model's: its files tell.
        let resolved = if local.exists() { None } else { on_hub(&named.place) };
        let folder = resolved.transpose()?.unwrap_or_else(|| local.to_path_buf());
        let adapter = folder.join(peft::CONFIG).exists().then_some(folder.as_path());
        let name = match adapter {
            Some(_) => args.model.ok_or_else(|| {
                Error::flag("model", format!("is missing: {} is an adapter, on which model?", named.place))
            })?,
            None => &named.place,
        };
        let known = bases.iter().position(|base| base.name == name);
        let at = match known {
            Some(at) => at,
            None => {
                let model = Rc::new(OpenModel::open(name, args.base_dtype)?);
                let digest = model.checkpoint.digest()?;
                bases.push(EvaluatedBase { name: name.into(), model, tokenizer: None, digest });
                bases.len() - 1
            }
        };
        let base = &mut bases[at];
        let read = adapter.map(|place| base.model.open_adapter(place)).transpose()?;
        let tokenizer = match base.model.own_tokenizer(read.as_ref()) {
            Some(_) => Rc::new(base.model.chat_tokenizer(read.as_ref(), chat)?),
            None => match &base.tokenizer {
                Some(tokenizer) => tokenizer.clone(),
                None => base.tokenizer.insert(Rc::new(base.model.chat_tokenizer(None, chat)?)).clone(),
            },
        };
        found.push(EvaluatedModel {
            named: named.clone(),
            digest: weights_digest(&base.model, &base.digest, read.as_ref()),
            // Also the adapter folder's generation_config.json, whose tokenizer may be the base's.
            stop_ids: base.model.stop_ids(read.as_ref(), &tokenizer)?,
            lora: read.map(|adapter| adapter.lora),
            model: base.model.clone(),
            tokenizer,
        });
    }
    Ok(found)
}

impl EvaluatedModel {
    /// Tells whether prompts have the same tokens for both checkpoints, in models of as many positions.
    pub fn reads_like(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.model, &other.model) && Rc::ptr_eq(&self.tokenizer, &other.tokenizer)
    }

    /// Returns a digest of what the checkpoint's responses depend on: its weights, and its chat template where `template` uses it.
    pub fn digest(&self, template: &Template) -> String {
        match template {
            template if template.renders_chats() => {
                format!("{} {}", self.digest, self.tokenizer.chat_templates().digest())
            }
            _ => self.digest.clone(),
        }
    }

    /// Loads the checkpoint onto a device, for sequences of at most `longest` tokens. `before` is the checkpoint that was used before it, with its decoder: an
    /// adapter on the same model shares its weights; those of another model are freed first.
    ///
    /// # Errors
    /// Those of the model and the device.
    pub fn load(&self, gpu: &Gpu, longest: usize, before: Option<(&Self, Decoder)>) -> Result<Decoder> {
        let options = LoadOptions::frozen(self.model.base, self.lora.clone(), longest);
        match before {
            Some((other, decoder)) if Rc::ptr_eq(&other.model, &self.model) => {
                self.model.load_beside(&decoder, gpu, &options)
            }
            other => {
                drop(other);
                self.model.load(gpu, &options)
            }
        }
    }
}
