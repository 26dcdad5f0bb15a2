//! Jobs of a study: its stages, and the responses of each run of its evaluation. Processes of a job array do them side by side in one folder.

use super::digests::digests;
use super::stages::EVALUATE;
use super::study_file::{ConditionalSource, JointSource};
use super::{StudyRun, StudyTraining, WrittenResults, results};
use crate::error::Result;
use crate::eval::evaluate::compare::run_name;
use crate::flags::EvaluateArgs;
use crate::workflow::Finished;
use crate::workflow::evaluated_models::evaluated_models;
use crate::workflow::evaluation::RESPOND;
use crate::workflow::job_list::{JobList, ListedJob};

/// Work of a job.
pub enum StudyWork<'a> {
    Tasks,
    Sft,
    Sample,
    Conditional,
    Joint,
    Train(StudyTraining<'a>),
    Respond(StudyResponses),
    Evaluate,
}

/// Responses of one checkpoint at one temperature and seed.
pub struct StudyResponses {
    /// The checkpoint as a value of `--checkpoint`.
    checkpoint: String,
    temperature: f64,
    seed: u64,
}

impl StudyRun<'_> {
    /// Does a job, unless it is done.
    fn job(&self, work: &StudyWork<'_>) -> Result<Finished> {
        match work {
            StudyWork::Tasks => self.stages.tasks(self.study),
            StudyWork::Sft => self.sft(),
            StudyWork::Sample => self.sample(),
            StudyWork::Conditional => self.conditional(),
            StudyWork::Joint => self.joint(),
            StudyWork::Train(training) => self.train(training),
            StudyWork::Respond(responses) => self.respond(responses),
            StudyWork::Evaluate => self.evaluate(),
        }
    }

    fn respond(&self, responses: &StudyResponses) -> Result<Finished> {
        let args = self.responding(responses);
        let name = job_name(&args, responses)?;
        self.stages.responded(self.study, &name, EVALUATE, args)
    }

    /// Returns the flags that make some responses of the evaluation.
    fn responding(&self, responses: &StudyResponses) -> EvaluateArgs {
        let StudyResponses { checkpoint, temperature, seed } = responses;
        let EvaluateArgs { model, data, map, limit, base_dtype, device, .. } = self.evaluation();
        let EvaluateArgs { max_new_tokens, top_k, top_p, batch_size, on_device_lost, .. } = self.study.evaluate.clone();
        let (temperatures, seeds) = (vec![*temperature], vec![*seed]);
        let checkpoint = vec![checkpoint.clone()];
        EvaluateArgs {
            model,
            checkpoint,
            data,
            map,
            limit,
            base_dtype,
            device,
            temperatures,
            seeds,
            max_new_tokens,
            top_k,
            top_p,
            batch_size,
            on_device_lost,
            no_judge: true,
            ..EvaluateArgs::default()
        }
    }
}

/// Returns the name of the job that makes some responses: `evaluate/JPO-seed-0-t0.5-s0`.
fn job_name(args: &EvaluateArgs, responses: &StudyResponses) -> Result<String> {
    let checkpoint = evaluated_models(&args.models())?.remove(0).name;
    Ok(format!("{EVALUATE}/{}", run_name(&checkpoint, responses.temperature, responses.seed)))
}

/// Lists the jobs of a study with their work.
///
/// # Errors
/// [`crate::Error::Flag`] where a job was done with other settings.
pub fn list<'a>(run: &'a StudyRun<'a>) -> Result<(JobList, Vec<StudyWork<'a>>)> {
    let (study, looks) = (run.study, run.looking());
    looks.stages.check_inputs()?;
    let is_evaluated = looks.evaluate()? == Finished::Whole;
    let (mut jobs, mut all) = (JobList::default(), Vec::new());
    let mut add = |stage, name: String, needs: &[Option<usize>], work: StudyWork<'a>| {
        let is_done = match work {
            StudyWork::Respond(_) if is_evaluated => true,
            _ => looks.job(&work)? == Finished::Whole,
        };
        all.push(work);
        Ok::<_, crate::error::Error>(Some(jobs.push(ListedJob {
            stage,
            name,
            needs: needs.iter().copied().flatten().collect(),
            done: is_done,
        })))
    };
    let mut tasks = None;
    if study.tasks.is_some() {
        tasks = add("tasks", "tasks".into(), &[], StudyWork::Tasks)?;
    }
    let of_tasks = |files: &[std::path::PathBuf]| tasks.filter(|_| files.is_empty());
    let mut sft = None;
    if let Some(args) = &study.sft {
        sft = add("sft", "sft".into(), &[of_tasks(&args.data.data)], StudyWork::Sft)?;
    }
    let mut conditional = None;
    if let ConditionalSource::Sampled(sample) = &study.conditional {
        let sampled = add("sample", "sample".into(), &[of_tasks(&sample.data), sft], StudyWork::Sample)?;
        conditional = add("conditional", "conditional".into(), &[sampled], StudyWork::Conditional)?;
    }
    let mut joint = None;
    if let JointSource::Drawn(_) = study.joint {
        joint = add("joint", "joint".into(), &[conditional], StudyWork::Joint)?;
    }
    let mut checkpoints = vec![(run.start_checkpoint(), sft)];
    for training in run.trainings() {
        let [of_conditional, of_joint] = training.method.shares.map(|share| share > 0.0);
        let needs = [sft, conditional.filter(|_| of_conditional), joint.filter(|_| of_joint)];
        let name = format!("train/{}", training.name());
        let checkpoint = format!("{}={}", training.name(), run.dir(&name).display());
        checkpoints.push((checkpoint, add("train", name, &needs, StudyWork::Train(training))?));
    }
    let tests = of_tasks(&study.evaluate.data);
    let mut needs = Vec::new();
    for (checkpoint, made) in checkpoints {
        for (temperature, seed) in study.evaluate.sampling()?.pairs() {
            let responses = StudyResponses { checkpoint: checkpoint.clone(), temperature, seed };
            let name = job_name(&run.responding(&responses), &responses)?;
            needs.push(add(RESPOND, name, &[tests, made], StudyWork::Respond(responses))?);
        }
    }
    add(EVALUATE, EVALUATE.into(), &needs, StudyWork::Evaluate)?;
    Ok((jobs, all))
}

/// Does one job, beside other processes that do others. The last job writes the results.
///
/// # Errors
/// [`crate::Error::Flag`] where there is no such job, what it needs is not done, or another process is doing it; those of the job.
pub fn run_one(run: &mut StudyRun<'_>, number: usize) -> Result<(Finished, Option<WrittenResults>)> {
    run.stages.digests = digests(run.study)?;
    // Before anything is written.
    list(run)?.0.check_needs(number)?;
    run.stages.join()?;
    let (jobs, mut all) = list(run)?;
    let job = jobs.get(number)?;
    let work = all.swap_remove(number - 1);
    if job.done {
        note!("job {number} ({}) is done already", job.name);
    }
    let finished = if job.done { Finished::Whole } else { run.job(&work)? };
    let is_last = matches!(work, StudyWork::Evaluate) && finished == Finished::Whole;
    Ok((finished, is_last.then(|| results::write(run)).transpose()?))
}
