//! Training state on disk: written aside, synced, renamed; read back to the same bits.
//!
//! `checkpoint-N/state.safetensors` holds the arena, `checkpoint-N/state.json` the rest.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::state::{self, State};
use crate::error::{Error, Result};
use crate::files::{remove_dir_all, rename};
use crate::gpu::Gpu;
use crate::model::weights::Arena;

/// Steps of the whole checkpoints in a folder, rising.
pub fn list(dir: &Path) -> Vec<(usize, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let step = |name: &str| name.strip_prefix("checkpoint-")?.parse::<usize>().ok();
    let mut all: Vec<(usize, PathBuf)> =
        entries.filter_map(|e| Some((step(e.file_name().to_str()?)?, e.path()))).collect();
    all.sort();
    all
}

/// Removes what a killed run left half-written.
pub fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|n| n.starts_with(".checkpoint-")) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Writes `checkpoint-{step}` into `dir`, whole or not at all, then removes the oldest beyond `keep`.
///
/// # Errors
/// [`Error::File`] (a full disk, for one), [`Error::Gpu`].
pub async fn save(gpu: &Gpu, arena: &Arena, state: &State, dir: &Path, keep: usize) -> Result<PathBuf> {
    let (aside, whole) =
        (dir.join(format!(".checkpoint-{}.tmp", state.step)), dir.join(format!("checkpoint-{}", state.step)));
    let written = write(gpu, arena, state, &aside).await;
    let renamed = match written {
        Ok(()) => {
            // A checkpoint of the same step, from before a resume, gives way.
            let old = dir.join(format!(".checkpoint-{}.old", state.step));
            let _ = rename(&whole, &old);
            let done = rename(&aside, &whole).map_err(|e| Error::file(&whole, e));
            let _ = fs::remove_dir_all(&old);
            done
        }
        Err(error) => Err(error.moved(&aside, &whole)),
    };
    if let Err(error) = renamed {
        let _ = fs::remove_dir_all(&aside);
        return Err(error);
    }
    let all = list(dir);
    for (_, old) in all.iter().take(all.len().saturating_sub(keep.max(1))) {
        remove_dir_all(old).map_err(|e| Error::file(old, e))?;
    }
    Ok(whole)
}

async fn write(gpu: &Gpu, arena: &Arena, state: &State, dir: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir).map_err(|e| Error::file(dir, e))?;
    let path = dir.join("state.safetensors");
    let at = |e: std::io::Error| Error::file(&path, e);
    let mut file = BufWriter::new(File::create(&path).map_err(at)?);
    state::encode(gpu, arena, &path, &mut file).await?;
    file.into_inner().map_err(|e| Error::file(&path, e.into_error()))?.sync_all().map_err(at)?;
    let path = dir.join("state.json");
    let text = serde_json::to_vec_pretty(state).map_err(|e| Error::file(&path, e))?;
    let mut file = File::create(&path).map_err(|e| Error::file(&path, e))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(|e| Error::file(&path, e))
}

/// What [`resume`] found.
#[derive(Debug, Default)]
pub struct Resumed {
    /// Of the last whole checkpoint; `None` where there are none at all.
    pub state: Option<State>,
    /// Later ones that are damaged, by what is wrong with each.
    pub damaged: Vec<Error>,
}

/// The last whole checkpoint of `dir` into the arena.
///
/// # Errors
/// [`Error::File`]: it is of a run with other settings. Where none is whole: what is wrong with the last one.
pub fn resume(gpu: &Gpu, arena: &Arena, dir: &Path, fingerprint: &str) -> Result<Resumed> {
    let mut found = Resumed::default();
    for (_, dir) in list(dir).into_iter().rev() {
        let state = read_state(&dir);
        if state.as_ref().is_ok_and(|s| s.fingerprint != fingerprint) {
            return Err(Error::file(
                &dir,
                "is of a run with other settings, data or model: resume with the same, or choose another --output-dir",
            ));
        }
        match state.and_then(|state| restore(gpu, arena, &dir).map(|()| state)) {
            Ok(state) => {
                found.state = Some(state);
                return Ok(found);
            }
            Err(error) => found.damaged.push(error),
        }
    }
    if found.damaged.is_empty() { Ok(found) } else { Err(found.damaged.swap_remove(0)) }
}

/// The time that the chat template printed in a folder's run, by its last checkpoint that can be read; `None` where it printed none.
pub fn kept_time(dir: &Path) -> Option<u64> {
    list(dir).iter().rev().find_map(|(_, dir)| read_state(dir).ok())?.time
}

fn read_state(dir: &Path) -> Result<State> {
    let path = dir.join("state.json");
    let text = fs::read(&path).map_err(|e| Error::file(&path, e))?;
    serde_json::from_slice(&text).map_err(|e| Error::file(&path, e))
}

fn restore(gpu: &Gpu, arena: &Arena, dir: &Path) -> Result<()> {
    let path = dir.join("state.safetensors");
    let file = File::open(&path).map_err(|e| Error::file(&path, e))?;
    // SAFETY: the map is read once, here; a file that another process truncates meanwhile is beyond what any reader can mend.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::file(&path, e))?;
    state::restore(gpu, arena, &path, &map)
}
