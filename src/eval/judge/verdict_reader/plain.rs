//! Conversion of decorated text to plain text: brackets and quotes of other scripts, LaTeX, HTML, and markers of a final answer.

use std::borrow::Cow;

/// Characters that begin and end, in plain text, a final answer marked by LaTeX's `\boxed` or by an element such as `<answer>`.
pub const MARKED: [char; 2] = ['\u{1}', '\u{2}'];

/// LaTeX commands that only change the appearance of their argument.
const LOOKS: &[&str] = &[
    "text",
    "textbf",
    "textit",
    "textrm",
    "textsf",
    "texttt",
    "mathbf",
    "mathrm",
    "mathit",
    "mathsf",
    "mathtt",
    "bf",
    "emph",
    "underline",
];
/// HTML elements that contain a final answer.
const ANSWERS: &[&str] = &[
    "answer",
    "final_answer",
    "finalanswer",
    "final",
    "verdict",
    "final_verdict",
    "choice",
    "result",
    "winner",
    "decision",
    "judgment",
    "judgement",
    "preference",
    "response",
];
/// HTML elements that only change the appearance of their text; `LINES` are those that begin a line.
const INLINE: &[&str] = &["b", "strong", "i", "em", "u", "span", "mark", "code", "center", "big"];
const LINES: &[&str] = &["p", "br", "br/", "div", "li", "ul", "ol", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "hr"];

/// Replaces characters by ASCII characters with the same meaning here, and removes invisible ones.
fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // Full-width forms.
            '\u{ff01}'..='\u{ff5e}' => out.extend(char::from_u32(c as u32 - 0xfee0)),
            '\u{3000}' | '\u{a0}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\t' => out.push(' '),
            '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' | '\u{ad}' | '\u{fe0e}' | '\u{fe0f}' | '\r' => {}
            '\u{2028}' | '\u{2029}' | '\u{85}' | '\u{b}' | '\u{c}' => out.push('\n'),
            '【' | '〔' | '〖' => out.push('['),
            '】' | '〕' | '〗' => out.push(']'),
            '「' | '」' | '『' | '』' | '《' | '》' | '〈' | '〉' | '“' | '”' | '„' | '″' | '«' | '»' => {
                out.push('"')
            }
            '‘' | '’' | '‚' | '′' | '´' => out.push('\''),
            '。' | '｡' => out.push_str(". "),
            '、' => out.push(','),
            '–' | '—' | '―' => out.push('-'),
            '…' => out.push_str("..."),
            'Ⓐ' | 'ⓐ' | '⒜' | '🅐' | '🄰' | '🅰' => out.push_str("(a)"),
            'Ⓑ' | 'ⓑ' | '⒝' | '🅑' | '🄱' | '🅱' => out.push_str("(b)"),
            // Mathematical alphabets, such as bold and italic: twice 26 letters each.
            '\u{1d400}'..='\u{1d6a3}' => {
                let letter = (c as u32 - 0x1d400) % 52;
                out.extend(char::from_u32(if letter < 26 { 65 + letter } else { 71 + letter }));
            }
            MARKED_OPEN | MARKED_CLOSE => {}
            c => out.push(c),
        }
    }
    out
}

const MARKED_OPEN: char = MARKED[0];
const MARKED_CLOSE: char = MARKED[1];

/// Largest length of a recognised tag, in bytes.
const MOST_TAG: usize = 64;

/// Largest length of an answer in braces, in bytes.
const MOST_BRACED: usize = 200;

/// Returns the text in braces at the beginning, and the text behind the braces.
fn braced(text: &str) -> Option<(&str, &str)> {
    let inner = text.trim_start().strip_prefix('{')?;
    let mut depth = 1;
    for (at, c) in inner.char_indices().take_while(|(at, _)| *at < MOST_BRACED) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some((&inner[..at], &inner[at + 1..]));
        }
    }
    None
}

/// Removes LaTeX: `\text{A}` becomes A, `$A$` becomes A, and `\boxed{A}` becomes A between [`MARKED`]. Unknown commands stay.
fn without_latex(text: &str) -> Cow<'_, str> {
    if !text.contains(['\\', '$', '\u{8}']) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['\\', '$', '\u{8}']) {
        out.push_str(&rest[..at]);
        // In JSON, `\b` is a backspace: the model forgot to double the backslash of `\boxed`.
        let broken = rest[at..].strip_prefix("\u{8}oxed").map(|after| ("boxed", after));
        let command = rest[at..].trim_start_matches('\\');
        let name = command.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(command.len());
        let (name, after) = broken.unwrap_or_else(|| command.split_at(name));
        rest = match (rest.as_bytes()[at], braced(after)) {
            (b'$', _) => &rest[at + 1..],
            (_, Some((inner, after))) if ["boxed", "fbox", "framebox"].contains(&name) => {
                out.extend([MARKED_OPEN]);
                out.push_str(&without_latex(inner).replace('\n', " "));
                out.extend([MARKED_CLOSE]);
                after
            }
            (_, Some((inner, after))) if LOOKS.contains(&name) => {
                out.push_str(&without_latex(inner));
                after
            }
            // \( \) \[ \] and the spaces \, \; \!
            (b'\\', _) if name.is_empty() && command.starts_with(['(', ')', '[', ']', ',', ';']) => &command[1..],
            (_, _) => {
                out.push('\\');
                &rest[at + 1..]
            }
        };
    }
    out.push_str(rest);
    out.into()
}

/// Removes HTML elements that only change appearance, and puts the contents of elements such as `<answer>` between [`MARKED`]. Other
/// elements stay.
fn without_elements(text: &str) -> String {
    // Has the same length as the text, byte by byte.
    let lower = text.to_ascii_lowercase();
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut never_closed: Vec<&str> = Vec::new();
    while let Some(at) = rest.find('<') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let lower = &lower[text.len() - rest.len()..];
        let Some(end) = rest.bytes().take(MOST_TAG).position(|byte| byte == b'>') else {
            out.push('<');
            rest = &rest[1..];
            continue;
        };
        let (name, after) = (lower[1..end].trim(), &rest[end + 1..]);
        let closing = format!("</{name}>");
        // A stop sequence may have removed the closing tag.
        let behind = &lower[end + 1..];
        let unclosed = || (!behind.contains('<')).then_some((behind.len(), behind.len()));
        let is_answer = ANSWERS.contains(&name);
        let closed = match is_answer && !never_closed.contains(&name) {
            true => behind.find(&closing).map(|at| (at, at + closing.len())),
            false => None,
        };
        if is_answer && closed.is_none() && !never_closed.contains(&name) {
            never_closed.push(name);
        }
        let answer = closed.or_else(|| is_answer.then(unclosed).flatten());
        rest = match (name, answer) {
            (_, Some((end, next))) => {
                out.push_str("\n\n");
                out.push(MARKED_OPEN);
                out.push_str(&after[..end].trim().replace('\n', " "));
                out.push(MARKED_CLOSE);
                out.push_str("\n\n");
                &after[next..]
            }
            (name, _) if INLINE.contains(&name.trim_start_matches('/')) => after,
            (name, _) if LINES.contains(&name.trim_start_matches('/')) => {
                out.push('\n');
                after
            }
            _ => {
                out.push('<');
                &rest[1..]
            }
        };
    }
    out.push_str(rest);
    out
}

/// Removes tokens such as `<|im_end|>` and `</s>` from both ends of a text, where some servers leave them.
pub fn without_special_tokens(text: &str) -> &str {
    let mut text = text.trim();
    loop {
        let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let named = text.strip_prefix("<|").and_then(|t| t.split_once("|>")).filter(|(name, _)| is_name(name));
        let start = named.map(|(_, after)| after).or_else(|| text.strip_prefix("<s>"));
        let named = text.strip_suffix("|>").and_then(|t| t.rsplit_once("<|")).filter(|(_, name)| is_name(name));
        let end = named.map(|(before, _)| before);
        let end = end.or_else(|| ["</s>", "<eos>", "<end_of_turn>"].iter().find_map(|end| text.strip_suffix(end)));
        text = match start.or(end) {
            Some(shorter) => shorter.trim(),
            None => return text,
        };
    }
}

/// Returns a text without its decoration.
pub fn plain(text: &str) -> String {
    let text = ascii(text);
    let text = without_elements(&without_latex(&text));
    // Prometheus writes "Feedback: .. [RESULT] A".
    let lower = text.to_ascii_lowercase();
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for (at, mark) in lower.match_indices("[result]") {
        out.push_str(&text[from..at]);
        out.push_str("\n\nresult: ");
        from = at + mark.len();
        from += text[from..].len() - text[from..].trim_start_matches([' ', ':']).len();
    }
    out + &text[from..]
}
