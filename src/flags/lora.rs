//! Flags of a new adapter.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::values::parse_layers;
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result};
use crate::model::lora_config::LoraConfig;
use crate::model::peft::{Adapter, differing_part};
use crate::workflow::OpenModel;

/// Values of `--preset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PresetArg {
    /// The JPO paper's adapter (arXiv 2404.00530): R 8, alpha 16 on q_proj, k_proj and v_proj
    Paper,
}

/// Flags of the low-rank adapter that `sft` and `train` make.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct LoraArgs {
    /// Take the defaults of a new adapter from a published recipe
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<PresetArg>,
    /// Rank of a new adapter [default: 16]
    #[arg(long, value_name = "R")]
    pub lora_r: Option<usize>,
    /// Alpha of a new adapter, whose scale is alpha/R [default: 32]
    #[arg(long, value_name = "ALPHA")]
    pub lora_alpha: Option<f64>,
    /// Modules of a new adapter, comma-separated, or all-linear [default: all-linear]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lora_targets: Vec<String>,
    /// Layers of a new adapter, numbered from 0, such as 16-31 or 0,2,8-11 [default: all]
    #[arg(long, value_name = "N-N,..")]
    pub lora_layers: Option<String>,
    /// Modules among --lora-targets that get no adapter
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lora_exclude: Vec<String>,
    /// Modules to train whole beside a new adapter: embed_tokens, lm_head (a tied head stays tied)
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// Tokens, comma-separated, whose embeddings are trained beside a new adapter, such as "<|im_end|>"
    #[arg(long, value_name = "TOKEN,..", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub train_tokens: Vec<String>,
    /// Scale a new adapter by alpha/√R instead of alpha/R (rank-stabilised LoRA)
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rslora: bool,
    /// Probability that a training step of sft drops an element of a layer's input before its adapter [default: 0]
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    pub lora_dropout: Option<f64>,
}

impl LoraArgs {
    /// Resolves the settings of a new adapter, with every default filled in.
    ///
    /// # Errors
    /// [`crate::Error::Flag`] for layers that are not numbers or ranges.
    pub fn config(&self) -> Result<LoraConfig> {
        let d = self.preset.map_or_else(LoraConfig::default, |PresetArg::Paper| LoraConfig::paper());
        Ok(LoraConfig {
            rank: self.lora_r.unwrap_or(d.rank),
            alpha: self.lora_alpha.unwrap_or(d.alpha),
            targets: if self.lora_targets.is_empty() { d.targets } else { self.lora_targets.clone() },
            layers: self.lora_layers.as_deref().map_or(Ok(d.layers), parse_layers)?,
            exclude: self.lora_exclude.clone(),
            rslora: self.rslora,
            modules_to_save: self.modules_to_save.clone(),
            train_tokens: d.train_tokens,
        })
    }
}

impl LoraArgs {
    /// Returns the flags of a new adapter that are set, and do not apply to an adapter that is there already.
    fn of_new_adapter(&self) -> Vec<&'static str> {
        let given = [
            ("preset", self.preset.is_some()),
            ("lora-r", self.lora_r.is_some()),
            ("lora-alpha", self.lora_alpha.is_some()),
            ("lora-targets", !self.lora_targets.is_empty()),
            ("lora-layers", self.lora_layers.is_some()),
            ("lora-exclude", !self.lora_exclude.is_empty()),
            ("modules-to-save", !self.modules_to_save.is_empty()),
            ("train-tokens", !self.train_tokens.is_empty()),
            ("rslora", self.rslora),
        ];
        given.into_iter().filter_map(|(flag, is_set)| is_set.then_some(flag)).collect()
    }

    /// Refuses flags of an adapter where every parameter is trained.
    ///
    /// # Errors
    /// [`Error::Flag`] with the first such flag.
    pub fn refuse_with_full(&self) -> Result<()> {
        let dropout = self.lora_dropout.is_some_and(|p| p > 0.0).then_some("lora-dropout");
        let first = self.of_new_adapter().into_iter().chain(dropout).next();
        first.map_or(Ok(()), |flag| Err(Error::flag(flag, "needs an adapter, and --full trains every parameter")))
    }

    /// Refuses flags of a new adapter whose values differ from the adapter that training goes on from.
    ///
    /// # Errors
    /// [`Error::Flag`] with the flag, its value and the adapter's; those of [`Self::config`].
    pub fn check_existing(&self, model: &OpenModel, adapter: &Adapter) -> Result<()> {
        let flags = self.of_new_adapter();
        if flags.is_empty() {
            return Ok(());
        }
        let wanted = match self.train_tokens.is_empty() {
            true => self.config()?,
            false => self.config_with(&model.tokenizer(Some(adapter))?)?,
        };
        match differing_part(&model.description, adapter, &wanted, &flags)? {
            None => Ok(()),
            Some((flag, has)) => {
                let reason =
                    format!("is for a new adapter, and --adapter {has}: leave it out, or merge that adapter first");
                Err(Error::flag(flag, reason))
            }
        }
    }

    /// Resolves the settings of a new adapter like [`Self::config`], with the ids of `--train-tokens`.
    ///
    /// # Errors
    /// Those of [`Self::config`]; [`Error::Flag`] for a text that is not one token.
    pub fn config_with(&self, tokenizer: &Tokenizer) -> Result<LoraConfig> {
        let id = |text: &String| {
            let id = tokenizer.token_id(text);
            id.ok_or_else(|| Error::flag("train-tokens", format!("`{text}` is not a token of the tokenizer")))
        };
        let train_tokens = self.train_tokens.iter().map(id).collect::<Result<_>>()?;
        Ok(LoraConfig { train_tokens, ..self.config()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(text: &str) -> Result<Vec<usize>> {
        LoraArgs { lora_layers: Some(text.into()), ..LoraArgs::default() }.config().map(|config| config.layers)
    }

    #[test]
    fn layers_are_numbers_and_ranges() {
        assert_eq!(layers("16-19").unwrap(), [16, 17, 18, 19]);
        assert_eq!(layers("8-10, 0,2,9").unwrap(), [0, 2, 8, 9, 10]);
        for wrong in ["", "a", "3-1", "1-", "-1", "0-99999999999", "1,,2", "1.5"] {
            let error = layers(wrong).unwrap_err().to_string();
            assert!(error.contains("--lora-layers") && error.contains("16-31"), "{wrong}: {error}");
        }
    }
}
