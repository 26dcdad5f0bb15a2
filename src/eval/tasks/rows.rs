//! Rows of data in the forms of PAPER section 5, and their files.
//!
//! Supervised rows draw their quality from [`SFT_MIX`]. Preferences compare two answers drawn from the same mixture, like those of a model
//! trained on it. The answer with the higher grade is preferred; ties are dropped. A *conditional* pair has two answers to one instruction.
//! A *joint* pair compares answers to different instructions, in three strata of equal size: the preferred sides of two conditional pairs,
//! their rejected sides, and one of each.

use super::{AnswerQuality, DataSplit, TaskItem, answer, generate, grade};
use crate::error::{Error, Result};
use crate::model::save::write_atomic;
use crate::rng::Rng;
use serde::{Deserialize, Serialize};
use std::{io::Write, path::Path};

/// Percentage of each quality in supervised rows. The bare answer is the most frequent, so a model that imitates the data with greedy
/// decoding gives bare answers. The good answer is frequent enough to be learnt; preferences then make it the model's choice.
pub const SFT_MIX: [(AnswerQuality, u32); 4] =
    [(AnswerQuality::Good, 25), (AnswerQuality::Bare, 40), (AnswerQuality::Sloppy, 20), (AnswerQuality::Wrong, 15)];

/// Supervised row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SftRow {
    /// Instruction of the task.
    pub instruction: String,
    /// Answer to the instruction, not always a good one.
    pub response: String,
}

/// Preference, which is conditional where both instructions are equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreferenceRow {
    /// Instruction of the preferred pair.
    pub i_chosen: String,
    /// Response of the preferred pair.
    pub r_chosen: String,
    /// Instruction of the rejected pair.
    pub i_reject: String,
    /// Response of the rejected pair.
    pub r_reject: String,
}

/// Task with a response.
pub type AnsweredItem = (TaskItem, String);

/// Returns the preference between two answered tasks by their grades; `None` for a tie.
pub fn prefer(a: &AnsweredItem, b: &AnsweredItem) -> Option<PreferenceRow> {
    let (x, y) = (grade(&a.0, &a.1).score, grade(&b.0, &b.1).score);
    let (chosen, reject) = if x > y { (a, b) } else { (b, a) };
    (x != y).then(|| PreferenceRow {
        i_chosen: chosen.0.instruction.clone(),
        r_chosen: chosen.1.clone(),
        i_reject: reject.0.instruction.clone(),
        r_reject: reject.1.clone(),
    })
}

/// Draws an answer whose quality is drawn from the mixture.
fn mixed(item: &TaskItem, rng: &mut Rng) -> String {
    let mut ticket = rng.below(SFT_MIX.iter().map(|m| m.1).sum());
    for (quality, share) in SFT_MIX {
        match ticket.checked_sub(share) {
            Some(rest) => ticket = rest,
            None => return answer(item, quality, rng),
        }
    }
    unreachable!("the ticket is below the sum of shares")
}

/// Generates `n` supervised rows.
pub fn sft(split: DataSplit, seed: u64, n: usize) -> impl Iterator<Item = SftRow> {
    let mut rng = Rng::new(seed, 1);
    std::iter::repeat_with(move || {
        let item = generate(split, &mut rng);
        SftRow { response: mixed(&item, &mut rng), instruction: item.instruction }
    })
    .take(n)
}

/// Generates two answers to one new instruction, the better one first.
fn decided(split: DataSplit, rng: &mut Rng) -> (AnsweredItem, AnsweredItem) {
    loop {
        let item = generate(split, rng);
        let (a, b) = (mixed(&item, rng), mixed(&item, rng));
        let (x, y) = (grade(&item, &a).score, grade(&item, &b).score);
        if x != y {
            let (better, worse) = if x > y { (a, b) } else { (b, a) };
            return ((item.clone(), better), (item, worse));
        }
    }
}

/// Generates `n` conditional preferences.
pub fn conditional(split: DataSplit, seed: u64, n: usize) -> impl Iterator<Item = PreferenceRow> {
    let mut rng = Rng::new(seed, 2);
    std::iter::repeat_with(move || decided(split, &mut rng)).filter_map(|(a, b)| prefer(&a, &b)).take(n)
}

/// Generates `n` joint preferences. Row i is of stratum i mod 3: both preferred, both rejected, one of each.
pub fn joint(split: DataSplit, seed: u64, n: usize) -> impl Iterator<Item = PreferenceRow> {
    let mut rng = Rng::new(seed, 3);
    (0..n).map(move |i| {
        loop {
            let (a, b) = (decided(split, &mut rng), decided(split, &mut rng));
            let (x, y) = match i % 3 {
                0 => (a.0, b.0),
                1 => (a.1, b.1),
                _ if rng.below(2) == 0 => (a.0, b.1),
                _ => (a.1, b.0),
            };
            match prefer(&x, &y) {
                Some(row) if row.i_chosen != row.i_reject => return row,
                _ => {}
            }
        }
    })
}

/// Generates `n` held-out prompts, with the kinds in rotation, and no instruction twice.
pub fn held_out(seed: u64, n: usize) -> Vec<TaskItem> {
    let mut rng = Rng::new(seed, 4);
    let mut seen = std::collections::HashSet::new();
    let mut items = Vec::with_capacity(n);
    while items.len() < n {
        let kind = super::TaskKind::ALL[items.len() % super::TaskKind::ALL.len()];
        // The smallest kind has about a hundred held-out instructions. Beyond these, an instruction is repeated rather than searched for
        // without end.
        let item = (0..50).map(|_| super::generate_kind(kind, DataSplit::HeldOut, &mut rng));
        let mut item = item.peekable();
        let fallback = item.peek().cloned();
        if let Some(item) = item.find(|i| !seen.contains(&i.instruction)).or(fallback) {
            seen.insert(item.instruction.clone());
            items.push(item);
        }
    }
    items
}

/// Writes rows as JSON lines to a temporary file, and renames it. Returns the number of rows.
pub fn write<T: Serialize>(path: &Path, rows: impl IntoIterator<Item = T>) -> Result<usize> {
    let fail = |e: std::io::Error| Error::file(path, e);
    let mut n = 0;
    write_atomic(path, |out| {
        for row in rows {
            serde_json::to_writer(&mut *out, &row).map_err(|e| fail(e.into()))?;
            out.write_all(b"\n").map_err(fail)?;
            n += 1;
        }
        Ok(())
    })?;
    Ok(n)
}

/// Numbers of rows in the files that [`write_all`] makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskSizes {
    /// Number of rows of `sft.jsonl`.
    pub sft: usize,
    /// Number of rows of `conditional.jsonl`, and of `joint.jsonl`.
    pub preferences: usize,
    /// Number of rows of `validation_conditional.jsonl`, and of `validation_joint.jsonl`, from held-out tasks.
    pub validation: usize,
    /// Number of rows of `held_out.jsonl`.
    pub held_out: usize,
}

/// Sizes that suffice for the model in `models/demo`.
impl Default for TaskSizes {
    fn default() -> Self {
        Self { sft: 240_000, preferences: 4_000, validation: 300, held_out: 450 }
    }
}

/// Writes all files of the demo's data into an existing folder.
pub fn write_all(folder: &Path, seed: u64, sizes: &TaskSizes) -> Result<()> {
    let (train, held) = (DataSplit::Train, DataSplit::HeldOut);
    write(&folder.join("sft.jsonl"), sft(train, seed, sizes.sft))?;
    write(&folder.join("conditional.jsonl"), conditional(train, seed, sizes.preferences))?;
    write(&folder.join("joint.jsonl"), joint(train, seed, sizes.preferences))?;
    write(&folder.join("validation_conditional.jsonl"), conditional(held, seed, sizes.validation))?;
    write(&folder.join("validation_joint.jsonl"), joint(held, seed, sizes.validation))?;
    write(&folder.join("held_out.jsonl"), held_out(seed, sizes.held_out))?;
    Ok(())
}
