//! Layers of LFM2: short convolutions beside attention, and the width of the MLP (`Lfm2Config` in transformers' `configuration_lfm2.py`,
//! `Lfm2MLP` in `modular_lfm2.py`).

use super::super::description::{LayerConfig, ShortConvConfig, TokenMixer};
use super::super::families::limit;
use super::{ConfigReader, module, shown};
use crate::error::Result;

/// Short convolutions of a model.
pub(super) struct ShortConvs {
    /// Which layers have one; the others have attention.
    is_conv: Vec<bool>,
    taps: usize,
    bias: bool,
}

impl ShortConvs {
    /// Returns whether a layer has a short convolution.
    pub fn has(&self, layer: usize) -> bool {
        self.is_conv[layer]
    }

    /// Puts a short convolution in the place of a layer's attention. `at`: prefix of the layer's tensor names.
    pub fn layer(&self, at: &str, d_model: usize, attention: LayerConfig) -> LayerConfig {
        let linear = |name: &str, n_out| module(format!("{at}.conv.{name}"), n_out, d_model, 0, self.bias);
        let conv = ShortConvConfig { taps: self.taps, conv: format!("{at}.conv.conv"), bias: self.bias };
        LayerConfig {
            rope: None,
            q_norm: None,
            k_norm: None,
            qkv: vec![linear("in_proj", 3 * d_model)],
            out: linear("out_proj", d_model),
            mixer: TokenMixer::ShortConv(conv),
            ..attention
        }
    }
}

impl ConfigReader<'_> {
    /// Reads the short convolutions.
    pub(super) fn short_convs(&self, n_layers: usize) -> Result<ShortConvs> {
        let taps = self.size("conv_L_cache", limit::CONV_TAPS, Some(3))?;
        if taps < 2 {
            return Err(self.bad("conv_L_cache", "expected at least 2"));
        }
        Ok(ShortConvs { is_conv: self.conv_layers(n_layers)?, taps, bias: self.flag("conv_bias", false)? })
    }

    /// Reads which layers have a short convolution: `layer_types`, or else `full_attn_idxs`, the numbers of the others.
    fn conv_layers(&self, n_layers: usize) -> Result<Vec<bool>> {
        if let Some(types) = self.get("layer_types") {
            let is_conv = |t: &str| match t {
                "conv" => Some(true),
                "full_attention" => Some(false),
                _ => None,
            };
            return self.each_layer_type(types, n_layers, "full_attention, conv", is_conv);
        }
        let Some(list) = self.get("full_attn_idxs") else { return Ok(vec![false; n_layers]) };
        let numbers = list.as_array().and_then(|list| list.iter().map(serde_json::Value::as_u64).collect());
        let numbers: Vec<u64> = numbers
            .ok_or_else(|| self.bad("full_attn_idxs", format!("expected layers' numbers, found {}", shown(list))))?;
        if let Some(number) = numbers.iter().find(|&&number| number >= n_layers as u64) {
            return Err(self.bad("full_attn_idxs", format!("{number} is no layer of {n_layers}")));
        }
        Ok((0..n_layers as u64).map(|i| !numbers.contains(&i)).collect())
    }

    /// Reads the width of the MLP. `block_ff_dim` wins over `intermediate_size`. Unless `block_auto_adjust_ff_dim` is off, two thirds of it,
    /// times `block_ffn_dim_multiplier`, are rounded up to a multiple of `block_multiple_of`.
    pub(super) fn lfm2_mlp_width(&self) -> Result<usize> {
        let field = if self.get("block_ff_dim").is_some() { "block_ff_dim" } else { "intermediate_size" };
        let size = self.size(field, limit::FEED_FORWARD, None)?;
        if !self.flag("block_auto_adjust_ff_dim", true)? {
            return Ok(size);
        }
        let two_thirds = 2 * size / 3;
        let width = match self.optional("block_ffn_dim_multiplier", Some(1.0))? {
            None => Some(two_thirds),
            Some(multiplier) => {
                let multiple = self.size("block_multiple_of", limit::FEED_FORWARD, Some(256))?;
                // A float that is too large becomes the largest integer, and is refused below.
                let scaled = (multiplier * two_thirds as f64) as usize;
                scaled.div_ceil(multiple).checked_mul(multiple)
            }
        };
        let width = width.filter(|width| (1..=limit::FEED_FORWARD).contains(width));
        width.ok_or_else(|| {
            let reason = format!("{size} gives an MLP of a width that is not in 1 ..= {}", limit::FEED_FORWARD);
            self.bad(field, reason)
        })
    }
}
