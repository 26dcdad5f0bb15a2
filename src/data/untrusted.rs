//! Safe use of libraries with untrusted files: checks of tokenizer.json before the crate `tokenizers` reads it, and panics turned into
//! errors.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use serde_json::Value;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Calls a library function that reads a file. Returns the text of a panic as the reason, and prints nothing of it on standard error. Costs
/// nothing where there is no panic.
pub(super) fn without_panic<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                hook(panic);
            }
        }));
    });
    let before = QUIET.replace(true);
    let done = catch_unwind(AssertUnwindSafe(call));
    QUIET.set(before);
    done.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        text.unwrap_or("malformed").split_whitespace().collect::<Vec<_>>().join(" ")
    })
}

/// Largest number of bytes into which replacements may turn a single byte.
const MAX_GROWTH: usize = 4096;

/// Parts of tokenizer.json that can make the library allocate much more memory than the file and the text have.
#[derive(serde::Deserialize)]
struct TokenizerParts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    decoder: Value,
}

/// Checks that the tokenizer is JSON, and that neither loading nor using it allocates without bound.
pub(super) fn check(tokenizer: &[u8]) -> Result<(), String> {
    let parts: TokenizerParts = serde_json::from_slice(tokenizer).map_err(|e| format!("malformed JSON: {e}"))?;
    for (name, part) in [("normalizer", &parts.normalizer), ("decoder", &parts.decoder)] {
        let growth = growth(part).map_err(|reason| format!("field `{name}`: {reason}"))?;
        if growth > MAX_GROWTH {
            return Err(format!("field `{name}`: its replacements make more than {MAX_GROWTH} bytes of one"));
        }
    }
    Ok(())
}

/// Returns approximately the largest number of bytes that a single byte becomes.
fn growth(part: &Value) -> Result<usize, String> {
    let fields = match part {
        Value::Array(list) => return list.iter().try_fold(1, |all: usize, v| Ok(all.saturating_mul(growth(v)?))),
        Value::Object(fields) => fields,
        _ => return Ok(1),
    };
    let length = |field: &str| fields.get(field).and_then(Value::as_str).map_or(1, |text| text.len().max(1));
    let replaced = match fields.get("pattern") {
        Some(pattern) => length("content").div_ceil(pattern["String"].as_str().map_or(1, |text| text.len().max(1))),
        None => 1,
    };
    let mapped = match fields.get("precompiled_charsmap") {
        Some(map) => charsmap(map.as_str().unwrap_or_default()).ok_or("`precompiled_charsmap` is malformed")?,
        None => 1,
    };
    let own = replaced.saturating_mul(length("prepend")).saturating_mul(mapped);
    fields.values().try_fold(own, |all, v| Ok(all.saturating_mul(growth(v)?)))
}

/// Returns the length of the longest replacement in SentencePiece's compiled map; `None` where the map is malformed. Its format is: length
/// of a trie in bytes, trie, texts each followed by a NUL.
fn charsmap(base64: &str) -> Option<usize> {
    let bytes = decode(base64)?;
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length) as usize;
    // An empty trie is malformed: the library panics when it looks something up in it.
    let texts = rest.get(length..).filter(|_| length >= 4 && length.is_multiple_of(4))?;
    texts.split(|byte| *byte == 0).map(|text| text.len().max(1)).max()
}

fn decode(base64: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut held, mut n_bits) = (Vec::with_capacity(base64.len() / 4 * 3), 0_u32, 0);
    for c in base64.trim_end_matches('=').bytes() {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (held, n_bits) = (held << 6 | u32::from(six), n_bits + 6);
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((held >> n_bits) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_reasons() {
        assert_eq!(without_panic(|| 3), Ok(3));
        assert_eq!(without_panic(|| panic!("no {}\nat all", "trie")).map(|()| 0), Err("no trie at all".into()));
    }

    #[test]
    fn what_grows_without_measure_is_refused() {
        let told = |text: &str| check(text.as_bytes()).err().unwrap_or_default();
        let normalizer = |part: &str| told(&format!("{{\"normalizer\": {part}}}"));
        let map = |base64: &str| normalizer(&format!("{{\"precompiled_charsmap\": \"{base64}\"}}"));
        // A trie of one word, then the texts "ab" and "c".
        assert_eq!(map("BAAAAAAAAABhYgBjAA=="), "");
        for bad in ["", "AAAA", "/////w==", "AAAAAAAAAAAA", "BAAAAAAA", "!!!!"] {
            assert_eq!(map(bad), "field `normalizer`: `precompiled_charsmap` is malformed", "{bad}");
        }
        let replace = |by: &str| format!(r#"{{"type": "Replace", "pattern": {{"String": " "}}, "content": "{by}"}}"#);
        assert_eq!(normalizer(&format!("[{}, {{\"prepend\": \"▁\"}}]", replace("▁"))), "");
        let twelve = vec![replace("ab"); 12].join(", ");
        assert_eq!(normalizer(&format!("{{\"normalizers\": [{twelve}]}}")), "");
        let reason = "field `normalizer`: its replacements make more than 4096 bytes of one";
        assert_eq!(normalizer(&format!("{{\"normalizers\": [{twelve}, {}]}}", replace("ab"))), reason);
        assert!(told("{").starts_with("malformed JSON: "));
    }
}
