//! Flags of `study`.

use std::path::PathBuf;

use clap::Args;

use super::DeviceLostArg;

/// Flags of `study`.
#[derive(Debug, Clone, Args)]
pub struct StudyArgs {
    /// Study file: the model, the data, the methods and the judge (see examples/recipes)
    #[arg(value_name = "STUDY.toml")]
    pub study: PathBuf,
    /// Folder for all stages, results.json and report.html
    #[arg(long, value_name = "DIR")]
    pub output_dir: PathBuf,
    /// Continue the study in the output folder: finished work is not repeated
    #[arg(long)]
    pub resume: bool,
    /// Reaction to a lost device (a watchdog, a driver's crash, sleep) [default: resume]
    #[arg(long, value_enum)]
    pub on_device_lost: Option<DeviceLostArg>,
    /// Print the stages with their steps, memory and time, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the stages of --dry-run as JSON; a study writes results.json to its folder
    #[arg(long, requires = "dry_run")]
    pub json: bool,
}
