//! Cases whose variant is chosen for a device by measured times.

use super::Case;
use crate::gpu::Variant;

/// Class of similar shapes, with one case per variant that supports it, the default choice first.
pub struct TunableProduct {
    /// Name of the class in [`crate::gpu::Tuning`].
    pub class: String,
    /// Cases by variant; `None` is the baseline.
    pub cases: Vec<(Option<Variant>, Box<dyn Case>)>,
}
