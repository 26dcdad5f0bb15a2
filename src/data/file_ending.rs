//! File name endings.

use std::path::Path;

/// Returns whether a file's name has one of these endings, with or without that of a compressed file behind it.
pub(super) fn is_named(path: &Path, endings: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    endings.iter().any(|ending| name.ends_with(ending) || name.contains(&format!("{ending}.")))
}
