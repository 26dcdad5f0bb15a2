//! OpenAI-compatible endpoint as a judge: `POST {url}/chat/completions`, several requests at a time, which are repeated where that may
//! help.
//!
//! The key is sent in one header, marked as sensitive, and nowhere else. Texts in responses are searched for the key before they are shown
//! or stored.

mod address;
mod body;
mod rate_limiter;
mod request;
mod settings;
mod wait;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::Url;
use reqwest::blocking::Client;
use reqwest::header::AUTHORIZATION;
use serde_json::{Value, json};

use super::prompt::JudgePrompt;
use super::{Judge, Question, Reply, pool};
use crate::error::{Error, Result, one_line};
use crate::rng::Rng;
use rate_limiter::RateLimiter;
pub use request::TIMEOUT;
use request::{ReceivedBody, RequestOutcome};
pub use settings::{AnswerFormat, ApiKey, EndpointDefaults, EndpointSettings, KEY_VARIABLES};

/// Reason of a [`Reply::Repeat`] for a question that is asked again without `response_format`.
pub const WITHOUT_FORMAT: &str = "without response_format";

/// Endpoint with a model and a prompt.
pub struct Endpoint {
    settings: EndpointSettings,
    prompt: JudgePrompt,
    key: Option<ApiKey>,
    client: Client,
    url: String,
    /// Proxy for this endpoint from the environment, described in words.
    proxy: Option<String>,
    /// Whether the endpoint was found not to support `response_format`.
    takes_no_format: AtomicBool,
    /// Whether the user was told that another model answers.
    is_model_noted: AtomicBool,
}

/// Estimates the number of tokens of a text: one per four bytes, which suits English, plus some for the message around it.
pub fn about_tokens(text: &str) -> u64 {
    text.len() as u64 / 4 + 8
}

/// Returns the largest number of tokens of an answer to a request, from the request's fields.
fn longest_answer(body: &Value) -> Option<u64> {
    ["max_completion_tokens", "max_tokens"].iter().filter_map(|name| body[*name].as_u64()).max()
}

impl Endpoint {
    /// # Errors
    /// [`Error::Flag`] for a malformed URL, or one that contains a password.
    pub fn new(settings: EndpointSettings, prompt: JudgePrompt, key: Option<ApiKey>) -> Result<Self> {
        let bad = |reason: &str| Error::flag("endpoint", reason.to_string());
        let url = Url::parse(&settings.url).map_err(|e| bad(&format!("no URL: {e}")))?;
        if !["http", "https"].contains(&url.scheme()) {
            return Err(bad("expected http:// or https://"));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(bad("holds a name, a password or a query: a key is taken from the environment alone"));
        }
        if let Some(fragment) = url.fragment() {
            return Err(bad(&format!("`#{fragment}` is not a part of an address that is asked: leave it away")));
        }
        let base = settings.url.trim_end_matches('/');
        let base = base.strip_suffix("/chat/completions").unwrap_or(base);
        let mut builder = Client::builder()
            .timeout(settings.timeout)
            .connect_timeout(settings.timeout.min(Duration::from_secs(30)))
            // No redirects, because one might send the key elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("jointwise/", env!("CARGO_PKG_VERSION")));
        if address::is_loopback(&url) {
            // No proxy for this machine: a proxy is another machine, which would get the key, and for which localhost is itself.
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|e| bad(&e.without_url().to_string()))?;
        let proxy = address::proxy(&url);
        let url = format!("{base}/chat/completions");
        let (takes_no_format, is_model_noted) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { prompt, key, client, url, proxy, settings, takes_no_format, is_model_noted })
    }

    /// Returns whether the key would be sent unencrypted over the network.
    pub fn is_in_clear(&self) -> bool {
        let is_here = Url::parse(&self.url).is_ok_and(|url| address::is_loopback(&url));
        self.key.is_some() && self.url.starts_with("http://") && !is_here
    }

    /// Estimates the tokens of these questions, each asked once: tokens in, and at most how many out; 0 out where there is no limit.
    pub fn estimate(&self, questions: &[Question<'_>]) -> super::Usage {
        let prompt_tokens = questions.iter().map(|q| about_tokens(&self.prompt.render(q))).sum();
        let longest = self.longest_answer().unwrap_or_default();
        super::Usage { prompt_tokens, completion_tokens: (questions.len() as u64).saturating_mul(longest) }
    }

    /// Returns the largest number of tokens of an answer; `None` where custom fields have removed the limit.
    pub fn longest_answer(&self) -> Option<u64> {
        longest_answer(&self.body("", false))
    }

    /// Returns whether requests ask for JSON.
    fn asks_for_json(&self) -> bool {
        let is_ours = !self.settings.extra.contains_key("response_format");
        is_ours
            && match self.settings.answer_format {
                AnswerFormat::Json => true,
                AnswerFormat::Auto => self.prompt.is_ours() && !self.takes_no_format.load(Ordering::Relaxed),
                AnswerFormat::Letter => false,
            }
    }

    /// Returns a text in which the key is hidden.
    fn hide(&self, text: &str) -> String {
        self.key.as_ref().map_or_else(|| text.to_string(), |key| key.hide(text))
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
                // The words that the default prompts ask for.
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

    /// Sends one request.
    fn attempt(&self, body: &Value) -> ReceivedBody {
        let mut request = self.client.post(&self.url).json(body);
        if let Some(value) = self.key.as_ref().and_then(ApiKey::authorization) {
            request = request.header(AUTHORIZATION, value);
        }
        let received = match request.send() {
            Ok(response) => request::receive(response, longest_answer(body), body.get("response_format").is_some()),
            Err(error) => request::unsent(error).into(),
        };
        // Any text from outside may contain the key.
        let told = |text: &str| match &self.proxy {
            Some(proxy) => format!("{} ({proxy})", one_line(&self.hide(text))),
            None => one_line(&self.hide(text)),
        };
        ReceivedBody {
            outcome: received.outcome.map(told, |text| self.hide(text)),
            model: received.model.map(|model| one_line(&self.hide(&model))),
            ..received
        }
    }

    /// Sends one request when it is permitted, and reports its side effects through `say`. Returns its outcome; `None` where asking ended
    /// meanwhile.
    fn ask_once(
        &self,
        pace: &RateLimiter,
        request: &EndpointRequest<'_>,
        in_json: bool,
        halted: &dyn Fn() -> bool,
        say: &dyn Fn(Result<Reply>),
    ) -> Option<RequestOutcome> {
        let turn = pace.turn(request.tokens, halted)?;
        let received = self.attempt(&self.body(request.prompt, in_json));
        match &received.outcome {
            RequestOutcome::Answer(_) => pace.answered(),
            RequestOutcome::Again { kind, .. } if kind == TIMEOUT => pace.timed_out(&turn),
            // A pause that is longer than one would wait is no pause: its question fails, and the next must not wait for nothing.
            RequestOutcome::Again { wait: Some(wait), .. } if *wait <= self.settings.max_wait => {
                pace.hold(&turn, *wait)
            }
            RequestOutcome::Again { is_busy: true, .. } => pace.hold(&turn, request.pause),
            _ => {}
        }
        drop(turn);
        if let Some(model) = received.model.filter(|model| !is_same_model(&self.settings.model, model))
            && !self.is_model_noted.swap(true, Ordering::Relaxed)
        {
            say(Ok(Reply::Noted(format!(
                "the answers come from the model `{model}`, and `{}` was asked for",
                self.settings.model
            ))));
        }
        match &received.outcome {
            RequestOutcome::Answer(_) => {}
            RequestOutcome::Again { is_unread: true, reason, .. } => {
                say(Ok(Reply::Unread { reason: reason.clone(), usage: received.usage }));
            }
            _ => received.usage.into_iter().for_each(|usage| say(Ok(Reply::Spent(usage)))),
        }
        Some(received.outcome)
    }

    /// Asks until there is an answer, or a reason to give up. Says nothing where asking ends before.
    fn question(
        &self,
        question: &Question<'_>,
        pace: &RateLimiter,
        rng: &mut Rng,
        halted: &dyn Fn() -> bool,
        say: &dyn Fn(Result<Reply>),
    ) {
        let prompt = self.prompt.render(question);
        let longest = self.longest_answer().unwrap_or_else(|| self.settings.max_tokens.into());
        let tokens = about_tokens(&prompt).saturating_add(longest);
        let most_wait = self.settings.max_wait;
        let mut request = EndpointRequest { prompt: &prompt, tokens, pause: self.settings.backoff };
        let (mut left, mut asked, mut busy) = (self.settings.retries, 0, 0);
        let mut busy_since = None;
        loop {
            let in_json = self.asks_for_json();
            let Some(mut outcome) = self.ask_once(pace, &request, in_json, halted, say) else { return };
            if let RequestOutcome::NoFormat(reason) = &outcome
                && in_json
            {
                if self.settings.answer_format == AnswerFormat::Json {
                    let reason =
                        format!("json: the endpoint does not take `response_format` ({reason}): auto or letter");
                    return say(Err(Error::flag("answer-format", reason)));
                }
                self.takes_no_format.store(true, Ordering::Relaxed);
                say(Ok(Reply::Repeat(WITHOUT_FORMAT.into())));
                let Some(again) = self.ask_once(pace, &request, false, halted, say) else { return };
                outcome = again;
            }
            asked += 1;
            let (reason, kind, asked_for, is_busy) = match outcome {
                RequestOutcome::Answer(answer) => return say(Ok(Reply::Answer(answer))),
                RequestOutcome::Unfit(reason) | RequestOutcome::NoFormat(reason) => {
                    return say(Ok(Reply::Rejected(reason)));
                }
                RequestOutcome::Refused(reason) => {
                    return say(Err(Error::flag("endpoint", format!("{}: {reason}", self.url))));
                }
                RequestOutcome::Again { reason, kind, wait, is_busy, .. } => (reason, kind, wait, is_busy),
            };
            if let Some(wait) = asked_for.filter(|wait| *wait > most_wait) {
                let (wait, most) = (wait.as_secs(), most_wait.as_secs());
                return say(Ok(Reply::Failed(format!("{reason}; it asks to wait for {wait} s, --max-wait is {most}"))));
            }
            if is_busy {
                // For a busy endpoint, retries are limited by time instead of number, because other questions are answered meanwhile.
                busy += 1;
                let unanswered = pace.unanswered(*busy_since.get_or_insert_with(Instant::now));
                if unanswered >= most_wait || busy > MOST_BUSY {
                    let most = most_wait.as_secs_f64();
                    let told = format!("{reason} (asked {asked} times, --max-wait is {most} s)");
                    return say(Ok(Reply::Failed(told)));
                }
            } else if left == 0 {
                let after = if asked > 1 { format!(" (asked {asked} times)") } else { String::new() };
                return say(Ok(Reply::Failed(format!("{reason}{after}"))));
            } else {
                left -= 1;
            }
            say(Ok(Reply::Repeat(kind)));
            // The pause is random between one half and the whole, so that requests that failed together are not repeated together.
            let own = request.pause.mul_f64(0.5 + 0.5 * f64::from(rng.next_f32()));
            // A pause that the endpoint asks for applies to all requests; the rate limiter then delays the next one.
            if asked_for.is_none() && !is_busy && !rate_limiter::sleep(own, halted) {
                return;
            }
            let most = if is_busy { most_wait.min(LONGEST_BUSY_PAUSE) } else { most_wait };
            request.pause = (request.pause * 2).min(most);
        }
    }
}

/// Question as it is sent.
struct EndpointRequest<'p> {
    prompt: &'p str,
    /// Estimated tokens of the prompt and the longest answer.
    tokens: u64,
    /// Pause before the question is sent again, where the endpoint asks for none.
    pause: Duration,
}

/// Largest number of times that one question may find the endpoint busy while others are answered.
const MOST_BUSY: usize = 200;
/// Longest pause after the endpoint was busy, unless the endpoint asks for a longer one: limits are usually per minute.
const LONGEST_BUSY_PAUSE: Duration = Duration::from_secs(60);

/// Returns whether an endpoint's name for a model means the requested model: the name may have a date appended, or may lack the provider.
fn is_same_model(asked: &str, answered: &str) -> bool {
    let [asked, answered] = [asked, answered].map(|name| name.trim().to_lowercase());
    let last = |name: &str| name.rsplit('/').next().unwrap_or_default().to_string();
    answered.is_empty() || answered.starts_with(&asked) || last(&answered).starts_with(&last(&asked))
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
        // Without this field, the identity equals that of earlier versions, which always asked for text, so that their runs can continue.
        if s.answer_format != AnswerFormat::Letter {
            identity["answer_format"] = s.answer_format.name().into();
        }
        identity
    }

    fn is_deterministic(&self) -> bool {
        self.body("", false)["temperature"].as_f64() == Some(0.0)
    }

    fn ask(
        &self,
        questions: &[Question<'_>],
        stop: &AtomicBool,
        tell: &mut dyn FnMut(usize, Reply) -> Result<()>,
    ) -> Result<()> {
        let s = &self.settings;
        let pace = RateLimiter::new(s.requests_per_minute, s.tokens_per_minute, s.concurrency);
        let work = |thread: usize, question: &Question<'_>, halted: &dyn Fn() -> bool, say: &dyn Fn(Result<Reply>)| {
            // The pauses do not affect results, so a thread may use one random stream per question.
            self.question(question, &pace, &mut Rng::new(hash_u64(&question.key()), thread as u64), halted, say);
        };
        pool::ask(questions, self.settings.concurrency, stop, &work, tell)
    }
}

/// Returns the first 64 bits of a hash.
fn hash_u64(hexadecimal: &str) -> u64 {
    u64::from_str_radix(hexadecimal.get(..16).unwrap_or_default(), 16).unwrap_or_default()
}
