//! Reading of rows from files. The paper's form, TRL's, LLaMA-Factory's and others are recognised row by row, by their fields.

use std::io::BufRead;
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Map, Value};

use super::bad_rows::BadRows;
pub use super::conversation::{Conversation, Instruction, Message, PromptResponse, ResponseText, TemplateInputs};
pub use super::field_map::FieldMap;
use super::fields::RowFields;
use super::fields::synonyms::hint;
use super::file_notes::FileNotes;
pub use super::form_names::FORMS;
use super::forms::{self, label};
use super::objects::for_each_object;
use super::parsed_row::ParsedRow;
pub use super::row::{DatasetType, Row, RowContent};
use super::source::{SourceFiles, for_each_in, for_each_row};
pub use super::source_location::SourceLocation;
use crate::error::Result;

/// Rows of a file, with notes for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRows<T> {
    /// Rows in the file's order.
    pub rows: Vec<T>,
    /// Notes, one line each: columns that are not read, texts that get no template.
    pub notes: Vec<String>,
}

/// Reads the rows of a file, a folder, a pattern (`data/*.parquet`), standard input (`-`) or a data set of the hub. Files may hold JSON
/// lines, a JSON list, an object with one list, CSV or TSV with a header, any of these compressed with gzip or Zstandard, or Parquet. A
/// byte order mark, CRLF and blank lines are accepted.
///
/// # Errors
/// [`crate::error::Error::Line`] for a malformed line, a missing field, a wrong type, an empty response, or a row that does not fit the
/// purpose; [`crate::error::Error::File`] where the file cannot be read or has no rows.
pub fn read_rows(path: impl AsRef<Path>, map: &FieldMap, purpose: DatasetType) -> Result<Vec<Row>> {
    Ok(read_row_file(path, map, purpose, BadRows::Error)?.rows)
}

/// Reads the rows like [`read_rows`], with notes on the file. Where bad rows are skipped, each stays in its place as
/// [`RowContent::Unreadable`]. The limit on bad rows is not checked here, because the other files of a data set count, too.
///
/// # Errors
/// Fails like [`read_rows`].
pub fn read_row_file(
    path: impl AsRef<Path>,
    map: &FieldMap,
    purpose: DatasetType,
    bad_rows: BadRows,
) -> Result<FileRows<Row>> {
    let mut rows = Vec::new();
    let (path, files) = (path.as_ref(), SourceFiles::find(path.as_ref())?);
    let notes = for_each_row_of(path, files, map, purpose, bad_rows, |row| {
        rows.push(row);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(FileRows { rows, notes })
}

/// Calls `take` with every row of the files of a path as it is read, until `take` breaks off. Only one row is in memory at a time. Returns
/// notes on the files.
///
/// # Errors
/// Fails like [`read_rows`]; also with errors of `take`.
pub fn for_each_row_of(
    path: &Path,
    files: SourceFiles,
    map: &FieldMap,
    purpose: DatasetType,
    bad_rows: BadRows,
    mut take: impl FnMut(Row) -> Result<ControlFlow<()>>,
) -> Result<Vec<String>> {
    let mut reader = RowReader::new(map, purpose, bad_rows);
    let mut notes = for_each_in(files, |place, parsed| take(reader.read(place, parsed)?))?;
    notes.extend(reader.notes.lines(path));
    Ok(notes)
}

/// Reads the rows of a text, which is JSON or a table. `path` is for messages.
///
/// # Errors
/// Fails like [`read_rows`].
pub fn parse_rows(path: &Path, text: impl BufRead, map: &FieldMap, purpose: DatasetType) -> Result<Vec<Row>> {
    let (mut rows, mut reader) = (Vec::new(), RowReader::new(map, purpose, BadRows::Error));
    for_each_object(path, text, |place, parsed| {
        rows.push(reader.read(place, parsed)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(rows)
}

/// Settings for reading rows, and notes collected while reading.
struct RowReader<'a> {
    map: &'a FieldMap,
    purpose: DatasetType,
    bad_rows: BadRows,
    notes: FileNotes,
}

impl<'a> RowReader<'a> {
    fn new(map: &'a FieldMap, purpose: DatasetType, bad_rows: BadRows) -> Self {
        Self { map, purpose, bad_rows, notes: FileNotes::default() }
    }

    fn read(&mut self, place: SourceLocation, parsed: ParsedRow) -> Result<Row> {
        let read = parsed.and_then(|object| {
            let fields = RowFields::new(&object, self.map);
            let content = content_for(&fields, self.purpose)?;
            if self.purpose == DatasetType::Sft {
                self.notes.count_label(&fields);
            }
            self.notes.count(&fields, content.texts().first().map(|text| &text.instruction));
            Ok(content)
        });
        let content = match (read, self.bad_rows) {
            (Ok(content), _) => content,
            (Err(reason), BadRows::Skip(_)) => RowContent::Unreadable(reason),
            (Err(reason), BadRows::Error) => return Err(place.error(reason)),
        };
        Ok(Row { place, content })
    }
}

/// Returns the contents of a row, converted for the purpose.
fn content_for(fields: &RowFields, purpose: DatasetType) -> std::result::Result<RowContent, String> {
    let name = fields.map.name("label");
    let text = match (forms::content(fields)?, purpose) {
        (RowContent::Preference { chosen, .. }, DatasetType::Sft) => return Ok(RowContent::Single(chosen)),
        (RowContent::Single(text), _) => text,
        (content, _) => return Ok(content),
    };
    let is_whole = matches!(text.instruction, Instruction::Verbatim(_));
    match (label(fields)?, purpose) {
        (Some(false), DatasetType::Sft) => {
            Err(format!("the label says that the text is not one to imitate (`{name}`: false)"))
        }
        (_, DatasetType::Sft) | (None, DatasetType::Any) => Ok(RowContent::Single(text)),
        (Some(_), DatasetType::Judgement | DatasetType::Any) if is_whole => Err(format!(
            "a whole text (`{}`) has no prompt, so it cannot have a label (`{name}`; --map label= leaves it out)",
            fields.map.name("text")
        )),
        (Some(label), DatasetType::Judgement | DatasetType::Any) => {
            let mut text = text;
            // The label applies to the last answer.
            text.turns_to_last();
            Ok(RowContent::Labelled(text, label))
        }
        (None, DatasetType::Judgement) => {
            Err(format!("field `{name}`: expected true or false, found nothing{}", hint(fields, "label")))
        }
        (Some(_), DatasetType::Preference) => {
            Err("the row holds one text with a label, which --loss kto learns from, not a preference".into())
        }
        (None, DatasetType::Preference) => Err(format!(
            "the row holds one text, not a preference ({}); a preference is one of: {}",
            super::fields::names(fields.object),
            &FORMS[..FORMS.find(", {instruction").unwrap_or(FORMS.len())]
        )),
    }
}

/// Reads every row of a file as an object, unchanged.
///
/// # Errors
/// Fails like [`read_rows`].
pub fn read_objects(path: &Path) -> Result<FileRows<Map<String, Value>>> {
    let mut rows = Vec::new();
    let notes = for_each_row(path, |_, object| {
        rows.push(object);
        Ok(())
    })?;
    Ok(FileRows { rows, notes })
}

/// Reads every row of a text as an object, unchanged. `path` is for messages.
///
/// # Errors
/// Fails like [`read_rows`].
pub fn parse_objects(path: &Path, text: impl BufRead) -> Result<FileRows<Map<String, Value>>> {
    let mut rows = Vec::new();
    let notes = for_each_object(path, text, |place, parsed| {
        rows.push(parsed.map_err(|reason| place.error(reason))?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(FileRows { rows, notes })
}
