//! Methods of Python's strings, lists and dicts, for templates. Methods that change a value are refused, as in the sandbox of transformers.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};

use super::fuel::charge;

/// Calls a method whose arguments have been measured.
///
/// # Errors
/// [`ErrorKind::UnknownMethod`] for other methods, and the errors that Python raises.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.kind(), value.as_str()) {
        (_, Some(text)) => text_method(state, value, text, method, args),
        (ValueKind::Map, _) => dict_method(value, method, args),
        (ValueKind::Seq | ValueKind::Iterable, _) => list_method(value, method, args),
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

/// Returns whether `str.strip` and `str.split` treat a character as white space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Keys, values or items of a dict: iterable, with a length, but not a sequence.
#[derive(Debug)]
pub(super) struct DictView {
    /// Name of the type in Python.
    pub name: &'static str,
    items: Vec<Value>,
}

fn dict_view(name: &'static str, items: impl Iterator<Item = Value>) -> Value {
    Value::from_object(DictView { name, items: items.collect() })
}

impl Object for DictView {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.items.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({:?})", self.name, self.items)
    }
}

fn wrong(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

fn text_method(state: &mut State, value: &Value, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            let (left, right) = (method != "rstrip", method != "lstrip");
            Ok(stripped(text, chars, left, right).into())
        }
        "split" | "rsplit" => {
            let (separator, most, options): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = separator.or(options.get::<Option<&str>>("sep")?);
            let most = most.or(options.get::<Option<i64>>("maxsplit")?).and_then(|n| usize::try_from(n).ok());
            options.assert_all_used()?;
            Ok(split(text, separator, most, method == "rsplit")?.into_iter().map(Value::from).collect())
        }
        "splitlines" => {
            let (keep, options): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(options.get::<Option<bool>>("keepends")?).unwrap_or(false);
            options.assert_all_used()?;
            Ok(lines(text, keep).into_iter().map(Value::from).collect())
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            if separator.is_empty() {
                return Err(wrong("empty separator"));
            }
            let found = if method == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
            let parts = match found {
                Some((before, after)) => [before, separator, after],
                None if method == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Ok(Tuple::from(parts.map(Value::from)).into())
        }
        "startswith" | "endswith" => {
            let (ends, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
            let within = sliced(text, start, end).map(|(_, part)| part);
            let has = |end: &Value| {
                let end = end.as_str().ok_or_else(|| wrong(format!("{method} needs a text or a tuple of texts")))?;
                let found =
                    within.is_some_and(|t| if method == "startswith" { t.starts_with(end) } else { t.ends_with(end) });
                Ok::<_, Error>(found)
            };
            match ends.downcast_object_ref::<Tuple>() {
                Some(all) => all.iter().map(has).try_fold(false, |any, found| Ok(any | found?)).map(Value::from),
                None => has(&ends).map(Value::from),
            }
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let found = sliced(text, start, end).and_then(|(offset, part)| {
                let at = if method.starts_with('r') { part.rfind(what) } else { part.find(what) }?;
                Some(offset + part[..at].chars().count())
            });
            match found {
                Some(at) => Ok(Value::from(at)),
                None if method.ends_with("find") => Ok(Value::from(-1)),
                None => Err(wrong("substring not found")),
            }
        }
        "count" => {
            let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            Ok(Value::from(sliced(text, start, end).map_or(0, |(_, part)| part.matches(what).count())))
        }
        "removeprefix" | "removesuffix" => {
            let (end,): (&str,) = from_args(args)?;
            let rest = if method == "removeprefix" { text.strip_prefix(end) } else { text.strip_suffix(end) };
            Ok(rest.unwrap_or(text).into())
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            let (width, fill): (i64, Option<&str>) = from_args(args)?;
            padded(state, text, method, usize::try_from(width).unwrap_or(0), fill)
        }
        "expandtabs" => {
            let (width,): (Option<i64>,) = from_args(args)?;
            let width = usize::try_from(width.unwrap_or(8)).unwrap_or(0);
            charge(state, text.matches('\t').count().saturating_mul(width))?;
            Ok(expand_tabs(text, width).into())
        }
        "title" => from_args::<()>(args).map(|()| title(text).into()),
        "capitalize" => from_args::<()>(args).map(|()| capitalized(text).into()),
        "swapcase" => from_args::<()>(args).map(|()| text.chars().map(swap_case).collect::<String>().into()),
        "istitle" => {
            from_args::<()>(args).map(|()| (title(text) == text && text.chars().any(char::is_alphabetic)).into())
        }
        "isdecimal" | "isdigit" | "isnumeric" => {
            from_args::<()>(args)?;
            if text.chars().any(|c| !c.is_ascii() && c.is_numeric()) {
                return Err(wrong(format!("`{method}` of other digits than 0 to 9 is not supported")));
            }
            Ok((!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into())
        }
        "isspace" => from_args::<()>(args).map(|()| (!text.is_empty() && text.chars().all(is_space)).into()),
        "join" => {
            let (items,): (Value,) = from_args(args)?;
            let mut out = String::new();
            for (i, item) in items.try_iter()?.enumerate() {
                let part = item
                    .as_str()
                    .ok_or_else(|| wrong(format!("join: item {i} is of type {}, not a text", item.kind())))?;
                charge(state, text.len() + part.len())?;
                out.push_str(if i > 0 { text } else { "" });
                out.push_str(part);
            }
            Ok(out.into())
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// Strips white space, or the characters `chars`.
pub(super) fn stripped<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let is = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(is) } else { text };
    if right { text.trim_end_matches(is) } else { text }
}

/// Splits a text at most `most` times, from the left or from the right.
fn split<'a>(text: &'a str, separator: Option<&str>, most: Option<usize>, right: bool) -> Result<Vec<&'a str>, Error> {
    let parts = most.map_or(usize::MAX, |n| n.saturating_add(1));
    let Some(separator) = separator else {
        return Ok(words(text, parts, right));
    };
    if separator.is_empty() {
        return Err(wrong("empty separator"));
    }
    Ok(match right {
        false => text.splitn(parts, separator).collect(),
        true => reversed(text.rsplitn(parts, separator).collect()),
    })
}

fn reversed<T>(mut items: Vec<T>) -> Vec<T> {
    items.reverse();
    items
}

fn words(text: &str, parts: usize, right: bool) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = stripped(text, None, !right, right);
    while !rest.is_empty() {
        if found.len() + 1 >= parts {
            // The last part keeps the white space at its far end, as in Python.
            found.push(rest);
            break;
        }
        let at = if right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = at else {
            found.push(rest);
            break;
        };
        if right {
            found.push(rest[at..].trim_start_matches(is_space));
            rest = stripped(&rest[..at], None, false, true);
        } else {
            found.push(&rest[..at]);
            rest = stripped(&rest[at..], None, true, false);
        }
    }
    if right { reversed(found) } else { found }
}

fn lines(text: &str, keep: bool) -> Vec<&str> {
    let is_end = |c: char| {
        matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(is_end) {
        let end = if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(1, char::len_utf8) };
        found.push(&rest[..if keep { at + end } else { at }]);
        rest = &rest[at + end..];
    }
    if !rest.is_empty() {
        found.push(rest);
    }
    found
}

/// Returns `text[start:end]` with its offset in characters; `None` where `start` is behind the text's end.
fn sliced(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(usize, &str)> {
    if start.is_none() && end.is_none() {
        return Some((0, text));
    }
    let n = text.chars().count();
    let clamp = |i: i64| if i < 0 { n.saturating_sub(i.unsigned_abs() as usize) } else { (i as usize).min(n) };
    if start.is_some_and(|i| i > n as i64) {
        return None;
    }
    let (from, to) = (start.map_or(0, clamp), end.map_or(n, clamp));
    let byte = |i: usize| text.char_indices().nth(i).map_or(text.len(), |(at, _)| at);
    (from <= to).then(|| (from, &text[byte(from)..byte(to)]))
}

fn padded(state: &State, text: &str, method: &str, width: usize, fill: Option<&str>) -> Result<Value, Error> {
    let mut chars = fill.unwrap_or(if method == "zfill" { "0" } else { " " }).chars();
    let (Some(fill), None) = (chars.next(), chars.next()) else {
        return Err(wrong("the fill character must be exactly one character long"));
    };
    let n = width.saturating_sub(text.chars().count());
    charge(state, n.saturating_mul(fill.len_utf8()))?;
    let repeat = |n: usize| fill.to_string().repeat(n);
    Ok(match method {
        "ljust" => format!("{text}{}", repeat(n)),
        "rjust" => format!("{}{text}", repeat(n)),
        "zfill" => {
            let sign = text.len() - text.strip_prefix(['+', '-']).unwrap_or(text).len();
            format!("{}{}{}", &text[..sign], repeat(n), &text[sign..])
        }
        _ => {
            // If the padding is odd, Python puts the extra character on the left where the width is odd, too.
            let left = n / 2 + (n & width & 1);
            format!("{}{text}{}", repeat(left), repeat(n - left))
        }
    }
    .into())
}

fn expand_tabs(text: &str, width: usize) -> String {
    let (mut out, mut column) = (String::with_capacity(text.len()), 0);
    for c in text.chars() {
        match c {
            '\t' => {
                let n = if width == 0 { 0 } else { width - column % width };
                out.extend(std::iter::repeat_n(' ', n));
                column += n;
            }
            c => {
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                out.push(c);
            }
        }
    }
    out
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut within = false;
    for c in text.chars() {
        if within {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        within = c.is_lowercase() || c.is_uppercase();
    }
    out
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return String::new() };
    first.to_uppercase().collect::<String>() + &chars.as_str().to_lowercase()
}

fn swap_case(c: char) -> String {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

fn dict_method(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let pairs = || {
        let pair = |key: Value| Ok::<_, Error>((key.clone(), value.get_item(&key)?));
        value.try_iter()?.map(pair).collect::<Result<Vec<_>, Error>>()
    };
    match method {
        "get" => {
            let (key, default): (Value, Option<Value>) = from_args(args)?;
            let object = value.as_object().and_then(|object| object.get_value(&key));
            Ok(object.or(default).unwrap_or_else(|| Value::from(())))
        }
        "items" => {
            from_args::<()>(args)?;
            let pair = |(key, item)| Value::from(Tuple::from([key, item]));
            Ok(dict_view("dict_items", pairs()?.into_iter().map(pair)))
        }
        "keys" => {
            from_args::<()>(args)?;
            Ok(dict_view("dict_keys", value.try_iter()?))
        }
        "values" => {
            from_args::<()>(args)?;
            Ok(dict_view("dict_values", pairs()?.into_iter().map(|(_, item)| item)))
        }
        "copy" => {
            from_args::<()>(args)?;
            Ok(Value::from_pairs(pairs()?))
        }
        "clear" | "pop" | "popitem" | "setdefault" | "update" => Err(changes(method, "dict")),
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn list_method(value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "count" => {
            let (what,): (Value,) = from_args(args)?;
            Ok(Value::from(value.try_iter()?.filter(|item| *item == what).count()))
        }
        "index" => {
            let (what,): (Value,) = from_args(args)?;
            let at = value.try_iter()?.position(|item| item == what);
            at.map(Value::from).ok_or_else(|| wrong("index: the value is not in the list"))
        }
        "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort" => {
            Err(changes(method, "list"))
        }
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn changes(method: &str, kind: &str) -> Error {
    wrong(format!("`{method}` of a {kind} changes it, which transformers refuses in a template"))
}
