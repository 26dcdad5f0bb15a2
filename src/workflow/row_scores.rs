//! Scores of whole data sets by a policy and its reference, and gradients of their mean loss.

use std::sync::atomic::AtomicBool;

use super::open_reference::OpenReference;
use super::policy::Policy;
use super::preferences::Preferences;
use super::run_facts::ContentHashes;
use super::several_ranks::check_same_contents;
use crate::data::batch::Example;
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::model::decoder::Decoder;
use crate::model::load::{LoadOptions, TrainMode};
use crate::model::saved::RecomputePolicy;
use crate::model::scores::DEFAULT_SCORE_TOKENS;
use crate::model::weights::TrainOptions;
use crate::objective::{PreferenceLoss, TrainingLoss};
use crate::progress::ProgressReporter;
use crate::ranks::Ranks;
use crate::train::outcome::{BatchResult, RowReference};
use crate::train::reference::{OtherModel, ReferenceModel, ReferenceScorer, ScoringEvent, ScoringWatch, TrainingRows};
use crate::train::scoring::{ScoredSequence, ScoringPass, score_pass};
use crate::train::settings::ReferenceChoice;
use crate::train::trainer::{StepResult, Trainer};

/// Scores of rows, by the policy and by a reference.
#[derive(Debug)]
pub struct RowScores {
    /// Scores of all sequences, row by row.
    pub sequences: Vec<ScoredSequence>,
    /// Reference's values for each row, where a reference was asked for.
    pub references: Option<Vec<RowReference>>,
}

/// Gradients of a mean loss.
#[derive(Debug)]
pub struct LossGradients {
    /// Loss and scores of the rows, and the gradients' global norm.
    pub step: StepResult,
    /// Name, shape and values of each trained tensor's gradient.
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Policy {
    /// Scores every sequence of the rows with the policy and, where a reference is given, with the reference. Several ranks score a share of the rows
    /// each; all have the scores of all.
    ///
    /// # Errors
    /// [`Error::Ranks`] where a rank has other rows, another model or another loss;
    /// [`Error::NotFinite`] naming a row whose log-probability is not a number; [`Error::Gpu`]; [`Error::Flag`] for a reference that does not fit.
    pub fn score_rows(
        &self,
        gpu: &Gpu,
        data: &Preferences,
        preference: &PreferenceLoss,
        reference: Option<&ReferenceChoice>,
        ranks: Ranks,
    ) -> Result<RowScores> {
        let data = data.dataset();
        self.check_same_work(gpu, data, Some(preference), reference, ranks)?;
        let decoder = self.load(gpu, data.longest())?;
        let sequences = score_finite(gpu, &decoder, data, preference.wpo, ranks)?;
        let references = reference
            .map(|choice| self.reference_scores(gpu, &decoder, data, preference, choice, (Some(&sequences), ranks)))
            .transpose()?;
        Ok(RowScores { sequences, references })
    }

    /// Checks that every rank has the same rows, model, adapter, loss and reference.
    fn check_same_work(
        &self,
        gpu: &Gpu,
        data: &Dataset,
        preference: Option<&PreferenceLoss>,
        reference: Option<&ReferenceChoice>,
        ranks: Ranks,
    ) -> Result<()> {
        if !ranks.are_several() {
            return Ok(());
        }
        // Another checkpoint counts by its hash, wherever it lies.
        let (kind, other) = match reference {
            Some(ReferenceChoice::Model(name)) => ("model", Some(OpenReference::open(name, self.model())?)),
            Some(ReferenceChoice::Base) => ("base", None),
            Some(ReferenceChoice::Initial) => ("initial", None),
            None => ("none", None),
        };
        let hashes = ContentHashes::new(self.model(), self.adapter(), other.as_ref())?;
        let loss = serde_json::to_string(&preference).map_err(|e| Error::file("settings", e))?;
        let contents = [
            ("another loss", &loss[..]),
            ("other rows in --data", &data.content_hash()),
            ("another model or adapter", &hashes.policy),
            ("another --reference", &format!("{kind} {}", hashes.other)),
            ("another --matmul-precision", gpu.caps().matmul_precision.name()),
            ("another version of the program", env!("CARGO_PKG_VERSION")),
        ];
        check_same_contents(&contents, ranks)
    }

    /// Computes the gradients of the mean loss over all rows, as one batch, for the adapter's matrices, or for every parameter where there is no adapter.
    /// Several ranks compute those of a share of the rows each; all have the sums, and the loss over all rows.
    ///
    /// # Errors
    /// [`Error::Ranks`] for a loss that compares rows with each other on several ranks, and where a rank has other rows, another model or another loss;
    /// [`Error::NotFinite`] naming rows and tensor; [`Error::Gpu`], [`Error::OutOfMemory`].
    pub fn loss_gradients(
        &self,
        gpu: &Gpu,
        data: &Preferences,
        goal: TrainingLoss,
        reference: &ReferenceChoice,
        ranks: Ranks,
    ) -> Result<LossGradients> {
        let data = data.dataset();
        if let TrainingLoss::Preference(p) = &goal
            && ranks.are_several()
            && p.compares_rows()
        {
            let reason = "the loss compares rows with each other, and each rank has a share of them: start `grad` once";
            return Err(Error::Ranks(reason.into()));
        }
        let preference = if let TrainingLoss::Preference(p) = &goal { Some(p) } else { None };
        self.check_same_work(gpu, data, preference, preference.map(|_| reference), ranks)?;
        let adapter = self.starting_adapter(0)?;
        let options = LoadOptions {
            trained: if adapter.is_some() { TrainMode::Lora } else { TrainMode::Full },
            lora: adapter.map(|a| a.lora.clone()),
            training: TrainOptions::NONE,
            n_positions: data.longest(),
            base: self.model().base,
        };
        let decoder = self.model().load(gpu, &options)?;
        let references = match &goal {
            TrainingLoss::Sft(_) => Vec::new(),
            TrainingLoss::Preference(p) => self.reference_scores(gpu, &decoder, data, p, reference, (None, ranks))?,
        };
        let trainer = Trainer { gpu, decoder, goal, share_prefix: true, keep: RecomputePolicy::Everything, seed: 0 };
        let examples: Vec<&Example> = data.examples.iter().collect();
        let _progress = ProgressReporter::uncounted("computing gradients");
        // One batch per rank, because some losses look at all of it; others could be cut, and memory would then not depend on the file.
        let batch_size = examples.len().div_ceil(ranks.n());
        let mut step = pollster::block_on(trainer.gradients_over(ranks, &examples, &references, batch_size))?;
        let shares = ranks.gather((step.outcome.loss_sum, step.outcome.n, step.outcome.tokens))?;
        let BatchResult { loss_sum, n, tokens, .. } = &mut step.outcome;
        (*loss_sum, *n, *tokens) =
            shares.iter().fold((0.0, 0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1, sum.2 + of.2));
        Ok(LossGradients { step, tensors: pollster::block_on(trainer.read_gradients(&examples))? })
    }

    /// Returns the reference's values for all rows: its scores and, where a loss compares prompts, their embeddings. `scored` are the policy's own scores,
    /// which are taken where the policy is the reference. Ranks share out the rows.
    fn reference_scores(
        &self,
        gpu: &Gpu,
        decoder: &Decoder,
        data: &Dataset,
        preference: &PreferenceLoss,
        choice: &ReferenceChoice,
        (scored, ranks): (Option<&[ScoredSequence]>, Ranks),
    ) -> Result<Vec<RowReference>> {
        let model = match choice {
            ReferenceChoice::Model(name) => {
                let (other, longest) = (OpenReference::open(name, self.model())?, data.longest());
                let load = move || other.load(self.model(), Some(decoder), gpu, longest);
                ReferenceModel::Other(OtherModel::new(load))
            }
            ReferenceChoice::Base if self.adapter().is_some_and(|adapter| adapter.lora.replaces_weights()) => {
                let (model, longest) = (self.model(), data.longest());
                let options = LoadOptions::frozen(model.base, None, longest);
                ReferenceModel::Other(OtherModel::new(move || model.load_beside(decoder, gpu, &options)))
            }
            ReferenceChoice::Base => ReferenceModel::WithoutAdapter,
            ReferenceChoice::Initial => ReferenceModel::Untrained,
        };
        let mut scorer = ReferenceScorer::new(gpu, preference, model, DEFAULT_SCORE_TOKENS, None).over(ranks, true);
        let n = data.examples.len();
        let mut known = scorer.rows(n);
        let mut rows = TrainingRows { examples: &data.examples, references: &mut known };
        scored.iter().for_each(|scored| scorer.take(&mut rows, scored));
        let progress = ProgressReporter::items("scoring with the reference", n);
        let tell = &mut |scoring: &ScoringEvent<'_>| {
            if let ScoringEvent::Rows { done, .. } = scoring {
                progress.set_done(*done);
            }
        };
        let (stop, all) = (AtomicBool::new(false), (0..n).collect::<Vec<_>>());
        pollster::block_on(scorer.find(decoder, &mut rows, &all, &mut ScoringWatch { stop: &stop, tell }))?;
        Ok(all.iter().map(|&row| known.get(row)).collect())
    }
}

/// Scores all sequences, and refuses scores that are not numbers. Each rank scores a share of the rows.
fn score_finite(
    gpu: &Gpu,
    decoder: &Decoder,
    data: &Dataset,
    with_squares: bool,
    ranks: Ranks,
) -> Result<Vec<ScoredSequence>> {
    let own = &data.examples[ranks.block(data.examples.len())];
    let examples: Vec<&Example> = own.iter().collect();
    let progress = ProgressReporter::items("scoring", examples.len());
    let pass = ScoringPass { with_lora: true, share_prefix: true, max_tokens: DEFAULT_SCORE_TOKENS, with_squares };
    let advance = &mut |n| progress.advance(n as u64);
    let scored = pollster::block_on(score_pass(gpu, decoder, &examples, pass, advance))?;
    let rows = own.iter().flat_map(|e| e.sequences.iter().map(|_| e.row));
    match rows.zip(&scored).find(|(_, s)| s.token_logps.iter().any(|l| !l.is_finite())) {
        Some((row, _)) => {
            Err(Error::NotFinite { place: format!("row {row}"), what: "a token's log-probability".into() })
        }
        None => Ok(ranks.gather(scored)?.concat()),
    }
}
