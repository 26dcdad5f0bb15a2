//! Names of JSON's types, for messages.

use serde_json::Value;

/// Returns the name of a value's JSON type: "a number".
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(object) if object.contains_key(NOT_UTF8) => "bytes that are not UTF-8",
        Value::Object(_) => "an object",
    }
}

/// Key of the object that represents bytes that are not UTF-8, which JSON cannot represent.
pub(super) const NOT_UTF8: &str = "\0bytes";
