//! References of a training run that are another checkpoint than the policy: a model, or an adapter on the policy's model.

use std::path::Path;

use super::evaluated_models::on_hub;
use super::open_model::OpenModel;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::model::decoder::Decoder;
use crate::model::load::{LoadOptions, LoraSpec};
use crate::model::peft::{self, Adapter};
use crate::train::settings::ReferenceChoice;

/// Reference that was read and verified; a model's weights stay on disk.
pub enum OpenReference {
    /// A model of its own.
    Model(Box<OpenModel>),
    /// An adapter on the policy's model.
    Adapter(Box<Adapter>),
}

impl OpenReference {
    /// Opens the checkpoint that a run is compared with: a folder with an adapter on the policy's model, else a model.
    ///
    /// # Errors
    /// Those of [`OpenModel::open`] and [`OpenModel::open_adapter`]; [`Error::Flag`] where a model's vocabulary is not the policy's.
    pub fn open(name: &str, policy: &OpenModel) -> Result<Self> {
        let as_reference = |error| match error {
            Error::Flag { flag: "adapter" | "checkpoint" | "model", reason } => Error::flag("reference", reason),
            other => other,
        };
        // An id on the hub may be an adapter's or a model's: its files tell.
        let fetched = if Path::new(name).exists() { None } else { on_hub(name).transpose().map_err(as_reference)? };
        let folder = fetched.unwrap_or_else(|| name.into());
        match is_adapter(&folder) {
            true => {
                let adapter = policy.open_adapter(&folder).map_err(as_reference)?;
                Ok(Self::Adapter(Box::new(adapter)))
            }
            false => OpenModel::open_reference(name, policy).map(|model| Self::Model(Box::new(model))),
        }
    }

    /// Loads the reference onto a device, for sequences of at most `n_positions` tokens.
    ///
    /// # Errors
    /// Those of the model and the device.
    pub fn load(&self, policy: &OpenModel, gpu: &Gpu, n_positions: usize) -> Result<Decoder> {
        match self {
            Self::Model(model) => model.load(gpu, &LoadOptions::frozen(model.base, None, n_positions)),
            Self::Adapter(adapter) => {
                policy.load(gpu, &LoadOptions::frozen(policy.base, Some(adapter.lora.clone()), n_positions))
            }
        }
    }

    /// Returns the adapter of which the policy can keep a copy beside its own, because both have the same modules and ranks. The model is then in memory once.
    pub fn beside(&self, policy: Option<&Adapter>) -> Option<&Adapter> {
        let (Self::Adapter(adapter), Some(policy)) = (self, policy) else { return None };
        let (theirs, ours) = (&adapter.lora, &policy.lora);
        let sizes = |lora: &LoraSpec| -> Vec<(String, usize, usize)> {
            lora.modules.iter().map(|(name, (a, b))| (name.clone(), a.len(), b.len())).collect()
        };
        let is_plain = !theirs.replaces_weights() && !ours.replaces_weights();
        (is_plain && sizes(theirs) == sizes(ours)).then_some(&**adapter)
    }
}

/// Tells whether a folder holds an adapter.
fn is_adapter(folder: &Path) -> bool {
    folder.join(peft::CONFIG).exists()
}

/// Tells whether a choice is a local folder with an adapter.
pub(super) fn chooses_adapter(choice: &ReferenceChoice) -> bool {
    matches!(choice, ReferenceChoice::Model(name) if is_adapter(Path::new(name)))
}
