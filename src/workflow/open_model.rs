//! Model folders that were read and verified, from which policies, references, judges and evaluated checkpoints are made.

#[cfg(feature = "native")]
use std::path::Path;
use std::rc::Rc;

use sha2::{Digest, Sha256};

use crate::data::named_templates::run_time;
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::generate::eos_ids;
use crate::gpu::Gpu;
use crate::kernels::storage::WeightFormat;
use crate::model::checkpoint::Checkpoint;
use crate::model::decoder::Decoder;
use crate::model::description::{LinearSpec, ModelConfig};
#[cfg(feature = "native")]
use crate::model::gguf::is_gguf;
#[cfg(feature = "native")]
use crate::model::hub;
use crate::model::load::{LoadOptions, linear_modules};
use crate::model::peft::Adapter;
use crate::model::quantised::{QuantMethod, open_quantised};
use crate::model::side_files::{CONFIG, SideFiles, TOKENIZER};
use crate::model::weights::{BaseDtype, WeightSource};

/// Chat template that renders conversations, and the time that it prints.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatTemplateChoice<'a> {
    /// A Jinja file, or the name of one of the tokenizer's templates. `None`: the tokenizer's default.
    pub template: Option<&'a str>,
    /// Time that the template prints, in seconds since 1970. `None`: the program's start.
    pub time: Option<u64>,
}

/// A model folder that was read and verified; its weights stay on disk. A clone shares the open files.
#[derive(Clone)]
pub struct OpenModel {
    /// Name that the user gave: a folder or a hub id.
    pub name: String,
    /// Architecture, read from config.json and the checkpoint.
    pub description: ModelConfig,
    /// Weights on disk, verified against the description.
    pub checkpoint: Rc<Checkpoint>,
    /// Files of the folder besides the weights, as they were when the model was opened.
    pub side: SideFiles,
    /// Data type of frozen linear weights.
    pub base: BaseDtype,
}

impl OpenModel {
    /// Opens a local folder, a GGUF file, or a hub id (`org/name`), which is fetched. Verifies names and shapes of all tensors; weights stay on disk.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Field`] and [`Error::Tensor`], naming what is missing or at odds with config.json.
    #[cfg(feature = "native")]
    pub fn open(name: &str, base: BaseDtype) -> Result<Self> {
        if is_gguf(Path::new(name)) {
            return Self::open_gguf(Path::new(name), name, base);
        }
        let dir = hub::resolve(name)?;
        let side = SideFiles::read(&dir);
        let (model, notes) = Self::from_parts(name, side, || Checkpoint::open(&dir), base)?;
        notes.iter().for_each(|note| note!("note: {note}"));
        Ok(model)
    }

    /// Makes a model of its side files and its weights, wherever they are read. The configuration is checked before `weights` is called. Also returns
    /// remarks for the user.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn from_parts(
        name: &str,
        side: SideFiles,
        weights: impl FnOnce() -> Result<Checkpoint>,
        base: BaseDtype,
    ) -> Result<(Self, Vec<String>)> {
        let method = QuantMethod::take(&side.path(CONFIG), side.required(CONFIG)?)?;
        // What is written of the model has floats, and says so.
        let (side, method) = match method {
            Some((method, config)) => (side.with_config(config), Some(method)),
            None => (side, None),
        };
        let mut description = ModelConfig::from_json(side.path(CONFIG), side.required(CONFIG)?)?;
        let mut checkpoint = weights()?;
        let mut quantised = None;
        if let Some(method) = method {
            let (floats, note) = open_quantised(checkpoint, method)?;
            (checkpoint, quantised) = (floats, Some(note));
        }
        checkpoint.settle_tying(&mut description)?;
        let verified = checkpoint.verify(&description)?;
        let mut notes: Vec<String> = checkpoint.notes().iter().chain(&verified).cloned().chain(quantised).collect();
        if let Some(storage) = base.quantised() {
            let modules: Vec<&LinearSpec> = linear_modules(&description).collect();
            let unfit = modules.iter().filter(|m| !m.n_in.is_multiple_of(storage.columns())).count();
            if unfit > 0 {
                let (all, columns, base) = (modules.len(), storage.columns(), base.name());
                notes.push(format!(
                    "{unfit} of {all} linear weights are held as bf16: their columns are no multiple of {columns}, as {base} needs"
                ));
            }
        }
        Ok((Self { name: name.into(), description, checkpoint: Rc::new(checkpoint), side, base }, notes))
    }

    /// Opens another checkpoint as the reference of a policy, with weights stored as the policy's are.
    ///
    /// # Errors
    /// Those of [`Self::open`]; [`Error::Flag`] where its vocabulary is not the policy's.
    #[cfg(feature = "native")]
    pub fn open_reference(name: &str, policy: &Self) -> Result<Self> {
        let model = Self::open(name, policy.base).map_err(|error| match error {
            Error::Flag { flag: "model", reason } => Error::flag("reference", reason),
            other => other,
        })?;
        let (theirs, ours) = (model.description.vocab, policy.description.vocab);
        if theirs != ours {
            return Err(Error::flag("reference", format!("{name} has {theirs} tokens, the policy {ours}")));
        }
        Ok(model)
    }

    /// Returns the formats that the model's weights may have on a device: those of [`BaseDtype::weight_formats`], and NF4 where the checkpoint is held in it.
    pub fn weight_formats(&self) -> Vec<WeightFormat> {
        let stored = (self.base == BaseDtype::Auto && self.checkpoint.has_nf4()).then_some(WeightFormat::Nf4);
        self.base.weight_formats().into_iter().chain(stored).collect()
    }

    /// Refuses quantised weights where every weight takes gradients. `what` names that use in the message.
    ///
    /// # Errors
    /// [`Error::Flag`].
    pub fn refuse_quantised(&self, what: &str) -> Result<()> {
        refuse_quantised(self.base, what)
    }

    /// Opens the adapter of a folder or a hub id on this model.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Tensor`] for an adapter that does not fit the model.
    #[cfg(feature = "native")]
    pub fn open_adapter(&self, place: &Path) -> Result<Adapter> {
        let dir = hub::resolve_adapter(place)?;
        let adapter = Adapter::open_on(&dir, &self.description, Some(&self.checkpoint))?;
        adapter.notes.iter().for_each(|note| note!("note: {}: {note}", dir.display()));
        Ok(adapter)
    }

    /// Returns the model's side files, with the tokenizer of the adapter's folder, if it has one, in place of the model's.
    pub fn side_files(&self, adapter: Option<&Adapter>) -> SideFiles {
        adapter.map_or_else(|| self.side.clone(), |adapter| self.side.with_tokenizer_of(&adapter.side))
    }

    /// Returns the side files of an adapter whose folder has tokenizer files that differ from the model's.
    pub fn own_tokenizer<'a>(&self, adapter: Option<&'a Adapter>) -> Option<&'a SideFiles> {
        let side = adapter.map(|adapter| &adapter.side).filter(|side| side.has_tokenizer_files())?;
        (!side.has_same_tokenizer_files(&self.side)).then_some(side)
    }

    /// Reads the tokenizer of the adapter's folder where it has one, else the model's own.
    pub fn tokenizer(&self, adapter: Option<&Adapter>) -> Result<Tokenizer> {
        let mut tokenizer = Tokenizer::from_side_files(&self.side_files(adapter))?;
        if let Some(own) = self.own_tokenizer(adapter) {
            self.compare_tokenizers(&tokenizer, own)?;
        }
        tokenizer.check_vocab(self.description.vocab)?;
        for note in tokenizer.notes() {
            note!("note: {note}");
        }
        Ok(tokenizer)
    }

    /// Logs a note where the tokenizer of an adapter's folder differs from the base's. Refuses a tokenizer with tokens beyond the embedding.
    fn compare_tokenizers(&self, tokenizer: &Tokenizer, own: &SideFiles) -> Result<()> {
        let base = self.side.has(TOKENIZER).then(|| Tokenizer::from_side_files(&self.side)).transpose()?;
        let place = own.path("").display().to_string();
        let (place, rows) = (place.trim_end_matches('/'), self.description.vocab);
        let beyond = tokenizer.added_beyond(base.as_ref(), rows);
        if let Some(last) = beyond.last() {
            let (n, needs) = (beyond.len(), *last as usize + 1);
            let reason = format!(
                "its tokenizer has {n} added tokens and needs {needs} ids, the base model's embedding has {rows} rows: give --model the base that was resized and saved with them"
            );
            return Err(Error::file(own.path(TOKENIZER), reason));
        }
        let Some(base) = base else {
            note!("note: {place}: the adapter's own tokenizer is used; the base's folder has none");
            return Ok(());
        };
        if !own.has_template() && self.side.has_template() {
            note!("note: {place}: the adapter's tokenizer has no chat template: the base's is used");
        }
        let differences = tokenizer.differences(&base);
        if !differences.is_empty() {
            let what = differences.join(", ");
            note!("note: {place}: the adapter's own tokenizer is used, which differs from the base's in {what}");
        }
        Ok(())
    }

    /// Returns the tokens that end a response; see [`eos_ids`].
    pub fn stop_ids(&self, adapter: Option<&Adapter>, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        eos_ids(&self.side_files(adapter), tokenizer.eos_id(), self.description.vocab)
    }

    /// Reads the tokenizer with a chat template of choice, and with the tokens that end a response.
    ///
    /// # Errors
    /// Those of [`Self::tokenizer`]; [`Error::Flag`] for a chat template that is not there.
    pub fn chat_tokenizer(&self, adapter: Option<&Adapter>, chat: ChatTemplateChoice<'_>) -> Result<Tokenizer> {
        let mut tokenizer = self.tokenizer(adapter)?;
        chat.template.map_or(Ok(()), |value| tokenizer.choose_chat_template(value))?;
        tokenizer.chat_templates().set_time(chat.time.unwrap_or_else(run_time));
        tokenizer.set_stop_ids(self.stop_ids(adapter, &tokenizer)?);
        Ok(tokenizer)
    }

    /// Loads the weights onto a device.
    ///
    /// # Errors
    /// [`Error::Gpu`], [`Error::OutOfMemory`]; [`Error::File`] where the weights cannot be read.
    pub fn load(&self, gpu: &Gpu, options: &LoadOptions) -> Result<Decoder> {
        Decoder::load(gpu, &self.description, &self.weight_source(), options)
    }

    /// Loads another adapter, or none, over a decoder of this model that is on the device. Frozen weights are shared, not loaded again.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub fn load_beside(&self, decoder: &Decoder, gpu: &Gpu, options: &LoadOptions) -> Result<Decoder> {
        decoder.load_beside(gpu, &self.weight_source(), options)
    }

    /// Returns the model's weights as a decoder reads them.
    pub fn weight_source(&self) -> Rc<dyn WeightSource> {
        self.checkpoint.clone()
    }
}

/// Computes a hash of a model's digest, an adapter's digest, and the tokenizer that the adapter brings. It does not depend on where they are stored.
pub fn weights_digest(model: &OpenModel, base: &str, adapter: Option<&Adapter>) -> String {
    let mut hash = Sha256::new();
    hash.update(base);
    adapter.iter().for_each(|adapter| hash.update(&adapter.digest));
    model.own_tokenizer(adapter).iter().for_each(|own| hash.update(own.tokenizer_digest()));
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Refuses quantised weights where every weight takes gradients. `what` names that use in the message.
///
/// # Errors
/// [`Error::Flag`].
pub fn refuse_quantised(base: BaseDtype, what: &str) -> Result<()> {
    match base.quantised() {
        Some(_) => Err(Error::flag(
            "base-dtype",
            format!("{} is for weights that are not trained; {what} has none", base.name()),
        )),
        None => Ok(()),
    }
}
