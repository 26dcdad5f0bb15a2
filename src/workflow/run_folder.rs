//! The output folder of a training run.

use std::path::{Path, PathBuf};

use super::fitting_changes::AUTO_FIT;
use super::output_folder::OutputFolder;
use crate::error::Result;
use crate::files::not_a_link;
use crate::train::checkpoint;
use crate::train::metrics::METRICS;
use crate::train::run::{BEST, EVENTS};
use crate::train::state::TrainingState;

/// Page of a run's curves.
pub(super) const REPORT: &str = "report.html";

/// Output folder of one training run: metrics, checkpoints, result, model card and report. No other run can have it at the same time.
///
/// # Examples
/// ```
/// # let temporary = tempfile::tempdir()?;
/// # std::env::set_current_dir(&temporary)?;
/// use jointwise::RunFolder;
/// let folder = RunFolder::create("runs/first")?;
/// assert!(RunFolder::resume("runs/first").is_err(), "it is in use");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RunFolder {
    dir: PathBuf,
    resumes: bool,
    /// Keeps other runs out for as long as this value lives.
    lock: OutputFolder,
}

impl RunFolder {
    /// Locks a folder for a new run, and makes it where it is absent.
    ///
    /// # Errors
    /// [`crate::Error::Flag`] where the folder is not empty, or another run has it; [`crate::Error::File`].
    ///
    /// # Examples
    /// ```
    /// # let temporary = tempfile::tempdir()?;
    /// # std::env::set_current_dir(&temporary)?;
    /// use jointwise::{RunFolder, TrainingOptions};
    /// let options = TrainingOptions { folder: Some(RunFolder::create("runs/first")?), ..TrainingOptions::default() };
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create(dir: impl Into<PathBuf>) -> Result<Self> {
        Self::open(dir.into(), false)
    }

    /// Locks a folder to continue its run from the last whole checkpoint, or from the first step where there is none.
    ///
    /// # Errors
    /// [`crate::Error::Flag`] where the folder holds other things than a run, or another run has it; [`crate::Error::File`].
    ///
    /// # Examples
    /// ```
    /// # let temporary = tempfile::tempdir()?;
    /// # std::env::set_current_dir(&temporary)?;
    /// let folder = jointwise::RunFolder::resume("runs/first")?;
    /// println!("{}", if folder.is_begun() { "going on" } else { "beginning" });
    /// # assert!(!folder.is_begun());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn resume(dir: impl Into<PathBuf>) -> Result<Self> {
        Self::open(dir.into(), true)
    }

    fn open(dir: PathBuf, resumes: bool) -> Result<Self> {
        let lock = OutputFolder::open(&dir, resumes)?;
        let folder = Self { dir, resumes, lock };
        // A run's folder holds metrics: one that is not empty and has none is refused.
        if resumes && folder.is_begun() {
            let dir = &folder.dir;
            [METRICS, BEST, EVENTS, REPORT].iter().try_for_each(|name| not_a_link(&dir.join(name)).map(drop))?;
            [dir, &dir.join(BEST)].into_iter().for_each(|dir| checkpoint::sweep(dir));
        } else {
            folder.lock.require_empty()?;
            if resumes {
                note!("note: --resume: {} holds no run: this one begins at the first step", folder.dir.display());
            }
        }
        Ok(folder)
    }

    /// Returns the folder's path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Tells whether the run goes on from what the folder holds.
    pub fn resumes(&self) -> bool {
        self.resumes
    }

    /// Tells whether the folder has a run.
    pub fn is_begun(&self) -> bool {
        let dir = &self.dir;
        dir.join(METRICS).exists() || dir.join(AUTO_FIT).exists() || !checkpoint::list(dir).is_empty()
    }

    /// Returns the time that chat templates printed when the run began, where it is resumed: [`super::PolicyOptions::chat_time`] of the policy.
    pub fn chat_time(&self) -> Option<u64> {
        self.kept_state()?.time
    }

    /// Returns the state besides the tensors of the last readable checkpoint, where the run is resumed.
    pub(super) fn kept_state(&self) -> Option<TrainingState> {
        if self.resumes { checkpoint::kept_state(&self.dir) } else { None }
    }
}
