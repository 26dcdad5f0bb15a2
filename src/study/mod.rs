//! `study`: the paper's experiment as one run that can be stopped at any time. Supervised tuning, two responses to each prompt, a judge's preferences between
//! responses and between pairs drawn from them, every method × seed × fraction of the data, win rates, one report.
//!
//! Each stage is a command of this program with a folder of its own. It is done once: its settings are saved when it is complete.

mod digests;
mod dry_run;
mod results;
mod rows;
mod study_file;
mod time_estimate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use crate::data::named_templates::run_time;
use crate::error::{Error, Result};
use crate::eval::acquire::PREFERENCES;
use crate::eval::evaluate::compare::run_name;
use crate::files::make_folder;
use crate::flags::{DataArgs, DeviceLostArg, EvaluateArgs, JudgeArgs, ModelArgs, StudyArgs, TrainArgs};
use crate::model::folder::{MAX_CONFIG_BYTES, read_optional};
use crate::model::save::write_text;
use crate::workflow::{Finished, OutputFolder};
use digests::digests;
use study_file::{ConditionalSource, DrawSettings, JointSource, SampleSection, Study, StudyMethod};

/// Name, in tables, of the model that methods start from.
const START: &str = "SFT";
const STAGES: &str = "stages";
const EVALUATE: &str = "evaluate";
/// Seeds of the two responses that are sampled for each prompt.
const SAMPLE_SEEDS: [u64; 2] = [0, 1];

/// Stage that saves the digests of the study's inputs.
const INPUTS: &str = "inputs";
/// File of the time that the study began, which chat templates print in all stages.
const BEGUN: &str = "begun.json";

/// Commands that do a study's stages. Each returns how it ended.
#[derive(Clone, Copy)]
pub struct StageCommands {
    /// Runs `sft` (`true`) or `train` (`false`).
    pub train: fn(TrainArgs, bool) -> Result<Finished>,
    /// Runs `judge`.
    pub judge: fn(JudgeArgs) -> Result<Finished>,
    /// Runs `evaluate`.
    pub evaluate: fn(EvaluateArgs) -> Result<Finished>,
}

/// Does the stages that are left of a study. Returns how it ended, and the text of its results, or of `--dry-run`.
///
/// # Errors
/// Errors of the study's file and of its stages.
pub fn run(args: &StudyArgs, commands: StageCommands) -> Result<(Finished, String)> {
    let study = Study::read(&args.study)?;
    rows::check(&study)?;
    let mut run = StudyRun {
        study: &study,
        commands,
        out: args.output_dir.clone(),
        digests: BTreeMap::new(),
        time: run_time(),
        on_device_lost: args.on_device_lost,
    };
    if args.dry_run {
        return Ok((Finished::Whole, dry_run::text(&run, args.json)?));
    }
    let _folder = OutputFolder::open(&args.output_dir, args.resume)?;
    run.digests = digests(&study)?;
    let stages = args.output_dir.join(STAGES);
    make_folder(&stages)?;
    run.time = begun(&stages, run.time)?;
    if run.stage(INPUTS, &run.digests, |_| Ok(Finished::Whole))? == Finished::Interrupted {
        return Ok((Finished::Interrupted, String::new()));
    }
    let finished = run.all()?;
    if finished == Finished::Interrupted {
        note!("stopped: the same command with --resume goes on where this one ended");
        return Ok((finished, String::new()));
    }
    Ok((Finished::Whole, results::write(&run)?))
}

/// Returns the time that the study began, in seconds since 1970: the saved time, else `now`, which is then saved.
fn begun(stages: &Path, now: u64) -> Result<u64> {
    let path = stages.join(BEGUN);
    match read_optional(stages, BEGUN, MAX_CONFIG_BYTES)? {
        Some(text) => serde_json::from_str(&text).map_err(|e| Error::line(&path, e.line(), e)),
        None => write_text(&path, &format!("{now}\n")).map(|()| now),
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

/// A study with its commands and its output folder.
struct StudyRun<'a> {
    study: &'a Study,
    commands: StageCommands,
    out: PathBuf,
    /// SHA-256 of what the study reads, by path.
    digests: BTreeMap<PathBuf, String>,
    /// Time that chat templates print, in seconds since 1970.
    time: u64,
    /// `--on-device-lost`, for each stage that computes. It is not saved with a stage's settings.
    on_device_lost: Option<DeviceLostArg>,
}

impl StudyRun<'_> {
    fn dir(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }

    /// Does a stage with `work`, unless it was done before. `told` are the stage's settings; `work` gets whether the stage's folder exists.
    fn stage(
        &self,
        name: &str,
        told: &impl Serialize,
        work: impl FnOnce(bool) -> Result<Finished>,
    ) -> Result<Finished> {
        let file = format!("{}.json", name.replace('/', "-"));
        let path = self.dir(STAGES).join(&file);
        let told = serde_json::to_value(told).map_err(|e| Error::file(&path, e))?;
        // Places are not kept: a study may be elsewhere when it goes on.
        let plain = self.placeless(&told);
        if let Some(text) = read_optional(&self.dir(STAGES), &file, MAX_CONFIG_BYTES)? {
            let was: Value = serde_json::from_str(&text).map_err(|e| Error::line(&path, e.line(), e))?;
            if name == INPUTS && same_values(&was, &told) {
                return Ok(Finished::Whole);
            }
            match difference(&self.placeless(&was), &plain, "") {
                None => return Ok(Finished::Whole),
                // More seeds, methods or parts of the data: what is there is kept, and checked, by the command itself.
                Some(_) if name == EVALUATE => {}
                Some(what) => {
                    let reason = format!("{}: {what}: the study has changed since that was done", path.display());
                    return Err(Error::flag("resume", format!("{reason}; it needs a new --output-dir")));
                }
            }
        }
        let has_begun = self.dir(name).exists();
        note!("study: {name}{}", if has_begun { ", going on" } else { "" });
        let finished = work(has_begun)?;
        if finished == Finished::Whole {
            let kept = if name == INPUTS { &told } else { &plain };
            write_text(&path, &format!("{kept:#}\n"))?;
        }
        Ok(finished)
    }

    /// Returns a stage's settings with contents in place of paths: digests for files, and paths inside the study's folder without its place.
    fn placeless(&self, told: &Value) -> Value {
        let place = |text: &str| {
            let path = Path::new(text);
            match (self.digests.get(path), path.strip_prefix(&self.out)) {
                (Some(digest), _) => digest.clone(),
                (None, Ok(own)) => format!("output-dir: {}", own.display()),
                (None, Err(_)) => text.into(),
            }
        };
        match told {
            Value::String(text) if self.digests.contains_key(Path::new(text)) => json!(place(text)),
            // NAME=DIR,DIR
            Value::String(text) => {
                let parts = text.split_inclusive([',', '=']).map(|part| {
                    let end = part.trim_end_matches([',', '=']).len();
                    place(&part[..end]) + &part[end..]
                });
                json!(parts.collect::<String>())
            }
            Value::Array(all) => all.iter().map(|value| self.placeless(value)).collect(),
            Value::Object(all) => {
                Value::Object(all.iter().map(|(key, value)| (key.clone(), self.placeless(value))).collect())
            }
            other => other.clone(),
        }
    }

    fn all(&self) -> Result<Finished> {
        let steps: [&dyn Fn() -> Result<Finished>; 7] = [
            &|| self.tasks(),
            &|| self.sft(),
            &|| self.sample(),
            &|| self.conditional(),
            &|| self.joint(),
            &|| self.train(),
            &|| self.evaluate(),
        ];
        for step in steps {
            if step()? == Finished::Interrupted {
                return Ok(Finished::Interrupted);
            }
        }
        Ok(Finished::Whole)
    }

    fn tasks(&self) -> Result<Finished> {
        let Some(tasks) = self.study.tasks else { return Ok(Finished::Whole) };
        self.stage("tasks", &tasks, |_| rows::tasks(&self.dir("tasks"), &tasks).map(|()| Finished::Whole))
    }

    /// Returns the named files, or `file` of the demo's tasks where none is named.
    fn or_tasks(&self, named: &[PathBuf], file: &str) -> Vec<PathBuf> {
        if named.is_empty() { vec![self.dir("tasks").join(file)] } else { named.to_vec() }
    }

    fn sft(&self) -> Result<Finished> {
        let Some(sft) = &self.study.sft else { return Ok(Finished::Whole) };
        let mut args = sft.clone();
        args.data.data = self.or_tasks(&sft.data.data, rows::SFT);
        args.model.model = Some(self.study.model.clone());
        self.trained("sft", args, self.study.seeds[0], true)
    }

    fn trained(&self, name: &str, mut args: TrainArgs, seed: u64, sft: bool) -> Result<Finished> {
        args.data.template = self.study.template.clone();
        args.data.chat_template = self.study.chat_template.clone();
        args.data.time = Some(self.time);
        args.seed = Some(seed);
        args.output_dir = Some(self.dir(name));
        self.stage(name, &args, |resume| {
            let on_device_lost = self.on_device_lost.or(args.on_device_lost);
            (self.commands.train)(TrainArgs { resume, on_device_lost, ..args.clone() }, sft)
        })
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
        let SampleSection { temperature, max_new_tokens, batch_size, ref data } = *sample;
        let args = EvaluateArgs {
            model: Some(self.start().0),
            checkpoint: vec![self.start_checkpoint()],
            data: self.or_tasks(data, rows::PROMPTS),
            template: self.study.template.clone(),
            chat_template: self.study.chat_template.clone(),
            time: Some(self.time),
            temperatures: vec![temperature],
            seeds: SAMPLE_SEEDS.into(),
            max_new_tokens,
            batch_size,
            no_judge: true,
            device: self.study.evaluate.device.clone(),
            base_dtype: self.study.evaluate.base_dtype,
            output_dir: Some(self.dir("sample")),
            ..EvaluateArgs::default()
        };
        let responses = SAMPLE_SEEDS
            .map(|seed| self.dir("sample/responses").join(format!("{}.jsonl", run_name(START, temperature, seed))));
        let finished = self.evaluated("sample", &args)?;
        if finished == Finished::Whole {
            rows::comparisons(&responses, &self.dir("sample").join(rows::COMPARISONS))?;
        }
        Ok(finished)
    }

    fn judged(&self, name: &str, args: JudgeArgs) -> Result<Finished> {
        let args = JudgeArgs { output_dir: Some(self.dir(name)), ..args };
        self.stage(name, &args, |resume| {
            let on_device_lost = self.on_device_lost.or(args.on_device_lost);
            (self.commands.judge)(JudgeArgs { resume, on_device_lost, ..args.clone() })
        })
    }

    fn evaluated(&self, name: &str, args: &EvaluateArgs) -> Result<Finished> {
        self.stage(name, args, |resume| {
            let on_device_lost = self.on_device_lost.or(args.on_device_lost);
            (self.commands.evaluate)(EvaluateArgs { resume, on_device_lost, ..args.clone() })
        })
    }

    fn judge(&self) -> JudgeArgs {
        JudgeArgs { time: Some(self.time), ..self.study.judge.clone().unwrap_or_default() }
    }

    fn conditional(&self) -> Result<Finished> {
        let ConditionalSource::Sampled(_) = self.study.conditional else { return Ok(Finished::Whole) };
        self.judged("conditional", JudgeArgs { data: vec![self.dir("sample").join(rows::COMPARISONS)], ..self.judge() })
    }

    fn joint(&self) -> Result<Finished> {
        let JointSource::Drawn(draw) = &self.study.joint else { return Ok(Finished::Whole) };
        let DrawSettings { pairs, strata, seed } = draw.clone();
        self.judged(
            "joint",
            JudgeArgs { sample: self.conditional_files(), pairs, strata, seed: Some(seed), ..self.judge() },
        )
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

    fn train(&self) -> Result<Finished> {
        let pools = [rows::pool(&self.conditional_files())?, rows::pool(&self.joint_files())?];
        let (model, adapter) = self.start();
        for training in self.trainings() {
            let data = rows::part(&self.out, training.method, training.fraction, &pools)?;
            let mut args = training.method.train.clone();
            args.model = ModelArgs { model: Some(model.clone()), adapter: adapter.clone(), ..args.model };
            args.data = DataArgs { data: vec![data], ..args.data };
            if self.trained(&format!("train/{}", training.name()), args, training.seed, false)? == Finished::Interrupted
            {
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
        let mut args = self.study.evaluate.clone();
        args.data = self.or_tasks(&args.data, rows::TEST);
        let args = EvaluateArgs {
            model: Some(self.start().0),
            checkpoint: vec![self.start_checkpoint()],
            group: groups.into_iter().map(|(name, dirs)| format!("{name}={}", dirs.join(","))).collect(),
            template: self.study.template.clone(),
            chat_template: self.study.chat_template.clone(),
            time: Some(self.time),
            output_dir: Some(self.dir(EVALUATE)),
            ..args
        };
        self.evaluated(EVALUATE, &args)
    }
}

/// Tells whether two objects have the same values, whatever their keys are, because files may have moved.
fn same_values(was: &Value, now: &Value) -> bool {
    let values = |of: &Value| -> Vec<String> {
        let mut all: Vec<String> = of.as_object().into_iter().flatten().map(|(_, value)| value.to_string()).collect();
        all.sort();
        all
    };
    values(was) == values(now)
}

/// Describes the first difference between two settings; `None` where they are equal.
fn difference(was: &Value, now: &Value, at: &str) -> Option<String> {
    match (was, now) {
        (Value::Object(a), Value::Object(b)) => a.keys().chain(b.keys()).find_map(|key| {
            let null = json!(null);
            difference(a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null), key)
        }),
        _ if was == now => None,
        _ => Some(format!("`{at}` was {was}, now it is {now}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commands of stages that are not run.
    const COMMANDS: StageCommands =
        StageCommands { train: |_, _| unreachable!(), judge: |_| unreachable!(), evaluate: |_| unreachable!() };

    /// A study that was moved, with all that it reads, goes on where it ended; one that reads another file is refused.
    #[test]
    fn places_are_no_difference() {
        let study = Study::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/recipes/demo.toml"))).unwrap();
        let root = tempfile::tempdir().unwrap();
        let run = |out: &str, model: &str, file: (&str, &str)| StudyRun {
            on_device_lost: None,
            commands: COMMANDS,
            study: &study,
            out: root.path().join(out),
            digests: [(model, "0a"), file].map(|(path, digest)| (path.into(), digest.into())).into(),
            time: 0,
        };
        // Whether it was done, or the reason why not.
        let done = |run: &StudyRun<'_>, model: &str, file: &str| {
            let out = run.out.display();
            let told = json!({
                "model": model, "data": [file], "output-dir": format!("{out}/sft"), "rate": 1e-3,
                "group": [format!("a={out}/train/a-0,{out}/train/a-1")],
            });
            let mut is_done = false;
            let mut work = |_| {
                is_done = true;
                Ok(Finished::Whole)
            };
            run.stage(INPUTS, &run.digests, &mut work)?;
            run.stage("sft", &told, &mut work)?;
            Ok::<bool, Error>(is_done)
        };
        std::fs::create_dir_all(root.path().join("a").join(STAGES)).unwrap();
        let here = run("a", "models/demo", ("x,1.jsonl", "0b"));
        assert!(done(&here, "models/demo", "x,1.jsonl").unwrap());
        assert!(!done(&here, "models/demo", "x,1.jsonl").unwrap());
        std::fs::rename(root.path().join("a"), root.path().join("b")).unwrap();
        assert!(!done(&run("b", "demo", ("y/x.jsonl", "0b")), "demo", "y/x.jsonl").unwrap());
        let changed = done(&run("b", "demo", ("y/x.jsonl", "0c")), "demo", "y/x.jsonl").unwrap_err().to_string();
        assert!(changed.contains("inputs.json: ") && changed.contains("has changed"), "{changed}");
        std::fs::remove_file(root.path().join("b").join(STAGES).join("inputs.json")).unwrap();
        let changed = done(&run("b", "demo", ("y/x.jsonl", "0c")), "demo", "y/x.jsonl").unwrap_err().to_string();
        assert!(changed.contains(r#"sft.json: `data` was ["0b"], now it is ["0c"]"#), "{changed}");
        let a = json!({"a": "0b"});
        assert!(same_values(&a, &json!({"b": "0b"})) && !same_values(&a, &json!({"a": "0c"})));
    }

    #[test]
    fn a_difference_is_named() {
        let (a, b) = (json!({"x": {"y": 1, "z": 2}}), json!({"x": {"y": 1, "z": 3}}));
        assert_eq!(difference(&a, &a, ""), None);
        assert_eq!(difference(&a, &b, "").as_deref(), Some("`z` was 2, now it is 3"));
        assert_eq!(difference(&json!({}), &json!({"k": true}), "").as_deref(), Some("`k` was null, now it is true"));
    }
}
