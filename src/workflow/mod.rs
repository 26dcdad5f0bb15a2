//! Whole jobs in a few calls: open a model, read preferences, plan the memory, train, score, judge, save. The types below are re-exported from the crate's
//! root. The command line, the demo and studies are callers of this module, as a program of yours is.
//!
//! - [`Policy`]: a model folder or hub id with its tokenizer, and perhaps an adapter;
//! - [`Preferences`]: rows as tokens, by a policy's tokenizer;
//! - [`Recipe`]: what is minimised, at which rate, for how long;
//! - [`Training`]: a run, an iterator over its steps; it gives a [`TunedModel`], which saves itself;
//! - `Gpu::open_best`: a device with cached kernels, which has passed its self-test on this machine.
//!
//! Long work is cached on disk ([`cache_folder`]): compiled kernels, the self-test, reference scores, tokens. Calls block; the parts that a browser
//! can use are async underneath.

#[cfg(feature = "cli")]
pub(crate) mod bug_report;
#[cfg(feature = "native")]
mod cache_folder;
mod data_options;
#[cfg(feature = "cli")]
pub(crate) mod demo_model;
#[cfg(feature = "native")]
mod device;
#[cfg(feature = "native")]
mod device_notes;
#[cfg(feature = "native")]
pub mod evaluated_models;
#[cfg(feature = "native")]
pub mod evaluation;
#[cfg(feature = "native")]
pub mod fitting_changes;
mod generate;
#[cfg(feature = "native")]
mod gguf_model;
#[cfg(feature = "native")]
pub mod job_list;
#[cfg(feature = "native")]
mod judging;
#[cfg(feature = "native")]
pub mod memory_demand;
#[cfg(feature = "native")]
pub mod model_responses;
#[cfg(feature = "native")]
mod online_round;
mod open_model;
#[cfg(feature = "native")]
mod open_reference;
#[cfg(feature = "native")]
mod output_folder;
mod policy;
mod preferences;
mod recipe;
#[cfg(feature = "native")]
pub mod recovery;
#[cfg(feature = "native")]
mod reference_cache;
#[cfg(feature = "native")]
mod row_scores;
#[cfg(feature = "native")]
mod run_facts;
#[cfg(feature = "native")]
mod run_folder;
#[cfg(feature = "native")]
mod save;
#[cfg(feature = "native")]
pub mod self_test_cache;
#[cfg(feature = "native")]
pub mod several_ranks;
#[cfg(feature = "cli")]
mod system_facts;
#[cfg(feature = "native")]
pub mod tokenised_rows;
#[cfg(feature = "native")]
mod training;
#[cfg(feature = "native")]
pub mod tuning_cache;

#[cfg(feature = "native")]
pub use cache_folder::cache_folder;
pub use data_options::DataOptions;
#[cfg(feature = "native")]
pub use device::DeviceOptions;
pub use generate::{GenerateOptions, response_row};
#[cfg(feature = "native")]
pub use gguf_model::{adapter_base, gguf_side_files};
#[cfg(feature = "native")]
pub use judging::{judge_comparisons, write_judging_result};
#[cfg(feature = "native")]
pub use online_round::{OnlineRound, RoundPreferences, most_pairs};
pub use open_model::{ChatTemplateChoice, OpenModel, refuse_quantised, weights_digest};
#[cfg(feature = "native")]
pub use open_reference::OpenReference;
#[cfg(feature = "native")]
pub use output_folder::OutputFolder;
pub use policy::{Policy, PolicyOptions, SequenceScore};
pub use preferences::Preferences;
pub use recipe::{Recipe, Recompute};
#[cfg(feature = "native")]
pub use row_scores::{LossGradients, RowScores};
#[cfg(feature = "native")]
pub use run_folder::RunFolder;
#[cfg(feature = "native")]
pub use save::{TunedModel, objective_text};
#[cfg(feature = "native")]
pub use training::{Training, TrainingOptions, TrainingStep};

/// End of a job that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// The job is done.
    Whole,
    /// The job was stopped. Its work so far is saved, and a resumed job continues from it.
    Interrupted,
}
