//! What became of one request: an answer, a reason to ask again, or a reason not to.

use std::io::Read;
use std::time::{Duration, SystemTime};

use reqwest::blocking::Response;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde_json::Value;

use crate::eval::judge::verdict_reader::NoVerdict;
use crate::eval::judge::{Answer, Usage};

/// Bytes of an answer that are read.
const MOST_BYTES: u64 = 4 << 20;
/// Characters of an error's text that are told.
const MOST_TOLD: usize = 300;

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The model said something.
    Answer(Answer),
    /// Asking again may help.
    Again {
        /// Whole.
        reason: String,
        /// In a word or two, for counting.
        kind: String,
        /// What the endpoint asks for.
        wait: Option<Duration>,
    },
    /// The request was not accepted, others may be.
    Unfit(String),
    /// The endpoint does not take the `response_format` of the request.
    NoFormat(String),
    /// No request will be: the key, the address, the account.
    Refused(String),
}

impl Outcome {
    /// With its texts changed: reasons by `told`, answers by `kept`.
    pub fn map(self, told: impl Fn(&str) -> String, kept: impl Fn(&str) -> String) -> Self {
        match self {
            Self::Answer(answer) => Self::Answer(Answer { text: answer.text.map(|text| kept(&text)), ..answer }),
            Self::Again { reason, kind, wait } => Self::Again { reason: told(&reason), kind: told(&kind), wait },
            Self::Unfit(reason) => Self::Unfit(told(&reason)),
            Self::NoFormat(reason) => Self::NoFormat(told(&reason)),
            Self::Refused(reason) => Self::Refused(told(&reason)),
        }
    }

    fn again(kind: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Again { reason: reason.into(), kind: kind.into(), wait: None }
    }
}

/// An error and its causes.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// No response came.
pub fn unsent(error: reqwest::Error) -> Outcome {
    let error = error.without_url();
    let kind = match (error.is_timeout(), error.is_connect()) {
        (true, _) => "timeout",
        (_, true) => "no connection",
        _ => "connection lost",
    };
    Outcome::again(kind, format!("{kind}: {}", causes(&error)))
}

/// Of a response, whose body is still to come; `longest`: tokens that the answer may have.
pub fn outcome(response: Response, longest: Option<u64>) -> Outcome {
    let (status, wait) = (response.status(), retry_after(response.headers(), SystemTime::now()));
    let mut bytes = Vec::new();
    let read = response.take(MOST_BYTES).read_to_end(&mut bytes);
    if status.is_success() {
        return match read {
            Ok(_) => answer(&bytes, longest),
            Err(error) if causes(&error).contains("timed out") => {
                Outcome::again("timeout", "timeout in the middle of the answer")
            }
            Err(error) => Outcome::again("cut short", format!("the answer was cut short: {}", causes(&error))),
        };
    }
    let (text, code) = error_text(&bytes);
    let number = status.as_u16();
    let reason = if text.is_empty() { format!("HTTP {status}") } else { format!("HTTP {number}: {text}") };
    match number {
        // The account is empty: waiting does not fill it.
        _ if code == "insufficient_quota" => Outcome::Refused(reason),
        401 | 402 | 403 | 404 | 405 | 300..=399 => Outcome::Refused(reason),
        400 | 422 if names_format(&bytes) => Outcome::NoFormat(reason),
        408 | 409 | 425 | 429 | 500..=599 => Outcome::Again { reason, kind: format!("HTTP {number}"), wait },
        _ => Outcome::Unfit(reason),
    }
}

/// The text of an error, and its code.
fn error_text(bytes: &[u8]) -> (String, String) {
    let body: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let error = &body["error"];
    let text = (error["message"].as_str().or(error.as_str()).or(body["message"].as_str()).map(String::from))
        .unwrap_or_else(|| String::from_utf8_lossy(bytes).into_owned());
    (text.trim().chars().take(MOST_TOLD).collect(), error["code"].as_str().unwrap_or_default().into())
}

/// Whether an error is about `response_format`.
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

/// The text of a message's content, and whether a part of it is a refusal. Parts that hold thoughts are left out.
fn text_of(content: &Value) -> (Option<String>, bool) {
    match content {
        Value::String(text) => (Some(text.clone()), false),
        Value::Array(parts) => {
            let kind = |part: &Value| part["type"].as_str().unwrap_or("text").to_string();
            let texts = parts.iter().filter(|part| ["text", "output_text"].contains(&kind(part).as_str()));
            let text = texts.filter_map(|part| part["text"].as_str().or(part["text"]["value"].as_str())).collect();
            (Some(text), parts.iter().any(|part| kind(part) == "refusal"))
        }
        // A server that parsed the JSON that it was asked for.
        Value::Object(_) => (Some(content.to_string()), false),
        _ => (None, false),
    }
}

/// Reason for which an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The answer ended by itself, or the endpoint does not say.
    Whole,
    /// At the longest length.
    Cut,
    /// The endpoint ended it for a reason of its own.
    Stopped,
}

impl Ended {
    /// Reads `finish_reason`. Where there is none, an answer with as many tokens as it may have is taken as cut.
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

/// Reads what a choice says. Thoughts in a field of their own (`reasoning_content`, `reasoning`) are no answer.
fn read_choice(choice: &Value, is_full: bool) -> Answer {
    let message = &choice["message"];
    let (text, has_refusal) = text_of(&message["content"]);
    let is_said = |value: &Value| value.as_str().is_some_and(|text| !text.trim().is_empty());
    let is_called =
        message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty()) || message["function_call"].is_object();
    let ended = Ended::from_reason(&choice["finish_reason"], is_full);
    let why = match &text {
        _ if has_refusal || is_said(&message["refusal"]) => NoVerdict::Refusal,
        _ if ended == Ended::Stopped => NoVerdict::Stopped,
        Some(text) if !text.trim().is_empty() => return Answer::read(text.clone(), ended == Ended::Cut),
        _ if ended == Ended::Cut => NoVerdict::Cut,
        _ if is_called => NoVerdict::ToolCall,
        _ => NoVerdict::Empty,
    };
    let text = text.or_else(|| message["refusal"].as_str().map(String::from));
    Answer::without_verdict(why, text)
}

/// What a body with status 200 says.
fn answer(bytes: &[u8], longest: Option<u64>) -> Outcome {
    let body: Value = match serde_json::from_slice(bytes) {
        Ok(body) => body,
        Err(error) if error.is_eof() => return Outcome::again("cut short", "the answer was cut short"),
        Err(error) => return Outcome::again("no JSON", format!("the answer is no JSON: {error}")),
    };
    // Some answer 200 and put the error inside.
    if !body["error"].is_null() {
        return Outcome::again("an error", format!("an error as an answer: {}", error_text(bytes).0));
    }
    let Some(choice) = body.pointer("/choices/0").filter(|choice| !choice["message"].is_null()) else {
        return Outcome::again("no choice", "field `choices[0].message` is missing in the answer");
    };
    let tokens = |name: &str| body["usage"][name].as_u64();
    let usage = tokens("prompt_tokens").map(|prompt_tokens| Usage {
        prompt_tokens,
        completion_tokens: tokens("completion_tokens").unwrap_or_default(),
    });
    let is_full = tokens("completion_tokens").zip(longest).is_some_and(|(written, most)| written >= most);
    Outcome::Answer(read_choice(choice, is_full).with_usage(usage, longest))
}

/// `Retry-After`: seconds, or an HTTP date. Seconds may have a fraction, which some endpoints send.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Some(seconds) = text.parse::<f64>().ok().filter(|s| s.is_finite()) {
        return Duration::try_from_secs_f64(seconds.max(0.0)).ok();
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::judge::Choice;
    use std::time::UNIX_EPOCH;

    #[test]
    fn an_answer_as_long_as_it_may_be_is_whole_only_where_its_end_is_told() {
        let read = |content: &str, finish_reason: Value, written: u64, longest: Option<u64>| {
            let choice = serde_json::json!({"message": {"content": content}, "finish_reason": finish_reason});
            let usage = serde_json::json!({"prompt_tokens": 9, "completion_tokens": written});
            let body = serde_json::json!({"choices": [choice], "usage": usage}).to_string();
            match answer(body.as_bytes(), longest) {
                Outcome::Answer(answer) => (answer.choice, answer.no_verdict),
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

    #[test]
    fn pauses_are_seconds_or_dates() {
        // Sun, 06 Nov 1994 08:49:37 GMT, in the three forms of RFC 9110.
        let date = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let wait = |value: &str, now: SystemTime| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().expect("a header"));
            retry_after(&headers, now)
        };
        let seconds = |n| Some(Duration::from_secs(n));
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(wait(text, date - Duration::from_secs(20)), seconds(20), "{text}");
            assert_eq!(wait(text, date + Duration::from_secs(20)), seconds(0), "{text}: past");
        }
        assert_eq!(wait("7", date), seconds(7));
        assert_eq!(wait(" 0.25 ", date), Some(Duration::from_millis(250)));
        assert_eq!(wait("-3", date), seconds(0));
        for text in ["soon", "", "nan", "1e300", "Sun, 06 Nov 1994"] {
            assert_eq!(wait(text, date), None, "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), date), None);
    }
}
