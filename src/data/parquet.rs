//! Parquet, as the hub serves data sets and as pandas and polars write it: its rows as the objects that JSON lines would hold.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Map, Value};

use super::rows::Place;
use super::untrusted::without_panic;
use crate::error::{Error, Result, one_line};

/// As [`super::rows::for_each_object`] of JSON lines; a place's line is the row's number.
pub(super) fn for_each_object(
    path: &Path,
    file: File,
    mut take: impl FnMut(Place, Map<String, Value>) -> Result<(), String>,
) -> Result<()> {
    let shared: Arc<Path> = path.into();
    let reader = reason(|| SerializedFileReader::new(file)).map_err(|reason| Error::file(path, reason))?;
    let mut rows = reason(|| reader.get_row_iter(None)).map_err(|reason| Error::file(path, reason))?;
    for line in 1.. {
        let place = Place { path: shared.clone(), line };
        let row = reason(|| rows.next().transpose()).map_err(|reason| place.error(reason))?;
        match row.map(|row| row.to_json_value()) {
            Some(Value::Object(object)) => take(place.clone(), object).map_err(|reason| place.error(reason))?,
            Some(_) => return Err(place.error("the row has no columns")),
            None if line == 1 => return Err(Error::file(path, "the file holds no rows")),
            None => break,
        }
    }
    Ok(())
}

/// An error of the library, or a panic over a malformed file, as a reason.
fn reason<T>(call: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    let done = without_panic(call).and_then(|done| done.map_err(|e| e.to_string()));
    done.map_err(|reason| format!("malformed Parquet: {}", one_line(&reason)))
}
