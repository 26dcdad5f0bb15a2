//! Whether a run fits a device's memory, and which other settings would make it fit.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::args::{RecomputeArg, TrainArgs};
use super::load::{load, load_options};
use super::session::Model;
use crate::data::batch::{Example, Sequence};
use crate::error::{Error, Result};
use crate::files::write_whole;
use crate::gpu::{Caps, Ledger};
use crate::kernels::moments::Optim;
use crate::model::peft::Adapter;
use crate::model::trace::{Keep, SavedDtype};
use crate::model::weights::BaseDtype;
use crate::objective::Goal;
use crate::train::settings::TrainSettings;
use crate::train::trainer::{Rehearsal, largest_micro_batch, rehearse};

/// Part of the device's memory that a run may plan for; the rest is the driver's and other programs'.
const MEMORY_SHARE: f64 = 0.9;
/// Part that a run may plan for of what other programs have left of the memory.
const FREE_SHARE: f64 = 0.95;

/// File that keeps what `--auto-fit` changed in a run, beside its metrics.
pub const AUTO_FIT: &str = "auto_fit.json";

/// The shortest `--max-length` that is advised.
const SHORTEST: usize = 64;

/// Returns what a run may take of a device's memory, in bytes, where that is known.
pub fn memory_for(caps: &Caps) -> Option<u64> {
    let part = |bytes: u64, share: f64| (bytes as f64 * share) as u64;
    let of_all = part(caps.memory_bytes?, MEMORY_SHARE);
    Some(caps.free_memory_bytes.map_or(of_all, |free| of_all.min(part(free, FREE_SHARE))))
}

/// Tells whether what a run takes is no more than it may, where that is known.
pub fn fits(caps: &Caps, takes: &Ledger) -> Option<bool> {
    memory_for(caps).map(|most| takes.peak_bytes() <= most)
}

/// `--recompute` resolved, with what the run will then take.
pub fn choose_keep(
    recompute: Option<RecomputeArg>,
    caps: &Caps,
    rehearse: &dyn Fn(Keep) -> Result<Rehearsal>,
) -> Result<(Keep, Rehearsal)> {
    let keep = match recompute.unwrap_or(RecomputeArg::Auto) {
        RecomputeArg::None => Keep::Everything,
        RecomputeArg::Elementwise => Keep::Products,
        RecomputeArg::Block => Keep::Inputs,
        RecomputeArg::Auto => {
            for keep in [Keep::Everything, Keep::Products] {
                let found = rehearse(keep)?;
                if fits(caps, &found.ledger) != Some(false) {
                    return Ok((keep, found));
                }
            }
            Keep::Inputs
        }
    };
    Ok((keep, rehearse(keep)?))
}

/// Another value of a setting that memory depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// `--recompute block`: time, and the same bits.
    RecomputeBlock,
    /// Fewer rows a micro-batch, and as many more micro-batches a step.
    BatchSize { rows: usize, micro_batches: usize },
    /// `--saved-dtype bf16`.
    SavedBf16,
    /// `--optim adamw8bit`.
    Adamw8bit,
    /// `--base-dtype`.
    Base(BaseDtype),
    /// `--max-length`: longer rows become bad ones, or are cut.
    MaxLength(usize),
}

impl Setting {
    /// Gives it as one would type it.
    fn flags(self) -> String {
        match self {
            Self::RecomputeBlock => "--recompute block".into(),
            Self::BatchSize { rows, micro_batches } => {
                format!("--batch-size {rows} --gradient-accumulation-steps {micro_batches}")
            }
            Self::SavedBf16 => "--saved-dtype bf16".into(),
            Self::Adamw8bit => "--optim adamw8bit".into(),
            Self::Base(base) => format!("--base-dtype {}", base.name()),
            Self::MaxLength(length) => format!("--max-length {length}"),
        }
    }

    fn apply(self, args: &mut TrainArgs) {
        match self {
            Self::RecomputeBlock => args.recompute = Some(RecomputeArg::Block),
            Self::BatchSize { rows, micro_batches } => {
                args.batch_size = Some(rows);
                args.gradient_accumulation_steps = Some(micro_batches);
            }
            Self::SavedBf16 => args.saved_dtype = Some(SavedDtype::Bf16),
            Self::Adamw8bit => args.optim = Some(Optim::Adamw8bit),
            Self::Base(base) => args.model.base_dtype = Some(base),
            Self::MaxLength(length) => args.data.max_length = Some(length),
        }
    }

    /// Tells whether it is another value of the same setting.
    fn replaces(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

/// Settings to change, and what the run then takes at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FittingChange {
    pub settings: Vec<Setting>,
    pub peak_bytes: u64,
}

impl FittingChange {
    /// Gives them as one would type them.
    pub fn flags(&self) -> String {
        self.settings.iter().map(|setting| setting.flags()).collect::<Vec<_>>().join(" ")
    }
}

/// A run, as far as its memory goes.
#[derive(Clone)]
pub struct MemoryDemand<'a> {
    pub caps: &'a Caps,
    pub model: &'a Model,
    pub adapter: Option<&'a Adapter>,
    pub settings: TrainSettings,
    pub base: BaseDtype,
    pub recompute: Option<RecomputeArg>,
    pub keeps_start: bool,
    /// Positions of the longest row.
    pub longest: usize,
    /// The rows of the largest micro-batch.
    pub largest: Vec<Example>,
}

impl MemoryDemand<'_> {
    /// Runs the largest micro-batch on a device that only counts, keeping what is told.
    ///
    /// # Errors
    /// As [`rehearse`]'s.
    pub fn rehearse(&self, keep: Keep) -> Result<Rehearsal> {
        let rows: Vec<&Example> = self.largest.iter().collect();
        let rows = largest_micro_batch(&rows, self.settings.batch_size, self.settings.share_prefix);
        let options = load_options(&self.settings, self.base, self.adapter, self.longest);
        let goal = self.settings.preference.map_or(Goal::Sft, Goal::Preference);
        let load = |gpu: &_| load(self.model, gpu, &options, self.keeps_start);
        rehearse(self.caps, load, &goal, &rows, self.settings.share_prefix, keep)
    }

    /// Resolves `--recompute`, and says what the run then takes.
    ///
    /// # Errors
    /// As [`rehearse`]'s.
    pub fn chosen(&self) -> Result<(Keep, Rehearsal)> {
        choose_keep(self.recompute, self.caps, &|keep| self.rehearse(keep))
    }

    fn with(&self, settings: &[Setting]) -> Self {
        let mut changed = self.clone();
        for &setting in settings {
            match setting {
                Setting::RecomputeBlock => changed.recompute = Some(RecomputeArg::Block),
                Setting::BatchSize { rows, micro_batches } => {
                    changed.settings.batch_size = rows;
                    changed.settings.gradient_accumulation_steps = micro_batches;
                }
                Setting::SavedBf16 => changed.settings.saved_dtype = SavedDtype::Bf16,
                Setting::Adamw8bit => changed.settings.optim = Optim::Adamw8bit,
                Setting::Base(base) => changed.base = base,
                Setting::MaxLength(length) => {
                    changed.longest = length;
                    changed.largest.iter_mut().flat_map(|row| &mut row.sequences).for_each(|side| cut(side, length));
                }
            }
        }
        changed
    }

    /// Gives other values of settings, the cheapest change first: what costs time alone, then precision, then rows.
    fn candidates(&self) -> Vec<Setting> {
        let s = &self.settings;
        let mut all = Vec::new();
        if matches!(self.recompute, Some(RecomputeArg::None | RecomputeArg::Elementwise)) {
            all.push(Setting::RecomputeBlock);
        }
        let smaller = (1..s.batch_size).rev().filter(|rows| s.batch_size.is_multiple_of(*rows));
        all.extend(smaller.map(|rows| Setting::BatchSize {
            rows,
            micro_batches: s.gradient_accumulation_steps * (s.batch_size / rows),
        }));
        if s.optim == Optim::Adamw {
            all.push(Setting::Adamw8bit);
        }
        if s.saved_dtype == SavedDtype::F32 {
            all.push(Setting::SavedBf16);
        }
        if self.adapter.is_some() {
            let smaller = [BaseDtype::Int8, BaseDtype::Nf4].into_iter();
            let begin = match self.base {
                BaseDtype::Nf4 => 2,
                BaseDtype::Int8 => 1,
                _ => 0,
            };
            all.extend(smaller.skip(begin).map(Setting::Base));
        }
        let halves = std::iter::successors(Some(self.longest / 2), |length| Some(length / 2));
        all.extend(halves.take_while(|&length| length >= SHORTEST).take(3).map(Setting::MaxLength));
        all
    }

    /// Finds changes that make the run fit, the cheapest first: each alone does, or, where none does alone, all of one together. Empty where
    /// nothing that is known does.
    ///
    /// # Errors
    /// As [`rehearse`]'s.
    pub fn fitting_changes(&self) -> Result<Vec<FittingChange>> {
        let try_out = |settings: &[Setting]| -> Result<Option<FittingChange>> {
            let ledger = match self.with(settings).chosen() {
                Ok((_, rehearsal)) => rehearsal.ledger,
                // An activation that is too large for a binding.
                Err(Error::Flag { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            let fits = fits(self.caps, &ledger) != Some(false);
            Ok(fits.then(|| FittingChange { settings: settings.to_vec(), peak_bytes: ledger.peak_bytes() }))
        };
        let candidates = self.candidates();
        let mut alone = Vec::new();
        for setting in &candidates {
            // Of one setting's values, the one that changes the least.
            let is_known = |found: &FittingChange| found.settings[0].replaces(*setting);
            if !alone.iter().any(is_known) {
                alone.extend(try_out(&[*setting])?);
            }
        }
        if !alone.is_empty() {
            return Ok(alone);
        }
        let mut together: Vec<Setting> = Vec::new();
        for setting in candidates {
            together.retain(|other| !setting.replaces(*other));
            together.push(setting);
            if let Some(found) = try_out(&together)? {
                return Ok(vec![found]);
            }
        }
        Ok(Vec::new())
    }
}

/// Keeps a row's first tokens: a row of that length takes as much memory.
fn cut(side: &mut Sequence, length: usize) {
    if side.ids.len() > length {
        side.ids.truncate(length);
        *side = Sequence::new(std::mem::take(&mut side.ids), side.response_start.min(length - 1));
    }
}

/// Says what a device has, in words: `6,000 MiB, 5,200 of them free`.
pub fn memory_text(caps: &Caps) -> String {
    let all = caps.memory_bytes.map_or("unknown memory".into(), |bytes| format!("{} MiB", bytes >> 20));
    match caps.free_memory_bytes {
        Some(free) => format!("{all}, {} of them free", free >> 20),
        None => all,
    }
}

/// Lists changes with what the run then takes, or says that there is none.
fn listed(changes: &[FittingChange], full: bool) -> std::result::Result<String, &'static str> {
    let one = |change: &FittingChange| format!("{} ({} MiB)", change.flags(), change.peak_bytes >> 20);
    match (changes, full) {
        ([], true) => Err("no setting that is known makes it fit with --full: leave it out, for LoRA"),
        ([], false) => Err("no setting that is known makes it fit: take a smaller model"),
        (changes, _) => Ok(changes.iter().map(one).collect::<Vec<_>>().join(", or ")),
    }
}

/// Says what would make a run fit.
pub fn advice(changes: &[FittingChange], full: bool) -> String {
    match listed(changes, full) {
        Ok(changes) => format!("it fits with {changes}; --auto-fit takes the first that does"),
        Err(none) => none.into(),
    }
}

/// Says what takes less than a run to which the device refused memory, whatever it told of that before.
///
/// # Errors
/// As [`rehearse`]'s.
pub fn advice_after_refusal(demand: &MemoryDemand) -> Result<String> {
    let takes = demand.chosen()?.1.ledger.peak_bytes();
    let most = memory_for(demand.caps).map_or(takes, |most| most.min(takes));
    let caps = Caps { memory_bytes: Some(most), free_memory_bytes: None, ..demand.caps.clone() };
    let changes = MemoryDemand { caps: &caps, ..demand.clone() }.fitting_changes()?;
    Ok(match listed(&changes, demand.adapter.is_none()) {
        Ok(changes) => format!("the run takes {} MiB, and less with {changes}", takes >> 20),
        Err(none) => none.into(),
    })
}

/// Applies changes to a run's arguments.
pub fn apply(settings: &[Setting], args: &mut TrainArgs) {
    settings.iter().for_each(|setting| setting.apply(args));
}

/// Reads what `--auto-fit` changed when the run in a folder began.
///
/// # Errors
/// [`Error::File`] for a file that is none of ours.
pub fn read_auto_fit(out: &Path) -> Result<Option<Vec<Setting>>> {
    let path = out.join(AUTO_FIT);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file(&path, error)),
    };
    serde_json::from_str(&text).map(Some).map_err(|error| Error::file(&path, error))
}

/// Keeps what `--auto-fit` changed: a resumed run goes on with it, whatever is free then.
///
/// # Errors
/// [`Error::File`].
pub fn write_auto_fit(out: &Path, settings: &[Setting]) -> Result<()> {
    let path = out.join(AUTO_FIT);
    write_whole(&path, |file| serde_json::to_writer(file, settings).map_err(|error| Error::file(&path, error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Gpu, Role};
    use crate::train::trainer::MicroCost;

    /// A run that takes 80 MiB with everything kept, 60 with products, 20 with inputs.
    fn rehearse(keep: Keep) -> Result<Rehearsal> {
        let gpu = Gpu::plan(Caps::baseline());
        let mib = match keep {
            Keep::Everything => 80,
            Keep::Products => 60,
            Keep::Inputs | Keep::Nothing => 20,
        };
        let _held = gpu.lasting(Role::Activations, mib << 18);
        Ok(Rehearsal { ledger: gpu.ledger(), cost: MicroCost { tokens: 1, dispatches: 1, flops: 1 }, trained: 1 })
    }

    #[test]
    fn layers_run_again_where_memory_is_short() {
        let keep = |recompute, mib: Option<u64>| {
            let memory_bytes = mib.map(|mib| mib << 20);
            choose_keep(recompute, &Caps { memory_bytes, ..Caps::baseline() }, &rehearse).map(|k| k.0).ok()
        };
        assert_eq!(keep(None, None), Some(Keep::Everything));
        assert_eq!(keep(None, Some(100)), Some(Keep::Everything));
        assert_eq!(keep(None, Some(85)), Some(Keep::Products), "a tenth is left to others");
        assert_eq!(keep(None, Some(65)), Some(Keep::Inputs));
        assert_eq!(keep(Some(RecomputeArg::None), Some(85)), Some(Keep::Everything));
        assert_eq!(keep(Some(RecomputeArg::Block), None), Some(Keep::Inputs));
    }

    #[test]
    fn what_others_hold_is_no_runs() {
        let most =
            |memory_bytes, free_memory_bytes| memory_for(&Caps { memory_bytes, free_memory_bytes, ..Caps::baseline() });
        assert_eq!(most(None, None), None);
        assert_eq!(most(Some(1000), None), Some(900));
        assert_eq!(most(Some(1000), Some(1000)), Some(900));
        assert_eq!(most(Some(1000), Some(400)), Some(380));
    }

    #[test]
    fn changes_are_told_as_they_are_typed_and_applied() {
        let settings = [
            Setting::RecomputeBlock,
            Setting::BatchSize { rows: 2, micro_batches: 4 },
            Setting::Base(BaseDtype::Nf4),
            Setting::MaxLength(512),
        ];
        let change = FittingChange { settings: settings.to_vec(), peak_bytes: 5 << 20 };
        let told = "--recompute block --batch-size 2 --gradient-accumulation-steps 4 --base-dtype nf4 --max-length 512";
        assert_eq!(change.flags(), told);
        let mut args = TrainArgs::default();
        apply(&settings, &mut args);
        assert_eq!((args.batch_size, args.gradient_accumulation_steps), (Some(2), Some(4)));
        assert_eq!((args.model.base_dtype, args.data.max_length), (Some(BaseDtype::Nf4), Some(512)));
        assert!(advice(&[change], false).contains(&format!("{told} (5 MiB)")));
        assert!(advice(&[], true).contains("--full") && advice(&[], false).contains("smaller model"));

        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(read_auto_fit(dir.path()).expect("none"), None);
        write_auto_fit(dir.path(), &settings).expect("a file");
        assert_eq!(read_auto_fit(dir.path()).expect("ours"), Some(settings.to_vec()));
        std::fs::write(dir.path().join(AUTO_FIT), "[\"more\"]").expect("a file");
        assert!(read_auto_fit(dir.path()).unwrap_err().to_string().contains(AUTO_FIT));
    }
}
