//! Forms of rows: which fields make a preference, a text to train on or a prompt, and how further columns become part of it.

use serde_json::Value;

use super::conversation::{Instruction, Message, PromptResponse};
use super::fields::synonyms::{hint, no_form, refused_form};
use super::fields::{RowFields, messages};
use super::json_kind::kind;
use super::row::RowContent;
use pairs::{is_conversation, pair_prompt, preference};

mod pairs;

type FormError = String;

/// Possible fields of the prompt, in rows with `completion` or two responses.
const PROMPTS: [&str; 3] = ["prompt", "instruction", "question"];
/// Possible fields of the prompt, in rows with `response` or `output`.
const INSTRUCTIONS: [&str; 3] = ["instruction", "prompt", "question"];
/// Possible fields of a single response.
const RESPONSES: [&str; 3] = ["completion", "response", "output"];
/// Possible fields of a conversation.
const CONVERSATIONS: [&str; 2] = ["messages", "conversations"];
/// Possible fields of a text behind the prompt, as in Alpaca and Dolly.
const INPUTS: [&str; 2] = ["input", "context"];
/// Possible fields of a system message.
const SYSTEMS: [&str; 2] = ["system", "system_prompt"];

/// Reads the contents of a row.
///
/// # Errors
/// The reason, which names the field.
pub(super) fn content(fields: &RowFields) -> Result<RowContent, FormError> {
    let mut content = form(fields)?;
    for text in content.texts_mut() {
        let instruction = std::mem::replace(&mut text.instruction, Instruction::Plain(String::new()));
        text.instruction = framed(fields, instruction)?;
    }
    let sides = content.texts();
    let names = if sides.len() == 2 { ["chosen ", "rejected "] } else { ["", ""] };
    match sides.iter().position(|text| text.response.is_empty()) {
        Some(side) => Err(format!("the {}response is empty", names[side])),
        None => Ok(content),
    }
}

fn form(fields: &RowFields) -> Result<RowContent, FormError> {
    if fields.any(&["i_chosen", "r_chosen", "i_reject", "r_reject"]) {
        let side = |i: &str, r: &str| {
            Ok::<_, FormError>(PromptResponse {
                instruction: Instruction::Plain(fields.text(i)?),
                response: fields.text(r)?.into(),
            })
        };
        let (chosen, rejected) = (side("i_chosen", "r_chosen")?, side("i_reject", "r_reject")?);
        return Ok(RowContent::Preference { chosen, rejected });
    }
    if fields.any(&["prompt_chosen", "prompt_rejected"]) {
        let side = |prompt: &str, answer: &str| fields.answered(fields.instruction(prompt)?, answer);
        let (chosen, rejected) = (side("prompt_chosen", "chosen")?, side("prompt_rejected", "rejected")?);
        return Ok(RowContent::Preference { chosen, rejected });
    }
    if fields.any(&["chosen", "rejected"]) {
        return preference(fields);
    }
    let has_pair = fields.first(prompts(fields)).is_some() && fields.any(&RESPONSES);
    if let Some(field) = fields.first(&CONVERSATIONS).filter(|field| *field == "messages" || !has_pair) {
        let name = fields.map.name(field);
        return PromptResponse::every_turn(messages(fields.need(field)?, name)?, name).map(RowContent::Single);
    }
    match (fields.first(prompts(fields)), fields.first(&RESPONSES)) {
        (None, None) if fields.has("text") => {
            let (instruction, response) = (Instruction::Verbatim(String::new()), fields.text("text")?.into());
            Ok(RowContent::Single(PromptResponse { instruction, response }))
        }
        (None, None) => Err(refused_form(fields).unwrap_or_else(|| no_form(fields))),
        (prompt, answer) => {
            if let (None, Some(reason)) = (answer, refused_form(fields)) {
                return Err(reason);
            }
            let prompt = prompt.unwrap_or(prompts(fields)[0]);
            let answer = answer.unwrap_or(if prompt == "instruction" { "response" } else { "completion" });
            let text = fields.answered(asked(fields, prompt)?, answer)?;
            // Answers in a history are turns of the conversation, like those in `messages`.
            match fields.peek("history").and_then(Value::as_array).is_some_and(|turns| !turns.is_empty()) {
                true => PromptResponse::every_turn(text.conversation().0.messages, answer).map(RowContent::Single),
                false => Ok(RowContent::Single(text)),
            }
        }
    }
}

/// Returns the possible fields of the prompt, in the order in which they are looked up for this row: with TRL's names for responses, TRL's
/// names come first, else Alpaca's.
fn prompts(fields: &RowFields) -> &'static [&'static str] {
    if fields.any(&["completion", "chosen", "rejected"]) { &PROMPTS } else { &INSTRUCTIONS }
}

/// Reads a prompt with its context: `input` or `context` behind it, joined as in LLaMA-Factory, and `history` before it.
fn asked(fields: &RowFields, prompt: &str) -> Result<Instruction, FormError> {
    let mut instruction = fields.instruction(prompt)?;
    let behind: Vec<&'static str> = INPUTS.into_iter().filter(|field| *field != prompt).collect();
    if let Some((field, more)) = one_text(fields, &behind)? {
        let Instruction::Plain(text) = &mut instruction else {
            return Err(format!(
                "field `{}` is text, and `{}` a list of messages, which it cannot stand behind ({})",
                fields.map.name(field),
                fields.map.name(prompt),
                left_out(field)
            ));
        };
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(more);
    }
    match history(fields)? {
        before if before.is_empty() => Ok(instruction),
        before => {
            let mut conversation = instruction.conversation();
            let at = conversation.messages.iter().take_while(|message| message.role() == "system").count();
            conversation.messages.splice(at..at, before);
            Ok(Instruction::Chat(conversation))
        }
    }
}

/// Fields with context that cannot be shown to a judge, who sees a single text.
const FRAMES: [&str; 5] = ["system", "system_prompt", "history", "tools", "chat_template_kwargs"];

/// Reads the instruction of a row to judge, followed by its `input` or `context`, as the single text that a judge sees.
///
/// # Errors
/// The reason, for context that cannot be part of that text.
pub(super) fn judged_instruction(fields: &RowFields) -> Result<String, FormError> {
    let instruction = framed(fields, asked(fields, "instruction")?)?;
    refuse_beside(fields, &FRAMES, "a judge sees one text, field `instruction`: put it there")?;
    instruction.plain()
}

/// Returns an error for context in a joint pair, because it is not known to which of its two instructions the context belongs.
///
/// # Errors
/// The reason.
pub(super) fn refuse_beside_pair(fields: &RowFields) -> Result<(), FormError> {
    let why = "a joint pair has two instructions, and it may belong to either: put it into `instruction_0` and `instruction_1`";
    refuse_beside(fields, &INPUTS, why)?;
    refuse_beside(fields, &FRAMES, why)?;
    match SIDED.iter().find(|name| fields.peek(name).is_some_and(says_something)) {
        Some(name) => Err(format!(
            "field `{name}`: a joint pair's sides have an instruction and a response: put the text into the instruction, or give the column \
             another name"
        )),
        None => Ok(()),
    }
}

/// Columns whose names suggest that they belong to one side of a joint pair.
const SIDED: [&str; 8] =
    ["input_0", "input_1", "context_0", "context_1", "system_0", "system_1", "history_0", "history_1"];

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

fn refuse_beside(fields: &RowFields, names: &[&str], why: &str) -> Result<(), FormError> {
    match names.iter().find(|name| fields.peek(name).is_some_and(says_something)) {
        Some(name) => Err(format!("field `{}`: {why}, or {}", fields.map.name(name), left_out(name))),
        None => Ok(()),
    }
}

/// Returns the columns of the texts behind a row's prompt.
pub(super) fn input_columns<'a>(fields: &RowFields<'a>) -> impl Iterator<Item = &'a str> {
    let holds_text = |name: &&str| fields.peek(name).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
    INPUTS.into_iter().filter(holds_text).filter_map(|name| fields.map.column(name))
}

/// Reads `history`: a list of [user's text, assistant's text].
fn history(fields: &RowFields) -> Result<Vec<Message>, FormError> {
    let Some(turns) = fields.get("history") else { return Ok(Vec::new()) };
    let wrong = |found: &Value| {
        let (name, found) = (fields.map.name("history"), kind(found));
        format!(
            "field `{name}`: expected a list of [user's text, assistant's text], found {found} ({})",
            left_out("history")
        )
    };
    let mut all = Vec::new();
    for turn in turns.as_array().ok_or_else(|| wrong(turns))? {
        let texts = turn.as_array().map(|texts| texts.iter().map(Value::as_str).collect::<Vec<_>>());
        let Some(&[Some(user), Some(assistant)]) = texts.as_deref() else { return Err(wrong(turn)) };
        all.extend([Message::new("user", user), Message::new("assistant", assistant)]);
    }
    Ok(all)
}

/// Inserts a row's system message before the other messages, and adds the row's values for its chat template.
fn framed(fields: &RowFields, instruction: Instruction) -> Result<Instruction, FormError> {
    if let Instruction::Verbatim(_) = instruction {
        return Ok(instruction);
    }
    let instruction = match one_text(fields, &SYSTEMS)? {
        None => instruction,
        Some((field, system)) => {
            let mut conversation = instruction.conversation();
            match conversation.messages.first().filter(|first| first.role() == "system") {
                None => conversation.messages.insert(0, Message::new("system", system)),
                Some(own) if own.text() == system => {}
                Some(_) => {
                    return Err(format!(
                        "field `{}` and the messages' own system message differ ({})",
                        fields.map.name(field),
                        left_out(field)
                    ));
                }
            }
            Instruction::Chat(conversation)
        }
    };
    Ok(instruction.with_inputs(fields.inputs()?))
}

/// Reads a text that may be in one of several fields. An empty text counts as absent.
fn one_text<'a>(fields: &RowFields<'a>, names: &[&'static str]) -> Result<Option<(&'static str, &'a str)>, FormError> {
    let mut found = None;
    for name in names {
        let text = match fields.get(name) {
            None => continue,
            Some(Value::String(text)) => text.as_str(),
            Some(other) => {
                let (column, other) = (fields.map.name(name), kind(other));
                return Err(format!("field `{column}`: expected text, found {other} ({})", left_out(name)));
            }
        };
        match found {
            _ if text.is_empty() => {}
            None => found = Some((*name, text)),
            Some((_, before)) if before == text => {}
            Some((before, _)) => {
                let columns = [before, name].map(|name| fields.map.name(name));
                return Err(format!(
                    "fields `{}` and `{}` say different things ({})",
                    columns[0],
                    columns[1],
                    left_out(name)
                ));
            }
        }
    }
    Ok(found)
}

/// Returns the advice to leave a column out.
fn left_out(field: &str) -> String {
    format!("--map {field}= leaves it out")
}

/// Reads a row's label: true or false, 1 or 0, 1 or -1.
///
/// # Errors
/// The reason, for any other value.
pub(super) fn label(fields: &RowFields) -> Result<Option<bool>, FormError> {
    let Some(value) = fields.get("label") else { return Ok(None) };
    let known = match value {
        Value::Bool(label) => Some(*label),
        Value::Number(number) => match number.as_f64() {
            Some(1.0) => Some(true),
            Some(0.0 | -1.0) => Some(false),
            _ => None,
        },
        // Tables contain only texts.
        Value::String(text) if text.eq_ignore_ascii_case("true") || ["1", "1.0"].contains(&text.as_str()) => Some(true),
        Value::String(text)
            if text.eq_ignore_ascii_case("false") || ["0", "0.0", "-1", "-1.0"].contains(&text.as_str()) =>
        {
            Some(false)
        }
        _ => None,
    };
    known.map(Some).ok_or_else(|| {
        let found = match value {
            Value::Number(number) => number.to_string(),
            Value::String(text) => format!("`{}`", text.chars().take(40).collect::<String>().escape_debug()),
            other => kind(other).into(),
        };
        let name = fields.map.name("label");
        format!("field `{name}`: expected true or false (or 1 or 0, 1 or -1), found {found} ({})", left_out("label"))
    })
}

/// Reads a row's instruction, and its response where it has one.
///
/// # Errors
/// The reason, which names the field.
pub(super) fn prompt(fields: &RowFields) -> Result<(Instruction, Option<String>), FormError> {
    let (instruction, response) = prompt_form(fields)?;
    let gold = match fields.get("gold_response") {
        None => response,
        Some(Value::String(gold)) => Some(gold.clone()),
        Some(other) => {
            let (name, found) = (fields.map.name("gold_response"), kind(other));
            return Err(format!("field `{name}`: expected text, found {found} ({})", left_out("gold_response")));
        }
    };
    Ok((framed(fields, instruction)?, gold))
}

fn prompt_form(fields: &RowFields) -> Result<(Instruction, Option<String>), FormError> {
    let of_text = |text: PromptResponse| {
        let response = text.response.messages().last().map(Message::text);
        (text.instruction, response)
    };
    let answered = |instruction: Instruction, answer: &str| match fields.has(answer) {
        true => fields.answered(instruction, answer).map(of_text),
        false => Ok((instruction, None)),
    };
    if fields.has("i_chosen") {
        return answered(Instruction::Plain(fields.text("i_chosen")?), "r_chosen");
    }
    if fields.has("prompt_chosen") {
        return answered(fields.instruction("prompt_chosen")?, "chosen");
    }
    let is_whole = !fields.any(&RESPONSES) && fields.peek("chosen").is_some_and(is_conversation);
    let is_pair = !fields.any(&RESPONSES) && fields.any(&["chosen", "rejected"]);
    let prompt = match is_pair {
        true => pair_prompt(fields, is_whole)?,
        false => fields.first(prompts(fields)).filter(|prompt| *prompt == "prompt" || !is_whole),
    };
    if let Some(prompt) = prompt {
        let answer = fields.first(&RESPONSES).unwrap_or("chosen");
        return answered(asked(fields, prompt)?, answer);
    }
    if fields.any(&["chosen", "rejected"]) {
        return match preference(fields)? {
            RowContent::Preference { chosen, .. } => Ok(of_text(chosen)),
            RowContent::Single(text) | RowContent::Labelled(text, _) => Ok(of_text(text)),
            RowContent::Unreadable(reason) => Err(reason),
        };
    }
    if let Some(field) = fields.first(&CONVERSATIONS) {
        let name = fields.map.name(field);
        let messages = messages(fields.need(field)?, name)?;
        return match messages.last().is_some_and(Message::is_assistant) {
            true => PromptResponse::last_turn(messages, name).map(of_text),
            false => Ok((Instruction::Chat(messages.into()), None)),
        };
    }
    if fields.has("text") {
        let name = fields.map.name("text");
        return Err(format!("field `{name}` is a whole text, not a prompt (--map prompt={name} reads it as one)"));
    }
    Err(format!(
        "no field `instruction`, `prompt` or `messages` ({}){}",
        super::fields::names(fields.object),
        hint(fields, "prompt")
    ))
}
