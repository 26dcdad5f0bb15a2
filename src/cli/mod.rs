//! Flags as typed -> resolved plan; one file a subcommand. No logic of the engine is here.

#[macro_use]
mod output;

mod args;
mod bench;
mod check;
mod demo;
mod generate;
mod info;
mod merge;
mod plan;
mod roofline;
mod score;
mod session;
mod steps;
mod train;
mod tune;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use args::{Cli, Command};

/// Flags as typed; one line where they are wrong.
fn parse() -> Result<Cli, ExitCode> {
    // A value may be negative: it is then out of range, and the message can name its flag.
    let command = Cli::command().mut_subcommands(|c| {
        c.mut_args(|a| {
            let takes_value = a.get_action().takes_values();
            a.allow_negative_numbers(takes_value)
        })
    });
    let parsed = command.try_get_matches().and_then(|m| Cli::from_arg_matches(&m));
    parsed.map_err(|error| {
        if !error.use_stderr() {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let _ = error.print();
            return ExitCode::from(2);
        }
        // Clap's own text, without the usage that follows it.
        let text = error.to_string();
        let said = text.lines().take_while(|l| !l.starts_with("Usage:") && !l.starts_with("For more"));
        let line = said.map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
        note!("{line} (--help tells more)");
        ExitCode::from(2)
    })
}

/// Runs the program: 0, 2 for bad input, 1 for anything else.
pub fn run() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
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
        Command::Bench(args) => bench::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Demo(args) => demo::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note!("error: {error}");
            ExitCode::from(error.exit_status() as u8)
        }
    }
}
