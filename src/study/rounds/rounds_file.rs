//! Rounds files: the policy, its prompts, the judge, the training of each round and the evaluation.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::study_file::{JointSection, SampleSection, Study, StudyFile, TasksSection, WrittenMethod, read_toml};
use crate::error::{Error, Result};
use crate::flags::{DeviceArgs, EvaluateArgs, StratumArg};
use crate::model::hub;
use crate::validate::at_least_one;

/// Most rounds of a file. Each round has seeds of its own, which do not reach those of the next `seed`.
const MOST_ROUNDS: usize = 1000;
/// Name of the one method of every round, which stands for `[train]`.
const METHOD: &str = "round";

/// Policy that each round is compared with in training.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoundReference {
    /// The policy at the start of the round (iterative DPO).
    #[default]
    Round,
    /// The policy at the start of the first round.
    Start,
}

/// Opponent of the policy's responses in the evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoundOpponent {
    /// The policy at the start of the first round.
    Start,
    /// Gold responses of the test rows.
    Gold,
}

/// Contents of a rounds file as written. Paths are relative to the folder that the program runs in, as everywhere.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RoundsFile {
    title: Option<String>,
    model: String,
    adapter: Option<PathBuf>,
    template: Option<String>,
    chat_template: Option<String>,
    rounds: usize,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    reference: RoundReference,
    prompts_per_round: Option<usize>,
    tasks: Option<TasksSection>,
    sample: SampleSection,
    judge: toml::Table,
    joint: Option<RoundJoint>,
    #[serde(default)]
    train: RoundTraining,
    #[serde(default)]
    evaluate: toml::Table,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RoundJoint {
    pairs: Option<usize>,
    strata: Option<Vec<StratumArg>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct RoundTraining {
    conditional: Option<f64>,
    joint: Option<f64>,
    #[serde(flatten)]
    train: toml::Table,
}

/// Online rounds whose file was read and checked.
#[derive(Debug, Clone)]
pub struct OnlineRounds {
    /// Settings that all rounds share: a study of one method.
    pub study: Study,
    /// Sampling of two responses per prompt.
    pub sample: SampleSection,
    /// Adapter of the policy at the start of the first round.
    pub adapter: Option<PathBuf>,
    /// Number of rounds.
    pub rounds: usize,
    /// Seed of sampling, of the draws of prompts and pairs, and of training.
    pub seed: u64,
    /// Policy that each round is compared with in training.
    pub reference: RoundReference,
    /// Opponent in the evaluation.
    pub against: RoundOpponent,
    /// Prompts that each round takes, one after the other. `None`: every round takes all.
    pub prompts_per_round: Option<usize>,
}

impl OnlineRounds {
    /// Reads and checks the file, so that no round is begun that cannot end.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Field`] with the key that is wrong.
    pub fn read(path: &Path) -> Result<Self> {
        let mut written: RoundsFile = read_toml(path)?;
        let bad = |key: &str, reason: String| Error::field(path, key, reason);
        if !(1..=MOST_ROUNDS).contains(&written.rounds) {
            return Err(bad("rounds", format!("{} is not from 1 to {MOST_ROUNDS}", written.rounds)));
        }
        written
            .prompts_per_round
            .map_or(Ok(()), |n| at_least_one("prompts-per-round", n))
            .map_err(|_| bad("prompts-per-round", "must be at least 1".into()))?;
        let against = match written.evaluate.remove("against").as_ref().map(|value| value.as_str()) {
            None | Some(Some("start")) => RoundOpponent::Start,
            Some(Some("gold")) => RoundOpponent::Gold,
            Some(_) => return Err(bad("evaluate.against", "expected \"start\" or \"gold\"".into())),
        };
        add_judge(&mut written.evaluate, &written.judge);
        let is_dpo = written.train.train.get("objective").and_then(toml::Value::as_str) == Some("dpo");
        let shares =
            [written.train.conditional.unwrap_or(1.0), written.train.joint.unwrap_or(if is_dpo { 0.0 } else { 1.0 })];
        if !shares.iter().all(|share| (0.0..=1.0).contains(share)) || shares[0] + shares[1] <= 0.0 {
            return Err(bad("train", "`conditional` and `joint` are shares of 0 to 1, one of them above 0".into()));
        }
        if written.joint.is_some() && shares[1] == 0.0 {
            return Err(bad(
                "joint",
                "no joint pairs are trained on: `joint` of [train] is 0, as by default for dpo".into(),
            ));
        }
        let has_start = written.adapter.is_some();
        if let Some(adapter) = &written.adapter {
            hub::resolve_adapter(adapter).map_err(|error| bad("adapter", error.to_string()))?;
        }
        let method =
            WrittenMethod { name: METHOD.into(), conditional: shares[0], joint: shares[1], train: written.train.train };
        let joint =
            written.joint.map(|RoundJoint { pairs, strata }| JointSection { pairs, strata, ..Default::default() });
        let one_round = StudyFile {
            title: Some(written.title.unwrap_or_else(|| "Online rounds".into())),
            model: written.model,
            template: written.template,
            chat_template: written.chat_template,
            seeds: vec![written.seed],
            fractions: None,
            tasks: written.tasks,
            sft: None,
            sample: Some(written.sample.clone()),
            conditional: None,
            joint,
            judge: Some(written.judge),
            train: None,
            methods: vec![method],
            evaluate: written.evaluate,
        };
        let mut study = Study::from_file(path, one_round, "rounds file").map_err(|error| match error {
            Error::Field { path, field, reason } => Error::Field { field: key_of(&field), path, reason },
            other => other,
        })?;
        let train = &mut study.methods[0].train;
        if train.full && has_start {
            return Err(bad("adapter", "cannot be used with `full` of [train]: merge it into the model first".into()));
        }
        train.model.adapter = written.adapter.clone();
        let (base_dtype, device) = (train.model.base_dtype, train.model.device.clone());
        // The policy answers as it is trained, unless [evaluate] says otherwise.
        let evaluate = &mut study.evaluate;
        evaluate.base_dtype = evaluate.base_dtype.or(base_dtype);
        let own = std::mem::take(&mut evaluate.device);
        evaluate.device = DeviceArgs {
            device: own.device.or(device.device),
            variant: own.variant.or(device.variant),
            matmul_precision: own.matmul_precision.or(device.matmul_precision),
        };
        Ok(Self {
            study,
            sample: written.sample,
            adapter: written.adapter,
            rounds: written.rounds,
            seed: written.seed,
            reference: written.reference,
            against,
            prompts_per_round: written.prompts_per_round,
        })
    }

    /// Returns the seeds of a round's two responses per prompt, which no other round or seed has. The first is the seed of the round's draw of pairs.
    pub fn sampling_seeds(&self, round: usize) -> [u64; 2] {
        let first = (self.seed << 16).wrapping_add(2 * (round as u64 - 1));
        [first, first + 1]
    }
}

/// Returns the key in a rounds file of a key of a study's method.
fn key_of(field: &str) -> String {
    field.strip_prefix("methods.round").map_or_else(|| field.to_string(), |rest| format!("train{rest}"))
}

/// Adds the judge of `[judge]` to `[evaluate]`, where that has no judge of its own.
fn add_judge(evaluate: &mut toml::Table, judge: &toml::Table) {
    if ["endpoint", "command", "person", "grader", "judge"].iter().any(|key| evaluate.contains_key(*key)) {
        return;
    }
    for (key, value) in judge.iter().filter(|(key, _)| *key != "map") {
        evaluate.entry(EvaluateArgs::key_of_judge(key)).or_insert_with(|| value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_of_rounds_differ() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/rounds/demo.toml");
        let rounds = OnlineRounds::read(&path).unwrap();
        assert_eq!((rounds.sampling_seeds(1), rounds.sampling_seeds(2)), ([0, 1], [2, 3]));
        let last = rounds.sampling_seeds(MOST_ROUNDS)[1];
        assert!(OnlineRounds { seed: 1, ..rounds }.sampling_seeds(1)[0] > last);
    }

    #[test]
    fn evaluation_takes_the_judge_unless_it_has_one() {
        let table = |text: &str| text.parse::<toml::Table>().unwrap();
        let judge = table("model = \"m\"\ntemperature = 0.5\njudge-name = \"n\"\nmap = [\"a=b\"]");
        let mut evaluate = table("limit = 3");
        add_judge(&mut evaluate, &judge);
        let expected = "limit = 3\njudge = \"m\"\njudge-temperature = 0.5\njudge-name = \"n\"";
        assert_eq!(evaluate, table(expected));
        let mut own = table("grader = true");
        add_judge(&mut own, &judge);
        assert_eq!(own, table("grader = true"));
    }
}
