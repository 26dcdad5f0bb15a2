//! GGUF, the file format of llama.cpp, Ollama and LM Studio: a model is read from a file and written to one, an adapter is written.
//!
//! The format is that of `docs/gguf.md` in the ggml repository. It is simple, and this program needs its own checks of untrusted files and its own
//! tensor by tensor writing, so there is no dependency. Block layouts are those of `ggml-common.h`.

mod architecture;
mod checkpoint;
mod export_adapter;
mod export_model;
mod file;
mod ggml_type;
mod metadata;
mod pre_tokenizer;
mod quants;
mod read_config;
mod read_tokenizer;
mod rope;
mod write;
mod write_config;
mod write_tokenizer;

use std::path::Path;

pub use architecture::GgufArchitecture;
pub use export_adapter::export_adapter;
pub use export_model::{GgufModelToWrite, GgufWeightType, converter_command, export_model};
pub use file::{GgufFile, GgufTensor, is_gguf};
pub use ggml_type::GgmlType;
pub use metadata::{GgufMetadata, MetaValue};
pub use pre_tokenizer::{PROBE, PreTokenizer, ids_digest, known_names};
pub use quants::dequantize;
pub use read_tokenizer::{MetadataToken, MetadataTokenizer, read_tokenizer, tokens};
pub use write::{GgufTensorToWrite, write_gguf};
pub use write_tokenizer::{SpecialIds, tokenizer_metadata};

use super::checkpoint::Checkpoint;
use super::side_files::{CONFIG, SideFiles};
use crate::error::Result;
use read_config::{GgufModelConfig, read_config};

/// Model of a GGUF file: its configuration and its tokenizer. Weights stay on disk.
#[derive(Debug)]
pub struct GgufModel {
    file: GgufFile,
    config: GgufModelConfig,
    /// Tokenizer of the metadata.
    pub tokenizer: MetadataTokenizer,
}

impl GgufModel {
    /// Opens a file.
    ///
    /// # Errors
    /// Fails like [`GgufFile::open`]; also [`Error::Field`](crate::Error::Field) for an architecture or a setting that is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let (config, tokenizer) = (read_config(&file)?, read_tokenizer(&file.metadata)?);
        Ok(Self { file, config, tokenizer })
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Returns the metadata.
    pub fn metadata(&self) -> &GgufMetadata {
        &self.file.metadata
    }

    /// Returns the side files: `config.json`, and the tokenizer where it is known. Messages name them as if the file were a folder.
    pub fn side_files(&self) -> SideFiles {
        let config = self.config.json.to_string();
        let files = self.tokenizer.files.iter().map(|(name, text)| (name.as_str(), text.as_bytes()));
        SideFiles::from_contents(self.file.path(), files.chain([(CONFIG, config.as_bytes())]))
    }

    /// Returns the names of the quantised types of the tensors, such as Q4_1 and Q8_0.
    pub fn quantised_types(&self) -> Vec<&'static str> {
        checkpoint::quantised_types(&self.file)
    }

    /// Makes a checkpoint of the file: tensors have Hugging Face's names and order of rows, and quantised ones are F32.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) for a tensor that the architecture does not have.
    pub fn into_checkpoint(self) -> Result<Checkpoint> {
        checkpoint::open_checkpoint(self.file, self.config.architecture, self.config.heads)
    }
}
