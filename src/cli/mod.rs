//! The command line, with one file per subcommand: resolves flags, and prints results. The engine's logic is elsewhere.

#[macro_use]
mod output;

mod bench;
mod check;
mod demo;
mod evaluate;
mod export;
mod generate;
mod info;
mod interplay;
mod interrupt;
mod judge;
mod merge;
mod objective_note;
mod plan;
mod score;
mod screen;
mod steps;
mod train;
mod tune;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;

use clap::FromArgMatches;

use crate::error::Result;
use crate::flags::{Cli, Command, StudyRunArgs};
pub use crate::flags::{command, reference};
use crate::progress::{line_label, show_progress};
use crate::ranks::Ranks;
use crate::study::{self, StageCommands};
use crate::workflow::Finished;

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

/// Parses the command line. Returns the exit code where help was printed, or a line about what is wrong.
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
        Ranks::give_precedence();
        // Clap's own text, without the usage that follows it.
        let text = error.to_string();
        let said = text.lines().take_while(|l| !l.starts_with("Usage:") && !l.starts_with("For more"));
        let line = said.map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
        note!("{line} (--help tells more)");
        ExitCode::from(2)
    })
}

/// Runs `jointwise study` or `jointwise iterate`. Under `--json`, and on other ranks than rank 0, its stages print nothing on standard output.
fn run_stages(
    args: &StudyRunArgs,
    ranks: Ranks,
    run: impl FnOnce(StageCommands) -> Result<(Finished, String)>,
) -> Result<Finished> {
    output::QUIET.store(args.json || !ranks.is_first(), Relaxed);
    let train = |args, sft| train::command(args, sft, Ranks::alone());
    let stop = || interrupt::stop_on_ctrl_c("ending after what is under way, which is kept");
    let done =
        run(StageCommands { train, judge: judge::run, evaluate: evaluate::run, respond: evaluate::respond, stop });
    output::QUIET.store(false, Relaxed);
    let (finished, text) = done?;
    output::say(format_args!("{text}")).map(|()| finished)
}

/// Exit status after Ctrl-C: 128 + SIGINT, as in shells, so that `train && merge` stops where training was stopped.
const INTERRUPTED: u8 = 130;

/// Logger that writes the crate's own messages to standard error, one line each. A standard error that is closed or full stops nothing. Messages of other
/// crates are not shown.
struct StderrLog;

impl log::Log for StderrLog {
    fn enabled(&self, about: &log::Metadata<'_>) -> bool {
        about.target().starts_with("jointwise")
    }

    fn log(&self, record: &log::Record<'_>) {
        let prefix = match record.level() {
            _ if !self.enabled(record.metadata()) => return,
            log::Level::Warn => "warning: ",
            _ if record.target() == "jointwise::status" => "",
            _ => "note: ",
        };
        let text = record.args().to_string();
        let label = if text.starts_with("error: ") { String::new() } else { line_label() };
        // In one piece, because other processes may write to the same place.
        let _ = std::io::stderr().write_all(format!("{prefix}{label}{text}\n").as_bytes());
    }

    fn flush(&self) {}
}

/// Runs the program. The exit status is 0, 2 for bad input, 130 after Ctrl-C, or 1 for any other error.
pub fn run() -> ExitCode {
    if log::set_logger(&StderrLog).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    let cli = match parse() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    match cli.command.join_ranks() {
        Ok(ranks) => run_command(cli.command, ranks),
        Err(error) => {
            Ranks::give_precedence();
            ExitCode::from(Ranks::alone().fail(&error) as u8)
        }
    }
}

fn run_command(command: Command, ranks: Ranks) -> ExitCode {
    if ranks.is_first() {
        show_progress();
    } else {
        log::set_max_level(log::LevelFilter::Warn);
    }
    let done = match command {
        Command::Sft(args) => train::command(args, true, ranks),
        Command::Train(args) => train::command(args, false, ranks),
        Command::Score(args) => score::score(&args, ranks).map(|()| Finished::Whole),
        Command::Grad(args) => score::grad(&args, ranks).map(|()| Finished::Whole),
        Command::Generate(args) => generate::run(&args),
        Command::Merge(args) => merge::run(&args).map(|()| Finished::Whole),
        Command::Export(args) => export::run(&args).map(|()| Finished::Whole),
        Command::Judge(args) => judge::run(*args),
        Command::Interplay(args) => interplay::run(args).map(|()| Finished::Whole),
        Command::Evaluate(args) => evaluate::run(*args, ranks),
        Command::Study(args) => run_stages(&args.run, ranks, |commands| study::run(&args, commands, ranks)),
        Command::Iterate(args) => run_stages(&args.run, ranks, |commands| study::rounds::run(&args, commands)),
        Command::Plan(args) => plan::run(args).map(|()| Finished::Whole),
        Command::Check(args) => check::run(&args).map(|()| Finished::Whole),
        Command::Info(args) => info::run(&args).map(|()| Finished::Whole),
        Command::Bench(args) => bench::run(&args).map(|()| Finished::Whole),
        Command::Tune(args) => tune::run(&args).map(|()| Finished::Whole),
        Command::Demo(args) => demo::run(&args),
        Command::Completions(args) => {
            output::write_stdout(&reference::completions(args.shell)).map(|()| Finished::Whole)
        }
        Command::Man(args) => {
            output::write_stdout(&reference::man_page(args.command.as_deref())).map(|()| Finished::Whole)
        }
        Command::Reference => output::write_stdout(reference::reference().as_bytes()).map(|()| Finished::Whole),
    };
    if done.is_ok() {
        ranks.finish();
    }
    match done {
        Ok(Finished::Whole) => ExitCode::SUCCESS,
        Ok(Finished::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => ExitCode::from(ranks.fail(&error) as u8),
    }
}
