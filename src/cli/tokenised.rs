//! Rows as tokens: tokenised on all cores while they are read, and kept for the next start over the same rows.

use std::fs::{self, File};
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::SystemTime;

use super::args::DataArgs;
use super::cache_folder::cache_folder;
use super::checked;
use super::session::{self, Model};
use crate::data::bad_rows::BadRows;
use crate::data::dataset::{Dataset, DatasetBuilder, Fate, Limits};
use crate::data::rows::{Content, FieldMap, Instruction, Purpose, Row, for_each_row_of};
use crate::data::source::SourceFiles;
use crate::data::template::Template;
use crate::data::token_store::{TokenStore, TokenisedRows};
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result};
use crate::files::parts_hash;
use crate::progress::ProgressReporter;
use crate::validate::at_least_one;

/// Rows that are tokenised together.
const CHUNK: usize = 512;
/// Chunks that wait for it.
const WAITING: usize = 2;
/// Fewer rows than this are tokenised sooner than kept.
const FEW_ROWS: usize = 1000;
/// A larger file is not read once more, for its digest: its tokens are not kept.
const MOST_BYTES: u64 = 16 << 30;
/// Bad rows, and rows that were cut or dropped, which are told one by one.
const SHOWN_BAD_ROWS: usize = 10;
const SHOWN_NOTES: usize = 5;

/// Reads the rows of the files as tokens.
///
/// # Errors
/// As [`Dataset::build_with`]'s, and those of the files.
pub fn dataset(
    args: &DataArgs,
    files: &[PathBuf],
    model: &Model,
    tokenizer: &Tokenizer,
    purpose: Purpose,
) -> Result<Dataset> {
    let rows = RowSource::find(args, files, purpose, None)?;
    let (template, limits) = session::limits(args, &model.description)?;
    let key = rows.key(tokenizer, &template, limits);
    let store = TokenStore::new(cache_folder().join("tokens"));
    if let Some(known) = key.as_ref().and_then(|key| known(&store, &key.name)) {
        known.told.iter().for_each(|line| note!("{line}"));
        return Ok(known.data);
    }
    let rows = rows.tokenise(tokenizer, &template, limits)?;
    if let Some(key) = key.filter(|key| rows.data.n_rows() >= FEW_ROWS && key.still_holds())
        && let Err(error) = store.put(&key.name, &rows)
    {
        note!("note: the tokens are not kept for the next start: {error}");
    }
    Ok(rows.data)
}

/// Reads no more than the first rows, which are not kept.
///
/// # Errors
/// As [`dataset`]'s.
pub fn first_rows(
    args: &DataArgs,
    n: usize,
    model: &Model,
    tokenizer: &Tokenizer,
    purpose: Purpose,
) -> Result<Dataset> {
    at_least_one("limit", n)?;
    let (template, limits) = session::limits(args, &model.description)?;
    let rows = RowSource::find(args, &args.data, purpose, Some(n))?;
    rows.tokenise(tokenizer, &template, limits).map(|rows| rows.data)
}

/// Reads the rows alone, no more than the first `n`.
///
/// # Errors
/// Fails like [`dataset`].
pub fn rows(args: &DataArgs, n: Option<usize>, purpose: Purpose) -> Result<Vec<Row>> {
    let source = RowSource::find(args, &args.data, purpose, n)?;
    let most = n.unwrap_or(usize::MAX);
    let mut rows = Vec::new();
    for (path, found) in source.files {
        if rows.len() == most {
            break;
        }
        for_each_row_of(path, found, &source.map, purpose, source.bad_rows, |mut row| {
            if source.last_turn_only {
                row.content.keep_last_turn();
            }
            rows.push(row);
            Ok(if rows.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
    }
    Ok(rows)
}

/// Looks for tokens that an earlier start kept; what is damaged is told, and replaced.
fn known(store: &TokenStore, key: &str) -> Option<TokenisedRows> {
    store.get(key).unwrap_or_else(|error| {
        note!("note: {error}: the rows are tokenised again");
        None
    })
}

/// The files of some rows, and how they are read.
struct RowSource<'a> {
    /// Each path as it was given, with its files.
    files: Vec<(&'a Path, SourceFiles)>,
    map: FieldMap,
    purpose: Purpose,
    bad_rows: BadRows,
    last_turn_only: bool,
    /// The flag that sets the template, where one does.
    template_flag: &'static str,
    /// Rows after which the reading ends.
    limit: Option<usize>,
}

/// Rows that cannot be read: their numbers, rising, and the first of them in words.
#[derive(Default)]
struct UnreadableRows {
    rows: Vec<usize>,
    first: Vec<String>,
}

/// Lines that were told, which go with the tokens.
#[derive(Default)]
struct Told(Vec<String>);

impl Told {
    fn say(&mut self, line: String) {
        note!("{line}");
        self.0.push(line);
    }
}

impl<'a> RowSource<'a> {
    fn find(args: &DataArgs, files: &'a [PathBuf], purpose: Purpose, limit: Option<usize>) -> Result<Self> {
        if files.is_empty() {
            return Err(Error::flag("data", "is missing: a file of rows"));
        }
        let (map, bad_rows) = (FieldMap::parse(&args.map)?, session::bad_rows(args)?);
        let found = |path: &'a PathBuf| SourceFiles::find(path).map(|files| (path.as_path(), files));
        let files = files.iter().map(found).collect::<Result<_>>()?;
        let template_flag = if args.template.is_some() { "--template" } else { "--chat-template" };
        Ok(Self { files, map, purpose, bad_rows, last_turn_only: args.last_turn_only, template_flag, limit })
    }

    /// Names the tokens of these rows; `None` where a file can be read only once, or not at all, or is larger than [`MOST_BYTES`].
    fn key(&self, tokenizer: &Tokenizer, template: &Template, limits: Limits) -> Option<TokenKey> {
        let program = format!("{} {:?}", env!("CARGO_PKG_VERSION"), checked::program_file()?);
        let read = format!("{:?} {:?} {:?} {}", self.map, self.purpose, self.bad_rows, self.last_turn_only);
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

    fn tokenise(mut self, tokenizer: &Tokenizer, template: &Template, limits: Limits) -> Result<TokenisedRows> {
        let mut told = Told::default();
        let mut builder = DatasetBuilder::new(tokenizer, template, limits, self.bad_rows)?;
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
            let read = self.read(tokenizer, template, &mut told, |chunk| send.send(chunk).is_ok());
            drop(send);
            (read, tokenising.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let UnreadableRows { rows: unreadable, first } = read?;
        // Told before they may be too many.
        let shown = first.len();
        first.into_iter().for_each(|line| told.say(format!("note: skipped: {line}")));
        let data = built?.finish()?;
        data.remarks.lines().into_iter().for_each(|line| told.say(format!("note: {line}")));
        let (skipped, others): (Vec<_>, Vec<_>) = data.notes.iter().partition(|note| note.fate == Fate::Skipped);
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

    /// Reads the rows, and gives them to `take` in chunks while it takes some.
    fn read(
        &mut self,
        tokenizer: &Tokenizer,
        template: &Template,
        told: &mut Told,
        mut take: impl FnMut(Vec<Row>) -> bool,
    ) -> Result<UnreadableRows> {
        let (mut unreadable, mut chunk, mut n) = (UnreadableRows::default(), Vec::new(), 0);
        let (flag, mut is_template_told) = (self.template_flag, false);
        for (path, found) in std::mem::take(&mut self.files) {
            if self.limit.is_some_and(|limit| n >= limit) {
                break;
            }
            let notes = for_each_row_of(path, found, &self.map, self.purpose, self.bad_rows, |mut row| {
                if self.last_turn_only {
                    row.content.keep_last_turn();
                }
                if let Content::Unreadable(reason) = &row.content {
                    unreadable.rows.push(n);
                    if unreadable.first.len() < SHOWN_BAD_ROWS {
                        unreadable.first.push(row.place.error(reason).to_string());
                    }
                }
                if let Some(text) = row.content.texts().first().filter(|_| !is_template_told) {
                    told.say(template_line(template, &text.instruction, "rows", flag));
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

/// Says which template texts get, and why. `what` they are: rows, prompts.
pub fn template_line(template: &Template, first: &Instruction, what: &str, flag: &str) -> String {
    let (form, theirs) = (template.for_instruction(first), if *template == Template::ByRows { "" } else { flag });
    let why = match (first, theirs) {
        (Instruction::Verbatim(_), _) => format!("the {what} are whole texts"),
        (_, flag @ ("--template" | "--chat-template")) => flag.into(),
        (Instruction::Chat(_), _) => format!("the {what} are conversations"),
        (Instruction::Plain(_), _) => format!("the {what} are texts"),
    };
    format!("template: {} ({why})", form.name())
}

/// Says that `none` puts a BOS before texts which the tokenizer itself does not put there.
pub fn bos_note(tokenizer: &Tokenizer, template: &Template, first: &Instruction) -> Option<String> {
    let is_none = *template.for_instruction(first) == Template::None;
    let bos = tokenizer.bos_id().filter(|bos| is_none && !tokenizer.start_ids().contains(bos))?;
    let token = tokenizer.show(bos);
    Some(format!(
        "note: BOS, {token}, stands before each text; the tokenizer itself puts none there (--template plain: none, as TRL)"
    ))
}

/// Name of some rows' tokens, and what their files were when it was made.
struct TokenKey {
    name: String,
    stamps: Vec<(PathBuf, (u64, SystemTime))>,
}

impl TokenKey {
    /// Tells whether the files are what the name says still.
    fn still_holds(&self) -> bool {
        self.stamps.iter().all(|(path, was)| stamp(path) == Some(*was))
    }
}

/// Gives a regular file's length and the time of its last change.
fn stamp(path: &Path) -> Option<(u64, SystemTime)> {
    let about = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some((about.len(), about.modified().ok()?))
}

/// Gives a file's BLAKE3, in hexadecimal; `None` of one that cannot be read.
fn file_digest(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    let mut hasher = blake3::Hasher::new();
    // A file that grows while it is read ends where it ended.
    hasher.update_reader(file.by_ref().take(length)).ok()?;
    Some(hasher.finalize().to_hex().to_string())
}
