//! The page's session without the page: a model on a device, preferences, a training run, and scores before and after it. It also runs
//! natively, where tests compare it with the command line.

use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use jointwise::data::batch::{Example, PrefixSharing, Sequence};
use jointwise::data::dataset::{DEFAULT_MAX_LENGTH, Dataset, OverflowAction};
use jointwise::data::named_templates::run_time;
use jointwise::data::prompt_template::Template;
use jointwise::data::rows::{DatasetType, Instruction, PromptResponse, parse_objects};
use jointwise::data::tokens::Tokenizer;
use jointwise::error::{acts_on_terminal, visible};
use jointwise::eval::generate::{self, check_length};
use jointwise::eval::tasks::{DataSplit, rows};
use jointwise::gpu::{Caps, Gpu, Shader, Variant};
use jointwise::kernels::measure::DevicePeaks;
use jointwise::kernels::sample::Sampling;
use jointwise::model::checkpoint::Checkpoint;
use jointwise::model::decoder::Decoder;
use jointwise::model::description::ModelConfig;
use jointwise::model::load::{LoadOptions, TrainMode};
use jointwise::model::peft::Adapter;
use jointwise::model::saved::RecomputePolicy;
use jointwise::model::scores::DEFAULT_SCORE_TOKENS;
use jointwise::model::side_files::{CONFIG, SideFiles};
use jointwise::model::tensor_file::TensorContent;
use jointwise::model::weights::{BaseDtype, TrainOptions, WeightSource};
use jointwise::train::memory_plan::{largest_micro_batch, plan_memory};
use jointwise::train::metrics::MetricsLine;
use jointwise::train::reference::{ReferenceScorer, RowReferences, ScoringWatch, TrainingRows};
use jointwise::train::settings::TrainDefaults;
use jointwise::train::state::{self, TrainingState};
use jointwise::train::step_launches::{TimedLaunches, time_step};
use jointwise::train::steps::StepRunner;
use jointwise::train::scoring;
use jointwise::train::trainer::{RecordedStep, Trainer};
use jointwise::workflow::OpenModel;
use jointwise::{DataOptions, Error, Policy, PolicyOptions, Preferences, Result};
use serde::Serialize;
use web_time::Instant;

use crate::checks::{KernelChecks, generation_shaders, training_shaders};
use crate::saved::{Kept, KeptState, SavedFacts, adapter_files, missing, render_report};
use crate::settings::Settings;
use crate::step_kernels::{StepKernels, StepTimes, TimedStep};

/// Files of a model folder.
pub struct Files {
    /// Name of the model on the page.
    pub name: String,
    /// Configuration and tokenizer files: name and content.
    pub side: Vec<(String, Vec<u8>)>,
    /// Weights in safetensors format: file name and content.
    pub weights: Vec<(String, Box<dyn TensorContent>)>,
}

/// Rows that a run does not use whole, by their numbers from 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowNotes {
    /// Number of rows that were read.
    pub rows: usize,
    /// Rows that are left out because they are too long.
    pub dropped: Vec<usize>,
    /// Rows whose instructions were cut.
    pub truncated: Vec<usize>,
    /// Remarks that concern many rows.
    pub remarks: Vec<String>,
}

impl RowNotes {
    fn new(data: &Dataset) -> Self {
        let numbers = |fate| data.notes.iter().filter(|note| note.fate == fate).map(|note| note.row + 1).collect();
        Self {
            rows: data.n_rows(),
            dropped: numbers(OverflowAction::Dropped),
            truncated: numbers(OverflowAction::Truncated),
            remarks: data.remarks.lines(),
        }
    }
}

/// Training run in progress.
struct Run {
    adapter: Adapter,
    rows: Preferences,
    scorer: ReferenceScorer<'static>,
    references: RowReferences,
    steps: StepRunner,
}

/// Session of a page: the device, the model and the run.
pub struct Tab {
    // The trainer borrows the device. A page has one device until it is closed.
    gpu: &'static Gpu,
    checks: KernelChecks,
    policy: Option<Policy>,
    trainer: Option<Trainer<'static>>,
    run: Option<Run>,
    /// Whether kernels were recorded on the device for benchmarks, too.
    is_benched: bool,
}

/// Settings for sampling texts.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleSettings {
    /// Temperature; 0 always takes the most likely token.
    pub temperature: f32,
    /// Nucleus sampling: draws only from the most likely tokens whose probabilities sum to this value.
    pub top_p: f32,
    /// Maximum number of new tokens.
    pub max_new_tokens: usize,
    /// Random seed for sampling.
    pub seed: u64,
    /// Prompt template: `paper`, `chat`, ...
    pub template: String,
    /// Use of the trained adapter: true samples with it, false samples from the base model.
    pub tuned: bool,
}

impl Default for SampleSettings {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, max_new_tokens: 64, seed: 0, template: "paper".into(), tuned: true }
    }
}

/// Token of a scored text, or several tokens that are parts of one character.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenScore {
    /// Text of the token.
    pub text: String,
    /// Number of tokens. It is above 1 for a character that the tokenizer splits.
    pub n_tokens: usize,
    /// True if the token is part of the response.
    pub response: bool,
    /// log π(token | before), summed over the tokens; `None` for the first.
    pub logp: Option<f32>,
    /// Like `logp`, but without the adapter.
    pub reference: Option<f32>,
}

/// Memory estimate for one setting.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanLine {
    /// Tokens per sequence.
    pub max_length: usize,
    /// Pairs per step.
    pub batch_size: usize,
    /// Activations that the backward pass recomputes: `none`, `elementwise`, `linear` or `block`.
    pub recompute: &'static str,
    /// Peak size of all buffers together, in bytes.
    pub peak_bytes: u64,
    /// Reason why the setting exceeds the device's limits; `None` if it fits.
    pub refused: Option<String>,
}

/// Checks those of a program's shaders that were not checked before. If variants fail, opens the device again without them, until a device
/// passes. `program` returns the program's shaders on a device with these capabilities.
async fn check_program(
    gpu: &mut &'static Gpu,
    checks: &mut KernelChecks,
    program: impl AsyncFn(&Caps) -> Result<Vec<Shader>>,
) -> Result<()> {
    while !checks.add(gpu, &program(gpu.caps()).await?).await?.is_empty() {
        *gpu = Box::leak(Box::new(checks.open_device().await?));
    }
    Ok(())
}

/// Refuses to go on with variants that computed wrongly.
fn refuse(failed: &[Variant]) -> Result<()> {
    match failed {
        [] => Ok(()),
        [variant, ..] => {
            let text = format!("the kernels `{}` computed wrongly on this GPU, and are switched off", variant.name());
            Err(Error::Gpu(text))
        }
    }
}

impl Tab {
    /// Opens the device. `checks` are the kernel checks of an earlier visit; [`Self::load`] does the others that its model needs.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub async fn open(checks: KernelChecks) -> Result<Self> {
        let gpu: &'static Gpu = Box::leak(Box::new(checks.open_device().await?));
        Ok(Self { gpu, checks, policy: None, trainer: None, run: None, is_benched: false })
    }

    /// Returns the device.
    pub fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    /// Returns the kernel checks that were done.
    pub fn checks(&self) -> &KernelChecks {
        &self.checks
    }

    /// Returns the device for benchmarks, which record kernels that training does not.
    pub fn bench_gpu(&mut self) -> &'static Gpu {
        self.is_benched = true;
        self.gpu
    }

    /// Returns whether a model is on the device.
    pub fn has_model(&self) -> bool {
        self.loaded().is_ok()
    }

    /// Returns whether a run is on the device.
    pub fn has_run(&self) -> bool {
        self.run.is_some() && self.has_model()
    }

    /// Checks those shaders that were recorded after `before`, and those of `launched`, if they were not checked before they were needed. The
    /// plans of [`Self::load`] and [`Self::begin`] miss a shader only where a later batch is of another size.
    ///
    /// # Errors
    /// [`Error::Gpu`] if a variant failed: the device must be opened again without it.
    async fn check_recorded(&mut self, before: &[Shader]) -> Result<()> {
        let recorded = self.gpu.recorded_shaders();
        let failed = self.checks.add(self.gpu, recorded.iter().filter(|shader| !before.contains(shader))).await?;
        refuse(&failed)
    }

    /// Estimates a run's memory for several lengths, batch sizes and kinds of recomputation. Loads nothing: it reads only the headers of `weights`.
    ///
    /// # Errors
    /// The model is not supported.
    pub fn plan(
        &self,
        config: &str,
        weights: Vec<(String, Box<dyn TensorContent>)>,
        settings: &Settings,
    ) -> Result<Vec<PlanLine>> {
        let description = ModelConfig::from_json("config.json", config)?;
        let source: Rc<dyn WeightSource> = Rc::new(Checkpoint::from_contents(weights)?);
        let adapter = Adapter::new(&description, &settings.lora, "", settings.seed)?;
        let goal = settings.recipe().settings()?.goal();
        let mut lines = Vec::new();
        for max_length in [128, 512, 1024] {
            for batch_size in [1, 4, 8] {
                let row = |row| Example {
                    row,
                    sequences: [1, 2].map(|first| Sequence::new(vec![first; max_length], 1)).into(),
                    desirable: None,
                };
                let rows: Vec<Example> = (0..batch_size).map(row).collect();
                let rows: Vec<&Example> = rows.iter().collect();
                let options = options_of(&adapter, max_length, settings.base_dtype);
                for keep in RecomputePolicy::TRAINING {
                    let load = |gpu: &Gpu| Decoder::load(gpu, &description, &source, &options);
                    let found = plan_memory(self.gpu.caps(), load, &goal, &rows, false, keep);
                    let (peak_bytes, refused) = match found {
                        Ok(found) => (found.ledger.peak_bytes(), None),
                        Err(error) => (0, Some(error.to_string())),
                    };
                    lines.push(PlanLine { max_length, batch_size, recompute: keep.recompute(), peak_bytes, refused });
                }
            }
        }
        Ok(lines)
    }

    /// Returns instructions of the demo's tasks on which the demo model was not trained.
    pub fn demo_prompts(seed: u64, n: usize) -> Vec<String> {
        rows::held_out(seed, n).into_iter().map(|item| item.instruction).collect()
    }

    /// Generates preferences with the demo's grader, as JSONL. Half of them compare two responses to one instruction, half compare two
    /// instruction-response pairs.
    ///
    /// # Errors
    /// Does not fail in practice.
    pub fn demo_preferences(seed: u64, n: usize) -> Result<String> {
        let drawn =
            rows::conditional(DataSplit::Train, seed, n / 2).chain(rows::joint(DataSplit::Train, seed, n - n / 2));
        let lines = drawn.map(|row| serde_json::to_string(&row));
        let lines =
            lines.collect::<std::result::Result<Vec<_>, _>>().map_err(|e| Error::file("preferences.jsonl", e))?;
        Ok(lines.join("\n") + "\n")
    }

    /// Loads a model onto the device, without an adapter, after a check of the kernels that it needs. `base` is the data type of the
    /// weights. Returns notes about the model and its tokenizer.
    ///
    /// # Errors
    /// A file is missing or invalid, which the error names: the model before stays loaded. [`Error::Gpu`]: no model is loaded.
    pub async fn load(&mut self, files: Files, base: BaseDtype) -> Result<Vec<String>> {
        let contents = files.side.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()));
        let side = SideFiles::from_contents(Path::new(""), contents);
        let weights = || Checkpoint::from_contents(files.weights);
        let (model, mut notes) = OpenModel::from_parts(&files.name, side, weights, base)?;
        let policy = Policy::from_model(model, None, PolicyOptions::default())?;
        notes.extend(policy.tokenizer().notes().iter().cloned());
        (self.run, self.policy, self.trainer) = (None, None, None);
        let none = LoadOptions::frozen(base, None, positions(&policy));
        check_program(&mut self.gpu, &mut self.checks, async |caps| generation_shaders(caps, &policy, &none).await)
            .await?;
        self.trainer = Some(Settings::default().trainer(self.gpu, policy.model().load(self.gpu, &none)?)?);
        self.policy = Some(policy);
        Ok(notes)
    }

    fn loaded(&self) -> Result<(&Policy, &Trainer<'static>)> {
        self.policy.as_ref().zip(self.trainer.as_ref()).ok_or_else(|| missing("load a model"))
    }

    /// Samples a response to each instruction. Calls `on_text(prompt, text so far)` as each response grows.
    ///
    /// # Errors
    /// A prompt is too long; [`Error::Gpu`].
    pub async fn sample(
        &mut self,
        instructions: &[String],
        settings: &SampleSettings,
        on_text: &mut dyn FnMut(usize, &str),
    ) -> Result<Vec<String>> {
        let (policy, trainer) = self.loaded()?;
        let tokenizer = policy.tokenizer();
        let template = Template::parse(&settings.template)?;
        tokenizer.check_template(&template)?;
        let mut prompts = Vec::new();
        for (i, text) in instructions.iter().enumerate() {
            let bad = |reason: String| Error::flag("prompt", format!("number {}: {reason}", i + 1));
            let ids = tokenizer.encode_prompt(&Instruction::Plain(text.clone()), &template).map_err(bad)?;
            check_length(ids.len(), settings.max_new_tokens, positions(policy))?;
            prompts.push(ids);
        }
        let settings = generate::GenerateSettings {
            sampling: Sampling { temperature: settings.temperature, top_k: 0, top_p: settings.top_p },
            max_new_tokens: settings.max_new_tokens,
            seed: settings.seed,
            eos: tokenizer.stop_ids().to_vec(),
            with_lora: settings.tuned,
        };
        settings.validate()?;
        let before = self.gpu.recorded_shaders();
        let mut so_far = vec![Vec::new(); prompts.len()];
        let shown = |ids: &[u32]| tokenizer.decode(ids);
        let ids = generate::generate(self.gpu, &trainer.decoder, &prompts, 0, &settings, &mut |prompt, id| {
            so_far[prompt].push(id);
            if let Ok(text) = shown(&so_far[prompt]) {
                on_text(prompt, &text);
            }
        })
        .await?;
        let texts = ids.iter().map(|ids| shown(ids)).collect();
        self.check_recorded(&before).await?;
        texts
    }

    /// Converts a file of rows, in JSON or as a table, to JSON lines. The file's name selects the format and appears in errors.
    ///
    /// # Errors
    /// A row or the file is invalid; the error names the row.
    pub fn read_rows(name: &str, bytes: &[u8]) -> Result<String> {
        let rows = parse_objects(Path::new(name), bytes)?.rows;
        let line = |row| serde_json::to_string(&row).map_err(|e| Error::file(name, e));
        Ok(rows.into_iter().map(line).collect::<Result<Vec<_>>>()?.join("\n"))
    }

    /// Begins a run on preferences in JSONL, or continues one from the state that [`Self::state`] returned. Returns the rows that are not
    /// used whole.
    ///
    /// # Errors
    /// A row or a setting is invalid, or the state belongs to another run: the run before stays on the device. [`Error::Gpu`]: it does not.
    pub async fn begin(&mut self, jsonl: &str, settings: Settings, kept: Option<&Kept>) -> Result<RowNotes> {
        let policy = self.policy.as_ref().ok_or_else(|| missing("load a model"))?;
        let training = settings.recipe().settings()?;
        let known: Option<KeptState> = match kept {
            None => None,
            Some(kept) => serde_json::from_str(&kept.state).map_err(|e| Error::file("state.json", e))?,
        };
        let options = DataOptions {
            purpose: DatasetType::Preference,
            template: Template::parse(&settings.template)?,
            max_length: Some(settings.max_length.min(policy.description().max_positions)),
            ..DataOptions::default()
        };
        // A chat template may print the date. A continued run keeps the date of its beginning.
        let templates = policy.tokenizer().chat_templates();
        let time = known.as_ref().and_then(|known| known.state.time).unwrap_or_else(run_time);
        templates.set_time(time);
        let time = Some(time).filter(|_| options.template == Template::Chat && templates.prints_time());
        let rows = Preferences::from_bytes("preferences.jsonl", jsonl.as_bytes(), policy, &options)?;
        let data = rows.dataset();
        let adapter = Adapter::new(policy.description(), &settings.lora, &policy.model().name, settings.seed)?;
        let fingerprint = format!("{} {}", serde_json::to_string(&settings).unwrap_or_default(), data.content_hash());
        let n = rows.len();
        if known.as_ref().is_some_and(|k| k.state.fingerprint != fingerprint || k.reference.len() != n) {
            return Err(Error::file("state.json", "is of a run with other settings or data"));
        }
        let examples: Vec<&Example> = data.examples.iter().collect();
        let sharing = PrefixSharing::new(true, policy.description());
        let largest = largest_micro_batch(&examples, settings.batch_size, sharing);
        let load_options = options_of(&adapter, positions(policy), settings.base_dtype);
        let goal = training.goal();
        let load = |gpu: &Gpu| policy.model().load(gpu, &load_options);
        plan_memory(self.gpu.caps(), load, &goal, &largest, true, settings.recompute)?;
        let program =
            async |caps: &Caps| training_shaders(caps, policy, &load_options, &settings, &data.examples).await;
        check_program(&mut self.gpu, &mut self.checks, program).await?;
        // Frees the old policy's buffers first.
        (self.run, self.trainer) = (None, None);
        let trainer = settings.trainer(self.gpu, policy.model().load(self.gpu, &load_options)?)?;
        let scorer = settings.scorer(self.gpu, &training);
        let mut references = scorer.rows(n);
        let state = match known {
            Some(known) => {
                references.set_scores(known.reference);
                known.state
            }
            None => TrainingState { step: 0, num_tokens: 0, best: None, fingerprint, time, n_ranks: 1 },
        };
        if let Some(kept) = kept {
            state::restore(self.gpu, &trainer.decoder.arena, Path::new("state.safetensors"), &kept.arena)?;
        }
        self.trainer = Some(trainer);
        let notes = RowNotes::new(data);
        let steps = StepRunner::new(training, n, state);
        self.run = Some(Run { adapter, rows, scorer, references, steps });
        Ok(notes)
    }

    /// Runs one training step. Returns its line of `metrics.jsonl`, or `None` after the last step.
    ///
    /// # Errors
    /// [`Error::NotFinite`], [`Error::Gpu`].
    pub async fn step(&mut self) -> Result<Option<MetricsLine>> {
        let (Some(run), Some(trainer)) = (&mut self.run, &self.trainer) else { return Err(missing("begin a run")) };
        if run.steps.state.step >= run.steps.schedule.max_steps {
            return Ok(None);
        }
        let mut rows = TrainingRows { examples: &run.rows.dataset().examples, references: &mut run.references };
        let mut watch = ScoringWatch { stop: &AtomicBool::new(false), tell: &mut |_| () };
        let before = self.gpu.recorded_shaders();
        run.steps.prepare(&mut run.scorer, trainer, &mut rows, &mut watch).await?;
        let started = Instant::now();
        let step = run.steps.record(trainer, &rows);
        // A batch of another size may take other kernels.
        let recorded = self.gpu.recorded_shaders();
        if self.is_benched || recorded.len() > before.len() {
            let launched = step.recorded().shaders();
            let new = recorded.iter().filter(|shader| !before.contains(shader));
            let failed = self.checks.add(self.gpu, new.chain(&launched)).await?;
            refuse(&failed)?;
        }
        Ok(Some(run.steps.finish(trainer, step.submit(), started).await?.line()))
    }

    /// Returns the run's state, for [`Self::begin`].
    ///
    /// # Errors
    /// [`Error::Gpu`].
    pub async fn state(&self) -> Result<Kept> {
        let ((policy, trainer), Some(run)) = (self.loaded()?, &self.run) else { return Err(missing("begin a run")) };
        let mut arena = Vec::new();
        state::encode(self.gpu, &trainer.decoder.arena, Path::new("state.safetensors"), &mut arena).await?;
        let facts = SavedFacts {
            model: policy.model().name.clone(),
            config: policy.model().side.required(CONFIG)?.into(),
            device: self.gpu.caps().name.clone(),
            data: run.rows.dataset().summary(),
        };
        let reference = run.references.scores().into();
        let known = KeptState { state: run.steps.state.clone(), reference, facts: Some(facts) };
        let state = serde_json::to_string(&known).map_err(|e| Error::file("state.json", e))?;
        Ok(Kept { state, arena })
    }

    /// Returns the kernels of the last step, or of the first where there was none.
    ///
    /// # Errors
    /// There is no run; [`Error::Gpu`].
    pub async fn step_kernels(&mut self) -> Result<StepKernels> {
        StepKernels::new(self.step_again().await?.1.launches())
    }

    /// Returns [`Self::step_kernels`], with each launch timed for about `seconds`, beside the least time at the device's peak rates. The trained weights
    /// are as before.
    ///
    /// # Errors
    /// There is no run; [`Error::Gpu`].
    pub async fn time_step(&mut self, seconds: f64, peaks: &DevicePeaks) -> Result<TimedStep> {
        let (trainer, step) = self.step_again().await?;
        let TimedLaunches { launches, times } = time_step(trainer, step, seconds).await?;
        let times = StepTimes::new(times, &launches, peaks);
        Ok(TimedStep { kernels: StepKernels::new(launches)?, times })
    }

    /// Records the last step again.
    async fn step_again(&mut self) -> Result<(&Trainer<'static>, RecordedStep<'static, '_>)> {
        let (Some(run), Some(trainer)) = (&mut self.run, &self.trainer) else { return Err(missing("begin a run")) };
        let mut rows = TrainingRows { examples: &run.rows.dataset().examples, references: &mut run.references };
        Ok((trainer, run.steps.record_again(&mut run.scorer, trainer, &mut rows).await?))
    }

    /// Renders the run's `report.html`.
    ///
    /// # Errors
    /// There is no run.
    pub fn report(&self, lines: Vec<MetricsLine>, started: f64) -> Result<String> {
        let ((policy, _), Some(run)) = (self.loaded()?, &self.run) else { return Err(missing("begin a run")) };
        let (model, device) = (policy.model().name.clone(), self.gpu.caps().name.clone());
        Ok(render_report(model, device, run.rows.dataset().summary(), &run.adapter, lines, started))
    }

    /// Returns the adapter's files in PEFT's format.
    ///
    /// # Errors
    /// [`Error::Gpu`].
    pub async fn adapter(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let ((policy, _), Some(run)) = (self.loaded()?, &self.run) else { return Err(missing("begin a run")) };
        adapter_files(policy.description(), &run.adapter, self.state().await?.arena)
    }

    /// Scores each token of an instruction and its response, with the policy and with the base model.
    ///
    /// # Errors
    /// The text is too long; [`Error::Gpu`].
    pub async fn score(&mut self, instruction: &str, response: &str, template: &str) -> Result<Vec<TokenScore>> {
        let (policy, trainer) = self.loaded()?;
        let tokenizer = policy.tokenizer();
        let template = Template::parse(template)?;
        let text = PromptResponse { instruction: Instruction::Plain(instruction.into()), response: response.into() };
        let bad = |reason: String| Error::flag("prompt", reason);
        let sequence = tokenizer.encode(&text, &template).map_err(bad)?;
        check_length(sequence.ids.len(), 0, positions(policy))?;
        let example = Example { row: 0, sequences: vec![sequence.clone()], desirable: None };
        let before = self.gpu.recorded_shaders();
        let mut sides = Vec::new();
        for with_lora in [true, false] {
            let scored = scoring::score(
                self.gpu,
                &trainer.decoder,
                &[&example],
                with_lora,
                true,
                DEFAULT_SCORE_TOKENS,
                &mut |_| (),
            )
            .await?;
            sides.push(scored[0].token_logps.clone());
        }
        let sum = |side: &[f32], from: usize, n: usize| from.checked_sub(1).map(|at| side[at..at + n].iter().sum());
        let mut tokens = Vec::new();
        let mut at = 0;
        while let Some((text, n_tokens)) = next_text(tokenizer, &sequence.ids[at..]) {
            tokens.push(TokenScore {
                text,
                n_tokens,
                response: sequence.is_response(at),
                logp: sum(&sides[0], at, n_tokens),
                reference: sum(&sides[1], at, n_tokens),
            });
            at += n_tokens;
        }
        self.check_recorded(&before).await?;
        Ok(tokens)
    }
}

/// Maximum number of tokens that are shown as one, because they are parts of one character. Four bytes make a character, and a token may end
/// within the next one.
const MOST_PARTS: usize = 8;

/// Returns the text of the first token, and the number of tokens that it takes to show a text: a character may be split into several.
fn next_text(tokenizer: &Tokenizer, ids: &[u32]) -> Option<(String, usize)> {
    let shown = tokenizer.show(*ids.first()?);
    let decoded = |n: usize| tokenizer.decode_all(&ids[..n]).ok().filter(|text| !text.contains('\u{fffd}'));
    match (1..=ids.len().min(MOST_PARTS)).find_map(|n| Some((decoded(n)?, n))) {
        Some((text, n)) if n > 1 => Some((visible(&text), n)),
        // A joiner or an accent alone is shown as text, not as an escape.
        Some((text, _)) if shown.contains("\\u{") && !text.chars().any(acts_on_terminal) => Some((text, 1)),
        _ => Some((shown, 1)),
    }
}

/// Returns the maximum sequence length of runs and responses.
fn positions(policy: &Policy) -> usize {
    policy.description().max_positions.min(DEFAULT_MAX_LENGTH)
}

fn options_of(adapter: &Adapter, n_positions: usize, base: BaseDtype) -> LoadOptions {
    LoadOptions {
        trained: TrainMode::Lora,
        lora: Some(adapter.lora.clone()),
        training: TrainOptions { optim: Some(TrainDefaults::OPTIM), ..TrainOptions::NONE },
        n_positions,
        base,
    }
}
