//! A row as the readers of files hand it on: an object of JSON, or the reason why there is none.

use std::ops::ControlFlow;

use serde_json::{Map, Value};

use super::source_location::SourceLocation;
use crate::error::{Error, Result};

/// Bytes of a row: none is held that is longer.
pub(super) const MAX_ROW_BYTES: u64 = 64 << 20;

/// A row's object, or the reason why it is none.
pub(super) type ParsedRow = std::result::Result<Map<String, Value>, String>;

/// Tells whether more rows are wanted.
pub(super) type TakenField = Result<ControlFlow<()>>;

/// Returns the error of a row that is longer than [`MAX_ROW_BYTES`].
pub(super) fn too_long(place: &SourceLocation, what: &str) -> Error {
    place.error(format!("the {what} is longer than {} MiB", MAX_ROW_BYTES >> 20))
}
