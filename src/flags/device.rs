//! Flags of `info`, `bench` and `tune`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::DeviceArgs;

/// Flags of `info`.
#[derive(Debug, Clone, Args)]
pub struct InfoArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Print what a bug report needs, as Markdown to paste: program, system, device, limits, variants, self-test, tuning, caches
    #[arg(long, conflicts_with = "json")]
    pub report: bool,
    /// Run every case of the self-test, not four per kernel family; this takes minutes on a CPU
    #[arg(long)]
    pub all_cases: bool,
}

/// Flags of `bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Kernel families to time [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
    pub kernels: Vec<String>,
    /// Models whose shapes are timed [default: the first two on a CPU, all on a GPU]
    #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
    pub models: Vec<String>,
    /// Tokens per micro-batch [default: 512 on a CPU, 128 to 8192 on a GPU]
    #[arg(long, value_delimiter = ',', value_name = "T,..")]
    pub tokens: Vec<usize>,
    /// Time only the cases whose line contains this text
    #[arg(long)]
    pub filter: Option<String>,
    /// Time one f32 matrix product, (M, K) by (K, N), instead of the kernels
    #[arg(
        long,
        visible_alias = "matmul",
        num_args = 1,
        value_delimiter = ',',
        value_name = "M,N,K",
        conflicts_with_all = ["kernels", "models", "tokens", "step"]
    )]
    pub product: Vec<usize>,
    /// Time whole optimiser steps of JPO instead of the kernels; --tokens gives the tokens per step, in pairs of 2 × 256
    #[arg(long, value_enum)]
    pub step: Option<StepArg>,
    /// Kind of rows that --step trains on [default: joint]
    #[arg(long, visible_alias = "workload", value_enum, requires = "step")]
    pub rows: Option<RowsArg>,
    /// Approximate time per case, in seconds
    #[arg(long, default_value_t = 0.3, allow_hyphen_values = true)]
    pub seconds: f64,
    /// Leave out cases that would take more than this many seconds per run
    #[arg(long, visible_alias = "max-seconds", default_value_t = 5.0, allow_hyphen_values = true)]
    pub most_seconds: f64,
    /// Print the results as JSON, which --compare reads
    #[arg(long)]
    pub json: bool,
    /// Compare with the JSON of an earlier run
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// Write a roofline plot to this file
    #[arg(long, value_name = "FILE.svg")]
    pub svg: Option<PathBuf>,
}

/// Values of `bench --rows`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RowsArg {
    /// Two instructions per pair
    Joint,
    /// One instruction per pair, two thirds of each row: computed once per pair, against once per side
    Conditional,
    /// Rows of a quarter to the full length: packed, against padded to the longest
    Mixed,
}

/// Values of `bench --step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StepArg {
    /// Train every parameter, in f32
    Full,
    /// Train LoRA of rank 8 on all linear modules of a bf16 base
    Lora,
}

/// Flags of `tune`.
#[derive(Debug, Clone, Args)]
pub struct TuneArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Models whose shapes are tuned [default: the first on a CPU, all on a GPU]
    #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
    pub models: Vec<String>,
    /// Tokens per micro-batch [default: 512 on a CPU, 512 and 2048 on a GPU]
    #[arg(long, value_delimiter = ',', value_name = "T,..")]
    pub tokens: Vec<usize>,
    /// Approximate time for all measurements together, in seconds
    #[arg(long, default_value_t = 45.0, allow_hyphen_values = true)]
    pub seconds: f64,
    /// Print the whole table as JSON
    #[arg(long)]
    pub json: bool,
}
