//! Sources of rows: a file, a folder, a pattern, standard input, or a data set on the hub (`hf://datasets/...`). Each contains JSON text, a
//! table (CSV, TSV) or Parquet. Text may be compressed with gzip or Zstandard, which is recognised by the first bytes.

mod expand;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Map, Value};

pub use self::expand::{SourceFile, SourceFiles};
use super::objects::for_each_object;
use super::parsed_row::{ParsedRow, TakenField};
use super::source_location::SourceLocation;
use crate::error::{Error, Result};
use crate::files::is_pipe;

/// First bytes of every Parquet file.
const PARQUET: &[u8] = b"PAR1";
/// First bytes of every gzip member.
const GZIP: &[u8] = b"\x1f\x8b";
/// First bytes of every Zstandard frame.
const ZSTANDARD: &[u8] = b"\x28\xb5\x2f\xfd";

/// Calls `take` with every row as an object. A reason that `take` returns, or the reason why a row is not an object, becomes an error with
/// the row's location. Returns notes on the files, one line each.
///
/// # Errors
/// [`Error::Line`] for a row; [`Error::File`] where a file cannot be read or has no rows.
pub(super) fn for_each_row(
    path: &Path,
    mut take: impl FnMut(SourceLocation, Map<String, Value>) -> Result<(), String>,
) -> Result<Vec<String>> {
    for_each_parsed(path, |place, parsed| {
        let taken = parsed.and_then(|object| take(place.clone(), object));
        taken.map(ControlFlow::Continue).map_err(|reason| place.error(reason))
    })
}

/// Calls `take` with each row of a path's files, or with the reason why the row is not an object, until `take` breaks off. Returns notes on
/// the files.
///
/// # Errors
/// [`Error::File`] where a file cannot be read or has no rows; [`Error::Line`] for a row that ends the reading; errors of `take`.
pub(super) fn for_each_parsed(
    path: &Path,
    take: impl FnMut(SourceLocation, ParsedRow) -> TakenField,
) -> Result<Vec<String>> {
    for_each_in(SourceFiles::find(path)?, take)
}

/// Like [`for_each_parsed`], for files that were found before.
pub(super) fn for_each_in(
    SourceFiles { files, mut notes }: SourceFiles,
    mut take: impl FnMut(SourceLocation, ParsedRow) -> TakenField,
) -> Result<Vec<String>> {
    let mut has_ended = false;
    for file in &files {
        let mut taken = |place, parsed| {
            let flow = take(place, parsed)?;
            has_ended |= flow.is_break();
            Ok(flow)
        };
        notes.extend(for_each_of(file, &mut taken)?);
        if has_ended {
            break;
        }
    }
    Ok(notes)
}

fn for_each_of(
    source: &SourceFile,
    take: &mut impl FnMut(SourceLocation, ParsedRow) -> TakenField,
) -> Result<Vec<String>> {
    let path = &source.name;
    let (file, length) = source.open()?;
    let is_pipe = length.is_none();
    // Reads at most the length seen at opening, so that a file that is still being written ends.
    let mut text = BufReader::new(file.take(length.unwrap_or(u64::MAX)));
    let first = text.fill_buf().map_err(|e| Error::file(path, e))?;
    if first.starts_with(PARQUET) {
        return parquet(path, (!is_pipe).then(|| text.into_inner().into_inner()), take);
    }
    if first.starts_with(GZIP) || first.starts_with(ZSTANDARD) {
        return unpacked(path, text, take);
    }
    for_each_object(path, text, take)
}

impl SourceFile {
    /// Opens the file. Also returns its length; `None` for a pipe.
    fn open(&self) -> Result<(File, Option<u64>)> {
        let at = |e: std::io::Error| Error::file(&self.name, e);
        let Some(place) = &self.place else {
            return standard_input().map_err(|reason| Error::file(&self.name, reason));
        };
        let about = std::fs::metadata(place).map_err(at)?;
        if !about.is_file() && !is_pipe(&about) {
            return Err(Error::file(&self.name, "is neither a file nor a pipe"));
        }
        Ok((File::open(place).map_err(at)?, about.is_file().then_some(about.len())))
    }
}

/// Opens standard input again. Bytes that were read before are lost.
#[cfg(any(unix, windows))]
fn standard_input() -> Result<(File, Option<u64>), String> {
    let input = std::io::stdin();
    if std::io::IsTerminal::is_terminal(&input) {
        return Err("is the terminal: give a file, or pipe rows into the program".into());
    }
    #[cfg(unix)]
    let file = std::os::fd::AsFd::as_fd(&input).try_clone_to_owned().map(File::from);
    #[cfg(windows)]
    let file = std::os::windows::io::AsHandle::as_handle(&input).try_clone_to_owned().map(File::from);
    let file = file.map_err(|e| e.to_string())?;
    // Windows reports nothing about a pipe.
    let about = file.metadata().ok().filter(|about| about.is_file());
    Ok((file, about.map(|about| about.len())))
}

#[cfg(not(any(unix, windows)))]
fn standard_input() -> Result<(File, Option<u64>), String> {
    Err("cannot be read here".into())
}

#[cfg(feature = "native")]
fn parquet(
    path: &Path,
    file: Option<File>,
    take: impl FnMut(SourceLocation, ParsedRow) -> TakenField,
) -> Result<Vec<String>> {
    // Parquet's table of contents is at the end of the file.
    let file = file.ok_or_else(|| Error::file(path, "Parquet cannot be read from a pipe: give the file"))?;
    super::parquet::for_each_object(path, file, take).map(|()| Vec::new())
}

#[cfg(not(feature = "native"))]
fn parquet(
    path: &Path,
    _file: Option<File>,
    _take: impl FnMut(SourceLocation, ParsedRow) -> TakenField,
) -> Result<Vec<String>> {
    Err(Error::file(path, "Parquet is read by the command line's build alone"))
}

/// Reads compressed JSON text while it is decompressed, so that at most one row is in memory.
#[cfg(feature = "native")]
fn unpacked(
    path: &Path,
    mut packed: impl BufRead,
    take: impl FnMut(SourceLocation, ParsedRow) -> TakenField,
) -> Result<Vec<String>> {
    let is_gzip = packed.fill_buf().map_err(|e| Error::file(path, e))?.starts_with(GZIP);
    let (form, inner): (_, Box<dyn Read + '_>) = if is_gzip {
        ("gzip", Box::new(flate2::bufread::MultiGzDecoder::new(packed)))
    } else {
        let frames = zstd::stream::read::Decoder::with_buffer(packed).map_err(|e| Error::file(path, e))?;
        ("Zstandard", Box::new(frames))
    };
    let mut text = BufReader::new(UnpackedFile { inner, form });
    if text.fill_buf().map_err(|e| Error::file(path, e))?.starts_with(PARQUET) {
        return Err(Error::file(path, format!("is Parquet inside of a {form} archive: unpack it")));
    }
    for_each_object(path, text, take)
}

#[cfg(not(feature = "native"))]
fn unpacked(
    path: &Path,
    _packed: impl BufRead,
    _take: impl FnMut(SourceLocation, ParsedRow) -> TakenField,
) -> Result<Vec<String>> {
    Err(Error::file(path, "compressed files are read by the command line's build alone"))
}

/// Content of a compressed file; its errors name the compression.
#[cfg(feature = "native")]
struct UnpackedFile<R> {
    inner: R,
    form: &'static str,
}

#[cfg(feature = "native")]
impl<R: Read> Read for UnpackedFile<R> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let form = self.form;
        let told = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::Interrupted => e,
            _ => std::io::Error::other(format!("the {form} archive is damaged or cut short: {e}")),
        };
        self.inner.read(bytes).map_err(told)
    }
}
