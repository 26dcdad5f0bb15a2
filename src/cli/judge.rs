//! `judge`: preferences from a model, a program, the demo's grader or a person.

mod comparisons;
mod dry_run;
mod progress;
pub(super) mod selected_judge;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::interrupt::{stop_flag, stop_on_ctrl_c};
use crate::data::comparisons::Comparison;
use crate::error::{Error, Result};
use crate::eval::acquire::{
    ANNOTATED, JudgingResult, PREFERENCES, ReplyEvent, acquire, is_same_twice, pending, questions,
};
use crate::eval::journal::{ANSWERS, AnswerJournal};
use crate::eval::judge::endpoint::Endpoint;
use crate::eval::judge::{Judge, Question, Reply, Usage};
use crate::eval::tasks::rows::write;
use crate::eval::unclear_answers::UnclearAnswers;
use crate::flags::{JudgeArgs, judge_checks, with_config};
use crate::progress::ProgressReporter;
use crate::workflow::recovery::{OnDeviceLost, with_recovery};
use crate::workflow::{Finished, OutputFolder, write_judging_result};
use comparisons::comparisons;
use progress::JudgingProgress;
use selected_judge::SelectedJudge;

/// File of the comparisons that were drawn.
const COMPARISONS: &str = "comparisons.jsonl";
/// Most questions without an answer that are reported on the terminal.
const MOST_TROUBLES: usize = 20;

/// Runs `jointwise judge`.
pub fn run(args: JudgeArgs) -> Result<Finished> {
    let config = args.config.clone();
    let args = with_config(args, config.as_deref(), "judge")?;
    judge_checks::one_judge(&args)?;
    judge_checks::check(&args)?;
    let out = match (&args.output_dir, args.ask.estimate || args.dry_run.is_some()) {
        (Some(out), _) => out.clone(),
        (None, true) => PathBuf::new(),
        (None, false) => return Err(Error::flag("output-dir", "is missing: where answers are written")),
    };
    let on_device_lost = args.on_device_lost.map_or(OnDeviceLost::Resume, OnDeviceLost::from);
    with_recovery(on_device_lost, &out, args.resume, stop_flag(), |attempt| {
        let mut args = JudgeArgs { resume: attempt.resume, ..args.clone() };
        attempt.keep_device(&mut args.model.device.device);
        run_once(&args, &out)
    })
}

fn run_once(args: &JudgeArgs, out: &Path) -> Result<Finished> {
    let _folder =
        if args.ask.estimate || args.dry_run.is_some() { None } else { Some(OutputFolder::open(out, args.resume)?) };
    let comparisons = comparisons(args, out)?;
    let mode = comparisons[0].mode;
    let asked = SelectedJudge::from_flags(args, mode)?;
    let stop = stop_on_ctrl_c("ending after the questions under way, whose answers are kept");
    let task = JudgingJob { args, out, comparisons: &comparisons, stop, flag: |name| name };
    asked.with(args, &mut None, |judge, endpoint| match args.dry_run {
        Some(n) => dry_run::ask(args, judge, &questions(&comparisons), n, stop).map(|()| Finished::Whole),
        None => task.ask(judge, endpoint),
    })
}

/// Returns the cost of a run's tokens, or `None` where prices are unknown.
fn cost(args: &JudgeArgs, usage: &Usage) -> Option<f64> {
    let million = |tokens: u64, price: f64| tokens as f64 * price / 1e6;
    let (inside, outside) = (args.ask.price_in?, args.ask.price_out?);
    Some(million(usage.prompt_tokens, inside) + million(usage.completion_tokens, outside))
}

/// Writes a number with its noun: "2 questions", "1 question".
pub(super) fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Comparisons to ask about, with the flags, the output folder and the flag that stops asking.
pub(super) struct JudgingJob<'a> {
    pub args: &'a JudgeArgs,
    pub out: &'a Path,
    pub comparisons: &'a [Comparison],
    pub stop: &'static AtomicBool,
    /// Maps a flag of `judge` to its name in the command that asks.
    pub flag: fn(&'static str) -> &'static str,
}

impl JudgingJob<'_> {
    /// Asks the judge, and writes answers and verdicts, whatever ended the run.
    fn ask(&self, judge: &dyn Judge, endpoint: Option<&Endpoint>) -> Result<Finished> {
        let (args, out) = (self.args, self.out);
        if args.ask.estimate {
            return self.estimate(endpoint, &questions(self.comparisons)).map(|()| Finished::Whole);
        }
        // Before anything is left behind.
        if !args.resume {
            self.estimate(endpoint, &questions(self.comparisons))?;
        }
        let was_judged = args.resume && out.join(ANNOTATED).metadata().is_ok_and(|file| file.len() > 0);
        let mut journal = self.open_journal(judge, was_judged)?;
        if !args.sample.is_empty() {
            write(&out.join(COMPARISONS), self.comparisons.iter().map(Comparison::row))?;
        }
        let left = pending(self.comparisons, &journal);
        if !journal.is_empty() {
            note!("{} of an earlier run kept, {} to ask", counted(journal.len(), "answer"), left.len());
        }
        if args.resume && !left.is_empty() {
            self.estimate(endpoint, &left)?;
        }
        let acquired = self.acquire(judge, endpoint, &mut journal, left.len());
        self.write(judge, &acquired)?;
        // A run that goes on by itself tells its counts once.
        if !matches!(acquired.error, Some(Error::DeviceLost { .. })) {
            self.print_counts(judge, &acquired)?;
        }
        if let Some(error) = acquired.error {
            if acquired.asked > 0 {
                note!("what was answered is kept: the same command with --resume goes on");
            }
            return Err(error);
        }
        if acquired.left > 0 {
            note!("{} left: the same command with --resume goes on", counted(acquired.left, "question"));
            return Ok(Finished::Interrupted);
        }
        match acquired.failures.len() {
            0 => Ok(Finished::Whole),
            n => Err(Error::Judge(format!(
                "{} without an answer (see above): the same command with --resume asks again",
                counted(n, "question")
            ))),
        }
    }

    /// Opens the answers of the output folder, and tells what an earlier run left unreadable or lost. `was_judged`: it wrote verdicts.
    pub fn open_journal(&self, judge: &dyn Judge, was_judged: bool) -> Result<AnswerJournal> {
        let path = self.out.join(ANSWERS);
        let journal = AnswerJournal::open(&path, judge)?;
        journal.notes().iter().for_each(|note| note!("note: {note}"));
        if was_judged && journal.is_empty() {
            note!("note: {}: the answers of the earlier run are gone: everything is asked again", path.display());
        }
        Ok(journal)
    }

    /// Asks every question that the journal has no answer to. Each answer is written to disk at once.
    pub fn acquire(
        &self,
        judge: &dyn Judge,
        endpoint: Option<&Endpoint>,
        journal: &mut AnswerJournal,
        total: usize,
    ) -> JudgingResult {
        if let n @ 1.. = self.comparisons.iter().filter(|comparison| is_same_twice(comparison)).count() {
            let are = if n == 1 { "is a tie" } else { "are ties" };
            note!("note: {} of the same text twice {are}, and not asked about", counted(n, "comparison"));
        }
        let is_person = self.args.ask.person;
        let reporter = match is_person {
            true => ProgressReporter::hidden(),
            false => ProgressReporter::items("judging", total),
        };
        let (mut progress, mut unsure) = (JudgingProgress::default(), UnclearAnswers::default());
        let (mut is_told, mut is_guess_told, mut troubles) = (false, false, 0);
        let priced = endpoint.filter(|_| self.args.ask.max_cost.is_some());
        // All of them are in the file of answers.
        let mut trouble = |text: String| {
            troubles += 1;
            if troubles <= MOST_TROUBLES {
                reporter.note(&text);
            }
        };
        let acquired = acquire(self.comparisons, judge, journal, self.stop, &mut |event: &ReplyEvent<'_>| {
            reporter.set_done(event.done);
            match event.reply {
                Reply::Failed(reason) | Reply::Unfit(reason) | Reply::Rejected(reason) => {
                    trouble(format!("{}: {reason}", event.question.place_and_order()));
                }
                Reply::Answer(answer) => {
                    progress.spent.add(answer.usage.unwrap_or_default());
                    if let Some(endpoint) = priced.filter(|_| answer.usage.is_none()) {
                        progress.spent.add(endpoint.estimate(std::slice::from_ref(event.question)));
                        if !std::mem::replace(&mut is_guess_told, true) {
                            let text = "the server does not say how many tokens an answer took: --max-cost counts the estimate";
                            reporter.note(&format!("note: {text}"));
                        }
                    }
                    // A person who skips has said so.
                    if !is_person && let Some(why) = unsure.add(answer) {
                        trouble(format!("{}: {why}", event.question.place_and_order()));
                    }
                    if let Some(text) = progress.answer(answer.choice).filter(|_| !is_person) {
                        reporter.note(&format!("note: {text}"));
                    }
                }
                Reply::Unread { usage, .. } => progress.spent.add(usage.unwrap_or_default()),
                Reply::Spent(usage) => progress.spent.add(*usage),
                Reply::Noted(text) => reporter.note(&format!("note: {text}")),
                Reply::Repeat(kind) => {
                    if let Some(text) = progress.repeat(event.question, kind, self.flag) {
                        reporter.note(&format!("note: {text}"));
                    }
                }
                Reply::Undone => {}
            }
            let cost = cost(self.args, &progress.spent);
            reporter.set_detail(progress.text(cost));
            let over = cost.zip(self.args.ask.max_cost).is_some_and(|(cost, most)| cost >= most);
            if over && event.done < event.total && !std::mem::replace(&mut is_told, true) {
                reporter.note("--max-cost is reached: ending after the questions under way");
                self.stop.store(true, Ordering::Relaxed);
            }
        });
        drop(reporter);
        if troubles > MOST_TROUBLES {
            note!("{} more of these: {}", troubles - MOST_TROUBLES, self.out.join(ANSWERS).display());
        }
        unsure.notes((self.flag)("max-tokens")).iter().for_each(|note| note!("{note}"));
        acquired
    }

    /// Prints the number of questions, their tokens and their cost, before anything is asked.
    pub fn estimate(&self, endpoint: Option<&Endpoint>, questions: &[Question<'_>]) -> Result<()> {
        let Some(endpoint) = endpoint else { return Ok(()) };
        let usage = endpoint.estimate(questions);
        let is_limited = endpoint.longest_answer().is_some();
        if !is_limited && self.args.ask.max_cost.is_some() {
            return Err(Error::flag("max-cost", "needs a limit on an answer's tokens, which --request takes away"));
        }
        let cost = cost(self.args, &usage).filter(|_| is_limited);
        let tokens_out = is_limited.then_some(usage.completion_tokens);
        let price = match cost {
            Some(cost) => format!("cost about {cost:.2} at most"),
            None if is_limited => "cost unknown (--price-in, --price-out)".into(),
            None => "cost unknown".into(),
        };
        let out = tokens_out.map_or("no limit on tokens".into(), |tokens| format!("at most {tokens}"));
        let text = format!(
            "{} to {}: about {} tokens in, {out} out; {price}",
            counted(questions.len(), "question"),
            endpoint.name(),
            usage.prompt_tokens,
        );
        if !self.args.ask.estimate {
            note!("{text}");
        } else if self.args.json {
            let tokens_in = usage.prompt_tokens;
            say!(
                "{}",
                json!({"questions": questions.len(), "prompt_tokens": tokens_in, "completion_tokens": tokens_out, "cost": cost})
            )?;
        } else {
            say!("{text}")?;
        }
        match cost.zip(self.args.ask.max_cost) {
            Some((cost, most)) if cost > most => {
                Err(Error::flag("max-cost", format!("the estimate is {cost:.2}, above {most}: nothing was asked")))
            }
            _ => Ok(()),
        }
    }

    /// Writes `annotated.jsonl` with every row that was asked about, and `preferences.jsonl` with every row that was decided.
    fn write(&self, judge: &dyn Judge, acquired: &JudgingResult) -> Result<()> {
        let name = self.args.ask.judge_name.as_deref().unwrap_or(judge.name());
        write_judging_result(self.out, name, self.comparisons, acquired)
    }

    fn print_counts(&self, judge: &dyn Judge, acquired: &JudgingResult) -> Result<()> {
        let counts = acquired.counts();
        let spent = cost(self.args, &acquired.usage);
        if !acquired.repeats.is_empty() {
            let reasons = acquired.repeats.iter().map(|(reason, n)| format!("{n} × {reason}"));
            note!("asked again: {}", reasons.collect::<Vec<_>>().join(", "));
        }
        if self.args.json {
            return say!(
                "{}",
                json!({
                    "judge": judge.name(), "rows": self.comparisons.len(), "first": counts.first, "second": counts.second,
                    "ties": counts.ties, "flips": counts.flips, "no_answer": counts.no_answer, "unasked": counts.unasked, "cut": counts.cut,
                    "asked": acquired.asked, "reused": acquired.reused, "failed": acquired.failures.len(), "left": acquired.left,
                    "repeated": acquired.repeats, "usage": acquired.usage, "cost": spent,
                })
            );
        }
        say!(
            "{}: {} first, {} second, {} ties ({} of them the same letter in both orders), {} unclear, {} not answered in both orders",
            counted(self.comparisons.len(), "row"),
            counts.first,
            counts.second,
            counts.ties,
            counts.flips,
            counts.no_answer,
            counts.unasked
        )?;
        if acquired.usage != Usage::default() {
            let price = spent.map_or(String::new(), |cost| format!(", cost {cost:.4}"));
            say!("{} tokens in, {} out{price}", acquired.usage.prompt_tokens, acquired.usage.completion_tokens)?;
        }
        say!("{} in {}", counted(counts.first + counts.second, "preference"), self.out.join(PREFERENCES).display())
    }
}
