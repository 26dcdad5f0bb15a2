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
use jointwise::gpu::Gpu;
use jointwise::kernels::sample::Sampling;
use jointwise::model::checkpoint::Checkpoint;
use jointwise::model::decoder::Decoder;
use jointwise::model::description::ModelConfig;
use jointwise::model::load::{LoadOptions, TrainMode};
use jointwise::model::peft::{Adapter, encode_adapter};
use jointwise::model::save::OutputDtype;
use jointwise::model::saved::RecomputePolicy;
use jointwise::model::scores::DEFAULT_SCORE_TOKENS;
use jointwise::model::side_files::{CONFIG, SideFiles};
use jointwise::model::tensor_file::{TensorContent, TensorFile};
use jointwise::model::weights::{BaseDtype, TrainOptions, WeightSource};
use jointwise::report::{self, Report};
use jointwise::train::memory_plan::{largest_micro_batch, plan_memory};
use jointwise::train::metrics::MetricsLine;
use jointwise::train::reference::{ReferenceModel, ReferenceScorer, RowReferences, ScoringWatch, TrainingRows};
use jointwise::train::settings::TrainDefaults;
use jointwise::train::state::{self, TrainingState};
use jointwise::train::steps::StepRunner;
use jointwise::train::trainer::{self, Trainer};
use jointwise::workflow::OpenModel;
use jointwise::{DataOptions, Error, Policy, PolicyOptions, Preferences, Result};
use serde::Serialize;
use web_time::{Duration, Instant, UNIX_EPOCH};

use crate::checks::{KernelChecks, formats};
use crate::settings::Settings;

/// Files of a model folder.
pub struct Files {
    /// Name of the model on the page.
    pub name: String,
    /// Configuration and tokenizer files: name and content.
    pub side: Vec<(String, Vec<u8>)>,
    /// Weights in safetensors format: file name and content.
    pub weights: Vec<(String, Box<dyn TensorContent>)>,
}

/// Saved state of a run, from which it can continue.
pub struct Kept {
    /// JSON text with the run's step, token count and reference scores.
    pub state: String,
    /// Trained tensors and their moments, as safetensors.
    pub arena: Vec<u8>,
}

/// JSON form of [`Kept::state`].
#[derive(Serialize, serde::Deserialize)]
struct KeptState {
    state: TrainingState,
    /// Reference scores of each example's sequences; `None` for an example without scores so far.
    reference: Vec<Option<[f64; 2]>>,
    /// Facts for [`saved_files`]. Version 1 of the page did not save them.
    #[serde(default)]
    facts: Option<SavedFacts>,
}

/// Facts about a run, from which its files can be made without its model and without a device.
#[derive(Debug, Clone, Serialize, serde::Deserialize)]
struct SavedFacts {
    /// Name of the model.
    model: String,
    /// Text of the model's config.json.
    config: String,
    /// Name of the device.
    device: String,
    /// Summary of the rows.
    data: String,
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

fn missing(what: &str) -> Error {
    Error::Device(format!("{what} first"))
}

impl Tab {
    /// Opens the device. `checks` are the kernel checks of an earlier visit; [`Self::load`] does the others that its model needs.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub async fn open(checks: KernelChecks) -> Result<Self> {
        let gpu: &'static Gpu = Box::leak(Box::new(checks.open_device().await?));
        Ok(Self { gpu, checks, policy: None, trainer: None, run: None })
    }

    /// Returns the device.
    pub fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    /// Returns the kernel checks that were done.
    pub fn checks(&self) -> &KernelChecks {
        &self.checks
    }

    /// Returns whether a model is on the device.
    pub fn has_model(&self) -> bool {
        self.loaded().is_ok()
    }

    /// Returns whether a run is on the device.
    pub fn has_run(&self) -> bool {
        self.run.is_some() && self.has_model()
    }

    /// Checks the kernels of a model with weights stored as `base`. If variants fail, opens the device again without them.
    async fn check_kernels(&mut self, model: &OpenModel, base: BaseDtype) -> Result<()> {
        let formats = formats(&model.description, model.checkpoint.as_ref(), base);
        if self.checks.add(self.gpu, &formats).await? {
            (self.run, self.trainer) = (None, None);
            self.gpu = Box::leak(Box::new(self.checks.open_device().await?));
        }
        Ok(())
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
        self.check_kernels(policy.model(), base).await?;
        let none = LoadOptions::frozen(base, None, positions(&policy));
        self.trainer = Some(self.trainer(&policy, &none, &Settings::default())?);
        self.policy = Some(policy);
        Ok(notes)
    }

    fn trainer(&self, policy: &Policy, options: &LoadOptions, settings: &Settings) -> Result<Trainer<'static>> {
        Ok(Trainer {
            gpu: self.gpu,
            decoder: policy.model().load(self.gpu, options)?,
            goal: settings.recipe().settings()?.goal(),
            share_prefix: true,
            keep: settings.recompute,
            seed: settings.seed,
        })
    }

    fn loaded(&self) -> Result<(&Policy, &Trainer<'static>)> {
        self.policy.as_ref().zip(self.trainer.as_ref()).ok_or_else(|| missing("load a model"))
    }

    /// Samples a response to each instruction. Calls `on_text(prompt, text so far)` as each response grows.
    ///
    /// # Errors
    /// A prompt is too long; [`Error::Gpu`].
    pub async fn sample(
        &self,
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
        let mut so_far = vec![Vec::new(); prompts.len()];
        let shown = |ids: &[u32]| tokenizer.decode(ids);
        let ids = generate::generate(self.gpu, &trainer.decoder, &prompts, 0, &settings, &mut |prompt, id| {
            so_far[prompt].push(id);
            if let Ok(text) = shown(&so_far[prompt]) {
                on_text(prompt, &text);
            }
        })
        .await?;
        ids.iter().map(|ids| shown(ids)).collect()
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
        // Taken out for as long as the kernels are checked, because the check may open another device.
        let policy = self.policy.take().ok_or_else(|| missing("load a model"))?;
        let checked = self.check_kernels(policy.model(), settings.base_dtype).await;
        self.policy = Some(policy);
        checked?;
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
        // Frees the old policy's buffers first.
        (self.run, self.trainer) = (None, None);
        let trainer = self.trainer(policy, &load_options, &settings)?;
        // A new adapter changes nothing, so the model without the adapter is the starting policy.
        let preference = training.preference.clone().unwrap_or_default();
        let reference = ReferenceModel::WithoutAdapter;
        let scorer = ReferenceScorer::new(self.gpu, &preference, reference, DEFAULT_SCORE_TOKENS, None);
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
        run.steps.prepare(&mut run.scorer, trainer, &mut rows, &mut watch).await?;
        let started = Instant::now();
        let running = run.steps.record(trainer, &rows).submit();
        Ok(Some(run.steps.finish(trainer, running, started).await?.line()))
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
    pub async fn score(&self, instruction: &str, response: &str, template: &str) -> Result<Vec<TokenScore>> {
        let (policy, trainer) = self.loaded()?;
        let tokenizer = policy.tokenizer();
        let template = Template::parse(template)?;
        let text = PromptResponse { instruction: Instruction::Plain(instruction.into()), response: response.into() };
        let bad = |reason: String| Error::flag("prompt", reason);
        let sequence = tokenizer.encode(&text, &template).map_err(bad)?;
        check_length(sequence.ids.len(), 0, positions(policy))?;
        let example = Example { row: 0, sequences: vec![sequence.clone()], desirable: None };
        let mut sides = Vec::new();
        for with_lora in [true, false] {
            let scored = trainer::score(
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

fn render_report(
    model: String,
    device: String,
    data: String,
    adapter: &Adapter,
    lines: Vec<MetricsLine>,
    started: f64,
) -> String {
    let trained: usize = adapter.lora.modules.values().map(|(a, b)| a.len() + b.len()).sum();
    let seconds = lines.iter().filter_map(|l| l.get("seconds")?.as_f64()).sum();
    report::render(&Report {
        title: "Preference tuning in a browser".into(),
        model,
        device,
        parameters: format!("{trained} trained"),
        data,
        started: report::utc(UNIX_EPOCH + Duration::from_secs_f64(started)),
        seconds,
        lines,
        ..Report::default()
    })
}

/// Returns an adapter's files in PEFT's format, with the values of a saved state.
fn adapter_files(d: &ModelConfig, adapter: &Adapter, arena: Vec<u8>) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let file = TensorFile::from_content("state.safetensors", Box::new(arena))?;
    let values = &mut |name: &str| {
        let name = format!("param/{name}");
        let stored = file.tensors().get(&name).ok_or_else(|| Error::tensor(file.path(), &name, "is missing"))?;
        file.values(&name, stored)
    };
    Ok(encode_adapter(&adapter.config, d, &adapter.lora, OutputDtype::F32, values)?.into())
}

/// Returns the adapter's files and `report.html` of a run's saved state, without a device and without the model's weights.
///
/// # Errors
/// The state is damaged, or version 1 of the page saved it, which did not save the model's configuration.
pub fn saved_files(
    kept: Kept,
    settings: &Settings,
    lines: Vec<MetricsLine>,
    started: f64,
) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let known: KeptState = serde_json::from_str(&kept.state).map_err(|e| Error::file("state.json", e))?;
    let facts = known.facts.ok_or_else(|| missing("load the run's model"))?;
    let description = ModelConfig::from_json(CONFIG, &facts.config)?;
    let adapter = Adapter::new(&description, &settings.lora, &facts.model, settings.seed)?;
    let mut files = adapter_files(&description, &adapter, kept.arena)?;
    let report = render_report(facts.model, facts.device, facts.data, &adapter, lines, started);
    files.push(("report.html", report.into_bytes()));
    Ok(files)
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
