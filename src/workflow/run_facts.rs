//! Facts that are known of a training run before its first step: models, settings, fingerprint and reference.

use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime};

use super::fitting_changes::{advice, advice_after_refusal};
use super::memory_demand::{KeptReference, MemoryDemand, fits, load_options, load_policy, memory_text};
use super::open_model::OpenModel;
use super::open_reference::OpenReference;
use super::policy::Policy;
use super::preferences::Preferences;
use super::recipe::{Recipe, Recompute};
use super::reference_cache;
use super::run_folder::RunFolder;
use super::several_ranks::{are_alike, check_same_run};
use crate::data::batch::Example;
use crate::data::named_templates::run_time;
use crate::error::{Error, Result};
use crate::files::parts_hash;
use crate::gpu::{Caps, Gpu};
use crate::model::peft::Adapter;
use crate::model::save::OutputDtype;
use crate::model::saved::RecomputePolicy;
use crate::model::scores::DEFAULT_SCORE_TOKENS;
use crate::ranks::Ranks;
use crate::train::memory_plan::{largest_micro_batch, reserve};
use crate::train::reference::{OtherModel, ReferenceModel, ReferenceScorer};
use crate::train::run::{CheckpointSettings, RunData, RunOutput, TrainingEvent, TrainingRun};
use crate::train::score_store::ScoreStore;
use crate::train::settings::{ReferenceChoice, TrainSettings};
use crate::train::trainer::Trainer;

/// Facts that are known of a run before its first step.
pub(super) struct RunFacts<'a> {
    pub policy: &'a Policy,
    pub adapter: Option<Rc<Adapter>>,
    pub data: &'a Preferences,
    pub eval: Option<&'a Preferences>,
    pub settings: TrainSettings,
    pub recipe: Recipe,
    pub folder: Option<RunFolder>,
    pub fingerprint: String,
    pub output_dtype: Option<OutputDtype>,
    pub n_trained: usize,
    pub started: (SystemTime, Instant),
    pub kept: KeptReference,
    pub longest: usize,
    pub ranks: Ranks,
}

impl<'a> RunFacts<'a> {
    /// Collects the facts that decide how much memory the run takes.
    fn demand<'b>(&'b self, caps: &'b Caps) -> Result<MemoryDemand<'b>> {
        let rows: Vec<&Example> = self.data.dataset().examples.iter().collect();
        let largest =
            largest_micro_batch(&rows, self.settings.batch_size, self.settings.sharing(self.policy.description()));
        let largest = largest.into_iter().cloned().collect();
        MemoryDemand::new(caps, self.policy.model(), self.adapter.clone(), &self.recipe, largest, self.longest)
    }

    /// Adds to an out-of-memory error which changes take less memory.
    pub fn advise<T>(&self, caps: &Caps, result: Result<T>) -> Result<T> {
        result.map_err(|error| match error {
            Error::OutOfMemory { refused, advice } => {
                let advice = self.demand(caps).and_then(|demand| advice_after_refusal(&demand)).unwrap_or(advice);
                Error::OutOfMemory { refused, advice }
            }
            other => other,
        })
    }

    /// Loads the policy onto the device, and begins or resumes the run.
    pub fn start(
        &mut self,
        gpu: &'a Gpu,
        other: Option<OpenReference>,
        hashes: &ContentHashes,
        cadence: CheckpointSettings,
        (eval_steps, stop): (Option<usize>, &'a AtomicBool),
        on_event: &mut dyn FnMut(&TrainingEvent<'_>),
    ) -> Result<TrainingRun<'a>> {
        let started = self.load(gpu, other, hashes).and_then(|(trainer, scorer)| {
            self.started = (SystemTime::now(), Instant::now());
            self.n_trained = trainer.decoder.trained_weights().iter().map(|w| w.rows * w.cols).sum();
            let (n_rows, max_steps) = (self.data.len(), self.settings.max_steps(self.data.len()));
            note!("{} parameters trained, {n_rows} rows, {max_steps} steps on {}", self.n_trained, gpu.caps().name);
            let eval = self.eval.map(|eval| &eval.dataset().examples[..]);
            let data = RunData::new(&self.data.dataset().examples, eval, scorer);
            let data = data.over(self.ranks, are_alike(gpu.caps(), self.ranks)?);
            let output = self.folder.as_ref().map(|folder| RunOutput {
                dir: folder.dir().into(),
                fingerprint: self.fingerprint.clone(),
                time: self.chat_time(),
                cadence,
                resume: folder.resumes(),
            });
            pollster::block_on(TrainingRun::start(
                trainer,
                self.settings.clone(),
                data,
                output,
                eval_steps,
                stop,
                on_event,
            ))
        });
        self.advise(gpu.caps(), started)
    }

    /// Loads the policy onto the device, and makes the scorer of its reference.
    fn load(
        &self,
        gpu: &'a Gpu,
        other: Option<OpenReference>,
        hashes: &ContentHashes,
    ) -> Result<(Trainer<'a>, ReferenceScorer<'a>)> {
        let demand = self.demand(gpu.caps())?;
        let keep = choose_recompute(&demand)?;
        let settings = &self.settings;
        let options = load_options(settings, demand.base, self.adapter.as_deref(), self.longest);
        let goal = settings.goal();
        let decoder = load_policy(self.policy.model(), gpu, &options, &self.kept)?;
        let largest: Vec<&Example> = demand.largest.iter().collect();
        let cost = reserve(gpu, &decoder, &goal, &largest, settings.share_prefix, keep);
        gpu.check()?;
        // A pass without gradients never needs more memory than the steps that follow it.
        let max_tokens = cost.tokens.min(DEFAULT_SCORE_TOKENS);
        let scorer = self.reference_scorer(gpu, other, hashes, max_tokens);
        let share_prefix = settings.share_prefix;
        Ok((Trainer { gpu, decoder, goal, share_prefix, keep, seed: settings.seed }, scorer))
    }

    /// Makes the scorer of rows with the reference. It scores a row when the run first comes to it, and caches the score.
    fn reference_scorer(
        &self,
        gpu: &'a Gpu,
        other: Option<OpenReference>,
        hashes: &ContentHashes,
        max_tokens: usize,
    ) -> ReferenceScorer<'a> {
        let Some(preference) = &self.settings.preference else { return ReferenceScorer::unneeded(gpu) };
        // Trained values that are rounded on loading score otherwise. Frozen ones are not trained here.
        let (params, frozen) = (self.settings.param_dtype.name(), "frozen");
        let longest = self.longest;
        let (model, contents) = match other {
            Some(OpenReference::Adapter(_)) if self.adapter.is_some() => {
                (ReferenceModel::Start, [&hashes.other, frozen])
            }
            Some(other) => {
                let policy = self.policy.model();
                let load = move || other.load(policy, None, gpu, longest);
                (ReferenceModel::Other(OtherModel::new(load)), [&hashes.other, frozen])
            }
            None => match self.kept {
                KeptReference::StartingAdapter => (ReferenceModel::Start, [&hashes.policy, params]),
                KeptReference::ReplacedTensors => (ReferenceModel::Start, [&hashes.base, frozen]),
                _ if self.adapter.is_some() => (ReferenceModel::WithoutAdapter, [&hashes.base, frozen]),
                _ => (ReferenceModel::Untrained, [&hashes.policy, params]),
            },
        };
        let open = || ScoreStore::open(&reference_cache::folder(gpu.caps(), &contents));
        ReferenceScorer::new(gpu, preference, model, max_tokens, self.ranks.is_first().then(open))
    }

    /// Returns the time that the chat template prints, if it prints one.
    fn chat_time(&self) -> Option<u64> {
        let prints_time =
            self.data.template().renders_chats() && self.policy.tokenizer().chat_templates().prints_time();
        prints_time.then(|| self.policy.options().chat_time.unwrap_or_else(run_time))
    }
}

/// Resolves which activations are recomputed. Logs a note where memory decided this, and a warning where the run does not fit.
fn choose_recompute(demand: &MemoryDemand<'_>) -> Result<RecomputePolicy> {
    let (keep, plan) = demand.chosen()?;
    if keep != RecomputePolicy::Everything && demand.recompute == Recompute::Auto {
        note!("note: --recompute {} is chosen: keeping more does not fit the device's memory", keep.recompute());
    }
    if fits(demand.caps, &plan.ledger) == Some(false) {
        let (takes, caps) = (plan.ledger.peak_bytes() >> 20, demand.caps);
        let advice = advice(&demand.fitting_changes()?, demand.adapter.is_none());
        note!(
            "warning: the run takes {takes} MiB, and {} has {}: it may fail or be slow; {advice}",
            caps.name,
            memory_text(caps)
        );
    }
    Ok(keep)
}

/// Hashes of the models of a run, which cover everything that a score depends on except the tokens.
pub(super) struct ContentHashes {
    /// The policy with its adapter.
    pub policy: String,
    /// The policy's model without its adapter.
    base: String,
    /// Another checkpoint as the reference; empty where there is none.
    pub other: String,
}

impl ContentHashes {
    pub fn new(model: &OpenModel, adapter: Option<&Adapter>, other: Option<&OpenReference>) -> Result<Self> {
        let digest = model.checkpoint.digest()?;
        Ok(Self {
            policy: model_hash(model, &digest, adapter)?,
            base: model_hash(model, &digest, None)?,
            other: match other {
                Some(OpenReference::Model(other)) => model_hash(other, &other.checkpoint.digest()?, None)?,
                Some(OpenReference::Adapter(other)) => model_hash(model, &digest, Some(other))?,
                None => String::new(),
            },
        })
    }
}

/// Hashes weights, by their digest, their data type, configuration and adapter.
fn model_hash(model: &OpenModel, digest: &str, adapter: Option<&Adapter>) -> Result<String> {
    // By the names of fields, as in any file: a type may be renamed.
    let description = serde_json::to_string(&model.description).map_err(|e| Error::file("config.json", e))?;
    let mut parts: Vec<&[u8]> = vec![digest.as_bytes(), model.base.name().as_bytes(), description.as_bytes()];
    let scale = adapter.map_or([0; 4], |a| a.lora.scale.to_le_bytes());
    parts.push(&scale);
    for (module, (a, b)) in adapter.iter().flat_map(|a| &a.lora.modules) {
        parts.extend([module.as_bytes(), bytemuck::cast_slice(a), bytemuck::cast_slice(b)]);
    }
    for (name, values) in adapter.iter().flat_map(|a| &a.lora.whole) {
        parts.push(name.as_bytes());
        parts.extend(values.iter().map(|values| bytemuck::cast_slice(values)));
    }
    for tokens in adapter.iter().filter_map(|a| a.lora.tokens.as_ref()) {
        parts.push(bytemuck::cast_slice(&tokens.ids));
        parts.extend(tokens.rows.iter().map(|rows| bytemuck::cast_slice(rows)));
    }
    let exceptions = adapter.map_or(String::new(), |a| format!("{:?}", a.lora.exceptions));
    if adapter.is_some_and(|a| !a.lora.exceptions.is_empty()) {
        parts.push(exceptions.as_bytes());
    }
    Ok(parts_hash(parts))
}

/// Hashes the settings, rows, models and precision, which a resumed run must have in common with its checkpoint, and all ranks with each other.
pub(super) fn fingerprint(
    settings: &TrainSettings,
    rows: &[Option<&Preferences>; 2],
    hashes: &ContentHashes,
    reference: &ReferenceChoice,
    caps: &Caps,
    ranks: Ranks,
) -> Result<String> {
    let text = serde_json::to_string(settings).map_err(|e| Error::file("settings", e))?;
    let [data, eval] = rows.map(|rows| rows.map_or(String::new(), |rows| rows.dataset().content_hash()));
    // Another checkpoint counts by its hash, wherever it lies.
    let kind = match reference {
        ReferenceChoice::Initial => "initial",
        ReferenceChoice::Base => "base",
        ReferenceChoice::Model(_) => "model",
    };
    let reference = format!("{kind} {}", hashes.other);
    let precision = caps.matmul_precision.name();
    let contents = [
        ("other rows in --data", &data[..]),
        ("other rows in --eval-data", &eval),
        ("another model or adapter", &hashes.policy),
        ("another --reference", &reference),
        ("another --matmul-precision", precision),
        ("another version of the program", env!("CARGO_PKG_VERSION")),
    ];
    check_same_run(settings, &contents, ranks)?;
    let parts = [&text, &data, &eval, &hashes.policy, &reference, precision];
    Ok(parts_hash(parts.map(str::as_bytes)))
}

/// Checks that every row is what a run's loss needs: one text to imitate, a pair, or a pair or a text with a label.
///
/// # Errors
/// [`Error::File`] naming the first row that is not.
pub(super) fn check_rows(rows: &Preferences, settings: &TrainSettings) -> Result<()> {
    let is_single = |e: &Example| e.sequences.len() == 1 && e.desirable.is_none();
    let is_pair = |e: &Example| e.sequences.len() == 2;
    let (needs, is_fit): (&str, &dyn Fn(&Example) -> bool) = match &settings.preference {
        None => ("one text to imitate (DataOptions::purpose)", &is_single),
        Some(p) if p.needs_pairs() => ("a preference", &is_pair),
        Some(_) => ("a preference or a text with a label", &|e| !is_single(e)),
    };
    let data = rows.dataset();
    match data.examples.iter().find(|e| !is_fit(e)) {
        Some(row) => Err(Error::file(data.place(row.row), format!("the loss needs {needs} in each row"))),
        None => Ok(()),
    }
}
