//! Output folders, each of which one run has at a time.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::{FileLock, FolderLock, LOCK, check_name};
use crate::model::save::PARTIAL;

/// Lock file of a folder that several jobs share, while one of them prepares it.
const PREPARING: &str = ".jointwise.preparing.lock";

/// Output folder that this run alone writes to. Dropping it releases the folder, and removes it where it was made and nothing was written.
pub struct OutputFolder {
    dir: PathBuf,
    lock: Option<FolderLock>,
    /// Folders that were made, the innermost first.
    made: Vec<PathBuf>,
    /// Whether a killed run left its lock file. Files that it was writing do not count as content then.
    was_left: bool,
}

impl OutputFolder {
    /// Locks a folder, which is made where it is absent. Without `resume` it must be empty.
    ///
    /// # Errors
    /// [`Error::Flag`] where another run has the folder, it is not empty, or it is a file; [`Error::File`].
    pub fn open(dir: &Path, resume: bool) -> Result<Self> {
        check_place(dir)?;
        // A folder that no run of ours is in is not touched; of one that is, the lock tells more.
        let was_left = dir.join(LOCK).exists();
        if !resume && !was_left {
            require_empty(dir, was_left)?;
        }
        let mut folder = Self { dir: dir.into(), lock: None, made: absent_folders(dir), was_left };
        fs::create_dir_all(dir).map_err(|e| Error::file(dir, e))?;
        let lock = FolderLock::acquire(dir)?;
        lock.note().into_iter().for_each(|note| note!("note: {note}"));
        folder.lock = Some(lock);
        if !resume {
            folder.require_empty()?;
        }
        Ok(folder)
    }

    /// Keeps processes that would [share](Self::share) the folder out, until the value is dropped.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn prepare(&self) -> Result<FolderPreparation> {
        Ok(FolderPreparation { lock: Some(FileLock::wait(&self.dir.join(PREPARING))?), made: Vec::new() })
    }

    /// Opens a folder in which several processes do a job each, and makes it where it is absent. It must be empty, or hold `known`, which the first of the
    /// processes makes. The other processes wait until the value is dropped.
    ///
    /// # Errors
    /// [`Error::Flag`] where the folder holds other things, or is a file; [`Error::File`].
    pub fn share(dir: &Path, known: &str) -> Result<FolderPreparation> {
        check_place(dir)?;
        let check = || if dir.join(known).exists() { Ok(()) } else { require_empty(dir, dir.join(LOCK).exists()) };
        // A folder that is not ours is not touched.
        if !dir.join(PREPARING).exists() {
            check()?;
        }
        let mut preparation = FolderPreparation { lock: None, made: absent_folders(dir) };
        fs::create_dir_all(dir).map_err(|e| Error::file(dir, e))?;
        preparation.lock = Some(FileLock::wait(&dir.join(PREPARING))?);
        check().map(|()| preparation)
    }

    /// Refuses a folder that is not empty. A file that a killed run of this program was about to write does not count.
    ///
    /// # Errors
    /// [`Error::Flag`].
    pub fn require_empty(&self) -> Result<()> {
        require_empty(&self.dir, self.was_left)
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        self.lock = None;
        remove_empty(&self.made);
    }
}

/// Output folder of several jobs, while one of them prepares it. Dropping it lets the others go on, and removes the folder where it was made and nothing was
/// written.
pub struct FolderPreparation {
    lock: Option<FileLock>,
    made: Vec<PathBuf>,
}

impl Drop for FolderPreparation {
    fn drop(&mut self) {
        self.lock = None;
        remove_empty(&self.made);
    }
}

/// Returns a folder and the folders above it, as far as they do not exist, the innermost first.
fn absent_folders(dir: &Path) -> Vec<PathBuf> {
    let is_absent = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    dir.ancestors().take_while(is_absent).map(Path::to_path_buf).collect()
}

/// Removes folders up to the first that holds something.
fn remove_empty(made: &[PathBuf]) {
    let _ = made.iter().try_for_each(fs::remove_dir);
}

fn check_place(dir: &Path) -> Result<()> {
    check_name(dir).map_err(|reason| Error::flag("output-dir", format!("{}: {reason}", dir.display())))?;
    match dir.exists() && !dir.is_dir() {
        true => Err(Error::flag("output-dir", format!("{} exists and is not a folder", dir.display()))),
        false => Ok(()),
    }
}

fn require_empty(dir: &Path, was_left: bool) -> Result<()> {
    let is_ours = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        name == LOCK || name == PREPARING || (was_left && name == PARTIAL)
    };
    match fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| !is_ours(&entry)) {
        true => Err(Error::flag("output-dir", format!("{} exists and is not empty", dir.display()))),
        false => Ok(()),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_folder_in_use_is_refused_and_one_that_was_not_used_goes() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        let folder = OutputFolder::open(&dir, false).unwrap();
        assert_eq!(names(&dir), [LOCK]);
        for resume in [false, true] {
            let error = OutputFolder::open(&dir, resume).err().unwrap().to_string();
            assert!(error.starts_with("--output-dir: ") && error.contains("another run"), "{error}");
        }
        drop(folder);
        assert_eq!(names(root.path()), [""; 0]);

        // Of a killed run: its lock file alone is no content.
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(LOCK), "1\nx\n").unwrap();
        let folder = OutputFolder::open(&dir, false).unwrap();
        fs::write(dir.join("x"), "").unwrap();
        drop(folder);
        assert_eq!(names(&dir), ["x"]);

        let refused = || {
            let error = OutputFolder::open(&dir, false).err().unwrap().to_string();
            assert!(error.contains("is not empty"), "{error}");
        };
        refused();
        // Killed while it wrote: what was to be swept is in nobody's way, other files are.
        fs::create_dir(dir.join(PARTIAL)).unwrap();
        let leave_lock = || fs::write(dir.join(LOCK), "1\nx\n").unwrap();
        leave_lock();
        refused();
        fs::remove_file(dir.join("x")).unwrap();
        assert_eq!(names(&dir), [PARTIAL]);
        // Without its lock it is not known for ours.
        refused();
        leave_lock();
        drop(OutputFolder::open(&dir, false).unwrap());
        fs::remove_dir(dir.join(PARTIAL)).unwrap();
        fs::write(dir.join("x"), "").unwrap();
        drop(OutputFolder::open(&dir, true).unwrap());
        assert_eq!(names(&dir), ["x"]);
        let shared = |dir: &Path| OutputFolder::share(dir, "known").map(drop).map_err(|error| error.to_string());
        assert!(shared(&dir).unwrap_err().contains("is not empty"));
        assert_eq!(names(&dir), ["x"]);
        fs::write(dir.join("known"), "").unwrap();
        assert_eq!((shared(&dir), shared(&root.path().join("new/one"))), (Ok(()), Ok(())));
        assert!(!root.path().join("new").exists());
        assert!(OutputFolder::open(&dir.join("x"), true).err().unwrap().to_string().contains("is not a folder"));
        assert!(OutputFolder::open(&dir.join("x/y"), true).is_err());
    }
}
