//! Answers of a chosen quality, for the demo's data.

use super::grade::{HEDGES, TAILS};
use super::{AnswerForm, TaskItem};
use crate::rng::Rng;
use serde::{Deserialize, Serialize};

/// Quality of an answer; supervised rows mix all four.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerQuality {
    /// Correct, in one sentence: the gold response.
    Good,
    /// Correct, but only the bare answer.
    Bare,
    /// Correct, with hedges and fillers.
    Sloppy,
    /// Wrong, in any form.
    Wrong,
}

/// Creates an answer of a quality.
pub fn answer(item: &TaskItem, quality: AnswerQuality, rng: &mut Rng) -> String {
    match quality {
        AnswerQuality::Good => item.gold.clone(),
        AnswerQuality::Bare => item.answer.clone(),
        AnswerQuality::Sloppy => put(item, &item.answer, AnswerForm::Sloppy, rng),
        AnswerQuality::Wrong => {
            let form =
                [AnswerForm::Sentence, AnswerForm::Bare, AnswerForm::Bare, AnswerForm::Sloppy][rng.below(4) as usize];
            put(item, &wrong(item, rng), form, rng)
        }
    }
}

fn put(item: &TaskItem, answer: &str, form: AnswerForm, rng: &mut Rng) -> String {
    let (before, after) = item.frame();
    match form {
        AnswerForm::Sentence => format!("{before}{answer}{after}"),
        AnswerForm::Bare => answer.to_string(),
        AnswerForm::Sloppy => {
            let hedge = HEDGES[rng.below(HEDGES.len() as u32) as usize];
            let tail = TAILS[rng.below(TAILS.len() as u32) as usize];
            match rng.below(3) {
                0 => format!("{hedge}{answer}"),
                1 => format!("{answer}{tail}"),
                _ => format!("{hedge}{answer}{tail}"),
            }
        }
    }
}

/// Creates a wrong answer: usually a plausible one for the kind of task, else the correct one with a typing error.
fn wrong(item: &TaskItem, rng: &mut Rng) -> String {
    if !item.wrong.is_empty() && rng.below(4) > 0 {
        return item.wrong[rng.below(item.wrong.len() as u32) as usize].clone();
    }
    loop {
        let slipped = slip(&item.answer, rng);
        if slipped != item.answer {
            return slipped;
        }
    }
}

/// Makes one typing error: another character of the same class, a doubled or lost character, or two swapped ones.
fn slip(text: &str, rng: &mut Rng) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let solid: Vec<usize> = (0..chars.len()).filter(|&i| chars[i].is_ascii_alphanumeric()).collect();
    let at = solid[rng.below(solid.len() as u32) as usize];
    let substitute = |c: char, rng: &mut Rng| match c {
        '0'..='9' => char::from(b'0' + rng.below(10) as u8),
        'A'..='Z' => char::from(b'A' + rng.below(26) as u8),
        _ => char::from(b'a' + rng.below(26) as u8),
    };
    match rng.below(4) {
        0 if solid.len() > 1 => drop(chars.remove(at)),
        1 => chars.insert(at, chars[at]),
        2 if at + 1 < chars.len() && chars[at + 1].is_ascii_alphanumeric() => chars.swap(at, at + 1),
        _ => chars[at] = substitute(chars[at], rng),
    }
    chars.into_iter().collect()
}
