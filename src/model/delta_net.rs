//! Weights of a gated delta net that belong to no linear layer.

use super::weights::Weight;
use crate::gpu::Slot;
use crate::kernels::delta_gates::DecayInputs;

/// Weights of a delta net that belong to no linear layer.
#[derive(Debug, Clone)]
pub struct DeltaNetWeights {
    /// Logarithm of each value head's decay rate: (Hv).
    pub a_log: Weight,
    /// Bias of each value head's decay: (Hv).
    pub dt_bias: Weight,
    /// Causal convolution: (2·Hk·dk + Hv·dv, K).
    pub conv: Weight,
    /// Gated norm: (dv).
    pub norm: Weight,
}

impl DeltaNetWeights {
    /// Returns all weights.
    pub fn all(&self) -> [&Weight; 4] {
        [&self.dt_bias, &self.a_log, &self.conv, &self.norm]
    }

    /// Returns the decay's inputs; `a` (T, Hv) is the output of `in_proj_a`.
    pub(super) fn decay<'a>(&'a self, a: &'a Slot) -> DecayInputs<'a> {
        DecayInputs { a, a_log: self.a_log.slot(), dt_bias: self.dt_bias.slot() }
    }
}
