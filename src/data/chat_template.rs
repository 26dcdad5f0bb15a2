//! Chat template of a tokenizer, rendered as transformers does: Jinja2 with Python's values and methods, and trimmed blocks. Templates are
//! untrusted: `sandbox` limits their time and memory.

mod clock;
mod fuel;
mod library;
mod methods;
mod python;
mod rewrite;
mod sandbox;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use minijinja::value::Value;
use minijinja::{Environment, Error};

use clock::FixedClock;

type JsonMap = serde_json::Map<String, serde_json::Value>;

/// Compiled chat template, with the special tokens that it may print.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Vec<(String, String)>,
    /// Byte ranges of the compiled source inside `{% generation %}`.
    generation: Vec<Range<usize>>,
    clock: Arc<FixedClock>,
    prints_date: bool,
    /// Prefix of error messages: the template's path with a colon, or empty.
    file: String,
}

/// Input of a chat template besides the tokenizer's special tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatInput<'a> {
    /// Messages as objects with every key of the row, in the row's order.
    pub messages: &'a [serde_json::Value],
    /// The row's `tools`, unchanged.
    pub tools: Option<&'a serde_json::Value>,
    /// Further variables: the row's `chat_template_kwargs`.
    pub kwargs: Option<&'a JsonMap>,
    /// Whether the text is to end where the assistant's answer would begin.
    pub add_generation_prompt: bool,
}

/// Conversation as rendered by a chat template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RenderedChat {
    /// Text, equal to that of `apply_chat_template(..., tokenize=False)`.
    pub text: String,
    /// Byte ranges of `text` that were printed inside `{% generation %}`: the assistant's turns, where the template marks them. They are in
    /// order, and adjacent ranges are merged.
    pub assistant: Vec<Range<usize>>,
}

/// Names that `chat_template_kwargs` must not use: variables that a template always has, and arguments of transformers'
/// `apply_chat_template` itself.
pub(super) const RESERVED: [&str; 14] = [
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "documents",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tools",
    "truncation",
];
/// Keys of a message's reasoning. If any is there, transformers passes the first one found to the template under the first two names.
pub(super) const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl ChatTemplate {
    /// Compiles a template. `tokens` are pairs such as (`bos_token`, its text), as in tokenizer_config.json.
    ///
    /// # Errors
    /// The reason, where the source is not a valid template.
    pub fn new(source: &str, tokens: Vec<(String, String)>) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = minijinja::syntax::SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .keep_trailing_newline(true)
            .build()
            .map_err(|e| e.to_string())?;
        environment.set_syntax(syntax.clone());
        let clock = Arc::new(FixedClock::now());
        sandbox::install_limits(&mut environment);
        library::install(&mut environment, clock.clone());
        let rewrite::RewrittenSource { text, generation } = rewrite::rewritten(&with_newlines(source), syntax)?;
        environment.add_template_owned("chat", text).map_err(|e| one_line(&e))?;
        let prints_date = source.contains("strftime_now");
        Ok(Self { environment, tokens, generation, clock, prints_date, file: String::new() })
    }

    /// Sets the file that error messages name.
    pub fn of_file(self, path: &Path) -> Self {
        Self { file: format!("{}: ", path.display()), ..self }
    }

    /// Returns whether the template marks the assistant's turns with `{% generation %}`.
    pub fn has_generation_tags(&self) -> bool {
        !self.generation.is_empty()
    }

    /// Returns the text of `eos_token`, where the tokenizer has one.
    pub(super) fn eos_token(&self) -> Option<&str> {
        self.tokens.iter().find(|(name, _)| name == "eos_token").map(|(_, text)| text.as_str())
    }

    /// Returns whether the template may print a date.
    pub fn prints_date(&self) -> bool {
        self.prints_date
    }

    /// Returns the time that the template takes as the present, in seconds since 1970 (UTC). It is the time of the template's compilation,
    /// unless [`ChatTemplate::set_clock`] was called.
    pub fn clock(&self) -> u64 {
        self.clock.seconds()
    }

    /// Sets the time that the template takes as the present, in seconds since 1970 (UTC).
    pub fn set_clock(&self, seconds: u64) {
        self.clock.set(seconds);
    }

    /// Renders a conversation, like `apply_chat_template(..., tokenize=False)`.
    ///
    /// # Errors
    /// The reason, where the template rejects the conversation.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<RenderedChat, String> {
        let mut context: Vec<(String, Value)> =
            self.tokens.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
        for (name, value) in input.kwargs.into_iter().flatten() {
            if RESERVED.contains(&name.as_str()) {
                return Err(format!("chat_template_kwargs: `{name}` is set by the program, not by a row"));
            }
            context.push((name.clone(), from_json(value)));
        }
        context.push(("messages".into(), input.messages.iter().map(message_value).collect()));
        context.push(("add_generation_prompt".into(), input.add_generation_prompt.into()));
        context.push(("tools".into(), input.tools.map_or_else(|| Value::from(()), from_json)));
        context.push(("documents".into(), Value::from(())));
        let template = self.environment.get_template("chat");
        let rendered = template.and_then(|t| t.render_with_spans(Value::from_pairs(context)));
        let (text, spans) = rendered.map_err(|e| format!("{}{}", self.file, one_line(&e)))?;
        let mut assistant: Vec<Range<usize>> = Vec::new();
        for span in spans {
            let (from, written) = (span.source_range().start, span.output_range());
            if !self.generation.iter().any(|region| region.contains(&from)) {
                continue;
            }
            match assistant.last_mut() {
                Some(last) if last.end == written.start => last.end = written.end,
                _ => assistant.push(written),
            }
        }
        Ok(RenderedChat { text, assistant })
    }
}

/// Normalises line ends: Python reads each one as `\n`, and Jinja drops the last one.
fn with_newlines(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    source.strip_suffix('\n').map(String::from).unwrap_or(source)
}

/// Converts a message as transformers does: without keys that are null, and with its reasoning under both names that templates use.
fn message_value(message: &serde_json::Value) -> Value {
    let Some(keys) = message.as_object() else {
        return from_json(message);
    };
    let given = |name: &str| keys.get(name).filter(|value| !value.is_null());
    let reasoning = REASONING.iter().find_map(|name| given(name));
    let first = reasoning.map(|reasoning| ("thinking", given("thinking").unwrap_or(reasoning)));
    let others = keys.iter().map(|(key, value)| (key.as_str(), value));
    let others = others.filter(|(key, value)| !value.is_null() && (*key != "thinking" || first.is_none()));
    let last =
        reasoning.filter(|_| given("reasoning_content").is_none()).map(|reasoning| ("reasoning_content", reasoning));
    Value::from_pairs(first.into_iter().chain(others).chain(last).map(|(key, value)| (key, from_json(value))))
}

fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(from_json).collect(),
        serde_json::Value::Object(keys) => Value::from_pairs(keys.iter().map(|(k, v)| (k.as_str(), from_json(v)))),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[(&str, &str)], generation: bool) -> Result<String, String> {
        let messages: Vec<serde_json::Value> =
            messages.iter().map(|(role, content)| serde_json::json!({"role": role, "content": content})).collect();
        let template = ChatTemplate::new(source, vec![("bos_token".into(), "<s>".into())])?;
        let input = ChatInput { messages: &messages, add_generation_prompt: generation, ..ChatInput::default() };
        Ok(template.render(&input)?.text)
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
