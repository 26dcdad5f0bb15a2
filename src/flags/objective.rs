//! Flags of losses and their reference.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::values::parse_objective;
use crate::error::{Error, Result};
use crate::objective::{Loss, LossMix, Objective, PreferenceLoss};
use crate::train::settings::ReferenceChoice;
use crate::validate::not_negative;

/// Flags of the loss that is minimised, and of its reference.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ObjectiveArgs {
    /// Tokens that are scored: the instruction's and the response's (jpo), or the response's alone (dpo) [default: jpo]
    #[arg(long, value_parser = parse_objective)]
    pub objective: Option<Objective>,
    /// Loss: sigmoid, robust, hinge, ipo, simpo, orpo, kto_pair, kto (also for texts with a label), bco_pair, aot_unpaired, rpo or sft; or several with
    /// weights: sigmoid=1,sft=0.2 [default: sigmoid]
    #[arg(long, value_name = "NAME[=WEIGHT],..")]
    pub loss: Option<LossMix>,
    /// KL strength: larger keeps the policy closer to the reference; orpo's λ [default: 0.1]
    #[arg(long, allow_hyphen_values = true)]
    pub beta: Option<f64>,
    /// Probability that a preference is the wrong way round (sigmoid, robust, aot_unpaired) [default: 0]
    #[arg(long, allow_hyphen_values = true)]
    pub label_smoothing: Option<f64>,
    /// Margin γ of simpo, by which the chosen side should lead [default: 0.5]
    #[arg(long, value_name = "GAMMA", allow_hyphen_values = true)]
    pub simpo_gamma: Option<f64>,
    /// Temperature of rpo's prompt-similarity softmax [default: 0.5]
    #[arg(long, value_name = "TAU", allow_hyphen_values = true)]
    pub rpo_tau: Option<f64>,
    /// Weight of desirable texts in kto [default: 1]
    #[arg(long, value_name = "WEIGHT", allow_hyphen_values = true)]
    pub desirable_weight: Option<f64>,
    /// Weight of undesirable texts in kto [default: 1]
    #[arg(long, value_name = "WEIGHT", allow_hyphen_values = true)]
    pub undesirable_weight: Option<f64>,
    /// Take all reference scores as zero
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reference_free: bool,
    /// Weight of the chosen response's negative log-likelihood, like sft=WEIGHT in --loss [default: 0]
    #[arg(long, allow_hyphen_values = true)]
    pub sft_weight: Option<f64>,
    /// Reference model: initial (the starting policy), base (the model without the adapter), or another checkpoint [default: initial]
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
            desirable_weight: self.desirable_weight.unwrap_or(base.desirable_weight),
            undesirable_weight: self.undesirable_weight.unwrap_or(base.undesirable_weight),
            reference_free: self.reference_free,
        };
        p.validate()?;
        // A flag that would change nothing is a mistake.
        for (flag, value, loss) in [
            ("simpo-gamma", self.simpo_gamma, Loss::Simpo),
            ("rpo-tau", self.rpo_tau, Loss::Rpo),
            ("desirable-weight", self.desirable_weight, Loss::Kto),
            ("undesirable-weight", self.undesirable_weight, Loss::Kto),
        ] {
            if value.is_some() && !p.loss.has(loss) {
                return Err(Error::flag(flag, format!("needs --loss {}, not {}", loss.name(), p.loss)));
            }
        }
        Ok(p)
    }

    /// Resolves the reference.
    pub fn reference(&self) -> ReferenceChoice {
        self.reference.as_deref().map_or(ReferenceChoice::Initial, ReferenceChoice::parse)
    }
}
