//! Counts of answers without a verdict, and notes on them.

use crate::eval::judge::Answer;
use crate::eval::judge::verdict_reader::NoVerdict;

/// Share of answers without a verdict above which a run prints a warning.
const MOST_UNSURE: f64 = 0.2;

/// Counts of a run's answers with and without a verdict.
#[derive(Debug, Default)]
pub struct UnclearAnswers {
    answers: usize,
    without: usize,
    cut: usize,
    example: Option<String>,
}

impl UnclearAnswers {
    /// Counts an answer. Returns the reason in words, where the answer has no verdict.
    pub fn add(&mut self, answer: &Answer) -> Option<String> {
        self.answers += 1;
        if answer.choice.is_some() {
            return None;
        }
        self.without += 1;
        let why = answer.no_verdict.unwrap_or(NoVerdict::Unclear);
        self.cut += usize::from(why == NoVerdict::Cut);
        let told = match why {
            NoVerdict::Unclear => format!("no answer: {}", answer.end()),
            NoVerdict::Empty | NoVerdict::ToolCall => format!("no answer: {}", why.told()),
            NoVerdict::Cut | NoVerdict::Refusal | NoVerdict::Stopped => {
                format!("no answer: {}: {}", why.told(), answer.end())
            }
        };
        // An unclear answer is a better example than one that was cut, because it shows what to change.
        if self.example.is_none() || why == NoVerdict::Unclear && self.without == self.cut + 1 {
            self.example = Some(format!("{}: {}", why.told(), answer.end()));
        }
        Some(told)
    }

    /// Returns notes for the user on answers without a verdict. `max_tokens` is the name of the flag for the largest number of tokens.
    pub fn notes(&self, max_tokens: &str) -> Vec<String> {
        let mut notes = Vec::new();
        let (n, of) = (self.without, self.answers);
        if self.cut > 0 {
            let were = if self.cut == 1 { "answer was" } else { "answers were" };
            notes.push(format!("note: {} {were} cut off before a verdict: raise --{max_tokens}", self.cut));
        }
        if n as f64 > MOST_UNSURE * of as f64 {
            let share = 100.0 * n as f64 / of as f64;
            let example = self.example.as_deref().unwrap_or_default();
            notes.push(format!(
                "warning: {n} of {of} answers ({share:.0} %) have no verdict that is certain, such as {example}; another --prompt or \
                 --answer-format may help"
            ));
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::judge::Choice;

    #[test]
    fn above_a_fifth_it_warns_and_shows_the_end_of_an_answer() {
        let mut unsure = UnclearAnswers::default();
        let long = format!("{} I like both of them.", "word ".repeat(100));
        assert!(unsure.add(&Answer::read(long, false)).unwrap().ends_with("like both of them.`"));
        for _ in 0..4 {
            assert_eq!(unsure.add(&Choice::A.into()), None);
        }
        assert!(unsure.notes("max-tokens").is_empty(), "a fifth is not above a fifth");
        unsure.add(&Answer::read("<think>hm".into(), true));
        let notes = unsure.notes("judge-max-tokens");
        assert_eq!(notes.len(), 2);
        assert_eq!(notes[0], "note: 1 answer was cut off before a verdict: raise --judge-max-tokens");
        assert!(notes[1].contains("2 of 6 answers (33 %)") && notes[1].contains("`…word word"), "{}", notes[1]);
    }
}
