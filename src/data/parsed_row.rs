//! Row as file readers pass it on: a JSON object, or the reason why there is none.

use std::ops::ControlFlow;

use serde_json::{Map, Value};

use super::source_location::SourceLocation;
use crate::error::{Error, Result};

/// Largest size of a row, in bytes. No longer row is held in memory.
pub(super) const MAX_ROW_BYTES: u64 = 64 << 20;

/// Object of a row, or the reason why the row is not an object.
pub(super) type ParsedRow = std::result::Result<Map<String, Value>, String>;

/// Result of taking a row: whether to continue reading, or an error.
pub(super) type TakenField = Result<ControlFlow<()>>;

/// Returns the error of a row that is longer than [`MAX_ROW_BYTES`].
pub(super) fn too_long(place: &SourceLocation, what: &str) -> Error {
    place.error(format!("the {what} is longer than {} MiB", MAX_ROW_BYTES >> 20))
}
