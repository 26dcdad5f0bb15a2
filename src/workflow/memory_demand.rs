//! Plans of the memory that a run takes, and whether it fits a device.

use std::rc::Rc;

use super::open_model::OpenModel;
use super::open_reference::OpenReference;
use super::recipe::{Recipe, Recompute};
use crate::data::batch::Example;
use crate::error::{Error, Result};
use crate::gpu::{Caps, Gpu, Ledger, PlannedWork};
use crate::model::decoder::Decoder;
use crate::model::load::{LoadOptions, LoraSpec, TrainMode};
use crate::model::peft::Adapter;
use crate::model::saved::RecomputePolicy;
use crate::model::weights::{BaseDtype, ParamDtype, TrainOptions};
use crate::ranks::{Ranks, ReduceDtype};
use crate::train::memory_plan::{MemoryPlan, largest_micro_batch, plan_memory};
use crate::train::outcome::RowReference;
use crate::train::settings::{ReferenceChoice, TrainSettings};
use crate::train::trainer::{StepUpdate, Trainer};

/// Fraction of the device's memory that a run may plan for. The rest is the driver's and other programs'.
const MEMORY_SHARE: f64 = 0.9;
/// Fraction of the free memory that a run may plan for.
const FREE_SHARE: f64 = 0.95;

/// Returns the bytes that a run may take of a device's memory; `None` where the memory is unknown.
pub fn memory_for(caps: &Caps) -> Option<u64> {
    let part = |bytes: u64, share: f64| (bytes as f64 * share) as u64;
    let of_all = part(caps.memory_bytes?, MEMORY_SHARE);
    Some(caps.free_memory_bytes.map_or(of_all, |free| of_all.min(part(free, FREE_SHARE))))
}

/// Tells whether a run's peak memory is at most [`memory_for`]; `None` where the device's memory is unknown.
pub fn fits(caps: &Caps, takes: &Ledger) -> Option<bool> {
    memory_for(caps).map(|most| takes.peak_bytes() <= most)
}

/// Resolves `--recompute`. Returns the activations to keep, with the memory plan.
pub fn choose_keep(
    recompute: Recompute,
    caps: &Caps,
    plan: &dyn Fn(RecomputePolicy) -> Result<MemoryPlan>,
) -> Result<(RecomputePolicy, MemoryPlan)> {
    let keep = match recompute {
        Recompute::None => RecomputePolicy::Everything,
        Recompute::Elementwise => RecomputePolicy::Products,
        Recompute::Linear => RecomputePolicy::InputsAndAttention,
        Recompute::Block => RecomputePolicy::Inputs,
        Recompute::Auto => {
            let [more @ .., _] = RecomputePolicy::TRAINING;
            for keep in more {
                let found = plan(keep)?;
                if fits(caps, &found.ledger) != Some(false) {
                    return Ok((keep, found));
                }
            }
            RecomputePolicy::Inputs
        }
    };
    Ok((keep, plan(keep)?))
}

/// Weights that stay on the device beside a trained adapter, because the reference has them.
#[derive(Debug, Clone)]
pub enum KeptReference {
    /// None: the reference is the model without its adapter, another model, or not needed.
    Nothing,
    /// The adapter that the run starts from.
    StartingAdapter,
    /// The base's tensors that the adapter replaces.
    ReplacedTensors,
    /// Another adapter on the policy's model.
    OtherAdapter(Rc<Adapter>),
}

/// Loads the policy of a run, with what it keeps for its reference.
pub(super) fn load_policy(
    model: &OpenModel,
    gpu: &Gpu,
    options: &LoadOptions,
    kept: &KeptReference,
) -> Result<Decoder> {
    let mut decoder = model.load(gpu, options)?;
    let reference = LoadOptions::frozen(options.base, None, options.n_positions);
    match kept {
        KeptReference::Nothing => {}
        KeptReference::StartingAdapter => decoder.keep_start(gpu),
        KeptReference::ReplacedTensors => {
            decoder.keep_reference(gpu, &model.weight_source(), &reference)?;
        }
        KeptReference::OtherAdapter(adapter) => {
            let reference = LoadOptions { lora: Some(adapter.lora.clone()), ..reference };
            decoder.keep_reference(gpu, &model.weight_source(), &reference)?;
        }
    }
    Ok(decoder)
}

/// Returns the options with which a decoder is built for training.
pub fn load_options(
    settings: &TrainSettings,
    base: BaseDtype,
    adapter: Option<&Adapter>,
    n_positions: usize,
) -> LoadOptions {
    LoadOptions {
        trained: if adapter.is_some() { TrainMode::Lora } else { TrainMode::Full },
        lora: adapter.map(|a| LoraSpec { dropout: settings.lora_dropout, ..a.lora.clone() }),
        training: TrainOptions {
            optim: Some(settings.optim),
            param_dtype: settings.param_dtype,
            saved_dtype: settings.saved_dtype,
            decay_all: settings.decay_all,
        },
        n_positions,
        base,
    }
}

/// Facts of a run that decide how much memory it takes.
#[derive(Clone)]
pub struct MemoryDemand<'a> {
    /// Device, or what a device is assumed to have.
    pub caps: &'a Caps,
    /// Model that is trained.
    pub model: &'a OpenModel,
    /// Adapter that is trained. `None`: every parameter is.
    pub adapter: Option<Rc<Adapter>>,
    /// Settings of the run.
    pub settings: TrainSettings,
    /// Data type of linear weights that are not trained.
    pub base: BaseDtype,
    /// Activations that the backward pass recomputes.
    pub recompute: Recompute,
    /// Weights that stay on the device for the reference.
    pub kept: KeptReference,
    /// Positions of the longest row.
    pub longest: usize,
    /// The rows of the largest micro-batch.
    pub largest: Vec<Example>,
}

impl<'a> MemoryDemand<'a> {
    /// Describes a run whose largest micro-batch and longest sequence are known.
    ///
    /// # Errors
    /// [`crate::Error::Flag`] for a recipe that contradicts itself.
    pub fn new(
        caps: &'a Caps,
        model: &'a OpenModel,
        adapter: Option<Rc<Adapter>>,
        recipe: &Recipe,
        largest: Vec<Example>,
        longest: usize,
    ) -> Result<Self> {
        let settings = recipe.settings()?;
        if settings.lora_dropout > 0.0 && adapter.is_none() {
            return Err(Error::flag("lora-dropout", "needs an adapter, and every parameter is trained"));
        }
        if settings.param_dtype == ParamDtype::Bf16 && adapter.as_ref().is_some_and(|a| a.lora.tokens.is_some()) {
            return Err(Error::flag("param-dtype", "bf16 cannot be used with --train-tokens, whose rows are f32"));
        }
        let other = OpenReference::local_adapter(&recipe.reference, model)?;
        let kept = kept_reference(&recipe.reference, &settings, adapter.as_deref(), other.as_ref());
        let (base, recompute) = (model.base, recipe.recompute);
        Ok(Self { caps, model, adapter, settings, base, recompute, kept, longest, largest })
    }
}

/// Returns what is kept beside a trained adapter: the adapter that a run starts from, where it is the reference and differs from the model without an adapter;
/// tensors of the base, where the base is the reference and the adapter replaces them; `other`, where it is an adapter.
pub(super) fn kept_reference(
    reference: &ReferenceChoice,
    settings: &TrainSettings,
    adapter: Option<&Adapter>,
    other: Option<&OpenReference>,
) -> KeptReference {
    let needs_reference = settings.preference.as_ref().is_some_and(|p| p.needs_reference());
    let Some(lora) = adapter.map(|adapter| &adapter.lora).filter(|_| needs_reference) else {
        return KeptReference::Nothing;
    };
    let has_rows = lora.tokens.as_ref().is_some_and(|tokens| tokens.rows.is_some());
    let is_new = !has_rows && lora.modules.values().all(|(_, b)| b.iter().all(|&x| x == 0.0));
    if let Some(OpenReference::Adapter(other)) = other {
        return KeptReference::OtherAdapter(other.clone());
    }
    match reference {
        // Tensors that are trained whole have no base beside them.
        ReferenceChoice::Initial if !lora.whole.is_empty() || !is_new => KeptReference::StartingAdapter,
        ReferenceChoice::Base if !lora.whole.is_empty() => KeptReference::ReplacedTensors,
        ReferenceChoice::Initial | ReferenceChoice::Base | ReferenceChoice::Model(_) => KeptReference::Nothing,
    }
}

impl MemoryDemand<'_> {
    /// Runs the largest micro-batch on a device that only counts memory, with the activations of `keep` saved.
    ///
    /// # Errors
    /// Those of [`plan_memory`].
    pub fn plan(&self, keep: RecomputePolicy) -> Result<MemoryPlan> {
        let rows: Vec<&Example> = self.largest.iter().collect();
        let rows = largest_micro_batch(&rows, self.settings.batch_size, self.settings.sharing(&self.model.description));
        let options = load_options(&self.settings, self.base, self.adapter.as_deref(), self.longest);
        let goal = self.settings.goal();
        let load = |gpu: &_| load_policy(self.model, gpu, &options, &self.kept);
        plan_memory(self.caps, load, &goal, &rows, self.settings.share_prefix, keep)
    }

    /// Records an optimiser step of the largest micro-batches on a device that only counts, and returns its work by entry point.
    ///
    /// # Errors
    /// Those of loading the model.
    pub fn step_work(&self, keep: RecomputePolicy) -> Result<PlannedWork> {
        let gpu = Gpu::plan(self.caps.clone());
        let options = load_options(&self.settings, self.base, self.adapter.as_deref(), self.longest);
        let decoder = load_policy(self.model, &gpu, &options, &self.kept)?;
        let (goal, share_prefix) = (self.settings.goal(), self.settings.share_prefix);
        let rows: Vec<&Example> = self.largest.iter().collect();
        let rows = largest_micro_batch(&rows, self.settings.batch_size, self.settings.sharing(&self.model.description));
        let examples: Vec<&Example> =
            (0..self.settings.gradient_accumulation_steps).flat_map(|_| rows.clone()).collect();
        let references = vec![RowReference::default(); examples.len()];
        let trainer = Trainer { gpu: &gpu, decoder, goal, share_prefix, keep, seed: self.settings.seed };
        let (optimiser, learning_rate) = (&self.settings.optimiser, self.settings.learning_rate);
        let update =
            StepUpdate { optimiser, learning_rate, number: 1, ranks: Ranks::alone(), reduce_dtype: ReduceDtype::F32 };
        Ok(trainer.record(examples, references, rows.len(), &update).planned_work())
    }

    /// Resolves `--recompute`. Returns the activations to keep, with the memory plan.
    ///
    /// # Errors
    /// Those of [`plan_memory`].
    pub fn chosen(&self) -> Result<(RecomputePolicy, MemoryPlan)> {
        choose_keep(self.recompute, self.caps, &|keep| self.plan(keep))
    }
}

/// Writes the memory that a device has, such as `6,000 MiB, 5,200 of them free`.
pub fn memory_text(caps: &Caps) -> String {
    let all = caps.memory_bytes.map_or("unknown memory".into(), |bytes| format!("{} MiB", bytes >> 20));
    match caps.free_memory_bytes {
        Some(free) => format!("{all}, {} of them free", free >> 20),
        None => all,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Role;
    use crate::train::memory_plan::{MicroCost, ModelSize};

    /// A run that takes 80 MiB with everything kept, 60 with products, 40 with inputs and attention, 20 with inputs.
    fn example_plan(keep: RecomputePolicy) -> Result<MemoryPlan> {
        let gpu = Gpu::plan(Caps::baseline());
        let mib = match keep {
            RecomputePolicy::Everything => 80,
            RecomputePolicy::Products => 60,
            RecomputePolicy::InputsAndAttention => 40,
            RecomputePolicy::Inputs | RecomputePolicy::Nothing => 20,
        };
        let _held = gpu.alloc_persistent(Role::Activations, mib << 18);
        let cost = MicroCost { tokens: 1, dispatches: 1, flops: 1 };
        let model = ModelSize { parameters: 1, active: 1 };
        Ok(MemoryPlan { ledger: gpu.ledger(), cost, trained: 1, model })
    }

    #[test]
    fn layers_run_again_where_memory_is_short() {
        let keep = |recompute: Option<Recompute>, mib: Option<u64>| {
            let recompute = recompute.unwrap_or(Recompute::Auto);
            let memory_bytes = mib.map(|mib| mib << 20);
            choose_keep(recompute, &Caps { memory_bytes, ..Caps::baseline() }, &example_plan).map(|k| k.0).ok()
        };
        assert_eq!(keep(None, None), Some(RecomputePolicy::Everything));
        assert_eq!(keep(None, Some(100)), Some(RecomputePolicy::Everything));
        assert_eq!(keep(None, Some(85)), Some(RecomputePolicy::Products), "a tenth is left to others");
        assert_eq!(keep(None, Some(65)), Some(RecomputePolicy::InputsAndAttention));
        assert_eq!(keep(None, Some(43)), Some(RecomputePolicy::Inputs));
        assert_eq!(keep(Some(Recompute::None), Some(85)), Some(RecomputePolicy::Everything));
        assert_eq!(keep(Some(Recompute::Block), None), Some(RecomputePolicy::Inputs));
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
}
