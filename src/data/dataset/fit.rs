//! What the limits do to the sequences of a row.

use super::{Limits, Overflow, side_name};
use crate::data::batch::Sequence;

/// What became of a row under the limits, and why.
pub(super) enum Fit {
    Whole,
    Cut(String),
    TooLong(String),
}

/// One rule for a pair: sides with the same instruction lose the same tokens, so they still share it (Lemma D.1 holds).
pub(super) fn fit(sequences: &mut [Sequence], same_instruction: bool, bos: Option<u32>, limits: Limits) -> Fit {
    if let (Overflow::Paper, [chosen, rejected]) = (limits.overflow, &mut *sequences) {
        return fit_as_the_paper([chosen, rejected], bos, limits.max_length);
    }
    let excess: Vec<usize> = sequences.iter().map(|s| s.ids.len().saturating_sub(limits.max_length)).collect();
    let most = excess.iter().copied().max().unwrap_or(0);
    if most == 0 {
        return Fit::Whole;
    }
    let side = excess.iter().position(|&e| e == most).unwrap_or(0);
    let (name, length) = (side_name(sequences.len(), side), sequences[side].ids.len());
    let long = format!("{name} has {length} tokens, --max-length is {}", limits.max_length);
    if limits.overflow != Overflow::TruncatePrompt {
        return Fit::TooLong(long);
    }
    let cuts: Vec<usize> = excess.iter().map(|&e| if same_instruction { most } else { e }).collect();
    // One token stays before the response, so that its first token is predicted: BOS, or the instruction's last.
    if let Some((side, _)) = cuts.iter().enumerate().find(|(i, cut)| **cut > 0 && **cut >= sequences[*i].response_start)
    {
        let spare = sequences[side].response_start.saturating_sub(1);
        return Fit::TooLong(format!("{long}; {spare} tokens of instruction are too few to cut"));
    }
    for (sequence, &cut) in sequences.iter_mut().zip(&cuts) {
        cut_instruction(sequence, cut, bos);
    }
    Fit::Cut(format!("{long}: {most} tokens of the instruction were cut"))
}

/// Cuts from the left; BOS stays.
fn cut_instruction(sequence: &mut Sequence, tokens: usize, bos: Option<u32>) {
    let keep = usize::from(sequence.ids.first().is_some_and(|id| Some(*id) == bos));
    sequence.cut_before_response(keep..keep + tokens);
}

/// [`Overflow::Paper`], but for BOS, which its code loses. Sides with the same instruction may lose different parts of it.
fn fit_as_the_paper(sides: [&mut Sequence; 2], bos: Option<u32>, max_length: usize) -> Fit {
    let response = |sequence: &Sequence| sequence.ids.len() - sequence.response_start;
    let chosen = response(sides[0]);
    let half = max_length / 2;
    let mut cut = None;
    for (side, sequence) in sides.into_iter().enumerate() {
        let measured = sequence.response_start + chosen;
        if measured > max_length {
            let by = if side == 0 { "" } else { ", by the length of the chosen response" };
            cut = cut.or(Some(format!("{} was cut as the paper's code does{by}", side_name(2, side))));
            cut_instruction(sequence, sequence.response_start.saturating_sub(half), bos);
        }
        if sequence.response_start + chosen > max_length {
            sequence.truncate(sequence.response_start + response(sequence).min(half));
        }
        let length = sequence.ids.len();
        if length > max_length {
            let name = side_name(2, side);
            return Fit::TooLong(format!(
                "{name} has {length} tokens as the paper's code leaves it, --max-length is {max_length}"
            ));
        }
    }
    cut.map_or(Fit::Whole, Fit::Cut)
}
