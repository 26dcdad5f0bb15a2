pub(super) mod synonyms;

use std::cell::{Cell, RefCell};

use serde_json::{Map, Value};

use super::chat_template::RESERVED;
use super::conversation::{Conversation, Instruction, Message, PromptResponse, ResponseText, TemplateInputs};
use super::field_map::FieldMap;
use super::form_names::FORMS;
use super::json_kind::kind;
use super::sharegpt;

type FieldError = String;

/// Object of a row, read through the field map. Null counts as absent.
pub(super) struct RowFields<'a> {
    pub object: &'a Map<String, Value>,
    pub map: &'a FieldMap,
    /// Columns that have been read.
    read: RefCell<Vec<&'a str>>,
    /// Column that was taken as the prompt, where it has another name.
    prompt: Cell<Option<&'a str>>,
}

impl<'a> RowFields<'a> {
    pub fn new(object: &'a Map<String, Value>, map: &'a FieldMap) -> Self {
        Self { object, map, read: RefCell::default(), prompt: Cell::default() }
    }

    /// Records the column of a field as the one that was taken as the prompt.
    pub fn set_prompt(&self, field: &str) {
        self.prompt.set(self.column(field).map(|(column, _)| column));
    }

    /// Returns the column that was taken as the prompt.
    pub fn prompt(&self) -> Option<&'a str> {
        self.prompt.get()
    }

    /// Returns a field's value, and records that its column was read.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        let (column, value) = self.column(field)?;
        let mut read = self.read.borrow_mut();
        if !read.contains(&column) {
            read.push(column);
        }
        Some(value)
    }

    /// Returns a field's value without recording that its column was read.
    pub fn peek(&self, field: &str) -> Option<&'a Value> {
        self.column(field).map(|(_, value)| value)
    }

    pub fn has(&self, field: &str) -> bool {
        self.column(field).is_some()
    }

    pub fn any(&self, fields: &[&str]) -> bool {
        fields.iter().any(|field| self.has(field))
    }

    /// Returns the first of `fields` that the row has.
    pub fn first(&self, fields: &[&'static str]) -> Option<&'static str> {
        fields.iter().copied().find(|field| self.has(field))
    }

    /// Returns the columns that are not null and were not read, in the row's order.
    pub fn unread(&self) -> impl Iterator<Item = &'a str> {
        let read = self.read.borrow().clone();
        let columns = self.object.iter().filter(|(_, value)| !value.is_null()).map(|(column, _)| column.as_str());
        columns.filter(move |column| !read.contains(column))
    }

    fn column(&self, field: &str) -> Option<(&'a str, &'a Value)> {
        let (column, value) = self.object.get_key_value(self.map.column(field)?)?;
        (!value.is_null()).then_some((column.as_str(), value))
    }

    pub fn need(&self, field: &str) -> Result<&'a Value, FieldError> {
        self.get(field).ok_or_else(|| {
            let column = self.map.column(field).and_then(|column| self.object.get(column));
            let how = if column.is_some() { "is null or an empty cell" } else { "is missing" };
            format!(
                "field `{}` {how} ({}){}; a row is one of: {FORMS}",
                self.map.name(field),
                names(self.object),
                synonyms::hint(self, field)
            )
        })
    }

    pub fn text(&self, field: &str) -> Result<String, FieldError> {
        match self.need(field)? {
            Value::String(text) => Ok(text.clone()),
            other => Err(format!("field `{}`: expected text, found {}", self.map.name(field), kind(other))),
        }
    }

    /// Reads an instruction: a text, or messages.
    pub fn instruction(&self, field: &str) -> Result<Instruction, FieldError> {
        let name = self.map.name(field);
        match self.need(field)? {
            Value::String(text) => Ok(Instruction::Plain(text.clone())),
            value => {
                let messages = messages(value, name)?;
                match messages.last() {
                    Some(last) if last.is_assistant() => {
                        Err(format!("field `{name}`: ends with an assistant message, which belongs to the response"))
                    }
                    _ => Ok(Instruction::Chat(messages.into())),
                }
            }
        }
    }

    /// Combines a prompt with the completion in field `answer`, which is a text or messages.
    pub fn answered(&self, instruction: Instruction, answer: &str) -> Result<PromptResponse, FieldError> {
        let name = self.map.name(answer);
        let value = self.need(answer)?;
        if let Value::String(response) = value {
            return Ok(PromptResponse { instruction, response: response.as_str().into() });
        }
        let mut said = messages(value, name)?;
        let is_answer = |said: &[Message]| said.first().is_some_and(Message::is_assistant);
        match instruction {
            // UltraFeedback's form: the conversation in `answer` repeats the prompt.
            Instruction::Plain(text)
                if said.iter().rev().nth(1).is_some_and(|m| m.role() == "user" && m.text() == text) =>
            {
                PromptResponse::last_turn(std::mem::take(&mut said), name)
            }
            // Likewise for a prompt of messages.
            Instruction::Chat(before) if said.len() > before.messages.len() && said.starts_with(&before.messages) => {
                let answers = said.split_off(before.messages.len());
                match is_answer(&answers) {
                    true => completion(before, answers, name),
                    false => Err(format!(
                        "field `{name}`: after the prompt, which it repeats, the assistant's message must follow"
                    )),
                }
            }
            instruction if is_answer(&said) || !said.iter().any(Message::is_assistant) => {
                completion(instruction.conversation(), said, name)
            }
            _ => Err(format!(
                "field `{name}`: expected the assistant's messages after the prompt, found {} of which the first is the {}'s",
                said.len(),
                said[0].role().escape_debug()
            )),
        }
    }

    /// Reads the row's `tools` and `chat_template_kwargs` for its chat template.
    pub fn inputs(&self) -> Result<TemplateInputs, FieldError> {
        let (tools_name, kwargs_name) = (self.map.name("tools"), self.map.name("chat_template_kwargs"));
        let tools = match self.get("tools") {
            None => None,
            // As in TRL, an empty list counts as absent.
            Some(Value::Array(list)) if list.is_empty() => None,
            Some(Value::String(text)) if text.trim().is_empty() => None,
            Some(list @ Value::Array(_)) => Some(list.clone()),
            // Data sets store values whose structure differs between rows as JSON text; TRL parses it, too.
            Some(Value::String(text)) => match serde_json::from_str(text) {
                Ok(Value::Null) => None,
                Ok(Value::Array(list)) => Some(list).filter(|list| !list.is_empty()).map(Value::Array),
                _ => return Err(format!("field `{tools_name}`: is text, not a JSON list")),
            },
            Some(other) => return Err(format!("field `{tools_name}`: expected a list, found {}", kind(other))),
        };
        let kwargs = match self.get("chat_template_kwargs") {
            None => Map::new(),
            Some(Value::Object(kwargs)) => kwargs.clone(),
            Some(other) => {
                return Err(format!("field `{kwargs_name}`: expected an object, found {}", kind(other)));
            }
        };
        if let Some(taken) = kwargs.keys().find(|key| RESERVED.contains(&key.as_str())) {
            return Err(format!("field `{kwargs_name}.{taken}`: is set by the program, not by a row"));
        }
        Ok(TemplateInputs { tools, kwargs })
    }
}

/// Creates an instruction and response from a prompt and the messages behind it.
pub(super) fn completion(prompt: Conversation, said: Vec<Message>, name: &str) -> Result<PromptResponse, FieldError> {
    match said.last() {
        Some(last) if last.is_assistant() && !prompt.messages.is_empty() => {
            Ok(PromptResponse { instruction: Instruction::Chat(prompt), response: ResponseText::Completion(said) })
        }
        Some(last) if last.is_assistant() => Err(format!("field `{name}`: no message stands before the response")),
        last => Err(format!(
            "field `{name}`: the last message must be the assistant's, its role is `{}`",
            last.map_or("", Message::role).escape_debug()
        )),
    }
}

/// Reads a list of {role, content} objects with all their keys. Content may be a list of text parts.
pub(super) fn messages(value: &Value, name: &str) -> Result<Vec<Message>, FieldError> {
    let normalised = sharegpt::normalised(value, name)?;
    let Value::Array(items) = normalised.as_ref() else {
        return Err(format!("field `{name}`: expected text or a list of messages, found {}", kind(value)));
    };
    if items.is_empty() {
        return Err(format!("field `{name}`: the list of messages is empty"));
    }
    let message = |(i, item): (usize, &Value)| {
        let at = format!("{name}[{i}]");
        match item {
            Value::Object(item) => Message::from_object(item, &at),
            other => Err(format!("field `{at}`: expected a message {{role, content}}, found {}", kind(other))),
        }
    };
    items.iter().enumerate().map(message).collect()
}

/// Formats the names of an object's fields, "the row has `a`, `b`", on one line of limited length.
pub(super) fn names(object: &Map<String, Value>) -> String {
    if object.is_empty() {
        return "the row is empty".into();
    }
    let short = |key: &String| format!("`{}`", key.chars().take(40).collect::<String>().escape_debug());
    let listed: Vec<String> = object.keys().take(12).map(short).collect();
    let more = if object.len() > listed.len() { ", ..." } else { "" };
    format!("the row has {}{more}", listed.join(", "))
}
