//! Texts of rows: an instruction, its response, and messages with every key that they had in the row.

use serde::Serialize;
use serde_json::{Map, Value};

use super::chat_template::{ChatInput, REASONING};
use super::json_kind::kind;

/// Role of messages that a model writes.
const ASSISTANT: &str = "assistant";

/// Message of a conversation: the JSON object of the row with its keys in order, so that a chat template sees the same as in transformers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Message(Map<String, Value>);

impl Message {
    /// Creates a message with only these two keys.
    pub fn new(role: &str, content: &str) -> Self {
        Self(Map::from_iter([("role".into(), role.into()), ("content".into(), content.into())]))
    }

    /// Checks an object of a row. `at` names the object in messages.
    ///
    /// # Errors
    /// The reason: a role that is not a text; or content that is neither text nor a list of text parts, unless it is empty beside tool
    /// calls.
    pub(super) fn from_object(object: &Map<String, Value>, at: &str) -> Result<Self, String> {
        let found = |key: &str| object.get(key).map_or("nothing", kind);
        if !matches!(object.get("role"), Some(Value::String(_))) {
            return Err(format!("field `{at}.role`: expected text, found {}", found("role")));
        }
        let message = Self(object.clone());
        match object.get("content") {
            Some(Value::String(_)) => Ok(message),
            Some(Value::Array(parts)) if parts.iter().all(|part| part_text(part).is_some()) => Ok(message),
            Some(Value::Array(_)) => Err(format!("field `{at}.content`: only parts of text are supported")),
            None | Some(Value::Null) if message.has("tool_calls") => Ok(message),
            _ => Err(format!("field `{at}.content`: expected text, found {}", found("content"))),
        }
    }

    /// Returns the role: `system`, `user`, `assistant`, `tool`, or another role that the chat template knows.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns the content as one text, with its parts joined; empty beside tool calls.
    pub fn text(&self) -> String {
        match self.0.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => parts.iter().filter_map(part_text).collect(),
            _ => String::new(),
        }
    }

    /// Returns the text, followed by tool calls in JSON.
    fn shown(&self) -> String {
        let calls = self.0.get("tool_calls").filter(|calls| holds_something(calls));
        let calls = calls.map(|calls| format!("tool_calls: {calls}"));
        let text = Some(self.text()).filter(|text| !text.is_empty() || calls.is_none());
        text.into_iter().chain(calls).collect::<Vec<_>>().join("\n")
    }

    /// Returns whether the content is a list of parts.
    pub fn is_in_parts(&self) -> bool {
        self.0.get("content").is_some_and(Value::is_array)
    }

    /// Returns whether the message is the assistant's.
    pub fn is_assistant(&self) -> bool {
        self.role() == ASSISTANT
    }

    /// Returns whether a key is present and not empty.
    pub fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(holds_something)
    }

    /// Returns the text of a key other than `content`; `None` where it is not a text.
    pub fn key_text(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(Value::as_str)
    }

    /// Returns the keys other than `role` and `content` that are not empty.
    pub fn more_keys(&self) -> impl Iterator<Item = &str> {
        let more = self.0.iter().filter(|(key, value)| *key != "role" && *key != "content" && holds_something(value));
        more.map(|(key, _)| key.as_str())
    }

    /// Returns the object that a chat template sees.
    pub fn to_value(&self) -> Value {
        Value::Object(self.0.clone())
    }
}

fn part_text(part: &Value) -> Option<&str> {
    part.get("text").and_then(Value::as_str)
}

/// Returns whether a value is not empty. Parquet and data sets fill absent keys with null, or with an empty list.
fn holds_something(value: &Value) -> bool {
    !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty())
}

/// Values other than messages that a row passes to its chat template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateInputs {
    /// The row's `tools`, as a list.
    pub tools: Option<Value>,
    /// The row's `chat_template_kwargs`, such as `enable_thinking`.
    pub kwargs: Map<String, Value>,
}

impl TemplateInputs {
    /// Returns the input of a chat template for these messages.
    pub fn for_template<'a>(&'a self, messages: &'a [Value], add_generation_prompt: bool) -> ChatInput<'a> {
        ChatInput { messages, tools: self.tools.as_ref(), kwargs: Some(&self.kwargs), add_generation_prompt }
    }
}

/// Messages, with the other values that their row passes to its chat template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    /// Messages in order.
    pub messages: Vec<Message>,
    /// Other values for the chat template.
    pub inputs: TemplateInputs,
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}

impl Conversation {
    /// Returns an error for conversations that a template for plain texts cannot represent.
    ///
    /// # Errors
    /// The reason, and what to do.
    fn check_plain(&self) -> Result<(), String> {
        match (&self.inputs.tools, self.inputs.kwargs.is_empty()) {
            (Some(_), _) => Err("the row's `tools` need --template chat".into()),
            (None, false) => Err("the row's `chat_template_kwargs` need --template chat".into()),
            (None, true) => self.messages.iter().try_for_each(check_plain),
        }
    }
}

/// Returns an error for a message with keys that a template for plain texts would lose. Keys that only name or number a message may be
/// lost.
fn check_plain(message: &Message) -> Result<(), String> {
    match message.more_keys().find(|key| REASONING.contains(key) || SPOKEN.contains(key)) {
        Some(key) => Err(format!("`{key}` of a message needs --template chat")),
        None => Ok(()),
    }
}

/// Keys of a message with content, besides the [`REASONING`] keys.
const SPOKEN: [&str; 5] = ["tool_calls", "tool_call_id", "function_call", "tool_responses", "documents"];

/// Instruction that a response answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// Plain text.
    Plain(String),
    /// A conversation up to the response.
    Chat(Conversation),
    /// Text before the response that gets no template; empty where the response is a whole text.
    Verbatim(String),
}

impl Instruction {
    /// Returns the conversation that a chat template sees. A plain text becomes a user's message.
    pub fn conversation(&self) -> Conversation {
        match self {
            Self::Plain(text) | Self::Verbatim(text) => vec![Message::new("user", text)].into(),
            Self::Chat(conversation) => conversation.clone(),
        }
    }

    /// Returns the text for a template for plain texts.
    ///
    /// # Errors
    /// The reason, where the instruction is more than a user's text.
    pub fn plain(&self) -> Result<String, String> {
        match self {
            Self::Plain(text) | Self::Verbatim(text) => Ok(text.clone()),
            Self::Chat(conversation) => {
                conversation.check_plain()?;
                match conversation.messages.as_slice() {
                    [only] if only.role() == "user" => Ok(only.text()),
                    [first, user] if first.role() == "system" && user.role() == "user" => Err(
                        "a system message before the response needs --template chat (`--map system=` leaves a column `system` out)".into(),
                    ),
                    many => {
                        let n = many.len();
                        Err(format!("a conversation of {n} messages before the response needs --template chat"))
                    }
                }
            }
        }
    }

    /// Returns the text that a judge or a reader sees: a single message as it is; several messages, each behind its role; tools and tool
    /// calls in JSON.
    pub fn to_text(&self) -> String {
        match self {
            Self::Plain(text) | Self::Verbatim(text) => text.clone(),
            Self::Chat(conversation) => {
                let tools = conversation.inputs.tools.as_ref().map(|tools| format!("tools: {tools}"));
                let said = |message: &Message| format!("{}: {}", message.role(), message.shown());
                match (conversation.messages.as_slice(), &tools) {
                    ([one], None) => one.shown(),
                    (many, _) => tools.into_iter().chain(many.iter().map(said)).collect::<Vec<_>>().join("\n\n"),
                }
            }
        }
    }

    /// Adds a row's values for its chat template. If there are any, a plain text becomes a user's message.
    #[must_use]
    pub fn with_inputs(self, inputs: TemplateInputs) -> Self {
        match self {
            plain @ Self::Plain(_) if inputs == TemplateInputs::default() => plain,
            verbatim @ Self::Verbatim(_) => verbatim,
            other => Self::Chat(Conversation { inputs, ..other.conversation() }),
        }
    }
}

/// Response that is trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseText {
    /// Text of the assistant.
    Plain(String),
    /// Messages behind a prompt, the last of which is the assistant's. All of the assistant's messages are scored.
    Completion(Vec<Message>),
    /// Rest of a conversation from its first answer on, for `sft`. Every answer is scored, by the template's generation tags where it has
    /// them.
    Turns(Vec<Message>),
}

impl From<&str> for ResponseText {
    fn from(text: &str) -> Self {
        Self::Plain(text.into())
    }
}

impl From<String> for ResponseText {
    fn from(text: String) -> Self {
        Self::Plain(text)
    }
}

impl ResponseText {
    /// Returns the messages that a chat template sees.
    pub fn messages(&self) -> Vec<Message> {
        match self {
            Self::Plain(text) => vec![Message::new(ASSISTANT, text)],
            Self::Completion(messages) | Self::Turns(messages) => messages.clone(),
        }
    }

    /// Returns the text for a template for plain texts, or for a judge.
    ///
    /// # Errors
    /// The reason, where the response is more than a text.
    pub fn plain(&self) -> Result<String, String> {
        match self {
            Self::Plain(text) => Ok(text.clone()),
            Self::Completion(messages) | Self::Turns(messages) => match messages.as_slice() {
                [only] => check_plain(only).map(|()| only.text()),
                many => Err(format!("a response of {} messages needs --template chat", many.len())),
            },
        }
    }

    /// Returns whether an answer that is scored has neither text nor tool calls. White space alone does not count as text.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Plain(text) => text.trim().is_empty(),
            Self::Completion(messages) | Self::Turns(messages) => {
                let says_nothing = |message: &Message| message.text().trim().is_empty() && !message.has("tool_calls");
                let mut answers = messages.iter().filter(|message| message.is_assistant()).peekable();
                answers.peek().is_none() || answers.any(says_nothing)
            }
        }
    }
}

/// Instruction and its response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptResponse {
    /// I, the instruction.
    pub instruction: Instruction,
    /// R, the response; never empty.
    pub response: ResponseText,
}

impl PromptResponse {
    /// Splits a conversation before its last message, which must be the assistant's. `name` is the field's name, for messages.
    ///
    /// # Errors
    /// The reason, such as a last message that is not the assistant's.
    pub(super) fn last_turn(mut messages: Vec<Message>, name: &str) -> Result<Self, String> {
        check_ends(&messages, name)?;
        let response = ResponseText::Completion(messages.split_off(messages.len() - 1));
        Ok(Self { instruction: Instruction::Chat(messages.into()), response })
    }

    /// Splits a conversation before its first answer, so that every answer is part of the response.
    ///
    /// # Errors
    /// Fails like [`PromptResponse::last_turn`].
    pub(super) fn every_turn(mut messages: Vec<Message>, name: &str) -> Result<Self, String> {
        check_ends(&messages, name)?;
        let first = messages.iter().position(Message::is_assistant).unwrap_or(0);
        let response = ResponseText::Turns(messages.split_off(first));
        Ok(Self { instruction: Instruction::Chat(messages.into()), response })
    }

    /// Moves all messages but the last one into the instruction: `--last-turn-only`.
    pub fn keep_last_turn(&mut self) {
        let (ResponseText::Completion(messages) | ResponseText::Turns(messages)) = &mut self.response else { return };
        let last = messages.split_off(messages.len().saturating_sub(1));
        let mut before = self.instruction.conversation();
        if !messages.is_empty() {
            before.messages.append(messages);
            self.instruction = Instruction::Chat(before);
        }
        self.response = ResponseText::Completion(last);
    }

    /// Moves all turns but the last one into the instruction, where the response holds every turn. A completion stays whole.
    pub(super) fn turns_to_last(&mut self) {
        if matches!(self.response, ResponseText::Turns(_)) {
            self.keep_last_turn();
        }
    }

    /// Returns the whole conversation, and the index of the response's first message.
    pub fn conversation(&self) -> (Conversation, usize) {
        let mut whole = self.instruction.conversation();
        let first = whole.messages.len();
        whole.messages.extend(self.response.messages());
        (whole, first)
    }
}

fn check_ends(messages: &[Message], name: &str) -> Result<(), String> {
    match messages {
        [] => Err(format!("field `{name}`: no messages")),
        [.., last] if !last.is_assistant() => Err(format!(
            "field `{name}`: the last message must be the assistant's, its role is `{}`",
            last.role().escape_debug()
        )),
        [_] => Err(format!("field `{name}`: no message stands before the response")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_judge_sees_tools_and_their_calls() {
        let message =
            |value: Value| Message::from_object(value.as_object().expect("an object"), "m").expect("a message");
        let asked = message(json!({"role": "user", "content": "How warm is it?"}));
        let called = message(json!({"role": "assistant", "content": null, "tool_calls": [{"name": "weather"}]}));
        let plain = Instruction::Chat(vec![asked.clone()].into());
        assert_eq!(plain.to_text(), "How warm is it?");
        let with_call = Instruction::Chat(vec![asked, called].into());
        let text = "user: How warm is it?\n\nassistant: tool_calls: [{\"name\":\"weather\"}]";
        assert_eq!(with_call.to_text(), text);
        let inputs = TemplateInputs { tools: Some(json!([{"name": "weather"}])), ..TemplateInputs::default() };
        let text = "tools: [{\"name\":\"weather\"}]\n\nuser: How warm is it?";
        assert_eq!(plain.with_inputs(inputs).to_text(), text);
    }
}
