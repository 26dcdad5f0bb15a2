//! A text that a template has rendered.

use std::ops::Range;

/// A text to tokenise, and what of it is scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedText {
    /// template(I) + R, and what the chat template puts behind.
    pub text: String,
    /// Bytes of the response, or of each of its answers, rising; the last one ends where the text does, unless tags say otherwise.
    pub scored: Vec<Range<usize>>,
    /// Answers (by their number in `scored`) whose prompt is no prefix of the text, each with that prompt: tokens decide where they part.
    pub cut: Vec<(usize, String)>,
}
