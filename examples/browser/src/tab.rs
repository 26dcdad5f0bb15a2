//! What the page does, without the page: a model on a device, preferences, a run, and what it changed. It runs natively too, where the
//! tests compare it with the command line.

use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use jointwise::data::dataset::DEFAULT_MAX_LENGTH;
use jointwise::model::scores::DEFAULT_SCORE_TOKENS;
use jointwise::train::settings::TrainDefaults;
use jointwise::data::batch::{Example, Sequence};
use jointwise::data::dataset::{Dataset, Limits, Overflow};
use jointwise::data::named_templates::run_time;
use jointwise::data::rows::{FieldMap, Instruction, Purpose, Text, parse_objects, parse_rows};
use jointwise::data::template::Template;
use jointwise::data::tokens::Tokenizer;
use jointwise::eval::generate::{self, check_length, eos_ids};
use jointwise::eval::tasks::{Split, rows};
use jointwise::gpu::{DeviceChoice, Gpu, Variant};
use jointwise::objective::Goal;
use jointwise::kernels::sample::Sampling;
use jointwise::kernels::with_checked_variants;
use jointwise::model::checkpoint::Checkpoint;
use jointwise::model::decoder::Decoder;
use jointwise::model::description::Description;
use jointwise::model::load::{LoadOptions, Trained};
use jointwise::model::peft::{Adapter, encode_adapter};
use jointwise::model::save::OutputDtype;
use jointwise::model::side_files::{CONFIG, SideFiles};
use jointwise::model::tensor_file::Content;
use jointwise::model::trace::Keep;
use jointwise::model::weights::{BaseDtype, Source, Training, read_back};
use jointwise::train::metrics::Line;
use jointwise::train::reference::{ReferenceModel, ReferenceScorer, RowReferences, Rows, Watch};
use jointwise::train::report::{self, Report};
use jointwise::train::state::{self, State};
use jointwise::train::steps::Steps;
use jointwise::train::trainer::{self, Trainer, largest_micro_batch, rehearse};
use jointwise::{Error, Result};
use serde::Serialize;
use web_time::{Duration, Instant, UNIX_EPOCH};

use crate::settings::Settings;

/// Files of a model folder.
pub struct Files {
    /// As the page names it.
    pub name: String,
    /// Configuration and tokenizer files, by name.
    pub side: Vec<(String, Vec<u8>)>,
    /// safetensors by name.
    pub weights: Vec<(String, Box<dyn Content>)>,
}

/// A model that was read; its weights stay where they are, and go to the device tensor by tensor.
struct Model {
    name: String,
    description: Description,
    checkpoint: Rc<dyn Source>,
    tokenizer: Tokenizer,
    /// Tokens that end a response.
    eos: Vec<u32>,
}

/// What a run goes on from.
pub struct Kept {
    /// JSON.
    pub state: String,
    /// Trained tensors and their moments, as safetensors.
    pub arena: Vec<u8>,
}

/// Its JSON.
#[derive(Serialize, serde::Deserialize)]
struct KeptState {
    state: State,
    /// Scores of the sequences of each example that was visited.
    reference: Vec<Option<[f64; 2]>>,
}

/// A run on its way.
struct Run {
    adapter: Adapter,
    data: Dataset,
    scorer: ReferenceScorer<'static>,
    references: RowReferences,
    steps: Steps,
}

/// A page's session.
pub struct Tab {
    // The trainer borrows it; a page has one device until it is closed.
    gpu: &'static Gpu,
    model: Option<Model>,
    policy: Option<Trainer<'static>>,
    run: Option<Run>,
}

/// How texts are sampled.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleSettings {
    /// 0: the likeliest token always.
    pub temperature: f32,
    /// Only the fewest tokens that reach this probability.
    pub top_p: f32,
    /// At most.
    pub max_new_tokens: usize,
    /// Of the draws.
    pub seed: u64,
    /// `paper`, `chat`, ...
    pub template: String,
    /// The trained adapter's part in it.
    pub tuned: bool,
}

impl Default for SampleSettings {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, max_new_tokens: 64, seed: 0, template: "paper".into(), tuned: true }
    }
}

/// A token of a scored text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenScore {
    /// As it reads.
    pub text: String,
    /// Part of the response.
    pub response: bool,
    /// log π(token | before); `None` for the first.
    pub logp: Option<f32>,
    /// The same without the adapter.
    pub reference: Option<f32>,
}

/// What a setting would take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanLine {
    /// Tokens a sequence.
    pub max_length: usize,
    /// Pairs a step.
    pub batch_size: usize,
    /// What the backward pass computes again: `none`, `elementwise` or `block`.
    pub recompute: &'static str,
    /// Highest sum of all buffers, in bytes.
    pub peak_bytes: u64,
    /// Why it does not fit this adapter's limits.
    pub refused: Option<String>,
}

fn missing(what: &str) -> Error {
    Error::Device(format!("{what} first"))
}

impl Tab {
    /// Opens the device, and checks the kernels that it may choose. The names of those that compute wrongly are told.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub async fn open() -> Result<(Self, Vec<&'static str>)> {
        let (gpu, off) = with_checked_variants(Gpu::open(&DeviceChoice::Best).await?).await?;
        let gpu: &'static Gpu = Box::leak(Box::new(gpu));
        Ok((Self { gpu, model: None, policy: None, run: None }, off.into_iter().map(Variant::name).collect()))
    }

    /// The device.
    pub fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    /// Bytes that a run would take, for sequences of these lengths in batches of these sizes; nothing is loaded. Of `weights` the headers alone are
    /// read.
    ///
    /// # Errors
    /// A model that is not understood.
    pub fn plan(
        &self,
        config: &str,
        weights: Vec<(String, Box<dyn Content>)>,
        settings: &Settings,
    ) -> Result<Vec<PlanLine>> {
        let description = Description::from_json("config.json", config)?;
        let source: Rc<dyn Source> = Rc::new(Checkpoint::of(weights)?);
        let adapter = Adapter::new(&description, &settings.lora, "", settings.seed)?;
        let goal = Goal::Preference(settings.preference()?);
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
                let options = options(&adapter, max_length, settings.base_dtype);
                for keep in Keep::TRAINING {
                    let load = |gpu: &Gpu| Decoder::load(gpu, &description, &source, &options);
                    let found = rehearse(self.gpu.caps(), load, &goal, &rows, false, keep);
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

    /// Instructions of the demo's tasks that its model was not trained on.
    pub fn demo_prompts(seed: u64, n: usize) -> Vec<String> {
        rows::held_out(seed, n).into_iter().map(|item| item.instruction).collect()
    }

    /// Preferences that the demo's grader draws, as JSONL: half of them between responses to one instruction, half between pairs.
    ///
    /// # Errors
    /// None in practice.
    pub fn demo_preferences(seed: u64, n: usize) -> Result<String> {
        let drawn = rows::conditional(Split::Train, seed, n / 2).chain(rows::joint(Split::Train, seed, n - n / 2));
        let lines = drawn.map(|row| serde_json::to_string(&row));
        let lines =
            lines.collect::<std::result::Result<Vec<_>, _>>().map_err(|e| Error::file("preferences.jsonl", e))?;
        Ok(lines.join("\n") + "\n")
    }

    /// Reads a model and puts it on the device, without an adapter, its weights held as the settings say. Gives what the tokenizer has to note.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn load(&mut self, files: Files, settings: &Settings) -> Result<Vec<String>> {
        let contents = files.side.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()));
        let side = SideFiles::from_contents(Path::new(""), contents);
        let mut description = Description::from_json(CONFIG, side.required(CONFIG)?)?;
        let mut checkpoint = Checkpoint::of(files.weights)?;
        checkpoint.settle_tying(&mut description)?;
        let unknown = checkpoint.verify(&description)?;
        let mut tokenizer = Tokenizer::from_side_files(&side)?;
        tokenizer.check_vocab(description.vocab)?;
        let notes = checkpoint.notes().iter().chain(&unknown).chain(tokenizer.notes()).cloned().collect();
        let eos = eos_ids(&side, tokenizer.eos_id(), description.vocab)?;
        (self.run, self.policy) = (None, None);
        let model = Model { name: files.name, description, checkpoint: Rc::new(checkpoint), tokenizer, eos };
        let none = LoadOptions {
            trained: Trained::Nothing,
            lora: None,
            training: Training::NONE,
            n_positions: model.description.max_positions.min(DEFAULT_MAX_LENGTH),
            base: settings.base_dtype,
        };
        self.policy = Some(self.trainer(&model, &none, settings)?);
        self.model = Some(model);
        Ok(notes)
    }

    fn trainer(&self, model: &Model, options: &LoadOptions, settings: &Settings) -> Result<Trainer<'static>> {
        Ok(Trainer {
            gpu: self.gpu,
            decoder: Decoder::load(self.gpu, &model.description, &model.checkpoint, options)?,
            goal: Goal::Preference(settings.preference()?),
            share_prefix: true,
            keep: settings.recompute,
            seed: settings.seed,
        })
    }

    fn model(&self) -> Result<(&Model, &Trainer<'static>)> {
        self.model.as_ref().zip(self.policy.as_ref()).ok_or_else(|| missing("load a model"))
    }

    /// Responses to instructions; `on_text(prompt, text so far)` sees each as it grows.
    ///
    /// # Errors
    /// A prompt that does not fit; [`Error::Gpu`].
    pub async fn sample(
        &self,
        instructions: &[String],
        settings: &SampleSettings,
        on_text: &mut dyn FnMut(usize, &str),
    ) -> Result<Vec<String>> {
        let (model, policy) = self.model()?;
        let template = Template::parse(&settings.template)?;
        model.tokenizer.check_template(&template)?;
        let mut prompts = Vec::new();
        for (i, text) in instructions.iter().enumerate() {
            let bad = |reason: String| Error::flag("prompt", format!("number {}: {reason}", i + 1));
            let ids = model.tokenizer.encode_prompt(&Instruction::Plain(text.clone()), &template).map_err(bad)?;
            check_length(
                ids.len(),
                settings.max_new_tokens,
                model.description.max_positions.min(DEFAULT_MAX_LENGTH),
            )?;
            prompts.push(ids);
        }
        let settings = generate::Settings {
            sampling: Sampling { temperature: settings.temperature, top_k: 0, top_p: settings.top_p },
            max_new_tokens: settings.max_new_tokens,
            seed: settings.seed,
            eos: model.eos.clone(),
            with_lora: settings.tuned,
        };
        settings.validate()?;
        let mut so_far = vec![Vec::new(); prompts.len()];
        let shown = |ids: &[u32]| model.tokenizer.decode(ids);
        let ids = generate::generate(self.gpu, &policy.decoder, &prompts, 0, &settings, &mut |prompt, id| {
            so_far[prompt].push(id);
            if let Ok(text) = shown(&so_far[prompt]) {
                on_text(prompt, &text);
            }
        })
        .await?;
        ids.iter().map(|ids| shown(ids)).collect()
    }

    /// Reads a file of rows, JSON or a table, as JSON lines; its name serves messages and tells tables.
    ///
    /// # Errors
    /// Which row, or what of the file, is wrong.
    pub fn read_rows(name: &str, bytes: &[u8]) -> Result<String> {
        let rows = parse_objects(Path::new(name), bytes)?.rows;
        let line = |row| serde_json::to_string(&row).map_err(|e| Error::file(name, e));
        Ok(rows.into_iter().map(line).collect::<Result<Vec<_>>>()?.join("\n"))
    }

    /// Begins a run over preferences in JSONL, or goes on from what [`Self::state`] gave. Says what became of the rows.
    ///
    /// # Errors
    /// Which line of the rows, or which setting, is wrong; a state of another run.
    pub async fn begin(&mut self, jsonl: &str, settings: Settings, kept: Option<&Kept>) -> Result<String> {
        self.run = None;
        let (model, _) = self.model()?;
        let training = settings.training()?;
        let rows =
            parse_rows(Path::new("preferences.jsonl"), jsonl.as_bytes(), &FieldMap::default(), Purpose::Preference)?;
        let limits =
            Limits { max_length: settings.max_length.min(model.description.max_positions), overflow: Overflow::Drop };
        let known: Option<KeptState> = match kept {
            None => None,
            Some(kept) => serde_json::from_str(&kept.state).map_err(|e| Error::file("state.json", e))?,
        };
        // A chat template may print the date: a run that goes on tomorrow goes on with its own.
        let template = Template::parse(&settings.template)?;
        let templates = model.tokenizer.chat_templates();
        let time = known.as_ref().and_then(|known| known.state.time).unwrap_or_else(run_time);
        templates.set_time(time);
        let time = Some(time).filter(|_| template == Template::Chat && templates.prints_time());
        let data = Dataset::build(&rows, &model.tokenizer, &template, limits)?;
        let adapter = Adapter::new(&model.description, &settings.lora, &model.name, settings.seed)?;
        let n_positions = model.description.max_positions.min(DEFAULT_MAX_LENGTH);
        let fingerprint = format!("{} {}", serde_json::to_string(&settings).unwrap_or_default(), data.content_hash());
        let n = data.examples.len();
        if known.as_ref().is_some_and(|k| k.state.fingerprint != fingerprint || k.reference.len() != n) {
            return Err(Error::file("state.json", "is of a run with other settings or data"));
        }
        let examples: Vec<&Example> = data.examples.iter().collect();
        let largest = largest_micro_batch(&examples, settings.batch_size, true);
        let options = options(&adapter, n_positions, settings.base_dtype);
        let goal = Goal::Preference(settings.preference()?);
        let load = |gpu: &Gpu| Decoder::load(gpu, &model.description, &model.checkpoint, &options);
        rehearse(self.gpu.caps(), load, &goal, &largest, true, settings.recompute)?;
        // The old policy's buffers make room first.
        self.policy = None;
        let model = self.model.as_ref().ok_or_else(|| missing("load a model"))?;
        let policy = self.trainer(model, &options, &settings)?;
        // A new adapter changes nothing yet: the model without it is the starting policy.
        let (preference, reference) = (settings.preference()?, ReferenceModel::WithoutAdapter);
        let scorer = ReferenceScorer::new(self.gpu, &preference, reference, DEFAULT_SCORE_TOKENS, None);
        let mut references = scorer.rows(n);
        let state = match known {
            Some(known) => {
                references.set_scores(known.reference);
                known.state
            }
            None => State { step: 0, num_tokens: 0, best: None, fingerprint, time },
        };
        if let Some(kept) = kept {
            state::restore(self.gpu, &policy.decoder.arena, Path::new("state.safetensors"), &kept.arena)?;
        }
        self.policy = Some(policy);
        let summary = [vec![data.summary()], data.remarks.lines()].concat().join("; ");
        let steps = Steps::new(training, n, state);
        self.run = Some(Run { adapter, data, scorer, references, steps });
        Ok(summary)
    }

    /// One step: its metrics, as a line of `metrics.jsonl`; `None` when all are done.
    ///
    /// # Errors
    /// [`Error::NotFinite`], [`Error::Gpu`].
    pub async fn step(&mut self) -> Result<Option<Line>> {
        let (Some(run), Some(policy)) = (&mut self.run, &self.policy) else { return Err(missing("begin a run")) };
        if run.steps.state.step >= run.steps.schedule.max_steps {
            return Ok(None);
        }
        let mut rows = Rows { examples: &run.data.examples, references: &mut run.references };
        let mut watch = Watch { stop: &AtomicBool::new(false), tell: &mut |_| () };
        run.steps.prepare(&mut run.scorer, policy, &mut rows, &mut watch).await?;
        let started = Instant::now();
        let running = run.steps.record(policy, &rows).submit();
        Ok(Some(run.steps.finish(policy, running, started).await?.line()))
    }

    /// The run's state, for [`Self::begin`].
    ///
    /// # Errors
    /// [`Error::Gpu`].
    pub async fn state(&self) -> Result<Kept> {
        let (Some(run), Some(policy)) = (&self.run, &self.policy) else { return Err(missing("begin a run")) };
        let mut arena = Vec::new();
        state::encode(self.gpu, &policy.decoder.arena, Path::new("state.safetensors"), &mut arena).await?;
        let known = KeptState { state: run.steps.state.clone(), reference: run.references.scores().into() };
        let state = serde_json::to_string(&known).map_err(|e| Error::file("state.json", e))?;
        Ok(Kept { state, arena })
    }

    /// The run as a page of its own.
    ///
    /// # Errors
    /// There is no run.
    pub fn report(&self, lines: Vec<Line>, started: f64) -> Result<String> {
        let ((model, _), Some(run)) = (self.model()?, &self.run) else { return Err(missing("begin a run")) };
        let trained: usize = run.adapter.lora.modules.values().map(|(a, b)| a.len() + b.len()).sum();
        let seconds = lines.iter().filter_map(|l| l.get("seconds")?.as_f64()).sum();
        Ok(report::render(&Report {
            title: "Preference tuning in a browser".into(),
            model: model.name.clone(),
            device: self.gpu.caps().name.clone(),
            parameters: format!("{trained} trained"),
            data: run.data.summary(),
            started: report::utc(UNIX_EPOCH + Duration::from_secs_f64(started)),
            seconds,
            lines,
            ..Report::default()
        }))
    }

    /// The adapter's files, as PEFT reads them.
    ///
    /// # Errors
    /// [`Error::Gpu`].
    pub async fn adapter(&self) -> Result<[(&'static str, Vec<u8>); 2]> {
        let ((model, policy), Some(run)) = (self.model()?, &self.run) else { return Err(missing("begin a run")) };
        let mut values = std::collections::BTreeMap::new();
        for (module, a, b) in policy.decoder.adapter() {
            values.insert(module, [read_back(self.gpu, a, false).await?, read_back(self.gpu, b, false).await?]);
        }
        let (config, lora) = (&run.adapter.config, &run.adapter.lora);
        encode_adapter(config, &model.description, lora, OutputDtype::F32, &mut |module, side| {
            Ok(values.get(module).map(|sides| sides[side].clone()).unwrap_or_default())
        })
    }

    /// Each token of an instruction and its response, by the policy and by the base model.
    ///
    /// # Errors
    /// A text that does not fit; [`Error::Gpu`].
    pub async fn score(&self, instruction: &str, response: &str, template: &str) -> Result<Vec<TokenScore>> {
        let (model, policy) = self.model()?;
        let template = Template::parse(template)?;
        let text = Text { instruction: Instruction::Plain(instruction.into()), response: response.into() };
        let bad = |reason: String| Error::flag("prompt", reason);
        let sequence = model.tokenizer.encode(&text, &template).map_err(bad)?;
        check_length(sequence.ids.len(), 0, model.description.max_positions.min(DEFAULT_MAX_LENGTH))?;
        let example = Example { row: 0, sequences: vec![sequence.clone()], desirable: None };
        let mut sides = Vec::new();
        for with_lora in [true, false] {
            let scored = trainer::score(
                self.gpu,
                &policy.decoder,
                &[&example],
                with_lora,
                true,
                DEFAULT_SCORE_TOKENS,
                &mut |_| (),
            )
            .await?;
            sides.push(scored[0].token_logps.clone());
        }
        let token = |(i, &id): (usize, &u32)| TokenScore {
            text: model.tokenizer.show(id),
            response: sequence.is_response(i),
            logp: i.checked_sub(1).map(|i| sides[0][i]),
            reference: i.checked_sub(1).map(|i| sides[1][i]),
        };
        Ok(sequence.ids.iter().enumerate().map(token).collect())
    }
}

fn options(adapter: &Adapter, n_positions: usize, base: BaseDtype) -> LoadOptions {
    LoadOptions {
        trained: Trained::Lora,
        lora: Some(adapter.lora.clone()),
        training: Training { optim: Some(TrainDefaults::OPTIM), ..Training::NONE },
        n_positions,
        base,
    }
}
