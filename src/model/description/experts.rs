//! Mixtures of experts: their sizes and tensors.

use super::{LinearSpec, TensorSpec};

/// Mixture of experts: y = Σ_j w_j·expert_j(x) over the k experts with the largest router logits. Each expert is an MLP of F
/// (`Qwen3MoeSparseMoeBlock` in `modeling_qwen3_moe.py`).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ExpertsConfig {
    /// X, the number of experts.
    pub count: usize,
    /// k, the number of experts that a token is sent to.
    pub top_k: usize,
    /// Whether the weights are a softmax over all experts, instead of one over the k chosen ones (`norm_topk_prob` off).
    pub over_all: bool,
    /// Router: W (X, D).
    pub router: LinearSpec,
    /// Projections that write the columns of (T·k, 2F) as gate, up; a single one where they are fused.
    pub up: Vec<ExpertProjection>,
    /// Projection back to D: W (D, F).
    pub down: ExpertProjection,
}

/// One projection of all experts.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ExpertProjection {
    /// Rows of each expert's W.
    pub n_out: usize,
    /// Columns of each expert's W.
    pub n_in: usize,
    /// First column in the output slot.
    pub column: usize,
    /// Tensors of the weights: W (n_out, n_in) of each expert, or one tensor (X, n_in, n_out) of all, which is transposed.
    pub weights: Vec<TensorSpec>,
    /// Tensor of the biases: (X, n_out).
    pub bias: Option<TensorSpec>,
    /// Whether the outputs of gate and up alternate (gpt-oss). The output slot has all of gate, then all of up.
    pub interleaved: bool,
}

impl ExpertProjection {
    /// Describes a projection with a tensor per expert, without biases.
    pub fn of_each(names: impl Iterator<Item = String>, [n_out, n_in]: [usize; 2], column: usize) -> Self {
        let weight = |name| TensorSpec { name, shape: vec![n_out, n_in], transposed: false };
        Self { n_out, n_in, column, weights: names.map(weight).collect(), bias: None, interleaved: false }
    }

    /// Describes a projection with one tensor (X, n_in, n_out) for all experts, and biases (X, n_out).
    pub fn of_all(name: String, bias: String, experts: usize, [n_out, n_in]: [usize; 2], interleaved: bool) -> Self {
        let weight = TensorSpec { name, shape: vec![experts, n_in, n_out], transposed: true };
        let bias = TensorSpec { name: bias, shape: vec![experts, n_out], transposed: false };
        Self { n_out, n_in, column: 0, weights: vec![weight], bias: Some(bias), interleaved }
    }
}

impl ExpertsConfig {
    /// Returns the projections in the order of the forward pass.
    pub fn projections(&self) -> impl Iterator<Item = &ExpertProjection> {
        self.up.iter().chain([&self.down])
    }

    /// Returns the tensors of the experts' weights, projection by projection.
    pub fn matrices(&self) -> impl Iterator<Item = &TensorSpec> {
        self.projections().flat_map(|p| &p.weights)
    }

    /// Returns all tensors: the router's, then those of the experts.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let experts = self.projections().flat_map(|p| p.weights.iter().chain(&p.bias)).cloned();
        self.router.tensors().into_iter().chain(experts).collect()
    }
}
