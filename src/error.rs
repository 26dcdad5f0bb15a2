//! The crate's error type. Bad input is reported in one line that names the file, line, field or tensor, and both sides of a mismatch.

use std::path::{Path, PathBuf};

/// Everything that can go wrong without being a bug of this crate. Each error names the file, line, field, tensor or setting that it is about.
///
/// # Examples
/// ```
/// use jointwise::{Error, Policy};
/// match Policy::open("models/none") {
///     Err(Error::File { path, reason }) => println!("{}: {reason}", path.display()),
///     Err(other) => println!("{other}"),
///     Ok(_) => unreachable!("there is no such folder"),
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder that cannot be read, written or understood.
    #[error("{}: {reason}", path.display())]
    File {
        /// Path of the file or folder.
        path: PathBuf,
        /// Reason why the file or folder cannot be used.
        reason: String,
    },
    /// A line of a text file.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// Path of the file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// Reason why the line is refused.
        reason: String,
    },
    /// A field of a JSON or TOML file.
    #[error("{}: field `{field}`: {reason}", path.display())]
    Field {
        /// Path of the file.
        path: PathBuf,
        /// Path of the field, with dots between levels.
        field: String,
        /// Reason why the field is refused.
        reason: String,
    },
    /// A tensor of a checkpoint.
    #[error("{}: tensor `{tensor}`: {reason}", path.display())]
    Tensor {
        /// Path of the safetensors file, or of the folder where the tensor is missing.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Reason why the tensor is refused.
        reason: String,
    },
    /// A flag, or its key in a configuration file.
    #[error("--{flag}: {reason}")]
    Flag {
        /// Name of the flag, without its dashes.
        flag: &'static str,
        /// Reason why the flag or its value is refused.
        reason: String,
    },
    /// There is no device, or none that can be opened.
    #[error("{0}")]
    Device(String),
    /// The device refused work that it should have done.
    #[error("GPU: {0}")]
    Gpu(String),
    /// The device is gone, because of a watchdog, a driver's crash or sleep. Its memory is lost; files on disk are whole.
    #[error(
        "{device} was lost: {reason}. Watchdogs (2 s on Windows and with amdgpu), crashes of a driver and sleep do that: a smaller --batch-size or \
         --max-length makes submissions shorter, and --resume goes on from what is kept"
    )]
    DeviceLost {
        /// Name and backend of the device.
        device: String,
        /// Reason in the driver's words.
        reason: String,
    },
    /// Memory of the device was refused.
    #[error("out of device memory: {refused}; {advice}")]
    OutOfMemory {
        /// The use, size and memory in use of the refused allocation.
        refused: String,
        /// Ways to take less memory.
        advice: String,
    },
    /// A training run that ended before its last step.
    #[error("the run ended after step {step}, before its last step: resume it to finish it")]
    Stopped {
        /// Steps that are done.
        step: usize,
    },
    /// Ranks of a data parallel run that do not fit each other, or that cannot be started.
    #[error("{0}")]
    Ranks(String),
    /// Ranks of a data parallel run that should have the same training state, and have not.
    #[error("step {step}: {reason}")]
    RanksDiffer {
        /// Steps that are done.
        step: usize,
        /// Ranks with another state than rank 0.
        reason: String,
    },
    /// A judge that does not answer.
    #[error("{0}")]
    Judge(String),
    /// A loss, a gradient, a score or a logit that is not a finite number.
    #[error("{place}: {what} is not finite")]
    NotFinite {
        /// Optimiser step (from 1) and row numbers of the data, or a prompt's number.
        place: String,
        /// Name of a tensor, or the loss.
        what: String,
    },
}

/// Result with the crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Makes an [`Error::File`].
    pub fn file(path: impl AsRef<Path>, reason: impl ToString) -> Self {
        Self::File { path: path.as_ref().into(), reason: reason.to_string() }
    }
    /// Makes an [`Error::Line`]; lines count from 1.
    pub fn line(path: impl AsRef<Path>, line: usize, reason: impl ToString) -> Self {
        Self::Line { path: path.as_ref().into(), line, reason: reason.to_string() }
    }
    /// Makes an [`Error::Field`].
    pub fn field(path: impl AsRef<Path>, field: impl ToString, reason: impl ToString) -> Self {
        Self::Field { path: path.as_ref().into(), field: field.to_string(), reason: reason.to_string() }
    }
    /// Makes an [`Error::Tensor`].
    pub fn tensor(path: impl AsRef<Path>, tensor: impl ToString, reason: impl ToString) -> Self {
        Self::Tensor { path: path.as_ref().into(), tensor: tensor.to_string(), reason: reason.to_string() }
    }
    /// Makes an [`Error::Flag`].
    pub fn flag(flag: &'static str, reason: impl ToString) -> Self {
        Self::Flag { flag, reason: reason.to_string() }
    }
    /// Moves the error's path from `aside`, the folder that a result is written to first, to `place`, where it belongs.
    #[must_use]
    pub fn moved(mut self, aside: &Path, place: &Path) -> Self {
        if let Self::File { path, .. } | Self::Line { path, .. } | Self::Field { path, .. } | Self::Tensor { path, .. } =
            &mut self
            && let Ok(rest) = path.strip_prefix(aside)
        {
            *path = place.join(rest);
        }
        self
    }
    /// Returns the process's exit status: 2 where the input is at fault, 1 otherwise.
    pub fn exit_status(&self) -> i32 {
        match self {
            Self::Device(_)
            | Self::Gpu(_)
            | Self::DeviceLost { .. }
            | Self::OutOfMemory { .. }
            | Self::NotFinite { .. }
            | Self::Stopped { .. }
            | Self::RanksDiffer { .. }
            | Self::Judge(_) => 1,
            _ => 2,
        }
    }
}

/// Characters of a line that [`one_line`] leaves whole.
const MAX_LINE: usize = 1000;

/// Tells whether a character acts on a terminal instead of being shown: a control character (such as ESC or the C1 set), or one that turns the direction of
/// text or ends a line.
pub fn acts_on_terminal(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> String {
    let acts = |c: char| acts_on_terminal(c) && !is_kept(c);
    text.chars().flat_map(|c| if acts(c) { c.escape_debug().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// Writes every character that [acts on a terminal](acts_on_terminal) as an escape, for a message, a name or a table's cell.
pub fn visible(text: &str) -> String {
    escaped(text, |_| false)
}

/// Like [`visible`], but keeps line feeds and tabs: for texts of several lines on a terminal.
pub fn visible_lines(text: &str) -> String {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

/// Makes one line of a message for a terminal or a log, which may quote untrusted files. Characters that [act on a terminal](acts_on_terminal) become escapes,
/// and the middle of a long message becomes an ellipsis.
pub fn one_line(text: &str) -> String {
    let (head, tail) = (MAX_LINE * 3 / 5, MAX_LINE * 2 / 5 - 1);
    // Where the text is long, its ends are enough: an escape is never shorter than its character.
    let from = text.char_indices().rev().nth(MAX_LINE).map_or(0, |(at, _)| at);
    let to = text.char_indices().nth(MAX_LINE).map_or(text.len(), |(at, _)| at);
    let (first, last) = (visible(&text[..to]), visible(&text[from..]));
    if to == text.len() && first.chars().count() <= MAX_LINE {
        return first;
    }
    let start: String = first.chars().take(head).collect();
    let end = last.char_indices().rev().nth(tail - 1).map_or(0, |(at, _)| at);
    format!("{start}…{}", &last[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_escaped_and_capped() {
        assert_eq!(one_line("a `é`: 漢\\"), "a `é`: 漢\\");
        assert_eq!(
            visible_lines("a\n\tb\r\u{1b}]0;x\u{7}\u{9c}\u{61c}é"),
            "a\n\tb\\r\\u{1b}]0;x\\u{7}\\u{9c}\\u{61c}é"
        );
        assert_eq!(one_line("a\nb\r\u{1b}[31m\0\u{202e}\u{9b}"), "a\\nb\\r\\u{1b}[31m\\0\\u{202e}\\u{9b}");
        let whole = "é".repeat(1000);
        assert_eq!(one_line(&whole), whole);
        let long = one_line(&format!("start{}end", "é\n".repeat(1_000_000)));
        assert_eq!(long.chars().count(), 1000);
        assert!(long.starts_with("starté\\né") && long.ends_with("é\\nend") && long.contains('…'), "{long}");
    }
}
