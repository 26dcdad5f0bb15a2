//! Metadata of a GGUF file: values by key, with messages that name the file and the key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Value of a key.
#[derive(Debug, Clone, PartialEq)]
pub enum MetaValue {
    /// Whole number of at most 32 bits, without a sign.
    U32(u32),
    /// Any other whole number.
    I128(i128),
    /// float32.
    F32(f32),
    /// float64.
    F64(f64),
    /// Truth value.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// List of texts.
    Texts(Vec<String>),
    /// List of whole numbers; written as int32.
    Integers(Vec<i64>),
    /// List of float32 or float64.
    Floats(Vec<f64>),
    /// List of truth values.
    Bools(Vec<bool>),
}

impl MetaValue {
    /// Returns what the value is, for messages.
    fn kind(&self) -> String {
        match self {
            Self::U32(n) => n.to_string(),
            Self::I128(n) => n.to_string(),
            Self::F32(x) => x.to_string(),
            Self::F64(x) => x.to_string(),
            Self::Bool(b) => b.to_string(),
            Self::Text(text) if text.len() <= 60 => format!("`{}`", text.escape_debug()),
            Self::Text(_) => "a long text".into(),
            Self::Texts(_) | Self::Integers(_) | Self::Floats(_) | Self::Bools(_) => "a list".into(),
        }
    }
}

/// Metadata of a file.
#[derive(Debug, Clone, Default)]
pub struct GgufMetadata {
    path: PathBuf,
    values: BTreeMap<String, MetaValue>,
}

impl GgufMetadata {
    /// Makes metadata of values; `path` is for messages.
    pub fn new(path: &Path, values: BTreeMap<String, MetaValue>) -> Self {
        Self { path: path.into(), values }
    }

    /// Returns the keys with their values, in order.
    pub fn entries(&self) -> Vec<(String, MetaValue)> {
        self.values.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Returns the keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// Returns a key's value.
    pub fn get(&self, key: &str) -> Option<&MetaValue> {
        self.values.get(key)
    }

    /// Makes an error about a key.
    pub fn bad(&self, key: &str, reason: impl ToString) -> Error {
        Error::field(&self.path, key, reason)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a MetaValue) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || self.bad(key, format!("expected {expected}, found {}", value.kind()));
        read(value).map(Some).ok_or_else(wrong)
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.bad(key, "is missing"))
    }

    /// Returns a whole number that is not negative; `None` where the key is absent.
    ///
    /// # Errors
    /// [`Error::Field`] for another value.
    pub fn size(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a whole number", |value| match value {
            MetaValue::U32(n) => Some(u64::from(*n)),
            MetaValue::I128(n) => u64::try_from(*n).ok(),
            _ => None,
        })
    }

    /// Returns a whole number that must be there.
    ///
    /// # Errors
    /// [`Error::Field`].
    pub fn required_size(&self, key: &str) -> Result<u64> {
        self.required(key, self.size(key)?)
    }

    /// Returns a finite number; `None` where the key is absent. A float32 is returned as the shortest decimal number that rounds to it.
    ///
    /// # Errors
    /// [`Error::Field`] for another value.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| match value {
            MetaValue::F32(x) => x.to_string().parse().ok().filter(|x: &f64| x.is_finite()),
            MetaValue::F64(x) => Some(*x).filter(|x| x.is_finite()),
            MetaValue::U32(n) => Some(f64::from(*n)),
            _ => None,
        })
    }

    /// Returns a truth value; `None` where the key is absent.
    ///
    /// # Errors
    /// [`Error::Field`] for another value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| match value {
            MetaValue::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// Returns a text; `None` where the key is absent.
    ///
    /// # Errors
    /// [`Error::Field`] for another value.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", |value| match value {
            MetaValue::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Returns a text that must be there.
    ///
    /// # Errors
    /// [`Error::Field`].
    pub fn required_text(&self, key: &str) -> Result<&str> {
        self.required(key, self.text(key)?)
    }

    /// Returns a list of texts; `None` where the key is absent.
    ///
    /// # Errors
    /// [`Error::Field`] for another value.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "a list of texts", |value| match value {
            MetaValue::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// Returns a list of whole numbers; `None` where the key is absent.
    ///
    /// # Errors
    /// [`Error::Field`] for another value.
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>> {
        self.typed(key, "a list of whole numbers", |value| match value {
            MetaValue::Integers(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }
}
