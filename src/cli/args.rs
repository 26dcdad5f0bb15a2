//! Flags as typed. Every flag of a command is a key of `--config FILE.toml`; flags win.

mod evaluate;
mod file;
mod judge;
mod study;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::data::bad_rows::BadRowLimit;
use crate::error::Result;
use crate::kernels::moments::Optim;
use crate::model::trace::SavedDtype;
use crate::model::weights::{BaseDtype, ParamDtype};
use crate::objective::{Mix, Objective};
use crate::train::schedule::Shape;

pub use evaluate::EvaluateArgs;
pub use file::{from_table, with_config};
pub use judge::{AnswerArg, AskArgs, InterplayArgs, JudgeArgs, StratumArg};
pub use study::StudyArgs;

/// Preference tuning of language models on any GPU.
#[derive(Debug, Parser)]
#[command(name = "jointwise", version, about, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Supervised fine-tuning on {instruction, response} rows
    Sft(TrainArgs),
    /// Preference tuning (JPO, DPO) on pairs
    Train(TrainArgs),
    /// Log-probabilities of rows, rewards and losses, as JSON lines
    Score(ScoreArgs),
    /// Gradients of the mean loss, as safetensors
    Grad(GradArgs),
    /// Responses to prompts
    Generate(GenerateArgs),
    /// An adapter merged into its base model
    Merge(MergeArgs),
    /// Preferences between responses, from a model, a program or a person, asked in both orders
    Judge(Box<JudgeArgs>),
    /// How judged pairs decide and agree, by where their sides come from, with intervals
    Interplay(InterplayArgs),
    /// Win rates of checkpoints on test prompts, judged in both orders, by temperature and length
    Evaluate(Box<EvaluateArgs>),
    /// A whole experiment: sampling, judging, every method, seed and part of the data, win rates, one report
    Study(StudyArgs),
    /// Memory that a training run needs, before anything is loaded
    Plan(PlanArgs),
    /// Rows as tokens, with the scored ones marked; what would be dropped
    Check(CheckArgs),
    /// Devices, what they can do, and a self-test
    Info(InfoArgs),
    /// Shader benchmarks: every kernel, or whole steps, against this device's own ceilings
    Bench(BenchArgs),
    /// Finds this device's fastest kernels in under a minute, and keeps the result
    Tune(TuneArgs),
    /// The whole story on the bundled model: SFT, DPO, JPO, samples and win rates
    Demo(DemoArgs),
    /// Shell completions, on standard output
    Completions(CompletionsArgs),
    /// The man page of the program or of one command, on standard output
    Man(ManArgs),
    /// The reference of all commands as Markdown: docs/reference.md
    #[command(hide = true)]
    Reference,
}

/// Where to compute, and how.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct DeviceArgs {
    /// Device by number, by part of its name, or by backend: `vulkan`, `dx12` (see `jointwise info`)
    #[arg(long)]
    pub device: Option<String>,
    /// Kernels that may be chosen: baseline, or some of tiles32, tiles64, tiles128, flash, cpu, lanes [default: by the device]
    #[arg(long, value_name = "NAME,..")]
    pub variant: Option<String>,
    /// Of products, attention's too: highest (f32), high (three f16 for one f32, on cooperative matrices) or medium (one) [default: highest]
    #[arg(long, value_name = "NAME")]
    pub matmul_precision: Option<String>,
}

/// Which model, where.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ModelArgs {
    /// A Hugging Face folder, or a hub id (org/name)
    #[arg(long, value_name = "DIR|HUB_ID")]
    pub model: Option<String>,
    /// A PEFT LoRA adapter on top of the model: a folder, or a hub id (org/name, org/name/folder)
    #[arg(long, value_name = "DIR|HUB_ID")]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub device: DeviceArgs,
    /// How linear weights that are not trained are held: auto (as stored), f32, bf16, int8 or nf4 (QLoRA) [default: auto]
    #[arg(long, value_name = "DTYPE", value_parser = parse_base_dtype)]
    pub base_dtype: Option<BaseDtype>,
}

/// Which rows, how they become tokens.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct DataArgs {
    /// Rows: a file (JSONL, JSON, CSV, TSV, also compressed; Parquet), a folder, a pattern ('data/*.parquet'), - for standard input, or a data set of the hub
    /// (hf://datasets/org/name[:split] or .../file); repeatable
    #[arg(long, value_name = "FILE|FOLDER", num_args = 1..)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// paper, paper-tldr, chat, none, plain, a text with {instruction}; by-rows: chat for conversations, paper for texts; trl: chat for conversations, plain for texts [default: by-rows]
    #[arg(long)]
    pub template: Option<String>,
    /// A chat template of your own (a Jinja file), or the name of one that the tokenizer has; implies --template chat [default: the tokenizer's default]
    #[arg(long, value_name = "FILE|NAME")]
    pub chat_template: Option<String>,
    /// Learn only the last answer of each conversation in `messages` rows, instead of every answer
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub last_turn_only: bool,
    /// The time that chat templates print, where an earlier run or a study set it: seconds since 1970
    #[arg(skip)]
    #[serde(skip)]
    pub time: Option<u64>,
    /// Our field's name = the file's name for it, or nothing: the field is left out; repeatable
    #[arg(long, value_name = "FIELD=NAME")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub map: Vec<String>,
    /// What happens to a row that cannot be read, or that the template cannot hold [default: error]
    #[arg(long, value_enum)]
    pub on_bad_row: Option<BadRowArg>,
    /// Most bad rows that --on-bad-row skip leaves out: a part of all rows (1%, 0.01) or a count (20) [default: 1%]
    #[arg(long, value_name = "PART|COUNT", allow_hyphen_values = true)]
    pub max_bad_rows: Option<BadRowLimit>,
    /// Longest sequence, in tokens [default: the model's, at most 1024]
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
    /// What happens to a longer row [default: drop]
    #[arg(long, value_enum)]
    pub on_overflow: Option<OverflowArg>,
    /// Leave out and cut long rows as the paper's code does: by characters, and each side by the chosen response's length
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub paper_compat: bool,
    /// Put no EOS behind a response: its end is neither scored nor learnt
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_eos: bool,
}

/// `--on-overflow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverflowArg {
    /// Leave the row out, and count it
    Drop,
    /// Cut the instruction from the left, alike on both sides
    TruncatePrompt,
    /// Cut the end of the response (TRL's keep_start); a row whose prompt alone fills the limit is left out
    TruncateResponse,
    /// Stop, naming the row
    Error,
}

/// `--on-bad-row`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadRowArg {
    /// Stop, naming the row
    Error,
    /// Leave the row out, count it and name the first ten; stop where there are more than --max-bad-rows
    Skip,
}

/// `--on-device-lost`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceLostArg {
    /// Open it again and go on from what is kept, up to three times in a row without progress
    Resume,
    /// End with an error
    Stop,
}

/// `--recompute`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecomputeArg {
    /// The first of the following that fits the device's memory
    Auto,
    /// Keep everything
    None,
    /// Compute norms and activations again, a pass over memory each
    Elementwise,
    /// Keep each layer's input alone
    Block,
}

/// What is minimised, against which reference.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ObjectiveArgs {
    /// What is scored: jpo the instruction and the response, dpo the response [default: jpo]
    #[arg(long, value_parser = parse_objective)]
    pub objective: Option<Objective>,
    /// sigmoid, robust, hinge, ipo, simpo, orpo, kto_pair, kto (also of texts with a label), bco_pair, aot_unpaired, rpo or sft; or
    /// several with weights: sigmoid=1,sft=0.2 [default: sigmoid]
    #[arg(long, value_name = "NAME[=WEIGHT],..")]
    pub loss: Option<Mix>,
    /// How far the policy may move from its reference; orpo's λ [default: 0.1]
    #[arg(long, allow_hyphen_values = true)]
    pub beta: Option<f64>,
    /// Probability that a preference is the wrong way round (sigmoid, robust, aot_unpaired) [default: 0]
    #[arg(long, allow_hyphen_values = true)]
    pub label_smoothing: Option<f64>,
    /// Margin that simpo asks for [default: 0.5]
    #[arg(long, value_name = "GAMMA", allow_hyphen_values = true)]
    pub simpo_gamma: Option<f64>,
    /// How little unlike instructions count in rpo: less, the smaller [default: 0.5]
    #[arg(long, value_name = "TAU", allow_hyphen_values = true)]
    pub rpo_tau: Option<f64>,
    /// Weight of desirable texts in kto [default: 1]
    #[arg(long, value_name = "WEIGHT", allow_hyphen_values = true)]
    pub desirable_weight: Option<f64>,
    /// Weight of undesirable texts in kto [default: 1]
    #[arg(long, value_name = "WEIGHT", allow_hyphen_values = true)]
    pub undesirable_weight: Option<f64>,
    /// Score without a reference
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reference_free: bool,
    /// The same as sft=WEIGHT in --loss: of the chosen response's likelihood [default: 0]
    #[arg(long, allow_hyphen_values = true)]
    pub sft_weight: Option<f64>,
    /// initial: the starting policy; base: without the adapter; or another checkpoint [default: initial]
    #[arg(long, value_name = "initial|base|DIR")]
    pub reference: Option<String>,
}

/// The value of this name.
fn one_of<T: Copy, const N: usize>(all: [T; N], name: fn(T) -> &'static str, text: &str) -> Result<T, String> {
    let found = all.into_iter().find(|&value| name(value) == text);
    found.ok_or_else(|| format!("expected one of {}", all.map(name).join(", ")))
}

fn parse_base_dtype(text: &str) -> Result<BaseDtype, String> {
    one_of(BaseDtype::ALL, BaseDtype::name, text)
}

fn parse_optim(text: &str) -> Result<Optim, String> {
    one_of(Optim::ALL, Optim::name, text)
}

fn parse_param_dtype(text: &str) -> Result<ParamDtype, String> {
    one_of(ParamDtype::ALL, ParamDtype::name, text)
}

fn parse_saved_dtype(text: &str) -> Result<SavedDtype, String> {
    one_of(SavedDtype::ALL, SavedDtype::name, text)
}

fn parse_objective(text: &str) -> Result<Objective, String> {
    match text {
        "jpo" => Ok(Objective::Jpo),
        "dpo" => Ok(Objective::Dpo),
        _ => Err("expected jpo or dpo".into()),
    }
}

/// Units of a size, as memory is sold and as it is counted.
const SIZES: [(&str, f64); 4] = [("MB", 1e6), ("MiB", (1 << 20) as f64), ("GB", 1e9), ("GiB", (1 << 30) as f64)];
/// Of a device, far beyond any; exact in f64.
const MOST_BYTES: f64 = 1e15;

/// Bytes. A number alone is refused: it may be meant in any unit.
fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let unit = SIZES.into_iter().find(|(name, _)| *name == unit.trim_start());
    let bytes = number.parse::<f64>().ok().zip(unit).map(|(n, (_, bytes))| n * bytes);
    let bytes =
        bytes.ok_or_else(|| format!("expected a number and one of {}, such as 8GiB", SIZES.map(|s| s.0).join(", ")))?;
    if !(1.0..=MOST_BYTES).contains(&bytes) {
        return Err(format!("expected 1 byte to {MOST_BYTES:e}"));
    }
    Ok(bytes as u64)
}

fn parse_shape(text: &str) -> Result<Shape, String> {
    one_of(Shape::ALL, Shape::name, text)
}

/// How weights are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeArg {
    /// 32 bits
    F32,
    /// bfloat16
    Bf16,
    /// float16
    F16,
}

/// `sft` and `train`.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct TrainArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub objective: ObjectiveArgs,
    /// Rows for evaluation
    #[arg(long, value_name = "FILE")]
    pub eval_data: Option<PathBuf>,
    /// Train every parameter instead of an adapter
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
    /// Rank of a new adapter [default: 8]
    #[arg(long, value_name = "R")]
    pub lora_r: Option<usize>,
    /// Its scale is alpha/R [default: 16]
    #[arg(long, value_name = "ALPHA")]
    pub lora_alpha: Option<f64>,
    /// Modules, comma-separated, or all-linear [default: q_proj,k_proj,v_proj]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lora_targets: Vec<String>,
    /// Highest learning rate [default: 5e-5; --full: 1e-6, sft --full: 2e-5]
    #[arg(long, allow_hyphen_values = true)]
    pub learning_rate: Option<f64>,
    /// linear, cosine, cosine_with_restarts, polynomial, inverse_sqrt, constant or constant_with_warmup, as in transformers [default: cosine]
    #[arg(long, value_parser = parse_shape)]
    pub lr_scheduler_type: Option<Shape>,
    /// Falls to 0 of cosine_with_restarts [default: 1]
    #[arg(long, value_name = "N")]
    pub lr_num_cycles: Option<usize>,
    /// Steps from 0 to the highest rate; a number below 1 is a part of all steps, as in transformers 5
    #[arg(long, value_name = "STEPS|PART", allow_hyphen_values = true)]
    pub warmup_steps: Option<f64>,
    /// Warm-up as a part of all steps [default: 0]
    #[arg(long, allow_hyphen_values = true)]
    pub warmup_ratio: Option<f64>,
    /// Stop after so many steps
    #[arg(long)]
    pub max_steps: Option<usize>,
    /// Passes over the data [default: 1]
    #[arg(long, allow_hyphen_values = true)]
    pub num_train_epochs: Option<f64>,
    /// Rows (pairs) a micro-batch [default: 8]
    #[arg(long, alias = "per-device-train-batch-size")]
    pub batch_size: Option<usize>,
    /// Micro-batches a step [default: 1]
    #[arg(long)]
    pub gradient_accumulation_steps: Option<usize>,
    /// adamw, or adamw8bit: moments of linear layers in 8 bits instead of 32 [default: adamw]
    #[arg(long, value_parser = parse_optim)]
    pub optim: Option<Optim>,
    /// How trained matrices are held: f32, or bf16 with stochastic rounding of updates [default: f32]
    #[arg(long, value_name = "DTYPE", value_parser = parse_param_dtype)]
    pub param_dtype: Option<ParamDtype>,
    /// [default: 0.9]
    #[arg(long, allow_hyphen_values = true)]
    pub adam_beta1: Option<f64>,
    /// [default: 0.999]
    #[arg(long, allow_hyphen_values = true)]
    pub adam_beta2: Option<f64>,
    /// [default: 1e-8]
    #[arg(long, allow_hyphen_values = true)]
    pub adam_epsilon: Option<f64>,
    /// Decoupled; not on one-dimensional tensors [default: 0]
    #[arg(long, allow_hyphen_values = true)]
    pub weight_decay: Option<f64>,
    /// Decay one-dimensional tensors too
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub decay_all: bool,
    /// Clip gradients to this global norm; 0: do not [default: 1]
    #[arg(long, allow_hyphen_values = true)]
    pub max_grad_norm: Option<f64>,
    /// Of the rows' order, of a new adapter and of stochastic rounding [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Rows in the file's order
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_shuffle: bool,
    /// Compute an instruction that both sides share twice
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_share_prefix: bool,
    /// What the backward pass computes again instead of keeping it: less memory, the same bits [default: auto]
    #[arg(long, value_enum)]
    pub recompute: Option<RecomputeArg>,
    /// Where the run does not fit the device's memory, make the cheapest change that fits: fewer rows at once, fewer bits, shorter rows
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub auto_fit: bool,
    /// How what the backward pass reads is held: f32, or bf16 where gradients stay within 1 %: less memory, other bits [default: f32]
    #[arg(long, value_name = "DTYPE", value_parser = parse_saved_dtype)]
    pub saved_dtype: Option<SavedDtype>,
    /// Steps between lines where there is no terminal [default: 1]
    #[arg(long)]
    pub logging_steps: Option<usize>,
    /// Steps between checkpoints [default: 500]
    #[arg(long)]
    pub save_steps: Option<usize>,
    /// Checkpoints kept [default: 2]
    #[arg(long)]
    pub save_total_limit: Option<usize>,
    /// Steps between evaluations [default: at the end]
    #[arg(long)]
    pub eval_steps: Option<usize>,
    /// Where everything is written
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Weights' type [default: the input's; adapters f32]
    #[arg(long, value_enum)]
    pub output_dtype: Option<DtypeArg>,
    /// Go on from the last checkpoint in the output folder
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub resume: bool,
    /// What happens when the device is lost (a watchdog, a driver's crash, sleep) [default: resume]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_device_lost: Option<DeviceLostArg>,
    /// Device time by kernel, at the end (slower; needs timestamp queries)
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub profile: bool,
    /// Settings from a TOML file; flags win
    #[arg(long, value_name = "FILE.toml")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Results as JSON on standard output
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub json: bool,
}

/// `plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub train: TrainArgs,
    /// Memory of `sft` instead of `train`
    #[arg(long)]
    pub sft: bool,
    /// Plan within these limits, whatever this machine has [default: those of the device that would be used]
    #[arg(long, value_enum)]
    pub limits: Option<LimitsArg>,
    /// Plan for a device with so much memory: 8GiB, 6.5GB, 8192MiB [default: what the device says]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, allow_hyphen_values = true)]
    pub device_memory: Option<u64>,
}

/// `--limits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LimitsArg {
    /// WebGPU's guaranteed minimum: no device is opened
    Baseline,
}

/// `score`.
#[derive(Debug, Clone, Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub objective: ObjectiveArgs,
    /// Also ids and each token's log-probability
    #[arg(long)]
    pub tokens: bool,
    /// JSON lines go here [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `grad`.
#[derive(Debug, Clone, Args)]
pub struct GradArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub objective: ObjectiveArgs,
    /// Gradient of SFT's loss instead
    #[arg(long)]
    pub sft: bool,
    /// safetensors go here
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `generate`.
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// An instruction; repeatable
    #[arg(long)]
    pub prompt: Vec<String>,
    /// Prompts of a file: rows of any form, or with `instruction` or `prompt` alone
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// paper, paper-tldr, chat, none, plain, a text with {instruction}; by-rows: chat for conversations, paper for texts; trl: chat for conversations, plain for texts [default: by-rows]
    #[arg(long)]
    pub template: Option<String>,
    /// A chat template of your own (a Jinja file), or the name of one that the tokenizer has; implies --template chat [default: the tokenizer's default]
    #[arg(long, value_name = "FILE|NAME")]
    pub chat_template: Option<String>,
    /// Our field's name = the file's name for it
    #[arg(long, value_name = "FIELD=NAME")]
    pub map: Vec<String>,
    /// Longest response, in tokens [default: 256, or what the model's positions leave]
    #[arg(long)]
    pub max_new_tokens: Option<usize>,
    /// 0: the likeliest token always
    #[arg(long, default_value_t = 1.0, allow_hyphen_values = true)]
    pub temperature: f32,
    /// Only the k likeliest tokens; 0: all
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Only the fewest tokens that reach this probability
    #[arg(long, default_value_t = 1.0, allow_hyphen_values = true)]
    pub top_p: f32,
    /// Of the draws
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Prompts side by side
    #[arg(long, default_value_t = 16)]
    pub batch_size: usize,
    /// Go on behind the tokens that end a text
    #[arg(long)]
    pub ignore_eos: bool,
    /// One JSON object a prompt: instruction, response, ids
    #[arg(long)]
    pub json: bool,
    /// Write there instead of standard output
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `merge`.
#[derive(Debug, Clone, Args)]
pub struct MergeArgs {
    /// A Hugging Face folder, or a hub id (org/name)
    #[arg(long, value_name = "DIR|HUB_ID")]
    pub model: Option<String>,
    /// A PEFT LoRA adapter, which is merged into it: a folder, or a hub id (org/name, org/name/folder)
    #[arg(long, value_name = "DIR|HUB_ID")]
    pub adapter: Option<PathBuf>,
    /// Where the merged model is written
    #[arg(long, value_name = "DIR")]
    pub output_dir: PathBuf,
    /// Weights' type [default: the model's]
    #[arg(long, value_enum)]
    pub output_dtype: Option<DtypeArg>,
}

/// `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// A Hugging Face folder, or a hub id (org/name)
    #[arg(long, value_name = "DIR|HUB_ID")]
    pub model: Option<String>,
    /// A PEFT LoRA adapter, whose tokenizer and chat template are used where it has some
    #[arg(long, value_name = "DIR|HUB_ID")]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    pub data: DataArgs,
    /// Rows are for sft
    #[arg(long)]
    pub sft: bool,
    /// Rows shown
    #[arg(long, default_value_t = 3)]
    pub rows: usize,
    /// Look at no more than the first N rows [default: all]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Also tell how these tokens differ from those of TRL
    #[arg(long)]
    pub like_trl: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `info`.
#[derive(Debug, Clone, Args)]
pub struct InfoArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Kernel families [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
    pub kernels: Vec<String>,
    /// Shapes of these models [default: the first two on a CPU, all on a GPU]
    #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
    pub models: Vec<String>,
    /// Tokens of a micro-batch [default: 512 on a CPU, 128 to 8192 on a GPU]
    #[arg(long, value_delimiter = ',', value_name = "T,..")]
    pub tokens: Vec<usize>,
    /// Only cases whose line has this text
    #[arg(long)]
    pub filter: Option<String>,
    /// One f32 matrix product instead, (M, K) by (K, N)
    #[arg(long, num_args = 1, value_delimiter = ',', value_name = "M,N,K", conflicts_with_all = ["kernels", "models", "tokens", "step"])]
    pub product: Vec<usize>,
    /// Whole optimiser steps instead: JPO, T tokens in pairs of 2 × 256
    #[arg(long, value_enum)]
    pub step: Option<StepArg>,
    /// Rows of --step [default: joint]
    #[arg(long, value_enum, requires = "step")]
    pub rows: Option<RowsArg>,
    /// Time for a case, about
    #[arg(long, default_value_t = 0.3, allow_hyphen_values = true)]
    pub seconds: f64,
    /// Leave out cases that would take longer than this a run
    #[arg(long, default_value_t = 5.0, allow_hyphen_values = true)]
    pub most_seconds: f64,
    /// As JSON, which --compare reads
    #[arg(long)]
    pub json: bool,
    /// Against the JSON of an earlier run
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// A roofline plot
    #[arg(long, value_name = "FILE.svg")]
    pub svg: Option<PathBuf>,
}

/// `--rows` of `bench`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RowsArg {
    /// Two instructions a pair
    Joint,
    /// One instruction a pair, two thirds of each row: computed once, and twice
    Conditional,
    /// Lengths of a quarter to the whole: packed, and padded to the longest
    Mixed,
}

/// `--step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StepArg {
    /// Every parameter, f32
    Full,
    /// LoRA r 8 on all linear modules of a bf16 base
    Lora,
}

/// `tune`.
#[derive(Debug, Clone, Args)]
pub struct TuneArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// For shapes of these models [default: the first on a CPU, all on a GPU]
    #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
    pub models: Vec<String>,
    /// Tokens of a micro-batch [default: 512 on a CPU, 512 and 2048 on a GPU]
    #[arg(long, value_delimiter = ',', value_name = "T,..")]
    pub tokens: Vec<usize>,
    /// For all together, about
    #[arg(long, default_value_t = 45.0, allow_hyphen_values = true)]
    pub seconds: f64,
    /// The whole table as JSON
    #[arg(long)]
    pub json: bool,
}

/// `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Where everything is written
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    pub output_dir: PathBuf,
    /// The demo model
    #[arg(long, value_name = "DIR", default_value = "models/demo")]
    pub model: PathBuf,
    /// Write the untrained model, its tokenizer and all data there, and stop
    #[arg(long, value_name = "DIR")]
    pub prepare: Option<PathBuf>,
    /// Of the tasks
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Training steps of each objective
    #[arg(long)]
    pub max_steps: Option<usize>,
    /// Held-out prompts for the win rates
    #[arg(long)]
    pub prompts: Option<usize>,
}

/// `completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// The shell that reads them
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// `man`.
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// A command, such as train; without it, the program
    #[arg(value_parser = super::reference::parse_command_name)]
    pub command: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_number_and_a_unit() {
        for (text, bytes) in [
            ("8GiB", 8 << 30),
            ("8 GiB", 8 << 30),
            ("8192MiB", 8 << 30),
            ("8GB", 8_000_000_000),
            ("6.5GB", 6_500_000_000),
            ("0.5MiB", 1 << 19),
            ("1.5MB", 1_500_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        let words = "8 8.5 GiB .GiB 8gib 8G 8KiB 8GiBs -8GiB +8GiB 1.2.3GiB 8,5GB 1e3MiB infGiB nanGiB";
        for text in words.split(' ').chain(["", "8GiB 8", "eight GiB"]) {
            let said = parse_size(text).expect_err(text);
            assert!(said.contains("GiB") && said.contains("MB"), "{text}: {said}");
        }
        for text in ["0GiB", "0.0000001MB", "99999999999999999GiB"] {
            let said = parse_size(text).expect_err(text);
            assert!(said.contains("1 byte"), "{text}: {said}");
        }
    }
}
