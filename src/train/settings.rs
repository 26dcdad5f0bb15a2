//! Settings of a training run with all defaults filled in, and the defaults.

use super::lr_schedule::{LrSchedule, LrSchedulerType, POLYNOMIAL_END};
use super::trainer::AdamwConfig;
use crate::data::batch::PrefixSharing;
use crate::error::{Error, Result};
use crate::kernels::moments::Optim;
use crate::model::description::ModelConfig;
use crate::model::saved::SavedDtype;
use crate::model::weights::ParamDtype;
use crate::objective::{PreferenceLoss, SftLoss, TrainingLoss};
use crate::ranks::ReduceDtype;
use crate::validate::{at_least_one, below_one, not_negative, positive};

/// Source of the reference scores.
///
/// # Examples
/// ```
/// use jointwise::{Recipe, ReferenceChoice};
/// let recipe = Recipe { reference: ReferenceChoice::Model("runs/sft".into()), ..Recipe::default() };
/// # assert!(recipe.settings().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReferenceChoice {
    /// The starting policy.
    Initial,
    /// The policy without its adapter.
    Base,
    /// Another model: a folder or a hub id.
    Model(String),
}

impl ReferenceChoice {
    /// Parses `initial`, `base`, or a folder or hub id.
    pub fn parse(text: &str) -> Self {
        match text {
            "initial" => Self::Initial,
            "base" => Self::Base,
            other => Self::Model(other.into()),
        }
    }
}

/// Length of a run and of its warm-up, in steps or epochs.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RunLength {
    /// Number of passes over the data.
    pub num_train_epochs: f64,
    /// Number of steps, which overrides `num_train_epochs`.
    pub max_steps: Option<usize>,
    /// Steps of warm-up, which override `warmup_ratio`.
    pub warmup_steps: Option<usize>,
    /// Warm-up as a fraction of all steps.
    pub warmup_ratio: f64,
}

fn one() -> usize {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_one(n: &usize) -> bool {
    *n == one()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// Settings of a training run in which nothing is left open.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TrainSettings {
    /// Preference loss; `None` for SFT.
    pub preference: Option<PreferenceLoss>,
    /// Loss of SFT.
    #[serde(default, skip_serializing_if = "SftLoss::is_nll")]
    pub sft_loss: SftLoss,
    /// Optimiser, which decides how the moments are stored.
    pub optim: Optim,
    /// Data type of trained matrices.
    pub param_dtype: ParamDtype,
    /// Data type of the activations that are saved for the backward pass.
    pub saved_dtype: SavedDtype,
    /// Constants of AdamW.
    pub optimiser: AdamwConfig,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Shape of the schedule after the warm-up.
    pub lr_scheduler_type: LrSchedulerType,
    /// Number of half cosines of [`LrSchedulerType::CosineWithRestarts`]; 1 for other shapes.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub lr_num_cycles: usize,
    /// Length of the run and of its warm-up.
    pub length: RunLength,
    /// Rows per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per step and rank.
    pub gradient_accumulation_steps: usize,
    /// Number of ranks that the run began with, which decides how many micro-batches a step has. It is no part of a run's fingerprint: a
    /// checkpoint holds it ([`super::state::TrainingState::n_ranks`]).
    #[serde(skip, default = "one")]
    pub n_ranks: usize,
    /// Data type in which several ranks exchange gradients.
    #[serde(default, skip_serializing_if = "ReduceDtype::is_f32")]
    pub reduce_dtype: ReduceDtype,
    /// Seed of the order of rows, of a new adapter, and of stochastic rounding.
    pub seed: u64,
    /// Whether each epoch has a new order of rows.
    pub shuffle: bool,
    /// Whether one-dimensional tensors have weight decay, too.
    pub decay_all: bool,
    /// Whether an instruction that two sequences share is computed once.
    pub share_prefix: bool,
    /// Probability with which a step of SFT drops an element of a layer's input before its low-rank addition.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lora_dropout: f64,
}

/// Largest number of steps, because the optimiser counts them in 32 bits.
pub const MOST_STEPS: usize = 1 << 31;
const MOST_EPOCHS: f64 = 1e6;

/// Defaults of a training run. Some depend on the method: full fine-tuning needs smaller learning rates.
pub struct TrainDefaults;

impl TrainDefaults {
    /// Learning rate for LoRA, as in the paper.
    pub const LEARNING_RATE_LORA: f64 = 5e-5;
    /// Learning rate for `--full`.
    pub const LEARNING_RATE_FULL: f64 = 1e-6;
    /// Learning rate for SFT of all parameters.
    pub const LEARNING_RATE_SFT: f64 = 2e-5;
    /// Rows per micro-batch.
    pub const BATCH_SIZE: usize = 8;
    /// Number of steps between progress lines, where standard error is not a terminal.
    pub const LOGGING_STEPS: usize = 1;
    /// Number of steps between checkpoints.
    pub const SAVE_STEPS: usize = 500;
    /// Number of checkpoints that are kept.
    pub const SAVE_TOTAL_LIMIT: usize = 2;
    /// Optimiser: moments in f32.
    pub const OPTIM: Optim = Optim::Adamw;
    /// Data type of trained parameters: f32.
    pub const PARAM_DTYPE: ParamDtype = ParamDtype::F32;
    /// Data type of saved activations: f32, unrounded.
    pub const SAVED_DTYPE: SavedDtype = SavedDtype::F32;
    /// Constants of AdamW, and the norm to which gradients are clipped.
    pub const OPTIMISER: AdamwConfig =
        AdamwConfig { adam_beta1: 0.9, adam_beta2: 0.999, adam_epsilon: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 };
}

impl TrainSettings {
    /// Returns the rule for computing shared instructions once.
    pub fn sharing(&self, model: &ModelConfig) -> PrefixSharing {
        PrefixSharing::new(self.share_prefix, model)
    }

    /// Returns the number of rows per step, of all ranks.
    pub fn rows_per_step(&self) -> usize {
        self.batch_size * self.gradient_accumulation_steps * self.n_ranks
    }

    /// Returns the loss to minimise.
    pub fn goal(&self) -> TrainingLoss {
        self.preference.clone().map_or(TrainingLoss::Sft(self.sft_loss), TrainingLoss::Preference)
    }

    /// Returns the number of steps for `n` rows. The last step of an epoch may have fewer rows.
    pub fn max_steps(&self, n: usize) -> usize {
        let by_epochs = (n.div_ceil(self.rows_per_step()) as f64 * self.length.num_train_epochs).ceil();
        self.length.max_steps.unwrap_or(by_epochs as usize)
    }

    /// Returns the learning-rate schedule for `n` rows.
    pub fn schedule(&self, n: usize) -> LrSchedule {
        let max_steps = self.max_steps(n);
        let by_ratio = (max_steps as f64 * self.length.warmup_ratio).ceil() as usize;
        LrSchedule {
            learning_rate: self.learning_rate,
            shape: self.lr_scheduler_type,
            warmup_steps: self.length.warmup_steps.unwrap_or(by_ratio),
            max_steps,
            num_cycles: self.lr_num_cycles,
        }
    }

    /// # Errors
    /// [`Error::Flag`] for a value out of range.
    pub fn validate(&self) -> Result<()> {
        positive("learning-rate", self.learning_rate)?;
        positive("num-train-epochs", self.length.num_train_epochs)?;
        positive("batch-size", self.batch_size as f64)?;
        positive("gradient-accumulation-steps", self.gradient_accumulation_steps as f64)?;
        if self.batch_size.checked_mul(self.gradient_accumulation_steps).is_none_or(|rows| rows > 1 << 24) {
            return Err(Error::flag("batch-size", "times --gradient-accumulation-steps is above 2^24 rows a step"));
        }
        if let Some(steps) = self.length.max_steps.filter(|n| !(1..=MOST_STEPS).contains(n)) {
            return Err(Error::flag("max-steps", format!("{steps} is not in 1 ..= {MOST_STEPS}")));
        }
        if self.length.num_train_epochs > MOST_EPOCHS {
            let reason = format!("{} is above {MOST_EPOCHS}", self.length.num_train_epochs);
            return Err(Error::flag("num-train-epochs", reason));
        }
        below_one("warmup-ratio", self.length.warmup_ratio)?;
        at_least_one("lr-num-cycles", self.lr_num_cycles)?;
        if self.lr_scheduler_type == LrSchedulerType::Polynomial && self.learning_rate <= POLYNOMIAL_END {
            let reason = format!("{} is not above {POLYNOMIAL_END:e}, where polynomial ends", self.learning_rate);
            return Err(Error::flag("learning-rate", reason));
        }
        below_one("adam-beta1", self.optimiser.adam_beta1)?;
        below_one("adam-beta2", self.optimiser.adam_beta2)?;
        positive("adam-epsilon", self.optimiser.adam_epsilon)?;
        not_negative("weight-decay", self.optimiser.weight_decay)?;
        not_negative("max-grad-norm", self.optimiser.max_grad_norm)?;
        below_one("lora-dropout", self.lora_dropout)?;
        if self.lora_dropout > 0.0 && self.preference.is_some() {
            let reason = "is for sft alone: a preference loss compares policy and reference on the same tokens, and masks would add noise to their difference (TRL disables dropout there)";
            return Err(Error::flag("lora-dropout", reason));
        }
        self.preference.as_ref().map_or(Ok(()), PreferenceLoss::validate)
    }
}
