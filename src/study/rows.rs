//! Files that pass rows from one stage of a study to the next.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::study_file::{ConditionalSource, JointSource, Study, TasksSection};
use crate::data::rows::{FieldMap, read_objects};
use crate::data::source::{SourceFile, SourceFiles};
use crate::error::{Error, Result};
use crate::eval::evaluate::prompts::read;
use crate::eval::tasks::rows::{held_out, sft, write};
use crate::eval::tasks::{DataSplit, generate};
use crate::files::make_folder;
use crate::flags::EvaluateArgs;
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

/// Writes rows to judge from two files of responses to the same prompts. Equal responses are left out.
pub fn comparisons(responses: &[PathBuf; 2], to: &Path) -> Result<()> {
    let [first, second] = [read_objects(&responses[0])?.rows, read_objects(&responses[1])?.rows];
    let differ = |(a, b): &(&Map<String, Value>, &Map<String, Value>)| a["response"] != b["response"];
    let row = |(a, b): (&Map<String, Value>, &Map<String, Value>)| json!({"instruction": a["instruction"], "response_0": a["response"], "response_1": b["response"]});
    let n = write(to, first.iter().zip(&second).filter(differ).map(row))?;
    if n < first.len() {
        note!("{} of {} prompts were answered the same way twice: left out", first.len() - n, first.len());
    }
    match n {
        0 => Err(Error::file(to, "every prompt was answered the same way twice: a higher `temperature` of [sample]")),
        _ => Ok(()),
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
        ConditionalSource::Sampled(sample) => drop(read(&sample.data, &FieldMap::default(), false, None)?),
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
pub fn part(path: &Path, shares: [f64; 2], fraction: f64, pools: &[Vec<Map<String, Value>>; 2]) -> Result<usize> {
    let rows = pools.iter().zip(shares).flat_map(|(pool, share)| &pool[..count(pool.len(), share, fraction)]);
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
