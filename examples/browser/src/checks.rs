//! Kernel checks: which kernels were checked on this device, and which variants failed. Only kernels that the loaded model needs are compiled and
//! checked. The page keeps the result per device, driver and program, so that a reload does not repeat them.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use jointwise::data::batch::Example;
use jointwise::eval::generate::{self, GenerateSettings};
use jointwise::gpu::{Caps, DeviceChoice, Gpu, Shader, Variant};
use jointwise::kernels::sample::Sampling;
use jointwise::kernels::shader_checks::check_shaders;
use jointwise::model::load::LoadOptions;
use jointwise::ranks::{Ranks, ReduceDtype};
use jointwise::train::reference::{ScoringWatch, TrainingRows};
use jointwise::train::state::TrainingState;
use jointwise::train::steps::StepRunner;
use jointwise::train::trainer::StepUpdate;
use jointwise::{Policy, Result};
use serde::{Deserialize, Serialize};

use crate::settings::Settings;

/// Result of the kernel checks so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelChecks {
    /// Keys of the shaders that may be used: those of variants were checked, and baseline shaders have no alternative.
    pub shaders: BTreeSet<String>,
    /// Variants that computed wrongly. The device runs without them.
    pub wrong: Vec<Variant>,
}

impl KernelChecks {
    /// Opens the best device, without the variants that failed.
    ///
    /// # Errors
    /// [`jointwise::Error::Device`].
    pub async fn open_device(&self) -> Result<Gpu> {
        let gpu = Gpu::open(&DeviceChoice::Best).await?;
        let variants = gpu.caps().variants.iter().copied().filter(|variant| !self.wrong.contains(variant)).collect();
        Ok(gpu.with_variants(variants))
    }

    /// Returns those of a program's shaders that were not checked before.
    pub fn missing<'s>(&self, shaders: impl IntoIterator<Item = &'s Shader>) -> Vec<Shader> {
        let mut seen = BTreeSet::new();
        let is_new = |shader: &&Shader| !self.shaders.contains(&shader.key()) && seen.insert(shader.key());
        shaders.into_iter().filter(is_new).cloned().collect()
    }

    /// Checks those of a program's shaders that were not checked before. Returns the variants that failed: the device must then be opened again,
    /// without them.
    ///
    /// # Errors
    /// [`jointwise::Error::Gpu`].
    pub async fn add<'s>(&mut self, gpu: &Gpu, shaders: impl IntoIterator<Item = &'s Shader>) -> Result<Vec<Variant>> {
        let missing = self.missing(shaders);
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let failed = check_shaders(gpu, &missing).await?.wrong();
        self.shaders.extend(missing.iter().map(Shader::key));
        self.wrong.extend(&failed);
        gpu.release_free_memory();
        Ok(failed)
    }
}

/// Number of prompts, and tokens per prompt, of [`generation_shaders`]. The page samples both answers of a pair together.
const PROMPTS: (usize, usize) = (2, 16);

/// Returns the shaders that a model's generation needs on a device with these capabilities.
///
/// # Errors
/// The model does not fit the device.
pub async fn generation_shaders(caps: &Caps, policy: &Policy, options: &LoadOptions) -> Result<Vec<Shader>> {
    let plan = Gpu::plan(caps.clone());
    let decoder = policy.model().load(&plan, options)?;
    let settings = GenerateSettings {
        sampling: Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 },
        max_new_tokens: 2,
        seed: 0,
        eos: Vec::new(),
        with_lora: true,
    };
    let (n, tokens) = PROMPTS;
    for n in [n, 1] {
        generate::generate(&plan, &decoder, &vec![vec![0; tokens]; n], 0, &settings, &mut |_, _| ()).await?;
    }
    Ok(plan.recorded_shaders())
}

/// Returns the shaders that a training run needs on a device with these capabilities: those of the reference's scores and of the first step,
/// and those of the largest and the smallest micro-batch.
///
/// # Errors
/// The model does not fit the device.
pub async fn training_shaders(
    caps: &Caps,
    policy: &Policy,
    options: &LoadOptions,
    settings: &Settings,
    examples: &[Example],
) -> Result<Vec<Shader>> {
    let plan = Gpu::plan(caps.clone());
    let training = settings.recipe().settings()?;
    let decoder = policy.model().load(&plan, options)?;
    let trainer = settings.trainer(&plan, decoder)?;
    let mut scorer = settings.scorer(&plan, &training);
    let mut references = scorer.rows(examples.len());
    let mut rows = TrainingRows { examples, references: &mut references };
    let mut watch = ScoringWatch { stop: &AtomicBool::new(false), tell: &mut |_| () };
    let (optimiser, learning_rate) = (training.optimiser, training.learning_rate);
    let first =
        TrainingState { step: 0, num_tokens: 0, best: None, fingerprint: String::new(), time: None, n_ranks: 1 };
    let mut runner = StepRunner::new(training, examples.len(), first);
    runner.prepare(&mut scorer, &trainer, &mut rows, &mut watch).await?;
    drop(runner.record(&trainer, &rows));
    let mut by_length: Vec<usize> = (0..examples.len()).collect();
    by_length.sort_by_key(|&row| examples[row].n_tokens(trainer.sharing()));
    let n = settings.batch_size.min(by_length.len());
    let extremes = [&by_length[..n], &by_length[by_length.len() - n..]];
    for extreme in extremes.into_iter().filter(|rows| !rows.is_empty()) {
        scorer.find(&trainer.decoder, &mut rows, extreme, &mut watch).await?;
        let batch = extreme.iter().map(|&row| &examples[row]).collect();
        let reference = extreme.iter().map(|&row| rows.references.get(row)).collect();
        let update = StepUpdate { optimiser: &optimiser, learning_rate, number: 1, ranks: Ranks::alone(), reduce_dtype: ReduceDtype::F32 };
        drop(trainer.record(batch, reference, n, &update));
    }
    Ok(plan.recorded_shaders())
}
