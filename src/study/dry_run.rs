//! Estimate of a study before anything is written: its stages with their steps, memory and time.

use std::fmt::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::study_file::{ConditionalSource, JointSource, Study};
use super::time_estimate::TimeEstimator;
use super::{StudyRun, StudyTraining, rows};
use crate::error::{Error, Result, visible};
use crate::flags::TrainArgs;
use crate::flags::peak_bytes;
use crate::report::duration;
use crate::train::settings::TrainDefaults;

/// Stage of a study, as far as it is known before the earlier stages have run.
pub struct StageEstimate {
    /// Name of the stage.
    pub name: String,
    /// Description: rows, steps, questions.
    pub what: String,
    /// Approximate seconds on this device. `None` where the time is unknown, such as a judge's.
    pub seconds: Option<f64>,
}

/// Length of a training run: micro-batches, steps, and rows per step.
pub struct TrainingLength {
    /// Micro-batches of all steps.
    pub micro_batches: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Rows per step.
    pub batch: usize,
}

impl TrainingLength {
    /// Returns the length of a run on `rows` rows.
    pub fn for_rows(args: &TrainArgs, rows: usize) -> Self {
        let accumulated = args.gradient_accumulation_steps.unwrap_or(1).max(1);
        let batch = args.batch_size.unwrap_or(TrainDefaults::BATCH_SIZE).max(1) * accumulated;
        let epochs = args.num_train_epochs.unwrap_or(1.0);
        let steps = args.max_steps.unwrap_or((rows.div_ceil(batch) as f64 * epochs).ceil() as usize);
        Self { micro_batches: steps * accumulated, steps, batch }
    }
}

/// Counts the rows of files, or of the demo's tasks where no file is named.
pub fn count(files: &[PathBuf], of_tasks: Option<usize>) -> Result<usize> {
    match (files, of_tasks) {
        ([], Some(n)) => Ok(n),
        (files, _) => rows::pool(files).map(|rows| rows.len()),
    }
}

/// Writes the list of stages as text, or as JSON. `stages` lists them, with times where a clock could be opened.
pub fn text(
    study: &Study,
    as_json: bool,
    stages: impl FnOnce(Option<&TimeEstimator<'_>>) -> Result<Vec<StageEstimate>>,
) -> Result<String> {
    let memory = peak_bytes(
        &study.model,
        study.methods.iter().map(|m| (&m.train, false)).chain(study.sft.iter().map(|sft| (sft, true))),
    )?;
    let (clock, no_device) = match TimeEstimator::open(study) {
        Ok(clock) => (Some(clock), None),
        Err(Error::Device(reason)) => (None, Some(reason)),
        Err(error) => return Err(error),
    };
    let stages = stages(clock.as_ref())?;
    let untimed = no_device.or_else(|| clock.as_ref()?.untimed());
    let total: f64 = stages.iter().filter_map(|stage| stage.seconds).sum();
    let total = untimed.is_none().then_some(total);
    let device = clock.as_ref().map(TimeEstimator::device);
    if as_json {
        let stages: Vec<Value> = stages
            .iter()
            .map(|StageEstimate { name, what, seconds }| json!({"stage": name, "what": what, "seconds": seconds}))
            .collect();
        return Ok(format!(
            "{}\n",
            json!({"stages": stages, "peak_bytes": memory, "seconds": total, "device": device})
        ));
    }
    let mut text = String::new();
    for StageEstimate { name, what, seconds } in &stages {
        let time = seconds.map_or("–".into(), duration);
        let _ = writeln!(text, "{:<32} {time:>8}  {}", visible(name), visible(what));
    }
    let _ = writeln!(text, "\ndevice memory of the largest training: {:.0} MiB", memory as f64 / 1_048_576.0);
    let time = match (total, device) {
        (Some(seconds), Some(device)) => format!("time on {device}, without the judge's: about {}", duration(seconds)),
        _ => format!("time: not known, {}", untimed.unwrap_or_default()),
    };
    Ok(text + &time + "\n")
}

/// Lists the stages of a study.
pub fn stages(run: &StudyRun<'_>, clock: Option<&TimeEstimator<'_>>) -> Result<Vec<StageEstimate>> {
    let study = run.study;
    let trained = |args: &TrainArgs, shares, micro_batches| {
        clock.map_or(Ok(None), |clock| clock.training(args, shares, micro_batches))
    };
    let answers = |n, batch, longest| clock.map_or(Ok(None), |clock| clock.answers(n, batch, longest));
    let mut stages: Vec<StageEstimate> = Vec::new();
    let mut add = |name: &str, what: String, seconds| stages.push(StageEstimate { name: name.into(), what, seconds });
    if let Some(tasks) = study.tasks {
        let what = format!("{} supervised rows, {} instructions, {} test rows", tasks.sft, tasks.prompts, tasks.test);
        add("tasks", what, Some(0.0));
    }
    if let Some(sft) = &study.sft {
        let rows = count(&sft.data.data, study.tasks.map(|tasks| tasks.sft))?;
        let length = TrainingLength::for_rows(sft, rows);
        let what = format!("{rows} rows, {} steps of {}", length.steps, length.batch);
        add("sft", what, trained(sft, None, length.micro_batches)?);
    }
    let most = most(study)?;
    if let ConditionalSource::Sampled(sample) = &study.conditional {
        let prompts = most[0];
        let seconds = answers(2 * prompts, sample.batch_size, sample.max_new_tokens)?;
        add("sample", format!("2 responses to each of {prompts} prompts, temperature {}", sample.temperature), seconds);
        add("conditional", format!("at most {} questions", 2 * prompts), None);
    }
    if let JointSource::Drawn(..) = study.joint {
        add("joint", format!("at most {} questions", 2 * most[1]), None);
    }
    for training in run.trainings() {
        let StudyTraining { method, fraction, .. } = training;
        let rows: usize = (0..2).map(|i| rows::count(most[i], method.shares[i], fraction)).sum();
        let length = TrainingLength::for_rows(&method.train, rows);
        let seconds = trained(&method.train, Some(method.shares), length.micro_batches)?;
        let what = format!("at most {rows} preferences, {} steps of {}", length.steps, length.batch);
        add(&format!("train/{}", training.name()), what, seconds);
    }
    let sampled = study.evaluate.sampling()?;
    let checkpoints = run.trainings().count() + 1;
    let per = sampled.temperatures.len() * sampled.seeds.len();
    let tests = count(&study.evaluate.data, study.tasks.map(|tasks| tasks.test))?;
    let tests = study.evaluate.limit.map_or(tests, |limit| limit.min(tests));
    let n = checkpoints * per * tests;
    let what = format!("{checkpoints} checkpoints, {per} answers to each of {tests} prompts, two questions an answer");
    let (batch, most) = (study.evaluate.batch_size, study.evaluate.max_new_tokens);
    add("evaluate", what, answers(n, batch, most)?);
    Ok(stages)
}

/// Counts conditional and joint preferences: those in files, or the most that sampling and drawing can give.
fn most(study: &Study) -> Result<[usize; 2]> {
    let conditional = match &study.conditional {
        ConditionalSource::Sampled(sample) => count(&sample.data, study.tasks.map(|tasks| tasks.prompts))?,
        ConditionalSource::Files(files) => count(files, None)?,
    };
    let joint = match &study.joint {
        JointSource::Drawn(draw) => draw.pairs.unwrap_or(conditional),
        JointSource::Files(files) => count(files, None)?,
        JointSource::None => 0,
    };
    Ok([conditional, joint])
}
