//! Estimate of online rounds before anything is written.

use super::super::dry_run::{StageEstimate, TrainingLength, count};
use super::super::study_file::{DrawSettings, JointSource};
use super::super::time_estimate::TimeEstimator;
use super::rounds_file::{OnlineRounds, RoundOpponent};
use super::stage_of;
use crate::error::Result;

/// Lists the stages of all rounds. Counts of preferences are the most that a judge can give.
pub fn stages(rounds: &OnlineRounds, clock: Option<&TimeEstimator<'_>>) -> Result<Vec<StageEstimate>> {
    let (study, sample, method) = (&rounds.study, &rounds.sample, &rounds.study.methods[0]);
    let mut all: Vec<StageEstimate> = Vec::new();
    let mut add = |name: String, what: String, seconds| all.push(StageEstimate { name, what, seconds });
    if let Some(tasks) = study.tasks {
        add("tasks".into(), format!("{} instructions, {} test rows", tasks.prompts, tasks.test), Some(0.0));
    }
    let prompts = count(&sample.data, study.tasks.map(|tasks| tasks.prompts))?;
    let prompts = rounds.prompts_per_round.map_or(prompts, |n| n.min(prompts));
    let pairs = match &study.joint {
        JointSource::Drawn(DrawSettings { pairs, .. }) => pairs.unwrap_or(prompts),
        _ => 0,
    };
    let preferences: usize =
        [prompts, pairs].iter().zip(method.shares).map(|(&n, share)| (n as f64 * share).round() as usize).sum();
    let length = TrainingLength::for_rows(&method.train, preferences);
    let answers = |n, batch, longest| clock.map_or(Ok(None), |clock| clock.answers(n, batch, longest));
    let sampling = answers(2 * prompts, sample.batch_size, sample.max_new_tokens)?;
    let training = match clock {
        Some(clock) => clock.training(&method.train, Some(method.shares), length.micro_batches)?,
        None => None,
    };
    let sampled = study.evaluate.sampling()?;
    let tests = count(&study.evaluate.data, study.tasks.map(|tasks| tasks.test))?;
    let tests = study.evaluate.limit.map_or(tests, |limit| limit.min(tests));
    let per = sampled.temperatures.len() * sampled.seeds.len();
    let evaluating = answers(per * tests, study.evaluate.batch_size, study.evaluate.max_new_tokens)?;
    let opponent = match rounds.against {
        RoundOpponent::Start => "the start",
        RoundOpponent::Gold => "gold",
    };
    for round in 1..=rounds.rounds {
        let mut add = |stage: &str, what: String, seconds| add(stage_of(round, stage), what, seconds);
        add(
            "sample",
            format!("2 responses to each of {prompts} prompts, temperature {}", sample.temperature),
            sampling,
        );
        add("conditional", format!("at most {} questions", 2 * prompts), None);
        if pairs > 0 {
            add("joint", format!("at most {} questions", 2 * pairs), None);
        }
        let what = format!("at most {preferences} preferences, {} steps of {}", length.steps, length.batch);
        add("train", what, training);
        // The first round also answers as the start.
        let checkpoints = if round == 1 { 2 } else { 1 };
        let what = format!("{per} answers to each of {tests} prompts, against {opponent}, two questions an answer");
        add("evaluate", what, evaluating.map(|seconds| f64::from(checkpoints) * seconds));
    }
    Ok(all)
}
