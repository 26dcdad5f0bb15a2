//! A study over the ranks of an MPI run. Rank 0 does the stages that need each other, and asks the judge. Trainings, each in one process, and the responses of
//! the evaluation are divided.

use std::sync::atomic::Ordering;

use super::digests::digests;
use super::dry_run::TrainingLength;
use super::stages::EVALUATE;
use super::{StudyRun, StudyTraining, WrittenResults, results, rows};
use crate::error::Result;
use crate::train::settings::TrainDefaults;
use crate::workflow::Finished;
use crate::workflow::several_ranks::{SharedStop, assign_devices, check_same_contents, device_number};

/// Does the stages that are left, together with the other ranks. Rank 0 alone returns results.
///
/// # Errors
/// [`crate::Error::Ranks`] where ranks differ, or do not see one output folder; those of the stages.
pub fn run(run: &mut StudyRun<'_>, resume: bool) -> Result<(Finished, Option<WrittenResults>)> {
    let ranks = run.stages.ranks;
    let mut device = run.study.evaluate.device.options()?;
    assign_devices(&mut device, ranks)?;
    run.stages.device = device_number(&device)?;
    check_same_contents(&[("another study file", &format!("{:?}", run.study))], ranks)?;
    let stop = (run.stages.commands.stop)();
    let study = run.study;
    let _folder = run.stages.begin(resume, || digests(study))?;
    let _stop = SharedStop::watch(&run.stages.out, stop, ranks);
    let before = if ranks.is_first() { run.before_trainings()? } else { Finished::Whole };
    if ranks.meet(before == Finished::Interrupted) {
        return Ok((Finished::Interrupted, None));
    }
    let dealt = ranks.broadcast(if ranks.is_first() { run.deal_trainings()? } else { Vec::new() })?;
    let trainings: Vec<StudyTraining<'_>> = run.trainings().collect();
    let mut is_interrupted = false;
    for &training in &dealt[ranks.rank()] {
        is_interrupted = stop.load(Ordering::Relaxed) || run.train(&trainings[training])? == Finished::Interrupted;
        if is_interrupted {
            break;
        }
    }
    if ranks.meet(is_interrupted) {
        return Ok((Finished::Interrupted, None));
    }
    let is_evaluated = ranks.broadcast(ranks.is_first() && run.looking().evaluate()? == Finished::Whole)?;
    let finished = match (is_evaluated, ranks.is_first()) {
        (true, _) => Finished::Whole,
        (false, true) => run.evaluate()?,
        (false, false) => run.stages.evaluated_beside(run.study, EVALUATE, run.evaluation())?,
    };
    let is_whole = ranks.is_first() && finished == Finished::Whole;
    Ok((finished, is_whole.then(|| results::write(run)).transpose()?))
}

impl StudyRun<'_> {
    /// Deals out the trainings that are left, by the rows that they see in all their steps. Returns the positions of each rank's.
    fn deal_trainings(&self) -> Result<Vec<Vec<usize>>> {
        let looks = self.looking();
        let (mut left, mut costs) = (Vec::new(), Vec::new());
        for (i, training) in self.trainings().enumerate() {
            if looks.train(&training)? == Finished::Interrupted {
                left.push(i);
                costs.push(self.cost(&training)?);
            }
        }
        let dealt = self.stages.ranks.deal(&costs);
        Ok(dealt.into_iter().map(|own| own.into_iter().map(|i| left[i]).collect()).collect())
    }

    /// Counts the rows of all steps of a training.
    fn cost(&self, training: &StudyTraining<'_>) -> Result<u64> {
        let StudyTraining { method, fraction, .. } = training;
        let mut n_rows = 0;
        for kind in 0..2 {
            if method.shares[kind] > 0.0 {
                n_rows += rows::count(self.pool(kind)?.len(), method.shares[kind], *fraction);
            }
        }
        let length = TrainingLength::for_rows(&method.train, n_rows);
        let batch_size = method.train.batch_size.unwrap_or(TrainDefaults::BATCH_SIZE).max(1);
        Ok((length.micro_batches * batch_size) as u64)
    }
}
