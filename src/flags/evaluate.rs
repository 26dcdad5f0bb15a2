//! Flags of `evaluate`.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::values::parse_base_dtype;
use super::{AskArgs, DeviceArgs, DeviceLostArg, JudgeArgs, ModelArgs, resolve_template};
use crate::error::{Error, Result};
use crate::eval::evaluate::DEFAULT_TEMPERATURES;
use crate::eval::evaluate::response_sampling::ResponseSampling;
use crate::eval::generate::{DEFAULT_BATCH_SIZE, DEFAULT_MAX_NEW_TOKENS};
use crate::eval::interplay::BootstrapSettings;
use crate::eval::statistics::{DEFAULT_LEVEL, DEFAULT_RESAMPLES, MOST_RESAMPLES};
use crate::model::weights::BaseDtype;
use crate::validate::{at_least_one, at_most};
use crate::workflow::ChatTemplateChoice;
use crate::workflow::evaluated_models::EvaluatedModelNames;

/// Flags of `evaluate`.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct EvaluateArgs {
    /// Base model of the adapters, which is evaluated itself if no checkpoint is named: a Hugging Face folder, a GGUF file, or a hub id (org/name)
    #[arg(long, value_name = "DIR|FILE|HUB_ID", help_heading = "Models and device")]
    pub model: Option<String>,
    /// PEFT LoRA adapter on --model, or another whole model; repeatable
    #[arg(long, visible_alias = "adapter", value_name = "[NAME=]DIR", help_heading = "Models and device")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checkpoint: Vec<String>,
    /// Checkpoints of one method, such as several training seeds, whose results are averaged; repeatable
    #[arg(long, value_name = "NAME=DIR,DIR,..", help_heading = "Models and device")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub group: Vec<String>,
    /// Opponent of all responses: gold (each row's gold_response), or another checkpoint at the same temperature and seed [default: gold]
    #[arg(long, value_name = "gold|[NAME=]DIR", help_heading = "Models and device")]
    pub against: Option<String>,
    /// Data type of linear weights: auto (as stored), f32, bf16, int8 or nf4 (QLoRA) [default: auto]
    #[arg(long, value_name = "DTYPE", value_parser = parse_base_dtype, help_heading = "Models and device")]
    pub base_dtype: Option<BaseDtype>,
    #[command(flatten, next_help_heading = "Models and device")]
    #[serde(flatten)]
    pub device: DeviceArgs,

    /// Test rows {instruction, gold_response} (JSONL); repeatable
    #[arg(long, value_name = "FILE", help_heading = "Prompts and sampling")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Read the field FIELD from the file's field NAME; repeatable
    #[arg(long, value_name = "FIELD=NAME", help_heading = "Prompts and sampling")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub map: Vec<String>,
    /// Use only the first N prompts
    #[arg(long, value_name = "N", help_heading = "Prompts and sampling")]
    pub limit: Option<usize>,
    /// Prompt template: paper, paper-tldr, chat, none, plain, or a text with {instruction}; by-rows takes chat for conversations and paper for texts, trl takes
    /// chat for conversations and plain for texts [default: by-rows]
    #[arg(long, help_heading = "Prompts and sampling")]
    pub template: Option<String>,
    /// Chat template: your own Jinja file, or the name of a template that the tokenizer has; implies --template chat [default: the tokenizer's default]
    #[arg(long, value_name = "FILE|NAME", help_heading = "Prompts and sampling")]
    pub chat_template: Option<String>,
    /// Time that chat templates print, in seconds since 1970, where an earlier run or a study set it
    #[arg(skip)]
    #[serde(skip)]
    pub time: Option<u64>,
    /// Sampling temperatures, comma-separated; 0 always takes the likeliest token [default: 0.001,0.5,1.0, the paper's]
    #[arg(
        long,
        value_name = "T,..",
        value_delimiter = ',',
        allow_hyphen_values = true,
        help_heading = "Prompts and sampling"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub temperatures: Vec<f64>,
    /// Random seeds for sampling, comma-separated [default: 0]
    #[arg(long, value_name = "N,..", value_delimiter = ',', help_heading = "Prompts and sampling")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<u64>,
    /// Longest response, in tokens; prompts that leave a model no room for it are left out and reported [default: 256]
    #[arg(long, value_name = "TOKENS", help_heading = "Prompts and sampling")]
    pub max_new_tokens: Option<usize>,
    /// Sample from the k likeliest tokens only; 0 takes all [default: 0]
    #[arg(long, value_name = "K", help_heading = "Prompts and sampling")]
    pub top_k: Option<usize>,
    /// Sample from the fewest tokens that together reach this probability [default: 1]
    #[arg(long, value_name = "P", allow_hyphen_values = true, help_heading = "Prompts and sampling")]
    pub top_p: Option<f64>,
    /// Prompts per batch [default: 16]
    #[arg(long, value_name = "N", help_heading = "Prompts and sampling")]
    pub batch_size: Option<usize>,

    /// Judge with a local model (a folder, a GGUF file or a hub id): it prefers the side, (a) or (b), that it would rather begin its answer with (see --answer)
    #[arg(long, value_name = "DIR|FILE|HUB_ID", help_heading = "Judge (choose one)")]
    pub judge: Option<String>,
    /// Judge nothing: write only the responses and AlpacaEval's files
    #[arg(long, help_heading = "Judge (choose one)")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_judge: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub ask: AskArgs,
    /// PEFT LoRA adapter on the model of --judge
    #[arg(long, value_name = "DIR", help_heading = "Judge options")]
    pub judge_adapter: Option<PathBuf>,
    /// Data type of --judge's linear weights, like --base-dtype [default: auto]
    #[arg(long, value_name = "DTYPE", value_parser = parse_base_dtype, help_heading = "Judge options")]
    pub judge_base_dtype: Option<BaseDtype>,
    /// Prompt template of --judge, like --template [default: chat where the tokenizer has one, else none]
    #[arg(long, value_name = "TEMPLATE", help_heading = "Judge options")]
    pub judge_template: Option<String>,
    /// Chat template of --judge: a file or a name, like --chat-template
    #[arg(long, value_name = "FILE|NAME", help_heading = "Judge options")]
    pub judge_chat_template: Option<String>,
    /// Longest question to --judge, in tokens [default: the model's positions]
    #[arg(long, value_name = "TOKENS", help_heading = "Judge options")]
    pub judge_max_length: Option<usize>,
    /// Sampling temperature of the endpoint's answers [default: 0]
    #[arg(long, value_name = "T", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub judge_temperature: Option<f64>,
    /// Longest answer of the endpoint or of --answer generate, thoughts included, in tokens [default: 1024; with --answer-format json 64, letter 16]
    #[arg(long, value_name = "TOKENS", help_heading = "Endpoint")]
    pub judge_max_tokens: Option<u32>,

    /// Bootstrap resamples for the intervals [default: 2000]
    #[arg(long, visible_alias = "resamples", value_name = "N", help_heading = "Output")]
    pub draws: Option<usize>,
    /// Random seed for the bootstrap, and for the order of a person's questions [default: 0]
    #[arg(long, help_heading = "Output")]
    pub seed: Option<u64>,
    /// Folder for responses, answers, judged rows, results.json, report.html and AlpacaEval's files
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub output_dir: Option<PathBuf>,
    /// Continue the run in the output folder: no response is sampled twice, no question is asked twice
    #[arg(long, help_heading = "Output")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub resume: bool,
    /// Print the jobs that --job does: one per checkpoint, temperature and seed, and the judge; do nothing
    #[arg(long, conflicts_with = "job", help_heading = "Output")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub list_jobs: bool,
    /// Do one job alone, by its number in --list-jobs; other processes may do others in the same folder
    #[arg(long, value_name = "N", help_heading = "Output")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<usize>,
    /// Reaction to a lost device (a watchdog, a driver's crash, sleep) [default: resume]
    #[arg(long, value_enum, help_heading = "Output")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_device_lost: Option<DeviceLostArg>,
    /// Read settings from a TOML file; flags override them
    #[arg(long, value_name = "FILE.toml", help_heading = "Output")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Print results.json, or the jobs of --list-jobs as JSON, on standard output
    #[arg(long, help_heading = "Output")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub json: bool,
}

/// Flags of `judge` with their names here, where the evaluated models have flags of those names: (name in `judge`, name in `evaluate`).
const RENAMED: [(&str, &str); 8] = [
    ("model", "judge"),
    ("adapter", "judge-adapter"),
    ("base-dtype", "judge-base-dtype"),
    ("template", "judge-template"),
    ("chat-template", "judge-chat-template"),
    ("max-length", "judge-max-length"),
    ("temperature", "judge-temperature"),
    ("max-tokens", "judge-max-tokens"),
];

impl EvaluateArgs {
    /// Resolves the settings for sampling responses.
    ///
    /// # Errors
    /// [`Error::Flag`] for a value out of range, or given twice.
    pub fn sampling(&self) -> Result<ResponseSampling> {
        let template = resolve_template(self.template.as_deref(), self.chat_template.as_deref())?;
        let or = |given: &[f64]| if given.is_empty() { DEFAULT_TEMPERATURES.to_vec() } else { given.to_vec() };
        let sampling = ResponseSampling {
            template_name: self.template.clone().unwrap_or_else(|| template.name().into()),
            template,
            temperatures: or(&self.temperatures),
            seeds: if self.seeds.is_empty() { vec![0] } else { self.seeds.clone() },
            max_new_tokens: self.max_new_tokens.unwrap_or(DEFAULT_MAX_NEW_TOKENS),
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p.unwrap_or(1.0),
            batch_size: self.batch_size.unwrap_or(DEFAULT_BATCH_SIZE),
        };
        sampling.validate()?;
        Ok(sampling)
    }

    /// Resolves the settings of the intervals.
    ///
    /// # Errors
    /// [`Error::Flag`] for a number of resamples out of range.
    pub fn bootstrap(&self) -> Result<BootstrapSettings> {
        let draws = self.draws.unwrap_or(DEFAULT_RESAMPLES);
        at_least_one("draws", draws)?;
        at_most("draws", draws, MOST_RESAMPLES)?;
        Ok(BootstrapSettings { level: DEFAULT_LEVEL, draws, seed: self.seed.unwrap_or(0) })
    }

    /// Returns the names of the models that are evaluated.
    pub fn models(&self) -> EvaluatedModelNames<'_> {
        EvaluatedModelNames {
            model: self.model.as_deref(),
            checkpoints: &self.checkpoint,
            groups: &self.group,
            against: self.against.as_deref(),
            chat: ChatTemplateChoice { template: self.chat_template.as_deref(), time: self.time },
            base_dtype: self.base_dtype.unwrap_or_default(),
        }
    }

    /// Returns the flags of the judge as flags of `judge`.
    pub fn judge_args(&self) -> JudgeArgs {
        JudgeArgs {
            ask: self.ask.clone(),
            model: ModelArgs {
                model: self.judge.clone(),
                adapter: self.judge_adapter.clone(),
                device: self.device.clone(),
                base_dtype: self.judge_base_dtype,
            },
            template: self.judge_template.clone(),
            chat_template: self.judge_chat_template.clone(),
            time: self.time,
            // The folder that has its earlier answers.
            output_dir: self.output_dir.clone(),
            resume: self.resume,
            max_length: self.judge_max_length,
            temperature: self.judge_temperature,
            max_tokens: self.judge_max_tokens,
            seed: self.seed,
            json: self.json,
            ..JudgeArgs::default()
        }
    }

    /// Returns the name in `evaluate` of a flag of `judge`.
    pub fn flag(name: &'static str) -> &'static str {
        RENAMED.into_iter().find(|(there, _)| *there == name).map_or(name, |(_, here)| here)
    }

    /// Returns the key in a table of `evaluate` of a key of `judge`.
    pub fn key_of_judge(key: &str) -> &str {
        RENAMED.into_iter().find(|(there, _)| *there == key).map_or(key, |(_, here)| here)
    }

    /// Renames the flags in an error about [`EvaluateArgs::judge_args`] to their names in `evaluate`.
    pub fn renamed(error: Error) -> Error {
        let Error::Flag { flag, reason } = error else { return error };
        // Whole words: `--model` is a part of `--judge-model`.
        let reason = RENAMED.into_iter().fold(reason, |text, (there, here)| {
            text.split_inclusive(' ')
                .map(|word| match word.trim_end_matches([' ', ',', ':']) == format!("--{there}") {
                    true => word.replacen(&format!("--{there}"), &format!("--{here}"), 1),
                    false => word.into(),
                })
                .collect()
        });
        Error::Flag { flag: Self::flag(flag), reason }
    }
}
