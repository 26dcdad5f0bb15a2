//! Models and data sets of the Hugging Face hub. They are fetched into hf-hub's cache (`HF_HOME`, `HF_HUB_CACHE`) with its token
//! (`HF_TOKEN`, or the token that `hf auth login` stored). A model may also be a local folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use hf_hub::progress::{DownloadEvent, FileProgress, ProgressEvent, ProgressHandler};
use hf_hub::{HFClient, HFError};
use indicatif::{ProgressBar, ProgressStyle};

use super::folder::{MAX_CONFIG_BYTES, read_inside};
use crate::error::{Error, Result};

pub mod datasets;

const INDEX: &str = "model.safetensors.index.json";

/// Files that are fetched only for a model: no pickles, no duplicates in other formats.
const MODEL_PATTERNS: [&str; 6] = [
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    INDEX,
    "preprocessor_config.json",
    "processor_config.json",
];

/// Files that are fetched both for a model and for an adapter.
const PATTERNS: [&str; 13] = [
    "generation_config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
    "NOTICE",
];

/// Name of a repository on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// Organisation or user: `org` of `org/name`.
    pub owner: String,
    /// Name of the repository: `name` of `org/name`.
    pub name: String,
    /// Branch, tag or commit.
    pub revision: Option<String>,
}

impl HubId {
    /// Parses `org/name` or `org/name@revision`.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |part: &str, slash: bool| {
            let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c) || (slash && c == '/');
            !part.is_empty() && !part.starts_with(['.', '-', '/']) && !part.contains("..") && part.chars().all(known)
        };
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let (owner, name) = id.split_once('/')?;
        let fits = plain(owner, false) && plain(name, false) && revision.is_none_or(|r| plain(r, true));
        fits.then(|| Self { owner: owner.into(), name: name.into(), revision: revision.map(String::from) })
    }
}

/// Returns the folder of `model`: `model` itself where it is a folder, else the hub's snapshot, which is fetched unless the cache has it.
/// Without a network, a cached snapshot is used and a notice printed. With `HF_HUB_OFFLINE=1` only the cache is used.
///
/// # Errors
/// [`Error::Flag`], in one line that says what to do: where `model` is neither a folder nor a hub id, where the repository or revision does
/// not exist, or where access or the network is missing.
pub fn resolve(model: &str) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.into());
    }
    if path.exists() {
        return Err(Error::flag("model", format!("{model} is a file, and not a GGUF file: give its folder")));
    }
    let id = HubId::parse(model).ok_or_else(|| {
        Error::flag(
            "model",
            format!("{model}: no such folder, and no hub id (those read org/name or org/name@revision)"),
        )
    })?;
    let patterns = || MODEL_PATTERNS.into_iter().chain(PATTERNS).map(String::from).collect();
    let bad = |e: HFError| {
        let reason =
            refused(&e, "no such folder here, and ", "model", "folder (config.json, *.safetensors, tokenizer.json)");
        Error::flag("model", format!("{model}: {reason}"))
    };
    let dir = reached(model, |local_only| fetch(&id, patterns(), local_only)).map_err(bad)?;
    // Shards may have any name, and may be in folders.
    let more = unusual_shards(&dir);
    if more.is_empty() {
        return Ok(dir);
    }
    reached(model, |local_only| fetch(&id, more.clone(), local_only)).map_err(bad)
}

/// Returns the shards that an index names and that [`MODEL_PATTERNS`] does not match.
fn unusual_shards(dir: &Path) -> Vec<String> {
    let index = read_inside(dir, INDEX, MAX_CONFIG_BYTES).ok();
    let index = index.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok()).unwrap_or_default();
    let map = index.get("weight_map").and_then(serde_json::Value::as_object);
    let names = map.into_iter().flat_map(|map| map.values()).filter_map(|name| name.as_str());
    let is_plain = |name: &&str| !name.contains(['*', '?', '[', '\\']) && name.ends_with(".safetensors");
    let names: BTreeSet<&str> = names.filter(is_plain).filter(|name| !dir.join(name).exists()).collect();
    names.into_iter().map(String::from).collect()
}

/// Returns the folder of an adapter: `adapter` itself where it is a folder, else the hub's snapshot. `org/name/folder` means a folder of a
/// repository.
///
/// # Errors
/// Fails like [`resolve`]; also [`Error::Flag`] where the snapshot has no adapter.
pub fn resolve_adapter(adapter: &Path) -> Result<PathBuf> {
    let text = adapter.to_string_lossy();
    let bad = |reason: String| Error::flag("adapter", format!("{text}: {reason}"));
    if adapter.is_dir() {
        return Ok(adapter.into());
    }
    if adapter.exists() {
        return Err(bad("is a file: give its folder".into()));
    }
    let (id, folder) = parse_adapter(&text).ok_or_else(|| {
        bad("no such folder, and no hub id (those read org/name, org/name@revision or org/name/folder)".into())
    })?;
    let inside = |pattern: &str| if folder.is_empty() { pattern.into() } else { format!("{folder}/{pattern}") };
    let patterns = || PATTERNS.map(inside).into();
    let dir = reached(&text, |local_only| fetch(&id, patterns(), local_only)).map_err(|e| {
        let local = "folder (adapter_config.json, adapter_model.safetensors)";
        bad(refused(&e, "no such folder here, and ", "adapter", local))
    })?;
    let dir = if folder.is_empty() { dir } else { dir.join(&folder) };
    if !dir.join("adapter_config.json").exists() {
        return Err(bad("there is no adapter_config.json in it".into()));
    }
    Ok(dir)
}

/// Parses `org/name[/folder...][@revision]` into the repository and the folder, which may be empty.
fn parse_adapter(text: &str) -> Option<(HubId, String)> {
    let (path, revision) = text.split_once('@').map_or((text, None), |(path, revision)| (path, Some(revision)));
    let mut parts = path.splitn(3, '/');
    let (owner, name, folder) = (parts.next()?, parts.next()?, parts.next().unwrap_or_default());
    let mut id = HubId::parse(&format!("{owner}/{name}"))?;
    if let Some(revision) = revision {
        id = HubId::parse(&format!("{owner}/{name}@{revision}"))?;
    }
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_plain = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(known);
    (!path.ends_with('/') && (folder.is_empty() || folder.split('/').all(is_plain))).then(|| (id, folder.into()))
}

/// Returns whether a text can name a folder of a repository: `org/name/folder` or `org/name/folder@revision`.
pub fn is_repository_folder(text: &str) -> bool {
    parse_adapter(text).is_some_and(|(_, folder)| !folder.is_empty())
}

/// Calls `fetch(false)`, which asks the hub. Where the hub cannot be reached, or `HF_HUB_OFFLINE` is set, calls `fetch(true)`, which asks
/// only the cache.
fn reached<T>(name: &str, fetch: impl Fn(bool) -> Result<T, HFError>) -> Result<T, HFError> {
    let offline = std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !matches!(v.as_str(), "" | "0"));
    if offline {
        return fetch(true);
    }
    match fetch(false) {
        Err(e @ HFError::Request { .. }) => match fetch(true) {
            Ok(kept) => {
                note!("{name}: the hub cannot be reached; going on with what its cache holds");
                Ok(kept)
            }
            Err(_) => Err(e),
        },
        done => done,
    }
}

fn fetch(id: &HubId, patterns: Vec<String>, local_only: bool) -> Result<PathBuf, HFError> {
    let client = HFClient::builder().retry_max_attempts(2).build_sync()?;
    let repository = client.model(&id.owner, &id.name);
    let request = repository.snapshot_download().maybe_revision(id.revision.clone()).local_files_only(local_only);
    let folder =
        patterns.first().and_then(|pattern| pattern.rsplit_once('/')).map_or("", |(folder, _)| folder).to_string();
    let dir = request.allow_patterns(patterns).progress(DownloadMeter::default()).send()?;
    // An interrupted download leaves a snapshot without its last files; the hub's own list of files is available only online.
    let is_there = |name: &str| dir.join(&folder).join(name).exists() || dir.join(name).exists();
    if local_only && !is_there("config.json") && !is_there("adapter_config.json") {
        return Err(HFError::LocalEntryNotFound { path: dir.display().to_string() });
    }
    Ok(dir)
}

/// Returns whether the hub refused access to this user.
fn is_refusal(e: &HFError) -> bool {
    match e {
        HFError::RepoNotFound { .. } | HFError::AuthRequired { .. } | HFError::Forbidden { .. } => true,
        // Listing files gives this form of the error.
        HFError::Http { context } => [401, 403].contains(&context.status.as_u16()),
        _ => false,
    }
}

/// Formats an error of the hub as one line, with advice on what to do instead.
fn refused(e: &HFError, before: &str, what: &str, local: &str) -> String {
    let local = format!("give a local {local} instead");
    let reason = match e {
        HFError::Request { source, .. } => format!("{before}the hub cannot be reached ({source}): {local}"),
        HFError::LocalEntryNotFound { .. } => format!("{before}not in the hub's cache: {local}"),
        e if is_refusal(e) => {
            format!("{before}the hub refuses ({e}): for a gated or private {what} set HF_TOKEN, or {local}")
        }
        _ => format!("from the hub: {e}"),
    };
    reason.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Progress of a download on standard error: a bar on a terminal, else a line at the start.
#[derive(Default)]
struct DownloadMeter {
    state: Mutex<TransferState>,
}

#[derive(Default)]
struct TransferState {
    bar: Option<ProgressBar>,
    by_file: BTreeMap<String, u64>,
    /// Bytes of batched transfers, which are not reported per file.
    batch: u64,
}

impl ProgressHandler for DownloadMeter {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            DownloadEvent::Start { total_bytes: 0, .. } => {}
            DownloadEvent::Start { total_bytes, .. } => {
                let bar = ProgressBar::new(*total_bytes);
                if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
                {
                    bar.set_style(style);
                }
                if bar.is_hidden() {
                    note!("fetching {:.1} MB from the hub", *total_bytes as f64 / 1e6);
                }
                state.bar = Some(bar);
            }
            DownloadEvent::Progress { files } => {
                for FileProgress { filename, bytes_completed, .. } in files {
                    let held = state.by_file.entry(filename.clone()).or_default();
                    *held = (*held).max(*bytes_completed);
                }
            }
            DownloadEvent::AggregateProgress { bytes_completed, .. } => state.batch = *bytes_completed,
            DownloadEvent::Complete => {
                if let Some(bar) = state.bar.take() {
                    bar.finish_and_clear();
                }
            }
        }
        let done = state.batch.max(state.by_file.values().sum());
        if let Some(bar) = &state.bar {
            bar.set_position(done.min(bar.length().unwrap_or(done)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        let id = HubId::parse("HuggingFaceTB/SmolLM2-135M@refs/pr/3").unwrap();
        assert_eq!((id.owner.as_str(), id.name.as_str()), ("HuggingFaceTB", "SmolLM2-135M"));
        assert_eq!(id.revision.as_deref(), Some("refs/pr/3"));
        for path in ["gpt2", "./a/b", "../a", "/a/b", "a/b/c", "a/..", "~/a", "a/b@", "a/b@../x", "a b/c", ""] {
            assert_eq!(HubId::parse(path), None, "{path}");
        }
    }

    #[test]
    fn adapters_may_be_in_a_folder_of_a_repository() {
        let parse = |text| parse_adapter(text).map(|(id, folder)| (id.name, id.revision, folder));
        assert_eq!(parse("org/name"), Some(("name".into(), None, String::new())));
        assert_eq!(parse("org/name@refs/pr/1"), Some(("name".into(), Some("refs/pr/1".into()), String::new())));
        assert_eq!(parse("org/name/runs/dpo@v1"), Some(("name".into(), Some("v1".into()), "runs/dpo".into())));
        for bad in
            ["name", "org/", "org/name/", "org/name/../x", "org/name//x", "./org/name", "org/name/a b", "org/name@"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
        let folders =
            ["org/name/a", "org/name/a/b@v1", "org/name", "org/name@refs/pr/1", "/org/name/a", "./org/name/a"];
        assert_eq!(folders.map(is_repository_folder), [true, true, false, false, false, false]);
    }

    #[test]
    fn shards_of_any_name_are_found_in_the_index() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("here.safetensors"), "").unwrap();
        let map = r#"{"weight_map": {"a": "here.safetensors", "b": "x/y.safetensors", "c": "x/y.safetensors", "d": "*.safetensors", "e": "f.bin"}}"#;
        std::fs::write(dir.path().join(INDEX), map).unwrap();
        assert_eq!(unusual_shards(dir.path()), ["x/y.safetensors"]);
    }

    #[test]
    fn folders_win_and_what_is_neither_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(resolve(&dir.path().display().to_string()).unwrap(), dir.path());
        let file = dir.path().join("model.safetensors");
        std::fs::write(&file, "").unwrap();
        let told = |model: &Path| resolve(&model.display().to_string()).unwrap_err().to_string();
        assert!(told(&file).contains("is a file, and not a GGUF file: give its folder"));
        assert!(told(&dir.path().join("absent")).contains("no such folder, and no hub id"));
    }

    #[test]
    fn messages_are_one_line_with_the_way_out() {
        let error = HFError::LocalEntryNotFound { path: "x\ny".into() };
        let text = refused(&error, "no such folder here, and ", "model", "folder");
        assert_eq!(text, "no such folder here, and not in the hub's cache: give a local folder instead");
    }
}
