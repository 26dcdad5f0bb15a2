//! Conversion of rows into tokenised examples within the length limit, with a note for every row that was dropped or truncated.

mod builder;
mod fit;

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

pub use self::builder::DatasetBuilder;
use super::bad_rows::BadRows;
use super::batch::Example;
use super::prompt_template::Template;
use super::remarks::DataRemarks;
use super::rows::{Row, SourceLocation};
use super::tokens::Tokenizer;
use crate::error::{Error, Result};

/// Default of `--max-length`, in tokens per sequence.
pub const DEFAULT_MAX_LENGTH: usize = 1024;

/// Treatment of a row longer than the limit: `--on-overflow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// The row is dropped.
    Drop,
    /// The row's instructions lose tokens from the left. Tokens before the text, such as BOS, stay, the response stays whole, and at least
    /// one token stays before it. Where this does not suffice, the row is dropped.
    TruncatePrompt,
    /// Each of the row's sequences is cut at the limit, as with TRL's `keep_start`. The row is dropped where the tokens before a response
    /// fill the limit.
    TruncateResponse,
    /// The row stops the program.
    Error,
    /// The row is treated as in the paper's code (`--paper-compat`), for comparison with its numbers. A preference is dropped where a side
    /// has more *characters* than the limit. In other preferences, each side is cut separately, by the length of the *chosen* response:
    /// first the instruction to its last half-limit of tokens, then the response to its first half-limit.
    Paper,
}

impl Overflow {
    /// Parses `drop`, `truncate-prompt`, `truncate-response` or `error`.
    ///
    /// # Errors
    /// [`Error::Flag`] for anything else.
    pub fn parse(value: &str) -> Result<Self> {
        match value {
            "drop" => Ok(Self::Drop),
            "truncate-prompt" => Ok(Self::TruncatePrompt),
            "truncate-response" => Ok(Self::TruncateResponse),
            "error" => Ok(Self::Error),
            other => Err(Error::flag(
                "on-overflow",
                format!("`{other}`: expected drop, truncate-prompt, truncate-response or error"),
            )),
        }
    }
}

/// Limit on the length of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LengthLimits {
    /// Largest number of tokens of a sequence, BOS and EOS included.
    pub max_length: usize,
    /// Treatment of longer sequences.
    pub overflow: Overflow,
}

/// Treatment of a row that was too long or bad, as recorded in a note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverflowAction {
    /// The row was dropped.
    Dropped,
    /// The row was kept, but cut.
    Truncated,
    /// The row was skipped as a bad row, because it cannot be read, or the template cannot represent it.
    Skipped,
}

/// Note on a row that was dropped, truncated or skipped.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OverflowNote {
    /// Row number, from 0.
    pub row: usize,
    /// Treatment of the row.
    pub fate: OverflowAction,
    /// Reason for the treatment.
    pub reason: String,
}

/// Locations of rows, in their order: 12 bytes per row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowLocations {
    /// Files, in the order in which they were read.
    pub(super) files: Vec<Arc<Path>>,
    /// Number of the file, line, and number in a JSON list (0 outside a list) of each row.
    pub(super) rows: Vec<[u32; 3]>,
}

impl RowLocations {
    /// Adds the location of the next row.
    pub fn push(&mut self, place: &SourceLocation) {
        if self.files.last().is_none_or(|last| *last != place.path) {
            self.files.push(place.path.clone());
        }
        // Larger numbers than u32 can hold are stored as its maximum.
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let element = place.element.map_or(0, NonZeroU32::get);
        self.rows.push([small(self.files.len() - 1), small(place.line), element]);
    }

    /// Returns the location of a row.
    pub fn get(&self, row: usize) -> Option<SourceLocation> {
        let [file, line, element] = *self.rows.get(row)?;
        let path = self.files.get(file as usize)?.clone();
        Some(SourceLocation { path, line: line as usize, element: NonZeroU32::new(element) })
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// Tokenised data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dataset {
    /// Rows that were kept, in order.
    pub examples: Vec<Example>,
    /// Location of every row in the files, dropped rows included.
    pub places: RowLocations,
    /// Notes on the rows dropped, truncated and skipped.
    pub notes: Vec<OverflowNote>,
    /// Number of tokens of every sequence before limits, dropped rows included.
    pub lengths: Vec<u32>,
    /// Remarks about many rows, dropped rows included.
    pub remarks: DataRemarks,
}

impl Dataset {
    /// Tokenises rows and applies the limits.
    ///
    /// # Errors
    /// [`Error::Line`] for a row that the template or the tokenizer cannot represent, that has no tokens to score, or that is too long
    /// under [`Overflow::Error`]; [`Error::Flag`] where no rows are left, or for a template that the tokenizer lacks.
    pub fn build(rows: &[Row], tokenizer: &Tokenizer, template: &Template, limits: LengthLimits) -> Result<Self> {
        Self::build_with(rows, tokenizer, template, limits, BadRows::Error)
    }

    /// Builds the data set like [`Dataset::build`], but skips bad rows where `bad_rows` says so.
    ///
    /// # Errors
    /// Fails like [`Dataset::build`]; also [`Error::Flag`] where more rows are bad than may be skipped.
    pub fn build_with(
        rows: &[Row],
        tokenizer: &Tokenizer,
        template: &Template,
        limits: LengthLimits,
        bad_rows: BadRows,
    ) -> Result<Self> {
        let mut builder = DatasetBuilder::new(tokenizer, template, limits, bad_rows)?;
        builder.add(rows)?;
        builder.finish()
    }

    /// Returns an error where more rows are bad than may be skipped.
    fn check_skipped(&self, bad_rows: BadRows) -> Result<()> {
        let (BadRows::Skip(limit), n) = (bad_rows, self.count(OverflowAction::Skipped)) else { return Ok(()) };
        let first = self.notes.iter().find(|note| note.fate == OverflowAction::Skipped);
        let Some(first) = first.filter(|_| n > limit.most(self.n_rows())) else { return Ok(()) };
        let (place, n_rows) = (self.place(first.row), self.n_rows());
        let reason = format!("{n} of {n_rows} rows are bad, more than {limit}; the first is {place}: {}", first.reason);
        Err(Error::flag("max-bad-rows", reason))
    }

    /// Returns an error where every row was skipped as bad: a larger length limit would not help.
    fn check_readable(&self) -> Result<()> {
        match self.notes.first() {
            Some(first) if self.count(OverflowAction::Skipped) == self.n_rows() => {
                let reason = format!("every row is bad; the first: {}: {}", self.place(first.row), first.reason);
                Err(Error::flag("max-bad-rows", reason))
            }
            _ => Ok(()),
        }
    }

    /// Returns the tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        self.examples.iter().flat_map(|e| &e.sequences).map(|s| s.ids.len()).max().unwrap_or(1)
    }

    /// Returns the number of rows read.
    pub fn n_rows(&self) -> usize {
        self.places.len()
    }

    /// Returns the number of rows with this treatment.
    pub fn count(&self, fate: OverflowAction) -> usize {
        self.notes.iter().filter(|note| note.fate == fate).count()
    }

    /// Formats counts: "24 rows: 20 kept (3 of them truncated), 4 dropped", and the number of skipped rows, if any.
    pub fn summary(&self) -> String {
        let truncated = match self.count(OverflowAction::Truncated) {
            0 => String::new(),
            n => format!(" ({n} of them truncated)"),
        };
        let skipped = match self.count(OverflowAction::Skipped) {
            0 => String::new(),
            1 => ", 1 bad row skipped".into(),
            n => format!(", {n} bad rows skipped"),
        };
        format!(
            "{} rows: {} kept{truncated}, {} dropped{skipped}",
            self.n_rows(),
            self.examples.len(),
            self.count(OverflowAction::Dropped)
        )
    }

    /// Formats a row's location as `file:line`, with the row's number where it is an element of a JSON list.
    pub fn place(&self, row: usize) -> String {
        self.places.get(row).map_or_else(|| format!("row {row}"), |place| place.to_string())
    }

    /// Computes SHA-256, in hexadecimal, of the tokens and boundaries in order. It is a part of the key of cached reference scores.
    pub fn content_hash(&self) -> String {
        let (mut hash, mut numbers) = (Sha256::new(), Vec::new());
        let mut number = |n: usize| {
            numbers.extend((n as u64).to_le_bytes());
            // Numbers are hashed in large blocks, because single ones would take longer than the hash itself.
            if numbers.len() >= 1 << 16 {
                hash.update(&numbers);
                numbers.clear();
            }
        };
        number(self.examples.len());
        for example in &self.examples {
            number(example.sequences.len());
            // A value larger than any number of sequences keeps the encoding of data sets unique.
            example.desirable.iter().for_each(|&desirable| number(usize::MAX - usize::from(desirable)));
            for sequence in &example.sequences {
                number(sequence.response_start);
                for range in &sequence.between {
                    // Likewise, a value larger than any number of tokens.
                    [usize::MAX - 2, range.start, range.end].into_iter().for_each(&mut number);
                }
                number(sequence.ids.len());
                sequence.ids.iter().for_each(|&id| number(id as usize));
            }
        }
        hash.update(&numbers);
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Returns "the chosen side" or "the rejected side", or "the row" where there is only one side.
pub(super) fn side_name(n_sides: usize, side: usize) -> &'static str {
    if n_sides == 1 { "the row" } else { ["the chosen side", "the rejected side"][side] }
}
