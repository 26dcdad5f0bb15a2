//! Flags of `demo`, `completions` and `man`.

use std::path::PathBuf;

use clap::Args;

use super::DeviceArgs;

/// Flags of `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Folder for data, adapters and report.html
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    pub output_dir: PathBuf,
    /// Folder of the demo model
    #[arg(long, value_name = "DIR", default_value = "models/demo")]
    pub model: PathBuf,
    /// Write the untrained model, its tokenizer and all data to this folder, and stop
    #[arg(long, value_name = "DIR")]
    pub prepare: Option<PathBuf>,
    /// Random seed for the tasks and for training
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Training steps per objective
    #[arg(long)]
    pub max_steps: Option<usize>,
    /// Held-out prompts for the win rates
    #[arg(long)]
    pub prompts: Option<usize>,
}

/// Flags of `completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// Shell that reads the completions
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Flags of `man`.
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// Command that the page describes, such as train; without it, the whole program
    #[arg(value_parser = super::reference::parse_command_name)]
    pub command: Option<String>,
}
