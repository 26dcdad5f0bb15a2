//! Output to standard output and to files.

use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::data::source::{SourceFile, SourceFiles};
use crate::error::{Error, Result, acts_on_terminal, visible_lines};
use crate::files::{check_name, check_writable, follow_links, is_descriptor, is_standard_output, write_atomic};

/// Flag that discards what [`say`] gets.
pub static QUIET: AtomicBool = AtomicBool::new(false);

/// Writes to standard output. Returns an error where `println!` panics (a full disk, a closed pipe). On a terminal, characters that would act on it are written
/// as escapes, because the text may be a model's or from a file; elsewhere the text is unchanged.
pub fn say(text: std::fmt::Arguments<'_>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = match out.is_terminal() {
        _ if QUIET.load(Ordering::Relaxed) => return Ok(()),
        true => out.write_all(visible_lines(&text.to_string()).as_bytes()),
        false => out.write_fmt(text),
    };
    written.and_then(|()| out.flush()).map_err(|e| Error::file("standard output", e))
}

/// Writes bytes of the program's own to standard output, as they are: completions, man pages, the reference.
pub fn write_stdout(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| Error::file("standard output", e))
}

/// Writes the characters that act on a terminal as JSON's escapes, so that the lines stay the same JSON.
fn visible_json(lines: &str) -> String {
    let mut out = String::with_capacity(lines.len());
    for c in lines.chars() {
        if acts_on_terminal(c) && c != '\n' {
            out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            out.push(c);
        }
    }
    out
}

/// Prints like `println!`, but returns an error instead of panicking.
macro_rules! say {
    () => { $crate::cli::output::say(format_args!("\n")) };
    ($($text:tt)*) => { $crate::cli::output::say(format_args!("{}\n", format_args!($($text)*))) };
}

/// Writer of JSON lines. A file is written as a whole by [`JsonlWriter::finish`]; on standard output, lines can be shown earlier.
pub struct JsonlWriter {
    path: Option<PathBuf>,
    text: Vec<u8>,
}

/// Checks the output path of a flag before anything is computed for it. Returns the path to write, with links followed. Refuses a path that cannot be written
/// or is an input, and standard output, because it has the command's own text.
///
/// # Errors
/// [`Error::Flag`].
pub fn check_place<'a>(
    flag: &'static str,
    out: &Path,
    inputs: impl IntoIterator<Item = &'a PathBuf>,
) -> Result<PathBuf> {
    let refuse = |reason: &str| Error::flag(flag, format!("{} {reason}", out.display()));
    if is_standard_output(out) {
        return Err(refuse("is standard output, which has the command's own text: name a file"));
    }
    check_name(out).map_err(|reason| Error::flag(flag, format!("{}: {reason}", out.display())))?;
    let place = follow_links(out).map_err(refuse)?;
    if place.is_dir() && !is_descriptor(&place) {
        return Err(refuse("is a folder"));
    }
    let folder = match place.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(refuse("is in a folder that does not exist"));
    }
    let out_place = std::fs::canonicalize(out).ok();
    let is_out = |input: SourceFile| input.place.is_some_and(|input| std::fs::canonicalize(input).ok() == out_place);
    let read = |input: &PathBuf| SourceFiles::find_here(input).map_or_else(|_| Vec::new(), |found| found.files);
    if out_place.is_some() && inputs.into_iter().flat_map(read).any(is_out) {
        return Err(refuse("is also an input"));
    }
    check_writable(&place).map_err(|error| match error {
        Error::File { reason, .. } => refuse(&format!("cannot be written: {reason}")),
        other => other,
    })?;
    Ok(place)
}

impl JsonlWriter {
    /// Makes a writer to `path`, or to standard output if `path` is `None` or `-`. `inputs` are files that must not be overwritten.
    ///
    /// # Errors
    /// Those of [`check_place`].
    pub fn new<'a>(path: Option<&Path>, inputs: impl IntoIterator<Item = &'a PathBuf>) -> Result<Self> {
        let path = path.filter(|path| !is_standard_output(path)).map(|path| check_place("out", path, inputs));
        Ok(Self { path: path.transpose()?, text: Vec::new() })
    }

    fn name(&self) -> PathBuf {
        self.path.clone().unwrap_or_else(|| "standard output".into())
    }

    /// Adds one object as a line.
    pub fn push(&mut self, value: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.text, value).map_err(|e| Error::file(self.name(), e))?;
        self.text.push(b'\n');
        Ok(())
    }

    /// Prints the lines so far, if they go to standard output.
    pub fn show(&mut self) -> Result<()> {
        if self.path.is_some() {
            return Ok(());
        }
        let mut text = std::mem::take(&mut self.text);
        if std::io::stdout().is_terminal() {
            text = visible_json(&String::from_utf8_lossy(&text)).into_bytes();
        }
        let mut out = BufWriter::new(std::io::stdout().lock());
        out.write_all(&text).and_then(|()| out.flush()).map_err(|e| Error::file("standard output", e))
    }

    /// Writes all lines to the file, or the remaining lines to standard output.
    pub fn finish(mut self) -> Result<()> {
        match &self.path {
            Some(path) => write_atomic(path, |file| file.write_all(&self.text).map_err(|e| Error::file(path, e))),
            None => self.show(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::visible_json;

    #[test]
    fn json_keeps_its_value() {
        let value = serde_json::json!({"response": "\u{9b}31m\u{202e}x\n\u{1b}"});
        let shown = visible_json(&format!("{value}\n"));
        assert!(shown.ends_with("\n") && !shown.trim_end().chars().any(crate::error::acts_on_terminal), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
