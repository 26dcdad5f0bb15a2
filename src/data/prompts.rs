//! Prompts to answer: rows {instruction, gold_response}, or the instructions of any other form of row.

use std::path::Path;

use super::fields::RowFields;
use super::file_notes::FileNotes;
use super::forms;
use super::rows::{FieldMap, FileRows, Instruction, SourceLocation};
use super::source::for_each_row;
use crate::error::Result;

/// Instruction, with the response to compare with where the row has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptRow {
    /// File and line of the row.
    pub place: SourceLocation,
    /// I, the instruction.
    pub instruction: Instruction,
    /// Response to compare with: `gold_response`, else the row's (chosen) response.
    pub gold: Option<String>,
}

/// Reads the instructions of a file, in any form of row, or in rows with nothing else.
///
/// # Errors
/// Fails like [`super::rows::read_rows`].
pub fn read_prompts(path: impl AsRef<Path>, map: &FieldMap) -> Result<Vec<PromptRow>> {
    Ok(read_prompt_file(path, map)?.rows)
}

/// Reads the instructions like [`read_prompts`], with notes on the file.
///
/// # Errors
/// Fails like [`super::rows::read_rows`].
pub fn read_prompt_file(path: impl AsRef<Path>, map: &FieldMap) -> Result<FileRows<PromptRow>> {
    let (path, mut rows, mut notes) = (path.as_ref(), Vec::new(), FileNotes::default());
    let mut told = for_each_row(path, |place, object| {
        let fields = RowFields::new(&object, map);
        let (instruction, gold) = forms::prompt(&fields)?;
        notes.count(&fields, Some(&instruction));
        rows.push(PromptRow { place, instruction, gold });
        Ok(())
    })?;
    told.extend(notes.lines(path));
    Ok(FileRows { rows, notes: told })
}
