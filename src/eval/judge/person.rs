//! Person as a judge: one key per answer, and a key to undo the last answer. A [`JudgeScreen`] shows the texts and reads the keys.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::{Answer, Choice, Judge, Question, Reply};
use crate::data::comparisons::ComparisonKind;
use crate::error::{Result, visible};
use crate::rng::Rng;

/// Meaning of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPress {
    /// Chooses (a), (b) or neither.
    Choose(Choice),
    /// Skips this question, which is asked again in the next run.
    Skip,
    /// Takes the last answer back.
    Undo,
    /// Ends judging.
    Quit,
    /// Any other key.
    Other,
}

/// Terminal, or its replacement in tests.
pub trait JudgeScreen {
    /// Shows a page of lines in place of the last one: `title`, then texts under their headings, then `keys`.
    ///
    /// # Errors
    /// Fails where the screen cannot be written to.
    fn show(&self, title: &str, texts: &[(&str, String)], keys: &str) -> Result<()>;

    /// Waits for a key.
    ///
    /// # Errors
    /// Fails where no key can be read.
    fn press(&self) -> Result<KeyPress>;
}

/// Number of comparisons per block; after a block, its comparisons are shown again in the other order.
const BLOCK: usize = 10;

const KEYS: &str = "a, b: better   t: equal   s: skip   u: undo   q: quit";

/// Person in front of a screen.
pub struct HumanJudge<S> {
    /// Screen that shows the questions.
    pub screen: S,
    /// Name of the person, which distinguishes the answers of two people.
    pub name: String,
    /// Seed of the order of questions.
    pub seed: u64,
}

/// Returns the order in which a person sees questions. Each block of [`BLOCK`] rows is shown once, and then again in the other presentation
/// order, shuffled both times. Nobody therefore answers the same comparison twice in a row, and all verdicts of a finished block are
/// complete. Which presentation order comes first is random.
fn sequence(questions: &[Question<'_>], seed: u64) -> Vec<usize> {
    let mut rng = Rng::new(seed, 13);
    // Adjacent questions belong to the same comparison.
    let mut rows: Vec<Vec<usize>> = Vec::new();
    for i in 0..questions.len() {
        match rows.last_mut() {
            Some(last) if std::ptr::eq(questions[last[0]].comparison, questions[i].comparison) => last.push(i),
            _ => rows.push(vec![i]),
        }
    }
    let mut all = Vec::with_capacity(questions.len());
    for block in rows.chunks_mut(BLOCK) {
        block.iter_mut().for_each(|row| rng.shuffle(row));
        for turn in 0..2 {
            rng.shuffle(block);
            all.extend(block.iter().filter_map(|row| row.get(turn)));
        }
    }
    all
}

/// Makes control characters visible, because texts from others may contain any and a terminal obeys them.
fn shown(text: &str) -> String {
    text.lines().map(visible).collect::<Vec<_>>().join("\n")
}

fn texts(question: &Question<'_>) -> Vec<(&'static str, String)> {
    let headings: &[&str] = match question.comparison.mode {
        ComparisonKind::Single => &["Instruction", "(a)", "(b)"],
        ComparisonKind::Pair => &["Instruction (a)", "(a)", "Instruction (b)", "(b)"],
    };
    headings.iter().zip(question.texts()).map(|(heading, (_, text))| (*heading, shown(text))).collect()
}

impl<S: JudgeScreen> Judge for HumanJudge<S> {
    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> Value {
        json!({"kind": "person", "name": self.name})
    }

    fn ask(
        &self,
        questions: &[Question<'_>],
        stop: &AtomicBool,
        tell: &mut dyn FnMut(usize, Reply) -> Result<()>,
    ) -> Result<()> {
        let order = sequence(questions, self.seed);
        let mut at = 0;
        while at < order.len() && !stop.load(Ordering::Relaxed) {
            let i = order[at];
            let what = match questions[i].comparison.mode {
                ComparisonKind::Single => "which response is better?",
                ComparisonKind::Pair => "which response answers its own instruction better?",
            };
            self.screen.show(&format!("{} of {}: {what}", at + 1, order.len()), &texts(&questions[i]), KEYS)?;
            let answer = loop {
                match self.screen.press()? {
                    KeyPress::Choose(choice) => break Some(Answer::from(choice)),
                    KeyPress::Skip => break Some(Answer::default()),
                    KeyPress::Undo if at > 0 => break None,
                    KeyPress::Undo | KeyPress::Other => {}
                    KeyPress::Quit => return Ok(()),
                }
            };
            match answer {
                Some(answer) => {
                    tell(i, Reply::Answer(answer))?;
                    at += 1;
                }
                None => {
                    at -= 1;
                    tell(order[at], Reply::Undone)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::comparisons::{Comparison, Side, place};
    use crate::eval::judge::PresentationOrder as Shown;

    #[test]
    fn nobody_sees_a_comparison_twice_in_a_row() {
        let side = |text: &str| Side { instruction: "I".into(), response: text.into() };
        let row = |i: usize| Comparison {
            place: place("rows".into(), i),
            mode: ComparisonKind::Single,
            sides: [side(&format!("{i}")), side("other")],
            more: serde_json::Map::new(),
        };
        let rows: Vec<Comparison> = (0..25).map(row).collect();
        let questions: Vec<Question<'_>> =
            rows.iter().flat_map(|comparison| Shown::ALL.map(|order| Question { comparison, order })).collect();
        let order = sequence(&questions, 3);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        let seen: Vec<usize> = order.iter().map(|i| i / 2).collect();
        // Both passes over a block have the same rows; the second one comes behind the whole first one.
        for (first, block) in [(0, 10), (20, 10), (40, 5)] {
            let turn = |from: usize| {
                let mut rows = seen[from..from + block].to_vec();
                rows.sort_unstable();
                rows
            };
            assert_eq!(turn(first), turn(first + block));
        }
        assert!(order.iter().take(10).any(|i| i % 2 == 0) && order.iter().take(10).any(|i| i % 2 == 1));
        assert_ne!(order, sequence(&questions, 4));
        // Questions that an earlier run has left: one order each of some rows.
        let some: Vec<Question<'_>> = questions.iter().copied().step_by(3).collect();
        assert_eq!(sequence(&some, 3).len(), some.len());
    }
}
