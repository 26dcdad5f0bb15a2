//! Training loss: a preference loss, or the likelihood of responses.

use super::{LossFn, Objective, PreferenceLoss, ReferencePoint, ScoreCoupling, ScoreKind, Term};

/// Training loss.
#[derive(Debug, Clone, PartialEq)]
pub enum TrainingLoss {
    /// A preference loss over rows.
    Preference(PreferenceLoss),
    /// Σ −log π(response token).
    Sft,
}

impl TrainingLoss {
    /// The terms of its loss, over rows that are pairs or not.
    pub fn terms(&self, paired: bool) -> Vec<Term> {
        match self {
            Self::Preference(p) => p.terms(paired),
            Self::Sft => vec![Term {
                link: ScoreKind::Sum,
                scope: Objective::Dpo,
                referenced: false,
                coupling: ScoreCoupling::Sides(ReferencePoint::Zero),
                curve: LossFn::Linear,
                scale: 1.0,
                offset: 0.0,
                weights: [1.0; 2],
            }],
        }
    }
}
