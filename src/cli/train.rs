//! `sft` and `train`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Instant, SystemTime};

use serde_json::json;

use super::Finished;
use super::args::{RecomputeArg, TrainArgs, with_config};
use super::fit::{self, FittingChange, MemoryDemand, fits};
use super::interrupt::stop_on_ctrl_c;
use super::load::{load, load_options};
use super::merge::dtype;
use super::objective_note::objective_note;
use super::output::command_line;
use super::output_folder::OutputFolder;
use super::recover::with_recovery;
use super::reference_cache;
use super::session::{self, ChatChoice, Model};
use crate::cli::tokenised;
use crate::data::batch::Example;
use crate::data::dataset::Dataset;
use crate::data::named_templates::CHAT_TEMPLATE;
use crate::data::named_templates::run_time;
use crate::error::{Error, Result};
use crate::files::{not_a_link, parts_hash};
use crate::gpu::{Caps, Gpu, MatmulPrecision};
use crate::model::card::Card;
use crate::model::lora_config::LoraConfig;
use crate::model::peft::{Adapter, write_adapter};
use crate::model::save::{OutputDtype, Staging, save_model, write_side_files, write_text};
use crate::model::scores::DEFAULT_SCORE_TOKENS;
use crate::model::trace::Keep;
use crate::model::weights::{self, Source};
use crate::objective::Goal;
use crate::objective::Objective;
use crate::progress::ProgressReporter;
use crate::train::checkpoint;
use crate::train::metrics::{self, METRICS, StepMetrics};
use crate::train::reference::{OtherModel, ReferenceModel, ReferenceScorer, Rows};
use crate::train::report::{self, Report};
use crate::train::run::{self, BEST, Cadence, EVENTS, Ended, Event, Output, RunData};
use crate::train::schedule::Shape;
use crate::train::score_store::ScoreStore;
use crate::train::settings::{Length, MOST_STEPS, ReferenceChoice, TrainDefaults, TrainSettings};
use crate::train::state::State;
use crate::train::trainer::{Optimiser, Rehearsal, Trainer, largest_micro_batch, reserve};
use crate::validate::at_least_one;

/// The curves' file.
const REPORT: &str = "report.html";

/// Returns the steps of the warm-up, or its part of all steps: `--warmup-steps` below 1 is one, as in transformers 5.
fn warmup(args: &TrainArgs) -> Result<(Option<usize>, Option<f64>)> {
    let wrong = |reason: String| Err(Error::flag("warmup-steps", reason));
    match (args.warmup_steps, args.warmup_ratio) {
        (Some(steps), _) if steps == 0.0 || (steps >= 1.0 && steps.fract() == 0.0 && steps <= MOST_STEPS as f64) => {
            Ok((Some(steps as usize), args.warmup_ratio))
        }
        (Some(part), None) if 0.0 < part && part < 1.0 => Ok((None, Some(part))),
        (Some(part), Some(_)) if 0.0 < part && part < 1.0 => {
            wrong(format!("{part} is a part of all steps, which --warmup-ratio gives too"))
        }
        (Some(other), _) => wrong(format!("{other} is neither a number of steps nor a part of all steps below 1")),
        (None, part) => Ok((None, part)),
    }
}

/// Flags into settings, with every default filled in.
pub fn settings(args: &TrainArgs, sft: bool) -> Result<TrainSettings> {
    session::check_last_turn_only(&args.data, sft)?;
    if args.full {
        session::refuse_quantised(args.model.base_dtype.unwrap_or_default(), "--full")?;
    }
    let o = TrainDefaults::OPTIMISER;
    let rate = match (args.full, sft) {
        (false, _) => TrainDefaults::LEARNING_RATE_LORA,
        (true, true) => TrainDefaults::LEARNING_RATE_SFT,
        (true, false) => TrainDefaults::LEARNING_RATE_FULL,
    };
    session::bad_rows(&args.data)?;
    let (warmup_steps, warmup_part) = warmup(args)?;
    let lr_scheduler_type = args.lr_scheduler_type.unwrap_or(Shape::Cosine);
    if args.lr_num_cycles.is_some() && lr_scheduler_type != Shape::CosineWithRestarts {
        return Err(Error::flag("lr-num-cycles", "goes with --lr-scheduler-type cosine_with_restarts"));
    }
    let settings = TrainSettings {
        preference: if sft { None } else { Some(session::preference(&args.objective)?) },
        optim: args.optim.unwrap_or(TrainDefaults::OPTIM),
        param_dtype: args.param_dtype.unwrap_or(TrainDefaults::PARAM_DTYPE),
        saved_dtype: args.saved_dtype.unwrap_or(TrainDefaults::SAVED_DTYPE),
        optimiser: Optimiser {
            adam_beta1: args.adam_beta1.unwrap_or(o.adam_beta1),
            adam_beta2: args.adam_beta2.unwrap_or(o.adam_beta2),
            adam_epsilon: args.adam_epsilon.unwrap_or(o.adam_epsilon),
            weight_decay: args.weight_decay.unwrap_or(o.weight_decay),
            max_grad_norm: args.max_grad_norm.unwrap_or(o.max_grad_norm),
        },
        learning_rate: args.learning_rate.unwrap_or(rate),
        lr_scheduler_type,
        lr_num_cycles: args.lr_num_cycles.unwrap_or(1),
        length: Length {
            num_train_epochs: args.num_train_epochs.unwrap_or(1.0),
            max_steps: args.max_steps,
            warmup_steps,
            warmup_ratio: warmup_part.unwrap_or(0.0),
        },
        batch_size: args.batch_size.unwrap_or(TrainDefaults::BATCH_SIZE),
        gradient_accumulation_steps: args.gradient_accumulation_steps.unwrap_or(1),
        seed: args.seed.unwrap_or(0),
        shuffle: !args.no_shuffle,
        decay_all: args.decay_all,
        share_prefix: !args.no_share_prefix,
    };
    settings.validate()?;
    at_least_one("logging-steps", args.logging_steps.unwrap_or(TrainDefaults::LOGGING_STEPS))?;
    at_least_one("save-steps", args.save_steps.unwrap_or(TrainDefaults::SAVE_STEPS))?;
    at_least_one("save-total-limit", args.save_total_limit.unwrap_or(TrainDefaults::SAVE_TOTAL_LIMIT))?;
    at_least_one("eval-steps", args.eval_steps.unwrap_or(1))?;
    Ok(settings)
}

/// The adapter to train: an existing one, a new one, or none with `--full`.
pub fn adapter(args: &TrainArgs, model: &Model, seed: u64) -> Result<Option<Adapter>> {
    let existing = model.adapter(args.model.adapter.as_deref())?;
    if args.full {
        return match existing {
            Some(_) => Err(Error::flag("full", "trains the model itself: merge --adapter first")),
            None => Ok(None),
        };
    }
    if let Some(adapter) = existing {
        if adapter.config.dropout > 0.0 {
            note!("note: the adapter was made with dropout {}; it is trained without", adapter.config.dropout);
        }
        return Ok(Some(adapter));
    }
    let d = LoraConfig::default();
    let lora = LoraConfig {
        rank: args.lora_r.unwrap_or(d.rank),
        alpha: args.lora_alpha.unwrap_or(d.alpha),
        targets: if args.lora_targets.is_empty() { d.targets } else { args.lora_targets.clone() },
    };
    Adapter::new(&model.description, &lora, &model.name, seed).map(Some)
}

/// Everything that a score depends on but the tokens: weights, by their digest, and how they are held, configuration, adapter.
fn model_hash(model: &Model, digest: &str, adapter: Option<&Adapter>) -> String {
    let description = format!("{:?}", model.description);
    let mut parts: Vec<&[u8]> = vec![digest.as_bytes(), model.base.name().as_bytes(), description.as_bytes()];
    let scale = adapter.map_or([0; 4], |a| a.lora.scale.to_le_bytes());
    parts.push(&scale);
    for (module, (a, b)) in adapter.iter().flat_map(|a| &a.lora.modules) {
        parts.extend([module.as_bytes(), bytemuck::cast_slice(a), bytemuck::cast_slice(b)]);
    }
    let exceptions = adapter.map_or(String::new(), |a| format!("{:?}", a.lora.exceptions));
    if adapter.is_some_and(|a| !a.lora.exceptions.is_empty()) {
        parts.push(exceptions.as_bytes());
    }
    parts_hash(parts)
}

/// Everything before the first step.
struct Prepared {
    settings: TrainSettings,
    model: Model,
    adapter: Option<Adapter>,
    data: Dataset,
    eval: Option<Dataset>,
    /// The model of `--reference`, where it is another checkpoint, and what [`model_hash`] makes of it.
    reference: Option<(Model, String)>,
    /// Hashes by [`model_hash`] of the policy, and of its base model alone.
    model_hash: String,
    base_hash: String,
    fingerprint: String,
    /// The time that the chat template prints, where it prints one.
    time: Option<u64>,
    /// The source of `--chat-template`, which goes with the result.
    chat_template: Option<String>,
}

/// What a reference is called where contents count: another checkpoint is told by its hash.
fn reference_kind(choice: &ReferenceChoice) -> &'static str {
    match choice {
        ReferenceChoice::Initial => "initial",
        ReferenceChoice::Base => "base",
        ReferenceChoice::Model(_) => "model",
    }
}

fn prepare(args: &TrainArgs, sft: bool) -> Result<Prepared> {
    let settings = settings(args, sft)?;
    let model = Model::of(&args.model)?;
    let adapter = adapter(args, &model, settings.seed)?;
    model.side_files(adapter.as_ref()).check_copied()?;
    let kept_time = args.output_dir.as_deref().filter(|_| args.resume).and_then(checkpoint::kept_time);
    let chat = ChatChoice { time: kept_time.or(args.data.time), ..args.data.chat() };
    let tokenizer = session::dated_tokenizer(&args.data, &model, adapter.as_ref(), chat)?;
    session::require_end(&args.data, &tokenizer, &model)?;
    let templates = tokenizer.chat_templates();
    let prints_time = session::limits(&args.data, &model.description)?.0.renders_chats() && templates.prints_time();
    let time = prints_time.then(|| chat.time.unwrap_or_else(run_time));
    let chat_template = templates.chosen_source().map(String::from);
    let purpose = session::purpose(settings.preference.as_ref());
    let data = tokenised::dataset(&args.data, &args.data.data, &model, &tokenizer, purpose)?;
    let eval = args.eval_data.clone().map(|file| tokenised::dataset(&args.data, &[file], &model, &tokenizer, purpose));
    let eval = eval.transpose()?;
    if let Some(note) = objective_note(&args.objective, settings.preference.as_ref(), &data) {
        note!("note: {note}");
    }
    let choice = session::reference(&args.objective);
    let reference = if sft { None } else { session::reference_model(&choice, &model)? };
    let hashed = |model: Model| {
        let hash = model_hash(&model, &model.checkpoint.digest()?, None);
        Ok((model, hash))
    };
    let reference = reference.map(hashed).transpose()?;
    let of_reference = reference.as_ref().map_or("", |(_, hash)| hash);
    let of_reference = format!("{} {of_reference}", reference_kind(&choice));
    let text = serde_json::to_string(&settings).map_err(|e| Error::file("settings", e))?;
    let digest = model.checkpoint.digest()?;
    let [model_hash, base_hash] = [adapter.as_ref(), None].map(|adapter| model_hash(&model, &digest, adapter));
    let rows = [data.content_hash(), eval.as_ref().map_or(String::new(), Dataset::content_hash)];
    let precision = args.model.device.matmul_precision.clone();
    let precision = precision.unwrap_or_else(|| MatmulPrecision::Highest.name().into());
    let parts = [&text, &rows[0], &rows[1], &model_hash, &of_reference, &precision];
    let fingerprint = parts_hash(parts.map(String::as_bytes));
    Ok(Prepared {
        settings,
        model,
        adapter,
        data,
        eval,
        reference,
        model_hash,
        base_hash,
        fingerprint,
        time,
        chat_template,
    })
}

/// Tells whether the adapter that a run starts from is kept beside the one that it trains: it is the reference, and is more than the model without an adapter.
pub fn keeps_start(args: &TrainArgs, settings: &TrainSettings, adapter: Option<&Adapter>) -> bool {
    let is_new = |adapter: &Adapter| adapter.lora.modules.values().all(|(_, b)| b.iter().all(|&x| x == 0.0));
    session::reference(&args.objective) == ReferenceChoice::Initial
        && settings.preference.is_some_and(|p| p.needs_reference())
        && adapter.is_some_and(|adapter| !is_new(adapter))
}

/// `jointwise sft` and `jointwise train`.
pub fn command(args: TrainArgs, sft: bool) -> Result<Finished> {
    let ended = run(args, sft)?;
    if !ended.interrupted {
        return Ok(Finished::Whole);
    }
    note!("stopped after step {}: the same command with --resume goes on", ended.state.step);
    Ok(Finished::Interrupted)
}

/// Trains. Says how the run ended.
pub fn run(args: TrainArgs, sft: bool) -> Result<Ended> {
    let config = args.config.clone();
    let args = with_config(args, config.as_deref(), "train")?;
    let out =
        args.output_dir.clone().ok_or_else(|| Error::flag("output-dir", "is missing: where everything is written"))?;
    with_recovery(args.on_device_lost, &out, args.resume, |attempt| {
        let mut args = TrainArgs { resume: attempt.resume, ..args.clone() };
        attempt.keep_device(&mut args.model.device);
        run_once(&args, sft, &out)
    })
}

fn run_once(args: &TrainArgs, sft: bool, out: &Path) -> Result<Ended> {
    let folder = OutputFolder::open(out, args.resume)?;
    // A run begins with its metrics: a folder that holds other things is not one's.
    if args.resume && is_begun(out) {
        [METRICS, BEST, EVENTS, REPORT].iter().try_for_each(|name| not_a_link(&out.join(name)).map(drop))?;
        [out, &out.join(BEST)].into_iter().for_each(checkpoint::sweep);
    } else {
        folder.require_empty()?;
        if args.resume {
            note!("note: --resume: {} holds no run: this one begins at the first step", out.display());
        }
    }
    // After the sweep: a checkpoint that it brings back has the run's time.
    let mut args = args.clone();
    if let Some(settings) = fit::read_auto_fit(out)?.filter(|_| args.auto_fit) {
        fit::apply(&settings, &mut args);
    }
    let mut p = prepare(&args, sft)?;
    let schedule = p.settings.schedule(p.data.examples.len());
    if schedule.warmup_steps > 1 && schedule.warmup_steps >= schedule.max_steps {
        note!(
            "note: the warm-up has {} steps and the run {}: the learning rate never comes to its highest",
            schedule.warmup_steps,
            schedule.max_steps
        );
    }
    let gpu = session::open_gpu(&args.model.device)?;
    if args.auto_fit && !is_begun(out) {
        let changes = fitting_changes(&args, &p, gpu.caps())?;
        if let Some(first) = changes.first() {
            note!("note: --auto-fit: {}: the run then takes {} MiB", first.flags(), first.peak_bytes >> 20);
            fit::apply(&first.settings, &mut args);
            p = prepare(&args, sft)?;
            fit::write_auto_fit(out, &first.settings)?;
        }
    }
    match train(&args, sft, &p, &gpu, out) {
        Err(Error::OutOfMemory { refused, advice }) => {
            let demand = memory_demand(&args, &p, gpu.caps());
            let advice = fit::advice_after_refusal(&demand).unwrap_or(advice);
            Err(Error::OutOfMemory { refused, advice })
        }
        ended => ended,
    }
}

/// Tells whether a folder has a run.
fn is_begun(out: &Path) -> bool {
    out.join(METRICS).exists() || out.join(fit::AUTO_FIT).exists() || !checkpoint::list(out).is_empty()
}

/// Describes what decides how much memory the run takes.
fn memory_demand<'a>(args: &TrainArgs, p: &'a Prepared, caps: &'a Caps) -> MemoryDemand<'a> {
    let rows: Vec<&Example> = p.data.examples.iter().collect();
    let largest = largest_micro_batch(&rows, p.settings.batch_size, p.settings.share_prefix);
    MemoryDemand {
        caps,
        model: &p.model,
        adapter: p.adapter.as_ref(),
        settings: p.settings.clone(),
        base: p.model.base,
        recompute: args.recompute,
        keeps_start: keeps_start(args, &p.settings, p.adapter.as_ref()),
        longest: session::longest(&p.data).max(p.eval.as_ref().map_or(0, session::longest)),
        largest: largest.into_iter().cloned().collect(),
    }
}

/// Changes that make a run fit; none where it does, or where that is not known.
fn fitting_changes(args: &TrainArgs, p: &Prepared, caps: &Caps) -> Result<Vec<FittingChange>> {
    let demand = memory_demand(args, p, caps);
    if fits(caps, &demand.chosen()?.1.ledger) != Some(false) {
        return Ok(Vec::new());
    }
    demand.fitting_changes()
}

/// Makes the scorer of the rows with the reference as the run comes to them, and keeps the scores.
fn reference_scorer<'a>(
    p: &'a Prepared,
    gpu: &'a Gpu,
    keeps_start: bool,
    longest: usize,
    max_tokens: usize,
) -> ReferenceScorer<'a> {
    let Some(preference) = &p.settings.preference else { return ReferenceScorer::unneeded(gpu) };
    // Trained values that are rounded on loading score otherwise. Frozen ones are not trained here.
    let (params, frozen) = (p.settings.param_dtype.name(), "frozen");
    let (model, contents) = match &p.reference {
        Some((model, hash)) => {
            let load = move || model.load(gpu, &session::frozen(model.base, None, longest));
            (ReferenceModel::Other(OtherModel::new(load)), [hash, frozen])
        }
        None if keeps_start => (ReferenceModel::Start, [&p.model_hash, params]),
        None if p.adapter.is_some() => (ReferenceModel::WithoutAdapter, [&p.base_hash, frozen]),
        None => (ReferenceModel::Untrained, [&p.model_hash, params]),
    };
    let store = ScoreStore::open(&reference_cache::folder(gpu.caps(), &contents));
    ReferenceScorer::new(gpu, preference, model, max_tokens, Some(store))
}

fn train(args: &TrainArgs, sft: bool, p: &Prepared, gpu: &Gpu, out: &Path) -> Result<Ended> {
    let demand = memory_demand(args, p, gpu.caps());
    let (longest, keeps_start) = (demand.longest, demand.keeps_start);
    let options = load_options(&p.settings, p.model.base, p.adapter.as_ref(), longest);
    let goal = p.settings.preference.map_or(Goal::Sft, Goal::Preference);
    let share_prefix = p.settings.share_prefix;
    let largest: Vec<&Example> = demand.largest.iter().collect();
    let (keep, Rehearsal { ledger, .. }) = demand.chosen()?;
    if keep != Keep::Everything && args.recompute.is_none_or(|r| r == RecomputeArg::Auto) {
        note!("note: --recompute {} is chosen: keeping more does not fit the device's memory", keep.recompute());
    }
    if fits(gpu.caps(), &ledger) == Some(false) {
        let (takes, caps) = (ledger.peak_bytes() >> 20, gpu.caps());
        let advice = fit::advice(&demand.fitting_changes()?, p.adapter.is_none());
        note!(
            "warning: the run takes {takes} MiB, and {} has {}: it may fail or be slow; {advice}",
            caps.name,
            fit::memory_text(caps)
        );
    }
    let decoder = load(&p.model, gpu, &options, keeps_start)?;
    let cost = reserve(gpu, &decoder, &goal, &largest, share_prefix, keep);
    gpu.check()?;
    // A pass without gradients never needs more memory than the steps that follow it.
    let max_tokens = cost.tokens.min(DEFAULT_SCORE_TOKENS);
    let scorer = reference_scorer(p, gpu, keeps_start, longest, max_tokens);
    let eval = p.eval.as_ref().map_or(&[][..], |eval| &eval.examples);
    let (mut known, mut known_of_eval) = (scorer.rows(p.data.examples.len()), scorer.rows(eval.len()));
    let mut data = RunData {
        rows: Rows { examples: &p.data.examples, references: &mut known },
        eval: p.eval.is_some().then_some(Rows { examples: eval, references: &mut known_of_eval }),
        scorer,
    };
    let trainer = Trainer { gpu, decoder, goal, share_prefix, keep, seed: p.settings.seed };
    let max_steps = p.settings.max_steps(p.data.examples.len());
    let trained: usize = trainer.decoder.trained_weights().iter().map(|w| w.rows * w.cols).sum();
    note!("{trained} parameters trained, {} rows, {max_steps} steps on {}", p.data.examples.len(), gpu.caps().name);

    let output = Output {
        dir: out,
        fingerprint: &p.fingerprint,
        time: p.time,
        cadence: Cadence {
            save_steps: args.save_steps.unwrap_or(TrainDefaults::SAVE_STEPS),
            save_total_limit: args.save_total_limit.unwrap_or(TrainDefaults::SAVE_TOTAL_LIMIT),
            eval_steps: args.eval_steps,
        },
        resume: args.resume,
    };
    if args.profile {
        gpu.start_profile();
    }
    let (started, clock) = (SystemTime::now(), Instant::now());
    let mut progress = TrainingProgress::new(max_steps, args.logging_steps.unwrap_or(TrainDefaults::LOGGING_STEPS));
    let ended = pollster::block_on(run::run(
        &trainer,
        &p.settings,
        &mut data,
        &output,
        stop_on_ctrl_c("ending after this step, with a checkpoint"),
        &mut |e| {
            progress.event(e);
        },
    ));
    drop(progress);
    if let Some(profile) = gpu.end_profile() {
        profile.table().lines().for_each(|line| note!("{line}"));
    }
    let ended = ended?;
    if ended.interrupted {
        return Ok(ended);
    }
    if let Err(error) = save(args, p, &trainer, &ended.state, out) {
        // What was trained is not lost with it, if it can be kept at all.
        let limit = output.cadence.save_total_limit;
        let kept = pollster::block_on(checkpoint::save(gpu, &trainer.decoder.arena, &ended.state, out, limit));
        if kept.is_ok() {
            note!("note: the result could not be written; --resume goes on from step {}", ended.state.step);
        }
        return Err(error);
    }
    // What is wrong with it takes nothing from the rest.
    let best = ended.state.best.map_or(Ok(()), |(_, step)| save_best(args, p, &trainer, out, step));
    let report = Report {
        title: if sft { "Supervised fine-tuning".into() } else { "Preference tuning".into() },
        command: command_line(),
        model: p.model.name.clone(),
        device: gpu.caps().name.clone(),
        parameters: match p.adapter {
            Some(_) => format!("{trained} trained, base {}", p.model.base.name()),
            None => format!("{trained} trained"),
        },
        objective: objective_text(&p.settings),
        data: p.data.summary(),
        started: report::utc(started),
        seconds: clock.elapsed().as_secs_f64(),
        lines: metrics::read(&out.join(METRICS))?,
        ..Report::default()
    };
    report::write(&out.join(REPORT), &report)?;
    best?;
    run::forget_last(out, &ended.state)?;
    let peak_bytes = gpu.ledger().peak_bytes();
    if args.json {
        say!(
            "{}",
            json!({"output_dir": out.to_string_lossy(), "steps": ended.state.step, "num_tokens": ended.state.num_tokens, "peak_bytes": peak_bytes})
        )?;
    }
    note!(
        "{} steps, {:.0} MiB of device memory at most; result in {}",
        ended.state.step,
        peak_bytes as f64 / 1_048_576.0,
        out.display()
    );
    Ok(ended)
}

/// "jpo, sigmoid, β = 0.1".
pub fn objective_text(settings: &TrainSettings) -> String {
    match &settings.preference {
        None => "SFT".into(),
        Some(p) => format!("{:?}, {}, β = {}", p.objective, p.loss, p.beta),
    }
}

/// The trained adapter, or the whole model, with its tokenizer and card.
fn save(args: &TrainArgs, p: &Prepared, trainer: &Trainer, state: &State, out: &Path) -> Result<()> {
    let (d, gpu) = (&p.model.description, trainer.gpu);
    let read = |w: &weights::Weight| pollster::block_on(weights::read_back(gpu, w, false));
    let mut texts = vec![("README.md", card(args, p, gpu, state).to_markdown())];
    texts.extend(p.chat_template.iter().map(|source| (CHAT_TEMPLATE, source.clone())));
    if let Some(adapter) = &p.adapter {
        let dtype = dtype(args.output_dtype).unwrap_or(OutputDtype::F32);
        let matrices = trainer.decoder.adapter();
        return Staging::filled(out, |dir| {
            write_adapter(dir, &adapter.config, d, &adapter.lora, dtype, &mut |module, side| {
                let (_, a, b) = matrices.iter().find(|m| m.0 == module).ok_or_else(|| Error::file(out, module))?;
                read(if side == 0 { a } else { b })
            })?;
            write_side_files(&p.model.side_files(Some(adapter)), dir)?;
            texts.iter().try_for_each(|(name, text)| write_text(&dir.join(name), text))
        });
    }
    let all: BTreeMap<&str, &weights::Weight> =
        trainer.decoder.weights().into_iter().map(|w| (w.spec.name.as_str(), w)).collect();
    save_model(out, &p.model.checkpoint, &p.model.side, d, dtype(args.output_dtype), &texts, &mut |spec| {
        all.get(spec.name.as_str()).map_or_else(|| p.model.checkpoint.values(spec), |w| read(w))
    })
}

/// `best/`: the same of the step with the lowest evaluation loss. The last step's values are gone from the device after it.
fn save_best(args: &TrainArgs, p: &Prepared, trainer: &Trainer, out: &Path, step: usize) -> Result<()> {
    let best = out.join(BEST);
    let found = checkpoint::resume(trainer.gpu, &trainer.decoder.arena, &best, &p.fingerprint)?;
    match found.state.filter(|state| state.step == step) {
        Some(state) => save(args, p, trainer, &state, &best),
        None => {
            let reason = format!(
                "checkpoint-{step}, the step with the lowest evaluation loss, is gone; the last step's result is whole"
            );
            Err(Error::file(best, reason))
        }
    }
}

/// The model card.
fn card(args: &TrainArgs, p: &Prepared, gpu: &Gpu, state: &State) -> Card {
    let s = &p.settings;
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
        ("warmup-steps", s.schedule(p.data.examples.len()).warmup_steps.to_string()),
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
    if let Some(p) = &s.preference {
        settings.extend([("loss", p.loss.to_string()), ("beta", p.beta.to_string())]);
    }
    if let Some(a) = &p.adapter {
        settings.extend([
            ("lora-r", a.lora.rank.to_string()),
            ("lora-scale", a.lora.scale.to_string()),
            ("base-dtype", p.model.base.name().to_string()),
        ]);
    }
    Card {
        base: p.model.name.clone(),
        adapter: p.adapter.is_some(),
        method: s.preference.map_or("SFT".into(), |p| format!("{:?}", p.objective).to_uppercase()),
        about: about.into(),
        settings: settings.into_iter().map(|(k, v)| (k.to_string(), v)).collect(),
        data: args.data.data.iter().map(|f| f.display().to_string()).collect(),
        results: Vec::new(),
        device: gpu.caps().name.clone(),
    }
}

/// Progress of a training run: steps with loss, accuracy and speed, and below them the pass of scoring or evaluation under way.
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

    fn event(&mut self, event: &Event) {
        match event {
            Event::Step(m) => self.step(m),
            Event::Eval(m) => {
                let accuracy = m.pairs.map_or(String::new(), |p| accuracy(p.accuracies, 3));
                self.steps.note(&format!("step {}  eval loss {:.4}{accuracy}", m.step, m.loss));
            }
            Event::Damaged(error) => self.steps.note(&format!("note: {error}: going on from an older checkpoint")),
            Event::Note(note) => self.steps.note(&format!("note: {note}")),
            Event::Scored { done, total } => self.pass("scoring with the reference", *done, *total),
            Event::Evaluated { done, total } => self.pass("evaluating", *done, *total),
        }
    }
}

/// Writes an accuracy. Texts with a label have none.
fn accuracy(value: f64, digits: usize) -> String {
    if value.is_nan() { String::new() } else { format!("  accuracy {value:.digits$}") }
}

/// Writes a margin. Texts without both kinds of label have none.
fn margin(value: f64) -> String {
    if value.is_nan() { String::new() } else { format!("  margin {value:+.3}") }
}
