//! Sentences as tokens: sides, markers of a final answer, words, and punctuation.

use super::super::plain::MARKED;
use super::super::words::{NOUNS, VERBS, has};
use super::inside;
use crate::eval::judge::Choice;

/// Token of a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatementToken {
    /// Name of a side.
    Side(Choice),
    /// Marker of a final answer, with its verdict, if it contains one.
    Mark(Option<Choice>),
    /// Letter that may be a side or an article, and whether it is a capital. [`tokens`] decides which one it is.
    Letter(Choice, bool),
    /// Word in lower case.
    Word(String),
    /// A comma, or a dash between spaces.
    Comma,
    /// A colon, an arrow or an equals sign.
    Colon,
    /// A question mark.
    Question,
    /// Any other character.
    Other(char),
}

impl StatementToken {
    /// Returns the word, if the token is one.
    pub fn word(&self) -> Option<&str> {
        match self {
            Self::Word(word) => Some(word),
            _ => None,
        }
    }
}

/// Largest number of bytes between `[[` and `]]` in a verdict.
const MOST_MARKED: usize = 100;
/// Characters that only decorate. Any other one may change the meaning: ❌, ~~, ¬.
const DECOR: &str = "*_`#\"'.!•●▪◦·★⭐🌟🥇🔹🔸✅✔☑🏆👍🎉👉➡📝🎯⚖😊🙂😀😃👏🙌🚀✨💯";

/// Splits one or more sentences into tokens.
pub fn tokens(text: &str) -> Vec<StatementToken> {
    let mut all: Vec<StatementToken> = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (token, length) = piece(rest, c, text.len() == rest.len());
        // `None` for decoration, which gives no token.
        all.extend(token);
        rest = &rest[length..];
    }
    name_sides(all)
}

/// Returns the token at the beginning of a text, if it is not decoration, and its length in bytes.
fn piece(rest: &str, c: char, is_first: bool) -> (Option<StatementToken>, usize) {
    let after = |n: usize| rest.get(n..).unwrap_or_default();
    if let Some((inner, end)) = marked(rest) {
        return (Some(StatementToken::Mark(inner)), end);
    }
    if let Some(side) = bracketed(rest) {
        return (Some(StatementToken::Side(side)), 3);
    }
    if c.is_alphanumeric() {
        let is_inside = |c: char, next: Option<char>| {
            c.is_alphanumeric() || (matches!(c, '\'' | '_') && next.is_some_and(char::is_alphanumeric))
        };
        let mut chars = rest.char_indices().peekable();
        let mut end = rest.len();
        while let Some((at, c)) = chars.next() {
            if !is_inside(c, chars.peek().map(|(_, next)| *next)) {
                end = at;
                break;
            }
        }
        let token = match letter(&rest[..end]) {
            Some(side) => StatementToken::Letter(side, rest.starts_with(char::is_uppercase)),
            None => StatementToken::Word(rest[..end].to_lowercase()),
        };
        return (Some(token), end);
    }
    let arrows = ["->", "=>", "-->", "==>"];
    if let Some(arrow) = arrows.iter().find(|arrow| rest.starts_with(**arrow)) {
        return (Some(StatementToken::Colon), arrow.len());
    }
    let length = c.len_utf8();
    let token = match c {
        _ if rest.starts_with("...") => {
            return (Some(StatementToken::Other('…')), rest.len() - rest.trim_start_matches('.').len());
        }
        ' ' | '\n' => None,
        ':' | '→' | '⇒' | '=' => Some(StatementToken::Colon),
        '?' => Some(StatementToken::Question),
        ',' | ';' => Some(StatementToken::Comma),
        // A bullet, a dash or a quotation mark at the beginning.
        '-' | '>' | '+' if is_first && after(length).starts_with(' ') => None,
        '-' if after(length).starts_with([' ', '-']) => Some(StatementToken::Comma),
        '!' if after(length).starts_with(|c: char| c.is_alphanumeric() || c == '(') => Some(StatementToken::Other(c)),
        c if DECOR.contains(c) => None,
        c => Some(StatementToken::Other(c)),
    };
    (token, length)
}

fn letter(text: &str) -> Option<Choice> {
    match text {
        "a" | "A" => Some(Choice::A),
        "b" | "B" => Some(Choice::B),
        _ => None,
    }
}

/// Returns the side in `(a)`, `[A]` or `{b}`.
fn bracketed(text: &str) -> Option<Choice> {
    let close = match text.as_bytes().first()? {
        b'(' => b')',
        b'[' => b']',
        b'{' => b'}',
        _ => return None,
    };
    (text.as_bytes().get(2) == Some(&close)).then(|| letter(&text[1..2])).flatten()
}

/// Parses `[[A]]` (MT-bench), `[[A>B]]` (Arena-Hard), or a text enclosed by [`MARKED`]. Returns its verdict, if it contains one, and its
/// length in bytes.
fn marked(text: &str) -> Option<(Option<Choice>, usize)> {
    if let Some(inner) = text.strip_prefix(MARKED[0]) {
        let end = inner.find(MARKED[1])?;
        return Some((inside(&inner[..end]), MARKED[0].len_utf8() + end + MARKED[1].len_utf8()));
    }
    let inner = text.strip_prefix("[[")?;
    let end = inner.as_bytes().windows(2).take(MOST_MARKED).position(|bytes| bytes == b"]]")?;
    let choice = match inner[..end].trim() {
        "C" | "c" => Some(Choice::Tie),
        inner => inside(inner),
    };
    Some((choice, 2 + end + 2))
}

/// Replaces letters, and nouns with letters, by sides. A letter A that is not followed like a side is an article.
fn name_sides(all: Vec<StatementToken>) -> Vec<StatementToken> {
    let mut named: Vec<StatementToken> = Vec::with_capacity(all.len());
    for (i, token) in all.iter().enumerate() {
        let noun = matches!(named.last(), Some(StatementToken::Word(word)) if has(NOUNS, word.as_str()));
        let side = match token {
            StatementToken::Letter(side, is_capital) => {
                let is_side = *side == Choice::B || noun && *is_capital || is_followed_as_side(all.get(i + 1));
                is_side.then_some(*side)
            }
            // Such as `output_a`.
            StatementToken::Word(word) => {
                word.rsplit_once('_').filter(|(noun, _)| has(NOUNS, noun)).and_then(|(_, l)| letter(l))
            }
            StatementToken::Side(side) => Some(*side),
            _ => None,
        };
        let Some(side) = side else {
            named.push(if matches!(token, StatementToken::Letter(..)) {
                StatementToken::Word("a".into())
            } else {
                token.clone()
            });
            continue;
        };
        if noun {
            named.pop();
        }
        // "(a) Output (a)" is one side.
        if named.last() != Some(&StatementToken::Side(side)) {
            named.push(StatementToken::Side(side));
        }
    }
    named
}

/// Returns whether a letter before this token is a side, and not an article.
fn is_followed_as_side(next: Option<&StatementToken>) -> bool {
    let joins = ["because", "since", "over", "to", "than", "and", "or"];
    match next {
        Some(StatementToken::Word(word)) => has(VERBS, word.as_str()) || joins.contains(&word.as_str()),
        Some(StatementToken::Letter(..) | StatementToken::Side(_) | StatementToken::Mark(_)) => false,
        _ => true,
    }
}

/// Returns the words among tokens.
pub fn words(tokens: &[StatementToken]) -> impl Iterator<Item = &str> {
    tokens.iter().filter_map(StatementToken::word)
}

/// Returns the sides among tokens, with their indices.
pub fn sides(tokens: &[StatementToken]) -> Vec<(usize, Choice)> {
    let side = |(i, token): (usize, &StatementToken)| match token {
        StatementToken::Side(side) => Some((i, *side)),
        _ => None,
    };
    tokens.iter().enumerate().filter_map(side).collect()
}
