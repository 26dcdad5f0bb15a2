//! Interplay of conditional and joint preferences: the analysis of the paper's figures 2 and 3, from annotated rows. It computes how often
//! a judge decides, by stratum, and how often a pair that was preferred conditionally (C) wins against a pair that was rejected (R). It
//! also measures the agreement of judges with each other and with people, and the effect of the presentation order. Each number has a
//! bootstrap interval ([`super::statistics`]).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use super::judge::{Choice, PresentationOrder, Question, Verdict, is_flip};
use super::statistics::{ClusterResampler, Interval, kappa, share};
use super::strata::Stratum;
use crate::data::comparisons::Comparison;
use crate::data::rows::{FieldMap, SourceLocation};
use crate::error::{Error, Result};
use crate::eval::journal::RecoveredLines;
use crate::model::folder::read_whole;

/// Largest size of a judge's annotated rows, in bytes.
const MAX_ROWS_BYTES: u64 = 4 << 30;

/// Judged row.
#[derive(Debug, Clone)]
pub struct AnnotatedRow {
    /// Comparison that was judged.
    pub comparison: Comparison,
    /// Verdict from both orders.
    pub verdict: Verdict,
    /// Answers in the orders (a)(b) and (b)(a), where the row has them.
    pub answers: [Option<Choice>; 2],
    /// Stratum from which the sides were drawn.
    pub stratum: Stratum,
    /// Side of a mixed pair that was preferred conditionally; `None` for other pairs.
    pub chosen: Option<usize>,
    /// Names of the preference rows from which the sides were drawn, or the sides' instructions where the rows are not named.
    pub sources: Vec<String>,
}

/// Annotated rows of one judge.
#[derive(Debug, Clone)]
pub struct AnnotatedFile {
    /// File of the rows.
    pub path: PathBuf,
    /// Name of the judge: field `judge`, else the file's name.
    pub judge: String,
    /// Whether the judge is a person.
    pub is_person: bool,
    /// Rows in the file's order.
    pub rows: Vec<AnnotatedRow>,
}

impl AnnotatedRow {
    fn from_object(place: SourceLocation, object: &Map<String, Value>) -> std::result::Result<Self, String> {
        let comparison = Comparison::from_object(place, object.clone(), &FieldMap::default())?;
        let field = |name: &str| object.get(name).filter(|value| !value.is_null());
        let wrong = |name: &str, expected: &str| format!("field `{name}`: expected {expected}");
        let answers: Option<[Option<Choice>; 2]> = match field("answers") {
            None => None,
            Some(value) => Some(
                serde_json::from_value(value.clone())
                    .map_err(|_| wrong("answers", "two of \"a\", \"b\", \"tie\", null"))?,
            ),
        };
        let verdict: Option<Verdict> = match field("verdict") {
            None => None,
            Some(value) => Some(
                serde_json::from_value(value.clone())
                    .map_err(|_| wrong("verdict", "first, second, tie or no_answer"))?,
            ),
        };
        let verdict = match (verdict, answers) {
            (Some(verdict), Some(answers)) if verdict != Verdict::from_answers(answers) => {
                return Err("fields `verdict` and `answers` contradict each other".into());
            }
            (Some(verdict), _) => verdict,
            (None, Some(answers)) => Verdict::from_answers(answers),
            (None, None) => return Err("field `verdict` is missing: the row was not judged".into()),
        };
        let bools = ["chosen_0", "chosen_1"].map(|name| (name, field(name)));
        let mut chosen = [None; 2];
        for (side, (name, value)) in chosen.iter_mut().zip(bools) {
            *side = match value {
                None => None,
                Some(Value::Bool(chosen)) => Some(*chosen),
                Some(_) => return Err(wrong(name, "true or false")),
            };
        }
        let by_sides = match chosen {
            [Some(true), Some(true)] => Some(Stratum::BothChosen),
            [Some(false), Some(false)] => Some(Stratum::BothRejected),
            [Some(_), Some(_)] => Some(Stratum::Mixed),
            _ => None,
        };
        let told: Option<Stratum> = match field("stratum") {
            None => None,
            Some(value) => Some(
                serde_json::from_value(value.clone())
                    .map_err(|_| wrong("stratum", &Stratum::ALL.map(Stratum::name).join(", ")))?,
            ),
        };
        let [first, second] = &comparison.sides;
        let stratum = match (told, by_sides) {
            (Some(told), Some(found)) if told != found => {
                return Err("field `stratum` contradicts `chosen_0` and `chosen_1`".into());
            }
            (Some(Stratum::Mixed), None) => {
                return Err("fields `chosen_0` and `chosen_1` are missing: which side was preferred?".into());
            }
            (Some(stratum), _) | (None, Some(stratum)) => stratum,
            (None, None) if first.instruction == second.instruction => Stratum::Conditional,
            (None, None) => Stratum::Other,
        };
        let named = ["source_0", "source_1"].map(|name| field(name).and_then(Value::as_str).map(String::from));
        let sources = match named {
            [Some(a), Some(b)] => vec![a, b],
            _ => comparison.sides.iter().map(|side| side.instruction.clone()).collect(),
        };
        let chosen = (stratum == Stratum::Mixed).then(|| usize::from(chosen[0] != Some(true)));
        Ok(Self { comparison, verdict, answers: answers.unwrap_or_default(), stratum, chosen, sources })
    }

    /// Returns a key of the comparison that does not depend on the order of its sides, and whether the sides must be exchanged to match the
    /// key.
    fn key(&self) -> (String, bool) {
        let [ab, ba] = PresentationOrder::ALL.map(|order| Question { comparison: &self.comparison, order }.key());
        if ab <= ba { (ab, false) } else { (ba, true) }
    }
}

/// Reads annotated rows. A last line that was cut short by a crash is left out; the note says so.
///
/// # Errors
/// [`Error::Line`] for a malformed line or a row that was not judged; [`Error::File`].
pub fn read(path: &Path, is_person: bool) -> Result<(AnnotatedFile, Option<String>)> {
    let bytes = read_whole(path, MAX_ROWS_BYTES)?;
    let found = RecoveredLines::read(path, &bytes)?;
    let shared: Arc<Path> = path.into();
    let mut judge = None;
    let mut rows = Vec::with_capacity(found.lines.len());
    for (line, object) in &found.lines {
        let place = SourceLocation::new(shared.clone(), *line);
        rows.push(AnnotatedRow::from_object(place.clone(), object).map_err(|reason| place.error(reason))?);
        let named = object.get("judge").and_then(Value::as_str).map(String::from);
        if judge.get_or_insert_with(|| named.clone()) != &named {
            return Err(place.error("field `judge`: the rows before it are another judge's"));
        }
    }
    if rows.is_empty() {
        return Err(Error::file(path, "the file holds no rows"));
    }
    let judge = judge.flatten().unwrap_or_else(|| path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
    Ok((AnnotatedFile { path: path.into(), judge, is_person, rows }, found.note(path)))
}

/// Settings of bootstrap intervals.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BootstrapSettings {
    /// Level of the interval, such as 0.95.
    pub level: f64,
    /// Number of draws.
    pub draws: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// Analysis of one judge's rows.
#[derive(Debug, Clone, Serialize)]
pub struct AnnotationAnalysis {
    /// Name of the judge.
    pub judge: String,
    /// Whether the judge is a person.
    pub is_person: bool,
    /// File of the rows.
    pub file: PathBuf,
    /// Number of rows.
    pub rows: usize,
    /// Rows without a verdict.
    pub no_answer: usize,
    /// Share of decided rows (first or second) among those with a verdict: all rows, then by stratum.
    pub decisive: Vec<(&'static str, Interval)>,
    /// Shares of C>R, C<R and ties among mixed pairs with a verdict.
    pub mixed: Vec<(&'static str, Interval)>,
    /// Share of decided mixed pairs whose joint choice is the conditional one (C>R).
    pub conditional_agreement: Interval,
    /// κ between the joint and the conditional choice, over decided mixed pairs.
    pub conditional_kappa: Interval,
    /// Share of (a) among all letters; ½ where the order does not matter.
    pub said_a: Interval,
    /// Share of rows with the same letter twice, among rows with two letters.
    pub flips: Interval,
    /// Share of (a) among the rows with the same letter twice.
    pub flips_to_a: Interval,
}

/// Agreement of two judges, over the rows on which both have a verdict.
#[derive(Debug, Clone, Serialize)]
pub struct JudgeAgreement {
    /// Names of the two judges.
    pub judges: [String; 2],
    /// Whether at least one of the judges is a person.
    pub with_person: bool,
    /// Share of rows with equal verdicts among first, second and tie.
    pub verdicts: Interval,
    /// κ over first, second and tie.
    pub kappa: Interval,
    /// Share of rows with equal verdicts, among rows that both judges decided.
    pub decided: Interval,
    /// κ over the rows that both judges decided.
    pub decided_kappa: Interval,
}

/// Results of an analysis.
#[derive(Debug, Clone, Serialize)]
pub struct Interplay {
    /// Settings of the bootstrap intervals.
    pub bootstrap: BootstrapSettings,
    /// Analysis per file.
    pub judges: Vec<AnnotationAnalysis>,
    /// Agreement of every two files.
    pub agreement: Vec<JudgeAgreement>,
}

/// Computes a statistic of weighted rows, with its interval. The bootstrap draws only from the sources of these rows.
fn interval<'a>(
    rows: impl Iterator<Item = &'a AnnotatedRow>,
    n: usize,
    bootstrap: &BootstrapSettings,
    of: &dyn Fn(&[f64]) -> f64,
) -> Interval {
    let resampler = ClusterResampler::new(rows.map(|row| row.sources.iter().map(String::as_str).collect()));
    let [value, low, high] = resampler.interval(of, bootstrap.level, bootstrap.draws, bootstrap.seed);
    Interval { value, low, high, n, units: resampler.units() }
}

/// Computes the share of rows that satisfy `are` among rows that satisfy `of`.
fn part(
    rows: &[&AnnotatedRow],
    bootstrap: &BootstrapSettings,
    of: impl Fn(&AnnotatedRow) -> bool,
    are: impl Fn(&AnnotatedRow) -> bool,
) -> Interval {
    let some: Vec<&AnnotatedRow> = rows.iter().copied().filter(|row| of(row)).collect();
    let are: Vec<bool> = some.iter().map(|row| are(row)).collect();
    interval(some.iter().copied(), some.len(), bootstrap, &|weights| share(weights, &are))
}

/// Computes κ over rows, each with the categories of two judges.
fn agreement(pairs: &[(&AnnotatedRow, [usize; 2])], bootstrap: &BootstrapSettings, categories: usize) -> Interval {
    interval(pairs.iter().map(|(row, _)| *row), pairs.len(), bootstrap, &|weights| {
        kappa(pairs.iter().zip(weights).map(|((_, pair), &weight)| (*pair, weight)), categories)
    })
}

/// Analyses the rows of one judge.
pub fn analyse(file: &AnnotatedFile, bootstrap: &BootstrapSettings) -> AnnotationAnalysis {
    let rows: Vec<&AnnotatedRow> = file.rows.iter().collect();
    let part =
        |of: &dyn Fn(&AnnotatedRow) -> bool, are: &dyn Fn(&AnnotatedRow) -> bool| part(&rows, bootstrap, of, are);
    let judged = |r: &AnnotatedRow| r.verdict != Verdict::NoAnswer;
    let decided = |r: &AnnotatedRow| r.verdict.side().is_some();
    // Whether the joint verdict on a mixed pair agrees with the conditional preference.
    let joint = |r: &AnnotatedRow| Some(r.chosen? == r.verdict.side()?);
    let mixed = |r: &AnnotatedRow| r.chosen.is_some() && judged(r);
    let letters = |r: &AnnotatedRow| r.answers.iter().all(|a| matches!(a, Some(Choice::A | Choice::B)));
    let flips = |r: &AnnotatedRow| is_flip(r.answers);

    let mut decisive = vec![("all", part(&judged, &decided))];
    for stratum in Stratum::ALL.into_iter().filter(|stratum| rows.iter().any(|r| r.stratum == *stratum)) {
        decisive.push((stratum.name(), part(&|r| r.stratum == stratum && judged(r), &decided)));
    }
    let both = rows.iter().filter_map(|r| Some((*r, [r.chosen?, r.verdict.side()?])));
    AnnotationAnalysis {
        judge: file.judge.clone(),
        is_person: file.is_person,
        file: file.path.clone(),
        rows: rows.len(),
        no_answer: rows.iter().filter(|r| !judged(r)).count(),
        decisive,
        mixed: vec![
            ("C>R", part(&mixed, &|r| joint(r) == Some(true))),
            ("C<R", part(&mixed, &|r| joint(r) == Some(false))),
            ("tie", part(&mixed, &|r| r.verdict == Verdict::Tie)),
        ],
        conditional_agreement: part(&|r| joint(r).is_some(), &|r| joint(r) == Some(true)),
        conditional_kappa: agreement(&both.collect::<Vec<_>>(), bootstrap, 2),
        said_a: said_a(&rows, bootstrap),
        flips: part(&letters, &flips),
        flips_to_a: part(&flips, &|r| r.answers[0] == Some(Choice::A)),
    }
}

/// Computes the share of (a) among all letters.
fn said_a(rows: &[&AnnotatedRow], bootstrap: &BootstrapSettings) -> Interval {
    let count = |r: &AnnotatedRow, choice| r.answers.iter().filter(|a| **a == Some(choice)).count() as f64;
    let of = |r: &AnnotatedRow| [Choice::A, Choice::B].map(|choice| count(r, choice));
    let some: Vec<&AnnotatedRow> = rows.iter().copied().filter(|r| of(r) != [0.0; 2]).collect();
    let letters: Vec<[f64; 2]> = some.iter().map(|r| of(r)).collect();
    let n = letters.iter().flatten().sum::<f64>() as usize;
    interval(some.iter().copied(), n, bootstrap, &|weights| {
        let sum = |i: usize| letters.iter().zip(weights).map(|(l, w)| l[i] * w).sum::<f64>();
        let (a, b) = (sum(0), sum(1));
        if a + b > 0.0 { a / (a + b) } else { f64::NAN }
    })
}

/// Computes the agreement of two judges over the comparisons that both have judged, independently of the order of rows and of sides.
pub fn compare(a: &AnnotatedFile, b: &AnnotatedFile, bootstrap: &BootstrapSettings) -> JudgeAgreement {
    let category = |verdict: Verdict| match verdict {
        Verdict::First => Some(0),
        Verdict::Second => Some(1),
        Verdict::Tie => Some(2),
        Verdict::NoAnswer => None,
    };
    let verdict = |row: &AnnotatedRow, exchanged: bool| if exchanged { row.verdict.exchanged() } else { row.verdict };
    let mut theirs: HashMap<String, Verdict> = HashMap::new();
    for row in &b.rows {
        let (key, exchanged) = row.key();
        theirs.entry(key).or_insert(verdict(row, exchanged));
    }
    let mut common: Vec<(&AnnotatedRow, [usize; 2])> = Vec::new();
    for row in &a.rows {
        let (key, exchanged) = row.key();
        let pair = theirs.remove(&key).and_then(category).zip(category(verdict(row, exchanged)));
        common.extend(pair.map(|(theirs, ours)| (row, [ours, theirs])));
    }
    let decided: Vec<(&AnnotatedRow, [usize; 2])> =
        common.iter().copied().filter(|(_, pair)| pair.iter().all(|&c| c < 2)).collect();
    let same = |pairs: &[(&AnnotatedRow, [usize; 2])]| {
        let same: Vec<bool> = pairs.iter().map(|(_, [a, b])| a == b).collect();
        interval(pairs.iter().map(|(row, _)| *row), pairs.len(), bootstrap, &|weights| share(weights, &same))
    };
    JudgeAgreement {
        judges: [a.judge.clone(), b.judge.clone()],
        with_person: a.is_person || b.is_person,
        verdicts: same(&common),
        kappa: agreement(&common, bootstrap, 3),
        decided: same(&decided),
        decided_kappa: agreement(&decided, bootstrap, 2),
    }
}

/// Analyses each file, and the agreement of every two files.
pub fn interplay(files: &[AnnotatedFile], bootstrap: BootstrapSettings) -> Interplay {
    let pairs = (0..files.len()).flat_map(|i| (i + 1..files.len()).map(move |j| (i, j)));
    Interplay {
        bootstrap,
        judges: files.iter().map(|file| analyse(file, &bootstrap)).collect(),
        agreement: pairs.map(|(i, j)| compare(&files[i], &files[j], &bootstrap)).collect(),
    }
}
