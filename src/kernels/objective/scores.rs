//! Scores of sequences, the other inputs of a loss, and a loss's results per sequence.

/// Objective: the tokens whose log-probabilities are scored.
///
/// # Examples
/// ```
/// use jointwise::{Objective, Recipe};
/// let recipe = Recipe { objective: Objective::Dpo, ..Recipe::default() };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// log π(I, R): every token after the first.
    Jpo,
    /// log π(R | I): response tokens and EOS.
    Dpo,
}

/// Summed log-probabilities of a sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SequenceLogps {
    /// Σ over template and instruction.
    pub instruction: f64,
    /// Σ over response and EOS.
    pub response: f64,
    /// Tokens in `instruction`.
    pub n_instruction: usize,
    /// Tokens in `response`.
    pub n_response: usize,
    /// Σ over the response tokens past the length of the pair's shorter response, which `response` contains; 0 for the shorter response
    /// and for a single sequence.
    pub response_tail: f64,
    /// Logarithm of the WPO weight: the mean over response tokens of log p − log Σ_v p_v², which has no gradient. 0 where it is not
    /// computed.
    pub log_weight: f64,
    /// Σ of p·log p over response tokens: the dynamic fine-tuning loss, negated.
    pub response_p_logp: f64,
}

impl SequenceLogps {
    /// Returns the objective's score.
    pub fn score(&self, objective: Objective) -> f64 {
        match objective {
            Objective::Jpo => self.instruction + self.response,
            Objective::Dpo => self.response,
        }
    }
    /// Returns the objective's score with the weight `tail_weight` on the tokens of `response_tail`.
    pub fn weighted_score(&self, objective: Objective, tail_weight: f64) -> f64 {
        self.score(objective) - if tail_weight == 1.0 { 0.0 } else { (1.0 - tail_weight) * self.response_tail }
    }
    /// Returns the number of tokens in the score.
    pub fn n_scored(&self, objective: Objective) -> usize {
        match objective {
            Objective::Jpo => self.n_instruction + self.n_response,
            Objective::Dpo => self.n_response,
        }
    }
}

/// Inputs of a loss that are known before the policy scores the S sequences of a micro-batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LossInputs {
    /// Whether a row is a pair: chosen and rejected sequences alternate. Otherwise a row is one sequence.
    pub paired: bool,
    /// (S), whether a sequence is preferred: chosen, or labelled desirable.
    pub desirable: Vec<bool>,
    /// (S), the reference model's scores, each summed over the objective's tokens, with the loss's weight on a longer response's tail.
    pub reference: Vec<f64>,
    /// (S/2, S/2), ω of [`super::term::ScoreCoupling::Cross`]: rows are chosen sequences, columns rejected ones. Empty for other losses.
    pub cross: Vec<f64>,
    /// n̄ of [`super::term::ScoreKind::TokenMean`] under `[JPO, DPO]`: scored tokens of the desirable sequences of a whole step, per row.
    /// `None` where the micro-batch is the whole step.
    pub step_tokens_per_row: Option<[f64; 2]>,
}

impl LossInputs {
    /// Creates the inputs for pairs from the reference's scores of chosen, rejected, chosen, ...
    pub fn pairs(reference: Vec<f64>) -> Self {
        let desirable = (0..reference.len()).map(|s| s % 2 == 0).collect();
        Self { paired: true, desirable, reference, ..Self::default() }
    }
    /// Returns n̄ of [`super::term::ScoreKind::TokenMean`]: that of the step where it is known, else that of the micro-batch's scored
    /// tokens; 1 where no sequence is desirable.
    pub fn tokens_per_row(&self, scope: Objective, n_scored: impl Iterator<Item = usize>) -> f64 {
        let of_step = self.step_tokens_per_row.map(|by| by[usize::from(scope == Objective::Dpo)]);
        let n = of_step.unwrap_or_else(|| {
            let tokens: usize =
                n_scored.zip(&self.desirable).filter(|(_, desirable)| **desirable).map(|(n, _)| n).sum();
            tokens as f64 * self.row_len() as f64 / self.desirable.len() as f64
        });
        if n > 0.0 { n } else { 1.0 }
    }
    /// Returns the number of sequences per row.
    pub fn row_len(&self) -> usize {
        1 + usize::from(self.paired)
    }
}

/// Computes RPO's ω from the cosines of instructions, both (n, n): the softmax over columns of −(1 − cos)/τ.
pub fn cross_weights(cosines: &[f64], n: usize, tau: f64) -> Vec<f64> {
    let row = |cosines: &[f64]| {
        // Cosines less the largest one are at most 0, so that no exponential overflows, whatever τ.
        let most = cosines.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = cosines.iter().map(|cos| ((cos - most) / tau).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(move |w| w / sum).collect::<Vec<f64>>()
    };
    cosines.chunks(n.max(1)).flat_map(row).collect()
}

/// Result of a loss for a sequence. Gradients are those of the sum of losses over the micro-batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SequenceOutcome {
    /// Loss of the sequence; a row's loss is the sum over its sequences.
    pub loss: f64,
    /// ∂Σloss/∂(sum over instruction tokens, sum over response tokens).
    pub d_sums: [f64; 2],
    /// ∂Σloss/∂[`SequenceLogps::response_tail`]: the derivative of a response token past the pair's shorter response, less that of one before;
    /// 0 without LD-DPO.
    pub d_tail: f64,
    /// Implicit reward: β times the log-ratio to the reference, or SimPO's reward.
    pub reward: f64,
}
