//! Cache of the fastest kernels of a device.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::cache_folder::cache_folder;
use crate::error::{Error, Result};
use crate::files::{follow_links, write_text};
use crate::gpu::{Caps, Tuning};
use crate::model::folder::{MAX_CONFIG_BYTES, read_file};

/// Cached tuning that `tune` found for a device, as JSON.
#[derive(Serialize, Deserialize)]
struct TuningFile {
    /// Version of the program that measured. Entries of another version or driver are stale, and not used.
    version: String,
    driver: String,
    fastest: Tuning,
}

/// Returns the file of a device's tuning.
fn path(caps: &Caps) -> PathBuf {
    let name: String = caps.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    cache_folder().join("tuning").join(format!("{name}-{}.json", caps.backend))
}

/// Reads what an earlier `tune` found for this device, driver and version.
pub fn kept(caps: &Caps) -> Option<Tuning> {
    let text = read_file(&path(caps), MAX_CONFIG_BYTES).ok()?;
    let kept: TuningFile = serde_json::from_str(&text).ok()?;
    (kept.version == env!("CARGO_PKG_VERSION") && kept.driver == caps.driver).then_some(kept.fastest)
}

/// Writes what `tune` found. Returns the file and its text.
///
/// # Errors
/// [`Error::File`].
pub fn keep(caps: &Caps, all: Tuning) -> Result<(PathBuf, String)> {
    let path = path(caps);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|e| Error::file(dir, e))?;
    }
    let kept = TuningFile { version: env!("CARGO_PKG_VERSION").into(), driver: caps.driver.clone(), fastest: all };
    let text = serde_json::to_string_pretty(&kept).map_err(|e| Error::file(&path, e))?;
    // A user may keep the cache's files elsewhere.
    let place = follow_links(&path).map_err(|reason| Error::file(&path, reason))?;
    write_text(&place, &text)?;
    Ok((path, text))
}
