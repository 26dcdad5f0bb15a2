//! Location of a row: file and line, for messages.

use std::fmt;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use crate::error::Error;

/// Location of a row in the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLocation {
    /// The file.
    pub path: Arc<Path>,
    /// Line in the file, from 1; the row's number in a Parquet file.
    pub line: usize,
    /// Number in a JSON list, from 1: many lists stand on one line.
    pub element: Option<NonZeroU32>,
}

impl SourceLocation {
    /// The place of a row that is told by its line.
    pub fn new(path: impl Into<Arc<Path>>, line: usize) -> Self {
        Self { path: path.into(), line, element: None }
    }

    /// The error of this row.
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
