//! Fields of gpt-oss (`GptOssConfig` in transformers' `configuration_gpt_oss.py`): its activation function, and its rotary table where the
//! file has none.

use serde_json::{Map, Value, json};

use super::super::description::Activation;
use super::ConfigReader;
use crate::error::Result;

/// Returns the rotary table of a configuration without one.
pub(super) fn default_rope() -> Map<String, Value> {
    let table = json!({
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": false,
        "original_max_position_embeddings": 4096,
    });
    table.as_object().cloned().unwrap_or_default()
}

impl ConfigReader<'_> {
    /// Reads the clamped SwiGLU of the experts. As in transformers, `hidden_act` is not read.
    pub(super) fn clamped_swiglu(&self) -> Result<Activation> {
        let limit = self.number("swiglu_limit", Some(7.0))? as f32;
        Ok(Activation::ClampedSwiglu { limit, alpha: self.number("swiglu_alpha", Some(1.702))? as f32 })
    }
}
