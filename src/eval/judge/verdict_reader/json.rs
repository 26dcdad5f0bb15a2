//! Verdicts in JSON: `{"winner": "a"}`, alone, in a code fence, or behind an explanation, with any other fields.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::{plain, statement};
use crate::eval::judge::Choice;

/// Names of fields with the better side, compared without case, spaces and underscores.
const BETTER: &[&str] = &[
    "winner",
    "verdict",
    "finalverdict",
    "answer",
    "finalanswer",
    "choice",
    "finalchoice",
    "better",
    "best",
    "betteroutput",
    "betterresponse",
    "betteranswer",
    "bestoutput",
    "bestresponse",
    "preferred",
    "preferredoutput",
    "preferredresponse",
    "preference",
    "decision",
    "finaldecision",
    "final",
    "result",
    "judgment",
    "judgement",
    "finaljudgment",
    "selected",
    "selection",
    "chosen",
    "output",
    "pick",
    "winningoutput",
    "winningresponse",
];
/// Names of fields with the worse side.
const WORSE: &[&str] =
    &["loser", "worse", "worst", "rejected", "worseoutput", "worseresponse", "losingoutput", "losingresponse"];

/// Neutral words in the name of an object's only field.
const PLAIN: &[&str] = &["label", "value", "text", "content", "letter", "side"];

/// Largest number of bytes of a dictionary in Python's notation.
const MOST_PRINTED: usize = 500;

/// Part of an answer.
#[derive(Debug, PartialEq)]
pub enum JsonPiece<'a> {
    /// Text that is not JSON.
    Text(&'a str),
    /// Object with a field that names a side: its verdict; `None` where its fields disagree.
    Object(Option<Choice>),
}

/// Fields of an object, including repeated names.
struct VerdictFields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for VerdictFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = VerdictFields;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VerdictFields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(VerdictFields(fields))
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// Parses the object at the beginning of a text. Returns it with its length in bytes.
fn object(text: &str) -> Option<(VerdictFields, usize)> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<VerdictFields>();
    if let Ok(fields) = stream.next()? {
        return Some((fields, stream.byte_offset()));
    }
    // The object may be a dictionary in Python's notation.
    let length = text.find('}')? + 1;
    let printed =
        text.get(..length).filter(|printed| printed.len() < MOST_PRINTED && !printed.contains(['"', '\\']))?;
    Some((serde_json::from_str(&printed.replace('\'', "\"")).ok()?, length))
}

impl VerdictFields {
    /// Returns the choice in the fields with these names. `None`: there is no such field. `Some(None)`: the fields disagree, or do not name
    /// a side.
    fn named(&self, names: &[&str]) -> Option<Option<Choice>> {
        let name = |name: &str| name.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
        let values =
            self.0.iter().filter(|(field, _)| names.contains(&name(field).as_str())).map(|(_, value)| side(value));
        values.reduce(|a, b| if a == b { a } else { None })
    }

    /// Returns the side that an object's only field names, if the field's name consists of neutral words: those that may stand before a
    /// side, or [`PLAIN`].
    fn only(&self) -> Option<Option<Choice>> {
        let [(name, value)] = &self.0[..] else { return None };
        let lower = name.to_lowercase();
        let mut words = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).peekable();
        let is_plain = words.peek().is_some() && words.all(|word| PLAIN.contains(&word) || statement::is_lead(word));
        side(value)
            .filter(|_| is_plain && !lower.split(|c: char| !c.is_alphanumeric()).any(statement::is_doubt))
            .map(Some)
    }

    /// Returns the verdict of the fields: `None` where no field names a side; `Some(None)` where they disagree.
    fn verdict(&self) -> Option<Option<Choice>> {
        let better = self.named(BETTER).or_else(|| self.only())?;
        let worse = self.named(WORSE).flatten();
        Some(better.filter(|choice| worse != Some(*choice) && !self.denies()))
    }

    /// Returns whether a field such as `is_correct` is false. The object then judges another answer, and is not a verdict.
    fn denies(&self) -> bool {
        let is_no = |value: &Value| match value {
            Value::Bool(is_so) => !is_so,
            Value::String(text) => ["false", "no"].iter().any(|no| text.trim().eq_ignore_ascii_case(no)),
            _ => false,
        };
        let is_about =
            |name: &str| ["correct", "better", "winner"].iter().any(|word| name.to_lowercase().contains(word));
        self.0.iter().any(|(name, value)| is_about(name) && is_no(value))
    }
}

/// Returns the side that a field's value names.
fn side(value: &Value) -> Option<Choice> {
    statement::inside(&plain::plain(value.as_str()?.trim()))
}

/// Splits an answer at the objects that name a side.
pub fn pieces(text: &str) -> Vec<JsonPiece<'_>> {
    let mut pieces = Vec::new();
    let (mut start, mut from) = (0, 0);
    while let Some(at) = text[from..].find('{').map(|at| from + at) {
        let found = object(&text[at..]).and_then(|(fields, length)| Some((fields.verdict()?, length)));
        match found {
            Some((verdict, length)) => {
                pieces.push(JsonPiece::Text(&text[start..at]));
                pieces.push(JsonPiece::Object(verdict));
                start = at + length;
                from = start;
            }
            None => from = at + 1,
        }
    }
    pieces.push(JsonPiece::Text(&text[start..]));
    pieces
}

/// Returns the verdict of a text that consists of one object.
pub fn whole(text: &str) -> Option<Choice> {
    let (fields, length) = object(text)?;
    (length == text.len()).then(|| fields.verdict().flatten()).flatten()
}
