//! Stages of a study or of online rounds: commands of this program, each with a folder of its own. A stage is done once: its settings are saved when it is
//! complete.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use serde_json::{Value, json};

use super::rows;
use super::study_file::{SampleSection, Study};
use crate::data::named_templates::run_time;
use crate::error::{Error, Result};
use crate::eval::evaluate::compare::run_name;
use crate::files::{FileLock, make_folder};
use crate::flags::{DeviceLostArg, EvaluateArgs, JudgeArgs, StudyRunArgs, TrainArgs};
use crate::model::folder::{MAX_CONFIG_BYTES, read_optional};
use crate::model::save::write_text;
use crate::ranks::Ranks;
use crate::workflow::several_ranks::{LabelledLines, check_same_contents, check_shared_folder};
use crate::workflow::{Finished, OutputFolder};

/// Folder of the settings of stages that are done.
const STAGES: &str = "stages";
/// Name of the evaluation's stage, or its last part.
pub const EVALUATE: &str = "evaluate";
/// Stage and folder of the demo's data.
const TASKS: &str = "tasks";
/// Stage that saves the digests of the inputs.
const INPUTS: &str = "inputs";
/// File of the time that the first stage began, which chat templates print in all stages.
const BEGUN: &str = "begun.json";

/// Commands that do the stages. Each returns how it ended.
#[derive(Clone, Copy)]
pub struct StageCommands {
    /// Runs `sft` (`true`) or `train` (`false`).
    pub train: fn(TrainArgs, bool) -> Result<Finished>,
    /// Runs `judge`.
    pub judge: fn(JudgeArgs) -> Result<Finished>,
    /// Runs `evaluate`, together with other ranks where there are several.
    pub evaluate: fn(EvaluateArgs, Ranks) -> Result<Finished>,
    /// Makes the responses of `evaluate` alone, beside other processes that make others in the same folder.
    pub respond: fn(EvaluateArgs) -> Result<Finished>,
    /// Lets Ctrl-C end what is under way in order. Returns the flag that it sets.
    pub stop: fn() -> &'static AtomicBool,
}

/// Returns the time that the study began, in seconds since 1970: the saved time, else `now`, which is then saved.
fn begun(stages: &Path, now: u64) -> Result<u64> {
    let path = stages.join(BEGUN);
    match read_optional(stages, BEGUN, MAX_CONFIG_BYTES)? {
        Some(text) => serde_json::from_str(&text).map_err(|e| Error::line(&path, e.line(), e)),
        None => write_text(&path, &format!("{now}\n")).map(|()| now),
    }
}

/// Runner of stages in an output folder.
#[derive(Clone)]
pub struct StageRunner {
    /// Word before a stage's name in messages: the command.
    pub command: &'static str,
    /// Commands that do the stages.
    pub commands: StageCommands,
    /// Output folder of all stages.
    pub out: PathBuf,
    /// SHA-256 of what the stages read, by path.
    pub digests: BTreeMap<PathBuf, String>,
    /// Time that chat templates print, in seconds since 1970.
    pub time: u64,
    /// `--on-device-lost`, for each stage that computes. It is not saved with a stage's settings.
    pub on_device_lost: Option<DeviceLostArg>,
    /// Ranks of which this process is one.
    pub ranks: Ranks,
    /// Device of stages that name none, as the value of `--device`. It is not saved with a stage's settings.
    pub device: Option<String>,
    /// Whether stages are only looked at: one that is not done is [`Finished::Interrupted`].
    pub only_looks: bool,
}

impl StageRunner {
    /// Creates a runner, which writes nothing before [`Self::begin`].
    pub fn new(command: &'static str, commands: StageCommands, args: &StudyRunArgs) -> Self {
        Self {
            command,
            commands,
            out: args.output_dir.clone(),
            digests: BTreeMap::new(),
            time: run_time(),
            on_device_lost: args.on_device_lost,
            ranks: Ranks::alone(),
            device: None,
            only_looks: false,
        }
    }

    /// Opens the output folder, and saves the digests of what the stages read. An earlier run must have read the same, and all ranks must. Rank 0 has the folder.
    ///
    /// # Errors
    /// [`Error::Flag`] for a folder that is in use, or where inputs have changed; [`Error::Ranks`]; those of `digests`.
    pub fn begin(
        &mut self,
        resume: bool,
        digests: impl FnOnce() -> Result<BTreeMap<PathBuf, String>>,
    ) -> Result<Option<OutputFolder>> {
        let ranks = self.ranks;
        let folder = ranks.is_first().then(|| OutputFolder::open(&self.out, resume)).transpose()?;
        check_shared_folder(&self.out, ranks)?;
        self.digests = digests()?;
        let names = self.digests.keys().map(|path| format!("another {}", path.display())).collect::<Vec<_>>();
        let contents = names.iter().map(String::as_str).zip(self.digests.values().map(String::as_str));
        check_same_contents(&contents.collect::<Vec<_>>(), ranks)?;
        if let Some(folder) = &folder {
            let _preparing = folder.prepare()?;
            self.save_inputs()?;
        }
        self.time = ranks.broadcast(self.time)?;
        Ok(folder)
    }

    /// Opens the output folder beside other processes, which do other stages. The digests of what the stages read are known.
    ///
    /// # Errors
    /// [`Error::Flag`] for a folder that holds other things than stages, or where inputs have changed.
    pub fn join(&mut self) -> Result<()> {
        let _preparing = OutputFolder::share(&self.out, STAGES)?;
        self.save_inputs()
    }

    /// Tells whether the output folder has stages.
    pub fn has_begun(&self) -> bool {
        self.dir(STAGES).exists()
    }

    /// Refuses inputs that have changed since the stages in the output folder were begun. Nothing is written.
    ///
    /// # Errors
    /// [`Error::Flag`].
    pub fn check_inputs(&self) -> Result<()> {
        let told = serde_json::to_value(&self.digests).map_err(|e| Error::file(&self.out, e))?;
        self.is_done_with(INPUTS, &told).map(drop)
    }

    /// Saves the digests of what the stages read, and the time, where they are not saved yet.
    fn save_inputs(&mut self) -> Result<()> {
        let stages = self.dir(STAGES);
        make_folder(&stages)?;
        self.time = begun(&stages, self.time)?;
        self.stage(INPUTS, INPUTS, &self.digests, |_| Ok(Finished::Whole)).map(drop)
    }

    /// Returns a path in the output folder.
    pub fn dir(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }

    /// Returns the file of a stage's settings, which is there once the stage is done.
    fn settings_file(name: &str) -> String {
        format!("{}.json", name.replace('/', "-"))
    }

    /// Tells whether a stage was done.
    pub fn is_done(&self, name: &str) -> bool {
        self.dir(STAGES).join(Self::settings_file(name)).exists()
    }

    /// Does a stage with `work` in `folder`, unless it was done before. `told` are the stage's settings; `work` gets whether the folder exists.
    ///
    /// # Errors
    /// [`Error::Flag`] where the stage was done with other settings, or another process is doing it; those of `work`.
    pub fn stage(
        &self,
        name: &str,
        folder: &str,
        told: &impl Serialize,
        work: impl FnOnce(bool) -> Result<Finished>,
    ) -> Result<Finished> {
        let path = self.dir(STAGES).join(Self::settings_file(name));
        let told = serde_json::to_value(told).map_err(|e| Error::file(&path, e))?;
        if self.is_done_with(name, &told)? {
            return Ok(Finished::Whole);
        }
        if self.only_looks {
            return Ok(Finished::Interrupted);
        }
        let _lock = self.lock(name)?;
        // Another process may have just done it.
        if self.is_done_with(name, &told)? {
            return Ok(Finished::Whole);
        }
        let has_begun = self.dir(folder).exists();
        let goes_on = has_begun && folder == name;
        let _lines = LabelledLines::of(self.ranks, Some(name));
        match self.ranks.are_several() {
            // Each line has the stage.
            true => note!("{}", if goes_on { "going on" } else { "begun" }),
            false => note!("{}: {name}{}", self.command, if goes_on { ", going on" } else { "" }),
        }
        let finished = work(has_begun)?;
        if finished == Finished::Whole {
            // Places are not kept: the folder may be elsewhere when the run goes on.
            let kept = if name == INPUTS { told } else { self.placeless(&told) };
            write_text(&path, &format!("{kept:#}\n"))?;
        }
        Ok(finished)
    }

    /// Tells whether a stage was done with these settings.
    fn is_done_with(&self, name: &str, told: &Value) -> Result<bool> {
        let file = Self::settings_file(name);
        let path = self.dir(STAGES).join(&file);
        let Some(text) = read_optional(&self.dir(STAGES), &file, MAX_CONFIG_BYTES)? else { return Ok(false) };
        let was: Value = serde_json::from_str(&text).map_err(|e| Error::line(&path, e.line(), e))?;
        if name == INPUTS && same_values(&was, told) {
            return Ok(true);
        }
        // More seeds, methods or parts of the data: what is there is kept, and checked, by the command itself.
        let may_grow = name.rsplit('/').next() == Some(EVALUATE) || name.starts_with(&format!("{EVALUATE}/"));
        match difference(&self.placeless(&was), &self.placeless(told), "") {
            None => Ok(true),
            Some(_) if may_grow => Ok(false),
            Some(what) => {
                let reason =
                    format!("{}: {what}: the {} has changed since that was done", path.display(), self.command);
                Err(Error::flag("resume", format!("{reason}; it needs a new --output-dir")))
            }
        }
    }

    /// Keeps other processes from doing a stage.
    fn lock(&self, name: &str) -> Result<FileLock> {
        let file = self.dir(STAGES).join(format!("{}.lock", Self::settings_file(name)));
        FileLock::acquire(&file)?.map_err(|holder| {
            let reason = format!("{}: another run{holder} is doing {name}: wait until it ends", self.out.display());
            Error::flag("output-dir", reason)
        })
    }

    /// Returns a stage's settings with contents in place of paths: digests for files, and paths inside the output folder without its place.
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

    /// Writes the demo's data, where it takes the place of files.
    ///
    /// # Errors
    /// Those of [`Self::stage`].
    pub fn tasks(&self, study: &Study) -> Result<Finished> {
        let Some(tasks) = study.tasks else { return Ok(Finished::Whole) };
        self.stage(TASKS, TASKS, &tasks, |_| rows::tasks(&self.dir(TASKS), &tasks).map(|()| Finished::Whole))
    }

    /// Returns the named files, or `file` of the demo's tasks where none is named.
    pub fn or_tasks(&self, named: &[PathBuf], file: &str) -> Vec<PathBuf> {
        if named.is_empty() { vec![self.dir(TASKS).join(file)] } else { named.to_vec() }
    }

    /// Trains, with supervision (`sft`) or on preferences, in the folder with the stage's name. `prepare` writes the data, where that is left to do.
    ///
    /// # Errors
    /// Those of [`Self::stage`].
    pub fn trained(
        &self,
        study: &Study,
        name: &str,
        mut args: TrainArgs,
        (seed, sft): (u64, bool),
        prepare: impl FnOnce() -> Result<()>,
    ) -> Result<Finished> {
        args.data.template = study.template.clone();
        args.data.chat_template = study.chat_template.clone();
        args.data.time = Some(self.time);
        args.seed = Some(seed);
        args.output_dir = Some(self.dir(name));
        self.stage(name, name, &args, |resume| {
            prepare()?;
            let on_device_lost = self.on_device_lost.or(args.on_device_lost);
            let mut args = TrainArgs { resume, on_device_lost, ..args.clone() };
            let device = &mut args.model.device.device;
            *device = device.take().or_else(|| self.device.clone());
            (self.commands.train)(args, sft)
        })
    }

    /// Judges with the study's judge, in the folder with the stage's name. `args` are the comparisons.
    ///
    /// # Errors
    /// Those of [`Self::stage`].
    pub fn judged(&self, study: &Study, name: &str, args: JudgeArgs) -> Result<Finished> {
        let JudgeArgs { data, sample, pairs, strata, seed, .. } = args;
        let judge = study.judge.clone().unwrap_or_default();
        let (time, output_dir) = (Some(self.time), Some(self.dir(name)));
        let args = JudgeArgs { data, sample, pairs, strata, seed, time, output_dir, ..judge };
        self.stage(name, name, &args, |resume| {
            let on_device_lost = self.on_device_lost.or(args.on_device_lost);
            (self.commands.judge)(JudgeArgs { resume, on_device_lost, ..args.clone() })
        })
    }

    /// Answers prompts, and judges the responses where `args` has a judge, in `folder`.
    ///
    /// # Errors
    /// Those of [`Self::stage`].
    pub fn evaluated(&self, study: &Study, name: &str, folder: &str, args: EvaluateArgs) -> Result<Finished> {
        let args = self.evaluation(study, folder, args);
        self.stage(name, folder, &args, |resume| (self.commands.evaluate)(self.resumed(&args, resume), self.ranks))
    }

    /// Takes part, on another rank than rank 0, in the evaluation that rank 0 does with [`Self::evaluated`].
    ///
    /// # Errors
    /// Those of `evaluate`.
    pub fn evaluated_beside(&self, study: &Study, folder: &str, args: EvaluateArgs) -> Result<Finished> {
        let args = self.evaluation(study, folder, args);
        let _lines = LabelledLines::of(self.ranks, Some(folder));
        (self.commands.evaluate)(self.resumed(&args, true), self.ranks)
    }

    /// Makes the responses of a run of the evaluation in `folder`, beside other processes that make others.
    ///
    /// # Errors
    /// Those of [`Self::stage`].
    pub fn responded(&self, study: &Study, name: &str, folder: &str, args: EvaluateArgs) -> Result<Finished> {
        let args = self.evaluation(study, folder, args);
        self.stage(name, folder, &args, |resume| (self.commands.respond)(self.resumed(&args, resume)))
    }

    fn evaluation(&self, study: &Study, folder: &str, args: EvaluateArgs) -> EvaluateArgs {
        let (template, chat_template) = (study.template.clone(), study.chat_template.clone());
        let (time, output_dir) = (Some(self.time), Some(self.dir(folder)));
        EvaluateArgs { template, chat_template, time, output_dir, ..args }
    }

    fn resumed(&self, args: &EvaluateArgs, resume: bool) -> EvaluateArgs {
        let on_device_lost = self.on_device_lost.or(args.on_device_lost);
        EvaluateArgs { resume, on_device_lost, ..args.clone() }
    }

    /// Samples two responses to each prompt, with two seeds, and writes the comparisons of those that differ. `args` have model, checkpoint (`NAME=DIR`) and prompts.
    ///
    /// # Errors
    /// Those of [`Self::stage`]; [`Error::File`] where no two responses differ.
    pub fn sampled(
        &self,
        study: &Study,
        name: &str,
        sample: &SampleSection,
        seeds: [u64; 2],
        args: EvaluateArgs,
    ) -> Result<Finished> {
        let EvaluateArgs { model, checkpoint, data, .. } = args;
        let policy = checkpoint.first().and_then(|checkpoint| checkpoint.split_once('=')).map_or("", |(name, _)| name);
        let responses = seeds.map(|seed| self.responses(name, policy, sample, seed));
        let args = EvaluateArgs {
            model,
            checkpoint,
            data,
            seeds: seeds.into(),
            device: study.evaluate.device.clone(),
            base_dtype: study.evaluate.base_dtype,
            ..sample.settings()
        };
        let args = self.evaluation(study, name, args);
        self.stage(name, name, &args, |resume| {
            let finished = (self.commands.evaluate)(self.resumed(&args, resume), Ranks::alone())?;
            if finished == Finished::Whole {
                rows::comparisons(&responses, &self.dir(name).join(rows::COMPARISONS))?;
            }
            Ok(finished)
        })
    }

    /// Returns the file of the responses that a stage of [`Self::sampled`] sampled from `policy` with a seed.
    pub fn responses(&self, name: &str, policy: &str, sample: &SampleSection, seed: u64) -> PathBuf {
        let run = run_name(policy, sample.temperature, seed);
        self.dir(name).join("responses").join(format!("{run}.jsonl"))
    }
}

/// Does steps one after the other, up to one that is interrupted.
pub fn in_order(steps: &[&dyn Fn() -> Result<Finished>]) -> Result<Finished> {
    for step in steps {
        if step()? == Finished::Interrupted {
            return Ok(Finished::Interrupted);
        }
    }
    Ok(Finished::Whole)
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
    const COMMANDS: StageCommands = StageCommands {
        train: |_, _| unreachable!(),
        judge: |_| unreachable!(),
        evaluate: |_, _| unreachable!(),
        respond: |_| unreachable!(),
        stop: || unreachable!(),
    };

    fn runner(out: PathBuf, digests: [(&str, &str); 2]) -> StageRunner {
        StageRunner {
            command: "study",
            on_device_lost: None,
            commands: COMMANDS,
            out,
            digests: digests.map(|(path, digest)| (path.into(), digest.into())).into(),
            time: 0,
            ranks: Ranks::alone(),
            device: None,
            only_looks: false,
        }
    }

    /// A study that was moved, with all that it reads, goes on where it ended; one that reads another file is refused.
    #[test]
    fn places_are_no_difference() {
        let root = tempfile::tempdir().unwrap();
        let run = |out: &str, model: &str, file: (&str, &str)| runner(root.path().join(out), [(model, "0a"), file]);
        // Whether it was done, or the reason why not.
        let done = |run: &StageRunner, model: &str, file: &str| {
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
            run.stage(INPUTS, INPUTS, &run.digests, &mut work)?;
            run.stage("sft", "sft", &told, &mut work)?;
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
    fn a_stage_is_one_process_at_a_time_and_done_once() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join(STAGES)).unwrap();
        let one = runner(root.path().into(), [("model", "0a"), ("x", "0b")]);
        let looks = StageRunner { only_looks: true, ..one.clone() };
        let whole = |_| Ok(Finished::Whole);
        let looked = || looks.stage("train/a", "train/a", &json!(1), |_| unreachable!()).unwrap();
        assert_eq!(looked(), Finished::Interrupted);
        let done = one.stage("train/a", "train/a", &json!(1), |_| {
            let refused = one.stage("train/a", "train/a", &json!(1), |_| unreachable!()).unwrap_err().to_string();
            let id = std::process::id();
            assert!(refused.contains(&format!("another run (process {id}) is doing train/a")), "{refused}");
            one.stage("train/b", "train/b", &json!(1), whole)
        });
        assert_eq!((done.unwrap(), looked()), (Finished::Whole, Finished::Whole));
        assert!(!root.path().join(STAGES).read_dir().unwrap().any(|file| file.unwrap().path().ends_with("lock")));
        let changed = looks.stage("train/a", "train/a", &json!(2), |_| unreachable!()).unwrap_err().to_string();
        assert!(changed.contains("has changed since"), "{changed}");
    }

    #[test]
    fn a_difference_is_named() {
        let (a, b) = (json!({"x": {"y": 1, "z": 2}}), json!({"x": {"y": 1, "z": 3}}));
        assert_eq!(difference(&a, &a, ""), None);
        assert_eq!(difference(&a, &b, "").as_deref(), Some("`z` was 2, now it is 3"));
        assert_eq!(difference(&json!({}), &json!({"k": true}), "").as_deref(), Some("`k` was null, now it is true"));
    }
}
