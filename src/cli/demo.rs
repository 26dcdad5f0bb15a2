//! `demo`: the whole story on the bundled model. Samples, DPO and JPO training from the same start, samples again, and how often the
//! grader prefers the answers.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use serde_json::Value;

use super::Finished;
use super::args::{DataArgs, DemoArgs, ModelArgs, ObjectiveArgs, TrainArgs};
use super::output::{command_line, text_table};
use super::output_folder::OutputFolder;
use super::session::{self, Model};
use super::train;
use crate::data::rows::Instruction;
use crate::data::template::Template;
use crate::error::{Error, Result, visible};
use crate::eval::MOST_ROWS;
use crate::eval::generate::{Settings, generate};
use crate::eval::tasks::{Item, Split, grade, rows, tokenizer, win_rate};
use crate::files::LOCK;
use crate::gpu::Gpu;
use crate::kernels::sample::Sampling;
use crate::model::description::Description;
use crate::model::save::{OutputDtype, Planned, SHARD_BYTES, Staging, write_model};
use crate::model::trace::Keep;
use crate::model::weights::BaseDtype;
use crate::objective::Goal;
use crate::objective::{Objective, Preference};
use crate::progress::ProgressReporter;
use crate::rng::Rng;
use crate::train::metrics::{self, METRICS};
use crate::train::outcome::Reference;
use crate::train::report::{self, Report, Sample, Table};
use crate::train::settings::TrainDefaults;
use crate::train::synthetic;
use crate::train::trainer::Trainer;
use crate::validate::{at_least_one, at_most};

/// Sizes and rates of the demo, chosen so that it ends within five minutes on two CPU cores.
mod recipe {
    /// Training pairs.
    pub const PAIRS: usize = 2_000;
    /// Pairs to measure accuracy and margins on.
    pub const VALIDATION: usize = 90;
    /// Prompts to answer.
    pub const PROMPTS: usize = 150;
    /// Steps of each objective.
    pub const STEPS: usize = 80;
    /// Of each objective, at least, however slow the device is.
    pub const LEAST_STEPS: usize = 10;
    /// What both trainings may take, reference scores included: these cost about a third of the steps.
    pub const TRAINING_SECONDS: f64 = 220.0;
    /// Tokens of a side, about.
    pub const SIDE_TOKENS: usize = 24;
    /// Pairs a step.
    pub const BATCH: usize = 32;
    /// Of the adapter.
    pub const LEARNING_RATE: f64 = 1e-3;
    /// Longest answer.
    pub const MAX_NEW_TOKENS: usize = 32;
    /// Standard deviation of untrained weights.
    pub const INIT_STD: f32 = 0.04;
}

/// `jointwise demo`.
pub fn run(args: &DemoArgs) -> Result<Finished> {
    match &args.prepare {
        Some(dir) => prepare(dir, args.seed).map(|()| Finished::Whole),
        None => story(args),
    }
}

/// The untrained model in `dir/model`, all data beside it: what the bundled model was made from.
fn prepare(dir: &Path, seed: u64) -> Result<()> {
    let _folder = OutputFolder::open(dir, false)?;
    Staging::filled(dir, |aside| prepare_in(aside, seed))?;
    let shape = tokenizer::Shape::DEMO;
    let model = dir.join("model");
    note!("{} parameters, untrained, in {}; data in {}", shape.n_parameters(), model.display(), dir.display());
    Ok(())
}

fn prepare_in(dir: &Path, seed: u64) -> Result<()> {
    let model = dir.join("model");
    fs::create_dir(&model).map_err(|e| Error::file(&model, e))?;
    let shape = tokenizer::Shape::DEMO;
    tokenizer::write(&model, &shape)?;
    let d = Description::from_json(model.join("config.json"), &shape.config_json())?;
    let specs = d.tensors();
    let planned: Vec<Planned> = specs
        .iter()
        .map(|s| Planned { name: s.name.clone(), shape: s.shape.clone(), dtype: OutputDtype::F32 })
        .collect();
    let mut rng = Rng::new(seed, 7);
    write_model(&model, &planned, SHARD_BYTES, &mut |i| {
        let n: usize = specs[i].shape.iter().product();
        let is_norm = specs[i].shape.len() == 1;
        Ok((0..n).map(|_| if is_norm { 1.0 } else { recipe::INIT_STD * rng.normal() }).collect())
    })?;
    rows::write_all(dir, seed, &rows::Sizes::default())
}

/// Removes an earlier demo's results, where the folder holds nothing else.
fn replace_earlier(out: &Path) -> Result<()> {
    const OURS: [&str; 4] = ["data", "dpo", "jpo", "report.html"];
    let mut names = fs::read_dir(out).into_iter().flatten().flatten().map(|e| e.file_name());
    if !names.all(|n| n == LOCK || OURS.iter().any(|ours| n == *ours)) {
        return Ok(());
    }
    for path in OURS.map(|name| out.join(name)) {
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::file(path, e)),
            _ => {}
        }
    }
    Ok(())
}

/// A model's answers to the held-out prompts.
struct Answers {
    name: &'static str,
    texts: Vec<String>,
}

fn story(args: &DemoArgs) -> Result<Finished> {
    let (clock, started) = (Instant::now(), SystemTime::now());
    let out = &args.output_dir;
    let n_prompts = args.prompts.unwrap_or(recipe::PROMPTS);
    at_least_one("prompts", n_prompts)?;
    at_most("prompts", n_prompts, MOST_ROWS)?;
    at_least_one("max-steps", args.max_steps.unwrap_or(recipe::STEPS))?;
    let folder = OutputFolder::open(out, true)?;
    let model = Model::open(&args.model.to_string_lossy(), BaseDtype::Auto)?;
    let gpu = session::open_gpu(&args.device)?;
    replace_earlier(out)?;
    folder.require_empty()?;
    let items = rows::held_out(args.seed, n_prompts);

    say!("1. The bundled model, fine-tuned on answers of mixed quality ({} prompts that it never saw)\n", items.len())?;
    let sft = answer(&gpu, &model, None, &items, "SFT")?;
    show(&items, &[&sft])?;

    let steps = args.max_steps.map_or_else(|| affordable_steps(&gpu, &model.description), Ok)?;
    if steps < args.max_steps.unwrap_or(recipe::STEPS) {
        say!("\nThis device is slow: {steps} steps of each objective instead of {}, to end in time.", recipe::STEPS)?;
    }
    let pairs = (recipe::PAIRS * steps / recipe::STEPS).clamp(recipe::BATCH, recipe::PAIRS);
    let data = write_data(out, args.seed, pairs)?;
    let mut all = vec![sft];
    let mut runs = Vec::new();
    let mut training_seconds = 0.0;
    for (name, objective, files) in
        [("DPO", Objective::Dpo, vec![data[0].clone()]), ("JPO", Objective::Jpo, data[..2].to_vec())]
    {
        let what =
            if objective == Objective::Dpo { "responses to one instruction" } else { "instruction-response pairs" };
        say!("\n{}. {name}: preferences between {what}\n", runs.len() + 2)?;
        let dir = out.join(name.to_lowercase());
        let training = Instant::now();
        if train::run(train_args(args, objective, steps, files, &data[2], &dir), false)?.interrupted {
            note!("stopped: the demo begins anew next time");
            return Ok(Finished::Interrupted);
        }
        training_seconds += training.elapsed().as_secs_f64();
        all.push(answer(&gpu, &model, Some(&dir), &items, name)?);
        runs.push(dir);
    }

    say!("\n4. The same prompts, answered by all three\n")?;
    show(&items, &all.iter().collect::<Vec<_>>())?;
    let table = compare(&items, &all, &runs)?;
    say!("{}", text_table(&table))?;
    let samples = |i: &usize| Sample {
        instruction: items[*i].instruction.clone(),
        answers: all.iter().map(|a| (a.name.to_string(), a.texts[*i].clone())).collect(),
    };
    let report = Report {
        title: "Preference tuning in a few minutes".into(),
        command: command_line(),
        model: model.name.clone(),
        device: gpu.caps().name.clone(),
        parameters: "LoRA, rank 8, all linear layers".into(),
        objective: "JPO (curves) and DPO from the same start".into(),
        data: format!("{pairs} conditional and {pairs} joint preferences, by the grader"),
        started: report::utc(started),
        seconds: clock.elapsed().as_secs_f64(),
        lines: metrics::read(&runs[1].join(METRICS))?,
        tables: vec![table],
        samples: shown(&items).iter().map(samples).collect(),
        ..Report::default()
    };
    report::write(&out.join("report.html"), &report)?;
    say!("{:.0} s. Curves, table and samples: {}", clock.elapsed().as_secs_f64(), out.join("report.html").display())?;
    if gpu.caps().is_cpu {
        say!(
            "All of it ran on the CPU ({}). With a GPU and its Vulkan, Metal or DX12 driver the same command uses it by itself: the same \
             tasks, data and steps, the same results up to rounding, and the {:.0} s of training are what gets shorter.",
            gpu.caps().name,
            training_seconds,
        )?;
    }
    Ok(Finished::Whole)
}

/// Steps of each objective that a device has the time for, by the second of two on random rows and weights of the model's shape.
fn affordable_steps(gpu: &Gpu, d: &Description) -> Result<usize> {
    let decoder = synthetic::decoder(gpu, d, false, recipe::SIDE_TOKENS)?;
    let goal = Goal::Preference(Preference::default());
    let trainer = Trainer { gpu, decoder, goal, share_prefix: true, keep: Keep::Everything, seed: 0 };
    let rows = synthetic::pairs(recipe::BATCH, recipe::SIDE_TOKENS, d.vocab, synthetic::Lengths::Equal);
    let (rows, reference) = (rows.iter().collect::<Vec<_>>(), vec![Reference::default(); recipe::BATCH]);
    let mut seconds = 0.0;
    for number in 1..=2 {
        let started = Instant::now();
        let step =
            trainer.step(&rows, &reference, recipe::BATCH, &TrainDefaults::OPTIMISER, recipe::LEARNING_RATE, number);
        pollster::block_on(step)?;
        seconds = started.elapsed().as_secs_f64();
    }
    let affordable = recipe::TRAINING_SECONDS / (2.0 * (1.0 + 1.0 / 3.0) * seconds);
    Ok((affordable as usize).clamp(recipe::LEAST_STEPS, recipe::STEPS))
}

/// Training files (conditional, joint; `pairs` each) and one of validation pairs.
fn write_data(out: &Path, seed: u64, pairs: usize) -> Result<[PathBuf; 3]> {
    let dir = out.join("data");
    fs::create_dir(&dir).map_err(|e| Error::file(&dir, e))?;
    let [conditional, joint, validation] =
        ["conditional.jsonl", "joint.jsonl", "validation.jsonl"].map(|n| dir.join(n));
    rows::write(&conditional, rows::conditional(Split::Train, seed, pairs))?;
    rows::write(&joint, rows::joint(Split::Train, seed, pairs))?;
    let held = rows::conditional(Split::HeldOut, seed, recipe::VALIDATION);
    rows::write(&validation, held.chain(rows::joint(Split::HeldOut, seed, recipe::VALIDATION)))?;
    Ok([conditional, joint, validation])
}

fn train_args(
    args: &DemoArgs,
    objective: Objective,
    steps: usize,
    data: Vec<PathBuf>,
    validation: &Path,
    dir: &Path,
) -> TrainArgs {
    TrainArgs {
        model: ModelArgs {
            model: Some(args.model.to_string_lossy().into()),
            device: args.device.clone(),
            ..ModelArgs::default()
        },
        data: DataArgs { data, ..DataArgs::default() },
        objective: ObjectiveArgs { objective: Some(objective), ..ObjectiveArgs::default() },
        eval_data: Some(validation.into()),
        lora_targets: vec!["all-linear".into()],
        learning_rate: Some(recipe::LEARNING_RATE),
        batch_size: Some(recipe::BATCH),
        max_steps: Some(steps),
        warmup_steps: Some(5.0),
        logging_steps: Some(10),
        seed: Some(args.seed),
        output_dir: Some(dir.into()),
        ..TrainArgs::default()
    }
}

fn answer(gpu: &Gpu, model: &Model, adapter: Option<&Path>, items: &[Item], name: &'static str) -> Result<Answers> {
    let adapter = model.adapter(adapter)?;
    let tokenizer = model.tokenizer(adapter.as_ref())?;
    let encode = |item: &Item| {
        let ids = tokenizer.encode_prompt(&Instruction::Plain(item.instruction.clone()), &Template::Paper);
        ids.map_err(|reason| Error::flag("model", reason))
    };
    let prompts = items.iter().map(encode).collect::<Result<Vec<_>>>()?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + recipe::MAX_NEW_TOKENS;
    let eos = model.stop_ids(adapter.as_ref(), &tokenizer)?;
    let decoder = model.load(gpu, &session::frozen(model.base, adapter.map(|a| a.lora), longest))?;
    let settings = Settings {
        sampling: Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 },
        max_new_tokens: recipe::MAX_NEW_TOKENS,
        seed: 0,
        eos,
        with_lora: true,
    };
    let progress = ProgressReporter::items("answering", prompts.len());
    let mut texts = Vec::new();
    for group in prompts.chunks(64) {
        let ids = pollster::block_on(generate(gpu, &decoder, group, texts.len(), &settings, &mut |_, _| ()))?;
        for ids in &ids {
            texts.push(tokenizer.decode(ids)?);
        }
        progress.advance(group.len() as u64);
    }
    drop(progress);
    Ok(Answers { name, texts })
}

/// One item of six different kinds.
fn shown(items: &[Item]) -> Vec<usize> {
    let step = (items.len() / 6).max(1);
    (0..items.len()).step_by(step + 1).take(6).collect()
}

fn show(items: &[Item], all: &[&Answers]) -> Result<()> {
    for i in shown(items) {
        say!("   {}", visible(&items[i].instruction))?;
        for a in all {
            let g = grade(&items[i], &a.texts[i]);
            say!("     {} {:>4}  {}", if g.correct { "+" } else { "-" }, a.name, visible(a.texts[i].trim()))?;
        }
    }
    Ok(())
}

/// Win rates, accuracy and margins of each model.
fn compare(items: &[Item], all: &[Answers], runs: &[PathBuf]) -> Result<Table> {
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    let mut table = Table {
        caption: format!("Held-out tasks: {} prompts, greedy answers, judged by the grader", items.len()),
        head: ["", "win rate against gold", "against SFT", "correct", "well formed", "reward accuracy", "reward margin", "mean length"]
            .map(String::from)
            .into(),
        rows: Vec::new(),
        note: "Win rate: (wins + ½ ties) / judged. Accuracy and margin on held-out preferences, under each model's own objective. \
               Length in characters."
            .into(),
    };
    for (n, a) in all.iter().enumerate() {
        let against = |other: &dyn Fn(usize) -> String| {
            let others: Vec<String> = (0..items.len()).map(other).collect();
            let judged = items.iter().zip(&a.texts).zip(&others).map(|((i, a), b)| (i, a.as_str(), b.as_str()));
            win_rate(judged).rate()
        };
        let grades: Vec<_> = items.iter().zip(&a.texts).map(|(i, t)| grade(i, t)).collect();
        let part = |n: usize| n as f64 / items.len().max(1) as f64;
        let metric = |name: &str| -> Result<Option<f64>> {
            let Some(dir) = n.checked_sub(1).map(|i| &runs[i]) else { return Ok(None) };
            let lines = metrics::read(&dir.join(METRICS))?;
            Ok(lines.iter().rev().find_map(|l| l.get(name).and_then(Value::as_f64)))
        };
        let or_dash = |x: Option<String>| x.unwrap_or_else(|| "–".into());
        table.rows.push(vec![
            a.name.into(),
            percent(against(&|i| items[i].gold.clone())),
            percent(against(&|i| all[0].texts[i].clone())),
            percent(part(grades.iter().filter(|g| g.correct).count())),
            percent(part(grades.iter().filter(|g| g.score >= 0.99).count())),
            or_dash(metric("eval_rewards/accuracies")?.map(percent)),
            or_dash(metric("eval_rewards/margins")?.map(|x| format!("{x:+.2}"))),
            format!(
                "{:.0}",
                a.texts.iter().map(|t| t.chars().count()).sum::<usize>() as f64 / items.len().max(1) as f64
            ),
        ]);
    }
    Ok(table)
}
