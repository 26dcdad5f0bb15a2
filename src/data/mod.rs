//! Rows, templates, tokenising and masks, packing, sampling order.
//!
//! file → [`source`] → [`rows`] → ([`template`], [`chat`], [`tokens`]) → [`dataset`] → ([`order`], [`pack`]) → [`batch`].
pub mod batch;
pub mod chat;
pub mod check;
pub mod comparisons;
pub mod conversation;
pub mod dataset;
mod fields;
pub mod named_templates;
pub mod order;
pub mod pack;
#[cfg(feature = "cli")]
mod parquet;
pub mod prompts;
pub mod remarks;
pub mod rows;
pub mod source;
pub(crate) mod special_tokens;
pub mod template;
pub mod tokens;
mod turns;
mod untrusted;
