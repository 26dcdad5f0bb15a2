//! Prompt for a judging model: this program's wording of the paper's criteria (accuracy, coherence, harmlessness), or a custom one.

use std::path::Path;

use super::{Question, hash};
use crate::data::comparisons::ComparisonKind;
use crate::error::{Error, Result};
use crate::model::folder::{MAX_CONFIG_BYTES, read_file};

const SINGLE: &str = include_str!("prompt_single.txt");
const PAIR: &str = include_str!("prompt_pair.txt");

/// Prompt with placeholders for the texts of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgePrompt {
    text: String,
}

/// Returns the names of the placeholders.
fn places(mode: ComparisonKind) -> &'static [&'static str] {
    match mode {
        ComparisonKind::Single => &["instruction", "response_a", "response_b"],
        ComparisonKind::Pair => &["instruction_a", "response_a", "instruction_b", "response_b"],
    }
}

impl JudgePrompt {
    /// Returns this program's prompt.
    pub fn default_for(mode: ComparisonKind) -> Self {
        let text = match mode {
            ComparisonKind::Single => SINGLE,
            ComparisonKind::Pair => PAIR,
        };
        Self { text: text.trim_end().into() }
    }

    /// Reads a custom prompt: a text file with `{instruction}`, `{response_a}` and `{response_b}`, or for pairs with `{instruction_a}`,
    /// `{response_a}`, `{instruction_b}` and `{response_b}`. Other braces are text.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Field`] for a placeholder that is missing or belongs to the other kind of comparison.
    pub fn read(path: &Path, mode: ComparisonKind) -> Result<Self> {
        let text = read_file(path, MAX_CONFIG_BYTES)?;
        let has = |name: &str| text.contains(&format!("{{{name}}}"));
        if let Some(name) = places(mode).iter().find(|name| !has(name)) {
            return Err(Error::field(
                path,
                name,
                format!("{{{name}}} is not in the prompt, and --mode {} needs it", mode.name()),
            ));
        }
        let other = if mode == ComparisonKind::Single { ComparisonKind::Pair } else { ComparisonKind::Single };
        if let Some(name) = places(other).iter().find(|name| !places(mode).contains(name) && has(name)) {
            return Err(Error::field(
                path,
                name,
                format!("belongs to --mode {}, the rows are of mode {}", other.name(), mode.name()),
            ));
        }
        Ok(Self { text: text.trim_end().into() })
    }

    /// Returns the prompt of a question. Placeholders inside the inserted texts stay as they are.
    pub fn render(&self, question: &Question<'_>) -> String {
        let texts = question.texts();
        let (mut out, mut rest) = (String::with_capacity(self.text.len() * 2), self.text.as_str());
        while let Some(at) = rest.find('{') {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            let named = texts.iter().find_map(|(name, text)| {
                rest[1..].strip_prefix(name).and_then(|r| r.strip_prefix('}')).map(|after| (*text, after))
            });
            let (text, after) = named.unwrap_or(("{", &rest[1..]));
            out.push_str(text);
            rest = after;
        }
        out + rest
    }

    /// Returns whether this is one of this program's prompts, which ask only for a side.
    pub fn is_ours(&self) -> bool {
        [ComparisonKind::Single, ComparisonKind::Pair].into_iter().any(|mode| *self == Self::default_for(mode))
    }

    /// Returns a hash that distinguishes prompts.
    pub fn hash(&self) -> String {
        hash(&self.text)
    }
}
