//! Engine of the page. It uses the library of the command-line program, with its shaders and its recordings. A worker calls it through `web`,
//! and the page shows the results.

pub mod card;
pub mod checks;
pub mod saved;
pub mod settings;
pub mod step_kernels;
pub mod tab;
#[cfg(target_arch = "wasm32")]
mod web;
