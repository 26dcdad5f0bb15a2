//! Exchange among the ranks of a data parallel run, through the hosts' memory: sums of gradients, shares of scoring, and the training state.

pub mod exchange;
#[cfg(not(target_arch = "wasm32"))]
mod same_state;
pub mod shares;

#[cfg(not(target_arch = "wasm32"))]
pub use same_state::{check_same_state, send_state};
