//! Output folder of an evaluation: names of its files, and a check whether an earlier evaluation in it may be resumed.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::files::{FileLock, make_folder};
use crate::model::folder::{MAX_CONFIG_BYTES, read_optional};
use crate::model::save::write_text;

/// File of the settings, which the folder of every evaluation has.
pub const SETTINGS: &str = "settings.json";
/// Lock file of [`SETTINGS`], while a process adds its checkpoints.
const SETTINGS_LOCK: &str = ".settings.json.lock";
const RESPONSES: &str = "responses";
const JUDGED: &str = "judged";
const ALPACA: &str = "alpaca_eval";

/// Key of the time, in seconds since 1970, that chat templates print in all responses.
const TIME: &str = "time";

/// Returns the time that chat templates printed in a folder's responses; `None` where they printed none.
///
/// # Errors
/// [`Error::File`], [`Error::Line`].
pub fn kept_time(dir: &Path) -> Result<Option<u64>> {
    let Some(text) = read_optional(dir, SETTINGS, MAX_CONFIG_BYTES)? else { return Ok(None) };
    let settings: Value =
        serde_json::from_str(&text).map_err(|e| Error::line(dir.join(SETTINGS), e.line(), format!("not JSON: {e}")))?;
    Ok(settings[TIME].as_u64())
}

/// Output folder of an evaluation.
pub struct EvaluationFolder(PathBuf);

impl EvaluationFolder {
    /// Creates the folder, or resumes the evaluation in it. Earlier responses must have been made with equal settings and weights.
    ///
    /// # Errors
    /// [`Error::Flag`] where earlier responses were made with other settings or weights; [`Error::File`], [`Error::Line`].
    pub fn open(dir: &Path, settings: &Value, digests: &[(&str, String)], time: Option<u64>) -> Result<Self> {
        let path = dir.join(SETTINGS);
        let _lock = FileLock::wait(&dir.join(SETTINGS_LOCK))?;
        let mut checkpoints: Map<String, Value> = Map::new();
        if let Some(text) = read_optional(dir, SETTINGS, MAX_CONFIG_BYTES)? {
            let was: Value =
                serde_json::from_str(&text).map_err(|e| Error::line(&path, e.line(), format!("not JSON: {e}")))?;
            for (name, now) in settings.as_object().into_iter().flatten() {
                if was["settings"].get(name) != Some(now) {
                    let reason = format!("{}: `{name}` was {}, now it is {now}", path.display(), was["settings"][name]);
                    return Err(Error::flag("resume", reason));
                }
            }
            checkpoints.extend(was["checkpoints"].as_object().cloned().unwrap_or_default());
        }
        for (name, digest) in digests {
            match checkpoints.get(*name) {
                Some(was) if was != digest => {
                    let reason =
                        format!("{}: checkpoint `{name}` had other weights, or another chat template", path.display());
                    return Err(Error::flag("resume", reason));
                }
                _ => checkpoints.insert((*name).into(), json!(digest)),
            };
        }
        for name in [RESPONSES, JUDGED, ALPACA] {
            make_folder(&dir.join(name))?;
        }
        let mut written = json!({"settings": settings, "checkpoints": checkpoints});
        if let Some(time) = time {
            written[TIME] = json!(time);
        }
        let text = format!("{written:#}\n");
        write_text(&path, &text)?;
        Ok(Self(dir.into()))
    }

    /// Returns the folder of an evaluation that another process has opened.
    pub fn opened(dir: &Path) -> Self {
        Self(dir.into())
    }

    /// Returns the folder's path.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// Returns the file of a run's responses.
    pub fn responses(&self, run: &str) -> PathBuf {
        self.0.join(RESPONSES).join(format!("{run}.jsonl"))
    }

    /// Returns the file of a run's judged rows.
    pub fn judged(&self, run: &str) -> PathBuf {
        self.0.join(JUDGED).join(format!("{run}.jsonl"))
    }

    /// Returns whether a judge's verdicts were written.
    pub fn has_judged(&self) -> bool {
        self.0.join(JUDGED).read_dir().is_ok_and(|mut files| files.next().is_some())
    }

    /// Returns the file of a run's responses in AlpacaEval's format.
    pub fn alpaca(&self, run: &str) -> PathBuf {
        self.0.join(ALPACA).join(format!("{run}.json"))
    }

    /// Returns the file of all results, `results.json`.
    pub fn results(&self) -> PathBuf {
        self.0.join("results.json")
    }

    /// Returns the file of the report, `report.html`.
    pub fn report(&self) -> PathBuf {
        self.0.join("report.html")
    }
}
