//! Word bounds: places where a tokenizer splits a text whatever stands on either side. There, the common start of two texts is tokenised
//! only once.
//!
//! A text is parted into pieces before its model sees them: at added tokens, then by regular expressions. In those that are known here no piece holds an
//! ASCII letter with a space behind it, and what a piece is does not depend on what stands before it. So pieces end between such a letter and such a
//! space, and what follows is parted as if it stood alone. Other tokenizers (SentencePiece's, which see a text as one piece) have no such places.

use serde_json::Value;

/// Regular expressions of tokenizers that are known: Llama 3's, Qwen's, GPT-4o's (gpt-oss, Phi-4).
const PATTERNS: [&str; 3] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// Tells whether a tokenizer parts every text between an ASCII letter and a space.
pub(super) fn are_kept(tokenizer: &tokenizers::Tokenizer) -> bool {
    let json = |part: serde_json::Result<Value>| part.unwrap_or(Value::Bool(false));
    let steps = json(serde_json::to_value(tokenizer.get_pre_tokenizer()));
    let steps = match (steps["type"].as_str(), &steps["pretokenizers"]) {
        (Some("Sequence"), Value::Array(steps)) => steps.clone(),
        _ => vec![steps],
    };
    let normalizer = json(serde_json::to_value(tokenizer.get_normalizer()));
    // A letter and a space are composed with nothing.
    let is_plain = normalizer.is_null() || normalizer["type"] == "NFC";
    let added = tokenizer.get_added_tokens_decoder();
    let is_apart = |token: &tokenizers::AddedToken| {
        !token.single_word && (0..token.content.len()).all(|at| !is_bound(token.content.as_bytes(), at))
    };
    is_plain && steps.iter().all(is_known) && steps.iter().any(parts_words) && added.values().all(is_apart)
}

/// Tells whether a step joins nothing, and looks at nothing before a piece.
fn is_known(step: &Value) -> bool {
    match step["type"].as_str() {
        Some("ByteLevel") => step["add_prefix_space"] == false,
        Some("Digits") => true,
        Some("Split") => is_listed(step),
        _ => false,
    }
}

/// Tells whether a step parts words.
fn parts_words(step: &Value) -> bool {
    match step["type"].as_str() {
        // GPT-2's regular expression, in which the same holds.
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

/// Finds the last place within what two texts begin with at which such tokenizers part both.
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
        // Whatever joins words, or looks behind.
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
