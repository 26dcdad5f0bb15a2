//! Special tokens, found as in transformers 5: first the tokens named in `tokenizer_config.json` and `special_tokens_map.json`, then the
//! defaults of the tokenizer's class. If neither names a BOS or EOS, the ids in `config.json` are used.

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::json_kind::kind;
use super::text_start::TextStart;
use crate::error::{Error, Result};
use crate::model::side_files::{CONFIG, SideFiles, TOKENIZER, TOKENIZER_CONFIG};

/// File beside the tokenizer with tokens by name.
const TOKENS_MAP: &str = "special_tokens_map.json";
/// File, in folders of transformers 4, with ids of tokens that are missing from `tokenizer.json`.
const ADDED_TOKENS: &str = "added_tokens.json";

/// Default BOS, EOS and unknown token of a tokenizer class, where the files name none.
struct ClassDefaults {
    class: &'static str,
    tokens: &'static NamedTexts,
    start: TextStart,
}

const END_OF_TEXT: &NamedTexts =
    &[("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")];
const SENTENCE: &NamedTexts = &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")];

/// Tokenizer classes of transformers 5.24, without the suffix `Fast`.
const CLASSES: [ClassDefaults; 8] = [
    ClassDefaults { class: "GPT2Tokenizer", tokens: END_OF_TEXT, start: TextStart::PostProcessor },
    ClassDefaults { class: "CodeGenTokenizer", tokens: END_OF_TEXT, start: TextStart::Nothing },
    ClassDefaults { class: "GPTNeoXTokenizer", tokens: END_OF_TEXT, start: TextStart::Nothing },
    ClassDefaults { class: "LlamaTokenizer", tokens: SENTENCE, start: TextStart::PostProcessor },
    ClassDefaults { class: "CodeLlamaTokenizer", tokens: SENTENCE, start: TextStart::Bos },
    ClassDefaults {
        class: "GemmaTokenizer",
        tokens: &[("bos_token", "<bos>"), ("eos_token", "<eos>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")],
        start: TextStart::PostProcessor,
    },
    ClassDefaults {
        class: "Qwen2Tokenizer",
        tokens: &[("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")],
        start: TextStart::PostProcessor,
    },
    ClassDefaults {
        class: "CohereTokenizer",
        tokens: &[("bos_token", "<BOS_TOKEN>"), ("eos_token", "<|END_OF_TURN_TOKEN|>"), ("unk_token", "<UNK>")],
        start: TextStart::PostProcessor,
    },
];

/// Special tokens of a folder.
#[derive(Debug, Default)]
pub(super) struct SpecialTokens {
    /// Beginning-of-sequence token.
    pub bos: Option<u32>,
    /// End-of-sequence token.
    pub eos: Option<u32>,
    /// Names and texts of tokens, for a chat template: (`bos_token`, its text), ...
    pub named: Vec<(String, String)>,
    /// Source of the tokens before a text.
    pub start: TextStart,
    /// Remarks on the special tokens for the user.
    pub notes: Vec<String>,
}

/// Tokens of a class, such as (`bos_token`, its text).
type NamedTexts = [(&'static str, &'static str)];

/// Token as a file names it.
enum NamedToken {
    /// Text of the token.
    Text(String),
    /// `null`: there is no such token, even if the class has a default.
    Nothing,
}

/// Files that name special tokens.
struct TokenSources<'a> {
    side: &'a SideFiles,
    config: &'a Map<String, Value>,
    model: Map<String, Value>,
    /// Entries of [`TOKENIZER_CONFIG`]: (name, token, file). Where transformers reads [`TOKENS_MAP`], its entries take precedence.
    named: Vec<(String, NamedToken, &'static str)>,
}

impl SpecialTokens {
    /// Finds the special tokens, and adds to the tokenizer those that its own file lacks. `config` has the fields of
    /// `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Field`] for a malformed file, or for a BOS or EOS that the vocabulary lacks.
    pub fn find(inner: &mut tokenizers::Tokenizer, side: &SideFiles, config: &Map<String, Value>) -> Result<Self> {
        let sources = TokenSources::read(side, config)?;
        let mut found = Self::default();
        sources.add_listed(inner, &mut found.notes)?;
        let byte_level = serde_json::to_string(&inner.get_pre_tokenizer()).is_ok_and(|t| t.contains("ByteLevel"));
        let class = sources.class(byte_level);
        let defaults = class.map_or(&[][..], |known| known.tokens);
        found.start = class.map_or(TextStart::default(), |known| known.start);
        for (name, token, _) in &sources.named {
            if let NamedToken::Text(text) = token {
                found.named.push((name.clone(), text.clone()));
            }
        }
        // A class default that is missing from the vocabulary is ignored, because its id would be beyond the embedding.
        for (name, text) in defaults.iter().filter(|(_, text)| inner.token_to_id(text).is_some()) {
            if !sources.named.iter().any(|(known, ..)| known == name) {
                found.named.push(((*name).into(), (*text).into()));
            }
        }
        found.bos = sources.id("bos_token", &found, inner)?;
        found.eos = sources.id("eos_token", &found, inner)?;
        found.compare_with_config(&sources, inner, defaults);
        sources.tell_conflicts(&mut found.notes);
        sources.add_named(inner, &found.named)?;
        Ok(found)
    }

    /// Uses the ids in `config.json` where the tokenizer names no token, and notes contradictions between the two.
    fn compare_with_config(
        &mut self,
        sources: &TokenSources<'_>,
        inner: &tokenizers::Tokenizer,
        defaults: &NamedTexts,
    ) {
        let ids = [("bos_token_id", &mut self.bos, "BOS"), ("eos_token_id", &mut self.eos, "EOS")];
        let path = sources.side.path(CONFIG).display().to_string();
        for (field, id, what) in ids {
            let named = config_ids(&sources.model, field);
            let text = named.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
            let in_vocabulary = |id: &u64| u32::try_from(*id).ok().filter(|id| inner.id_to_token(*id).is_some());
            let shown = |id: u32| format!("{id} `{}`", inner.id_to_token(id).unwrap_or_default().escape_debug());
            match (*id, named.iter().find_map(in_vocabulary)) {
                (Some(own), _) if !named.is_empty() && !named.contains(&u64::from(own)) => {
                    self.notes
                        .push(format!("{path}: {field} is {text}; the tokenizer's {what}, {}, is used", shown(own)));
                }
                (Some(_), _) => {}
                (None, Some(theirs)) if !sources.is_nothing(field, defaults) => {
                    *id = Some(theirs);
                    self.notes.push(format!(
                        "{path}: {field}, {}, is used as {what}: the tokenizer's files name none",
                        shown(theirs)
                    ));
                }
                (None, _) => {
                    let in_map = sources.unread(field.trim_end_matches("_id"));
                    let unused = match in_map {
                        _ if !named.is_empty() => format!(" ({path}: {field} is {text})"),
                        Some((text, file)) => {
                            format!(" ({file} names `{}`, which transformers does not use here)", text.escape_debug())
                        }
                        None => String::new(),
                    };
                    let result = match what {
                        "BOS" => "the first token of a text is never scored",
                        _ => "the end of a response is neither scored nor learnt",
                    };
                    self.notes.push(format!("the tokenizer has no {what}{unused}: {result}"));
                }
            }
        }
    }
}

/// Returns the ids of a field in `config.json`: one or a list, also those in its `text_config`.
pub(crate) fn config_ids(model: &Map<String, Value>, field: &str) -> Vec<u64> {
    let nested = model.get("text_config").and_then(Value::as_object);
    let mut ids = Vec::new();
    for value in [Some(model), nested].into_iter().flatten().filter_map(|fields| fields.get(field)) {
        let list = value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
        for id in list.iter().filter_map(Value::as_u64) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    ids
}

impl<'a> TokenSources<'a> {
    fn read(side: &'a SideFiles, config: &'a Map<String, Value>) -> Result<Self> {
        let mut sources = Self { side, config, model: side.fields(CONFIG)?, named: Vec::new() };
        sources.take(TOKENIZER_CONFIG, config)?;
        if let Some(Value::Object(extra)) = config.get("extra_special_tokens") {
            sources.take(TOKENIZER_CONFIG, extra)?;
        }
        // transformers reads this file only if the configuration does not list the added tokens. Its entries then take precedence.
        if !config.contains_key("added_tokens_decoder") {
            let map = side.fields(TOKENS_MAP)?;
            sources.named.retain(|(name, ..)| !map.contains_key(name));
            sources.take(TOKENS_MAP, &map)?;
        }
        Ok(sources)
    }

    /// Adds the tokens among a file's entries.
    fn take(&mut self, file: &'static str, fields: &Map<String, Value>) -> Result<()> {
        for (name, value) in fields.iter().filter(|(name, _)| name.ends_with("_token")) {
            let bad = |reason: String| Err(Error::field(self.side.path(file), name, reason));
            let token = match value {
                Value::String(text) => NamedToken::Text(text.clone()),
                Value::Object(token) => match token.get("content") {
                    Some(Value::String(text)) => NamedToken::Text(text.clone()),
                    _ => return bad("expected a text, or an object with `content`".into()),
                },
                Value::Null => NamedToken::Nothing,
                other if ["bos_token", "eos_token"].contains(&name.as_str()) => {
                    return bad(format!("expected text or null, found {}", kind(other)));
                }
                // Flags such as add_bos_token have the same suffix.
                _ => continue,
            };
            self.named.push((name.clone(), token, file));
        }
        Ok(())
    }

    /// Returns the defaults of the tokenizer's class, which is determined as in AutoTokenizer.
    fn class(&self, byte_level: bool) -> Option<&'static ClassDefaults> {
        let text =
            |fields: &'_ Map<String, Value>, name: &str| fields.get(name).and_then(Value::as_str).map(String::from);
        let model_type = text(&self.model, "model_type").unwrap_or_default();
        let named = text(self.config, "tokenizer_class").or_else(|| text(&self.model, "tokenizer_class"));
        let named = named.map(|class| class.strip_suffix("Fast").unwrap_or(&class).to_string());
        let class = match (model_type.as_str(), named.as_deref()) {
            // transformers ignores the class that Qwen2's folders name.
            ("qwen2", _) => "Qwen2Tokenizer",
            // Some Llama 3 folders name the class of Llama 2.
            (_, Some("LlamaTokenizer")) if byte_level => "",
            (_, Some(class)) => class,
            ("gpt2", None) => "GPT2Tokenizer",
            ("qwen3", None) => "Qwen2Tokenizer",
            ("gemma2" | "gemma3" | "gemma3_text", None) => "GemmaTokenizer",
            _ => "",
        };
        CLASSES.iter().find(|known| known.class == class)
    }

    /// Returns whether the files or the class say that there is no such token: by `null`, or because the class has other defaults but not
    /// this one.
    fn is_nothing(&self, field: &str, defaults: &NamedTexts) -> bool {
        let name = field.trim_end_matches("_id");
        // Only BOS can be declared absent. EOS is needed, so the id in `config.json` is used even then.
        name == "bos_token"
            && (self.named.iter().any(|(known, ..)| known == name)
                || !(defaults.is_empty() || defaults.iter().any(|(known, _)| *known == name)))
    }

    fn id(&self, name: &str, found: &SpecialTokens, inner: &tokenizers::Tokenizer) -> Result<Option<u32>> {
        let Some((_, text)) = found.named.iter().find(|(known, _)| known == name) else { return Ok(None) };
        let file = self.named.iter().find(|(known, ..)| known == name).map_or(TOKENIZER_CONFIG, |(.., file)| *file);
        let missing = || format!("tokenizer.json has no token `{}`", text.escape_debug());
        inner.token_to_id(text).map(Some).ok_or_else(|| Error::field(self.side.path(file), name, missing()))
    }

    /// Returns a token's text in the file that transformers does not read, or that another file overrides, with that file's name.
    fn unread(&self, name: &str) -> Option<(String, &'static str)> {
        let listed = self.config.contains_key("added_tokens_decoder");
        let (file, fields) = match listed {
            true => (TOKENS_MAP, self.side.fields(TOKENS_MAP).ok()?),
            false => (TOKENIZER_CONFIG, self.config.clone()),
        };
        let mut other = Self { named: Vec::new(), model: Map::new(), ..*self };
        other.take(file, &fields).ok()?;
        other.text(name).map(|text| (text.to_string(), file))
    }

    /// Returns the text of the token with this name.
    fn text(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(known, ..)| known == name).and_then(|(_, token, _)| match token {
            NamedToken::Text(text) => Some(text.as_str()),
            NamedToken::Nothing => None,
        })
    }

    /// Adds notes on a BOS or EOS that two files define differently.
    fn tell_conflicts(&self, notes: &mut Vec<String>) {
        for name in ["bos_token", "eos_token"] {
            let (Some((theirs, file)), Some(ours)) = (self.unread(name), self.text(name)) else { continue };
            if theirs != ours {
                let used = if file == TOKENS_MAP { TOKENIZER_CONFIG } else { TOKENS_MAP };
                let (path, theirs, ours) = (self.side.path(file), theirs.escape_debug(), ours.escape_debug());
                notes.push(format!("{}: {name} is `{theirs}`; that of {used}, `{ours}`, is used", path.display()));
            }
        }
    }

    /// Adds tokens that a file beside `tokenizer.json` lists and `tokenizer.json` lacks, as transformers does.
    fn add_listed(&self, inner: &mut tokenizers::Tokenizer, notes: &mut Vec<String>) -> Result<()> {
        let path = self.side.path(TOKENIZER_CONFIG);
        let mut listed: Vec<(u64, AddedToken)> = Vec::new();
        if let Some(decoder) = self.config.get("added_tokens_decoder") {
            let bad = |reason: String| Error::field(&path, "added_tokens_decoder", reason);
            let decoder = decoder.as_object().ok_or_else(|| bad("expected an object".into()))?;
            for (id, token) in decoder {
                let id = id.parse().map_err(|_| bad(format!("`{}` is not an id", id.escape_debug())))?;
                listed.push((id, added_token(token).ok_or_else(|| bad(format!("token {id} has no `content`")))?));
            }
        } else {
            let is_named = |text: &str| {
                self.named.iter().any(|(_, token, _)| matches!(token, NamedToken::Text(named) if named == text))
            };
            for (text, id) in self.side.fields(ADDED_TOKENS)? {
                let bad = || Error::field(self.side.path(ADDED_TOKENS), &text, "expected an id");
                listed.push((id.as_u64().ok_or_else(bad)?, AddedToken::from(text.clone(), is_named(&text))));
            }
        }
        listed.sort_by_key(|(id, _)| *id);
        let mut moved = Vec::new();
        for (id, token) in listed {
            let text = token.content.clone();
            if text.is_empty() || is_added(inner, &text) {
                continue;
            }
            inner.add_tokens([token]).map_err(|e| Error::file(self.side.path(TOKENIZER), e))?;
            if let Some(given) = inner.token_to_id(&text).filter(|given| u64::from(*given) != id) {
                moved.push(format!("`{}` ({id}, here {given})", text.escape_debug()));
            }
        }
        if let [first, ..] = moved.as_slice() {
            let (path, n) = (path.display(), moved.len());
            notes.push(format!(
                "{path}: {n} added tokens get another id than is listed, as in transformers: {first}, ..."
            ));
        }
        Ok(())
    }

    /// Marks the named tokens as added tokens, which are never split, as transformers does.
    fn add_named(&self, inner: &mut tokenizers::Tokenizer, named: &[(String, String)]) -> Result<()> {
        let lists = ["extra_special_tokens", "additional_special_tokens"];
        let extra = lists.into_iter().filter_map(|name| self.config.get(name)?.as_array()).flatten();
        let extra = extra.filter_map(added_token).map(|token| token.content);
        for text in named.iter().map(|(_, text)| text.clone()).chain(extra) {
            if !is_added(inner, &text) {
                let added = inner.add_special_tokens([AddedToken::from(text, true)]);
                added.map_err(|e| Error::file(self.side.path(TOKENIZER), e))?;
            }
        }
        Ok(())
    }
}

/// Returns whether a text is an added token, which is never split.
fn is_added(inner: &tokenizers::Tokenizer, text: &str) -> bool {
    inner.get_added_vocabulary().get_vocab().contains_key(text)
}

/// Parses a token from a text, or from an object as in `added_tokens_decoder`.
fn added_token(value: &Value) -> Option<AddedToken> {
    if let Value::String(text) = value {
        return Some(AddedToken::from(text.clone(), true));
    }
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    let token = AddedToken::from(value.get("content")?.as_str()?.to_string(), special);
    let token = token.single_word(flag("single_word").unwrap_or(false)).lstrip(flag("lstrip").unwrap_or(false));
    Some(token.rstrip(flag("rstrip").unwrap_or(false)).normalized(flag("normalized").unwrap_or(!special)))
}
