//! Location of a row, for messages.

use std::fmt;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use crate::error::Error;

/// Location of a row in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLocation {
    /// Path of the file.
    pub path: Arc<Path>,
    /// Line in the file, from 1; in a Parquet file, the row's number.
    pub line: usize,
    /// Number in a JSON list, from 1, because a whole list may be on one line.
    pub element: Option<NonZeroU32>,
}

impl SourceLocation {
    /// Creates the location of a row that is identified by its line.
    pub fn new(path: impl Into<Arc<Path>>, line: usize) -> Self {
        Self { path: path.into(), line, element: None }
    }

    /// Creates an error for this row.
    pub fn error(&self, reason: impl ToString) -> Error {
        match self.element {
            Some(number) => Error::line(&self.path, self.line, format!("row {number}: {}", reason.to_string())),
            None => Error::line(&self.path, self.line, reason),
        }
    }
}

impl fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)?;
        self.element.map_or(Ok(()), |number| write!(f, " (row {number})"))
    }
}
