//! Flags of `evaluate`.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{AskArgs, DeviceArgs, DeviceLostArg, JudgeArgs, ModelArgs, parse_base_dtype};
use crate::error::Error;
use crate::model::weights::BaseDtype;

/// `evaluate`.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct EvaluateArgs {
    /// A Hugging Face folder or a hub id: the base of adapters; itself what is evaluated where no checkpoint is named
    #[arg(long, value_name = "DIR|HUB_ID", help_heading = "What is evaluated")]
    pub model: Option<String>,
    /// A PEFT LoRA adapter on the model, or a model of its own; repeatable
    #[arg(long, visible_alias = "adapter", value_name = "[NAME=]DIR", help_heading = "What is evaluated")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checkpoint: Vec<String>,
    /// Checkpoints of one method, such as of several training seeds, averaged; repeatable
    #[arg(long, value_name = "NAME=DIR,DIR,..", help_heading = "What is evaluated")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub group: Vec<String>,
    /// What responses are compared with: gold, or another checkpoint at the same temperature and seed [default: gold]
    #[arg(long, value_name = "gold|[NAME=]DIR", help_heading = "What is evaluated")]
    pub against: Option<String>,
    /// How linear weights are held: auto (as stored), f32, bf16, int8 or nf4 (QLoRA) [default: auto]
    #[arg(long, value_name = "DTYPE", value_parser = parse_base_dtype, help_heading = "What is evaluated")]
    pub base_dtype: Option<BaseDtype>,
    #[command(flatten, next_help_heading = "What is evaluated")]
    #[serde(flatten)]
    pub device: DeviceArgs,

    /// Test rows {instruction, gold_response} (JSONL); repeatable
    #[arg(long, value_name = "FILE", help_heading = "On what, and how")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Our field's name = the file's name for it; repeatable
    #[arg(long, value_name = "FIELD=NAME", help_heading = "On what, and how")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub map: Vec<String>,
    /// Only the first N prompts
    #[arg(long, value_name = "N", help_heading = "On what, and how")]
    pub limit: Option<usize>,
    /// paper, paper-tldr, chat, none, plain, a text with {instruction}; by-rows: chat for conversations, paper for texts; trl: chat for conversations, plain for texts [default: by-rows]
    #[arg(long, help_heading = "On what, and how")]
    pub template: Option<String>,
    /// A chat template of your own (a Jinja file), or the name of one that the tokenizer has; implies --template chat [default: the tokenizer's default]
    #[arg(long, value_name = "FILE|NAME", help_heading = "On what, and how")]
    pub chat_template: Option<String>,
    /// The time that chat templates print, where an earlier run or a study set it: seconds since 1970
    #[arg(skip)]
    #[serde(skip)]
    pub time: Option<u64>,
    /// Comma-separated; 0: the likeliest token always [default: 0.001,0.5,1.0, the paper's]
    #[arg(
        long,
        value_name = "T,..",
        value_delimiter = ',',
        allow_hyphen_values = true,
        help_heading = "On what, and how"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub temperatures: Vec<f64>,
    /// Of sampling, comma-separated [default: 0]
    #[arg(long, value_name = "N,..", value_delimiter = ',', help_heading = "On what, and how")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<u64>,
    /// Longest response, in tokens; prompts that leave a model no room for it are left out, and named [default: 256]
    #[arg(long, value_name = "TOKENS", help_heading = "On what, and how")]
    pub max_new_tokens: Option<usize>,
    /// Only the k likeliest tokens; 0: all [default: 0]
    #[arg(long, value_name = "K", help_heading = "On what, and how")]
    pub top_k: Option<usize>,
    /// Only the fewest tokens that reach this probability [default: 1]
    #[arg(long, value_name = "P", allow_hyphen_values = true, help_heading = "On what, and how")]
    pub top_p: Option<f64>,
    /// Prompts side by side [default: 16]
    #[arg(long, value_name = "N", help_heading = "On what, and how")]
    pub batch_size: Option<usize>,

    /// A local model, folder or hub id: which of (a) and (b) it would rather begin its answer with
    #[arg(long, value_name = "DIR|HUB_ID", help_heading = "Who judges (one of these)")]
    pub judge: Option<String>,
    /// Nobody: responses and AlpacaEval's files alone
    #[arg(long, help_heading = "Who judges (one of these)")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_judge: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub ask: AskArgs,
    /// An adapter on --judge
    #[arg(long, value_name = "DIR", help_heading = "How it is asked")]
    pub judge_adapter: Option<PathBuf>,
    /// How --judge's linear weights are held [default: auto]
    #[arg(long, value_name = "DTYPE", value_parser = parse_base_dtype, help_heading = "How it is asked")]
    pub judge_base_dtype: Option<BaseDtype>,
    /// Around --judge's prompt, as --template [default: chat where the tokenizer has one, else none]
    #[arg(long, value_name = "TEMPLATE", help_heading = "How it is asked")]
    pub judge_template: Option<String>,
    /// Chat template of --judge: a file or a name, like --chat-template
    #[arg(long, value_name = "FILE|NAME", help_heading = "How it is asked")]
    pub judge_chat_template: Option<String>,
    /// Longest question to --judge, in tokens [default: the model's positions]
    #[arg(long, value_name = "TOKENS", help_heading = "How it is asked")]
    pub judge_max_length: Option<usize>,
    /// Of the endpoint's answers [default: 0]
    #[arg(long, value_name = "T", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub judge_temperature: Option<f64>,
    /// Longest answer of the endpoint, or of --answer generate, with the thoughts before it [default: 1024; with --answer-format json 64, letter 16]
    #[arg(long, value_name = "TOKENS", help_heading = "Endpoint")]
    pub judge_max_tokens: Option<u32>,

    /// Draws of the bootstrap [default: 2000]
    #[arg(long, value_name = "N", help_heading = "What comes of it")]
    pub draws: Option<usize>,
    /// Of the draws, and of a person's order of questions [default: 0]
    #[arg(long, help_heading = "What comes of it")]
    pub seed: Option<u64>,
    /// Where responses, answers, judged rows, results.json, report.html and AlpacaEval's files are written
    #[arg(long, value_name = "DIR", help_heading = "What comes of it")]
    pub output_dir: Option<PathBuf>,
    /// Go on with what is in the output folder: no response is made and no question asked twice
    #[arg(long, help_heading = "What comes of it")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub resume: bool,
    /// What happens when the device is lost (a watchdog, a driver's crash, sleep) [default: resume]
    #[arg(long, value_enum, help_heading = "What comes of it")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_device_lost: Option<DeviceLostArg>,
    /// Settings from a TOML file; flags win
    #[arg(long, value_name = "FILE.toml", help_heading = "What comes of it")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// results.json on standard output
    #[arg(long, help_heading = "What comes of it")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub json: bool,
}

/// A judge's flags there, and here, where the policies have their own of that name.
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
    /// The judge as `judge` has it.
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
            // Where its earlier answers are.
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

    /// The name here of a flag of `judge`.
    pub fn flag(name: &'static str) -> &'static str {
        RENAMED.into_iter().find(|(there, _)| *there == name).map_or(name, |(_, here)| here)
    }

    /// What [`EvaluateArgs::judge_args`] is told, in this command's names.
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
