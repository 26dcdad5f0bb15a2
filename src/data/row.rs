//! A row: its texts, its label, and where it was read.

use super::conversation::PromptResponse;
use super::source_location::SourceLocation;
use crate::objective::PreferenceLoss;

/// Contents of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowContent {
    /// Two sides; their instructions may differ.
    Preference {
        /// Preferred.
        chosen: PromptResponse,
        /// The other one.
        rejected: PromptResponse,
    },
    /// One text to imitate.
    Single(PromptResponse),
    /// One text, desirable or not.
    Labelled(PromptResponse, bool),
    /// Nothing that can be read, and why: a bad row that [`super::bad_rows::BadRows::Skip`] keeps in its place.
    Unreadable(String),
}

impl RowContent {
    /// A text's label; none of other rows.
    pub fn label(&self) -> Option<bool> {
        match self {
            Self::Labelled(_, desirable) => Some(*desirable),
            Self::Preference { .. } | Self::Single(_) | Self::Unreadable(_) => None,
        }
    }

    /// Scores the last answer of single texts alone: `--last-turn-only`.
    pub fn keep_last_turn(&mut self) {
        if let Self::Single(text) | Self::Labelled(text, _) = self {
            text.keep_last_turn();
        }
    }

    /// Returns the texts: chosen and rejected, or one; none of a bad row.
    pub fn texts(&self) -> Vec<&PromptResponse> {
        match self {
            Self::Preference { chosen, rejected } => vec![chosen, rejected],
            Self::Single(text) | Self::Labelled(text, _) => vec![text],
            Self::Unreadable(_) => Vec::new(),
        }
    }

    pub(super) fn texts_mut(&mut self) -> Vec<&mut PromptResponse> {
        match self {
            Self::Preference { chosen, rejected } => vec![chosen, rejected],
            Self::Single(text) | Self::Labelled(text, _) => vec![text],
            Self::Unreadable(_) => Vec::new(),
        }
    }
}

/// A row and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// File and line.
    pub place: SourceLocation,
    /// Contents of the row.
    pub content: RowContent,
}

/// Purpose that the rows serve.
///
/// # Examples
/// ```
/// use jointwise::{DataOptions, DatasetType};
/// let options = DataOptions { purpose: DatasetType::Sft, ..DataOptions::default() };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatasetType {
    /// Every row must hold a preference.
    Preference,
    /// Every row must hold a preference, or a text with a label.
    Judgement,
    /// Every row becomes a single text: a preference gives its chosen side.
    Sft,
    /// Any row, unchanged.
    Any,
}

impl DatasetType {
    /// Returns what rows must hold for a loss; `None`: supervised fine-tuning.
    pub fn for_loss(preference: Option<&PreferenceLoss>) -> Self {
        match preference {
            None => Self::Sft,
            Some(p) if p.needs_pairs() => Self::Preference,
            Some(_) => Self::Judgement,
        }
    }
}
