//! Where rows are: a file, a pipe, or a file of a data set on the hub (`hf://datasets/org/name/file`); JSON lines or, by its first bytes,
//! Parquet.

use std::fs::{File, Metadata};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::rows::{Place, for_each_object};
use crate::error::{Error, Result};
#[cfg(feature = "cli")]
use crate::model::hub;

/// How every Parquet file begins.
const PARQUET: &[u8] = b"PAR1";

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

/// Calls `take` with every row as an object; a reason that it returns becomes the row's error.
///
/// # Errors
/// [`Error::Line`] of a row, [`Error::File`] where the file cannot be read or has no rows.
pub(super) fn for_each_row(
    path: &Path,
    take: impl FnMut(Place, Map<String, Value>) -> Result<(), String>,
) -> Result<()> {
    let local = local(path)?;
    let about = std::fs::metadata(&local).map_err(|e| Error::file(path, e))?;
    if !about.is_file() && !is_pipe(&about) {
        return Err(Error::file(path, "is neither a file nor a pipe"));
    }
    let file = File::open(&local).map_err(|e| Error::file(path, e))?;
    // A file that grows while it is read ends where it ended; a pipe has no length.
    let length = if about.is_file() { about.len() } else { u64::MAX };
    let mut text = BufReader::new(file.take(length));
    if text.fill_buf().map_err(|e| Error::file(path, e))?.starts_with(PARQUET) {
        return parquet(path, about.is_file().then_some(local), take);
    }
    for_each_object(path, text, take)
}

#[cfg(feature = "cli")]
fn parquet(
    path: &Path,
    file: Option<PathBuf>,
    take: impl FnMut(Place, Map<String, Value>) -> Result<(), String>,
) -> Result<()> {
    // Its table of contents stands at its end.
    let file = file.ok_or_else(|| Error::file(path, "Parquet cannot be read from a pipe: give the file"))?;
    let file = File::open(file).map_err(|e| Error::file(path, e))?;
    super::parquet::for_each_object(path, file, take)
}

#[cfg(not(feature = "cli"))]
fn parquet(
    path: &Path,
    _file: Option<PathBuf>,
    _take: impl FnMut(Place, Map<String, Value>) -> Result<(), String>,
) -> Result<()> {
    Err(Error::file(path, "Parquet is read by the command line's build alone"))
}

#[cfg(unix)]
fn is_pipe(about: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    about.file_type().is_fifo()
}

#[cfg(not(unix))]
fn is_pipe(about: &Metadata) -> bool {
    !about.is_dir()
}
