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
    /// −logσ(β(s̄_c − s̄_r)): DPO normalised by length (Tülu 3, arXiv 2411.15124). Its β is 2 to 5.
    SigmoidNorm,
    /// KL(q ‖ 1−ε) of the Bernoulli distributions q = σ(βΔ) and 1−ε, with ε > 0 (EXO, arXiv 2402.00856, whose ε is 1e-3).
    ExoPair,
    /// −(1−m)·logσ(βΔ) + m·exp(−βΔ), m = σ(βΔ/τ): log-ratio modulated loss (DiscoPOP, arXiv 2406.08414).
    Discopop,
    /// −logσ(β(Δ − λ·max(0, −s_c))): DPO-Positive, which keeps the chosen side above its reference (Smaug, arXiv 2402.13228).
    Dpop,
    /// −logσ(β·(log p̄_c − log p̄_r) − γ), without a reference (arXiv 2405.14734).
    Simpo,
    /// −log p̄_all − β·logσ(log(p̄_c/(1−p̄_c)) − log(p̄_r/(1−p̄_r))), without a reference (arXiv 2403.07691; β is its λ). p̄_all is over all tokens of a
    /// step's chosen sides, as in [`Loss::Sft`]. (TRL's likelihood scores the prompt, too, which the paper's does not.)
    Orpo,
    /// [`Loss::Sigmoid`] of log π_c − log π_r, plus α times [`Loss::Sft`]: without a reference (CPO, arXiv 2401.08417).
    Cpo,
    /// ½·(1 − σ(β(s_c − KL_r)) + 1 − σ(β(KL_c − s_r))), KL = max(0, mean of s over the micro-batch), differentiated too (TRL 0.8).
    KtoPair,
    /// λ_D·(1 − σ(β(s − z))) of a desirable text, λ_U·(1 − σ(β(z − s))) of an undesirable one (arXiv 2402.01306), over labelled rows, or the mean
    /// of a pair's sides. z = max(0, mean of s over the micro-batch), not differentiated. (TRL estimates z on completions of other rows,
    /// which costs a third pass, and for log π(I, R) would be of pairs that nobody wrote.)
    Kto,
    /// [`Loss::Kto`] with z = 0: APO-zero of labelled rows, or the mean of a pair's sides (arXiv 2408.06266).
    ApoZeroUnpaired,
    /// 1 − σ(βs_c) + σ(βs_r): raises the chosen side, lowers the rejected one (APO-zero, arXiv 2408.06266).
    ApoZero,
    /// σ(βs_c) + 1 − σ(βΔ): lowers both sides, the rejected one more (APO-down, arXiv 2408.06266).
    ApoDown,
    /// −logσ(βs_c) − ½·logσ(−βs_c) − ½·logσ(−βs_r): noise contrastive alignment (arXiv 2402.05369).
    NcaPair,
    /// −logσ(βs_c) − logσ(−βs_r): a binary classifier of the sides, as TRL has it since 1.15 (BCO, arXiv 2404.04656, without its shift).
    BcoPair,
    /// −logσ(βs_c − δ) − logσ(δ − βs_r) (arXiv 2404.04656). The reward shift δ is the mean of βs over the micro-batch, not differentiated. (The
    /// paper has its mean over all steps so far; this one needs no state, so that a row's loss does not depend on what was trained before.)
    BcoShift,
    /// (s_c − 1/(2β))² + (s_r + 1/(2β))²: self-play preference optimisation with certain preferences (SPPO, arXiv 2405.00675).
    SppoHard,
    /// Sigmoid of the k-th largest margin log π_c − log π_r less the k-th largest of the reference's margins, over the micro-batch's pairs (AOT,
    /// arXiv 2406.05882).
    Aot,
    /// Sigmoid of the k-th largest s_c against the k-th largest s_r of the micro-batch, for every k (arXiv 2406.05882).
    AotUnpaired,
    /// −mean_j logσ(β·ω_ij·(s_c,i − s_r,j)) over the micro-batch's pairs, ω_ij the softmax over j of −(1 − cos(I_i, I_j))/τ (arXiv 2402.10958).
    Rpo,
    /// −mean log-probability of the tokens of a step's chosen responses, whatever the objective: a mean over tokens, not over rows, as in `sft`.
    Sft,
}

impl Loss {
    /// All losses.
    pub const ALL: [Self; 24] = [
        Self::Sigmoid,
        Self::Robust,
        Self::Hinge,
        Self::Ipo,
        Self::SigmoidNorm,
        Self::ExoPair,
        Self::Discopop,
        Self::Dpop,
        Self::Simpo,
        Self::Orpo,
        Self::Cpo,
        Self::KtoPair,
        Self::Kto,
        Self::ApoZeroUnpaired,
        Self::ApoZero,
        Self::ApoDown,
        Self::NcaPair,
        Self::BcoPair,
        Self::BcoShift,
        Self::SppoHard,
        Self::Aot,
        Self::AotUnpaired,
        Self::Rpo,
        Self::Sft,
    ];
    /// Losses with an ε.
    pub const SMOOTHED: [Self; 6] =
        [Self::Sigmoid, Self::Robust, Self::ExoPair, Self::Cpo, Self::Aot, Self::AotUnpaired];

    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sigmoid => "sigmoid",
            Self::Robust => "robust",
            Self::Hinge => "hinge",
            Self::Ipo => "ipo",
            Self::SigmoidNorm => "sigmoid_norm",
            Self::ExoPair => "exo_pair",
            Self::Discopop => "discopop",
            Self::Dpop => "dpop",
            Self::Simpo => "simpo",
            Self::Orpo => "orpo",
            Self::Cpo => "cpo",
            Self::KtoPair => "kto_pair",
            Self::Kto => "kto",
            Self::ApoZeroUnpaired => "apo_zero_unpaired",
            Self::ApoZero => "apo_zero",
            Self::ApoDown => "apo_down",
            Self::NcaPair => "nca_pair",
            Self::BcoPair => "bco_pair",
            Self::BcoShift => "bco_shift",
            Self::SppoHard => "sppo_hard",
            Self::Aot => "aot",
            Self::AotUnpaired => "aot_unpaired",
            Self::Rpo => "rpo",
            Self::Sft => "sft",
        }
    }

    /// Tells whether the loss ignores the reference.
    pub const fn is_reference_free(self) -> bool {
        matches!(self, Self::Simpo | Self::Orpo | Self::Cpo | Self::Sft)
    }

    /// Tells whether it is the same loss under both objectives where a pair's sides have one instruction: it is a function of Δ alone, or of responses
    /// alone. Means over scored tokens, and scores of single sequences, change with the instruction's.
    pub const fn is_same_for_one_instruction(self) -> bool {
        matches!(
            self,
            Self::Sigmoid
                | Self::Robust
                | Self::Hinge
                | Self::ExoPair
                | Self::Discopop
                | Self::Cpo
                | Self::Aot
                | Self::Sft
        )
    }

    /// Tells whether the loss is undefined on single texts with a label.
    pub const fn needs_pairs(self) -> bool {
        !matches!(self, Self::Kto | Self::ApoZeroUnpaired | Self::Sft)
    }

    /// Returns the terms whose sum is the loss, with the modifiers of `p`, over rows that are pairs or not.
    pub fn terms(self, p: &PreferenceLoss, paired: bool) -> Vec<Term> {
        let e = p.label_smoothing;
        let plain = Term {
            scope: p.objective,
            referenced: !p.reference_free && !self.is_reference_free(),
            scale: p.beta,
            divergence: p.f_divergence,
            tail_weight: p.tail_weight(),
            is_weighted: p.wpo,
            ..Term::default()
        };
        let smoothed = Term { curve: LossFn::Logistic { up: 1.0 - e, down: e }, ..plain };
        let mean = Term { link: ScoreKind::Mean, ..plain };
        let alone = |point| Term { coupling: ScoreCoupling::Sides(point), ..plain };
        let side = alone(ReferencePoint::Zero);
        let likelihood = Term {
            link: ScoreKind::TokenMean,
            scope: p.objective,
            referenced: false,
            coupling: ScoreCoupling::Sides(ReferencePoint::Zero),
            curve: LossFn::Linear,
            weights: [1.0, 0.0],
            ..Term::default()
        };
        let of_responses = Term { scope: Objective::Dpo, ..likelihood };
        let of_labels = |point| {
            let share = if paired { 0.5 } else { 1.0 };
            let weights = [share * p.desirable_weight, share * p.undesirable_weight];
            Term { curve: LossFn::Sigmoid, weights, ..alone(point) }
        };
        match self {
            Self::Sigmoid => vec![smoothed],
            Self::Robust => {
                let (up, down) = ((1.0 - e) / (1.0 - 2.0 * e), -e / (1.0 - 2.0 * e));
                vec![Term { curve: LossFn::Logistic { up, down }, ..plain }]
            }
            Self::Hinge => vec![Term { curve: LossFn::Hinge, ..plain }],
            Self::Ipo => vec![Term { curve: LossFn::Square, scale: 1.0, offset: 0.5 / p.beta, ..mean }],
            Self::SigmoidNorm => vec![mean],
            Self::ExoPair => vec![Term { curve: LossFn::BernoulliKl { target: 1.0 - e }, ..plain }],
            Self::Discopop => vec![Term { curve: LossFn::LogRatioModulated { tau: p.discopop_tau }, ..plain }],
            Self::Dpop => vec![Term { penalty: p.dpop_lambda, ..plain }],
            Self::Simpo => vec![Term { offset: p.simpo_gamma, ..mean }],
            Self::Orpo => vec![Term { link: ScoreKind::LogOdds, scale: 1.0, ..plain }.times(p.beta), likelihood],
            Self::Cpo => vec![smoothed, of_responses.times(p.cpo_alpha)],
            Self::KtoPair => vec![Term { curve: LossFn::Sigmoid, ..alone(ReferencePoint::Opposite) }.times(0.5)],
            Self::Kto => vec![of_labels(ReferencePoint::Positive)],
            Self::ApoZeroUnpaired => vec![of_labels(ReferencePoint::Zero)],
            Self::ApoZero => vec![Term { curve: LossFn::Sigmoid, ..side }],
            Self::ApoDown => {
                let lower_chosen = Term { curve: LossFn::Sigmoid, scale: -p.beta, weights: [1.0, 0.0], ..side };
                vec![lower_chosen, Term { curve: LossFn::Sigmoid, ..plain }]
            }
            Self::NcaPair => {
                let chosen = Term { curve: LossFn::Logistic { up: 1.0, down: 0.5 }, weights: [1.0, 0.0], ..side };
                vec![chosen, Term { weights: [0.0, 0.5], ..side }]
            }
            Self::BcoPair => vec![side],
            Self::BcoShift => vec![alone(ReferencePoint::Mean)],
            Self::SppoHard => vec![Term { curve: LossFn::Square, scale: 1.0, offset: 0.5 / p.beta, ..side }],
            Self::Aot => vec![Term { coupling: ScoreCoupling::SortedMargins, ..smoothed }],
            Self::AotUnpaired => vec![Term { coupling: ScoreCoupling::Sorted, ..smoothed }],
            Self::Rpo => vec![Term { coupling: ScoreCoupling::Cross, ..plain }],
            Self::Sft => vec![of_responses],
        }
    }
}
