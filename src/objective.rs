//! Losses as small functions from per-sequence scores to (loss, ∂loss/∂score), in f64. `shaders/objective.wgsl` computes the same
//! gradient on the device, and is tested against this.
//!
//! A pair's log-ratios are s_c and s_r (log π − log π_ref, summed over the scored tokens), Δ = s_c − s_r. Formulas: PAPER section 3.
//! A loss here is of one pair; the optimiser divides the sum by the number of pairs, once.

use crate::config::{not_negative, positive};
use crate::error::{Error, Result};

/// What is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// log π(I, R): every token after the first.
    Jpo,
    /// log π(R | I): response tokens and EOS.
    Dpo,
}

/// The loss on a pair's log-ratios.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// −(1−ε)·logσ(βΔ) − ε·logσ(−βΔ).
    Sigmoid,
    /// max(0, 1 − βΔ).
    Hinge,
    /// (Δ̄ − 1/(2β))², Δ̄ of means per scored token (arXiv 2310.12036).
    Ipo,
    /// ½·(1 − σ(β(s_c − KL_r)) + 1 − σ(β(KL_c − s_r))), KL = max(0, batch mean of s) (TRL 0.8).
    KtoPair,
}

impl Loss {
    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sigmoid => "sigmoid",
            Self::Hinge => "hinge",
            Self::Ipo => "ipo",
            Self::KtoPair => "kto_pair",
        }
    }
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Sigmoid, Self::Hinge, Self::Ipo, Self::KtoPair];
}

/// A preference loss with its constants.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Preference {
    /// What is scored.
    pub objective: Objective,
    /// On a pair.
    pub loss: Loss,
    /// β.
    pub beta: f64,
    /// ε of the sigmoid loss.
    pub label_smoothing: f64,
    /// The reference scores are taken as zero.
    pub reference_free: bool,
    /// Weight of the chosen response's mean negative log-likelihood, added to each pair's loss.
    pub sft_weight: f64,
}

impl Default for Preference {
    fn default() -> Self {
        Self {
            objective: Objective::Jpo,
            loss: Loss::Sigmoid,
            beta: 0.1,
            label_smoothing: 0.0,
            reference_free: false,
            sft_weight: 0.0,
        }
    }
}

/// log-probs of a sequence, summed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// Σ over template and instruction.
    pub instruction: f64,
    /// Σ over response and EOS.
    pub response: f64,
    /// Tokens in `instruction`.
    pub n_instruction: usize,
    /// Tokens in `response`.
    pub n_response: usize,
}

impl Sums {
    /// The objective's score.
    pub fn score(&self, objective: Objective) -> f64 {
        match objective {
            Objective::Jpo => self.instruction + self.response,
            Objective::Dpo => self.response,
        }
    }
    /// Tokens in the score.
    pub fn n_scored(&self, objective: Objective) -> usize {
        match objective {
            Objective::Jpo => self.n_instruction + self.n_response,
            Objective::Dpo => self.n_response,
        }
    }
}

/// A pair with everything known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairScores {
    /// Policy on the chosen and the rejected sequence.
    pub policy: [Sums; 2],
    /// The reference's scores (the objective's sums).
    pub reference: [f64; 2],
}

/// A pair's results. Gradients are of the sum of losses over the batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PairOutcome {
    /// Loss of the pair.
    pub loss: f64,
    /// ∂Σloss/∂(score of chosen, of rejected), the score being a sum of log-probs.
    pub d_score: [f64; 2],
    /// ∂Σloss/∂(sum over the chosen response) from the SFT term alone.
    pub d_chosen_response: f64,
    /// β·s of chosen and rejected.
    pub rewards: [f64; 2],
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// logσ(x) without overflow.
fn log_sigmoid(x: f64) -> f64 {
    if x >= 0.0 { -(-x).exp().ln_1p() } else { x - x.exp().ln_1p() }
}

impl Preference {
    /// # Errors
    /// [`Error::Flag`] for a value out of range.
    pub fn validate(&self) -> Result<()> {
        positive("beta", self.beta)?;
        if !(0.0..0.5).contains(&self.label_smoothing) {
            return Err(Error::flag("label-smoothing", format!("{} is not in 0 .. 0.5", self.label_smoothing)));
        }
        if self.label_smoothing > 0.0 && self.loss != Loss::Sigmoid {
            return Err(Error::flag("label-smoothing", format!("goes with --loss sigmoid, not {}", self.loss.name())));
        }
        not_negative("sft-weight", self.sft_weight)
    }

    /// Loss and gradient of each pair of a batch.
    pub fn evaluate(&self, pairs: &[PairScores]) -> Vec<PairOutcome> {
        let n = |p: &PairScores, side: usize| p.policy[side].n_scored(self.objective) as f64;
        let ratio = |p: &PairScores, side: usize| {
            let reference = if self.reference_free { 0.0 } else { p.reference[side] };
            p.policy[side].score(self.objective) - reference
        };
        let mean = |side| pairs.iter().map(|p| ratio(p, side)).sum::<f64>() / pairs.len() as f64;
        let means = [mean(0), mean(1)];
        let kl = means.map(|m: f64| m.max(0.0));
        let (beta, e) = (self.beta, self.label_smoothing);
        let kto = |p: &PairScores| (sigmoid(beta * (ratio(p, 0) - kl[1])), sigmoid(beta * (kl[0] - ratio(p, 1))));
        // kto_pair: how the sum of losses changes with the means, spread over the members.
        let mut d_kl = [0.0; 2];
        if self.loss == Loss::KtoPair {
            for p in pairs {
                let (a, b) = kto(p);
                d_kl[1] += 0.5 * beta * a * (1.0 - a);
                d_kl[0] -= 0.5 * beta * b * (1.0 - b);
            }
            for side in 0..2 {
                d_kl[side] = if means[side] > 0.0 { d_kl[side] / pairs.len() as f64 } else { 0.0 };
            }
        }
        let outcome = |p: &PairScores| {
            let s = [ratio(p, 0), ratio(p, 1)];
            let gap = s[0] - s[1];
            let (loss, d_score) = match self.loss {
                Loss::Sigmoid => {
                    let loss = -(1.0 - e) * log_sigmoid(beta * gap) - e * log_sigmoid(-beta * gap);
                    let d = beta * (e * sigmoid(beta * gap) - (1.0 - e) * sigmoid(-beta * gap));
                    (loss, [d, -d])
                }
                Loss::Hinge => {
                    let d = if beta * gap < 1.0 { -beta } else { 0.0 };
                    ((1.0 - beta * gap).max(0.0), [d, -d])
                }
                Loss::Ipo => {
                    let away = s[0] / n(p, 0) - s[1] / n(p, 1) - 0.5 / beta;
                    (away * away, [2.0 * away / n(p, 0), -2.0 * away / n(p, 1)])
                }
                Loss::KtoPair => {
                    let (a, b) = kto(p);
                    let d = [-0.5 * beta * a * (1.0 - a) + d_kl[0], 0.5 * beta * b * (1.0 - b) + d_kl[1]];
                    (0.5 * (2.0 - a - b), d)
                }
            };
            let per_token = self.sft_weight / p.policy[0].n_response as f64;
            PairOutcome {
                loss: loss - per_token * p.policy[0].response,
                d_score,
                d_chosen_response: -per_token,
                rewards: [beta * s[0], beta * s[1]],
            }
        };
        pairs.iter().map(outcome).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs() -> Vec<PairScores> {
        let sums = |instruction, response| Sums { instruction, response, n_instruction: 7, n_response: 4 };
        vec![
            PairScores { policy: [sums(-30.0, -11.0), sums(-25.0, -14.5)], reference: [-42.5, -38.0] },
            PairScores { policy: [sums(-31.0, -9.0), sums(-21.0, -3.5)], reference: [-41.0, -27.0] },
            PairScores { policy: [sums(-12.0, -8.0), sums(-33.0, -6.5)], reference: [-20.5, -39.7] },
        ]
    }

    #[test]
    fn gradients_equal_differences_of_the_summed_loss() {
        for objective in [Objective::Jpo, Objective::Dpo] {
            for loss in Loss::ALL {
                let label_smoothing = if loss == Loss::Sigmoid { 0.1 } else { 0.0 };
                let p = Preference { objective, loss, label_smoothing, sft_weight: 0.3, ..Preference::default() };
                let total = |pairs: &[PairScores]| p.evaluate(pairs).iter().map(|o| o.loss).sum::<f64>();
                for i in 0..3 {
                    for side in 0..2 {
                        let step = 1e-5;
                        let moved = |by: f64| {
                            let mut moved = pairs();
                            moved[i].policy[side].response += by;
                            total(&moved)
                        };
                        let want = (moved(step) - moved(-step)) / (2.0 * step);
                        let o = p.evaluate(&pairs())[i];
                        let got = o.d_score[side] + if side == 0 { o.d_chosen_response } else { 0.0 };
                        assert!((got - want).abs() < 1e-8, "{objective:?} {loss:?} {i} {side}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn at_the_reference_the_loss_is_ln_2_and_the_slope_half_beta() {
        let mut p = pairs();
        for pair in &mut p {
            pair.reference = [0, 1].map(|s| pair.policy[s].score(Objective::Jpo));
        }
        for o in Preference::default().evaluate(&p) {
            assert!((o.loss - std::f64::consts::LN_2).abs() < 1e-12);
            assert!((o.d_score[0] + 0.05).abs() < 1e-12 && o.rewards == [0.0, 0.0]);
        }
        let ipo = Preference { loss: Loss::Ipo, ..Preference::default() };
        assert!((ipo.evaluate(&p)[0].loss - 1.0 / (4.0 * 0.01)).abs() < 1e-12);
    }

    #[test]
    fn values_out_of_range_name_their_flag() {
        let bad = Preference { beta: -1.0, ..Preference::default() };
        assert_eq!(bad.validate().unwrap_err().to_string(), "--beta: -1 is not above 0");
        let bad = Preference { label_smoothing: 0.7, ..Preference::default() };
        assert!(bad.validate().unwrap_err().to_string().starts_with("--label-smoothing: 0.7"));
    }
}
