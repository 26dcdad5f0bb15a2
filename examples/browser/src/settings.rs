//! Settings of the page's form, and the recipe that they make.

use jointwise::data::dataset::DEFAULT_MAX_LENGTH;
use jointwise::gpu::Gpu;
use jointwise::model::decoder::Decoder;
use jointwise::model::lora_config::LoraConfig;
use jointwise::model::saved::RecomputePolicy;
use jointwise::model::scores::DEFAULT_SCORE_TOKENS;
use jointwise::model::weights::BaseDtype;
use jointwise::objective::{FORMULA_LEGEND, Loss, LossMix, Objective};
use jointwise::train::reference::{ReferenceModel, ReferenceScorer};
use jointwise::train::settings::TrainSettings;
use jointwise::train::trainer::Trainer;
use jointwise::{Recipe, Result};
use serde::{Deserialize, Serialize};

/// Loss of the form's list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LossLine {
    /// Name, as in the settings.
    pub name: &'static str,
    /// Loss of a pair, as a formula.
    pub formula: &'static str,
    /// Paper of the loss.
    pub source: &'static str,
    /// Whether the loss has an ε, the label smoothing.
    pub is_smoothed: bool,
}

/// All losses of the library, and what their formulas' letters mean.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LossList {
    /// Meaning of the letters.
    pub legend: &'static str,
    /// Each loss.
    pub losses: Vec<LossLine>,
}

/// Returns all losses of the library, with their formulas.
pub fn losses() -> LossList {
    let line = |loss: Loss| LossLine {
        name: loss.name(),
        formula: loss.formula(),
        source: loss.source(),
        is_smoothed: Loss::SMOOTHED.contains(&loss),
    };
    LossList { legend: FORMULA_LEGEND, losses: Loss::ALL.map(line).into() }
}

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

    /// Returns the trainer of the run on a device.
    ///
    /// # Errors
    /// A setting is out of range.
    pub fn trainer<'g>(&self, gpu: &'g Gpu, decoder: Decoder) -> Result<Trainer<'g>> {
        let goal = self.recipe().settings()?.goal();
        Ok(Trainer { gpu, decoder, goal, share_prefix: true, keep: self.recompute, seed: self.seed })
    }

    /// Returns what computes the reference's values of the run. A new adapter changes nothing, so the model without the adapter is the
    /// starting policy.
    pub fn scorer<'g>(&self, gpu: &'g Gpu, training: &TrainSettings) -> ReferenceScorer<'g> {
        let preference = training.preference.clone().unwrap_or_default();
        ReferenceScorer::new(gpu, &preference, ReferenceModel::WithoutAdapter, DEFAULT_SCORE_TOKENS, None)
    }
}
