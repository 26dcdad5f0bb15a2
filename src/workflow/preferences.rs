//! Rows as tokens: preferences, labelled texts and texts to imitate.

use std::path::Path;

use super::data_options::DataOptions;
use super::policy::Policy;
use crate::data::dataset::Dataset;
use crate::data::prompt_template::Template;
use crate::data::rows::parse_rows;
use crate::error::Result;

/// Rows as a policy's tokens, which a run learns from or is evaluated on.
///
/// Files are JSON, JSON lines, CSV, TSV, Parquet, also compressed; folders and patterns of those; data sets of the hub (`hf://datasets/org/name`). A row is
/// `{"instruction", "chosen", "rejected"}`, a joint pair, a labelled text, a conversation, or one of the other forms in docs/data.md.
///
/// # Examples
/// ```
/// use jointwise::{Policy, Preferences};
/// let policy = Policy::open("models/demo")?;
/// let data = Preferences::read("examples/preferences.jsonl", &policy)?;
/// assert!(data.dataset().summary().starts_with("8 rows"));
/// # Ok::<(), jointwise::Error>(())
/// ```
#[derive(Debug)]
pub struct Preferences {
    dataset: Dataset,
    template: Template,
    /// Files as they were given, for the model card.
    files: Vec<String>,
}

impl Preferences {
    /// Reads the rows of a file, with default options.
    ///
    /// # Errors
    /// Those of [`Self::read_with`].
    ///
    /// # Examples
    /// ```
    /// use jointwise::{Policy, Preferences};
    /// let data = Preferences::read("examples/preferences.jsonl", &Policy::open("models/demo")?)?;
    /// assert_eq!(data.len(), 8);
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    #[cfg(feature = "native")]
    pub fn read(path: impl AsRef<Path>, policy: &Policy) -> Result<Self> {
        Self::read_with(&[path], policy, &DataOptions::default())
    }

    /// Reads the rows of several files, one after the other. Tokens of many rows are cached for the next run over the same files.
    ///
    /// # Errors
    /// [`crate::Error::Line`] naming file and line of a row that cannot be read, [`crate::Error::File`]; [`crate::Error::Flag`] for options that contradict
    /// each other or the model.
    ///
    /// # Examples
    /// ```
    /// use jointwise::{DataOptions, DatasetType, Policy, Preferences};
    /// let policy = Policy::open("models/demo")?;
    /// let options = DataOptions { purpose: DatasetType::Sft, max_length: Some(256), ..DataOptions::default() };
    /// let files = ["examples/preferences.jsonl", "tests/data/prefs.jsonl"];
    /// let data = Preferences::read_with(&files, &policy, &options)?;
    /// assert!(data.dataset().longest() <= 256);
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    #[cfg(feature = "native")]
    pub fn read_with(paths: &[impl AsRef<Path>], policy: &Policy, options: &DataOptions) -> Result<Self> {
        let paths: Vec<_> = paths.iter().map(|path| path.as_ref().to_path_buf()).collect();
        let limits = options.limits(policy.description())?;
        let dataset = super::tokenised_rows::read_dataset(&paths, policy.tokenizer(), options, limits)?;
        let template = options.template.clone();
        Ok(Self { dataset, template, files: paths.iter().map(|path| path.display().to_string()).collect() })
    }

    /// Reads rows from memory. Their format is the one of `name`'s ending, or JSON lines.
    ///
    /// # Errors
    /// Those of `Self::read_with`, with `name` for the file.
    ///
    /// # Examples
    /// ```
    /// use jointwise::{DataOptions, Policy, Preferences};
    /// let policy = Policy::open("models/demo")?;
    /// let rows = r#"{"instruction": "Say hello.", "chosen": " Hello!", "rejected": " No."}"#;
    /// let data = Preferences::from_bytes("rows.jsonl", rows.as_bytes(), &policy, &DataOptions::default())?;
    /// assert_eq!(data.len(), 1);
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    pub fn from_bytes(name: &str, bytes: &[u8], policy: &Policy, options: &DataOptions) -> Result<Self> {
        let mut rows = parse_rows(Path::new(name), bytes, &options.map, options.purpose)?;
        if options.last_turn_only {
            rows.iter_mut().for_each(|row| row.content.keep_last_turn());
        }
        let (limits, template) = (options.limits(policy.description())?, options.template.clone());
        let dataset = Dataset::build_with(&rows, policy.tokenizer(), &template, limits, options.bad_rows)?;
        Ok(Self { dataset, template, files: vec![name.into()] })
    }

    /// Makes preferences of rows that a program of your own has tokenised.
    pub fn from_dataset(dataset: Dataset, template: Template) -> Self {
        Self { dataset, template, files: Vec::new() }
    }

    /// Returns the tokenised rows.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// Returns the template of the rows: what each row takes by itself, unless one was chosen.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// Returns the files that were read, as they were given.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// Returns the number of rows that are used.
    ///
    /// # Examples
    /// ```
    /// use jointwise::{Policy, Preferences};
    /// let data = Preferences::read("examples/preferences.jsonl", &Policy::open("models/demo")?)?;
    /// println!("{} rows, the longest of {} tokens", data.len(), data.dataset().longest());
    /// # assert_eq!(data.len(), 8);
    /// # Ok::<(), jointwise::Error>(())
    /// ```
    pub fn len(&self) -> usize {
        self.dataset.examples.len()
    }

    /// Tells whether no row is used.
    pub fn is_empty(&self) -> bool {
        self.dataset.examples.is_empty()
    }
}
