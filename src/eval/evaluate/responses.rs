//! Responses to test prompts, written to disk as they are generated: one JSON object per line, in the order of the prompts.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
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

/// Response to a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseRow {
    /// Instruction that was answered.
    pub instruction: String,
    /// Response text as generated.
    pub response: String,
    /// Number of tokens of the response, including the token that ended it.
    pub n_tokens: usize,
    /// Whether `--max-new-tokens` cut the response, so that it did not end by itself.
    pub cut: bool,
}

/// File of the responses of one checkpoint at one temperature and seed.
#[derive(Debug)]
pub struct ResponseFile {
    path: PathBuf,
    file: File,
    rows: Vec<ResponseRow>,
    /// Notes on the file for the user, such as a last line that was cut short.
    pub notes: Vec<String>,
}

/// Contents of a file of responses, up to a last line that was cut short.
struct ReadResponses {
    rows: Vec<ResponseRow>,
    /// Length of the file's whole lines.
    whole_bytes: usize,
    notes: Vec<String>,
}

impl ReadResponses {
    /// Reads the responses to `prompts`; rows for further prompts are skipped.
    fn parse(path: &Path, bytes: &[u8], prompts: &[TestPrompt]) -> Result<Self> {
        let found = RecoveredLines::read(path, bytes)?;
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
        Ok(Self { rows, whole_bytes: found.whole_bytes, notes })
    }
}

impl ResponseFile {
    /// Opens or creates the file of the responses to `prompts`. Rows for further prompts are left unchanged.
    ///
    /// # Errors
    /// [`Error::Line`] for a line that is damaged, or that answers another prompt; [`Error::File`], also where another program is writing
    /// to the file.
    pub fn open(path: &Path, prompts: &[TestPrompt]) -> Result<Self> {
        let fail = |e: std::io::Error| Error::file(path, e);
        let mut file = open_log(path)?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(Error::file(path, "another run is writing to it"));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(fail)?;
        let ReadResponses { rows, whole_bytes, notes } = ReadResponses::parse(path, &bytes, prompts)?;
        file.set_len(whole_bytes as u64).map_err(fail)?;
        file.seek(SeekFrom::End(0)).map_err(fail)?;
        if whole_bytes > 0 && bytes[whole_bytes - 1] != b'\n' {
            file.write_all(b"\n").map_err(fail)?;
        }
        Ok(Self { path: path.into(), file, rows, notes })
    }

    /// Counts the responses to `prompts` in a file, which another process may be writing. A file that is absent has none.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn count(path: &Path, prompts: &[TestPrompt]) -> Result<usize> {
        match std::fs::read(path) {
            Ok(bytes) => ReadResponses::parse(path, &bytes, prompts).map(|read| read.rows.len()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(0),
            Err(e) => Err(Error::file(path, e)),
        }
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

/// Model on a device, with the settings for its responses.
pub struct RespondingPolicy<'a> {
    /// Device that the model is on.
    pub gpu: &'a Gpu,
    /// Model that responds.
    pub decoder: &'a Decoder,
    /// Tokenizer of the model.
    pub tokenizer: &'a Tokenizer,
    /// Template around an instruction.
    pub template: &'a Template,
    /// Settings of sampling and lengths.
    pub settings: &'a GenerateSettings,
    /// Prompts per batch.
    pub batch_size: usize,
}

/// Answers the prompts that have no response yet. Each response uses the random stream of its prompt's number, so responses do not depend
/// on where an earlier run ended. `stop` ends the run after the current batch; `watch` is called with the number of written responses.
/// Returns whether every prompt has its response.
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
        // Batches begin and end where they would in an uninterrupted run.
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
