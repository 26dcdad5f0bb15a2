//! The engine of the page: the same library, the same shaders, the same recordings as the program. A worker calls it (`web`); the page only
//! shows what it says.

pub mod card;
pub mod settings;
pub mod tab;
#[cfg(target_arch = "wasm32")]
mod web;
