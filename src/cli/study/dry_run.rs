//! What a study would take: its stages with their steps, memory and time, before anything is written.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::clock::Clock;
use super::plan::{Pairs, Preferences, Study};
use super::{Run, Training, rows};
use crate::cli::args::TrainArgs;
use crate::cli::evaluate::sampled::Sampled;
use crate::cli::plan;
use crate::error::{Error, Result, visible};
use crate::train::report::duration;
use crate::train::settings::TrainDefaults;

/// A stage, as far as it can be known before those before it.
struct Stage {
    name: String,
    what: String,
    /// On this device, about; `None` where it is not known, as of what a judge does.
    seconds: Option<f64>,
}

/// Micro-batches of a training, and steps, each of some preferences.
struct Length {
    micro_batches: usize,
    steps: usize,
    batch: usize,
}

impl Length {
    fn of(args: &TrainArgs, rows: usize) -> Self {
        let accumulated = args.gradient_accumulation_steps.unwrap_or(1).max(1);
        let batch = args.batch_size.unwrap_or(TrainDefaults::BATCH_SIZE).max(1) * accumulated;
        let epochs = args.num_train_epochs.unwrap_or(1.0);
        let steps = args.max_steps.unwrap_or((rows.div_ceil(batch) as f64 * epochs).ceil() as usize);
        Self { micro_batches: steps * accumulated, steps, batch }
    }
}

/// Rows of files, or of the demo's tasks where none is named.
fn count(files: &[PathBuf], of_tasks: Option<usize>) -> Result<usize> {
    match (files, of_tasks) {
        ([], Some(n)) => Ok(n),
        (files, _) => rows::pool(files).map(|rows| rows.len()),
    }
}

/// Prints the stages.
pub fn tell(run: &Run<'_>, as_json: bool) -> Result<()> {
    let study = run.study;
    let memory = plan::peak(
        &study.model,
        study.methods.iter().map(|m| (&m.train, false)).chain(study.sft.iter().map(|sft| (sft, true))),
    )?;
    let (clock, no_device) = match Clock::open(study) {
        Ok(clock) => (Some(clock), None),
        Err(Error::Device(reason)) => (None, Some(reason)),
        Err(error) => return Err(error),
    };
    let stages = stages(run, clock.as_ref())?;
    let untimed = no_device.or_else(|| clock.as_ref()?.untimed());
    let total: f64 = stages.iter().filter_map(|stage| stage.seconds).sum();
    let total = untimed.is_none().then_some(total);
    let device = clock.as_ref().map(Clock::device);
    if as_json {
        let stages: Vec<Value> = stages
            .iter()
            .map(|Stage { name, what, seconds }| json!({"stage": name, "what": what, "seconds": seconds}))
            .collect();
        return say!("{}", json!({"stages": stages, "peak_bytes": memory, "seconds": total, "device": device}));
    }
    for Stage { name, what, seconds } in &stages {
        let time = seconds.map_or("–".into(), duration);
        say!("{:<32} {time:>8}  {}", visible(name), visible(what))?;
    }
    say!("\ndevice memory of the largest training: {:.0} MiB", memory as f64 / 1_048_576.0)?;
    match (total, device) {
        (Some(seconds), Some(device)) => say!("time on {device}, without the judge's: about {}", duration(seconds)),
        _ => say!("time: not known, {}", untimed.unwrap_or_default()),
    }
}

fn stages(run: &Run<'_>, clock: Option<&Clock<'_>>) -> Result<Vec<Stage>> {
    let study = run.study;
    let trained = |args: &TrainArgs, shares, micro_batches| {
        clock.map_or(Ok(None), |clock| clock.training(args, shares, micro_batches))
    };
    let answers = |n, batch, longest| clock.map_or(Ok(None), |clock| clock.answers(n, batch, longest));
    let mut stages: Vec<Stage> = Vec::new();
    let mut add = |name: &str, what: String, seconds| stages.push(Stage { name: name.into(), what, seconds });
    if let Some(tasks) = study.tasks {
        let what = format!("{} supervised rows, {} instructions, {} test rows", tasks.sft, tasks.prompts, tasks.test);
        add("tasks", what, Some(0.0));
    }
    if let Some(sft) = &study.sft {
        let rows = count(&sft.data.data, study.tasks.map(|tasks| tasks.sft))?;
        let length = Length::of(sft, rows);
        let what = format!("{rows} rows, {} steps of {}", length.steps, length.batch);
        add("sft", what, trained(sft, None, length.micro_batches)?);
    }
    let most = most(study)?;
    if let Preferences::Sampled(sample) = &study.conditional {
        let prompts = most[0];
        let seconds = answers(2 * prompts, sample.batch_size, sample.max_new_tokens)?;
        add("sample", format!("2 responses to each of {prompts} prompts, temperature {}", sample.temperature), seconds);
        add("conditional", format!("at most {} questions", 2 * prompts), None);
    }
    if let Pairs::Drawn(..) = study.joint {
        add("joint", format!("at most {} questions", 2 * most[1]), None);
    }
    for training in run.trainings() {
        let Training { method, fraction, .. } = training;
        let rows: usize = (0..2).map(|i| rows::count(most[i], method.shares[i], fraction)).sum();
        let length = Length::of(&method.train, rows);
        let seconds = trained(&method.train, Some(method.shares), length.micro_batches)?;
        let what = format!("at most {rows} preferences, {} steps of {}", length.steps, length.batch);
        add(&format!("train/{}", training.name()), what, seconds);
    }
    let sampled = Sampled::of(&study.evaluate)?;
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

/// Conditional and joint preferences: those of files, and of what is not sampled yet the most there can be.
fn most(study: &Study) -> Result<[usize; 2]> {
    let conditional = match &study.conditional {
        Preferences::Sampled(sample) => count(&sample.data, study.tasks.map(|tasks| tasks.prompts))?,
        Preferences::Files(files) => count(files, None)?,
    };
    let joint = match &study.joint {
        Pairs::Drawn(draw) => draw.pairs.unwrap_or(conditional),
        Pairs::Files(files) => count(files, None)?,
        Pairs::None => 0,
    };
    Ok([conditional, joint])
}
