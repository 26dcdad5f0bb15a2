//! Data sets on the hub: one file (`hf://datasets/org/name/file`), or one split that the hub converted to Parquet
//! (`hf://datasets/org/name`, `hf://datasets/org/name:split`, `hf://datasets/org/name:configuration/split`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFError};

use super::{DownloadMeter, HubId, reached, refused};

/// Branch in which the hub keeps converted data sets: `configuration/split/0000.parquet`.
const CONVERTED: &str = "refs/convert/parquet";
/// Prefix of the name of a split of which the hub converted only the first part.
const PARTIAL: &str = "partial-";
/// Split that is read where the address names none, as in TRL's trainers.
const TRAIN: &str = "train";

/// Address of rows on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatasetAddress {
    /// One file of a data set.
    File {
        /// Repository of the data set, with its revision.
        id: HubId,
        /// Path of the file in the repository.
        path: String,
    },
    /// One split that the hub converted to Parquet.
    Converted(ConvertedSplit),
}

/// A split of a data set, as the hub converted it to Parquet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvertedSplit {
    /// Repository of the data set, at the branch of conversions.
    pub id: HubId,
    /// The configuration that the address names.
    pub configuration: Option<String>,
    /// The split that the address names.
    pub split: Option<String>,
}

/// Files of an address, each with its own address and its path in the hub's cache, and notes for the user.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DatasetFiles {
    /// Files in the order of their names.
    pub files: Vec<(String, PathBuf)>,
    /// Notes, one line each.
    pub notes: Vec<String>,
}

impl DatasetAddress {
    /// Parses `hf://datasets/org/name/file`, `hf://datasets/org/name@revision/file`, and `hf://datasets/org/name[:[configuration/]split]`.
    /// As in huggingface_hub and DuckDB, a slash in the revision is written `%2F`, and `~parquet` is the branch of conversions. Returns
    /// `None` for a text that does not begin with `hf://`.
    pub fn parse(text: &str) -> Option<Result<Self, String>> {
        let rest = text.strip_prefix("hf://")?;
        Some(Self::parse_rest(rest).ok_or_else(|| {
            "expected hf://datasets/org/name, hf://datasets/org/name:split, hf://datasets/org/name/file or \
             hf://datasets/org/name@revision/file"
                .into()
        }))
    }

    fn parse_rest(rest: &str) -> Option<Self> {
        let mut parts = rest.strip_prefix("datasets/")?.splitn(3, '/');
        let (owner, name, path) = (parts.next()?, parts.next()?, parts.next());
        let is_inside = |path: &str| path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        let id = |name: &str| {
            let name = name.replace("%2F", "/").replace("~parquet", CONVERTED);
            HubId::parse(&format!("{owner}/{name}"))
        };
        let (name, named) = match (name.split_once(':'), path) {
            (None, Some(path)) => {
                return is_inside(path).then(|| Some(Self::File { id: id(name)?, path: path.into() }))?;
            }
            (None, None) => (name, None),
            (Some((name, first)), second) => (name, Some((first, second))),
        };
        let mut id = id(name)?;
        // The hub converts the main branch only.
        if id.revision.get_or_insert_with(|| CONVERTED.into()) != CONVERTED {
            return None;
        }
        let is_name = |part: &str| is_inside(part) && !part.contains('/');
        let (configuration, split) = match named {
            None => (None, None),
            Some((split, None)) => (None, Some(split)),
            Some((configuration, split)) => (Some(configuration), split),
        };
        let all_named = configuration.into_iter().chain(split).all(is_name);
        let converted =
            ConvertedSplit { id, configuration: configuration.map(String::from), split: split.map(String::from) };
        all_named.then_some(Self::Converted(converted))
    }

    /// Returns the files in the hub's cache. Fetches those that are not there yet.
    ///
    /// # Errors
    /// The reason in one line, with advice on what to do instead.
    pub fn fetch(&self) -> Result<DatasetFiles, String> {
        match self {
            Self::File { id, path } => {
                let file = reached(path, |local_only| fetch(id, path, local_only)).map_err(|e| refused_file(&e))?;
                Ok(DatasetFiles { files: vec![(path.clone(), file)], notes: Vec::new() })
            }
            Self::Converted(split) => split.fetch(),
        }
    }
}

fn refused_file(e: &HFError) -> String {
    refused(e, "", "data set", "file")
}

/// Fetches one file into the hub's cache.
fn fetch(id: &HubId, path: &str, local_only: bool) -> Result<PathBuf, HFError> {
    let client = HFClient::builder().retry_max_attempts(2).build_sync()?;
    let data_set = client.dataset(&id.owner, &id.name);
    let request = data_set.download_file().filename(path).maybe_revision(id.revision.clone());
    request.local_files_only(local_only).progress(DownloadMeter::default()).send()
}

impl ConvertedSplit {
    fn fetch(&self) -> Result<DatasetFiles, String> {
        let address = format!("hf://datasets/{}/{}", self.id.owner, self.id.name);
        let listed = reached(&address, |local_only| if local_only { self.kept() } else { self.list() });
        let listed = listed.map_err(|e| match e {
            HFError::RevisionNotFound { .. } => not_converted(&address),
            HFError::Http { context } if context.error_code.as_deref() == Some("RevisionNotFound") => {
                not_converted(&address)
            }
            e => refused_file(&e),
        })?;
        let ChosenFiles { paths, notes } = self.choose(&address, &listed)?;
        if let Some(path) = gap(&paths) {
            return Err(format!("the hub's cache lacks {path}: give a local file instead"));
        }
        // The last file is fetched first, so that a gap in the cache shows that a download was interrupted.
        let mut files = Vec::new();
        for path in paths.iter().rev() {
            let file = reached(path, |local_only| fetch(&self.id, path, local_only)).map_err(|e| refused_file(&e))?;
            files.push((format!("{address}@~parquet/{path}"), file));
        }
        files.reverse();
        Ok(DatasetFiles { files, notes })
    }

    /// Lists the files in the branch of conversions.
    fn list(&self) -> Result<Vec<String>, HFError> {
        let client = HFClient::builder().retry_max_attempts(2).build_sync()?;
        let data_set = client.dataset(&self.id.owner, &self.id.name);
        let entries = data_set.list_tree().maybe_revision(self.id.revision.clone()).recursive(true).send()?;
        let path = |entry| match entry {
            RepoTreeEntry::File { path, .. } => Some(path),
            _ => None,
        };
        Ok(entries.into_iter().filter_map(path).collect())
    }

    /// Lists those files of the branch of conversions that the hub's cache has.
    fn kept(&self) -> Result<Vec<String>, HFError> {
        let client = HFClient::builder().retry_max_attempts(2).build_sync()?;
        let data_set = client.dataset(&self.id.owner, &self.id.name);
        let snapshot = data_set.snapshot_download().maybe_revision(self.id.revision.clone()).local_files_only(true);
        let snapshot = snapshot.send()?;
        let mut all = Vec::new();
        for configuration in names_in(&snapshot) {
            for split in names_in(&snapshot.join(&configuration)) {
                let files = names_in(&snapshot.join(&configuration).join(&split));
                all.extend(files.iter().map(|file| format!("{configuration}/{split}/{file}")));
            }
        }
        match all.is_empty() {
            true => Err(HFError::LocalEntryNotFound { path: snapshot.display().to_string() }),
            false => Ok(all),
        }
    }

    /// Chooses the files of the address's configuration and split from `listed`.
    fn choose(&self, address: &str, listed: &[String]) -> Result<ChosenFiles, String> {
        let mut found: BTreeMap<&str, BTreeMap<&str, Vec<&String>>> = BTreeMap::new();
        for path in listed.iter().filter(|path| path.ends_with(".parquet")) {
            if let [configuration, split, _] = path.split('/').collect::<Vec<_>>()[..] {
                found.entry(configuration).or_default().entry(split).or_default().push(path);
            }
        }
        let list = |names: &[&str]| names.join(", ");
        let configurations: Vec<&str> = found.keys().copied().collect();
        let (configuration, splits): (&str, _) = match (&self.configuration, &configurations[..]) {
            (_, []) => return Err(not_converted(address)),
            (None, [only]) => (*only, &found[only]),
            (None, all) => {
                let (first, first_split) = (all[0], found[all[0]].keys().next().copied().unwrap_or(TRAIN));
                return Err(format!(
                    "the data set has the configurations {}: name one with its split, such as {address}:{first}/{}",
                    list(all),
                    self.split.as_deref().unwrap_or(first_split)
                ));
            }
            (Some(named), all) => match found.get_key_value(named.as_str()) {
                Some((name, splits)) => (*name, splits),
                None => return Err(format!("the data set has no configuration `{named}`: it has {}", list(all))),
            },
        };
        let names: Vec<&str> = splits.keys().copied().collect();
        let whole = |name: &str| name.strip_prefix(PARTIAL).unwrap_or(name).to_string();
        let is_called = |name: &&&str, wanted: &str| ***name == *wanted || whole(name) == wanted;
        let mut notes = Vec::new();
        let chosen = match (&self.split, &names[..]) {
            (Some(wanted), all) => all.iter().find(|name| is_called(name, wanted)).ok_or_else(|| {
                format!("the data set has no split `{wanted}`: configuration {configuration} has {}", list(all))
            })?,
            (None, [only]) => {
                notes.push(format!("{address}: the split {only} of the configuration {configuration} is read"));
                only
            }
            (None, all) => {
                let one = format!("{address}:{configuration}/{}", all[0]);
                let train = all
                    .iter()
                    .find(|name| is_called(name, TRAIN))
                    .ok_or_else(|| format!("the data set has the splits {}: name one, such as {one}", list(all)))?;
                let others: Vec<&str> = all.iter().copied().filter(|name| name != train).collect();
                notes.push(format!(
                    "{address}: the split {train} of the configuration {configuration} is read, not {} (such as {one})",
                    list(&others)
                ));
                train
            }
        };
        if chosen.starts_with(PARTIAL) {
            notes.push(format!(
                "{address}: the hub converted only the first part of this split, as it does of large data sets"
            ));
        }
        let mut paths: Vec<String> = splits[chosen].iter().map(|path| (*path).clone()).collect();
        paths.sort();
        Ok(ChosenFiles { paths, notes })
    }
}

/// Files of the chosen split, with notes for the user.
#[derive(Debug)]
struct ChosenFiles {
    paths: Vec<String>,
    notes: Vec<String>,
}

/// Returns the name of the first missing file of a sequence that is numbered from 0.
fn gap(paths: &[String]) -> Option<String> {
    let missing = |path: &String| {
        let (folder, number) = path.strip_suffix(".parquet")?.rsplit_once('/')?;
        let before = number.parse::<usize>().ok()?.checked_sub(1)?;
        let before = format!("{folder}/{before:0width$}.parquet", width = number.len());
        (!paths.contains(&before)).then_some(before)
    };
    paths.iter().find_map(missing)
}

fn not_converted(address: &str) -> String {
    format!("the hub has not converted the data set to Parquet: name a file of it, {address}/FILE")
}

/// Returns the names in a folder, or none where there is no folder.
fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn parse(text: &str) -> DatasetAddress {
        DatasetAddress::parse(text).unwrap().unwrap()
    }

    fn converted(text: &str) -> ConvertedSplit {
        match parse(text) {
            DatasetAddress::Converted(split) => split,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn files_of_data_sets() {
        let file = |text: &str| match parse(text) {
            DatasetAddress::File { id, path } => (id, path),
            other => panic!("{text}: {other:?}"),
        };
        let (id, path) = file("hf://datasets/a/b/data/tldr/train.json");
        assert_eq!((id, path.as_str()), (HubId::parse("a/b").unwrap(), "data/tldr/train.json"));
        for text in ["hf://datasets/a/b@~parquet/x/0.parquet", "hf://datasets/a/b@refs%2Fconvert%2Fparquet/x/0.parquet"]
        {
            let (id, path) = file(text);
            assert_eq!((id.revision.as_deref(), path.as_str()), (Some(CONVERTED), "x/0.parquet"));
        }
        for bad in [
            "hf://a/b/c",
            "hf://datasets/a",
            "hf://datasets/a/b/",
            "hf://datasets/a/b/../c",
            "hf://datasets/../b/c",
            "hf://datasets/a/b@main",
            "hf://datasets/a/b:",
            "hf://datasets/a/b:x/",
            "hf://datasets/a/b:x/y/z",
            "hf://datasets/a/b:..",
        ] {
            assert!(DatasetAddress::parse(bad).unwrap().is_err(), "{bad}");
        }
        assert_eq!(DatasetAddress::parse("datasets/a/b/c"), None);
    }

    #[test]
    fn one_split_of_one_configuration_is_chosen() {
        let named = |text: &str| {
            let split = converted(text);
            assert_eq!(split.id.revision.as_deref(), Some(CONVERTED), "{text}");
            (split.configuration, split.split)
        };
        assert_eq!(named("hf://datasets/a/b"), (None, None));
        assert_eq!(named("hf://datasets/a/b@~parquet"), (None, None));
        assert_eq!(named("hf://datasets/a/b:test"), (None, Some("test".into())));
        assert_eq!(named("hf://datasets/a/b:en.1/test"), (Some("en.1".into()), Some("test".into())));

        let choose = |text: &str, listed: &[&str]| {
            let listed: Vec<String> = listed.iter().copied().map(String::from).collect();
            converted(text).choose("A", &listed).map(|chosen| (chosen.paths, chosen.notes.join(" ")))
        };
        let one =
            ["d/train/0001.parquet", "d/test/0000.parquet", ".gitattributes", "d/train/0000.parquet", "README.md"];
        let train = vec!["d/train/0000.parquet".to_string(), "d/train/0001.parquet".into()];
        let note = "A: the split train of the configuration d is read, not test (such as A:d/test)".to_string();
        assert_eq!(choose("hf://datasets/a/b", &one), Ok((train.clone(), note)));
        assert_eq!(choose("hf://datasets/a/b:train", &one), Ok((train, String::new())));
        assert_eq!(choose("hf://datasets/a/b:d/test", &one), Ok((vec!["d/test/0000.parquet".into()], String::new())));
        let told = |text: &str, listed: &[&str]| choose(text, listed).unwrap_err();
        assert_eq!(told("hf://datasets/a/b:x", &one), "the data set has no split `x`: configuration d has test, train");
        assert_eq!(told("hf://datasets/a/b:x/train", &one), "the data set has no configuration `x`: it has d");
        let two = ["en/train/0.parquet", "de/test/0.parquet"];
        let reason = "the data set has the configurations de, en: name one with its split, such as A:de/test";
        assert_eq!(told("hf://datasets/a/b", &two), reason);
        assert_eq!(choose("hf://datasets/a/b:en/train", &two).unwrap().0, ["en/train/0.parquet"]);
        let numbered =
            |numbers: &[usize]| numbers.iter().map(|n| format!("d/train/{n:04}.parquet")).collect::<Vec<_>>();
        assert_eq!(gap(&numbered(&[0, 1, 2])), None);
        assert_eq!(gap(&numbered(&[0, 2])), Some("d/train/0001.parquet".into()));
        assert_eq!(gap(&numbered(&[1, 2])), Some("d/train/0000.parquet".into()));
        let odd = ["d/b/0.parquet", "d/a/0.parquet"];
        assert_eq!(told("hf://datasets/a/b", &odd), "the data set has the splits a, b: name one, such as A:d/a");
        assert!(told("hf://datasets/a/b", &["README.md"]).starts_with("the hub has not converted"));
        let (paths, note) = choose("hf://datasets/a/b", &["d/partial-train/0.parquet"]).unwrap();
        assert_eq!(paths, ["d/partial-train/0.parquet"]);
        assert!(note.contains("only the first part"), "{note}");
    }
}
