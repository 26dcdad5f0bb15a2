//! Responses to test prompts, on disk as they are made: one JSON object a line, in the order of the prompts.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::prompts::{TestPrompt, encode};
use crate::data::prompt_template::Template;
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::generate::{GenerateSettings, generate};
use crate::eval::journal::{RecoveredLines, sealed};
use crate::files::open_log;
use crate::gpu::Gpu;
use crate::model::decoder::Decoder;

/// A response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseRow {
    /// Instruction that was answered.
    pub instruction: String,
    /// Response text as generated.
    pub response: String,
    /// Tokens of the response, with the one that ended it.
    pub n_tokens: usize,
    /// `--max-new-tokens` cut the response, which did not end by itself.
    pub cut: bool,
}

/// The responses of one checkpoint at one temperature and seed.
#[derive(Debug)]
pub struct ResponseFile {
    path: PathBuf,
    file: File,
    rows: Vec<ResponseRow>,
    /// Remarks on the file for the user: a last line that was cut short.
    pub notes: Vec<String>,
}

impl ResponseFile {
    /// Opens or begins the file of these prompts' responses. Rows behind those of `prompts` are left alone.
    ///
    /// # Errors
    /// [`Error::Line`] for a line that is damaged, or answers another prompt; [`Error::File`], also where another program writes to it.
    pub fn open(path: &Path, prompts: &[TestPrompt]) -> Result<Self> {
        let fail = |e: std::io::Error| Error::file(path, e);
        let mut file = open_log(path)?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(Error::file(path, "another run is writing to it"));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(fail)?;
        let found = RecoveredLines::read(path, &bytes)?;
        let notes = found.note(path).into_iter().collect();
        let mut rows = Vec::with_capacity(found.lines.len());
        for ((line, object), prompt) in found.lines.into_iter().zip(prompts) {
            let row: ResponseRow = serde_json::from_value(Value::Object(object))
                .map_err(|e| Error::line(path, line, format!("no response: {e}")))?;
            if row.instruction != prompt.text {
                let place = &prompt.place;
                let reason = format!(
                    "answers another prompt than {place}: --data, --limit or the prompts that are too long have changed"
                );
                return Err(Error::line(path, line, reason));
            }
            rows.push(row);
        }
        file.set_len(found.whole_bytes as u64).map_err(fail)?;
        file.seek(SeekFrom::End(0)).map_err(fail)?;
        if found.whole_bytes > 0 && bytes[found.whole_bytes - 1] != b'\n' {
            file.write_all(b"\n").map_err(fail)?;
        }
        Ok(Self { path: path.into(), file, rows, notes })
    }

    /// Returns the responses so far, in the order of the prompts.
    pub fn rows(&self) -> &[ResponseRow] {
        &self.rows
    }

    /// Returns the responses by value, in the order of the prompts.
    pub fn into_rows(self) -> Vec<ResponseRow> {
        self.rows
    }

    fn push(&mut self, rows: Vec<ResponseRow>) -> Result<()> {
        let fail = |e: std::io::Error| Error::file(&self.path, e);
        let mut text = String::new();
        for row in &rows {
            text += &sealed(&serde_json::to_value(row).map_err(|e| fail(e.into()))?);
        }
        self.file.write_all(text.as_bytes()).and_then(|()| self.file.flush()).map_err(fail)?;
        self.rows.extend(rows);
        Ok(())
    }
}

/// A model on a device, and how it answers.
pub struct RespondingPolicy<'a> {
    /// The device.
    pub gpu: &'a Gpu,
    /// The model.
    pub decoder: &'a Decoder,
    /// Tokenizer of the model.
    pub tokenizer: &'a Tokenizer,
    /// Template around an instruction.
    pub template: &'a Template,
    /// Sampling and lengths.
    pub settings: &'a GenerateSettings,
    /// Prompts per batch.
    pub batch_size: usize,
}

/// Answers the prompts that have no response yet. Each draws from the stream of its number, so that where an earlier run ended leaves no
/// trace. `stop` ends it behind the batch under way; `watch` hears how many were written. True: every prompt has its response.
///
/// # Errors
/// [`Error::NotFinite`], [`Error::Gpu`], [`Error::Line`], [`Error::File`].
pub async fn respond(
    policy: &RespondingPolicy<'_>,
    prompts: &[TestPrompt],
    into: &mut ResponseFile,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(usize),
) -> Result<bool> {
    let RespondingPolicy { gpu, decoder, tokenizer, template, settings, .. } = policy;
    while into.rows.len() < prompts.len() {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let first = into.rows.len();
        // The same batches as of a run that never ended.
        let end = prompts.len().min((first / policy.batch_size + 1) * policy.batch_size);
        let some = &prompts[first..end];
        let ids = some.iter().map(|prompt| encode(prompt, tokenizer, template)).collect::<Result<Vec<_>>>()?;
        let answers = generate(gpu, decoder, &ids, first, settings, &mut |_, _| ()).await?;
        let mut rows = Vec::with_capacity(some.len());
        for (prompt, ids) in some.iter().zip(&answers) {
            rows.push(ResponseRow {
                instruction: prompt.text.clone(),
                response: tokenizer.decode(ids)?,
                n_tokens: ids.len(),
                cut: !ids.last().is_some_and(|id| settings.eos.contains(id)),
            });
        }
        into.push(rows)?;
        watch(end - first);
    }
    Ok(true)
}
