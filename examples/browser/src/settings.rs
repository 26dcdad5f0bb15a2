//! Settings of the page's form, and the recipe that they make.

use jointwise::Recipe;
use jointwise::data::dataset::DEFAULT_MAX_LENGTH;
use jointwise::model::lora_config::LoraConfig;
use jointwise::model::saved::RecomputePolicy;
use jointwise::model::weights::BaseDtype;
use jointwise::objective::{LossMix, Objective};
use serde::{Deserialize, Serialize};

/// Settings of the page's form. Missing fields have the command line's defaults, except the learning rate: it is higher, so that a hundred
/// steps of a small adapter show an effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Objective: `jpo` or `dpo`.
    pub objective: Objective,
    /// Loss: `sigmoid`, or another loss of the command line.
    pub loss: LossMix,
    /// KL strength: a larger β keeps the policy closer to the reference.
    pub beta: f64,
    /// Label smoothing of the sigmoid loss.
    pub label_smoothing: f64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Total number of steps.
    pub max_steps: usize,
    /// Pairs per step.
    pub batch_size: usize,
    /// Maximum number of tokens per sequence.
    pub max_length: usize,
    /// Activations that the backward pass recomputes: `none`, `elementwise`, `linear` or `block`. There is no `auto`, because a browser does not tell
    /// how much memory the GPU has.
    pub recompute: RecomputePolicy,
    /// Data type of the frozen weights: `auto`, `int8`, `nf4`, ...
    pub base_dtype: BaseDtype,
    /// Rank, α and target modules of the adapter.
    pub lora: LoraConfig,
    /// Random seed for the order of the data, and for a new adapter.
    pub seed: u64,
    /// Prompt template: `paper`, `chat`, ...
    pub template: String,
}

impl Default for Settings {
    fn default() -> Self {
        let p = Recipe::default();
        Self {
            objective: p.objective,
            loss: p.loss,
            beta: p.beta,
            label_smoothing: p.label_smoothing,
            learning_rate: 1e-3,
            max_steps: 100,
            batch_size: p.batch_size,
            max_length: DEFAULT_MAX_LENGTH,
            recompute: RecomputePolicy::Everything,
            base_dtype: BaseDtype::Auto,
            lora: LoraConfig::default(),
            seed: 0,
            template: "paper".into(),
        }
    }
}

impl Settings {
    /// Returns the recipe of the run.
    pub fn recipe(&self) -> Recipe {
        Recipe {
            objective: self.objective,
            loss: self.loss,
            beta: self.beta,
            label_smoothing: self.label_smoothing,
            learning_rate: self.learning_rate,
            max_steps: Some(self.max_steps),
            batch_size: self.batch_size,
            seed: self.seed,
            ..Recipe::default()
        }
    }
}
