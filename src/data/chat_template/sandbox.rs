//! Limits on the time and memory that a chat template may use. minijinja consumes fuel for instructions, and for strings as they are
//! created. But containers are converted to text, and compared, without consuming fuel. Containers may share parts, so that their text may
//! be exponentially long, or endless where a namespace contains itself. Values are therefore measured wherever they are assigned to a name
//! or constructed ([`super::rewrite`] changes the source for that), and copied where a namespace takes them. Operations that could still
//! multiply them are refused.

use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use super::fuel::charge;
use super::methods;

/// Fuel of one rendering: a unit per instruction, or per 64 bytes.
const FUEL: u64 = 1 << 22;
/// Largest nesting of loops, blocks and macros, each of which counts as four.
const MAX_RECURSION: usize = 100;
const MAX_DEPTH: usize = 64;

/// Size of a value with everything that it contains. A shared part counts each time that it is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ValueSize {
    pub n_values: usize,
    pub depth: usize,
}

/// Sets the limits, and the filters that the rewritten source calls.
pub(super) fn install_limits(environment: &mut Environment<'_>) {
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_unknown_method_callback(|state, value, method, args| {
        args.iter().try_for_each(|arg| measure(state, arg).map(drop))?;
        if let Some(text) = value.as_str().filter(|_| method == "format") {
            charge(state, widths(text)?)?;
        }
        // `count` and `index` compare the value's items, which visits the whole value.
        if value.kind() != ValueKind::Map {
            measure(state, value)?;
        }
        methods::call(state, value, method, args)
    });
    environment.add_filter("__bounded", |state: &State, value: Value| measure(state, &value).map(|_| value));
    environment.add_filter("__scalar", scalar);
    environment.add_filter("__items", |state: &State, value: Value| items(state, value));
    environment.add_filter("__ordered", ordered);
    environment.add_filter("__copied", |state: &State, value: Value| copied(state, &value, 0));
}

/// Returns the value, unless it is a container.
fn scalar(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable => {
            Err(Error::new(ErrorKind::InvalidOperation, "`*` of a list or a map is not supported"))
        }
        _ => Ok(value),
    }
}

/// Returns the items of a loop as a value with a length: the characters of a text, or the items of an iterator.
fn items(state: &State, value: Value) -> Result<Value, Error> {
    measure(state, &value)?;
    match value.kind() {
        ValueKind::None => Err(Error::new(ErrorKind::InvalidOperation, "none is not iterable")),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            state.consume_fuel(text.len() as u64)?;
            Ok(text.chars().map(|c| Value::from(c.to_string())).collect())
        }
        ValueKind::Iterable if value.len().is_none() => {
            let paid = |item: Value| state.consume_fuel(1).map(|()| item);
            Ok(value.try_iter()?.map(paid).collect::<Result<Vec<_>, Error>>()?.into())
        }
        _ => Ok(value),
    }
}

/// Returns an operand of `<` and similar operators, if Python can compare it.
fn ordered(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Undefined | ValueKind::None | ValueKind::Map => {
            Err(Error::new(ErrorKind::InvalidOperation, format!("a value of type {} has no order", value.kind())))
        }
        _ => Ok(value),
    }
}

/// Returns the size of a value, after consuming fuel for it. Fails where the value is nested too deeply.
pub(super) fn measure(state: &State, value: &Value) -> Result<ValueSize, Error> {
    let mut size = ValueSize::default();
    match value.kind() {
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable => add_size(state, value, 0, &mut size)?,
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

fn add_size(state: &State, value: &Value, depth: usize, size: &mut ValueSize) -> Result<(), Error> {
    deeper(state, value, depth)?;
    size.n_values += 1;
    size.depth = size.depth.max(depth);
    match value.kind() {
        ValueKind::Map => {
            for key in value.try_iter()? {
                add_size(state, &key, depth + 1, size)?;
                add_size(state, &value.get_item(&key)?, depth + 1, size)?;
            }
        }
        // Without a length, a value is printed as its type, so its items do not count.
        ValueKind::Seq | ValueKind::Iterable if value.len().is_some() => {
            for item in value.try_iter()? {
                add_size(state, &item, depth + 1, size)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Copies a value, with namespaces as plain maps, so that a namespace never contains itself.
fn copied(state: &State, value: &Value, depth: usize) -> Result<Value, Error> {
    deeper(state, value, depth)?;
    match value.kind() {
        ValueKind::Map => {
            let pair = |key: Value| {
                let held = copied(state, &value.get_item(&key)?, depth + 1)?;
                Ok::<_, Error>((copied(state, &key, depth + 1)?, held))
            };
            Ok(Value::from_pairs(value.try_iter()?.map(pair).collect::<Result<Vec<_>, _>>()?))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| copied(state, &item, depth + 1));
            let items = items.collect::<Result<Vec<_>, _>>()?;
            let tuple = value.downcast_object_ref::<Tuple>().is_some();
            Ok(if tuple { Tuple::from(items).into() } else { items.into() })
        }
        _ => Ok(value.clone()),
    }
}

/// Returns the sum of all widths and precisions in a `str.format` string.
fn widths(format: &str) -> Result<usize, Error> {
    if format.contains(":{") {
        return Err(Error::new(ErrorKind::InvalidOperation, "a width within a width is not supported"));
    }
    let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    Ok(numbers.fold(0, |all: usize, digits| all.saturating_add(digits.parse().unwrap_or(usize::MAX))))
}

#[cfg(test)]
mod tests {
    use super::super::{ChatInput, ChatTemplate};

    fn render(source: &str) -> Result<String, String> {
        let template = ChatTemplate::new(source, vec![("bos_token".into(), "<s>".into())])?;
        Ok(template.render(&ChatInput::default())?.text)
    }

    /// Without the limits, each of these templates used gigabytes, hung, or ended the program.
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
            &format!(
                "{{% with x = 'x', y = 'y' %}}{}{{{{ y ~ '' }}}}{}",
                "{% with x = 1, y = (y, y), z = 2 %}".repeat(90),
                "{% endwith %}".repeat(91)
            ),
            &format!(
                "{{% with x = 'x' %}}{}{{{{ x ~ '' }}}}{}",
                "{% with x = [x, x] %}".repeat(90),
                "{% endwith %}".repeat(91)
            ),
            "{% macro m(a) %}{% call(b) n([a, a]) %}{{ m(b) }}{% endcall %}{% endmacro %}{% macro n(a) %}{{ caller([a, a]) }}{% endmacro %}{{ m('x') }}",
            "{% macro m(a, n) %}{% if n %}{% call(b) m([a, a], n - 1) %}{{ b ~ '' }}{% endcall %}{% endif %}{{ caller([a, a]) if caller }}{% endmacro %}{{ m('x', 20) }}",
            "{{ 'x'.ljust(10000000000) }}",
            "{{ 'x'.center(10000000000) }}{{ 'x'.zfill(10000000000) }}",
            "{{ '\t'.expandtabs(10000000000) }}",
            "{{ [1]|tojson(indent='x' * 10000000) }}{{ [[[[[[1]]]]]]|tojson(indent='x' * 100000000) }}",
            "{{ range(100000)|list|tojson(separators=('x' * 100000, ':')) }}",
            "{{ ('x' * 100000).join(range(100000)|map('string')|list) }}",
            "{{ range(100000)|join('x' * 100000) }}",
            &format!("{{% set x = 'x' %}}{doubled}{{{{ x ~ '' }}}}"),
            &format!("{{% set x = 'x' %}}{deep}{{{{ x }}}}"),
            &format!("{{{{ 'x'{} }}}}", " + 'x'".repeat(65)),
            &format!("{{{{ 'x'{} }}}}", " ~ 1".repeat(50_000)),
            &format!("{{{{ 'x'{} }}}}", "|e".repeat(50_000)),
            &"x".repeat(super::super::rewrite::MAX_SOURCE_BYTES + 1),
        ];
        for source in refused {
            let reason = render(source).expect_err(&source[..source.len().min(200)]);
            assert!(reason.starts_with("chat template"), "{reason}");
        }
        for chain in [" ~ 1", "|e", " - 1", "[0]", ".a", " == 1", " and 1"] {
            let _ =
                render(&format!("{{{{ 'x'{} }}}}", chain.repeat(super::super::rewrite::MAX_TOKENS / 2 - 2)).repeat(20));
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
            (
                "{% with a = [1], b = 2 %}{{ a }}{{ b }}{% endwith %}{% with %}{{ 3 }}{% endwith %}{{ a is defined }}",
                "[1]23False",
            ),
            (
                "{% macro m(a) %}[{{ caller(a, 2) }}]{% endmacro %}{% call(x, y=[3]) m([1]) -%} {{ x }}{{ y }} {%- endcall %}{% call(x, y) m(1) %}z{% endcall %}",
                "[[1]2][z]",
            ),
            ("{% set ns = namespace() %}{% set ns.a = {'b': (1, 2), 'a': []} %}{{ ns.a }}", "{'b': (1, 2), 'a': []}"),
            ("{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02"),
        ] {
            match render(source) {
                Ok(got) => assert_eq!(got, text, "{source}"),
                Err(reason) => assert!(reason.starts_with(text), "{source}: {reason}"),
            }
        }
    }
}
