//! Flags of `sft`, `train` and `plan`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::values::{
    parse_lr_scheduler_type, parse_optim, parse_param_dtype, parse_reduce_dtype, parse_saved_dtype, parse_size,
};
use super::{DataArgs, DeviceLostArg, DtypeArg, LoraArgs, ModelArgs, ObjectiveArgs};
use crate::error::{Error, Result};
use crate::kernels::moments::Optim;
use crate::model::peft::{Adapter, new_config};
use crate::model::saved::SavedDtype;
use crate::model::weights::ParamDtype;
use crate::ranks::ReduceDtype;
use crate::train::lr_schedule::LrSchedulerType;
use crate::train::settings::{MOST_STEPS, TrainDefaults};
use crate::train::trainer::AdamwConfig;
use crate::validate::at_least_one;
use crate::workflow::fitting_changes::MemorySetting;
use crate::workflow::{OpenModel, Policy, PolicyOptions, Recipe, Recompute, refuse_quantised};

/// Flags of `sft` and `train`.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct TrainArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub objective: ObjectiveArgs,
    /// Rows for evaluation
    #[arg(long, value_name = "FILE")]
    pub eval_data: Option<PathBuf>,
    /// Train every parameter instead of an adapter
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraArgs,
    /// Highest learning rate [default: 5e-5; --full: 1e-6, sft --full: 2e-5]
    #[arg(long, allow_hyphen_values = true)]
    pub learning_rate: Option<f64>,
    /// Learning-rate schedule, as in transformers: linear, cosine, cosine_with_restarts, polynomial, inverse_sqrt, constant or constant_with_warmup [default:
    /// cosine]
    #[arg(long, value_parser = parse_lr_scheduler_type)]
    pub lr_scheduler_type: Option<LrSchedulerType>,
    /// Cycles of cosine_with_restarts, each of which falls to 0 [default: 1]
    #[arg(long, value_name = "N")]
    pub lr_num_cycles: Option<usize>,
    /// Warm-up steps, from 0 to the highest learning rate; a number below 1 is a fraction of all steps, as in transformers 5
    #[arg(long, value_name = "STEPS|PART", allow_hyphen_values = true)]
    pub warmup_steps: Option<f64>,
    /// Warm-up as a fraction of all steps [default: 0]
    #[arg(long, allow_hyphen_values = true)]
    pub warmup_ratio: Option<f64>,
    /// Stop after this many steps
    #[arg(long)]
    pub max_steps: Option<usize>,
    /// Passes over the data [default: 1]
    #[arg(long, allow_hyphen_values = true)]
    pub num_train_epochs: Option<f64>,
    /// Rows (pairs) per micro-batch [default: 8]
    #[arg(long, alias = "per-device-train-batch-size")]
    pub batch_size: Option<usize>,
    /// Micro-batches per step [default: 1]
    #[arg(long)]
    pub gradient_accumulation_steps: Option<usize>,
    /// Data type in which several ranks exchange gradients: f32, or bf16 (half the bytes, rounded) [default: f32]
    #[arg(long, value_name = "DTYPE", value_parser = parse_reduce_dtype)]
    pub reduce_dtype: Option<ReduceDtype>,
    /// Optimiser: adamw, or adamw8bit (moments of linear layers in 8 bits instead of 32) [default: adamw]
    #[arg(long, value_parser = parse_optim)]
    pub optim: Option<Optim>,
    /// Data type of trained matrices: f32, or bf16 with stochastic rounding of updates [default: f32]
    #[arg(long, value_name = "DTYPE", value_parser = parse_param_dtype)]
    pub param_dtype: Option<ParamDtype>,
    /// β1 of AdamW: decay rate of the first moment [default: 0.9]
    #[arg(long, allow_hyphen_values = true)]
    pub adam_beta1: Option<f64>,
    /// β2 of AdamW: decay rate of the second moment [default: 0.999]
    #[arg(long, allow_hyphen_values = true)]
    pub adam_beta2: Option<f64>,
    /// ε of AdamW, added to the denominator of the update [default: 1e-8]
    #[arg(long, allow_hyphen_values = true)]
    pub adam_epsilon: Option<f64>,
    /// Decoupled weight decay of AdamW, not applied to one-dimensional tensors [default: 0]
    #[arg(long, allow_hyphen_values = true)]
    pub weight_decay: Option<f64>,
    /// Apply weight decay to one-dimensional tensors too
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub decay_all: bool,
    /// Clip gradients to this global norm; 0 does not clip [default: 1]
    #[arg(long, allow_hyphen_values = true)]
    pub max_grad_norm: Option<f64>,
    /// Random seed for the order of rows, a new adapter, stochastic rounding and dropout [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Keep the rows in the file's order
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_shuffle: bool,
    /// Compute a prompt that both sides share once per side
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_share_prefix: bool,
    /// Activations that are recomputed in the backward pass instead of saved: less memory, bit-identical results [default: auto]
    #[arg(long, value_enum)]
    pub recompute: Option<RecomputeArg>,
    /// If the run does not fit the device's memory, make the cheapest change that fits: fewer rows at once, fewer bits, shorter rows
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub auto_fit: bool,
    /// Data type of activations saved for backward: f32, or bf16 (less memory, gradients within 1 %) [default: f32]
    #[arg(long, value_name = "DTYPE", value_parser = parse_saved_dtype)]
    pub saved_dtype: Option<SavedDtype>,
    /// Steps between log lines where there is no terminal [default: 1]
    #[arg(long)]
    pub logging_steps: Option<usize>,
    /// Steps between checkpoints [default: 500]
    #[arg(long)]
    pub save_steps: Option<usize>,
    /// Number of checkpoints that are kept [default: 2]
    #[arg(long)]
    pub save_total_limit: Option<usize>,
    /// Steps between evaluations [default: at the end]
    #[arg(long)]
    pub eval_steps: Option<usize>,
    /// Folder for the result, metrics, checkpoints and report.html
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Data type of the saved weights [default: the input's; adapters f32]
    #[arg(long, value_enum)]
    pub output_dtype: Option<DtypeArg>,
    /// Continue from the last checkpoint in the output folder
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub resume: bool,
    /// Reaction to a lost device (a watchdog, a driver's crash, sleep) [default: resume]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_device_lost: Option<DeviceLostArg>,
    /// Print the device time per kernel at the end (slower; needs timestamp queries)
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub profile: bool,
    /// Read settings from a TOML file; flags override them
    #[arg(long, value_name = "FILE.toml")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Print the results as JSON on standard output
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub json: bool,
}

/// Values of `--recompute`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecomputeArg {
    /// The first of none, elementwise, linear and block that fits the device's memory
    Auto,
    /// Nothing: all activations are saved
    None,
    /// Norms and activation functions, one pass over memory each
    Elementwise,
    /// Linear layers, too: each layer's input and the results of attention are saved
    Linear,
    /// Whole layers: only each layer's input is saved
    Block,
}

/// Flags of `plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub train: TrainArgs,
    /// Plan the memory of `sft` instead of `train`
    #[arg(long)]
    pub sft: bool,
    /// Device limits to plan for, whatever this machine has [default: those of the device that would be used]
    #[arg(long, value_enum)]
    pub limits: Option<LimitsArg>,
    /// Plan for this GPU instead, and estimate a step's time from its data sheet: rx-7900-xtx, arc-a770 or rtx-4090
    #[arg(long, value_name = "GPU", conflicts_with_all = ["limits", "device", "variant"])]
    pub estimate: Option<String>,
    /// Device memory to plan for, such as 8GiB, 6.5GB or 8192MiB [default: what the device says]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, allow_hyphen_values = true)]
    pub device_memory: Option<u64>,
}

/// Values of `--limits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LimitsArg {
    /// WebGPU's guaranteed minimum: no device is opened
    Baseline,
}

impl From<RecomputeArg> for Recompute {
    fn from(recompute: RecomputeArg) -> Self {
        match recompute {
            RecomputeArg::Auto => Self::Auto,
            RecomputeArg::None => Self::None,
            RecomputeArg::Elementwise => Self::Elementwise,
            RecomputeArg::Linear => Self::Linear,
            RecomputeArg::Block => Self::Block,
        }
    }
}

impl TrainArgs {
    /// Resolves the recipe of the run, with every default filled in.
    ///
    /// # Errors
    /// [`Error::Flag`] for a value out of range, or flags that contradict each other.
    pub fn recipe(&self, sft: bool) -> Result<Recipe> {
        self.data.check_last_turn_only(sft)?;
        self.data.bad_rows()?;
        if self.full {
            refuse_quantised(self.model.base_dtype.unwrap_or_default(), "--full")?;
            self.lora.refuse_with_full()?;
        }
        let base = if sft { Recipe::sft() } else { Recipe::default() };
        let base = if self.full { base.full() } else { base };
        let o = TrainDefaults::OPTIMISER;
        let (warmup_steps, warmup_part) = self.warmup()?;
        let lr_scheduler_type = self.lr_scheduler_type.unwrap_or(base.lr_scheduler_type);
        if self.lr_num_cycles.is_some() && lr_scheduler_type != LrSchedulerType::CosineWithRestarts {
            return Err(Error::flag("lr-num-cycles", "needs --lr-scheduler-type cosine_with_restarts"));
        }
        let sft_loss = self.objective.sft_loss(sft)?;
        let p = if sft { base.preference() } else { Some(self.objective.preference()?) }.unwrap_or_default();
        let recipe = Recipe {
            sft_loss,
            objective: p.objective,
            loss: p.loss,
            beta: p.beta,
            label_smoothing: p.label_smoothing,
            simpo_gamma: p.simpo_gamma,
            rpo_tau: p.rpo_tau,
            discopop_tau: p.discopop_tau,
            dpop_lambda: p.dpop_lambda,
            cpo_alpha: p.cpo_alpha,
            ld_alpha: p.ld_alpha,
            wpo: p.wpo,
            f_divergence: p.f_divergence,
            desirable_weight: p.desirable_weight,
            undesirable_weight: p.undesirable_weight,
            reference_free: p.reference_free,
            reference: self.objective.reference(),
            learning_rate: self.learning_rate.unwrap_or(base.learning_rate),
            lr_scheduler_type,
            lr_num_cycles: self.lr_num_cycles.unwrap_or(base.lr_num_cycles),
            warmup_steps,
            warmup_ratio: warmup_part.unwrap_or(base.warmup_ratio),
            num_train_epochs: self.num_train_epochs.unwrap_or(base.num_train_epochs),
            max_steps: self.max_steps,
            batch_size: self.batch_size.unwrap_or(base.batch_size),
            gradient_accumulation_steps: self.gradient_accumulation_steps.unwrap_or(base.gradient_accumulation_steps),
            reduce_dtype: self.reduce_dtype.unwrap_or(base.reduce_dtype),
            optim: self.optim.unwrap_or(base.optim),
            param_dtype: self.param_dtype.unwrap_or(base.param_dtype),
            saved_dtype: self.saved_dtype.unwrap_or(base.saved_dtype),
            optimiser: AdamwConfig {
                adam_beta1: self.adam_beta1.unwrap_or(o.adam_beta1),
                adam_beta2: self.adam_beta2.unwrap_or(o.adam_beta2),
                adam_epsilon: self.adam_epsilon.unwrap_or(o.adam_epsilon),
                weight_decay: self.weight_decay.unwrap_or(o.weight_decay),
                max_grad_norm: self.max_grad_norm.unwrap_or(o.max_grad_norm),
            },
            decay_all: self.decay_all,
            seed: self.seed.unwrap_or(base.seed),
            shuffle: !self.no_shuffle,
            share_prefix: !self.no_share_prefix,
            lora_dropout: self.lora.lora_dropout.unwrap_or(base.lora_dropout),
            recompute: self.recompute.map_or(Recompute::Auto, Recompute::from),
            ..base
        };
        recipe.settings()?;
        at_least_one("logging-steps", self.logging_steps.unwrap_or(TrainDefaults::LOGGING_STEPS))?;
        at_least_one("save-steps", self.save_steps.unwrap_or(TrainDefaults::SAVE_STEPS))?;
        at_least_one("save-total-limit", self.save_total_limit.unwrap_or(TrainDefaults::SAVE_TOTAL_LIMIT))?;
        at_least_one("eval-steps", self.eval_steps.unwrap_or(1))?;
        Ok(recipe)
    }

    /// Returns the warm-up in steps, or as a fraction of all steps. A `--warmup-steps` below 1 is a fraction, as in transformers 5.
    fn warmup(&self) -> Result<(Option<usize>, Option<f64>)> {
        let wrong = |reason: String| Err(Error::flag("warmup-steps", reason));
        match (self.warmup_steps, self.warmup_ratio) {
            (Some(steps), _)
                if steps == 0.0 || (steps >= 1.0 && steps.fract() == 0.0 && steps <= MOST_STEPS as f64) =>
            {
                Ok((Some(steps as usize), self.warmup_ratio))
            }
            (Some(part), None) if 0.0 < part && part < 1.0 => Ok((None, Some(part))),
            (Some(part), Some(_)) if 0.0 < part && part < 1.0 => {
                wrong(format!("{part} is a part of all steps, which --warmup-ratio gives too"))
            }
            (Some(other), _) => wrong(format!("{other} is neither a number of steps nor a part of all steps below 1")),
            (None, part) => Ok((None, part)),
        }
    }

    /// Opens the policy: the model with the adapter to go on from, with a new one, or with none (`--full`). `chat_time` is what a resumed run has kept.
    ///
    /// # Errors
    /// Those of the folders; [`Error::Flag`] for an adapter with `--full`.
    pub fn policy(&self, chat_time: Option<u64>) -> Result<Policy> {
        let (model, existing) = self.model_and_adapter()?;
        model.side_files(existing.as_ref()).check_copied()?;
        let options = self.data.policy_options(model.base);
        let options = PolicyOptions { chat_time: chat_time.or(options.chat_time), ..options };
        let is_new = !self.full && existing.is_none();
        let policy = Policy::from_model(model, existing, options)?;
        if !is_new {
            return Ok(policy);
        }
        let lora = self.lora.config_with(policy.tokenizer())?;
        policy.with_lora(lora)
    }

    /// Opens the model, and the adapter to go on from. Checks a new adapter's configuration. No tokenizer is read.
    fn model_and_adapter(&self) -> Result<(OpenModel, Option<Adapter>)> {
        let model = self.model.open()?;
        let existing = self.model.adapter.as_deref().map(|place| model.open_adapter(place)).transpose()?;
        match (&existing, self.full) {
            (Some(_), true) => return Err(Error::flag("full", "trains the model itself: merge --adapter first")),
            (None, false) => drop(new_config(&model.description, &self.lora.config()?, &model.name)?),
            (Some(adapter), false) => self.lora.check_existing(&model, adapter)?,
            (None, true) => {}
        }
        Ok((model, existing))
    }

    /// Opens the model, and the adapter that training starts from: that of `--adapter`, a new one, or none (`--full`). No tokenizer is read.
    ///
    /// # Errors
    /// Those of [`Self::policy`].
    pub fn model_and_starting_adapter(&self) -> Result<(OpenModel, Option<Adapter>)> {
        let (model, existing) = self.model_and_adapter()?;
        let is_new = !self.full && existing.is_none();
        let seed = self.seed.unwrap_or(0);
        let lora = match self.lora.train_tokens.is_empty() {
            true => self.lora.config()?,
            false => self.lora.config_with(&model.tokenizer(existing.as_ref())?)?,
        };
        let new = is_new.then(|| Adapter::new(&model.description, &lora, &model.name, seed)).transpose()?;
        Ok((model, existing.or(new)))
    }

    /// Applies changes that make the run fit the device's memory.
    pub fn apply(&mut self, settings: &[MemorySetting]) {
        for &setting in settings {
            match setting {
                MemorySetting::RecomputeBlock => self.recompute = Some(RecomputeArg::Block),
                MemorySetting::BatchSize { rows, micro_batches } => {
                    self.batch_size = Some(rows);
                    self.gradient_accumulation_steps = Some(micro_batches);
                }
                MemorySetting::SavedBf16 => self.saved_dtype = Some(SavedDtype::Bf16),
                MemorySetting::Adamw8bit => self.optim = Some(Optim::Adamw8bit),
                MemorySetting::Base(base) => self.model.base_dtype = Some(base),
                MemorySetting::MaxLength(length) => self.data.max_length = Some(length),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights::BaseDtype;

    #[test]
    fn changes_that_make_a_run_fit_are_applied() {
        let mut args = TrainArgs::default();
        args.apply(&[
            MemorySetting::RecomputeBlock,
            MemorySetting::BatchSize { rows: 2, micro_batches: 4 },
            MemorySetting::Base(BaseDtype::Nf4),
            MemorySetting::MaxLength(512),
        ]);
        assert_eq!(args.recompute, Some(RecomputeArg::Block));
        assert_eq!((args.batch_size, args.gradient_accumulation_steps), (Some(2), Some(4)));
        assert_eq!((args.model.base_dtype, args.data.max_length), (Some(BaseDtype::Nf4), Some(512)));
    }
}
