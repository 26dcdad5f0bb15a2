//! Rows of JSONL and Parquet: the paper's form and TRL's, recognised row by row from the fields that are there.

use std::io::{BufRead, Read};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

pub use super::conversation::{Conversation, Instruction, Message, Response, TemplateInputs, Text};
use super::fields::{Fields, completion, messages};
use super::source::for_each_row;
use crate::error::{Error, Result};

/// The forms of a row, as error messages list them.
pub const FORMS: &str = "{i_chosen, r_chosen, i_reject, r_reject}, {prompt, chosen, rejected}, {chosen, rejected} as conversations, \
     {prompt_chosen, chosen, prompt_rejected, rejected}, {instruction, response}, {prompt, completion}, {messages}; one text may have a {label}, true or false";

/// What a row holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Two sides; their instructions may differ.
    Preference {
        /// Preferred.
        chosen: Text,
        /// The other one.
        rejected: Text,
    },
    /// One text to imitate.
    Single(Text),
    /// One text, desirable or not.
    Labelled(Text, bool),
}

impl Content {
    /// A text's label; none of other rows.
    pub fn label(&self) -> Option<bool> {
        match self {
            Self::Labelled(_, desirable) => Some(*desirable),
            Self::Preference { .. } | Self::Single(_) => None,
        }
    }

    /// Its texts: chosen and rejected, or one.
    pub fn texts(&self) -> Vec<&Text> {
        match self {
            Self::Preference { chosen, rejected } => vec![chosen, rejected],
            Self::Single(text) | Self::Labelled(text, _) => vec![text],
        }
    }

    /// Scores the last answer of single texts alone: `--last-turn-only`.
    pub fn keep_last_turn(&mut self) {
        if let Self::Single(text) | Self::Labelled(text, _) = self {
            text.keep_last_turn();
        }
    }

    fn texts_mut(&mut self) -> Vec<&mut Text> {
        match self {
            Self::Preference { chosen, rejected } => vec![chosen, rejected],
            Self::Single(text) | Self::Labelled(text, _) => vec![text],
        }
    }
}

/// Where a row was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: Arc<Path>,
    /// Its line, from 1.
    pub line: usize,
}

impl Place {
    /// The error of this row.
    pub fn error(&self, reason: impl ToString) -> Error {
        Error::line(&self.path, self.line, reason)
    }
}

/// A row and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// File and line.
    pub place: Place,
    /// What it holds.
    pub content: Content,
}

/// What the rows are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Every row must hold a preference.
    Preference,
    /// Every row must hold a preference, or a text with a label.
    Judgement,
    /// Every row becomes a single text: a preference gives its chosen side.
    Sft,
    /// Rows as they are.
    Any,
}

/// `--map field=name`: our name of a field → its name in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldMap(Vec<(&'static str, String)>);

/// Bytes of a line: none is held that is longer.
const MAX_LINE_BYTES: u64 = 64 << 20;

const FIELDS: [&str; 19] = [
    "i_chosen",
    "r_chosen",
    "i_reject",
    "r_reject",
    "prompt",
    "chosen",
    "rejected",
    "prompt_chosen",
    "prompt_rejected",
    "instruction",
    "response",
    "completion",
    "messages",
    "gold_response",
    "label",
    "instruction_0",
    "response_0",
    "instruction_1",
    "response_1",
];

impl FieldMap {
    /// From the values of `--map`.
    ///
    /// # Errors
    /// [`Error::Flag`] for a value without `=`, an unknown field, or a field given twice.
    pub fn parse(values: &[impl AsRef<str>]) -> Result<Self> {
        let mut map = Self::default();
        for value in values.iter().map(AsRef::as_ref) {
            let Some((field, name)) = value.split_once('=').filter(|(_, name)| !name.is_empty()) else {
                return Err(Error::flag("map", format!("`{value}`: expected field=name, such as prompt=question")));
            };
            let Some(known) = FIELDS.iter().find(|known| **known == field) else {
                return Err(Error::flag("map", format!("`{field}` is not a field; fields are {}", FIELDS.join(", "))));
            };
            if map.0.iter().any(|(taken, _)| taken == known) {
                return Err(Error::flag("map", format!("field `{field}` is mapped twice")));
            }
            map.0.push((known, name.into()));
        }
        Ok(map)
    }

    /// The file's name of our field.
    pub fn name<'a>(&'a self, field: &'a str) -> &'a str {
        self.0.iter().find(|(known, _)| *known == field).map_or(field, |(_, name)| name)
    }
}

/// Reads a JSONL or Parquet file, here or on the hub. A byte order mark, CRLF and blank lines are tolerated.
///
/// # Errors
/// [`Error::Line`] for a malformed line, a missing field, a wrong type, an empty response, or a row that does not serve the
/// purpose; [`Error::File`] where the file cannot be read or has no rows.
pub fn read_rows(path: impl AsRef<Path>, map: &FieldMap, purpose: Purpose) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for_each_row(path.as_ref(), |place, object| {
        rows.push(Row { content: content_for(&object, map, purpose)?, place });
        Ok(())
    })?;
    Ok(rows)
}

/// The same of JSON lines; `path` is for messages.
///
/// # Errors
/// As [`read_rows`].
pub fn parse_rows(path: &Path, text: impl BufRead, map: &FieldMap, purpose: Purpose) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for_each_object(path, text, |place, object| {
        rows.push(Row { content: content_for(&object, map, purpose)?, place });
        Ok(())
    })?;
    Ok(rows)
}

/// What a row holds, as it serves the purpose.
fn content_for(object: &Map<String, Value>, map: &FieldMap, purpose: Purpose) -> std::result::Result<Content, String> {
    let fields = Fields { object, map };
    let label = fields.get("label");
    let is_label = label.is_some_and(Value::is_boolean);
    match (content(&fields)?, purpose) {
        (Content::Preference { chosen, .. }, Purpose::Sft) => Ok(Content::Single(chosen)),
        (Content::Single(_), Purpose::Sft) if label.and_then(Value::as_bool) == Some(false) => {
            Err(format!("the label says that the text is not one to imitate (`{}`: false)", map.name("label")))
        }
        (Content::Single(mut text), Purpose::Judgement | Purpose::Any) if is_label => {
            // The label is of the last answer.
            text.turns_to_last();
            Ok(Content::Labelled(text, label == Some(&Value::Bool(true))))
        }
        (Content::Single(_), Purpose::Judgement) => {
            let found = label.map_or("nothing", super::fields::kind);
            Err(format!("field `{}`: expected true or false, found {found}", map.name("label")))
        }
        (Content::Single(_), Purpose::Preference) if is_label => {
            Err("the row holds one text with a label, which --loss kto learns from, not a preference".into())
        }
        (Content::Single(_), Purpose::Preference) => Err(format!(
            "the row holds one text, not a preference ({}); a preference is one of: {}",
            super::fields::names(object),
            &FORMS[..FORMS.find(", {instruction").unwrap_or(FORMS.len())]
        )),
        (content, _) => Ok(content),
    }
}

/// Every row of a file as an object, as it stands there.
///
/// # Errors
/// As [`read_rows`].
pub fn read_objects(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let mut all = Vec::new();
    for_each_row(path, |_, object| {
        all.push(object);
        Ok(())
    })?;
    Ok(all)
}

/// Calls `take` with every object of JSONL text; a reason that it returns becomes the line's error.
pub(super) fn for_each_object(
    path: &Path,
    mut text: impl BufRead,
    mut take: impl FnMut(Place, Map<String, Value>) -> std::result::Result<(), String>,
) -> Result<()> {
    let shared: Arc<Path> = path.into();
    let (mut buffer, mut line, mut found) = (Vec::new(), 0, false);
    loop {
        buffer.clear();
        let mut one = (&mut text).take(MAX_LINE_BYTES + 1);
        if one.read_until(b'\n', &mut buffer).map_err(|e| Error::file(path, e))? == 0 {
            break;
        }
        line += 1;
        let place = Place { path: shared.clone(), line };
        if buffer.len() as u64 > MAX_LINE_BYTES {
            return Err(place.error(format!("the line is longer than {} MiB", MAX_LINE_BYTES >> 20)));
        }
        let mut bytes = buffer.as_slice();
        if line == 1 {
            bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let text = std::str::from_utf8(bytes.trim_ascii_end())
            .map_err(|e| place.error(format!("not UTF-8 from byte {}", e.valid_up_to() + 1)))?;
        let object = object(text).map_err(|reason| place.error(reason))?;
        found = true;
        take(place.clone(), object).map_err(|reason| place.error(reason))?;
    }
    if found { Ok(()) } else { Err(Error::file(path, "the file holds no rows")) }
}

fn object(text: &str) -> std::result::Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(format!("expected one JSON object a line, found {}", super::fields::kind(&other))),
        Err(error) => {
            let column = error.column();
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            if ["[", "{"].contains(&text.trim_ascii_start()) {
                return Err(
                    "malformed JSON: expected one object a line (JSONL), found the start of one that spans lines"
                        .into(),
                );
            }
            Err(format!("malformed JSON: {message}, column {column}"))
        }
    }
}

fn content(fields: &Fields) -> std::result::Result<Content, String> {
    let any = |names: &[&str]| names.iter().any(|name| fields.get(name).is_some());
    let content = if any(&["i_chosen", "r_chosen", "i_reject", "r_reject"]) {
        let side = |i: &str, r: &str| {
            Ok::<_, String>(Text { instruction: Instruction::Plain(fields.text(i)?), response: fields.text(r)?.into() })
        };
        Content::Preference { chosen: side("i_chosen", "r_chosen")?, rejected: side("i_reject", "r_reject")? }
    } else if any(&["prompt_chosen", "prompt_rejected"]) {
        Content::Preference {
            chosen: fields.answered("prompt_chosen", "chosen")?,
            rejected: fields.answered("prompt_rejected", "rejected")?,
        }
    } else if any(&["chosen", "rejected"]) && fields.get("prompt").is_some() {
        Content::Preference {
            chosen: fields.answered("prompt", "chosen")?,
            rejected: fields.answered("prompt", "rejected")?,
        }
    } else if any(&["chosen", "rejected"]) {
        implicit(fields)?
    } else if any(&["messages"]) {
        let name = fields.map.name("messages");
        Content::Single(Text::every_turn(messages(fields.need("messages")?, name)?, name)?)
    } else if any(&["completion"]) {
        Content::Single(fields.answered("prompt", "completion")?)
    } else if any(&["instruction", "response"]) {
        Content::Single(fields.answered("instruction", "response")?)
    } else {
        return Err(format!(
            "no form of row has these fields ({}); a row is one of: {FORMS}",
            super::fields::names(fields.object)
        ));
    };
    let inputs = fields.inputs()?;
    let mut content = content;
    for text in content.texts_mut() {
        let instruction = std::mem::replace(&mut text.instruction, Instruction::Plain(String::new()));
        text.instruction = instruction.with_inputs(inputs.clone());
    }
    let sides = content.texts();
    let names = if sides.len() == 2 { ["chosen ", "rejected "] } else { ["", ""] };
    match sides.iter().position(|text| text.response.is_empty()) {
        Some(side) => Err(format!("the {}response is empty", names[side])),
        None => Ok(content),
    }
}

/// Whole conversations on both sides: the shared leading messages are the prompt.
fn implicit(fields: &Fields) -> std::result::Result<Content, String> {
    for name in ["chosen", "rejected"] {
        if fields.need(name)?.is_string() {
            return Err(format!(
                "field `{}` is text, so field `{}` is needed too",
                fields.map.name(name),
                fields.map.name("prompt")
            ));
        }
    }
    let (chosen_name, rejected_name) = (fields.map.name("chosen"), fields.map.name("rejected"));
    let chosen = messages(fields.need("chosen")?, chosen_name)?;
    let rejected = messages(fields.need("rejected")?, rejected_name)?;
    let shared = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
    let shortest = chosen.len().min(rejected.len());
    // Equal conversations, or one that goes on where the other ends: the last message of the shorter one is the response.
    let shared = shared.min(shortest - 1);
    if ![&chosen, &rejected].iter().all(|side| side[shared].is_assistant()) {
        return Err(format!(
            "`{chosen_name}` ({} messages) and `{rejected_name}` ({}) share their first {shared}; what follows must begin with an assistant \
             message on both sides",
            chosen.len(),
            rejected.len()
        ));
    }
    let side = |mut messages: Vec<Message>, name: &str| {
        let said = messages.split_off(shared);
        completion(messages.into(), said, name)
    };
    Ok(Content::Preference { chosen: side(chosen, chosen_name)?, rejected: side(rejected, rejected_name)? })
}
