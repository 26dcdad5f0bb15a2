//! Building of a data set from rows, in blocks: rows are tokenised on all cores, and everything else is done in their order.

use std::collections::BTreeSet;

use super::fit::{FittedRow, fit};
use super::{Dataset, LengthLimits, Overflow, OverflowAction, OverflowNote, side_name};
use crate::data::bad_rows::BadRows;
use crate::data::batch::{Example, Sequence};
use crate::data::conversation::PromptResponse;
use crate::data::prompt_template::Template;
use crate::data::remarks::DataRemark;
use crate::data::rows::{Row, RowContent};
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result};

/// Number of rows from which on a block is tokenised by several threads.
#[cfg(not(target_arch = "wasm32"))]
const FEW: usize = 64;
/// Stack size of tokenising threads, equal to that of a program's main thread.
#[cfg(not(target_arch = "wasm32"))]
const STACK_BYTES: usize = 8 << 20;

/// Builder of a data set from rows as they are read.
#[derive(Debug)]
pub struct DatasetBuilder<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a Template,
    limits: LengthLimits,
    bad_rows: BadRows,
    data: Dataset,
    is_labelled: Option<bool>,
    #[cfg(not(target_arch = "wasm32"))]
    threads: Option<rayon::ThreadPool>,
}

/// Result of tokenising a row: its tokens or the reason why there are none, and other properties of its texts that the limits need.
struct EncodedRow {
    sequences: std::result::Result<Vec<Sequence>, String>,
    remarks: BTreeSet<DataRemark>,
    /// Number of characters of each side, where [`Overflow::Paper`] counts them.
    characters: std::result::Result<Vec<usize>, String>,
    has_same_instruction: bool,
}

impl<'a> DatasetBuilder<'a> {
    /// Creates a builder without rows.
    ///
    /// # Errors
    /// [`Error::Flag`] for a template that the tokenizer lacks.
    pub fn new(
        tokenizer: &'a Tokenizer,
        template: &'a Template,
        limits: LengthLimits,
        bad_rows: BadRows,
    ) -> Result<Self> {
        tokenizer.check_template(template)?;
        Ok(Self {
            tokenizer,
            template,
            limits,
            bad_rows,
            data: Dataset::default(),
            is_labelled: None,
            #[cfg(not(target_arch = "wasm32"))]
            threads: None,
        })
    }

    /// Adds rows behind the existing ones.
    ///
    /// # Errors
    /// Fails like [`Dataset::build`], with the error of the first row that has one.
    pub fn add(&mut self, rows: &[Row]) -> Result<()> {
        let encoded = self.encode(rows);
        rows.iter().zip(encoded).try_for_each(|(row, encoded)| self.add_row(row, encoded))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn encode(&mut self, rows: &[Row]) -> Vec<EncodedRow> {
        use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
        if rows.len() >= FEW && self.threads.is_none() {
            // If the threads cannot be created, this thread tokenises.
            self.threads = rayon::ThreadPoolBuilder::new().stack_size(STACK_BYTES).build().ok();
        }
        let (tokenizer, template, limits) = (self.tokenizer, self.template, self.limits);
        let encode = |row: &Row| EncodedRow::new(row, tokenizer, template, limits);
        match &self.threads {
            Some(threads) if rows.len() >= FEW => threads.install(|| rows.par_iter().map(encode).collect()),
            _ => rows.iter().map(encode).collect(),
        }
    }

    #[cfg(target_arch = "wasm32")]
    fn encode(&mut self, rows: &[Row]) -> Vec<EncodedRow> {
        rows.iter().map(|row| EncodedRow::new(row, self.tokenizer, self.template, self.limits)).collect()
    }

    fn add_row(&mut self, Row { place, content }: &Row, encoded: EncodedRow) -> Result<()> {
        let (data, limits) = (&mut self.data, self.limits);
        let row = data.places.len();
        data.places.push(place);
        if !matches!(content, RowContent::Unreadable(_)) {
            let label = content.label().is_some();
            if *self.is_labelled.get_or_insert(label) != label {
                return Err(
                    place.error("texts with a label stand beside rows of other forms: learn from one or the other")
                );
            }
        }
        for text in content.texts() {
            self.tokenizer.check_conversation(&text.instruction, self.template, &place.to_string())?;
        }
        let EncodedRow { sequences, mut remarks, characters, has_same_instruction } = encoded;
        let mut sequences = match (sequences, self.bad_rows) {
            (Ok(sequences), _) => sequences,
            (Err(reason), BadRows::Error) => return Err(place.error(reason)),
            (Err(reason), BadRows::Skip(_)) => {
                data.notes.push(OverflowNote { row, fate: OverflowAction::Skipped, reason });
                return Ok(());
            }
        };
        data.lengths.extend(sequences.iter().map(|sequence| sequence.ids.len() as u32));
        if let [chosen, rejected] = sequences.as_slice()
            && chosen.ids == rejected.ids
        {
            remarks.insert(DataRemark::SameSides);
        }
        data.remarks.add_row(remarks);
        let characters = characters.map_err(|reason| place.error(reason))?;
        if let Some(side) = characters.iter().position(|&n| n > limits.max_length) {
            let (name, n) = (side_name(2, side), characters[side]);
            let reason = format!("{name} has {n} characters, --max-length is {}", limits.max_length);
            data.notes.push(OverflowNote { row, fate: OverflowAction::Dropped, reason });
            return Ok(());
        }
        match fit(&mut sequences, has_same_instruction, &|ids| self.tokenizer.n_before(ids), limits) {
            FittedRow::Whole => {}
            FittedRow::Cut(reason) => data.notes.push(OverflowNote { row, fate: OverflowAction::Truncated, reason }),
            FittedRow::TooLong(reason) if limits.overflow == Overflow::Error => return Err(place.error(reason)),
            FittedRow::TooLong(reason) => {
                data.notes.push(OverflowNote { row, fate: OverflowAction::Dropped, reason });
                return Ok(());
            }
        }
        data.examples.push(Example { row, sequences, desirable: content.label() });
        Ok(())
    }

    /// Returns the number of rows added.
    pub fn n_rows(&self) -> usize {
        self.data.n_rows()
    }

    /// Returns the data set.
    ///
    /// # Errors
    /// [`Error::Flag`] where no rows are left, or where more rows are bad than may be skipped.
    pub fn finish(self) -> Result<Dataset> {
        let Self { mut data, limits, bad_rows, .. } = self;
        data.check_skipped(bad_rows)?;
        if data.examples.is_empty() && data.n_rows() > 0 {
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
        data.examples.shrink_to_fit();
        data.lengths.shrink_to_fit();
        data.places.rows.shrink_to_fit();
        Ok(data)
    }
}

impl EncodedRow {
    fn new(row: &Row, tokenizer: &Tokenizer, template: &Template, limits: LengthLimits) -> Self {
        let texts = row.content.texts();
        let mut remarks = BTreeSet::new();
        let sequences = match &row.content {
            RowContent::Unreadable(reason) => Err(reason.clone()),
            _ => sequences(&texts, tokenizer, template, &mut remarks),
        };
        if let Some(text) = texts.first().filter(|_| template.is_by_rows()) {
            remarks.extend(DataRemark::of_template(template.for_instruction(&text.instruction)));
        }
        let is_counted = limits.overflow == Overflow::Paper && texts.len() == 2 && sequences.is_ok();
        let counted = texts.iter().filter(|_| is_counted);
        Self {
            sequences,
            remarks,
            characters: counted.map(|text| tokenizer.characters(text, template)).collect(),
            has_same_instruction: texts.windows(2).all(|pair| pair[0].instruction == pair[1].instruction),
        }
    }
}

/// Tokenises a row's texts. The error is the reason why a text cannot be represented, or that it has no tokens to score.
fn sequences(
    texts: &[&PromptResponse],
    tokenizer: &Tokenizer,
    template: &Template,
    remarks: &mut BTreeSet<DataRemark>,
) -> std::result::Result<Vec<Sequence>, String> {
    let mut before = None;
    let sequence = |(side, text): (usize, &&PromptResponse)| {
        let sequence = tokenizer.encode_behind(text, template, remarks, &mut before)?;
        match sequence.n_response() {
            0 => Err(format!("{} has no token to score", side_name(texts.len(), side))),
            _ => Ok(sequence),
        }
    };
    texts.iter().enumerate().map(sequence).collect()
}
