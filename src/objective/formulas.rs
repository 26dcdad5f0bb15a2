//! Formulas of the losses with their sources, as text for help and documents.

use super::{Loss, SftLoss};

/// Legend of the formulas.
pub const FORMULA_LEGEND: &str = "s = log π − log π_ref of the chosen (c) and the rejected (r) side, n its scored tokens, Δ = s_c − s_r, \
                                  β = --beta, ε = --label-smoothing, λ_D and λ_U = --desirable-weight and --undesirable-weight";

impl Loss {
    /// Returns the loss of a pair (of `kto` and `apo_zero_unpaired`: of a text) as a formula.
    pub const fn formula(self) -> &'static str {
        match self {
            Self::Sigmoid => "−(1−ε)·log σ(βΔ) − ε·log σ(−βΔ)",
            Self::Robust => "(−(1−ε)·log σ(βΔ) + ε·log σ(−βΔ))/(1−2ε)",
            Self::Hinge => "max(0, 1 − βΔ)",
            Self::Ipo => "(s_c/n_c − s_r/n_r − 1/(2β))²",
            Self::SigmoidNorm => "−log σ(β(s_c/n_c − s_r/n_r))",
            Self::ExoPair => "q·log(q/(1−ε)) + (1−q)·log((1−q)/ε), q = σ(βΔ)",
            Self::Discopop => "−(1−m)·log σ(βΔ) + m·exp(−βΔ), m = σ(βΔ/τ), τ = --discopop-tau",
            Self::Dpop => "−log σ(β(Δ − λ·max(0, −s_c))), λ = --dpop-lambda",
            Self::Simpo => "−log σ(β(log π_c/n_c − log π_r/n_r) − γ), γ = --simpo-gamma",
            Self::Orpo => "−log p̄_c − β·log σ(log odds p̄_c − log odds p̄_r), p̄ = exp(log π/n)",
            Self::Cpo => "sigmoid of log π_c − log π_r, plus α·(−log p̄_c), α = --cpo-alpha",
            Self::KtoPair => "½(1 − σ(β(s_c − KL_r)) + 1 − σ(β(KL_c − s_r))), KL = max(0, mean s)",
            Self::Kto => "λ_D(1 − σ(β(s − z))) if desirable, else λ_U(1 − σ(β(z − s))), z = max(0, mean s)",
            Self::ApoZeroUnpaired => "λ_D(1 − σ(βs)) if desirable, else λ_U·σ(βs)",
            Self::ApoZero => "1 − σ(βs_c) + σ(βs_r)",
            Self::ApoDown => "σ(βs_c) + 1 − σ(βΔ)",
            Self::NcaPair => "−log σ(βs_c) − ½·log σ(−βs_c) − ½·log σ(−βs_r)",
            Self::BcoPair => "−log σ(βs_c) − log σ(−βs_r)",
            Self::BcoShift => "−log σ(βs_c − δ) − log σ(δ − βs_r), δ = mean βs",
            Self::SppoHard => "(s_c − 1/(2β))² + (s_r + 1/(2β))²",
            Self::Aot => "sigmoid of the k-th largest log π_c − log π_r less the reference's k-th",
            Self::AotUnpaired => "sigmoid of the k-th largest s_c less the k-th largest s_r",
            Self::Rpo => "−mean_j log σ(β·ω_ij(s_c,i − s_r,j)), ω by prompt similarity, --rpo-tau",
            Self::Sft => "−log p̄ of the chosen response's tokens",
        }
    }

    /// Returns the paper of the loss, and the function of TRL 1.16 where it has the same one.
    pub const fn source(self) -> &'static str {
        match self {
            Self::Sigmoid => "DPO, arXiv 2305.18290; cDPO; TRL dpo_trainer.py",
            Self::Robust => "Robust DPO, arXiv 2403.00409; TRL dpo_trainer.py",
            Self::Hinge => "SLiC, arXiv 2305.10425; TRL dpo_trainer.py",
            Self::Ipo => "IPO, arXiv 2310.12036; TRL dpo_trainer.py",
            Self::SigmoidNorm => "Tülu 3, arXiv 2411.15124; TRL dpo_trainer.py",
            Self::ExoPair => "EXO, arXiv 2402.00856; TRL dpo_trainer.py",
            Self::Discopop => "DiscoPOP, arXiv 2406.08414; TRL dpo_trainer.py",
            Self::Dpop => "DPO-Positive (Smaug), arXiv 2402.13228",
            Self::Simpo => "SimPO, arXiv 2405.14734; TRL cpo_trainer.py",
            Self::Orpo => "ORPO, arXiv 2403.07691; TRL orpo_trainer.py",
            Self::Cpo => "CPO, arXiv 2401.08417; TRL cpo_trainer.py",
            Self::KtoPair => "TRL 0.8",
            Self::Kto => "KTO, arXiv 2402.01306; TRL kto_trainer.py, with another z",
            Self::ApoZeroUnpaired => "APO, arXiv 2408.06266; TRL kto_trainer.py",
            Self::ApoZero | Self::ApoDown => "APO, arXiv 2408.06266; TRL dpo_trainer.py",
            Self::NcaPair => "NCA, arXiv 2402.05369; TRL dpo_trainer.py",
            Self::BcoPair => "BCO, arXiv 2404.04656, without its shift; TRL dpo_trainer.py since 1.15",
            Self::BcoShift => "BCO, arXiv 2404.04656",
            Self::SppoHard => "SPPO, arXiv 2405.00675; TRL dpo_trainer.py",
            Self::Aot => "AOT, arXiv 2406.05882; TRL dpo_trainer.py",
            Self::AotUnpaired => "AOT, arXiv 2406.05882; TRL dpo_trainer.py",
            Self::Rpo => "RPO, arXiv 2402.10958",
            Self::Sft => "negative log-likelihood; TRL dpo_trainer.py",
        }
    }
}

impl SftLoss {
    /// Returns the loss of a token of probability p as a formula.
    pub const fn formula(self) -> &'static str {
        match self {
            Self::Nll => "−log p",
            Self::Dft => "−p·log p, p without a gradient",
        }
    }

    /// Returns the paper of the loss, and the file of TRL 1.16.
    pub const fn source(self) -> &'static str {
        match self {
            Self::Nll => "negative log-likelihood; TRL sft_trainer.py",
            Self::Dft => "Dynamic fine-tuning, arXiv 2508.05629; TRL sft_trainer.py",
        }
    }
}
