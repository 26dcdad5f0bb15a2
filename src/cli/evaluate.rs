//! `evaluate`: test prompts answered by checkpoints, judged in both orders, as win rates.

mod checkpoints;
mod folder;
pub(super) mod sampled;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime};

use serde::Serialize;
use serde_json::{Value, json};

use super::Finished;
use super::args::{EvaluateArgs, JudgeArgs, with_config};
use super::interrupt::stop_on_ctrl_c;
use super::judge::who::Asked;
use super::judge::{Task, counted, flags};
use super::output::{command_line, text_table};
use super::output_folder::OutputFolder;
use super::recover::with_recovery;
use super::session;
use crate::data::comparisons::{Comparison, Mode};
use crate::data::named_templates::run_time;
use crate::data::rows::FieldMap;
use crate::error::{Error, Result};
use crate::eval::acquire::{Acquired, pending, questions};
use crate::eval::evaluate::compare::{
    Against, Responses, comparisons, run as run_of, run_name, write_alpaca, write_judged,
};
use crate::eval::evaluate::prompts::{TestPrompt, encode, read, too_long};
use crate::eval::evaluate::responses::{Policy, ResponseFile, respond};
use crate::eval::evaluate::{Evaluation, Run, evaluate, show};
use crate::eval::interplay::Bootstrap;
use crate::eval::journal::{ANSWERS, Journal};
use crate::eval::judge::Judge;
use crate::eval::judge::endpoint::Endpoint;
use crate::eval::statistics::{DEFAULT_LEVEL, DEFAULT_RESAMPLES, MOST_RESAMPLES};
use crate::gpu::Gpu;
use crate::model::save::write_text;
use crate::progress::ProgressReporter;
use crate::train::report::{self, Report, Sample};
use crate::validate::{at_least_one, at_most};
use checkpoints::{Checkpoint, GOLD, Named};
use folder::Folder;
use sampled::Sampled;

/// Prompts whose answers are shown on the page.
const SAMPLES: usize = 3;

/// A prompt that was left out.
#[derive(Debug, Clone, Serialize)]
struct Dropped {
    file: PathBuf,
    line: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    row: Option<NonZeroU32>,
    n_tokens: usize,
}

/// `jointwise evaluate`.
pub fn run(args: EvaluateArgs) -> Result<Finished> {
    let begun = (Instant::now(), SystemTime::now());
    let config = args.config.clone();
    let args = with_config(args, config.as_deref(), "evaluate")?;
    let out = args.output_dir.clone().unwrap_or_default();
    with_recovery(args.on_device_lost, &out, args.resume, |attempt| {
        let mut args = EvaluateArgs { resume: attempt.resume, ..args.clone() };
        attempt.keep_device(&mut args.device);
        run_once(args, begun)
    })
}

fn run_once(mut args: EvaluateArgs, (clock, started): (Instant, SystemTime)) -> Result<Finished> {
    if let Some(out) = args.output_dir.as_deref().filter(|_| args.resume) {
        args.time = folder::kept_time(out)?.or(args.time);
    }
    let judge_args = args.judge_args();
    check_judge(&args, &judge_args).map_err(EvaluateArgs::renamed)?;
    let mut sampled = Sampled::of(&args)?;
    let bootstrap = Bootstrap {
        level: DEFAULT_LEVEL,
        draws: args.draws.unwrap_or(DEFAULT_RESAMPLES),
        seed: args.seed.unwrap_or(0),
    };
    at_least_one("draws", bootstrap.draws)?;
    at_most("draws", bootstrap.draws, MOST_RESAMPLES)?;
    args.limit.map_or(Ok(()), |n| at_least_one("limit", n))?;
    let out =
        args.output_dir.clone().ok_or_else(|| Error::flag("output-dir", "is missing: where results are written"))?;
    let _folder = OutputFolder::open(&out, args.resume)?;
    let named = checkpoints::all(&args)?;
    let against = checkpoints::against(&args, &named)?;
    let read = read(&args.data, &FieldMap::parse(&args.map)?, against.is_none() && !args.no_judge, args.limit)?;
    for line in read.notes {
        note!("note: {line}");
    }
    let prompts = read.rows;
    sampled.settle(&args, &prompts);
    let mut every = named.clone();
    every.extend(against.iter().filter(|a| !named.contains(a)).cloned());
    let checkpoints = checkpoints::open(&args, &every)?;
    let (prompts, dropped) = fitting(prompts, &checkpoints, &sampled)?;
    let asked = match args.no_judge {
        true => None,
        false => Some(Asked::of(&judge_args, Mode::Single).map_err(EvaluateArgs::renamed)?),
    };
    let settings = json!({
        "template": sampled.template_name, "max_new_tokens": sampled.max_new_tokens, "top_k": sampled.top_k, "top_p": sampled.top_p,
        "base_dtype": args.base_dtype.unwrap_or_default().name(),
    });
    let prints_time = checkpoints.iter().any(|checkpoint| checkpoint.tokenizer.chat_templates().prints_time());
    let time = (prints_time && sampled.template.renders_chats()).then(|| args.time.unwrap_or_else(run_time));
    let digests = checkpoints.iter().map(|c| (c.named.name.as_str(), c.digest(&sampled.template)));
    let digests: Vec<(&str, String)> = digests.collect();
    let task = Evaluate {
        args: &args,
        judge_args: &judge_args,
        sampled: &sampled,
        folder: Folder::open(&out, &settings, &digests, time)?,
        prompts: &prompts,
        stop: stop_on_ctrl_c("ending after what is under way, which is kept"),
    };
    let mut gpu = None;
    let Some(responses) = task.respond(&checkpoints, &mut gpu)? else { return Ok(task.interrupted()) };
    task.export(&responses)?;
    let Some(asked) = asked else {
        note!("responses and AlpacaEval's files are in {}: --resume with a judge goes on", out.display());
        return Ok(Finished::Whole);
    };
    let ours: Vec<&Responses> = responses
        .iter()
        .filter(|r| named.iter().any(|n| n.name == r.checkpoint))
        .filter(|r| !is(against.as_ref(), r))
        .collect();
    let theirs: Vec<&Responses> = responses.iter().filter(|r| is(against.as_ref(), r)).collect();
    let Some((runs, judge, failed)) = task.judged(&asked, &ours, &theirs, &mut gpu)? else {
        return Ok(if args.ask.estimate { Finished::Whole } else { Finished::Interrupted });
    };
    let against = against.map_or_else(|| GOLD.to_string(), |a| a.name);
    let found = evaluate(&runs, prompts.len(), &against, &judge, bootstrap);
    let results = Results { data: &args.data, settings: &settings, dropped: &dropped, evaluation: &found };
    let text = serde_json::to_string_pretty(&results).map_err(|e| Error::file(task.folder.results(), e))?;
    write_text(&task.folder.results(), &format!("{text}\n"))?;
    let page = Report {
        started: report::utc(started),
        seconds: clock.elapsed().as_secs_f64(),
        device: gpu.as_ref().map_or(String::new(), |gpu: &Gpu| gpu.caps().name.clone()),
        ..task.page(&found, &ours, &dropped)
    };
    report::write(&task.folder.report(), &page)?;
    match args.json {
        true => say!("{text}")?,
        false => show::tables(&found).iter().try_for_each(|table| say!("{}", text_table(table)))?,
    }
    show::warnings(&found).iter().for_each(|warning| note!("warning: {warning}"));
    note!("results.json, report.html and the rows behind them are in {}", out.display());
    match failed {
        0 => Ok(Finished::Whole),
        n => Err(Error::Judge(format!(
            "{} without an answer (see above), left out: the same command with --resume asks again",
            counted(n, "question")
        ))),
    }
}

/// `results.json`.
#[derive(Serialize)]
struct Results<'a> {
    data: &'a [PathBuf],
    settings: &'a Value,
    dropped: &'a [Dropped],
    #[serde(flatten)]
    evaluation: &'a Evaluation,
}

fn check_judge(args: &EvaluateArgs, judge: &JudgeArgs) -> Result<()> {
    match (args.no_judge, flags::one_judge(judge)) {
        (false, one) => one.and_then(|()| flags::check(judge)),
        // Nobody is named: as it should be.
        (true, Err(Error::Flag { flag: "endpoint", .. })) => Ok(()),
        (true, _) => Err(Error::flag("no-judge", "goes not with a judge")),
    }
}

fn is(named: Option<&Named>, responses: &Responses) -> bool {
    named.is_some_and(|named| named.name == responses.checkpoint)
}

/// The prompts that leave every checkpoint room for a response, by its own tokens, so that all answer the same ones; the others are named.
fn fitting(
    prompts: Vec<TestPrompt>,
    checkpoints: &[Checkpoint],
    sampled: &Sampled,
) -> Result<(Vec<TestPrompt>, Vec<Dropped>)> {
    let mut longest = vec![None; prompts.len()];
    for (i, checkpoint) in checkpoints.iter().enumerate() {
        checkpoint.tokenizer.check_template(&sampled.template)?;
        if checkpoints[..i].iter().any(|before| before.reads_like(checkpoint)) {
            continue;
        }
        let positions = checkpoint.model.description.max_positions;
        let (tokenizer, template) = (&checkpoint.tokenizer, &sampled.template);
        for prompt in &prompts {
            tokenizer.check_conversation(&prompt.instruction, template, &prompt.place.to_string())?;
        }
        for (prompt, n) in too_long(&prompts, tokenizer, template, sampled.max_new_tokens, positions)? {
            longest[prompt] = longest[prompt].max(Some((n, positions)));
        }
    }
    let (mut kept, mut dropped) = (Vec::new(), Vec::new());
    for (prompt, longest) in prompts.into_iter().zip(longest) {
        let Some((n, positions)) = longest else {
            kept.push(prompt);
            continue;
        };
        let place = &prompt.place;
        let reason = format!(
            "{n} tokens leave no room for --max-new-tokens {} in the model's {positions} positions",
            sampled.max_new_tokens
        );
        note!("note: {place}: {reason}: left out");
        dropped.push(Dropped { file: place.path.to_path_buf(), line: place.line, row: place.element, n_tokens: n });
    }
    if kept.is_empty() {
        return Err(Error::flag(
            "max-new-tokens",
            format!("{}: no prompt leaves the model room for it", sampled.max_new_tokens),
        ));
    }
    if !dropped.is_empty() {
        note!("note: {} of {} prompts are too long, and left out", dropped.len(), kept.len() + dropped.len());
    }
    Ok((kept, dropped))
}

struct Evaluate<'a> {
    args: &'a EvaluateArgs,
    judge_args: &'a JudgeArgs,
    sampled: &'a Sampled,
    folder: Folder,
    prompts: &'a [TestPrompt],
    stop: &'static AtomicBool,
}

impl Evaluate<'_> {
    fn interrupted(&self) -> Finished {
        note!("the same command with --resume goes on");
        Finished::Interrupted
    }

    /// Every checkpoint at every temperature and seed, those of earlier runs as they are; `None` where it was interrupted. The device is
    /// opened where something is missing.
    fn respond(&self, checkpoints: &[Checkpoint], gpu: &mut Option<Gpu>) -> Result<Option<Vec<Responses>>> {
        let (sampled, prompts) = (self.sampled, self.prompts);
        let mut all = Vec::new();
        for checkpoint in checkpoints {
            let named = &checkpoint.named;
            let pairs = sampled.temperatures.iter().flat_map(|&t| sampled.seeds.iter().map(move |&s| (t, s)));
            let mut files = Vec::new();
            for (temperature, seed) in pairs {
                let path = self.folder.responses(&run_name(&named.name, temperature, seed));
                let file = ResponseFile::open(&path, prompts)?;
                file.notes.iter().for_each(|note| note!("note: {note}"));
                if file.rows().is_empty() && self.folder.alpaca(&run_name(&named.name, temperature, seed)).exists() {
                    note!("note: {}: the responses of the earlier run are gone, and made again", path.display());
                }
                files.push((temperature, seed, path, file));
            }
            let missing = files.iter().map(|(.., file)| prompts.len() - file.rows().len()).sum();
            if missing > 0 {
                let gpu = session::opened(gpu, &self.args.device)?;
                let (tokenizer, template) = (&*checkpoint.tokenizer, &sampled.template);
                let mut longest = 0;
                for prompt in prompts {
                    longest = longest.max(encode(prompt, tokenizer, template)?.len() + sampled.max_new_tokens);
                }
                let decoder = checkpoint.load(gpu, longest)?;
                let eos = checkpoint.stop_ids.clone();
                note!("{}: {} to make", named.name, counted(missing, "response"));
                let progress = ProgressReporter::items("answering", missing);
                for (temperature, seed, _, file) in &mut files {
                    let settings = &sampled.settings(*temperature, *seed, eos.clone());
                    let batch_size = sampled.batch_size;
                    let policy = Policy { gpu, decoder: &decoder, tokenizer, template, settings, batch_size };
                    let watch = &mut |n| progress.advance(n as u64);
                    if !pollster::block_on(respond(&policy, prompts, file, self.stop, watch))? {
                        return Ok(None);
                    }
                }
            }
            all.extend(files.into_iter().map(|(temperature, seed, path, file)| Responses {
                checkpoint: named.name.clone(),
                method: named.method.clone(),
                temperature,
                seed,
                path,
                rows: file.into_rows(),
            }));
        }
        Ok(Some(all))
    }

    /// AlpacaEval's files: one a run, and the gold responses.
    fn export(&self, responses: &[Responses]) -> Result<()> {
        for one in responses {
            let outputs = one.rows.iter().map(|row| row.response.as_str());
            write_alpaca(&self.folder.alpaca(&one.name()), self.prompts, outputs, &one.name())?;
        }
        let gold: Option<Vec<&str>> = self.prompts.iter().map(|prompt| prompt.gold.as_deref()).collect();
        gold.map_or(Ok(()), |gold| write_alpaca(&self.folder.alpaca(GOLD), self.prompts, gold.into_iter(), GOLD))
    }

    /// Asks what was not asked before: runs, the judge's name, questions without an answer. `None`: only an estimate was asked for, or
    /// asking was interrupted.
    fn judged(
        &self,
        asked: &Asked,
        ours: &[&Responses],
        theirs: &[&Responses],
        gpu: &mut Option<Gpu>,
    ) -> Result<Option<(Vec<Run>, String, usize)>> {
        let same = |a: &Responses, b: &Responses| a.temperature == b.temperature && a.seed == b.seed;
        let of = |r: &&Responses| {
            let other = theirs.iter().find(|other| same(other, r)).map_or(Against::Gold, |other| Against::Other(other));
            comparisons(self.prompts, r, other)
        };
        let rows: Vec<Comparison> = ours.iter().flat_map(of).collect();
        let found = asked
            .with(self.judge_args, gpu, |judge, endpoint| self.ask(judge, endpoint, &rows))
            .map_err(EvaluateArgs::renamed)?;
        let Some((name, acquired)) = found else { return Ok(None) };
        let n = self.prompts.len();
        let mut runs = Vec::with_capacity(ours.len());
        for (r, (rows, judged)) in ours.iter().zip(rows.chunks(n).zip(acquired.judged.chunks(n))) {
            write_judged(&self.folder.judged(&r.name()), rows, judged, &name)?;
            runs.push(run_of(r, rows, judged));
        }
        Ok(Some((runs, name, acquired.failures.len())))
    }

    fn ask(
        &self,
        judge: &dyn Judge,
        endpoint: Option<&Endpoint>,
        rows: &[Comparison],
    ) -> Result<Option<(String, Acquired)>> {
        let task = Task {
            args: self.judge_args,
            out: self.folder.dir(),
            comparisons: rows,
            stop: self.stop,
            flag: EvaluateArgs::flag,
        };
        if self.args.ask.estimate {
            return task.estimate(endpoint, &questions(rows)).map(|()| None);
        }
        let mut journal = Journal::open(&self.folder.dir().join(ANSWERS), judge)?;
        journal.notes().iter().for_each(|note| note!("note: {note}"));
        if journal.is_empty() && self.folder.has_judged() {
            let answers = self.folder.dir().join(ANSWERS);
            note!("note: {}: the answers of the earlier run are gone: everything is asked again", answers.display());
        }
        let left = pending(rows, &journal);
        if !left.is_empty() {
            task.estimate(endpoint, &left)?;
        }
        let acquired = task.acquire(judge, endpoint, &mut journal, left.len());
        if let Some(error) = acquired.error {
            note!("what was answered is kept: the same command with --resume goes on");
            return Err(error);
        }
        if acquired.left > 0 {
            note!("{} left: the same command with --resume goes on", counted(acquired.left, "question"));
            return Ok(None);
        }
        let name = self.args.ask.judge_name.as_deref().unwrap_or(judge.name());
        Ok(Some((name.into(), acquired)))
    }

    fn page(&self, found: &Evaluation, ours: &[&Responses], dropped: &[Dropped]) -> Report {
        let sampled = self.sampled;
        let sample = |i: usize| {
            let prompt = &self.prompts[i];
            let mut answers: Vec<(String, String)> =
                prompt.gold.iter().map(|gold| (GOLD.into(), gold.clone())).collect();
            for m in &found.methods {
                let first = ours.iter().find(|r| r.method == m.name);
                answers.extend(first.map(|r| (r.name(), r.rows[i].response.trim().to_string())));
            }
            Sample { instruction: prompt.text.clone(), answers }
        };
        let list = |values: Vec<String>| values.join(", ");
        let data: Vec<String> = self.args.data.iter().map(|path| path.display().to_string()).collect();
        Report {
            title: "Win rates".into(),
            command: command_line(),
            model: self.args.model.clone().unwrap_or_default(),
            objective: format!("against {}, judged by {}", found.against, found.judge),
            data: format!("{}: {} prompts, {} too long", data.join(", "), found.prompts, dropped.len()),
            facts: vec![
                ("Temperatures".into(), list(sampled.temperatures.iter().map(f64::to_string).collect())),
                ("Seeds of sampling".into(), list(sampled.seeds.iter().map(u64::to_string).collect())),
                ("Longest response".into(), format!("{} tokens", sampled.max_new_tokens)),
                ("Template".into(), sampled.template_name.clone()),
            ],
            bars: show::figures(found),
            tables: show::tables(found),
            samples: (0..self.prompts.len().min(SAMPLES)).map(sample).collect(),
            ..Report::default()
        }
    }
}
