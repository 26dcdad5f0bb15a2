//! Side files: the files in a model's folder besides weights. They are read once, at the start of a run; later changes to the folder affect
//! neither the run nor its output.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::folder::{MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES, inside, read_regular};
use crate::error::{Error, Result};

/// File of the model's configuration. It is written anew with each result.
pub const CONFIG: &str = "config.json";
/// File of sampling settings, and of the tokens that end a response.
pub const GENERATION_CONFIG: &str = "generation_config.json";
/// File of the tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// File of the tokenizer's class, special tokens and, in older folders, chat template.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// File of a chat template, which takes precedence over one in [`TOKENIZER_CONFIG`].
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// Folder of more chat templates, each in a file with its name.
pub const MORE_TEMPLATES: &str = "additional_chat_templates";

/// Files of the tokenizer, besides those whose name begins with `tokenizer` and those in [`MORE_TEMPLATES`].
const TOKENIZER_FILES: [&str; 7] = [
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    CHAT_TEMPLATE,
    "chat_template.json",
];

/// Files of the model.
const MODEL_FILES: [&str; 9] = [
    CONFIG,
    GENERATION_CONFIG,
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "USE_POLICY.md",
];

/// Largest number of files that are read besides the listed ones: `tokenizer*`, and chat templates.
const MAX_FILES: usize = 64;

/// A side file in memory.
#[derive(Debug, Clone)]
struct SideFile {
    /// Path that the file was read from, for messages.
    path: PathBuf,
    /// Bytes of the file, or the reason why it could not be read.
    content: std::result::Result<Vec<u8>, String>,
}

/// Side files of a folder, by name.
#[derive(Debug, Clone, Default)]
pub struct SideFiles {
    dir: PathBuf,
    files: BTreeMap<String, SideFile>,
}

fn is_template(name: &str) -> bool {
    name == CHAT_TEMPLATE || name == "chat_template.json" || name.starts_with(MORE_TEMPLATES)
}

fn is_tokenizer_file(name: &str) -> bool {
    name.starts_with("tokenizer") || name.starts_with(MORE_TEMPLATES) || TOKENIZER_FILES.contains(&name)
}

/// Returns the names of the folder's regular files that `fits` accepts, in order; empty where there is no folder.
fn listed(dir: &Path, fits: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let is_plain = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| !kind.is_dir());
    let names = entries.filter(is_plain).filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| fits(name)).collect();
    names.sort_unstable();
    names
}

impl SideFiles {
    /// Reads the side files of a folder. A file that cannot be read is an error only where it is used, or would be copied.
    pub fn read(dir: &Path) -> Self {
        let listed_files = MODEL_FILES.iter().chain(&TOKENIZER_FILES).map(|name| (*name).to_string());
        let mut names: Vec<String> = listed_files.filter(|name| dir.join(name).symlink_metadata().is_ok()).collect();
        let more = listed(dir, |name| name.starts_with("tokenizer"));
        let templates = listed(&dir.join(MORE_TEMPLATES), |name| name.ends_with(".jinja"));
        names.extend(more.into_iter().take(MAX_FILES));
        let n_templates = templates.len();
        names.extend(templates.into_iter().take(MAX_FILES).map(|name| format!("{MORE_TEMPLATES}/{name}")));
        let file = |name: String| {
            let large = [TOKENIZER, "tokenizer.model"].contains(&name.as_str());
            let limit = if large { MAX_TOKENIZER_BYTES } else { MAX_CONFIG_BYTES };
            let read = inside(dir, &name).and_then(|path| read_regular(&path, limit));
            let content = read.map_err(|error| match error {
                Error::File { reason, .. } => reason,
                other => other.to_string(),
            });
            (name.clone(), SideFile { path: dir.join(name), content })
        };
        let mut files: BTreeMap<String, SideFile> = names.into_iter().map(file).collect();
        if n_templates > MAX_FILES {
            let content = Err(format!("has {n_templates} templates; at most {MAX_FILES} are read"));
            files.insert(MORE_TEMPLATES.into(), SideFile { path: dir.join(MORE_TEMPLATES), content });
        }
        Self { dir: dir.into(), files }
    }

    /// Creates side files from their contents instead of a folder; `dir` is for messages.
    pub fn from_contents<'a>(dir: &Path, contents: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let file = |(name, content): (&str, &[u8])| {
            (name.to_string(), SideFile { path: dir.join(name), content: Ok(content.to_vec()) })
        };
        Self { dir: dir.into(), files: contents.into_iter().map(file).collect() }
    }

    /// Returns these side files with another text of the configuration.
    #[must_use]
    pub fn with_config(mut self, text: String) -> Self {
        let path = self.path(CONFIG);
        self.files.insert(CONFIG.into(), SideFile { path, content: Ok(text.into_bytes()) });
        self
    }

    /// Returns the path of a file, whether or not it exists, for messages.
    pub fn path(&self, name: &str) -> PathBuf {
        self.files.get(name).map_or_else(|| self.dir.join(name), |file| file.path.clone())
    }

    /// Returns whether a file exists.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Returns whether any file belongs to a tokenizer or is a chat template.
    pub fn has_tokenizer_files(&self) -> bool {
        self.files.keys().any(|name| is_tokenizer_file(name))
    }

    /// Returns whether the tokenizer's files are equal, byte for byte.
    pub fn has_same_tokenizer_files(&self, other: &Self) -> bool {
        fn own(side: &SideFiles) -> impl Iterator<Item = (&String, &std::result::Result<Vec<u8>, String>)> {
            side.files.iter().filter(|(name, _)| is_tokenizer_file(name)).map(|(name, file)| (name, &file.content))
        }
        own(self).eq(own(other))
    }

    /// Computes SHA-256 of the tokenizer's files with their names, in hexadecimal.
    pub fn tokenizer_digest(&self) -> String {
        let mut hash = Sha256::new();
        for (name, file) in self.files.iter().filter(|(name, _)| is_tokenizer_file(name)) {
            let bytes = file.content.as_deref().unwrap_or_default();
            hash.update(format!("{name}\0{}\0", bytes.len()));
            hash.update(bytes);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns a file's bytes, `None` where there is no such file.
    ///
    /// # Errors
    /// [`Error::File`] where the file exists and could not be read.
    pub fn bytes(&self, name: &str) -> Result<Option<&[u8]>> {
        let Some(file) = self.files.get(name) else { return Ok(None) };
        match &file.content {
            Ok(bytes) => Ok(Some(bytes)),
            Err(reason) => Err(Error::file(&file.path, reason)),
        }
    }

    /// Returns a file's text, `None` where there is no such file.
    ///
    /// # Errors
    /// Fails like [`SideFiles::bytes`]; also [`Error::File`] where the file is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        let text = |bytes| std::str::from_utf8(bytes).map_err(|e| Error::file(self.path(name), e));
        self.bytes(name)?.map(text).transpose()
    }

    /// Returns a file's text, which must be there.
    ///
    /// # Errors
    /// Fails like [`SideFiles::text`]; also [`Error::File`] where there is no such file.
    pub fn required(&self, name: &str) -> Result<&str> {
        // Uses the operating system's message, as for any other missing file.
        let missing = || inside(&self.dir, name).err().unwrap_or_else(|| Error::file(self.path(name), "is missing"));
        self.text(name)?.ok_or_else(missing)
    }

    /// Returns the names of the files that are copied with a result: all but the configuration.
    pub fn copied(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str).filter(|name| *name != CONFIG)
    }

    /// Checks that every file that is copied with a result could be read. Called before work whose result would need them.
    ///
    /// # Errors
    /// Fails like [`SideFiles::bytes`].
    pub fn check_copied(&self) -> Result<()> {
        self.copied().try_for_each(|name| self.bytes(name).map(drop))
    }

    /// Returns the fields of a JSON file; none where there is no such file.
    ///
    /// # Errors
    /// Fails like [`SideFiles::text`]; also [`Error::File`] where the file is not a JSON object.
    pub fn fields(&self, name: &str) -> Result<serde_json::Map<String, Value>> {
        let Some(text) = self.text(name)? else { return Ok(serde_json::Map::new()) };
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => Ok(fields),
            Ok(_) => Err(Error::file(self.path(name), "expected a JSON object")),
            Err(e) => Err(Error::file(self.path(name), format!("malformed JSON: {e}"))),
        }
    }

    /// Returns whether there is a chat template, in a file or in [`TOKENIZER_CONFIG`].
    pub fn has_template(&self) -> bool {
        let fields = || self.fields(TOKENIZER_CONFIG).unwrap_or_default();
        let in_config = || fields().get("chat_template").is_some_and(|template| !template.is_null());
        self.files.keys().any(|name| is_template(name)) || in_config()
    }

    /// Returns these side files with an adapter folder's tokenizer and generation settings in place of their own. A folder with a
    /// `tokenizer.json` replaces the whole tokenizer; one without replaces file by file. The chat template stays where the adapter's folder
    /// has none.
    pub fn with_tokenizer_of(&self, own: &Self) -> Self {
        if !own.has_tokenizer_files() {
            return self.clone();
        }
        let (whole, brings_template) = (own.has(TOKENIZER), own.has_template());
        let stays = |name: &str| match (is_tokenizer_file(name), is_template(name)) {
            (false, _) => true,
            (true, true) => !brings_template,
            (true, false) => !whole,
        };
        let mut files = self.files.clone();
        files.retain(|name, _| stays(name));
        if !brings_template && (whole || own.has(TOKENIZER_CONFIG)) {
            for (name, text) in self.config_templates() {
                let file = SideFile { path: self.path(TOKENIZER_CONFIG), content: Ok(text.into_bytes()) };
                files.entry(name).or_insert(file);
            }
        }
        let carried = own.files.iter().filter(|(name, _)| is_tokenizer_file(name) || *name == GENERATION_CONFIG);
        files.extend(carried.map(|(name, file)| (name.clone(), file.clone())));
        Self { dir: if whole { own.dir.clone() } else { self.dir.clone() }, files }
    }

    /// Returns the chat templates by name; the main one is `default`. Files take precedence over [`TOKENIZER_CONFIG`].
    ///
    /// # Errors
    /// Fails like [`SideFiles::text`].
    pub fn chat_templates(&self) -> Result<Vec<(String, String)>> {
        let name_of = |file: &str| {
            let named =
                file.strip_prefix(MORE_TEMPLATES).map(|name| name.trim_start_matches('/').trim_end_matches(".jinja"));
            named.unwrap_or("default").to_string()
        };
        let is_file = |name: &&str| *name == CHAT_TEMPLATE || name.starts_with(MORE_TEMPLATES);
        let mut all = Vec::new();
        for file in self.copied().filter(is_file) {
            all.push((name_of(file), self.text(file)?.unwrap_or_default().into()));
        }
        if all.is_empty() {
            all.extend(self.config_templates().into_iter().map(|(file, text)| (name_of(&file), text)));
        }
        Ok(all)
    }

    /// Returns the chat templates of [`TOKENIZER_CONFIG`], named like the files that would hold them.
    fn config_templates(&self) -> Vec<(String, String)> {
        let template = self.fields(TOKENIZER_CONFIG).ok().and_then(|mut fields| fields.remove("chat_template"));
        let named = |entry: &Value| {
            let (name, text) = (entry.get("name")?.as_str()?, entry.get("template")?.as_str()?);
            let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
            let file = if name == "default" { CHAT_TEMPLATE.into() } else { format!("{MORE_TEMPLATES}/{name}.jinja") };
            is_plain.then(|| (file, text.to_string()))
        };
        match template {
            Some(Value::String(text)) => vec![(CHAT_TEMPLATE.into(), text)],
            Some(Value::Array(list)) => list.iter().filter_map(named).collect(),
            Some(Value::Object(map)) => {
                let entries = map.iter().map(|(name, template)| json!({"name": name, "template": template}));
                entries.filter_map(|entry| named(&entry)).collect()
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::fs;

    fn side(files: &[(&str, &str)]) -> SideFiles {
        SideFiles::from_contents(Path::new("x"), files.iter().map(|(name, text)| (*name, text.as_bytes())))
    }

    fn names(side: &SideFiles) -> Vec<&str> {
        side.files.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_folder_is_read_once_and_a_change_is_not_seen() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        fs::create_dir(dir.join(MORE_TEMPLATES)).unwrap();
        fs::create_dir(dir.join("tokenizer_old")).unwrap();
        for name in
            [TOKENIZER, "tokenizer.model.v3", "LICENSE", "model.safetensors", "additional_chat_templates/tools.jinja"]
        {
            fs::write(dir.join(name), name).unwrap();
        }
        let read = SideFiles::read(dir);
        fs::write(dir.join(TOKENIZER), "other").unwrap();
        fs::remove_file(dir.join("LICENSE")).unwrap();
        assert_eq!(names(&read), ["LICENSE", "additional_chat_templates/tools.jinja", TOKENIZER, "tokenizer.model.v3"]);
        assert_eq!((read.text(TOKENIZER).unwrap(), read.text("LICENSE").unwrap()), (Some(TOKENIZER), Some("LICENSE")));
        assert_eq!(read.text(CHAT_TEMPLATE).unwrap(), None);
        assert!(read.required(CHAT_TEMPLATE).unwrap_err().to_string().contains("chat_template.jinja: No such file"));
        assert!(!SideFiles::read(dir).has_same_tokenizer_files(&read));
    }

    #[test]
    fn what_cannot_be_read_is_told_where_it_is_used() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        fs::create_dir(dir.join("LICENSE")).unwrap();
        let large = fs::File::create(dir.join("merges.txt")).unwrap();
        large.set_len(MAX_CONFIG_BYTES + 1).unwrap();
        let read = SideFiles::read(dir);
        assert!(read.bytes("LICENSE").unwrap_err().to_string().ends_with("LICENSE: is not a regular file"));
        assert!(read.bytes("merges.txt").unwrap_err().to_string().contains("at most 67108864 are read"));
        assert!(read.check_copied().unwrap_err().to_string().ends_with("LICENSE: is not a regular file"));
        assert!(side(&[("LICENSE", "x")]).check_copied().is_ok());
        let latin = SideFiles::from_contents(Path::new("x"), [(CHAT_TEMPLATE, &b"\xe4x"[..])]);
        assert!(latin.text(CHAT_TEMPLATE).unwrap_err().to_string().contains("chat_template.jinja: invalid utf-8"));
    }

    #[test]
    fn an_adapters_tokenizer_takes_the_place_of_the_bases() {
        let base = side(&[
            (CONFIG, "base"),
            ("LICENSE", "base"),
            (TOKENIZER, "base"),
            ("merges.txt", "base"),
            (
                TOKENIZER_CONFIG,
                r#"{"chat_template": [{"name": "default", "template": "D"}, {"name": "tools", "template": "T"}]}"#,
            ),
        ]);
        assert_eq!(names(&base.with_tokenizer_of(&side(&[("README.md", ""), ("LICENSE", "own")]))), names(&base));

        // The adapter has a whole tokenizer without a template: the base's templates stay, but none of its other tokenizer files.
        let whole = base.with_tokenizer_of(&side(&[(TOKENIZER, "own"), (TOKENIZER_CONFIG, "{}"), (CONFIG, "own")]));
        let expected =
            ["LICENSE", "additional_chat_templates/tools.jinja", CHAT_TEMPLATE, CONFIG, TOKENIZER, TOKENIZER_CONFIG];
        assert_eq!(names(&whole), expected);
        assert_eq!(whole.text(TOKENIZER).unwrap(), Some("own"));
        assert_eq!((whole.text(CHAT_TEMPLATE).unwrap(), whole.text(CONFIG).unwrap()), (Some("D"), Some("base")));

        // The adapter has a whole tokenizer without a configuration.
        let whole = base.with_tokenizer_of(&side(&[(TOKENIZER, "own")]));
        assert_eq!(names(&whole), expected[..expected.len() - 1]);
        assert_eq!(whole.text(CHAT_TEMPLATE).unwrap(), Some("D"));

        // The adapter has only a template, in a file or in the tokenizer's configuration: the base's template file must not take
        // precedence.
        let base = side(&[(TOKENIZER, "base"), (CHAT_TEMPLATE, "base"), (TOKENIZER_CONFIG, "{}")]);
        let template = base.with_tokenizer_of(&side(&[(CHAT_TEMPLATE, "own")]));
        assert_eq!((template.text(CHAT_TEMPLATE).unwrap(), names(&template)), (Some("own"), names(&base)));
        let config = base.with_tokenizer_of(&side(&[(TOKENIZER_CONFIG, r#"{"chat_template": "own"}"#)]));
        assert_eq!(names(&config), [TOKENIZER, TOKENIZER_CONFIG]);
    }
}
