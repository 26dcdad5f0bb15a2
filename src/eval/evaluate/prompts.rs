//! Test prompts, `{instruction, gold_response}`, and their lengths for a model.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::data::prompt_template::Template;
use crate::data::prompts::read_prompt_file;
use crate::data::rows::{FieldMap, FileRows, Instruction, SourceLocation};
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result};

/// Prompt to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestPrompt {
    /// File and line of the row.
    pub place: SourceLocation,
    /// Instruction as the model sees it.
    pub instruction: Instruction,
    /// Instruction as a judge sees it.
    pub text: String,
    /// Gold response, with which others are compared; never empty.
    pub gold: Option<String>,
}

/// Reads the first `limit` prompts of some files. With `needs_gold`, each must have a `gold_response`.
///
/// # Errors
/// [`Error::Line`] for a malformed line, a field that is missing or empty, or an instruction that occurred before, because the bootstrap
/// resamples prompts and these must be distinct; [`Error::File`].
pub fn read(files: &[PathBuf], map: &FieldMap, needs_gold: bool, limit: Option<usize>) -> Result<FileRows<TestPrompt>> {
    let mut all: Vec<TestPrompt> = Vec::new();
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut notes = Vec::new();
    for file in files {
        let read = read_prompt_file(file, map)?;
        notes.extend(read.notes);
        for prompt in read.rows {
            let gold = prompt.gold.as_deref().map(str::trim);
            match gold {
                None if needs_gold => {
                    let reason = format!(
                        "field `{}` is missing: a test row is {{instruction, gold_response}}",
                        map.name("gold_response")
                    );
                    return Err(prompt.place.error(reason));
                }
                Some("") if needs_gold => {
                    return Err(prompt.place.error(format!("field `{}` is empty", map.name("gold_response"))));
                }
                _ => {}
            }
            let text = prompt.instruction.to_text();
            if let Some(&before) = seen.get(&text) {
                let reason = format!("the instruction of {} again", all[before].place);
                return Err(prompt.place.error(reason));
            }
            seen.insert(text.clone(), all.len());
            all.push(TestPrompt {
                gold: gold.filter(|gold| !gold.is_empty()).map(String::from),
                place: prompt.place,
                instruction: prompt.instruction,
                text,
            });
        }
    }
    if all.is_empty() {
        return Err(Error::flag("data", "is missing: test rows {instruction, gold_response}"));
    }
    all.truncate(limit.unwrap_or(usize::MAX));
    Ok(FileRows { rows: all, notes })
}

/// Returns the tokens of a prompt.
///
/// # Errors
/// [`Error::Line`] for a text that the tokenizer or the template cannot represent.
pub fn encode(prompt: &TestPrompt, tokenizer: &Tokenizer, template: &Template) -> Result<Vec<u32>> {
    let ids = tokenizer.encode_prompt(&prompt.instruction, template).map_err(|reason| prompt.place.error(reason))?;
    if ids.is_empty() { Err(prompt.place.error("it has no tokens")) } else { Ok(ids) }
}

/// Returns the prompts that leave a model no room for `max_new_tokens`, each with its number of tokens.
///
/// # Errors
/// Fails like [`encode`].
pub fn too_long(
    prompts: &[TestPrompt],
    tokenizer: &Tokenizer,
    template: &Template,
    max_new_tokens: usize,
    positions: usize,
) -> Result<Vec<(usize, usize)>> {
    let mut found = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        let n = encode(prompt, tokenizer, template)?.len();
        if n.saturating_add(max_new_tokens) > positions {
            found.push((i, n));
        }
    }
    Ok(found)
}

/// Returns a file's name without its extension: AlpacaEval's `dataset`.
pub fn dataset(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
