//! `evaluate`: test prompts answered by checkpoints, judged in both orders, as win rates.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime};

use serde::Serialize;
use serde_json::{Value, json};

use super::interrupt::{stop_flag, stop_on_ctrl_c};
use super::judge::selected_judge::SelectedJudge;
use super::judge::{JudgingJob, counted};
use crate::data::comparisons::{Comparison, ComparisonKind};
use crate::data::named_templates::run_time;
use crate::data::rows::FieldMap;
use crate::error::{Error, Result};
use crate::eval::acquire::{JudgingResult, pending, questions};
use crate::eval::evaluate::compare::{Opponent, RunResponses, comparisons, run as run_of, write_judged};
use crate::eval::evaluate::folder::{EvaluationFolder, kept_time};
use crate::eval::evaluate::prompts::{TestPrompt, read};
use crate::eval::evaluate::response_sampling::ResponseSampling;
use crate::eval::evaluate::{EvaluatedRun, EvaluationResult, evaluate};
use crate::eval::interplay::BootstrapSettings;
use crate::eval::judge::Judge;
use crate::eval::judge::endpoint::Endpoint;
use crate::eval::statistics::{DEFAULT_LEVEL, DEFAULT_RESAMPLES, MOST_RESAMPLES};
use crate::flags::{EvaluateArgs, JudgeArgs, judge_checks, with_config};
use crate::gpu::Gpu;
use crate::model::save::write_text;
use crate::report::evaluation as evaluation_report;
use crate::report::{self, Report, ReportSample};
use crate::validate::{at_least_one, at_most};
use crate::workflow::evaluated_models::{GOLD, NamedModel, evaluated_models, open_evaluated, opponent};
use crate::workflow::model_responses::{DroppedPrompt, export_alpaca, fitting_prompts, respond_all};
use crate::workflow::recovery::{OnDeviceLost, with_recovery};
use crate::workflow::{Finished, OutputFolder};

/// Number of prompts whose answers are shown on the page.
const SAMPLES: usize = 3;

/// Runs `jointwise evaluate`.
pub fn run(args: EvaluateArgs) -> Result<Finished> {
    let begun = (Instant::now(), SystemTime::now());
    let config = args.config.clone();
    let args = with_config(args, config.as_deref(), "evaluate")?;
    let out = args.output_dir.clone().unwrap_or_default();
    let on_device_lost = args.on_device_lost.map_or(OnDeviceLost::Resume, OnDeviceLost::from);
    with_recovery(on_device_lost, &out, args.resume, stop_flag(), |attempt| {
        let mut args = EvaluateArgs { resume: attempt.resume, ..args.clone() };
        attempt.keep_device(&mut args.device.device);
        run_once(args, begun)
    })
}

fn run_once(mut args: EvaluateArgs, (clock, started): (Instant, SystemTime)) -> Result<Finished> {
    if let Some(out) = args.output_dir.as_deref().filter(|_| args.resume) {
        args.time = kept_time(out)?.or(args.time);
    }
    let judge_args = args.judge_args();
    check_judge(&args, &judge_args).map_err(EvaluateArgs::renamed)?;
    let mut sampled = args.sampling()?;
    let bootstrap = BootstrapSettings {
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
    let named = evaluated_models(&args.models())?;
    let against = opponent(&args.models(), &named)?;
    let read = read(&args.data, &FieldMap::parse(&args.map)?, against.is_none() && !args.no_judge, args.limit)?;
    for line in read.notes {
        note!("note: {line}");
    }
    let prompts = read.rows;
    let mut every = named.clone();
    every.extend(against.iter().filter(|a| !named.contains(a)).cloned());
    let checkpoints = open_evaluated(&args.models(), &every)?;
    sampled.settle(&checkpoints[0].tokenizer, &prompts);
    let (prompts, dropped) = fitting_prompts(prompts, &checkpoints, &sampled)?;
    let asked = match args.no_judge {
        true => None,
        false => Some(SelectedJudge::from_flags(&judge_args, ComparisonKind::Single).map_err(EvaluateArgs::renamed)?),
    };
    let settings = json!({
        "template": sampled.template_name, "max_new_tokens": sampled.max_new_tokens, "top_k": sampled.top_k, "top_p": sampled.top_p,
        "base_dtype": args.base_dtype.unwrap_or_default().name(),
    });
    let prints_time = checkpoints.iter().any(|checkpoint| checkpoint.tokenizer.chat_templates().prints_time());
    let time = (prints_time && sampled.template.renders_chats()).then(|| args.time.unwrap_or_else(run_time));
    let digests = checkpoints.iter().map(|c| (c.named.name.as_str(), c.digest(&sampled.template)));
    let digests: Vec<(&str, String)> = digests.collect();
    let task = EvaluationJob {
        args: &args,
        judge_args: &judge_args,
        sampled: &sampled,
        folder: EvaluationFolder::open(&out, &settings, &digests, time)?,
        prompts: &prompts,
        stop: stop_on_ctrl_c("ending after what is under way, which is kept"),
    };
    let mut gpu = None;
    let device = args.device.options()?;
    let responses = respond_all(&checkpoints, &prompts, &sampled, &task.folder, (&mut gpu, &device), task.stop)?;
    let Some(responses) = responses else { return Ok(task.interrupted()) };
    export_alpaca(&task.folder, &prompts, &responses)?;
    let Some(asked) = asked else {
        note!("responses and AlpacaEval's files are in {}: --resume with a judge goes on", out.display());
        return Ok(Finished::Whole);
    };
    let ours: Vec<&RunResponses> = responses
        .iter()
        .filter(|r| named.iter().any(|n| n.name == r.checkpoint))
        .filter(|r| !is(against.as_ref(), r))
        .collect();
    let theirs: Vec<&RunResponses> = responses.iter().filter(|r| is(against.as_ref(), r)).collect();
    let Some((runs, judge, failed)) = task.judged(&asked, &ours, &theirs, &mut gpu)? else {
        return Ok(if args.ask.estimate { Finished::Whole } else { Finished::Interrupted });
    };
    let against = against.map_or_else(|| GOLD.to_string(), |a| a.name);
    let found = evaluate(&runs, prompts.len(), &against, &judge, bootstrap);
    let results = ResultsFile { data: &args.data, settings: &settings, dropped: &dropped, evaluation: &found };
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
        false => evaluation_report::tables(&found).iter().try_for_each(|table| say!("{}", table.to_text()))?,
    }
    evaluation_report::warnings(&found).iter().for_each(|warning| note!("warning: {warning}"));
    note!("results.json, report.html and the rows behind them are in {}", out.display());
    match failed {
        0 => Ok(Finished::Whole),
        n => Err(Error::Judge(format!(
            "{} without an answer (see above), left out: the same command with --resume asks again",
            counted(n, "question")
        ))),
    }
}

/// Contents of `results.json`.
#[derive(Serialize)]
struct ResultsFile<'a> {
    data: &'a [PathBuf],
    settings: &'a Value,
    dropped: &'a [DroppedPrompt],
    #[serde(flatten)]
    evaluation: &'a EvaluationResult,
}

fn check_judge(args: &EvaluateArgs, judge: &JudgeArgs) -> Result<()> {
    match (args.no_judge, judge_checks::one_judge(judge)) {
        (false, one) => one.and_then(|()| judge_checks::check(judge)),
        // Nobody is named: as it should be.
        (true, Err(Error::Flag { flag: "endpoint", .. })) => Ok(()),
        (true, _) => Err(Error::flag("no-judge", "cannot be used with a judge")),
    }
}

fn is(named: Option<&NamedModel>, responses: &RunResponses) -> bool {
    named.is_some_and(|named| named.name == responses.checkpoint)
}

struct EvaluationJob<'a> {
    args: &'a EvaluateArgs,
    judge_args: &'a JudgeArgs,
    sampled: &'a ResponseSampling,
    folder: EvaluationFolder,
    prompts: &'a [TestPrompt],
    stop: &'static AtomicBool,
}

impl EvaluationJob<'_> {
    fn interrupted(&self) -> Finished {
        note!("the same command with --resume goes on");
        Finished::Interrupted
    }

    /// Asks the judge every question that is not answered yet. Returns the runs, the judge's name and the number of questions without an answer; `None` where
    /// only an estimate was asked for, or asking was interrupted.
    fn judged(
        &self,
        asked: &SelectedJudge,
        ours: &[&RunResponses],
        theirs: &[&RunResponses],
        gpu: &mut Option<Gpu>,
    ) -> Result<Option<(Vec<EvaluatedRun>, String, usize)>> {
        let same = |a: &RunResponses, b: &RunResponses| a.temperature == b.temperature && a.seed == b.seed;
        let of = |r: &&RunResponses| {
            let other =
                theirs.iter().find(|other| same(other, r)).map_or(Opponent::Gold, |other| Opponent::Other(other));
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
    ) -> Result<Option<(String, JudgingResult)>> {
        let task = JudgingJob {
            args: self.judge_args,
            out: self.folder.dir(),
            comparisons: rows,
            stop: self.stop,
            flag: EvaluateArgs::flag,
        };
        if self.args.ask.estimate {
            return task.estimate(endpoint, &questions(rows)).map(|()| None);
        }
        let mut journal = task.open_journal(judge, self.folder.has_judged())?;
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

    fn page(&self, found: &EvaluationResult, ours: &[&RunResponses], dropped: &[DroppedPrompt]) -> Report {
        let sampled = self.sampled;
        let sample = |i: usize| {
            let prompt = &self.prompts[i];
            let mut answers: Vec<(String, String)> =
                prompt.gold.iter().map(|gold| (GOLD.into(), gold.clone())).collect();
            for m in &found.methods {
                let first = ours.iter().find(|r| r.method == m.name);
                answers.extend(first.map(|r| (r.name(), r.rows[i].response.trim().to_string())));
            }
            ReportSample { instruction: prompt.text.clone(), answers }
        };
        let list = |values: Vec<String>| values.join(", ");
        let data: Vec<String> = self.args.data.iter().map(|path| path.display().to_string()).collect();
        Report {
            title: "Win rates".into(),
            command: report::command_line(),
            model: self.args.model.clone().unwrap_or_default(),
            objective: format!("against {}, judged by {}", found.against, found.judge),
            data: format!("{}: {} prompts, {} too long", data.join(", "), found.prompts, dropped.len()),
            facts: vec![
                ("Temperatures".into(), list(sampled.temperatures.iter().map(f64::to_string).collect())),
                ("Seeds of sampling".into(), list(sampled.seeds.iter().map(u64::to_string).collect())),
                ("Longest response".into(), format!("{} tokens", sampled.max_new_tokens)),
                ("Template".into(), sampled.template_name.clone()),
            ],
            bars: evaluation_report::figures(found),
            tables: evaluation_report::tables(found),
            samples: (0..self.prompts.len().min(SAMPLES)).map(sample).collect(),
            ..Report::default()
        }
    }
}
