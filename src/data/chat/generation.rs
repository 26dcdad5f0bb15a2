//! `{% generation %}` tags of chat templates, which mark an assistant's tokens and print nothing. A twin of the template prints a mark where a
//! block begins and where it ends, so that their places in the text are known.

use std::ops::Range;

/// Names of the values that print marks.
const NAMES: [&str; 2] = ["__generation_begins", "__generation_ends"];
/// Characters that stand for nothing, and that a text for people never holds.
const NONCHARACTERS: Range<u32> = 0xFDD0..0xFDF0;

/// Rewrites both tags; each rewriting takes the tag up to its name, and what follows the name up to `%}`.
fn rewritten(source: &str, open: impl Fn(&str, &str) -> String, close: impl Fn(&str, &str) -> String) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (tag, end) = (&rest[start..start + length], start + length);
        out.push_str(&rest[..start]);
        let name = tag.trim_start_matches("{%").trim_matches(['-', '+', ' ', '\n', '\t', '\r']);
        match (name, tag.split_once(name)) {
            ("generation", Some((before, after))) => out.push_str(&open(before, after)),
            ("endgeneration", Some((before, after))) => out.push_str(&close(before, after)),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out + rest
}

/// The source with blocks that do nothing in place of the tags.
pub(super) fn without_tags(source: &str) -> String {
    rewritten(
        source,
        |before, after| format!("{before}if true{after}"),
        |before, after| format!("{before}endif{after}"),
    )
}

/// The source with marks in place of the tags; `None` where it has none.
pub(super) fn with_marks(source: &str) -> Option<String> {
    let [begins, ends] = NAMES;
    let marked = rewritten(
        source,
        |before, after| format!("{before}if true %}}{{{{ {begins} }}}}{{% if true{after}"),
        |before, after| format!("{before}endif %}}{{{{ {ends} }}}}{{% endif{after}"),
    );
    (marked != source).then_some(marked)
}

/// Two marks that a text does not hold.
pub(super) fn free_marks(text: &str) -> Option<[char; 2]> {
    let mut free = NONCHARACTERS.filter_map(char::from_u32).filter(|mark| !text.contains(*mark));
    Some([free.next()?, free.next()?])
}

/// The values that print these marks.
pub(super) fn values(marks: [char; 2]) -> [(&'static str, String); 2] {
    [(NAMES[0], marks[0].into()), (NAMES[1], marks[1].into())]
}

/// The text without its marks, and the bytes between them; `None` where marks are not in pairs.
pub(super) fn spans(marked: &str, [begins, ends]: [char; 2]) -> Option<(String, Vec<Range<usize>>)> {
    let mut text = String::with_capacity(marked.len());
    let (mut spans, mut open) = (Vec::new(), None);
    for c in marked.chars() {
        if c == begins {
            if open.replace(text.len()).is_some() {
                return None;
            }
        } else if c == ends {
            spans.push(open.take()?..text.len());
        } else {
            text.push(c);
        }
    }
    open.is_none().then_some((text, spans))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_taken_out_again() {
        let marks = free_marks("a\u{fdd0}b").unwrap();
        assert_eq!(marks, ['\u{fdd1}', '\u{fdd2}']);
        let found = spans("q\u{fdd1}hé\u{fdd2}|\u{fdd1}x\u{fdd2}", marks);
        assert_eq!(found, Some(("qhé|x".into(), vec![1..4, 5..6])));
        for broken in ["\u{fdd1}a", "a\u{fdd2}", "\u{fdd1}\u{fdd1}a\u{fdd2}\u{fdd2}"] {
            assert_eq!(spans(broken, marks), None, "{broken:?}");
        }
    }

    #[test]
    fn tags_keep_their_signs() {
        let source = "{%- generation -%} x {%+ endgeneration %}{% generations %}";
        assert_eq!(without_tags(source), "{%- if true -%} x {%+ endif %}{% generations %}");
        let marked = "{%- if true %}{{ __generation_begins }}{% if true -%} x {%+ endif %}{{ __generation_ends }}{% endif %}{% generations %}";
        assert_eq!(with_marks(source).as_deref(), Some(marked));
        assert_eq!(with_marks("{% if generation %}{% endif %}"), None);
    }
}
