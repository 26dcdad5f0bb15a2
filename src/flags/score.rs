//! Flags of `score`, `grad` and `generate`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::model::open_model;
use super::values::parse_base_dtype;
use super::{DataArgs, DeviceArgs, ModelArgs, ObjectiveArgs};
use crate::error::{Error, Result};
use crate::model::weights::BaseDtype;
use crate::workflow::evaluated_models::{EvaluatedModelNames, NamedModel, evaluated_models};
use crate::workflow::{ChatTemplateChoice, Policy, PolicyOptions};

/// Flags of `score`.
#[derive(Debug, Clone, Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub objective: ObjectiveArgs,
    /// Also write token ids and each token's log-probability
    #[arg(long)]
    pub tokens: bool,
    /// File for the JSON lines [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Flags of `grad`.
#[derive(Debug, Clone, Args)]
pub struct GradArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub objective: ObjectiveArgs,
    /// Compute the gradient of the SFT loss instead
    #[arg(long)]
    pub sft: bool,
    /// File for the gradients, in safetensors format
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Flags of `generate`.
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    /// Model: a Hugging Face folder, a GGUF file, or a hub id (org/name)
    #[arg(long, value_name = "DIR|FILE|HUB_ID")]
    pub model: Option<String>,
    /// PEFT LoRA adapter on top of the model: a folder, or a hub id; repeatable: each answers every prompt, on one copy of the model
    #[arg(long, value_name = "[NAME=]DIR|HUB_ID")]
    pub adapter: Vec<String>,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Data type of linear weights: auto (as stored), f32, bf16, int8 or nf4 [default: auto]
    #[arg(long, value_name = "DTYPE", value_parser = parse_base_dtype)]
    pub base_dtype: Option<BaseDtype>,
    /// Instruction to answer; repeatable
    #[arg(long)]
    pub prompt: Vec<String>,
    /// File of instructions to answer: rows of any form, or with `instruction` or `prompt` alone
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Prompt template: paper, paper-tldr, chat, none, plain, or a text with {instruction}; by-rows takes chat for conversations and paper for texts, trl takes
    /// chat for conversations and plain for texts [default: by-rows]
    #[arg(long)]
    pub template: Option<String>,
    /// Chat template: your own Jinja file, or the name of a template that the tokenizer has; implies --template chat [default: the tokenizer's default]
    #[arg(long, value_name = "FILE|NAME")]
    pub chat_template: Option<String>,
    /// Read the field FIELD from the file's field NAME
    #[arg(long, value_name = "FIELD=NAME")]
    pub map: Vec<String>,
    /// Longest response, in tokens [default: 256, or what the model's positions leave]
    #[arg(long)]
    pub max_new_tokens: Option<usize>,
    /// Sampling temperature; 0 always takes the likeliest token
    #[arg(long, default_value_t = 1.0, allow_hyphen_values = true)]
    pub temperature: f32,
    /// Sample from the k likeliest tokens only; 0 takes all
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Sample from the fewest tokens that together reach this probability
    #[arg(long, default_value_t = 1.0, allow_hyphen_values = true)]
    pub top_p: f32,
    /// Random seed for sampling
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Prompts per batch
    #[arg(long, default_value_t = 16)]
    pub batch_size: usize,
    /// Do not stop at EOS
    #[arg(long)]
    pub ignore_eos: bool,
    /// Print one JSON object per prompt, with instruction, response and token ids
    #[arg(long)]
    pub json: bool,
    /// File for the responses as JSON lines, instead of standard output
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

impl GenerateArgs {
    /// Opens the policies that answer, by name: one per adapter, or the model alone. The model is opened once.
    ///
    /// # Errors
    /// [`Error::Flag`] where the model is missing, or two adapters have one name; those of the folders.
    pub fn policies(&self) -> Result<Vec<(String, Policy)>> {
        let base_dtype = self.base_dtype.unwrap_or_default();
        let model = open_model(self.model.as_deref(), base_dtype)?;
        let options = PolicyOptions { chat_template: self.chat_template.clone(), ..PolicyOptions::default() };
        if self.adapter.is_empty() {
            return Ok(vec![(model.name.clone(), Policy::from_model(model, None, options)?)]);
        }
        let names = EvaluatedModelNames {
            model: self.model.as_deref(),
            checkpoints: &self.adapter,
            groups: &[],
            against: None,
            chat: ChatTemplateChoice::default(),
            base_dtype,
        };
        let named = evaluated_models(&names).map_err(|error| match error {
            Error::Flag { flag: "checkpoint", reason } => Error::flag("adapter", reason),
            other => other,
        })?;
        let policy = |adapter: NamedModel| {
            let read = model.open_adapter(Path::new(&adapter.place))?;
            Ok((adapter.name, Policy::from_model(model.clone(), Some(read), options.clone())?))
        };
        named.into_iter().map(policy).collect()
    }
}
