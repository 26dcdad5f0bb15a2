//! Conversion of responses into comparisons for a judge, and of judged comparisons into runs; files of both.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::lengths::length;
use super::prompts::{TestPrompt, dataset};
use super::responses::ResponseRow;
use super::{EvaluatedRun, JudgedResponse};
use crate::data::comparisons::{Comparison, ComparisonKind, Side, place};
use crate::error::{Error, Result};
use crate::eval::acquire::JudgedComparison;
use crate::eval::judge::is_flip;
use crate::eval::tasks::rows::write;
use crate::model::save::write_text;

/// Responses of one checkpoint at one temperature and seed, one row per prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct RunResponses {
    /// Name of the checkpoint.
    pub checkpoint: String,
    /// Method; runs of one method are averaged.
    pub method: String,
    /// Temperature of sampling.
    pub temperature: f64,
    /// Seed of sampling.
    pub seed: u64,
    /// File of the responses, for messages.
    pub path: PathBuf,
    /// Responses in the order of the prompts.
    pub rows: Vec<ResponseRow>,
}

/// Returns the name of a run, such as `jpo-0-t0.5-s0`.
pub fn run_name(checkpoint: &str, temperature: f64, seed: u64) -> String {
    format!("{checkpoint}-t{temperature}-s{seed}")
}

impl RunResponses {
    /// Returns the name of the run's files.
    pub fn name(&self) -> String {
        run_name(&self.checkpoint, self.temperature, self.seed)
    }
}

/// Opponent: the other side of each comparison.
#[derive(Debug, Clone, Copy)]
pub enum Opponent<'a> {
    /// Gold responses of the rows.
    Gold,
    /// Responses of another checkpoint.
    Other(&'a RunResponses),
}

impl Opponent<'_> {
    /// Returns the text that a response to a prompt is compared with.
    fn text<'b>(&'b self, i: usize, prompt: &'b TestPrompt) -> &'b str {
        match self {
            Self::Gold => prompt.gold.as_deref().unwrap_or_default(),
            Self::Other(other) => other.rows.get(i).map_or("", |row| row.response.trim()),
        }
    }
}

/// Creates comparisons of each response (side 0) with its opponent (side 1). White space around texts is removed, because a space that a
/// template adds would reveal the model's response to a judge. Other values are in the row's other fields.
pub fn comparisons(prompts: &[TestPrompt], ours: &RunResponses, against: Opponent<'_>) -> Vec<Comparison> {
    let of = |(i, (prompt, row)): (usize, (&TestPrompt, &ResponseRow))| {
        let side = |text: &str| Side { instruction: prompt.text.clone(), response: text.trim().into() };
        let mut more: Map<String, Value> = Map::new();
        more.insert("checkpoint".into(), json!(ours.checkpoint));
        more.insert("method".into(), json!(ours.method));
        more.insert("temperature".into(), json!(ours.temperature));
        more.insert("seed".into(), json!(ours.seed));
        more.insert(
            "against".into(),
            match against {
                Opponent::Gold => json!("gold"),
                Opponent::Other(other) => json!(other.checkpoint),
            },
        );
        more.insert("prompt".into(), json!(prompt.place.to_string()));
        Comparison {
            place: place(ours.path.clone(), i + 1),
            mode: ComparisonKind::Single,
            sides: [side(&row.response), side(against.text(i, prompt))],
            more,
        }
    };
    prompts.iter().zip(&ours.rows).enumerate().map(of).collect()
}

/// Creates a run from judged comparisons.
pub fn run(ours: &RunResponses, comparisons: &[Comparison], judged: &[JudgedComparison]) -> EvaluatedRun {
    let outcome = |(prompt, ((comparison, judged), row)): (usize, ((&Comparison, &JudgedComparison), &ResponseRow))| {
        JudgedResponse {
            prompt,
            verdict: judged.verdict(),
            is_flip: is_flip(judged.choices()),
            lengths: [0, 1].map(|i| length(&comparison.sides[i].response)),
            n_tokens: row.n_tokens,
            cut: row.cut,
        }
    };
    EvaluatedRun {
        name: ours.name(),
        checkpoint: ours.checkpoint.clone(),
        method: ours.method.clone(),
        temperature: ours.temperature,
        seed: ours.seed,
        outcomes: comparisons.iter().zip(judged).zip(&ours.rows).enumerate().map(outcome).collect(),
    }
}

/// Writes annotated rows, in the form that `judge` writes and `interplay` reads.
///
/// # Errors
/// [`Error::File`].
pub fn write_judged(path: &Path, comparisons: &[Comparison], judged: &[JudgedComparison], judge: &str) -> Result<()> {
    let rows = comparisons.iter().zip(judged).filter(|(_, judged)| judged.is_asked());
    write(path, rows.map(|(comparison, judged)| judged.annotate(comparison, judge))).map(drop)
}

/// Writes a file for AlpacaEval's `--model_outputs` or `--reference_outputs`: a list of
/// `{"instruction", "output", "generator", "dataset"}`.
///
/// # Errors
/// [`Error::File`].
pub fn write_alpaca<'a>(
    path: &Path,
    prompts: &[TestPrompt],
    outputs: impl Iterator<Item = &'a str>,
    generator: &str,
) -> Result<()> {
    let row = |(prompt, output): (&TestPrompt, &str)| {
        json!({
            "instruction": prompt.text, "output": output.trim(), "generator": generator,
            "dataset": dataset(&prompt.place.path),
        })
    };
    let rows: Vec<Value> = prompts.iter().zip(outputs).map(row).collect();
    let text = serde_json::to_string_pretty(&rows).map_err(|e| Error::file(path, e))?;
    write_text(path, &(text + "\n"))
}
