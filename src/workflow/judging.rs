//! Preferences that a judge gives.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::output_folder::OutputFolder;
use crate::data::comparisons::{Comparison, read_comparisons};
use crate::data::rows::FieldMap;
use crate::error::{Error, Result};
use crate::eval::acquire::{ANNOTATED, JudgingResult, PREFERENCES, VerdictCounts, acquire};
use crate::eval::journal::{ANSWERS, AnswerJournal};
use crate::eval::judge::Judge;
use crate::eval::tasks::rows::write;

/// Asks a judge about the comparisons of some files, each in both orders, and writes `preferences.jsonl`, rows to train on, and `annotated.jsonl`, every
/// comparison with its verdict. Each answer is kept in `answers.jsonl` as it comes: a second call asks what is left.
///
/// A comparison is `{"instruction", "response_0", "response_1"}`, or `{"instruction_0", "response_0", "instruction_1", "response_1"}`.
///
/// # Errors
/// [`crate::Error::Line`] for a row that is no comparison; [`crate::Error::Judge`] where the judge does not answer; [`crate::Error::File`].
///
/// # Examples
/// ```
/// # let temporary = tempfile::tempdir()?;
/// # std::env::set_current_dir(&temporary)?;
/// # let row = r#"{"instruction": "What is 2 + 3?", "response_0": " 5", "response_1": " 5"}"#;
/// # std::fs::write("comparisons.jsonl", row)?;
/// use jointwise::{eval::judge::grader::Grader, judge_comparisons};
/// let counts = judge_comparisons(&["comparisons.jsonl"], &Grader::default(), "runs/judged")?;
/// println!("{} ties", counts.ties);
/// # assert_eq!(counts.ties, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn judge_comparisons(
    files: &[impl AsRef<Path>],
    judge: &dyn Judge,
    out: impl AsRef<Path>,
) -> Result<VerdictCounts> {
    let read = read_comparisons(files, &FieldMap::default(), None)?;
    read.notes.iter().for_each(|line| note!("note: {line}"));
    let comparisons = read.rows;
    let out = out.as_ref();
    let _folder = OutputFolder::open(out, true)?;
    let mut journal = AnswerJournal::open(&out.join(ANSWERS), judge)?;
    journal.notes().iter().for_each(|note| note!("note: {note}"));
    let acquired = acquire(&comparisons, judge, &mut journal, &AtomicBool::new(false), &mut |_| ());
    write_judging_result(out, judge.name(), &comparisons, &acquired)?;
    let (counts, n_failed) = (acquired.counts(), acquired.failures.len());
    match acquired.error {
        Some(error) => Err(error),
        None if n_failed == 0 => Ok(counts),
        None => Err(Error::Judge(format!("{n_failed} questions have no answer: a second call asks them again"))),
    }
}

/// Writes `annotated.jsonl`, every row that was asked about, and `preferences.jsonl`, every row that was decided.
///
/// # Errors
/// [`crate::Error::File`].
pub fn write_judging_result(
    out: &Path,
    judge: &str,
    comparisons: &[Comparison],
    acquired: &JudgingResult,
) -> Result<()> {
    let rows = || comparisons.iter().zip(&acquired.judged);
    let asked = rows().filter(|(_, judged)| judged.is_asked());
    write(&out.join(ANNOTATED), asked.map(|(comparison, judged)| judged.annotate(comparison, judge)))?;
    write(&out.join(PREFERENCES), rows().filter_map(|(comparison, judged)| judged.preference(comparison))).map(drop)
}
