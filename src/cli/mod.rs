//! Flags as typed -> resolved plan; one file a subcommand. No logic of the engine is here.

#[macro_use]
mod output;

mod args;
mod bench;
mod cache_folder;
mod check;
mod checked;
mod demo;
mod device_notes;
mod evaluate;
mod fit;
mod generate;
mod info;
mod interplay;
mod interrupt;
mod judge;
mod load;
mod merge;
mod objective_note;
mod output_folder;
mod plan;
mod recover;
pub mod reference;
mod reference_cache;
mod roofline;
mod score;
mod screen;
mod session;
mod steps;
mod study;
mod tokenised;
mod train;
mod tune;
mod tuning_cache;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use args::{Cli, Command};

/// Returns the program's definition for clap: commands, flags, values, help.
pub fn command() -> clap::Command {
    // A value may be negative: it is then out of range, and the message can name its flag.
    Cli::command().mut_subcommands(|c| {
        c.mut_args(|a| {
            let takes_value = a.get_action().takes_values();
            a.allow_negative_numbers(takes_value)
        })
    })
}

/// Parses arguments without running the command. The first one is the program's name. Tests of the documents use it.
///
/// # Errors
/// Clap's message, for unknown flags and values.
pub fn parse_only<T: Into<OsString> + Clone>(arguments: impl IntoIterator<Item = T>) -> Result<(), String> {
    let parsed = command().try_get_matches_from(arguments).and_then(|m| Cli::from_arg_matches(&m));
    match parsed {
        Ok(_) => Ok(()),
        // --help and --version are no mistakes.
        Err(error) if !error.use_stderr() => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Flags as typed; one line where they are wrong.
fn parse() -> Result<Cli, ExitCode> {
    let parsed = command().try_get_matches().and_then(|m| Cli::from_arg_matches(&m));
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

/// How a command that succeeded ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finished {
    Whole,
    /// By Ctrl-C, with what was done so far kept.
    Interrupted,
}

impl From<()> for Finished {
    fn from((): ()) -> Self {
        Self::Whole
    }
}

/// 128 + SIGINT, as shells have it: `train && merge` stops where training was stopped.
const INTERRUPTED: u8 = 130;

/// Runs the program: 0, 2 for bad input, 130 after Ctrl-C, 1 for anything else.
pub fn run() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    let done = match cli.command {
        Command::Sft(args) => train::command(args, true),
        Command::Train(args) => train::command(args, false),
        Command::Score(args) => score::score(&args).map(Finished::from),
        Command::Grad(args) => score::grad(&args).map(Finished::from),
        Command::Generate(args) => generate::run(&args),
        Command::Merge(args) => merge::run(&args).map(Finished::from),
        Command::Judge(args) => judge::run(*args),
        Command::Interplay(args) => interplay::run(args).map(Finished::from),
        Command::Evaluate(args) => evaluate::run(*args),
        Command::Study(args) => study::run(&args),
        Command::Plan(args) => plan::run(args).map(Finished::from),
        Command::Check(args) => check::run(&args).map(Finished::from),
        Command::Info(args) => info::run(&args).map(Finished::from),
        Command::Bench(args) => bench::run(&args).map(Finished::from),
        Command::Tune(args) => tune::run(&args).map(Finished::from),
        Command::Demo(args) => demo::run(&args),
        Command::Completions(args) => output::write_stdout(&reference::completions(args.shell)).map(Finished::from),
        Command::Man(args) => output::write_stdout(&reference::man_page(args.command.as_deref())).map(Finished::from),
        Command::Reference => output::write_stdout(reference::reference().as_bytes()).map(Finished::from),
    };
    match done {
        Ok(Finished::Whole) => ExitCode::SUCCESS,
        Ok(Finished::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            note!("error: {error}");
            ExitCode::from(error.exit_status() as u8)
        }
    }
}
