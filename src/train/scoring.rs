//! Scores of whole data sets by forward passes alone.

use crate::data::batch::{Example, PrefixSharing};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernels::packed_batch::{PackedBatch, SequenceSpan};
use crate::model::decoder::Decoder;
use crate::model::scores::PredictionScores;
use crate::objective::SequenceLogps;

/// Divides examples, in order, into packed micro-batches of at most `max_tokens` tokens. A larger example is a micro-batch of its own.
pub fn batches_by_tokens<'e>(
    examples: &[&'e Example],
    sharing: PrefixSharing,
    max_tokens: usize,
) -> Vec<Vec<&'e Example>> {
    let mut all: Vec<Vec<&Example>> = Vec::new();
    let mut tokens = 0;
    for &example in examples {
        let n = example.n_tokens(sharing);
        match all.last_mut().filter(|_| tokens + n <= max_tokens) {
            Some(last) => last.push(example),
            None => {
                all.push(vec![example]);
                tokens = 0;
            }
        }
        tokens += n;
    }
    all
}

/// Scores of a sequence.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct ScoredSequence {
    /// Sums of log-probabilities over instruction and response tokens.
    pub sums: SequenceLogps,
    /// Log-probability of each token from the second on.
    pub token_logps: Vec<f32>,
}

impl ScoredSequence {
    /// Computes a sequence's scores from the log-probs of a batch's rows.
    fn from_rows(batch: &PackedBatch, span: &SequenceSpan, scores: &PredictionScores) -> Self {
        let token_logps = batch.rows_in_order(span).into_iter().map(|row| scores.logp[row]).collect();
        Self { sums: sums(span, scores), token_logps }
    }
}

/// Sums the log-probs of a sequence, from those of a batch's rows.
pub(super) fn sums(span: &SequenceSpan, scores: &PredictionScores) -> SequenceLogps {
    let logp = |row: usize| f64::from(scores.logp[row]);
    let sum = |rows: &mut dyn Iterator<Item = usize>| rows.map(logp).sum::<f64>();
    let response = || span.response..span.own.end;
    let log_weight = scores.log_squares.as_ref().map(|log_squares| {
        let weights = response().map(|row| logp(row) - f64::from(log_squares[row]));
        weights.sum::<f64>() / response().len().max(1) as f64
    });
    SequenceLogps {
        instruction: sum(&mut span.prefix.clone().chain(span.own.start..span.response)),
        response: sum(&mut response()),
        n_instruction: span.prefix.len() + span.response - span.own.start,
        n_response: span.own.end - span.response,
        response_tail: sum(&mut (span.tail..span.own.end)),
        log_weight: log_weight.unwrap_or(0.0),
        response_p_logp: response().map(|row| logp(row) * logp(row).exp()).sum(),
    }
}

/// Settings of a pass of scoring.
#[derive(Debug, Clone, Copy)]
pub struct ScoringPass {
    /// Whether the adapter is on.
    pub with_lora: bool,
    /// Whether shared instructions are computed once.
    pub share_prefix: bool,
    /// Largest number of tokens per forward pass.
    pub max_tokens: usize,
    /// Whether WPO's weights are computed, too.
    pub with_squares: bool,
}

/// Computes the scores of all sequences of `examples`, in order. Log-probs of tokens are summed in f64. Calls `progress` with the number of
/// examples of each pass.
///
/// # Errors
/// [`Error::Gpu`].
pub async fn score(
    gpu: &Gpu,
    decoder: &Decoder,
    examples: &[&Example],
    with_lora: bool,
    share_prefix: bool,
    max_tokens: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<ScoredSequence>> {
    let pass = ScoringPass { with_lora, share_prefix, max_tokens, with_squares: false };
    score_pass(gpu, decoder, examples, pass, progress).await
}

/// Computes the scores of all sequences of `examples`, like [`score`], with all settings of a pass.
///
/// # Errors
/// [`Error::Gpu`].
pub async fn score_pass(
    gpu: &Gpu,
    decoder: &Decoder,
    examples: &[&Example],
    pass: ScoringPass,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<ScoredSequence>> {
    let (mut all, sharing) = (Vec::new(), PrefixSharing::new(pass.share_prefix, &decoder.description));
    for group in batches_by_tokens(examples, sharing, pass.max_tokens) {
        let batch = PackedBatch::pack(&group, sharing);
        let scores = decoder.read_scores(gpu, &batch, pass.with_lora, pass.with_squares).await?;
        all.extend(batch.spans.iter().map(|span| ScoredSequence::from_rows(&batch, span, &scores)));
        progress(group.len());
    }
    Ok(all)
}
