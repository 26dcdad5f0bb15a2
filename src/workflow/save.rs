//! The result of a run: weights, tokenizer, model card and report.

use std::collections::BTreeMap;
use std::path::Path;

use super::output_folder::OutputFolder;
use super::run_facts::RunFacts;
use super::run_folder::{REPORT, RunFolder};
use crate::data::named_templates::CHAT_TEMPLATE;
use crate::error::{Error, Result};
use crate::model::card::ModelCard;
use crate::model::peft::write_adapter;
use crate::model::save::{OutputDtype, StagedFolder, save_model, write_side_files, write_text};
use crate::model::weights::{self, WeightSource};
use crate::objective::Objective;
use crate::report::{self, Report};
use crate::train::checkpoint;
use crate::train::metrics::{self, METRICS, MetricsLine};
use crate::train::run::{BEST, TrainingRun, forget_last};
use crate::train::settings::TrainSettings;
use crate::train::state::TrainingState;

/// A policy after its training, on the device.
///
/// # Examples
/// ```
/// # use jointwise::{Gpu, LoraConfig, Policy, Preferences, Recipe};
/// # let (gpu, policy) = (Gpu::open_best()?, Policy::open("models/demo")?.with_lora(LoraConfig::default())?);
/// # let data = Preferences::read("examples/preferences.jsonl", &policy)?;
/// # let recipe = Recipe { max_steps: Some(2), batch_size: 2, ..Recipe::default() };
/// let tuned = policy.train(&gpu, &data, &recipe)?.finish()?;
/// println!("{} steps, {} tokens", tuned.steps(), tuned.num_tokens());
/// # let temporary = tempfile::tempdir()?;
/// # std::env::set_current_dir(&temporary)?;
/// tuned.save("runs/first")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TunedModel<'a> {
    about: RunFacts<'a>,
    run: TrainingRun<'a>,
}

impl<'a> TunedModel<'a> {
    pub(super) fn new(about: RunFacts<'a>, run: TrainingRun<'a>) -> Self {
        Self { about, run }
    }

    /// Returns the number of steps of the run.
    pub fn steps(&self) -> usize {
        self.run.state().step
    }

    /// Returns the tokens that were computed.
    pub fn num_tokens(&self) -> u64 {
        self.run.state().num_tokens
    }

    /// Writes the result into the run's own folder: a Hugging Face model, or a PEFT adapter, with tokenizer, model card and `report.html`. `best/` gets the
    /// result of the step with the lowest evaluation loss. Once all files are written, the last step's checkpoint is removed. Of several ranks, rank 0 writes,
    /// and the others wait.
    ///
    /// # Errors
    /// [`Error::File`]. A checkpoint of the last step then stays, so that a resumed run saves again. [`Error::Flag`] where the run has no folder.
    pub fn save_in_folder(self) -> Result<()> {
        let ranks = self.run.ranks();
        if ranks.is_first() {
            self.write_folder()?;
        }
        ranks.barrier();
        Ok(())
    }

    fn write_folder(&self) -> Result<()> {
        let folder = self.about.folder.as_ref().map(RunFolder::dir);
        let dir = folder.ok_or_else(|| Error::flag("output-dir", "the run has no folder: name one to save in"))?;
        let state = self.run.state();
        let caps = self.run.trainer().gpu.caps();
        if let Err(error) = self.about.advise(caps, self.write(dir, state)) {
            // A checkpoint keeps the trained values, if one can be written.
            if pollster::block_on(self.run.save_checkpoint(None)).is_ok() {
                note!("note: the result could not be written; --resume goes on from step {}", state.step);
            }
            return Err(error);
        }
        // An error of the best step does not keep the report from being written.
        let best = state.best.map_or(Ok(()), |(_, step)| self.write_best(dir, step));
        report::write(&dir.join(REPORT), &self.report(metrics::read(&dir.join(METRICS))?))?;
        best?;
        forget_last(dir, state)
    }

    /// Writes the result of a run without a folder into one that is empty or absent: a Hugging Face model, or a PEFT adapter, with tokenizer, model card,
    /// `metrics.jsonl` and `report.html`. The result of a run with a folder is saved there alone.
    ///
    /// # Errors
    /// [`Error::Flag`] where the folder holds something; [`Error::File`].
    pub fn save(self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        if let Some(folder) = self.about.folder.as_ref().map(RunFolder::dir) {
            if folder == dir {
                return self.save_in_folder();
            }
            let reason = format!("the run has a folder, {}, where its result is saved", folder.display());
            return Err(Error::flag("output-dir", reason));
        }
        if !self.run.ranks().is_first() {
            return Ok(());
        }
        let _folder = OutputFolder::open(dir, false)?;
        self.write(dir, self.run.state())?;
        let lines = self.run.lines();
        let text: String = lines.iter().map(|line| format!("{}\n", serde_json::Value::from(line.clone()))).collect();
        write_text(&dir.join(METRICS), &text)?;
        report::write(&dir.join(REPORT), &self.report(lines.to_vec()))
    }

    /// Writes the trained adapter, or the whole model, with its tokenizer and card.
    fn write(&self, out: &Path, state: &TrainingState) -> Result<()> {
        let (about, trainer) = (&self.about, self.run.trainer());
        let (model, gpu) = (about.policy.model(), trainer.gpu);
        let read = |w: &weights::Weight| pollster::block_on(weights::read_back(gpu, w, false));
        let mut texts = vec![("README.md", about.card(&gpu.caps().name, state).to_markdown())];
        let chosen = about.policy.tokenizer().chat_templates().chosen_source();
        texts.extend(chosen.map(|source| (CHAT_TEMPLATE, source.to_string())));
        if let Some(adapter) = &about.adapter {
            let dtype = about.output_dtype.unwrap_or(OutputDtype::F32);
            let trained = trainer.decoder.trained_weights();
            return StagedFolder::filled(out, |dir| {
                let lora = &adapter.lora;
                let mut config = adapter.config.clone();
                config.dropout = about.settings.lora_dropout;
                write_adapter(dir, &config, &model.description, lora, dtype, &mut |name| {
                    read(trained.iter().find(|w| w.spec.name == name).ok_or_else(|| Error::file(out, name))?)
                })?;
                write_side_files(&model.side_files(Some(adapter)), dir)?;
                texts.iter().try_for_each(|(name, text)| write_text(&dir.join(name), text))
            });
        }
        let all: BTreeMap<&str, &weights::Weight> =
            trainer.decoder.weights().into_iter().map(|w| (w.spec.name.as_str(), w)).collect();
        let (checkpoint, dtype) = (&model.checkpoint, about.output_dtype);
        save_model(out, checkpoint, &model.side, &model.description, dtype, &texts, &mut |spec| {
            all.get(spec.name.as_str()).map_or_else(|| checkpoint.values(spec), |w| read(w))
        })
    }

    /// Writes `best/`: the result of the step with the lowest evaluation loss. The last step's values are gone from the device after it.
    fn write_best(&self, dir: &Path, step: usize) -> Result<()> {
        let (best, trainer) = (dir.join(BEST), self.run.trainer());
        let found = checkpoint::resume(trainer.gpu, &trainer.decoder.arena, &best, &self.about.fingerprint)?;
        match found.state.filter(|state| state.step == step) {
            Some(state) => self.write(&best, &state),
            None => {
                let reason = format!(
                    "checkpoint-{step}, the step with the lowest evaluation loss, is gone; the last step's result is whole"
                );
                Err(Error::file(best, reason))
            }
        }
    }

    fn report(&self, lines: Vec<MetricsLine>) -> Report {
        let about = &self.about;
        let (started, clock) = about.started;
        let trained = about.n_trained;
        Report {
            title: if about.recipe.supervised { "Supervised fine-tuning".into() } else { "Preference tuning".into() },
            command: report::command_line(),
            model: about.policy.model().name.clone(),
            device: self.run.trainer().gpu.caps().name.clone(),
            parameters: match about.adapter {
                Some(_) => format!("{trained} trained, base {}", about.policy.model().base.name()),
                None => format!("{trained} trained"),
            },
            objective: objective_text(&about.settings),
            data: about.data.dataset().summary(),
            started: report::utc(started),
            seconds: clock.elapsed().as_secs_f64(),
            lines,
            ..Report::default()
        }
    }
}

/// Names the objective of a run, such as "Jpo, sigmoid, β = 0.1".
pub fn objective_text(settings: &TrainSettings) -> String {
    match &settings.preference {
        None => "SFT".into(),
        Some(p) if !p.custom_terms.is_empty() => format!("{:?}, a custom loss", p.objective),
        Some(p) => format!("{:?}, {}, β = {}", p.objective, p.loss, p.beta),
    }
}

impl RunFacts<'_> {
    /// Makes the model card.
    fn card(&self, device: &str, state: &TrainingState) -> ModelCard {
        let s = &self.settings;
        let about = match &s.preference {
            None => "Supervised fine-tuning on the response's tokens.",
            Some(p) if p.objective == Objective::Jpo => {
                "Joint preference optimisation (arXiv 2404.00530): a preference between two instruction-response pairs."
            }
            Some(_) => "Direct preference optimisation (arXiv 2305.18290).",
        };
        let mut settings = vec![
            ("learning-rate", s.learning_rate.to_string()),
            ("lr-scheduler-type", s.lr_scheduler_type.name().into()),
            ("warmup-steps", s.schedule(self.data.len()).warmup_steps.to_string()),
            ("batch-size", s.batch_size.to_string()),
            ("gradient-accumulation-steps", s.gradient_accumulation_steps.to_string()),
            ("steps", state.step.to_string()),
            ("tokens", state.num_tokens.to_string()),
            ("optim", s.optim.name().to_string()),
            ("param-dtype", s.param_dtype.name().to_string()),
            ("saved-dtype", s.saved_dtype.name().to_string()),
            ("adam-beta1", s.optimiser.adam_beta1.to_string()),
            ("adam-beta2", s.optimiser.adam_beta2.to_string()),
            ("adam-epsilon", s.optimiser.adam_epsilon.to_string()),
            ("weight-decay", s.optimiser.weight_decay.to_string()),
            ("max-grad-norm", s.optimiser.max_grad_norm.to_string()),
            ("seed", s.seed.to_string()),
        ];
        if s.n_ranks > 1 {
            settings.push(("ranks", s.n_ranks.to_string()));
            settings.push(("reduce-dtype", s.reduce_dtype.name().into()));
        }
        if let Some(p) = &s.preference {
            let loss = if p.custom_terms.is_empty() { p.loss.to_string() } else { "custom".into() };
            settings.extend([("loss", loss), ("beta", p.beta.to_string())]);
        }
        if let Some(a) = &self.adapter {
            settings.extend([
                ("lora-r", a.lora.rank.to_string()),
                ("lora-scale", a.lora.scale.to_string()),
                ("base-dtype", self.policy.model().base.name().to_string()),
            ]);
            if s.lora_dropout > 0.0 {
                settings.push(("lora-dropout", s.lora_dropout.to_string()));
            }
        }
        ModelCard {
            base: self.policy.model().name.clone(),
            adapter: self.adapter.is_some(),
            method: s.preference.as_ref().map_or("SFT".into(), |p| format!("{:?}", p.objective).to_uppercase()),
            about: about.into(),
            settings: settings.into_iter().map(|(k, v)| (k.to_string(), v)).collect(),
            data: self.data.files().to_vec(),
            results: Vec::new(),
            device: device.into(),
        }
    }
}
