//! Bounds on what a chat template takes. minijinja's fuel pays for instructions and for strings as they are made, but values that hold
//! others are turned into text, and compared, before anything is charged; they may share parts, so their text may be exponentially
//! long, or endless where a namespace holds itself. So they are measured wherever they get a name or are written down
//! ([`bounded`] rewrites the source for that), copied where a namespace takes them, and what could still multiply them is refused.

use std::collections::BTreeMap;

use minijinja::machinery::{Span, Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use super::one_line;

/// Of a rendering: instructions, or 64 bytes each.
const FUEL: u64 = 1 << 22;
/// Loops, blocks and macros (four each) within each other.
const MAX_RECURSION: usize = 100;
const MAX_SOURCE_BYTES: usize = 1 << 18;
const MAX_DEPTH: usize = 64;
/// `+` in a tag.
const MAX_SUMS: usize = 64;
/// Of a tag: its compilation recurses by operators, and tries at each whether it is constant.
const MAX_TOKENS: usize = 1024;

/// Of a value with all that it holds, shared parts as often as they are reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub n_values: usize,
    pub depth: usize,
}

/// Sets the limits, and the filters that [`bounded`] writes.
pub(super) fn apply(environment: &mut Environment<'_>) {
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_unknown_method_callback(|state, value, method, args| {
        args.iter().try_for_each(|arg| measure(state, arg).map(drop))?;
        if let Some(text) = value.as_str().filter(|_| method == "format") {
            charge(state, widths(text)?)?;
        }
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
    });
    environment.add_filter("__bounded", |state: &State, value: Value| measure(state, &value).map(|_| value));
    environment.add_filter("__scalar", scalar);
    environment.add_filter("__copied", |state: &State, value: Value| copied(state, &value, 0));
}

/// The value, where it is no container.
fn scalar(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable => {
            Err(Error::new(ErrorKind::InvalidOperation, "`*` of a list or a map is not supported"))
        }
        _ => Ok(value),
    }
}

/// Pays for bytes ahead.
pub(super) fn charge(state: &State, n_bytes: usize) -> Result<(), Error> {
    state.consume_fuel(n_bytes as u64 / 64)
}

/// The size of a value, paid for; an error where it is nested too deep.
pub(super) fn measure(state: &State, value: &Value) -> Result<Size, Error> {
    let mut size = Size::default();
    match value.kind() {
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable => walk(state, value, 0, &mut size)?,
        _ => size.n_values = 1,
    }
    Ok(size)
}

fn deeper(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        let reason = format!("values are nested more than {MAX_DEPTH} deep");
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    state.consume_fuel(1)?;
    charge(state, value.as_str().map_or(0, str::len))
}

fn walk(state: &State, value: &Value, depth: usize, size: &mut Size) -> Result<(), Error> {
    deeper(state, value, depth)?;
    size.n_values += 1;
    size.depth = size.depth.max(depth);
    match value.kind() {
        ValueKind::Map => {
            for key in value.try_iter()? {
                walk(state, &key, depth + 1, size)?;
                walk(state, &value.get_item(&key)?, depth + 1, size)?;
            }
        }
        // Without a length it is printed by its type.
        ValueKind::Seq | ValueKind::Iterable if value.len().is_some() => {
            for item in value.try_iter()? {
                walk(state, &item, depth + 1, size)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// The same without namespaces in it, so that a namespace never comes to hold itself.
fn copied(state: &State, value: &Value, depth: usize) -> Result<Value, Error> {
    deeper(state, value, depth)?;
    match value.kind() {
        ValueKind::Map => {
            let pair = |key: Value| {
                let held = copied(state, &value.get_item(&key)?, depth + 1)?;
                Ok::<_, Error>((copied(state, &key, depth + 1)?, held))
            };
            Ok(Value::from(value.try_iter()?.map(pair).collect::<Result<BTreeMap<_, _>, _>>()?))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| copied(state, &item, depth + 1));
            Ok(Value::from(items.collect::<Result<Vec<_>, _>>()?))
        }
        _ => Ok(value.clone()),
    }
}

/// All widths and precisions of a `str.format` string together.
fn widths(format: &str) -> Result<usize, Error> {
    if format.contains(":{") {
        return Err(Error::new(ErrorKind::InvalidOperation, "a width within a width is not supported"));
    }
    let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    Ok(numbers.fold(0, |all: usize, digits| all.saturating_add(digits.parse().unwrap_or(usize::MAX))))
}

/// The source with values measured where they get a name or are written down.
///
/// # Errors
/// The reason, where it cannot be bounded: too long, `with`, `call`, `recursive`, some operands of `*`.
pub(super) fn bounded(source: &str, syntax: SyntaxConfig) -> Result<String, String> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(format!("chat template: has {} bytes; at most {MAX_SOURCE_BYTES} are read", source.len()));
    }
    let tokens: Vec<(Token<'_>, Span)> =
        tokenize(source, false, syntax).collect::<Result<_, _>>().map_err(|e| one_line(&e))?;
    let mut edits = Vec::new();
    let mut tag = Tag::default();
    // Of every open parenthesis, bracket and brace: the filter for the value that it writes down, if it is one.
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
            Token::TemplateData(_) => tag = Tag::default(),
            Token::VariableStart | Token::BlockStart => {
                tag = Tag::default();
                open.clear();
                if let (Token::BlockStart, Some(Token::Ident(name))) = (token, after) {
                    if ["with", "call"].contains(name) {
                        return refused(&format!("`{name}`"));
                    }
                    tag.name = name;
                    tag.target = ["set", "for"].contains(name);
                }
            }
            Token::Assign if tag.name == "set" && tag.target => {
                tag.target = false;
                tag.close = Some(if tag.dotted { "__copied" } else { "__bounded" });
                edits.push((to, " (".into()));
            }
            Token::Ident("in") if tag.name == "for" && tag.target => {
                tag.target = false;
                tag.close = Some("__bounded");
                edits.push((to, " (".into()));
            }
            Token::Ident("recursive") if tag.name == "for" => return refused("`recursive`"),
            Token::Ident("if") if tag.name == "for" && open.is_empty() => {
                edits.extend(tag.close.take().map(|filter| (from, format!(")|{filter} "))));
            }
            Token::BlockEnd => {
                edits.extend(tag.close.take().map(|filter| (from, format!(")|{filter} "))));
                for name in std::mem::take(&mut tag.parameters) {
                    edits.push((to, format!("{{% set {name} = ({name})|__bounded {}", &source[from..to])));
                }
            }
            Token::Dot => tag.dotted |= tag.target,
            Token::Plus => {
                tag.n_sums += 1;
                if tag.n_sums > MAX_SUMS {
                    return refused(&format!("more than {MAX_SUMS} `+` in a tag"));
                }
            }
            // Its operands are lists in no template that is meant well.
            Token::Mul => {
                if !is_constant(before(1)) {
                    edits.push((from, "|__scalar ".into()));
                }
                match right_operand(&tokens[i + 1..]) {
                    Some(None) => {}
                    Some(Some(end)) => edits.push((end, "|__scalar ".into())),
                    None => return refused("this operand of `*`"),
                }
            }
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => {
                let written = !tag.target && tag.name != "macro" && is_written(before(1), before(2));
                if written {
                    edits.push((from, "((".into()));
                }
                let factor = matches!(before(1), Some(Token::Mul));
                if factor && !written {
                    return refused("this operand of `*`");
                }
                open.push(written.then_some(if factor { "__scalar" } else { "__bounded" }));
            }
            Token::ParenClose | Token::BracketClose | Token::BraceClose => {
                edits.extend(open.pop().flatten().map(|filter| (to, format!(")|{filter})"))));
            }
            Token::Ident(name)
                if tag.name == "macro"
                    && open.len() == 1
                    && matches!(before(1), Some(Token::ParenOpen | Token::Comma)) =>
            {
                tag.parameters.push(*name);
            }
            _ => {}
        }
    }
    let (mut out, mut at) = (String::with_capacity(2 * source.len()), 0);
    for (offset, text) in edits {
        out.push_str(&source[at..offset]);
        out.push_str(&text);
        at = offset;
    }
    Ok(out + &source[at..])
}

#[derive(Default)]
struct Tag<'a> {
    name: &'a str,
    /// Before the `=` of `set`, the `in` of `for`.
    target: bool,
    dotted: bool,
    /// The filter to put behind what is assigned or iterated.
    close: Option<&'static str>,
    /// Of a macro.
    parameters: Vec<&'a str>,
    n_sums: usize,
    n_tokens: usize,
}

fn is_constant(token: Option<&Token<'_>>) -> bool {
    matches!(token, Some(Token::Int(_) | Token::Float(_) | Token::Str(_) | Token::String(_)))
}

/// Of `*`: where a name with its attributes ends; `Some(None)` for a constant or a parenthesis, `None` for anything else.
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

/// Whether an opening parenthesis, bracket or brace behind these tokens begins a value, rather than a call, an index or the
/// argument of a test.
fn is_written(last: Option<&Token<'_>>, before: Option<&Token<'_>>) -> bool {
    match last {
        Some(Token::Ident("in")) => !matches!(before, Some(Token::Ident("is" | "not"))),
        Some(Token::Ident(word)) => ["and", "do", "elif", "else", "if", "not", "or"].contains(word),
        Some(Token::Str(_) | Token::String(_) | Token::ParenClose | Token::BracketClose | Token::BraceClose) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ChatInput, ChatTemplate};

    fn render(source: &str) -> Result<String, String> {
        let template = ChatTemplate::new(source, vec![("bos_token".into(), "<s>".into())])?;
        template.render(&ChatInput::default()).map(|r| r.text)
    }

    /// All of these took gigabytes, hung, or ended the program.
    #[test]
    fn no_template_takes_more_than_its_share() {
        let doubled = "{% set x = [x, x] %}".repeat(40);
        let deep = "{% set x = [[[[[[[[x]]]]]]]] %}".repeat(3000);
        let refused = [
            "{{ [1]|tojson(indent=10000000000) }}",
            "{{ [1]|tojson(indent=18446744073709551615) }}",
            "{{ '%99999999999d'|format(3) }}",
            "{{ '%.99999999999f'|format(3.5) }}",
            "{{ '{:99999999999}'.format(3) }}",
            "{{ '{:{}}'.format(3, 99999999999) }}",
            "{{ 'a\\nb'|indent(10000000000) }}",
            "{{ 'x' * 10000000000 }}",
            "{% set ns = namespace() %}{% set ns.a = [ns] %}{% for i in range(99) %}{% set ns.a = [ns] %}{% endfor %}{{ ns }}",
            "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}{% endfor %}{% endfor %}{% endfor %}",
            "{% set ns = namespace(s='x') %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s|length }}",
            "{% set ns = namespace(s='x') %}{% for i in range(40) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s ~ '' }}",
            "{% macro m(a, n) %}{{ (a ~ '')|length if n == 0 else m([a, a], n - 1) }}{% endmacro %}{{ m('x', 20) }}",
            "{% macro m(a) %}{{ m(a) }}{% endmacro %}{{ m('x') }}",
            "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
            "{{ [[['x'] * 1000] * 1000] * 1000 ~ '' }}",
            "{% set x = ['x'] %}{{ x * 10000000000 ~ '' }}",
            "{% set x = namespace(a=['x']) %}{{ 10000000000 * x.a ~ '' }}",
            "{% set x = ['x'] %}{{ 10000000000 * (x) ~ '' }}",
            "{% set x = ['x'] %}{{ 10000000000 * x[0:] ~ '' }}",
            "{% set x = ['x'] %}{{ 10000000000 * x|list ~ '' }}",
            "{{ 10000000000 * ['x'] ~ '' }}",
            "{% with x = [1] %}{% with x = [x, x] %}{{ x }}{% endwith %}{% endwith %}",
            &format!("{{% set x = 'x' %}}{doubled}{{{{ x ~ '' }}}}"),
            &format!("{{% set x = 'x' %}}{deep}{{{{ x }}}}"),
            &format!("{{{{ 'x'{} }}}}", " + 'x'".repeat(65)),
            &format!("{{{{ 'x'{} }}}}", " ~ 1".repeat(50_000)),
            &format!("{{{{ 'x'{} }}}}", "|e".repeat(50_000)),
            &"x".repeat(super::MAX_SOURCE_BYTES + 1),
        ];
        for source in refused {
            let reason = render(source).expect_err(&source[..source.len().min(200)]);
            assert!(reason.starts_with("chat template"), "{reason}");
        }
        for chain in [" ~ 1", "|e", " - 1", "[0]", ".a", " == 1", " and 1"] {
            let _ = render(&format!("{{{{ 'x'{} }}}}", chain.repeat(super::MAX_TOKENS / 2 - 2)).repeat(20));
        }
        let held = "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns }}{{ ns.a }}";
        assert_eq!(render(held).as_deref(), Ok("{'a': [{}]}[{}]"));
    }

    #[test]
    fn bounds_change_nothing_else() {
        for (source, text) in [
            ("{% set a, b = 1, [2, 3][1] %}{{ a }}{{ b }}", "13"),
            ("{% set (a, b) = (1, 2) %}{{ a + b }}", "3"),
            ("{% set x %}\n a{% endset -%}\n{{ x }}", " a"),
            (
                "{% set ns = namespace(n=0, l=[]) %}{% for c in 'abc' if c != 'b' %}{% set ns.n = ns.n + loop.index %}{% set ns.l = ns.l + [c] %}{% endfor %}{{ ns.n }}{{ ns.l }}",
                "3['a', 'c']",
            ),
            ("{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}", "a1b2"),
            ("{% for x in [1, 2] if x > 1 else [] %}{{ x }}{% endfor %}", "chat template"),
            ("{% for x in ([1, 2] if true else []) -%}\n {{ x }}\n{%- endfor %}", "12"),
            (
                "{% macro m(a, b='z', c=[1]) -%}\n {{ a }}{{ b }}{{ c[0] }}{{ a is defined }}\n{%- endmacro %}{{ m('x') }}{{ m() }}",
                "xz1Truez1False",
            ),
            ("{% macro m(a) %}\n{{ a }}{% endmacro %}{{ m('x') }}", "x"),
            ("{{ 'a' in ['a'] and 'b' not in ('a', 'c') and 1 is in [1] and 2 is not in [1] }}", "True"),
            ("{{ ('a', 'b')[1] }}{{ ['a', 'b'][-1:] }}{{ {'a': [1]}['a'] }}", "b['b'][1]"),
            ("{% if not ['a'] or (1 == 2) %}x{% elif ['a'] %}y{% endif %}", "y"),
            ("{% set x = u %}{{ x is defined }}{% set x = none %}{{ x is none }}", "FalseTrue"),
            ("{# {% set a.b = #}{% raw %}{% with %}{{ [{% endraw %}{{ '{% with %}' }}", "{% with %}{{ [{% with %}"),
            (
                "{{ '=' * 3 }}{{ 2 * 3 }}{{ '{:>3}|{}'.format('a', 2) }}{{ ', '.join(['a', 'b']) }}{{ '%3d'|format(3) }}",
                "===6  a|2a, b  3",
            ),
            (
                "{% set n = namespace(a=2) %}{% set k = 3 %}{{ n.a * k + 1 }}{{ -k * (n.a + 1) * 2 }}{{ ' ' * k * n.a }}|",
                "7-18      |",
            ),
            ("{% set m = {'role': 'x'} %}{% set l = [m] + [{'role': 'y'}] %}{{ l|map(attribute='role')|join }}", "xy"),
            ("{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02"),
        ] {
            match render(source) {
                Ok(got) => assert_eq!(got, text, "{source}"),
                Err(reason) => assert!(reason.starts_with(text), "{source}: {reason}"),
            }
        }
    }
}
