//! Options for reading rows and turning them into tokens.

use crate::data::bad_rows::BadRows;
use crate::data::dataset::{DEFAULT_MAX_LENGTH, LengthLimits, Overflow};
use crate::data::prompt_template::Template;
use crate::data::rows::{DatasetType, FieldMap};
use crate::error::{Error, Result};
use crate::model::description::ModelConfig;

/// Options for reading rows and turning them into tokens.
///
/// # Examples
/// ```
/// use jointwise::{DataOptions, Template};
/// let options = DataOptions { template: Template::Chat, max_length: Some(512), ..DataOptions::default() };
/// # assert_eq!(options.max_length, Some(512));
/// ```
#[derive(Debug, Clone)]
pub struct DataOptions {
    /// Content that every row must have. The default is a preference, or a text with a label.
    pub purpose: DatasetType,
    /// Text around an instruction. The default goes by each row: the tokenizer's chat template for conversations, the paper's for texts.
    pub template: Template,
    /// Names of fields in the file where they differ from ours.
    pub map: FieldMap,
    /// Treatment of rows that cannot be read.
    pub bad_rows: BadRows,
    /// Longest sequence in tokens. `None`: the model's positions, at most 1024.
    pub max_length: Option<usize>,
    /// Treatment of longer rows.
    pub overflow: Overflow,
    /// Score the last answer of a conversation to imitate alone, not every answer.
    pub last_turn_only: bool,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            purpose: DatasetType::Judgement,
            template: Template::ByRows,
            map: FieldMap::default(),
            bad_rows: BadRows::Error,
            max_length: None,
            overflow: Overflow::Drop,
            last_turn_only: false,
        }
    }
}

impl DataOptions {
    /// Returns the limits for a model.
    ///
    /// # Errors
    /// [`Error::Flag`] for a length that the model does not have.
    ///
    /// # Examples
    /// ```
    /// use jointwise::{DataOptions, Policy};
    /// let policy = Policy::open("models/demo")?;
    /// let limits = DataOptions { max_length: Some(128), ..DataOptions::default() }.limits(policy.description())?;
    /// assert_eq!(limits.max_length, 128);
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    pub fn limits(&self, model: &ModelConfig) -> Result<LengthLimits> {
        let positions = model.max_positions;
        let max_length = self.max_length.unwrap_or(DEFAULT_MAX_LENGTH.min(positions));
        if max_length < 2 || max_length > positions {
            return Err(Error::flag(
                "max-length",
                format!("{max_length} is not in 2 .. {positions}, the model's positions"),
            ));
        }
        Ok(LengthLimits { max_length, overflow: self.overflow })
    }
}
