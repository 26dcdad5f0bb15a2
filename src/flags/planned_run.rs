//! Plans of a training run's memory, from its flags.

use std::rc::Rc;

use super::{DeviceArgs, LimitsArg, TrainArgs};
use crate::data::batch::{Example, Sequence};
use crate::data::rows::DatasetType;
use crate::error::{Error, Result};
use crate::gpu::{Caps, Gpu, PlannedWork};
use crate::model::saved::RecomputePolicy;
use crate::model::weights::BaseDtype;
use crate::train::memory_plan::MemoryPlan;
use crate::train::settings::TrainSettings;
use crate::workflow::Preferences;
use crate::workflow::fitting_changes::FittingChange;
use crate::workflow::memory_demand::{MemoryDemand, fits};

/// Most tokens of a micro-batch that is planned without data: no device has the memory for more.
const MOST_TOKENS: usize = 1 << 24;

/// Returns the capabilities to plan for: those of named limits, of the device that would be used, or, without a device, WebGPU's guaranteed limits.
///
/// # Errors
/// [`Error::Flag`] for flags that contradict each other; errors of opening a device that was named.
pub fn planned_caps(args: &DeviceArgs, limits: Option<LimitsArg>) -> Result<Caps> {
    match limits {
        Some(LimitsArg::Baseline) => {
            let others = [("--device", &args.device), ("--variant", &args.variant)];
            if let Some((other, _)) = others.iter().find(|(_, value)| value.is_some()) {
                return Err(Error::flag("limits", format!("baseline opens no device: it cannot be used with {other}")));
            }
            Caps::baseline().with_precision(args.options()?.matmul_precision.unwrap_or_default())
        }
        None => match args.options().and_then(|options| Gpu::open_untested(&options)) {
            Ok(gpu) => Ok(gpu.caps().clone()),
            Err(error) if args.device.is_some() || matches!(error, Error::Flag { .. }) => Err(error),
            Err(error) => {
                note!("note: {error}: planned within WebGPU's guaranteed limits, as by --limits baseline");
                Ok(Caps::baseline())
            }
        },
    }
}

/// Training run whose memory was planned.
pub struct PlannedRun {
    /// Data type of linear weights that are not trained.
    pub base_dtype: BaseDtype,
    /// Whether every parameter is trained.
    pub is_full: bool,
    /// Settings of the run.
    pub settings: TrainSettings,
    /// Choice of `--recompute` that is planned.
    pub recompute: &'static str,
    /// Bytes per role, and the peak.
    pub memory_plan: MemoryPlan,
    /// Work of a step by entry point.
    pub step_work: PlannedWork,
    /// Peak bytes per choice of `--recompute`.
    pub peaks: Vec<(&'static str, u64)>,
    /// Changes of settings that would make the run fit the device, where it does not fit.
    pub changes: Vec<FittingChange>,
}

/// Plans a run's memory by its largest micro-batch, made of the given data, or of the longest rows allowed where no data is given.
pub fn plan_run(args: &TrainArgs, sft: bool, caps: &Caps) -> Result<PlannedRun> {
    let recipe = args.recipe(sft)?;
    let settings = recipe.settings()?;
    let options = args.data.options(DatasetType::for_loss(settings.preference.as_ref()))?;
    if args.data.data.is_empty() {
        // Configuration and headers of tensors are enough.
        let (model, adapter) = args.model_and_starting_adapter()?;
        let longest = options.limits(&model.description)?.max_length;
        let examples = longest_rows(&settings, longest, sft)?;
        return planned(&MemoryDemand::new(caps, &model, adapter.map(Rc::new), &recipe, examples, longest)?);
    }
    let policy = args.policy(None)?;
    let data = Preferences::read_with(&args.data.data, &policy, &options)?;
    planned(&policy.memory_demand(caps, &data, None, &recipe)?)
}

/// Plans a run's memory, and looks for what would make it fit.
fn planned(demand: &MemoryDemand<'_>) -> Result<PlannedRun> {
    let (keep, memory_plan) = demand.chosen()?;
    let peaks = RecomputePolicy::TRAINING.map(|keep| Ok((keep.recompute(), demand.plan(keep)?.ledger.peak_bytes())));
    let peaks = peaks.into_iter().collect::<Result<Vec<(&str, u64)>>>()?;
    let changes = match fits(demand.caps, &memory_plan.ledger) {
        Some(false) => demand.fitting_changes()?,
        _ => Vec::new(),
    };
    Ok(PlannedRun {
        base_dtype: demand.base,
        is_full: demand.adapter.is_none(),
        settings: demand.settings.clone(),
        recompute: keep.recompute(),
        step_work: demand.step_work(keep)?,
        memory_plan,
        peaks,
        changes,
    })
}

/// Makes a micro-batch of the longest rows allowed.
fn longest_rows(settings: &TrainSettings, max_length: usize, sft: bool) -> Result<Vec<Example>> {
    let side = || Sequence::new(vec![0; max_length], max_length / 2);
    let example = |row| {
        let mut rejected = side();
        rejected.ids[0] = 1;
        let sides = if sft { vec![side()] } else { vec![side(), rejected] };
        Example { row, sequences: sides, desirable: None }
    };
    let tokens = settings.batch_size.saturating_mul(max_length).saturating_mul(if sft { 1 } else { 2 });
    if tokens > MOST_TOKENS {
        let reason = format!("{} rows of --max-length {max_length} are {tokens} tokens", settings.batch_size);
        return Err(Error::flag("batch-size", reason));
    }
    Ok((0..settings.batch_size).map(example).collect())
}

/// Returns the peak bytes of the run that takes the most, each with rows of the longest length allowed. `runs` are flags, each with whether the run is
/// supervised.
///
/// # Errors
/// Those of the folders; [`Error::Flag`] for settings that contradict each other.
pub fn peak_bytes<'a>(model: &str, runs: impl Iterator<Item = (&'a TrainArgs, bool)>) -> Result<u64> {
    let mut most = 0;
    for (args, sft) in runs {
        let mut args = args.clone();
        args.model.model = Some(model.into());
        args.data.data.clear();
        let caps = planned_caps(&args.model.device, None)?;
        most = most.max(plan_run(&args, sft, &caps)?.memory_plan.ledger.peak_bytes());
    }
    Ok(most)
}
