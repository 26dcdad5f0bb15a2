//! Layers of Gemma 4: heads by layer type, keys and values that layers share, and per-layer inputs (`Gemma4TextConfig` in transformers'
//! `configuration_gemma4.py`, `Gemma4UnifiedTextConfig` in `configuration_gemma4_unified.py`).

use super::super::description::{KeysValues, PerLayerBranch, PerLayerInputs};
use super::super::families::{FamilySpec, ModelFamily, limit};
use super::{ConfigReader, module, shown};
use crate::error::Result;

/// Sizes of a layer's attention heads: K and E.
type LayerHeads = (usize, usize);

/// Properties that the layers of a Gemma 4 have beside those of other families.
pub(super) struct Gemma4Layers {
    heads: Vec<LayerHeads>,
    keys_values: Vec<KeysValues>,
    d_ff: usize,
    doubles_mlp: bool,
    full: Vec<bool>,
    base_head_dim: usize,
    d_model: usize,
    base: String,
    /// Per-layer inputs, where the model has them.
    pub inputs: Option<PerLayerInputs>,
}

/// Properties of one of these layers.
pub(super) struct Gemma4Layer {
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub keys_values: KeysValues,
    pub d_ff: usize,
    pub per_layer: Option<PerLayerBranch>,
}

impl Gemma4Layers {
    /// Reads the fields. `base`: prefix of tensor names. `windows`: window of each layer.
    pub fn read(
        c: &ConfigReader,
        family: &FamilySpec,
        base: &str,
        [d_model, n_heads, kv, e, d_ff]: [usize; 5],
        windows: &[Option<usize>],
    ) -> Result<Self> {
        c.refuse_of_gemma4(family)?;
        let full: Vec<bool> = windows.iter().map(Option::is_none).collect();
        let keys_as_values = c.flag("attention_k_eq_v", false)?;
        let heads = c.gemma4_heads((kv, e), keys_as_values, &full)?;
        if let Some((i, (kv, _))) = heads.iter().enumerate().find(|(_, (kv, _))| !n_heads.is_multiple_of(*kv)) {
            let reason = format!("{kv} in layer {i} does not divide num_attention_heads = {n_heads}");
            return Err(c.bad("num_key_value_heads", reason));
        }
        let lenders = c.gemma4_lenders(&full)?;
        let of_layer = |(lender, &full): (&Option<usize>, &bool)| match lender {
            Some(lender) => KeysValues::OfLayer(*lender),
            None if full && keys_as_values => KeysValues::KeysAsValues,
            None => KeysValues::Own,
        };
        let keys_values: Vec<KeysValues> = lenders.iter().zip(&full).map(of_layer).collect();
        let inputs = match family.kind {
            ModelFamily::Gemma4 => c.per_layer_inputs(base, d_model, full.len())?,
            _ => None,
        };
        let doubles_mlp = c.flag("use_double_wide_mlp", false)?;
        let (base_head_dim, base) = (e, base.to_string());
        Ok(Self { heads, keys_values, d_ff, doubles_mlp, full, base_head_dim, d_model, base, inputs })
    }

    /// Returns the widths of the heads of full layers and of sliding layers.
    pub fn head_dims(&self) -> [usize; 2] {
        let of = |is_full: bool| {
            let found = self.heads.iter().zip(&self.full).find(|(_, full)| **full == is_full);
            found.map_or(self.base_head_dim, |((_, e), _)| *e)
        };
        [of(true), of(false)]
    }

    /// Returns a layer.
    pub fn layer(&self, i: usize) -> Gemma4Layer {
        let ((n_kv_heads, head_dim), keys_values) = (self.heads[i], self.keys_values[i]);
        let doubled = self.doubles_mlp && matches!(keys_values, KeysValues::OfLayer(_));
        let per_layer = self.inputs.as_ref().map(|inputs| {
            let named = |name: &str| format!("{}.layers.{i}.{name}", self.base);
            PerLayerBranch {
                gate: module(named("per_layer_input_gate"), inputs.width, self.d_model, 0, false),
                projection: module(named("per_layer_projection"), self.d_model, inputs.width, 0, false),
                post_norm: named("post_per_layer_input_norm"),
            }
        });
        Gemma4Layer { n_kv_heads, head_dim, keys_values, d_ff: self.d_ff * if doubled { 2 } else { 1 }, per_layer }
    }
}

impl ConfigReader<'_> {
    /// Refuses what Gemma 4 has and this program does not.
    fn refuse_of_gemma4(&self, family: &FamilySpec) -> Result<()> {
        if family.kind == ModelFamily::Gemma4 && self.flag("enable_moe_block", false)? {
            return Err(self.bad("enable_moe_block", "true is not supported: mixtures of experts of Gemma 4 are not"));
        }
        match self.get("use_bidirectional_attention") {
            // Bidirectional among the tokens of an image, and causal in text.
            None => Ok(()),
            Some(value) if value == "vision" => Ok(()),
            Some(other) => {
                let reason = format!("{} is not supported (\"vision\" is)", shown(other));
                Err(self.bad("use_bidirectional_attention", reason))
            }
        }
    }

    /// Reads the heads of each layer: `per_layer_config` of transformers 5.24, or `global_head_dim` and `num_global_key_value_heads`, which
    /// full layers have.
    fn gemma4_heads(&self, base: LayerHeads, keys_as_values: bool, full: &[bool]) -> Result<Vec<LayerHeads>> {
        let heads = match self.object("per_layer_config")? {
            Some(of_layers) => self.heads_of_layers(&of_layers, base, full.len())?,
            None => {
                let e = self.size("global_head_dim", limit::HEAD_DIM, Some(512))?;
                let kv = match keys_as_values {
                    true => self.size("num_global_key_value_heads", limit::HEADS, Some(base.0))?,
                    false => base.0,
                };
                full.iter().map(|&full| if full { (kv, e) } else { base }).collect()
            }
        };
        // transformers resolves a rotary table from the layers of its type, and layers that share keys have their lender's heads.
        for is_full in [true, false] {
            let mut of_type = heads.iter().zip(full).enumerate().filter(|(_, (_, full))| **full == is_full);
            let Some((first, (one, _))) = of_type.next() else { continue };
            if let Some((other, _)) = of_type.find(|(_, (heads, _))| *heads != one) {
                let reason = format!("layers {first} and {other} have one type, but different heads");
                return Err(self.bad("per_layer_config", reason));
            }
        }
        Ok(heads)
    }

    /// Reads `per_layer_config`.
    fn heads_of_layers(&self, of_layers: &ConfigReader, base: LayerHeads, n_layers: usize) -> Result<Vec<LayerHeads>> {
        let mut heads = vec![base; n_layers];
        for key in of_layers.fields.keys() {
            let layer = key.parse::<usize>().ok().filter(|layer| *layer < n_layers);
            let layer = layer.ok_or_else(|| of_layers.bad(key, format!("is no layer of {n_layers}")))?;
            let Some(own) = of_layers.object(key)? else { continue };
            if let Some(field) = own.fields.keys().find(|f| !["head_dim", "num_key_value_heads"].contains(&f.as_str()))
            {
                return Err(own.bad(field, "is not supported for a single layer"));
            }
            heads[layer] = (
                own.size("num_key_value_heads", limit::HEADS, Some(base.0))?,
                own.size("head_dim", limit::HEAD_DIM, Some(base.1))?,
            );
        }
        Ok(heads)
    }

    /// Reads which layers take keys and values of another one, and of which: the last one of their type before them
    /// (`Gemma4TextConfig.kv_sharing_modes`).
    fn gemma4_lenders(&self, full: &[bool]) -> Result<Vec<Option<usize>>> {
        let n_layers = full.len();
        let bad = |reason: String| self.bad("num_kv_shared_layers", reason);
        let shared = match self.get("num_kv_shared_layers") {
            None => 0,
            Some(value) => {
                let n = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n < n_layers);
                n.ok_or_else(|| bad(format!("expected a whole number below {n_layers}, found {}", shown(value))))?
            }
        };
        let first = n_layers - shared;
        let lender = |i: usize| {
            let of_type = full[..first].iter().rposition(|other| *other == full[i]);
            let missing = || bad(format!("layer {i} has no earlier layer of its type with keys and values"));
            if i < first { Ok(None) } else { of_type.map(Some).ok_or_else(missing) }
        };
        (0..n_layers).map(lender).collect()
    }

    /// Reads the per-layer inputs. `hidden_size_per_layer_input` of 0 means that there are none.
    fn per_layer_inputs(&self, base: &str, d_model: usize, n_layers: usize) -> Result<Option<PerLayerInputs>> {
        let field = "hidden_size_per_layer_input";
        if self.is_null(field) || self.get(field).is_some_and(|width| width.as_u64() == Some(0)) {
            return Ok(None);
        }
        let width = self.size(field, limit::WIDTH, Some(256))?;
        let vocab = self.size("vocab_size", limit::VOCAB, None)?;
        let rows = self.size("vocab_size_per_layer_input", limit::VOCAB, Some(262_144))?;
        if rows < vocab {
            return Err(self.bad("vocab_size_per_layer_input", format!("{rows} is below vocab_size = {vocab}")));
        }
        Ok(Some(PerLayerInputs {
            width,
            embedding: format!("{base}.embed_tokens_per_layer.weight"),
            rows,
            projection: module(format!("{base}.per_layer_model_projection"), n_layers * width, d_model, 0, false),
            norm: format!("{base}.per_layer_projection_norm"),
        }))
    }
}
