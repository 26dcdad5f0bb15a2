//! Training loss: a preference loss, or the likelihood of responses.

use super::{Coupling, Curve, Link, Objective, Preference, Shift, Term};

/// Training loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// A preference loss over rows.
    Preference(Preference),
    /// Σ −log π(response token).
    Sft,
}

impl Goal {
    /// The terms of its loss, over rows that are pairs or not.
    pub fn terms(&self, paired: bool) -> Vec<Term> {
        match self {
            Self::Preference(p) => p.terms(paired),
            Self::Sft => vec![Term {
                link: Link::Sum,
                scope: Objective::Dpo,
                referenced: false,
                coupling: Coupling::Sides(Shift::Zero),
                curve: Curve::Linear,
                scale: 1.0,
                offset: 0.0,
                weights: [1.0; 2],
            }],
        }
    }
}
