//! The losses: names, formulas with their sources, and what they are made of.

use super::{LossFn, Objective, PreferenceLoss, ReferencePoint, ScoreCoupling, ScoreKind, Term};

/// A loss. In the formulas s = log π − log π_ref of the chosen (c) and the rejected (r) side, a mean over scored tokens where barred;
/// Δ = s_c − s_r; p̄ = exp of the mean log-probability of a scored token. What is scored is the objective's choice.
///
/// # Examples
/// ```
/// use jointwise::{Loss, LossMix, Recipe};
/// let recipe = Recipe { loss: LossMix::single(Loss::Ipo), beta: 0.2, ..Recipe::default() };
/// # assert_eq!(recipe.loss.to_string(), "ipo");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// −(1−ε)·logσ(βΔ) − ε·logσ(−βΔ): DPO (arXiv 2305.18290), with ε > 0 cDPO (Mitchell, *A note on DPO with noisy preferences*, 2023). (TRL 1.16
    /// ignores ε here.)
    Sigmoid,
    /// (−(1−ε)·logσ(βΔ) + ε·logσ(−βΔ))/(1−2ε): unbiased where a share ε of the preferences is the wrong way round (arXiv 2403.00409).
    Robust,
    /// max(0, 1 − βΔ) (SLiC-HF, arXiv 2305.10425, on log-ratios).
    Hinge,
    /// (Δ̄ − 1/(2β))² (arXiv 2310.12036; means as TRL has them).
    Ipo,
    /// −logσ(β·(log p̄_c − log p̄_r) − γ), without a reference (arXiv 2405.14734).
    Simpo,
    /// −log p̄_all − β·logσ(log(p̄_c/(1−p̄_c)) − log(p̄_r/(1−p̄_r))), without a reference (arXiv 2403.07691; β is its λ). p̄_all is over all tokens of a
    /// step's chosen sides, as in [`Loss::Sft`]. (TRL's likelihood scores the prompt, too, which the paper's does not.)
    Orpo,
    /// ½·(1 − σ(β(s_c − KL_r)) + 1 − σ(β(KL_c − s_r))), KL = max(0, mean of s over the micro-batch), differentiated too (TRL 0.8).
    KtoPair,
    /// λ_D·(1 − σ(β(s − z))) of a desirable text, λ_U·(1 − σ(β(z − s))) of an undesirable one (arXiv 2402.01306), over labelled rows, or the mean
    /// of a pair's sides. z = max(0, mean of s over the micro-batch), not differentiated. (TRL estimates z on completions of other rows,
    /// which costs a third pass, and for log π(I, R) would be of pairs that nobody wrote.)
    Kto,
    /// −logσ(βs_c − δ) − logσ(δ − βs_r) (arXiv 2404.04656). δ is the mean of βs over the micro-batch, not differentiated. (The paper has its mean over
    /// all steps so far; this one needs no state, so that a row's loss does not depend on what was trained before. TRL 1.16 has no δ.)
    BcoPair,
    /// Sigmoid of the k-th largest s_c against the k-th largest s_r of the micro-batch, for every k (arXiv 2406.05882).
    AotUnpaired,
    /// −mean_j logσ(β·ω_ij·(s_c,i − s_r,j)) over the micro-batch's pairs, ω_ij the softmax over j of −(1 − cos(I_i, I_j))/τ (arXiv 2402.10958).
    Rpo,
    /// −mean log-probability of the tokens of a step's chosen responses, whatever the objective: a mean over tokens, not over rows, as in `sft`.
    Sft,
}

impl Loss {
    /// All losses.
    pub const ALL: [Self; 12] = [
        Self::Sigmoid,
        Self::Robust,
        Self::Hinge,
        Self::Ipo,
        Self::Simpo,
        Self::Orpo,
        Self::KtoPair,
        Self::Kto,
        Self::BcoPair,
        Self::AotUnpaired,
        Self::Rpo,
        Self::Sft,
    ];
    /// Losses with an ε.
    pub const SMOOTHED: [Self; 3] = [Self::Sigmoid, Self::Robust, Self::AotUnpaired];

    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sigmoid => "sigmoid",
            Self::Robust => "robust",
            Self::Hinge => "hinge",
            Self::Ipo => "ipo",
            Self::Simpo => "simpo",
            Self::Orpo => "orpo",
            Self::KtoPair => "kto_pair",
            Self::Kto => "kto",
            Self::BcoPair => "bco_pair",
            Self::AotUnpaired => "aot_unpaired",
            Self::Rpo => "rpo",
            Self::Sft => "sft",
        }
    }

    /// Tells whether the loss ignores the reference.
    pub const fn is_reference_free(self) -> bool {
        matches!(self, Self::Simpo | Self::Orpo | Self::Sft)
    }

    /// Tells whether it is the same loss under both objectives where a pair's sides have one instruction: it is a function of Δ alone, or of responses
    /// alone. Means over scored tokens, and scores of single sequences, change with the instruction's.
    pub const fn is_same_for_one_instruction(self) -> bool {
        matches!(self, Self::Sigmoid | Self::Robust | Self::Hinge | Self::Sft)
    }

    /// Tells whether the loss is undefined on single texts with a label.
    pub const fn needs_pairs(self) -> bool {
        !matches!(self, Self::Kto | Self::Sft)
    }

    /// The sum that it is.
    pub fn terms(self, p: &PreferenceLoss, paired: bool) -> Vec<Term> {
        let e = p.label_smoothing;
        let plain = Term {
            link: ScoreKind::Sum,
            scope: p.objective,
            referenced: !p.reference_free && !self.is_reference_free(),
            coupling: ScoreCoupling::Own,
            curve: LossFn::Logistic { up: 1.0, down: 0.0 },
            scale: p.beta,
            offset: 0.0,
            weights: [1.0; 2],
        };
        let smoothed = Term { curve: LossFn::Logistic { up: 1.0 - e, down: e }, ..plain };
        let likelihood = Term {
            link: ScoreKind::TokenMean,
            coupling: ScoreCoupling::Sides(ReferencePoint::Zero),
            curve: LossFn::Linear,
            scale: 1.0,
            weights: [1.0, 0.0],
            ..plain
        };
        match self {
            Self::Sigmoid => vec![smoothed],
            Self::Robust => {
                let (up, down) = ((1.0 - e) / (1.0 - 2.0 * e), -e / (1.0 - 2.0 * e));
                vec![Term { curve: LossFn::Logistic { up, down }, ..plain }]
            }
            Self::Hinge => vec![Term { curve: LossFn::Hinge, ..plain }],
            Self::Ipo => {
                vec![Term { link: ScoreKind::Mean, curve: LossFn::Square, scale: 1.0, offset: 0.5 / p.beta, ..plain }]
            }
            Self::Simpo => vec![Term { link: ScoreKind::Mean, offset: p.simpo_gamma, ..plain }],
            Self::Orpo => vec![Term { link: ScoreKind::LogOdds, scale: 1.0, ..plain }.times(p.beta), likelihood],
            Self::KtoPair => {
                vec![
                    Term { coupling: ScoreCoupling::Sides(ReferencePoint::Opposite), curve: LossFn::Sigmoid, ..plain }
                        .times(0.5),
                ]
            }
            Self::Kto => {
                let share = if paired { 0.5 } else { 1.0 };
                let weights = [share * p.desirable_weight, share * p.undesirable_weight];
                vec![Term {
                    coupling: ScoreCoupling::Sides(ReferencePoint::Positive),
                    curve: LossFn::Sigmoid,
                    weights,
                    ..plain
                }]
            }
            Self::BcoPair => vec![Term { coupling: ScoreCoupling::Sides(ReferencePoint::Mean), ..plain }],
            Self::AotUnpaired => vec![Term { coupling: ScoreCoupling::Sorted, ..smoothed }],
            Self::Rpo => vec![Term { coupling: ScoreCoupling::Cross, ..plain }],
            Self::Sft => vec![Term { scope: Objective::Dpo, ..likelihood }],
        }
    }
}
