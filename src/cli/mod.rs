//! Flags as typed -> resolved plan; one file a subcommand. No logic of the engine is here.

#[macro_use]
mod output;

mod args;
mod check;
mod demo;
mod generate;
mod info;
mod merge;
mod plan;
mod score;
mod session;
mod train;

use std::process::ExitCode;

use clap::Parser;

use crate::error::one_line;
use args::{Cli, Command};

/// Runs the program: 0, 2 for bad input, 1 for anything else.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Sft(args) => train::run(args, true).map(drop),
        Command::Train(args) => train::run(args, false).map(drop),
        Command::Score(args) => score::score(&args),
        Command::Grad(args) => score::grad(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Plan(args) => plan::run(args),
        Command::Check(args) => check::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Demo(args) => demo::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(&error.to_string()));
            ExitCode::from(error.exit_status() as u8)
        }
    }
}
