//! Values as Python prints them: `str`, `repr` and `json.dumps`.

use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::methods::DictView;

/// Writes Python's `str(value)`; an undefined value is empty, as Jinja prints it.
pub(super) fn write_str(value: &Value, out: &mut String) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::String => {
            out.push_str(value.as_str().unwrap_or_default());
            Ok(())
        }
        _ => write_repr(value, out),
    }
}

/// Writes Python's `repr(value)`.
fn write_repr(value: &Value, out: &mut String) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::String => repr_text(value.as_str().unwrap_or_default(), out),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(&key, out)?;
                out.push_str(": ");
                write_repr(&value.get_item(&key)?, out)?;
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable if value.len().is_some() => {
            let tuple = value.downcast_object_ref::<Tuple>().is_some();
            let view = value.downcast_object_ref::<DictView>();
            if let Some(view) = view {
                *out += &format!("{}(", view.name);
            }
            out.push(if tuple { '(' } else { '[' });
            let mut n = 0;
            for item in value.try_iter()? {
                out.push_str(if n > 0 { ", " } else { "" });
                write_repr(&item, out)?;
                n += 1;
            }
            out.push_str(if tuple && n == 1 { "," } else { "" });
            out.push(if tuple { ')' } else { ']' });
            out.extend(view.map(|_| ')'));
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

fn repr_text(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => match u32::from(c) {
                code @ ..=0xff => *out += &format!("\\x{code:02x}"),
                code @ ..=0xffff => *out += &format!("\\u{code:04x}"),
                code => *out += &format!("\\U{code:08x}"),
            },
        }
    }
    out.push(quote);
}

/// Returns Python's `str.isprintable` for a character. Rust's `escape_debug` escapes the same characters, by the same Unicode categories,
/// provided that the character is not the first one.
fn is_printable(c: char) -> bool {
    c.is_ascii_graphic() || c == ' ' || (!c.is_ascii() && !format!("a{c}").escape_debug().to_string().contains('\\'))
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        value.to_string()
    } else {
        f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
    }
}

/// Formats a float like Python's `repr`: the shortest digits that read back as the same value, with an exponent below 1e-4 and from 1e16
/// on.
fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x < 0.0 { "-inf" } else { "inf" }.into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or_default() {
        e @ (..-4 | 16..) => format!("{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs()),
        _ if x.fract() == 0.0 => format!("{x:.1}"),
        _ => x.to_string(),
    }
}

/// Options of `json.dumps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JsonStyle {
    pub ensure_ascii: bool,
    /// Indentation per level; `None` for one line.
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
}

impl JsonStyle {
    /// Appends Python's `json.dumps(value, ...)` to `out`.
    ///
    /// # Errors
    /// Python's error, for values that JSON cannot represent.
    pub(super) fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default(), out),
            ValueKind::Number => out.push_str(&json_number(value)),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_items('{', '}', keys, depth, out, |key, out| {
                    match key.kind() {
                        ValueKind::String => self.write_text(key.as_str().unwrap_or_default(), out),
                        ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                            out.push('"');
                            self.write(&key, 0, out)?;
                            out.push('"');
                        }
                        kind => return Err(not_json(&format!("a key of type {kind}"))),
                    }
                    out.push_str(&self.key_separator);
                    self.write(&value.get_item(&key)?, depth + 1, out)
                })?;
            }
            ValueKind::Iterable if value.downcast_object_ref::<DictView>().is_some() => {
                return Err(not_json("a view of a dict"));
            }
            ValueKind::Seq | ValueKind::Iterable if value.len().is_some() => {
                self.write_items('[', ']', value.try_iter()?, depth, out, |item, out| {
                    self.write(&item, depth + 1, out)
                })?;
            }
            kind => return Err(not_json(&format!("a value of type {kind}"))),
        }
        Ok(())
    }

    fn write_items(
        &self,
        open: char,
        close: char,
        items: impl IntoIterator<Item = Value>,
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(indent.as_str(), depth));
            }
        };
        out.push(open);
        let mut empty = true;
        for item in items {
            out.push_str(if empty { "" } else { &self.item_separator });
            empty = false;
            line(out, depth + 1);
            write(item, out)?;
        }
        if !empty {
            line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn write_text(&self, text: &str, out: &mut String) {
        let quoted = serde_json::Value::from(text).to_string();
        if !self.ensure_ascii {
            out.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            if c.is_ascii() && c != '\u{7f}' {
                out.push(c);
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    *out += &format!("\\u{unit:04x}");
                }
            }
        }
    }
}

fn json_number(value: &Value) -> String {
    match number(value).as_str() {
        "nan" => "NaN".into(),
        "inf" => "Infinity".into(),
        "-inf" => "-Infinity".into(),
        finite => finite.into(),
    }
}

fn not_json(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {what} is not JSON"))
}

#[cfg(test)]
mod tests {
    use super::float;

    #[test]
    fn floats_are_python_s() {
        for (x, text) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (1e-4, "0.0001"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float(x), text);
        }
    }
}
