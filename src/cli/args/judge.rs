//! Flags of `judge` and `interplay`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{DeviceLostArg, ModelArgs};
use crate::data::comparisons::Mode;
use crate::eval::judge::endpoint::AnswerFormat;
use crate::eval::strata::Stratum;

/// `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeArg {
    /// {instruction, response_0, response_1}: two responses to one instruction
    Single,
    /// {instruction_0, response_0, instruction_1, response_1}: two instructions, each with its response
    Pair,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Single => Self::Single,
            ModeArg::Pair => Self::Pair,
        }
    }
}

/// `--strata`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StratumArg {
    /// Both sides preferred under their own instruction
    BothChosen,
    /// Both rejected
    BothRejected,
    /// One of each
    Mixed,
}

impl From<StratumArg> for Stratum {
    fn from(stratum: StratumArg) -> Self {
        match stratum {
            StratumArg::BothChosen => Self::BothChosen,
            StratumArg::BothRejected => Self::BothRejected,
            StratumArg::Mixed => Self::Mixed,
        }
    }
}

/// `--answer-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnswerFormatArg {
    /// JSON for our own prompt where the endpoint takes response_format, else text
    Auto,
    /// JSON, enforced by response_format; an endpoint that does not take it is an error
    Json,
    /// Text, as the prompt asks for it: a side and little else
    Letter,
}

impl From<AnswerFormatArg> for AnswerFormat {
    fn from(format: AnswerFormatArg) -> Self {
        match format {
            AnswerFormatArg::Auto => Self::Auto,
            AnswerFormatArg::Json => Self::Json,
            AnswerFormatArg::Letter => Self::Letter,
        }
    }
}

/// `--answer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnswerArg {
    /// The likelier of (a) and (b) as its first letter: nothing is written
    Letter,
    /// The likeliest text, with thoughts where the model has some; its verdict is read
    Generate,
}

/// Who judges, and how an endpoint is asked: flags that `evaluate` has under the same names.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct AskArgs {
    /// An OpenAI-compatible endpoint, such as https://api.openai.com/v1; needs --judge-model
    #[arg(long, value_name = "URL", help_heading = "Who judges (one of these)")]
    pub endpoint: Option<String>,
    /// A program: each row as JSON on its standard input, (a) or (b) on its output
    #[arg(long, value_name = "COMMAND", help_heading = "Who judges (one of these)")]
    pub command: Option<String>,
    /// You, in this terminal: one key an answer
    #[arg(long, help_heading = "Who judges (one of these)")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub person: bool,
    /// The demo's own grader, for rows of the demo's tasks
    #[arg(long, help_heading = "Who judges (one of these)")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub grader: bool,
    /// Part of the comparisons in which --grader prefers the worse side: an annotator's mistakes [default: 0]
    #[arg(long, value_name = "PART", help_heading = "Who judges (one of these)", allow_hyphen_values = true)]
    pub grader_noise: Option<f64>,
    /// The name in annotated rows and tables [default: the model's, the command, person]
    #[arg(long, value_name = "NAME", help_heading = "Who judges (one of these)")]
    pub judge_name: Option<String>,
    /// A text with {instruction}, {response_a}, {response_b}; of pairs {instruction_a}, {response_a}, {instruction_b}, {response_b} [default: ours]
    #[arg(long, value_name = "FILE", help_heading = "How it is asked")]
    pub prompt: Option<PathBuf>,
    /// Way in which a local model answers [default: letter]
    #[arg(long, value_enum, value_name = "HOW", help_heading = "How it is asked")]
    pub answer: Option<AnswerArg>,
    /// Of a local model: tokens of a pass, with as many questions as fit [default: 4096]
    #[arg(long, value_name = "TOKENS", help_heading = "How it is asked")]
    pub batch_tokens: Option<usize>,
    /// The model's name at the endpoint
    #[arg(long, value_name = "NAME", help_heading = "Endpoint")]
    pub judge_model: Option<String>,
    /// How the model answers [default: auto]
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Endpoint")]
    pub answer_format: Option<AnswerFormatArg>,
    /// The environment's variable that holds the key [default: JOINTWISE_API_KEY, else OPENAI_API_KEY]
    #[arg(long, value_name = "VARIABLE", help_heading = "Endpoint")]
    pub api_key_env: Option<String>,
    /// More fields of the request, over ours; null takes one away: {"max_tokens": null, "max_completion_tokens": 500}
    #[arg(long, value_name = "JSON", help_heading = "Endpoint")]
    pub request: Option<String>,
    /// Questions at a time, also of a command [default: 8; of a command 1]
    #[arg(long, value_name = "N", help_heading = "Endpoint")]
    pub concurrency: Option<usize>,
    /// Ask a question again this often after 408, 409, 425, 5xx, a timeout or an answer that was cut; 429 does not count (--max-wait) [default: 6]
    #[arg(long, value_name = "N", help_heading = "Endpoint")]
    pub retries: Option<usize>,
    /// Pause before the first of these; it doubles, unless the endpoint says how long (Retry-After) [default: 1]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub backoff: Option<f64>,
    /// Longest pause, and how long an endpoint may say 429 (too many requests) and answer nothing [default: 120]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub max_wait: Option<f64>,
    /// For one question, also of a command [default: 60]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub timeout: Option<f64>,
    /// Most requests a minute [default: no limit]
    #[arg(long, value_name = "N", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub requests_per_minute: Option<f64>,
    /// Most tokens a minute, estimated [default: no limit]
    #[arg(long, value_name = "N", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub tokens_per_minute: Option<f64>,
    /// Price of a million tokens in, in any currency
    #[arg(long, value_name = "PRICE", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub price_in: Option<f64>,
    /// Price of a million tokens out
    #[arg(long, value_name = "PRICE", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub price_out: Option<f64>,
    /// Do not start where the estimate is higher, and end where this run has cost as much
    #[arg(long, value_name = "PRICE", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub max_cost: Option<f64>,
    /// Tell questions, tokens and cost, and ask nothing
    #[arg(long, help_heading = "Endpoint")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub estimate: bool,
}

/// `judge`.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct JudgeArgs {
    /// Rows to judge (JSONL); repeatable
    #[arg(long, value_name = "FILE", help_heading = "What is judged")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Draw pairs from these conditional preferences instead: both sides preferred, both rejected, one of each; repeatable
    #[arg(long, value_name = "FILE", help_heading = "What is judged")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sample: Vec<PathBuf>,
    /// Pairs that --sample draws, equally many of each stratum [default: as many as there are preferences]
    #[arg(long, value_name = "N", help_heading = "What is judged")]
    pub pairs: Option<usize>,
    /// What --sample pairs: both sides preferred before, both rejected, one of each; comma-separated [default: all three]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "STRATUM", help_heading = "What is judged")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub strata: Vec<StratumArg>,
    /// What all rows must be [default: what the first row is]
    #[arg(long, value_enum, help_heading = "What is judged")]
    pub mode: Option<ModeArg>,
    /// Our field's name = the file's name for it; repeatable
    #[arg(long, value_name = "FIELD=NAME", help_heading = "What is judged")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub map: Vec<String>,
    /// Of the draw, and of a person's order of questions [default: 0]
    #[arg(long, help_heading = "What is judged")]
    pub seed: Option<u64>,

    #[command(flatten, next_help_heading = "Who judges (one of these)")]
    #[serde(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub ask: AskArgs,

    /// Of a local model: paper, paper-tldr, chat, none, plain, or a text with {instruction}, around the prompt [default: chat where the tokenizer has one, else none]
    #[arg(long, help_heading = "How it is asked")]
    pub template: Option<String>,
    /// Chat template of a local judge: one of your own (a Jinja file), or the name of one that the tokenizer has [default: the tokenizer's default]
    #[arg(long, value_name = "FILE|NAME", help_heading = "How it is asked")]
    pub chat_template: Option<String>,
    /// The time that chat templates print, where an earlier run or a study set it: seconds since 1970
    #[arg(skip)]
    #[serde(skip)]
    pub time: Option<u64>,
    /// Of a local model: longest question, in tokens [default: the model's positions]
    #[arg(long, value_name = "TOKENS", help_heading = "How it is asked")]
    pub max_length: Option<usize>,

    /// [default: 0]
    #[arg(long, allow_hyphen_values = true, help_heading = "Endpoint")]
    pub temperature: Option<f64>,
    /// Longest answer, also of --answer generate, with the thoughts before it [default: 1024; with --answer-format json 64, letter 16]
    #[arg(long, value_name = "TOKENS", help_heading = "Endpoint")]
    pub max_tokens: Option<u32>,

    /// Ask the first N questions, print each prompt and its answer as it came, and keep nothing
    #[arg(long, value_name = "N", help_heading = "What comes of it")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<usize>,
    /// Where answers.jsonl, annotated.jsonl and preferences.jsonl are written
    #[arg(long, value_name = "DIR", help_heading = "What comes of it")]
    pub output_dir: Option<PathBuf>,
    /// Go on with the answers in the output folder: nothing is asked twice
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
    /// Counts as JSON on standard output
    #[arg(long, help_heading = "What comes of it")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub json: bool,
}

/// `interplay`.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct InterplayArgs {
    /// annotated.jsonl of one judge, or the folder that `judge` wrote; repeatable
    #[arg(long, value_name = "FILE|DIR")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// The same of a person; repeatable
    #[arg(long, value_name = "FILE|DIR")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub people: Vec<PathBuf>,
    /// Draws of the bootstrap [default: 2000]
    #[arg(long, value_name = "N")]
    pub draws: Option<usize>,
    /// Of the draws [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Tables and figures on a page
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Settings from a TOML file; flags win
    #[arg(long, value_name = "FILE.toml")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub json: bool,
}
