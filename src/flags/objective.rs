//! Flags of losses and their reference.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::values::parse_objective;
use crate::error::{Error, Result};
use crate::objective::{FDivergence, FORMULA_LEGEND, Loss, LossMix, Objective, PreferenceLoss, SftLoss, TrainingLoss};
use crate::train::settings::ReferenceChoice;
use crate::validate::not_negative;

/// Flags of the loss that is minimised, and of its reference.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ObjectiveArgs {
    /// Tokens that are scored: the instruction's and the response's (jpo), or the response's alone (dpo) [default: jpo]
    #[arg(long, value_parser = parse_objective)]
    pub objective: Option<Objective>,
    /// Loss, or several with weights: sigmoid=1,sft=0.2. The losses, with formulas and sources, are listed below; kto and apo_zero_unpaired also take texts
    /// with a label [default: sigmoid]
    #[arg(long, value_name = "NAME[=WEIGHT],..")]
    pub loss: Option<LossMix>,
    /// KL strength: larger keeps the policy closer to the reference; orpo's λ; sigmoid_norm needs 2 to 5 [default: 0.1]
    #[arg(long, allow_hyphen_values = true)]
    pub beta: Option<f64>,
    /// Probability that a preference is the wrong way round (sigmoid, robust, cpo, aot, aot_unpaired), or exo_pair's ε, which must be above 0 [default: 0]
    #[arg(long, allow_hyphen_values = true)]
    pub label_smoothing: Option<f64>,
    /// Margin γ of simpo, by which the chosen side should lead [default: 0.5]
    #[arg(long, value_name = "GAMMA", allow_hyphen_values = true)]
    pub simpo_gamma: Option<f64>,
    /// Temperature of rpo's prompt-similarity softmax [default: 0.5]
    #[arg(long, value_name = "TAU", allow_hyphen_values = true)]
    pub rpo_tau: Option<f64>,
    /// Temperature τ of discopop's blend of two losses [default: 0.05]
    #[arg(long, value_name = "TAU", allow_hyphen_values = true)]
    pub discopop_tau: Option<f64>,
    /// Penalty λ of dpop on a chosen side below its reference [default: 50]
    #[arg(long, value_name = "LAMBDA", allow_hyphen_values = true)]
    pub dpop_lambda: Option<f64>,
    /// Weight α of the likelihood in cpo [default: 1]
    #[arg(long, value_name = "ALPHA", allow_hyphen_values = true)]
    pub cpo_alpha: Option<f64>,
    /// Weight of the response tokens past the length of the pair's shorter response, 0 to 1: LD-DPO (arXiv 2409.06411) [default: 1]
    #[arg(long, value_name = "ALPHA", allow_hyphen_values = true)]
    pub ld_alpha: Option<f64>,
    /// Multiply a pair's loss by w_c·w_r, w = exp(mean over response tokens of log p − log Σp²), without a gradient: WPO (arXiv 2406.11827)
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub wpo: bool,
    /// Divergence from the reference, which replaces s in the formulas: reverse_kl (s), forward_kl (1 − e⁻ˢ), js (log 2 + log σ(s)) or alpha=A ((e^((A−1)s) −
    /// 1)/(A−1)): f-DPO (arXiv 2309.16240) [default: reverse_kl]
    #[arg(long, value_name = "NAME")]
    pub f_divergence: Option<FDivergence>,
    /// Weight of desirable texts in kto and apo_zero_unpaired [default: 1]
    #[arg(long, value_name = "WEIGHT", allow_hyphen_values = true)]
    pub desirable_weight: Option<f64>,
    /// Weight of undesirable texts in kto and apo_zero_unpaired [default: 1]
    #[arg(long, value_name = "WEIGHT", allow_hyphen_values = true)]
    pub undesirable_weight: Option<f64>,
    /// Take all reference scores as zero
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reference_free: bool,
    /// Weight of the chosen response's negative log-likelihood, like sft=WEIGHT in --loss [default: 0]
    #[arg(long, allow_hyphen_values = true)]
    pub sft_weight: Option<f64>,
    /// Loss of supervised fine-tuning: nll (−log p), or dft (−p·log p, p without a gradient: dynamic fine-tuning, arXiv 2508.05629) [default: nll]
    #[arg(long, value_name = "NAME")]
    pub sft_loss: Option<SftLoss>,
    /// Reference model: initial (the starting policy), base (the model without the adapter), or another checkpoint: a model, or the folder of an adapter on --model [default: initial]
    #[arg(long, value_name = "initial|base|DIR")]
    pub reference: Option<String>,
}

impl ObjectiveArgs {
    /// Resolves the loss.
    ///
    /// # Errors
    /// [`Error::Flag`] for a value out of range, or a flag that the losses do not use.
    pub fn preference(&self) -> Result<PreferenceLoss> {
        let base = PreferenceLoss::default();
        let sft_weight = self.sft_weight.unwrap_or(0.0);
        not_negative("sft-weight", sft_weight)?;
        let p = PreferenceLoss {
            objective: self.objective.unwrap_or(base.objective),
            loss: self.loss.unwrap_or(base.loss).plus(Loss::Sft, sft_weight),
            custom_terms: Vec::new(),
            beta: self.beta.unwrap_or(base.beta),
            label_smoothing: self.label_smoothing.unwrap_or(base.label_smoothing),
            simpo_gamma: self.simpo_gamma.unwrap_or(base.simpo_gamma),
            rpo_tau: self.rpo_tau.unwrap_or(base.rpo_tau),
            discopop_tau: self.discopop_tau.unwrap_or(base.discopop_tau),
            dpop_lambda: self.dpop_lambda.unwrap_or(base.dpop_lambda),
            cpo_alpha: self.cpo_alpha.unwrap_or(base.cpo_alpha),
            ld_alpha: self.ld_alpha,
            wpo: self.wpo,
            f_divergence: self.f_divergence.unwrap_or(base.f_divergence),
            desirable_weight: self.desirable_weight.unwrap_or(base.desirable_weight),
            undesirable_weight: self.undesirable_weight.unwrap_or(base.undesirable_weight),
            reference_free: self.reference_free,
        };
        p.validate()?;
        // A flag that would change nothing is a mistake.
        let labelled: &[Loss] = &[Loss::Kto, Loss::ApoZeroUnpaired];
        for (flag, value, losses) in [
            ("simpo-gamma", self.simpo_gamma, &[Loss::Simpo][..]),
            ("rpo-tau", self.rpo_tau, &[Loss::Rpo]),
            ("discopop-tau", self.discopop_tau, &[Loss::Discopop]),
            ("dpop-lambda", self.dpop_lambda, &[Loss::Dpop]),
            ("cpo-alpha", self.cpo_alpha, &[Loss::Cpo]),
            ("desirable-weight", self.desirable_weight, labelled),
            ("undesirable-weight", self.undesirable_weight, labelled),
        ] {
            if value.is_some() && !losses.iter().any(|&loss| p.loss.has(loss)) {
                let names: Vec<&str> = losses.iter().map(|loss| loss.name()).collect();
                return Err(Error::flag(flag, format!("needs --loss {}, not {}", names.join(" or "), p.loss)));
            }
        }
        Ok(p)
    }

    /// Resolves the loss of supervised fine-tuning.
    ///
    /// # Errors
    /// [`Error::Flag`] where the run is not supervised and names such a loss.
    pub fn sft_loss(&self, sft: bool) -> Result<SftLoss> {
        match (self.sft_loss, sft) {
            (Some(_), false) => Err(Error::flag("sft-loss", "is only for sft: preference losses are named by --loss")),
            (loss, _) => Ok(loss.unwrap_or_default()),
        }
    }

    /// Resolves the loss to minimise: that of supervised fine-tuning, or the preference loss.
    ///
    /// # Errors
    /// Those of [`Self::preference`] and [`Self::sft_loss`].
    pub fn goal(&self, sft: bool) -> Result<TrainingLoss> {
        let sft_loss = self.sft_loss(sft)?;
        let preference = self.preference()?;
        Ok(if sft { TrainingLoss::Sft(sft_loss) } else { TrainingLoss::Preference(preference) })
    }

    /// Resolves the reference.
    pub fn reference(&self) -> ReferenceChoice {
        self.reference.as_deref().map_or(ReferenceChoice::Initial, ReferenceChoice::parse)
    }
}

/// Returns the list of losses with their formulas and sources, which follows the flags in `--help`.
pub(super) fn losses_help() -> String {
    let row = |loss: Loss| format!("  {:17} {}\n  {:17} {}\n", loss.name(), loss.formula(), "", loss.source());
    format!("Losses: {FORMULA_LEGEND}\n{}", Loss::ALL.map(row).concat().trim_end())
}
