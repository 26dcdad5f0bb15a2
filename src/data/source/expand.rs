//! Expansion of a path of rows to files: the file itself, those of a folder, of a pattern (`data/*.parquet`) or of the hub, or standard
//! input.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
#[cfg(feature = "native")]
use crate::model::hub::datasets::DatasetAddress;

/// Name of standard input on the command line.
const STANDARD_INPUT: &str = "-";
/// File name endings of files of rows. Each may be followed by one of [`PACKED`].
const ENDINGS: [&str; 6] = [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"];
/// File name endings of compressed files.
const PACKED: [&str; 2] = [".gz", ".zst"];
/// Largest number of names that a note lists.
const LISTED: usize = 8;

/// File of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Name in messages: the path, or the address on the hub.
    pub name: PathBuf,
    /// Path that is read; `None` for standard input.
    pub place: Option<PathBuf>,
}

/// Files to which a path expands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFiles {
    /// Files in the order in which they are read: sorted by name.
    pub files: Vec<SourceFile>,
    /// Notes on the files for the user, one line each.
    pub notes: Vec<String>,
}

impl SourceFiles {
    /// Finds the files of a path. Files on the hub are fetched.
    ///
    /// # Errors
    /// [`Error::File`] where a folder or a pattern has no file of rows, or where the hub provides none.
    pub fn find(path: &Path) -> Result<Self> {
        if path == Path::new(STANDARD_INPUT) {
            return Ok(Self::one(SourceFile { name: "standard input".into(), place: None }));
        }
        #[cfg(feature = "native")]
        if let Some(address) = path.to_str().and_then(DatasetAddress::parse) {
            return of_hub(path, address).map_err(|reason| Error::file(path, reason));
        }
        Self::find_here(path)
    }

    /// Finds the files of a path that is not an address on the hub.
    ///
    /// # Errors
    /// [`Error::File`] where a folder or a pattern has no file of rows.
    pub fn find_here(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return folder(path);
        }
        #[cfg(feature = "native")]
        if let Some(pattern) = pattern_text(path) {
            return matching(path, pattern);
        }
        Ok(Self::one(SourceFile { name: path.into(), place: Some(path.into()) }))
    }

    fn one(file: SourceFile) -> Self {
        Self { files: vec![file], notes: Vec::new() }
    }

    fn all(paths: Vec<PathBuf>, notes: Vec<String>) -> Self {
        let file = |path: PathBuf| SourceFile { name: path.clone(), place: Some(path) };
        Self { files: paths.into_iter().map(file).collect(), notes }
    }
}

#[cfg(feature = "native")]
fn of_hub(path: &Path, address: Result<DatasetAddress, String>) -> Result<SourceFiles, String> {
    let address = address?;
    let found = address.fetch()?;
    let is_named = matches!(address, DatasetAddress::File { .. });
    let file = |(name, place): (String, PathBuf)| SourceFile {
        name: if is_named { path.into() } else { name.into() },
        place: Some(place),
    };
    Ok(SourceFiles { files: found.files.into_iter().map(file).collect(), notes: found.notes })
}

/// Returns whether a file's name has the ending of a file of rows.
fn holds_rows(name: &str) -> bool {
    let name = name.to_lowercase();
    let inner = PACKED.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(&name);
    ENDINGS.iter().any(|ending| inner.ends_with(ending))
}

/// Finds the files of rows in a folder. Hidden files are ignored; other files are mentioned in a note.
fn folder(path: &Path) -> Result<SourceFiles> {
    let at = |e: std::io::Error| Error::file(path, e);
    let (mut files, mut others) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(path).map_err(at)? {
        let entry = entry.map_err(at)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_file = std::fs::metadata(entry.path()).is_ok_and(|found| found.is_file());
        match () {
            () if name.starts_with('.') => {}
            () if is_file && name.to_lowercase().ends_with(".arrow") => {
                let reason =
                    format!("holds Arrow files ({name}), which are not read: write the data set as Parquet or JSONL");
                return Err(Error::file(path, reason));
            }
            () if is_file && holds_rows(&name) => files.push(entry.path()),
            () => others.push(if is_file { name } else { format!("{name}/") }),
        }
    }
    files.sort();
    others.sort();
    if files.is_empty() {
        let there = if others.is_empty() { "it is empty".into() } else { format!("it has {}", list(&others)) };
        let deeper = path.join("**").join("*.parquet");
        let reason = format!(
            "the folder holds no file of rows ({}; {there}); a pattern such as '{}' reads folders within",
            ENDINGS.join(", "),
            deeper.display()
        );
        return Err(Error::file(path, reason));
    }
    let splits = splits(&files);
    if splits.len() > 1 {
        let (names, first) =
            (splits.keys().copied().collect::<Vec<_>>(), splits.values().next().map_or("", |name| name));
        let reason = format!(
            "the folder holds files of several splits ({}): name one by a pattern or a file, such as {}",
            names.join(", "),
            path.join(first).display()
        );
        return Err(Error::file(path, reason));
    }
    let notes = match others.len() {
        0 => Vec::new(),
        n => vec![format!("{}: {n} of the folder's entries are not read: {}", path.display(), list(&others))],
    };
    Ok(SourceFiles::all(files, notes))
}

/// Words in file names that indicate a split, with the split's name.
const SPLITS: [(&str, &str); 9] = [
    ("train", "train"),
    ("training", "train"),
    ("validation", "validation"),
    ("valid", "validation"),
    ("val", "validation"),
    ("dev", "validation"),
    ("test", "test"),
    ("testing", "test"),
    ("eval", "test"),
];

/// Returns the splits that the files' names indicate, each with its first file: training rows should not be mixed with test rows by
/// accident.
fn splits(files: &[PathBuf]) -> BTreeMap<&'static str, String> {
    let mut found = BTreeMap::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let lower = name.to_lowercase();
        let mut words = lower.split(|c: char| !c.is_alphanumeric());
        let split = words.find_map(|word| SPLITS.iter().find(|(known, _)| *known == word));
        if let Some((_, split)) = split {
            found.entry(*split).or_insert(name);
        }
    }
    found
}

fn list(names: &[String]) -> String {
    let listed = names.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED { format!("{listed}, and {} more", names.len() - LISTED) } else { listed }
}

/// Returns a path's text if it is a pattern. A file that exists is not a pattern, whatever its name.
#[cfg(feature = "native")]
fn pattern_text(path: &Path) -> Option<&str> {
    let text = path.to_str()?;
    // Verbatim paths of Windows begin like this, and contain a `?`.
    let own = text.strip_prefix(r"\\?\").unwrap_or(text);
    (own.contains(['*', '?', '[']) && path.symlink_metadata().is_err()).then_some(text)
}

/// Finds the files that match a pattern, in the order of their names. They are read as rows, whatever their endings.
#[cfg(feature = "native")]
fn matching(path: &Path, pattern: &str) -> Result<SourceFiles> {
    let rules =
        glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    let found =
        glob::glob_with(pattern, rules).map_err(|e| Error::file(path, format!("is not a valid pattern: {e}")))?;
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in found {
        let entry = entry.map_err(|e| Error::file(e.path(), e.error()))?;
        if entry.is_dir() { folders.push(entry.display().to_string()) } else { files.push(entry) }
    }
    files.sort();
    if files.is_empty() {
        let why = if folders.is_empty() { String::new() } else { format!(", only folders: {}", list(&folders)) };
        return Err(Error::file(path, format!("no file matches the pattern{why}")));
    }
    let notes = match folders.len() {
        0 => Vec::new(),
        n => vec![format!("{}: {n} folders match and are not read: {}", path.display(), list(&folders))],
    };
    Ok(SourceFiles::all(files, notes))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn names(found: &SourceFiles, dir: &Path) -> Vec<String> {
        let name = |file: &SourceFile| file.name.strip_prefix(dir).unwrap().to_string_lossy().replace('\\', "/");
        found.files.iter().map(name).collect()
    }

    #[test]
    fn folders_and_patterns_name_their_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("more")).unwrap();
        for name in ["b.jsonl", "a.CSV", "c.json.gz", "README.md", ".hidden.jsonl", "more/d.jsonl", "[x].jsonl"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let find = |name: &str| SourceFiles::find(&dir.path().join(name));
        let all = SourceFiles::find(dir.path()).unwrap();
        assert_eq!(names(&all, dir.path()), ["[x].jsonl", "a.CSV", "b.jsonl", "c.json.gz"]);
        assert!(all.notes[0].ends_with("2 of the folder's entries are not read: README.md, more/"), "{:?}", all.notes);
        assert_eq!(names(&find("*.jsonl").unwrap(), dir.path()), ["[x].jsonl", "b.jsonl"]);
        assert_eq!(names(&find("**/*.jsonl").unwrap(), dir.path()), ["[x].jsonl", "b.jsonl", "more/d.jsonl"]);
        assert_eq!(names(&find("[x].jsonl").unwrap(), dir.path()), ["[x].jsonl"], "a file that is there is no pattern");
        assert_eq!(names(&find("README.m?").unwrap(), dir.path()), ["README.md"]);
        let found = find("*").unwrap();
        assert!(found.notes[0].contains("1 folders match and are not read: "), "{:?}", found.notes);
        let told = |name: &str| find(name).unwrap_err().to_string();
        assert!(told("*.parquet").ends_with("*.parquet: no file matches the pattern"));
        assert!(told("***").contains("is not a valid pattern"));
        std::fs::remove_file(dir.path().join("more/d.jsonl")).unwrap();
        assert!(told("more").contains("holds no file of rows") && told("more").contains("it is empty"));
    }

    #[test]
    fn splits_in_one_folder_are_not_mixed() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(SourceFiles::find(dir.path()).unwrap().files.len(), 2);
        std::fs::write(dir.path().join("my_test.jsonl"), "").unwrap();
        let error = SourceFiles::find(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("files of several splits (test, train): name one") && error.contains("my_test.jsonl"),
            "{error}"
        );
        std::fs::remove_file(dir.path().join("my_test.jsonl")).unwrap();
        std::fs::write(dir.path().join("latest.jsonl"), "").unwrap();
        assert_eq!(SourceFiles::find(dir.path()).unwrap().files.len(), 3, "a part of a word is no split");
        std::fs::write(dir.path().join("data-00000.arrow"), "").unwrap();
        assert!(SourceFiles::find(dir.path()).unwrap_err().to_string().contains("Arrow"));
    }
}
