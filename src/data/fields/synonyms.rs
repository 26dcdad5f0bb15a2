//! Names that other data sets use for our fields. Errors suggest them for `--map`.

use serde_json::Value;

use super::{RowFields, names};
use crate::data::form_names::FORMS;

/// Our fields, with the names that other data sets use for them.
const SYNONYMS: [(&[&str], &[&str]); 6] = [
    (
        &["prompt", "instruction", "question"],
        &[
            "prompt",
            "instruction",
            "question",
            "query",
            "input",
            "inputs",
            "problem",
            "user",
            "human",
            "request",
            "user_input",
            "user_prompt",
            "task",
            "article",
            "document",
            "post",
        ],
    ),
    (
        &["completion", "response", "output"],
        &[
            "completion",
            "response",
            "output",
            "answer",
            "solution",
            "outputs",
            "target",
            "reply",
            "assistant",
            "gold_response",
            "final_answer",
            "summary",
            "model_output",
            "generation",
            "generated_text",
        ],
    ),
    (
        &["chosen"],
        &[
            "chosen_response",
            "response_chosen",
            "preferred",
            "preferred_response",
            "accepted",
            "better",
            "winner",
            "positive",
            "good",
        ],
    ),
    (
        &["rejected"],
        &[
            "rejected_response",
            "response_rejected",
            "dispreferred",
            "dispreferred_response",
            "declined",
            "worse",
            "loser",
            "negative",
            "bad",
            "non_preferred",
        ],
    ),
    (&["messages", "conversations"], &["conversation", "dialog", "dialogue", "chat", "turns", "message"]),
    (&["label"], &["labels", "desirable", "is_desirable", "is_good", "thumbs_up", "kto_tag", "liked"]),
];

/// Returns the columns of a row whose names are synonyms of a field, in the order of the list.
fn candidates<'a>(fields: &RowFields<'a>, field: &str) -> Vec<&'a str> {
    let Some((_, others)) = SYNONYMS.iter().find(|(ours, _)| ours.contains(&field)) else { return Vec::new() };
    let holds_text = |value: &Value| field == "label" || value.is_string() || value.is_array() || value.is_object();
    let is_called = |column: &str, name: &str| column.to_lowercase().replace(['-', ' '], "_") == name;
    let column =
        |name: &&str| fields.unread().find(|column| is_called(column, name) && holds_text(&fields.object[*column]));
    others.iter().filter(|name| **name != field).filter_map(column).collect()
}

/// Suggests a column from which a missing field may be read; empty where there is none.
pub(in crate::data) fn hint(fields: &RowFields, field: &str) -> String {
    let mut maps: Vec<String> = candidates(fields, field).iter().take(3).map(|column| flag(field, column)).collect();
    // The row may hold two responses instead of the missing one.
    if maps.is_empty() && SYNONYMS[1].0.contains(&field) {
        maps.extend(flags(fields, &["chosen", "rejected"]));
    }
    if maps.is_empty() { String::new() } else { format!("; it may be `{}`", maps.join("` or `")) }
}

/// Suggests unread columns of text as the prompt, where no column has a known synonym's name.
pub(in crate::data) fn any_text(fields: &RowFields) -> String {
    let columns = fields.unread().filter(|column| fields.object[*column].is_string());
    let maps: Vec<String> = columns.take(3).map(|column| flag("prompt", column)).collect();
    if maps.is_empty() { String::new() } else { format!("; it may be `{}`", maps.join("` or `")) }
}

/// Returns the flags that read all of these fields from other columns; `None` where a field has no such column.
fn flags(fields: &RowFields, all: &[&str]) -> Option<String> {
    let first = |field: &&str| candidates(fields, field).first().map(|column| flag(field, column));
    all.iter().map(first).collect::<Option<Vec<_>>>().map(|flags| flags.join(" "))
}

fn flag(field: &str, column: &str) -> String {
    format!("--map {field}={}", column.chars().take(40).collect::<String>().escape_debug())
}

/// Returns the reason why a known form of rows is not supported, where a row has it.
pub(in crate::data) fn refused_form(fields: &RowFields) -> Option<String> {
    let has = |name: &str| fields.object.contains_key(name);
    if has("human_ref_A") && has("human_ref_B") {
        return Some(
            "the row has Stanford SHP's form, which is not read: `labels` is 1 where `human_ref_A` is preferred, else 0; make \
             {prompt, chosen, rejected} of it, with `history` as the prompt"
                .into(),
        );
    }
    let is_of_steps = has("completions") && has("labels");
    is_of_steps
        .then(|| "the row labels steps (`completions`, `labels`), for a reward model, which is not trained here".into())
}

/// Returns the message for a row that has no known form, with a suggestion.
pub(in crate::data) fn no_form(fields: &RowFields) -> String {
    let forms: [&[&str]; 3] = [&["prompt", "chosen", "rejected"], &["messages"], &["prompt", "completion"]];
    let maps = forms.iter().find_map(|form| flags(fields, form));
    let hint = maps.map_or(String::new(), |maps| format!("; it may be `{maps}`"));
    format!("no form of row has these fields ({}){hint}; a row is one of: {FORMS}", names(fields.object))
}
