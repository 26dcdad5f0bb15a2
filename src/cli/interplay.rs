//! `interplay`: annotated rows as tables and figures.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::output::check_place;
use crate::error::{Error, Result};
use crate::eval::acquire::ANNOTATED;
use crate::eval::interplay::{AnnotatedFile, BootstrapSettings, Interplay, interplay, read};
use crate::eval::statistics::{DEFAULT_LEVEL, DEFAULT_RESAMPLES, MOST_RESAMPLES};
use crate::flags::{InterplayArgs, with_config};
use crate::report::interplay as interplay_report;
use crate::report::{self, Report};
use crate::validate::{at_least_one, at_most};

/// Runs `jointwise interplay`.
pub fn run(args: InterplayArgs) -> Result<()> {
    let config = args.config.clone();
    let args = with_config(args, config.as_deref(), "interplay")?;
    if args.data.is_empty() && args.people.is_empty() {
        return Err(Error::flag("data", "is missing: annotated rows, as `jointwise judge` writes them"));
    }
    let draws = args.draws.unwrap_or(DEFAULT_RESAMPLES);
    at_least_one("draws", draws)?;
    at_most("draws", draws, MOST_RESAMPLES)?;
    let inputs: Vec<(PathBuf, bool)> = [(&args.data, false), (&args.people, true)]
        .iter()
        .flat_map(|(all, person)| all.iter().map(|p| (resolved(p), *person)))
        .collect();
    let page = args.report.as_deref().map(|page| check_place("report", page, inputs.iter().map(|(path, _)| path)));
    let page = page.transpose()?;
    let mut files = Vec::new();
    for (path, is_person) in &inputs {
        let (file, note) = read(path, *is_person)?;
        note.iter().for_each(|note| note!("note: {note}"));
        files.push(file);
    }
    tell_apart(&mut files);
    let bootstrap = BootstrapSettings { level: DEFAULT_LEVEL, draws, seed: args.seed.unwrap_or(0) };
    let found = interplay(&files, bootstrap);
    if let Some(page) = &page {
        report::write(page, &report_of(&found, &files))?;
    }
    if args.json {
        let text = serde_json::to_string_pretty(&found).map_err(|e| Error::file("standard output", e))?;
        return say!("{text}");
    }
    interplay_report::tables(&found).iter().try_for_each(|table| say!("{}", table.to_text()))
}

/// Returns the file of annotated rows. A folder that `judge` wrote stands for the file in it.
fn resolved(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(ANNOTATED) } else { path.into() }
}

/// Adds its path to a judge's name where several files have that name.
fn tell_apart(files: &mut [AnnotatedFile]) {
    let names: Vec<String> = files.iter().map(|f| f.judge.clone()).collect();
    for file in files.iter_mut() {
        if names.iter().filter(|name| **name == file.judge).count() > 1 {
            file.judge = format!("{} ({})", file.judge, file.path.display());
        }
    }
}

fn report_of(found: &Interplay, files: &[AnnotatedFile]) -> Report {
    let names: Vec<&str> = files.iter().map(|f| f.judge.as_str()).collect();
    let data: Vec<String> = files.iter().map(|f| format!("{}: {} rows", f.path.display(), f.rows.len())).collect();
    Report {
        title: "Conditional and joint preferences".into(),
        command: report::command_line(),
        objective: format!("judged by {}", names.join(", ")),
        data: data.join("; "),
        started: report::utc(SystemTime::now()),
        facts: vec![("Seed".into(), found.bootstrap.seed.to_string())],
        bars: interplay_report::figures(found),
        tables: interplay_report::tables(found),
        ..Report::default()
    }
}
