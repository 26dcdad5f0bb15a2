//! What the page can set, and what follows from it.

use jointwise::data::dataset::DEFAULT_MAX_LENGTH;
use jointwise::model::lora_config::LoraConfig;
use jointwise::train::settings::{Length, TrainDefaults, TrainSettings};
use jointwise::Result;
use jointwise::model::trace::Keep;
use jointwise::model::weights::BaseDtype;
use jointwise::objective::{Mix, Objective, Preference};
use jointwise::train::schedule::Shape;
use serde::{Deserialize, Serialize};

/// As the page's form has them; what it leaves out is as on the command line, but for the learning rate: a hundred steps of a small
/// adapter are to show something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `jpo` or `dpo`.
    pub objective: Objective,
    /// `sigmoid`, or another of the command line's.
    pub loss: Mix,
    /// How far the policy may move.
    pub beta: f64,
    /// Of sigmoid.
    pub label_smoothing: f64,
    /// Highest rate.
    pub learning_rate: f64,
    /// Steps in all.
    pub max_steps: usize,
    /// Pairs a step.
    pub batch_size: usize,
    /// Tokens a sequence, at most.
    pub max_length: usize,
    /// What the backward pass computes again: `none`, `elementwise` or `block`. How much memory there is, no browser tells.
    pub recompute: Keep,
    /// How the weights below the adapter are held: `auto`, `int8`, `nf4`, ...
    pub base_dtype: BaseDtype,
    /// R, α and modules.
    pub lora: LoraConfig,
    /// Of the order, and of a new adapter.
    pub seed: u64,
    /// `paper`, `chat`, ...
    pub template: String,
}

impl Default for Settings {
    fn default() -> Self {
        let p = Preference::default();
        Self {
            objective: p.objective,
            loss: p.loss,
            beta: p.beta,
            label_smoothing: p.label_smoothing,
            learning_rate: 1e-3,
            max_steps: 100,
            batch_size: TrainDefaults::BATCH_SIZE,
            max_length: DEFAULT_MAX_LENGTH,
            recompute: Keep::Everything,
            base_dtype: BaseDtype::Auto,
            lora: LoraConfig { targets: vec!["all-linear".into()], ..LoraConfig::default() },
            seed: 0,
            template: "paper".into(),
        }
    }
}

impl Settings {
    /// The loss.
    ///
    /// # Errors
    /// [`jointwise::Error::Flag`] for a value out of range.
    pub fn preference(&self) -> Result<Preference> {
        let p = Preference {
            objective: self.objective,
            loss: self.loss,
            beta: self.beta,
            label_smoothing: self.label_smoothing,
            ..Preference::default()
        };
        p.validate()?;
        Ok(p)
    }

    /// The run.
    ///
    /// # Errors
    /// As [`Self::preference`].
    pub fn training(&self) -> Result<TrainSettings> {
        let settings = TrainSettings {
            preference: Some(self.preference()?),
            optim: TrainDefaults::OPTIM,
            param_dtype: TrainDefaults::PARAM_DTYPE,
            saved_dtype: TrainDefaults::SAVED_DTYPE,
            optimiser: TrainDefaults::OPTIMISER,
            learning_rate: self.learning_rate,
            lr_scheduler_type: Shape::Cosine,
            lr_num_cycles: 1,
            length: Length {
                num_train_epochs: 1.0,
                max_steps: Some(self.max_steps),
                warmup_steps: None,
                warmup_ratio: 0.0,
            },
            batch_size: self.batch_size,
            gradient_accumulation_steps: 1,
            seed: self.seed,
            shuffle: true,
            decay_all: false,
            share_prefix: true,
        };
        settings.validate()?;
        Ok(settings)
    }
}
