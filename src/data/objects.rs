//! JSON objects out of text: one a line (JSONL), or the elements of one list.

use std::io::{BufRead, Read};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::fields::kind;
use super::rows::Place;
use crate::error::{Error, Result};

/// Bytes of a row: none is held that is longer.
const MAX_ROW_BYTES: u64 = 64 << 20;

/// A row's object, or the reason why it is none.
pub(super) type Parsed = std::result::Result<Map<String, Value>, String>;

/// Calls `take` with every row of a text that is JSONL or, where it begins with `[`, one JSON list; `path` is for messages.
///
/// # Errors
/// [`Error::File`] for what is no such text, or holds no rows; [`Error::Line`] for a row that is too long; what `take` returns.
pub(super) fn for_each_object(
    path: &Path,
    mut text: impl BufRead,
    mut take: impl FnMut(Place, Parsed) -> Result<()>,
) -> Result<()> {
    let first = text.fill_buf().map_err(|e| Error::file(path, e))?;
    if let Some(reason) = other_form(first) {
        return Err(Error::file(path, reason));
    }
    if first.starts_with(b"\xef\xbb\xbf") {
        text.consume(3);
    }
    let mut rows = Rows { path: path.into(), line: 1, found: false };
    match skip_blanks(&mut text, &mut rows.line).map_err(|e| Error::file(path, e))? {
        Some(b'[') => rows.of_list(&mut text, &mut take)?,
        _ => rows.of_lines(&mut text, &mut take)?,
    }
    if rows.found { Ok(()) } else { Err(Error::file(path, "the file holds no rows")) }
}

/// Names a text that is neither JSONL nor a JSON list by its first bytes, with the way out.
fn other_form(first: &[u8]) -> Option<String> {
    let begins = |with: &[&[u8]]| with.iter().any(|bytes| first.starts_with(bytes));
    let utf_32: &[&[u8]] = &[b"\xff\xfe\0\0", b"\0\0\xfe\xff", b"{\0\0\0", b"\0\0\0{", b"[\0\0\0", b"\0\0\0["];
    let utf_16: &[&[u8]] = &[b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{", b"[\0", b"\0["];
    let archive = |what: &str| Some(format!("is {what}, which is not read: unpack it"));
    if begins(utf_32) || begins(utf_16) {
        let name = if begins(utf_32) { "UTF-32" } else { "UTF-16" };
        return Some(format!(
            "is {name} text, as PowerShell's `>` writes it: convert it to UTF-8, with `iconv -f {name} -t UTF-8 FILE > NEW` or \
             PowerShell's `Get-Content FILE | Set-Content -Encoding utf8 NEW`"
        ));
    }
    match first {
        [b'P', b'K', 3, 4, ..] => archive("a ZIP archive"),
        [b'B', b'Z', b'h', ..] => archive("a bzip2 archive"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => archive("an xz archive"),
        [b'7', b'z', 0xbc, 0xaf, ..] => archive("a 7z archive"),
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => archive("an archive in another one"),
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] => {
            Some("is an Arrow file, which is not read: write it as JSONL or Parquet".into())
        }
        _ => None,
    }
}

/// Reads over white space, counting lines; gives the byte behind it.
fn skip_blanks(text: &mut impl BufRead, line: &mut usize) -> std::io::Result<Option<u8>> {
    loop {
        let bytes = text.fill_buf()?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let blanks = bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        *line += bytes[..blanks].iter().filter(|byte| **byte == b'\n').count();
        let next = bytes.get(blanks).copied();
        text.consume(blanks);
        if next.is_some() {
            return Ok(next);
        }
    }
}

/// What is known while a file's rows are read.
struct Rows {
    path: Arc<Path>,
    /// Number of the row that is read next, from 1.
    line: usize,
    /// Whether a row was found.
    found: bool,
}

impl Rows {
    fn place(&self) -> Place {
        Place { path: self.path.clone(), line: self.line }
    }

    fn of_lines(&mut self, text: &mut impl BufRead, take: &mut impl FnMut(Place, Parsed) -> Result<()>) -> Result<()> {
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            let mut one = text.by_ref().take(MAX_ROW_BYTES + 1);
            if one.read_until(b'\n', &mut buffer).map_err(|e| Error::file(&self.path, e))? == 0 {
                return Ok(());
            }
            let place = self.place();
            self.line += 1;
            if buffer.len() as u64 > MAX_ROW_BYTES {
                return Err(too_long(&place, "line"));
            }
            let bytes = buffer.trim_ascii();
            if bytes.is_empty() {
                continue;
            }
            let parsed = parse(buffer.trim_ascii_end());
            if let (false, Err(_), Some(reason)) = (self.found, &parsed, table(&self.path, bytes)) {
                return Err(Error::file(&self.path, reason));
            }
            self.found = true;
            take(place, parsed)?;
        }
    }

    /// Reads the elements of a list; each one's line is where it begins.
    fn of_list(&mut self, text: &mut impl BufRead, take: &mut impl FnMut(Place, Parsed) -> Result<()>) -> Result<()> {
        let path = self.path.clone();
        let failed = |e: std::io::Error| Error::file(&path, e);
        text.consume(1);
        loop {
            let end = match skip_blanks(text, &mut self.line).map_err(failed)? {
                Some(b']') if !self.found => b']',
                _ => {
                    let place = self.place();
                    let (element, end) = self.element(text)?;
                    self.found = true;
                    take(place, parse(element.trim_ascii()))?;
                    end
                }
            };
            text.consume(1);
            if end == b']' {
                break;
            }
        }
        match skip_blanks(text, &mut self.line).map_err(failed)? {
            None => Ok(()),
            Some(_) => Err(self.place().error("more stands behind the end of the file's list")),
        }
    }

    /// Reads up to the comma or bracket that ends an element; gives both, and leaves the latter unread.
    fn element(&mut self, text: &mut impl BufRead) -> Result<(Vec<u8>, u8)> {
        let start = self.place();
        let (mut element, mut depth) = (Vec::new(), 0_usize);
        let (mut in_string, mut is_escaped) = (false, false);
        loop {
            let bytes = text.fill_buf().map_err(|e| Error::file(&self.path, e))?;
            if bytes.is_empty() {
                return Err(start.error("the file ends inside of its list: it is cut short"));
            }
            let ends = bytes.iter().position(|&byte| {
                match byte {
                    _ if is_escaped => is_escaped = false,
                    b'\\' if in_string => is_escaped = true,
                    b'"' => in_string = !in_string,
                    _ if in_string => {}
                    b',' | b']' if depth == 0 => return true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                false
            });
            let n = ends.unwrap_or(bytes.len());
            let end = bytes.get(n).copied();
            self.line += bytes[..n].iter().filter(|byte| **byte == b'\n').count();
            element.extend_from_slice(&bytes[..n]);
            text.consume(n);
            if element.len() as u64 > MAX_ROW_BYTES {
                return Err(too_long(&start, "element"));
            }
            if let Some(end) = end {
                return Ok((element, end));
            }
        }
    }
}

fn too_long(place: &Place, what: &str) -> Error {
    place.error(format!("the {what} is longer than {} MiB", MAX_ROW_BYTES >> 20))
}

/// Names a table of text (CSV, TSV) by the file's name or its first line, which is no JSON.
fn table(path: &Path, line: &[u8]) -> Option<String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let is_named = |ending: &str| name.ends_with(ending) || name.contains(&format!("{ending}."));
    let separated = |by: u8| line.contains(&by) && !matches!(line.first(), Some(b'{' | b'['));
    let (form, how) = match () {
        () if is_named(".tsv") || (!is_named(".csv") && separated(b'\t')) => ("TSV", "FILE, sep='\\t'"),
        () if is_named(".csv") || separated(b',') || separated(b';') => ("CSV", "FILE"),
        () => return None,
    };
    Some(format!(
        "looks like {form}, which is not read: `pandas.read_csv({how}).to_json(NEW, orient='records', lines=True)` in Python makes JSONL of it"
    ))
}

/// Parses one row.
fn parse(bytes: &[u8]) -> Parsed {
    let text = std::str::from_utf8(bytes).map_err(|e| format!("not UTF-8 from byte {}", e.valid_up_to() + 1))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(format!("expected one JSON object a line, found {}", kind(&other))),
        Err(_) if ["[", "{"].contains(&text.trim_ascii_start()) => Err(
            "malformed JSON: expected one object a line (JSONL) or one list of objects, found the start of an object that spans \
             lines: `jq -c .` puts each on a line"
                .into(),
        ),
        Err(error) => Err(malformed(text, &error)),
    }
}

/// Tells why a row is no JSON, and where.
fn malformed(text: &str, error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    let (line, column) = (error.line(), error.column());
    let at = if line > 1 { format!("line {line} of the row, column {column}") } else { format!("column {column}") };
    let here = text.lines().nth(line.saturating_sub(1)).unwrap_or_default().as_bytes();
    let here = &here[column.saturating_sub(1).min(here.len())..];
    let here = here.strip_prefix(b"-").unwrap_or(here);
    if let Some(word) = ["NaN", "Infinity"].into_iter().find(|word| here.starts_with(word.as_bytes())) {
        return format!("malformed JSON: {word} is no JSON number (null says that there is none), {at}");
    }
    if message.contains("surrogate") || message.contains("unexpected end of hex escape") {
        return format!("malformed JSON: half of a surrogate pair (\\ud800 to \\udfff) is no character, {at}");
    }
    format!("malformed JSON: {message}, {at}")
}
