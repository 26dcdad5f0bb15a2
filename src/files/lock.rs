//! Locks of output folders and of parts of them. A lock ends with its process, however the process ends.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::machine_name;
use crate::error::{Error, Result};

/// Name of the lock file, which exists while a run has the folder. A lock file that a killed run left locks nothing.
pub const LOCK: &str = ".jointwise.lock";

/// Most attempts to lock a file that other runs are removing.
const MAX_ATTEMPTS: usize = 1000;

/// Time between two attempts to get a lock that another process has.
const PAUSE: Duration = Duration::from_millis(20);

/// A lock file that no other process has. It exists while it is locked; one that a killed process left locks nothing.
#[derive(Debug)]
pub struct FileLock {
    path: PathBuf,
    /// Locked file. `None`: the file system has no locks.
    file: Option<File>,
    unsupported: Option<io::Error>,
}

/// Process that has a lock: its id and its machine, as far as they can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockHolder(Option<(u32, String)>);

impl std::fmt::Display for LockHolder {
    /// Writes ` (process 7)`, or ` (process 7 on far)` for another machine; nothing for an unknown process.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some((id, there)) if *there == machine_name() => write!(f, " (process {id})"),
            Some((id, there)) => write!(f, " (process {id} on {there})"),
            None => Ok(()),
        }
    }
}

enum LockAttempt {
    Locked(File),
    /// Another process has the lock.
    Held,
    /// The file was removed by the run that had the lock, so a new one is made.
    Removed,
    Unsupported(io::Error),
}

impl FileLock {
    /// Locks a file, which is made where it is absent. Returns the process that has the lock, where another one has it.
    ///
    /// # Errors
    /// [`Error::File`] where the file cannot be made.
    pub fn acquire(path: &Path) -> Result<Result<Self, LockHolder>> {
        for _ in 0..MAX_ATTEMPTS {
            match attempt(path)? {
                LockAttempt::Locked(file) => {
                    write_holder(&file).map_err(|e| Error::file(path, e))?;
                    return Ok(Ok(Self { path: path.into(), file: Some(file), unsupported: None }));
                }
                LockAttempt::Held => return Ok(Err(read_holder(path))),
                LockAttempt::Removed => std::thread::sleep(Duration::from_millis(1)),
                LockAttempt::Unsupported(error) => {
                    let _ = fs::remove_file(path);
                    return Ok(Ok(Self { path: path.into(), file: None, unsupported: Some(error) }));
                }
            }
        }
        Err(Error::file(path, "other runs come and go: try again"))
    }

    /// Locks a file, and waits while another process has the lock.
    ///
    /// # Errors
    /// Those of [`Self::acquire`].
    pub fn wait(path: &Path) -> Result<Self> {
        loop {
            match Self::acquire(path)? {
                Ok(lock) => return Ok(lock),
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            release(file, &self.path);
        }
    }
}

/// A folder that no other run of this program writes to.
#[derive(Debug)]
pub struct FolderLock {
    dir: PathBuf,
    lock: FileLock,
}

impl FolderLock {
    /// Locks a folder, which exists.
    ///
    /// # Errors
    /// [`Error::Flag`] where another run has it, with that run's process id; [`Error::File`] where no file can be made in it.
    pub fn acquire(dir: &Path) -> Result<Self> {
        let lock =
            FileLock::acquire(&dir.join(LOCK))?.map_err(|holder| Error::flag("output-dir", held(dir, &holder)))?;
        Ok(Self { dir: dir.into(), lock })
    }

    /// Returns a note for the user where the file system has no locks.
    pub fn note(&self) -> Option<String> {
        let error = self.lock.unsupported.as_ref()?;
        let dir = self.dir.display();
        Some(format!("{dir}: the file system has no locks ({error}): nothing keeps a second run out of this folder"))
    }
}

/// Removes the file before it is unlocked, so that a process that locks the removed file next finds that it is no longer the folder's.
#[cfg(unix)]
fn release(file: File, path: &Path) {
    if is_at(&file, path) {
        let _ = fs::remove_file(path);
    }
}

/// Closes the file, which removes it.
#[cfg(windows)]
fn release(file: File, _: &Path) {
    drop(file);
}

/// Tells whether a path still leads to an open file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |found: fs::Metadata| (found.dev(), found.ino());
    file.metadata().ok().map(id).is_some_and(|ours| path.symlink_metadata().ok().map(id) == Some(ours))
}

/// Tries to lock the file with [`std::fs::AnnotatedFile::try_lock`], which is `flock`: the lock belongs to the open file, and child processes do not inherit it.
#[cfg(unix)]
fn attempt(path: &Path) -> Result<LockAttempt> {
    use std::fs::TryLockError;
    let file = super::open_log(path)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(LockAttempt::Held),
        Err(TryLockError::Error(error)) => return Ok(LockAttempt::Unsupported(error)),
        Ok(()) => {}
    }
    Ok(if is_at(&file, path) { LockAttempt::Locked(file) } else { LockAttempt::Removed })
}

/// Opens the file so that nobody else can write to it. Others may read who has the lock, which they could not if the file were locked. The system removes the
/// file when it is closed.
#[cfg(windows)]
fn attempt(path: &Path) -> Result<LockAttempt> {
    use std::os::windows::fs::OpenOptionsExt;
    const FILE_SHARE_READ: u32 = 1;
    const FILE_FLAG_DELETE_ON_CLOSE: u32 = 0x0400_0000;
    const ERROR_INVALID_FUNCTION: i32 = 1;
    const ERROR_ACCESS_DENIED: i32 = 5;
    const ERROR_SHARING_VIOLATION: i32 = 32;
    const ERROR_NOT_SUPPORTED: i32 = 50;
    super::not_a_link(path)?;
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true);
    let opened = options.share_mode(FILE_SHARE_READ).custom_flags(FILE_FLAG_DELETE_ON_CLOSE).open(path);
    match opened {
        Ok(file) => Ok(LockAttempt::Locked(file)),
        Err(e) if e.raw_os_error() == Some(ERROR_SHARING_VIOLATION) => Ok(LockAttempt::Held),
        // It is being removed.
        Err(e) if e.raw_os_error() == Some(ERROR_ACCESS_DENIED) && path.exists() => Ok(LockAttempt::Removed),
        Err(e) if matches!(e.raw_os_error(), Some(ERROR_INVALID_FUNCTION | ERROR_NOT_SUPPORTED)) => {
            Ok(LockAttempt::Unsupported(e))
        }
        Err(e) => Err(Error::file(path, e)),
    }
}

fn write_holder(mut file: &File) -> io::Result<()> {
    use std::io::{Seek, Write};
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(format!("{}\n{}\n", std::process::id(), machine_name()).as_bytes())
}

/// Reads the process id and the machine of the run that has the lock, which may be about to write them.
fn read_holder(path: &Path) -> LockHolder {
    for _ in 0..20 {
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut lines = text.lines();
        if let Some((id, host)) = lines.next().and_then(|id| id.parse().ok()).zip(lines.next()) {
            return LockHolder(Some((id, host.into())));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    LockHolder(None)
}

fn held(dir: &Path, holder: &LockHolder) -> String {
    format!("{}: another run{holder} is writing there: wait until it ends, or choose another folder", dir.display())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn one_at_a_time_and_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let lock = FolderLock::acquire(dir.path()).unwrap();
        let refused = FolderLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("another run (process {}) is writing there", std::process::id())),
            "{refused}"
        );
        drop(lock);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // As a killed run leaves it, with more in it than is written next.
        fs::write(dir.path().join(LOCK), "123456789\nan-old-machine\n").unwrap();
        drop(FolderLock::acquire(dir.path()).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// A folder that was removed under a run may be another run's by the time the first one ends.
    #[test]
    fn the_lock_of_another_run_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("out");
        fs::create_dir(&dir).unwrap();
        let first = FolderLock::acquire(&dir).unwrap();
        if fs::remove_dir_all(&dir).is_err() {
            return; // Windows keeps what is open.
        }
        fs::create_dir(&dir).unwrap();
        let second = FolderLock::acquire(&dir).unwrap();
        drop(first);
        assert!(FolderLock::acquire(&dir).is_err());
        drop(second);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }

    #[test]
    fn another_machine_is_named() {
        let dir = Path::new("out");
        let held = |process: Option<(u32, String)>| held(dir, &LockHolder(process));
        assert!(held(Some((7, machine_name()))).contains("another run (process 7) is"));
        assert!(held(Some((7, "far.away".into()))).contains("another run (process 7 on far.away) is"));
        assert!(held(None).contains("another run is"));
    }

    #[test]
    fn a_process_that_waits_comes_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part.lock");
        let first = FileLock::acquire(&path).unwrap().unwrap();
        let holder = FileLock::acquire(&path).unwrap().unwrap_err();
        assert_eq!(holder.to_string(), format!(" (process {})", std::process::id()));
        std::thread::scope(|scope| {
            let second = scope.spawn(|| FileLock::wait(&path).unwrap());
            std::thread::sleep(Duration::from_millis(50));
            assert!(!second.is_finished());
            drop(first);
            drop(second.join().unwrap());
        });
        assert!(!path.exists());
    }

    /// A file that is removed while others wait for it is not a lock any more.
    #[test]
    fn runs_that_come_and_go_never_meet() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while taken.load(Ordering::SeqCst) < 300 {
                        if let LockAttempt::Locked(file) = attempt(&dir.path().join(LOCK)).unwrap() {
                            let lock = FileLock { path: dir.path().join(LOCK), file: Some(file), unsupported: None };
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two runs have the folder");
                            taken.fetch_add(1, Ordering::SeqCst);
                            std::thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
    }
}
