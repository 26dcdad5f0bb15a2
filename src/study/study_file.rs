//! Study files: the models that are trained, their data, and the evaluation.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::eval::MOST_ROWS;
use crate::flags::{EvaluateArgs, JudgeArgs, StratumArg, TrainArgs, from_table, judge_checks, resolve_template};
use crate::model::folder::{MAX_CONFIG_BYTES, read_file};

/// Contents of a study file as written. Paths are relative to the folder that the program runs in, as everywhere.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StudyFile {
    /// Headline of the report.
    pub title: Option<String>,
    /// Model that is tuned: a folder or a hub id.
    pub model: String,
    /// Prompt template of every command.
    pub template: Option<String>,
    /// Chat template of every command that has `template`: a file, or the name of a template that the tokenizer has.
    pub chat_template: Option<String>,
    /// Seeds of training. Every method has a run per seed.
    pub seeds: Vec<u64>,
    /// Fractions of the preferences. Every method has a run per fraction.
    pub fractions: Option<Vec<f64>>,
    /// The demo's own tasks instead of files.
    pub tasks: Option<TasksSection>,
    /// Keys of `jointwise sft`.
    pub sft: Option<toml::Table>,
    /// Sampling of two responses to each prompt, to be judged.
    pub sample: Option<SampleSection>,
    /// Conditional preferences: files, or the judged responses of `sample`.
    pub conditional: Option<ConditionalSection>,
    /// Joint preferences: files, or judged pairs drawn from the conditional ones.
    pub joint: Option<JointSection>,
    /// Keys of `jointwise judge`.
    pub judge: Option<toml::Table>,
    /// Keys of `jointwise train` for every method.
    pub train: Option<toml::Table>,
    /// Methods that are compared.
    pub methods: Vec<WrittenMethod>,
    /// Keys of `jointwise evaluate`.
    pub evaluate: toml::Table,
}

/// Sizes of the demo's data.
#[derive(Debug, Clone, Copy, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TasksSection {
    /// Supervised rows, used where the study has `sft`.
    #[serde(default)]
    pub sft: usize,
    /// Instructions to sample responses to.
    pub prompts: usize,
    /// Test prompts with gold answers.
    pub test: usize,
    /// Seed of all the demo's data.
    #[serde(default)]
    pub seed: u64,
}

/// Settings for sampling responses.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SampleSection {
    /// Files of rows with instructions.
    #[serde(default)]
    pub data: Vec<PathBuf>,
    /// Sampling temperature.
    pub temperature: f64,
    /// Longest response, in tokens.
    pub max_new_tokens: Option<usize>,
    /// Prompts per batch.
    pub batch_size: Option<usize>,
    /// Number of likeliest tokens to sample from.
    pub top_k: Option<usize>,
    /// Probability that the tokens to sample from must reach together.
    pub top_p: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConditionalSection {
    /// Files of preferences.
    pub data: Vec<PathBuf>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct JointSection {
    /// Files of preferences.
    pub data: Option<Vec<PathBuf>>,
    /// Pairs to draw.
    pub pairs: Option<usize>,
    /// Strata to draw from.
    pub strata: Option<Vec<StratumArg>>,
    /// Seed of the draw.
    #[serde(default)]
    pub seed: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct WrittenMethod {
    /// Name in tables and folders.
    pub name: String,
    /// Share of the conditional preferences.
    #[serde(default)]
    pub conditional: f64,
    /// Share of the joint preferences.
    #[serde(default)]
    pub joint: f64,
    /// Keys of `jointwise train`.
    #[serde(flatten)]
    pub train: toml::Table,
}

impl SampleSection {
    /// Returns the settings as flags of `evaluate` without a judge.
    pub fn settings(&self) -> EvaluateArgs {
        let &Self { temperature, max_new_tokens, batch_size, top_k, top_p, .. } = self;
        let temperatures = vec![temperature];
        EvaluateArgs { temperatures, max_new_tokens, batch_size, top_k, top_p, no_judge: true, ..Default::default() }
    }
}

/// Source of the conditional preferences.
#[derive(Debug, Clone)]
pub enum ConditionalSource {
    /// Responses that are sampled from the supervised model, and judged.
    Sampled(SampleSection),
    /// Files of preferences.
    Files(Vec<PathBuf>),
}

/// Settings of the draw by `jointwise judge --sample`.
#[derive(Debug, Clone, Default)]
pub struct DrawSettings {
    /// Number of pairs. `None`: as many as there are conditional preferences.
    pub pairs: Option<usize>,
    /// Strata to draw from. Empty: all three.
    pub strata: Vec<StratumArg>,
    /// Seed of the draw.
    pub seed: u64,
}

/// Source of the joint preferences.
#[derive(Debug, Clone)]
pub enum JointSource {
    /// No joint preferences, because no method asks for them.
    None,
    /// Pairs that are drawn from the conditional preferences, and judged.
    Drawn(DrawSettings),
    /// Files of preferences.
    Files(Vec<PathBuf>),
}

/// A way of training, which the study compares with others.
#[derive(Debug, Clone)]
pub struct StudyMethod {
    /// Name in tables and folders.
    pub name: String,
    /// Shares of the conditional and of the joint preferences that the method sees.
    pub shares: [f64; 2],
    /// Flags of `jointwise train`, except those that the study sets.
    pub train: TrainArgs,
}

impl StudyMethod {
    /// Returns the method's name in files and among the methods of `evaluate`, with the fraction of the data where it is below 1.
    pub fn name_for(&self, fraction: f64) -> String {
        let name = slug(&self.name);
        if fraction == 1.0 { name } else { format!("{name}-{fraction}") }
    }
}

fn slug(name: &str) -> String {
    name.replace(' ', "-")
}

/// A study whose file was read and checked.
#[derive(Debug, Clone)]
pub struct Study {
    /// Headline of the report.
    pub title: String,
    /// Model that is tuned: a folder or a hub id.
    pub model: String,
    /// Prompt template of every command.
    pub template: Option<String>,
    /// Chat template of every command that has `template`.
    pub chat_template: Option<String>,
    /// Seeds of training.
    pub seeds: Vec<u64>,
    /// Fractions of the preferences, ascending.
    pub fractions: Vec<f64>,
    /// Sizes of the demo's data, where it takes the place of files.
    pub tasks: Option<TasksSection>,
    /// Flags of `jointwise sft`, except those that the study sets.
    pub sft: Option<TrainArgs>,
    /// Source of the conditional preferences.
    pub conditional: ConditionalSource,
    /// Source of the joint preferences.
    pub joint: JointSource,
    /// Flags of `jointwise judge` for the responses and pairs that are judged.
    pub judge: Option<JudgeArgs>,
    /// Methods that are compared, in the file's order.
    pub methods: Vec<StudyMethod>,
    /// Flags of `jointwise evaluate`, except those that the study sets.
    pub evaluate: EvaluateArgs,
}

/// Keys of commands that the study itself sets.
const OF_TRAINING: &[&str] = &[
    "model",
    "adapter",
    "output-dir",
    "resume",
    "json",
    "seed",
    "template",
    "chat-template",
    "reference",
    "eval-data",
];
const OF_JUDGE: &[&str] =
    &["data", "sample", "pairs", "strata", "mode", "output-dir", "resume", "json", "estimate", "dry-run", "seed"];
const OF_EVALUATE: &[&str] = &[
    "model",
    "checkpoint",
    "group",
    "against",
    "output-dir",
    "resume",
    "json",
    "template",
    "chat-template",
    "no-judge",
    "list-jobs",
    "job",
];

impl Study {
    /// Reads and checks the file, so that no study is begun that cannot end.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Field`] with the key that is wrong.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_file(path, read_toml(path)?, "study")
    }

    /// Checks a study's file. `kind` is what its users call it.
    ///
    /// # Errors
    /// [`Error::Field`] with the key that is wrong.
    pub fn from_file(path: &Path, written: StudyFile, kind: &'static str) -> Result<Self> {
        let bad = |key: &str, reason: &str| Error::field(path, key, reason);
        if written.seeds.is_empty() || has_twice(written.seeds.iter()) {
            return Err(bad("seeds", "must be at least one, and none twice"));
        }
        let mut fractions = written.fractions.unwrap_or_else(|| vec![1.0]);
        fractions.sort_by(f64::total_cmp);
        let bits: Vec<u64> = fractions.iter().map(|f| f.to_bits()).collect();
        if fractions.is_empty() || has_twice(bits.iter()) || !fractions.iter().all(|f| *f > 0.0 && *f <= 1.0) {
            return Err(bad("fractions", "must be above 0 and at most 1, and none twice"));
        }
        let (template, chat_template) = (written.template, written.chat_template);
        resolve_template(template.as_deref(), chat_template.as_deref()).map_err(|e| bad("template", &e.to_string()))?;
        if let Some(TasksSection { prompts: 0, .. } | TasksSection { test: 0, .. }) = written.tasks {
            return Err(bad("tasks", "`prompts` and `test` must be above 0"));
        }
        let tasks = written
            .tasks
            .iter()
            .flat_map(|t| [("tasks.sft", t.sft), ("tasks.prompts", t.prompts), ("tasks.test", t.test)]);
        let pairs = written.joint.iter().filter_map(|joint| Some(("joint.pairs", joint.pairs?)));
        if let Some((key, n)) = tasks.chain(pairs).find(|(_, n)| *n > MOST_ROWS) {
            return Err(bad(key, &format!("{n} is above {MOST_ROWS}, the most")));
        }
        let section = FileSection { path, kind, tasks: written.tasks.is_some() };
        let methods = section.methods(written.methods, written.train.unwrap_or_default())?;
        let sft = written.sft.map(|table| section.args::<TrainArgs>("sft", "sft", OF_TRAINING, table)).transpose()?;
        if let Some(sft) = &sft {
            section.needs_data("sft", sft.data.data.is_empty())?;
            if written.tasks.is_some_and(|tasks| tasks.sft == 0) && sft.data.data.is_empty() {
                return Err(bad("tasks", "`sft` must be above 0: [sft] has no `data`"));
            }
        }
        let conditional = match (written.sample, written.conditional) {
            (Some(sample), None) => {
                section.needs_data("sample", sample.data.is_empty())?;
                sample.settings().sampling().map_err(|error| match error {
                    Error::Flag { flag: "temperatures", reason } => bad("sample.temperature", &reason),
                    other => section.told("sample", other),
                })?;
                ConditionalSource::Sampled(sample)
            }
            (None, Some(conditional)) if !conditional.data.is_empty() => ConditionalSource::Files(conditional.data),
            (Some(_), Some(_)) => return Err(bad("conditional", "cannot be used with [sample]: one of them")),
            _ => return Err(bad("sample", "is missing: [sample], or [conditional] with `data`")),
        };
        let asks_for_joint = methods.iter().any(|m| m.shares[1] > 0.0);
        let joint = match (written.joint, asks_for_joint) {
            (Some(JointSection { data: Some(_), pairs, strata, .. }), _) if pairs.is_some() || strata.is_some() => {
                return Err(bad("joint", "`pairs` and `strata` go not with `data`"));
            }
            (Some(JointSection { data: Some(files), .. }), true) => JointSource::Files(files),
            (Some(JointSection { data: None, pairs, strata, seed }), true) => {
                JointSource::Drawn(DrawSettings { pairs, strata: strata.unwrap_or_default(), seed })
            }
            (None, true) => JointSource::Drawn(DrawSettings::default()),
            (Some(_), false) => return Err(bad("joint", "no method has `joint` above 0")),
            (None, false) => JointSource::None,
        };
        let asks = matches!(conditional, ConditionalSource::Sampled(_)) || matches!(joint, JointSource::Drawn(..));
        let judge = match (written.judge, asks) {
            (Some(table), true) => Some(section.args::<JudgeArgs>("judge", "judge", OF_JUDGE, table)?),
            (None, true) => return Err(bad("judge", "is missing: who judges what is sampled and drawn")),
            (Some(_), false) => return Err(bad("judge", "nothing is judged: preferences are read from files")),
            (None, false) => None,
        };
        let evaluate = section.args::<EvaluateArgs>("evaluate", "evaluate", OF_EVALUATE, written.evaluate)?;
        section.needs_data("evaluate", evaluate.data.is_empty())?;
        evaluate.bootstrap().map_err(|error| section.told("evaluate", error))?;
        // What only the commands know: said before the first of them has run for hours.
        for method in &methods {
            let of = |error| section.told(&format!("methods.{}", method.name), error);
            method.train.recipe(false).map_err(of)?;
            if method.train.full && sft.as_ref().is_some_and(|sft| !sft.full) {
                return Err(bad(
                    "sft.full",
                    "must be true: `full` of a method starts from a model, not from an adapter",
                ));
            }
        }
        if let Some(sft) = &sft {
            sft.recipe(true).map_err(|error| section.told("sft", error))?;
        }
        let is_one = |judge: &JudgeArgs| judge_checks::one_judge(judge).and_then(|()| judge_checks::check(judge));
        judge.as_ref().map_or(Ok(()), is_one).map_err(|error| section.told("judge", error))?;
        is_one(&evaluate.judge_args()).map_err(|error| section.told("evaluate", EvaluateArgs::renamed(error)))?;
        Ok(Self {
            title: written.title.unwrap_or_else(|| "A study of joint preferences".into()),
            model: written.model,
            template,
            chat_template,
            seeds: written.seeds,
            fractions,
            tasks: written.tasks,
            sft,
            conditional,
            joint,
            judge,
            methods,
            evaluate,
        })
    }

    /// Returns the user's files that the study reads.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut all: Vec<&PathBuf> = self.evaluate.data.iter().collect();
        all.extend(self.sft.iter().flat_map(|sft| &sft.data.data));
        match &self.conditional {
            ConditionalSource::Sampled(sample) => all.extend(&sample.data),
            ConditionalSource::Files(files) => all.extend(files),
        }
        if let JointSource::Files(files) = &self.joint {
            all.extend(files);
        }
        let named = self.chat_template.iter().map(PathBuf::from).filter(|file| file.is_file());
        all.into_iter().cloned().chain(named).collect()
    }
}

/// Reads a TOML file. A key that is unknown, missing or of a wrong type is named with its line.
///
/// # Errors
/// [`Error::File`].
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_file(path, MAX_CONFIG_BYTES)?;
    let told = |e: toml::de::Error| e.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ");
    toml::from_str(&text).map_err(|e| Error::file(path, told(e)))
}

fn has_twice<T: std::hash::Hash + Eq>(mut values: impl Iterator<Item = T>) -> bool {
    let mut seen = HashSet::new();
    !values.all(|value| seen.insert(value))
}

/// Reader of the file's tables as flags of commands.
struct FileSection<'a> {
    path: &'a Path,
    /// Word for the file's contents, in messages.
    kind: &'static str,
    /// Whether the demo's data takes the place of files.
    tasks: bool,
}

impl FileSection<'_> {
    fn args<A: Default + serde::Serialize + DeserializeOwned>(
        &self,
        section: &str,
        command: &str,
        managed: &[&str],
        table: toml::Table,
    ) -> Result<A> {
        if let Some(key) = table.keys().find(|key| managed.contains(&key.as_str())) {
            return Err(Error::field(
                self.path,
                format!("{section}.{key}"),
                format!("is set by the {} itself", self.kind),
            ));
        }
        from_table(A::default(), table, self.path, &format!("{section}."), command)
    }

    /// Turns a command's error about a flag into an error about the section's key.
    fn told(&self, section: &str, error: Error) -> Error {
        match error {
            Error::Flag { flag, reason } => Error::field(self.path, format!("{section}.{flag}"), reason),
            other => other,
        }
    }

    fn needs_data(&self, section: &str, has_none: bool) -> Result<()> {
        match has_none && !self.tasks {
            true => Err(Error::field(self.path, format!("{section}.data"), "is missing: files, or [tasks]")),
            false => Ok(()),
        }
    }

    fn methods(&self, written: Vec<WrittenMethod>, shared: toml::Table) -> Result<Vec<StudyMethod>> {
        let bad = |name: &str, reason: &str| Error::field(self.path, format!("methods.{name}"), reason);
        if written.is_empty() {
            return Err(bad("", "there is none: [[methods]] with `name`"));
        }
        if has_twice(written.iter().map(|m| slug(&m.name))) {
            return Err(bad("name", "two have one name"));
        }
        let managed = [OF_TRAINING, &["data"]].concat();
        let method = |m: WrittenMethod| {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-_ ".contains(c);
            if m.name.trim().is_empty() || !m.name.chars().all(is_name) || m.name == super::START {
                return Err(bad(&m.name, "a name is of letters, digits, spaces, - and _, and not `SFT`"));
            }
            let is_share = |share: &f64| (0.0..=1.0).contains(share);
            if ![m.conditional, m.joint].iter().all(is_share) || m.conditional + m.joint <= 0.0 {
                return Err(bad(&m.name, "`conditional` and `joint` are shares of 0 to 1, one of them above 0"));
            }
            let mut table = shared.clone();
            table.extend(m.train);
            let train = self.args(&format!("methods.{}", m.name), "train", &managed, table)?;
            Ok(StudyMethod { name: m.name, shares: [m.conditional, m.joint], train })
        };
        written.into_iter().map(method).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::with_config;

    #[test]
    fn the_recipes_are_read() {
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/recipes");
        for name in ["miniature", "demo", "helpful", "tldr"] {
            Study::read(&recipes.join(name).with_extension("toml")).unwrap();
        }
        // The published tables have the methods and seeds of the study's own file, or of the recipe with its name.
        let studies = recipes.with_file_name("studies");
        let tables = std::fs::read_to_string(studies.join("results.md")).unwrap();
        let folders = std::fs::read_dir(&studies).unwrap().map(|e| e.unwrap().path());
        for folder in folders.filter(|path| path.is_dir()) {
            let name = folder.file_name().unwrap().to_str().unwrap();
            let own = folder.join("study.toml");
            let recipe = recipes.join(name).with_extension("toml");
            let read = Study::read(if own.exists() { &own } else { &recipe }).unwrap();
            let (_, table) = tables.split_once(&format!("## `{name}`: {}\n", read.title)).expect(name);
            let table = table.split("\n## ").next().unwrap();
            assert!(table.contains(&format!("\n{} seeds, ", read.seeds.len())), "{name}");
            let rows: Vec<&str> =
                table.lines().filter_map(|line| line.strip_prefix("| ")?.split(['|', ',']).next()).collect();
            let per_fraction = |m: &StudyMethod| std::iter::repeat_n(m.name.clone(), read.fractions.len());
            let expected: Vec<String> = ["method".into(), "start".into()]
                .into_iter()
                .chain(read.methods.iter().flat_map(per_fraction))
                .collect();
            assert_eq!(rows.iter().map(|row| row.trim()).collect::<Vec<_>>(), expected, "{name}");
        }
        let args = with_config(TrainArgs::default(), Some(&recipes.join("8gb.toml")), "train").unwrap();
        assert_eq!((args.data.data.len(), args.eval_data.is_some()), (2, true));
    }
}
