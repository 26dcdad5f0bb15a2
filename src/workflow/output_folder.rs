//! Output folders, each of which one run has at a time.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::{FolderLock, LOCK, check_name};
use crate::model::save::PARTIAL;

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
        check_name(dir).map_err(|reason| Error::flag("output-dir", format!("{}: {reason}", dir.display())))?;
        if dir.exists() && !dir.is_dir() {
            return Err(Error::flag("output-dir", format!("{} exists and is not a folder", dir.display())));
        }
        // A folder that no run of ours is in is not touched; of one that is, the lock tells more.
        let was_left = dir.join(LOCK).exists();
        if !resume && !was_left {
            require_empty(dir, was_left)?;
        }
        let is_absent = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
        let made = dir.ancestors().take_while(is_absent).map(Path::to_path_buf).collect();
        let mut folder = Self { dir: dir.into(), lock: None, made, was_left };
        fs::create_dir_all(dir).map_err(|e| Error::file(dir, e))?;
        let lock = FolderLock::acquire(dir)?;
        lock.note().into_iter().for_each(|note| note!("note: {note}"));
        folder.lock = Some(lock);
        if !resume {
            folder.require_empty()?;
        }
        Ok(folder)
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
        // Up to the first that holds something.
        let _ = self.made.iter().try_for_each(fs::remove_dir);
    }
}

fn require_empty(dir: &Path, was_left: bool) -> Result<()> {
    let is_ours = |entry: &fs::DirEntry| entry.file_name() == LOCK || (was_left && entry.file_name() == PARTIAL);
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
        assert!(OutputFolder::open(&dir.join("x"), true).err().unwrap().to_string().contains("is not a folder"));
        assert!(OutputFolder::open(&dir.join("x/y"), true).is_err());
    }
}
