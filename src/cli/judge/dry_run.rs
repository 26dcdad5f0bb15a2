//! `judge --dry-run N`: the first questions and their raw answers. Nothing is saved.

use std::sync::atomic::AtomicBool;

use serde_json::json;

use crate::error::{Error, Result, visible_lines};
use crate::eval::judge::prompt::JudgePrompt;
use crate::eval::judge::verdict_reader::NoVerdict;
use crate::eval::judge::{Answer, Choice, Judge, Question, Reply};
use crate::flags::JudgeArgs;

/// Returns the verdict that is read in an answer, in words.
fn verdict(answer: &Answer) -> &'static str {
    match answer.choice {
        Some(Choice::A) => "(a)",
        Some(Choice::B) => "(b)",
        Some(Choice::Tie) => "a tie",
        None => answer.no_verdict.unwrap_or(NoVerdict::Unclear).told(),
    }
}

/// Asks the first `n` questions, and prints each prompt and its answer.
///
/// # Errors
/// Passes on errors of the prompt and the judge; [`Error::Judge`] where a question has no answer.
pub fn ask(args: &JudgeArgs, judge: &dyn Judge, questions: &[Question<'_>], n: usize, stop: &AtomicBool) -> Result<()> {
    let Some(first) = questions.first() else { return Ok(()) };
    let mode = first.comparison.mode;
    let prompt = args
        .ask
        .prompt
        .as_ref()
        .map_or_else(|| Ok(JudgePrompt::default_for(mode)), |path| JudgePrompt::read(path, mode))?;
    let mut failed = None;
    judge.ask(&questions[..n.min(questions.len())], stop, &mut |i, reply| {
        let question = &questions[i];
        let (answer, reason) = match reply {
            Reply::Answer(answer) => (answer, None),
            Reply::Failed(reason) | Reply::Unfit(reason) | Reply::Rejected(reason) => (Answer::default(), Some(reason)),
            Reply::Repeat(kind) => {
                note!("note: {}: {kind}: it is asked again", question.place_and_order());
                return Ok(());
            }
            Reply::Noted(text) => {
                note!("note: {text}");
                return Ok(());
            }
            Reply::Unread { .. } | Reply::Spent(_) | Reply::Undone => return Ok(()),
        };
        let asked = prompt.render(question);
        if args.json {
            let line =
                json!({"question": question.place_and_order(), "prompt": asked, "answer": answer, "failed": reason});
            say!("{line}")?;
        } else {
            say!("{}\n\nPrompt:\n{}\n", question.place_and_order(), visible_lines(&asked))?;
            match &reason {
                Some(reason) => say!("No answer: {reason}")?,
                None => {
                    let text = match (&answer.text, answer.logps) {
                        (Some(text), _) => visible_lines(text),
                        (None, Some([a, b])) => format!("log p of (a) {a:.4}, of (b) {b:.4}"),
                        (None, None) => "(no text)".into(),
                    };
                    say!("Answer:\n{text}\n\nRead as: {}", verdict(&answer))?;
                }
            }
        }
        failed = failed.take().or(reason.map(|reason| format!("{}: {reason}", question.place_and_order())));
        Ok(())
    })?;
    failed.map_or(Ok(()), |reason| Err(Error::Judge(reason)))
}
