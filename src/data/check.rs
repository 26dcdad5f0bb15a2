//! Report of `jointwise check`: rows as tokens with the scored ones marked, lengths, and the effect of limits and prefix sharing. Remarks
//! on the tokenizer and on many rows are printed by the command, as in every other command; the JSON contains them, too.

use std::fmt;

use super::batch::Example;
use super::dataset::{Dataset, OverflowAction};
use super::like_trl::TrlComparison;
use super::tokens::Tokenizer;

/// Report that `check` prints; serialised for `--json`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct CheckReport {
    /// Number of rows read.
    pub n_rows: usize,
    /// Number of rows kept, truncated ones included.
    pub n_kept: usize,
    /// Number of rows dropped.
    pub n_dropped: usize,
    /// Number of rows truncated.
    pub n_truncated: usize,
    /// Number of bad rows skipped.
    pub n_skipped: usize,
    /// Notes, one for each row dropped or truncated.
    pub notes: Vec<RowNote>,
    /// Remarks on the tokenizer.
    pub tokenizer_notes: Vec<String>,
    /// Remarks on many rows, one line per kind.
    pub remarks: Vec<String>,
    /// Tokens per sequence, before the limit is applied.
    pub lengths: LengthSummary,
    /// Number of tokens of the rows kept, each sequence counted separately.
    pub n_tokens: usize,
    /// Number of tokens of the rows kept, shared instructions counted once.
    pub n_tokens_shared: usize,
    /// Number of tokens that the joint objective scores.
    pub n_scored_joint: usize,
    /// Number of tokens that the conditional objective scores.
    pub n_scored_conditional: usize,
    /// The first rows, token by token.
    pub rows: Vec<ShownRow>,
    /// Comparison of the tokens with TRL's, where it was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub like_trl: Option<TrlComparison>,
}

/// Row that was dropped or truncated.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RowNote {
    /// Row number, from 0.
    pub row: usize,
    /// `file:line`.
    pub place: String,
    /// Treatment of the row.
    pub fate: OverflowAction,
    /// Reason for the treatment.
    pub reason: String,
}

/// Distribution of the lengths of sequences, in tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct LengthSummary {
    /// Smallest length.
    pub min: usize,
    /// Median: half of the sequences are at most this long.
    pub median: usize,
    /// 95th percentile: 95 % of the sequences are at most this long.
    pub p95: usize,
    /// Largest length.
    pub max: usize,
}

/// Row, token by token.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ShownRow {
    /// Row number, from 0.
    pub row: usize,
    /// `file:line`.
    pub place: String,
    /// Number of leading tokens that both sides share, which are computed once.
    pub n_shared: usize,
    /// Sides of the row: chosen and rejected, or one text.
    pub sides: Vec<ShownSide>,
}

/// Side of a row.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ShownSide {
    /// `chosen`, `rejected` or `text`.
    pub name: &'static str,
    /// Tokens of the side.
    pub tokens: Vec<ShownToken>,
}

/// Token, and whether each objective scores it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ShownToken {
    /// Token id.
    pub id: u32,
    /// Text of the token, escaped.
    pub text: String,
    /// Whether JPO scores the token.
    pub joint: bool,
    /// Whether DPO and SFT score the token.
    pub conditional: bool,
}

/// Creates the report on a data set, with `n_shown` rows token by token.
pub fn check(data: &Dataset, tokenizer: &Tokenizer, n_shown: usize) -> CheckReport {
    let sum = |f: &dyn Fn(&Example) -> usize| data.examples.iter().map(f).sum();
    let note = |note: &super::dataset::OverflowNote| RowNote {
        row: note.row,
        place: data.place(note.row),
        fate: note.fate,
        reason: note.reason.clone(),
    };
    CheckReport {
        n_rows: data.n_rows(),
        n_kept: data.examples.len(),
        n_dropped: data.count(OverflowAction::Dropped),
        n_truncated: data.count(OverflowAction::Truncated),
        n_skipped: data.count(OverflowAction::Skipped),
        notes: data.notes.iter().map(note).collect(),
        tokenizer_notes: tokenizer.notes().to_vec(),
        remarks: data.remarks.lines(),
        lengths: lengths(&data.lengths),
        n_tokens: sum(&|e| e.n_tokens(false)),
        n_tokens_shared: sum(&|e| e.n_tokens(true)),
        n_scored_joint: sum(&|e| e.sequences.iter().map(|s| s.ids.len() - 1).sum()),
        n_scored_conditional: sum(&|e| e.sequences.iter().map(super::batch::Sequence::n_response).sum()),
        rows: data.examples.iter().take(n_shown).map(|e| shown(e, data, tokenizer)).collect(),
        like_trl: None,
    }
}

fn shown(example: &Example, data: &Dataset, tokenizer: &Tokenizer) -> ShownRow {
    let names: &[&str] = if example.sequences.len() == 1 { &["text"] } else { &["chosen", "rejected"] };
    let side = |(sequence, name): (&super::batch::Sequence, &&'static str)| {
        let token = |(i, &id): (usize, &u32)| ShownToken {
            id,
            text: tokenizer.show(id),
            joint: i > 0,
            conditional: sequence.is_response(i),
        };
        ShownSide { name, tokens: sequence.ids.iter().enumerate().map(token).collect() }
    };
    ShownRow {
        row: example.row,
        place: data.place(example.row),
        n_shared: example.shared_prefix(),
        sides: example.sequences.iter().zip(names).map(side).collect(),
    }
}

fn lengths(all: &[u32]) -> LengthSummary {
    let mut sorted = all.to_vec();
    sorted.sort_unstable();
    // Percentile by the nearest rank: the smallest length that at least this share of the sequences do not exceed.
    let quantile = |percent: usize| {
        sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).map_or(0, |&length| length as usize)
    };
    LengthSummary { min: quantile(0), median: quantile(50), p95: quantile(95), max: quantile(100) }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.rows.is_empty() {
            writeln!(
                f,
                "tokens: plain = context, (joint) = scored by jpo only, [both] = scored by jpo, dpo and sft\n"
            )?;
        }
        for row in &self.rows {
            let shared = if row.n_shared > 1 { format!(", {} tokens shared", row.n_shared) } else { String::new() };
            writeln!(f, "row {} ({}{shared})", row.row, row.place)?;
            for side in &row.sides {
                let joint = side.tokens.iter().filter(|t| t.joint).count();
                let conditional = side.tokens.iter().filter(|t| t.conditional).count();
                write!(
                    f,
                    "  {}: {} tokens, {joint} scored jointly, {conditional} conditionally\n    ",
                    side.name,
                    side.tokens.len()
                )?;
                for token in &side.tokens {
                    match (token.joint, token.conditional) {
                        (_, true) => write!(f, "[{}]", token.text)?,
                        (true, false) => write!(f, "({})", token.text)?,
                        (false, false) => write!(f, "{}", token.text)?,
                    }
                }
                writeln!(f)?;
            }
            writeln!(f)?;
        }
        for note in &self.notes {
            let fate = match note.fate {
                OverflowAction::Dropped => "dropped",
                OverflowAction::Truncated => "truncated",
                OverflowAction::Skipped => "skipped",
            };
            writeln!(f, "{fate}: {} (row {}): {}", note.place, note.row, note.reason)?;
        }
        write!(
            f,
            "rows: {} read, {} kept, {} truncated, {} dropped",
            self.n_rows, self.n_kept, self.n_truncated, self.n_dropped
        )?;
        match self.n_skipped {
            0 => writeln!(f)?,
            n => writeln!(f, ", {n} skipped")?,
        }
        let l = self.lengths;
        writeln!(f, "tokens a sequence: min {}, median {}, p95 {}, max {}", l.min, l.median, l.p95, l.max)?;
        writeln!(f, "scored tokens: {} jointly, {} conditionally", self.n_scored_joint, self.n_scored_conditional)?;
        let saved = self.n_tokens - self.n_tokens_shared;
        let percent = 100.0 * saved as f64 / self.n_tokens.max(1) as f64;
        write!(
            f,
            "tokens: {}, with shared instructions stored once {} ({percent:.1} % saved)",
            self.n_tokens, self.n_tokens_shared
        )?;
        self.like_trl.as_ref().map_or(Ok(()), |trl| write!(f, "\n{trl}"))
    }
}
