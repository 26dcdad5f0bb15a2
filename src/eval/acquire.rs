//! Asks a judge about comparisons, each in both orders. A run continues where an earlier one ended.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value, json};

use super::journal::AnswerJournal;
use super::judge::verdict_reader::NoVerdict;
use super::judge::{Answer, Choice, Judge, PresentationOrder, Question, Reply, Usage, Verdict, is_flip};
use super::tasks::rows::PreferenceRow;
use crate::data::comparisons::Comparison;
use crate::error::{Error, one_line};

/// File of the rows with the judge's annotations.
pub const ANNOTATED: &str = "annotated.jsonl";
/// File of the rows that the judge decided.
pub const PREFERENCES: &str = "preferences.jsonl";

/// Number of questions that may fail in a row before asking ends, because then the judge is at fault and not the rows.
pub const MOST_FAILURES: usize = 10;

/// Number of answers in a row that may be unreadable before asking ends: answers cost money, and another prompt may help.
pub const MOST_UNREAD: usize = 20;

/// Comparison with its answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JudgedComparison {
    /// Answers in the orders (a)(b) and (b)(a); `None` where there is none.
    pub answers: [Option<Answer>; 2],
}

impl JudgedComparison {
    /// Returns the choices in the orders (a)(b) and (b)(a).
    pub fn choices(&self) -> [Option<Choice>; 2] {
        [0, 1].map(|i| self.answers[i].as_ref().and_then(|a| a.choice))
    }

    /// Returns the verdict from both orders: a tie unless both name the same side.
    pub fn verdict(&self) -> Verdict {
        Verdict::from_answers(self.choices())
    }

    /// Returns whether at least one order has an answer.
    pub fn is_asked(&self) -> bool {
        self.answers.iter().any(Option::is_some)
    }

    /// Returns the row with `verdict`, `answers`, `flip`, `judge` and, from a local model, `logps`.
    pub fn annotate(&self, comparison: &Comparison, judge: &str) -> Map<String, Value> {
        let mut row = comparison.row();
        row.insert("verdict".into(), json!(self.verdict()));
        row.insert("answers".into(), json!(self.choices()));
        row.insert("flip".into(), json!(is_flip(self.choices())));
        let logps = [0, 1].map(|i| self.answers[i].as_ref().and_then(|a| a.logps));
        if logps.iter().any(Option::is_some) {
            row.insert("logps".into(), json!(logps));
        }
        row.insert("judge".into(), json!(judge));
        row
    }

    /// Returns the preference in the form that training reads; `None` for a tie, or for a row without an answer.
    pub fn preference(&self, comparison: &Comparison) -> Option<PreferenceRow> {
        let better = self.verdict().side()?;
        let (chosen, reject) = (&comparison.sides[better], &comparison.sides[1 - better]);
        Some(PreferenceRow {
            i_chosen: chosen.instruction.clone(),
            r_chosen: chosen.response.clone(),
            i_reject: reject.instruction.clone(),
            r_reject: reject.response.clone(),
        })
    }
}

/// Question without an answer: its row and order, and the reason.
pub type FailedQuestion = (String, String);

/// Result of a run of questions.
#[derive(Debug, Default)]
pub struct JudgingResult {
    /// Answers per comparison, in the order of the comparisons.
    pub judged: Vec<JudgedComparison>,
    /// Number of questions answered in this run.
    pub asked: usize,
    /// Number of answers from earlier runs.
    pub reused: usize,
    /// Questions that failed, and so have no answer.
    pub failures: Vec<FailedQuestion>,
    /// Number of repeated requests, by reason.
    pub repeats: BTreeMap<String, usize>,
    /// Number of questions that were not asked, because the run was stopped.
    pub left: usize,
    /// Tokens read and written in this run.
    pub usage: Usage,
    /// Error that ended the run early: [`Error::Judge`] after [`MOST_FAILURES`] failures in a row, or an error of the judge or the file.
    pub error: Option<Error>,
}

/// Counts of annotated rows by verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct VerdictCounts {
    /// Number of comparisons whose side 0 is better.
    pub first: usize,
    /// Number of comparisons whose side 1 is better.
    pub second: usize,
    /// Number of comparisons in which neither side is better.
    pub ties: usize,
    /// Number of ties in which both orders gave the same letter.
    pub flips: usize,
    /// Number of comparisons answered in both orders, with at least one answer that has no choice.
    pub no_answer: usize,
    /// Number of comparisons that lack an answer in at least one order.
    pub unasked: usize,
    /// Number of answers (not rows) that were cut off before a verdict.
    pub cut: usize,
}

impl JudgingResult {
    /// Counts the comparisons by verdict.
    pub fn counts(&self) -> VerdictCounts {
        let mut counts = VerdictCounts::default();
        for judged in &self.judged {
            match judged.verdict() {
                Verdict::First => counts.first += 1,
                Verdict::Second => counts.second += 1,
                Verdict::Tie => counts.ties += 1,
                Verdict::NoAnswer if judged.answers.iter().all(Option::is_some) => counts.no_answer += 1,
                Verdict::NoAnswer => counts.unasked += 1,
            }
            counts.flips += usize::from(is_flip(judged.choices()));
            let is_cut = |answer: &&Answer| answer.no_verdict == Some(NoVerdict::Cut);
            counts.cut += judged.answers.iter().flatten().filter(is_cut).count();
        }
        counts
    }
}

/// Event: a judge has replied.
#[derive(Debug)]
pub struct ReplyEvent<'a> {
    /// Question that was asked.
    pub question: &'a Question<'a>,
    /// Reply to the question.
    pub reply: &'a Reply,
    /// Number of questions of this run that are finished.
    pub done: usize,
    /// Number of questions of this run.
    pub total: usize,
}

/// Returns whether both sides are equal. Such a comparison is a tie, and no judge is asked.
pub fn is_same_twice(comparison: &Comparison) -> bool {
    comparison.sides[0] == comparison.sides[1]
}

/// Lists both orders of every comparison whose sides differ, row by row. A comparison that occurs in several rows is asked once.
pub fn questions(comparisons: &[Comparison]) -> Vec<Question<'_>> {
    let mut seen = HashSet::new();
    let differing = comparisons.iter().filter(|comparison| !is_same_twice(comparison));
    let all = differing.flat_map(|comparison| PresentationOrder::ALL.map(|order| Question { comparison, order }));
    all.filter(|question| seen.insert(question.key())).collect()
}

/// Lists the questions that still have no choice. Those that failed before come last, so that rows that always fail do not prevent others
/// from being asked.
pub fn pending<'a>(comparisons: &'a [Comparison], journal: &AnswerJournal) -> Vec<Question<'a>> {
    let is_open =
        |key: &str| journal.answer(key).is_none_or(|answer| answer.choice.is_none()) && !journal.is_settled(key);
    let all = questions(comparisons).into_iter().map(|question| (question.key(), question));
    let (failed, fresh): (Vec<_>, Vec<_>) =
        all.filter(|(key, _)| is_open(key)).partition(|(key, _)| journal.has_failed(key));
    fresh.into_iter().chain(failed).map(|(_, question)| question).collect()
}

/// Asks the questions that have no answer yet. Each answer is on disk before `watch` sees it. `stop` ends the run; replies to questions
/// under way are still stored. An error loses no answers either: see [`JudgingResult::error`].
pub fn acquire(
    comparisons: &[Comparison],
    judge: &dyn Judge,
    journal: &mut AnswerJournal,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(&ReplyEvent<'_>),
) -> JudgingResult {
    let questions = pending(comparisons, journal);
    let total = questions.len();
    let mut acquired = JudgingResult { reused: journal.len(), ..JudgingResult::default() };
    let (mut in_a_row, mut unread, mut done) = (0, 0, 0);
    let mut failures: BTreeMap<usize, FailedQuestion> = BTreeMap::new();
    let mut answered = vec![false; total];
    if total > 0 && !stop.load(Ordering::Relaxed) {
        let ended = judge.ask(&questions, stop, &mut |i, reply| {
            let question = &questions[i];
            let mut result = Ok(());
            let mut is_unread = |why: String| {
                unread += 1;
                match unread == MOST_UNREAD {
                    true => Err(unreadable(question, &why)),
                    false => Ok(()),
                }
            };
            match &reply {
                Reply::Answer(answer) => {
                    journal.keep(question, answer.clone())?;
                    match (answer.choice, answer.no_verdict) {
                        (None, Some(why)) => result = is_unread(format!("{}: {}", why.told(), answer.end())),
                        _ => unread = 0,
                    }
                    acquired.usage.add(answer.usage.unwrap_or_default());
                    failures.remove(&i);
                    (in_a_row, done, answered[i]) = (0, done + 1, true);
                }
                Reply::Failed(reason) | Reply::Unfit(reason) | Reply::Rejected(reason) => {
                    journal.failed(question, reason)?;
                    failures.insert(i, (question.place_and_order(), reason.clone()));
                    done += 1;
                    let is_judges = match reply {
                        Reply::Failed(_) => true,
                        Reply::Rejected(_) => journal.is_empty(),
                        _ => false,
                    };
                    in_a_row += usize::from(is_judges);
                    if is_judges && in_a_row == MOST_FAILURES {
                        let last = format!("{}: {reason}", question.place_and_order());
                        result = Err(Error::Judge(format!(
                            "{in_a_row} questions in a row have no answer; the last: {last}"
                        )));
                    }
                }
                Reply::Unread { reason, usage } => {
                    acquired.usage.add(usage.unwrap_or_default());
                    result = is_unread(reason.clone());
                }
                Reply::Spent(usage) => acquired.usage.add(*usage),
                Reply::Noted(_) => {}
                Reply::Repeat(reason) => *acquired.repeats.entry(reason.clone()).or_default() += 1,
                Reply::Undone => {
                    journal.undo(question)?;
                    (done, answered[i]) = (done - usize::from(answered[i]), false);
                }
            }
            watch(&ReplyEvent { question, reply: &reply, done, total });
            result
        });
        acquired.error = ended.err();
    }
    acquired.asked = answered.iter().filter(|&&a| a).count();
    acquired.failures = failures.into_values().collect();
    acquired.left = total - acquired.asked - acquired.failures.len();
    acquired.judged = judged(comparisons, journal);
    acquired
}

/// Creates the error that ends a run whose answers cannot be read.
fn unreadable(question: &Question<'_>, why: &str) -> Error {
    Error::Judge(format!(
        "{MOST_UNREAD} answers in a row cannot be read; the last: {}: {}. Another --prompt or --answer-format, or a higher limit on an \
         answer's tokens, may help; a server that answers in another form needs another --endpoint",
        question.place_and_order(),
        one_line(why)
    ))
}

/// Returns the answers in a file, row by row.
pub fn judged(comparisons: &[Comparison], journal: &AnswerJournal) -> Vec<JudgedComparison> {
    let of = |comparison| {
        if is_same_twice(comparison) {
            return JudgedComparison { answers: PresentationOrder::ALL.map(|_| Some(Choice::Tie.into())) };
        }
        let answers =
            PresentationOrder::ALL.map(|order| journal.answer(&Question { comparison, order }.key()).cloned());
        JudgedComparison { answers }
    };
    comparisons.iter().map(of).collect()
}
