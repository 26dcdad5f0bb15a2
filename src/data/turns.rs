//! The assistant's answers in a rendered conversation. If the template has `{% generation %}` tags, `sft` uses them. Otherwise, an answer
//! is located by two renderings: of the messages before it with the request for an answer, and of the messages up to and including it.
//!
//! A rendering of fewer messages need not be a prefix of the whole text. Templates of reasoning models drop the thoughts of all answers but
//! the last, and some ask for an answer with `<think>`, which the whole text lacks. Positions are therefore found by the parts that both
//! texts share.

use serde_json::Value;

use super::chat_template::ChatTemplate;
use super::conversation::{Message, PromptResponse, ResponseText, TemplateInputs};
use super::rendered::RenderedText;

/// Renders a text, and locates its answers.
///
/// # Errors
/// The reason: the template rejects the text, or an answer's position cannot be determined.
pub(super) fn render_turns(text: &PromptResponse, chat: &ChatTemplate) -> Result<RenderedText, String> {
    let (conversation, first) = text.conversation();
    let messages = &conversation.messages;
    let values: Vec<Value> = messages.iter().map(Message::to_value).collect();
    let render = |n: usize, ask: bool| chat.render(&conversation.inputs.for_template(&values[..n], ask));
    let whole = render(messages.len(), false)?;
    if matches!(text.response, ResponseText::Turns(_)) && !whole.assistant.is_empty() {
        let scored = whole.assistant.into_iter().filter(|span| !span.is_empty()).collect();
        return Ok(RenderedText { text: whole.text, scored, cut: Vec::new() });
    }
    let render = |n: usize, ask: bool| render(n, ask).map(|rendered| rendered.text);
    let mut found = RenderedText { text: whole.text, scored: Vec::new(), cut: Vec::new() };
    let mut after = 0;
    for (k, _) in messages.iter().enumerate().skip(first).filter(|(_, message)| message.is_assistant()) {
        let asks = match render(k, true) {
            // The conversation begins with an answer, and the template needs a question first: the answer is context.
            Err(_) if k == 0 => continue,
            asks => asks?,
        };
        let mut start = shared_prefix(&asks, &found.text);
        let mut asked = asks.as_str();
        if start < asks.len() {
            let header = header_end(&asks, &values[..k], &conversation.inputs, chat).unwrap_or(start);
            let before = render(k, false)?;
            let shared = start.min(header);
            asked = &asks[..header];
            start = begins(&found.text, asked, shared_prefix(&before, asked), shared, after)
                .ok_or_else(|| unknown("begins", k, messages))?;
            if start == shared {
                found.cut.push((found.scored.len(), asks.clone()));
            }
        }
        let end = match k + 1 == messages.len() {
            true => found.text.len(),
            false => ends(&found.text, asked, &render(k + 1, false)?, chat.eos_token(), start)
                .ok_or_else(|| unknown("ends", k, messages))?,
        };
        if start < after || end < start {
            return Err(unknown("begins", k, messages));
        }
        found.scored.push(start..end);
        after = end;
    }
    Ok(found)
}

fn unknown(what: &str, k: usize, messages: &[Message]) -> String {
    format!(
        "the chat template renders message {} of {} differently when more messages follow, so it is unknown where the answer {what}: \
         use a template with generation tags (--chat-template), or --last-turn-only",
        k + 1,
        messages.len()
    )
}

/// Returns the length of the header in `asks`, a text that asks for an answer: the part that also stands before real answers. `asks` may
/// continue with a text that answers lack, such as `<think>`. The header is found by rendering an answer that begins unlike any other, so
/// that no beginning that an answer shares with `asks` counts as header.
fn header_end(asks: &str, before: &[Value], inputs: &TemplateInputs, chat: &ChatTemplate) -> Option<usize> {
    let messages: Vec<Value> =
        before.iter().cloned().chain([Message::new("assistant", NO_ANSWER).to_value()]).collect();
    let rendered = chat.render(&inputs.for_template(&messages, false)).ok()?;
    Some(shared_prefix(asks, &rendered.text))
}

/// Private-use character, with which neither templates nor answers begin.
const NO_ANSWER: &str = "\u{f8ff}";

/// Returns the number of bytes of the longest common prefix, in whole characters.
fn shared_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}

/// Returns the number of bytes of the longest common suffix.
fn shared_suffix(a: &str, b: &str) -> usize {
    a.bytes().rev().zip(b.bytes().rev()).take_while(|(x, y)| x == y).count()
}

/// Returns the offset in `whole` where the answer begins. `asks` is not a prefix of `whole`; they share the first `shared` bytes. In
/// `asks`, the request for an answer begins at `question`. The previous answer ends at `after`.
fn begins(whole: &str, asks: &str, question: usize, shared: usize, after: usize) -> Option<usize> {
    // The messages before are rendered equally; only the request differs, as with `<think>`.
    if shared >= question {
        return Some(shared);
    }
    // Earlier messages are rendered differently. Searches for the longest possible beginning of the request, at the place where the text
    // before it agrees most.
    let lengths = asks[question..].char_indices().map(|(at, c)| at + c.len_utf8());
    for length in lengths.collect::<Vec<_>>().into_iter().rev() {
        let (pattern, before) = (&asks[question..question + length], &asks[..question]);
        let agreement =
            |(at, _): (usize, &str)| (shared_suffix(&whole[after..after + at], before), after + at + length);
        let most = whole[after..].match_indices(pattern).map(agreement).max_by_key(|(n, at)| (*n, usize::MAX - at));
        if let Some((1.., at)) = most {
            return Some(at);
        }
    }
    None
}

/// Returns the offset in `whole` where the answer that begins at `start` ends. `alone` is the text up to the answer, without later
/// messages; `asked` is the part of it that asks for the answer. Some templates write `eos` only behind the last message, whatever its
/// role.
fn ends(whole: &str, asked: &str, alone: &str, eos: Option<&str>, start: usize) -> Option<usize> {
    let unended = eos.and_then(|eos| alone.trim_end().strip_suffix(eos));
    let prefixes = [Some(alone), unended].into_iter().flatten();
    if let Some(prefix) = prefixes.clone().find(|prefix| whole.starts_with(*prefix) && prefix.len() >= start) {
        return Some(prefix.len());
    }
    // When it was the last message, the answer may have been rendered with thoughts, which `whole` lacks; its end is the same.
    let places = || whole[start..].char_indices().map(|(at, c)| start + at + c.len_utf8());
    let answers = prefixes.map(|prefix| &prefix[shared_prefix(asked, prefix)..]);
    let kept = answers.clone().find_map(|answer| places().filter(|&at| answer.ends_with(&whole[start..at])).max());
    let most = |answer: &str| {
        let agreements = places().map(|at| (shared_suffix(&whole[start..at], answer), at));
        agreements.max_by_key(|(n, at)| (*n, usize::MAX - at)).filter(|(n, _)| *n > 0).map(|(_, at)| at)
    };
    kept.or_else(|| answers.clone().next().and_then(most))
}
