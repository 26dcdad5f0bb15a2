//! Row of data: its texts, its label, and its location.

use super::conversation::PromptResponse;
use super::source_location::SourceLocation;
use crate::objective::PreferenceLoss;

/// Contents of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowContent {
    /// Two sides, whose instructions may differ.
    Preference {
        /// Preferred side.
        chosen: PromptResponse,
        /// Other side.
        rejected: PromptResponse,
    },
    /// One text to train on.
    Single(PromptResponse),
    /// One text, with a label: desirable or not.
    Labelled(PromptResponse, bool),
    /// Reason why the row cannot be read: a bad row, kept in its place by [`super::bad_rows::BadRows::Skip`].
    Unreadable(String),
}

impl RowContent {
    /// Returns the label of a labelled text; `None` for other rows.
    pub fn label(&self) -> Option<bool> {
        match self {
            Self::Labelled(_, desirable) => Some(*desirable),
            Self::Preference { .. } | Self::Single(_) | Self::Unreadable(_) => None,
        }
    }

    /// Restricts the scored part of single texts to the last answer: `--last-turn-only`.
    pub fn keep_last_turn(&mut self) {
        if let Self::Single(text) | Self::Labelled(text, _) = self {
            text.keep_last_turn();
        }
    }

    /// Returns the row's texts: chosen and rejected, or one; none for a bad row.
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

/// Row with its location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// File and line of the row.
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
    /// Every row must hold a preference, or a labelled text.
    Judgement,
    /// Every row becomes a single text; a preference contributes its chosen side.
    Sft,
    /// Any row, unchanged.
    Any,
}

impl DatasetType {
    /// Returns the purpose of rows for a loss; `None` means supervised fine-tuning.
    pub fn for_loss(preference: Option<&PreferenceLoss>) -> Self {
        match preference {
            None => Self::Sft,
            Some(p) if p.needs_pairs() => Self::Preference,
            Some(_) => Self::Judgement,
        }
    }
}
