//! `plan`: the memory of a run, from the same program on a device that only counts.

use std::collections::BTreeMap;

use serde_json::json;

use super::args::{DeviceArgs, LimitsArg, PlanArgs, TrainArgs, with_config};
use super::fit::{self, FittingChange, MemoryDemand};
use super::session::{self, Model};
use super::train;
use crate::cli::tokenised;
use crate::data::batch::{Example, Sequence};
use crate::error::{Error, Result};
use crate::gpu::{Caps, Ledger, MatmulPrecision};
use crate::model::trace::Keep;
use crate::train::settings::TrainSettings;
use crate::train::trainer::{Rehearsal, largest_micro_batch};

/// Of a micro-batch that is planned without data: no device has the memory for more.
const MOST_TOKENS: usize = 1 << 24;

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

/// What is planned for: limits by their name, or the device that would be used; where there is none, as if by `--limits baseline`.
fn device(args: &DeviceArgs, limits: Option<LimitsArg>) -> Result<Caps> {
    match limits {
        Some(LimitsArg::Baseline) => {
            let others = [("--device", &args.device), ("--variant", &args.variant)];
            if let Some((other, _)) = others.iter().find(|(_, value)| value.is_some()) {
                return Err(Error::flag("limits", format!("baseline opens no device: it cannot be used with {other}")));
            }
            let precision = args.matmul_precision.as_deref().map(MatmulPrecision::parse).transpose()?;
            Caps::baseline().with_precision(precision.unwrap_or(MatmulPrecision::Highest))
        }
        None => match session::open_unchecked(args) {
            Ok(gpu) => Ok(gpu.caps().clone()),
            Err(error) if args.device.is_some() || matches!(error, Error::Flag { .. }) => Err(error),
            Err(error) => {
                note!("note: {error}: planned within WebGPU's guaranteed limits, as by --limits baseline");
                Ok(Caps::baseline())
            }
        },
    }
}

/// Whether the run fits, in words.
fn verdict(caps: &Caps, ledger: &Ledger) -> String {
    let Some(most) = fit::memory_for(caps) else {
        return "whether it fits is unknown: the device does not say what memory it has (--device-memory SIZE does)"
            .into();
    };
    let fits = if fit::fits(caps, ledger) == Some(false) { "does not fit" } else { "fits" };
    let [takes, most] = [ledger.peak_bytes(), most].map(mib);
    format!("it {fits}: it takes {takes:.1} MiB, and may take {most:.1}; the device has {}", fit::memory_text(caps))
}

/// A run as it was rehearsed.
struct Planned {
    model: Model,
    settings: TrainSettings,
    recompute: &'static str,
    rehearsal: Rehearsal,
    /// Peak bytes by what may be computed again.
    peaks: Vec<(&'static str, u64)>,
    /// Changes that would make it fit, where it does not.
    changes: Vec<FittingChange>,
    is_full: bool,
}

/// Rehearses a run's largest micro-batch: of its data where they are given, of the longest rows allowed where they are not.
fn planned(args: &TrainArgs, sft: bool, caps: &Caps) -> Result<Planned> {
    let settings = train::settings(args, sft)?;
    let model = Model::of(&args.model)?;
    let adapter = train::adapter(args, &model, settings.seed)?;
    let (_, limits) = session::limits(&args.data, &model.description)?;
    let examples: Vec<Example> = if args.data.data.is_empty() {
        let side = || Sequence::new(vec![0; limits.max_length], limits.max_length / 2);
        let example = |row| {
            let mut rejected = side();
            rejected.ids[0] = 1;
            let sides = if sft { vec![side()] } else { vec![side(), rejected] };
            Example { row, sequences: sides, desirable: None }
        };
        let tokens = settings.batch_size.saturating_mul(limits.max_length).saturating_mul(if sft { 1 } else { 2 });
        if tokens > MOST_TOKENS {
            let reason =
                format!("{} rows of --max-length {} are {tokens} tokens", settings.batch_size, limits.max_length);
            return Err(Error::flag("batch-size", reason));
        }
        (0..settings.batch_size).map(example).collect()
    } else {
        let tokenizer = session::row_tokenizer(&args.data, &model, adapter.as_ref())?;
        let purpose = session::purpose(settings.preference.as_ref());
        let data = tokenised::dataset(&args.data, &args.data.data, &model, &tokenizer, purpose)?;
        let all: Vec<&Example> = data.examples.iter().collect();
        largest_micro_batch(&all, settings.batch_size, settings.share_prefix).into_iter().cloned().collect()
    };
    let longest = examples.iter().flat_map(|e| &e.sequences).map(|s| s.ids.len()).max().unwrap_or(1);
    let demand = MemoryDemand {
        caps,
        model: &model,
        adapter: adapter.as_ref(),
        base: model.base,
        recompute: args.recompute,
        keeps_start: train::keeps_start(args, &settings, adapter.as_ref()),
        longest,
        largest: examples,
        settings: settings.clone(),
    };
    let (keep, rehearsal) = demand.chosen()?;
    let peaks = Keep::TRAINING.map(|keep| Ok((keep.recompute(), demand.rehearse(keep)?.ledger.peak_bytes())));
    let peaks = peaks.into_iter().collect::<Result<Vec<(&str, u64)>>>()?;
    let changes = match fit::fits(caps, &rehearsal.ledger) {
        Some(false) => demand.fitting_changes()?,
        _ => Vec::new(),
    };
    let is_full = adapter.is_none();
    Ok(Planned { recompute: keep.recompute(), model, settings, rehearsal, peaks, changes, is_full })
}

/// Peak bytes of the run that takes the most, each with whether it is supervised; of a model and rows of the longest length allowed.
///
/// # Errors
/// As [`run`]'s.
pub fn peak<'a>(model: &str, runs: impl Iterator<Item = (&'a TrainArgs, bool)>) -> Result<u64> {
    let mut most = 0;
    for (args, sft) in runs {
        let mut args = args.clone();
        args.model.model = Some(model.into());
        args.data.data.clear();
        let caps = device(&args.model.device, None)?;
        most = most.max(planned(&args, sft, &caps)?.rehearsal.ledger.peak_bytes());
    }
    Ok(most)
}

/// `jointwise plan`.
pub fn run(args: PlanArgs) -> Result<()> {
    let PlanArgs { train: args, sft, limits, device_memory } = args;
    let config = args.config.clone();
    let args = with_config(args, config.as_deref(), "train")?;
    let mut caps = device(&args.model.device, limits)?;
    if device_memory.is_some() {
        (caps.memory_bytes, caps.free_memory_bytes) = (device_memory, None);
    }
    let mut found = planned(&args, sft, &caps)?;
    if let Some(first) = found.changes.first().filter(|_| args.auto_fit) {
        note!("note: --auto-fit: planned with {}", first.flags());
        let mut args = args.clone();
        fit::apply(&first.settings, &mut args);
        found = planned(&args, sft, &caps)?;
    }
    let Planned { model, settings, recompute, rehearsal, peaks, changes, is_full } = found;
    let Rehearsal { ledger, cost, trained } = rehearsal;
    if args.json {
        let roles: serde_json::Map<_, _> = ledger
            .peak_by_role()
            .into_iter()
            .filter_map(|(role, bytes)| Some((serde_json::to_value(role).ok()?.as_str()?.to_string(), json!(bytes))))
            .collect();
        say!(
            "{}",
            json!({
                "peak_bytes": ledger.peak_bytes(), "roles": roles, "trained_parameters": trained,
                "tokens": cost.tokens, "dispatches": cost.dispatches, "flops": cost.flops,
                "recompute": recompute, "peak_bytes_by_recompute": peaks.iter().copied().collect::<BTreeMap<_, _>>(),
                "base_dtype": model.base.name(), "optim": settings.optim.name(),
                "param_dtype": settings.param_dtype.name(), "saved_dtype": settings.saved_dtype.name(), "device": caps.name,
                "device_memory_bytes": caps.memory_bytes, "free_memory_bytes": caps.free_memory_bytes,
                "fits": fit::fits(&caps, &ledger), "would_fit_with": changes.iter().map(would_fit).collect::<Vec<_>>(),
            })
        )?;
        return Ok(());
    }
    say!("{} trained parameters; largest micro-batch {} tokens\n", trained, cost.tokens)?;
    for (role, bytes) in ledger.peak_by_role() {
        let name = serde_json::to_value(role).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default();
        say!("{name:<12} {:>10.1} MiB", mib(bytes))?;
    }
    say!("{:<12} {:>10.1} MiB", "peak", mib(ledger.peak_bytes()))?;
    if let Some(bytes) = caps.memory_bytes {
        let whose = if device_memory.is_some() { "--device-memory" } else { &caps.name };
        say!("{:<12} {:>10.1} MiB  ({whose})", "device", mib(bytes))?;
    }
    for (name, bytes) in &peaks {
        say!("{:<12} {:>10.1} MiB  with --recompute {name}", "peak", mib(*bytes))?;
    }
    let (base, optim, params) = (model.base.name(), settings.optim.name(), settings.param_dtype.name());
    let saved = settings.saved_dtype.name();
    say!("\n--recompute {recompute} --saved-dtype {saved} --base-dtype {base} --optim {optim} --param-dtype {params}")?;
    say!("a micro-batch: {} dispatches, {:.1} GFLOP", cost.dispatches, cost.flops as f64 / 1e9)?;
    say!("{}", verdict(&caps, &ledger))?;
    if fit::fits(&caps, &ledger) == Some(false) {
        say!("{}", fit::advice(&changes, is_full))?;
    }
    Ok(())
}

fn would_fit(change: &FittingChange) -> serde_json::Value {
    json!({"flags": change.flags(), "peak_bytes": change.peak_bytes})
}
