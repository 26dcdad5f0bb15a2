//! Checkpoints as flags name them, and their models.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::cli::args::EvaluateArgs;
use crate::cli::session::{self, ChatChoice, Model, weights_digest};
use crate::data::template::Template;
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::model::decoder::Decoder;
use crate::model::hub::{self, HubId};
use crate::model::load::LoraSpec;
use crate::model::peft;

/// The word of `--against` for the rows' own responses.
pub const GOLD: &str = "gold";

/// A checkpoint as named: a folder, a hub id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// In tables and names of files.
    pub name: String,
    /// Its runs are averaged with those of the same method.
    pub method: String,
    /// Folder or hub id.
    pub place: String,
}

/// Letters that a file's name has on every system.
fn plain(text: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = text.chars().map(fits).collect();
    name.trim_matches(['-', '.']).into()
}

/// `NAME=DIR`, or `DIR`, whose name is its last part.
fn named(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, place)) if !name.contains(['/', '\\']) && !Path::new(text).exists() => (Some(name), place),
        _ => (None, text),
    }
}

fn last_part(place: &str) -> String {
    plain(place.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default())
}

/// Every checkpoint that is evaluated, in the order of the flags.
///
/// # Errors
/// [`Error::Flag`]: nothing is named, or one thing twice.
pub fn all(args: &EvaluateArgs) -> Result<Vec<Named>> {
    let mut found = Vec::new();
    let one = |flag: &'static str, name: Option<&str>, method: Option<&str>, place: &str| {
        if place.is_empty() || name.is_some_and(|name| plain(name).is_empty()) {
            return Err(Error::flag(flag, format!("expected [NAME=]DIR, found `{place}`")));
        }
        let name = name.map_or_else(|| last_part(place), plain);
        Ok(Named { method: method.map_or_else(|| name.clone(), String::from), name, place: place.into() })
    };
    for text in &args.checkpoint {
        let (name, place) = named(text);
        found.push(one("checkpoint", name, None, place)?);
    }
    for text in &args.group {
        let Some((method, places)) = text.split_once('=').filter(|(name, _)| !plain(name).is_empty()) else {
            return Err(Error::flag("group", format!("expected NAME=DIR,DIR, found `{text}`")));
        };
        for place in places.split(',') {
            found.push(one("group", None, Some(&plain(method)), place)?);
        }
    }
    if found.is_empty() {
        let model = args.model.as_deref().ok_or_else(|| {
            Error::flag("model", "is missing: a Hugging Face folder or hub id, or --checkpoint DIR of a model")
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

/// The checkpoint of `--against`; `None`: gold. One that is evaluated too keeps its name.
///
/// # Errors
/// [`Error::Flag`].
pub fn against(args: &EvaluateArgs, all: &[Named]) -> Result<Option<Named>> {
    let Some(text) = args.against.as_deref().filter(|text| *text != GOLD) else { return Ok(None) };
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
    Ok(Some(Named { method: name.clone(), name, place: place.into() }))
}

/// A checkpoint that was read and verified; its model's weights stay on disk.
pub struct Checkpoint {
    /// Its names.
    pub named: Named,
    /// The model, shared by the adapters on it.
    pub model: Rc<Model>,
    /// The model's, or that of the adapter's folder.
    pub tokenizer: Rc<Tokenizer>,
    /// Tokens that end a response.
    pub stop_ids: Vec<u32>,
    /// On the model.
    lora: Option<LoraSpec>,
    /// What its weights are: the model's digest, with the adapter's files.
    digest: String,
}

/// A model that checkpoints stand on.
struct Base {
    name: String,
    model: Rc<Model>,
    /// Made where a checkpoint first uses it: an adapter may bring its own.
    tokenizer: Option<Rc<Tokenizer>>,
    digest: String,
}

/// Fetches a place that is no local folder from the hub, where it can be an id there: a model's, an adapter's, or a folder of a repository
/// that holds an adapter.
fn on_hub(place: &str) -> Option<Result<PathBuf>> {
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

/// Reads and verifies them; a model that several stand on once.
///
/// # Errors
/// [`Error::Flag`] for an adapter without `--model`; those of the folders.
pub fn open(args: &EvaluateArgs, all: &[Named]) -> Result<Vec<Checkpoint>> {
    let chat = ChatChoice { template: args.chat_template.as_deref(), time: args.time };
    let mut bases: Vec<Base> = Vec::new();
    let mut found = Vec::new();
    for named in all {
        let local = Path::new(&named.place);
        // An id on the hub may be an adapter's or a model's: its files tell.
        let resolved = if local.exists() { None } else { on_hub(&named.place) };
        let folder = resolved.transpose()?.unwrap_or_else(|| local.to_path_buf());
        let adapter = folder.join(peft::CONFIG).exists().then_some(folder.as_path());
        let name = match adapter {
            Some(_) => args.model.as_deref().ok_or_else(|| {
                Error::flag("model", format!("is missing: {} is an adapter, on which model?", named.place))
            })?,
            None => &named.place,
        };
        let known = bases.iter().position(|base| base.name == name);
        let at = match known {
            Some(at) => at,
            None => {
                let model = Rc::new(Model::open(name, args.base_dtype.unwrap_or_default())?);
                let digest = model.checkpoint.digest()?;
                bases.push(Base { name: name.into(), model, tokenizer: None, digest });
                bases.len() - 1
            }
        };
        let base = &mut bases[at];
        let read = base.model.adapter(adapter)?;
        let tokenizer = match base.model.own_tokenizer(read.as_ref()) {
            Some(_) => Rc::new(session::tokenizer(&base.model, read.as_ref(), chat)?),
            None => match &base.tokenizer {
                Some(tokenizer) => tokenizer.clone(),
                None => base.tokenizer.insert(Rc::new(session::tokenizer(&base.model, None, chat)?)).clone(),
            },
        };
        found.push(Checkpoint {
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

impl Checkpoint {
    /// Whether its prompts have the same tokens as another's, in a model of as many positions.
    pub fn reads_like(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.model, &other.model) && Rc::ptr_eq(&self.tokenizer, &other.tokenizer)
    }

    /// What its responses depend on: its weights, and its chat template where prompts are put into it.
    pub fn digest(&self, template: &Template) -> String {
        match template {
            template if template.renders_chats() => {
                format!("{} {}", self.digest, self.tokenizer.chat_templates().digest())
            }
            _ => self.digest.clone(),
        }
    }

    /// Onto a device, for sequences of at most so many tokens.
    ///
    /// # Errors
    /// Those of the model and the device.
    pub fn load(&self, gpu: &Gpu, longest: usize) -> Result<Decoder> {
        self.model.load(gpu, &session::frozen(self.model.base, self.lora.clone(), longest))
    }
}
