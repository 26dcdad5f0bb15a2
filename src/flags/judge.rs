//! Flags of `judge` and `interplay`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{DeviceLostArg, ModelArgs};
use crate::data::comparisons::ComparisonKind;
use crate::eval::judge::endpoint::AnswerFormat;
use crate::eval::strata::Stratum;

/// Values of `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeArg {
    /// {instruction, response_0, response_1}: two responses to one instruction
    Single,
    /// {instruction_0, response_0, instruction_1, response_1}: two instructions, each with its response
    Pair,
}

impl From<ModeArg> for ComparisonKind {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Single => Self::Single,
            ModeArg::Pair => Self::Pair,
        }
    }
}

/// Values of `--strata`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StratumArg {
    /// Both sides preferred under their own instruction
    BothChosen,
    /// Both sides rejected under their own instruction
    BothRejected,
    /// One side preferred and one rejected under its own instruction
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

/// Values of `--answer-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnswerFormatArg {
    /// JSON for the built-in prompt if the endpoint takes response_format, else text
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

/// Values of `--answer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnswerArg {
    /// The likelier of (a) and (b) as the answer's first letter; no text is generated
    Letter,
    /// The likeliest text, with thoughts if the model thinks; the verdict is read from it
    Generate,
}

/// Flags that choose a judge and an endpoint's settings. `judge` and `evaluate` have them under the same names.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct AskArgs {
    /// Judge with an OpenAI-compatible endpoint, such as https://api.openai.com/v1; needs --judge-model
    #[arg(long, value_name = "URL", help_heading = "Judge (choose one)")]
    pub endpoint: Option<String>,
    /// Judge with a program: it reads each row as JSON from standard input, and writes (a) or (b)
    #[arg(long, value_name = "COMMAND", help_heading = "Judge (choose one)")]
    pub command: Option<String>,
    /// Judge yourself, in this terminal, with one key per answer
    #[arg(long, help_heading = "Judge (choose one)")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub person: bool,
    /// Judge with the demo's own grader, for rows of the demo's tasks
    #[arg(long, help_heading = "Judge (choose one)")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub grader: bool,
    /// Fraction of the comparisons in which --grader prefers the worse side, like an annotator's mistakes [default: 0]
    #[arg(long, value_name = "PART", help_heading = "Judge (choose one)", allow_hyphen_values = true)]
    pub grader_noise: Option<f64>,
    /// Judge's name in annotated rows and tables [default: the model's, the command, person]
    #[arg(long, value_name = "NAME", help_heading = "Judge (choose one)")]
    pub judge_name: Option<String>,
    /// Text file of the judge's prompt, with {instruction}, {response_a} and {response_b}; for pairs with {instruction_a}, {response_a}, {instruction_b} and
    /// {response_b} [default: ours]
    #[arg(long, value_name = "FILE", help_heading = "Judge options")]
    pub prompt: Option<PathBuf>,
    /// Form of a local model's answer [default: letter]
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Judge options")]
    pub answer: Option<AnswerArg>,
    /// Tokens per pass of a local model, which takes as many questions as fit [default: 4096]
    #[arg(long, value_name = "TOKENS", help_heading = "Judge options")]
    pub batch_tokens: Option<usize>,
    /// Model's name at the endpoint
    #[arg(long, value_name = "NAME", help_heading = "Endpoint")]
    pub judge_model: Option<String>,
    /// Format of the endpoint's answers [default: auto]
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Endpoint")]
    pub answer_format: Option<AnswerFormatArg>,
    /// Environment variable that holds the API key [default: JOINTWISE_API_KEY, else OPENAI_API_KEY]
    #[arg(long, value_name = "VARIABLE", help_heading = "Endpoint")]
    pub api_key_env: Option<String>,
    /// JSON object of fields that are added to the request or override ours; null removes a field: {"max_tokens": null, "max_completion_tokens": 500}
    #[arg(long, visible_alias = "extra-body", value_name = "JSON", help_heading = "Endpoint")]
    pub request: Option<String>,
    /// Questions at a time, to the endpoint or to --command [default: 8; of a command 1]
    #[arg(long, value_name = "N", help_heading = "Endpoint")]
    pub concurrency: Option<usize>,
    /// Most repetitions of a question after 408, 409, 425, 5xx, a timeout or an answer that was cut off; 429 does not count (see --max-wait) [default: 6]
    #[arg(long, value_name = "N", help_heading = "Endpoint")]
    pub retries: Option<usize>,
    /// Pause before a question's first repetition, in seconds; it doubles each time, unless the endpoint says how long (Retry-After) [default: 1]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub backoff: Option<f64>,
    /// Longest pause before a repetition, and longest time that an endpoint may answer only 429 (too many requests), in seconds [default: 120]
    #[arg(
        long,
        visible_alias = "max-backoff",
        value_name = "SECONDS",
        allow_hyphen_values = true,
        help_heading = "Endpoint"
    )]
    pub max_wait: Option<f64>,
    /// Longest time per question, to the endpoint or to --command, in seconds [default: 60]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub timeout: Option<f64>,
    /// Most requests per minute [default: no limit]
    #[arg(long, value_name = "N", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub requests_per_minute: Option<f64>,
    /// Most tokens per minute, by an estimate [default: no limit]
    #[arg(long, value_name = "N", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub tokens_per_minute: Option<f64>,
    /// Price per million input tokens, in any currency
    #[arg(long, value_name = "PRICE", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub price_in: Option<f64>,
    /// Price per million output tokens, in the same currency
    #[arg(long, value_name = "PRICE", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub price_out: Option<f64>,
    /// Cost limit: do not start if the estimate is higher, and end the run when its cost reaches the limit
    #[arg(long, value_name = "PRICE", allow_hyphen_values = true, help_heading = "Endpoint")]
    pub max_cost: Option<f64>,
    /// Print the number of questions, tokens and cost, and ask nothing
    #[arg(long, help_heading = "Endpoint")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub estimate: bool,
}

/// Flags of `judge`.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct JudgeArgs {
    /// Rows to judge (JSONL); repeatable
    #[arg(long, value_name = "FILE", help_heading = "Comparisons")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Conditional preferences from which joint pairs are drawn, instead of --data; repeatable
    #[arg(long, visible_alias = "draw-from", value_name = "FILE", help_heading = "Comparisons")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sample: Vec<PathBuf>,
    /// Pairs that --sample draws, equally many per stratum [default: as many as there are preferences]
    #[arg(long, value_name = "N", help_heading = "Comparisons")]
    pub pairs: Option<usize>,
    /// Strata from which --sample draws pairs, comma-separated [default: all three]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "STRATUM", help_heading = "Comparisons")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub strata: Vec<StratumArg>,
    /// Form that every row must have [default: what the first row is]
    #[arg(long, value_enum, help_heading = "Comparisons")]
    pub mode: Option<ModeArg>,
    /// Read the field FIELD from the file's field NAME; repeatable
    #[arg(long, value_name = "FIELD=NAME", help_heading = "Comparisons")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub map: Vec<String>,
    /// Random seed for --sample's draw, and for the order of a person's questions [default: 0]
    #[arg(long, help_heading = "Comparisons")]
    pub seed: Option<u64>,

    #[command(flatten, next_help_heading = "Judge (choose one)")]
    #[serde(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub ask: AskArgs,

    /// Prompt template of a local judge: paper, paper-tldr, chat, none, plain, or a text with {instruction} [default: chat where the tokenizer has one, else
    /// none]
    #[arg(long, help_heading = "Judge options")]
    pub template: Option<String>,
    /// Chat template of a local judge: your own Jinja file, or the name of a template that the tokenizer has [default: the tokenizer's default]
    #[arg(long, value_name = "FILE|NAME", help_heading = "Judge options")]
    pub chat_template: Option<String>,
    /// Time that chat templates print, in seconds since 1970, where an earlier run or a study set it
    #[arg(skip)]
    #[serde(skip)]
    pub time: Option<u64>,
    /// Longest question to a local judge, in tokens [default: the model's positions]
    #[arg(long, value_name = "TOKENS", help_heading = "Judge options")]
    pub max_length: Option<usize>,

    /// Sampling temperature of the endpoint's answers [default: 0]
    #[arg(long, allow_hyphen_values = true, help_heading = "Endpoint")]
    pub temperature: Option<f64>,
    /// Longest answer of the endpoint or of --answer generate, thoughts included, in tokens [default: 1024; with --answer-format json 64, letter 16]
    #[arg(long, value_name = "TOKENS", help_heading = "Endpoint")]
    pub max_tokens: Option<u32>,

    /// Ask the first N questions, print each prompt and its raw answer, and save nothing
    #[arg(long, value_name = "N", help_heading = "Output")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<usize>,
    /// Folder for answers.jsonl, annotated.jsonl and preferences.jsonl
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub output_dir: Option<PathBuf>,
    /// Continue with the answers in the output folder: no question is asked twice
    #[arg(long, help_heading = "Output")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub resume: bool,
    /// Reaction to a lost device (a watchdog, a driver's crash, sleep) [default: resume]
    #[arg(long, value_enum, help_heading = "Output")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_device_lost: Option<DeviceLostArg>,
    /// Read settings from a TOML file; flags override them
    #[arg(long, value_name = "FILE.toml", help_heading = "Output")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Print the counts as JSON on standard output
    #[arg(long, help_heading = "Output")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub json: bool,
}

/// Flags of `interplay`.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct InterplayArgs {
    /// Annotated rows of a judge: an annotated.jsonl, or the folder that `judge` wrote; repeatable
    #[arg(long, value_name = "FILE|DIR")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Annotated rows of a person: an annotated.jsonl, or the folder that `judge` wrote; repeatable
    #[arg(long, value_name = "FILE|DIR")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub people: Vec<PathBuf>,
    /// Bootstrap resamples for the intervals [default: 2000]
    #[arg(long, visible_alias = "resamples", value_name = "N")]
    pub draws: Option<usize>,
    /// Random seed for the bootstrap [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Write tables and figures to this HTML page
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Read settings from a TOML file; flags override them
    #[arg(long, value_name = "FILE.toml")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Print the tables as JSON
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub json: bool,
}
