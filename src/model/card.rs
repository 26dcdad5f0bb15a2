//! Model card: the README.md of a run's output.

use std::fmt::Write;

use crate::error::visible;

/// Contents of a model card. Every text is ready to print.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelCard {
    /// Base model as `--model` named it: a hub id or a folder.
    pub base: String,
    /// Whether the output is an adapter (library peft); otherwise it is a whole model (library transformers).
    pub adapter: bool,
    /// Method: `SFT`, `DPO` or `JPO`.
    pub method: String,
    /// A sentence on the method, with its source.
    pub about: String,
    /// Hyper-parameters by the names of their flags, in order.
    pub settings: Vec<(String, String)>,
    /// Data files, with their numbers of rows.
    pub data: Vec<String>,
    /// Results by the names of metrics, in order.
    pub results: Vec<(String, String)>,
    /// Device that the run was trained on.
    pub device: String,
}

/// Puts a text in double quotes, as YAML reads it. Control characters are made visible first: YAML forbids them, while JSON allows some.
fn quoted(text: &str) -> String {
    serde_json::Value::from(visible(text)).to_string()
}

/// Escapes characters that Markdown or HTML would take for markup, in a name or a value from outside. Line breaks become spaces, so that
/// the text stays in its table cell.
fn escaped(text: &str) -> String {
    let text: Vec<char> = visible(&text.replace(['\n', '\r', '\t'], " ")).chars().collect();
    let mut out = String::with_capacity(text.len());
    for (i, &c) in text.iter().enumerate() {
        // Between letters or digits, an underscore is not markup.
        let within = |i: Option<usize>| i.and_then(|i| text.get(i)).is_some_and(|c| c.is_alphanumeric());
        let marks = match c {
            '_' => !(within(i.checked_sub(1)) && within(Some(i + 1))),
            // At the start, these characters begin a heading, a list or a quotation.
            '#' | '+' | '-' | '=' => i == 0,
            _ => matches!(c, '\\' | '`' | '*' | '[' | ']' | '<' | '>' | '|' | '~' | '&' | '$'),
        };
        out.extend(marks.then_some('\\'));
        out.push(c);
    }
    out
}

fn table(out: &mut String, heads: [&str; 2], rows: &[(String, String)]) {
    // Writing to a String does not fail.
    let _ = write!(out, "| {} | {} |\n|---|---|\n", heads[0], heads[1]);
    for (name, value) in rows {
        let _ = writeln!(out, "| {} | {} |", escaped(name), escaped(value));
    }
    out.push('\n');
}

impl ModelCard {
    /// Returns the file's text: a YAML head, then Markdown.
    pub fn to_markdown(&self) -> String {
        let mut out = String::from("---\n");
        // The hub refuses a `base_model` that is not a hub id.
        let parts: Vec<&str> = self.base.split('/').collect();
        let is_id = parts.len() == 2 && parts.iter().all(|p| !p.is_empty() && !p.starts_with(['.', '~']));
        if is_id && !std::path::Path::new(&self.base).exists() {
            let _ = writeln!(out, "base_model: {}", quoted(self.base.split('@').next().unwrap_or(&self.base)));
        }
        let _ = writeln!(out, "library_name: {}", if self.adapter { "peft" } else { "transformers" });
        let _ = writeln!(
            out,
            "pipeline_tag: text-generation\ntags:\n- jointwise\n- {}",
            quoted(&self.method.to_lowercase())
        );
        if self.adapter {
            out.push_str("- lora\n");
        }
        out.push_str("---\n\n");

        let what = if self.adapter { "A LoRA adapter of" } else { "A tuned copy of" };
        let title = self.base.trim_end_matches('/').rsplit('/').next().unwrap_or(&self.base);
        let _ = write!(
            out,
            "# {}, {}\n\n{what} {}, trained with {}. {}\n\n",
            escaped(title),
            self.method,
            escaped(&self.base),
            self.method,
            self.about
        );
        if !self.data.is_empty() {
            out.push_str("## Data\n\n");
            for line in &self.data {
                let _ = writeln!(out, "- {}", escaped(line));
            }
            out.push('\n');
        }
        if !self.settings.is_empty() {
            out.push_str("## Training\n\n");
            table(&mut out, ["flag", "value"], &self.settings);
        }
        if !self.results.is_empty() {
            out.push_str("## Results\n\n");
            table(&mut out, ["metric", "value"], &self.results);
        }
        let version = env!("CARGO_PKG_VERSION");
        let _ = write!(out, "## Made with\n\njointwise {version}");
        if !self.device.is_empty() {
            let _ = write!(out, " on {}", escaped(&self.device));
        }
        out.push_str(".\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_names_base_library_and_settings() {
        let card = ModelCard {
            base: "org/tiny".into(),
            adapter: true,
            method: "JPO".into(),
            about: "About.".into(),
            settings: vec![("beta".into(), "0.1".into()), ("template".into(), "a|b\nc".into())],
            data: vec!["rows.jsonl, 24 rows".into()],
            results: vec![("loss".into(), "0.5".into())],
            device: "llvmpipe".into(),
        };
        let text = card.to_markdown();
        let head = "---\nbase_model: \"org/tiny\"\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n- jointwise\n- \"jpo\"\n- lora\n---\n";
        assert!(text.starts_with(head), "{text}");
        for part in ["# tiny, JPO", "| beta | 0.1 |", "| template | a\\|b c |", "- rows.jsonl, 24 rows", "on llvmpipe."]
        {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let evil = "org/x](http://e.vil)<img src=x>\n---\nlicense: `mit`|\u{1b}[2J _a_b";
        let settings = vec![(evil.into(), evil.into())];
        let marked = ModelCard {
            base: evil.into(),
            data: vec![evil.into()],
            settings,
            device: evil.into(),
            ..ModelCard::default()
        };
        let text = marked.to_markdown();
        let yaml = text.split("---\n").nth(1).unwrap();
        assert!(
            yaml.lines().all(|line| ["base_model: \"", "library_name: ", "pipeline_tag: ", "tags:", "- "]
                .iter()
                .any(|k| line.starts_with(k))),
            "{yaml}"
        );
        assert_eq!(text.matches("\n---\n").count(), 1, "{text}");
        let body = text.splitn(3, "---\n").nth(2).unwrap();
        assert_eq!(body.matches("x\\](http://e.vil)\\<img src=x\\> --- license: \\`mit\\`\\|").count(), 5, "{body}");
        assert!(!body.contains('\u{1b}') && !body.contains("x](") && !body.contains(" <img"), "{body}");
        assert!(body.contains("\\_a_b"), "{body}");
        let local = ModelCard { base: "/home/x/model".into(), ..ModelCard::default() }.to_markdown();
        assert!(!local.contains("base_model") && local.contains("library_name: transformers"));
    }
}
