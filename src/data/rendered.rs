//! Text that a template has rendered.

use std::ops::Range;

/// Rendered text, with the ranges that are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedText {
    /// Text: template(I) + R, and anything that the chat template prints behind.
    pub text: String,
    /// Byte ranges of the response, or of each of its answers, ascending. The last one ends where the text ends, unless generation tags say
    /// otherwise.
    pub scored: Vec<Range<usize>>,
    /// Answers whose prompt is not a prefix of the text: (index in `scored`, prompt). The start of such an answer is the first token that
    /// differs from the prompt's.
    pub cut: Vec<(usize, String)>,
}
