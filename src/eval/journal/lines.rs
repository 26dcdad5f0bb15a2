//! Lines of JSON that a crash or a damaged disk may have affected. Each line has a checksum, and the last one may be cut short.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::train::tensorboard::crc32c;

/// Last key of a line with a checksum: CRC-32C, in hexadecimal, of the line without this key.
const CHECKSUM: &str = "crc32c";

fn checksum_entry(object: &str) -> String {
    format!(",\"{CHECKSUM}\":\"{:08x}\"}}", crc32c(object.as_bytes()))
}

/// Formats a JSON object, which must not be empty, as a line with a checksum.
pub fn sealed(object: &Value) -> String {
    let text = object.to_string();
    format!("{}{}\n", text.strip_suffix('}').unwrap_or(&text), checksum_entry(&text))
}

/// Removes the checksum from a line's object. Returns whether the checksum matches the line, or is absent.
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

/// Complete lines of a JSONL text, with their numbers from 1. A last line without a newline that is not an object was cut short by a crash.
/// Blank lines are skipped.
#[derive(Debug, Default)]
pub struct RecoveredLines {
    /// Line numbers and objects.
    pub lines: Vec<(usize, Map<String, Value>)>,
    /// Number of bytes of the complete lines.
    pub whole_bytes: usize,
    /// Number of the last line where it was cut short, and its length in bytes.
    pub cut: Option<(usize, usize)>,
}

impl RecoveredLines {
    /// Reads a file's bytes; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Line`] for a line that is not an object, unless it is an unfinished last line; also for a line whose checksum does not
    /// match.
    pub fn read(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut found = Self::default();
        for (i, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
            let finished = line.ends_with(b"\n");
            if finished && line.trim_ascii().is_empty() {
                found.whole_bytes += line.len();
                continue;
            }
            match serde_json::from_slice::<Map<String, Value>>(line) {
                // An object that lacks only its newline counts as complete; the writer adds the newline.
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

    /// Returns the note "answers.jsonl:7: the last line was cut short: dropped", where the last line was cut short.
    pub fn note(&self, path: &Path) -> Option<String> {
        let (line, bytes) = self.cut?;
        Some(format!("{}:{line}: the last line was cut short after {bytes} bytes, and is dropped", path.display()))
    }
}
