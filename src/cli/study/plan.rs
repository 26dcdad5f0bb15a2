//! A study as its file says: what is trained, on what, and how it is evaluated.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::cli::args::{EvaluateArgs, JudgeArgs, StratumArg, TrainArgs, from_table};
use crate::cli::judge::flags;
use crate::cli::{session, train};
use crate::error::{Error, Result};
use crate::eval::MOST_ROWS;
use crate::eval::statistics::MOST_RESAMPLES;
use crate::model::folder::{MAX_CONFIG_BYTES, read_file};
use crate::validate::{at_least_one, at_most};

/// `study.toml`. Paths are taken from the folder that the program runs in, as everywhere.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    /// Headline of the report.
    title: Option<String>,
    /// Folder or hub id: what is tuned.
    model: String,
    /// Of every command.
    template: Option<String>,
    /// Chat template of every command that has `template`: a file, or the name of one of the tokenizer's.
    chat_template: Option<String>,
    /// Of training, each a run of every method.
    seeds: Vec<u64>,
    /// Parts of the preferences, each a run of every method.
    fractions: Option<Vec<f64>>,
    /// The demo's own tasks instead of files.
    tasks: Option<Tasks>,
    /// Keys of `jointwise sft`.
    sft: Option<toml::Table>,
    /// Two responses to each prompt, to be judged.
    sample: Option<Sample>,
    /// Conditional preferences: at hand, or those of [sample].
    conditional: Option<Conditional>,
    /// Joint ones: at hand, or drawn from conditional ones.
    joint: Option<Joint>,
    /// Keys of `jointwise judge`.
    judge: Option<toml::Table>,
    /// Keys of `jointwise train`, of every method.
    train: Option<toml::Table>,
    /// What is compared.
    methods: Vec<WrittenMethod>,
    /// Keys of `jointwise evaluate`.
    evaluate: toml::Table,
}

/// Sizes of the demo's data.
#[derive(Debug, Clone, Copy, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Tasks {
    /// Supervised rows, where there is [sft].
    #[serde(default)]
    pub sft: usize,
    /// Instructions to sample responses to.
    pub prompts: usize,
    /// Test prompts with gold answers.
    pub test: usize,
    /// Of all of them.
    #[serde(default)]
    pub seed: u64,
}

/// How responses are sampled.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Sample {
    /// Rows with instructions.
    #[serde(default)]
    pub data: Vec<PathBuf>,
    /// Of sampling.
    pub temperature: f64,
    /// Longest response, in tokens.
    pub max_new_tokens: Option<usize>,
    /// Prompts side by side.
    pub batch_size: Option<usize>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Conditional {
    data: Vec<PathBuf>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Joint {
    data: Option<Vec<PathBuf>>,
    pairs: Option<usize>,
    strata: Option<Vec<StratumArg>>,
    #[serde(default)]
    seed: u64,
}

#[derive(Debug, Clone, Deserialize)]
struct WrittenMethod {
    name: String,
    #[serde(default)]
    conditional: f64,
    #[serde(default)]
    joint: f64,
    #[serde(flatten)]
    train: toml::Table,
}

/// Where conditional preferences come from.
#[derive(Debug, Clone)]
pub enum Preferences {
    /// Sampled from the supervised model, and judged.
    Sampled(Sample),
    /// Files.
    Files(Vec<PathBuf>),
}

/// Of `jointwise judge --sample`.
#[derive(Debug, Clone, Default)]
pub struct Draw {
    /// `None`: as many as there are conditional ones.
    pub pairs: Option<usize>,
    /// None named: all three.
    pub strata: Vec<StratumArg>,
    /// Of the draw.
    pub seed: u64,
}

/// Where joint preferences come from.
#[derive(Debug, Clone)]
pub enum Pairs {
    /// No method asks for them.
    None,
    /// Drawn from the conditional ones, and judged.
    Drawn(Draw),
    /// Files.
    Files(Vec<PathBuf>),
}

/// A way of training.
#[derive(Debug, Clone)]
pub struct Method {
    /// In tables and folders.
    pub name: String,
    /// Share of the conditional and of the joint preferences that it sees.
    pub shares: [f64; 2],
    /// All but model, data, seed and folder.
    pub train: TrainArgs,
}

impl Method {
    /// Its name in files and among `evaluate`'s methods, with a part of the data where it is not all.
    pub fn of(&self, fraction: f64) -> String {
        let name = slug(&self.name);
        if fraction == 1.0 { name } else { format!("{name}-{fraction}") }
    }
}

fn slug(name: &str) -> String {
    name.replace(' ', "-")
}

/// A study, checked.
#[derive(Debug, Clone)]
pub struct Study {
    /// Headline.
    pub title: String,
    /// What is tuned.
    pub model: String,
    /// Of every command.
    pub template: Option<String>,
    /// Of every command that has `template`.
    pub chat_template: Option<String>,
    /// Of training.
    pub seeds: Vec<u64>,
    /// Parts of the preferences, ascending.
    pub fractions: Vec<f64>,
    /// The demo's data.
    pub tasks: Option<Tasks>,
    /// All but model, data and folder.
    pub sft: Option<TrainArgs>,
    /// Conditional preferences.
    pub conditional: Preferences,
    /// Joint preferences.
    pub joint: Pairs,
    /// Who judges what is sampled and drawn.
    pub judge: Option<JudgeArgs>,
    /// What is compared, in the file's order.
    pub methods: Vec<Method>,
    /// All but checkpoints and folder.
    pub evaluate: EvaluateArgs,
}

/// Keys that the study itself sets.
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
];

impl Study {
    /// Reads and checks the file: nothing is computed of a study that cannot end.
    ///
    /// # Errors
    /// [`Error::File`] with the key.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_file(path, MAX_CONFIG_BYTES)?;
        let written: Written = toml::from_str(&text)
            .map_err(|e| Error::file(path, e.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ")))?;
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
        session::template(template.as_deref(), chat_template.as_deref())
            .map_err(|e| bad("template", &e.to_string()))?;
        if let Some(Tasks { prompts: 0, .. } | Tasks { test: 0, .. }) = written.tasks {
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
        let section = Section { path, tasks: written.tasks.is_some() };
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
                Preferences::Sampled(sample)
            }
            (None, Some(conditional)) if !conditional.data.is_empty() => Preferences::Files(conditional.data),
            (Some(_), Some(_)) => return Err(bad("conditional", "goes not with [sample]: one of them")),
            _ => return Err(bad("sample", "is missing: [sample], or [conditional] with `data`")),
        };
        let asks_for_joint = methods.iter().any(|m| m.shares[1] > 0.0);
        let joint = match (written.joint, asks_for_joint) {
            (Some(Joint { data: Some(_), pairs, strata, .. }), _) if pairs.is_some() || strata.is_some() => {
                return Err(bad("joint", "`pairs` and `strata` go not with `data`"));
            }
            (Some(Joint { data: Some(files), .. }), true) => Pairs::Files(files),
            (Some(Joint { data: None, pairs, strata, seed }), true) => {
                Pairs::Drawn(Draw { pairs, strata: strata.unwrap_or_default(), seed })
            }
            (None, true) => Pairs::Drawn(Draw::default()),
            (Some(_), false) => return Err(bad("joint", "no method has `joint` above 0")),
            (None, false) => Pairs::None,
        };
        let asks = matches!(conditional, Preferences::Sampled(_)) || matches!(joint, Pairs::Drawn(..));
        let judge = match (written.judge, asks) {
            (Some(table), true) => Some(section.args::<JudgeArgs>("judge", "judge", OF_JUDGE, table)?),
            (None, true) => return Err(bad("judge", "is missing: who judges what is sampled and drawn")),
            (Some(_), false) => return Err(bad("judge", "nothing is judged: preferences are read from files")),
            (None, false) => None,
        };
        let evaluate = section.args::<EvaluateArgs>("evaluate", "evaluate", OF_EVALUATE, written.evaluate)?;
        section.needs_data("evaluate", evaluate.data.is_empty())?;
        let draws = evaluate
            .draws
            .map_or(Ok(()), |n| at_least_one("draws", n).and_then(|()| at_most("draws", n, MOST_RESAMPLES)));
        draws.map_err(|error| section.told("evaluate", error))?;
        // What only the commands know: said before the first of them has run for hours.
        for method in &methods {
            let of = |error| section.told(&format!("methods.{}", method.name), error);
            train::settings(&method.train, false).map_err(of)?;
            if method.train.full && sft.as_ref().is_some_and(|sft| !sft.full) {
                return Err(bad(
                    "sft.full",
                    "must be true: `full` of a method starts from a model, not from an adapter",
                ));
            }
        }
        if let Some(sft) = &sft {
            train::settings(sft, true).map_err(|error| section.told("sft", error))?;
        }
        let is_one = |judge: &JudgeArgs| flags::one_judge(judge).and_then(|()| flags::check(judge));
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

    /// Files of the user's that it reads.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut all: Vec<&PathBuf> = self.evaluate.data.iter().collect();
        all.extend(self.sft.iter().flat_map(|sft| &sft.data.data));
        match &self.conditional {
            Preferences::Sampled(sample) => all.extend(&sample.data),
            Preferences::Files(files) => all.extend(files),
        }
        if let Pairs::Files(files) = &self.joint {
            all.extend(files);
        }
        let named = self.chat_template.iter().map(PathBuf::from).filter(|file| file.is_file());
        all.into_iter().cloned().chain(named).collect()
    }
}

fn has_twice<T: std::hash::Hash + Eq>(mut values: impl Iterator<Item = T>) -> bool {
    let mut seen = HashSet::new();
    !values.all(|value| seen.insert(value))
}

/// Tables of the file as arguments of commands.
struct Section<'a> {
    path: &'a Path,
    /// The demo's data stand in for files.
    tasks: bool,
}

impl Section<'_> {
    fn args<A: Default + serde::Serialize + DeserializeOwned>(
        &self,
        section: &str,
        command: &str,
        managed: &[&str],
        table: toml::Table,
    ) -> Result<A> {
        if let Some(key) = table.keys().find(|key| managed.contains(&key.as_str())) {
            return Err(Error::field(self.path, format!("{section}.{key}"), "is set by the study itself"));
        }
        from_table(A::default(), table, self.path, &format!("{section}."), command)
    }

    /// What a command says of a flag, of the section's key.
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

    fn methods(&self, written: Vec<WrittenMethod>, shared: toml::Table) -> Result<Vec<Method>> {
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
            Ok(Method { name: m.name, shares: [m.conditional, m.joint], train })
        };
        written.into_iter().map(method).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::with_config;

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
            let per_fraction = |m: &Method| std::iter::repeat_n(m.name.clone(), read.fractions.len());
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
