//! Rewriting of a template's source before it is compiled; see [`super::sandbox`] for the reasons.

use std::ops::Range;

use minijinja::machinery::{Span, Token, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::one_line;

pub(super) const MAX_SOURCE_BYTES: usize = 1 << 18;
/// Largest number of `+` in a tag.
const MAX_SUMS: usize = 64;
/// Largest number of tokens in a tag. Its compilation recurses over operators, and checks at each one whether the expression is constant.
pub(super) const MAX_TOKENS: usize = 1024;

/// Rewritten source of a template, for minijinja.
#[derive(Debug, Default)]
pub(super) struct RewrittenSource {
    pub text: String,
    /// Bytes of `text` between `{% generation %}` and `{% endgeneration %}`.
    pub generation: Vec<Range<usize>>,
}

/// Rewrites the source. Values are then measured where they are assigned to a name or constructed; loops and comparisons behave as in
/// Python; and `generation` becomes the tag `if true`, which minijinja knows.
///
/// # Errors
/// The reason, where the source cannot be bounded: it is too long, uses `recursive`, or has an unsupported operand of `*`.
pub(super) fn rewritten(source: &str, syntax: SyntaxConfig) -> Result<RewrittenSource, String> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(format!("chat template: has {} bytes; at most {MAX_SOURCE_BYTES} are read", source.len()));
    }
    let tokens: Vec<(Token<'_>, Span)> =
        tokenize(source, false, syntax).collect::<Result<_, _>>().map_err(|e| one_line(&e))?;
    // Edits of the source: the replaced range, and its replacement.
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    let mut generation: Vec<Range<usize>> = Vec::new();
    let mut tag = TemplateTag::default();
    // One entry per open parenthesis, bracket or brace: the filter for the value that it constructs, if it constructs one.
    let mut open: Vec<Option<&str>> = Vec::new();
    for (i, (token, span)) in tokens.iter().enumerate() {
        let (from, to) = (span.start_offset as usize, span.end_offset as usize);
        let before = |n: usize| i.checked_sub(n).map(|i| &tokens[i].0);
        let after = tokens.get(i + 1).map(|(token, _)| token);
        let refused = |what: &str| Err(format!("chat template, line {}: {what} is not supported", span.start_line));
        tag.n_tokens += 1;
        if tag.n_tokens > MAX_TOKENS {
            return refused(&format!("a tag of more than {MAX_TOKENS} words and signs"));
        }
        match token {
            Token::TemplateData(_) => tag = TemplateTag::default(),
            Token::VariableStart | Token::BlockStart => {
                tag = TemplateTag::default();
                open.clear();
                if let (Token::BlockStart, Some(Token::Ident(name))) = (token, after) {
                    tag.name = name;
                    tag.target = ["set", "for"].contains(name);
                    if *name == "endgeneration"
                        && let Some(open) = generation.iter_mut().rev().find(|region| region.end == usize::MAX)
                    {
                        open.end = from;
                    }
                }
            }
            Token::Ident("generation") if matches!(before(1), Some(Token::BlockStart)) => {
                edits.push((from..to, "if true".into()));
            }
            Token::Ident("endgeneration") if matches!(before(1), Some(Token::BlockStart)) => {
                edits.push((from..to, "endif".into()));
            }
            Token::Assign if tag.name == "set" && tag.target => {
                tag.target = false;
                tag.close = Some(if tag.dotted { "__copied" } else { "__bounded" });
                insert(to, " (".into(), &mut edits);
            }
            Token::Assign if tag.name == "with" && open.is_empty() => {
                tag.close = Some("__bounded");
                insert(to, " (".into(), &mut edits);
            }
            Token::Comma if tag.name == "with" && open.is_empty() => close(&mut tag, from, &mut edits),
            Token::Ident("in") if tag.name == "for" && tag.target => {
                tag.target = false;
                tag.close = Some("__items");
                insert(to, " (".into(), &mut edits);
            }
            Token::Lt | Token::Lte | Token::Gt | Token::Gte => {
                if !is_constant(before(1)) {
                    insert(from, "|__ordered ".into(), &mut edits);
                }
                if let Some(Some(end)) = right_operand(&tokens[i + 1..]) {
                    insert(end, "|__ordered ".into(), &mut edits);
                }
            }
            Token::Ident("recursive") if tag.name == "for" => return refused("`recursive`"),
            Token::Ident("if") if tag.name == "for" && open.is_empty() => {
                close(&mut tag, from, &mut edits);
            }
            Token::BlockEnd => {
                close(&mut tag, from, &mut edits);
                for name in std::mem::take(&mut tag.parameters) {
                    insert(to, format!("{{% set {name} = ({name})|__bounded {}", &source[from..to]), &mut edits);
                }
                if tag.name == "generation" {
                    generation.push(to..usize::MAX);
                }
            }
            Token::Dot => tag.dotted |= tag.target,
            Token::Plus => {
                tag.n_sums += 1;
                if tag.n_sums > MAX_SUMS {
                    return refused(&format!("more than {MAX_SUMS} `+` in a tag"));
                }
            }
            // No well-meant template multiplies lists, so operands of `*` must be scalars.
            Token::Mul => {
                if !is_constant(before(1)) {
                    insert(from, "|__scalar ".into(), &mut edits);
                }
                match right_operand(&tokens[i + 1..]) {
                    Some(None) => {}
                    Some(Some(end)) => insert(end, "|__scalar ".into(), &mut edits),
                    None => return refused("this operand of `*`"),
                }
            }
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => {
                if open.is_empty() && (tag.name == "macro" || matches!(before(1), Some(Token::Ident("call")))) {
                    tag.in_parameters = ["macro", "call"].contains(&tag.name);
                }
                let written = !tag.target && !tag.in_parameters && is_written(before(1), before(2));
                if written {
                    insert(from, "((".into(), &mut edits);
                }
                let factor = matches!(before(1), Some(Token::Mul));
                if factor && !written {
                    return refused("this operand of `*`");
                }
                open.push(written.then_some(if factor { "__scalar" } else { "__bounded" }));
            }
            Token::ParenClose | Token::BracketClose | Token::BraceClose => {
                if let Some(filter) = open.pop().flatten() {
                    insert(to, format!(")|{filter})"), &mut edits);
                }
                tag.in_parameters &= !open.is_empty();
            }
            Token::Ident(name)
                if tag.in_parameters
                    && open.len() == 1
                    && matches!(before(1), Some(Token::ParenOpen | Token::Comma)) =>
            {
                tag.parameters.push(*name);
            }
            _ => {}
        }
    }
    Ok(apply(source, edits, generation))
}

fn insert(at: usize, text: String, edits: &mut Vec<(Range<usize>, String)>) {
    edits.push((at..at, text));
}

/// Inserts the filter behind the value that is assigned or iterated.
fn close(tag: &mut TemplateTag<'_>, at: usize, edits: &mut Vec<(Range<usize>, String)>) {
    if let Some(filter) = tag.close.take() {
        insert(at, format!(")|{filter} "), edits);
    }
}

fn apply(source: &str, edits: Vec<(Range<usize>, String)>, generation: Vec<Range<usize>>) -> RewrittenSource {
    let (mut text, mut at) = (String::with_capacity(2 * source.len()), 0);
    // Offsets behind each edit: in the source, and in the new text.
    let mut behind = vec![(0, 0)];
    for (range, new) in edits {
        text.push_str(&source[at..range.start]);
        text.push_str(&new);
        at = range.end;
        behind.push((at, text.len()));
    }
    text.push_str(&source[at..]);
    let moved = |offset: usize| {
        let (old, new) = behind[behind.partition_point(|&(old, _)| old <= offset) - 1];
        new + offset - old
    };
    let generation =
        generation.into_iter().map(|r| moved(r.start)..if r.end == usize::MAX { text.len() } else { moved(r.end) });
    let generation = generation.collect();
    RewrittenSource { text, generation }
}

#[derive(Default)]
struct TemplateTag<'a> {
    name: &'a str,
    /// Whether the tokens before the `=` of `set`, or the `in` of `for`, are being read.
    target: bool,
    dotted: bool,
    /// Filter to insert behind the value that is assigned or iterated.
    close: Option<&'static str>,
    /// Names of the parameters of a macro, or of the block of `call`.
    parameters: Vec<&'a str>,
    in_parameters: bool,
    n_sums: usize,
    n_tokens: usize,
}

fn is_constant(token: Option<&Token<'_>>) -> bool {
    matches!(token, Some(Token::Int(_) | Token::Float(_) | Token::Str(_) | Token::String(_)))
}

/// Returns the end of the name, with its attributes, behind an operator; `Some(None)` for a constant or a parenthesis, and `None` for
/// anything else.
fn right_operand(tokens: &[(Token<'_>, Span)]) -> Option<Option<usize>> {
    let first = tokens.first().map(|(token, _)| token);
    if is_constant(first) || matches!(first, Some(Token::ParenOpen)) {
        return Some(None);
    }
    let mut at = 0;
    while let [(Token::Ident(_), span), rest @ ..] = &tokens[at..] {
        match rest.first() {
            Some((Token::Dot, _)) => at += 2,
            Some((Token::BracketOpen | Token::ParenOpen | Token::Pipe, _)) => return None,
            _ => return Some(Some(span.end_offset as usize)),
        }
    }
    None
}

/// Returns whether an opening parenthesis, bracket or brace behind these tokens begins a value, and not a call, an index or the argument of
/// a test.
fn is_written(last: Option<&Token<'_>>, before: Option<&Token<'_>>) -> bool {
    match last {
        Some(Token::Ident("in")) => !matches!(before, Some(Token::Ident("is" | "not"))),
        Some(Token::Ident(word)) => ["and", "do", "elif", "else", "if", "not", "or"].contains(word),
        Some(Token::Str(_) | Token::String(_) | Token::ParenClose | Token::BracketClose | Token::BraceClose) => false,
        _ => true,
    }
}
