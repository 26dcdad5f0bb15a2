//! Sentences as tokens: sides, marks that hold a final answer, words, and what stands between them.

use super::super::plain::MARKED;
use super::super::words::{NOUNS, VERBS, has};
use super::inside;
use crate::eval::judge::Choice;

/// A piece of a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatementToken {
    /// Name of a side.
    Side(Choice),
    /// A mark for final answers, with the verdict in it, if it is one.
    Mark(Option<Choice>),
    /// A letter that may be a side, or an article; whether it is a capital. [`tokens`] decides.
    Letter(Choice, bool),
    /// A word in lower case.
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
    /// The word, if it is one.
    pub fn word(&self) -> Option<&str> {
        match self {
            Self::Word(word) => Some(word),
            _ => None,
        }
    }
}

/// Bytes in `[[` and `]]` that may be a verdict.
const MOST_MARKED: usize = 100;
/// Marks that decorate. Any other one may change what is meant: ❌, ~~, ¬.
const DECOR: &str = "*_`#\"'.!•●▪◦·★⭐🌟🥇🔹🔸✅✔☑🏆👍🎉👉➡📝🎯⚖😊🙂😀😃👏🙌🚀✨💯";

/// Splits a sentence, or several, into tokens.
pub fn tokens(text: &str) -> Vec<StatementToken> {
    let mut all: Vec<StatementToken> = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (token, length) = piece(rest, c, text.len() == rest.len());
        // Repeated marks are one: ":::", "--".
        all.extend(token);
        rest = &rest[length..];
    }
    name_sides(all)
}

/// The token at the beginning of a text, if it is more than decoration, and its bytes.
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
        // A bullet, a dash, a quotation.
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

/// `(a)`, `[A]`, `{b}`.
fn bracketed(text: &str) -> Option<Choice> {
    let close = match text.as_bytes().first()? {
        b'(' => b')',
        b'[' => b']',
        b'{' => b'}',
        _ => return None,
    };
    (text.as_bytes().get(2) == Some(&close)).then(|| letter(&text[1..2])).flatten()
}

/// `[[A]]`, as of MT-bench, `[[A>B]]`, as of Arena-Hard, or what [`MARKED`] encloses: its verdict, if it is one, and its bytes.
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

/// Makes sides of letters and of nouns with letters. A letter before a word that no verdict about it begins with is an article.
fn name_sides(all: Vec<StatementToken>) -> Vec<StatementToken> {
    let mut named: Vec<StatementToken> = Vec::with_capacity(all.len());
    for (i, token) in all.iter().enumerate() {
        let noun = matches!(named.last(), Some(StatementToken::Word(word)) if has(NOUNS, word.as_str()));
        let side = match token {
            StatementToken::Letter(side, is_capital) => {
                let is_side = *side == Choice::B || noun && *is_capital || is_followed_as_side(all.get(i + 1));
                is_side.then_some(*side)
            }
            // output_a
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

/// Whether a letter before this is a side, and no article.
fn is_followed_as_side(next: Option<&StatementToken>) -> bool {
    let joins = ["because", "since", "over", "to", "than", "and", "or"];
    match next {
        Some(StatementToken::Word(word)) => has(VERBS, word.as_str()) || joins.contains(&word.as_str()),
        Some(StatementToken::Letter(..) | StatementToken::Side(_) | StatementToken::Mark(_)) => false,
        _ => true,
    }
}

/// The words among tokens.
pub fn words(tokens: &[StatementToken]) -> impl Iterator<Item = &str> {
    tokens.iter().filter_map(StatementToken::word)
}

/// The sides among tokens, and where they stand.
pub fn sides(tokens: &[StatementToken]) -> Vec<(usize, Choice)> {
    let side = |(i, token): (usize, &StatementToken)| match token {
        StatementToken::Side(side) => Some((i, *side)),
        _ => None,
    };
    tokens.iter().enumerate().filter_map(side).collect()
}
