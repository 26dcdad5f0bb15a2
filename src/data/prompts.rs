//! Prompts to answer: test rows {instruction, gold_response}, or the instructions of any other form of row.

use std::path::Path;

use super::conversation::{Instruction, Message, Text};
use super::fields::{Fields, messages};
use super::rows::{FieldMap, Place};
use super::source::for_each_row;
use crate::error::Result;

/// An instruction, and the response that it is compared with where the row has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// File and line.
    pub place: Place,
    /// I.
    pub instruction: Instruction,
    /// `gold_response`, else the row's (chosen) response.
    pub gold: Option<String>,
}

/// Reads the instructions of a JSONL file: `instruction`, `prompt`, `messages`, `i_chosen` or `prompt_chosen`.
///
/// # Errors
/// As [`super::rows::read_rows`].
pub fn read_prompts(path: impl AsRef<Path>, map: &FieldMap) -> Result<Vec<Prompt>> {
    let (path, mut prompts) = (path.as_ref(), Vec::new());
    for_each_row(path, |place, object| {
        let fields = Fields { object: &object, map };
        let gold = ["gold_response", "response", "completion", "r_chosen", "chosen"]
            .iter()
            .find_map(|name| fields.get(name)?.as_str())
            .map(String::from);
        let forms = ["instruction", "prompt", "i_chosen", "prompt_chosen"];
        let (instruction, gold) = match forms.iter().find(|name| fields.get(name).is_some()) {
            Some(name) => (fields.instruction(name)?, gold),
            None if fields.get("messages").is_some() => {
                let messages = messages(fields.need("messages")?, map.name("messages"))?;
                if messages.last().is_some_and(Message::is_assistant) {
                    let text = Text::last_turn(messages, map.name("messages"))?;
                    let gold = text.response.messages().last().map(Message::text);
                    (text.instruction, gold)
                } else {
                    (Instruction::Chat(messages.into()), gold)
                }
            }
            None => {
                return Err(format!(
                    "no field `instruction`, `prompt` or `messages` ({})",
                    super::fields::names(&object)
                ));
            }
        };
        prompts.push(Prompt { place, instruction: instruction.with_inputs(fields.inputs()?), gold });
        Ok(())
    })?;
    Ok(prompts)
}
