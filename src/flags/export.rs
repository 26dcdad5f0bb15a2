//! Flags of `export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::model::gguf::GgufWeightType;

/// Values of `--type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GgufTypeArg {
    /// float16
    F16,
    /// bfloat16
    Bf16,
    /// 8 bits, in blocks of 32 with a scale
    #[value(name = "q8_0")]
    Q8_0,
}

/// Flags of `export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// Model to write; with --adapter, the adapter's base model: a Hugging Face folder, a GGUF file, or a hub id (org/name) [default: the base that the adapter
    /// names]
    #[arg(long, value_name = "DIR|FILE|HUB_ID")]
    pub model: Option<String>,
    /// PEFT LoRA adapter to write instead of a model: a folder, or a hub id (org/name, org/name/folder)
    #[arg(long, value_name = "DIR|HUB_ID", conflicts_with = "type")]
    pub adapter: Option<PathBuf>,
    /// GGUF file to write, for llama.cpp, Ollama and LM Studio
    #[arg(long, value_name = "FILE")]
    pub gguf: PathBuf,
    /// Data type of a model's matrices [default: f16]
    #[arg(long, value_enum)]
    pub r#type: Option<GgufTypeArg>,
}

impl From<GgufTypeArg> for GgufWeightType {
    fn from(kind: GgufTypeArg) -> Self {
        match kind {
            GgufTypeArg::F16 => Self::F16,
            GgufTypeArg::Bf16 => Self::Bf16,
            GgufTypeArg::Q8_0 => Self::Q8_0,
        }
    }
}
