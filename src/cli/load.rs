//! Builds the decoder of a training run.

use super::session::Model;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::model::decoder::Decoder;
use crate::model::load::{LoadOptions, Trained};
use crate::model::peft::Adapter;
use crate::model::weights::{BaseDtype, Training};
use crate::train::settings::TrainSettings;

/// Loads the policy of a run.
pub fn load(model: &Model, gpu: &Gpu, options: &LoadOptions, keeps_start: bool) -> Result<Decoder> {
    let mut decoder = model.load(gpu, options)?;
    if keeps_start {
        decoder.keep_start(gpu);
    }
    Ok(decoder)
}

/// Returns the options with which a decoder is built for training.
pub fn load_options(
    settings: &TrainSettings,
    base: BaseDtype,
    adapter: Option<&Adapter>,
    n_positions: usize,
) -> LoadOptions {
    LoadOptions {
        trained: if adapter.is_some() { Trained::Lora } else { Trained::Full },
        lora: adapter.map(|a| a.lora.clone()),
        training: Training {
            optim: Some(settings.optim),
            param_dtype: settings.param_dtype,
            saved_dtype: settings.saved_dtype,
            decay_all: settings.decay_all,
        },
        n_positions,
        base,
    }
}
