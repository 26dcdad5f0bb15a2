//! Agreement of the ranks of a run before they begin: devices, what rank 0's folder holds, and that all do the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::device::DeviceOptions;
use super::run_folder::RunFolder;
use crate::data::named_templates::run_time;
use crate::error::{Error, Result};
use crate::files::write_text;
use crate::gpu::{Caps, DeviceChoice, choose_device};
use crate::progress::{line_label, set_line_label, show_progress};
use crate::ranks::Ranks;
use crate::train::settings::TrainSettings;

/// File by which ranks find that they see the same output folder.
const SEEN: &str = ".jointwise.ranks";
/// File by which an interrupted rank stops the others.
const STOPPED: &str = ".jointwise.stopped";
/// Time in which a file of rank 0 must be seen by the other ranks.
const VISIBLE_WITHIN: Duration = Duration::from_secs(3);
/// Time between two looks for a file.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Facts about a run that rank 0 knows from its folder, and tells the others.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct RunStart {
    /// Time that chat templates print, in seconds since 1970; `None` where each process may choose.
    pub chat_time: Option<u64>,
    /// Number of ranks that the run began with, where it is resumed.
    n_ranks: Option<usize>,
}

impl RunStart {
    /// Takes the facts from rank 0's folder. `chat_time` is the user's choice, which a resumed run does not follow.
    ///
    /// # Errors
    /// Those of [`Ranks::broadcast`].
    pub fn agree(folder: Option<&RunFolder>, chat_time: Option<u64>, ranks: Ranks) -> Result<Self> {
        let kept = folder.and_then(RunFolder::kept_state);
        let chosen = || chat_time.or_else(|| ranks.are_several().then(run_time));
        let chat_time = kept.as_ref().and_then(|state| state.time).or_else(chosen);
        ranks.broadcast(Self { chat_time, n_ranks: kept.map(|state| state.n_ranks) })
    }

    /// Sets the number of ranks that decides how many rows a step has: a resumed run keeps that of its beginning.
    pub fn set_ranks(&self, settings: &mut TrainSettings, ranks: Ranks) {
        settings.n_ranks = self.n_ranks.unwrap_or(ranks.n());
    }

    /// Says how many rows a step has on all ranks, and what changes where the run began with another number of ranks.
    pub(super) fn note(&self, settings: &TrainSettings, ranks: Ranks) {
        let (rows, began) = (settings.rows_per_step(), settings.n_ranks);
        if began != ranks.n() {
            note!(
                "note: the run began with {began} ranks and goes on with {}: a step keeps its {rows} rows in the same order; sums are added in another order, so bits differ",
                ranks.n()
            );
        } else if ranks.are_several() {
            let (batch, accumulated) = (settings.batch_size, settings.gradient_accumulation_steps);
            note!(
                "global batch: {rows} rows a step (--batch-size {batch} x --gradient-accumulation-steps {accumulated} x {began} ranks)"
            );
        }
    }
}

/// Chooses the device of each of several ranks, by the rank on its machine unless the user names one, and says which rank has which device.
///
/// # Errors
/// [`Error::Device`], [`Error::Flag`] where there is no such device.
pub fn assign_devices(options: &mut DeviceOptions, ranks: Ranks) -> Result<()> {
    if !ranks.are_several() {
        return Ok(());
    }
    let hosts = ranks.gather(ranks.host())?;
    options.device = options.device.of_rank(ranks.local_rank(&hosts))?;
    let device = pollster::block_on(choose_device(&options.device))?;
    let all = ranks.gather(format!("{} at {}", device.title(), hosts[ranks.rank()]))?;
    note!("{} ranks: {}", ranks.n(), device_list(&all));
    Ok(())
}

/// Returns the number that `--device` takes for a rank's device, as [`assign_devices`] chose it; `None` for the best device.
///
/// # Errors
/// Those of [`choose_device`].
pub fn device_number(options: &DeviceOptions) -> Result<Option<String>> {
    match options.device {
        DeviceChoice::LocalRank(_) | DeviceChoice::Index(_) => {
            Ok(Some(pollster::block_on(choose_device(&options.device))?.index.to_string()))
        }
        _ => Ok(None),
    }
}

/// Checks that every rank sees the output folder of rank 0, which has made it.
///
/// # Errors
/// [`Error::Ranks`] naming the first rank that does not; [`Error::File`].
pub fn check_shared_folder(out: &Path, ranks: Ranks) -> Result<()> {
    if !ranks.are_several() {
        return Ok(());
    }
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    let nonce = ranks.broadcast(format!("{time} {}", std::process::id()))?;
    let file = out.join(SEEN);
    if ranks.is_first() {
        write_text(&file, &nonce)?;
    }
    // Rank 0 has written the file before the others look.
    ranks.barrier();
    let sees = || {
        // A network file system asks its server again when a folder is listed.
        let _ = fs::read_dir(out).map(Iterator::count);
        fs::read_to_string(&file).is_ok_and(|text| text == nonce)
    };
    let n_looks = VISIBLE_WITHIN.as_millis() / LOOK_EVERY.as_millis();
    let is_seen = (0..n_looks).any(|look| {
        if look > 0 {
            std::thread::sleep(LOOK_EVERY);
        }
        sees()
    });
    let all = ranks.gather((is_seen, ranks.host()))?;
    if ranks.is_first() {
        let _ = fs::remove_file(&file);
    }
    match all.iter().position(|(is_seen, _)| !is_seen) {
        None => Ok(()),
        Some(rank) => {
            let (host, out) = (&all[rank].1, out.display());
            Err(Error::Ranks(format!(
                "rank {rank} at {host} does not see rank 0's folder {out}: all ranks need the same --output-dir, on a file system that they share"
            )))
        }
    }
}

/// Watch of several ranks over an interruption: where one rank is stopped, all are. Dropping it ends the watch.
pub struct SharedStop {
    file: PathBuf,
    ranks: Ranks,
    has_ended: Arc<AtomicBool>,
    watch: Option<JoinHandle<()>>,
}

impl SharedStop {
    /// Begins to watch: `stop` is set when it is set on another rank. `out` is a folder that all ranks see.
    pub fn watch(out: &Path, stop: &'static AtomicBool, ranks: Ranks) -> Self {
        let (file, has_ended) = (out.join(STOPPED), Arc::new(AtomicBool::new(false)));
        let mut shared = Self { file, ranks, has_ended, watch: None };
        if !ranks.are_several() {
            return shared;
        }
        if ranks.is_first() {
            let _ = fs::remove_file(&shared.file);
        }
        ranks.barrier();
        let (file, has_ended) = (shared.file.clone(), shared.has_ended.clone());
        let watch = move || {
            while !has_ended.load(Ordering::Relaxed) {
                if stop.load(Ordering::Relaxed) {
                    let _ = write_text(&file, "");
                    return;
                }
                if file.exists() {
                    stop.store(true, Ordering::Relaxed);
                    note!("another rank was interrupted: ending after what is under way, which is kept");
                    return;
                }
                std::thread::park_timeout(LOOK_EVERY);
            }
        };
        shared.watch = std::thread::Builder::new().name("shared stop".into()).spawn(watch).ok();
        shared
    }
}

impl Drop for SharedStop {
    fn drop(&mut self) {
        self.has_ended.store(true, Ordering::Relaxed);
        if let Some(watch) = self.watch.take() {
            watch.thread().unpark();
            let _ = watch.join();
        }
        if self.ranks.is_first() && self.ranks.are_several() {
            let _ = fs::remove_file(&self.file);
        }
    }
}

/// Lines of a rank that works on its own: they begin with the rank, and are shown, until this value is dropped.
pub struct LabelledLines {
    /// Label and level before.
    before: (String, log::LevelFilter),
}

impl LabelledLines {
    /// Begins each line of this rank with its number and the stage that it does; without a stage, lines keep the label that they have. A single rank's lines
    /// stay as they are.
    pub fn of(ranks: Ranks, stage: Option<&str>) -> Option<Self> {
        if !ranks.are_several() {
            return None;
        }
        let before = (line_label(), log::max_level());
        match stage {
            Some(stage) => set_line_label(format!("rank {}, {stage}: ", ranks.rank())),
            None if before.0.is_empty() => set_line_label(format!("rank {}: ", ranks.rank())),
            None => {}
        }
        show_progress();
        log::set_max_level(before.1.max(log::LevelFilter::Info));
        Some(Self { before })
    }
}

impl Drop for LabelledLines {
    fn drop(&mut self) {
        set_line_label(std::mem::take(&mut self.before.0));
        log::set_max_level(self.before.1);
    }
}

/// Lists the ranks' devices; neighbours with the same one stand together.
fn device_list(devices: &[String]) -> String {
    let mut list = Vec::new();
    let mut first = 0;
    for same in devices.chunk_by(|a, b| a == b) {
        let last = first + same.len() - 1;
        let ranks = if last > first { format!("ranks {first}-{last}") } else { format!("rank {first}") };
        list.push(format!("{ranks} on {}", same[0]));
        first = last + 1;
    }
    list.join(", ")
}

/// Tells whether the devices of all ranks are of one kind, with the same driver and kernels, and so compute the same bits.
///
/// # Errors
/// Those of [`Ranks::gather`].
pub(super) fn are_alike(caps: &Caps, ranks: Ranks) -> Result<bool> {
    let own = format!("{} {} {} {:?}", caps.name, caps.backend, caps.driver, caps.variants);
    let all = ranks.gather(own)?;
    let alike = all.iter().all(|device| *device == all[0]);
    if !alike {
        note!(
            "note: devices differ: rank 0 sends its parameters to the others after each step, and the slowest device sets the pace"
        );
    }
    Ok(alike)
}

/// Checks that every rank has the same settings, data and model. `contents` has names and hashes of what is not a setting.
///
/// # Errors
/// [`Error::Ranks`] naming the first that differs.
pub(super) fn check_same_run(settings: &TrainSettings, contents: &[(&str, &str)], ranks: Ranks) -> Result<()> {
    if !ranks.are_several() {
        return Ok(());
    }
    let mut named = Vec::new();
    flatten("", &serde_json::to_value(settings).map_err(|e| Error::file("settings", e))?, &mut named);
    let own = (named, contents.iter().map(|(name, hash)| (name.to_string(), hash.to_string())).collect());
    difference(&ranks.gather(own)?).map_or(Ok(()), |reason| Err(Error::Ranks(reason)))
}

/// Checks that every rank has the same contents: each has the words for another one, such as "other test prompts", and its value or hash.
///
/// # Errors
/// [`Error::Ranks`] naming the first that differs.
pub fn check_same_contents(contents: &[(&str, &str)], ranks: Ranks) -> Result<()> {
    let own = contents.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let all: Vec<FlatSettings> = ranks.gather(own)?;
    let all: Vec<(FlatSettings, FlatSettings)> = all.into_iter().map(|contents| (Vec::new(), contents)).collect();
    difference(&all).map_or(Ok(()), |reason| Err(Error::Ranks(reason)))
}

/// Settings by name, without nesting; or contents by name.
type FlatSettings = Vec<(String, String)>;

fn flatten(name: &str, value: &Value, into: &mut FlatSettings) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| flatten(name, value, into)),
        value => into.push((name.to_string(), value.to_string())),
    }
}

/// Returns a setting's value. Some settings are left out where they have their defaults.
fn value_of<'a>(settings: &'a FlatSettings, name: &str) -> &'a str {
    settings.iter().find(|(known, _)| known == name).map_or("default", |(_, value)| value)
}

/// Names the first setting, or else content, in which a rank differs from rank 0.
fn difference(ranks: &[(FlatSettings, FlatSettings)]) -> Option<String> {
    let (settings, contents) = ranks.first()?;
    let same = "all ranks need the same flags, data and model";
    for (rank, (others, _)) in ranks.iter().enumerate() {
        let mut names = settings.iter().chain(others).map(|(name, _)| name);
        if let Some(name) = names.find(|name| value_of(settings, name) != value_of(others, name)) {
            let [own, other] = [settings, others].map(|all| value_of(all, name));
            let name = name.replace('_', "-");
            return Some(format!("rank {rank} has --{name} {other}, and rank 0 has --{name} {own}: {same}"));
        }
    }
    for (rank, (_, others)) in ranks.iter().enumerate() {
        if let Some(((name, _), _)) = contents.iter().zip(others).find(|(own, other)| own != other) {
            return Some(format!("rank {rank} has {name} than rank 0: {same}"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(pairs: &[(&str, &str)]) -> FlatSettings {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn the_first_difference_is_named() {
        let rank =
            |rate: &str, data: &str| (named(&[("seed", "0"), ("learning_rate", rate)]), named(&[("other data", data)]));
        let of = |ranks: &[(FlatSettings, FlatSettings)]| difference(ranks).unwrap_or_default();
        assert_eq!(of(&[rank("0.1", "a"), rank("0.1", "a")]), "");
        let said = of(&[rank("0.1", "a"), rank("0.1", "b"), rank("0.2", "a")]);
        assert!(said.starts_with("rank 2 has --learning-rate 0.2, and rank 0 has --learning-rate 0.1"), "{said}");
        let short = (named(&[("seed", "0")]), named(&[("other data", "a")]));
        for (ranks, said) in [([rank("1", "a"), short.clone()], "default"), ([short, rank("2", "a")], "2")] {
            let found = of(&ranks);
            assert!(found.starts_with(&format!("rank 1 has --learning-rate {said}, and")), "{found}");
        }
        let said = of(&[rank("0.1", "a"), rank("0.1", "b")]);
        assert!(said.starts_with("rank 1 has other data than rank 0"), "{said}");
    }

    #[test]
    fn neighbours_with_one_device_stand_together() {
        let all = ["A at x", "A at x", "B at y"].map(String::from);
        assert_eq!(device_list(&all), "ranks 0-1 on A at x, rank 2 on B at y");
    }
}
