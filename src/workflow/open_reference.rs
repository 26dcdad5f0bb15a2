//! References of a training run that are another checkpoint than the policy: a model, or an adapter on the policy's model.

use std::path::Path;
use std::rc::Rc;

use super::evaluated_models::on_hub;
use super::open_model::OpenModel;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::model::decoder::Decoder;
use crate::model::load::LoadOptions;
use crate::model::peft::{self, Adapter};
use crate::train::settings::ReferenceChoice;

/// Reference that was read and verified; a model's weights stay on disk.
pub enum OpenReference {
    /// A model of its own.
    Model(Box<OpenModel>),
    /// An adapter on the policy's model.
    Adapter(Rc<Adapter>),
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
                Ok(Self::Adapter(Rc::new(adapter)))
            }
            false => OpenModel::open_reference(name, policy).map(|model| Self::Model(Box::new(model))),
        }
    }

    /// Opens the adapter of a local folder, where a run is compared with one; `None` for other references, which a memory plan need not open.
    ///
    /// # Errors
    /// Those of [`OpenModel::open_adapter`].
    pub(super) fn local_adapter(reference: &ReferenceChoice, policy: &OpenModel) -> Result<Option<Self>> {
        match reference {
            ReferenceChoice::Model(name) if is_adapter(Path::new(name)) => Self::open(name, policy).map(Some),
            _ => Ok(None),
        }
    }

    /// Loads the reference onto a device, for sequences of at most `n_positions` tokens. An adapter shares the frozen weights of `beside`, a decoder of the
    /// policy's model.
    ///
    /// # Errors
    /// Those of the model and the device.
    pub fn load(&self, policy: &OpenModel, beside: Option<&Decoder>, gpu: &Gpu, n_positions: usize) -> Result<Decoder> {
        let (model, lora) = match self {
            Self::Model(model) => (&**model, None),
            Self::Adapter(adapter) => (policy, Some(adapter.lora.clone())),
        };
        let options = LoadOptions::frozen(model.base, lora, n_positions);
        match (self, beside) {
            (Self::Adapter(_), Some(decoder)) => policy.load_beside(decoder, gpu, &options),
            _ => model.load(gpu, &options),
        }
    }
}

/// Tells whether a folder holds an adapter.
fn is_adapter(folder: &Path) -> bool {
    folder.join(peft::CONFIG).exists()
}
