//! Pre-tokenisers that are read and written: those whose split of a text is known for certain. llama.cpp names a pre-tokeniser by the SHA-256
//! of the ids of one probe text (`get_vocab_base_pre` in `conversion/base.py`). A tokenizer is taken for one of this list only where its ids
//! of that text have the listed digest.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Text whose ids tell pre-tokenisers apart: `chktxt` of llama.cpp's converter.
pub const PROBE: &str = concat!(
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u{200d}🌫\u{fe0f} (multiple emojis conca",
    "tenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1",
    "314151天～ ------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's",
    " there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL",
);

/// Pre-tokeniser of byte-level BPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreTokenizer {
    /// Name in `tokenizer.ggml.pre`.
    pub name: &'static str,
    /// SHA-256 of the ids of [`PROBE`], as Python prints a list.
    digest: &'static str,
    /// Regular expression of `Split`; `None` for digits one by one and then GPT-2's expression.
    split: Option<&'static str>,
    /// Whether texts are normalised to NFC.
    is_nfc: bool,
    /// Whether a piece that is a token is not merged (`ignore_merges`).
    pub ignores_merges: bool,
    /// Whether BOS is put before a text, where the file does not say.
    pub adds_bos: bool,
    /// Whether there is a BOS. Qwen's files name one that its tokenizer does not have.
    pub has_bos: bool,
}

/// Pre-tokenisers that are known.
pub const PRE_TOKENIZERS: [PreTokenizer; 3] = [
    // Llama 3, 3.1, 3.2 and 3.3.
    PreTokenizer {
        name: "llama-bpe",
        digest: "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5",
        split: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        is_nfc: false,
        ignores_merges: true,
        adds_bos: true,
        has_bos: true,
    },
    // Qwen1.5 to Qwen3.
    PreTokenizer {
        name: "qwen2",
        digest: "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea",
        split: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        is_nfc: true,
        ignores_merges: false,
        adds_bos: false,
        has_bos: false,
    },
    // SmolLM and SmolLM2.
    PreTokenizer {
        name: "smollm",
        digest: "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249",
        split: None,
        is_nfc: false,
        ignores_merges: false,
        adds_bos: false,
        has_bos: true,
    },
];

impl PreTokenizer {
    /// Returns the pre-tokeniser of a name in `tokenizer.ggml.pre`.
    pub fn named(name: &str) -> Option<&'static Self> {
        PRE_TOKENIZERS.iter().find(|known| known.name == name)
    }

    /// Returns the pre-tokeniser of a tokenizer, given its ids of [`PROBE`] with the tokens that it puts before a text.
    pub fn of_probe(ids: &[u32]) -> Option<&'static Self> {
        let digest = ids_digest(ids);
        PRE_TOKENIZERS.iter().find(|known| known.digest == digest)
    }

    /// Returns `normalizer` of `tokenizer.json`.
    pub fn normalizer(&self) -> Value {
        if self.is_nfc { json!({"type": "NFC"}) } else { Value::Null }
    }

    /// Returns `pre_tokenizer` of `tokenizer.json`.
    pub fn steps(&self) -> Value {
        let first = match self.split {
            Some(regex) => json!({
                "type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false,
            }),
            None => json!({"type": "Digits", "individual_digits": true}),
        };
        let bytes = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": self.split.is_none(),
        });
        json!({"type": "Sequence", "pretokenizers": [first, bytes]})
    }
}

/// Computes SHA-256, in hexadecimal, of ids as Python prints a list of them: `[1, 2]`.
pub fn ids_digest(ids: &[u32]) -> String {
    let listed = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    Sha256::digest(format!("[{listed}]")).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the names of the known pre-tokenisers, for messages.
pub fn known_names() -> String {
    PRE_TOKENIZERS.map(|known| known.name).join(", ")
}
