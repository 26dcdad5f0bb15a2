//! Grader of the demo's answers, and the win rates that it gives.

use super::TaskItem;

/// Form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AnswerForm {
    /// With hedges and fillers ("um, 32 i guess"), a sentence without its capital or its period, or far too long.
    Sloppy,
    /// Only the answer, with or without a period.
    Bare,
    /// One short sentence: the one for the kind of task, or "The answer is 32."
    Sentence,
}

/// Grade of a response.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnswerGrade {
    /// Score from 0 to 1: (6 if correct, plus 3 for a sentence or 1 for a bare answer, plus 1 if brief) / 10. Every correct answer is above
    /// every wrong one.
    pub score: f64,
    /// Whether the answer is the correct one, letter by letter.
    pub correct: bool,
    /// Form of the response.
    pub form: AnswerForm,
    /// Whether the response has at most 1.5 times as many characters as the gold response.
    pub brief: bool,
}

pub(super) const HEDGES: [&str; 6] = ["um, ", "uh, ", "i think its ", "maybe ", "it might be ", "ok so "];
pub(super) const TAILS: [&str; 5] = [" i guess", " lol", " or so", "...", "!!"];

/// Grades a response to an item.
pub fn grade(item: &TaskItem, response: &str) -> AnswerGrade {
    let text = response.trim();
    let (form, answer) = read(item, text);
    let correct = answer == item.answer;
    let length = text.chars().count();
    let brief = length > 0 && 2 * length <= 3 * item.gold.chars().count();
    let form = if correct || brief { form } else { AnswerForm::Sloppy };
    let points = 6 * u32::from(correct) + u32::from(brief) + [0, 1, 3][form as usize];
    let points = if answer.is_empty() { 0 } else { points };
    AnswerGrade { score: f64::from(points) / 10.0, correct, form, brief }
}

/// Returns the form of a response, and the answer in it.
fn read<'a>(item: &TaskItem, text: &'a str) -> (AnswerForm, &'a str) {
    let (before, after) = item.frame();
    for (before, after) in [(before, after), ("The answer is ", ".")] {
        if let Some(answer) = text.strip_prefix(before).and_then(|t| t.strip_suffix(after)) {
            return (AnswerForm::Sentence, answer);
        }
    }
    let mut rest = text;
    loop {
        let leads = HEDGES.iter().chain([&before]);
        let ends = TAILS.iter().copied().chain([after, after.trim_end_matches('.')]).filter(|e| e.len() > 1);
        let shorter = (leads.copied().find_map(|h| strip_start(rest, h)))
            .or_else(|| ends.into_iter().find_map(|e| rest.strip_suffix(e)));
        match shorter {
            Some(s) => rest = s,
            None => break,
        }
    }
    let form = if rest.len() == text.len() { AnswerForm::Bare } else { AnswerForm::Sloppy };
    (form, rest.strip_suffix('.').unwrap_or(rest).trim())
}

/// Strips a prefix, ignoring case.
fn strip_start<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    (!prefix.is_empty() && head.eq_ignore_ascii_case(prefix)).then(|| &text[prefix.len()..])
}

/// Counts of judged pairs of answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WinRate {
    /// Number of pairs whose first answer is better.
    pub wins: usize,
    /// Number of pairs with equal scores.
    pub ties: usize,
    /// Number of pairs whose second answer is better.
    pub losses: usize,
}

impl WinRate {
    /// Counts one pair by its scores.
    pub fn add(&mut self, first: f64, second: f64) {
        match first.total_cmp(&second) {
            std::cmp::Ordering::Greater => self.wins += 1,
            std::cmp::Ordering::Equal => self.ties += 1,
            std::cmp::Ordering::Less => self.losses += 1,
        }
    }
    /// Returns the number of pairs.
    pub fn judged(&self) -> usize {
        self.wins + self.ties + self.losses
    }
    /// Returns (wins + ½ ties) / judged; ½ where nothing was judged.
    pub fn rate(&self) -> f64 {
        match self.judged() {
            0 => 0.5,
            n => (self.wins as f64 + 0.5 * self.ties as f64) / n as f64,
        }
    }
}

/// Computes how often the first of two answers to an item is the better one, by the grader.
pub fn win_rate<'a>(judged: impl IntoIterator<Item = (&'a TaskItem, &'a str, &'a str)>) -> WinRate {
    let mut rate = WinRate::default();
    for (item, first, second) in judged {
        rate.add(grade(item, first).score, grade(item, second).score);
    }
    rate
}
