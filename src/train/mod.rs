//! Loop, schedule, accumulation, checkpoint and resume, metrics.

#[cfg(not(target_arch = "wasm32"))]
pub mod checkpoint;
#[cfg(not(target_arch = "wasm32"))]
mod checksum;
pub mod metrics;
pub mod outcome;
pub mod reference;
pub mod report;
#[cfg(not(target_arch = "wasm32"))]
pub mod run;
pub mod schedule;
pub mod score_store;
pub mod settings;
pub mod similarity;
pub mod state;
pub mod steps;
pub mod synthetic;
pub mod tensorboard;
pub mod trainer;
