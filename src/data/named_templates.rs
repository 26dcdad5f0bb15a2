//! Chat templates of a model folder, by name, and the choice of a row's template, as in transformers' `get_chat_template`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::chat_template::ChatTemplate;
use super::json_kind::kind;
use crate::error::{Error, Result};
use crate::model::folder::{MAX_CONFIG_BYTES, read_file};
use crate::model::side_files::{MORE_TEMPLATES, SideFiles, TOKENIZER_CONFIG};

pub use crate::model::side_files::CHAT_TEMPLATE;

/// File of a processor's template, for folders that have no other template.
const OF_PROCESSOR: &str = "chat_template.json";
const ENDING: &str = ".jinja";
/// Template names with a meaning in transformers.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// Compiled template, or the reason why it cannot be compiled.
#[derive(Debug)]
struct NamedTemplate {
    name: String,
    compiled: std::result::Result<SourceTemplate, String>,
}

/// Compiled template with its source.
#[derive(Debug)]
pub struct SourceTemplate {
    /// Jinja source.
    pub source: String,
    /// Compiled form.
    pub template: ChatTemplate,
}

/// Returns the time of the first call, in seconds since 1970. All templates of a run print this time.
pub fn run_time() -> u64 {
    static TIME: OnceLock<u64> = OnceLock::new();
    let now = || web_time::SystemTime::now().duration_since(web_time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    *TIME.get_or_init(now)
}

/// Chat templates of a tokenizer.
#[derive(Debug, Default)]
pub struct NamedTemplates {
    all: Vec<NamedTemplate>,
    /// Template given with `--chat-template`, which overrides all others.
    chosen: Option<NamedTemplate>,
}

/// Special tokens that templates may print, such as (`bos_token`, its text).
pub type TemplateTokens = [(String, String)];

impl NamedTemplates {
    /// Compiles the templates of a folder: `chat_template.jinja` and `additional_chat_templates/NAME.jinja`; else a processor's file; else
    /// those in `config`, the fields of tokenizer_config.json.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Field`] for a `chat_template` of another form.
    pub fn compile(side: &SideFiles, config: &Map<String, Value>, special: &TemplateTokens) -> Result<Self> {
        // Template's name, file and source.
        let mut found: Vec<(String, PathBuf, String)> = Vec::new();
        if let Some(text) = side.text(CHAT_TEMPLATE)? {
            found.push((DEFAULT.into(), side.path(CHAT_TEMPLATE), text.into()));
        }
        for file in side.copied().filter(|file| file.starts_with(MORE_TEMPLATES)) {
            let name = file.trim_start_matches(MORE_TEMPLATES).trim_start_matches('/').trim_end_matches(ENDING);
            let text = side.text(file)?.unwrap_or_default();
            found.push((name.into(), side.path(file), text.into()));
        }
        for (file, fields) in [(OF_PROCESSOR, &side.fields(OF_PROCESSOR)?), (TOKENIZER_CONFIG, config)] {
            if found.is_empty() {
                let path = side.path(file);
                let listed = of_config(&path, fields)?;
                found.extend(listed.into_iter().map(|(name, text)| (name, path.clone(), text)));
            }
        }
        let named = |(name, path, source): (String, PathBuf, String)| NamedTemplate {
            compiled: compiled(&source, special, &path),
            name,
        };
        Ok(Self { all: found.into_iter().map(named).collect(), chosen: None })
    }

    /// Chooses the template that `--chat-template` names: one of the folder's templates, or a file.
    ///
    /// # Errors
    /// [`Error::Flag`] where the value is neither, or where the template cannot be compiled.
    pub fn choose(&mut self, value: &str, special: &TemplateTokens) -> Result<()> {
        let refused = |reason: String| Err(Error::flag("chat-template", reason));
        if let Some(at) = self.all.iter().position(|template| template.name == value) {
            if let Err(reason) = &self.all[at].compiled {
                return refused(reason.clone());
            }
            self.chosen = Some(self.all.swap_remove(at));
            return Ok(());
        }
        let path = Path::new(value);
        if !path.exists() {
            let names = match self.names() {
                names if names.is_empty() => "the tokenizer has none".to_string(),
                names => format!("the tokenizer has {names}"),
            };
            return refused(format!("`{}` is neither a file nor a template's name; {names}", value.escape_debug()));
        }
        let source = read_file(path, MAX_CONFIG_BYTES)?;
        // Files may begin with a byte order mark, which editors on Windows write.
        match compiled(source.strip_prefix('\u{feff}').unwrap_or(&source), special, path) {
            Ok(template) => {
                self.chosen = Some(NamedTemplate { name: value.into(), compiled: Ok(template) });
                Ok(())
            }
            Err(reason) => refused(reason),
        }
    }

    /// Returns the template for a row. Rows with tools use the template `tool_use`, where there is one.
    ///
    /// # Errors
    /// The reason: there are no templates, there are several without a default, or the template cannot be compiled.
    pub fn pick(&self, has_tools: bool) -> std::result::Result<&SourceTemplate, String> {
        let named = |name: &str| self.all.iter().find(|template| template.name == name);
        let found = match (&self.chosen, has_tools) {
            (Some(chosen), _) => Some(chosen),
            (None, true) => named(TOOL_USE).or_else(|| named(DEFAULT)),
            (None, false) => named(DEFAULT),
        };
        match found {
            Some(found) => found.compiled.as_ref().map_err(String::clone),
            None if self.all.is_empty() => Err("the tokenizer has no chat template".into()),
            None => Err(format!(
                "the tokenizer has several chat templates and no default ({}): --chat-template NAME",
                self.names()
            )),
        }
    }

    /// Returns whether there are no templates.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && self.chosen.is_none()
    }

    /// Returns the reasons why templates cannot be compiled. They matter only if such a template is used.
    pub fn failures(&self) -> impl Iterator<Item = &String> {
        self.all.iter().filter_map(|template| template.compiled.as_ref().err())
    }

    /// Returns the source of the template that `--chat-template` chose.
    pub fn chosen_source(&self) -> Option<&str> {
        Some(&self.chosen.as_ref()?.compiled.as_ref().ok()?.source)
    }

    /// Computes SHA-256, in hexadecimal, of the templates that rows may be rendered with. It is a part of fingerprints, so that the path of
    /// a file does not matter.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for template in self.in_use() {
            hash.update((template.source.len() as u64).to_le_bytes());
            hash.update(&template.source);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns whether a template that may be used prints the date.
    pub fn prints_time(&self) -> bool {
        self.in_use().any(|template| template.template.prints_date())
    }

    /// Sets the time that templates print, in seconds since 1970.
    pub fn set_time(&self, seconds: u64) {
        self.in_use().for_each(|template| template.template.set_clock(seconds));
    }

    /// Returns the time that templates print; `None` where no template prints it.
    pub fn time(&self) -> Option<u64> {
        self.in_use().find(|template| template.template.prints_date()).map(|template| template.template.clock())
    }

    fn in_use(&self) -> impl Iterator<Item = &SourceTemplate> {
        let others = if self.chosen.is_some() { &[] } else { &self.all[..] };
        self.chosen.iter().chain(others).filter_map(|template| template.compiled.as_ref().ok())
    }

    fn names(&self) -> String {
        self.all.iter().map(|template| template.name.escape_debug().to_string()).collect::<Vec<_>>().join(", ")
    }
}

fn compiled(source: &str, special: &TemplateTokens, path: &Path) -> std::result::Result<SourceTemplate, String> {
    match ChatTemplate::new(source, special.to_vec()) {
        Ok(template) => {
            let template = template.of_file(path);
            template.set_clock(run_time());
            Ok(SourceTemplate { source: source.into(), template })
        }
        Err(reason) => Err(format!("{}: {reason}", path.display())),
    }
}

/// Reads `chat_template` of a configuration: a text, a list of {name, template}, or an object of names and templates.
fn of_config(path: &Path, config: &Map<String, Value>) -> Result<Vec<(String, String)>> {
    let bad = |reason: String| Error::field(path, "chat_template", reason);
    let form = || bad("expected a text, or a list of {name, template}".into());
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![(DEFAULT.into(), text.clone())]),
        Some(Value::Array(list)) => {
            let one = |item: &Value| {
                let text = |key: &str| item.get(key).and_then(Value::as_str).map(String::from);
                text("name").zip(text("template")).ok_or_else(form)
            };
            list.iter().map(one).collect()
        }
        Some(Value::Object(named)) => {
            let one = |(name, text): (&String, &Value)| Ok((name.clone(), text.as_str().ok_or_else(form)?.into()));
            named.iter().map(one).collect()
        }
        Some(other) => Err(bad(format!("expected text, found {}", kind(other)))),
    }
}
