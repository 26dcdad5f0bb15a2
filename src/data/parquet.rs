//! Reading of Parquet files, as written by the hub, pandas and polars. Rows become the same objects that JSON lines would hold.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::json_kind::NOT_UTF8;
use super::parsed_row::{ParsedRow, TakenField};
use super::source_location::SourceLocation;
use super::untrusted::without_panic;
use crate::error::{Error, Result, one_line};

/// Calls `take` with every row. In a row's location, the line is the row's number, from 1.
///
/// # Errors
/// [`Error::File`] for a file that is malformed or has no rows; [`Error::Line`] for a row that cannot be decoded; errors of `take`.
pub(super) fn for_each_object(
    path: &Path,
    file: File,
    mut take: impl FnMut(SourceLocation, ParsedRow) -> TakenField,
) -> Result<()> {
    let shared: Arc<Path> = path.into();
    let reader = reason(|| SerializedFileReader::new(file)).map_err(|reason| Error::file(path, reason))?;
    let mut rows = reason(|| reader.get_row_iter(None)).map_err(|reason| Error::file(path, reason))?;
    for line in 1.. {
        let place = SourceLocation::new(shared.clone(), line);
        match reason(|| rows.next().transpose()).map_err(|reason| place.error(reason))? {
            Some(row) if take(place.clone(), Ok(object(&row)))?.is_break() => break,
            Some(_) => {}
            None if line == 1 => return Err(Error::file(path, "the file holds no rows")),
            None => break,
        }
    }
    Ok(())
}

fn object(row: &Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// Converts a field to JSON. Bytes in UTF-8 become text, because some writers do not mark their text columns.
fn value(field: &Field) -> Value {
    match field {
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => Value::Object(Map::from_iter([(NOT_UTF8.into(), Value::Null)])),
        },
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let key = |key: &Field| match value(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            Value::Object(map.entries().iter().map(|(name, field)| (key(name), value(field))).collect())
        }
        other => other.to_json_value(),
    }
}

/// Runs a call into the library. Returns its error, or its panic on a malformed file, as a reason.
fn reason<T>(call: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    let done = without_panic(call).and_then(|done| done.map_err(|e| e.to_string()));
    done.map_err(|reason| format!("malformed Parquet: {}", one_line(&reason)))
}
