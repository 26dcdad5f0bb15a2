//! The hub's cache on this machine, in the layout of Hugging Face's libraries, which share it: `models--org--name/blobs` holds contents,
//! `snapshots/COMMIT` links to them by path, `refs` names the commit of a branch or tag.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use reqwest::StatusCode;
use sha2::{Digest, Sha256};

use super::client::{FileMetadata, HubClient, HubError, HubRepository, is_plain_path};
use crate::error::Error;
use crate::progress::ProgressReporter;

/// Files that are fetched at the same time.
const WORKERS: usize = 4;
/// Attempts that bring no more bytes, after which a download ends.
const MAX_STALLED_ATTEMPTS: usize = 3;
/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;
/// Branch where none is named.
const MAIN: &str = "main";

/// Returns an environment variable that has a value.
fn setting(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Returns the home of Hugging Face's libraries: `HF_HOME`, or `huggingface` in the user's cache folder.
fn home() -> PathBuf {
    let cache = || setting("XDG_CACHE_HOME").or_else(|| Some(std::env::home_dir()?.join(".cache")));
    setting("HF_HOME").unwrap_or_else(|| cache().unwrap_or_else(std::env::temp_dir).join("huggingface"))
}

/// Reads the user's token: `HF_TOKEN`, or the file that `hf auth login` wrote. `HF_HUB_DISABLE_IMPLICIT_TOKEN` forbids both.
pub fn read_token() -> Option<String> {
    if setting("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return None;
    }
    let from_file = |path: PathBuf| fs::read_to_string(path).ok();
    let of_variable = std::env::var("HF_TOKEN").ok();
    let sources = [of_variable, setting("HF_TOKEN_PATH").and_then(from_file), from_file(home().join("token"))];
    sources.into_iter().flatten().map(|token| token.trim().to_string()).find(|token| !token.is_empty())
}

/// Folder of one repository in the hub's cache.
pub struct RepositoryCache {
    folder: PathBuf,
    locks: PathBuf,
}

/// Returns a revision as it is named in the cache.
pub fn revision_or_main(revision: Option<&str>) -> &str {
    revision.unwrap_or(MAIN)
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn create_folder_of(path: &Path) -> Result<(), Error> {
    path.parent().map_or(Ok(()), |folder| fs::create_dir_all(folder).map_err(|e| Error::file(folder, e)))
}

impl RepositoryCache {
    /// Names the folder of a repository. It may not exist.
    pub fn new(repository: HubRepository<'_>) -> Self {
        let hub =
            setting("HF_HUB_CACHE").or_else(|| setting("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home().join("hub"));
        let name = format!("{}--{}--{}", repository.plural(), repository.id.owner, repository.id.name);
        Self { folder: hub.join(&name), locks: hub.join(".locks").join(name) }
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Returns the commit that a revision was when it was fetched last.
    fn known_commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.into());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_string()).filter(|commit| is_plain_path(commit) && !commit.contains('/'))
    }

    fn keep_commit(&self, revision: &str, commit: &str) -> Result<(), Error> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        create_folder_of(&path)?;
        fs::write(&path, commit).map_err(|e| Error::file(&path, e))
    }

    /// Returns the snapshot of a revision, as far as it was fetched.
    pub fn find_snapshot(&self, revision: &str) -> Result<PathBuf, HubError> {
        let snapshot = self.known_commit(revision).map(|commit| self.snapshot(&commit)).filter(|path| path.is_dir());
        snapshot.ok_or_else(|| HubError::NotCached(self.folder.display().to_string()))
    }

    /// Returns a file of a revision, where it was fetched.
    pub fn find_file(&self, revision: &str, path: &str) -> Result<PathBuf, HubError> {
        let file = self.find_snapshot(revision)?.join(path);
        if file.exists() { Ok(file) } else { Err(HubError::NotCached(path.into())) }
    }

    /// Lets the snapshot's path lead to a content: by a link, or where links need rights by another name of the file or a copy.
    fn link(&self, metadata: &FileMetadata, path: &str) -> Result<PathBuf, Error> {
        let place = self.snapshot(&metadata.commit).join(path);
        create_folder_of(&place)?;
        let _ = fs::remove_file(&place);
        #[cfg(unix)]
        let linked = {
            let up = "../".repeat(path.split('/').count() + 1);
            std::os::unix::fs::symlink(format!("{up}blobs/{}", metadata.etag), &place)
        };
        #[cfg(not(unix))]
        let linked = {
            let blob = self.folder.join("blobs").join(&metadata.etag);
            fs::hard_link(&blob, &place).or_else(|_| fs::copy(&blob, &place).map(drop))
        };
        match linked {
            // Another process made it.
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::file(&place, e)),
            _ => Ok(place),
        }
    }

    /// Waits until no other process fetches this content. The lock ends with the file.
    fn lock(&self, etag: &str) -> Result<File, Error> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_folder_of(&path)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Error::file(&path, e))?;
        if file.try_lock().is_err() {
            note!("waiting for another download of the same file ({})", path.display());
            file.lock().map_err(|e| Error::file(&path, e))?;
        }
        Ok(file)
    }
}

/// One fetch of files of a repository at a revision.
pub struct HubFetch<'a> {
    /// HTTP client.
    pub client: &'a HubClient,
    /// Repository that has the files.
    pub repository: HubRepository<'a>,
    /// Folder of the repository in the cache.
    pub cache: &'a RepositoryCache,
}

impl HubFetch<'_> {
    /// Fetches one file, where the cache lacks it, and returns its place.
    ///
    /// # Errors
    /// [`HubError`]. What arrived of a file is kept, and the next fetch goes on behind it.
    pub fn file(&self, revision: &str, path: &str) -> Result<PathBuf, HubError> {
        if is_commit(revision)
            && let Ok(file) = self.cache.find_file(revision, path)
        {
            return Ok(file);
        }
        let metadata = self.client.metadata(self.repository, revision, path)?;
        let progress = self.begin(metadata.n_bytes.unwrap_or_default(), &[&metadata.etag]);
        let file = self.content(&metadata, path, &progress)?;
        self.cache.keep_commit(revision, &metadata.commit)?;
        Ok(file)
    }

    /// Fetches the files whose paths `is_wanted`, where the cache lacks them, and returns the snapshot's folder.
    ///
    /// # Errors
    /// Like [`HubFetch::file`].
    pub fn snapshot(&self, revision: &str, is_wanted: impl Fn(&str) -> bool) -> Result<PathBuf, HubError> {
        let commit = match is_commit(revision) {
            true => revision.to_string(),
            false => self.client.commit(self.repository, revision)?,
        };
        let snapshot = self.cache.snapshot(&commit);
        let listed = self.client.list_files(self.repository, &commit)?;
        let missing: Vec<_> =
            listed.into_iter().filter(|(path, _)| is_wanted(path) && !snapshot.join(path).exists()).collect();
        let metadata = |(path, _): &(String, u64)| self.client.metadata(self.repository, &commit, path);
        let metadata = parallel(&missing, metadata)?;
        let n_bytes = missing.iter().map(|(_, n_bytes)| n_bytes).sum();
        let progress = self.begin(n_bytes, &metadata.iter().map(|m| m.etag.as_str()).collect::<Vec<_>>());
        let files: Vec<_> = missing.iter().zip(&metadata).collect();
        parallel(&files, |((path, _), metadata)| self.content(metadata, path, &progress))?;
        fs::create_dir_all(&snapshot).map_err(|e| Error::file(&snapshot, e))?;
        self.cache.keep_commit(revision, &commit)?;
        Ok(snapshot)
    }

    /// Begins to show progress, where a content is missing.
    fn begin(&self, n_bytes: u64, etags: &[&str]) -> ProgressReporter {
        let blobs = self.cache.folder.join("blobs");
        if n_bytes == 0 || etags.iter().all(|etag| blobs.join(etag).exists()) {
            return ProgressReporter::hidden();
        }
        let progress = ProgressReporter::bytes("fetching from the hub", n_bytes);
        if progress.writes_lines() {
            note!("fetching {:.1} MB from the hub", n_bytes as f64 / 1e6);
        }
        progress
    }

    /// Fetches one content, where the cache lacks it, and links to it.
    fn content(&self, metadata: &FileMetadata, path: &str, progress: &ProgressReporter) -> Result<PathBuf, HubError> {
        let blob = self.cache.folder.join("blobs").join(&metadata.etag);
        if !blob.exists() {
            create_folder_of(&blob)?;
            let _lock = self.cache.lock(&metadata.etag)?;
            // Another process may have fetched it meanwhile.
            if !blob.exists() {
                self.download(metadata, path, &blob, progress)?;
                return Ok(self.cache.link(metadata, path)?);
            }
        }
        progress.skip(metadata.n_bytes.unwrap_or_default());
        Ok(self.cache.link(metadata, path)?)
    }

    /// Downloads a content to `blob`, going on behind what an earlier download left.
    fn download(
        &self,
        metadata: &FileMetadata,
        path: &str,
        blob: &Path,
        progress: &ProgressReporter,
    ) -> Result<(), HubError> {
        let place = blob.with_file_name(format!("{}.incomplete", metadata.etag));
        let mut part = PartialFile::open(&place, metadata.is_sha256)?;
        let is_resumable = metadata.n_bytes.is_some_and(|n_bytes| part.n_bytes <= n_bytes);
        if !is_resumable {
            part.clear()?;
        }
        progress.skip(part.n_bytes);
        let mut n_stalled = 0;
        while metadata.n_bytes != Some(part.n_bytes) || part.n_bytes == 0 {
            let before = part.n_bytes;
            let ended = self.append(metadata, path, &mut part, progress);
            if let Some(n_bytes) = metadata.n_bytes.filter(|n_bytes| part.n_bytes > *n_bytes) {
                let _ = fs::remove_file(&place);
                return Err(HubError::Unexpected(format!("{path}: more than its {n_bytes} bytes arrived")));
            }
            let is_whole = metadata.n_bytes.is_none_or(|n_bytes| n_bytes == part.n_bytes);
            let error = match ended {
                Ok(()) if is_whole => break,
                Ok(()) => HubError::Unreachable(format!("{path}: the connection ended early")),
                Err(error) if error.is_transient() => error,
                Err(error) => return Err(error),
            };
            n_stalled = if part.n_bytes > before { 1 } else { n_stalled + 1 };
            if n_stalled == MAX_STALLED_ATTEMPTS {
                return Err(error);
            }
        }
        if let Some(found) = part.hasher.take().map(Sha256::finalize) {
            let found: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
            if !found.eq_ignore_ascii_case(&metadata.etag) {
                let _ = fs::remove_file(&place);
                return Err(HubError::Unexpected(format!(
                    "{path}: what arrived has the SHA-256 {found}, not {}",
                    metadata.etag
                )));
            }
        }
        part.file.sync_all().and_then(|()| fs::rename(&place, blob)).map_err(|e| Error::file(blob, e))?;
        Ok(())
    }

    /// Appends what one answer brings.
    fn append(
        &self,
        metadata: &FileMetadata,
        path: &str,
        part: &mut PartialFile,
        progress: &ProgressReporter,
    ) -> Result<(), HubError> {
        let mut response = self.client.open(self.repository, &metadata.commit, path, part.n_bytes)?;
        if part.n_bytes > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
            progress.take_back(part.n_bytes);
            part.clear()?;
        }
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let n = response.read(&mut buffer).map_err(|e| HubError::Unreachable(format!("{path}: {e}")))?;
            if n == 0 {
                return Ok(());
            }
            part.append(&buffer[..n])?;
            progress.advance(n as u64);
        }
    }
}

/// File of a download that may not be whole.
struct PartialFile {
    place: PathBuf,
    file: File,
    n_bytes: u64,
    hasher: Option<Sha256>,
}

impl PartialFile {
    fn open(place: &Path, hashes: bool) -> Result<Self, Error> {
        let at = |e| Error::file(place, e);
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(place).map_err(at)?;
        let n_bytes = file.metadata().map_err(at)?.len();
        let mut hasher = hashes.then(Sha256::new);
        if let Some(hasher) = hasher.as_mut().filter(|_| n_bytes > 0) {
            let mut buffer = vec![0; READ_BYTES];
            loop {
                match file.read(&mut buffer).map_err(at)? {
                    0 => break,
                    n => hasher.update(&buffer[..n]),
                }
            }
        }
        Ok(Self { place: place.into(), file, n_bytes, hasher })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(|e| Error::file(&self.place, e))?;
        self.n_bytes += bytes.len() as u64;
        self.hasher.iter_mut().for_each(|hasher| hasher.update(bytes));
        Ok(())
    }

    fn clear(&mut self) -> Result<(), Error> {
        self.file.set_len(0).map_err(|e| Error::file(&self.place, e))?;
        self.n_bytes = 0;
        self.hasher.iter_mut().for_each(|hasher| *hasher = Sha256::new());
        Ok(())
    }
}

/// Maps items on [`WORKERS`] threads, in order. No item is begun after an error, which is returned.
fn parallel<T: Sync, R: Send>(items: &[T], map: impl Fn(&T) -> Result<R, HubError> + Sync) -> Result<Vec<R>, HubError> {
    let (next, first_error) = (AtomicUsize::new(0), Mutex::new(None));
    let results: Vec<Mutex<Option<R>>> = items.iter().map(|_| Mutex::new(None)).collect();
    let work = || {
        while let Some(i) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < items.len()) {
            match map(&items[i]) {
                Ok(result) => *results[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(result),
                Err(error) => {
                    next.store(items.len(), Ordering::Relaxed);
                    first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..WORKERS.min(items.len()) {
            scope.spawn(work);
        }
    });
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => {
            Ok(results.into_iter().filter_map(|r| r.into_inner().unwrap_or_else(PoisonError::into_inner)).collect())
        }
    }
}
