//! Memory plan of a run, from its largest micro-batch on a device that only counts.

use super::outcome::known;
use crate::data::batch::{Example, PrefixSharing};
use crate::error::{Error, Result};
use crate::gpu::{Caps, Gpu, Ledger};
use crate::kernels::packed_batch::PackedBatch;
use crate::model::decoder::Decoder;
use crate::model::description::ModelConfig;
use crate::model::saved::RecomputePolicy;
use crate::model::scores::MicroBatch;
use crate::objective::TrainingLoss;

/// Cost of a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MicroCost {
    /// Packed tokens.
    pub tokens: usize,
    /// Kernel launches.
    pub dispatches: usize,
    /// Floating-point operations.
    pub flops: u64,
}

/// Returns the examples of the largest micro-batch of `batch_size` examples.
pub fn largest_micro_batch<'e>(
    examples: &[&'e Example],
    batch_size: usize,
    sharing: PrefixSharing,
) -> Vec<&'e Example> {
    let mut largest = examples.to_vec();
    largest.sort_by_key(|e| std::cmp::Reverse(e.n_tokens(sharing)));
    largest.truncate(batch_size);
    largest
}

/// Records the forward and backward pass of a micro-batch without running it. The activations that it needed stay in the pool. Called first
/// with the largest micro-batch, it makes the pool large enough for every later one; on a planning device, the ledger then is the memory
/// plan.
pub fn reserve(
    gpu: &Gpu,
    decoder: &Decoder,
    goal: &TrainingLoss,
    examples: &[&Example],
    share_prefix: bool,
    keep: RecomputePolicy,
) -> MicroCost {
    let batch = PackedBatch::pack(examples, PrefixSharing::new(share_prefix, &decoder.description));
    let micro = MicroBatch::for_training(gpu, decoder, &batch, 0);
    let mut rec = gpu.record();
    gpu.while_reserving(|| {
        let scores = decoder.score(&mut rec, &micro, true, keep, goal.is_weighted());
        decoder.score_backward(&mut rec, &micro, scores, goal, &known(goal, examples, &[], examples));
    });
    MicroCost { tokens: batch.ids.len(), dispatches: rec.dispatches(), flops: rec.flops() }
}

/// Memory plan: cost of a run on a device.
#[derive(Debug, Clone)]
pub struct MemoryPlan {
    /// Bytes by role of buffer.
    pub ledger: Ledger,
    /// Cost of the largest micro-batch.
    pub cost: MicroCost,
    /// Number of trained parameters.
    pub trained: usize,
    /// Size of the model.
    pub model: ModelSize,
}

/// Number of a model's parameters, an adapter's not included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelSize {
    /// All parameters.
    pub parameters: usize,
    /// Parameters that a token passes: fewer in a mixture of experts.
    pub active: usize,
}

impl ModelSize {
    /// Counts a model's parameters.
    pub fn new(d: &ModelConfig) -> Self {
        Self { parameters: d.parameters(), active: d.active_parameters() }
    }

    /// Returns the size in words that follow a number of trained parameters; empty for a model without experts.
    pub fn of_experts(self) -> String {
        let Self { parameters, active } = self;
        if active < parameters { format!(" of a model of {parameters} ({active} per token)") } else { String::new() }
    }
}

/// Plans the memory of a run, from its largest micro-batch on a device that only counts.
///
/// # Errors
/// Errors of `load`; [`Error::Flag`] where an activation does not fit a binding.
pub fn plan_memory(
    caps: &Caps,
    load: impl FnOnce(&Gpu) -> Result<Decoder>,
    goal: &TrainingLoss,
    examples: &[&Example],
    share_prefix: bool,
    keep: RecomputePolicy,
) -> Result<MemoryPlan> {
    let gpu = Gpu::plan(caps.clone());
    let decoder = load(&gpu)?;
    let cost = reserve(&gpu, &decoder, goal, examples, share_prefix, keep);
    let trained = decoder.trained_weights().iter().map(|w| w.rows * w.cols).sum();
    let (largest, most) = (gpu.ledger().largest_activation(), caps.max_binding_bytes);
    if largest > most {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let reason = format!(
            "a micro-batch of {} tokens has an activation of {} MiB, and a binding of this device holds {} MiB: take fewer rows \
             with more --gradient-accumulation-steps, or a smaller --max-length",
            cost.tokens,
            mib(largest),
            mib(most)
        );
        return Err(Error::flag("batch-size", reason));
    }
    Ok(MemoryPlan { ledger: gpu.ledger(), cost, trained, model: ModelSize::new(&decoder.description) })
}
