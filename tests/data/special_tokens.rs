//! Special tokens, wherever a folder names them, against what AutoTokenizer makes of it (special_tokens/make.py).

use std::path::Path;

use jointwise::data::prompt_template::Template;
use jointwise::data::tokens::Tokenizer;
use jointwise::error::Result;
use jointwise::eval::generate::eos_ids;
use jointwise::model::side_files::SideFiles;
use serde_json::{Value, json};

use super::{fixture, ids, json, plain};

fn cases() -> Value {
    json(fixture("special_tokens/cases.json"))
}

/// A folder of bytes' tokenizer, with these files beside it.
fn folder(files: &[(&str, Value)]) -> SideFiles {
    let mut texts: Vec<(String, String)> = files.iter().map(|(n, v)| ((*n).into(), v.to_string())).collect();
    texts.push(("tokenizer.json".into(), cases()["tokenizers"]["bytes"].to_string()));
    SideFiles::from_contents(Path::new("m"), texts.iter().map(|(name, text)| (name.as_str(), text.as_bytes())))
}

fn tokenizer(files: &[(&str, Value)]) -> Result<Tokenizer> {
    Tokenizer::from_side_files(&folder(files))
}

#[test]
fn special_tokens_are_those_of_transformers() {
    let all = cases();
    let mut n_named = 0;
    for case in all["cases"].as_array().unwrap() {
        let inner = if case["byte_level"] == true { "bytes" } else { "words" };
        let mut files = case["files"].clone();
        files["tokenizer.json"] = all["tokenizers"][inner].clone();
        let texts: Vec<(String, String)> =
            files.as_object().unwrap().iter().map(|(name, file)| (name.clone(), file.to_string())).collect();
        let texts = texts.iter().map(|(name, text)| (name.as_str(), text.as_bytes()));
        let tokenizer = Tokenizer::from_side_files(&SideFiles::from_contents(Path::new("m"), texts)).unwrap();
        let id = |name: &str| case[name].as_u64().map(|id| id as u32);
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (id("bos"), id("eos")), "{}", case["name"]);
        for text in case["texts"].as_array().unwrap() {
            assert_eq!(tokenizer.encode_text(text[0].as_str().unwrap()).unwrap(), ids(&text[1]), "{}", case["name"]);
        }
        n_named += usize::from(tokenizer.eos_id().is_some());
    }
    assert!(n_named > 20, "{n_named}");
}

#[test]
fn config_json_has_the_last_word() {
    let none = tokenizer(&[]).unwrap();
    assert_eq!((none.bos_id(), none.eos_id()), (None, None));
    let model = json!({"model_type": "llama", "bos_token_id": 28, "eos_token_id": [29, 35]});
    let found = tokenizer(&[("config.json", model.clone()), ("tokenizer_config.json", json!({}))]).unwrap();
    assert_eq!((found.bos_id(), found.eos_id()), (Some(28), Some(29)));
    assert_eq!(
        found.notes(),
        [
            "m/config.json: bos_token_id, 28 `<s>`, is used as BOS: the tokenizer's files name none",
            "m/config.json: eos_token_id, 29 `</s>`, is used as EOS: the tokenizer's files name none"
        ]
    );
    // A model in a larger one; an id that the vocabulary lacks is passed over.
    let nested = json!({"model_type": "llama", "eos_token_id": 999, "text_config": {"eos_token_id": 35}});
    assert_eq!(tokenizer(&[("config.json", nested)]).unwrap().eos_id(), Some(35));

    // The tokenizer wins, with a note; what it has none of stays absent, where it says so.
    let named = json!({"bos_token": null, "eos_token": "<|other|>"});
    let found = tokenizer(&[
        ("config.json", json!({"bos_token_id": 28, "eos_token_id": 29})),
        ("tokenizer_config.json", named),
    ]);
    let found = found.unwrap();
    assert_eq!((found.bos_id(), found.eos_id()), (None, Some(35)));
    assert_eq!(
        found.notes(),
        [
            "the tokenizer has no BOS (m/config.json: bos_token_id is 28): the first token of a text is never scored",
            "m/config.json: eos_token_id is 29; the tokenizer's EOS, 35 `<|other|>`, is used"
        ]
    );
    let qwen = json!({"model_type": "qwen2", "bos_token_id": 34, "eos_token_id": 34});
    let qwen = tokenizer(&[("config.json", qwen), ("tokenizer_config.json", json!({}))]).unwrap();
    assert_eq!((qwen.bos_id(), qwen.eos_id(), qwen.notes().len()), (None, Some(34), 1));
    // One of several is no contradiction.
    let chat = json!({"eos_token": "<|other|>", "bos_token": "<s>"});
    let agreed = json!({"model_type": "llama", "bos_token_id": 28, "eos_token_id": [34, 35]});
    let agreed = tokenizer(&[("config.json", agreed), ("tokenizer_config.json", chat)]).unwrap();
    assert_eq!(agreed.notes(), [] as [&str; 0]);
}

#[test]
fn files_that_contradict_each_other_are_named() {
    let map = json!({"eos_token": "</s>", "bos_token": "<s>"});
    let config = json!({"eos_token": "<|other|>", "bos_token": "<s>"});
    let found =
        tokenizer(&[("tokenizer_config.json", config.clone()), ("special_tokens_map.json", map.clone())]).unwrap();
    assert_eq!(found.eos_id(), Some(29));
    let note = "m/tokenizer_config.json: eos_token is `<|other|>`; that of special_tokens_map.json, `</s>`, is used";
    assert_eq!(found.notes(), [note]);
    let mut listed = config;
    listed["added_tokens_decoder"] = json!({});
    let found = tokenizer(&[("tokenizer_config.json", listed), ("special_tokens_map.json", map)]).unwrap();
    assert_eq!(found.eos_id(), Some(35));
    let note = "m/special_tokens_map.json: eos_token is `</s>`; that of tokenizer_config.json, `<|other|>`, is used";
    assert_eq!(found.notes(), [note]);

    let silent = json!({"added_tokens_decoder": {}, "bos_token": "<s>"});
    let map = ("special_tokens_map.json", json!({"eos_token": "</s>"}));
    let found = tokenizer(&[("tokenizer_config.json", silent), map]).unwrap();
    assert_eq!(found.eos_id(), None);
    let note =
        "the tokenizer has no EOS (special_tokens_map.json names `</s>`, which transformers does not use here): ";
    assert!(found.notes().len() == 1 && found.notes()[0].starts_with(note), "{:?}", found.notes());

    let moved = json!({"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": {"77": {"content": "<x>"}}});
    let found = tokenizer(&[("tokenizer_config.json", moved)]).unwrap();
    assert!(found.notes()[0].ends_with("as in transformers: `<x>` (77, here 38), ..."), "{:?}", found.notes());
    for (file, content, reason) in [
        ("special_tokens_map.json", json!({"eos_token": "<x>"}), "`eos_token`: tokenizer.json has no token `<x>`"),
        (
            "special_tokens_map.json",
            json!({"eos_token": {}}),
            "`eos_token`: expected a text, or an object with `content`",
        ),
        ("special_tokens_map.json", json!([]), "expected a JSON object"),
        ("added_tokens.json", json!({"<x>": "1"}), "`<x>`: expected an id"),
        ("tokenizer_config.json", json!({"added_tokens_decoder": {"a": "<x>"}}), "`a` is not an id"),
    ] {
        let text = tokenizer(&[(file, content)]).unwrap_err().to_string();
        assert!(text.starts_with(&format!("m/{file}: ")) && text.contains(reason), "{text}");
    }
}

#[test]
fn any_end_that_a_file_names_ends_a_response() {
    let config = json!({"eos_token_id": [29, 35, 999], "text_config": {"eos_token_id": 37}});
    let generation = json!({"eos_token_id": 32});
    let stops = |files: &[(&str, Value)]| eos_ids(&folder(files), Some(34), 38);
    assert_eq!(stops(&[]).unwrap(), [34]);
    assert_eq!(stops(&[("config.json", config.clone())]).unwrap(), [34, 29, 35, 37]);
    let both = stops(&[("generation_config.json", generation), ("config.json", config)]).unwrap();
    assert_eq!(both, [34, 32, 29, 35, 37]);
    let text = stops(&[("generation_config.json", json!({"eos_token_id": 38}))]).unwrap_err().to_string();
    assert!(text.contains("generation_config.json") && text.contains("expected ids below 38, found 38"), "{text}");
}

#[test]
fn a_response_without_an_end_where_that_is_asked_for() {
    let config = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let text = plain("a", "b");
    let with = tokenizer(&[("tokenizer_config.json", config)]).unwrap();
    assert_eq!(with.encode(&text, &Template::None).unwrap().ids, [28, 0, 1, 29]);
    assert_eq!(with.without_end().encode(&text, &Template::None).unwrap().ids, [28, 0, 1]);
}
