//! The fields of one row: texts and messages out of JSON, with reasons that name the field.

use serde_json::{Map, Value};

use super::rows::{FORMS, FieldMap, Instruction, Message, Text};

type Reason = String;

/// A row's object, read through the field map. Null counts as absent.
pub(super) struct Fields<'a> {
    pub object: &'a Map<String, Value>,
    pub map: &'a FieldMap,
}

impl<'a> Fields<'a> {
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(self.map.name(field)).filter(|value| !value.is_null())
    }

    pub fn need(&self, field: &str) -> Result<&'a Value, Reason> {
        self.get(field).ok_or_else(|| {
            format!("field `{}` is missing ({}); a row is one of: {FORMS}", self.map.name(field), names(self.object))
        })
    }

    pub fn text(&self, field: &str) -> Result<String, Reason> {
        match self.need(field)? {
            Value::String(text) => Ok(text.clone()),
            other => Err(format!("field `{}`: expected text, found {}", self.map.name(field), kind(other))),
        }
    }

    /// Text or messages.
    pub fn instruction(&self, field: &str) -> Result<Instruction, Reason> {
        let name = self.map.name(field);
        match self.need(field)? {
            Value::String(text) => Ok(Instruction::Plain(text.clone())),
            value => {
                let messages = messages(value, name)?;
                match messages.last() {
                    Some(last) if last.role == "assistant" => {
                        Err(format!("field `{name}`: ends with an assistant message, which belongs to the response"))
                    }
                    _ => Ok(Instruction::Chat(messages)),
                }
            }
        }
    }

    /// A prompt and its completion, each text or messages.
    pub fn answered(&self, prompt: &str, answer: &str) -> Result<Text, Reason> {
        let instruction = self.instruction(prompt)?;
        let name = self.map.name(answer);
        let value = self.need(answer)?;
        if let Value::String(response) = value {
            return Ok(Text { instruction, response: response.clone() });
        }
        let mut said = messages(value, name)?;
        let conversation_of = |mut before: Vec<Message>, said: Vec<Message>| {
            before.extend(said);
            conversation(before, name)
        };
        match instruction {
            Instruction::Chat(before) if said.len() == 1 => conversation_of(before, said),
            Instruction::Plain(text) if said.len() == 1 => {
                conversation_of(vec![Message { role: "user".into(), content: text }], said)
            }
            // UltraFeedback's form: the prompt is told apart and again inside of the conversation.
            Instruction::Plain(text)
                if said.iter().rev().nth(1).is_some_and(|m| m.role == "user" && m.content == text) =>
            {
                conversation(std::mem::take(&mut said), name)
            }
            _ => Err(format!("field `{name}`: expected one assistant message after the prompt, found {}", said.len())),
        }
    }
}

/// Splits off the last message, which must be the assistant's.
pub(super) fn conversation(mut messages: Vec<Message>, name: &str) -> Result<Text, Reason> {
    match messages.pop() {
        Some(last) if last.role != "assistant" => Err(format!(
            "field `{name}`: the last message must be the assistant's, its role is `{}`",
            last.role.escape_debug()
        )),
        Some(_) if messages.is_empty() => Err(format!("field `{name}`: no message stands before the response")),
        Some(last) => Ok(Text { instruction: Instruction::Chat(messages), response: last.content }),
        None => Err(format!("field `{name}`: no messages")),
    }
}

/// A list of {role, content}; content may be a list of text parts.
pub(super) fn messages(value: &Value, name: &str) -> Result<Vec<Message>, Reason> {
    let Value::Array(items) = value else {
        return Err(format!("field `{name}`: expected text or a list of messages, found {}", kind(value)));
    };
    if items.is_empty() {
        return Err(format!("field `{name}`: the list of messages is empty"));
    }
    let mut all = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let Value::Object(item) = item else {
            return Err(format!("field `{name}[{i}]`: expected a message {{role, content}}, found {}", kind(item)));
        };
        if item
            .get("tool_calls")
            .is_some_and(|calls| !calls.is_null() && calls.as_array().is_none_or(|c| !c.is_empty()))
        {
            return Err(format!("field `{name}[{i}].tool_calls`: tool calls are not supported"));
        }
        let role = match item.get("role") {
            Some(Value::String(role)) => role.clone(),
            other => {
                return Err(format!(
                    "field `{name}[{i}].role`: expected text, found {}",
                    other.map_or("nothing", kind)
                ));
            }
        };
        let content = match item.get("content") {
            Some(Value::String(content)) => content.clone(),
            Some(Value::Array(parts)) => parts
                .iter()
                .map(|part| part.get("text").and_then(Value::as_str))
                .collect::<Option<String>>()
                .ok_or_else(|| format!("field `{name}[{i}].content`: only parts of text are supported"))?,
            other => {
                return Err(format!(
                    "field `{name}[{i}].content`: expected text, found {}",
                    other.map_or("nothing", kind)
                ));
            }
        };
        all.push(Message { role, content });
    }
    Ok(all)
}

/// "the row has `a`, `b`", on one line and not too long.
pub(super) fn names(object: &Map<String, Value>) -> String {
    if object.is_empty() {
        return "the row is empty".into();
    }
    let short = |key: &String| format!("`{}`", key.chars().take(40).collect::<String>().escape_debug());
    let listed: Vec<String> = object.keys().take(12).map(short).collect();
    let more = if object.len() > listed.len() { ", ..." } else { "" };
    format!("the row has {}{more}", listed.join(", "))
}

/// A JSON type, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
