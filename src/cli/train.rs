//! `sft` and `train`: training runs with progress on the terminal.

use std::cell::RefCell;
use std::path::Path;

use serde_json::json;

use super::interrupt::{stop_flag, stop_on_ctrl_c};
use super::objective_note::objective_note;
use crate::data::rows::DatasetType;
use crate::error::{Error, Result};
use crate::flags::{TrainArgs, with_config};
use crate::gpu::Gpu;
use crate::progress::ProgressReporter;
use crate::ranks::Ranks;
use crate::train::metrics::StepMetrics;
use crate::train::run::TrainingEvent;
use crate::train::settings::{ReferenceChoice, TrainDefaults};
use crate::workflow::fitting_changes::{FittingChange, read_auto_fit, write_auto_fit};
use crate::workflow::memory_demand::fits;
use crate::workflow::recovery::{OnDeviceLost, with_recovery};
use crate::workflow::several_ranks::RunStart;
use crate::workflow::{Finished, OpenReference, Policy, Preferences, Recipe, RunFolder, TrainingOptions};

/// Runs `jointwise sft` or `jointwise train`.
pub fn command(args: TrainArgs, sft: bool, ranks: Ranks) -> Result<Finished> {
    let (finished, steps) = run_over(args, sft, ranks)?;
    if finished == Finished::Interrupted {
        note!("stopped after step {steps}: the same command with --resume goes on");
    }
    Ok(finished)
}

/// Trains in one process. Returns how the run ended, and the steps that are done.
pub fn run(args: TrainArgs, sft: bool) -> Result<(Finished, usize)> {
    run_over(args, sft, Ranks::alone())
}

fn run_over(args: TrainArgs, sft: bool, ranks: Ranks) -> Result<(Finished, usize)> {
    let config = args.config.clone();
    let args = with_config(args, config.as_deref(), "train")?;
    let out =
        args.output_dir.clone().ok_or_else(|| Error::flag("output-dir", "is missing: where everything is written"))?;
    let on_device_lost = OnDeviceLost::over(ranks, args.on_device_lost.map(OnDeviceLost::from));
    with_recovery(on_device_lost, &out, args.resume, stop_flag(), |attempt| {
        let mut args = TrainArgs { resume: attempt.resume, ..args.clone() };
        attempt.keep_device(&mut args.model.device.device);
        run_once(args, sft, &out, ranks)
    })
}

/// Inputs of a training run: recipe, policy and rows.
struct TrainingInputs {
    recipe: Recipe,
    policy: Policy,
    data: Preferences,
    eval: Option<Preferences>,
    /// Another checkpoint as the reference, opened before the device is.
    reference: Option<OpenReference>,
}

fn read_inputs(args: &TrainArgs, sft: bool, start: RunStart) -> Result<TrainingInputs> {
    let recipe = args.recipe(sft)?;
    let preference = recipe.preference();
    let options = args.data.options(DatasetType::for_loss(preference.as_ref()))?;
    let policy = args.policy(start.chat_time)?;
    policy.require_end(&options.template)?;
    let data = Preferences::read_with(&args.data.data, &policy, &options)?;
    let eval =
        args.eval_data.iter().map(|file| Preferences::read_with(&[file], &policy, &options)).next().transpose()?;
    if let Some(note) = objective_note(&args.objective, preference.as_ref(), data.dataset()) {
        note!("note: {note}");
    }
    let reference = match &recipe.reference {
        ReferenceChoice::Model(name) if !sft => Some(OpenReference::open(name, policy.model())?),
        _ => None,
    };
    Ok(TrainingInputs { recipe, policy, data, eval, reference })
}

fn run_once(mut args: TrainArgs, sft: bool, out: &Path, ranks: Ranks) -> Result<(Finished, usize)> {
    if args.auto_fit && ranks.are_several() {
        return Err(Error::flag("auto-fit", "knows the memory of one device, not of several ranks"));
    }
    let open = || if args.resume { RunFolder::resume(out) } else { RunFolder::create(out) };
    let folder = ranks.is_first().then(open).transpose()?;
    let start = RunStart::agree(folder.as_ref(), args.data.time, ranks)?;
    if let Some(settings) = read_auto_fit(out)?.filter(|_| args.auto_fit) {
        args.apply(&settings);
    }
    let options = args.model.device_options_of(ranks)?;
    let mut inputs = read_inputs(&args, sft, start)?;
    // --auto-fit may choose a quantised format.
    let options = if args.auto_fit { options } else { options.for_model(inputs.policy.model()) };
    let gpu = Gpu::open_with(&options)?;
    if args.auto_fit && folder.as_ref().is_some_and(|folder| !folder.is_begun()) {
        let changes = fitting_changes(&inputs, &gpu)?;
        if let Some(first) = changes.first() {
            note!("note: --auto-fit: {}: the run then takes {} MiB", first.flags(), first.peak_bytes >> 20);
            args.apply(&first.settings);
            inputs = read_inputs(&args, sft, start)?;
            write_auto_fit(out, &first.settings)?;
        }
    }
    train(&args, inputs, &gpu, (folder, start, ranks))
}

/// Returns the changes that make a run fit the device. There are none where the run fits already, or where that is unknown.
fn fitting_changes(inputs: &TrainingInputs, gpu: &Gpu) -> Result<Vec<FittingChange>> {
    let TrainingInputs { recipe, policy, data, eval, .. } = inputs;
    let demand = policy.memory_demand(gpu.caps(), data, eval.as_ref(), recipe)?;
    if fits(gpu.caps(), &demand.chosen()?.1.ledger) != Some(false) {
        return Ok(Vec::new());
    }
    demand.fitting_changes()
}

fn train(
    args: &TrainArgs,
    inputs: TrainingInputs,
    gpu: &Gpu,
    (folder, start, ranks): (Option<RunFolder>, RunStart, Ranks),
) -> Result<(Finished, usize)> {
    let TrainingInputs { recipe, policy, data, eval, reference } = inputs;
    let mut settings = recipe.settings()?;
    start.set_ranks(&mut settings, ranks);
    let max_steps = settings.max_steps(data.len());
    let options = TrainingOptions {
        eval: eval.as_ref(),
        eval_steps: args.eval_steps,
        reference,
        folder,
        save_steps: args.save_steps.unwrap_or(TrainDefaults::SAVE_STEPS),
        save_total_limit: args.save_total_limit.unwrap_or(TrainDefaults::SAVE_TOTAL_LIMIT),
        output_dtype: args.output_dtype.map(Into::into),
        record_ahead: true,
        ranks,
        stop: stop_flag(),
    };
    let logging_steps = args.logging_steps.unwrap_or(TrainDefaults::LOGGING_STEPS);
    let progress = RefCell::new(None);
    // Once everything is loaded, Ctrl-C ends the run in order.
    let begin = || {
        stop_on_ctrl_c("ending after this step, with a checkpoint");
        TrainingProgress::new(max_steps, logging_steps)
    };
    let show = &mut |event: &TrainingEvent<'_>| progress.borrow_mut().get_or_insert_with(begin).event(event);
    let mut training = policy.train_with(gpu, &data, &recipe, options, show)?;
    progress.borrow_mut().get_or_insert_with(begin);
    if args.profile {
        gpu.start_profile();
    }
    let steps = std::iter::from_fn(|| training.step(show).transpose()).try_for_each(|step| step.map(drop));
    drop(progress);
    if let Some(profile) = gpu.end_profile() {
        profile.table().lines().for_each(|line| note!("{line}"));
    }
    steps?;
    if training.is_interrupted() {
        return Ok((Finished::Interrupted, training.steps_done()));
    }
    let tuned = training.finish()?;
    let (steps, num_tokens) = (tuned.steps(), tuned.num_tokens());
    tuned.save_in_folder()?;
    let (peak_bytes, out) = (gpu.ledger().peak_bytes(), args.output_dir.clone().unwrap_or_default());
    if args.json && ranks.is_first() {
        say!(
            "{}",
            json!({"output_dir": out.to_string_lossy(), "steps": steps, "num_tokens": num_tokens, "peak_bytes": peak_bytes})
        )?;
    }
    note!(
        "{steps} steps, {:.0} MiB of device memory at most; result in {}",
        peak_bytes as f64 / 1_048_576.0,
        out.display()
    );
    Ok((Finished::Whole, steps))
}

/// Progress of a training run: steps with loss, accuracy and speed, and the scoring or evaluation that is under way.
struct TrainingProgress {
    steps: ProgressReporter,
    pass: Option<(&'static str, ProgressReporter)>,
    logging_steps: usize,
    max_steps: usize,
    has_begun: bool,
}

impl TrainingProgress {
    fn new(max_steps: usize, logging_steps: usize) -> Self {
        let steps = ProgressReporter::items("training", max_steps);
        Self { steps, pass: None, logging_steps: logging_steps.max(1), max_steps, has_begun: false }
    }

    /// Shows how far a pass over rows is.
    fn pass(&mut self, label: &'static str, done: usize, total: usize) {
        if self.pass.as_ref().is_none_or(|(shown, _)| *shown != label) {
            self.pass = Some((label, ProgressReporter::items(label, total)));
        }
        if let Some((_, reporter)) = &self.pass {
            reporter.set_counts(done, total);
        }
        if done >= total {
            self.pass = None;
        }
    }

    fn step(&mut self, m: &StepMetrics) {
        let pairs = m.pairs.map_or(String::new(), |p| accuracy(p.accuracies, 2) + &margin(p.margins));
        let speed = m.tokens as f64 / m.seconds.max(1e-9);
        let text = format!("loss {:.4}{pairs}  norm {:.3}  {speed:.0} tokens/s", m.loss, m.grad_norm);
        if !std::mem::replace(&mut self.has_begun, true) {
            // Steps of the run that this one goes on with.
            self.steps.skip(m.step.saturating_sub(1));
        }
        self.steps.set_done(m.step as usize);
        if self.steps.writes_lines() && (m.step as usize).is_multiple_of(self.logging_steps) {
            self.steps.note(&format!("step {}/{}  {text}", m.step, self.max_steps));
        }
        self.steps.set_detail(format!("  {text}"));
    }

    fn event(&mut self, event: &TrainingEvent) {
        match event {
            TrainingEvent::Step(m) => self.step(m),
            TrainingEvent::Eval(m) => {
                let accuracy = m.pairs.map_or(String::new(), |p| accuracy(p.accuracies, 3));
                self.steps.note(&format!("step {}  eval loss {:.4}{accuracy}", m.step, m.loss));
            }
            TrainingEvent::Damaged(error) => {
                self.steps.note(&format!("note: {error}: going on from an older checkpoint"))
            }
            TrainingEvent::Note(note) => self.steps.note(&format!("note: {note}")),
            TrainingEvent::Scored { done, total } => self.pass("scoring with the reference", *done, *total),
            TrainingEvent::Evaluated { done, total } => self.pass("evaluating", *done, *total),
        }
    }
}

/// Writes an accuracy; nothing for NaN, because texts with a label have no accuracy.
fn accuracy(value: f64, digits: usize) -> String {
    if value.is_nan() { String::new() } else { format!("  accuracy {value:.digits$}") }
}

/// Writes a margin; nothing for NaN, because texts without both kinds of label have no margin.
fn margin(value: f64) -> String {
    if value.is_nan() { String::new() } else { format!("  margin {value:+.3}") }
}
