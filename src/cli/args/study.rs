//! Flags of `study`.

use std::path::PathBuf;

use clap::Args;

use super::DeviceLostArg;

/// `study`.
#[derive(Debug, Clone, Args)]
pub struct StudyArgs {
    /// What is trained, on what, and how it is judged: see examples/recipes
    #[arg(value_name = "STUDY.toml")]
    pub study: PathBuf,
    /// Where everything is written
    #[arg(long, value_name = "DIR")]
    pub output_dir: PathBuf,
    /// Go on with what is in the output folder: what is done is not done again
    #[arg(long)]
    pub resume: bool,
    /// What happens when the device is lost (a watchdog, a driver's crash, sleep) [default: resume]
    #[arg(long, value_enum)]
    pub on_device_lost: Option<DeviceLostArg>,
    /// Tell the stages, their steps and memory, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The stages of --dry-run as JSON; of a study, results.json is in its folder
    #[arg(long, requires = "dry_run")]
    pub json: bool,
}
