//! Settings of an endpoint: its address, its key, the form of answers, limits.

use std::time::Duration;

use reqwest::header::HeaderValue;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Defaults of an endpoint's settings.
pub struct EndpointDefaults;

impl EndpointDefaults {
    /// Tokens of an answer, with the thoughts before it.
    pub const MAX_TOKENS: u32 = 1024;
    /// Tokens of an answer in JSON, which has one field.
    pub const MAX_TOKENS_JSON: u32 = 64;
    /// Tokens of an answer that is a side alone.
    pub const MAX_TOKENS_LETTER: u32 = 16;
    /// Requests at the same time.
    pub const CONCURRENCY: usize = 8;
    /// Times that a question is asked again.
    pub const RETRIES: usize = 6;
    /// Time for one request, in seconds.
    pub const TIMEOUT: f64 = 60.0;
    /// First pause before a question is asked again, in seconds.
    pub const BACKOFF: f64 = 1.0;
    /// Longest pause, in seconds.
    pub const MAX_WAIT: f64 = 120.0;
}

/// Variables of the environment that may hold a key; the first that is set counts.
pub const KEY_VARIABLES: [&str; 2] = ["JOINTWISE_API_KEY", "OPENAI_API_KEY"];

/// A secret. Shows as `***`, wherever it is shown.
#[derive(Clone)]
pub struct ApiKey(String);

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl ApiKey {
    /// Reads the key from a variable of the environment, by default the first of [`KEY_VARIABLES`]; `None` where none is set.
    ///
    /// # Errors
    /// [`Error::Flag`] where the variable that was named is not set, or holds no header's text. The message does not hold the key.
    pub fn from_environment(named: Option<&str>) -> Result<Option<Self>> {
        let names = named.map_or(KEY_VARIABLES.to_vec(), |name| vec![name]);
        let found = names.iter().find_map(|name| Some((*name, std::env::var_os(name).filter(|v| !v.is_empty())?)));
        let Some((name, value)) = found else {
            return match named {
                Some(name) => Err(Error::flag("api-key-env", format!("the environment has no variable {name}"))),
                None => Ok(None),
            };
        };
        let text = value.into_string().map(|text| text.trim().to_string()).unwrap_or_default();
        match !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()) {
            true => Ok(Some(Self(text))),
            false => Err(Error::flag("api-key-env", format!("{name} does not hold a valid API key"))),
        }
    }

    /// The header's value, which is never shown.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// The text without the key.
    pub(super) fn hide(&self, text: &str) -> String {
        text.replace(&self.0, "***")
    }
}

/// The form in which an endpoint's model is to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AnswerFormat {
    /// Our own prompts are answered in JSON where the endpoint takes `response_format`, else in text. Others always in text.
    #[default]
    Auto,
    /// JSON, enforced by `response_format`.
    Json,
    /// Text: a side and little else.
    Letter,
}

impl AnswerFormat {
    /// Gives its name, as a flag's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Json => "json",
            Self::Letter => "letter",
        }
    }
}

/// Settings of an endpoint.
#[derive(Debug, Clone)]
pub struct EndpointSettings {
    /// Up to and without `/chat/completions`: `https://api.openai.com/v1`.
    pub url: String,
    /// The model's name there.
    pub model: String,
    /// `None`: the endpoint's own.
    pub temperature: Option<f64>,
    /// Longest answer, with the thoughts before it.
    pub max_tokens: u32,
    /// The form of answers.
    pub answer_format: AnswerFormat,
    /// Fields of the request, over ours; null takes one away.
    pub extra: Map<String, Value>,
    /// Requests at a time.
    pub concurrency: usize,
    /// The most times that a question is asked again after an error.
    pub retries: usize,
    /// The longest time for one request.
    pub timeout: Duration,
    /// The first pause before a question is asked again; it doubles.
    pub backoff: Duration,
    /// The longest pause, also where the endpoint asks for one.
    pub max_wait: Duration,
    /// Most requests a minute; 0: no limit.
    pub requests_per_minute: f64,
    /// Most tokens a minute, by our estimate; 0: no limit.
    pub tokens_per_minute: f64,
}
