//! Length limits, applied to the sequences of a row.

use super::{LengthLimits, Overflow, side_name};
use crate::data::batch::Sequence;

/// Result of the limits for a row; cut and dropped rows have a reason.
pub(super) enum FittedRow {
    Whole,
    Cut(String),
    TooLong(String),
}

/// Applies the limits to both sides of a pair by one rule: sides with the same instruction lose the same tokens, so that they still share
/// it (Lemma D.1 holds). `n_start` counts the tokens before a text, such as BOS, which are kept.
pub(super) fn fit(
    sequences: &mut [Sequence],
    same_instruction: bool,
    n_start: &dyn Fn(&[u32]) -> usize,
    limits: LengthLimits,
) -> FittedRow {
    if let (Overflow::Paper, [chosen, rejected]) = (limits.overflow, &mut *sequences) {
        return fit_as_the_paper([chosen, rejected], n_start, limits.max_length);
    }
    let excess: Vec<usize> = sequences.iter().map(|s| s.ids.len().saturating_sub(limits.max_length)).collect();
    let most = excess.iter().copied().max().unwrap_or(0);
    if most == 0 {
        return FittedRow::Whole;
    }
    let side = excess.iter().position(|&e| e == most).unwrap_or(0);
    let (name, length) = (side_name(sequences.len(), side), sequences[side].ids.len());
    let long = format!("{name} has {length} tokens, --max-length is {}", limits.max_length);
    match limits.overflow {
        Overflow::TruncatePrompt => {
            let cuts = excess.iter().map(|&e| if same_instruction { most } else { e }).collect();
            cut_instructions(sequences, cuts, n_start, &long)
        }
        Overflow::TruncateResponse => cut_responses(sequences, limits.max_length, &long),
        Overflow::Drop | Overflow::Error | Overflow::Paper => FittedRow::TooLong(long),
    }
}

fn cut_instructions(
    sequences: &mut [Sequence],
    cuts: Vec<usize>,
    n_start: &dyn Fn(&[u32]) -> usize,
    long: &str,
) -> FittedRow {
    // One token before the response must stay, so that the first response token is predicted: BOS, or the instruction's last token.
    let spare = |sequence: &Sequence| sequence.response_start.saturating_sub(n_start(&sequence.ids).max(1));
    if let Some((side, _)) = cuts.iter().enumerate().find(|(i, cut)| **cut > 0 && **cut > spare(&sequences[*i])) {
        let spare = spare(&sequences[side]);
        return FittedRow::TooLong(format!("{long}; {spare} tokens of instruction are too few to cut"));
    }
    let most = cuts.iter().copied().max().unwrap_or(0);
    for (sequence, cut) in sequences.iter_mut().zip(cuts) {
        cut_instruction(sequence, cut, n_start);
    }
    FittedRow::Cut(format!("{long}: {most} tokens of the instruction were cut"))
}

/// Cuts each sequence at the limit, as TRL's `keep_start` does. The end of a longer response is not trained on.
fn cut_responses(sequences: &mut [Sequence], max_length: usize, long: &str) -> FittedRow {
    if let Some(filled) = sequences.iter().map(|sequence| sequence.response_start).find(|&start| start >= max_length) {
        return FittedRow::TooLong(format!("{long}; the {filled} tokens before the response leave it none"));
    }
    let most = sequences.iter().map(|sequence| sequence.ids.len() - max_length.min(sequence.ids.len())).max();
    sequences.iter_mut().for_each(|sequence| sequence.truncate(max_length));
    FittedRow::Cut(format!("{long}: {} tokens of the response were cut", most.unwrap_or(0)))
}

/// Removes tokens from the left of the instruction. The tokens before the text, such as BOS, stay.
fn cut_instruction(sequence: &mut Sequence, tokens: usize, n_start: &dyn Fn(&[u32]) -> usize) {
    let keep = n_start(&sequence.ids).min(sequence.response_start - tokens);
    sequence.cut_before_response(keep..keep + tokens);
}

/// Applies [`Overflow::Paper`], except that BOS stays, which the paper's code removes. Sides with the same instruction may lose different
/// parts of it.
fn fit_as_the_paper(sides: [&mut Sequence; 2], n_start: &dyn Fn(&[u32]) -> usize, max_length: usize) -> FittedRow {
    let response = |sequence: &Sequence| sequence.ids.len() - sequence.response_start;
    let chosen = response(sides[0]);
    let half = max_length / 2;
    let mut cut = None;
    for (side, sequence) in sides.into_iter().enumerate() {
        let measured = sequence.response_start + chosen;
        if measured > max_length {
            let by = if side == 0 { "" } else { ", by the length of the chosen response" };
            cut = cut.or(Some(format!("{} was cut as the paper's code does{by}", side_name(2, side))));
            cut_instruction(sequence, sequence.response_start.saturating_sub(half), n_start);
        }
        if sequence.response_start + chosen > max_length {
            sequence.truncate(sequence.response_start + response(sequence).min(half));
        }
        let length = sequence.ids.len();
        if length > max_length {
            let name = side_name(2, side);
            return FittedRow::TooLong(format!(
                "{name} has {length} tokens as the paper's code leaves it, --max-length is {max_length}"
            ));
        }
    }
    cut.map_or(FittedRow::Whole, FittedRow::Cut)
}
