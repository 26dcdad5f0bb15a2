//! Two responses to one prompt. The prompt is a field, or the common beginning of whole conversations or whole texts.

use serde_json::Value;

use super::{CONVERSATIONS, FormError, asked};
use crate::data::conversation::{Instruction, Message, PromptResponse};
use crate::data::fields::synonyms::{any_text, hint};
use crate::data::fields::{RowFields, completion, messages, names};
use crate::data::row::RowContent;

/// Fields that may be the prompt of two responses. Without `prompt`, a row must have only one of them.
const ASKED: [&str; 4] = ["instruction", "question", "query", "input"];

/// Reads two responses to one prompt.
pub(super) fn preference(fields: &RowFields) -> Result<RowContent, FormError> {
    let both = |instruction: Instruction| {
        let chosen = fields.answered(instruction.clone(), "chosen")?;
        Ok(RowContent::Preference { chosen, rejected: fields.answered(instruction, "rejected")? })
    };
    // A whole conversation contains its prompt, whatever the other columns say. If there is a `prompt`, it is compared with the
    // conversation.
    let is_whole = fields.peek("chosen").is_some_and(is_conversation);
    if let Some(prompt) = pair_prompt(fields, is_whole)? {
        return both(asked(fields, prompt)?);
    }
    let is_answer = |answer: &Value| answer.as_array().is_none_or(|messages| messages.len() == 1);
    if let Some(field) = fields.first(&CONVERSATIONS)
        && fields.peek("chosen").is_some_and(is_answer)
    {
        return both(fields.instruction(field)?);
    }
    match [fields.need("chosen")?, fields.need("rejected")?] {
        [Value::String(chosen), Value::String(rejected)] => whole_texts(fields, chosen, rejected),
        _ => conversations(fields),
    }
}

/// Returns the field of the prompt of two responses: `prompt`, or the only field of [`ASKED`]. `input` may accompany another one.
pub(super) fn pair_prompt(fields: &RowFields, is_whole: bool) -> Result<Option<&'static str>, FormError> {
    if fields.has("prompt") {
        return Ok(Some("prompt"));
    }
    if is_whole {
        return Ok(None);
    }
    let found: Vec<&'static str> = ASKED.into_iter().filter(|field| fields.has(field)).collect();
    let prompt = match found[..] {
        [] => return Ok(None),
        // The conversation is the prompt, unless there is a field whose name says more clearly that it is a prompt.
        ["query" | "input", ..] if fields.any(&CONVERSATIONS) => return Ok(None),
        [one] | [one, "input"] => one,
        _ => {
            let maps: Vec<String> =
                found.iter().map(|field| format!("--map prompt={}", fields.map.name(field))).collect();
            return Err(format!(
                "more than one field may be the prompt ({}): `{}`",
                names(fields.object),
                maps.join("` or `")
            ));
        }
    };
    fields.set_prompt(prompt);
    Ok(Some(prompt))
}

/// Returns whether a list of messages begins with a message before the first answer.
pub(super) fn is_conversation(answer: &Value) -> bool {
    let speaker =
        |message: &Value| message.get("role").or(message.get("from")).and_then(Value::as_str).map(String::from);
    let first = answer.as_array().and_then(|messages| messages.first()).and_then(speaker);
    first.is_some_and(|speaker| ["system", "user", "human"].contains(&speaker.as_str()))
}

/// Reads whole conversations on both sides. The leading messages that they share are the prompt.
fn conversations(fields: &RowFields) -> Result<RowContent, FormError> {
    for name in ["chosen", "rejected"] {
        if fields.need(name)?.is_string() {
            return Err(format!(
                "field `{}` is text, so field `{}` is needed too ({}){}",
                fields.map.name(name),
                fields.map.name("prompt"),
                names(fields.object),
                hint(fields, "prompt")
            ));
        }
    }
    let (chosen_name, rejected_name) = (fields.map.name("chosen"), fields.map.name("rejected"));
    let chosen = messages(fields.need("chosen")?, chosen_name)?;
    let rejected = messages(fields.need("rejected")?, rejected_name)?;
    let shared = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
    let shortest = chosen.len().min(rejected.len());
    // Conversations may be equal, or one may continue the other. The last message of the shorter one is then the response.
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
    Ok(RowContent::Preference { chosen: side(chosen, chosen_name)?, rejected: side(rejected, rejected_name)? })
}

/// Marker before a response in hh-rlhf's texts.
const TURN: &str = "\n\nAssistant:";

/// Reads whole texts on both sides. The prompt is their common beginning, up to the last turn where turns are marked, else as TRL's
/// `extract_prompt` cuts it.
fn whole_texts(fields: &RowFields, chosen: &str, rejected: &str) -> Result<RowContent, FormError> {
    let hint = hint(fields, "prompt");
    let mut shared: usize =
        chosen.chars().zip(rejected.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
    if let Some(turn) = chosen[..shared].rfind(TURN) {
        shared = turn + TURN.len();
    } else if chosen[..shared].ends_with(' ') {
        shared -= 1;
    }
    if shared == 0 || !hint.is_empty() {
        let (sides, prompt) = (["chosen", "rejected"].map(|name| fields.map.name(name)), fields.map.name("prompt"));
        let why = if shared == 0 { " that don't begin alike" } else { "" };
        let hint = if hint.is_empty() { any_text(fields) } else { hint };
        return Err(format!(
            "fields `{}` and `{}` are texts{why}, so field `{prompt}` is needed too ({}){hint}",
            sides[0],
            sides[1],
            names(fields.object)
        ));
    }
    let side = |whole: &str| PromptResponse {
        instruction: Instruction::Verbatim(whole[..shared].into()),
        response: whole[shared..].into(),
    };
    Ok(RowContent::Preference { chosen: side(chosen), rejected: side(rejected) })
}
