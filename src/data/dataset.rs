//! Rows → tokenised examples that fit the length limit, with a note for every row that did not come through whole.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::bad_rows::BadRows;
use super::batch::{Example, Sequence};
use super::conversation::Text;
use super::remarks::{Remark, Remarks};
use super::rows::{Content, Place, Row};
use super::template::Template;
use super::tokens::Tokenizer;
use crate::error::{Error, Result};

/// What happens to a row longer than the limit: `--on-overflow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// It is left out.
    Drop,
    /// Its instructions lose tokens from the left (BOS stays, the response stays whole, at least one token stays before it);
    /// where that does not suffice the row is left out.
    TruncatePrompt,
    /// It stops the program.
    Error,
    /// As the paper's code has it (`--paper-compat`), for comparison with its numbers: a preference is left out where a side has more
    /// *characters* than the limit; of the others each side alone is cut, by the length of the *chosen* response: an instruction
    /// to its last half of the limit, then a response to its first half.
    Paper,
}

impl Overflow {
    /// From `drop`, `truncate-prompt` or `error`.
    ///
    /// # Errors
    /// [`Error::Flag`] for anything else.
    pub fn parse(value: &str) -> Result<Self> {
        match value {
            "drop" => Ok(Self::Drop),
            "truncate-prompt" => Ok(Self::TruncatePrompt),
            "error" => Ok(Self::Error),
            other => Err(Error::flag("on-overflow", format!("`{other}`: expected drop, truncate-prompt or error"))),
        }
    }
}

/// The length that a sequence may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of a sequence, BOS and EOS included.
    pub max_length: usize,
    /// What happens to longer ones.
    pub overflow: Overflow,
}

/// What became of a row that was too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Left out.
    Dropped,
    /// Kept, its instructions cut.
    Truncated,
    /// Left out as a bad row: it cannot be read, or the template cannot hold it.
    Skipped,
}

/// A row that did not come through whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Row number, from 0.
    pub row: usize,
    /// What became of it.
    pub fate: Fate,
    /// Why.
    pub reason: String,
}

/// The tokenised data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dataset {
    /// The rows kept, in their order.
    pub examples: Vec<Example>,
    /// Where each row was read, dropped ones included.
    pub places: Vec<Place>,
    /// The rows dropped and truncated.
    pub notes: Vec<Note>,
    /// Tokens of every sequence before any limit, dropped rows included.
    pub lengths: Vec<usize>,
    /// What is to be said of many rows, dropped ones included.
    pub remarks: Remarks,
}

impl Dataset {
    /// Tokenises rows and applies the limits.
    ///
    /// # Errors
    /// [`Error::Line`] for a row that the template or the tokenizer cannot hold, that has nothing to score, or that is too long
    /// under [`Overflow::Error`]; [`Error::Flag`] where nothing is left, or for a template that the tokenizer lacks.
    pub fn build(rows: &[Row], tokenizer: &Tokenizer, template: &Template, limits: Limits) -> Result<Self> {
        Self::build_with(rows, tokenizer, template, limits, BadRows::Error)
    }

    /// Builds the same, and leaves bad rows out where `bad_rows` says so.
    ///
    /// # Errors
    /// As [`Dataset::build`]; [`Error::Flag`] where more rows are bad than may be skipped.
    pub fn build_with(
        rows: &[Row],
        tokenizer: &Tokenizer,
        template: &Template,
        limits: Limits,
        bad_rows: BadRows,
    ) -> Result<Self> {
        tokenizer.check_template(template)?;
        let mut data = Self::default();
        let mut is_labelled = None;
        for (row, Row { place, content }) in rows.iter().enumerate() {
            data.places.push(place.clone());
            let texts = content.texts();
            let mut remarks = BTreeSet::new();
            let sequences = match content {
                Content::Unreadable(reason) => Err(reason.clone()),
                _ => {
                    if *is_labelled.get_or_insert(content.label().is_some()) != content.label().is_some() {
                        return Err(place.error(
                            "texts with a label stand beside rows of other forms: learn from one or the other",
                        ));
                    }
                    sequences(&texts, tokenizer, template, &mut remarks)
                }
            };
            let mut sequences = match (sequences, bad_rows) {
                (Ok(sequences), _) => sequences,
                (Err(reason), BadRows::Error) => return Err(place.error(reason)),
                (Err(reason), BadRows::Skip(_)) => {
                    data.notes.push(Note { row, fate: Fate::Skipped, reason });
                    continue;
                }
            };
            data.lengths.extend(sequences.iter().map(|sequence| sequence.ids.len()));
            if let [chosen, rejected] = sequences.as_slice()
                && chosen.ids == rejected.ids
            {
                remarks.insert(Remark::SameSides);
            }
            data.remarks.add_row(remarks);
            if limits.overflow == Overflow::Paper && texts.len() == 2 {
                let characters = |text: &&Text| tokenizer.characters(text, template);
                let characters = texts.iter().map(characters).collect::<std::result::Result<Vec<_>, _>>();
                let characters = characters.map_err(|reason| place.error(reason))?;
                if let Some(side) = characters.iter().position(|&n| n > limits.max_length) {
                    let (name, n) = (side_name(2, side), characters[side]);
                    let reason = format!("{name} has {n} characters, --max-length is {}", limits.max_length);
                    data.notes.push(Note { row, fate: Fate::Dropped, reason });
                    continue;
                }
            }
            let same_instruction = texts.windows(2).all(|pair| pair[0].instruction == pair[1].instruction);
            match fit(&mut sequences, same_instruction, tokenizer.bos_id(), limits) {
                Fit::Whole => {}
                Fit::Cut(reason) => data.notes.push(Note { row, fate: Fate::Truncated, reason }),
                Fit::TooLong(reason) if limits.overflow == Overflow::Error => return Err(place.error(reason)),
                Fit::TooLong(reason) => {
                    data.notes.push(Note { row, fate: Fate::Dropped, reason });
                    continue;
                }
            }
            data.examples.push(Example { row, sequences, desirable: content.label() });
        }
        data.check_skipped(bad_rows)?;
        if data.examples.is_empty() && !rows.is_empty() {
            data.check_readable()?;
            let longest = data.lengths.iter().max().copied().unwrap_or(0);
            let reason = match limits.overflow {
                Overflow::Paper => {
                    format!("no row fits {} characters a side, as --paper-compat counts", limits.max_length)
                }
                _ => format!("no row fits {} tokens (the longest sequence has {longest})", limits.max_length),
            };
            return Err(Error::flag("max-length", reason));
        }
        Ok(data)
    }

    /// Refuses more bad rows than may be skipped.
    fn check_skipped(&self, bad_rows: BadRows) -> Result<()> {
        let (BadRows::Skip(limit), n) = (bad_rows, self.count(Fate::Skipped)) else { return Ok(()) };
        let first = self.notes.iter().find(|note| note.fate == Fate::Skipped);
        let Some(first) = first.filter(|_| n > limit.most(self.n_rows())) else { return Ok(()) };
        let (place, n_rows) = (self.place(first.row), self.n_rows());
        let reason = format!("{n} of {n_rows} rows are bad, more than {limit}; the first is {place}: {}", first.reason);
        Err(Error::flag("max-bad-rows", reason))
    }

    /// Refuses rows of which every one was skipped: no length is in their way.
    fn check_readable(&self) -> Result<()> {
        match self.notes.first() {
            Some(first) if self.count(Fate::Skipped) == self.n_rows() => {
                let reason = format!("every row is bad; the first: {}: {}", self.place(first.row), first.reason);
                Err(Error::flag("max-bad-rows", reason))
            }
            _ => Ok(()),
        }
    }

    /// Rows read.
    pub fn n_rows(&self) -> usize {
        self.places.len()
    }

    /// Rows of this fate.
    pub fn count(&self, fate: Fate) -> usize {
        self.notes.iter().filter(|note| note.fate == fate).count()
    }

    /// "24 rows: 20 kept (3 of them truncated), 4 dropped", and how many bad rows were skipped, if any.
    pub fn summary(&self) -> String {
        let truncated = match self.count(Fate::Truncated) {
            0 => String::new(),
            n => format!(" ({n} of them truncated)"),
        };
        let skipped = match self.count(Fate::Skipped) {
            0 => String::new(),
            1 => ", 1 bad row skipped".into(),
            n => format!(", {n} bad rows skipped"),
        };
        format!(
            "{} rows: {} kept{truncated}, {} dropped{skipped}",
            self.n_rows(),
            self.examples.len(),
            self.count(Fate::Dropped)
        )
    }

    /// `file:line` of a row, with its number where it is an element of a JSON list.
    pub fn place(&self, row: usize) -> String {
        self.places.get(row).map_or_else(|| format!("row {row}"), Place::to_string)
    }

    /// SHA-256, in hexadecimal, of the tokens and boundaries in their order: a part of the key of cached reference scores.
    pub fn content_hash(&self) -> String {
        let mut hash = Sha256::new();
        let mut number = |n: usize| hash.update((n as u64).to_le_bytes());
        number(self.examples.len());
        for example in &self.examples {
            number(example.sequences.len());
            // Beyond any number of sequences, so that no two data sets are told by the same numbers.
            example.desirable.iter().for_each(|&desirable| number(usize::MAX - usize::from(desirable)));
            for sequence in &example.sequences {
                number(sequence.response_start);
                for range in &sequence.between {
                    // Beyond any number of tokens, as above.
                    [usize::MAX - 2, range.start, range.end].into_iter().for_each(&mut number);
                }
                number(sequence.ids.len());
                sequence.ids.iter().for_each(|&id| number(id as usize));
            }
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Tokenises a row's texts; the reason where one cannot be held, or has nothing to score.
fn sequences(
    texts: &[&Text],
    tokenizer: &Tokenizer,
    template: &Template,
    remarks: &mut BTreeSet<Remark>,
) -> std::result::Result<Vec<Sequence>, String> {
    let sequence = |(side, text): (usize, &&Text)| {
        let sequence = tokenizer.encode_with_remarks(text, template, remarks)?;
        match sequence.n_response() {
            0 => Err(format!("{} has no token to score", side_name(texts.len(), side))),
            _ => Ok(sequence),
        }
    };
    texts.iter().enumerate().map(sequence).collect()
}

/// "the chosen side", or "the row" where there is one side only.
fn side_name(n_sides: usize, side: usize) -> &'static str {
    if n_sides == 1 { "the row" } else { ["the chosen side", "the rejected side"][side] }
}

enum Fit {
    Whole,
    Cut(String),
    TooLong(String),
}

/// One rule for a pair: sides with the same instruction lose the same tokens, so they still share it (Lemma D.1 holds).
fn fit(sequences: &mut [Sequence], same_instruction: bool, bos: Option<u32>, limits: Limits) -> Fit {
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

/// From the left; BOS stays.
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
