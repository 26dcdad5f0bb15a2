//! A tokenizer's own chat template, rendered as transformers does (Jinja, blocks trimmed, Python's string methods). Templates are
//! untrusted: `bounds` keeps them from taking more than their share of time and memory.

mod bounds;

use std::path::Path;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use bounds::{Size, measure};

use super::rows::Message;

/// A compiled chat template and the special tokens that it may print.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Vec<(String, String)>,
    /// For messages.
    file: String,
}

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
        environment.add_function("strftime_now", |format: String| strftime(&format, seconds_now()));
        let source = bounds::bounded(&without_generation_tags(source), syntax)?;
        environment.add_template_owned("chat", source).map_err(|e| one_line(&e))?;
        Ok(Self { environment, tokens, file: String::new() })
    }

    /// Messages will name the file that it is from.
    pub fn of_file(self, path: &Path) -> Self {
        Self { file: format!("{}: ", path.display()), ..self }
    }

    /// The text of a conversation, as `apply_chat_template(..., tokenize=False)`.
    ///
    /// # Errors
    /// The reason, where the template refuses the conversation.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, String> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|m| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]))
            .collect();
        let mut context: Vec<(String, Value)> =
            self.tokens.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
        context.push(("messages".into(), Value::from(messages)));
        context.push(("add_generation_prompt".into(), Value::from(add_generation_prompt)));
        context.extend(["tools", "documents"].map(|name| (name.into(), Value::from(()))));
        let template = self.environment.get_template("chat").and_then(|t| t.render(Value::from_pairs(context)));
        template.map_err(|e| format!("{}{}", self.file, one_line(&e)))
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

/// transformers' `{% generation %}` marks assistant tokens and prints nothing: the same as `{% if true %}`.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (tag, end) = (&rest[start..start + length], start + length);
        out.push_str(&rest[..start]);
        match tag.trim_start_matches("{%").trim_matches(['-', '+', ' ', '\n', '\t']) {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out + rest
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
        let messages: Vec<Message> = messages
            .iter()
            .map(|(role, content)| Message { role: (*role).into(), content: (*content).into() })
            .collect();
        ChatTemplate::new(source, vec![("bos_token".into(), "<s>".into())])?.render(&messages, generation)
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
