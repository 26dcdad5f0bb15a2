//! Settings of an endpoint: its address, its key, the format of answers, limits.

use std::time::Duration;

use reqwest::header::HeaderValue;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Defaults of an endpoint's settings.
pub struct EndpointDefaults;

impl EndpointDefaults {
    /// Largest number of tokens of an answer, including thoughts.
    pub const MAX_TOKENS: u32 = 1024;
    /// Largest number of tokens of an answer in JSON, which has one field.
    pub const MAX_TOKENS_JSON: u32 = 64;
    /// Largest number of tokens of an answer that consists of a side only.
    pub const MAX_TOKENS_LETTER: u32 = 16;
    /// Number of requests at a time.
    pub const CONCURRENCY: usize = 8;
    /// Number of times that a question is asked again.
    pub const RETRIES: usize = 6;
    /// Time limit for one request, in seconds.
    pub const TIMEOUT: f64 = 60.0;
    /// First pause before a question is asked again, in seconds.
    pub const BACKOFF: f64 = 1.0;
    /// Longest pause, in seconds.
    pub const MAX_WAIT: f64 = 120.0;
}

/// Environment variables that may hold a key. The first one that is set is used.
pub const KEY_VARIABLES: [&str; 2] = ["JOINTWISE_API_KEY", "OPENAI_API_KEY"];

/// Secret key. It is displayed as `***`.
#[derive(Clone)]
pub struct ApiKey(String);

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl ApiKey {
    /// Reads the key from an environment variable, by default the first of [`KEY_VARIABLES`] that is set; `None` where none is set.
    ///
    /// # Errors
    /// [`Error::Flag`] where the variable that was named is not set, or its value cannot be sent in a header. The message does not contain
    /// the key.
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

    /// Returns the value of the `Authorization` header, which is marked as sensitive.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// Returns a text with the key replaced.
    pub(super) fn hide(&self, text: &str) -> String {
        text.replace(&self.0, "***")
    }
}

/// Format in which an endpoint's model is asked to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AnswerFormat {
    /// JSON for this program's prompts where the endpoint supports `response_format`, else text. Custom prompts are always answered in
    /// text.
    #[default]
    Auto,
    /// JSON, enforced by `response_format`.
    Json,
    /// Text: a side and little else.
    Letter,
}

impl AnswerFormat {
    /// Returns the name that the flag takes.
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
    /// Address up to `/chat/completions`, which is not included: `https://api.openai.com/v1`.
    pub url: String,
    /// Name of the model at the endpoint.
    pub model: String,
    /// Temperature; `None` for the endpoint's default.
    pub temperature: Option<f64>,
    /// Largest number of tokens of an answer, including thoughts.
    pub max_tokens: u32,
    /// Format of answers.
    pub answer_format: AnswerFormat,
    /// Custom fields of the request, which override this program's; null removes a field.
    pub extra: Map<String, Value>,
    /// Number of requests at a time.
    pub concurrency: usize,
    /// Largest number of times that a question is asked again after an error.
    pub retries: usize,
    /// Time limit for one request.
    pub timeout: Duration,
    /// First pause before a question is asked again. It doubles each time.
    pub backoff: Duration,
    /// Longest pause, also for pauses that the endpoint asks for.
    pub max_wait: Duration,
    /// Largest number of requests per minute; 0 means no limit.
    pub requests_per_minute: f64,
    /// Largest number of estimated tokens per minute; 0 means no limit.
    pub tokens_per_minute: f64,
}
