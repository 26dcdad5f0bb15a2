//! Time estimates of a study: steps and responses of its own model are timed on its own device, with rows like its own.

use std::cell::RefCell;
use std::path::Path;
use std::time::Instant;

use super::study_file::{ConditionalSource, JointSource, Study};
use crate::data::bad_rows::{BadRowLimit, BadRows};
use crate::data::batch::{Example, PrefixSharing, Sequence};
use crate::data::dataset::Dataset;
use crate::data::prompt_template::Template;
use crate::data::prompts::read_prompts;
use crate::data::rows::{
    DatasetType, FieldMap, Instruction, PromptResponse, Row, RowContent, SourceLocation, read_row_file,
};
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::generate::{DEFAULT_BATCH_SIZE, DEFAULT_MAX_NEW_TOKENS};
use crate::eval::generate::{GenerateSettings, generate};
use crate::eval::tasks::DataSplit;
use crate::eval::tasks::rows::{SftRow, held_out, sft};
use crate::flags::{ModelArgs, TrainArgs, resolve_template};
use crate::gpu::Gpu;
use crate::kernels::sample::Sampling;
use crate::model::load::LoadOptions;
use crate::train::memory_plan::{MemoryPlan, plan_memory, reserve};
use crate::train::outcome::RowReference;
use crate::train::trainer::Trainer;
use crate::workflow::memory_demand::{choose_keep, fits, load_options};
use crate::workflow::{ChatTemplateChoice, OpenModel, Recompute};

/// Most floating-point operations of a micro-batch that are timed on a CPU, because more would take minutes.
const MOST_OF_A_CPU: u64 = 1 << 40;
/// First rows of a file from which the rows of a micro-batch are chosen.
const ROWS: usize = 512;
/// New tokens of two runs, whose difference gives the time per token.
const NEW_TOKENS: [usize; 2] = [4, 12];
/// Time of a pass without gradients, as a fraction of a step: forward's share of forward and backward.
const REFERENCE: f64 = 1.0 / 3.0;

/// Timer of what a study repeats: micro-batches and responses.
pub struct TimeEstimator<'a> {
    study: &'a Study,
    gpu: Gpu,
    tokenizer: Tokenizer,
    template: Template,
    /// Seconds per micro-batch that was timed, by its settings.
    timed: RefCell<Vec<(String, f64)>>,
    untimed: RefCell<Option<String>>,
}

impl<'a> TimeEstimator<'a> {
    /// Opens the device and the tokenizer.
    pub fn open(study: &'a Study) -> Result<Self> {
        let model = OpenModel::open(&study.model, Default::default())?;
        let chat_template = study.chat_template.as_deref();
        Ok(Self {
            study,
            gpu: Gpu::open_with(&study.evaluate.device.options()?)?,
            tokenizer: model.chat_tokenizer(None, ChatTemplateChoice { template: chat_template, time: None })?,
            template: resolve_template(study.template.as_deref(), chat_template)?,
            timed: RefCell::default(),
            untimed: RefCell::default(),
        })
    }

    /// Returns the device's name.
    pub fn device(&self) -> &str {
        &self.gpu.caps().name
    }

    /// Returns why something was not timed; `None` where all of it was.
    pub fn untimed(&self) -> Option<String> {
        self.untimed.borrow().clone()
    }

    /// Estimates the seconds of `micro_batches` with their reference scores, for a method that sees these shares of preferences. Without shares it is
    /// supervised tuning.
    pub fn training(&self, args: &TrainArgs, shares: Option<[f64; 2]>, micro_batches: usize) -> Result<Option<f64>> {
        let key = format!("{args:?} {:?}", shares.map(|shares| shares[1] > 0.0));
        let known = self.timed.borrow().iter().find(|(other, _)| *other == key).map(|(_, seconds)| *seconds);
        let seconds = match known {
            Some(seconds) => Some(seconds),
            None => self.micro_batch(args, shares)?,
        };
        let Some(seconds) = seconds else { return Ok(None) };
        if known.is_none() {
            self.timed.borrow_mut().push((key, seconds));
        }
        let reference = if shares.is_some() { REFERENCE } else { 0.0 };
        Ok(Some(micro_batches as f64 * seconds * (1.0 + reference)))
    }

    fn micro_batch(&self, args: &TrainArgs, shares: Option<[f64; 2]>) -> Result<Option<f64>> {
        let args = TrainArgs {
            model: ModelArgs { model: Some(self.study.model.clone()), ..args.model.clone() },
            ..args.clone()
        };
        let settings = args.recipe(shares.is_none())?.settings()?;
        let (model, adapter) = args.model_and_starting_adapter()?;
        let examples = match self.examples(&args, &model, shares, settings.batch_size) {
            // Rows further on may fit.
            Err(Error::Flag { flag: "max-length", reason }) => return Ok(self.is_unknown(reason)),
            examples => examples?,
        };
        let examples: Vec<&Example> = examples.iter().collect();
        let longest = examples.iter().flat_map(|e| &e.sequences).map(|s| s.ids.len()).max().unwrap_or(1);
        let options = load_options(&settings, model.base, adapter.as_ref(), longest);
        let goal = settings.goal();
        let (gpu, share_prefix) = (&self.gpu, settings.share_prefix);
        let (keep, MemoryPlan { ledger, cost, .. }) =
            choose_keep(args.recompute.map_or(Recompute::Auto, Recompute::from), gpu.caps(), &|keep| {
                plan_memory(gpu.caps(), |gpu| model.load(gpu, &options), &goal, &examples, share_prefix, keep)
            })?;
        if fits(gpu.caps(), &ledger) == Some(false) {
            return Ok(self.is_unknown(format!("a micro-batch does not fit {}", self.device())));
        }
        if gpu.caps().is_cpu && cost.flops > MOST_OF_A_CPU {
            let flops = cost.flops as f64 / 1e9;
            return Ok(self.is_unknown(format!("a micro-batch of {flops:.0} GFLOP is not timed on a CPU")));
        }
        let decoder = model.load(gpu, &options)?;
        reserve(gpu, &decoder, &goal, &examples, share_prefix, keep);
        let trainer = Trainer { gpu, decoder, goal, share_prefix, keep, seed: 0 };
        let reference = vec![RowReference::default(); examples.len()];
        let step = |number| {
            let started = Instant::now();
            let done = trainer.step(&examples, &reference, examples.len(), &settings.optimiser, 0.0, number);
            pollster::block_on(done).map(|_| started.elapsed().as_secs_f64())
        };
        // The first one compiles kernels.
        step(1)?;
        Ok(Some(step(2)?.min(step(3)?)))
    }

    fn is_unknown(&self, reason: String) -> Option<f64> {
        *self.untimed.borrow_mut() = Some(reason);
        None
    }

    /// Estimates the seconds of `answers` of the longest length, in batches.
    pub fn answers(&self, answers: usize, batch: Option<usize>, longest: Option<usize>) -> Result<Option<f64>> {
        let batch = batch.unwrap_or(DEFAULT_BATCH_SIZE).max(1);
        let longest = longest.unwrap_or(DEFAULT_MAX_NEW_TOKENS);
        let model = OpenModel::open(&self.study.model, self.study.evaluate.base_dtype.unwrap_or_default())?;
        // What leaves no room is not answered.
        let room = longest.max(NEW_TOKENS[1]);
        let has_room = |prompt: &Vec<u32>| prompt.len() + room <= model.description.max_positions;
        let fitting: Vec<Vec<u32>> = self.prompts()?.into_iter().filter(has_room).collect();
        if fitting.is_empty() {
            return Ok(self.is_unknown(format!("no prompt leaves room for {room} tokens")));
        }
        let prompts: Vec<Vec<u32>> = fitting.into_iter().cycle().take(batch).collect();
        let positions = prompts.iter().map(Vec::len).max().unwrap_or(1) + NEW_TOKENS[1];
        let tokens: usize = prompts.iter().map(Vec::len).sum();
        let parameters: usize = model.description.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum();
        let flops = 2 * (tokens * parameters) as u64;
        if self.gpu.caps().is_cpu && flops > MOST_OF_A_CPU {
            return Ok(self.is_unknown(format!("{tokens} tokens of prompts are not timed on a CPU")));
        }
        let decoder = model.load(&self.gpu, &LoadOptions::frozen(model.base, None, positions))?;
        let run = |max_new_tokens| {
            let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
            let settings = GenerateSettings { sampling, max_new_tokens, seed: 0, eos: Vec::new(), with_lora: false };
            let (started, mut unseen) = (Instant::now(), |_, _| {});
            let done = generate(&self.gpu, &decoder, &prompts, 0, &settings, &mut unseen);
            pollster::block_on(done).map(|_| started.elapsed().as_secs_f64())
        };
        run(1)?;
        let [few, more] = [run(NEW_TOKENS[0])?, run(NEW_TOKENS[1])?];
        let token = (more - few).max(0.0) / (NEW_TOKENS[1] - NEW_TOKENS[0]) as f64;
        let seconds = few + token * longest.saturating_sub(NEW_TOKENS[0]) as f64;
        Ok(Some(seconds * answers.div_ceil(batch) as f64))
    }

    /// Tokenises the instructions of the test rows.
    fn prompts(&self) -> Result<Vec<Vec<u32>>> {
        let study = self.study;
        let mut all: Vec<Instruction> = Vec::new();
        match (study.tasks, study.evaluate.data.as_slice()) {
            (Some(tasks), []) => {
                all.extend(
                    held_out(tasks.seed, tasks.test).into_iter().map(|item| Instruction::Plain(item.instruction)),
                );
            }
            (_, files) => {
                for file in files {
                    let map = FieldMap::parse(&study.evaluate.map)?;
                    all.extend(read_prompts(file, &map)?.into_iter().map(|prompt| prompt.instruction));
                }
            }
        }
        let tokens = |i: &Instruction| self.tokenizer.encode_prompt(i, &self.template);
        all.iter().map(tokens).collect::<Result<_, _>>().map_err(|reason| Error::flag("template", reason))
    }

    /// Makes a micro-batch of rows like the study's: the rows of middle length in its files, or prompts with the longest responses that may be sampled.
    fn examples(
        &self,
        args: &TrainArgs,
        model: &OpenModel,
        shares: Option<[f64; 2]>,
        batch: usize,
    ) -> Result<Vec<Example>> {
        let map = FieldMap::parse(&args.data.map)?;
        // How many of a file's first rows are bad says little of all.
        let bad_rows = match args.data.bad_rows()? {
            BadRows::Error => BadRows::Error,
            BadRows::Skip(_) => BadRows::Skip(BadRowLimit::Share(1.0)),
        };
        let mut rows: Vec<Row> = Vec::new();
        let study = self.study;
        let purpose = if shares.is_some() { DatasetType::Preference } else { DatasetType::Sft };
        let files: Vec<_> = match (shares, &study.conditional, &study.joint) {
            (None, ..) => args.data.data.iter().collect(),
            (Some([conditional, joint]), ConditionalSource::Files(files), pairs) => {
                let joint_files =
                    if let (JointSource::Files(files), true) = (pairs, joint > 0.0) { &files[..] } else { &[] };
                let own = if conditional > 0.0 || joint_files.is_empty() { &files[..] } else { &[] };
                own.iter().chain(joint_files).collect()
            }
            (Some(_), ConditionalSource::Sampled(sample), _) => {
                let limits = args.data.options(purpose)?.limits(&model.description)?;
                let is_joint = shares.is_some_and(|shares| shares[1] > 0.0);
                return self.sampled(batch, sample.max_new_tokens, is_joint, limits.max_length);
            }
        };
        for file in &files {
            rows.extend(read_row_file(file, &map, purpose, bad_rows)?.rows.into_iter().take(ROWS));
        }
        if let (Some(tasks), true) = (study.tasks, rows.is_empty()) {
            let row = |(i, row): (usize, SftRow)| Row {
                place: SourceLocation::new(Path::new("tasks"), i + 1),
                content: RowContent::Single(PromptResponse {
                    instruction: Instruction::Plain(row.instruction),
                    response: row.response.into(),
                }),
            };
            rows.extend(sft(DataSplit::Train, tasks.seed, batch).enumerate().map(row));
        }
        let limits = args.data.options(purpose)?.limits(&model.description)?;
        let mut data = Dataset::build_with(&rows, &self.tokenizer, &self.template, limits, bad_rows)?;
        let sharing = PrefixSharing::new(!args.no_share_prefix, &model.description);
        data.examples.sort_by_key(|example| example.n_tokens(sharing));
        let n = data.examples.len();
        let from = n.saturating_sub(batch) / 2;
        Ok(data.examples.drain(from..n.min(from + batch)).collect())
    }

    /// Makes stand-in preferences, with one instruction each or two, of the lengths that sampling would give.
    fn sampled(
        &self,
        batch: usize,
        max_new_tokens: Option<usize>,
        joint: bool,
        max_length: usize,
    ) -> Result<Vec<Example>> {
        let prompts = self.prompts()?;
        let response = max_new_tokens.unwrap_or(DEFAULT_MAX_NEW_TOKENS);
        let side = |row: usize, side: usize| {
            let mut ids = prompts[(row + if joint { side } else { 0 }) % prompts.len()].clone();
            // What is longer is not trained on.
            ids.truncate(max_length - 1);
            let response_start = ids.len();
            ids.extend(std::iter::repeat_n(side as u32, response.min(max_length - response_start)));
            Sequence::new(ids, response_start)
        };
        let example = |row| Example { row, sequences: vec![side(row, 0), side(row, 1)], desirable: None };
        Ok((0..batch).map(example).collect())
    }
}
