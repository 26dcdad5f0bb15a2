//! Jinja's filters, tests and functions, where minijinja's differ from Python's; and those that transformers adds.

use std::sync::Arc;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, escape_formatter};

use super::clock::{FixedClock, strftime};
use super::fuel::charge;
use super::methods::{self, DictView};
use super::python::{JsonStyle, write_str};
use super::sandbox::{ValueSize, measure};

/// Installs the formatter, methods, filters, tests and functions.
pub(super) fn install(environment: &mut Environment<'_>, clock: Arc<FixedClock>) {
    environment.set_formatter(|out, state, value| {
        if let Some(text) = value.as_str() {
            if *state.auto_escape() == AutoEscape::None {
                return Ok(out.write_str(text)?);
            }
            return escape_formatter(out, state, value);
        }
        let text = python_str(state, value)?;
        escape_formatter(out, state, &Value::from(text))
    });
    add_tests(environment);
    add_filters(environment);
    environment.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("the template says: {message}")))
    });
    environment.add_function("strftime_now", move |format: &str| {
        strftime(format, clock.seconds()).map_err(|reason| Error::new(ErrorKind::InvalidOperation, reason))
    });
    environment.remove_global("debug");
}

/// Returns Python's `str(value)`, after consuming fuel for it.
fn python_str(state: &State, value: &Value) -> Result<String, Error> {
    measure(state, value)?;
    let mut out = String::new();
    write_str(value, &mut out)?;
    Ok(out)
}

/// Adds tests as in Jinja. There, `is sequence` tests for `len` and `[]`, which texts and dicts have too, and `is iterable` for `iter`. An
/// undefined value has all of them.
fn add_tests(environment: &mut Environment<'_>) {
    let has_items = |value: &Value| {
        matches!(value.kind(), ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map)
    };
    environment.add_test("iterable", move |value: &Value| has_items(value) || value.kind() == ValueKind::Iterable);
    environment.add_test("sequence", move |value: &Value| {
        let is_view = value.downcast_object_ref::<DictView>().is_some();
        has_items(value) || (value.kind() == ValueKind::Iterable && value.len().is_some() && !is_view)
    });
}

fn add_filters(environment: &mut Environment<'_>) {
    environment.add_filter("string", |state: &State, value: &Value| -> Result<Value, Error> {
        if value.as_str().is_some() { Ok(value.clone()) } else { python_str(state, value).map(Value::from) }
    });
    environment.add_filter("trim", |state: &State, value: &Value, chars: Option<&str>| -> Result<String, Error> {
        Ok(methods::stripped(&python_str(state, value)?, chars, true, true).into())
    });
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    environment.add_filter(
        "int",
        |state: &State, value: &Value, default: Option<Value>, base: Option<u32>, options: Kwargs| {
            let default = default.or(options.get::<Option<Value>>("default")?).or(Some(Value::from(0)));
            minijinja::filters::int(state, number(value)?, default, base, options)
        },
    );
    environment.add_filter("float", |state: &State, value: &Value, default: Option<Value>, options: Kwargs| {
        let default = default.or(options.get::<Option<Value>>("default")?).or(Some(Value::from(0.0)));
        minijinja::filters::float(state, number(value)?, default, options)
    });
    // Jinja's `attr` looks up only attributes, which no value here has. minijinja's also looks up items.
    environment.remove_filter("attr");
    environment.add_filter("join", join);
    environment.add_filter("tojson", tojson);
    environment.add_filter("items", |state: &mut State, value: &Value| match value.kind() {
        ValueKind::Undefined => Ok(Value::from(Vec::<Value>::new())),
        ValueKind::Map => methods::call(state, value, "items", &[]),
        _ => Err(Error::new(ErrorKind::InvalidOperation, "items: the value is not a mapping")),
    });
}

/// Implements Jinja's `default(value, default_value="", boolean=False)`.
fn default(value: &Value, other: Option<Value>, boolean: Option<bool>, options: Kwargs) -> Result<Value, Error> {
    let other = other.or(options.get::<Option<Value>>("default_value")?).unwrap_or_else(|| Value::from(""));
    let boolean = boolean.or(options.get::<Option<bool>>("boolean")?).unwrap_or(false);
    options.assert_all_used()?;
    Ok(if value.is_undefined() || (boolean && !value.is_true()) { other } else { value.clone() })
}

/// Returns an error for an undefined value, as Python's `int` and `float` do.
fn number(value: &Value) -> Result<&Value, Error> {
    match value.is_undefined() {
        true => Err(Error::new(ErrorKind::UndefinedError, "an undefined value is not a number")),
        false => Ok(value),
    }
}

fn join(
    state: &State,
    value: &Value,
    separator: Option<&str>,
    attribute: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let separator = separator.or(options.get::<Option<&str>>("d")?).unwrap_or_default();
    let attribute = attribute.or(options.get::<Option<Value>>("attribute")?);
    options.assert_all_used()?;
    let mut out = String::new();
    if value.is_none() {
        return Err(Error::new(ErrorKind::InvalidOperation, "join: none is not iterable"));
    }
    for (i, item) in value.try_iter()?.enumerate() {
        let item = match &attribute {
            Some(key) => attribute_of(&item, key)?,
            None => item,
        };
        charge(state, separator.len())?;
        out.push_str(if i > 0 { separator } else { "" });
        out.push_str(&python_str(state, &item)?);
    }
    Ok(out)
}

/// Looks up a dotted path, as Jinja's `attribute=` does.
fn attribute_of(item: &Value, key: &Value) -> Result<Value, Error> {
    let Some(path) = key.as_str() else {
        return item.get_item(key);
    };
    path.split('.').try_fold(item.clone(), |item, part| match part.parse::<usize>() {
        Ok(index) => item.get_item(&Value::from(index)),
        Err(_) => item.get_item(&Value::from(part)),
    })
}

/// Implements transformers' `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`. The last two arguments are
/// accepted only by name.
fn tojson(
    state: &State,
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let option = |given: Option<Value>, name: &str| match given {
        Some(value) => Ok(Some(value)),
        None => options.get::<Option<Value>>(name),
    };
    let ensure_ascii = option(ensure_ascii, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let sort_keys = option(None, "sort_keys")?.is_some_and(|value| value.is_true());
    let indent = option(indent, "indent")?.filter(|value| !value.is_none());
    let separators = option(None, "separators")?.filter(|value| !value.is_none());
    options.assert_all_used()?;

    let ValueSize { n_values, depth } = measure(state, value)?;
    let wrong = |what: &str| Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"));
    let indent = match indent {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(String::from),
        Some(number) => {
            let width = number
                .as_i64()
                .map(|n| usize::try_from(n).unwrap_or(0))
                .ok_or_else(|| wrong("`indent` is not a number"))?;
            // Every value has at most two lines, each indented by at most `width * depth` bytes.
            charge(state, n_values.saturating_mul(width.saturating_mul(depth).saturating_mul(2)))?;
            Some(" ".repeat(width))
        }
    };
    let [item_separator, key_separator] = match separators {
        None => [if indent.is_some() { "," } else { ", " }, ": "].map(String::from),
        Some(pair) => {
            let texts: Vec<String> = pair.try_iter()?.filter_map(|text| text.as_str().map(String::from)).collect();
            <[String; 2]>::try_from(texts).map_err(|_| wrong("`separators` are two texts"))?
        }
    };
    let text_width = indent.as_ref().map_or(0, String::len).saturating_mul(depth).saturating_mul(2);
    let width = text_width.saturating_add(item_separator.len()).saturating_add(key_separator.len());
    charge(state, n_values.saturating_mul(width))?;
    let mut out = String::new();
    JsonStyle { ensure_ascii, indent, item_separator, key_separator, sort_keys }.write(value, 0, &mut out)?;
    Ok(out)
}
