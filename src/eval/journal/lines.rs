//! Lines of JSON that a crash or a damaged disk may have touched: each has a checksum, and the last one may be cut short.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::train::tensorboard::crc32c;

/// The last key of a line that has a checksum: CRC-32C, in hexadecimal, of the line without it.
const CHECKSUM: &str = "crc32c";

fn checksum_entry(object: &str) -> String {
    format!(",\"{CHECKSUM}\":\"{:08x}\"}}", crc32c(object.as_bytes()))
}

/// Writes a JSON object that is not empty as a line with a checksum.
pub fn sealed(object: &Value) -> String {
    let text = object.to_string();
    format!("{}{}\n", text.strip_suffix('}').unwrap_or(&text), checksum_entry(&text))
}

/// Takes the checksum out of a line's object. True where it fits the line, or the line has none.
fn is_as_written(line: &[u8], object: &mut Map<String, Value>) -> bool {
    if object.shift_remove(CHECKSUM).is_none() {
        return true;
    }
    let Ok(text) = std::str::from_utf8(line.trim_ascii_end()) else { return false };
    let n_entry = checksum_entry("{}").len();
    let Some((head, entry)) = text.len().checked_sub(n_entry).and_then(|at| text.split_at_checked(at)) else {
        return false;
    };
    checksum_entry(&format!("{head}}}")) == entry
}

/// Whole lines of a JSONL text, with their numbers from 1, and what the last line is where a crash cut it short: it has no newline, and is no
/// object. Blank lines are skipped.
#[derive(Debug, Default)]
pub struct RecoveredLines {
    /// Line numbers and objects.
    pub lines: Vec<(usize, Map<String, Value>)>,
    /// Bytes that they take.
    pub whole_bytes: usize,
    /// The number of the half-written last line, and its bytes.
    pub cut: Option<(usize, usize)>,
}

impl RecoveredLines {
    /// Reads a file's bytes; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Line`] for a line that is no object, unless it is the last and unfinished; for one whose checksum does not fit.
    pub fn read(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut found = Self::default();
        for (i, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
            let finished = line.ends_with(b"\n");
            if finished && line.trim_ascii().is_empty() {
                found.whole_bytes += line.len();
                continue;
            }
            match serde_json::from_slice::<Map<String, Value>>(line) {
                // An object that lacks no more than its newline is whole for a reader; the writer gives it one.
                Ok(mut object) => {
                    if !is_as_written(line, &mut object) {
                        let reason = format!(
                            "is damaged: its {CHECKSUM} does not fit. Remove it (of responses: with the lines behind it), and it is made again; \
                             or its {CHECKSUM} alone, and it is taken as it is"
                        );
                        return Err(Error::line(path, i + 1, reason));
                    }
                    found.lines.push((i + 1, object));
                    found.whole_bytes += line.len();
                }
                Err(_) if !finished => found.cut = Some((i + 1, line.len())),
                Err(error) => {
                    let reason = error.to_string();
                    let reason = reason.split(" at line ").next().unwrap_or_default();
                    return Err(Error::line(path, i + 1, format!("not a JSON object: {reason}")));
                }
            }
        }
        Ok(found)
    }

    /// "answers.jsonl:7: the last line was cut short: dropped".
    pub fn note(&self, path: &Path) -> Option<String> {
        let (line, bytes) = self.cut?;
        Some(format!("{}:{line}: the last line was cut short after {bytes} bytes, and is dropped", path.display()))
    }
}
