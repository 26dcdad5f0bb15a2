//! `demo`: the whole story on the bundled model. Samples, DPO and JPO training from the same start, samples again, and how often the
//! grader prefers the answers.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use serde_json::Value;

use super::train;
use crate::data::prompt_template::Template;
use crate::data::rows::Instruction;
use crate::error::{Error, Result, visible};
use crate::eval::MOST_ROWS;
use crate::eval::generate::{GenerateSettings, generate};
use crate::eval::tasks::untrained_model::write_untrained;
use crate::eval::tasks::{DataSplit, TaskItem, grade, rows, tokenizer, win_rate};
use crate::files::LOCK;
use crate::flags::{DataArgs, DemoArgs, LoraArgs, ModelArgs, ObjectiveArgs, PresetArg, TrainArgs};
use crate::gpu::Gpu;
use crate::kernels::sample::Sampling;
use crate::model::description::ModelConfig;
use crate::model::save::StagedFolder;
use crate::model::saved::RecomputePolicy;
use crate::model::weights::BaseDtype;
use crate::objective::{Objective, PreferenceLoss, TrainingLoss};
use crate::progress::ProgressReporter;
use crate::report::{self, Report, ReportSample, ReportTable};
use crate::train::metrics::{self, METRICS};
use crate::train::outcome::RowReference;
use crate::train::settings::TrainDefaults;
use crate::train::synthetic;
use crate::train::trainer::Trainer;
use crate::validate::{at_least_one, at_most};
use crate::workflow::demo_model::write_if_absent;
use crate::workflow::{Finished, OpenModel, OutputFolder, Policy, PolicyOptions};

/// Sizes and rates of the demo, chosen so that it ends within five minutes on two CPU cores.
mod recipe {
    /// Training pairs.
    pub const PAIRS: usize = 2_000;
    /// Pairs to measure accuracy and margins on.
    pub const VALIDATION: usize = 90;
    /// Held-out prompts to answer.
    pub const PROMPTS: usize = 150;
    /// Most steps per objective.
    pub const STEPS: usize = 80;
    /// Fewest steps per objective, however slow the device is.
    pub const LEAST_STEPS: usize = 10;
    /// Seconds that both training runs together may take. Reference scores are included, which cost about a third of the steps.
    pub const TRAINING_SECONDS: f64 = 220.0;
    /// Approximate number of tokens per side.
    pub const SIDE_TOKENS: usize = 24;
    /// Pairs per step.
    pub const BATCH: usize = 32;
    /// Learning rate of the adapter.
    pub const LEARNING_RATE: f64 = 1e-3;
    /// Longest answer, in tokens.
    pub const MAX_NEW_TOKENS: usize = 32;
}

/// Runs `jointwise demo`.
pub fn run(args: &DemoArgs) -> Result<Finished> {
    match &args.prepare {
        Some(dir) => prepare(dir, args.seed).map(|()| Finished::Whole),
        None => run_demo(args),
    }
}

/// Writes the untrained model to `dir/model` and all data beside it. The bundled model was made from these files.
fn prepare(dir: &Path, seed: u64) -> Result<()> {
    let _folder = OutputFolder::open(dir, false)?;
    StagedFolder::filled(dir, |aside| write_untrained(aside, seed))?;
    let shape = tokenizer::DemoShape::DEMO;
    let model = dir.join("model");
    note!("{} parameters, untrained, in {}; data in {}", shape.n_parameters(), model.display(), dir.display());
    Ok(())
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
struct ModelAnswers {
    name: &'static str,
    texts: Vec<String>,
}

fn run_demo(args: &DemoArgs) -> Result<Finished> {
    let (clock, started) = (Instant::now(), SystemTime::now());
    let out = &args.output_dir;
    let n_prompts = args.prompts.unwrap_or(recipe::PROMPTS);
    at_least_one("prompts", n_prompts)?;
    at_most("prompts", n_prompts, MOST_ROWS)?;
    at_least_one("max-steps", args.max_steps.unwrap_or(recipe::STEPS))?;
    let folder = OutputFolder::open(out, true)?;
    write_if_absent(&args.model)?;
    let model = args.model.to_string_lossy();
    let opened = OpenModel::open(&model, BaseDtype::Auto)?;
    let gpu = Gpu::open_with(&args.device.options()?.for_model(&opened))?;
    let description = opened.description;
    replace_earlier(out)?;
    folder.require_empty()?;
    let items = rows::held_out(args.seed, n_prompts);

    say!("1. The bundled model, fine-tuned on answers of mixed quality ({} prompts that it never saw)\n", items.len())?;
    let sft = answer(&gpu, &model, None, &items, "SFT")?;
    show(&items, &[&sft])?;

    let steps = args.max_steps.map_or_else(|| affordable_steps(&gpu, &description), Ok)?;
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
        if train::run(train_args(args, objective, steps, files, &data[2], &dir), false)?.0 == Finished::Interrupted {
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
    say!("{}", table.to_text())?;
    let samples = |i: &usize| ReportSample {
        instruction: items[*i].instruction.clone(),
        answers: all.iter().map(|a| (a.name.to_string(), a.texts[*i].clone())).collect(),
    };
    let report = Report {
        title: "Preference tuning in a few minutes".into(),
        command: report::command_line(),
        model: model.to_string(),
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

/// Returns the steps per objective that a device has the time for. The second of two steps on random rows and weights of the model's shape is timed.
fn affordable_steps(gpu: &Gpu, d: &ModelConfig) -> Result<usize> {
    let decoder = synthetic::decoder(gpu, d, false, recipe::SIDE_TOKENS)?;
    let goal = TrainingLoss::Preference(PreferenceLoss::default());
    let trainer = Trainer { gpu, decoder, goal, share_prefix: true, keep: RecomputePolicy::Everything, seed: 0 };
    let rows = synthetic::pairs(recipe::BATCH, recipe::SIDE_TOKENS, d.vocab, synthetic::RowLengths::Equal);
    let (rows, reference) = (rows.iter().collect::<Vec<_>>(), vec![RowReference::default(); recipe::BATCH]);
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

/// Writes the training files (conditional and joint, `pairs` rows each) and a file of validation pairs.
fn write_data(out: &Path, seed: u64, pairs: usize) -> Result<[PathBuf; 3]> {
    let dir = out.join("data");
    fs::create_dir(&dir).map_err(|e| Error::file(&dir, e))?;
    let [conditional, joint, validation] =
        ["conditional.jsonl", "joint.jsonl", "validation.jsonl"].map(|n| dir.join(n));
    rows::write(&conditional, rows::conditional(DataSplit::Train, seed, pairs))?;
    rows::write(&joint, rows::joint(DataSplit::Train, seed, pairs))?;
    let held = rows::conditional(DataSplit::HeldOut, seed, recipe::VALIDATION);
    rows::write(&validation, held.chain(rows::joint(DataSplit::HeldOut, seed, recipe::VALIDATION)))?;
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
        lora: LoraArgs {
            preset: Some(PresetArg::Paper),
            lora_targets: vec!["all-linear".into()],
            ..LoraArgs::default()
        },
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

fn answer(
    gpu: &Gpu,
    model: &str,
    adapter: Option<&Path>,
    items: &[TaskItem],
    name: &'static str,
) -> Result<ModelAnswers> {
    let model = OpenModel::open(model, BaseDtype::Auto)?;
    let adapter = adapter.map(|place| model.open_adapter(place)).transpose()?;
    let policy = Policy::from_model(model, adapter, PolicyOptions::default())?;
    let tokenizer = policy.tokenizer();
    let encode = |item: &TaskItem| {
        let ids = tokenizer.encode_prompt(&Instruction::Plain(item.instruction.clone()), &Template::Paper);
        ids.map_err(|reason| Error::flag("model", reason))
    };
    let prompts = items.iter().map(encode).collect::<Result<Vec<_>>>()?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + recipe::MAX_NEW_TOKENS;
    let eos = tokenizer.stop_ids().to_vec();
    let decoder = policy.load(gpu, longest)?;
    let settings = GenerateSettings {
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
    Ok(ModelAnswers { name, texts })
}

/// Returns the indices of the items that are shown: six of different kinds.
fn shown(items: &[TaskItem]) -> Vec<usize> {
    let step = (items.len() / 6).max(1);
    (0..items.len()).step_by(step + 1).take(6).collect()
}

fn show(items: &[TaskItem], all: &[&ModelAnswers]) -> Result<()> {
    for i in shown(items) {
        say!("   {}", visible(&items[i].instruction))?;
        for a in all {
            let g = grade(&items[i], &a.texts[i]);
            say!("     {} {:>4}  {}", if g.correct { "+" } else { "-" }, a.name, visible(a.texts[i].trim()))?;
        }
    }
    Ok(())
}

/// Makes the table of win rates, accuracy and margins per model.
fn compare(items: &[TaskItem], all: &[ModelAnswers], runs: &[PathBuf]) -> Result<ReportTable> {
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    let mut table = ReportTable {
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
