//! Tokenizer of a GGUF file as Hugging Face's files: `tokenizer.json`, `tokenizer_config.json`, `generation_config.json` and chat templates.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::super::side_files::{CHAT_TEMPLATE, GENERATION_CONFIG, MORE_TEMPLATES, TOKENIZER, TOKENIZER_CONFIG};
use super::metadata::GgufMetadata;
use super::pre_tokenizer::{PreTokenizer, known_names};
use crate::error::Result;

/// Key of the tokens' texts.
pub const TOKENS: &str = "tokenizer.ggml.tokens";
/// Key of the tokens' types.
pub const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
/// Key of the merges.
pub const MERGES: &str = "tokenizer.ggml.merges";
/// Key of the default chat template; `.NAME` behind it for others.
pub const TEMPLATE: &str = "tokenizer.chat_template";

/// Type of a token in [`TOKEN_TYPES`]: one that is not a part of texts, such as `<|im_end|>`.
pub const CONTROL: i64 = 3;
/// Type of an added token that may be a part of a text, such as `<think>`.
pub const USER_DEFINED: i64 = 4;
/// Type of an id that stands for nothing.
pub const UNUSED: i64 = 5;

/// Returns the text that an id without a token has.
pub fn placeholder(id: usize) -> String {
    format!("[PAD{id}]")
}

/// Tokenizer that a file's metadata describe.
#[derive(Debug, Clone)]
pub struct MetadataTokenizer {
    /// Pre-tokeniser, or the reason why it is not known. The ids of the probe text are still to be checked.
    pub pre: std::result::Result<&'static PreTokenizer, String>,
    /// Files by name: chat templates, the tokens that end a response and, where the pre-tokeniser is known, the tokenizer.
    pub files: Vec<(String, String)>,
}

/// Token of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataToken<'f> {
    /// Number of the token.
    pub id: usize,
    /// Text in the vocabulary.
    pub text: &'f str,
    /// Type in `tokenizer.ggml.token_type`.
    pub kind: i64,
}

/// Returns the tokens of a file, without ids that stand for nothing; none where there is no vocabulary.
///
/// # Errors
/// [`Error::Field`](crate::Error::Field) for a vocabulary with types of another number, or with a token twice.
pub fn tokens(metadata: &GgufMetadata) -> Result<Vec<MetadataToken<'_>>> {
    let Some(texts) = metadata.texts(TOKENS)? else { return Ok(Vec::new()) };
    let kinds = metadata.integers(TOKEN_TYPES)?.unwrap_or_default();
    if !kinds.is_empty() && kinds.len() != texts.len() {
        let reason = format!("{} types for {} tokens", kinds.len(), texts.len());
        return Err(metadata.bad(TOKEN_TYPES, reason));
    }
    let (mut all, mut seen) = (Vec::with_capacity(texts.len()), HashSet::with_capacity(texts.len()));
    for (id, text) in texts.iter().enumerate() {
        let kind = kinds.get(id).copied().unwrap_or(1);
        // Files of older converters have placeholders of the type of an added token.
        if kind == UNUSED || (kind != 1 && *text == placeholder(id)) {
            continue;
        }
        if !seen.insert(text.as_str()) {
            return Err(
                metadata.bad(TOKENS, format!("`{}` is there twice, the second time as {id}", text.escape_debug()))
            );
        }
        all.push(MetadataToken { id, text, kind });
    }
    Ok(all)
}

/// Returns the token that a key names by its id; `None` where the key or the vocabulary is absent.
fn special<'f>(metadata: &'f GgufMetadata, name: &str) -> Result<Option<(u64, &'f str)>> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let (Some(id), Some(texts)) = (metadata.size(&key)?, metadata.texts(TOKENS)?) else { return Ok(None) };
    let text = usize::try_from(id).ok().and_then(|at| texts.get(at));
    let text = text.ok_or_else(|| metadata.bad(&key, format!("{id} is not one of {} tokens", texts.len())))?;
    Ok(Some((id, text)))
}

/// Returns the file's pre-tokeniser, or the reason why it is not known.
fn pre_tokenizer(metadata: &GgufMetadata) -> Result<std::result::Result<&'static PreTokenizer, String>> {
    match metadata.text("tokenizer.ggml.model")? {
        Some("gpt2") => {}
        Some(other) => {
            return Ok(Err(format!("tokenizer.ggml.model is `{other}`; `gpt2`, byte-level BPE, is supported")));
        }
        None => return Ok(Err("there is no tokenizer.ggml.model".into())),
    }
    let Some(name) = metadata.text("tokenizer.ggml.pre")? else {
        return Ok(Err("there is no tokenizer.ggml.pre".into()));
    };
    let unknown = || format!("tokenizer.ggml.pre is `{name}`; supported are {}", known_names());
    Ok(PreTokenizer::named(name).ok_or_else(unknown))
}

/// Reads the tokenizer of a file.
///
/// # Errors
/// [`Error::Field`](crate::Error::Field) for metadata that are malformed.
pub fn read_tokenizer(metadata: &GgufMetadata) -> Result<MetadataTokenizer> {
    let pre = pre_tokenizer(metadata)?;
    let mut files = templates(metadata)?;
    let mut stops = Vec::new();
    for name in ["eos", "eot", "eom"] {
        stops.extend(special(metadata, name)?.map(|(id, _)| id).filter(|id| !stops.contains(id)));
    }
    files.push((GENERATION_CONFIG.into(), json!({"eos_token_id": stops}).to_string()));
    let Ok(known) = pre else { return Ok(MetadataTokenizer { pre, files }) };
    let bos = special(metadata, "bos")?;
    let adds_bos = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(known.adds_bos) && bos.is_some();
    files.push((TOKENIZER.into(), tokenizer_json(metadata, known, bos.filter(|_| adds_bos))?));
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    for (name, field) in
        [("bos", "bos_token"), ("eos", "eos_token"), ("padding", "pad_token"), ("unknown", "unk_token")]
    {
        if name == "bos" && !known.has_bos && !adds_bos {
            config.insert(field.into(), Value::Null);
        } else if let Some((_, text)) = special(metadata, name)? {
            config.insert(field.into(), json!(text));
        }
    }
    files.push((TOKENIZER_CONFIG.into(), Value::Object(config).to_string()));
    Ok(MetadataTokenizer { pre, files })
}

/// Returns the chat templates as files by name.
fn templates(metadata: &GgufMetadata) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for key in metadata.keys() {
        let Some(rest) = key.strip_prefix(TEMPLATE) else { continue };
        let file = match rest.strip_prefix('.') {
            None if rest.is_empty() => CHAT_TEMPLATE.to_string(),
            // The list of names.
            None => continue,
            Some(name) if name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) => {
                format!("{MORE_TEMPLATES}/{name}.jinja")
            }
            Some(_) => return Err(metadata.bad(key, "is not a plain name of a template")),
        };
        files.push((file, metadata.text(key)?.unwrap_or_default().into()));
    }
    Ok(files)
}

/// Returns the contents of `tokenizer.json`.
fn tokenizer_json(metadata: &GgufMetadata, pre: &PreTokenizer, bos: Option<(u64, &str)>) -> Result<String> {
    let tokens = tokens(metadata)?;
    let merges = metadata.texts(MERGES)?.ok_or_else(|| metadata.bad(MERGES, "is missing"))?;
    let pair = |merge: &String| {
        let (left, right) = merge.split_once(' ').filter(|(_, right)| !right.contains(' '))?;
        Some(json!([left, right]))
    };
    let malformed = |merge: &String| metadata.bad(MERGES, format!("`{}` is not two tokens", merge.escape_debug()));
    let merges: Vec<Value> =
        merges.iter().map(|merge| pair(merge).ok_or_else(|| malformed(merge))).collect::<Result<_>>()?;
    let is_added = |token: &&MetadataToken<'_>| [CONTROL, USER_DEFINED].contains(&token.kind);
    let added = |token: &MetadataToken<'_>| {
        json!({
            "id": token.id, "content": token.text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": token.kind == CONTROL,
        })
    };
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    let post = match bos {
        None => bytes.clone(),
        Some((id, text)) => {
            let (start, a) =
                (json!({"SpecialToken": {"id": text, "type_id": 0}}), json!({"Sequence": {"id": "A", "type_id": 0}}));
            let b = json!({"Sequence": {"id": "B", "type_id": 1}});
            let template = json!({
                "type": "TemplateProcessing",
                "single": [start, a],
                "pair": [start, a, {"SpecialToken": {"id": text, "type_id": 1}}, b],
                "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]}},
            });
            json!({"type": "Sequence", "processors": [bytes, template]})
        }
    };
    let vocab: Map<String, Value> = tokens.iter().map(|token| (token.text.to_string(), json!(token.id))).collect();
    let all = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": tokens.iter().filter(is_added).map(added).collect::<Vec<_>>(),
        "normalizer": pre.normalizer(),
        "pre_tokenizer": pre.steps(),
        "post_processor": post,
        "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.ignores_merges, "vocab": vocab, "merges": merges,
        },
    });
    Ok(all.to_string())
}
