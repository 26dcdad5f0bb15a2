//! `evaluate`: test prompts answered by checkpoints, judged in both orders, as win rates.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime};

use super::interrupt::{stop_flag, stop_on_ctrl_c};
use super::judge::selected_judge::SelectedJudge;
use super::judge::{JudgingJob, counted};
use crate::data::comparisons::{Comparison, ComparisonKind};
use crate::data::named_templates::run_time;
use crate::error::{Error, Result};
use crate::eval::acquire::{JudgingResult, pending, questions};
use crate::eval::evaluate::compare::RunResponses;
use crate::eval::evaluate::evaluate;
use crate::eval::evaluate::folder::{EvaluationFolder, SETTINGS, kept_time};
use crate::eval::judge::Judge;
use crate::eval::judge::endpoint::Endpoint;
use crate::flags::{EvaluateArgs, JudgeArgs, judge_checks, with_config};
use crate::gpu::Gpu;
use crate::ranks::Ranks;
use crate::report::evaluation as evaluation_report;
use crate::report::{self, Report};
use crate::validate::at_least_one;
use crate::workflow::evaluation::{EvaluationInputs, OpenEvaluation, RESPOND};
use crate::workflow::recovery::{OnDeviceLost, with_recovery};
use crate::workflow::several_ranks::{LabelledLines, SharedStop, assign_devices, check_shared_folder};
use crate::workflow::{DeviceOptions, Finished, OutputFolder};

/// Part of an evaluation that this process does.
#[derive(Clone, Copy)]
enum EvaluationPart {
    /// Everything, together with the other ranks where there are several.
    Whole(Ranks),
    /// The job with a number, beside other processes that do other jobs.
    Job(usize),
    /// All responses, beside other processes that make others.
    Responses,
}

/// Runs `jointwise evaluate`.
pub fn run(args: EvaluateArgs, ranks: Ranks) -> Result<Finished> {
    let config = args.config.clone();
    let args = with_config(args, config.as_deref(), "evaluate")?;
    if args.list_jobs {
        check(&args)?;
        let jobs = OpenEvaluation::open(inputs(&args)?)?.jobs(&output_dir(&args)?, !args.no_judge)?;
        return super::output::say(format_args!("{}", jobs.printed(args.json))).map(|()| Finished::Whole);
    }
    let part = args.job.map_or(EvaluationPart::Whole(ranks), EvaluationPart::Job);
    run_part(args, part, ranks)
}

/// Makes the responses that the flags name, beside other processes that make others in the same folder.
pub fn respond(args: EvaluateArgs) -> Result<Finished> {
    run_part(args, EvaluationPart::Responses, Ranks::alone())
}

fn run_part(args: EvaluateArgs, part: EvaluationPart, ranks: Ranks) -> Result<Finished> {
    let begun = (Instant::now(), SystemTime::now());
    let out = args.output_dir.clone().unwrap_or_default();
    let on_device_lost = OnDeviceLost::over(ranks, args.on_device_lost.map(OnDeviceLost::from));
    // A job goes on with what is there.
    let resume = args.resume || !matches!(part, EvaluationPart::Whole(_));
    with_recovery(on_device_lost, &out, resume, stop_flag(), |attempt| {
        let mut args = EvaluateArgs { resume: attempt.resume, ..args.clone() };
        attempt.keep_device(&mut args.device.device);
        check(&args)?;
        match part {
            EvaluationPart::Whole(ranks) => whole(args, begun, ranks),
            EvaluationPart::Job(number) => job(args, begun, Some(number)),
            EvaluationPart::Responses => job(args, begun, None),
        }
    })
}

/// Checks the flags that nothing else checks before files are read.
fn check(args: &EvaluateArgs) -> Result<()> {
    let judge = args.judge_args();
    match (args.no_judge, judge_checks::one_judge(&judge)) {
        (false, one) => one.and_then(|()| judge_checks::check(&judge)).map_err(EvaluateArgs::renamed)?,
        // Nobody is named: as it should be.
        (true, Err(Error::Flag { flag: "endpoint", .. })) => {}
        (true, _) => return Err(Error::flag("no-judge", "cannot be used with a judge")),
    }
    args.sampling()?;
    args.bootstrap()?;
    args.limit.map_or(Ok(()), |n| at_least_one("limit", n))?;
    output_dir(args).map(drop)
}

fn output_dir(args: &EvaluateArgs) -> Result<PathBuf> {
    args.output_dir.clone().ok_or_else(|| Error::flag("output-dir", "is missing: where results are written"))
}

fn inputs(args: &EvaluateArgs) -> Result<EvaluationInputs<'_>> {
    Ok(EvaluationInputs {
        models: args.models(),
        data: &args.data,
        map: &args.map,
        limit: args.limit,
        sampling: args.sampling()?,
        is_judged: !args.no_judge,
    })
}

fn interrupted() -> Finished {
    note!("the same command with --resume goes on");
    Finished::Interrupted
}

/// Does everything, with the other ranks where there are several. Rank 0 alone asks the judge and writes results.
fn whole(mut args: EvaluateArgs, begun: (Instant, SystemTime), ranks: Ranks) -> Result<Finished> {
    let out = output_dir(&args)?;
    let mut device = args.device.options()?;
    assign_devices(&mut device, ranks)?;
    let kept = if args.resume && ranks.is_first() { kept_time(&out)? } else { None };
    let _folder = ranks.is_first().then(|| OutputFolder::open(&out, args.resume)).transpose()?;
    check_shared_folder(&out, ranks)?;
    args.time = ranks.broadcast(kept.or(args.time).or_else(|| ranks.are_several().then(run_time)))?;
    let evaluation = OpenEvaluation::open(inputs(&args)?)?;
    evaluation.check_same(ranks)?;
    let task = JudgedEvaluation::open(&args, &evaluation, ranks)?;
    let folder = ranks.is_first().then(|| evaluation.folder(&out)).transpose()?;
    let folder = folder.unwrap_or_else(|| EvaluationFolder::opened(&out));
    let stop = stop();
    let mut gpu = None;
    if ranks.are_several() {
        // Rank 0 has opened the folder before the others write to it.
        ranks.meet(false);
        let _stop = SharedStop::watch(&out, stop, ranks);
        let _lines = LabelledLines::of(ranks, None);
        match evaluation.respond_over(&folder, (&mut gpu, &device), stop, ranks)? {
            Finished::Interrupted => return Ok(interrupted()),
            Finished::Whole if !ranks.is_first() => return Ok(Finished::Whole),
            Finished::Whole => {}
        }
    }
    task.finish(&folder, (gpu, &device), begun)
}

/// Does the job with a number; without one, makes all responses. Other processes may do other jobs in the same folder.
fn job(mut args: EvaluateArgs, begun: (Instant, SystemTime), number: Option<usize>) -> Result<Finished> {
    let out = output_dir(&args)?;
    let device = args.device.options()?;
    let preparing = OutputFolder::share(&out, SETTINGS)?;
    // The first job chooses the time that chat templates print: the others wait for it.
    let preparing = (!out.join(SETTINGS).exists()).then_some(preparing);
    args.time = kept_time(&out)?.or(args.time);
    let evaluation = OpenEvaluation::open(inputs(&args)?)?;
    let jobs = evaluation.jobs(&out, !args.no_judge)?;
    let own = number.map(|number| jobs.get(number)).transpose()?;
    if own.is_none_or(|job| job.stage == RESPOND) {
        let folder = evaluation.folder(&out)?;
        drop(preparing);
        let selects = |run: &str| own.is_none_or(|job| job.name == run);
        let made = evaluation.respond(&folder, (&mut None, &device), stop(), &selects)?;
        return Ok(made.map_or_else(interrupted, |_| Finished::Whole));
    }
    jobs.check_needs(jobs.last())?;
    drop(preparing);
    let _folder = OutputFolder::open(&out, true)?;
    let task = JudgedEvaluation::open(&args, &evaluation, Ranks::alone())?;
    task.finish(&evaluation.folder(&out)?, (None, &device), begun)
}

fn stop() -> &'static AtomicBool {
    stop_on_ctrl_c("ending after what is under way, which is kept")
}

/// An evaluation with its judge.
struct JudgedEvaluation<'a> {
    args: &'a EvaluateArgs,
    judge_args: JudgeArgs,
    /// The judge; `None` where only responses are made, and on ranks that ask nobody.
    judge: Option<SelectedJudge>,
    evaluation: &'a OpenEvaluation,
}

impl<'a> JudgedEvaluation<'a> {
    fn open(args: &'a EvaluateArgs, evaluation: &'a OpenEvaluation, ranks: Ranks) -> Result<Self> {
        let judge_args = args.judge_args();
        let open = || SelectedJudge::from_flags(&judge_args, ComparisonKind::Single).map_err(EvaluateArgs::renamed);
        let judge = (!args.no_judge && ranks.is_first()).then(open).transpose()?;
        Ok(Self { args, judge_args, judge, evaluation })
    }

    /// Makes the responses that are missing, asks the judge, and writes the results.
    fn finish(
        &self,
        folder: &EvaluationFolder,
        (mut gpu, device): (Option<Gpu>, &DeviceOptions),
        (clock, started): (Instant, SystemTime),
    ) -> Result<Finished> {
        let (evaluation, out) = (self.evaluation, folder.dir());
        let Some(responses) = evaluation.respond(folder, (&mut gpu, device), stop(), &|_| true)? else {
            return Ok(interrupted());
        };
        evaluation.export_alpaca(folder, &responses)?;
        let Some(judge) = &self.judge else {
            note!("responses and AlpacaEval's files are in {}: --resume with a judge goes on", out.display());
            return Ok(Finished::Whole);
        };
        let sides = evaluation.sides(&responses);
        let rows = evaluation.comparisons(&sides);
        let asked = judge.with(&self.judge_args, &mut gpu, |judge, endpoint| self.ask(judge, endpoint, (&rows, out)));
        let Some((judge, acquired)) = asked.map_err(EvaluateArgs::renamed)? else {
            return Ok(if self.args.ask.estimate { Finished::Whole } else { Finished::Interrupted });
        };
        let ours: &[&RunResponses] = &sides[0];
        let runs = evaluation.judged_runs(folder, ours, (&rows, &acquired.judged), &judge)?;
        let bootstrap = self.args.bootstrap()?;
        let found = evaluate(&runs, evaluation.prompts().len(), evaluation.against(), &judge, bootstrap);
        let text = evaluation.write_results(folder, &found)?;
        let page = Report {
            started: report::utc(started),
            seconds: clock.elapsed().as_secs_f64(),
            device: gpu.as_ref().map_or(String::new(), |gpu: &Gpu| gpu.caps().name.clone()),
            ..evaluation.page(&found, ours)
        };
        report::write(&folder.report(), &page)?;
        match self.args.json {
            true => say!("{text}")?,
            false => evaluation_report::tables(&found).iter().try_for_each(|table| say!("{}", table.to_text()))?,
        }
        evaluation_report::warnings(&found).iter().for_each(|warning| note!("warning: {warning}"));
        note!("results.json, report.html and the rows behind them are in {}", out.display());
        match acquired.failures.len() {
            0 => Ok(Finished::Whole),
            n => Err(Error::Judge(format!(
                "{} without an answer (see above), left out: the same command with --resume asks again",
                counted(n, "question")
            ))),
        }
    }

    /// Asks the judge every question that is not answered yet. Returns the judge's name and what it said; `None` where only an estimate was asked for, or
    /// asking was interrupted.
    fn ask(
        &self,
        judge: &dyn Judge,
        endpoint: Option<&Endpoint>,
        (rows, out): (&[Comparison], &Path),
    ) -> Result<Option<(String, JudgingResult)>> {
        let flag = EvaluateArgs::flag;
        let task = JudgingJob { args: &self.judge_args, out, comparisons: rows, stop: stop(), flag };
        if self.args.ask.estimate {
            return task.estimate(endpoint, &questions(rows)).map(|()| None);
        }
        let mut journal = task.open_journal(judge, EvaluationFolder::opened(out).has_judged())?;
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
}
