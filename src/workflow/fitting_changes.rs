//! Changes of settings that make a run fit a device's memory.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::memory_demand::{MemoryDemand, fits, memory_for};
use super::recipe::Recompute;
use crate::data::batch::Sequence;
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::gpu::Caps;
use crate::kernels::moments::Optim;
use crate::model::saved::SavedDtype;
use crate::model::weights::BaseDtype;

/// File of the settings that `--auto-fit` changed in a run, beside its metrics.
pub const AUTO_FIT: &str = "auto_fit.json";

/// The shortest `--max-length` that is advised.
const SHORTEST: usize = 64;

/// Another value of a setting that memory depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemorySetting {
    /// `--recompute block`: costs time; results are bit-identical.
    RecomputeBlock,
    /// Fewer rows per micro-batch, and as many more micro-batches per step.
    BatchSize {
        /// Rows per micro-batch.
        rows: usize,
        /// Micro-batches per step.
        micro_batches: usize,
    },
    /// `--saved-dtype bf16`: saved activations in bf16.
    SavedBf16,
    /// `--optim adamw8bit`: AdamW's moments in 8 bits.
    Adamw8bit,
    /// `--base-dtype`: a smaller data type of linear weights that are not trained.
    Base(BaseDtype),
    /// `--max-length`: longer rows become bad ones, or are cut.
    MaxLength(usize),
}

impl MemorySetting {
    /// Writes the setting as flags.
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

    /// Tells whether `self` and `other` are values of one setting.
    fn replaces(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

/// Settings to change, with the memory that the run then takes at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FittingChange {
    /// Settings with their new values.
    pub settings: Vec<MemorySetting>,
    /// Device memory that the run then takes at most, in bytes.
    pub peak_bytes: u64,
}

impl FittingChange {
    /// Writes the changed settings as flags.
    pub fn flags(&self) -> String {
        self.settings.iter().map(|setting| setting.flags()).collect::<Vec<_>>().join(" ")
    }
}

impl MemoryDemand<'_> {
    fn with(&self, settings: &[MemorySetting]) -> Self {
        let mut changed = self.clone();
        for &setting in settings {
            match setting {
                MemorySetting::RecomputeBlock => changed.recompute = Recompute::Block,
                MemorySetting::BatchSize { rows, micro_batches } => {
                    changed.settings.batch_size = rows;
                    changed.settings.gradient_accumulation_steps = micro_batches;
                }
                MemorySetting::SavedBf16 => changed.settings.saved_dtype = SavedDtype::Bf16,
                MemorySetting::Adamw8bit => changed.settings.optim = Optim::Adamw8bit,
                MemorySetting::Base(base) => changed.base = base,
                MemorySetting::MaxLength(length) => {
                    changed.longest = length;
                    changed.largest.iter_mut().flat_map(|row| &mut row.sequences).for_each(|side| cut(side, length));
                }
            }
        }
        changed
    }

    /// Lists changes of single settings, the cheapest first: those that cost time alone, then precision, then rows.
    fn candidates(&self) -> Vec<MemorySetting> {
        let s = &self.settings;
        let mut all = Vec::new();
        if matches!(self.recompute, Recompute::None | Recompute::Elementwise | Recompute::Linear) {
            all.push(MemorySetting::RecomputeBlock);
        }
        let smaller = (1..s.batch_size).rev().filter(|rows| s.batch_size.is_multiple_of(*rows));
        all.extend(smaller.map(|rows| MemorySetting::BatchSize {
            rows,
            micro_batches: s.gradient_accumulation_steps * (s.batch_size / rows),
        }));
        if s.optim == Optim::Adamw {
            all.push(MemorySetting::Adamw8bit);
        }
        if s.saved_dtype == SavedDtype::F32 && self.model.description.saves_in_bf16() {
            all.push(MemorySetting::SavedBf16);
        }
        if self.adapter.is_some() {
            let smaller = [BaseDtype::Int8, BaseDtype::Nf4].into_iter();
            let begin = match self.base {
                BaseDtype::Nf4 => 2,
                BaseDtype::Int8 => 1,
                _ => 0,
            };
            all.extend(smaller.skip(begin).map(MemorySetting::Base));
        }
        let halves = std::iter::successors(Some(self.longest / 2), |length| Some(length / 2));
        all.extend(halves.take_while(|&length| length >= SHORTEST).take(3).map(MemorySetting::MaxLength));
        all
    }

    /// Finds changes that make the run fit, the cheapest first. Each change alone is enough. Where no single setting is enough, returns one change of several
    /// settings; where no known setting helps, returns none.
    ///
    /// # Errors
    /// Those of [`MemoryDemand::plan`].
    pub fn fitting_changes(&self) -> Result<Vec<FittingChange>> {
        let try_out = |settings: &[MemorySetting]| -> Result<Option<FittingChange>> {
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
            // One value per setting: the first that fits, which changes the least.
            let is_known = |found: &FittingChange| found.settings[0].replaces(*setting);
            if !alone.iter().any(is_known) {
                alone.extend(try_out(&[*setting])?);
            }
        }
        if !alone.is_empty() {
            return Ok(alone);
        }
        let mut together: Vec<MemorySetting> = Vec::new();
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

/// Cuts a row to its first tokens, because any row of that length takes as much memory.
fn cut(side: &mut Sequence, length: usize) {
    if side.ids.len() > length {
        side.ids.truncate(length);
        *side = Sequence::new(std::mem::take(&mut side.ids), side.response_start.min(length - 1));
    }
}

/// Lists changes with the memory that the run then takes, or says that there is none.
fn listed(changes: &[FittingChange], full: bool) -> std::result::Result<String, &'static str> {
    let one = |change: &FittingChange| format!("{} ({} MiB)", change.flags(), change.peak_bytes >> 20);
    match (changes, full) {
        ([], true) => Err("no setting that is known makes it fit with --full: leave it out, for LoRA"),
        ([], false) => Err("no setting that is known makes it fit: take a smaller model"),
        (changes, _) => Ok(changes.iter().map(one).collect::<Vec<_>>().join(", or ")),
    }
}

/// Says which changes would make a run fit.
pub fn advice(changes: &[FittingChange], full: bool) -> String {
    match listed(changes, full) {
        Ok(changes) => format!("it fits with {changes}; --auto-fit takes the first that does"),
        Err(none) => none.into(),
    }
}

/// Says which changes take less memory than a run to which the device refused memory, even if the run should have fit.
///
/// # Errors
/// Those of [`MemoryDemand::plan`].
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

/// Reads the settings that `--auto-fit` changed when the run in a folder began.
///
/// # Errors
/// [`Error::File`] for a file that this program did not write.
pub fn read_auto_fit(out: &Path) -> Result<Option<Vec<MemorySetting>>> {
    let path = out.join(AUTO_FIT);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file(&path, error)),
    };
    serde_json::from_str(&text).map(Some).map_err(|error| Error::file(&path, error))
}

/// Saves the settings that `--auto-fit` changed. A resumed run uses them, whatever memory is free then.
///
/// # Errors
/// [`Error::File`].
pub fn write_auto_fit(out: &Path, settings: &[MemorySetting]) -> Result<()> {
    let path = out.join(AUTO_FIT);
    write_atomic(&path, |file| serde_json::to_writer(file, settings).map_err(|error| Error::file(&path, error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_as_they_are_typed() {
        let settings = [
            MemorySetting::RecomputeBlock,
            MemorySetting::BatchSize { rows: 2, micro_batches: 4 },
            MemorySetting::Base(BaseDtype::Nf4),
            MemorySetting::MaxLength(512),
        ];
        let change = FittingChange { settings: settings.to_vec(), peak_bytes: 5 << 20 };
        let told = "--recompute block --batch-size 2 --gradient-accumulation-steps 4 --base-dtype nf4 --max-length 512";
        assert_eq!(change.flags(), told);
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
