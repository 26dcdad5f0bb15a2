//! Modifiers of losses: what each changes, and the losses that it cannot be combined with.

use super::{FDivergence, Loss, PreferenceLoss};
use crate::error::{Error, Result};

/// Modifier of a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossModifier {
    /// Weight α of the response tokens past the length of the pair's shorter response: LD-DPO (arXiv 2409.06411; TRL's `ld_alpha`).
    LdAlpha,
    /// Weights of pairs by the policy's probabilities: WPO (arXiv 2406.11827; TRL's `use_weighting`).
    Wpo,
    /// Another divergence than the reverse KL: f-DPO (arXiv 2309.16240; TRL's `f_divergence_type`).
    FDivergence,
}

impl LossModifier {
    /// All modifiers.
    pub const ALL: [Self; 3] = [Self::LdAlpha, Self::Wpo, Self::FDivergence];

    /// Name of the flag.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::LdAlpha => "ld-alpha",
            Self::Wpo => "wpo",
            Self::FDivergence => "f-divergence",
        }
    }

    /// Tells whether a preference loss has this modifier.
    fn is_used(self, p: &PreferenceLoss) -> bool {
        match self {
            Self::LdAlpha => p.ld_alpha.is_some(),
            Self::Wpo => p.wpo,
            Self::FDivergence => p.f_divergence != FDivergence::ReverseKl,
        }
    }

    /// Returns why a loss cannot have the modifier; `None` where it can.
    pub const fn refusal(self, loss: Loss) -> Option<&'static str> {
        match (self, loss) {
            (Self::LdAlpha, Loss::Kto | Loss::ApoZeroUnpaired) => {
                Some("is of single texts, which have no shorter side")
            }
            (Self::LdAlpha, Loss::Rpo) => Some("compares sides of different pairs, which share no length"),
            (Self::LdAlpha, Loss::Simpo | Loss::Orpo | Loss::Cpo) => {
                Some("has no reference, and LD-DPO weighs the tokens of log-ratios")
            }
            (Self::Wpo, Loss::Kto | Loss::ApoZeroUnpaired) => Some("is of single texts, and WPO weighs pairs"),
            (Self::Wpo, Loss::Aot | Loss::AotUnpaired | Loss::Rpo | Loss::KtoPair) => {
                Some("compares several pairs at once, and WPO weighs the loss of one pair")
            }
            (Self::Wpo, Loss::Sft | Loss::Orpo | Loss::Cpo) => {
                Some("has a mean over a step's tokens, and WPO weighs the loss of one pair")
            }
            (Self::FDivergence, Loss::Simpo | Loss::Orpo | Loss::Cpo) => Some("has no reference to diverge from"),
            (
                Self::FDivergence,
                Loss::Dpop
                | Loss::KtoPair
                | Loss::Kto
                | Loss::ApoZeroUnpaired
                | Loss::ApoZero
                | Loss::ApoDown
                | Loss::NcaPair
                | Loss::BcoPair
                | Loss::BcoShift
                | Loss::SppoHard
                | Loss::Aot
                | Loss::AotUnpaired
                | Loss::Rpo,
            ) => Some("is defined with log-ratios alone"),
            _ => None,
        }
    }
}

/// Checks that each loss of a mix can have the modifiers.
///
/// # Errors
/// [`Error::Flag`] with the reason, or where a modifier would change nothing.
pub(super) fn check_modifiers(p: &PreferenceLoss) -> Result<()> {
    for modifier in LossModifier::ALL.into_iter().filter(|modifier| modifier.is_used(p)) {
        if let Some((loss, reason)) = p.loss.parts().find_map(|(loss, _)| Some((loss, modifier.refusal(loss)?))) {
            return Err(Error::flag(modifier.flag(), format!("{} {reason}", loss.name())));
        }
        if p.custom_terms.is_empty() && p.loss.parts().all(|(loss, _)| loss == Loss::Sft) {
            return Err(Error::flag(modifier.flag(), "changes nothing in --loss sft"));
        }
    }
    if p.ld_alpha.is_some_and(|alpha| !(0.0..=1.0).contains(&alpha)) {
        let alpha = p.ld_alpha.unwrap_or_default();
        return Err(Error::flag(LossModifier::LdAlpha.flag(), format!("{alpha} is not in 0 ..= 1")));
    }
    if p.reference_free && LossModifier::FDivergence.is_used(p) {
        return Err(Error::flag(
            LossModifier::FDivergence.flag(),
            "is a divergence from the reference, which --reference-free leaves out",
        ));
    }
    Ok(())
}
