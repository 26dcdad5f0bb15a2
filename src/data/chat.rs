//! A tokenizer's own chat template, rendered as transformers does (Jinja, blocks trimmed, Python's string methods). Templates are
//! untrusted: `bounds` keeps them from taking more than their share of time and memory.

mod bounds;
mod generation;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use bounds::{Size, measure};

/// A compiled chat template and the special tokens that it may print.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Vec<(String, String)>,
    prints_date: bool,
    /// What `strftime_now` prints, in seconds since 1970.
    clock: Arc<AtomicU64>,
    /// For messages.
    file: String,
}

/// What a chat template is given beside the tokenizer's special tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatInput<'a> {
    /// Objects with every key of the row.
    pub messages: &'a [serde_json::Value],
    /// The row's list.
    pub tools: Option<&'a serde_json::Value>,
    /// The row's `chat_template_kwargs`.
    pub kwargs: Option<&'a serde_json::Map<String, serde_json::Value>>,
    /// Ask for an answer.
    pub add_generation_prompt: bool,
}

/// A conversation as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedChat {
    /// The text.
    pub text: String,
    /// Bytes within `{% generation %}` tags; empty without tags.
    pub assistant: Vec<Range<usize>>,
}

/// The template's name in its environment, and that of its twin which marks what generation tags hold.
const PLAIN: &str = "chat";
const MARKED: &str = "marked";

impl ChatTemplate {
    /// `tokens`: (`bos_token`, its text) and so on, as in tokenizer_config.json.
    ///
    /// # Errors
    /// The reason, where the source is no valid template.
    pub fn new(source: &str, tokens: Vec<(String, String)>) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|e| e.to_string())?;
        environment.set_syntax(syntax.clone());
        bounds::apply(&mut environment);
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
            ValueKind::None => Ok(out.write_str("None")?),
            _ => {
                measure(state, value)?;
                minijinja::escape_formatter(out, state, value)
            }
        });
        environment.add_filter(
            "tojson",
            |state: &State, value: Value, indent: Option<usize>, options: Kwargs| -> Result<String, Error> {
                let indent = indent.or(options.get::<Option<usize>>("indent")?);
                for ignored in ["ensure_ascii", "separators", "sort_keys"] {
                    options.get::<Option<Value>>(ignored)?;
                }
                options.assert_all_used()?;
                let Size { n_values, depth } = measure(state, &value)?;
                // Every value has at most two lines, indented by at most this.
                let width = indent.unwrap_or(0).saturating_mul(depth).saturating_mul(2);
                bounds::charge(state, n_values.saturating_mul(width))?;
                let mut out = String::new();
                write_json(&value, indent, 0, &mut out)?;
                Ok(out)
            },
        );
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, format!("the template says: {message}")))
        });
        let clock = Arc::new(AtomicU64::new(seconds_now()));
        let shown = clock.clone();
        environment
            .add_function("strftime_now", move |format: String| strftime(&format, shown.load(Ordering::Relaxed)));
        let plain = bounds::bounded(&generation::without_tags(source), syntax.clone())?;
        environment.add_template_owned(PLAIN, plain).map_err(|e| one_line(&e))?;
        if let Some(marked) = generation::with_marks(source) {
            environment.add_template_owned(MARKED, bounds::bounded(&marked, syntax)?).map_err(|e| one_line(&e))?;
        }
        Ok(Self { environment, tokens, prints_date: source.contains("strftime_now"), clock, file: String::new() })
    }

    /// Whether the source has `{% generation %}` tags.
    pub fn has_generation_tags(&self) -> bool {
        self.environment.get_template(MARKED).is_ok()
    }

    /// Whether the source calls `strftime_now`.
    pub fn prints_date(&self) -> bool {
        self.prints_date
    }

    /// Sets what `strftime_now` prints, in seconds since 1970.
    pub fn set_clock(&self, seconds: u64) {
        self.clock.store(seconds, Ordering::Relaxed);
    }

    /// Messages will name the file that it is from.
    pub fn of_file(self, path: &Path) -> Self {
        Self { file: format!("{}: ", path.display()), ..self }
    }

    /// Renders messages as `apply_chat_template` does.
    ///
    /// # Errors
    /// The reason, where the template refuses the conversation.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<RenderedChat, String> {
        let text = self.render_named(PLAIN, input, &[])?;
        let Some(marks) = generation::free_marks(&text).filter(|_| self.has_generation_tags()) else {
            return Ok(RenderedChat { text, assistant: Vec::new() });
        };
        let marked = self.render_named(MARKED, input, &generation::values(marks))?;
        let assistant = generation::spans(&marked, marks).filter(|(plain, _)| *plain == text);
        Ok(RenderedChat { text, assistant: assistant.map(|(_, spans)| spans).unwrap_or_default() })
    }

    fn render_named(&self, name: &str, input: &ChatInput<'_>, more: &[(&str, String)]) -> Result<String, String> {
        let mut context: Vec<(String, Value)> =
            self.tokens.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
        context.push(("documents".into(), Value::from(())));
        // A row's own values win over special tokens, as in transformers.
        context.extend(input.kwargs.iter().flat_map(|k| k.iter()).map(|(k, v)| (k.clone(), from_json(v))));
        context.push(("messages".into(), input.messages.iter().map(from_json).collect::<Value>()));
        context.push(("add_generation_prompt".into(), Value::from(input.add_generation_prompt)));
        context.push(("tools".into(), input.tools.map_or(Value::from(()), from_json)));
        context.extend(more.iter().map(|(k, v)| ((*k).into(), Value::from(v.as_str()))));
        let template = self.environment.get_template(name).and_then(|t| t.render(Value::from_pairs(context)));
        template.map_err(|e| format!("{}{}", self.file, one_line(&e)))
    }
}

fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(n), _) => Value::from(n),
            (None, n) => Value::from(n.unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(from_json).collect(),
        serde_json::Value::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), from_json(v)))),
    }
}

fn one_line(error: &Error) -> String {
    let reason = error.detail().map_or_else(|| error.kind().to_string(), String::from);
    let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    match error.line() {
        Some(line) => format!("chat template, line {line}: {reason}"),
        None => format!("chat template: {reason}"),
    }
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn write_json(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), Error> {
    let line = |out: &mut String, depth: usize| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::String => out.push_str(&serde_json::Value::from(value.as_str().unwrap_or_default()).to_string()),
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable => {
            let map = value.kind() == ValueKind::Map;
            out.push(if map { '{' } else { '[' });
            let mut empty = true;
            for item in value.try_iter()? {
                if !empty {
                    out.push_str(comma);
                }
                empty = false;
                line(out, depth + 1);
                if map {
                    out.push_str(&serde_json::Value::from(item.to_string()).to_string());
                    out.push_str(": ");
                    write_json(&value.get_item(&item)?, indent, depth + 1, out)?;
                } else {
                    write_json(&item, indent, depth + 1, out)?;
                }
            }
            if !empty {
                line(out, depth);
            }
            out.push(if map { '}' } else { ']' });
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

fn seconds_now() -> u64 {
    web_time::SystemTime::now().duration_since(web_time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Python's strftime for the directives that chat templates use; UTC. An unknown directive is kept as it is.
fn strftime(format: &str, seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to civil date, Howard Hinnant's algorithm, for dates after 1970.
    let z = days + 719_468;
    let of_era = z % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + z / 146_097 * 400 + u64::from(month <= 2);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);

    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match rest.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('H') => out += &format!("{:02}", second / 3600),
            Some('M') => out += &format!("{:02}", second / 60 % 60),
            Some('S') => out += &format!("{:02}", second % 60),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[(&str, &str)], generation: bool) -> Result<String, String> {
        let message = |(role, content): &(&str, &str)| serde_json::json!({"role": role, "content": content});
        let messages: Vec<serde_json::Value> = messages.iter().map(message).collect();
        let input = ChatInput { messages: &messages, add_generation_prompt: generation, ..ChatInput::default() };
        ChatTemplate::new(source, vec![("bos_token".into(), "<s>".into())])?.render(&input).map(|r| r.text)
    }

    #[test]
    fn dates_are_python_s() {
        assert_eq!(strftime("%d %b %Y %A %H:%M:%S", 951_782_400 + 3661), "29 Feb 2000 Tuesday 01:01:01");
        assert_eq!(strftime("%Y-%m-%d %a%%", 0), "1970-01-01 Thu%");
        assert_eq!(strftime("%B %d, %y", 1_798_761_599), "December 31, 26");
    }

    #[test]
    fn blocks_are_trimmed_and_python_methods_work() {
        let source = "{%- for m in messages %}\n    {% if m['role'].startswith('us') %}\n{{ bos_token + m.content.strip() }}|\n    {% endif %}\n{% endfor %}\n{{ 1 == 1 }}\n";
        assert_eq!(render(source, &[("user", " hi ")], false).as_deref(), Ok("<s>hi|\nTrue"));
    }

    #[test]
    fn generation_tags_print_nothing() {
        let source = "{%- for m in messages -%}{%- generation -%} {{ m.content }} {%- endgeneration -%}{%- endfor -%}";
        assert_eq!(render(source, &[("assistant", "a"), ("assistant", "b")], false).as_deref(), Ok("ab"));
    }

    #[test]
    fn json_is_python_s() {
        let source = "{{ {'a': [1, 'é<\"', none, true], 'b': {}} | tojson }}{{ [1] | tojson(indent=2) }}";
        assert_eq!(
            render(source, &[], false).as_deref(),
            Ok("{\"a\": [1, \"é<\\\"\", null, true], \"b\": {}}[\n  1\n]")
        );
    }

    #[test]
    fn refusals_name_the_line() {
        assert_eq!(
            render("\n{{ raise_exception('no system role') }}", &[], false),
            Err("chat template, line 2: the template says: no system role".into())
        );
        assert!(render("{% if %}", &[], false).unwrap_err().starts_with("chat template, line 1: "));
    }
}
