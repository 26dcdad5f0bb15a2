//! Mixtures of experts: sizes, and the layers that have them (`Qwen3MoeConfig`, `Qwen3MoeDecoderLayer` and `GptOssConfig` in transformers).

use super::super::description::{ExpertProjection, ExpertsConfig};
use super::super::families::limit;
use super::{ConfigReader, module};
use crate::error::Result;

/// Layers with a mixture of experts, and its sizes.
pub(super) struct ExpertLayers {
    /// X, the number of experts.
    count: usize,
    /// k, the number of experts that a token is sent to.
    top_k: usize,
    over_all: bool,
    /// F, width of an expert.
    width: usize,
    /// Whether each layer has experts; the others have an MLP of `intermediate_size`.
    sparse: Vec<bool>,
    /// Whether a projection has one tensor for all experts, and biases, and gate and up are one projection (gpt-oss).
    stacked: bool,
}

impl ExpertLayers {
    /// Reads the experts of Qwen3-MoE.
    pub fn of_qwen3(c: &ConfigReader, n_layers: usize) -> Result<Self> {
        let [count, top_k] = Self::counts(c, 8)?;
        let step = c.size("decoder_sparse_step", limit::LAYERS, Some(1))?;
        let dense = match c.get("mlp_only_layers") {
            None => Vec::new(),
            Some(list) => {
                let layers = list.as_array().and_then(|all| all.iter().map(serde_json::Value::as_u64).collect());
                layers.ok_or_else(|| c.bad("mlp_only_layers", "expected a list of layers' numbers"))?
            }
        };
        Ok(Self {
            count,
            top_k,
            over_all: !c.flag("norm_topk_prob", false)?,
            width: c.size("moe_intermediate_size", limit::FEED_FORWARD, Some(768))?,
            sparse: (0..n_layers).map(|i| !dense.contains(&(i as u64)) && (i + 1).is_multiple_of(step)).collect(),
            stacked: false,
        })
    }

    /// Reads the experts of gpt-oss. Each has the width of `intermediate_size`.
    pub fn of_gpt_oss(c: &ConfigReader, n_layers: usize) -> Result<Self> {
        let [count, top_k] = Self::counts(c, 4)?;
        let width = c.size("intermediate_size", limit::FEED_FORWARD, None)?;
        Ok(Self { count, top_k, over_all: false, width, sparse: vec![true; n_layers], stacked: true })
    }

    /// Reads X and k, which is `default_k` where the field is absent.
    fn counts(c: &ConfigReader, default_k: usize) -> Result<[usize; 2]> {
        // The hub's spelling, and that of transformers 5.24, which writes the other one.
        let [hub, written] = ["num_experts", "num_local_experts"].map(|field| c.get(field));
        let field = if hub.is_some() { "num_experts" } else { "num_local_experts" };
        if let (Some(a), Some(b)) = (hub, written)
            && a != b
        {
            return Err(c.bad("num_experts", format!("{a} contradicts `num_local_experts`, {b}")));
        }
        let count = c.size(field, limit::EXPERTS, Some(128))?;
        let top_k = c.size("num_experts_per_tok", limit::EXPERTS, Some(default_k))?;
        if top_k > count {
            return Err(c.bad("num_experts_per_tok", format!("{top_k} is more than {field} = {count}")));
        }
        // transformers adds the router's load-balancing loss to the loss of a training only where this is on.
        if c.flag("output_router_logits", false)? {
            let reason = "true is not supported: it adds the auxiliary loss of the router, which is not computed here; set it to false";
            return Err(c.bad("output_router_logits", reason));
        }
        Ok([count, top_k])
    }

    /// Returns the experts of layer `i`, whose tensors are under `at`, with the width of each; `None` for a layer with an MLP.
    pub fn layer(&self, at: &str, i: usize, d: usize) -> Option<(usize, ExpertsConfig)> {
        if !self.sparse[i] {
            return None;
        }
        let &Self { count, top_k, over_all, width: f, .. } = self;
        let each = |name: &str, sizes, column| {
            let names = (0..count).map(|e| format!("{at}.mlp.experts.{e}.{name}.weight"));
            ExpertProjection::of_each(names, sizes, column)
        };
        let all = |name: &str, sizes, interleaved| {
            let name = format!("{at}.mlp.experts.{name}");
            let bias = format!("{name}_bias");
            ExpertProjection::of_all(name, bias, count, sizes, interleaved)
        };
        let (router, up, down) = if self.stacked {
            let up = vec![all("gate_up_proj", [2 * f, d], true)];
            (module(format!("{at}.mlp.router"), count, d, 0, true), up, all("down_proj", [d, f], false))
        } else {
            let up = vec![each("gate_proj", [f, d], 0), each("up_proj", [f, d], f)];
            (module(format!("{at}.mlp.gate"), count, d, 0, false), up, each("down_proj", [d, f], 0))
        };
        Some((f, ExpertsConfig { count, top_k, over_all, router, up, down }))
    }
}
