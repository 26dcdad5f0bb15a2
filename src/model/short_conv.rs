//! Weights of a short convolution (LFM2) that belong to no linear layer.

use super::weights::Weight;

/// Weights of a short convolution that belong to no linear layer.
#[derive(Debug, Clone)]
pub struct ShortConvWeights {
    /// Causal convolution: (D, K).
    pub conv: Weight,
    /// Bias of the convolution: (D).
    pub bias: Option<Weight>,
}

impl ShortConvWeights {
    /// Returns all weights.
    pub fn all(&self) -> impl Iterator<Item = &Weight> {
        [&self.conv].into_iter().chain(&self.bias)
    }
}
