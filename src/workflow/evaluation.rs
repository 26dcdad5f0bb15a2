//! Evaluation of models on test prompts, opened and checked: its runs, their responses, and what follows from a judge's verdicts.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Finished;
use super::device::DeviceOptions;
use super::evaluated_models::{
    EvaluatedModel, EvaluatedModelNames, GOLD, NamedModel, evaluated_models, open_evaluated, opponent,
};
use super::job_list::{JobList, ListedJob};
use super::model_responses::{DroppedPrompt, export_alpaca, fitting_prompts, respond_all};
use super::several_ranks::check_same_contents;
use crate::data::comparisons::Comparison;
use crate::data::named_templates::run_time;
use crate::data::rows::FieldMap;
use crate::error::{Error, Result};
use crate::eval::acquire::JudgedComparison;
use crate::eval::evaluate::compare::{Opponent, RunResponses, comparisons, run as run_of, run_name, write_judged};
use crate::eval::evaluate::folder::EvaluationFolder;
use crate::eval::evaluate::prompts::{TestPrompt, read};
use crate::eval::evaluate::response_sampling::ResponseSampling;
use crate::eval::evaluate::responses::ResponseFile;
use crate::eval::evaluate::{EvaluatedRun, EvaluationResult};
use crate::gpu::Gpu;
use crate::model::save::write_text;
use crate::ranks::Ranks;
use crate::report::evaluation as evaluation_report;
use crate::report::{self, Report, ReportSample};

/// Number of prompts whose answers are shown on the page.
const SAMPLES: usize = 3;
/// Stage of the jobs that make responses.
pub const RESPOND: &str = "respond";
/// Stage of the job that asks the judge.
const JUDGE: &str = "judge";
/// Stage of the last job where there is no judge.
const ALPACA: &str = "alpaca_eval";

/// Models, prompts and settings of an evaluation, as the user gave them.
pub struct EvaluationInputs<'a> {
    /// Models that answer.
    pub models: EvaluatedModelNames<'a>,
    /// Files of test prompts.
    pub data: &'a [PathBuf],
    /// Names of the fields in the files, `FIELD=NAME`.
    pub map: &'a [String],
    /// Most prompts that are read.
    pub limit: Option<usize>,
    /// Settings for sampling.
    pub sampling: ResponseSampling,
    /// Whether a judge compares the responses.
    pub is_judged: bool,
}

/// Evaluation whose models and prompts were read and checked. Nothing is on a device yet.
pub struct OpenEvaluation {
    /// Models whose responses are compared.
    named: Vec<NamedModel>,
    /// Model that they are compared with; `None`: the rows' own responses.
    against: Option<NamedModel>,
    /// Models that answer: `named`, and `against`.
    models: Vec<EvaluatedModel>,
    prompts: Vec<TestPrompt>,
    dropped: Vec<DroppedPrompt>,
    sampling: ResponseSampling,
    data: Vec<PathBuf>,
    base_model: String,
    /// Settings that all responses in a folder share.
    settings: Value,
    /// Time that chat templates print, in seconds since 1970; `None` where they print none.
    time: Option<u64>,
}

/// Contents of `results.json`.
#[derive(Serialize)]
struct ResultsFile<'a> {
    data: &'a [PathBuf],
    settings: &'a Value,
    dropped: &'a [DroppedPrompt],
    #[serde(flatten)]
    evaluation: &'a EvaluationResult,
}

impl OpenEvaluation {
    /// Reads the prompts, and reads and verifies the models. Logs a note for each prompt that is left out.
    ///
    /// # Errors
    /// [`Error::Flag`] for models that are named wrongly, or where no prompt fits; those of the files and the models.
    pub fn open(inputs: EvaluationInputs<'_>) -> Result<Self> {
        let EvaluationInputs { models: names, data, map, limit, sampling: mut sampled, is_judged } = inputs;
        let named = evaluated_models(&names)?;
        let against = opponent(&names, &named)?;
        let read = read(data, &FieldMap::parse(map)?, against.is_none() && is_judged, limit)?;
        read.notes.iter().for_each(|line| note!("note: {line}"));
        let mut every = named.clone();
        every.extend(against.iter().filter(|a| !named.contains(a)).cloned());
        let models = open_evaluated(&names, &every)?;
        sampled.settle(&models[0].tokenizer, &read.rows);
        let (prompts, dropped) = fitting_prompts(read.rows, &models, &sampled)?;
        let settings = json!({
            "template": sampled.template_name, "max_new_tokens": sampled.max_new_tokens, "top_k": sampled.top_k, "top_p": sampled.top_p,
            "base_dtype": names.base_dtype.name(),
        });
        let prints_time = models.iter().any(|model| model.tokenizer.chat_templates().prints_time());
        let time = (prints_time && sampled.template.renders_chats()).then(|| names.chat.time.unwrap_or_else(run_time));
        let (data, base_model) = (data.to_vec(), names.model.unwrap_or_default().into());
        Ok(Self { named, against, models, prompts, dropped, sampling: sampled, data, base_model, settings, time })
    }

    /// Returns the prompts that every model answers.
    pub fn prompts(&self) -> &[TestPrompt] {
        &self.prompts
    }

    /// Returns the name of what the responses are compared with.
    pub fn against(&self) -> &str {
        self.against.as_ref().map_or(GOLD, |against| &against.name)
    }

    fn digests(&self) -> Vec<(&str, String)> {
        let digest = |model: &EvaluatedModel| model.digest(&self.sampling.template);
        self.models.iter().map(|model| (model.named.name.as_str(), digest(model))).collect()
    }

    /// Checks that all ranks evaluate the same.
    ///
    /// # Errors
    /// [`Error::Ranks`] naming what differs.
    pub fn check_same(&self, ranks: Ranks) -> Result<()> {
        let hash = |parts: &mut dyn Iterator<Item = String>| {
            let mut hash = Sha256::new();
            parts.for_each(|part| hash.update(format!("{}\0{part}", part.len())));
            format!("{:x?}", hash.finalize().as_slice())
        };
        let runs = self.runs().join(" ");
        let models = hash(&mut self.digests().into_iter().map(|(name, digest)| format!("{name} {digest}")));
        let prompts = hash(&mut self.prompts.iter().map(|p| format!("{} {:?}", p.text, p.gold)));
        let contents = [
            ("other settings of sampling", self.settings.to_string()),
            ("other checkpoints, temperatures or seeds", runs),
            ("other weights of a checkpoint, or another chat template,", models),
            ("other test prompts", prompts),
        ];
        let contents: Vec<(&str, &str)> = contents.iter().map(|(name, value)| (*name, value.as_str())).collect();
        check_same_contents(&contents, ranks)
    }

    /// Creates the output folder, or resumes the evaluation in it.
    ///
    /// # Errors
    /// Those of [`EvaluationFolder::open`].
    pub fn folder(&self, out: &Path) -> Result<EvaluationFolder> {
        EvaluationFolder::open(out, &self.settings, &self.digests(), self.time)
    }

    /// Lists the runs by their names: every model at every temperature and seed.
    pub fn runs(&self) -> Vec<String> {
        let of = |model: &EvaluatedModel| {
            let name = model.named.name.clone();
            self.sampling.pairs().map(move |(temperature, seed)| run_name(&name, temperature, seed)).collect::<Vec<_>>()
        };
        self.models.iter().flat_map(of).collect()
    }

    /// Lists the runs that have no response yet to some prompt. Nothing is written.
    ///
    /// # Errors
    /// Those of [`ResponseFile::count`].
    pub fn unanswered(&self, out: &Path) -> Result<Vec<String>> {
        let folder = EvaluationFolder::opened(out);
        let mut all = Vec::new();
        for run in self.runs() {
            if ResponseFile::count(&folder.responses(&run), &self.prompts)? < self.prompts.len() {
                all.push(run);
            }
        }
        Ok(all)
    }

    /// Lists the jobs of the evaluation in `out`: the responses of each run, and then the judge, or AlpacaEval's files where there is no judge.
    ///
    /// # Errors
    /// Those of [`Self::unanswered`].
    pub fn jobs(&self, out: &Path, is_judged: bool) -> Result<JobList> {
        let unanswered = self.unanswered(out)?;
        let mut jobs = JobList::default();
        let respond = |name: String| {
            let done = !unanswered.contains(&name);
            jobs.push(ListedJob { stage: RESPOND, name, needs: Vec::new(), done })
        };
        let needs: Vec<usize> = self.runs().into_iter().map(respond).collect();
        let (stage, is_written) = match is_judged {
            true => (JUDGE, self.has_results(out)),
            false => (ALPACA, self.runs().iter().all(|run| EvaluationFolder::opened(out).alpaca(run).exists())),
        };
        jobs.push(ListedJob { stage, name: stage.into(), needs, done: unanswered.is_empty() && is_written });
        Ok(jobs)
    }

    /// Tells whether `results.json` is of all runs and prompts.
    fn has_results(&self, out: &Path) -> bool {
        let text = std::fs::read_to_string(EvaluationFolder::opened(out).results()).unwrap_or_default();
        let found: Value = serde_json::from_str(&text).unwrap_or_default();
        let n_runs = self.named.iter().filter(|named| self.against.as_ref() != Some(named)).count();
        let n_runs = n_runs * self.sampling.pairs().count();
        found["prompts"] == self.prompts.len() && found["runs"].as_array().is_some_and(|runs| runs.len() == n_runs)
    }

    /// Makes the responses of the runs to whose names `selects` says yes: see [`respond_all`].
    ///
    /// # Errors
    /// Those of [`respond_all`].
    pub fn respond(
        &self,
        folder: &EvaluationFolder,
        device: (&mut Option<Gpu>, &DeviceOptions),
        stop: &AtomicBool,
        selects: &dyn Fn(&str) -> bool,
    ) -> Result<Option<Vec<RunResponses>>> {
        respond_all(&self.models, &self.prompts, &self.sampling, folder, device, (stop, selects))
    }

    /// Makes the responses that are missing on several ranks. Neighbours, which share a model, are one rank's. Returns on all ranks when all are done.
    ///
    /// # Errors
    /// Those of [`Self::respond`] and of [`Ranks::broadcast`].
    pub fn respond_over(
        &self,
        folder: &EvaluationFolder,
        device: (&mut Option<Gpu>, &DeviceOptions),
        stop: &AtomicBool,
        ranks: Ranks,
    ) -> Result<Finished> {
        let own = if ranks.is_first() { self.unanswered(folder.dir())? } else { Vec::new() };
        let unanswered = ranks.broadcast(own)?;
        let own = &unanswered[ranks.block(unanswered.len())];
        let made = self.respond(folder, device, stop, &|run| own.iter().any(|name| name == run))?;
        Ok(if ranks.meet(made.is_none()) { Finished::Interrupted } else { Finished::Whole })
    }

    /// Writes AlpacaEval's files: one per run, and the gold responses.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn export_alpaca(&self, folder: &EvaluationFolder, responses: &[RunResponses]) -> Result<()> {
        export_alpaca(folder, &self.prompts, responses)
    }

    /// Splits responses into those that are compared and those that they are compared with.
    pub fn sides<'r>(&self, responses: &'r [RunResponses]) -> [Vec<&'r RunResponses>; 2] {
        let is_other = |r: &&RunResponses| self.against.as_ref().is_some_and(|a| a.name == r.checkpoint);
        let is_ours = |r: &&RunResponses| !is_other(r) && self.named.iter().any(|n| n.name == r.checkpoint);
        [responses.iter().filter(is_ours).collect(), responses.iter().filter(is_other).collect()]
    }

    /// Compares each of our responses with its opponent, at the same temperature and seed.
    pub fn comparisons(&self, [ours, theirs]: &[Vec<&RunResponses>; 2]) -> Vec<Comparison> {
        let is_same = |a: &RunResponses, b: &RunResponses| a.temperature == b.temperature && a.seed == b.seed;
        let of = |r: &&RunResponses| {
            let other = theirs.iter().find(|other| is_same(other, r));
            comparisons(&self.prompts, r, other.map_or(Opponent::Gold, |other| Opponent::Other(other)))
        };
        ours.iter().flat_map(of).collect()
    }

    /// Writes the judged rows of each run, and returns the runs with their verdicts.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn judged_runs(
        &self,
        folder: &EvaluationFolder,
        ours: &[&RunResponses],
        (rows, judged): (&[Comparison], &[JudgedComparison]),
        judge: &str,
    ) -> Result<Vec<EvaluatedRun>> {
        let n = self.prompts.len();
        let mut runs = Vec::with_capacity(ours.len());
        for (r, (rows, judged)) in ours.iter().zip(rows.chunks(n).zip(judged.chunks(n))) {
            write_judged(&folder.judged(&r.name()), rows, judged, judge)?;
            runs.push(run_of(r, rows, judged));
        }
        Ok(runs)
    }

    /// Writes `results.json`. Returns its text.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write_results(&self, folder: &EvaluationFolder, found: &EvaluationResult) -> Result<String> {
        let results =
            ResultsFile { data: &self.data, settings: &self.settings, dropped: &self.dropped, evaluation: found };
        let path = folder.results();
        let text = serde_json::to_string_pretty(&results).map_err(|e| Error::file(&path, e))?;
        write_text(&path, &format!("{text}\n")).map(|()| text)
    }

    /// Makes the page of the results, without time and device.
    pub fn page(&self, found: &EvaluationResult, ours: &[&RunResponses]) -> Report {
        let sampled = &self.sampling;
        let sample = |prompt: &TestPrompt, i: usize| {
            let mut answers: Vec<(String, String)> =
                prompt.gold.iter().map(|gold| (GOLD.into(), gold.clone())).collect();
            for m in &found.methods {
                let first = ours.iter().find(|r| r.method == m.name);
                answers.extend(first.map(|r| (r.name(), r.rows[i].response.trim().to_string())));
            }
            ReportSample { instruction: prompt.text.clone(), answers }
        };
        let list = |values: Vec<String>| values.join(", ");
        let data: Vec<String> = self.data.iter().map(|path| path.display().to_string()).collect();
        Report {
            title: "Win rates".into(),
            command: report::command_line(),
            model: self.base_model.clone(),
            objective: format!("against {}, judged by {}", found.against, found.judge),
            data: format!("{}: {} prompts, {} too long", data.join(", "), found.prompts, self.dropped.len()),
            facts: vec![
                ("Temperatures".into(), list(sampled.temperatures.iter().map(f64::to_string).collect())),
                ("Seeds of sampling".into(), list(sampled.seeds.iter().map(u64::to_string).collect())),
                ("Longest response".into(), format!("{} tokens", sampled.max_new_tokens)),
                ("Template".into(), sampled.template_name.clone()),
            ],
            bars: evaluation_report::figures(found),
            tables: evaluation_report::tables(found),
            samples: self.prompts.iter().take(SAMPLES).enumerate().map(|(i, prompt)| sample(prompt, i)).collect(),
            ..Report::default()
        }
    }
}
