//! Bodies of responses as servers and proxies send them: compressed, with a byte-order mark, or as a stream of events.

use std::io::Read;

use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value, json};

use crate::error::visible;

/// Largest number of bytes of an answer that are read.
pub const MOST_BYTES: u64 = 4 << 20;
/// Largest number of characters of a body that are shown.
const SHOWN: usize = 80;
/// Byte-order mark of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
const GZIP: &[u8] = &[0x1f, 0x8b];

/// Reason for which a body is not a JSON object.
#[derive(Debug, PartialEq)]
pub enum NoBody {
    /// The body ends too early.
    Cut,
    /// The body is something else, named here.
    Other(String),
}

/// Returns the text of a body, decompressed and without its byte-order mark.
///
/// # Errors
/// Describes the compression, where it is not supported.
pub fn plain(bytes: Vec<u8>, encoding: &str) -> Result<Vec<u8>, NoBody> {
    let bytes = match encoding.trim().to_ascii_lowercase().as_str() {
        _ if bytes.starts_with(GZIP) => {
            let mut whole = Vec::new();
            let read = MultiGzDecoder::new(&bytes[..]).take(MOST_BYTES).read_to_end(&mut whole);
            match read {
                Ok(_) => whole,
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Err(NoBody::Cut),
                Err(error) => return Err(NoBody::Other(format!("the answer is damaged gzip: {error}"))),
            }
        }
        // Some servers name an encoding and send plain text.
        "" | "identity" | "gzip" | "x-gzip" => bytes,
        _ if bytes.trim_ascii_start().starts_with(b"{") => bytes,
        other => {
            return Err(NoBody::Other(format!("the answer is compressed as `{}`: only gzip is read", visible(other))));
        }
    };
    Ok(bytes.strip_prefix(BYTE_ORDER_MARK).map_or(bytes.clone(), <[u8]>::to_vec))
}

/// Returns the first characters of a body, in backquotes.
fn beginning(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN)]);
    let text = text.trim();
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("`{}…`", visible(&text[..at])),
        None => format!("`{}`", visible(text)),
    }
}

/// Parses the JSON of a body, or of a stream of events combined.
///
/// # Errors
/// Describes the body, where it is not JSON.
pub fn parse(bytes: &[u8]) -> Result<Value, NoBody> {
    let bytes = bytes.trim_ascii_start();
    if is_stream(bytes) {
        return stream(&String::from_utf8_lossy(bytes));
    }
    match serde_json::from_slice::<Value>(bytes) {
        Ok(body) if body.is_object() => Ok(body),
        Ok(_) => Err(NoBody::Other(format!("the answer is not a JSON object: {}", beginning(bytes)))),
        Err(error) if error.is_eof() && (bytes.is_empty() || bytes.starts_with(b"{")) => Err(NoBody::Cut),
        Err(_) => Err(NoBody::Other(format!("the answer is not JSON: {}", beginning(bytes)))),
    }
}

/// Returns whether a body is a stream of server-sent events.
fn is_stream(bytes: &[u8]) -> bool {
    [&b"data:"[..], b"event:", b"id:", b"retry:", b": ", b":\n"].iter().any(|field| bytes.starts_with(field))
}

/// Combines the events of a stream into the answer that the endpoint would have sent in one piece. A stream is complete only if it says
/// that it has ended.
fn stream(text: &str) -> Result<Value, NoBody> {
    let mut message = Map::new();
    let (mut finish_reason, mut usage, mut model) = (Value::Null, Value::Null, Value::Null);
    let mut is_done = false;
    for line in text.lines() {
        let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
        if data == "[DONE]" {
            is_done = true;
            break;
        }
        if data.is_empty() {
            continue;
        }
        let event: Value = match serde_json::from_str(data) {
            Ok(event) => event,
            Err(error) if error.is_eof() => return Err(NoBody::Cut),
            Err(_) => {
                return Err(NoBody::Other(format!(
                    "an event of the answer is not JSON: {}",
                    beginning(data.as_bytes())
                )));
            }
        };
        // An error, or a whole answer, may be sent as an event.
        if !event["error"].is_null() || !event["choices"][0]["message"].is_null() {
            return Ok(event);
        }
        for (kept, name) in [(&mut usage, "usage"), (&mut model, "model")] {
            if !event[name].is_null() {
                *kept = event[name].clone();
            }
        }
        let first = |choice: &&Value| choice["index"].as_u64().unwrap_or(0) == 0;
        for choice in event["choices"].as_array().into_iter().flatten().filter(first) {
            if let Some(delta) = choice["delta"].as_object() {
                add(&mut message, delta);
            }
            if !choice["finish_reason"].is_null() {
                finish_reason = choice["finish_reason"].clone();
            }
        }
    }
    if !is_done && finish_reason.is_null() {
        return Err(NoBody::Cut);
    }
    if message.is_empty() {
        return Err(NoBody::Other(format!("the answer is a stream without a message: {}", beginning(text.as_bytes()))));
    }
    let choice = json!({"index": 0, "message": message, "finish_reason": finish_reason});
    Ok(json!({"choices": [choice], "usage": usage, "model": model}))
}

/// Adds an event's piece to a message: texts are joined, lists are appended.
fn add(message: &mut Map<String, Value>, delta: &Map<String, Value>) {
    for (name, piece) in delta {
        match (message.get_mut(name), piece) {
            (_, Value::Null) => {}
            (Some(Value::String(text)), Value::String(more)) if name != "role" => text.push_str(more),
            (Some(Value::Array(list)), Value::Array(more)) => list.extend(more.iter().cloned()),
            (Some(_), _) => {}
            (None, piece) => drop(message.insert(name.clone(), piece.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_whole_where_it_says_so() {
        let events = "data: {\"choices\": [{\"delta\": {\"role\": \"assistant\", \"content\": \"Out\"}}]}\n\n: hm\n\n\
            data: {\"choices\": [{\"delta\": {\"content\": \"put (b)\"}, \"index\": 0}, {\"delta\": {\"content\": \"!\"}, \"index\": 1}]}\n\n";
        assert_eq!(parse(events.as_bytes()), Err(NoBody::Cut));
        let whole = parse(format!("{events}data: [DONE]\n\n").as_bytes()).expect("an answer");
        assert_eq!(whole["choices"][0]["message"]["content"], "Output (b)");
        let end = "data: {\"choices\": [{\"delta\": {}, \"finish_reason\": \"length\"}], \"usage\": {\"prompt_tokens\": 3}}\n\n";
        let whole = parse(format!("{events}{end}").as_bytes()).expect("an answer");
        assert_eq!(
            (&whole["choices"][0]["finish_reason"], &whole["usage"]["prompt_tokens"]),
            (&json!("length"), &json!(3))
        );
        assert_eq!(parse(b"data: {\"choices\": [{\"del"), Err(NoBody::Cut));
        let error = parse(b"data: {\"error\": {\"message\": \"busy\"}}\n\n").expect("an error");
        assert_eq!(error["error"]["message"], "busy");
        assert!(matches!(parse(b"<html>\x1b[2J"), Err(NoBody::Other(said)) if said.ends_with("`<html>\\u{1b}[2J`")));
    }
}
