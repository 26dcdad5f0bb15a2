//! Where a model is: a local folder, or an id on the Hugging Face hub, fetched into hf-hub's cache (`HF_HOME`, `HF_HUB_CACHE`) with
//! its token (`HF_TOKEN`, or what `hf auth login` stored).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use hf_hub::progress::{DownloadEvent, FileProgress, ProgressEvent, ProgressHandler};
use hf_hub::{HFClient, HFError};
use indicatif::{ProgressBar, ProgressStyle};

use crate::error::{Error, Result};

/// What is fetched: no pickles, no duplicates in other formats.
const PATTERNS: [&str; 14] = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
    "LICENSE",
];

/// A model's name on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `org`.
    pub owner: String,
    /// `name`.
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: Option<String>,
}

impl HubId {
    /// `org/name` or `org/name@revision`.
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

/// The folder of `model`: itself where there is one, else that of the hub's snapshot, fetched where it is not yet in the cache.
/// Without a network a snapshot in the cache is used, with a notice; `HF_HUB_OFFLINE=1` asks for no more than that.
///
/// # Errors
/// [`Error::Flag`]: neither a folder nor an id, no such repository or revision, no access, no network; one line that says what to
/// do.
pub fn resolve(model: &str) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.into());
    }
    if path.exists() {
        return Err(Error::flag("model", format!("{model} is a file: give its folder")));
    }
    let id = HubId::parse(model).ok_or_else(|| {
        Error::flag(
            "model",
            format!("{model}: no such folder, and no hub id (those read org/name or org/name@revision)"),
        )
    })?;
    let offline = std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !matches!(v.as_str(), "" | "0"));
    if offline {
        return fetch(&id, true).map_err(|e| refused(model, &e));
    }
    match fetch(&id, false) {
        Ok(dir) => Ok(dir),
        Err(e @ HFError::Request { .. }) => match fetch(&id, true) {
            Ok(dir) => {
                note!("{model}: the hub cannot be reached; going on with {}", dir.display());
                Ok(dir)
            }
            Err(_) => Err(refused(model, &e)),
        },
        Err(e) => Err(refused(model, &e)),
    }
}

fn fetch(id: &HubId, local_only: bool) -> Result<PathBuf, HFError> {
    let client = HFClient::builder().retry_max_attempts(2).build_sync()?;
    let repository = client.model(&id.owner, &id.name);
    let request = repository.snapshot_download().maybe_revision(id.revision.clone()).local_files_only(local_only);
    let dir = request.allow_patterns(PATTERNS.map(String::from).into()).progress(Meter::default()).send()?;
    // An interrupted download leaves a snapshot without its last files; the hub's own list is at hand only online.
    if local_only && !dir.join("config.json").exists() && !dir.join("adapter_config.json").exists() {
        return Err(HFError::LocalEntryNotFound { path: dir.display().to_string() });
    }
    Ok(dir)
}

/// One line, with the way out.
fn refused(model: &str, e: &HFError) -> Error {
    let local = "give a local folder (config.json, *.safetensors, tokenizer.json) instead";
    let reason = match e {
        HFError::Request { source, .. } => {
            format!("no such folder here, and the hub cannot be reached ({source}): {local}")
        }
        HFError::LocalEntryNotFound { .. } => format!("no such folder here, and not in the hub's cache: {local}"),
        HFError::RepoNotFound { .. } | HFError::AuthRequired { .. } | HFError::Forbidden { .. } => {
            format!(
                "no such folder here, and the hub refuses ({e}): for a gated or private model set HF_TOKEN, or {local}"
            )
        }
        _ => format!("from the hub: {e}"),
    };
    Error::flag("model", format!("{model}: {}", reason.split_whitespace().collect::<Vec<_>>().join(" ")))
}

/// Bytes fetched, on standard error: a bar on a terminal, else a line at the start and at the end.
#[derive(Default)]
struct Meter {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bar: Option<ProgressBar>,
    by_file: BTreeMap<String, u64>,
    /// Of the batched transfers, which tell no files apart.
    batch: u64,
}

impl ProgressHandler for Meter {
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
    fn folders_win_and_what_is_neither_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(resolve(&dir.path().display().to_string()).unwrap(), dir.path());
        let file = dir.path().join("model.safetensors");
        std::fs::write(&file, "").unwrap();
        let told = |model: &Path| resolve(&model.display().to_string()).unwrap_err().to_string();
        assert!(told(&file).contains("is a file: give its folder"));
        assert!(told(&dir.path().join("absent")).contains("no such folder, and no hub id"));
    }

    #[test]
    fn messages_are_one_line_with_the_way_out() {
        let error = HFError::LocalEntryNotFound { path: "x\ny".into() };
        let text = refused("a/b", &error).to_string();
        assert!(text.starts_with("--model: a/b: ") && text.contains("give a local folder") && !text.contains('\n'));
    }
}
