//! A round of online preference training: two responses per instruction, and a judge's preferences between them.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::generate::GenerateOptions;
use super::judging::judge_comparisons;
use super::policy::Policy;
use crate::data::bad_rows::BadRows;
use crate::data::comparisons::Comparison;
use crate::data::prompt_template::Template;
use crate::data::rows::{DatasetType, FieldMap, read_row_file};
use crate::error::{Error, Result};
use crate::eval::acquire::{PREFERENCES, VerdictCounts};
use crate::eval::judge::Judge;
use crate::eval::strata::{ConditionalPreference, Stratum, draw};
use crate::eval::tasks::rows::write;
use crate::files::make_folder;
use crate::gpu::Gpu;

/// File of the comparisons that a judge is asked about.
const COMPARISONS: &str = "comparisons.jsonl";

/// Settings of a round of online preference training (iterative DPO, arXiv 2312.11456; with joint pairs, iterative JPO). The default asks for no joint pairs.
///
/// # Examples
/// ```
/// use jointwise::eval::judge::grader::Grader;
/// use jointwise::{DataOptions, GenerateOptions, Gpu, LoraConfig, Objective, OnlineRound, Policy, Preferences, Recipe};
/// let gpu = Gpu::open_best()?;
/// let runs = std::path::PathBuf::from("runs");
/// # let temporary = tempfile::tempdir()?;
/// # let runs = temporary.path().join(runs);
/// let recipe = Recipe { objective: Objective::Jpo, learning_rate: 1e-3, batch_size: 4, max_steps: Some(2), ..Recipe::default() };
/// // The demo's own tasks, which its grader knows.
/// let tasks = jointwise::eval::tasks::rows::held_out(0, 12);
/// let prompts: Vec<&str> = tasks.iter().map(|task| task.instruction.as_str()).collect();
/// let mut policy = Policy::open("models/demo")?.with_lora(LoraConfig::all_linear(4))?;
/// for number in 0..2 {
///     let sampling = GenerateOptions { max_new_tokens: 12, seed: 2 * number, ..GenerateOptions::default() };
///     let round = OnlineRound { sampling, joint_pairs: 2, ..OnlineRound::default() };
///     let dir = runs.join(format!("round-{number}"));
///     let sampled = round.sample(&gpu, &policy, &prompts, &Grader::default(), &dir)?;
///     println!("{} ties, {} prompts with one response twice", sampled.conditional.ties, sampled.same_response_twice);
///     let data = Preferences::read_with(&sampled.files, &policy, &DataOptions::default())?;
///     // The reference is the policy at the start of the round. `recipe.reference` may name another.
///     policy.train(&gpu, &data, &recipe)?.finish()?.save(dir.join("adapter"))?;
///     policy = Policy::open("models/demo")?.with_adapter(dir.join("adapter"))?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct OnlineRound {
    /// Template around instructions.
    pub template: Template,
    /// Settings of sampling. The two responses to an instruction are sampled with `seed` and `seed + 1`.
    pub sampling: GenerateOptions,
    /// Joint pairs that are drawn from the round's preferences, equally many per stratum, and judged; at most as many as can be drawn.
    pub joint_pairs: usize,
}

/// Preferences that a judge gave between the responses of a round.
///
/// # Examples
/// ```
/// use jointwise::RoundPreferences;
/// fn decided(round: &RoundPreferences) -> usize {
///     round.conditional.first + round.conditional.second
/// }
/// # assert_eq!(decided(&RoundPreferences::default()), 0);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoundPreferences {
    /// Files of rows to train on: conditional preferences, then joint ones.
    pub files: Vec<PathBuf>,
    /// Number of instructions that both seeds answered with one text, which nobody is asked about.
    pub same_response_twice: usize,
    /// Number of instructions with an empty response, which cannot be trained on.
    pub empty_response: usize,
    /// Verdicts between two responses to one instruction.
    pub conditional: VerdictCounts,
    /// Verdicts on joint pairs; `None` where none was drawn.
    pub joint: Option<VerdictCounts>,
}

impl Default for OnlineRound {
    fn default() -> Self {
        Self { template: Template::Paper, sampling: GenerateOptions::default(), joint_pairs: 0 }
    }
}

impl OnlineRound {
    /// Samples two responses to each instruction, asks the judge about them in both orders, and about joint pairs drawn from its preferences. All of it is in
    /// the folder `out`. A second call samples the same responses, and asks only what has no answer yet.
    ///
    /// # Errors
    /// Those of [`Policy::generate`] and [`judge_comparisons`]; [`Error::File`] where no two responses differ, or no preference came out.
    pub fn sample(
        &self,
        gpu: &Gpu,
        policy: &Policy,
        instructions: &[&str],
        judge: &dyn Judge,
        out: impl AsRef<Path>,
    ) -> Result<RoundPreferences> {
        let out = out.as_ref();
        let sample = |side: u64| {
            let sampling = GenerateOptions { seed: self.sampling.seed.wrapping_add(side), ..self.sampling.clone() };
            policy.generate(gpu, instructions, &self.template, &sampling)
        };
        let [first, second] = [sample(0)?, sample(1)?];
        let is_empty = |(a, b): (&String, &String)| a.trim().is_empty() || b.trim().is_empty();
        let sides = || first.iter().zip(&second);
        let empty_response = sides().filter(|&two| is_empty(two)).count();
        let rows = instructions.iter().zip(sides()).filter(|&(_, (a, b))| a != b && !is_empty((a, b)));
        let rows = rows.map(|(i, (a, b))| json!({"instruction": i, "response_0": a, "response_1": b}));
        // Beside the judge's folder, which must have no other files.
        make_folder(out)?;
        let comparisons = out.join(COMPARISONS);
        let n = write(&comparisons, rows)?;
        if n == 0 {
            return Err(Error::file(comparisons, "every instruction was answered the same way twice, or not at all"));
        }
        let judged = out.join("conditional");
        let conditional = judge_comparisons(&[&comparisons], judge, &judged)?;
        let preferences = judged.join(PREFERENCES);
        if conditional.first + conditional.second == 0 {
            return Err(Error::file(preferences, "the judge preferred no response: there is nothing to train on"));
        }
        let mut files = vec![preferences];
        let joint = self.joint(&files[0], judge, out)?;
        files.extend(joint.map(|_| out.join("joint").join(PREFERENCES)));
        let same_response_twice = instructions.len() - n - empty_response;
        Ok(RoundPreferences { files, same_response_twice, empty_response, conditional, joint })
    }

    /// Draws joint pairs from conditional preferences, and asks the judge about them.
    fn joint(&self, preferences: &Path, judge: &dyn Judge, out: &Path) -> Result<Option<VerdictCounts>> {
        let rows = read_row_file(preferences, &FieldMap::default(), DatasetType::Preference, BadRows::Error)?.rows;
        let drawn: Vec<ConditionalPreference> =
            rows.iter().map(ConditionalPreference::from_row).collect::<Result<_>>()?;
        let pairs = self.joint_pairs.min(most_pairs(drawn.len(), Stratum::DRAWN.len()));
        if pairs == 0 {
            return Ok(None);
        }
        let file = out.join("joint-comparisons.jsonl");
        let comparisons = draw(&drawn, &Stratum::DRAWN, pairs, self.sampling.seed, &file)?;
        write(&file, comparisons.iter().map(Comparison::row))?;
        judge_comparisons(&[file], judge, out.join("joint")).map(Some)
    }
}

/// Returns the most joint pairs that can be drawn from `preferences` with distinct instructions, in rotation from `strata` strata.
pub fn most_pairs(preferences: usize, strata: usize) -> usize {
    strata.saturating_mul(preferences.saturating_mul(preferences.saturating_sub(1)) / 2)
}
