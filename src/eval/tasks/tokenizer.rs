//! Tokenizer and configuration of the demo model, as the text of their Hugging Face files.
//!
//! The vocabulary is byte-level without merges: three special tokens, the 256 bytes, and some two hundred whole words of which instructions
//! and full sentences consist. With `ignore_merges`, a word in the vocabulary is one token; any other text is split into its bytes. Prompts
//! are therefore short, while the words to be spelled, counted and reversed are seen letter by letter, and decoding restores every text.

use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::{collections::HashSet, path::Path, sync::OnceLock};

/// Padding, beginning and end of a sequence: ids 0, 1, 2.
pub const SPECIAL: [&str; 3] = ["<pad>", "<s>", "</s>"];

/// Vocabulary words for the start of a text or behind punctuation, without a space before them.
const INITIAL: &str = "### The It In Here Backwards You um uh maybe it ok please ... !!";

/// Vocabulary words with a space before them.
const INNER: &str = "Instructions Response Spell How Count What Write Sort Add Subtract Which Find Pick Repeat Say Put Reverse Make the word do you spell many letters are in letter of is first second third fourth last \
    digits plus and minus from largest smallest odd one out plural past tense two three times capitals backwards this \
    polite politely please spelled has order sum difference go could say it i think its might be guess lol or so answer \
    open close move clean find fix bring watch hold paint take lift now";

/// Returns whether a word is in the vocabulary, so that a model cannot see its letters.
pub fn is_entry(word: &str) -> bool {
    static WORDS: OnceLock<HashSet<&str>> = OnceLock::new();
    WORDS.get_or_init(|| INITIAL.split_whitespace().chain(INNER.split_whitespace()).collect()).contains(word)
}

/// Returns every token, in the order of ids.
pub fn vocabulary() -> Vec<String> {
    let mut all: Vec<String> = SPECIAL.map(String::from).into();
    all.extend((0..=255).map(|b| byte_character(b).to_string()));
    all.extend(INITIAL.split_whitespace().map(String::from));
    let digits_and_letters = ('0'..='9').chain('a'..='z').map(String::from);
    let inner = INNER.split_whitespace().map(String::from).chain(digits_and_letters);
    let mut seen: HashSet<String> = all.iter().cloned().collect();
    all.extend(inner.map(|w| format!("Ġ{w}")).filter(|w| seen.insert(w.clone())));
    all
}

/// Returns GPT-2's printable stand-in for a byte: the same character where it is visible Latin-1, else the next unused one from U+0100 on.
fn byte_character(byte: u8) -> char {
    let visible = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !visible(b)).count() as u32;
    char::from_u32(0x100 + before).expect("U+0100 to U+0143 are characters")
}

/// Returns the text of `tokenizer.json`.
pub fn tokenizer_json() -> String {
    let vocabulary: Map<String, Value> = vocabulary().into_iter().enumerate().map(|(id, t)| (t, id.into())).collect();
    let special = |(id, text): (usize, &&str)| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true})
    };
    pretty(&json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": SPECIAL.iter().enumerate().map(special).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocabulary, "merges": []
        }
    }))
}

/// Chat template: the `paper` template around a user's turns, and a system message before the first instruction.
const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}\
{% elif m['role'] == 'user' %}{{ '### Instructions: ' + m['content'] + '\\n\\n### Response:' }}\
{% else %}{{ m['content'] + '\\n\\n' }}{% endif %}{% endfor %}";

/// Returns the text of `tokenizer_config.json`.
pub fn tokenizer_config_json() -> String {
    let added: Map<String, Value> = (SPECIAL.iter().enumerate())
        .map(|(id, text)| {
            let token = json!({"content": text, "lstrip": false, "normalized": false, "rstrip": false,
                "single_word": false, "special": true});
            (id.to_string(), token)
        })
        .collect();
    let [pad, bos, eos] = SPECIAL;
    pretty(&json!({
        "added_tokens_decoder": added, "bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": null,
        "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": false, "model_max_length": DemoShape::DEMO.max_positions,
        "tokenizer_class": "PreTrainedTokenizerFast"
    }))
}

/// Returns the text of `special_tokens_map.json`.
pub fn special_tokens_map_json() -> String {
    let [pad, bos, eos] = SPECIAL;
    pretty(&json!({"bos_token": bos, "eos_token": eos, "pad_token": pad}))
}

/// Sizes of the demo model, a Llama with tied embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DemoShape {
    /// D, the hidden size.
    pub d_model: usize,
    /// L, the number of layers.
    pub n_layers: usize,
    /// H, the number of query heads; E is D / H.
    pub n_heads: usize,
    /// K, the number of key and value heads.
    pub n_kv_heads: usize,
    /// F, the inner width of the MLP.
    pub d_ff: usize,
    /// Longest sequence, in tokens.
    pub max_positions: usize,
}

impl DemoShape {
    /// Sizes of the bundled model.
    pub const DEMO: DemoShape =
        DemoShape { d_model: 128, n_layers: 4, n_heads: 4, n_kv_heads: 2, d_ff: 512, max_positions: 512 };

    /// Returns the number of parameters: V·D + L·(2·D² + 2·D·K·E + 3·D·F + 2·D) + D.
    pub fn n_parameters(&self) -> usize {
        let (d, kv) = (self.d_model, self.n_kv_heads * self.d_model / self.n_heads);
        vocabulary().len() * d + self.n_layers * (2 * d * d + 2 * d * kv + 3 * d * self.d_ff + 2 * d) + d
    }

    /// Returns the text of `config.json`.
    pub fn config_json(&self) -> String {
        pretty(&json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_size": self.d_model, "intermediate_size": self.d_ff, "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads, "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.d_model / self.n_heads, "vocab_size": vocabulary().len(),
            "max_position_embeddings": self.max_positions, "rope_theta": 10000.0, "rope_scaling": null,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
            "attention_dropout": 0.0, "initializer_range": 0.02, "tie_word_embeddings": true, "use_cache": true,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16"
        }))
    }
}

/// Writes all files of the untrained model except its weights into an existing folder.
pub fn write(folder: &Path, shape: &DemoShape) -> Result<()> {
    for (name, text) in [
        ("config.json", shape.config_json()),
        ("tokenizer.json", tokenizer_json()),
        ("tokenizer_config.json", tokenizer_config_json()),
        ("special_tokens_map.json", special_tokens_map_json()),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|e| Error::file(&path, e))?;
    }
    Ok(())
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
