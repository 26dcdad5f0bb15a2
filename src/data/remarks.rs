//! Remarks on rows for the user. Each kind is printed once, with its number of rows.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::chat_template::REASONING;
use super::conversation::{Conversation, Message, PromptResponse, ResponseText};
use super::prompt_template::Template;
use super::rendered::RenderedText;

/// Remark on a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DataRemark {
    /// The chat template's text that asks for the answer is not a prefix of the text with the answer.
    Parted,
    /// The last scored answer does not end with a token that ends a response.
    Open,
    /// The chat template prints lists of content parts in Python's notation.
    PartsPrinted,
    /// The chat template does not use this key of a message, `tools`, or this key of `chat_template_kwargs`.
    NotMentioned(String),
    /// A template for plain texts omits this key of a message.
    LeftOut(String),
    /// The rendered text lacks the text of messages of this role, or of this key of messages.
    NotShown(String),
    /// Both sides of a preference have the same tokens.
    SameSides,
    /// The row gets the tokenizer's chat template because it is a conversation, while other rows are texts.
    TakesChat,
    /// The row gets the template of this name because it is a text, while other rows are conversations.
    TextTakes(String),
    /// A conversation begins with an answer that the chat template cannot ask for.
    Greeting,
}

impl DataRemark {
    /// Returns the remark on the template that a row got because of its form.
    pub(super) fn of_template(template: &Template) -> Option<Self> {
        match template {
            Template::Chat => Some(Self::TakesChat),
            Template::Paper | Template::Plain => Some(Self::TextTakes(template.name().into())),
            _ => None,
        }
    }

    fn line(&self, n: usize) -> String {
        let rows = format!("{n} row{}", if n == 1 { "" } else { "s" });
        match self {
            Self::Parted => format!(
                "{rows}: the chat template's text that asks for the answer is no prefix of the text with it (such as a `<think>` that it adds): \
                 the response begins where the two part"
            ),
            Self::Open => format!(
                "{rows}: the last scored answer does not end in a token that ends a response: such an end is not learnt (nothing is added to \
                 --template chat; `{{% generation %}}` must hold the end)"
            ),
            Self::PartsPrinted => {
                format!("{rows}: the chat template prints lists of content parts as Python would: give texts")
            }
            Self::NotMentioned(key) => {
                format!("{rows}: `{}` is given to the chat template, which does not mention it", key.escape_debug())
            }
            Self::LeftOut(key) => {
                format!("{rows}: `{}` of messages is left out: only --template chat can show it", key.escape_debug())
            }
            Self::NotShown(what) => format!(
                "{rows}: the chat template leaves the text of `{}` out, or changes it: the model does not see it as it stands",
                what.escape_debug()
            ),
            Self::SameSides => format!("{rows}: both sides have the same tokens: nothing is learnt from them"),
            Self::TakesChat => {
                format!(
                    "{rows} of conversations among texts: the tokenizer's chat template renders them (--template chat)"
                )
            }
            Self::TextTakes(name) => {
                format!("{rows} of texts among conversations: they take --template {name}")
            }
            Self::Greeting => {
                format!(
                    "{rows}: the conversation begins with the assistant, and the chat template cannot ask for that message: it is not scored"
                )
            }
        }
    }
}

/// Remarks, each with its number of rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(DataRemark, usize)>", into = "Vec<(DataRemark, usize)>")]
pub struct DataRemarks(BTreeMap<DataRemark, usize>);

impl From<Vec<(DataRemark, usize)>> for DataRemarks {
    fn from(counted: Vec<(DataRemark, usize)>) -> Self {
        Self(counted.into_iter().collect())
    }
}

impl From<DataRemarks> for Vec<(DataRemark, usize)> {
    fn from(remarks: DataRemarks) -> Self {
        remarks.0.into_iter().collect()
    }
}

impl DataRemarks {
    /// Counts the remarks on a row.
    pub fn add_row(&mut self, found: BTreeSet<DataRemark>) {
        found.into_iter().for_each(|remark| *self.0.entry(remark).or_default() += 1);
    }

    /// Returns one line per kind of remark. Templates are mentioned only where the rows got two different ones.
    pub fn lines(&self) -> Vec<String> {
        let is_of_text = |remark: &DataRemark| matches!(remark, DataRemark::TextTakes(_));
        let is_mixed = self.0.contains_key(&DataRemark::TakesChat) && self.0.keys().any(is_of_text);
        let told =
            self.0.iter().filter(|(remark, _)| is_mixed || !(**remark == DataRemark::TakesChat || is_of_text(remark)));
        told.map(|(remark, &n)| remark.line(n)).collect()
    }
}

/// Adds remarks on keys of a text that are lost. `source` is the chat template's source, where there is one.
pub(super) fn note_keys(text: &PromptResponse, source: Option<&str>, into: &mut BTreeSet<DataRemark>) {
    let (Conversation { messages, inputs }, _) = text.conversation();
    let of_messages = messages.iter().flat_map(Message::more_keys);
    let Some(source) = source else {
        into.extend(of_messages.map(|key| DataRemark::LeftOut(key.into())));
        return;
    };
    // If any of these keys is present, transformers passes all of them to a template.
    let is_lost = |key: &&str| match REASONING.contains(key) {
        true => !REASONING.iter().any(|alias| source.contains(alias)),
        false => !source.contains(*key),
    };
    let given = inputs.tools.iter().map(|_| "tools").chain(inputs.kwargs.keys().map(String::as_str));
    into.extend(of_messages.chain(given).filter(is_lost).map(|key| DataRemark::NotMentioned(key.into())));
}

/// Adds remarks on a rendered text.
pub(super) fn note_rendering(text: &PromptResponse, rendered: &RenderedText, into: &mut BTreeSet<DataRemark>) {
    if !rendered.cut.is_empty() {
        into.insert(DataRemark::Parted);
    }
    let (Conversation { messages, .. }, _) = text.conversation();
    let in_parts = messages.iter().any(Message::is_in_parts);
    if in_parts && ["{'type':", "{'text':"].iter().any(|printed| rendered.text.contains(printed)) {
        into.insert(DataRemark::PartsPrinted);
    }
    note_lost_texts(&messages, rendered, into);
    let n_answers = messages.iter().filter(|message| message.is_assistant()).count();
    let is_every_turn = matches!(text.response, ResponseText::Turns(_));
    if is_every_turn && messages[0].is_assistant() && rendered.scored.len() < n_answers {
        into.insert(DataRemark::Greeting);
    }
}

/// Adds remarks on the roles and keys whose text is missing from the rendered text. An answer's thoughts are looked up separately, because
/// many templates show only the last ones.
fn note_lost_texts(messages: &[Message], rendered: &RenderedText, into: &mut BTreeSet<DataRemark>) {
    const END_OF_THOUGHTS: &str = "</think>";
    let is_lost = |text: &str| !rendered.text.contains(text.trim());
    for message in messages {
        let text = message.text();
        let (thoughts, said) = match text.rsplit_once(END_OF_THOUGHTS).filter(|_| message.is_assistant()) {
            Some((thoughts, said)) => (thoughts.trim().trim_start_matches("<think>"), said),
            None => ("", text.as_str()),
        };
        if is_lost(said) {
            into.insert(DataRemark::NotShown(message.role().into()));
        }
        if is_lost(thoughts) {
            into.insert(DataRemark::NotShown("<think>".into()));
        }
        for key in REASONING {
            let is_mentioned = !into.contains(&DataRemark::NotMentioned(key.into()));
            if is_mentioned && message.key_text(key).is_some_and(is_lost) {
                into.insert(DataRemark::NotShown(key.into()));
            }
        }
    }
}
