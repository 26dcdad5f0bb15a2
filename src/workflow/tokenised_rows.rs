//! Rows as tokens, which are tokenised on all cores while they are read, and cached for the next run over the same rows.

use std::fs::{self, File};
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::SystemTime;

use super::cache_folder::cache_folder;
use super::data_options::DataOptions;
use super::self_test_cache::program_file;
use crate::data::dataset::{Dataset, DatasetBuilder, LengthLimits, OverflowAction};
use crate::data::rows::{Row, RowContent, for_each_row_of};
use crate::data::source::SourceFiles;
use crate::data::template_notes::{bos_note, template_line};
use crate::data::token_store::{TokenStore, TokenisedRows};
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result};
use crate::files::parts_hash;
use crate::progress::ProgressReporter;
use crate::validate::at_least_one;

/// Rows that are tokenised together.
const CHUNK: usize = 512;
/// Chunks of rows that may wait to be tokenised.
const WAITING: usize = 2;
/// Fewest rows whose tokens are cached, because fewer are tokenised faster than cached.
const FEW_ROWS: usize = 1000;
/// Most bytes of a file whose tokens are cached. A larger file is not read once more for its digest.
const MOST_BYTES: u64 = 16 << 30;
/// Most bad rows that are reported one by one.
const SHOWN_BAD_ROWS: usize = 10;
/// Most rows that were cut or dropped that are reported one by one.
const SHOWN_NOTES: usize = 5;

/// Reads the rows of the files as tokens.
///
/// # Errors
/// Those of [`Dataset::build_with`] and of the files.
pub(super) fn read_dataset(
    files: &[PathBuf],
    tokenizer: &Tokenizer,
    options: &DataOptions,
    limits: LengthLimits,
) -> Result<Dataset> {
    let rows = RowSource::find(files, options, None)?;
    let key = rows.key(tokenizer, limits);
    let store = TokenStore::new(cache_folder().join("tokens"));
    if let Some(known) = key.as_ref().and_then(|key| known(&store, &key.name)) {
        known.told.iter().for_each(|line| note!("{line}"));
        return Ok(known.data);
    }
    let rows = rows.tokenise(tokenizer, limits)?;
    if let Some(key) = key.filter(|key| rows.data.n_rows() >= FEW_ROWS && key.still_holds())
        && let Err(error) = store.put(&key.name, &rows)
    {
        note!("note: the tokens are not kept for the next start: {error}");
    }
    Ok(rows.data)
}

/// Reads no more than the first `n` rows as tokens, which are not cached.
///
/// # Errors
/// Those of [`Dataset::build_with`] and of the files.
pub fn read_first_rows(
    files: &[PathBuf],
    n: usize,
    tokenizer: &Tokenizer,
    options: &DataOptions,
    limits: LengthLimits,
) -> Result<Dataset> {
    at_least_one("limit", n)?;
    RowSource::find(files, options, Some(n))?.tokenise(tokenizer, limits).map(|rows| rows.data)
}

/// Reads rows without tokenising them, no more than the first `n`.
///
/// # Errors
/// Those of the files.
pub fn read_rows(files: &[PathBuf], n: Option<usize>, options: &DataOptions) -> Result<Vec<Row>> {
    let source = RowSource::find(files, options, n)?;
    let most = n.unwrap_or(usize::MAX);
    let mut rows = Vec::new();
    for (path, found) in source.files {
        if rows.len() == most {
            break;
        }
        for_each_row_of(path, found, &options.map, options.purpose, options.bad_rows, |mut row| {
            if options.last_turn_only {
                row.content.keep_last_turn();
            }
            rows.push(row);
            Ok(if rows.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
    }
    Ok(rows)
}

/// Returns the tokens that an earlier run cached. Damaged tokens are reported, and not returned.
fn known(store: &TokenStore, key: &str) -> Option<TokenisedRows> {
    store.get(key).unwrap_or_else(|error| {
        note!("note: {error}: the rows are tokenised again");
        None
    })
}

/// Files of rows, with the options for reading them.
struct RowSource<'a> {
    /// Each path as it was given, with its files.
    files: Vec<(&'a Path, SourceFiles)>,
    options: &'a DataOptions,
    /// Number of rows after which reading ends.
    limit: Option<usize>,
}

/// Rows that cannot be read: their numbers, rising, and messages about the first of them.
#[derive(Default)]
struct UnreadableRows {
    rows: Vec<usize>,
    first: Vec<String>,
}

/// Lines that were logged, which are cached with the tokens.
#[derive(Default)]
struct ToldLines(Vec<String>);

impl ToldLines {
    fn say(&mut self, line: String) {
        note!("{line}");
        self.0.push(line);
    }
}

impl<'a> RowSource<'a> {
    fn find(files: &'a [PathBuf], options: &'a DataOptions, limit: Option<usize>) -> Result<Self> {
        if files.is_empty() {
            return Err(Error::flag("data", "is missing: a file of rows"));
        }
        let found = |path: &'a PathBuf| SourceFiles::find(path).map(|files| (path.as_path(), files));
        let files = files.iter().map(found).collect::<Result<_>>()?;
        Ok(Self { files, options, limit })
    }

    /// Returns the cache key of these rows' tokens; `None` where a file can be read only once, or not at all, or is larger than [`MOST_BYTES`].
    fn key(&self, tokenizer: &Tokenizer, limits: LengthLimits) -> Option<TokenKey> {
        let program = format!("{} {:?}", env!("CARGO_PKG_VERSION"), program_file()?);
        let DataOptions { map, purpose, bad_rows, last_turn_only, template, .. } = self.options;
        let read = format!("{map:?} {purpose:?} {bad_rows:?} {last_turn_only}");
        let mut parts = vec![program, tokenizer.digest(template), format!("{limits:?}"), read];
        let mut stamps = Vec::new();
        for (path, found) in &self.files {
            // Names, too: what is told has them.
            parts.push(format!("{path:?} {:?}", found.notes));
            for file in &found.files {
                let place = file.place.as_deref()?;
                if fs::metadata(place).ok()?.len() > MOST_BYTES {
                    return None;
                }
                stamps.push((place.to_path_buf(), stamp(place)?));
                parts.push(format!("{:?} {}", file.name, file_digest(place)?));
            }
        }
        Some(TokenKey { name: parts_hash(parts.iter().map(String::as_bytes)), stamps })
    }

    fn tokenise(mut self, tokenizer: &Tokenizer, limits: LengthLimits) -> Result<TokenisedRows> {
        let mut told = ToldLines::default();
        let mut builder = DatasetBuilder::new(tokenizer, &self.options.template, limits, self.options.bad_rows)?;
        let (read, built) = std::thread::scope(|scope| {
            let (send, receive) = sync_channel::<Vec<Row>>(WAITING);
            let tokenising = scope.spawn(move || {
                let progress = ProgressReporter::open_ended("tokenising rows");
                let mut failed = None;
                // An error of a file is told before one of a row's tokens, so the rest is read, too.
                for chunk in receive {
                    if failed.is_none() {
                        failed = builder.add(&chunk).err();
                        progress.set_done(builder.n_rows());
                    }
                }
                failed.map_or(Ok(builder), Err)
            });
            let read = self.read(tokenizer, &mut told, |chunk| send.send(chunk).is_ok());
            drop(send);
            (read, tokenising.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let UnreadableRows { rows: unreadable, first } = read?;
        // Told before they may be too many.
        let shown = first.len();
        first.into_iter().for_each(|line| told.say(format!("note: skipped: {line}")));
        let data = built?.finish()?;
        data.remarks.lines().into_iter().for_each(|line| told.say(format!("note: {line}")));
        let (skipped, others): (Vec<_>, Vec<_>) =
            data.notes.iter().partition(|note| note.fate == OverflowAction::Skipped);
        let new = skipped.iter().filter(|note| unreadable.binary_search(&note.row).is_err());
        for note in new.take(SHOWN_BAD_ROWS - shown) {
            told.say(format!("note: skipped: {}: {}", data.place(note.row), note.reason));
        }
        for note in others.iter().take(SHOWN_NOTES) {
            told.say(format!("note: {}: {}", data.place(note.row), note.reason));
        }
        told.say(data.summary());
        Ok(TokenisedRows { data, told: told.0 })
    }

    /// Reads the rows, and gives them to `take` in chunks until it returns false.
    fn read(
        &mut self,
        tokenizer: &Tokenizer,
        told: &mut ToldLines,
        mut take: impl FnMut(Vec<Row>) -> bool,
    ) -> Result<UnreadableRows> {
        let (mut unreadable, mut chunk, mut n) = (UnreadableRows::default(), Vec::new(), 0);
        let DataOptions { map, purpose, bad_rows, last_turn_only, template, .. } = self.options;
        let mut is_template_told = false;
        for (path, found) in std::mem::take(&mut self.files) {
            if self.limit.is_some_and(|limit| n >= limit) {
                break;
            }
            let notes = for_each_row_of(path, found, map, *purpose, *bad_rows, |mut row| {
                if *last_turn_only {
                    row.content.keep_last_turn();
                }
                if let RowContent::Unreadable(reason) = &row.content {
                    unreadable.rows.push(n);
                    if unreadable.first.len() < SHOWN_BAD_ROWS {
                        unreadable.first.push(row.place.error(reason).to_string());
                    }
                }
                if let Some(text) = row.content.texts().first().filter(|_| !is_template_told) {
                    told.say(template_line(tokenizer, template, &text.instruction, "rows"));
                    bos_note(tokenizer, template, &text.instruction).into_iter().for_each(|note| told.say(note));
                    is_template_told = true;
                }
                n += 1;
                chunk.push(row);
                let is_taken = chunk.len() < CHUNK || take(std::mem::take(&mut chunk));
                let is_enough = self.limit.is_some_and(|limit| n >= limit);
                Ok(if is_taken && !is_enough { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            notes.into_iter().for_each(|line| told.say(format!("note: {line}")));
        }
        take(chunk);
        Ok(unreadable)
    }
}

/// Cache key of rows' tokens, with the lengths and times of their files when it was made.
struct TokenKey {
    name: String,
    stamps: Vec<(PathBuf, (u64, SystemTime))>,
}

impl TokenKey {
    /// Tells whether the files are unchanged since the key was made.
    fn still_holds(&self) -> bool {
        self.stamps.iter().all(|(path, was)| stamp(path) == Some(*was))
    }
}

/// Returns a regular file's length and the time of its last change.
fn stamp(path: &Path) -> Option<(u64, SystemTime)> {
    let about = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some((about.len(), about.modified().ok()?))
}

/// Computes a file's BLAKE3 hash, in hexadecimal; `None` for a file that cannot be read.
fn file_digest(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    let mut hasher = blake3::Hasher::new();
    // A file that grows while it is read ends where it ended.
    hasher.update_reader(file.by_ref().take(length)).ok()?;
    Some(hasher.finalize().to_hex().to_string())
}
