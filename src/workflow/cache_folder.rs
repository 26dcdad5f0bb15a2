//! The cache folder.

use std::path::PathBuf;

/// Returns the cache folder, which holds pipelines, tuning, self-test results, tokens and reference scores. It is safe to delete.
pub fn cache_folder() -> PathBuf {
    let home = std::env::var_os("XDG_CACHE_HOME").or_else(|| std::env::var_os("LOCALAPPDATA")).map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache")));
    home.unwrap_or_else(std::env::temp_dir).join("jointwise")
}
