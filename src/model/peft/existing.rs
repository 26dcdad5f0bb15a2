//! Comparison of an adapter that was read with settings of a new one.

use std::collections::BTreeSet;

use super::super::description::ModelConfig;
use super::Adapter;
use super::new_adapter::new_config;
use super::whole_modules::tensor_of;
use crate::error::Result;
use crate::model::lora_config::LoraConfig;

/// Flags that select modules.
const SELECTING: [&str; 3] = ["lora-targets", "lora-layers", "lora-exclude"];

/// Returns the first of `flags` whose setting in `wanted` differs from the adapter's, with what the adapter has; `None` where all are the same. `flags` are
/// names of command-line flags; settings of flags that are not among them are not compared.
///
/// # Errors
/// Those of [`new_config`], for a setting that no adapter of this model can have.
pub fn differing_part(
    d: &ModelConfig,
    adapter: &Adapter,
    wanted: &LoraConfig,
    flags: &[&'static str],
) -> Result<Option<(&'static str, String)>> {
    let (_, selected) = new_config(d, wanted, "")?;
    let given = |flag: &str| flags.contains(&flag);
    let is_preset = given("preset");
    let of_preset = |flag| if given(flag) { Some(flag) } else { is_preset.then_some("preset") };
    let config = &adapter.config;
    if let Some(flag) = of_preset("lora-r").filter(|_| config.rank != wanted.rank) {
        return Ok(Some((flag, format!("has R {}", config.rank))));
    }
    if let Some(flag) = of_preset("lora-alpha").filter(|_| config.alpha != wanted.alpha) {
        return Ok(Some((flag, format!("has alpha {}", config.alpha))));
    }
    if given("rslora") && !config.rslora {
        return Ok(Some(("rslora", "has the scale alpha/R".into())));
    }
    if let Some(flag) = SELECTING.into_iter().find(|flag| given(flag)).or(of_preset("lora-targets")) {
        let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_string();
        let has: BTreeSet<&str> = adapter.lora.modules.keys().map(String::as_str).collect();
        let kinds: BTreeSet<String> = has.iter().map(|name| last(name)).collect();
        // Layers and exclusions without targets are those of the adapter's own kinds of modules.
        let all_kinds = of_preset("lora-targets").is_some();
        let names = selected.iter().map(|module| module.name.as_str());
        let wanted: BTreeSet<&str> = names.filter(|name| all_kinds || kinds.contains(&last(name))).collect();
        if has != wanted {
            let (n, kinds) = (has.len(), kinds.into_iter().collect::<Vec<_>>().join(", "));
            return Ok(Some((flag, format!("is on {n} modules ({kinds})"))));
        }
    }
    if given("modules-to-save") {
        let wanted: BTreeSet<String> = wanted.modules_to_save.iter().filter_map(|name| tensor_of(d, name)).collect();
        if !wanted.iter().eq(adapter.lora.whole.keys()) {
            let names = adapter.lora.whole.keys().cloned().collect::<Vec<_>>().join(", ");
            let has = if names.is_empty() { "has no whole modules".into() } else { format!("has {names}") };
            return Ok(Some(("modules-to-save", has)));
        }
    }
    if given("train-tokens") {
        let has: BTreeSet<u32> = adapter.lora.tokens.iter().flat_map(|tokens| tokens.ids.iter().copied()).collect();
        if has != wanted.train_tokens.iter().copied().collect() {
            return Ok(Some(("train-tokens", format!("has {} trained tokens", has.len()))));
        }
    }
    Ok(None)
}
