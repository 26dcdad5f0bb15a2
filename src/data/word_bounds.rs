//! Word bounds: places where a tokenizer splits a text, whatever is on either side. The common beginning of two texts needs to be tokenised
//! only once up to its last word bound.
//!
//! A text is split into pieces before the tokenizer's model sees them: at added tokens, then by regular expressions. With the expressions
//! listed here, no piece contains an ASCII letter followed by a space, and a piece does not depend on the text before it. A piece therefore
//! ends between such a letter and space, and the text behind is split as if it stood alone. Other tokenizers have no such places, for
//! example SentencePiece's, which treat a text as one piece.

use serde_json::Value;

/// Regular expressions of supported tokenizers: Llama 3's, Qwen's, GPT-4o's (gpt-oss, Phi-4).
const PATTERNS: [&str; 3] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// Returns whether a tokenizer always splits a text between an ASCII letter and a space.
pub(super) fn are_kept(tokenizer: &tokenizers::Tokenizer) -> bool {
    let json = |part: serde_json::Result<Value>| part.unwrap_or(Value::Bool(false));
    let steps = json(serde_json::to_value(tokenizer.get_pre_tokenizer()));
    let steps = match (steps["type"].as_str(), &steps["pretokenizers"]) {
        (Some("Sequence"), Value::Array(steps)) => steps.clone(),
        _ => vec![steps],
    };
    let normalizer = json(serde_json::to_value(tokenizer.get_normalizer()));
    // NFC does not compose a letter with a space.
    let is_plain = normalizer.is_null() || normalizer["type"] == "NFC";
    let added = tokenizer.get_added_tokens_decoder();
    let is_apart = |token: &tokenizers::AddedToken| {
        !token.single_word && (0..token.content.len()).all(|at| !is_bound(token.content.as_bytes(), at))
    };
    is_plain && steps.iter().all(is_known) && steps.iter().any(parts_words) && added.values().all(is_apart)
}

/// Returns whether a pre-tokenisation step never joins pieces, and never looks at the text before a piece.
fn is_known(step: &Value) -> bool {
    match step["type"].as_str() {
        Some("ByteLevel") => step["add_prefix_space"] == false,
        Some("Digits") => true,
        Some("Split") => is_listed(step),
        _ => false,
    }
}

/// Returns whether a pre-tokenisation step splits words.
fn parts_words(step: &Value) -> bool {
    match step["type"].as_str() {
        // GPT-2's regular expression, for which the same holds.
        Some("ByteLevel") => step["use_regex"] != false,
        Some("Split") => is_listed(step),
        _ => false,
    }
}

fn is_listed(step: &Value) -> bool {
    let pattern = step["pattern"]["Regex"].as_str();
    pattern.is_some_and(|pattern| PATTERNS.contains(&pattern))
        && step["behavior"] == "Isolated"
        && step["invert"] == false
}

/// Returns the last word bound inside the common beginning of two texts.
pub(super) fn last_shared(a: &str, b: &str) -> Option<usize> {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let n = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    (1..n).rev().find(|&at| is_bound(a, at))
}

fn is_bound(text: &[u8], at: usize) -> bool {
    at > 0 && text[at] == b' ' && text[at - 1].is_ascii_alphabetic()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokenizers_that_part_words_are_known() {
        let oracle = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle");
        let read =
            |name: &str| std::fs::read_to_string(oracle.join(name).join("model/tokenizer.json")).expect("a tokenizer");
        let kept = |text: &str| are_kept(&text.parse().expect("a tokenizer"));
        for (name, are) in [
            ("gpt2-odd", true),
            ("llama3-scaling", true),
            ("qwen3", true),
            ("mistral-odd", false),
            ("gemma2", false),
            ("gemma3", false),
        ] {
            assert_eq!(kept(&read(name)), are, "{name}");
        }
        // Steps that join words, or that look at the text before a piece.
        let llama = read("llama3-scaling");
        for (from, to) in [
            (r"\\s+(?!\\S)", r"(?<=a)\\s+(?!\\S)"),
            ("\"Isolated\"", "\"MergedWithPrevious\""),
            ("\"single_word\":false", "\"single_word\":true"),
            ("\"single_word\": false", "\"single_word\": true"),
            ("\"add_prefix_space\":false", "\"add_prefix_space\":true"),
            ("\"add_prefix_space\": false", "\"add_prefix_space\": true"),
        ] {
            assert!(!llama.contains(from) || !kept(&llama.replace(from, to)), "{from}");
        }
    }

    #[test]
    fn bounds_are_between_letters_and_spaces() {
        assert_eq!(last_shared("one two three", "one two  four"), Some(7));
        assert_eq!(last_shared("one two-three", "one two four"), Some(3), "the space is not shared");
        assert_eq!(last_shared("one two ", "one two x"), Some(7));
        assert_eq!(last_shared("one", "one"), None);
        assert_eq!(last_shared("3 é ", "3 é "), None);
        assert_eq!(last_shared("", "a"), None);
    }
}
