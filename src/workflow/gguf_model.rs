//! Models in GGUF files, opened and written with the tokenizers that are certain.

use std::path::Path;

use super::open_model::OpenModel;
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result};
use crate::model::folder::{MAX_CONFIG_BYTES, read_inside};
use crate::model::gguf::{
    GgufMetadata, GgufModel, GgufModelToWrite, GgufWeightType, MetaValue, PROBE, PreTokenizer, SpecialIds,
    converter_command, export_adapter, export_model, known_names, read_tokenizer, tokenizer_metadata, tokens,
};
use crate::model::hub;
use crate::model::peft::{self, Adapter};
use crate::model::side_files::{SideFiles, TOKENIZER, TOKENIZER_CONFIG};
use crate::model::weights::BaseDtype;

/// Reads the side files of a GGUF file. A tokenizer that the metadata do not give for certain is read from the file's folder.
///
/// # Errors
/// [`Error::File`] where neither has a tokenizer; [`Error::Field`] where the folder's tokenizer is not the file's.
pub fn gguf_side_files(model: &GgufModel) -> Result<SideFiles> {
    let side = model.side_files();
    let reason = match &model.tokenizer.pre {
        Ok(pre) if pre_tokenizer(&Tokenizer::from_side_files(&side)?) == Some(*pre) => return Ok(side),
        Ok(pre) => format!("its tokens are not those that tokenizer.ggml.pre = `{}` stands for", pre.name),
        Err(reason) => reason.clone(),
    };
    let path = model.path();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let own = SideFiles::read(folder);
    if !own.has(TOKENIZER) {
        let files = format!("{TOKENIZER} and {TOKENIZER_CONFIG}");
        return Err(Error::file(
            path,
            format!("its tokenizer cannot be read for certain: {reason}. Put the model's {files} into its folder"),
        ));
    }
    let tokenizer = Tokenizer::from_side_files(&own)?;
    compare_tokens(model.metadata(), &tokenizer, &own)?;
    note!("note: {}: the tokenizer beside it is used: {reason}", path.display());
    Ok(side.with_tokenizer_of(&own))
}

/// Compares the tokens of a file with a tokenizer's.
fn compare_tokens(metadata: &GgufMetadata, tokenizer: &Tokenizer, own: &SideFiles) -> Result<()> {
    // llama.cpp's converter writes added tokens with spaces in place of SentencePiece's marks.
    let plain = |text: &str| text.replace('▁', " ");
    for token in tokens(metadata)? {
        let theirs = tokenizer.vocab_text(token.id as u32);
        if theirs.as_deref().map(plain) != Some(plain(token.text)) {
            let theirs = theirs.map_or("nothing".into(), |text| format!("`{}`", text.escape_debug()));
            let reason = format!(
                "token {} is `{}`, and {theirs} in {}",
                token.id,
                token.text.escape_debug(),
                own.path(TOKENIZER).display()
            );
            return Err(metadata.bad("tokenizer.ggml.tokens", reason));
        }
    }
    Ok(())
}

/// Returns the known pre-tokeniser whose ids of the probe text a tokenizer gives.
fn pre_tokenizer(tokenizer: &Tokenizer) -> Option<&'static PreTokenizer> {
    let ids = tokenizer.encode_text(PROBE).ok()?;
    PreTokenizer::of_probe(&[tokenizer.start_ids(), &ids].concat())
}

/// Returns the base model that an adapter's folder names.
///
/// # Errors
/// [`Error::File`], [`Error::Field`] for an `adapter_config.json` that cannot be read; [`Error::Flag`] where it names none.
pub fn adapter_base(adapter: &Path) -> Result<String> {
    let dir = hub::resolve_adapter(adapter)?;
    let (path, text) = (dir.join(peft::CONFIG), read_inside(&dir, peft::CONFIG, MAX_CONFIG_BYTES)?);
    let missing = || Error::flag("model", format!("is missing: {} names no base model", path.display()));
    peft::AdapterConfig::from_json(&path, &text)?.base.ok_or_else(missing)
}

impl OpenModel {
    /// Opens a GGUF file. Quantised weights become f32 when they are loaded, and are then stored as `base` says.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Field`] and [`Error::Tensor`], naming what is malformed or not supported.
    pub(super) fn open_gguf(path: &Path, name: &str, base: BaseDtype) -> Result<Self> {
        let gguf = GgufModel::open(path)?;
        let (side, kinds) = (gguf_side_files(&gguf)?, gguf.quantised_types());
        let (model, notes) = Self::from_parts(name, side, || gguf.into_checkpoint(), base)?;
        notes.iter().for_each(|note| note!("note: {note}"));
        if !kinds.is_empty() && base == BaseDtype::Auto {
            let kinds = kinds.join(", ");
            note!("note: {name}: {kinds} weights are held as f32; --base-dtype bf16, int8 or nf4 takes less memory");
        }
        Ok(model)
    }

    /// Writes an adapter of this model as a GGUF file for llama.cpp.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Flag`] for an architecture whose adapters are not written.
    pub fn export_gguf_adapter(&self, adapter: &Adapter, name: &str, path: &Path) -> Result<()> {
        if self.own_tokenizer(Some(adapter)).is_some() {
            note!("note: {name}: an adapter in GGUF has no tokenizer: llama.cpp takes the base model's");
        }
        export_adapter(path, adapter, &self.description, name)
    }

    /// Writes this model as a GGUF file with its tokenizer.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Tensor`]; [`Error::Flag`] for a model that cannot be written, with the command that can.
    pub fn export_gguf(&self, path: &Path, weights: GgufWeightType) -> Result<()> {
        let tokenizer = self.gguf_tokenizer(path, weights)?;
        self.write_gguf(path, weights, &tokenizer)
    }

    /// Writes this model as a GGUF file without a tokenizer, for programs that give it ids.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Tensor`]; [`Error::Flag`] for a model that cannot be written.
    pub fn export_gguf_without_tokenizer(&self, path: &Path, weights: GgufWeightType) -> Result<()> {
        self.write_gguf(path, weights, &[])
    }

    fn write_gguf(&self, path: &Path, weights: GgufWeightType, tokenizer: &[(String, MetaValue)]) -> Result<()> {
        let last = Path::new(&self.name).file_stem().map(|name| name.to_string_lossy().into_owned());
        let name = last.unwrap_or_else(|| self.name.clone());
        let (description, checkpoint) = (&self.description, &*self.checkpoint);
        let model = GgufModelToWrite { name: &name, description, checkpoint, tokenizer, weights };
        let notes = export_model(path, &model).map_err(|error| match error {
            Error::Flag { flag, reason } => Error::flag(flag, self.with_converter(&reason, path, weights)),
            other => other,
        })?;
        notes.iter().for_each(|note| note!("note: {}: {note}", self.name));
        Ok(())
    }

    /// Adds to a reason the command of llama.cpp's own converter for this model.
    fn with_converter(&self, reason: &str, path: &Path, weights: GgufWeightType) -> String {
        format!("{reason}; llama.cpp's own converter: {}", converter_command(&self.name, path, weights))
    }

    /// Returns the metadata of the tokenizer, which must be one that is certain: read again, it has the same ids of the probe text.
    fn gguf_tokenizer(&self, path: &Path, weights: GgufWeightType) -> Result<Vec<(String, MetaValue)>> {
        let tokenizer = self.tokenizer(None)?;
        let refused =
            |reason: &str| Error::flag("gguf", self.with_converter(&format!("{}: {reason}", self.name), path, weights));
        let unknown = format!("its tokenizer is not one that is written for certain ({})", known_names());
        let pre = pre_tokenizer(&tokenizer).ok_or_else(|| refused(&unknown))?;
        let adds_bos = match tokenizer.start_ids() {
            [] => false,
            [id] if Some(*id) == tokenizer.bos_id() => true,
            _ => return Err(refused("its tokenizer puts more than BOS before a text")),
        };
        let special = SpecialIds { bos: tokenizer.bos_id(), eos: tokenizer.eos_id(), adds_bos };
        let written = tokenizer_metadata(&self.side, pre, special, self.description.vocab)?;
        let again = read_tokenizer(&GgufMetadata::new(path, written.iter().cloned().collect()))?;
        let files = again.files.iter().map(|(name, text)| (name.as_str(), text.as_bytes()));
        let again = Tokenizer::from_side_files(&SideFiles::from_contents(path, files))?;
        if pre_tokenizer(&again) != Some(pre) {
            return Err(refused("its tokenizer gives other ids when it is read again"));
        }
        self.note_other_stops(&tokenizer)?;
        Ok(written)
    }

    /// Notes tokens that end a response here and that llama.cpp does not take for an end.
    fn note_other_stops(&self, tokenizer: &Tokenizer) -> Result<()> {
        let stops = self.stop_ids(None, tokenizer)?;
        let is_other = |id: &&u32| Some(**id) != tokenizer.eos_id();
        let texts = stops.iter().filter(is_other).filter_map(|id| tokenizer.vocab_text(*id));
        for text in texts.filter(|text| !LLAMA_CPP_ENDS.contains(&text.as_str())) {
            note!("note: {}: `{text}` ends a response here, llama.cpp will not stop at it", self.name);
        }
        Ok(())
    }
}

/// Texts of tokens that llama.cpp takes for the end of a response wherever they are in a vocabulary: `special_eog_ids` in
/// `src/llama-vocab.cpp`.
const LLAMA_CPP_ENDS: [&str; 7] =
    ["<|eot_id|>", "<|im_end|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>", "<|eom_id|>", "<end_of_turn>"];
