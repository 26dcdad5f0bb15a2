//! Checkpoints whose linear weights are quantised in the files: FP8, MXFP4, and bitsandbytes' NF4. They are read as if the files held floats,
//! so that everything that reads a checkpoint reads them. NF4 is also handed on as it is.

mod content;
mod fp8;
mod method;
mod mxfp4;
mod nf4;

use std::rc::Rc;

use self::content::{DequantisedContent, dequantised};
use super::checkpoint::Checkpoint;
use super::weights::Nf4Tensors;
use crate::error::Result;
use crate::kernels::storage::PackedWeight;

pub use method::QuantMethod;

impl Nf4Tensors for DequantisedContent {
    fn is_nf4(&self, name: &str) -> bool {
        self.nf4(name).is_some_and(nf4::Nf4Tensor::is_packable)
    }
    fn packed(&self, name: &str) -> Result<Option<PackedWeight>> {
        match self.nf4(name).filter(|tensor| tensor.is_packable()) {
            Some(tensor) => tensor.packed(self.source()).map(Some),
            None => Ok(None),
        }
    }
}

/// Reads a checkpoint's quantised tensors as floats: FP8 and MXFP4 as bf16, NF4 in the type that its quantisation names. `method` is that of config.json. Scales and
/// other tensors that belong to a quantised one are then no tensors of the checkpoint. Also returns a remark for the user.
///
/// # Errors
/// [`crate::Error::Tensor`] for a quantised tensor without its scales, or with scales of another shape; [`crate::Error::File`].
pub fn open_quantised(checkpoint: Checkpoint, method: QuantMethod) -> Result<(Checkpoint, String)> {
    let (dir, shown) = (checkpoint.dir().to_path_buf(), checkpoint.dir().display().to_string());
    let notes = checkpoint.notes().to_vec();
    let content = Rc::new(dequantised(checkpoint, &method)?);
    let note = content.note(&shown, &method);
    let floats = Box::new(content::Shared(content.clone()));
    Ok((Checkpoint::from_quantised(&dir, floats, content, notes)?, note))
}
