//! Rows, templates, tokenising and masks, packing, sampling order.
//!
//! file → [`source`] → [`rows`] → ([`template`], [`chat`], [`tokens`]) → [`dataset`] (kept by `token_store`) → ([`order`], [`pack`]) → [`batch`].
pub mod bad_rows;
pub mod batch;
pub mod chat;
pub mod check;
pub mod comparisons;
pub mod conversation;
pub mod dataset;
mod field_map;
mod fields;
mod file_notes;
mod forms;
pub mod like_trl;
pub mod named_templates;
mod objects;
pub mod order;
pub mod pack;
#[cfg(feature = "cli")]
mod parquet;
pub mod prompts;
pub mod remarks;
pub mod rows;
mod sharegpt;
pub mod source;
pub(crate) mod special_tokens;
mod synonyms;
mod table;
pub mod template;
mod text_start;
#[cfg(not(target_arch = "wasm32"))]
pub mod token_store;
pub mod tokens;
mod turns;
mod untrusted;
mod word_bounds;
