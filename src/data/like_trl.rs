//! Comparison with TRL 1.16: rows tokenised as TRL does, and the tokens and scored tokens that differ.

use std::fmt;

use super::batch::Sequence;
use super::conversation::{PromptResponse, ResponseText};
use super::dataset::{Dataset, side_name};
use super::prompt_template::Template;
use super::rows::{Row, RowContent};
use super::tokens::Tokenizer;

/// Largest number of differences that are shown.
const SHOWN: usize = 3;

/// Counts of the sequences whose tokens equal TRL's.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct TrlComparison {
    /// Number of sequences that TRL makes from the rows: two per preference.
    pub n_sequences: usize,
    /// Number of sequences whose tokens equal TRL's.
    pub n_same: usize,
    /// Number of sequences whose tokens and scored tokens both equal TRL's.
    pub n_scored_same: usize,
    /// Number of sequences of rows that are dropped here.
    pub n_left_out: usize,
    /// Number of sequences of rows that TRL drops.
    pub n_left_out_by_trl: usize,
    /// First differences, one line each.
    pub differences: Vec<String>,
}

/// Tokenises a row's texts as TRL's `DPOTrainer`, `KTOTrainer` and `SFTTrainer` (`assistant_only_loss=True`) do with `max_length` and
/// `keep_start`. Returns nothing for a row of which no response token would be left.
///
/// # Errors
/// The reason: the chat template fails, or there is no chat template.
pub fn trl_sequences(content: &RowContent, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<Sequence>, String> {
    let texts = content.texts();
    let mut sequences = Vec::with_capacity(texts.len());
    for text in &texts {
        let mut sequence = tokenizer.encode(text, &Template::Trl)?;
        if !matches!(text.response, ResponseText::Turns(_)) {
            sequence.response_start = parted(text, &sequence, tokenizer)?;
        }
        sequences.push(sequence);
    }
    // TRL's response begins at the same index on both sides: the earlier one.
    let start = sequences.iter().map(|sequence| sequence.response_start).min().unwrap_or(0);
    for sequence in &mut sequences {
        sequence.response_start = start;
        sequence.truncate(max_length);
    }
    let has_response = start < max_length;
    Ok(if has_response { sequences } else { Vec::new() })
}

/// Counts the leading tokens that a text shares with its prompt tokenised alone. TRL's completion begins behind them.
fn parted(text: &PromptResponse, sequence: &Sequence, tokenizer: &Tokenizer) -> Result<usize, String> {
    let prompt = tokenizer.encode_prompt(&text.instruction, &Template::Trl)?;
    Ok(prompt.iter().zip(&sequence.ids).take_while(|(asked, whole)| asked == whole).count())
}

impl TrlComparison {
    /// Compares the examples of a data set with TRL's. The data set must have been built from these rows.
    pub fn new(rows: &[Row], data: &Dataset, tokenizer: &Tokenizer, max_length: usize) -> Self {
        let mut all = Self::default();
        let mut examples = data.examples.iter().peekable();
        for (i, row) in rows.iter().enumerate() {
            let here = examples.next_if(|example| example.row == i).map(|example| &example.sequences[..]);
            match trl_sequences(&row.content, tokenizer, max_length) {
                Ok(theirs) => all.add(&row.place.to_string(), here, &theirs, tokenizer),
                Err(reason) => all.tell(|| format!("{}: TRL would stop: {reason}", row.place)),
            }
        }
        all
    }

    fn tell(&mut self, line: impl FnOnce() -> String) {
        if self.differences.len() < SHOWN {
            self.differences.push(line());
        }
    }

    fn add(&mut self, place: &str, here: Option<&[Sequence]>, theirs: &[Sequence], tokenizer: &Tokenizer) {
        self.n_sequences += theirs.len();
        let here = match (here, theirs) {
            (None, _) => {
                self.n_left_out += theirs.len();
                if !theirs.is_empty() {
                    self.tell(|| format!("{place}: left out here"));
                }
                return;
            }
            (Some(here), []) => {
                self.n_left_out_by_trl += here.len();
                return self.tell(|| format!("{place}: TRL leaves it out: its prompt alone fills the limit"));
            }
            (Some(here), _) => here,
        };
        for (side, (ours, theirs)) in here.iter().zip(theirs).enumerate() {
            let name = side_name(here.len(), side);
            if let Some(at) = first_difference(&ours.ids, &theirs.ids) {
                let token = |ids: &[u32]| ids.get(at).map_or("the end".into(), |&id| tokenizer.show(id));
                let (n, m) = (ours.ids.len(), theirs.ids.len());
                self.tell(|| {
                    let (ours, theirs) = (token(&ours.ids), token(&theirs.ids));
                    format!("{place}: {name}: token {at} is {ours} here, {theirs} in TRL ({n} and {m} tokens)")
                });
                continue;
            }
            self.n_same += 1;
            let is_scored = |sequence: &Sequence, i: usize| sequence.is_response(i);
            match (0..ours.ids.len()).find(|&i| is_scored(ours, i) != is_scored(theirs, i)) {
                None => self.n_scored_same += 1,
                Some(at) => self.tell(|| {
                    let who = if is_scored(ours, at) { "here alone" } else { "in TRL alone" };
                    format!("{place}: {name}: token {at}, {}, is scored {who}", tokenizer.show(ours.ids[at]))
                }),
            }
        }
    }
}

fn first_difference(a: &[u32], b: &[u32]) -> Option<usize> {
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    (same < a.len().max(b.len())).then_some(same)
}

impl fmt::Display for TrlComparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n_sequences, n_same, n_scored_same, .. } = self;
        write!(
            f,
            "as TRL 1.16: {n_same} of {n_sequences} sequences have the same tokens, {n_scored_same} also score the same ones in the conditional objective"
        )?;
        for (n, who) in [(self.n_left_out, "here"), (self.n_left_out_by_trl, "by TRL")] {
            if n > 0 {
                write!(f, "; {n} are left out {who}")?;
            }
        }
        self.differences.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}
