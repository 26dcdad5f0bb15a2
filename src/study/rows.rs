//! Files that pass rows from one stage of a study to the next.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::study_file::{ConditionalSource, JointSource, Study, TasksSection};
use crate::data::prompt_template::Template;
use crate::data::rows::{Conversation, FieldMap, Instruction, TemplateInputs, read_objects};
use crate::data::source::{SourceFile, SourceFiles};
use crate::error::{Error, Result};
use crate::eval::evaluate::prompts::read;
use crate::eval::tasks::rows::{held_out, sft, write};
use crate::eval::tasks::{DataSplit, generate};
use crate::files::make_folder;
use crate::flags::{EvaluateArgs, resolve_template};
use crate::rng::Rng;

/// File of the demo's supervised rows.
pub const SFT: &str = "sft.jsonl";
/// File of the demo's instructions.
pub const PROMPTS: &str = "prompts.jsonl";
/// File of the demo's test rows.
pub const TEST: &str = "test.jsonl";
/// File of two responses to each prompt, to be judged.
pub const COMPARISONS: &str = "comparisons.jsonl";

/// Random streams of a study's seed, apart from the streams that make the demo's data.
const OF_PROMPTS: u64 = 40;
const OF_ORDER: u64 = 41;

/// Writes the demo's data: supervised rows, instructions to sample responses to (none twice), and held-out test rows.
pub fn tasks(dir: &Path, sizes: &TasksSection) -> Result<()> {
    make_folder(dir)?;
    write(&dir.join(SFT), sft(DataSplit::Train, sizes.seed, sizes.sft))?;
    let mut rng = Rng::new(sizes.seed, OF_PROMPTS);
    let mut seen = std::collections::HashSet::new();
    // The tasks have some ten thousand instructions: past that, repeat rather than search for ever.
    let draws = std::iter::repeat_with(|| generate(DataSplit::Train, &mut rng).instruction).take(50 * sizes.prompts);
    let fresh: Vec<String> = draws.filter(|i| seen.insert(i.clone())).take(sizes.prompts).collect();
    write(&dir.join(PROMPTS), fresh.iter().map(|instruction| json!({"instruction": instruction})))?;
    let tests = held_out(sizes.seed, sizes.test);
    write(
        &dir.join(TEST),
        tests.iter().map(|item| json!({"instruction": item.instruction, "gold_response": item.gold})),
    )?;
    Ok(())
}

/// Comparisons of two responses to each prompt.
pub struct SampledComparisons {
    /// Rows to judge.
    pub rows: Vec<Value>,
    /// Number of prompts that were answered.
    pub answered: usize,
    /// Number of prompts with an empty response, which cannot be trained on.
    pub empty: usize,
    /// Number of prompts with the same response twice, which is not empty.
    pub same: usize,
}

/// Compares two files of responses to the same prompts.
pub fn compare(responses: &[PathBuf; 2]) -> Result<SampledComparisons> {
    let [first, second] = [read_objects(&responses[0])?.rows, read_objects(&responses[1])?.rows];
    let mut found = SampledComparisons { rows: Vec::new(), answered: first.len(), empty: 0, same: 0 };
    let is_empty = |row: &Map<String, Value>| row["response"].as_str().is_none_or(|text| text.trim().is_empty());
    for (a, b) in first.iter().zip(&second) {
        if is_empty(a) || is_empty(b) {
            found.empty += 1;
        } else if a["response"] == b["response"] {
            found.same += 1;
        } else {
            let [response_0, response_1] = [&a["response"], &b["response"]];
            let row = json!({"instruction": a["instruction"], "response_0": response_0, "response_1": response_1});
            found.rows.push(row);
        }
    }
    Ok(found)
}

/// Writes rows to judge from two files of responses to the same prompts. Equal and empty responses are left out.
pub fn comparisons(responses: &[PathBuf; 2], to: &Path) -> Result<()> {
    let SampledComparisons { rows, answered, empty, same } = compare(responses)?;
    for (n, what) in [(same, "were answered the same way twice"), (empty, "have an empty response")] {
        if n > 0 {
            note!("{n} of {answered} prompts {what}: left out");
        }
    }
    if rows.is_empty() {
        let reason = "every prompt was answered the same way twice, or not at all: another `temperature` of [sample]";
        return Err(Error::file(to, reason));
    }
    write(to, rows).map(drop)
}

/// Tells whether training on an instruction's text gives it the tokens that sampling gave it. `chat`: the model's chat template is around both.
fn is_text(instruction: &Instruction, chat: bool) -> bool {
    match instruction {
        Instruction::Plain(_) => true,
        Instruction::Chat(Conversation { messages, inputs }) => {
            let is_user = matches!(messages.as_slice(), [one] if one.role() == "user");
            chat && is_user && *inputs == TemplateInputs::default()
        }
        Instruction::Verbatim(_) => false,
    }
}

/// Returns the regular files that a path of a study stands for. Files of the hub are fetched first. They must be regular, because a study reads them more than
/// once.
///
/// # Errors
/// [`Error::File`] for a path that is not a regular file.
pub fn regular(path: &Path) -> Result<Vec<PathBuf>> {
    let place = |SourceFile { name, place }: SourceFile| {
        let Some(place) = place else {
            return Err(Error::file(path, "can be read only once, and a study reads it again"));
        };
        match std::fs::metadata(&place).map_err(|e| Error::file(&name, e))?.is_file() {
            true => Ok(place),
            false => Err(Error::file(&name, "is not a regular file")),
        }
    };
    SourceFiles::find(path)?.files.into_iter().map(place).collect()
}

/// Checks the preferences, prompts and test rows, which are read only after the first stages have run for hours. `needs_gold`: test rows have gold responses.
///
/// # Errors
/// [`Error::File`], and [`Error::Line`] for the first row that cannot be read.
pub fn check(study: &Study, needs_gold: bool) -> Result<()> {
    study.files().iter().try_for_each(|file| regular(file).map(drop))?;
    for file in study.files() {
        SourceFiles::find(&file)?.notes.iter().for_each(|line| note!("note: {line}"));
    }
    match &study.conditional {
        ConditionalSource::Files(files) => drop(pool(files)?),
        ConditionalSource::Sampled(sample) if sample.data.is_empty() => {}
        ConditionalSource::Sampled(sample) => {
            let prompts = read(&sample.data, &FieldMap::default(), false, None)?.rows;
            // The preferences are rows of texts, which must get the template that the sampled policy saw.
            let chat = resolve_template(study.template.as_deref(), study.chat_template.as_deref())? == Template::Chat;
            if let Some(prompt) = prompts.iter().find(|prompt| !is_text(&prompt.instruction, chat)) {
                let reason = "is a conversation, and rows of preferences hold texts: one message of the user is taken \
                              with `template = \"chat\"`, and a text as `instruction` with any";
                return Err(prompt.place.error(reason));
            }
        }
    }
    if let JointSource::Files(files) = &study.joint {
        pool(files)?;
    }
    let EvaluateArgs { data, map, limit, .. } = &study.evaluate;
    match data.is_empty() {
        true => Ok(()),
        false => read(data, &FieldMap::parse(map)?, needs_gold, *limit).map(drop),
    }
}

/// Reads the rows of some files, unchanged.
pub fn objects(files: &[PathBuf]) -> Result<Vec<Map<String, Value>>> {
    let mut rows = Vec::new();
    for file in files {
        rows.extend(read_objects(file)?.rows);
    }
    Ok(rows)
}

/// Reads preferences in a random order, so that the first rows are a fair sample, and a part of every larger sample.
pub fn pool(files: &[PathBuf]) -> Result<Vec<Map<String, Value>>> {
    let mut rows = objects(files)?;
    let mut rng = Rng::new(0, OF_ORDER);
    for i in (1..rows.len()).rev() {
        rows.swap(i, rng.below(i as u32 + 1) as usize);
    }
    Ok(rows)
}

/// Returns the number of rows that a method sees of a pool of `n` rows.
pub fn count(n: usize, share: f64, fraction: f64) -> usize {
    (n as f64 * share * fraction).round() as usize
}

/// Writes the preferences of the pools, conditional and joint, that are the `shares` of a fraction of the data.
///
/// # Errors
/// [`Error::File`], also where none is left.
pub fn part(path: &Path, shares: [f64; 2], fraction: f64, pools: [&[Map<String, Value>]; 2]) -> Result<usize> {
    let rows = pools.into_iter().zip(shares).flat_map(|(pool, share)| &pool[..count(pool.len(), share, fraction)]);
    match write_to(path, rows)? {
        0 => Err(Error::file(path, format!("no preferences are left for {fraction} of the data"))),
        n => Ok(n),
    }
}

/// Writes rows to a file, and makes its folder. Returns their number.
pub fn write_to<T: serde::Serialize>(path: &Path, rows: impl IntoIterator<Item = T>) -> Result<usize> {
    path.parent().map_or(Ok(()), make_folder)?;
    write(path, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_and_empty_responses_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let responses = |name: &str, texts: [&str; 4]| {
            let path = dir.path().join(name);
            let rows = texts.map(|text| json!({"instruction": "Q", "response": text}));
            write(&path, rows).unwrap();
            path
        };
        let files = [responses("a", ["x", "y", "", "\n"]), responses("b", ["x", "z", "y", "\n"])];
        let found = compare(&files).unwrap();
        assert_eq!((found.answered, found.same, found.empty), (4, 1, 2));
        assert_eq!(found.rows, [json!({"instruction": "Q", "response_0": "y", "response_1": "z"})]);
        let to = dir.path().join("c");
        comparisons(&files, &to).unwrap();
        assert_eq!(std::fs::read_to_string(&to).unwrap().lines().count(), 1);
        let same = [files[0].clone(), files[0].clone()];
        assert!(comparisons(&same, &to).unwrap_err().to_string().contains("temperature"));
    }
}
