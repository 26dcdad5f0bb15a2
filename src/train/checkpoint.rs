//! Checkpoints of the training state on disk. A checkpoint is written under another name, synced and renamed; it is read back
//! bit-identically.
//!
//! `checkpoint-N/state.safetensors` holds the trained tensors and their moments, `checkpoint-N/state.json` the other state, and
//! `checkpoint-N/B3SUMS` the checksums of both.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::checksum::{FileChecksums, HashedWriter, SUMS};
use super::state::{self, TrainingState};
use crate::error::{Error, Result};
use crate::files::{not_a_link, remove_dir_all, rename, sync_folder};
use crate::gpu::Gpu;
use crate::model::weights::WeightArena;

/// File of values and moments.
const TENSORS: &str = "state.safetensors";
/// File of a [`TrainingState`].
const REST: &str = "state.json";

/// Parses the step from a checkpoint's name.
pub fn step_of(name: &str) -> Option<usize> {
    name.strip_prefix("checkpoint-")?.parse().ok()
}

/// Lists the checkpoints in a folder with their steps, ascending.
pub fn list(dir: &Path) -> Vec<(usize, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<(usize, PathBuf)> =
        entries.filter_map(|e| Some((step_of(e.file_name().to_str()?)?, e.path()))).collect();
    all.sort();
    all
}

/// Removes checkpoints that a killed run left half-written. Where the run was killed while it replaced a checkpoint by another one of the
/// same step, between the two renames, restores the replaced one.
pub fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let Some(hidden) = name.to_str().and_then(|n| n.strip_prefix('.')).filter(|n| n.starts_with("checkpoint-"))
        else {
            continue;
        };
        let whole = hidden.strip_suffix(".old").map(|n| dir.join(n)).filter(|whole| !whole.exists());
        if whole.is_none_or(|whole| rename(&path, &whole).is_err()) {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Writes `checkpoint-{step}` into `dir`, completely or not at all. Then removes the oldest checkpoints beyond `keep`, and all checkpoints
/// of later steps: a run that resumed from an older checkpoint leaves such behind, either damaged ones, or one of an evaluation that the
/// run has not reached again.
///
/// # Errors
/// [`Error::File`], for example where the disk is full; [`Error::Gpu`].
pub async fn save(gpu: &Gpu, arena: &WeightArena, state: &TrainingState, dir: &Path, keep: usize) -> Result<PathBuf> {
    let (aside, whole) =
        (dir.join(format!(".checkpoint-{}.tmp", state.step)), dir.join(format!("checkpoint-{}", state.step)));
    let written = write(gpu, arena, state, &aside).await;
    let renamed = match written {
        Ok(()) => {
            // Replaces a checkpoint of the same step that was written before a resume.
            let old = dir.join(format!(".checkpoint-{}.old", state.step));
            let _ = rename(&whole, &old);
            let done = rename(&aside, &whole).map_err(|e| Error::file(&whole, e));
            let _ = if done.is_ok() { fs::remove_dir_all(&old) } else { rename(&old, &whole) };
            done
        }
        Err(error) => Err(error.moved(&aside, &whole)),
    };
    if let Err(error) = renamed {
        let _ = fs::remove_dir_all(&aside);
        return Err(error);
    }
    // The new checkpoint must be durable before an old one is removed.
    sync_folder(dir);
    let (later, kept): (Vec<_>, Vec<_>) = list(dir).into_iter().partition(|(step, _)| *step > state.step);
    let too_many = kept.len().saturating_sub(keep.max(1));
    for (_, old) in kept.iter().take(too_many).chain(&later) {
        remove_dir_all(old).map_err(|e| Error::file(old, e))?;
    }
    Ok(whole)
}

async fn write(gpu: &Gpu, arena: &WeightArena, state: &TrainingState, dir: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir).map_err(|e| Error::file(dir, e))?;
    let path = dir.join(TENSORS);
    let at = |e: std::io::Error| Error::file(&path, e);
    let mut file = HashedWriter::new(BufWriter::new(File::create_new(&path).map_err(at)?));
    state::encode(gpu, arena, &path, &mut file).await?;
    let (file, tensors) = file.finish();
    file.into_inner().map_err(|e| Error::file(&path, e.into_error()))?.sync_all().map_err(at)?;
    let text = serde_json::to_vec_pretty(state).map_err(|e| Error::file(dir.join(REST), e))?;
    let sums = FileChecksums::from([(TENSORS, tensors), (REST, blake3::hash(&text))]);
    for (name, bytes) in [(REST, text), (SUMS, sums.to_string().into_bytes())] {
        let path = dir.join(name);
        let at = |e: std::io::Error| Error::file(&path, e);
        let mut file = File::create_new(&path).map_err(at)?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(at)?;
    }
    sync_folder(dir);
    Ok(())
}

/// Result of resuming: the checkpoint that was found, and those that could not be used.
#[derive(Debug, Default)]
pub struct ResumedRun {
    /// State of the last intact checkpoint; `None` where there are no checkpoints.
    pub state: Option<TrainingState>,
    /// Reasons why later checkpoints are damaged.
    pub damaged: Vec<Error>,
    /// Folder of the checkpoint, where it has no checksums, as in early versions.
    pub unchecked: Option<PathBuf>,
}

/// Reads the last intact checkpoint of `dir` into the arena. A checkpoint is intact if its files match the checksums written with them.
///
/// # Errors
/// [`Error::File`] for a checkpoint of a run with other settings. Where no checkpoint is intact, the error describes the last one's damage.
pub fn resume(gpu: &Gpu, arena: &WeightArena, dir: &Path, fingerprint: &str) -> Result<ResumedRun> {
    let mut found = ResumedRun::default();
    for (_, checkpoint) in list(dir).into_iter().rev() {
        let opened = open(&checkpoint);
        if let Ok((state, _)) = &opened {
            check_fingerprint(&checkpoint, state, fingerprint)?;
        }
        match opened.and_then(|(state, sums)| restore(gpu, arena, &checkpoint, sums.as_ref()).map(|()| (state, sums))) {
            Ok((state, sums)) => {
                found.state = Some(state);
                found.unchecked = sums.is_none().then_some(checkpoint);
                return Ok(found);
            }
            Err(error) => found.damaged.push(error),
        }
    }
    if found.damaged.is_empty() {
        return Ok(found);
    }
    let last = found.damaged.swap_remove(0);
    let reason =
        format!("no checkpoint is whole; the last: {last}. Put back its files, or begin anew in another --output-dir");
    Err(Error::file(dir, reason))
}

/// Returns the steps of the checkpoints from which [`resume`] may continue, ascending, without reading tensors.
///
/// # Errors
/// [`Error::File`] where the last checkpoint is of a run with other settings.
pub fn steps(dir: &Path, fingerprint: &str) -> Result<Vec<usize>> {
    let mut steps = Vec::new();
    for (_, checkpoint) in list(dir).into_iter().rev() {
        let Ok((state, _)) = open(&checkpoint) else { continue };
        match check_fingerprint(&checkpoint, &state, fingerprint) {
            Ok(()) => steps.insert(0, state.step),
            Err(error) if steps.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    Ok(steps)
}

fn check_fingerprint(checkpoint: &Path, state: &TrainingState, fingerprint: &str) -> Result<()> {
    let reason = "is of a run with other settings, data or model: resume with the same, or choose another --output-dir";
    if state.fingerprint == fingerprint { Ok(()) } else { Err(Error::file(checkpoint, reason)) }
}

/// Returns the state besides the tensors of the last readable checkpoint; `None` where there is none.
pub fn kept_state(dir: &Path) -> Option<TrainingState> {
    Some(list(dir).iter().rev().find_map(|(_, dir)| open(dir).ok())?.0)
}

/// Reads the state besides the tensors. Its checksum is verified first, so that a damaged fingerprint is not taken for another run's.
fn open(dir: &Path) -> Result<(TrainingState, Option<FileChecksums>)> {
    not_a_link(dir)?;
    let sums = FileChecksums::read(dir)?;
    let path = dir.join(REST);
    let text = fs::read(&path).map_err(|e| Error::file(&path, e))?;
    sums.as_ref().map_or(Ok(()), |sums| sums.check(&path, REST, &text))?;
    Ok((serde_json::from_slice(&text).map_err(|e| Error::file(&path, e))?, sums))
}

fn restore(gpu: &Gpu, arena: &WeightArena, dir: &Path, sums: Option<&FileChecksums>) -> Result<()> {
    let path = dir.join(TENSORS);
    let file = File::open(&path).map_err(|e| Error::file(&path, e))?;
    // SAFETY: the mapping is only read, and only here. If another process truncates the file meanwhile, no reader could recover.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::file(&path, e))?;
    sums.map_or(Ok(()), |sums| sums.check(&path, TENSORS, &map))?;
    state::restore(gpu, arena, &path, &map)
}
