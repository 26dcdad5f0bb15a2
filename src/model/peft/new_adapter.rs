//! New adapters: their configuration, checked against the model, and their initial values.

use super::super::description::{LinearSpec, ModelConfig};
use super::super::load::{LoraSpec, linear_modules};
use super::super::side_files::SideFiles;
use super::super::trained_tokens::TrainedTokensSpec;
use super::config::{AdapterConfig, MAX_RANK};
use super::targets::LoraTargets;
use super::whole_modules::{embedding_name, known_names, rows_name, tensor_of, written_names};
use super::{Adapter, available, select};
use crate::error::{Error, Result};
use crate::model::lora_config::LoraConfig;
use crate::rng::Rng;
use crate::validate::positive;

impl Adapter {
    /// Creates a new adapter: A is uniform in ±1/√n_in (PEFT's Kaiming with a = √5), and B is zero, so the adapter changes nothing yet.
    ///
    /// # Errors
    /// Those of [`new_config`].
    pub fn new(d: &ModelConfig, settings: &LoraConfig, base: &str, seed: u64) -> Result<Self> {
        let (config, targeted) = new_config(d, settings, base)?;
        let mut rng = Rng::new(seed, 0x10ca);
        let mut lora = LoraSpec { rank: settings.rank, scale: config.scale(), ..LoraSpec::default() };
        for module in targeted {
            let bound = 1.0 / (module.n_in as f32).sqrt();
            let a = (0..settings.rank * module.n_in).map(|_| (2.0 * rng.next_f32() - 1.0) * bound).collect();
            lora.modules.insert(module.name.clone(), (a, vec![0.0; module.n_out * settings.rank]));
        }
        lora.whole = settings.modules_to_save.iter().filter_map(|name| Some((tensor_of(d, name)?, None))).collect();
        if !settings.train_tokens.is_empty() {
            let (ids, name) = (settings.train_tokens.clone(), rows_name(d));
            lora.tokens = Some(TrainedTokensSpec { ids, name, rows: None });
        }
        Ok(Self { lora, config, notes: Vec::new(), side: SideFiles::default(), digest: String::new() })
    }
}

/// Checks a new adapter's configuration. Returns it with the modules that it selects.
///
/// # Errors
/// [`Error::Flag`] for a target or an exclusion that matches no module, a layer that the model does not have, or a rank or alpha out of
/// range.
pub fn new_config<'d>(
    d: &'d ModelConfig,
    settings: &LoraConfig,
    base: &str,
) -> Result<(AdapterConfig, Vec<&'d LinearSpec>)> {
    if !(1..=MAX_RANK).contains(&settings.rank) {
        return Err(Error::flag("lora-r", format!("expected 1 ..= {MAX_RANK}, found {}", settings.rank)));
    }
    positive("lora-alpha", settings.alpha)?;
    let n_layers = d.layers.len();
    if let Some(layer) = settings.layers.iter().find(|&&layer| layer >= n_layers) {
        let reason = format!("{layer} is not a layer of this model, which has 0-{}", n_layers.saturating_sub(1));
        return Err(Error::flag("lora-layers", reason));
    }
    let mut targets = LoraTargets::typed(&settings.targets);
    let (named, absent) = match &targets {
        LoraTargets::Names(names) => select(d, names),
        LoraTargets::AllLinear | LoraTargets::Pattern(_) => (linear_modules(d).collect(), Vec::new()),
    };
    if let Some(target) = absent.first() {
        let reason = format!("`{target}` matches no module; this model has {}", available(d));
        return Err(Error::flag("lora-targets", reason));
    }
    if named.is_empty() {
        return Err(Error::flag("lora-targets", format!("names no module; this model has {}", available(d))));
    }
    let (excluded, unfit) = select(d, &settings.exclude);
    if let Some(name) = unfit.first() {
        let reason = format!("`{name}` matches no module; this model has {}", available(d));
        return Err(Error::flag("lora-exclude", reason));
    }
    // In a model with experts, PEFT's `all-linear` includes these.
    if targets == LoraTargets::AllLinear && (!settings.layers.is_empty() || d.has_experts()) {
        targets = LoraTargets::listed(named.iter().copied());
    }
    if d.wrapped {
        let kept = named.iter().copied().filter(|m| !excluded.iter().any(|x| x.name == m.name));
        targets = LoraTargets::in_language_model(&kept.collect::<Vec<_>>(), &settings.layers);
    }
    if let Some(name) = settings.modules_to_save.iter().find(|name| tensor_of(d, name).is_none()) {
        let reason = format!("`{name}` is not supported; this model has {}", known_names(d));
        return Err(Error::flag("modules-to-save", reason));
    }
    let ids = &settings.train_tokens;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= d.vocab) {
        return Err(Error::flag("train-tokens", format!("{id} is not a token of this model, which has {}", d.vocab)));
    }
    if let Some(id) = ids.iter().enumerate().find_map(|(i, id)| ids[..i].contains(id).then_some(id)) {
        return Err(Error::flag("train-tokens", format!("token {id} is named twice")));
    }
    if !ids.is_empty() && !settings.modules_to_save.is_empty() {
        return Err(Error::flag("train-tokens", "cannot be used with --modules-to-save, which trains whole matrices"));
    }
    let mut config = AdapterConfig::new(settings, targets, base);
    config.tokens = (!ids.is_empty()).then(|| (embedding_name(d).into(), ids.clone()));
    config.modules_to_save = written_names(d, &settings.modules_to_save);
    config.ties = d.tied && !config.modules_to_save.is_empty();
    let mut targeted = Vec::with_capacity(named.len());
    for module in named {
        if config.selects(&module.name).map_err(|(_, reason)| Error::flag("lora-targets", reason))? {
            targeted.push(module);
        }
    }
    match targeted.is_empty() {
        true => Err(Error::flag("lora-exclude", "leaves no module that --lora-targets names")),
        false => Ok((config, targeted)),
    }
}
