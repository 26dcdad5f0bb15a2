//! The grammar of verdicts: which sentences say that one of (a) and (b) is better. A sentence with a word that the grammar does not have says
//! nothing, so that no negation, condition or comparison is taken for a verdict because nobody thought of it.

use super::plain::MARKED;
use super::words::{
    BETTER, CLOSING, DECIDES, DOUBTS, FOREIGN, GROUNDS, LABELS, LEADS, NOUNS, PREDICATE, REASONS, TIE, TIED, VERBS, has,
};
use crate::eval::judge::Choice;

/// What a sentence says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statement {
    /// A verdict.
    Verdict(Choice, Form),
    /// That this side is not the better one.
    Against(Choice),
    /// Neither.
    Nothing,
}

/// How a verdict is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The side alone: `(a)`, `Output (b)`.
    Bare,
    /// A sentence: "Output (a) is better".
    Sentence,
    /// Behind a label, `Answer: (a)`, or in a mark for final answers, `[[A]]`.
    Marked,
}

/// A piece of a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// One of the sides.
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

impl Token {
    fn word(&self) -> Option<&str> {
        match self {
            Self::Word(word) => Some(word),
            _ => None,
        }
    }
}

/// Phrases that may be left out.
const PHRASES: &[&[&str]] = &[
    &["in", "my", "opinion"],
    &["in", "my", "view"],
    &["in", "my", "judgment"],
    &["in", "conclusion"],
    &["in", "summary"],
    &["in", "short"],
    &["in", "the", "end"],
    &["on", "balance"],
    &["on", "the", "whole"],
    &["all", "things", "considered"],
    &["than", "the", "other", "one"],
    &["than", "the", "other", "output"],
    &["than", "the", "other", "response"],
    &["than", "the", "other"],
];
/// Bytes in `[[` and `]]` that may be a verdict.
const MOST_MARKED: usize = 100;
/// Marks that decorate. Any other one may change what is meant: ❌, ~~, ¬.
const DECOR: &str = "*_`#\"'.!•●▪◦·★⭐🌟🥇🔹🔸✅✔☑🏆👍🎉👉➡📝🎯⚖😊🙂😀😃👏🙌🚀✨💯";

/// Whether a word may turn a verdict around.
pub fn is_doubt(word: &str) -> bool {
    has(DOUBTS, word) || word.ends_with("n't")
}

fn is_lead(word: &str) -> bool {
    has(LEADS, word) || has(NOUNS, word) || has(LABELS, word) || has(FOREIGN, word)
}

/// Splits a sentence, or several, into tokens.
pub fn tokens(text: &str) -> Vec<Token> {
    let mut all: Vec<Token> = Vec::new();
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
fn piece(rest: &str, c: char, is_first: bool) -> (Option<Token>, usize) {
    let after = |n: usize| rest.get(n..).unwrap_or_default();
    if let Some((inner, end)) = marked(rest) {
        return (Some(Token::Mark(inner)), end);
    }
    if let Some(side) = bracketed(rest) {
        return (Some(Token::Side(side)), 3);
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
            Some(side) => Token::Letter(side, rest.starts_with(char::is_uppercase)),
            None => Token::Word(rest[..end].to_lowercase()),
        };
        return (Some(token), end);
    }
    let arrows = ["->", "=>", "-->", "==>"];
    if let Some(arrow) = arrows.iter().find(|arrow| rest.starts_with(**arrow)) {
        return (Some(Token::Colon), arrow.len());
    }
    let length = c.len_utf8();
    let token = match c {
        _ if rest.starts_with("...") => {
            return (Some(Token::Other('…')), rest.len() - rest.trim_start_matches('.').len());
        }
        ' ' | '\n' => None,
        ':' | '→' | '⇒' | '=' => Some(Token::Colon),
        '?' => Some(Token::Question),
        ',' | ';' => Some(Token::Comma),
        // A bullet, a dash, a quotation.
        '-' | '>' | '+' if is_first && after(length).starts_with(' ') => None,
        '-' if after(length).starts_with([' ', '-']) => Some(Token::Comma),
        '!' if after(length).starts_with(|c: char| c.is_alphanumeric() || c == '(') => Some(Token::Other(c)),
        c if DECOR.contains(c) => None,
        c => Some(Token::Other(c)),
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

/// The verdict in a mark: nothing but a statement, or a ranking.
pub fn inside(text: &str) -> Option<Choice> {
    let ranking: String = text.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_uppercase();
    match ranking.as_str() {
        "A>B" | "A>>B" => return Some(Choice::A),
        "B>A" | "B>>A" => return Some(Choice::B),
        "A=B" | "B=A" => return Some(Choice::Tie),
        _ => {}
    }
    match statement(&tokens(text)) {
        Statement::Verdict(choice, _) => Some(choice),
        Statement::Against(_) | Statement::Nothing => None,
    }
}

/// Makes sides of letters and of nouns with letters. A letter before a word that no verdict about it begins with is an article.
fn name_sides(all: Vec<Token>) -> Vec<Token> {
    let mut named: Vec<Token> = Vec::with_capacity(all.len());
    for (i, token) in all.iter().enumerate() {
        let noun = matches!(named.last(), Some(Token::Word(word)) if has(NOUNS, word.as_str()));
        let side = match token {
            Token::Letter(side, is_capital) => {
                let is_side = *side == Choice::B || noun && *is_capital || is_followed_as_side(all.get(i + 1));
                is_side.then_some(*side)
            }
            // output_a
            Token::Word(word) => {
                word.rsplit_once('_').filter(|(noun, _)| has(NOUNS, noun)).and_then(|(_, l)| letter(l))
            }
            Token::Side(side) => Some(*side),
            _ => None,
        };
        let Some(side) = side else {
            named.push(if matches!(token, Token::Letter(..)) { Token::Word("a".into()) } else { token.clone() });
            continue;
        };
        if noun {
            named.pop();
        }
        // "(a) Output (a)" is one side.
        if named.last() != Some(&Token::Side(side)) {
            named.push(Token::Side(side));
        }
    }
    named
}

/// Whether a letter before this is a side, and no article.
fn is_followed_as_side(next: Option<&Token>) -> bool {
    let joins = ["because", "since", "over", "to", "than", "and", "or"];
    match next {
        Some(Token::Word(word)) => has(VERBS, word.as_str()) || joins.contains(&word.as_str()),
        Some(Token::Letter(..) | Token::Side(_) | Token::Mark(_)) => false,
        _ => true,
    }
}

fn words(tokens: &[Token]) -> impl Iterator<Item = &str> {
    tokens.iter().filter_map(Token::word)
}

fn sides(tokens: &[Token]) -> Vec<(usize, Choice)> {
    let side = |(i, token): (usize, &Token)| match token {
        Token::Side(side) => Some((i, *side)),
        _ => None,
    };
    tokens.iter().enumerate().filter_map(side).collect()
}

/// Leaves phrases out that say nothing.
fn without_phrases(tokens: &[Token]) -> Vec<Token> {
    let mut out: Vec<Token> = Vec::with_capacity(tokens.len());
    let mut i = 0;
    while i < tokens.len() {
        let is_here = |phrase: &&&[&str]| {
            let here = tokens[i..].iter().map(Token::word);
            phrase.len() <= tokens.len() - i && here.zip(phrase.iter()).all(|(word, expected)| word == Some(*expected))
        };
        match PHRASES.iter().find(is_here) {
            Some(phrase) => i += phrase.len(),
            None => {
                out.push(tokens[i].clone());
                i += 1;
            }
        }
    }
    out
}

/// What a sentence says.
pub fn statement(tokens: &[Token]) -> Statement {
    if tokens.contains(&Token::Question) {
        return Statement::Nothing;
    }
    let tokens = without_phrases(tokens);
    if let Some(at) = tokens.iter().position(|token| matches!(token, Token::Mark(_))) {
        return of_mark(&tokens, at);
    }
    // A), as in tests with several choices.
    if let [Token::Side(side), Token::Other(')')] = tokens[..] {
        return Statement::Verdict(side, Form::Bare);
    }
    let first_side = tokens.iter().position(|token| matches!(token, Token::Side(_))).unwrap_or(tokens.len());
    let is_reason = |(i, token): (usize, &Token)| {
        let next = tokens.get(i + 1).and_then(Token::word);
        match token.word() {
            Some("because" | "since" | "due") => true,
            Some("as") => matches!(next, Some("it" | "its" | "it's")),
            _ => false,
        }
    };
    let reason =
        tokens.iter().enumerate().skip(first_side).find(|found| is_reason(*found)).map_or(tokens.len(), |(i, _)| i);
    let (said, reason) = tokens.split_at(reason);
    let found = of_clauses(said);
    match found {
        Statement::Verdict(choice, _) if !explains(reason, choice) => Statement::Nothing,
        found => found,
    }
}

/// A sentence with a mark for final answers: free before it, if nothing there may turn it around, and a label is there or nothing else.
fn of_mark(tokens: &[Token], at: usize) -> Statement {
    let (before, after) = (&tokens[..at], &tokens[at + 1..]);
    let Token::Mark(Some(choice)) = tokens[at] else { return Statement::Nothing };
    let is_labelled = words(before).all(is_lead) || words(before).any(|word| has(LABELS, word));
    let is_free = sides(before).iter().all(|(_, side)| *side == choice);
    let is_doubt = |word: &str| is_doubt(word) && !(choice == Choice::Tie && has(TIE, word));
    if is_labelled && is_free && !words(before).any(is_doubt) && explains(after, choice) {
        return Statement::Verdict(choice, Form::Marked);
    }
    Statement::Nothing
}

/// Clauses between commas, which must agree.
fn of_clauses(tokens: &[Token]) -> Statement {
    let mut found = Statement::Nothing;
    let mut lead: Vec<Token> = Vec::new();
    let clauses: Vec<&[Token]> = tokens.split(|token| *token == Token::Comma).collect();
    for (i, clause) in clauses.iter().enumerate() {
        let is_ground = words(clause).next().is_some_and(|word| has(GROUNDS, word));
        let is_free = |word: &str| !is_doubt(word) || word == "both";
        if clause.is_empty()
            || is_ground && i + 1 < clauses.len() && sides(clause).is_empty() && words(clause).all(is_free)
        {
            continue;
        }
        // "Therefore, the verdict is, clearly, (a)".
        if sides(clause).is_empty()
            && words(clause).all(is_lead)
            && found == Statement::Nothing
            && i + 1 < clauses.len()
        {
            lead.extend_from_slice(clause);
            continue;
        }
        let whole: Vec<Token> = lead.drain(..).chain(clause.iter().cloned()).collect();
        found = match (found, of_clause(&whole)) {
            (_, Statement::Nothing) => return Statement::Nothing,
            (Statement::Nothing, one) => one,
            (Statement::Verdict(a, form), Statement::Verdict(b, _)) if a == b => Statement::Verdict(a, form),
            _ => return Statement::Nothing,
        };
    }
    found
}

fn of_clause(tokens: &[Token]) -> Statement {
    let is_known = |token: &Token| matches!(token, Token::Side(_) | Token::Word(_) | Token::Colon);
    if !tokens.iter().all(is_known) {
        return Statement::Nothing;
    }
    match sides(tokens)[..] {
        [] => tie(tokens, &[]),
        [(at, side)] => of_side(&tokens[..at], side, &tokens[at + 1..]),
        [(first, a), (second, b)] if a != b => {
            of_both(&tokens[..first], a, &tokens[first + 1..second], &tokens[second + 1..])
        }
        _ => Statement::Nothing,
    }
}

/// A clause about one side.
fn of_side(before: &[Token], side: Choice, after: &[Token]) -> Statement {
    let known = |word: &str| is_lead(word) || has(PREDICATE, word);
    let negates = |word: &str| is_doubt(word);
    if words(before).chain(words(after)).any(negates) {
        let all = words(before).chain(words(after)).all(|word| known(word) || negates(word));
        return if all { Statement::Against(side) } else { Statement::Nothing };
    }
    let asks = words(before).next().is_some_and(|word| ["is", "would", "will", "be", "must"].contains(&word));
    // "So is (a)": what is, was said before.
    let has_subject = |word: &str| has(NOUNS, word) || has(LABELS, word) || ["one", "it", "that"].contains(&word);
    let lacks_subject =
        matches!(before.last().and_then(Token::word), Some("is" | "be")) && !words(before).any(has_subject);
    // "One would think that (a)".
    let supposes =
        words(before).any(|word| word == "would") && !words(before).any(|word| ["i", "we", "be"].contains(&word));
    if !words(before).all(is_lead) || asks || lacks_subject || supposes {
        return Statement::Nothing;
    }
    if after.is_empty() {
        let is_label = before.contains(&Token::Colon) && words(before).any(|word| has(LABELS, word));
        let is_bare = words(before).all(|word| word == "the" || has(NOUNS, word));
        let form = match (is_label, is_bare) {
            (true, _) => Form::Marked,
            (false, true) => Form::Bare,
            (false, false) => Form::Sentence,
        };
        return Statement::Verdict(side, form);
    }
    // "Output (a) better answers its instruction".
    let begins = match after {
        [Token::Word(better), rest @ ..] if better == "better" => rest,
        all => all,
    };
    let is_verdict = words(begins).next().is_some_and(|word| has(VERBS, word))
        && after.iter().all(|token| token.word().is_some_and(|word| has(PREDICATE, word)))
        && words(after).any(|word| has(BETTER, word));
    if is_verdict { Statement::Verdict(side, Form::Sentence) } else { Statement::Nothing }
}

/// A clause about both sides: "(a) is better than (b)", "(a) and (b) are equally good".
fn of_both(before: &[Token], first: Choice, between: &[Token], after: &[Token]) -> Statement {
    let between: Vec<&str> = between.iter().map(|token| token.word().unwrap_or(":")).collect();
    if between == ["and"] {
        return tie(before, after);
    }
    let [verb, middle @ .., end] = &between[..] else { return Statement::Nothing };
    let compares = match *end {
        "than" => middle.contains(&"better"),
        "to" => middle.iter().any(|word| ["superior", "preferable", "preferred"].contains(word)),
        _ => false,
    };
    let is_verdict = ["is", "was", "answers", "performs", "does"].contains(verb)
        && middle.iter().all(|word| has(PREDICATE, word))
        && words(before).all(is_lead)
        && words(before).next().is_none_or(|word| word != "is")
        && after.is_empty();
    if is_verdict && compares { Statement::Verdict(first, Form::Sentence) } else { Statement::Nothing }
}

/// A clause that says that both are equal, without their names.
fn tie(before: &[Token], after: &[Token]) -> Statement {
    let all = || words(before).chain(words(after));
    let is_tie = all().all(|word| has(TIE, word) || is_lead(word)) && all().any(|word| has(TIED, word));
    match is_tie {
        true => {
            Statement::Verdict(Choice::Tie, if before.contains(&Token::Colon) { Form::Marked } else { Form::Sentence })
        }
        false => Statement::Nothing,
    }
}

/// Whether what follows a verdict in its sentence leaves it alone.
fn explains(tokens: &[Token], choice: Choice) -> bool {
    let tokens = match tokens {
        [Token::Comma, rest @ ..] => rest,
        all => all,
    };
    tokens.is_empty() || words(tokens).next().is_some_and(|word| has(REASONS, word)) && is_harmless(tokens, choice)
}

fn is_harmless(tokens: &[Token], choice: Choice) -> bool {
    let decides = |word: &str| has(DECIDES, word) && sides(tokens).is_empty();
    let is_harmless = |token: &Token| match token {
        Token::Side(side) => *side == choice,
        Token::Word(word) => !is_doubt(word) && !decides(word),
        Token::Comma | Token::Colon => true,
        Token::Letter(..) | Token::Mark(_) | Token::Question | Token::Other(_) => false,
    };
    tokens.iter().all(is_harmless)
}

/// Whether a sentence behind a verdict leaves it alone: a polite ending, an explanation, or more about the same side.
pub fn is_quiet(tokens: &[Token], choice: Choice) -> bool {
    let is_closing =
        !tokens.contains(&Token::Question) && sides(tokens).is_empty() && words(tokens).all(|w| has(CLOSING, w));
    let is_known = |token: &Token| !matches!(token, Token::Mark(_) | Token::Other(_));
    let about = !sides(tokens).is_empty() && is_harmless(tokens, choice);
    tokens.is_empty() || is_closing && tokens.iter().all(is_known) || explains(tokens, choice) || about
}

/// Whether a question before a verdict asks for it.
pub fn asks_for_verdict(tokens: &[Token]) -> bool {
    let asks =
        |word: &str| is_lead(word) || has(PREDICATE, word) || ["which", "what", "who", "question"].contains(&word);
    tokens.iter().all(|token| match token {
        Token::Word(word) => asks(word),
        Token::Question | Token::Comma | Token::Colon => true,
        _ => false,
    })
}

/// Whether a line without a full stop names what follows it: "Final verdict".
pub fn is_label(tokens: &[Token]) -> bool {
    sides(tokens).is_empty()
        && words(tokens).any(|word| has(LABELS, word))
        && tokens.iter().all(|token| matches!(token, Token::Colon) || token.word().is_some_and(is_lead))
}

/// Whether a sentence may turn around what follows it, or goes on in it.
pub fn may_turn(tokens: &[Token], is_finished: bool) -> bool {
    let goes_on = [
        "is", "are", "be", "was", "the", "of", "to", "for", "and", "or", "with", "by", "than", "as", "that", "say",
        "choose",
    ];
    let dangles = !is_finished && tokens.last().and_then(Token::word).is_some_and(|word| goes_on.contains(&word));
    // "Worse." is about what follows, a long sentence that is finished is not.
    let is_short = words(tokens).count() <= 6;
    let doubts = words(tokens).any(|word| is_doubt(word) && (!is_finished || is_short && !has(TIED, word)));
    // "The output with more errors is the following."
    let points =
        words(tokens).any(|word| ["following", "follows", "below"].contains(&word)) && !words(tokens).all(is_lead);
    dangles || doubts || points || tokens.iter().any(|token| matches!(token, Token::Other('<')))
}
