//! Endings of file names.

use std::path::Path;

/// Tells whether a file's name has one of these endings, behind which may stand that of an archive.
pub(super) fn is_named(path: &Path, endings: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    endings.iter().any(|ending| name.ends_with(ending) || name.contains(&format!("{ending}.")))
}
