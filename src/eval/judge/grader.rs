//! Grader of the demo as a judge. It needs no model, costs nothing, and always gives the same answer. With `noise`, a part of its answers
//! is wrong.

use std::cmp::Ordering;
use std::sync::atomic::{self, AtomicBool};

use serde_json::{Value, json};

use super::{Answer, Choice, Judge, Question, Reply, hash};
use crate::data::comparisons::Side;
use crate::error::Result;
use crate::eval::tasks::{grade, read};

/// Judge that compares responses by [`grade`]. Equal grades are a tie.
#[derive(Debug, Clone, Copy, Default)]
pub struct Grader {
    /// Fraction of the comparisons in which the worse side is preferred, in both orders, to simulate an annotator's mistakes. These
    /// comparisons are determined by their texts.
    pub noise: f64,
}

impl Grader {
    fn is_mistaken(self, question: &Question<'_>) -> bool {
        let mut sides = [question.a(), question.b()].map(|side| [&side.instruction, &side.response]);
        sides.sort();
        let digest = hash(&json!(sides).to_string());
        let draw = u32::from_str_radix(&digest[..8], 16).unwrap_or_default();
        f64::from(draw) < self.noise * 2f64.powi(32)
    }
}

fn score(side: &Side) -> std::result::Result<f64, String> {
    let item = read(&side.instruction).ok_or("the instruction is none of the demo's tasks, which the grader knows")?;
    Ok(grade(&item, &side.response).score)
}

impl Judge for Grader {
    fn name(&self) -> &str {
        "grader"
    }

    fn identity(&self) -> Value {
        match self.noise {
            0.0 => json!({"kind": "grader"}),
            noise => json!({"kind": "grader", "noise": noise}),
        }
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
            if stop.load(atomic::Ordering::Relaxed) {
                break;
            }
            let reply = match (score(question.a()), score(question.b())) {
                (Ok(a), Ok(b)) => Reply::Answer(Answer::from(match (a.total_cmp(&b), self.is_mistaken(question)) {
                    (Ordering::Equal, _) => Choice::Tie,
                    (Ordering::Greater, false) | (Ordering::Less, true) => Choice::A,
                    (Ordering::Less, false) | (Ordering::Greater, true) => Choice::B,
                })),
                (Err(reason), _) | (_, Err(reason)) => Reply::Unfit(reason),
            };
            tell(i, reply)?;
        }
        Ok(())
    }
}
