//! Weights of the part of a layer behind its token mixer: an MLP, or a mixture of experts.

use super::experts::ExpertsWeights;
use super::linear::Linear;

/// Weights of the part of a layer behind its token mixer.
#[derive(Debug, Clone)]
pub enum MlpWeights {
    /// MLP that every token passes.
    Dense {
        /// Projections that write the columns of gate and up.
        up: Vec<Linear>,
        /// Projection back to D.
        down: Linear,
    },
    /// Mixture of experts.
    Experts(ExpertsWeights),
}

impl MlpWeights {
    /// Returns the linear layers of a dense MLP.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let (up, down) = match self {
            Self::Dense { up, down } => (up.as_slice(), Some(down)),
            Self::Experts(_) => (&[][..], None),
        };
        up.iter().chain(down)
    }

    /// Returns whether the backward pass reads the input of the last product.
    pub(super) fn reads_activation(&self) -> bool {
        match self {
            Self::Dense { down, .. } => down.trained(),
            // The gradient of the router's weights is read off it, too.
            Self::Experts(_) => true,
        }
    }
}
