//! A training run as an iterator over its steps.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime};

use super::memory_demand::{MemoryDemand, kept_reference};
use super::open_reference::OpenReference;
use super::policy::Policy;
use super::preferences::Preferences;
use super::recipe::Recipe;
use super::run_facts::{ContentHashes, RunFacts, check_rows, fingerprint};
use super::run_folder::RunFolder;
use super::save::TunedModel;
use super::several_ranks::RunStart;
use crate::data::batch::{Example, PrefixSharing};
use crate::error::{Error, Result};
use crate::gpu::{Caps, Gpu};
use crate::model::save::OutputDtype;
use crate::ranks::Ranks;
use crate::train::memory_plan::largest_micro_batch;
use crate::train::metrics::StepMetrics;
use crate::train::run::{CheckpointSettings, RunEnd, TrainingEvent, TrainingRun};
use crate::train::settings::{ReferenceChoice, TrainDefaults};
use crate::train::step_launches::{StepLaunch, TimedLaunches};
use crate::validate::at_least_one;

/// Stop flag, which is never set, of a run that has no stop flag of its own.
static NEVER: AtomicBool = AtomicBool::new(false);

/// Options of a run besides its recipe.
///
/// # Examples
/// ```
/// # let temporary = tempfile::tempdir()?;
/// # std::env::set_current_dir(&temporary)?;
/// use jointwise::{RunFolder, TrainingOptions};
/// let options = TrainingOptions { folder: Some(RunFolder::resume("runs/first")?), save_steps: 50, ..Default::default() };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TrainingOptions<'a> {
    /// Rows for evaluation.
    pub eval: Option<&'a Preferences>,
    /// Steps between evaluations. `None`: at the end.
    pub eval_steps: Option<usize>,
    /// Reference that is open already, where the recipe names another checkpoint. `None`: it is opened when training begins.
    pub reference: Option<OpenReference>,
    /// Folder for metrics, checkpoints and the result. `None`: the run lives in memory.
    pub folder: Option<RunFolder>,
    /// Steps between checkpoints.
    pub save_steps: usize,
    /// Number of checkpoints that stay; older ones are removed.
    pub save_total_limit: usize,
    /// Data type of the saved weights. `None`: the model's, and f32 for adapters.
    pub output_dtype: Option<OutputDtype>,
    /// Record each step while the one before it runs, which hides the host's work. Nothing else may then use the device between two steps, so it is off
    /// unless a program drives the run alone, as the command line does.
    pub record_ahead: bool,
    /// Ranks of a data parallel run. Rank 0 alone has a `folder`.
    pub ranks: Ranks,
    /// Flag that another thread sets to end the run after the step under way, with a checkpoint.
    pub stop: &'a AtomicBool,
}

impl Default for TrainingOptions<'_> {
    fn default() -> Self {
        Self {
            eval: None,
            eval_steps: None,
            reference: None,
            folder: None,
            save_steps: TrainDefaults::SAVE_STEPS,
            save_total_limit: TrainDefaults::SAVE_TOTAL_LIMIT,
            output_dtype: None,
            record_ahead: false,
            ranks: Ranks::alone(),
            stop: &NEVER,
        }
    }
}

/// Metrics of a step.
///
/// # Examples
/// ```
/// use jointwise::TrainingStep;
/// fn line(step: &TrainingStep) -> String {
///     format!("{:>3}  loss {:.4}  accuracy {:.2}", step.number, step.loss, step.accuracy)
/// }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingStep {
    /// Number of the step, from 1.
    pub number: usize,
    /// Mean loss before the update.
    pub loss: f64,
    /// Share of pairs whose chosen side has the larger reward, ties ½; NaN without pairs.
    pub accuracy: f64,
    /// Mean difference of the rewards of chosen and rejected sides; NaN without both.
    pub margin: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// Tokens that the step computed.
    pub tokens: u64,
    /// Seconds that the step took.
    pub seconds: f64,
}

impl From<StepMetrics> for TrainingStep {
    fn from(m: StepMetrics) -> Self {
        Self {
            number: m.step as usize,
            loss: m.loss,
            accuracy: m.pairs.map_or(f64::NAN, |pairs| pairs.accuracies),
            margin: m.pairs.map_or(f64::NAN, |pairs| pairs.margins),
            grad_norm: m.grad_norm,
            learning_rate: m.learning_rate,
            tokens: m.tokens,
            seconds: m.seconds,
        }
    }
}

/// A training run, which computes one step for each item that is taken from it.
///
/// [`Self::finish`] computes the steps that are left and gives the tuned model; [`TrainingOptions::stop`] ends a run earlier.
///
/// # Examples
/// ```
/// use jointwise::{Gpu, LoraConfig, Policy, Preferences, Recipe};
/// let gpu = Gpu::open_best()?;
/// let policy = Policy::open("models/demo")?.with_lora(LoraConfig::all_linear(4))?;
/// let data = Preferences::read("examples/preferences.jsonl", &policy)?;
/// let recipe = Recipe { max_steps: Some(3), batch_size: 2, ..Recipe::default() };
/// let mut training = policy.train(&gpu, &data, &recipe)?;
/// let losses = training.by_ref().map(|step| step.map(|step| step.loss)).collect::<Result<Vec<_>, _>>()?;
/// assert_eq!(losses.len(), 3);
/// assert!((losses[0] - 2f64.ln()).abs() < 1e-3, "no preference yet");
/// # Ok::<(), jointwise::Error>(())
/// ```
pub struct Training<'a> {
    about: RunFacts<'a>,
    run: TrainingRun<'a>,
    stop: &'a AtomicBool,
    has_failed: bool,
}

/// Logs the events that a caller without a handler of its own should know.
fn log_event(event: &TrainingEvent<'_>) {
    match event {
        TrainingEvent::Damaged(error) => note!("warning: {error}: going on from an older checkpoint"),
        TrainingEvent::Note(text) => note!("note: {text}"),
        TrainingEvent::Eval(m) => note!("step {}  eval loss {:.4}", m.step, m.loss),
        TrainingEvent::Step(_) | TrainingEvent::Scored { .. } | TrainingEvent::Evaluated { .. } => {}
    }
}

impl Policy {
    /// Begins to train on rows. The recipe's memory is planned first: where activations do not fit the device, some are recomputed.
    ///
    /// # Errors
    /// [`Error::Flag`] for a recipe that does not fit the model or the data; [`Error::OutOfMemory`] with changes that would take less memory;
    /// [`Error::Gpu`].
    ///
    /// # Examples
    /// ```
    /// use jointwise::{Gpu, LoraConfig, Policy, Preferences, Recipe};
    /// let gpu = Gpu::open_best()?;
    /// let policy = Policy::open("models/demo")?.with_lora(LoraConfig::default())?;
    /// let data = Preferences::read("examples/preferences.jsonl", &policy)?;
    /// let recipe = Recipe { max_steps: Some(2), batch_size: 2, ..Recipe::default() };
    /// let training = policy.train(&gpu, &data, &recipe)?;
    /// # let temporary = tempfile::tempdir()?;
    /// # std::env::set_current_dir(&temporary)?;
    /// training.finish()?.save("runs/first")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn train<'a>(&'a self, gpu: &'a Gpu, data: &'a Preferences, recipe: &Recipe) -> Result<Training<'a>> {
        self.train_with(gpu, data, recipe, TrainingOptions::default(), &mut log_event)
    }

    /// Begins to train with an output folder, evaluations, or a flag that stops the run. `on_event` sees how far scoring with the reference is.
    ///
    /// # Errors
    /// Those of [`Self::train`]; [`Error::File`] where the folder's checkpoints are of other settings, data or model.
    ///
    /// # Examples
    /// ```
    /// use jointwise::{Gpu, LoraConfig, Policy, Preferences, Recipe, RunFolder, TrainingOptions};
    /// let gpu = Gpu::open_best()?;
    /// let policy = Policy::open("models/demo")?.with_lora(LoraConfig::default())?;
    /// let data = Preferences::read("tests/data/prefs.jsonl", &policy)?;
    /// let eval = Preferences::read("examples/preferences.jsonl", &policy)?;
    /// let recipe = Recipe { max_steps: Some(2), batch_size: 2, ..Recipe::default() };
    /// # let temporary = tempfile::tempdir()?;
    /// # std::env::set_current_dir(&temporary)?;
    /// let folder = Some(RunFolder::resume("runs/first")?);
    /// let options = TrainingOptions { eval: Some(&eval), eval_steps: Some(20), folder, ..TrainingOptions::default() };
    /// let training = policy.train_with(&gpu, &data, &recipe, options, &mut |_| ())?;
    /// training.finish()?.save_in_folder()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn train_with<'a>(
        &'a self,
        gpu: &'a Gpu,
        data: &'a Preferences,
        recipe: &Recipe,
        options: TrainingOptions<'a>,
        on_event: &mut dyn FnMut(&TrainingEvent<'_>),
    ) -> Result<Training<'a>> {
        at_least_one("save-steps", options.save_steps)?;
        at_least_one("save-total-limit", options.save_total_limit)?;
        at_least_one("eval-steps", options.eval_steps.unwrap_or(1))?;
        let (ranks, mut settings) = (options.ranks, recipe.settings()?);
        let start = RunStart::agree(options.folder.as_ref(), None, ranks)?;
        start.set_ranks(&mut settings, ranks);
        [Some(data), options.eval].into_iter().flatten().try_for_each(|rows| check_rows(rows, &settings))?;
        self.model().side_files(self.adapter()).check_copied()?;
        if self.is_full() {
            self.model().refuse_quantised("--full")?;
        }
        let schedule = settings.schedule(data.len());
        if schedule.warmup_steps > 1 && schedule.warmup_steps >= schedule.max_steps {
            note!(
                "note: the warm-up has {} steps and the run {}: the learning rate never comes to its highest",
                schedule.warmup_steps,
                schedule.max_steps
            );
        }
        self.require_end(data.template())?;
        let dropout = self.adapter().map_or(0.0, |adapter| adapter.config.dropout);
        if dropout > 0.0 && settings.lora_dropout == 0.0 {
            note!("note: the adapter was made with dropout {dropout}; it is trained without");
        }
        let adapter = self.starting_adapter(settings.seed)?;
        let other = match (&recipe.reference, &settings.preference) {
            (ReferenceChoice::Model(name), Some(_)) => match options.reference {
                Some(open) => Some(open),
                None => Some(OpenReference::open(name, self.model())?),
            },
            _ => None,
        };
        let hashes = ContentHashes::new(self.model(), adapter.as_deref(), other.as_ref())?;
        let (rows, caps) = ([Some(data), options.eval], gpu.caps());
        let fingerprint = fingerprint(&settings, &rows, &hashes, &recipe.reference, caps, ranks)?;
        start.note(&settings, ranks);
        let mut about = RunFacts {
            fingerprint,
            ranks,
            kept: kept_reference(&recipe.reference, &settings, adapter.as_deref(), other.as_ref()),
            longest: data.dataset().longest().max(options.eval.map_or(0, |eval| eval.dataset().longest())),
            policy: self,
            adapter,
            data,
            eval: options.eval,
            settings,
            recipe: recipe.clone(),
            folder: options.folder,
            output_dtype: options.output_dtype,
            n_trained: 0,
            started: (SystemTime::now(), Instant::now()),
        };
        let cadence = CheckpointSettings { save_steps: options.save_steps, save_total_limit: options.save_total_limit };
        let (eval_steps, stop) = (options.eval_steps, options.stop);
        let mut run = about.start(gpu, other, &hashes, cadence, (eval_steps, stop), on_event)?;
        run.record_ahead(options.record_ahead);
        Ok(Training { about, run, stop, has_failed: false })
    }

    /// Describes what decides how much memory a run takes.
    ///
    /// # Errors
    /// [`Error::Flag`] for a recipe that does not fit the model.
    pub fn memory_demand<'a>(
        &'a self,
        caps: &'a Caps,
        data: &Preferences,
        eval: Option<&Preferences>,
        recipe: &Recipe,
    ) -> Result<MemoryDemand<'a>> {
        let rows: Vec<&Example> = data.dataset().examples.iter().collect();
        let sharing = PrefixSharing::new(recipe.share_prefix, self.description());
        let largest = largest_micro_batch(&rows, recipe.batch_size, sharing);
        let longest = data.dataset().longest().max(eval.map_or(0, |eval| eval.dataset().longest()));
        let adapter = self.starting_adapter(recipe.seed)?;
        MemoryDemand::new(caps, self.model(), adapter, recipe, largest.into_iter().cloned().collect(), longest)
    }
}

impl<'a> Training<'a> {
    /// Computes the next step; `on_event` sees its metrics, evaluations and passes over rows as they happen. Returns `None` after the last step, or where
    /// the run was stopped.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming step, rows and tensor; [`Error::Gpu`], [`Error::DeviceLost`], [`Error::File`]. Files that were
    /// written before stay whole.
    ///
    /// # Examples
    /// ```
    /// # use jointwise::{Gpu, LoraConfig, Policy, Preferences, Recipe};
    /// # let (gpu, policy) = (Gpu::open_best()?, Policy::open("models/demo")?.with_lora(LoraConfig::default())?);
    /// # let data = Preferences::read("examples/preferences.jsonl", &policy)?;
    /// # let recipe = Recipe { max_steps: Some(2), batch_size: 2, ..Recipe::default() };
    /// use jointwise::train::run::TrainingEvent;
    /// let mut training = policy.train(&gpu, &data, &recipe)?;
    /// let mut show = |event: &TrainingEvent<'_>| {
    ///     if let TrainingEvent::Eval(metrics) = event {
    ///         println!("evaluation loss {:.4}", metrics.loss);
    ///     }
    /// };
    /// while let Some(step) = training.step(&mut show)? {
    ///     println!("step {} of {}", step.number, training.max_steps());
    /// }
    /// # assert_eq!(training.steps_done(), 2);
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    pub fn step(&mut self, on_event: &mut dyn FnMut(&TrainingEvent<'_>)) -> Result<Option<TrainingStep>> {
        if self.has_failed {
            return Ok(None);
        }
        let step = pollster::block_on(self.run.step(self.stop, on_event));
        self.has_failed = step.is_err();
        let step = self.about.advise(self.run.trainer().gpu.caps(), step)?;
        Ok(step.map(TrainingStep::from))
    }

    /// Tells whether the run was stopped before its last step.
    pub fn is_interrupted(&self) -> bool {
        self.run.end() == Some(RunEnd::Interrupted)
    }

    /// Returns the steps that are done.
    pub fn steps_done(&self) -> usize {
        self.run.state().step
    }

    /// Returns the steps of the whole run.
    pub fn max_steps(&self) -> usize {
        self.run.max_steps()
    }

    /// Returns the number of trained parameters.
    pub fn n_trained(&self) -> usize {
        self.about.n_trained
    }

    /// Returns the kernel launches of the last step, or of the first where there was none: shader, workgroups, bytes and operations of each, in
    /// the order in which they run.
    ///
    /// # Errors
    /// [`Error::Gpu`].
    ///
    /// # Examples
    /// ```
    /// # use jointwise::{Gpu, LoraConfig, Policy, Preferences, Recipe};
    /// # let (gpu, policy) = (Gpu::open_best()?, Policy::open("models/demo")?.with_lora(LoraConfig::default())?);
    /// # let data = Preferences::read("examples/preferences.jsonl", &policy)?;
    /// # let recipe = Recipe { max_steps: Some(2), batch_size: 2, ..Recipe::default() };
    /// let mut training = policy.train(&gpu, &data, &recipe)?;
    /// let launches = training.step_launches()?;
    /// let bytes: u64 = launches.iter().map(|one| one.launch.work.bytes).sum();
    /// println!("{} launches move {bytes} bytes; the last is {}", launches.len(), launches.last().unwrap().launch.shader.entry);
    /// # assert_eq!(launches.last().unwrap().launch.shader.entry, "adamw");
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    pub fn step_launches(&mut self) -> Result<Vec<StepLaunch>> {
        pollster::block_on(self.run.step_launches())
    }

    /// Times each of [`Self::step_launches`] on the device, for about `seconds`. The run then goes on as without it.
    ///
    /// # Errors
    /// [`Error::Gpu`]; [`Error::Flag`] where steps are recorded ahead.
    pub fn time_step(&mut self, seconds: f64) -> Result<TimedLaunches> {
        pollster::block_on(self.run.time_step(seconds))
    }

    /// Computes the steps that are left, and gives the tuned model.
    ///
    /// # Errors
    /// Those of [`Self::step`]; [`Error::Stopped`] where the run was stopped, or has failed, before its last step.
    pub fn finish(mut self) -> Result<TunedModel<'a>> {
        while self.step(&mut log_event)?.is_some() {}
        if self.has_failed || self.is_interrupted() {
            return Err(Error::Stopped { step: self.steps_done() });
        }
        Ok(TunedModel::new(self.about, self.run))
    }

    /// Returns the output folder's path.
    pub fn folder(&self) -> Option<&Path> {
        self.about.folder.as_ref().map(RunFolder::dir)
    }
}

impl Iterator for Training<'_> {
    type Item = Result<TrainingStep>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(&mut log_event).transpose()
    }
}
