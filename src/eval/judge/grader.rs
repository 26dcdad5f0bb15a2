//! The demo's grader as a judge: no model, no cost, and the same answer always.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::{Answer, Choice, Judge, Question, Reply};
use crate::data::comparisons::Side;
use crate::error::Result;
use crate::eval::tasks::{grade, read};

/// Compares by [`grade`]; equal grades are a tie.
#[derive(Debug, Clone, Copy, Default)]
pub struct Grader;

fn score(side: &Side) -> std::result::Result<f64, String> {
    let item = read(&side.instruction).ok_or("the instruction is none of the demo's tasks, which the grader knows")?;
    Ok(grade(&item, &side.response).score)
}

impl Judge for Grader {
    fn name(&self) -> &str {
        "grader"
    }

    fn identity(&self) -> Value {
        json!({"kind": "grader"})
    }

    fn is_costly(&self) -> bool {
        false
    }

    fn ask(
        &self,
        questions: &[Question<'_>],
        stop: &AtomicBool,
        tell: &mut dyn FnMut(usize, Reply) -> Result<()>,
    ) -> Result<()> {
        for (i, question) in questions.iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let reply = match (score(question.a()), score(question.b())) {
                (Ok(a), Ok(b)) => Reply::Answer(Answer::from(match a.total_cmp(&b) {
                    std::cmp::Ordering::Greater => Choice::A,
                    std::cmp::Ordering::Less => Choice::B,
                    std::cmp::Ordering::Equal => Choice::Tie,
                })),
                (Err(reason), _) | (_, Err(reason)) => Reply::Unfit(reason),
            };
            tell(i, reply)?;
        }
        Ok(())
    }
}
