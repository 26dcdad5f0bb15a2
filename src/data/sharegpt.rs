//! Conversion of ShareGPT's messages, `{from, value}`, into messages `{role, content}`.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::json_kind::kind;

/// Speakers in ShareGPT and LLaMA-Factory, and their roles in chat templates. A function call is the assistant's.
const ROLES: [(&str, &str); 14] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("assistant", "assistant"),
    ("model", "assistant"),
    (FUNCTION_CALL, "assistant"),
    ("system", "system"),
    ("observation", "tool"),
    ("tool", "tool"),
    ("function_response", "tool"),
    ("developer", "developer"),
];

const FUNCTION_CALL: &str = "function_call";

/// Returns the messages of a field with `role` and `content` in place of `from` and `value`. A single message becomes a list of one.
///
/// # Errors
/// The reason: an unknown speaker, or a function call that is not JSON.
pub(super) fn normalised<'a>(value: &'a Value, name: &str) -> Result<Cow<'a, Value>, String> {
    let is_old = |message: &Value| message.get("role").is_none() && message.get("from").is_some();
    match value {
        Value::Array(items) if items.iter().any(is_old) => {
            let message = |(i, item): (usize, &Value)| message(item, &format!("{name}[{i}]"));
            items.iter().enumerate().map(message).collect::<Result<_, _>>().map(|items| Cow::Owned(Value::Array(items)))
        }
        Value::Object(_) if is_old(value) => message(value, name).map(|message| Cow::Owned(json!([message]))),
        Value::Object(object) if object.contains_key("role") => Ok(Cow::Owned(json!([value]))),
        _ => Ok(Cow::Borrowed(value)),
    }
}

fn message(item: &Value, at: &str) -> Result<Value, String> {
    let (Some(object), Some(from)) = (item.as_object(), item.get("from")) else { return Ok(item.clone()) };
    let Value::String(speaker) = from else {
        return Err(format!("field `{at}.from`: expected text, found {}", kind(from)));
    };
    let Some((_, role)) = ROLES.iter().find(|(known, _)| known == speaker) else {
        let known = ROLES.map(|(known, _)| known).join(", ");
        return Err(format!("field `{at}.from`: `{}` is none of {known}", speaker.escape_debug()));
    };
    let content = object.get("value").or(object.get("content")).cloned().unwrap_or_default();
    let mut message = Map::from_iter([("role".into(), json!(role)), ("content".into(), content)]);
    if speaker == FUNCTION_CALL {
        let calls = calls(&message["content"]).ok_or_else(|| {
            format!("field `{at}.value`: expected a function call, {{name, arguments}} or a list of them as JSON text")
        })?;
        message.insert("content".into(), json!(""));
        message.insert("tool_calls".into(), calls);
    }
    let more = object.iter().filter(|(key, _)| !["from", "value", "content"].contains(&key.as_str()));
    message.extend(more.map(|(key, value)| (key.clone(), value.clone())));
    Ok(Value::Object(message))
}

/// Parses LLaMA-Factory's function calls as `tool_calls`.
fn calls(content: &Value) -> Option<Value> {
    let parsed: Value = serde_json::from_str(content.as_str()?).ok()?;
    let calls = match parsed {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    let call = |call: Value| {
        let has_both = call.get("name").is_some_and(Value::is_string) && call.get("arguments").is_some();
        has_both.then(|| json!({"type": "function", "function": call}))
    };
    calls.into_iter().map(call).collect::<Option<Vec<_>>>().filter(|calls| !calls.is_empty()).map(Value::Array)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speakers_become_roles() {
        let told = json!([
            {"from": "system", "value": "S"}, {"from": "human", "value": "Q", "weight": 0},
            {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
            {"from": "observation", "value": "2"}, {"from": "gpt", "value": "A"},
        ]);
        let expected = json!([
            {"role": "system", "content": "S"}, {"role": "user", "content": "Q", "weight": 0},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
            {"role": "tool", "content": "2"}, {"role": "assistant", "content": "A"},
        ]);
        assert_eq!(*normalised(&told, "conversations").unwrap(), expected);
        let alone = json!({"from": "gpt", "value": "A"});
        assert_eq!(*normalised(&alone, "chosen").unwrap(), json!([{"role": "assistant", "content": "A"}]));
        for other in [json!([{"role": "user", "content": "Q"}]), json!("text"), json!([]), json!([1])] {
            assert_eq!(*normalised(&other, "messages").unwrap(), other);
        }
        let told = |item: Value| normalised(&json!([item]), "conversations").unwrap_err();
        assert!(
            told(json!({"from": "narrator", "value": "x"}))
                .starts_with("field `conversations[0].from`: `narrator` is none of human")
        );
        assert_eq!(
            told(json!({"from": 3, "value": "x"})),
            "field `conversations[0].from`: expected text, found a number"
        );
        for value in ["f(1)", "[]", "{\"name\": \"f\"}", "[3]"] {
            let reason = told(json!({"from": "function_call", "value": value}));
            assert!(
                reason.starts_with("field `conversations[0].value`: expected a function call"),
                "{value}: {reason}"
            );
        }
    }
}
