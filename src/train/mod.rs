//! Training: steps, learning-rate schedule, gradient accumulation, checkpoints, metrics.

mod across_ranks;
#[cfg(not(target_arch = "wasm32"))]
pub mod checkpoint;
#[cfg(not(target_arch = "wasm32"))]
mod checksum;
pub mod lr_schedule;
pub mod memory_plan;
pub mod metrics;
pub mod outcome;
pub mod reference;
#[cfg(not(target_arch = "wasm32"))]
pub mod run;
pub mod score_store;
pub mod scoring;
pub mod settings;
pub mod similarity;
pub mod state;
pub mod step_estimate;
pub mod step_launches;
pub mod steps;
pub mod synthetic;
pub mod tensorboard;
pub mod trainer;
