//! Rotary tables: `rope_scaling` with `rope_theta` (transformers 4), or `rope_parameters` (transformers 5).

use serde_json::Map;

use super::super::description::{QueryScale, RopeConfig, RopeScaling};
use super::super::families::{FamilySpec, ModelFamily, OLMO3_THETA, Windows, limit};
use super::{ConfigReader, gpt_oss, shown};
use crate::error::Result;

/// Fields that every rotary table may have.
const COMMON: [&str; 5] =
    ["rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"];

/// Defaults of a model's rotary tables.
#[derive(Clone, Copy)]
struct TableDefaults<'f> {
    family: &'f FamilySpec,
    theta: f64,
    partial: f64,
    head_dim: usize,
    max_positions: usize,
}

/// Returns the longest sequence, in tokens, for which YaRN scales a table.
pub(super) fn longest(rope: &RopeConfig) -> Option<usize> {
    match rope.scaling {
        RopeScaling::Yarn { factor, original_max_positions, .. } => {
            Some(((factor * original_max_positions) as usize).min(limit::POSITIONS))
        }
        _ => None,
    }
}

/// Returns the factor 0.1·m·ln(s) + 1 on cos and sin of YaRN: `get_mscale` in `_compute_yarn_parameters`.
fn yarn_magnitude(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

impl ConfigReader<'_> {
    /// Reads numbers above 0, of which there must be `n`.
    fn numbers(&self, field: &str, n: usize) -> Result<Vec<f64>> {
        let list = self.get(field).ok_or_else(|| self.bad(field, "is missing"))?;
        let numbers = list.as_array().filter(|list| list.len() == n);
        let numbers = numbers.and_then(|list| list.iter().map(|v| v.as_f64().filter(|x| *x > 0.0)).collect());
        numbers.ok_or_else(|| self.bad(field, format!("expected {n} numbers above 0, found {}", shown(list))))
    }

    /// Reads a number above 0; null, 0 and an absent field give `None`, as in transformers.
    fn nonzero(&self, field: &str) -> Result<Option<f64>> {
        match self.get(field) {
            None => Ok(None),
            Some(value) if value.as_f64() == Some(0.0) => Ok(None),
            Some(_) => self.number(field, None).map(Some),
        }
    }

    /// Reads a rotary table from `own`, an object of `rope_scaling` or `rope_parameters`, or the unscaled table where there is none.
    fn rope(&self, own: Option<&ConfigReader>, defaults: &TableDefaults) -> Result<RopeConfig> {
        let none = Map::new();
        let none = ConfigReader { path: self.path, at: String::new(), fields: &none };
        let own = own.unwrap_or(&none);
        let &TableDefaults { family, head_dim, max_positions, .. } = defaults;
        let phi = family.kind == ModelFamily::Phi3;
        let kind = match own.text("rope_type")?.or(own.text("type")?).unwrap_or("default") {
            // Older names, as in `Phi3Config`.
            "su" | "yarn" if phi => "longrope",
            kind => kind,
        };
        let theta = own.number("rope_theta", Some(defaults.theta))?;
        let partial = own.number("partial_rotary_factor", Some(defaults.partial))?;
        let proportional = kind == "proportional" && family.kind.is_gemma4();
        let rotary_dim = if proportional { head_dim } else { (head_dim as f64 * partial) as usize };
        if partial > 1.0 || rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            let reason =
                format!("{rotary_dim} rotating dimensions of {head_dim}: expected an even number, at most all");
            return Err(if partial == 1.0 {
                self.bad("head_dim", reason)
            } else {
                own.bad("partial_rotary_factor", reason)
            });
        }
        if rotary_dim != head_dim && family.partial_rotary.is_none() {
            return Err(self.bad("partial_rotary_factor", "is not supported for this family"));
        }
        // The outer field comes first, as in `standardize_rope_params`.
        let original = |field: &str| match self.get(field) {
            Some(_) => self.size(field, limit::POSITIONS, None),
            None => own.size(field, limit::POSITIONS, Some(max_positions)),
        };
        let original = || original("original_max_position_embeddings");
        let known: &[&str] = match kind {
            "default" => &[],
            "linear" => &["factor"],
            "llama3" => &["factor", "low_freq_factor", "high_freq_factor"],
            "yarn" => &["factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"],
            "proportional" if proportional => &["factor"],
            "longrope" if phi => &["factor", "attention_factor", "short_factor", "long_factor"],
            "longrope" => return Err(own.bad("rope_type", "`longrope` is supported for Phi3ForCausalLM only")),
            other => {
                let reason = format!(
                    "`{other}` is not supported (default, linear, llama3, yarn, longrope are; Gemma 4 also has proportional)"
                );
                return Err(own.bad("rope_type", reason));
            }
        };
        let ministral: &[&str] = match family.kind {
            ModelFamily::Ministral3 => &["llama_4_scaling_beta", "max_position_embeddings"],
            _ => &[],
        };
        // Text has equal positions along all axes of M-RoPE, which makes it plain RoPE.
        let qwen: &[&str] = match family.kind {
            ModelFamily::Qwen35 => &["mrope_section", "mrope_interleaved"],
            _ => &[],
        };
        let is_known = |name: &str| [&COMMON, known, ministral, qwen].iter().any(|list| list.contains(&name));
        if let Some(name) = own.fields.keys().find(|name| !is_known(name) && own.get(name).is_some()) {
            return Err(own.bad(name, format!("is not supported with rope type `{kind}`")));
        }
        let scaling = match kind {
            "linear" => RopeScaling::Linear { factor: own.number("factor", None)? },
            "llama3" => RopeScaling::Llama3 {
                factor: own.number("factor", None)?,
                low: own.number("low_freq_factor", None)?,
                high: own.number("high_freq_factor", None)?,
                original_max_positions: own.number("original_max_position_embeddings", None)?,
            },
            "yarn" => self.yarn(own, family, theta, original()?, max_positions)?,
            "proportional" => RopeScaling::Proportional {
                // As in `_compute_proportional_rope_parameters`.
                rotating_pairs: (partial * head_dim as f64 / 2.0) as usize,
                factor: own.number("factor", Some(1.0))?,
            },
            "longrope" => self.long_rope(own, rotary_dim / 2, original()?, max_positions)?,
            _ => RopeScaling::Default,
        };
        if let RopeScaling::Llama3 { low, high, .. } = scaling
            && high <= low
        {
            return Err(own.bad("high_freq_factor", format!("{high} is not above low_freq_factor = {low}")));
        }
        let query_scale = match family.kind {
            ModelFamily::Ministral3 => Some(QueryScale {
                beta: own.number("llama_4_scaling_beta", None)?,
                original_max_positions: own.number("original_max_position_embeddings", None)?,
            }),
            _ => None,
        };
        Ok(RopeConfig { theta, rotary_dim, interleaved: family.interleaved, scaling, query_scale })
    }

    /// Reads YaRN's parameters, as `_compute_yarn_parameters` in transformers' `modeling_rope_utils.py` does.
    fn yarn(
        &self,
        own: &ConfigReader,
        family: &FamilySpec,
        theta: f64,
        original: usize,
        max_positions: usize,
    ) -> Result<RopeScaling> {
        if theta <= 1.0 {
            return Err(
                self.bad("rope_theta", format!("expected a number above 1 with rope type `yarn`, found {theta}"))
            );
        }
        let truncate = own.flag("truncate", true)?;
        if !truncate && family.kind == ModelFamily::Olmo3 {
            return Err(own.bad("truncate", "false is not supported for this family: transformers ignores it"));
        }
        let original_max_positions = original as f64;
        let ratio = own.is_null("factor").then(|| max_positions as f64 / original_max_positions);
        let factor = own.number("factor", ratio)?;
        let attention_factor = match own.nonzero("attention_factor")? {
            Some(given) => given,
            None => match (own.nonzero("mscale")?, own.nonzero("mscale_all_dim")?) {
                (Some(mscale), Some(all)) => yarn_magnitude(factor, mscale) / yarn_magnitude(factor, all),
                _ => yarn_magnitude(factor, 1.0),
            },
        };
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: own.nonzero("beta_fast")?.unwrap_or(32.0),
            beta_slow: own.nonzero("beta_slow")?.unwrap_or(1.0),
            truncate,
            original_max_positions,
            attention_factor,
        })
    }

    /// Reads LongRoPE's parameters, as `_compute_longrope_parameters` in transformers' `modeling_rope_utils.py` does.
    fn long_rope(
        &self,
        own: &ConfigReader,
        n_frequencies: usize,
        original: usize,
        max_positions: usize,
    ) -> Result<RopeScaling> {
        if original < 2 {
            return Err(self.bad("original_max_position_embeddings", "expected at least 2 with rope type `longrope`"));
        }
        let factor = own.number("factor", Some(max_positions as f64 / original as f64))?;
        let magnitude = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
        Ok(RopeScaling::LongRope {
            short: own.numbers("short_factor", n_frequencies)?,
            long: own.numbers("long_factor", n_frequencies)?,
            original_max_positions: original,
            attention_factor: own.nonzero("attention_factor")?.unwrap_or(magnitude),
        })
    }

    /// Reads the rotary tables of Gemma 4: that of full layers and that of sliding layers, whose heads have these widths.
    pub(super) fn gemma4_ropes(
        &self,
        family: &FamilySpec,
        [full_dim, sliding_dim]: [usize; 2],
        max_positions: usize,
    ) -> Result<Vec<RopeConfig>> {
        let defaults = TableDefaults { family, theta: 1e4, partial: 1.0, head_dim: sliding_dim, max_positions };
        let full = TableDefaults { theta: 1e6, head_dim: full_dim, ..defaults };
        let Some(parameters) = self.object("rope_parameters")? else {
            let sliding = self.rope(None, &defaults)?;
            // `default_rope_params` in `Gemma4TextConfig.__post_init__`.
            let rotating_pairs = full_dim / 8;
            let scaling = RopeScaling::Proportional { rotating_pairs, factor: 1.0 };
            return Ok(vec![
                RopeConfig { theta: full.theta, rotary_dim: full_dim, scaling, ..sliding.clone() },
                sliding,
            ]);
        };
        let table = |name: &str, defaults: &TableDefaults| match parameters.object(name)? {
            Some(own) => self.rope(Some(&own), defaults),
            None => Err(parameters.bad(name, "is missing")),
        };
        Ok(vec![table("full_attention", &full)?, table("sliding_attention", &defaults)?])
    }

    /// Reads the rotary tables of a model: one, or for Gemma 3 and OLMo 3 one for full layers and one for sliding layers.
    pub(super) fn ropes(&self, family: &FamilySpec, head_dim: usize, max_positions: usize) -> Result<Vec<RopeConfig>> {
        let partial = self.number("partial_rotary_factor", Some(family.partial_rotary.unwrap_or(1.0)))?;
        let theta = self.number("rope_theta", Some(family.theta))?;
        let defaults = TableDefaults { family, theta, partial, head_dim, max_positions };
        let (scaling, parameters) = (self.object("rope_scaling")?, self.object("rope_parameters")?);
        if let (Some(_), Some(_)) = (&scaling, &parameters) {
            return Err(self.bad("rope_scaling", "conflicts with `rope_parameters`: remove one of the two"));
        }
        let nested = parameters.as_ref().is_some_and(|p| p.fields.contains_key("full_attention"));
        let has_one_table = matches!(family.kind, ModelFamily::Gemma2 | ModelFamily::GptOss);
        if matches!(family.windows, Windows::ExceptEvery(..)) && !has_one_table {
            let (mut full, mut sliding) = (scaling, None);
            if let Some(p) = &parameters {
                let stray = p.fields.keys().find(|k| !["full_attention", "sliding_attention"].contains(&k.as_str()));
                if let Some(stray) = stray {
                    return Err(p.bad(stray, "expected entries `full_attention` and `sliding_attention` only"));
                }
                (full, sliding) = (p.object("full_attention")?, p.object("sliding_attention")?);
            }
            let sliding_theta = match family.kind {
                ModelFamily::Gemma3 => self.number("rope_local_base_freq", Some(1e4))?,
                _ if theta != OLMO3_THETA => {
                    let reason = format!(
                        "{theta} is read differently by transformers 4 and 5: give `rope_parameters` for each layer type"
                    );
                    return Err(self.bad("rope_theta", reason));
                }
                _ => theta,
            };
            return Ok(vec![
                self.rope(full.as_ref(), &defaults)?,
                self.rope(sliding.as_ref(), &TableDefaults { theta: sliding_theta, ..defaults })?,
            ]);
        }
        if nested {
            return Err(self.bad("rope_parameters", "one rotary table a layer type is not supported for this family"));
        }
        if let Some(p) = &parameters
            && let (Some(a), Some(b)) = (self.get("rope_theta"), p.get("rope_theta"))
            && a.as_f64() != b.as_f64()
        {
            return Err(self.bad("rope_theta", format!("{a} contradicts `rope_parameters.rope_theta`, {b}")));
        }
        let default = if family.kind == ModelFamily::GptOss { gpt_oss::default_rope() } else { Map::new() };
        let default = ConfigReader { path: self.path, at: String::new(), fields: &default };
        Ok(vec![self.rope(Some(&scaling.or(parameters).unwrap_or(default)), &defaults)?])
    }
}
