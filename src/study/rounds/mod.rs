//! `iterate`: online rounds (iterative DPO, Xiong et al. 2312.11456; iterative JPO). Each round samples two responses per prompt from the present policy, asks a
//! judge, trains on its preferences, and evaluates the new policy. The stages are those of a study.

mod dry_run;
mod results;
mod rounds_file;

use std::collections::HashSet;
use std::path::PathBuf;

use super::dry_run as stage_list;
use super::rows::SampledComparisons;
use super::stages::{self, EVALUATE, StageCommands, StageRunner};
use super::study_file::{DrawSettings, JointSource, StudyMethod};
use super::{digests, results as shared_results, rows};
use crate::data::rows::FieldMap;
use crate::error::{Error, Result};
use crate::eval::acquire::PREFERENCES;
use crate::eval::evaluate::prompts::read;
use crate::eval::strata::Stratum;
use crate::flags::{DataArgs, EvaluateArgs, IterateArgs, JudgeArgs, ModelArgs};
use crate::rng::Rng;
use crate::workflow::{Finished, most_pairs};
use rounds_file::{OnlineRounds, RoundOpponent, RoundReference};

/// Name, in tables, of the policy at the start of the first round.
const START: &str = "start";
/// Name of the sampled policy in the files of a round's responses.
const POLICY: &str = "policy";
/// File of a round's prompts, where rounds take different ones; and of the preferences that a round trains on.
const ROUND_PROMPTS: &str = "prompts.jsonl";
/// Random stream of the order of prompts.
const OF_ROUNDS: u64 = 42;

/// Does the stages that are left of all rounds. Returns how it ended, and the text of its results, or of `--dry-run`.
///
/// # Errors
/// Errors of the rounds' file and of their stages.
pub fn run(args: &IterateArgs, commands: StageCommands) -> Result<(Finished, String)> {
    let (rounds, args) = (OnlineRounds::read(&args.rounds)?, &args.run);
    rows::check(&rounds.study, rounds.against == RoundOpponent::Gold)?;
    check_held_out(&rounds)?;
    let mut run = RoundsRun { rounds: &rounds, stages: StageRunner::new("iterate", commands, args) };
    if args.dry_run {
        let text = stage_list::text(&rounds.study, args.json, |clock| dry_run::stages(&rounds, clock))?;
        return Ok((Finished::Whole, text));
    }
    let inputs = || {
        let mut all = digests::digests(&rounds.study)?;
        if let Some(adapter) = &rounds.adapter {
            all.insert(adapter.clone(), digests::adapter_digest(adapter)?);
        }
        Ok(all)
    };
    let _folder = run.stages.begin(args.resume, inputs)?;
    if run.stages.tasks(&rounds.study)? == Finished::Interrupted {
        return Ok((run.stopped(), String::new()));
    }
    let mut written = None;
    for round in 1..=rounds.rounds {
        if run.round(round)? == Finished::Interrupted {
            return Ok((run.stopped(), String::new()));
        }
        // After each round, so that a run that goes on for days can be looked at.
        if round == rounds.rounds || !run.stages.is_done(&stage_of(round + 1, EVALUATE)) {
            written = Some(results::write(&run, round)?);
        }
    }
    shared_results::note_places(&args.output_dir);
    Ok((Finished::Whole, written.map_or_else(String::new, |written| written.printed(args.json))))
}

/// Warns of test prompts that responses are also sampled to, because a win rate on them is not one on held-out prompts.
fn check_held_out(rounds: &OnlineRounds) -> Result<()> {
    let EvaluateArgs { data, map, limit, .. } = &rounds.study.evaluate;
    let sampled = &rounds.sample.data;
    if data.is_empty() || sampled.is_empty() {
        return Ok(());
    }
    let trained = read(sampled, &FieldMap::default(), false, None)?.rows;
    let trained: HashSet<String> = trained.into_iter().map(|prompt| prompt.text).collect();
    let tests = read(data, &FieldMap::parse(map)?, false, *limit)?.rows;
    match tests.iter().filter(|prompt| trained.contains(&prompt.text)).count() {
        0 => Ok(()),
        n => {
            note!("warning: {n} of {} test prompts are also prompts of [sample]: they are not held out", tests.len());
            Ok(())
        }
    }
}

/// Online rounds with their stages.
struct RoundsRun<'a> {
    rounds: &'a OnlineRounds,
    stages: StageRunner,
}

/// Returns the name of a stage of a round.
fn stage_of(round: usize, stage: &str) -> String {
    format!("round-{round}/{stage}")
}

impl RoundsRun<'_> {
    fn dir(&self, name: &str) -> PathBuf {
        self.stages.dir(name)
    }

    fn stopped(&self) -> Finished {
        note!("stopped: the same command with --resume goes on where this one ended");
        Finished::Interrupted
    }

    fn method(&self) -> &StudyMethod {
        &self.rounds.study.methods[0]
    }

    fn round(&self, round: usize) -> Result<Finished> {
        stages::in_order(&[
            &|| self.sample(round),
            &|| self.conditional(round),
            &|| self.joint(round),
            &|| self.train(round),
            &|| self.evaluate(round),
        ])
    }

    /// Returns the policy after a round, as a model and an adapter on it. Round 0 is the start.
    fn policy(&self, round: usize) -> (String, Option<PathBuf>) {
        let (model, adapter) = (self.rounds.study.model.clone(), self.rounds.adapter.clone());
        match (round, self.method().train.full) {
            (0, _) => (model, adapter),
            (_, true) => (self.dir(&stage_of(round, "train")).display().to_string(), None),
            (_, false) => (model, Some(self.dir(&stage_of(round, "train")))),
        }
    }

    /// Returns the policy after a round as a checkpoint of `evaluate`, `NAME=DIR`.
    fn checkpoint(&self, name: &str, round: usize) -> String {
        let (model, adapter) = self.policy(round);
        format!("{name}={}", adapter.map_or(model, |dir| dir.display().to_string()))
    }

    /// Returns the files of a round's prompts. Rounds that take a part of all prompts each have a file of their own: the next ones in a random order, and
    /// from the beginning again after the last.
    fn prompts(&self, round: usize) -> Result<Vec<PathBuf>> {
        let files = self.stages.or_tasks(&self.rounds.sample.data, rows::PROMPTS);
        let Some(n) = self.rounds.prompts_per_round else { return Ok(files) };
        let file = self.dir(&stage_of(round, ROUND_PROMPTS));
        let mut all = rows::objects(&files)?;
        Rng::new(self.rounds.seed, OF_ROUNDS).shuffle(&mut all);
        let n = n.min(all.len());
        rows::write_to(&file, all.iter().cycle().skip((round - 1) * n % all.len().max(1)).take(n))?;
        Ok(vec![file])
    }

    /// Compares the two responses of a round to each prompt.
    fn compared(&self, round: usize) -> Result<SampledComparisons> {
        let stage = stage_of(round, "sample");
        let seeds = self.rounds.sampling_seeds(round);
        rows::compare(&seeds.map(|seed| self.stages.responses(&stage, POLICY, &self.rounds.sample, seed)))
    }

    fn sample(&self, round: usize) -> Result<Finished> {
        let args = EvaluateArgs {
            model: Some(self.policy(round - 1).0),
            checkpoint: vec![self.checkpoint(POLICY, round - 1)],
            data: self.prompts(round)?,
            ..EvaluateArgs::default()
        };
        let seeds = self.rounds.sampling_seeds(round);
        self.stages.sampled(&self.rounds.study, &stage_of(round, "sample"), &self.rounds.sample, seeds, args)
    }

    fn conditional(&self, round: usize) -> Result<Finished> {
        let data = vec![self.dir(&stage_of(round, "sample")).join(rows::COMPARISONS)];
        let name = stage_of(round, "conditional");
        let finished = self.stages.judged(&self.rounds.study, &name, JudgeArgs { data, ..JudgeArgs::default() })?;
        if finished == Finished::Whole {
            let counts = results::counts(&self.dir(&name))?;
            match counts.decided {
                0 => return Err(Error::file(self.dir(&name), format!("nothing to train on: {}", counts.text()))),
                _ if self.stages.is_done(&stage_of(round, "train")) => {}
                _ => note!("round {round}: responses to one prompt: {}", counts.text()),
            }
        }
        Ok(finished)
    }

    /// Returns the number of joint pairs of a round that has `preferences` conditional preferences: no more than can be drawn from them.
    fn pairs(&self, preferences: usize) -> usize {
        let JointSource::Drawn(DrawSettings { pairs, strata, .. }) = &self.rounds.study.joint else { return 0 };
        let strata = if strata.is_empty() { Stratum::DRAWN.len() } else { strata.len() };
        pairs.unwrap_or(preferences).min(most_pairs(preferences, strata))
    }

    fn joint(&self, round: usize) -> Result<Finished> {
        let JointSource::Drawn(DrawSettings { strata, pairs, .. }) = &self.rounds.study.joint else {
            return Ok(Finished::Whole);
        };
        let sample = self.dir(&stage_of(round, "conditional")).join(PREFERENCES);
        let decided = rows::objects(std::slice::from_ref(&sample))?.len();
        let name = stage_of(round, "joint");
        let n = self.pairs(decided);
        let is_told = self.stages.is_done(&stage_of(round, "train"));
        if n < pairs.unwrap_or(decided) && !is_told {
            note!("warning: round {round}: {decided} decided comparisons allow {n} joint pairs");
        }
        if n == 0 {
            return Ok(Finished::Whole);
        }
        let args = JudgeArgs {
            sample: vec![sample],
            pairs: Some(n),
            strata: strata.clone(),
            seed: Some(self.rounds.sampling_seeds(round)[0]),
            ..JudgeArgs::default()
        };
        let finished = self.stages.judged(&self.rounds.study, &name, args)?;
        if finished == Finished::Whole && !is_told {
            note!("round {round}: joint pairs: {}", results::counts(&self.dir(&name))?.text());
        }
        Ok(finished)
    }

    fn train(&self, round: usize) -> Result<Finished> {
        let pool = |kind: &str| {
            let file = self.dir(&stage_of(round, kind)).join(PREFERENCES);
            // There is no joint preference where nobody was asked, or where all are ties.
            let has_rows = file.metadata().is_ok_and(|file| file.len() > 0);
            if has_rows { rows::pool(&[file]) } else { Ok(Vec::new()) }
        };
        let pools = [pool("conditional")?, pool("joint")?];
        let data = self.dir(&stage_of(round, PREFERENCES));
        rows::part(&data, self.method().shares, 1.0, [&pools[0], &pools[1]])?;
        let (model, adapter) = self.policy(round - 1);
        let mut args = self.method().train.clone();
        args.model = ModelArgs { model: Some(model), adapter, ..args.model };
        args.data = DataArgs { data: vec![data], ..args.data };
        args.objective.reference = self.reference(round);
        self.stages.trained(&self.rounds.study, &stage_of(round, "train"), args, (self.rounds.seed, false), || Ok(()))
    }

    /// Returns the value of `--reference` of a round's training. `None`: the policy at the start of the round.
    fn reference(&self, round: usize) -> Option<String> {
        match (self.rounds.reference, self.policy(0)) {
            (RoundReference::Round, _) => None,
            (RoundReference::Start, _) if round == 1 => None,
            (RoundReference::Start, (_, Some(adapter))) => Some(adapter.display().to_string()),
            (RoundReference::Start, (model, None)) if self.method().train.full => Some(model),
            // The model without the adapter is in memory already.
            (RoundReference::Start, (_, None)) => Some("base".into()),
        }
    }

    /// Evaluates the policies of all rounds so far. Responses and answers of earlier rounds are in the folder already.
    fn evaluate(&self, round: usize) -> Result<Finished> {
        let args = self.rounds.study.evaluate.clone();
        let start = self.checkpoint(START, 0);
        let rounds = (1..=round).map(|round| self.checkpoint(&format!("round-{round}"), round));
        let (against, first) = match self.rounds.against {
            RoundOpponent::Start => (Some(start), None),
            RoundOpponent::Gold => (None, Some(start)),
        };
        let args = EvaluateArgs {
            model: Some(self.rounds.study.model.clone()),
            checkpoint: first.into_iter().chain(rounds).collect(),
            against,
            data: self.stages.or_tasks(&args.data, rows::TEST),
            ..args
        };
        self.stages.evaluated(&self.rounds.study, &stage_of(round, EVALUATE), EVALUATE, args)
    }
}
