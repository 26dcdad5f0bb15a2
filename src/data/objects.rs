//! Reading of rows from text: JSON objects, one per line (JSONL); the elements of one list, which may be inside an object
//! (`{"data": [..]}`); or a table.

use std::io::{BufRead, Cursor, Read};
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::field_map::is_field;
use super::file_ending::is_named;
use super::json_kind::kind;
use super::parsed_row::{MAX_ROW_BYTES, ParsedRow, TakenField, too_long};
use super::source_location::SourceLocation;
use super::table;
use crate::error::{Error, Result};

/// Calls `take` with every row of a text. A text that begins with `[` is a JSON list; one that begins with `{` is JSONL or an object with
/// one list; any other text is a table with a header. `path` is for messages. Returns notes on the text, one line each.
///
/// # Errors
/// [`Error::File`] for any other text, or one without rows; [`Error::Line`] for a row that is too long; errors of `take`.
pub(super) fn for_each_object(
    path: &Path,
    mut text: impl BufRead,
    mut take: impl FnMut(SourceLocation, ParsedRow) -> TakenField,
) -> Result<Vec<String>> {
    let failed = |e: std::io::Error| Error::file(path, e);
    let first = text.fill_buf().map_err(failed)?;
    if let Some(reason) = other_form(first) {
        return Err(Error::file(path, reason));
    }
    if first.starts_with(b"\xef\xbb\xbf") {
        text.consume(3);
    }
    let mut rows = ObjectRows { path: path.into(), line: 1, found: false };
    let mut notes = Vec::new();
    // A tab at the beginning may follow an empty cell, so white space is not skipped.
    if let Some(found) = table::separator(path, text.fill_buf().map_err(failed)?) {
        notes.extend(found.note(path));
        rows.found = table::for_each_record(&mut text, found.by, &rows.place(), &mut take)?;
    } else {
        match skip_blanks(&mut text, &mut rows.line).map_err(failed)? {
            Some(b'[') => {
                text.consume(1);
                if rows.of_list(&mut text, &mut take)?.is_continue() {
                    rows.end(&mut text, "list")?;
                }
            }
            Some(b'{') if !is_named(path, &[".jsonl", ".ndjson"]) => {
                notes.extend(rows.of_lines_or_document(&mut text, &mut take)?);
            }
            _ => rows.of_lines(&mut text, &mut take)?,
        }
    }
    if rows.found { Ok(notes) } else { Err(Error::file(path, "the file holds no rows")) }
}

/// Describes a text that is neither JSON nor a table, by its first bytes, with advice.
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

/// Skips white space, counting lines. Returns the next byte.
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

/// State of reading a file's rows.
struct ObjectRows {
    path: Arc<Path>,
    /// Number of the line to read next, from 1.
    line: usize,
    /// Whether any row was found.
    found: bool,
}

impl ObjectRows {
    fn place(&self) -> SourceLocation {
        SourceLocation { path: self.path.clone(), line: self.line, element: None }
    }

    fn failed(&self, e: std::io::Error) -> Error {
        Error::file(&self.path, e)
    }

    fn of_lines(
        &mut self,
        text: &mut impl BufRead,
        take: &mut impl FnMut(SourceLocation, ParsedRow) -> TakenField,
    ) -> Result<()> {
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
            self.found = true;
            if take(place, parse(buffer.trim_ascii_end()))?.is_break() {
                return Ok(());
            }
        }
    }

    /// Reads a text that begins with an object: JSONL, or one document with a list. The text is JSONL if its first line is a whole object
    /// and more follows. Returns a note on a document.
    fn of_lines_or_document(
        &mut self,
        text: &mut impl BufRead,
        take: &mut impl FnMut(SourceLocation, ParsedRow) -> TakenField,
    ) -> Result<Option<String>> {
        let mut head = Vec::new();
        text.by_ref().take(MAX_ROW_BYTES + 1).read_until(b'\n', &mut head).map_err(|e| self.failed(e))?;
        let place = self.place();
        let row = match head.len() as u64 > MAX_ROW_BYTES {
            true => Err(too_long(&place, "line")),
            false => Ok(parse(head.trim_ascii_end())),
        };
        if let Ok(parsed @ Ok(object)) = &row {
            let mut line = self.line + 1;
            let goes_on = skip_blanks(text, &mut line).map_err(|e| self.failed(e))?.is_some();
            if goes_on || !holds_list(object) {
                (self.line, self.found) = (line, true);
                return match take(place, parsed.clone())? {
                    ControlFlow::Continue(()) => self.of_lines(text, take).map(|()| None),
                    ControlFlow::Break(()) => Ok(None),
                };
            }
        }
        let document = self.of_document(&mut Cursor::new(head).chain(text), take)?;
        match (document, row) {
            (Some(document), _) => Ok(document.note(&self.path)),
            (None, Ok(parsed)) => parsed.map(|_| None).map_err(|reason| place.error(reason)),
            (None, Err(error)) => Err(error),
        }
    }

    /// Reads the list of objects inside an object, as the text arrives. Returns `None` where there is no list; the text is then not read to
    /// its end.
    fn of_document(
        &mut self,
        text: &mut impl BufRead,
        take: &mut impl FnMut(SourceLocation, ParsedRow) -> TakenField,
    ) -> Result<Option<JsonDocument>> {
        let mut document = JsonDocument::default();
        text.consume(1);
        loop {
            match skip_blanks(text, &mut self.line).map_err(|e| self.failed(e))? {
                Some(b'"') => {}
                Some(b'}') if !document.lists.is_empty() => break,
                _ => return self.broken(document),
            }
            let (key, _) = self.element(text, &self.place(), b":")?;
            let Ok(key) = serde_json::from_slice::<String>(key.trim_ascii()) else { return self.broken(document) };
            text.consume(1);
            let is_row = is_field(&key);
            let mut begin = skip_blanks(text, &mut self.line).map_err(|e| self.failed(e))?;
            let mut value = Vec::new();
            if begin == Some(b'[') {
                text.consume(1);
                value.push(b'[');
                begin = skip_blanks(text, &mut self.line).map_err(|e| self.failed(e))?;
            }
            if is_row && document.lists.is_empty() {
                return Ok(None);
            }
            if value == b"[" && begin == Some(b'{') {
                let flow = match document.lists.is_empty() {
                    true => self.of_list(text, take)?,
                    false => self.of_list(text, &mut |_, _| Ok(ControlFlow::Continue(())))?,
                };
                document.lists.push(key);
                if flow.is_break() {
                    return Ok(Some(document));
                }
            } else {
                let ends: &[u8] = if value == b"[" { b"]" } else { b",}" };
                let (rest, end) = self.element(text, &self.place(), ends)?;
                value.extend(rest);
                if end == b']' {
                    value.push(end);
                    text.consume(1);
                }
                if serde_json::from_slice::<IgnoredAny>(&value).is_err() {
                    return self.broken(document);
                }
                document.others.push(key);
            }
            if skip_blanks(text, &mut self.line).map_err(|e| self.failed(e))? == Some(b',') {
                text.consume(1);
            }
        }
        text.consume(1);
        self.end(text, "object")?;
        match document.lists.len() {
            1 => Ok(Some(document)),
            _ => Err(Error::file(&self.path, document.several())),
        }
    }

    /// Returns an error for a document with malformed JSON behind its list; `None` for one without a list, because it may be a single line.
    fn broken(&self, document: JsonDocument) -> Result<Option<JsonDocument>> {
        match document.lists.first() {
            None => Ok(None),
            Some(list) => {
                let reason = format!(
                    "malformed JSON behind the list `{}`: expected a name, a comma or the object's end",
                    list.escape_debug()
                );
                Err(self.place().error(reason))
            }
        }
    }

    /// Reads the elements of a list, from behind its bracket to its end. An element's location is the line where it begins.
    fn of_list(
        &mut self,
        text: &mut impl BufRead,
        take: &mut impl FnMut(SourceLocation, ParsedRow) -> TakenField,
    ) -> TakenField {
        for number in 1.. {
            let begin = skip_blanks(text, &mut self.line).map_err(|e| self.failed(e))?;
            let mut end = b']';
            if number > 1 || begin != Some(b']') {
                let place = SourceLocation { element: NonZeroU32::new(number), ..self.place() };
                let (element, behind) = self.element(text, &place, b",]")?;
                self.found = true;
                if take(place, parse(element.trim_ascii()))?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                end = behind;
            }
            text.consume(1);
            if end == b']' {
                break;
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Returns an error where anything follows the end of the file's list or object.
    fn end(&mut self, text: &mut impl BufRead, what: &str) -> Result<()> {
        match skip_blanks(text, &mut self.line).map_err(|e| self.failed(e))? {
            None => Ok(()),
            Some(_) => Err(self.place().error(format!("more stands behind the end of the file's {what}"))),
        }
    }

    /// Reads up to the byte that ends an element, one of `ends`. Returns the element and that byte, which is left unread. Errors name the
    /// location `start`.
    fn element(&mut self, text: &mut impl BufRead, start: &SourceLocation, ends: &[u8]) -> Result<(Vec<u8>, u8)> {
        let (mut element, mut depth) = (Vec::new(), 0_usize);
        let (mut in_string, mut is_escaped) = (false, false);
        loop {
            let bytes = text.fill_buf().map_err(|e| Error::file(&self.path, e))?;
            if bytes.is_empty() {
                let what = if ends.contains(&b']') { "list" } else { "object" };
                return Err(start.error(format!("the file ends inside of its {what}: it is cut short")));
            }
            let end = bytes.iter().position(|&byte| {
                match byte {
                    _ if is_escaped => is_escaped = false,
                    b'\\' if in_string => is_escaped = true,
                    b'"' => in_string = !in_string,
                    _ if in_string => {}
                    _ if depth == 0 && ends.contains(&byte) => return true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                false
            });
            let n = end.unwrap_or(bytes.len());
            let end = bytes.get(n).copied();
            self.line += bytes[..n].iter().filter(|byte| **byte == b'\n').count();
            element.extend_from_slice(&bytes[..n]);
            text.consume(n);
            if element.len() as u64 > MAX_ROW_BYTES {
                return Err(too_long(start, "element"));
            }
            if let Some(end) = end {
                return Ok((element, end));
            }
        }
    }
}

/// JSON document that consists of one object: names of its lists, one of which may hold the rows, and of its other values.
#[derive(Debug, Default)]
struct JsonDocument {
    /// Names of the lists of objects.
    lists: Vec<String>,
    /// Names of the other values.
    others: Vec<String>,
}

impl JsonDocument {
    fn note(&self, path: &Path) -> Option<String> {
        let note = format!(
            "{}: the rows are the list {}; not read beside it: {}",
            path.display(),
            named(&self.lists),
            named(&self.others)
        );
        Some(note).filter(|_| !self.others.is_empty())
    }

    fn several(&self) -> String {
        let first = self.lists.first().map_or("", String::as_str).escape_debug().to_string();
        format!(
            "holds several lists of objects ({}), and rows are those of one: `jq '.{first}' FILE > NEW` takes one of them",
            named(&self.lists)
        )
    }
}

/// Formats names in backquotes, on one line of limited length.
fn named(names: &[String]) -> String {
    let short = |name: &String| format!("`{}`", name.chars().take(40).collect::<String>().escape_debug());
    let listed: Vec<String> = names.iter().take(12).map(short).collect();
    let more = if names.len() > listed.len() { ", ..." } else { "" };
    listed.join(", ") + more
}

/// Returns whether an object is a document with a list of rows and not a row: it has a list, and no field of a row.
fn holds_list(object: &Map<String, Value>) -> bool {
    let is_list = |value: &Value| value.as_array().is_some_and(|list| list.first().is_some_and(Value::is_object));
    !object.keys().any(|key| is_field(key)) && object.values().any(is_list)
}

/// Parses one row.
fn parse(bytes: &[u8]) -> ParsedRow {
    let text = std::str::from_utf8(bytes).map_err(|e| format!("not UTF-8 from byte {}", e.valid_up_to() + 1))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(format!("expected a JSON object, found {}", kind(&other))),
        Err(_) if ["[", "{"].contains(&text.trim_ascii_start()) => Err(
            "malformed JSON: expected one object a line (JSONL) or one list of objects, found the start of an object that spans \
             lines: `jq -c .` puts each on a line"
                .into(),
        ),
        Err(error) => Err(malformed(text, &error)),
    }
}

/// Describes why a row is not JSON, and where.
fn malformed(text: &str, error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    let (line, column) = (error.line(), error.column());
    let at = if line > 1 { format!("line {line} of the row, column {column}") } else { format!("column {column}") };
    let here = text.lines().nth(line.saturating_sub(1)).unwrap_or_default().as_bytes();
    let here = &here[column.saturating_sub(1).min(here.len())..];
    let here = here.strip_prefix(b"-").unwrap_or(here);
    if let Some(word) = ["NaN", "Infinity"].into_iter().find(|word| here.starts_with(word.as_bytes())) {
        return format!("malformed JSON: {word} is not a JSON number (null says that there is none), {at}");
    }
    if message.contains("surrogate") || message.contains("unexpected end of hex escape") {
        return format!("malformed JSON: half of a surrogate pair (\\ud800 to \\udfff) is not a character, {at}");
    }
    format!("malformed JSON: {message}, {at}")
}
