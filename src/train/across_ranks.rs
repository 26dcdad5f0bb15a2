//! Exchange among the ranks of a data parallel run, through the hosts' memory: sums of gradients, and the training state.

#[cfg(not(target_arch = "wasm32"))]
mod same_state;

#[cfg(not(target_arch = "wasm32"))]
pub use same_state::{check_same_state, send_state};

use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernels::adamw::ParamBucket;
use crate::ranks::Ranks;

/// Replaces the gradients on every rank's device by their sums over all ranks. Returns false, without an exchange of the rest, where a gradient of this
/// rank is not finite.
///
/// # Errors
/// [`Error::Gpu`].
pub async fn sum_gradients(gpu: &Gpu, pages: &[ParamBucket], ranks: Ranks) -> Result<bool> {
    for page in pages {
        let mut values = gpu.read::<f32>(&[&page.grads]).await?.concat();
        if values.iter().any(|value| !value.is_finite()) {
            return Ok(false);
        }
        ranks.all_sum_in_rank_order(&mut values);
        gpu.write(&page.grads, &values);
    }
    Ok(true)
}
