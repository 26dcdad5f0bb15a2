//! Metadata of a GGUF file from the files of a byte-level BPE tokenizer.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::super::side_files::{SideFiles, TOKENIZER, TOKENIZER_CONFIG};
use super::metadata::MetaValue;
use super::pre_tokenizer::PreTokenizer;
use super::read_tokenizer::{CONTROL, MERGES, TEMPLATE, TOKEN_TYPES, TOKENS, UNUSED, USER_DEFINED, placeholder};
use crate::error::{Error, Result};

/// Ids that the tokenizer's reader found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialIds {
    /// Beginning of a sequence.
    pub bos: Option<u32>,
    /// End of a sequence.
    pub eos: Option<u32>,
    /// Whether BOS is put before a text.
    pub adds_bos: bool,
}

/// Returns the metadata of a tokenizer, for a model with `vocab` rows in its embedding.
///
/// # Errors
/// [`Error::File`] for a `tokenizer.json` that is not byte-level BPE, or with a token beyond the embedding.
pub fn tokenizer_metadata(
    side: &SideFiles,
    pre: &PreTokenizer,
    special: SpecialIds,
    vocab: usize,
) -> Result<Vec<(String, MetaValue)>> {
    let path = side.path(TOKENIZER);
    let bad = |reason: &str| Error::file(&path, reason);
    let fields = side.fields(TOKENIZER)?;
    let model = fields.get("model").and_then(Value::as_object).ok_or_else(|| bad("has no `model`"))?;
    if model.get("type").and_then(Value::as_str).unwrap_or("BPE") != "BPE" {
        return Err(bad("its model is not BPE"));
    }
    let tokens = Vocabulary::read(model, fields.get("added_tokens"), vocab).map_err(|reason| bad(&reason))?;
    let merges = model.get("merges").and_then(Value::as_array).ok_or_else(|| bad("has no `model.merges`"))?;
    let merge = |merge: &Value| match merge {
        Value::String(text) => Some(text.clone()),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(a), Value::String(b)] => Some(format!("{a} {b}")),
            _ => None,
        },
        _ => None,
    };
    let merges: Option<Vec<String>> = merges.iter().map(merge).collect();
    let merges = merges.filter(|all| all.iter().all(|text| text.split(' ').count() == 2));
    let merges = merges.ok_or_else(|| bad("`model.merges` has an entry that is not two tokens"))?;

    let config = side.fields(TOKENIZER_CONFIG)?;
    let named = |field: &str| {
        let value = config.get(field)?;
        let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
        tokens.texts.iter().position(|token| token == text).map(|id| id as u32)
    };
    let mut all = vec![
        ("tokenizer.ggml.model".to_string(), MetaValue::Text("gpt2".into())),
        ("tokenizer.ggml.pre".into(), MetaValue::Text(pre.name.into())),
    ];
    let ids =
        [("bos", special.bos), ("eos", special.eos), ("unknown", named("unk_token")), ("padding", named("pad_token"))];
    for (name, id) in ids {
        all.extend(id.map(|id| (format!("tokenizer.ggml.{name}_token_id"), MetaValue::U32(id))));
    }
    all.push(("tokenizer.ggml.add_bos_token".into(), MetaValue::Bool(special.adds_bos)));
    all.push((TOKENS.into(), MetaValue::Texts(tokens.texts)));
    all.push((TOKEN_TYPES.into(), MetaValue::Integers(tokens.kinds)));
    all.push((MERGES.into(), MetaValue::Texts(merges)));
    let templates = side.chat_templates()?;
    let names: Vec<String> = templates.iter().map(|(name, _)| name.clone()).filter(|name| name != "default").collect();
    for (name, text) in templates {
        let key = if name == "default" { TEMPLATE.into() } else { format!("{TEMPLATE}.{name}") };
        all.push((key, MetaValue::Text(text)));
    }
    if !names.is_empty() {
        all.push(("tokenizer.chat_templates".into(), MetaValue::Texts(names)));
    }
    Ok(all)
}

/// Tokens by id, with their types.
struct Vocabulary {
    texts: Vec<String>,
    kinds: Vec<i64>,
}

impl Vocabulary {
    /// Reads `model.vocab` and `added_tokens` of `tokenizer.json`. Ids without a token get placeholders.
    fn read(model: &Map<String, Value>, added: Option<&Value>, vocab: usize) -> std::result::Result<Self, String> {
        let mut all: BTreeMap<usize, (String, i64)> = BTreeMap::new();
        let id = |value: &Value| value.as_u64().and_then(|id| usize::try_from(id).ok());
        for (text, value) in model.get("vocab").and_then(Value::as_object).ok_or("has no `model.vocab`")? {
            all.insert(id(value).ok_or("`model.vocab` has an id that is not a whole number")?, (text.clone(), 1));
        }
        for token in added.and_then(Value::as_array).into_iter().flatten() {
            let text =
                token.get("content").and_then(Value::as_str).ok_or("`added_tokens` has an entry without text")?;
            let is_special = token.get("special").and_then(Value::as_bool).unwrap_or(false) || looks_special(text);
            let at = token.get("id").and_then(id).ok_or("`added_tokens` has an entry without an id")?;
            all.insert(at, (text.into(), if is_special { CONTROL } else { USER_DEFINED }));
        }
        if let Some((id, (text, _))) = all.last_key_value().filter(|(id, _)| **id >= vocab) {
            return Err(format!("token {id} (`{}`) is beyond the embedding's {vocab} rows", text.escape_debug()));
        }
        let token = |id: usize| all.get(&id).cloned().unwrap_or_else(|| (placeholder(id), UNUSED));
        let (texts, kinds) = (0..vocab).map(token).unzip();
        Ok(Self { texts, kinds })
    }
}

/// Tells whether llama.cpp's converter takes an added token for one that is not a part of texts: `does_token_look_special`.
fn looks_special(text: &str) -> bool {
    text.starts_with("<|") && text.ends_with("|>")
}
