//! Chat templates of a model folder, by name, and which of them a row is rendered with: as transformers' `get_chat_template` chooses.

use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::chat::ChatTemplate;
use super::fields::kind;
use crate::error::{Error, Result};
use crate::model::folder::{MAX_CONFIG_BYTES, inside, read_file, read_inside, read_optional};

/// The default template's file.
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// Folder of templates by name.
const ADDITIONAL: &str = "additional_chat_templates";
/// A processor's file, for folders that have no other.
const OF_PROCESSOR: &str = "chat_template.json";
const ENDING: &str = "jinja";
/// Names that transformers gives a meaning.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// A template that was compiled, or why it cannot be.
#[derive(Debug)]
struct NamedTemplate {
    name: String,
    compiled: std::result::Result<SourceTemplate, String>,
}

/// A compiled template with its text.
#[derive(Debug)]
pub struct SourceTemplate {
    /// Jinja.
    pub source: String,
    /// Compiled.
    pub template: ChatTemplate,
}

/// Reads the clock, once per program: all templates of a run print the same time, in seconds since 1970.
pub fn run_time() -> u64 {
    static TIME: OnceLock<u64> = OnceLock::new();
    let now = || web_time::SystemTime::now().duration_since(web_time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    *TIME.get_or_init(now)
}

/// A tokenizer's chat templates.
#[derive(Debug, Default)]
pub struct NamedTemplates {
    all: Vec<NamedTemplate>,
    /// What `--chat-template` says, over all others.
    chosen: Option<NamedTemplate>,
}

/// Special tokens that templates may print: (`bos_token`, its text) and so on.
pub type SpecialTokens = [(String, String)];

impl NamedTemplates {
    /// Reads what a folder has beside `tokenizer_config.json`: `chat_template.jinja` and `additional_chat_templates/NAME.jinja`, by name.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn read_files(dir: &Path) -> Result<Vec<(String, String)>> {
        let mut found: Vec<(String, String)> = Vec::new();
        found.extend(read_optional(dir, CHAT_TEMPLATE, MAX_CONFIG_BYTES)?.map(|text| (DEFAULT.into(), text)));
        let folder = dir.join(ADDITIONAL);
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut names: Vec<String> = entries
            .filter(|path| path.extension().is_some_and(|ending| ending == ENDING))
            .filter_map(|path| Some(path.file_stem()?.to_str()?.to_string()))
            .collect();
        names.sort();
        for name in names {
            // Links of the folder may lead to where the model's may.
            let path = inside(dir, &format!("{ADDITIONAL}/{name}.{ENDING}"))?;
            found.push((name, read_file(&path, MAX_CONFIG_BYTES)?));
        }
        if found.is_empty() && dir.join(OF_PROCESSOR).exists() {
            let path = dir.join(OF_PROCESSOR);
            let text = read_inside(dir, OF_PROCESSOR, MAX_CONFIG_BYTES)?;
            let config: Map<String, Value> = serde_json::from_str(&text)
                .map_err(|e| Error::line(&path, e.line(), format!("no JSON object: {e}")))?;
            found = of_config(&path, &config)?;
        }
        Ok(found)
    }

    /// Compiles the templates of a folder: those of files win over those of tokenizer_config.json, whose path and content are given.
    ///
    /// # Errors
    /// [`Error::Field`] for a `chat_template` of another form.
    pub fn compile(
        config: (&Path, &Map<String, Value>),
        files: &[(String, String)],
        special: &SpecialTokens,
    ) -> Result<Self> {
        let listed = of_config(config.0, config.1)?;
        let dir = config.0.parent().unwrap_or(Path::new(""));
        let (sources, is_file) = if files.is_empty() { (&listed[..], false) } else { (files, true) };
        let named = |(name, source): &(String, String)| {
            let path = match (is_file, name.as_str()) {
                (false, _) => config.0.to_path_buf(),
                (true, DEFAULT) => dir.join(CHAT_TEMPLATE),
                (true, name) => dir.join(ADDITIONAL).join(name).with_extension(ENDING),
            };
            NamedTemplate { name: name.clone(), compiled: compiled(source, special, &path) }
        };
        Ok(Self { all: sources.iter().map(named).collect(), chosen: None })
    }

    /// Takes `--chat-template`: one of the names, or a file.
    ///
    /// # Errors
    /// [`Error::Flag`]: it is neither, or cannot be compiled.
    pub fn choose(&mut self, value: &str, special: &SpecialTokens) -> Result<()> {
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
        match compiled(&source, special, path) {
            Ok(template) => {
                self.chosen = Some(NamedTemplate { name: value.into(), compiled: Ok(template) });
                Ok(())
            }
            Err(reason) => refused(reason),
        }
    }

    /// Whether a row can be rendered, and with which template; rows with tools have one of their own where there is a `tool_use`.
    ///
    /// # Errors
    /// The reason: there is none, several of which none is the default, or it cannot be compiled.
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

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && self.chosen.is_none()
    }

    /// Reasons why templates cannot be compiled. They matter only to those who use them.
    pub fn failures(&self) -> impl Iterator<Item = &String> {
        self.all.iter().filter_map(|template| template.compiled.as_ref().err())
    }

    /// The source of the template that `--chat-template` chose.
    pub fn chosen_source(&self) -> Option<&str> {
        Some(&self.chosen.as_ref()?.compiled.as_ref().ok()?.source)
    }

    /// SHA-256 of what rows may be rendered with, in hexadecimal: a part of fingerprints, where the file's path is none.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for template in self.in_use() {
            hash.update((template.source.len() as u64).to_le_bytes());
            hash.update(&template.source);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether a template that may be used prints the date.
    pub fn prints_time(&self) -> bool {
        self.in_use().any(|template| template.template.prints_date())
    }

    /// Sets the time that templates print, in seconds since 1970.
    pub fn set_time(&self, seconds: u64) {
        self.in_use().for_each(|template| template.template.set_clock(seconds));
    }

    fn in_use(&self) -> impl Iterator<Item = &SourceTemplate> {
        let others = if self.chosen.is_some() { &[] } else { &self.all[..] };
        self.chosen.iter().chain(others).filter_map(|template| template.compiled.as_ref().ok())
    }

    fn names(&self) -> String {
        self.all.iter().map(|template| template.name.escape_debug().to_string()).collect::<Vec<_>>().join(", ")
    }
}

fn compiled(source: &str, special: &SpecialTokens, path: &Path) -> std::result::Result<SourceTemplate, String> {
    match ChatTemplate::new(source, special.to_vec()) {
        Ok(template) => {
            let template = template.of_file(path);
            template.set_clock(run_time());
            Ok(SourceTemplate { source: source.into(), template })
        }
        Err(reason) => Err(format!("{}: {reason}", path.display())),
    }
}

/// `chat_template` of a configuration: a text, a list of {name, template}, or names with their templates.
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
