//! Result of one request: an answer, a reason to send it again, or a reason to give up.

use std::io::Read;
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::blocking::Response;
use reqwest::header::{CONTENT_ENCODING, HeaderMap};
use serde_json::Value;

use super::body::{self, NoBody};
use super::wait::{reset, retry_after};

use crate::eval::judge::verdict_reader::NoVerdict;
use crate::eval::judge::{Answer, Usage};

/// Kind of a `RequestOutcome::Again` for a request that timed out.
pub const TIMEOUT: &str = "timeout";
/// Largest number of characters of a body that are shown.
const MOST_SHOWN: usize = 80;
/// Largest number of characters of an error's text that are shown.
const MOST_TOLD: usize = 300;

/// Outcome of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum RequestOutcome {
    /// The model answered.
    Answer(Answer),
    /// Sending the request again may help.
    Again {
        /// Reason in full.
        reason: String,
        /// Reason in a word or two, for counting.
        kind: String,
        /// Pause that the endpoint asks for.
        wait: Option<Duration>,
        /// Whether the endpoint is overloaded, so that the question is not at fault.
        is_busy: bool,
        /// Whether there was an answer that cannot be read.
        is_unread: bool,
    },
    /// The request was not accepted, but others may be.
    Unfit(String),
    /// The endpoint does not support the `response_format` of the request.
    NoFormat(String),
    /// Every request will be refused, because of the key, the address or the account.
    Refused(String),
}

impl RequestOutcome {
    /// Replaces the texts: reasons by `told`, answers by `kept`.
    pub fn map(self, told: impl Fn(&str) -> String, kept: impl Fn(&str) -> String) -> Self {
        match self {
            Self::Answer(answer) => Self::Answer(Answer { text: answer.text.map(|text| kept(&text)), ..answer }),
            Self::Again { reason, kind, wait, is_busy, is_unread } => {
                Self::Again { reason: told(&reason), kind, wait, is_busy, is_unread }
            }
            Self::Unfit(reason) => Self::Unfit(told(&reason)),
            Self::NoFormat(reason) => Self::NoFormat(told(&reason)),
            Self::Refused(reason) => Self::Refused(told(&reason)),
        }
    }

    fn again(kind: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Again { reason: reason.into(), kind: kind.into(), wait: None, is_busy: false, is_unread: false }
    }

    fn unread(kind: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Again { reason: reason.into(), kind: kind.into(), wait: None, is_busy: false, is_unread: true }
    }
}

/// Response to a request, or the reason why there is none.
#[derive(Debug, Clone, PartialEq)]
pub struct ReceivedBody {
    /// Outcome of the request.
    pub outcome: RequestOutcome,
    /// Tokens that the request cost, where the endpoint reports them.
    pub usage: Option<Usage>,
    /// Name of the model that answered, where the endpoint reports it.
    pub model: Option<String>,
}

impl From<RequestOutcome> for ReceivedBody {
    fn from(outcome: RequestOutcome) -> Self {
        Self { outcome, usage: None, model: None }
    }
}

/// Returns the text of an error, followed by those of its causes.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// Returns the outcome of a request that got no response.
pub fn unsent(error: reqwest::Error) -> RequestOutcome {
    let error = error.without_url();
    let kind = match (error.is_timeout(), error.is_connect()) {
        (true, _) => TIMEOUT,
        (_, true) => "no connection",
        _ => "connection lost",
    };
    RequestOutcome::again(kind, format!("{kind}: {}", causes(&error)))
}

/// Returns the outcome of a request from its response, whose body is read here. `longest` is the limit on the answer's tokens; `has_format`
/// says whether the request had a `response_format`.
pub fn receive(response: Response, longest: Option<u64>, has_format: bool) -> ReceivedBody {
    let (status, headers) = (response.status(), response.headers().clone());
    let mut bytes = Vec::new();
    let read = response.take(body::MOST_BYTES).read_to_end(&mut bytes);
    let encoding = headers.get(CONTENT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if status.is_success() {
        return match read {
            Ok(_) => match body::plain(bytes, encoding).and_then(|bytes| body::parse(&bytes)) {
                Ok(body) => answer(&body, longest),
                Err(NoBody::Cut) => RequestOutcome::again("cut short", "the answer was cut short").into(),
                Err(NoBody::Other(reason)) => RequestOutcome::unread("no JSON", reason).into(),
            },
            Err(error) if causes(&error).contains("timed out") => {
                RequestOutcome::again(TIMEOUT, "timeout in the middle of the answer").into()
            }
            Err(error) => {
                RequestOutcome::again("cut short", format!("the answer was cut short: {}", causes(&error))).into()
            }
        };
    }
    let bytes = body::plain(bytes, encoding).unwrap_or_default();
    let usage = body::parse(&bytes).ok().and_then(|body| usage_of(&body));
    ReceivedBody { outcome: refused(status, &headers, &bytes, has_format), usage, model: None }
}

/// Returns the outcome of a response whose status is not a success.
fn refused(status: StatusCode, headers: &HeaderMap, bytes: &[u8], has_format: bool) -> RequestOutcome {
    let (text, code) = error_text(bytes);
    let number = status.as_u16();
    let reason = if text.is_empty() { format!("HTTP {status}") } else { format!("HTTP {number}: {text}") };
    let is_busy = number == 429;
    match number {
        // The account is empty, so waiting does not help.
        _ if code == "insufficient_quota" => RequestOutcome::Refused(reason),
        401 | 402 | 403 | 404 | 405 | 407 | 300..=399 => RequestOutcome::Refused(reason),
        // llama-cpp-python's server reports this as an error of its own.
        400 | 422 | 500..=599 if has_format && names_format(bytes) => RequestOutcome::NoFormat(reason),
        408 | 409 | 425 | 429 | 500..=599 => {
            let now = SystemTime::now();
            let wait = retry_after(headers, now).or_else(|| reset(headers, now).filter(|_| is_busy));
            RequestOutcome::Again { reason, kind: format!("HTTP {number}"), wait, is_busy, is_unread: false }
        }
        _ => RequestOutcome::Unfit(reason),
    }
}

/// Returns the text and the code of an error in a body.
fn error_text(bytes: &[u8]) -> (String, String) {
    let body: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let error = &body["error"];
    let text = (error["message"].as_str().or(error.as_str()).or(body["message"].as_str()).map(String::from))
        .unwrap_or_else(|| String::from_utf8_lossy(bytes).into_owned());
    (text.trim().chars().take(MOST_TOLD).collect(), error["code"].as_str().unwrap_or_default().into())
}

/// Returns whether an error is about `response_format`.
fn names_format(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).to_lowercase();
    let names = [
        "response_format",
        "response format",
        "json_schema",
        "json schema",
        "structured output",
        "guided_json",
        "guided decoding",
    ];
    names.iter().any(|name| text.contains(name))
}

/// Returns the text of a message's content, and whether a part of it is a refusal. Parts with thoughts are left out.
fn text_of(content: &Value) -> (Option<String>, bool) {
    match content {
        Value::String(text) => (Some(text.clone()), false),
        Value::Array(parts) => {
            let kind = |part: &Value| part["type"].as_str().unwrap_or("text").to_string();
            let texts = parts.iter().filter(|part| ["text", "output_text"].contains(&kind(part).as_str()));
            let text = texts.filter_map(|part| part["text"].as_str().or(part["text"]["value"].as_str())).collect();
            (Some(text), parts.iter().any(|part| kind(part) == "refusal"))
        }
        // The server has parsed the JSON that was requested.
        Value::Object(_) => (Some(content.to_string()), false),
        _ => (None, false),
    }
}

/// Reason why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndedRequest {
    /// The answer ended by itself, or the endpoint gives no reason.
    Whole,
    /// The answer reached the largest number of tokens.
    Cut,
    /// The endpoint ended the answer for another reason.
    Stopped,
}

impl EndedRequest {
    /// Parses `finish_reason`. Without one, an answer with the largest number of tokens (`is_full`) counts as cut.
    fn from_reason(finish_reason: &Value, is_full: bool) -> Self {
        let reason = finish_reason.as_str().unwrap_or_default().to_lowercase();
        match reason.as_str() {
            "" | "null" if is_full => Self::Cut,
            "" | "stop" | "eos" | "eos_token" | "end_turn" | "end_of_turn" | "stop_sequence" | "stop_token" | "end"
            | "complete" | "completed" | "finish" | "finished" | "done" | "tool_calls" | "function_call" | "null" => {
                Self::Whole
            }
            "length"
            | "max_tokens"
            | "max_output_tokens"
            | "max_completion_tokens"
            | "model_length"
            | "token_limit" => Self::Cut,
            _ => Self::Stopped,
        }
    }
}

/// Reads the answer in a choice. Thoughts in a field of their own (`reasoning_content`, `reasoning`) are not part of the answer.
fn read_choice(choice: &Value, is_full: bool) -> Answer {
    let message = &choice["message"];
    let (text, has_refusal) = text_of(&message["content"]);
    let is_said = |value: &Value| value.as_str().is_some_and(|text| !text.trim().is_empty());
    let is_called =
        message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty()) || message["function_call"].is_object();
    let ended = EndedRequest::from_reason(&choice["finish_reason"], is_full);
    let why = match &text {
        _ if has_refusal || is_said(&message["refusal"]) => NoVerdict::Refusal,
        _ if ended == EndedRequest::Stopped => NoVerdict::Stopped,
        Some(text) if !text.trim().is_empty() => return Answer::read(text.clone(), ended == EndedRequest::Cut),
        _ if ended == EndedRequest::Cut => NoVerdict::Cut,
        _ if is_called => NoVerdict::ToolCall,
        _ => NoVerdict::Empty,
    };
    let text = text.or_else(|| message["refusal"].as_str().map(String::from));
    Answer::without_verdict(why, text)
}

/// Returns the tokens that a body reports.
fn usage_of(body: &Value) -> Option<Usage> {
    let tokens = |name: &str| body["usage"][name].as_u64();
    tokens("prompt_tokens").map(|prompt_tokens| Usage {
        prompt_tokens,
        completion_tokens: tokens("completion_tokens").unwrap_or_default(),
    })
}

/// Reads a body with status 200.
fn answer(body: &Value, longest: Option<u64>) -> ReceivedBody {
    let usage = usage_of(body);
    let model = body["model"].as_str().map(String::from);
    let received = |outcome: RequestOutcome| ReceivedBody { outcome, usage, model: model.clone() };
    // Some endpoints send an error with status 200.
    if !body["error"].is_null() {
        let text = error_text(body.to_string().as_bytes()).0;
        return received(RequestOutcome::again("an error", format!("an error as an answer: {text}")));
    }
    let Some(choice) = body.pointer("/choices/0").filter(|choice| !choice["message"].is_null()) else {
        let text: String = body.to_string().chars().take(MOST_SHOWN).collect();
        let reason = format!("field `choices[0].message` is missing in the answer: `{text}`");
        return received(RequestOutcome::unread("no choice", reason));
    };
    let is_full = usage.zip(longest).is_some_and(|(usage, most)| usage.completion_tokens >= most);
    received(RequestOutcome::Answer(read_choice(choice, is_full).with_usage(usage, longest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::judge::Choice;

    #[test]
    fn an_answer_as_long_as_it_may_be_is_whole_only_where_its_end_is_told() {
        let read = |content: &str, finish_reason: Value, written: u64, longest: Option<u64>| {
            let choice = serde_json::json!({"message": {"content": content}, "finish_reason": finish_reason});
            let usage = serde_json::json!({"prompt_tokens": 9, "completion_tokens": written});
            let body = serde_json::json!({"choices": [choice], "usage": usage});
            match answer(&body, longest).outcome {
                RequestOutcome::Answer(answer) => (answer.choice, answer.no_verdict),
                other => panic!("{other:?}"),
            }
        };
        let (whole, cut) = ((Some(Choice::A), None), (None, Some(NoVerdict::Cut)));
        for missing in [Value::Null, "".into(), "null".into()] {
            assert_eq!(read("Output (a) is better", missing.clone(), 16, Some(16)), cut);
            assert_eq!(read("Output (a) is better", missing.clone(), 15, Some(16)), whole);
            assert_eq!(read("Output (a) is better", missing.clone(), 16, None), whole);
            assert_eq!(read("{\"winner\": \"a\"}\n\n", missing, 16, Some(16)), whole, "JSON that is whole");
        }
        assert_eq!(read("Output (a) is better", "stop".into(), 16, Some(16)), whole);
        assert_eq!(read("Output (a) is better", "length".into(), 15, Some(16)), cut);
    }
}
