//! Cases among whose variants the device chooses.

use super::Case;
use crate::gpu::Variant;

/// Shapes that are alike, and a case of them for every variant that serves, the best guess first.
pub struct Tunable {
    /// As [`crate::gpu::Tuning`] knows it.
    pub class: String,
    /// `None`: the baseline.
    pub cases: Vec<(Option<Variant>, Box<dyn Case>)>,
}
