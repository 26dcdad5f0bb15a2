//! A judge of one's own: it prefers the shorter response. Every comparison is asked in both orders; verdicts become rows to train on.
//!
//!     cargo run --release --example judge -- comparisons.jsonl runs/judged

use std::sync::atomic::{AtomicBool, Ordering};

use jointwise::eval::judge::{Answer, Choice, Judge, Question, Reply};
use jointwise::{Result, judge_comparisons};
use serde_json::{Value, json};

struct ShorterIsBetter;

impl Judge for ShorterIsBetter {
    fn name(&self) -> &str {
        "shorter"
    }

    fn identity(&self) -> Value {
        json!({"kind": "shorter", "version": 1})
    }

    fn ask(
        &self,
        questions: &[Question<'_>],
        stop: &AtomicBool,
        tell: &mut dyn FnMut(usize, Reply) -> Result<()>,
    ) -> Result<()> {
        for (i, question) in questions.iter().enumerate().take_while(|_| !stop.load(Ordering::Relaxed)) {
            let choice = match question.a().response.len().cmp(&question.b().response.len()) {
                std::cmp::Ordering::Less => Choice::A,
                std::cmp::Ordering::Equal => Choice::Tie,
                std::cmp::Ordering::Greater => Choice::B,
            };
            tell(i, Reply::Answer(Answer::from(choice)))?;
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let [rows, out] =
        [(1, "comparisons.jsonl"), (2, "runs/judged")].map(|(n, d)| std::env::args().nth(n).unwrap_or(d.into()));
    let counts = judge_comparisons(&[rows], &ShorterIsBetter, &out)?;
    println!("{} preferences and {} ties are in {out}", counts.first + counts.second, counts.ties);
    Ok(())
}
