//! Where rows are: a file, a pipe, or a file of a data set on the hub (`hf://datasets/org/name/file`); JSON text, by its first bytes also
//! compressed with gzip or Zstandard, or Parquet.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::objects::{Parsed, for_each_object};
use super::rows::Place;
use crate::error::{Error, Result};
use crate::files::is_pipe;
#[cfg(feature = "cli")]
use crate::model::hub;

/// How every Parquet file begins.
const PARQUET: &[u8] = b"PAR1";
/// First bytes of every gzip member.
const GZIP: &[u8] = b"\x1f\x8b";
/// First bytes of every Zstandard frame.
const ZSTANDARD: &[u8] = b"\x28\xb5\x2f\xfd";

/// The file itself, or where the hub's is kept once it is fetched.
///
/// # Errors
/// [`Error::File`] where the hub does not give it.
pub fn local(path: &Path) -> Result<PathBuf> {
    #[cfg(feature = "cli")]
    if let Some(file) = path.to_str().and_then(hub::DatasetFile::parse) {
        return file.and_then(|file| hub::dataset_file(&file)).map_err(|reason| Error::file(path, reason));
    }
    Ok(path.into())
}

/// Calls `take` with every row as an object; a reason that it returns, or why a row is no object, becomes the row's error.
///
/// # Errors
/// [`Error::Line`] of a row, [`Error::File`] where the file cannot be read or has no rows.
pub(super) fn for_each_row(
    path: &Path,
    mut take: impl FnMut(Place, Map<String, Value>) -> Result<(), String>,
) -> Result<()> {
    for_each_parsed(path, |place, parsed| {
        parsed.and_then(|object| take(place.clone(), object)).map_err(|reason| place.error(reason))
    })
}

/// Calls `take` with every row, or the reason why it is no object.
///
/// # Errors
/// [`Error::File`] where the file cannot be read or has no rows, [`Error::Line`] of a row that ends the reading; what `take` returns.
pub(super) fn for_each_parsed(path: &Path, take: impl FnMut(Place, Parsed) -> Result<()>) -> Result<()> {
    let local = local(path)?;
    let about = std::fs::metadata(&local).map_err(|e| Error::file(path, e))?;
    if !about.is_file() && !is_pipe(&about) {
        return Err(Error::file(path, "is neither a file nor a pipe"));
    }
    let file = File::open(&local).map_err(|e| Error::file(path, e))?;
    // A file that grows while it is read ends where it ended; a pipe has no length.
    let length = if about.is_file() { about.len() } else { u64::MAX };
    let mut text = BufReader::new(file.take(length));
    let first = text.fill_buf().map_err(|e| Error::file(path, e))?;
    if first.starts_with(PARQUET) {
        return parquet(path, about.is_file().then_some(local), take);
    }
    if first.starts_with(GZIP) || first.starts_with(ZSTANDARD) {
        return unpacked(path, text, take);
    }
    for_each_object(path, text, take)
}

#[cfg(feature = "cli")]
fn parquet(path: &Path, file: Option<PathBuf>, take: impl FnMut(Place, Parsed) -> Result<()>) -> Result<()> {
    // Its table of contents stands at its end.
    let file = file.ok_or_else(|| Error::file(path, "Parquet cannot be read from a pipe: give the file"))?;
    let file = File::open(file).map_err(|e| Error::file(path, e))?;
    super::parquet::for_each_object(path, file, take)
}

#[cfg(not(feature = "cli"))]
fn parquet(path: &Path, _file: Option<PathBuf>, _take: impl FnMut(Place, Parsed) -> Result<()>) -> Result<()> {
    Err(Error::file(path, "Parquet is read by the command line's build alone"))
}

/// Reads compressed JSON text as it is unpacked, so that no more is held than a row.
#[cfg(feature = "cli")]
fn unpacked(path: &Path, mut packed: impl BufRead, take: impl FnMut(Place, Parsed) -> Result<()>) -> Result<()> {
    let is_gzip = packed.fill_buf().map_err(|e| Error::file(path, e))?.starts_with(GZIP);
    let (form, inner): (_, Box<dyn Read + '_>) = if is_gzip {
        ("gzip", Box::new(flate2::bufread::MultiGzDecoder::new(packed)))
    } else {
        let frames = zstd::stream::read::Decoder::with_buffer(packed).map_err(|e| Error::file(path, e))?;
        ("Zstandard", Box::new(frames))
    };
    let mut text = BufReader::new(Unpacked { inner, form });
    if text.fill_buf().map_err(|e| Error::file(path, e))?.starts_with(PARQUET) {
        return Err(Error::file(path, format!("is Parquet inside of a {form} archive: unpack it")));
    }
    for_each_object(path, text, take)
}

#[cfg(not(feature = "cli"))]
fn unpacked(path: &Path, _packed: impl BufRead, _take: impl FnMut(Place, Parsed) -> Result<()>) -> Result<()> {
    Err(Error::file(path, "compressed files are read by the command line's build alone"))
}

/// An archive's content; its errors name the archive's form.
#[cfg(feature = "cli")]
struct Unpacked<R> {
    inner: R,
    form: &'static str,
}

#[cfg(feature = "cli")]
impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let form = self.form;
        let told = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::Interrupted => e,
            _ => std::io::Error::other(format!("the {form} archive is damaged or cut short: {e}")),
        };
        self.inner.read(bytes).map_err(told)
    }
}
