//! Any OpenAI-compatible endpoint as a judge: `POST {url}/chat/completions`, several requests at a time, asked again where that may help.
//!
//! The key goes into one header, marked as sensitive, and nowhere else: texts that come back are searched for it before anybody sees them.

mod pace;
mod request;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::blocking::Client;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use serde_json::{Map, Value, json};

use super::prompt::Prompt;
use super::{Judge, Question, Reply, pool};
use crate::error::{Error, Result, one_line};
use crate::rng::Rng;
use pace::Pace;
use request::Outcome;

/// Where a key may be, the first that is set.
pub const KEY_VARIABLES: [&str; 2] = ["JOINTWISE_API_KEY", "OPENAI_API_KEY"];

/// A secret. Shows as `***`, wherever it is shown.
#[derive(Clone)]
pub struct Key(String);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Key {
    /// From a variable of the environment, by default the first of [`KEY_VARIABLES`]; `None` where none is set.
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
            false => Err(Error::flag("api-key-env", format!("{name} holds something that is no key"))),
        }
    }

    /// The text without the key.
    fn hide(&self, text: &str) -> String {
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
    /// Its name, as a flag's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Json => "json",
            Self::Letter => "letter",
        }
    }
}

/// Reason of [`Reply::Repeat`] for a question that is asked again without `response_format`.
pub const WITHOUT_FORMAT: &str = "without response_format";

/// How an endpoint is asked.
#[derive(Debug, Clone)]
pub struct Settings {
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
    /// How often a question is asked again after an error.
    pub retries: usize,
    /// For one request.
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

/// An endpoint with a model and a prompt.
pub struct Endpoint {
    settings: Settings,
    prompt: Prompt,
    key: Option<Key>,
    client: Client,
    url: String,
    /// It was found not to take `response_format`.
    takes_no_format: AtomicBool,
}

/// Tokens of a text, about: a token is four bytes in English, fewer elsewhere, and a message has some more around it.
pub fn about_tokens(text: &str) -> u64 {
    text.len() as u64 / 4 + 8
}

/// Tokens that an answer to a request may have, by the request's fields.
fn longest_answer(body: &Value) -> Option<u64> {
    ["max_completion_tokens", "max_tokens"].iter().filter_map(|name| body[*name].as_u64()).max()
}

impl Endpoint {
    /// # Errors
    /// [`Error::Flag`] for a URL that is none, or that holds a password.
    pub fn new(settings: Settings, prompt: Prompt, key: Option<Key>) -> Result<Self> {
        let bad = |reason: &str| Error::flag("endpoint", reason.to_string());
        let url = reqwest::Url::parse(&settings.url).map_err(|e| bad(&format!("no URL: {e}")))?;
        if !["http", "https"].contains(&url.scheme()) {
            return Err(bad("expected http:// or https://"));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(bad("holds a name, a password or a query: a key is taken from the environment alone"));
        }
        let base = settings.url.trim_end_matches('/');
        let base = base.strip_suffix("/chat/completions").unwrap_or(base);
        let client = Client::builder()
            .timeout(settings.timeout)
            .connect_timeout(settings.timeout.min(Duration::from_secs(30)))
            // A redirect might carry the key elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("jointwise/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| bad(&e.without_url().to_string()))?;
        let url = format!("{base}/chat/completions");
        Ok(Self { prompt, key, client, url, settings, takes_no_format: AtomicBool::new(false) })
    }

    /// A key would cross the network in clear.
    pub fn is_in_clear(&self) -> bool {
        let host = reqwest::Url::parse(&self.url).ok().and_then(|u| u.host_str().map(String::from)).unwrap_or_default();
        let is_here = host == "localhost" || host.starts_with("127.") || host == "[::1]";
        self.key.is_some() && self.url.starts_with("http://") && !is_here
    }

    /// Tokens in, about, and tokens out, at most, of these questions, each asked once. Tokens out are 0 where they have no limit.
    pub fn estimate(&self, questions: &[Question<'_>]) -> super::Usage {
        let prompt_tokens = questions.iter().map(|q| about_tokens(&self.prompt.render(q))).sum();
        let longest = self.longest_answer().unwrap_or_default();
        super::Usage { prompt_tokens, completion_tokens: (questions.len() as u64).saturating_mul(longest) }
    }

    /// Tokens that an answer may have, as the request says. `None` where its fields were changed so that it says nothing.
    pub fn longest_answer(&self) -> Option<u64> {
        longest_answer(&self.body("", false))
    }

    /// Whether requests ask for JSON.
    fn asks_for_json(&self) -> bool {
        let is_ours = !self.settings.extra.contains_key("response_format");
        is_ours
            && match self.settings.answer_format {
                AnswerFormat::Json => true,
                AnswerFormat::Auto => self.prompt.is_ours() && !self.takes_no_format.load(Ordering::Relaxed),
                AnswerFormat::Letter => false,
            }
    }

    fn hide(&self, text: &str) -> String {
        self.key.as_ref().map_or_else(|| text.to_string(), |key| key.hide(text))
    }

    fn authorization(&self) -> Option<HeaderValue> {
        let key = self.key.as_ref()?;
        let mut value = HeaderValue::from_str(&format!("Bearer {}", key.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    fn body(&self, prompt: &str, in_json: bool) -> Value {
        let mut body = json!({
            "model": self.settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.settings.max_tokens,
        });
        if let Some(fields) = body.as_object_mut() {
            if let Some(temperature) = self.settings.temperature {
                fields.insert("temperature".into(), json!(temperature));
            }
            if in_json {
                // The words that our prompts ask for.
                let winner = json!({"type": "string", "enum": ["Output (a)", "Output (b)"]});
                let schema = json!({
                    "type": "object", "properties": {"winner": winner}, "required": ["winner"], "additionalProperties": false,
                });
                let format = json!({"name": "verdict", "strict": true, "schema": schema});
                fields.insert("response_format".into(), json!({"type": "json_schema", "json_schema": format}));
            }
            for (name, value) in &self.settings.extra {
                match value {
                    Value::Null => drop(fields.remove(name)),
                    value => drop(fields.insert(name.clone(), value.clone())),
                }
            }
        }
        body
    }

    /// One request.
    fn attempt(&self, body: &Value) -> Outcome {
        let mut request = self.client.post(&self.url).json(body);
        if let Some(value) = self.authorization() {
            request = request.header(AUTHORIZATION, value);
        }
        let outcome = match request.send() {
            Ok(response) => request::outcome(response, longest_answer(body)),
            Err(error) => request::unsent(error),
        };
        // Whatever came from outside may hold the key.
        outcome.map(|text| one_line(&self.hide(text)), |text| self.hide(text))
    }

    /// Asks until there is an answer, a reason to give up, or asking ends (then nothing is said).
    fn question(
        &self,
        question: &Question<'_>,
        pace: &Pace,
        rng: &mut Rng,
        halted: &dyn Fn() -> bool,
        say: &dyn Fn(Result<Reply>),
    ) {
        let prompt = self.prompt.render(question);
        let longest = self.longest_answer().unwrap_or_else(|| self.settings.max_tokens.into());
        let tokens = about_tokens(&prompt).saturating_add(longest);
        let mut pause = self.settings.backoff;
        for left in (0..=self.settings.retries).rev() {
            if !pace.turn(tokens, halted) {
                return;
            }
            let in_json = self.asks_for_json();
            let mut outcome = self.attempt(&self.body(&prompt, in_json));
            if let Outcome::NoFormat(reason) = &outcome
                && in_json
            {
                if self.settings.answer_format == AnswerFormat::Json {
                    let reason =
                        format!("json: the endpoint does not take `response_format` ({reason}): auto or letter");
                    return say(Err(Error::flag("answer-format", reason)));
                }
                self.takes_no_format.store(true, Ordering::Relaxed);
                say(Ok(Reply::Repeat(WITHOUT_FORMAT.into())));
                if !pace.turn(tokens, halted) {
                    return;
                }
                outcome = self.attempt(&self.body(&prompt, false));
            }
            let (reason, kind, asked_for) = match outcome {
                Outcome::Answer(answer) => return say(Ok(Reply::Answer(answer))),
                Outcome::Unfit(reason) | Outcome::NoFormat(reason) => return say(Ok(Reply::Failed(reason))),
                Outcome::Refused(reason) => {
                    return say(Err(Error::flag("endpoint", format!("{}: {reason}", self.url))));
                }
                Outcome::Again { reason, kind, wait } => (reason, kind, wait),
            };
            if left == 0 {
                let times = self.settings.retries + 1;
                let after = if times > 1 { format!(" (asked {times} times)") } else { String::new() };
                return say(Ok(Reply::Failed(format!("{reason}{after}"))));
            }
            if let Some(wait) = asked_for.filter(|wait| *wait > self.settings.max_wait) {
                let (wait, most) = (wait.as_secs(), self.settings.max_wait.as_secs());
                return say(Ok(Reply::Failed(format!("{reason}; it asks to wait for {wait} s, --max-wait is {most}"))));
            }
            say(Ok(Reply::Repeat(kind)));
            // Between a half and the whole, so that requests that failed together don't return together.
            let own = pause.mul_f64(0.5 + 0.5 * f64::from(rng.next_f32()));
            match asked_for {
                // What one is told holds for all.
                Some(wait) => pace.hold(wait),
                None if !pace::sleep(own, halted) => return,
                None => {}
            }
            pause = (pause * 2).min(self.settings.max_wait);
        }
    }
}

impl Judge for Endpoint {
    fn name(&self) -> &str {
        &self.settings.model
    }

    fn identity(&self) -> Value {
        let s = &self.settings;
        let mut identity = json!({
            "kind": "endpoint", "endpoint": self.url, "model": s.model, "prompt": self.prompt.hash(), "temperature": s.temperature,
            "max_tokens": s.max_tokens, "extra": s.extra,
        });
        // Text is how all were asked before there were formats: those runs go on.
        if s.answer_format != AnswerFormat::Letter {
            identity["answer_format"] = s.answer_format.name().into();
        }
        identity
    }

    fn ask(
        &self,
        questions: &[Question<'_>],
        stop: &AtomicBool,
        tell: &mut dyn FnMut(usize, Reply) -> Result<()>,
    ) -> Result<()> {
        let pace = Pace::new(self.settings.requests_per_minute, self.settings.tokens_per_minute);
        let work = |thread: usize, question: &Question<'_>, halted: &dyn Fn() -> bool, say: &dyn Fn(Result<Reply>)| {
            // Which pauses are drawn is nobody's result: a thread's stream begins anew with each question.
            self.question(question, &pace, &mut Rng::new(hash_u64(&question.key()), thread as u64), halted, say);
        };
        pool::ask(questions, self.settings.concurrency, stop, &work, tell)
    }
}

/// The first bits of a hash.
fn hash_u64(hexadecimal: &str) -> u64 {
    u64::from_str_radix(hexadecimal.get(..16).unwrap_or_default(), 16).unwrap_or_default()
}
