//! Flags as typed, which the command line, `--config FILE.toml` and the tables of a study share. Every flag of a command is a key of the file; flags win. Each
//! group of flags resolves itself into settings of [`crate::workflow`].

mod config_file;
mod data;
mod device;
mod evaluate;
mod export;
mod judge;
pub mod judge_checks;
mod lora;
mod model;
mod objective;
mod planned_run;
mod program;
pub mod reference;
mod score;
mod study;
mod train;
mod values;

use clap::{CommandFactory, Parser, Subcommand};

use crate::error::Result;
use crate::ranks::Ranks;

pub use config_file::{from_table, with_config};
pub use data::{CheckArgs, DataArgs, resolve_template};
pub use device::{BenchArgs, InfoArgs, RowsArg, StepArg, TuneArgs};
pub use evaluate::EvaluateArgs;
pub use export::{ExportArgs, GgufTypeArg};
pub use judge::{AnswerArg, AskArgs, InterplayArgs, JudgeArgs, StratumArg};
pub use lora::{LoraArgs, PresetArg};
pub use model::{DeviceArgs, DeviceLostArg, DtypeArg, MergeArgs, ModelArgs, open_model};
pub use objective::ObjectiveArgs;
pub use planned_run::{PlannedRun, peak_bytes, plan_run, planned_caps};
pub use program::{CompletionsArgs, DemoArgs, ManArgs};
pub use score::{GenerateArgs, GradArgs, ScoreArgs};
pub use study::{IterateArgs, StudyArgs, StudyRunArgs};
pub use train::{LimitsArg, PlanArgs, TrainArgs};

/// Returns the program's definition for clap: commands, flags, values and help.
pub fn command() -> clap::Command {
    // A value may be negative: it is then out of range, and the message can name its flag.
    Cli::command().mut_subcommands(|c| {
        c.mut_args(|a| {
            let takes_value = a.get_action().takes_values();
            a.allow_negative_numbers(takes_value)
        })
    })
}

/// Preference tuning of language models on any GPU.
#[derive(Debug, Parser)]
#[command(name = "jointwise", version, about, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// Subcommand to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Supervised fine-tuning on {instruction, response} rows
    Sft(TrainArgs),
    /// Preference tuning (JPO, DPO) on pairs
    #[command(after_help = objective::losses_help())]
    Train(TrainArgs),
    /// Log-probabilities of rows, rewards and losses, as JSON lines
    #[command(after_help = objective::losses_help())]
    Score(ScoreArgs),
    /// Gradients of the mean loss, as safetensors
    #[command(after_help = objective::losses_help())]
    Grad(GradArgs),
    /// Responses to prompts
    Generate(GenerateArgs),
    /// An adapter merged into its base model
    Merge(MergeArgs),
    /// A model or an adapter as a GGUF file for llama.cpp, Ollama and LM Studio
    Export(ExportArgs),
    /// Preferences between responses, from a model, a program or a person, asked in both orders
    Judge(Box<JudgeArgs>),
    /// Decisions and agreement on judged pairs, by the origin of their sides, with intervals
    Interplay(InterplayArgs),
    /// Win rates of checkpoints on test prompts, judged in both orders, by temperature and length
    Evaluate(Box<EvaluateArgs>),
    /// A whole experiment: sampling, judging, every method, seed and fraction of the data, win rates, one report
    Study(StudyArgs),
    /// Online rounds (iterative DPO or JPO): each samples from the policy, asks a judge, trains on its preferences and evaluates
    Iterate(IterateArgs),
    /// Memory that a training run needs, before anything is loaded
    Plan(PlanArgs),
    /// Rows as tokens, with the scored tokens marked, and the rows that would be dropped
    Check(CheckArgs),
    /// Devices, their features, and a self-test
    Info(InfoArgs),
    /// Shader benchmarks: every kernel, or whole steps, against this device's own ceilings
    Bench(BenchArgs),
    /// Finds this device's fastest kernels in under a minute, and caches the result
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

impl Command {
    /// Joins the ranks of a run, where a launcher of MPI started several processes. Commands that write, and do not divide their work, are refused in several
    /// processes.
    ///
    /// # Errors
    /// Those of [`Ranks::start`] and [`Ranks::refuse_several`].
    pub fn join_ranks(&self) -> Result<Ranks> {
        match self {
            Self::Sft(_) | Self::Train(_) | Self::Score(_) | Self::Grad(_) => return Ranks::start(),
            // These only list.
            Self::Study(args) if args.list_jobs || args.run.dry_run => {}
            Self::Evaluate(args) if args.list_jobs => {}
            Self::Study(args) if args.job.is_none() => return Ranks::start(),
            Self::Evaluate(args) if args.job.is_none() => return Ranks::start(),
            Self::Study(_) => Ranks::refuse_several("study --job")?,
            Self::Evaluate(_) => Ranks::refuse_several("evaluate --job")?,
            Self::Plan(_) | Self::Check(_) | Self::Info(_) => {}
            Self::Completions(_) | Self::Man(_) | Self::Reference => {}
            _ => Ranks::refuse_several(&std::env::args().nth(1).unwrap_or_default())?,
        }
        Ok(Ranks::alone())
    }
}
