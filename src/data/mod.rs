//! Data: rows, templates, tokenising and masks, packing, order of rows.
//!
//! file → [`source`] → [`rows`] → ([`prompt_template`], [`chat_template`], [`tokens`]) → [`dataset`] (cached by `token_store`) →
//! ([`order`], [`pack`]) → [`batch`].
pub mod bad_rows;
pub mod batch;
pub mod chat_template;
pub mod check;
pub mod comparisons;
pub mod conversation;
pub mod dataset;
mod field_map;
mod fields;
mod file_ending;
mod file_notes;
mod form_names;
mod forms;
mod json_kind;
pub mod like_trl;
pub mod named_templates;
mod objects;
pub mod order;
pub mod pack;
#[cfg(feature = "native")]
mod parquet;
mod parsed_row;
pub mod prompt_template;
pub mod prompts;
pub mod remarks;
pub mod rendered;
pub mod row;
pub mod rows;
mod sharegpt;
pub mod source;
pub mod source_location;
pub(crate) mod special_tokens;
mod table;
pub mod template_notes;
mod text_start;
#[cfg(not(target_arch = "wasm32"))]
pub mod token_store;
pub mod tokens;
mod turns;
mod untrusted;
mod word_bounds;
