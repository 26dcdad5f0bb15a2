//! Flags of `study` and `iterate`.

use std::path::PathBuf;

use clap::Args;

use super::DeviceLostArg;

/// Flags of `study`.
#[derive(Debug, Clone, Args)]
pub struct StudyArgs {
    /// Study file: the model, the data, the methods and the judge (see examples/recipes)
    #[arg(value_name = "STUDY.toml")]
    pub study: PathBuf,
    #[command(flatten)]
    pub run: StudyRunArgs,
    /// Print the jobs that --job does, with what each needs, and do nothing
    #[arg(long, conflicts_with_all = ["job", "dry_run"])]
    pub list_jobs: bool,
    /// Do one job alone, by its number in --list-jobs; other processes may do others in the same folder
    #[arg(long, value_name = "N", conflicts_with = "dry_run")]
    pub job: Option<usize>,
}

/// Flags of `iterate`.
#[derive(Debug, Clone, Args)]
pub struct IterateArgs {
    /// Rounds file: the model, the prompts, the judge, the number of rounds and the training (see examples/rounds)
    #[arg(value_name = "ROUNDS.toml")]
    pub rounds: PathBuf,
    #[command(flatten)]
    pub run: StudyRunArgs,
}

/// Flags of `study` and `iterate`.
#[derive(Debug, Clone, Args)]
pub struct StudyRunArgs {
    /// Folder for all stages, results.json and report.html
    #[arg(long, value_name = "DIR")]
    pub output_dir: PathBuf,
    /// Continue the run in the output folder: finished work is not repeated
    #[arg(long)]
    pub resume: bool,
    /// Reaction to a lost device (a watchdog, a driver's crash, sleep) [default: resume]
    #[arg(long, value_enum)]
    pub on_device_lost: Option<DeviceLostArg>,
    /// Print the stages with their steps, memory and time, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print results.json, or the list of --dry-run or --list-jobs as JSON, on standard output, and nothing else there
    #[arg(long)]
    pub json: bool,
}
