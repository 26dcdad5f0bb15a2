//! Reading of files in a model's folder. The folder is untrusted: only regular files inside it are read, up to a size limit.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::is_pipe;

/// Largest size of a configuration, an index or a template.
pub const MAX_CONFIG_BYTES: u64 = 64 << 20;
/// Largest size of `tokenizer.json`.
pub const MAX_TOKENIZER_BYTES: u64 = 1 << 30;

/// Returns the path of a regular file in a folder. A link must lead to a file inside the folder or, where the folder is a snapshot in the
/// hub's cache, into that repository's blobs.
///
/// # Errors
/// [`Error::File`] where the file is missing, is outside the folder, or is not a regular file.
pub fn inside(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    let target = path.canonicalize().map_err(|e| Error::file(&path, e))?;
    let dir = dir.canonicalize().map_err(|e| Error::file(dir, e))?;
    if !target.starts_with(&dir) && !hub_blobs(&dir).is_some_and(|blobs| target.starts_with(blobs)) {
        return Err(Error::file(&path, "is a link out of the checkpoint's folder"));
    }
    if !target.is_file() {
        return Err(Error::file(&path, "is not a regular file"));
    }
    Ok(path)
}

/// Returns `<repository>/blobs` for a folder in `<repository>/snapshots/<revision>`.
fn hub_blobs(dir: &Path) -> Option<PathBuf> {
    // An adapter may be in a subfolder of the snapshot.
    let snapshots = dir.ancestors().skip(1).find(|p| p.file_name().is_some_and(|n| n == "snapshots"))?;
    snapshots.parent()?.join("blobs").canonicalize().ok()
}

/// Reads the text of a file in a folder, of at most `limit` bytes.
///
/// # Errors
/// Fails like [`inside`]; also [`Error::File`] where the file is longer, or not UTF-8.
pub fn read_inside(dir: &Path, name: &str, limit: u64) -> Result<String> {
    read_file(&inside(dir, name)?, limit)
}

/// Reads the text of a regular file of at most `limit` bytes.
///
/// # Errors
/// [`Error::File`] where the file is unreadable, not a regular file, longer than `limit`, or not UTF-8.
pub fn read_file(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read_regular(path, limit)?).map_err(|e| Error::file(path, e.utf8_error()))
}

/// Reads the bytes of a regular file of at most `limit` bytes.
///
/// # Errors
/// [`Error::File`] where the file is unreadable, not a regular file, or longer than `limit`.
pub fn read_regular(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let at = |e: std::io::Error| Error::file(path, e);
    if !std::fs::metadata(path).map_err(at)?.is_file() {
        return Err(Error::file(path, "is not a regular file"));
    }
    let file = std::fs::File::open(path).map_err(at)?;
    let n_bytes = file.metadata().map_err(at)?.len();
    if n_bytes > limit {
        return Err(Error::file(path, format!("has {n_bytes} bytes; at most {limit} are read")));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(at)?;
    Ok(bytes)
}

/// Reads a file or a pipe to its end. A device file is refused, because it may have no end; so may a pipe, hence the limit.
///
/// # Errors
/// [`Error::File`] where `path` is unreadable, is neither a file nor a pipe, or is longer than `limit`.
pub fn read_whole(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let at = |e: std::io::Error| Error::file(path, e);
    let about = std::fs::metadata(path).map_err(at)?;
    if !about.is_file() && !is_pipe(&about) {
        return Err(Error::file(path, "is neither a file nor a pipe"));
    }
    let too_long = || Error::file(path, format!("is longer than {} MiB, the most that is read of it", limit >> 20));
    if about.is_file() && about.len() > limit {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(at)?.take(limit + 1).read_to_end(&mut bytes).map_err(at)?;
    if bytes.len() as u64 > limit { Err(too_long()) } else { Ok(bytes) }
}

/// Like [`read_inside`], but returns `None` where there is no such file.
///
/// # Errors
/// Fails like [`read_inside`].
pub fn read_optional(dir: &Path, name: &str, limit: u64) -> Result<Option<String>> {
    match dir.join(name).symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => read_inside(dir, name, limit).map(Some),
    }
}

#[cfg(all(test, unix))]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_regular_files_of_the_folder_are_read() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("model");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a"), "text").unwrap();
        fs::write(root.path().join("secret"), "secret").unwrap();
        symlink("a", dir.join("within")).unwrap();
        for (name, to) in [("out", "../secret"), ("zero", "/dev/zero"), ("nowhere", "nothing"), ("loop", "loop")] {
            symlink(to, dir.join(name)).unwrap();
        }
        fs::create_dir(dir.join("folder")).unwrap();
        let fifo = std::process::Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap();
        assert!(fifo.success());

        for name in ["a", "within"] {
            assert_eq!(read_inside(&dir, name, 4).unwrap(), "text");
        }
        let told = |name: &str, limit: u64| read_optional(&dir, name, limit).unwrap_err().to_string();
        assert!(told("a", 3).contains("has 4 bytes; at most 3 are read"));
        for (name, reason) in [
            ("out", "is a link out of the checkpoint's folder"),
            ("zero", "is a link out of the checkpoint's folder"),
            ("nowhere", "No such file"),
            ("loop", ""),
            ("folder", "is not a regular file"),
            ("fifo", "is not a regular file"),
        ] {
            let text = told(name, 100);
            assert!(text.contains(&format!("model/{name}: ")) && text.contains(reason), "{text}");
        }
        assert_eq!(read_optional(&dir, "absent", 100).unwrap(), None);
    }
}
