//! Counts of a judge's run for its progress bar, and notes that are printed once.

use std::collections::HashSet;

use super::counted;
use crate::eval::judge::endpoint::{TIMEOUT, WITHOUT_FORMAT};
use crate::eval::judge::{Choice, Question, Usage};

/// Number of first verdicts that are reported where all of them are the same letter.
const TELLING: usize = 20;

/// Counts of one judge's run.
#[derive(Debug, Default)]
pub struct JudgingProgress {
    /// Tokens of all requests, answered or not.
    pub spent: Usage,
    answers: usize,
    unclear: usize,
    repeats: usize,
    kinds: HashSet<String>,
    letters: [usize; 2],
    is_lopsided_told: bool,
}

impl JudgingProgress {
    /// Counts an answer. Returns a note, once, where the first verdicts are all the same letter.
    pub fn answer(&mut self, choice: Option<Choice>) -> Option<String> {
        self.answers += 1;
        match choice {
            Some(Choice::A) => self.letters[0] += 1,
            Some(Choice::B) => self.letters[1] += 1,
            Some(Choice::Tie) => self.is_lopsided_told = true,
            None => self.unclear += 1,
        }
        let is_telling = self.letters.iter().sum::<usize>() == TELLING && self.letters.contains(&0);
        if !is_telling || std::mem::replace(&mut self.is_lopsided_told, true) {
            return None;
        }
        let letter = if self.letters[0] > 0 { "(a)" } else { "(b)" };
        Some(format!(
            "the first {TELLING} verdicts are all {letter}, in whichever order sides were shown: such a judge makes ties alone. Another model, \
             --prompt or --answer-format may help"
        ))
    }

    /// Counts a question that is asked again. Returns a note for the first of each kind. `flag` maps a flag of `judge` to its name in the command that asks.
    pub fn repeat(
        &mut self,
        question: &Question<'_>,
        kind: &str,
        flag: fn(&'static str) -> &'static str,
    ) -> Option<String> {
        self.repeats += 1;
        self.kinds.insert(kind.into()).then(|| again(question, kind, flag))
    }

    /// Writes the counts beside the progress bar. `cost` is `None` where prices are unknown.
    pub fn text(&self, cost: Option<f64>) -> String {
        let mut parts = Vec::new();
        let tokens = self.spent.prompt_tokens + self.spent.completion_tokens;
        if tokens > 0 {
            parts.push(format!("{tokens} tokens"));
        }
        parts.extend(cost.map(|cost| format!("cost {cost:.2}")));
        if self.repeats > 0 {
            parts.push(format!("{} repeated", counted(self.repeats, "request")));
        }
        if self.unclear > 0 {
            parts.push(format!("{:.0} % unclear", 100.0 * self.unclear as f64 / self.answers as f64));
        }
        parts.into_iter().map(|part| format!(", {part}")).collect()
    }
}

/// Writes the note on the first question that is asked again for this reason.
fn again(question: &Question<'_>, kind: &str, flag: fn(&'static str) -> &'static str) -> String {
    let how = match kind {
        WITHOUT_FORMAT => {
            return "the endpoint does not take response_format: answers are text (--answer-format)".into();
        }
        TIMEOUT => format!(
            ", with half as many at a time; a slow endpoint needs a longer --{} or a smaller --{}",
            flag("timeout"),
            flag("concurrency")
        ),
        "HTTP 429" => ", as soon and as fast as the endpoint takes questions".into(),
        _ => String::new(),
    };
    format!("{}: {kind}: it is asked again{how}", question.place_and_order())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_stand_beside_the_bar() {
        let mut progress = JudgingProgress::default();
        assert_eq!(progress.text(None), "");
        progress.spent = Usage { prompt_tokens: 900, completion_tokens: 100 };
        for choice in [Some(Choice::A), None, Some(Choice::B), Some(Choice::B)] {
            assert_eq!(progress.answer(choice), None);
        }
        assert_eq!(progress.text(Some(0.125)), ", 1000 tokens, cost 0.12, 25 % unclear");
    }

    #[test]
    fn twenty_verdicts_of_one_letter_are_told_once() {
        let told = |choices: &[Option<Choice>]| {
            let mut progress = JudgingProgress::default();
            choices.iter().filter_map(|choice| progress.answer(*choice)).count()
        };
        let all = |choice: Choice, n: usize| vec![Some(choice); n];
        assert_eq!(told(&all(Choice::B, 19)), 0);
        assert_eq!(told(&all(Choice::B, 60)), 1);
        assert_eq!(told(&[all(Choice::A, 19), vec![None; 9], all(Choice::A, 1)].concat()), 1);
        assert_eq!(told(&[all(Choice::A, 19), all(Choice::B, 41)].concat()), 0);
        assert_eq!(told(&[all(Choice::Tie, 1), all(Choice::A, 41)].concat()), 0);
    }
}
