//! Flags of data sets, and of `check`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::data::bad_rows::{BadRowLimit, BadRows};
use crate::data::dataset::Overflow;
use crate::data::prompt_template::Template;
use crate::data::rows::{DatasetType, FieldMap};
use crate::error::{Error, Result};
use crate::model::weights::BaseDtype;
use crate::workflow::{DataOptions, PolicyOptions};

/// Flags that choose rows and turn them into tokens.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct DataArgs {
    /// Rows: a file (JSONL, JSON, CSV, TSV, also compressed; Parquet), a folder, a pattern ('data/*.parquet'), - for standard input, or a Hugging Face data set
    /// (hf://datasets/org/name[:split] or .../file); repeatable
    #[arg(long, value_name = "FILE|FOLDER", num_args = 1..)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Prompt template: paper, paper-tldr, chat, none, plain, or a text with {instruction}; by-rows takes chat for conversations and paper for texts, trl takes
    /// chat for conversations and plain for texts [default: by-rows]
    #[arg(long)]
    pub template: Option<String>,
    /// Chat template: your own Jinja file, or the name of a template that the tokenizer has; implies --template chat [default: the tokenizer's default]
    #[arg(long, value_name = "FILE|NAME")]
    pub chat_template: Option<String>,
    /// Learn only the last answer of each conversation in `messages` rows, instead of every answer
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub last_turn_only: bool,
    /// Time that chat templates print, in seconds since 1970, where an earlier run or a study set it
    #[arg(skip)]
    #[serde(skip)]
    pub time: Option<u64>,
    /// Read the field FIELD from the file's field NAME; an empty NAME leaves the field out; repeatable
    #[arg(long, value_name = "FIELD=NAME")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub map: Vec<String>,
    /// Treatment of rows that cannot be read, or that do not fit the template [default: error]
    #[arg(long, value_enum)]
    pub on_bad_row: Option<BadRowArg>,
    /// Most rows that --on-bad-row skip may leave out: a fraction of all rows (1%, 0.01) or a count (20) [default: 1%]
    #[arg(long, value_name = "PART|COUNT", allow_hyphen_values = true)]
    pub max_bad_rows: Option<BadRowLimit>,
    /// Longest sequence, in tokens [default: the model's, at most 1024]
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
    /// Treatment of rows longer than --max-length [default: drop]
    #[arg(long, value_enum)]
    pub on_overflow: Option<OverflowArg>,
    /// Drop and truncate long rows like the paper's code: by characters, and each side by the chosen response's length
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub paper_compat: bool,
    /// Put no EOS after a response, so that its end is neither scored nor learnt
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_eos: bool,
}

/// Values of `--on-overflow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverflowArg {
    /// Leave the row out, and count it
    Drop,
    /// Cut the instruction from the left, equally on both sides
    TruncatePrompt,
    /// Cut the end of the response (TRL's keep_start); a row whose prompt alone fills the limit is left out
    TruncateResponse,
    /// Stop, naming the row
    Error,
}

/// Values of `--on-bad-row`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadRowArg {
    /// Stop, naming the row
    Error,
    /// Leave the row out, count it and name the first ten; stop if there are more than --max-bad-rows
    Skip,
}

/// Flags of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Model: a Hugging Face folder, a GGUF file, or a hub id (org/name)
    #[arg(long, value_name = "DIR|FILE|HUB_ID")]
    pub model: Option<String>,
    /// PEFT LoRA adapter, whose tokenizer and chat template are used if it has them
    #[arg(long, value_name = "DIR|HUB_ID")]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    pub data: DataArgs,
    /// Read the rows like `sft`, as texts to imitate
    #[arg(long)]
    pub sft: bool,
    /// Rows to show
    #[arg(long, default_value_t = 3)]
    pub rows: usize,
    /// Read only the first N rows [default: all]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Also show where the tokens differ from TRL's
    #[arg(long)]
    pub like_trl: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

impl DataArgs {
    /// Resolves the options of a policy and its tokenizer.
    pub fn policy_options(&self, base_dtype: BaseDtype) -> PolicyOptions {
        PolicyOptions {
            base_dtype,
            chat_template: self.chat_template.clone(),
            chat_time: self.time,
            append_eos: !self.no_eos,
        }
    }

    /// Resolves the options for reading rows and turning them into tokens.
    ///
    /// # Errors
    /// [`Error::Flag`] for flags that contradict each other or would change nothing.
    pub fn options(&self, purpose: DatasetType) -> Result<DataOptions> {
        Ok(DataOptions {
            purpose,
            template: resolve_template(self.template.as_deref(), self.chat_template.as_deref())?,
            map: FieldMap::parse(&self.map)?,
            bad_rows: self.bad_rows()?,
            max_length: self.max_length,
            overflow: self.overflow()?,
            last_turn_only: self.last_turn_only,
        })
    }

    /// Refuses `--last-turn-only` without `sft`, where it would change nothing.
    ///
    /// # Errors
    /// [`Error::Flag`].
    pub fn check_last_turn_only(&self, sft: bool) -> Result<()> {
        match self.last_turn_only && !sft {
            true => Err(Error::flag(
                "last-turn-only",
                "is only for sft: preferences and labels are of what follows the prompt",
            )),
            false => Ok(()),
        }
    }

    /// Resolves the treatment of rows that cannot be read.
    ///
    /// # Errors
    /// [`Error::Flag`] for `--max-bad-rows` without `--on-bad-row skip`.
    pub fn bad_rows(&self) -> Result<BadRows> {
        match (self.on_bad_row.unwrap_or(BadRowArg::Error), self.max_bad_rows) {
            (BadRowArg::Skip, limit) => Ok(BadRows::Skip(limit.unwrap_or_default())),
            (BadRowArg::Error, None) => Ok(BadRows::Error),
            (BadRowArg::Error, Some(_)) => Err(Error::flag("max-bad-rows", "needs --on-bad-row skip")),
        }
    }

    fn overflow(&self) -> Result<Overflow> {
        match (self.on_overflow, self.paper_compat) {
            (Some(_), true) => Err(Error::flag("paper-compat", "cannot be used with --on-overflow")),
            (None, true) => Ok(Overflow::Paper),
            (None | Some(OverflowArg::Drop), false) => Ok(Overflow::Drop),
            (Some(OverflowArg::TruncatePrompt), false) => Ok(Overflow::TruncatePrompt),
            (Some(OverflowArg::TruncateResponse), false) => Ok(Overflow::TruncateResponse),
            (Some(OverflowArg::Error), false) => Ok(Overflow::Error),
        }
    }
}

/// Resolves `--template` and `--chat-template`, which implies `chat`. Without them, each row's form decides.
///
/// # Errors
/// [`Error::Flag`].
pub fn resolve_template(name: Option<&str>, chat_template: Option<&str>) -> Result<Template> {
    let template = Template::parse(name.unwrap_or(if chat_template.is_some() { "chat" } else { "by-rows" }))?;
    if chat_template.is_some() && template != Template::Chat {
        return Err(Error::flag("chat-template", "needs --template chat"));
    }
    Ok(template)
}
