//! `study`: the paper's experiment as one run that can be stopped at any time. Supervised tuning, two responses to each prompt, a judge's preferences between
//! responses and between pairs drawn from them, every method × seed × fraction of the data, win rates, one report. [`rounds`] are `iterate`, of the same stages.
//!
//! Each stage is a command of this program with a folder of its own. It is done once: its settings are saved when it is complete.

mod digests;
mod dry_run;
mod results;
pub mod rounds;
mod rows;
mod stages;
mod study_file;
mod time_estimate;

use std::path::PathBuf;

use crate::error::Result;
use crate::eval::acquire::PREFERENCES;
use crate::flags::{DataArgs, EvaluateArgs, JudgeArgs, ModelArgs, StudyArgs};
use crate::workflow::Finished;
use digests::digests;
pub use stages::StageCommands;
use stages::{EVALUATE, StageRunner};
use study_file::{ConditionalSource, DrawSettings, JointSource, Study, StudyMethod};

/// Name, in tables, of the model that methods start from.
const START: &str = "SFT";
/// Seeds of the two responses that are sampled for each prompt.
const SAMPLE_SEEDS: [u64; 2] = [0, 1];

/// Does the stages that are left of a study. Returns how it ended, and the text of its results, or of `--dry-run`.
///
/// # Errors
/// Errors of the study's file and of its stages.
pub fn run(args: &StudyArgs, commands: StageCommands) -> Result<(Finished, String)> {
    let (study, args) = (Study::read(&args.study)?, &args.run);
    rows::check(&study, true)?;
    let mut run = StudyRun { study: &study, stages: StageRunner::new("study", commands, args) };
    if args.dry_run {
        return Ok((Finished::Whole, dry_run::text(&study, args.json, |clock| dry_run::stages(&run, clock))?));
    }
    let _folder = run.stages.begin(args.resume, || digests(&study))?;
    match run.all()? {
        Finished::Whole => Ok((Finished::Whole, results::write(&run)?.printed(args.json))),
        Finished::Interrupted => {
            note!("stopped: the same command with --resume goes on where this one ended");
            Ok((Finished::Interrupted, String::new()))
        }
    }
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
}

impl StudyRun<'_> {
    fn dir(&self, name: &str) -> PathBuf {
        self.stages.dir(name)
    }

    fn all(&self) -> Result<Finished> {
        let steps: [&dyn Fn() -> Result<Finished>; 7] = [
            &|| self.stages.tasks(self.study),
            &|| self.sft(),
            &|| self.sample(),
            &|| self.conditional(),
            &|| self.joint(),
            &|| self.train(),
            &|| self.evaluate(),
        ];
        stages::in_order(&steps)
    }

    fn sft(&self) -> Result<Finished> {
        let Some(sft) = &self.study.sft else { return Ok(Finished::Whole) };
        let mut args = sft.clone();
        args.data.data = self.stages.or_tasks(&sft.data.data, rows::SFT);
        args.model.model = Some(self.study.model.clone());
        self.stages.trained(self.study, "sft", args, self.study.seeds[0], true)
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

    fn train(&self) -> Result<Finished> {
        let pools = [rows::pool(&self.conditional_files())?, rows::pool(&self.joint_files())?];
        let (model, adapter) = self.start();
        for training in self.trainings() {
            let StudyTraining { method, fraction, seed } = training;
            let data = self.data_file(method, fraction);
            rows::part(&data, method.shares, fraction, &pools)?;
            let mut args = method.train.clone();
            args.model = ModelArgs { model: Some(model.clone()), adapter: adapter.clone(), ..args.model };
            args.data = DataArgs { data: vec![data], ..args.data };
            let name = format!("train/{}", training.name());
            if self.stages.trained(self.study, &name, args, seed, false)? == Finished::Interrupted {
                return Ok(Finished::Interrupted);
            }
        }
        Ok(Finished::Whole)
    }

    fn evaluate(&self) -> Result<Finished> {
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
        let args = EvaluateArgs {
            model: Some(self.start().0),
            checkpoint: vec![self.start_checkpoint()],
            group: groups.into_iter().map(|(name, dirs)| format!("{name}={}", dirs.join(","))).collect(),
            data: self.stages.or_tasks(&args.data, rows::TEST),
            ..args
        };
        self.stages.evaluated(self.study, EVALUATE, EVALUATE, args)
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
