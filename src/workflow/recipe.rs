//! Recipes of training runs: the loss, and the settings of its minimisation.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::kernels::moments::Optim;
use crate::model::saved::SavedDtype;
use crate::model::weights::ParamDtype;
use crate::objective::{FDivergence, LossMix, Objective, PreferenceLoss, SftLoss, Term};
use crate::ranks::ReduceDtype;
use crate::train::lr_schedule::LrSchedulerType;
use crate::train::settings::{ReferenceChoice, RunLength, TrainDefaults, TrainSettings};
use crate::train::trainer::AdamwConfig;

/// Activations that the backward pass recomputes instead of reading them from memory. The choice changes memory and time; results are bit-identical.
///
/// # Examples
/// ```
/// use jointwise::{Recipe, Recompute};
/// let recipe = Recipe { recompute: Recompute::Block, ..Recipe::default() };
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recompute {
    /// The first of the following that fits the device's memory.
    #[default]
    Auto,
    /// Nothing: all activations are saved.
    None,
    /// Norms and activation functions.
    Elementwise,
    /// Linear layers, too: all of a layer but attention.
    Linear,
    /// Whole layers, from their inputs.
    Block,
}

/// Settings of a training run. Names and meanings are those of transformers' `TrainingArguments` where it has them.
///
/// # Examples
/// ```
/// use jointwise::{Objective, Recipe};
/// let recipe = Recipe { objective: Objective::Dpo, learning_rate: 2e-4, max_steps: Some(60), ..Recipe::default() };
/// assert_eq!(recipe.beta, 0.1);
/// assert!(recipe.settings().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Supervised fine-tuning on responses: objective, losses and reference are not used.
    pub supervised: bool,
    /// Loss of supervised fine-tuning.
    pub sft_loss: SftLoss,
    /// Tokens that are scored: the instruction's and the response's (JPO), or the response's alone (DPO).
    pub objective: Objective,
    /// One loss, or several with weights.
    pub loss: LossMix,
    /// Terms of a loss of your own, which take the place of `loss`. Empty: none.
    pub custom_terms: Vec<Term>,
    /// KL strength β: larger keeps the policy closer to its reference. ORPO's λ.
    pub beta: f64,
    /// Probability that a preference is the wrong way round (sigmoid, robust, CPO and AOT losses); ε of EXO.
    pub label_smoothing: f64,
    /// Margin γ of SimPO.
    pub simpo_gamma: f64,
    /// Temperature τ of RPO's prompt-similarity softmax.
    pub rpo_tau: f64,
    /// Temperature τ of DiscoPOP's blend of two losses.
    pub discopop_tau: f64,
    /// Penalty λ of DPO-Positive on a chosen side below its reference.
    pub dpop_lambda: f64,
    /// Weight α of the likelihood in CPO.
    pub cpo_alpha: f64,
    /// Weight α of the response tokens past the length of the pair's shorter response (LD-DPO). `None`: 1.
    pub ld_alpha: Option<f64>,
    /// Weigh pairs by the policy's probabilities (WPO).
    pub wpo: bool,
    /// Divergence from the reference.
    pub f_divergence: FDivergence,
    /// Weight of desirable texts in KTO and unpaired APO-zero.
    pub desirable_weight: f64,
    /// Weight of undesirable texts in KTO and unpaired APO-zero.
    pub undesirable_weight: f64,
    /// Take all reference scores as zero.
    pub reference_free: bool,
    /// Model whose scores the policy is compared with.
    pub reference: ReferenceChoice,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Learning-rate schedule after the warm-up.
    pub lr_scheduler_type: LrSchedulerType,
    /// Number of falls to 0 of a cosine schedule with restarts.
    pub lr_num_cycles: usize,
    /// Steps of linear warm-up. `None`: by `warmup_ratio`.
    pub warmup_steps: Option<usize>,
    /// Warm-up as a fraction of all steps.
    pub warmup_ratio: f64,
    /// Passes over the data.
    pub num_train_epochs: f64,
    /// Steps of the run. `None`: by `num_train_epochs`.
    pub max_steps: Option<usize>,
    /// Rows per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per step.
    pub gradient_accumulation_steps: usize,
    /// Data type in which several ranks exchange gradients.
    pub reduce_dtype: ReduceDtype,
    /// AdamW with moments in 32 bits, or in 8.
    pub optim: Optim,
    /// Data type of trained matrices.
    pub param_dtype: ParamDtype,
    /// Data type of activations that are saved for the backward pass.
    pub saved_dtype: SavedDtype,
    /// Constants of AdamW, and the norm that gradients are clipped to.
    pub optimiser: AdamwConfig,
    /// Decay one-dimensional tensors too.
    pub decay_all: bool,
    /// Seed of the order of rows, of a new adapter, of stochastic rounding and of dropout.
    pub seed: u64,
    /// Draw a new order of rows each epoch.
    pub shuffle: bool,
    /// Compute an instruction that both sides share once.
    pub share_prefix: bool,
    /// Probability with which a step drops an element of a layer's input before its low-rank addition (supervised fine-tuning of an adapter).
    pub lora_dropout: f64,
    /// Activations that the backward pass recomputes.
    pub recompute: Recompute,
}

impl Default for Recipe {
    /// JPO of an adapter, with the paper's constants.
    fn default() -> Self {
        let preference = PreferenceLoss::default();
        Self {
            supervised: false,
            sft_loss: SftLoss::Nll,
            objective: preference.objective,
            loss: preference.loss,
            custom_terms: Vec::new(),
            beta: preference.beta,
            label_smoothing: preference.label_smoothing,
            simpo_gamma: preference.simpo_gamma,
            rpo_tau: preference.rpo_tau,
            discopop_tau: preference.discopop_tau,
            dpop_lambda: preference.dpop_lambda,
            cpo_alpha: preference.cpo_alpha,
            ld_alpha: preference.ld_alpha,
            wpo: preference.wpo,
            f_divergence: preference.f_divergence,
            desirable_weight: preference.desirable_weight,
            undesirable_weight: preference.undesirable_weight,
            reference_free: false,
            reference: ReferenceChoice::Initial,
            learning_rate: TrainDefaults::LEARNING_RATE_LORA,
            lr_scheduler_type: LrSchedulerType::Cosine,
            lr_num_cycles: 1,
            warmup_steps: None,
            warmup_ratio: 0.0,
            num_train_epochs: 1.0,
            max_steps: None,
            batch_size: TrainDefaults::BATCH_SIZE,
            gradient_accumulation_steps: 1,
            reduce_dtype: ReduceDtype::F32,
            optim: TrainDefaults::OPTIM,
            param_dtype: TrainDefaults::PARAM_DTYPE,
            saved_dtype: TrainDefaults::SAVED_DTYPE,
            optimiser: TrainDefaults::OPTIMISER,
            decay_all: false,
            seed: 0,
            shuffle: true,
            share_prefix: true,
            lora_dropout: 0.0,
            recompute: Recompute::Auto,
        }
    }
}

impl Recipe {
    /// Returns the recipe of supervised fine-tuning of an adapter.
    ///
    /// # Examples
    /// ```
    /// assert!(jointwise::Recipe::sft().supervised);
    /// ```
    pub fn sft() -> Self {
        Self { supervised: true, ..Self::default() }
    }

    /// Returns the recipe with the learning rate that training every parameter starts from: 1e-6, or 2e-5 for supervised fine-tuning.
    ///
    /// # Examples
    /// ```
    /// let recipe = jointwise::Recipe::default().full();
    /// assert_eq!(recipe.learning_rate, 1e-6);
    /// ```
    #[must_use]
    pub fn full(self) -> Self {
        let learning_rate =
            if self.supervised { TrainDefaults::LEARNING_RATE_SFT } else { TrainDefaults::LEARNING_RATE_FULL };
        Self { learning_rate, ..self }
    }

    /// Returns the preference loss. `None`: supervised fine-tuning.
    ///
    /// # Examples
    /// ```
    /// use jointwise::Recipe;
    /// assert!(Recipe::sft().preference().is_none());
    /// assert!(Recipe::default().preference().is_some_and(|loss| loss.needs_reference()));
    /// ```
    pub fn preference(&self) -> Option<PreferenceLoss> {
        (!self.supervised).then(|| PreferenceLoss {
            objective: self.objective,
            loss: self.loss,
            custom_terms: self.custom_terms.clone(),
            beta: self.beta,
            label_smoothing: self.label_smoothing,
            simpo_gamma: self.simpo_gamma,
            rpo_tau: self.rpo_tau,
            discopop_tau: self.discopop_tau,
            dpop_lambda: self.dpop_lambda,
            cpo_alpha: self.cpo_alpha,
            ld_alpha: self.ld_alpha,
            wpo: self.wpo,
            f_divergence: self.f_divergence,
            desirable_weight: self.desirable_weight,
            undesirable_weight: self.undesirable_weight,
            reference_free: self.reference_free,
        })
    }

    /// Returns the settings of the run.
    ///
    /// # Errors
    /// [`Error::Flag`] for a value out of range; it is named as the command line names it.
    ///
    /// # Examples
    /// ```
    /// use jointwise::Recipe;
    /// let recipe = Recipe { batch_size: 4, num_train_epochs: 2.0, ..Recipe::default() };
    /// assert_eq!(recipe.settings()?.max_steps(100), 50);
    /// assert!(Recipe { beta: -1.0, ..recipe }.settings().is_err());
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    pub fn settings(&self) -> Result<TrainSettings> {
        if self.lr_num_cycles != 1 && self.lr_scheduler_type != LrSchedulerType::CosineWithRestarts {
            return Err(Error::flag("lr-num-cycles", "needs --lr-scheduler-type cosine_with_restarts"));
        }
        let settings = TrainSettings {
            preference: self.preference(),
            sft_loss: self.sft_loss,
            optim: self.optim,
            param_dtype: self.param_dtype,
            saved_dtype: self.saved_dtype,
            optimiser: self.optimiser,
            learning_rate: self.learning_rate,
            lr_scheduler_type: self.lr_scheduler_type,
            lr_num_cycles: self.lr_num_cycles,
            length: RunLength {
                num_train_epochs: self.num_train_epochs,
                max_steps: self.max_steps,
                warmup_steps: self.warmup_steps,
                warmup_ratio: self.warmup_ratio,
            },
            batch_size: self.batch_size,
            gradient_accumulation_steps: self.gradient_accumulation_steps,
            n_ranks: 1,
            reduce_dtype: self.reduce_dtype,
            seed: self.seed,
            shuffle: self.shuffle,
            decay_all: self.decay_all,
            share_prefix: self.share_prefix,
            lora_dropout: self.lora_dropout,
        };
        settings.validate()?;
        Ok(settings)
    }
}
