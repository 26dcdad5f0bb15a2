//! Losses computed from scores, on the host in f64: the inputs that are known before a step, and the results.

use crate::data::batch::Example;
use crate::objective::TrainingLoss;
use crate::objective::{LossInputs, SequenceLogps, SequenceOutcome, cross_weights};

use super::similarity::cosines;

/// Values of an example that are computed before the policy scores it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowReference {
    /// Reference scores of the example's sequences, each summed over the objective's tokens.
    pub scores: [f64; 2],
    /// Prompt embeddings (D) of the instructions of the example's sequences ([`super::similarity`]); empty where no loss compares
    /// instructions.
    pub prompt_embeddings: [Vec<f32>; 2],
}

impl From<[f64; 2]> for RowReference {
    fn from(scores: [f64; 2]) -> Self {
        Self { scores, ..Self::default() }
    }
}

/// Returns the numbers of tokens that JPO and DPO score in the preferred sequences, divided by the number of examples.
fn tokens_per_row(examples: &[&Example]) -> [f64; 2] {
    let preferred = examples.iter().filter(|e| e.desirable.unwrap_or(true)).map(|e| &e.sequences[0]);
    let counts: Vec<[usize; 2]> = preferred.map(|s| [s.ids.len() - 1, s.n_response()]).collect();
    [0, 1].map(|i| counts.iter().map(|n| n[i]).sum::<usize>() as f64 / examples.len() as f64)
}

/// Returns the loss inputs of a micro-batch. Without references, every reference score is 0. `step` has all examples over which the loss is
/// a mean, including those of the micro-batch.
pub fn known(goal: &TrainingLoss, examples: &[&Example], reference: &[RowReference], step: &[&Example]) -> LossInputs {
    let none = RowReference::default();
    let of = |i| reference.get(i).unwrap_or(&none);
    let paired = examples.iter().all(|e| e.sequences.len() == 2);
    let mut known = LossInputs { paired, step_tokens_per_row: Some(tokens_per_row(step)), ..LossInputs::default() };
    for (i, example) in examples.iter().enumerate() {
        for side in 0..example.sequences.len() {
            known.desirable.push(example.desirable.unwrap_or(side == 0));
            known.reference.push(of(i).scores[side]);
        }
    }
    if let TrainingLoss::Preference(p) = goal
        && p.compares_instructions()
    {
        let n = examples.len();
        let [chosen, rejected] =
            [0, 1].map(|side| (0..n).map(|i| &of(i).prompt_embeddings[side][..]).collect::<Vec<_>>());
        known.cross = cross_weights(&cosines(&chosen, &rejected), n, p.rpo_tau);
    }
    known
}

/// Result of a sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SequenceResult {
    /// Log-probabilities by the policy.
    pub sums: SequenceLogps,
    /// Whether the sequence is a pair's preferred one, or is labelled desirable.
    pub desirable: bool,
    /// Loss of the sequence (its share of the row's loss), the loss's derivatives, and the implicit reward.
    pub outcome: SequenceOutcome,
}

/// Results of some rows, from which metrics are computed.
#[derive(Debug, Clone, Default)]
pub struct BatchResult {
    /// Sum of losses: over rows, or over tokens for SFT.
    pub loss_sum: f64,
    /// Number of terms in `loss_sum`: rows, or response tokens for SFT.
    pub n: usize,
    /// Rows with their sequences: chosen and rejected, or one with a label (empty for SFT).
    pub rows: Vec<Vec<SequenceResult>>,
    /// Packed tokens.
    pub tokens: usize,
}

impl BatchResult {
    /// Computes the outcome from per-sequence sums.
    pub fn new(goal: &TrainingLoss, sums: &[SequenceLogps], known: &LossInputs, tokens: usize) -> Self {
        let p = match goal {
            TrainingLoss::Preference(p) => p,
            TrainingLoss::Sft(loss) => {
                return Self {
                    loss_sum: sums.iter().map(|s| loss.of_sequence(s)).sum(),
                    n: sums.iter().map(|s| s.n_response).sum(),
                    rows: Vec::new(),
                    tokens,
                };
            }
        };
        let outcomes = p.evaluate(sums, known);
        let judged = |((&sums, &desirable), &outcome)| SequenceResult { sums, desirable, outcome };
        let all: Vec<SequenceResult> = sums.iter().zip(&known.desirable).zip(&outcomes).map(judged).collect();
        let rows: Vec<Vec<SequenceResult>> = all.chunks(known.row_len()).map(<[SequenceResult]>::to_vec).collect();
        Self { loss_sum: outcomes.iter().map(|o| o.loss).sum(), n: rows.len(), rows, tokens }
    }

    /// Returns the mean loss.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.n.max(1) as f64
    }

    pub(super) fn add(&mut self, other: Self) {
        self.loss_sum += other.loss_sum;
        self.n += other.n;
        self.rows.extend(other.rows);
        self.tokens += other.tokens;
    }
}
