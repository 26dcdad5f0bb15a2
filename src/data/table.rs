//! Reading of CSV and TSV with a header. Each record becomes a row of texts under the header's names. An empty cell counts as absent.

use std::io::{BufRead, Read};
use std::path::Path;

use serde_json::{Map, Value};

use super::file_ending::is_named;
use super::json_kind::NOT_UTF8;
use super::parsed_row::{MAX_ROW_BYTES, ParsedRow, TakenField, too_long};
use super::source_location::SourceLocation;
use crate::error::{Error, Result};

/// Separator of a table's cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FieldSeparator {
    pub by: u8,
    /// Whether the separator was guessed from the contents instead of the file's name.
    is_guessed: bool,
}

impl FieldSeparator {
    /// Returns a note on a separator that was guessed.
    pub fn note(self, path: &Path) -> Option<String> {
        let by = match self.by {
            b'\t' => "tabs",
            b';' => "semicolons",
            _ => "commas",
        };
        self.is_guessed
            .then(|| format!("{}: is read as a table, its cells parted by {by} as in its first line", path.display()))
    }
}

/// Determines the separator of a table's cells from the file's name and first bytes; `None` for JSON, or where the text is not a table.
pub(super) fn separator(path: &Path, first: &[u8]) -> Option<FieldSeparator> {
    let first = &first[first.iter().take_while(|byte| is_blank(byte)).count()..];
    let line = first.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if matches!(line.trim_ascii_start(), [] | [b'{' | b'[', ..]) {
        return None;
    }
    let parts = |by: &u8| fields(line, *by).len() > 1;
    let found = b"\t,;".iter().copied().find(parts);
    let named = if is_named(path, &[".tsv"]) {
        Some(b'\t')
    } else {
        // Spreadsheets write semicolons where the decimal separator is a comma.
        is_named(path, &[".csv"]).then(|| if parts(&b',') { b',' } else { found.unwrap_or(b',') })
    };
    match named {
        Some(by) => Some(FieldSeparator { by, is_guessed: is_named(path, &[".csv"]) && by != b',' }),
        None if is_named(path, &[".json", ".jsonl", ".ndjson"]) => None,
        None => found.map(|by| FieldSeparator { by, is_guessed: true }),
    }
}

/// Calls `take` with every record behind the header. Returns whether there is any.
///
/// # Errors
/// [`Error::Line`] for a header without names or with a repeated name, or for a record that is too long or unterminated; errors of `take`.
pub(super) fn for_each_record(
    text: &mut impl BufRead,
    by: u8,
    start: &SourceLocation,
    take: &mut impl FnMut(SourceLocation, ParsedRow) -> TakenField,
) -> Result<bool> {
    let mut records = CsvRecords { by, place: start.clone(), record: Vec::new() };
    let Some((place, _)) = records.next(text)? else { return Ok(false) };
    let columns = header(&fields(&records.record, by)).map_err(|reason| place.error(reason))?;
    let mut found = false;
    while let Some((place, fault)) = records.next(text)? {
        found = true;
        let parsed = match fault {
            Some(reason) => Err(reason.into()),
            None => row(&columns, &fields(&records.record, by)),
        };
        if take(place, parsed)?.is_break() {
            break;
        }
    }
    Ok(found)
}

/// Returns the columns' names. As in pandas, a column without a name is named by its number.
fn header(cells: &[Vec<u8>]) -> std::result::Result<Vec<String>, String> {
    let mut columns: Vec<String> = Vec::new();
    for (i, cell) in cells.iter().enumerate() {
        let name =
            std::str::from_utf8(cell).map_err(|_| format!("column {} of the header is not UTF-8", i + 1))?.trim();
        let name = if name.is_empty() { format!("Unnamed: {i}") } else { name.to_string() };
        if columns.contains(&name) {
            return Err(format!("the header has the column `{}` twice", name.escape_debug()));
        }
        columns.push(name);
    }
    match cells.iter().all(|cell| cell.trim_ascii().is_empty()) {
        true => Err("the header names no column".into()),
        false => Ok(columns),
    }
}

/// Creates an object from a record's cells.
fn row(columns: &[String], cells: &[Vec<u8>]) -> ParsedRow {
    if cells.len() != columns.len() {
        let (n, many) = (cells.len(), if cells.len() == 1 { "cell" } else { "cells" });
        return Err(format!("the row has {n} {many}, the header {} columns", columns.len()));
    }
    let mut object = Map::new();
    for (column, cell) in columns.iter().zip(cells) {
        let value = match std::str::from_utf8(cell) {
            Ok("") => Value::Null,
            Ok(text) if holds_messages(text) => {
                return Err(format!(
                    "column `{}` holds a list of messages as text, which a table cannot: write the data as JSONL or Parquet",
                    column.escape_debug()
                ));
            }
            Ok(text) => text.into(),
            Err(_) => Value::Object(Map::from_iter([(NOT_UTF8.into(), Value::Null)])),
        };
        object.insert(column.clone(), value);
    }
    Ok(object)
}

/// Returns whether a text looks like a list of messages printed by Python or as JSON.
fn holds_messages(text: &str) -> bool {
    let inside = text.trim_start().strip_prefix('[').and_then(|text| text.trim_start().strip_prefix('{'));
    let key = inside.map(str::trim_start).and_then(|text| text.strip_prefix(['"', '\'']));
    let is_key = |key: &str| {
        ["role", "content", "from", "value"]
            .iter()
            .any(|name| key.starts_with(&format!("{name}'")) || key.starts_with(&format!("{name}\"")))
    };
    key.is_some_and(is_key) && ["role", "from"].iter().any(|name| text.contains(name))
}

/// Splits a record into its cells.
fn fields(record: &[u8], by: u8) -> Vec<Vec<u8>> {
    let mut builder = csv::ReaderBuilder::new();
    builder.has_headers(false).flexible(true).delimiter(by).buffer_capacity(record.len() + 1);
    let mut reader = builder.from_reader(record);
    let record = reader.byte_records().next().and_then(std::result::Result::ok).unwrap_or_default();
    record.iter().map(<[u8]>::to_vec).collect()
}

/// Returns whether a byte may be on a blank line. A tab may not, because it may separate empty cells.
fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\r' | b'\n')
}

/// State of the quotes while a record is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QuoteState {
    Start,
    Plain,
    Quotes,
    /// Behind a quote inside a quoted cell: the quote either ends the cell, or is the first half of an escaped quote.
    Closed,
}

/// Reader of a table's records, with the line where each begins.
struct CsvRecords {
    by: u8,
    place: SourceLocation,
    record: Vec<u8>,
}

impl CsvRecords {
    /// Reads the next record into `record`, without its line end. Returns its location, and an error in its quotes.
    fn next(&mut self, text: &mut impl BufRead) -> Result<Option<(SourceLocation, Option<&'static str>)>> {
        self.record.clear();
        let (mut within, mut fault, mut start) = (QuoteState::Start, None, self.place.clone());
        loop {
            let mut line = text.by_ref().take(MAX_ROW_BYTES + 1 - self.record.len() as u64);
            let from = self.record.len();
            let n = line.read_until(b'\n', &mut self.record).map_err(|e| Error::file(&start.path, e))?;
            if self.record.len() as u64 > MAX_ROW_BYTES {
                return Err(too_long(&start, "record"));
            }
            if n == 0 && within == QuoteState::Quotes {
                return Err(start.error("a cell's quotes are never closed"));
            }
            if n == 0 && from == 0 {
                return Ok(None);
            }
            self.place.line += usize::from(self.record.ends_with(b"\n"));
            if from == 0 && self.record.iter().all(is_blank) {
                self.record.clear();
                start = self.place.clone();
                continue;
            }
            for &byte in &self.record[from..] {
                within = match (within, byte) {
                    (QuoteState::Start, b'"') => QuoteState::Quotes,
                    (QuoteState::Quotes, b'"') => QuoteState::Closed,
                    (QuoteState::Closed, b'"') | (QuoteState::Quotes, _) => QuoteState::Quotes,
                    (_, byte) if byte == self.by => QuoteState::Start,
                    (QuoteState::Closed, b'\r' | b'\n') => QuoteState::Closed,
                    (QuoteState::Closed, _) => {
                        fault =
                            Some("text stands behind the quotes that end a cell: quotes in a cell are written twice");
                        QuoteState::Plain
                    }
                    (QuoteState::Start | QuoteState::Plain, _) => QuoteState::Plain,
                };
            }
            if within != QuoteState::Quotes || n == 0 {
                let end = self.record.strip_suffix(b"\n").map_or(self.record.len(), <[u8]>::len);
                self.record.truncate(end);
                let end = self.record.strip_suffix(b"\r").map_or(self.record.len(), <[u8]>::len);
                self.record.truncate(end);
                return Ok(Some((start, fault)));
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::ops::ControlFlow;

    use super::*;

    fn read(text: &str, by: u8) -> Vec<(usize, Result<Value, String>)> {
        let mut rows = Vec::new();
        let start = SourceLocation::new(Path::new("rows.csv"), 1);
        let mut take = |place: SourceLocation, parsed: ParsedRow| {
            rows.push((place.line, parsed.map(Value::Object)));
            Ok(ControlFlow::Continue(()))
        };
        for_each_record(&mut text.as_bytes(), by, &start, &mut take).unwrap();
        rows
    }

    #[test]
    fn records_begin_where_they_stand() {
        let text = "a,b\r\n\r\n\"one\r\ntwo\",\"say \"\"hi\"\", x\"\r\n\n3,\n";
        let rows = read(text, b',');
        assert_eq!(
            rows,
            [
                (3, Ok(serde_json::json!({"a": "one\r\ntwo", "b": "say \"hi\", x"}))),
                (6, Ok(serde_json::json!({"a": "3", "b": null}))),
            ]
        );
        // Quotes inside a cell are text. A line with only a tab is not blank.
        let rows = read("a\tb\n5\" wide\t6\n\t7\n", b'\t');
        assert_eq!(rows[0].1, Ok(serde_json::json!({"a": "5\" wide", "b": "6"})));
        assert_eq!(rows[1].1, Ok(serde_json::json!({"a": null, "b": "7"})));
    }

    #[test]
    fn faults_are_of_their_row() {
        let rows = read("a,b\n1\n\"x\" y,2\n1,2,3\n4,5", b',');
        let reasons: Vec<_> =
            rows.iter().map(|(line, row)| (*line, row.as_ref().err().map_or("", String::as_str))).collect();
        assert_eq!(
            reasons,
            [
                (2, "the row has 1 cell, the header 2 columns"),
                (3, "text stands behind the quotes that end a cell: quotes in a cell are written twice"),
                (4, "the row has 3 cells, the header 2 columns"),
                (5, ""),
            ]
        );
        for text in [
            "[{'role': 'user', 'content': 'x'}]",
            "[{\"content\": \"x\", \"role\": \"user\"}]",
            "[ { 'from': 'gpt' } ]",
        ] {
            assert!(holds_messages(text), "{text}");
        }
        for text in ["[{'roles': 3}]", "[1]", "{'role': 'user'}", "role", "[{'value': 3}]"] {
            assert!(!holds_messages(text), "{text}");
        }
        let open = for_each_record(
            &mut "a\n1\n\"2\n3".as_bytes(),
            b',',
            &SourceLocation::new(Path::new("x.csv"), 1),
            &mut |_, _| Ok(ControlFlow::Continue(())),
        );
        assert_eq!(open.unwrap_err().to_string(), "x.csv:3: a cell's quotes are never closed");
    }

    #[test]
    fn separators_are_named_or_told() {
        let found = |name: &str, line: &str| separator(Path::new(name), line.as_bytes()).map(|s| (s.by, s.is_guessed));
        assert_eq!(found("x.csv", "a,b;c\n1,2"), Some((b',', false)));
        assert_eq!(found("x.csv.gz", "text\n1,2"), Some((b',', false)));
        assert_eq!(found("x.csv", "a;b\n"), Some((b';', true)));
        assert_eq!(found("x.csv", "\"a,b\";c\n"), Some((b';', true)));
        assert_eq!(found("x.tsv", "a,b\n"), Some((b'\t', false)));
        assert_eq!(found("x", "a\tb, c\n"), Some((b'\t', true)));
        assert_eq!(found("x", "\n\ta\tb\n"), Some((b'\t', true)), "an empty cell stands first");
        assert_eq!(found("x.txt", "prompt\n1,2"), None);
        for name in ["x.csv", "x", "x.json"] {
            assert_eq!(found(name, " {\"a\": 1, \"b\": 2}\n"), None, "{name}");
        }
        assert_eq!(found("x.jsonl", "a,b\n"), None);
    }
}
