//! The only home of defaults, and of the resolved settings of a training run.

use crate::error::{Error, Result};
use crate::kernels::moments::Optim;
use crate::model::trace::SavedDtype;
use crate::model::weights::ParamDtype;
use crate::objective::Preference;
use crate::train::schedule::{POLYNOMIAL_END, Schedule, Shape};
use crate::train::trainer::Optimiser;

/// Where the reference scores come from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReferenceChoice {
    /// The starting policy.
    Initial,
    /// The policy with its adapter off.
    Base,
    /// Another checkpoint.
    Model(String),
}

impl ReferenceChoice {
    /// `initial`, `base`, or a folder or hub id.
    pub fn parse(text: &str) -> Self {
        match text {
            "initial" => Self::Initial,
            "base" => Self::Base,
            other => Self::Model(other.into()),
        }
    }
}

/// Low-rank settings.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LoraSettings {
    /// R.
    pub rank: usize,
    /// α; the addition is scaled by α/R.
    pub alpha: f64,
    /// Names of modules, or `all-linear`.
    pub targets: Vec<String>,
}

impl Default for LoraSettings {
    /// The paper's adapter: R 8, α 16 on q, k, v.
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, targets: ["q_proj", "k_proj", "v_proj"].map(String::from).into() }
    }
}

/// How long, in steps or epochs.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Length {
    /// Over the data.
    pub num_train_epochs: f64,
    /// Wins over epochs.
    pub max_steps: Option<usize>,
    /// Wins over the ratio.
    pub warmup_steps: Option<usize>,
    /// Of all steps.
    pub warmup_ratio: f64,
}

fn one() -> usize {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_one(n: &usize) -> bool {
    *n == one()
}

/// A training run, with nothing left open.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TrainSettings {
    /// `None`: SFT.
    pub preference: Option<Preference>,
    /// How moments are held.
    pub optim: Optim,
    /// How trained matrices are held.
    pub param_dtype: ParamDtype,
    /// How what is kept for the backward pass is held.
    pub saved_dtype: SavedDtype,
    /// AdamW's constants.
    pub optimiser: Optimiser,
    /// Highest rate.
    pub learning_rate: f64,
    /// After the warm-up.
    pub lr_scheduler_type: Shape,
    /// Falls to 0 of [`Shape::CosineWithRestarts`]; 1 elsewhere.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub lr_num_cycles: usize,
    /// How long.
    pub length: Length,
    /// Rows a micro-batch.
    pub batch_size: usize,
    /// Micro-batches a step.
    pub gradient_accumulation_steps: usize,
    /// Of the order of rows, of a new adapter, and of stochastic rounding.
    pub seed: u64,
    /// A new order each epoch.
    pub shuffle: bool,
    /// Decay one-dimensional tensors too.
    pub decay_all: bool,
    /// A shared instruction is computed once.
    pub share_prefix: bool,
}

/// The optimiser counts steps in 32 bits.
pub const MOST_STEPS: usize = 1 << 31;
const MOST_EPOCHS: f64 = 1e6;

/// Whether a value goes into f32, as kernels take it, and stays what it is: neither infinite nor, above 0, lost.
fn fits_f32(value: f64) -> bool {
    let held = value as f32;
    held.is_finite() && (value == 0.0 || held.abs() >= f32::MIN_POSITIVE)
}

/// # Errors
/// [`Error::Flag`] for a value that is not above 0, or not in f32's range.
pub fn positive(flag: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && fits_f32(value) { Ok(()) } else { Err(out_of_range(flag, value, "is not above 0")) }
}

/// # Errors
/// [`Error::Flag`] for a value below 0, or not in f32's range.
pub fn not_negative(flag: &'static str, value: f64) -> Result<()> {
    if value >= 0.0 && fits_f32(value) { Ok(()) } else { Err(out_of_range(flag, value, "is below 0")) }
}

/// # Errors
/// [`Error::Flag`] for a value outside 0 .. 1, also when rounded to f32.
pub fn below_one(flag: &'static str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) && (value as f32) < 1.0 {
        Ok(())
    } else {
        Err(out_of_range(flag, value, "is not in 0 .. 1"))
    }
}

fn out_of_range(flag: &'static str, value: f64, otherwise: &str) -> Error {
    let reason = if value > 0.0 && !fits_f32(value) { "is beyond the range of f32" } else { otherwise };
    Error::flag(flag, format!("{value} {reason}"))
}

/// # Errors
/// [`Error::Flag`] for 0.
pub fn at_least_one(flag: &'static str, value: usize) -> Result<()> {
    if value > 0 { Ok(()) } else { Err(Error::flag(flag, "0 is not above 0")) }
}

/// # Errors
/// [`Error::Flag`] for more than `most`: it would be allocated, or looped over, without end.
pub fn at_most(flag: &'static str, value: usize, most: usize) -> Result<()> {
    if value <= most { Ok(()) } else { Err(Error::flag(flag, format!("{value} is above {most}, the most"))) }
}

/// Most resamples of a bootstrap. More would change no digit that is shown.
pub const MOST_DRAWS: usize = 1_000_000;
/// Most pairs of a draw, and most rows that the demo's tasks make: they are held in memory.
pub const MOST_ROWS: usize = 10_000_000;

/// Most tokens of a micro-batch that is measured, and most seconds that measuring may take: a day.
pub const MOST_MEASURED_TOKENS: usize = 1 << 20;
const MOST_MEASURED_SECONDS: f64 = 86_400.0;

/// Checks the flags of `bench` and `tune`.
///
/// # Errors
/// [`Error::Flag`] for tokens that no memory holds, and for more than a day.
pub fn measurable(tokens: &[usize], seconds: f64) -> Result<()> {
    tokens
        .iter()
        .try_for_each(|&n| at_least_one("tokens", n).and_then(|()| at_most("tokens", n, MOST_MEASURED_TOKENS)))?;
    not_negative("seconds", seconds)?;
    match seconds > MOST_MEASURED_SECONDS {
        true => Err(Error::flag("seconds", format!("{seconds} is above {MOST_MEASURED_SECONDS}, the most"))),
        false => Ok(()),
    }
}

/// A step's defaults, by method: full fine-tuning needs smaller rates.
pub struct Defaults;

impl Defaults {
    /// Rate for LoRA (the paper's).
    pub const LEARNING_RATE_LORA: f64 = 5e-5;
    /// Rate for `--full`.
    pub const LEARNING_RATE_FULL: f64 = 1e-6;
    /// Rate for SFT of all parameters.
    pub const LEARNING_RATE_SFT: f64 = 2e-5;
    /// Rows a micro-batch.
    pub const BATCH_SIZE: usize = 8;
    /// Tokens a sequence, at most.
    pub const MAX_LENGTH: usize = 1024;
    /// Steps between lines on the terminal when it is not one.
    pub const LOGGING_STEPS: usize = 1;
    /// Steps between checkpoints.
    pub const SAVE_STEPS: usize = 500;
    /// Checkpoints kept.
    pub const SAVE_TOTAL_LIMIT: usize = 2;
    /// Tokens a forward pass when nothing is saved for a backward one.
    pub const SCORE_TOKENS: usize = 4096;
    /// Tokens of a judge's answer, with the thoughts before it.
    pub const JUDGE_MAX_TOKENS: u32 = 1024;
    /// Tokens of a judge's answer in JSON, which has one field.
    pub const JUDGE_MAX_TOKENS_JSON: u32 = 64;
    /// Tokens of a judge's answer that is a side alone.
    pub const JUDGE_MAX_TOKENS_LETTER: u32 = 16;
    /// Questions to an endpoint at a time.
    pub const JUDGE_CONCURRENCY: usize = 8;
    /// How often a question is asked again.
    pub const JUDGE_RETRIES: usize = 6;
    /// For one question, s.
    pub const JUDGE_TIMEOUT: f64 = 60.0;
    /// The first pause before a question is asked again, s.
    pub const JUDGE_BACKOFF: f64 = 1.0;
    /// The longest pause, s.
    pub const JUDGE_MAX_WAIT: f64 = 120.0;
    /// Of a bootstrap.
    pub const BOOTSTRAP_DRAWS: usize = 2000;
    /// Of its intervals.
    pub const BOOTSTRAP_LEVEL: f64 = 0.95;
    /// New tokens of a response.
    pub const MAX_NEW_TOKENS: usize = 256;
    /// Of evaluated responses: the paper's.
    pub const EVALUATE_TEMPERATURES: [f64; 3] = [0.001, 0.5, 1.0];
    /// Prompts side by side.
    pub const GENERATE_BATCH_SIZE: usize = 16;
    /// Moments in f32.
    pub const OPTIM: Optim = Optim::Adamw;
    /// Trained parameters in f32.
    pub const PARAM_DTYPE: ParamDtype = ParamDtype::F32;
    /// What is kept for the backward pass as it was computed.
    pub const SAVED_DTYPE: SavedDtype = SavedDtype::F32;
    /// AdamW's constants, and the norm that gradients are clipped to.
    pub const OPTIMISER: Optimiser =
        Optimiser { adam_beta1: 0.9, adam_beta2: 0.999, adam_epsilon: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 };
}

impl TrainSettings {
    /// Rows a step.
    pub fn rows_per_step(&self) -> usize {
        self.batch_size * self.gradient_accumulation_steps
    }

    /// Steps for `n` rows. The last step of an epoch may have fewer rows.
    pub fn max_steps(&self, n: usize) -> usize {
        let by_epochs = (n.div_ceil(self.rows_per_step()) as f64 * self.length.num_train_epochs).ceil();
        self.length.max_steps.unwrap_or(by_epochs as usize)
    }

    /// The schedule for `n` rows.
    pub fn schedule(&self, n: usize) -> Schedule {
        let max_steps = self.max_steps(n);
        let by_ratio = (max_steps as f64 * self.length.warmup_ratio).ceil() as usize;
        Schedule {
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
        if self.lr_scheduler_type == Shape::Polynomial && self.learning_rate <= POLYNOMIAL_END {
            let reason = format!("{} is not above {POLYNOMIAL_END:e}, where polynomial ends", self.learning_rate);
            return Err(Error::flag("learning-rate", reason));
        }
        below_one("adam-beta1", self.optimiser.adam_beta1)?;
        below_one("adam-beta2", self.optimiser.adam_beta2)?;
        positive("adam-epsilon", self.optimiser.adam_epsilon)?;
        not_negative("weight-decay", self.optimiser.weight_decay)?;
        not_negative("max-grad-norm", self.optimiser.max_grad_norm)?;
        self.preference.map_or(Ok(()), |p| p.validate())
    }
}
