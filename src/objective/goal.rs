//! Training loss: a preference loss, or a loss of supervised fine-tuning.

use std::fmt;
use std::str::FromStr;

use super::{LossFn, Objective, PreferenceLoss, ReferencePoint, ScoreCoupling, SequenceLogps, Term};

/// Loss of supervised fine-tuning, over response tokens.
///
/// # Examples
/// ```
/// use jointwise::Recipe;
/// use jointwise::objective::SftLoss;
/// let recipe = Recipe { sft_loss: SftLoss::Dft, ..Recipe::sft() };
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SftLoss {
    /// Negative log-likelihood: −log p.
    #[default]
    Nll,
    /// Dynamic fine-tuning: −p·log p, whose factor p has no gradient (arXiv 2508.05629; TRL's `loss_type="dft"`).
    Dft,
}

impl SftLoss {
    /// All losses.
    pub const ALL: [Self; 2] = [Self::Nll, Self::Dft];

    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nll => "nll",
            Self::Dft => "dft",
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    pub(crate) fn is_nll(&self) -> bool {
        *self == Self::Nll
    }

    /// Returns the loss summed over a sequence's response tokens.
    pub fn of_sequence(self, sums: &SequenceLogps) -> f64 {
        match self {
            Self::Nll => -sums.response,
            Self::Dft => -sums.response_p_logp,
        }
    }
}

impl FromStr for SftLoss {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|loss| loss.name() == text);
        found.ok_or_else(|| format!("expected one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

impl fmt::Display for SftLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Training loss. A run has one, so its size does not matter.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "one per run")]
pub enum TrainingLoss {
    /// A preference loss over rows.
    Preference(PreferenceLoss),
    /// A loss of supervised fine-tuning, summed over response tokens.
    Sft(SftLoss),
}

impl TrainingLoss {
    /// The terms of its loss, over rows that are pairs or not.
    pub fn terms(&self, paired: bool) -> Vec<Term> {
        match self {
            Self::Preference(p) => p.terms(paired),
            Self::Sft(_) => vec![Term {
                scope: Objective::Dpo,
                referenced: false,
                coupling: ScoreCoupling::Sides(ReferencePoint::Zero),
                curve: LossFn::Linear,
                ..Term::default()
            }],
        }
    }

    /// Tells whether the gradient of each token is multiplied by its probability ([`SftLoss::Dft`]).
    pub fn is_dynamic(&self) -> bool {
        *self == Self::Sft(SftLoss::Dft)
    }

    /// Tells whether the loss weighs pairs by their probabilities ([`PreferenceLoss::wpo`]).
    pub fn is_weighted(&self) -> bool {
        matches!(self, Self::Preference(p) if p.wpo)
    }
}
