//! `study`: the paper's experiment as one run that can be stopped at any time. Supervised tuning, two responses to each prompt, a judge's preferences between
//! responses and between pairs drawn from them, every method × seed × fraction of the data, win rates, one report. [`rounds`] are `iterate`, of the same stages.
//!
//! Each stage is a command of this program with a folder of its own. It is done once: its settings are saved when it is complete. Trainings, and the responses of
//! the evaluation, do not need each other: [`over_ranks`] divides them among the processes of an MPI run, [`jobs`] among those of a job array.

mod digests;
mod dry_run;
mod jobs;
mod over_ranks;
mod results;
pub mod rounds;
mod rows;
mod stages;
mod study_file;
mod time_estimate;

use std::cell::OnceCell;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::error::Result;
use crate::eval::acquire::PREFERENCES;
use crate::flags::{DataArgs, EvaluateArgs, JudgeArgs, ModelArgs, StudyArgs};
use crate::ranks::Ranks;
use crate::workflow::Finished;
use digests::digests;
pub use stages::StageCommands;
use stages::{EVALUATE, StageRunner};
use study_file::{ConditionalSource, DrawSettings, JointSource, Study, StudyMethod};

/// Name, in tables, of the model that methods start from.
const START: &str = "SFT";
/// Seeds of the two responses that are sampled for each prompt.
const SAMPLE_SEEDS: [u64; 2] = [0, 1];

/// Does the stages that are left of a study, with other ranks where there are several, or one job of it. Returns how it ended, and the text of its results, or of
/// `--dry-run` and `--list-jobs`.
///
/// # Errors
/// Errors of the study's file and of its stages.
pub fn run(args: &StudyArgs, commands: StageCommands, ranks: Ranks) -> Result<(Finished, String)> {
    let (study, run_args) = (Study::read(&args.study)?, &args.run);
    rows::check(&study, true)?;
    let stages = StageRunner { ranks, ..StageRunner::new("study", commands, run_args) };
    let mut run = StudyRun { study: &study, stages, pools: Default::default() };
    if run_args.dry_run {
        return Ok((Finished::Whole, dry_run::text(&study, run_args.json, |clock| dry_run::stages(&run, clock))?));
    }
    if args.list_jobs {
        if run.stages.has_begun() {
            run.stages.digests = digests(&study)?;
        }
        return Ok((Finished::Whole, jobs::list(&run)?.0.printed(run_args.json)));
    }
    let (finished, written) = match args.job {
        Some(number) => jobs::run_one(&mut run, number)?,
        None if ranks.are_several() => over_ranks::run(&mut run, run_args.resume)?,
        None => run.alone(run_args.resume)?,
    };
    if finished == Finished::Interrupted {
        let flag = if args.job.is_some() { "" } else { " with --resume" };
        note!("stopped: the same command{flag} goes on where this one ended");
    }
    Ok((finished, written.map_or_else(String::new, |written| written.printed(run_args.json))))
}

/// One training run of a study: a method, a fraction of the data and a seed.
struct StudyTraining<'a> {
    method: &'a StudyMethod,
    fraction: f64,
    seed: u64,
}

impl StudyTraining<'_> {
    /// Returns the name of the run's folder and stage.
    fn name(&self) -> String {
        format!("{}-seed-{}", self.method.name_for(self.fraction), self.seed)
    }
}

/// A study with its stages.
struct StudyRun<'a> {
    study: &'a Study,
    stages: StageRunner,
    /// Conditional and joint preferences, once they are read.
    pools: [OnceCell<Vec<Map<String, Value>>>; 2],
}

impl StudyRun<'_> {
    fn dir(&self, name: &str) -> PathBuf {
        self.stages.dir(name)
    }

    /// Does all stages in this process.
    fn alone(&mut self, resume: bool) -> Result<(Finished, Option<WrittenResults>)> {
        let _folder = self.stages.begin(resume, || digests(self.study))?;
        let train = || {
            for training in self.trainings() {
                if self.train(&training)? == Finished::Interrupted {
                    return Ok(Finished::Interrupted);
                }
            }
            Ok(Finished::Whole)
        };
        match stages::in_order(&[&|| self.before_trainings(), &train, &|| self.evaluate()])? {
            Finished::Whole => Ok((Finished::Whole, Some(results::write(self)?))),
            Finished::Interrupted => Ok((Finished::Interrupted, None)),
        }
    }

    /// Does the stages that every training needs. They need each other.
    fn before_trainings(&self) -> Result<Finished> {
        stages::in_order(&[
            &|| self.stages.tasks(self.study),
            &|| self.sft(),
            &|| self.sample(),
            &|| self.conditional(),
            &|| self.joint(),
        ])
    }

    /// Returns the study with stages that are only looked at.
    fn looking(&self) -> Self {
        Self {
            study: self.study,
            stages: StageRunner { only_looks: true, ..self.stages.clone() },
            pools: Default::default(),
        }
    }

    fn sft(&self) -> Result<Finished> {
        let Some(sft) = &self.study.sft else { return Ok(Finished::Whole) };
        let mut args = sft.clone();
        args.data.data = self.stages.or_tasks(&sft.data.data, rows::SFT);
        args.model.model = Some(self.study.model.clone());
        self.stages.trained(self.study, "sft", args, (self.study.seeds[0], true), || Ok(()))
    }

    /// Returns the model that methods start from, and the adapter on it.
    fn start(&self) -> (String, Option<PathBuf>) {
        match &self.study.sft {
            Some(sft) if sft.full => (self.dir("sft").display().to_string(), None),
            Some(_) => (self.study.model.clone(), Some(self.dir("sft"))),
            None => (self.study.model.clone(), None),
        }
    }

    /// Returns the starting model of [`Self::start`] as a checkpoint of `evaluate`, `NAME=DIR`.
    fn start_checkpoint(&self) -> String {
        let (model, adapter) = self.start();
        format!("{START}={}", adapter.map_or(model, |dir| dir.display().to_string()))
    }

    fn sample(&self) -> Result<Finished> {
        let ConditionalSource::Sampled(sample) = &self.study.conditional else { return Ok(Finished::Whole) };
        let args = EvaluateArgs {
            model: Some(self.start().0),
            checkpoint: vec![self.start_checkpoint()],
            data: self.stages.or_tasks(&sample.data, rows::PROMPTS),
            ..EvaluateArgs::default()
        };
        self.stages.sampled(self.study, "sample", sample, SAMPLE_SEEDS, args)
    }

    fn conditional(&self) -> Result<Finished> {
        let ConditionalSource::Sampled(_) = self.study.conditional else { return Ok(Finished::Whole) };
        let data = vec![self.dir("sample").join(rows::COMPARISONS)];
        self.stages.judged(self.study, "conditional", JudgeArgs { data, ..JudgeArgs::default() })
    }

    fn joint(&self) -> Result<Finished> {
        let JointSource::Drawn(draw) = &self.study.joint else { return Ok(Finished::Whole) };
        let DrawSettings { pairs, strata, seed } = draw.clone();
        let sample = self.conditional_files();
        let args = JudgeArgs { sample, pairs, strata, seed: Some(seed), ..JudgeArgs::default() };
        self.stages.judged(self.study, "joint", args)
    }

    fn conditional_files(&self) -> Vec<PathBuf> {
        match &self.study.conditional {
            ConditionalSource::Sampled(_) => vec![self.dir("conditional").join(PREFERENCES)],
            ConditionalSource::Files(files) => files.clone(),
        }
    }

    fn joint_files(&self) -> Vec<PathBuf> {
        match &self.study.joint {
            JointSource::None => Vec::new(),
            JointSource::Drawn(..) => vec![self.dir("joint").join(PREFERENCES)],
            JointSource::Files(files) => files.clone(),
        }
    }

    /// Lists the training runs: every method, fraction of the data and seed.
    fn trainings(&self) -> impl Iterator<Item = StudyTraining<'_>> {
        let Study { methods, fractions, seeds, .. } = self.study;
        methods.iter().flat_map(move |method| {
            fractions
                .iter()
                .flat_map(move |&fraction| seeds.iter().map(move |&seed| StudyTraining { method, fraction, seed }))
        })
    }

    /// Returns the file of the preferences that a method sees.
    fn data_file(&self, method: &StudyMethod, fraction: f64) -> PathBuf {
        self.dir("data").join(format!("{}.jsonl", method.name_for(fraction)))
    }

    /// Returns the preferences of a kind (0: conditional, 1: joint) in the order in which methods take them.
    fn pool(&self, kind: usize) -> Result<&[Map<String, Value>]> {
        let read = || rows::pool(&if kind == 0 { self.conditional_files() } else { self.joint_files() });
        if self.pools[kind].get().is_none() {
            let _ = self.pools[kind].set(read()?);
        }
        Ok(self.pools[kind].get().map_or(&[], Vec::as_slice))
    }

    /// Writes the preferences that a training sees.
    fn write_data(&self, training: &StudyTraining<'_>) -> Result<()> {
        let StudyTraining { method, fraction, .. } = training;
        // What a method does not see may not be judged yet.
        let pool = |kind: usize| if method.shares[kind] > 0.0 { self.pool(kind) } else { Ok(&[][..]) };
        rows::part(&self.data_file(method, *fraction), method.shares, *fraction, [pool(0)?, pool(1)?]).map(drop)
    }

    fn train(&self, training: &StudyTraining<'_>) -> Result<Finished> {
        let &StudyTraining { method, fraction, seed } = training;
        let (model, adapter) = self.start();
        let mut args = method.train.clone();
        args.model = ModelArgs { model: Some(model), adapter, ..args.model };
        args.data = DataArgs { data: vec![self.data_file(method, fraction)], ..args.data };
        let name = format!("train/{}", training.name());
        self.stages.trained(self.study, &name, args, (seed, false), || self.write_data(training))
    }

    /// Returns the flags of the evaluation of all trainings and of the model that they start from.
    fn evaluation(&self) -> EvaluateArgs {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for training in self.trainings() {
            let (name, dir) = (training.method.name_for(training.fraction), self.dir("train").join(training.name()));
            let dir = dir.display().to_string();
            match groups.last_mut() {
                Some((last, dirs)) if *last == name => dirs.push(dir),
                _ => groups.push((name, vec![dir])),
            }
        }
        let args = self.study.evaluate.clone();
        EvaluateArgs {
            model: Some(self.start().0),
            checkpoint: vec![self.start_checkpoint()],
            group: groups.into_iter().map(|(name, dirs)| format!("{name}={}", dirs.join(","))).collect(),
            data: self.stages.or_tasks(&args.data, rows::TEST),
            ..args
        }
    }

    fn evaluate(&self) -> Result<Finished> {
        self.stages.evaluated(self.study, EVALUATE, EVALUATE, self.evaluation())
    }
}

/// Results as they are written, and as they are printed.
struct WrittenResults {
    /// Contents of `results.json`.
    json: String,
    /// Tables of win rates.
    tables: String,
}

impl WrittenResults {
    fn printed(self, as_json: bool) -> String {
        if as_json { self.json } else { self.tables }
    }
}
