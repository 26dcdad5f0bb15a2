//! The data side, from files to packed batches: against transformers' ids, the oracle's pairs, and bad input.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use jointwise::data::batch::{Example, PrefixSharing, Sequence};
use jointwise::data::chat_template::{ChatInput, ChatTemplate};
use jointwise::data::check::check;
use jointwise::data::dataset::{Dataset, LengthLimits, Overflow, OverflowAction};
use jointwise::data::pack::micro_batches;
use jointwise::data::prompt_template::Template;
use jointwise::data::prompts::read_prompts;
use jointwise::data::rows::{
    DatasetType, FieldMap, Instruction, Message, PromptResponse, ResponseText, Row, RowContent, read_rows,
};
use jointwise::data::tokens::Tokenizer;
use jointwise::kernels::packed_batch::PackedBatch;
use serde_json::Value;

#[path = "data/by_rows.rs"]
mod by_rows;
#[path = "data/chat_templates.rs"]
mod chat_templates;
#[path = "data/files.rs"]
mod files;
#[path = "data/forms.rs"]
mod forms;
#[path = "data/packing.rs"]
mod packing;
#[path = "data/rows.rs"]
mod rows;
#[path = "data/sources.rs"]
mod sources;
#[path = "data/special_tokens.rs"]
mod special_tokens;
#[path = "data/tokenised.rs"]
mod tokenised;
#[path = "data/trl.rs"]
mod trl;
#[path = "data/turns.rs"]
mod turns;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn bpe512() -> Tokenizer {
    Tokenizer::load(fixture("bpe512")).unwrap()
}

/// bpe512 with another tokenizer_config.json.
fn with_config(config: &str) -> jointwise::error::Result<Tokenizer> {
    let tokenizer = std::fs::read(fixture("bpe512/tokenizer.json")).unwrap();
    Tokenizer::from_parts(Path::new("m"), &tokenizer, Some(config), None)
}

fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    std::fs::write(&path, content).unwrap();
    (dir, path)
}

fn read(content: &str, purpose: DatasetType, maps: &[&str]) -> Result<Vec<Row>, String> {
    let (_dir, path) = file(content.as_bytes());
    let map = FieldMap::parse(maps).map_err(|e| e.to_string())?;
    read_rows(&path, &map, purpose).map_err(|e| {
        assert_eq!(e.exit_status(), 2);
        let text = e.to_string();
        assert!(!text.contains('\n'), "{text}");
        text.rsplit('/').next().unwrap().to_string()
    })
}

fn one(content: &str) -> RowContent {
    read(content, DatasetType::Any, &[]).unwrap().remove(0).content
}

fn plain(instruction: &str, response: &str) -> PromptResponse {
    PromptResponse { instruction: Instruction::Plain(instruction.into()), response: response.into() }
}

fn asked(messages: &[(&str, &str)]) -> Instruction {
    let message = |(role, content): &(&str, &str)| Message::new(role, content);
    Instruction::Chat(messages.iter().map(message).collect::<Vec<_>>().into())
}

/// A conversation and its answer, a message each.
fn chat(messages: &[(&str, &str)], response: &str) -> PromptResponse {
    let response = ResponseText::Completion(vec![Message::new("assistant", response)]);
    PromptResponse { instruction: asked(messages), response }
}

fn preference(chosen: PromptResponse, rejected: PromptResponse) -> RowContent {
    RowContent::Preference { chosen, rejected }
}

fn same_as_transformers(tokenizer: &Tokenizer, cases: &Value) {
    for case in cases["encode"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["ids"]);
        assert_eq!(tokenizer.encode_text(text).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.decode_all(&expected).unwrap(), case["decoded"].as_str().unwrap());
        assert_eq!(tokenizer.decode(&expected).unwrap(), case["decoded_skip_special"].as_str().unwrap());
    }
    let none = Vec::new();
    let bare = cases["bare"].as_array().unwrap_or(&none).iter().map(|case| (case, Template::None));
    for (case, template) in cases["pairs"].as_array().unwrap().iter().map(|case| (case, Template::Paper)).chain(bare) {
        let text = plain(case["instruction"].as_str().unwrap(), case["response"].as_str().unwrap());
        let expected = Sequence::new(ids(&case["input_ids"]), case["prompt_len"].as_u64().unwrap() as usize);
        assert_eq!(tokenizer.encode(&text, &template).unwrap(), expected, "{text:?}");
    }
    for case in cases["chat"].as_array().unwrap() {
        let expected = ids(&case["ids"]);
        assert_eq!(tokenizer.encode_text(case["text"].as_str().unwrap()).unwrap(), expected);
        if case["add_generation_prompt"] == true {
            let conversation = Instruction::Chat(messages(case).into());
            let got = tokenizer.encode_prompt(&conversation, &Template::Chat).unwrap();
            assert_eq!(got, expected);
        }
    }
}

#[test]
fn ids_are_transformers_ids() {
    same_as_transformers(&bpe512(), &json(fixture("bpe512/cases.json")));
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/oracle/tokenizer_cases");
    for entry in std::fs::read_dir(shared).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        let tokenizer = Tokenizer::load(entry.path()).unwrap();
        same_as_transformers(&tokenizer, &json(entry.path().with_extension("json")));
    }
}

/// GPT-2's, Llama 2's and two Unigram tokenizers, with the chat templates of well-known models: transformers' answers.
#[test]
fn other_tokenizers_and_chat_templates() {
    for name in ["gpt2-like", "llama2-like", "unigram-first", "unigram-always"] {
        let cases = json(fixture("tokenizers").join(name).with_extension("json"));
        let (inner, config) = (cases["tokenizer"].to_string(), cases["config"].to_string());
        let tokenizer = Tokenizer::from_parts(Path::new(name), inner.as_bytes(), Some(&config), None).unwrap();
        let mut plain_cases = cases.clone();
        plain_cases["chat"] = Value::Array(Vec::new());
        same_as_transformers(&tokenizer, &plain_cases);
        let tokens = ["bos_token", "eos_token"].map(|t| (t.to_string(), config_text(&cases["config"][t])));
        let tokens = tokens.into_iter().filter(|(_, text)| !text.is_empty()).collect();
        let template = ChatTemplate::new(cases["config"]["chat_template"].as_str().unwrap(), tokens).unwrap();
        for case in cases["chat"].as_array().unwrap() {
            let values: Vec<Value> = messages(case).iter().map(Message::to_value).collect();
            let add_generation_prompt = case["add_generation_prompt"] == true;
            let input = ChatInput { messages: &values, add_generation_prompt, ..ChatInput::default() };
            let got = template.render(&input).map(|rendered| rendered.text);
            assert_eq!(got.clone().ok().as_deref(), case["text"].as_str(), "{name}: {got:?}");
        }
    }
}

fn config_text(value: &Value) -> String {
    value.as_str().unwrap_or_default().into()
}

fn messages(case: &Value) -> Vec<Message> {
    let message = |m: &Value| Message::new(m["role"].as_str().unwrap(), m["content"].as_str().unwrap());
    case["messages"].as_array().unwrap().iter().map(message).collect()
}

#[test]
fn sequences_are_the_oracle_s() {
    let expected = json(fixture("prefs_expected.json"));
    let rows = read_rows(fixture("prefs.jsonl"), &FieldMap::default(), DatasetType::Preference).unwrap();
    let data = Dataset::build(&rows, &bpe512(), &Template::Paper, LIMITS).unwrap();
    let got: Vec<&Sequence> = data.examples.iter().flat_map(|e| &e.sequences).collect();
    assert_eq!(got.len(), 48);
    for (i, sequence) in got.iter().enumerate() {
        assert_eq!(sequence.ids, ids(&expected["input_ids"][i]), "sequence {i}");
        assert_eq!(sequence.response_start as u64, expected["prompt_len"][i].as_u64().unwrap(), "sequence {i}");
    }
    let shared = data.examples.iter().filter(|e| e.shared_prefix() + 1 >= e.sequences[0].response_start).count();
    assert!(shared >= 12, "the conditional rows share their instruction, {shared} do");
}

/// Every family's sequences, where its PyTorch answers lie here or beside the checkout.
#[test]
fn every_family_s_sequences_are_the_oracle_s() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let families = ["tests/oracle", "../shared/oracle"].map(|dir| root.join(dir));
    for dir in families.iter().flat_map(std::fs::read_dir).flatten().flatten().map(|e| e.path()) {
        if !dir.join("model/tokenizer.json").exists() || !dir.join("prefs.jsonl").exists() {
            continue;
        }
        let bytes = std::fs::read(dir.join("expected.safetensors")).unwrap();
        let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let ints = |name| -> Vec<u32> {
            let tensor = expected.tensor(name).unwrap();
            tensor.data().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        };
        let (ids, starts, lengths) = (ints("input_ids"), ints("prompt_len"), ints("seq_len"));
        let rows = read_rows(dir.join("prefs.jsonl"), &FieldMap::default(), DatasetType::Preference).unwrap();
        let tokenizer = Tokenizer::load(dir.join("model")).unwrap();
        let data = Dataset::build(&rows, &tokenizer, &Template::Paper, LIMITS).unwrap();
        let got: Vec<&Sequence> = data.examples.iter().flat_map(|e| &e.sequences).collect();
        assert_eq!(got.len(), lengths.len(), "{}", dir.display());
        let width = ids.len() / lengths.len();
        for (i, sequence) in got.iter().enumerate() {
            let expected = &ids[i * width..][..lengths[i] as usize];
            assert_eq!(sequence.ids, expected, "{}: sequence {i}", dir.display());
            assert_eq!(sequence.response_start, starts[i] as usize, "{}: sequence {i}", dir.display());
        }
    }
}

const LIMITS: LengthLimits = LengthLimits { max_length: 1024, overflow: Overflow::Error };

#[test]
fn the_boundary_moves_before_a_token_that_spans_it() {
    // "Hello" is H, ell, o: its second token crosses the place where the response begins.
    let tokenizer = bpe512();
    let text = plain("He", "llo world");
    let got = tokenizer.encode(&text, &Template::None).unwrap();
    let alone = tokenizer.encode_text("He").unwrap();
    let whole = tokenizer.encode_text("Hello world").unwrap();
    assert_ne!(whole[..alone.len()], alone, "the case must merge");
    assert_eq!(got.response_start, 1 + alone.len() - 1);
    assert_eq!(got.ids[1..got.ids.len() - 1], whole);
    // This tokenizer itself puts nothing before a text.
    let as_tokenizer = tokenizer.encode(&text, &Template::Plain).unwrap();
    assert_eq!((as_tokenizer.response_start, &as_tokenizer.ids[..]), (alone.len() - 1, &got.ids[1..]));
}

#[test]
fn never_two_of_bos_or_eos() {
    let tokenizer = bpe512();
    let text = plain("<|bos|>Q", "A<|eos|>");
    let got = tokenizer.encode(&text, &Template::None).unwrap();
    assert_eq!(got.ids.iter().filter(|id| **id == 0).count(), 1);
    assert_eq!(got.ids.iter().filter(|id| **id == 1).count(), 1);
    assert_eq!(got.response_start, 2);
    // A chat template's text is taken as it is.
    let source = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let config = format!(r#"{{"bos_token":{{"content":"<|bos|>"}},"eos_token":"<|eos|>","chat_template":"{source}"}}"#);
    let tokenizer = with_config(&config).unwrap();
    let got = tokenizer.encode(&plain("Q", "A"), &Template::Chat).unwrap();
    assert_eq!(tokenizer.decode_all(&got.ids).unwrap(), "<|bos|>user: Q<|eos|>\nassistant: A<|eos|>\n");
    assert_eq!(tokenizer.decode_all(&got.ids[got.response_start..]).unwrap(), "A<|eos|>\n");
    let prompt = tokenizer.encode_prompt(&plain("Q", "A").instruction, &Template::Chat).unwrap();
    assert_eq!(tokenizer.decode_all(&prompt).unwrap(), "<|bos|>user: Q<|eos|>\nassistant: ");
    // bpe512's own template closes with another token, and prints no BOS: nothing is added.
    let got = bpe512().encode(&plain("Hi", "Hello!"), &Template::Chat).unwrap();
    assert_eq!((got.ids[0], got.ids.contains(&0), got.ids.contains(&1)), (3, false, false));
    assert_eq!(bpe512().decode_all(&got.ids[got.response_start..]).unwrap(), "Hello!<|im_end|>\n");
}

#[test]
fn without_bos_or_eos() {
    let tokenizer = with_config(r#"{"bos_token":null}"#).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (None, None));
    assert_eq!(tokenizer.notes().len(), 2);
    let got = tokenizer.encode(&plain("Say hi", "Hi"), &Template::Paper).unwrap();
    let with = bpe512().encode(&plain("Say hi", "Hi"), &Template::Paper).unwrap();
    assert_eq!(got.ids, with.ids[1..with.ids.len() - 1]);
    assert_eq!(got.response_start, with.response_start - 1);
    let named = r#"{"chat_template":[{"name":"tool_use","template":"x"},{"name":"default","template":"{{ messages[0].content }}"}]}"#;
    let tokenizer = with_config(named).unwrap();
    assert_eq!(
        tokenizer.encode_prompt(&plain("Hello world", "").instruction, &Template::Chat).unwrap(),
        [44, 353, 83, 270, 319, 290]
    );
}

#[test]
fn bad_tokenizers_are_named() {
    let error = |r: jointwise::error::Result<Tokenizer>| {
        let e = r.unwrap_err();
        assert_eq!(e.exit_status(), 2);
        e.to_string()
    };
    let dir = tempfile::tempdir().unwrap();
    assert!(error(Tokenizer::load(dir.path())).contains("tokenizer.json: No such file"));
    std::fs::write(dir.path().join("tokenizer.json"), "{\"version\":").unwrap();
    let broken = error(Tokenizer::load(dir.path()));
    assert!(broken.contains("tokenizer.json: malformed JSON: "), "{broken}");
    std::fs::write(dir.path().join("tokenizer.json"), r#"{"version":"1.0"}"#).unwrap();
    let broken = error(Tokenizer::load(dir.path()));
    assert!(broken.contains("tokenizer.json: no tokenizer can be made of it: "), "{broken}");
    assert!(error(with_config("[]")).ends_with("tokenizer_config.json: expected a JSON object"));
    assert!(error(with_config("{")).contains("tokenizer_config.json: malformed JSON: "));
    assert!(
        error(with_config(r#"{"eos_token":"</s>"}"#))
            .ends_with("field `eos_token`: tokenizer.json has no token `</s>`")
    );
    assert!(
        error(with_config(r#"{"eos_token":3}"#)).ends_with("field `eos_token`: expected text or null, found a number")
    );
    assert!(
        error(with_config(r#"{"chat_template":3}"#)).ends_with("field `chat_template`: expected text, found a number")
    );
    let mut tokenizer = bpe512();
    tokenizer.check_vocab(512).unwrap();
    let small = tokenizer.check_vocab(400).unwrap_err().to_string();
    assert!(
        small.ends_with("tokenizer.json: the tokenizer needs 512 token ids, the model's embedding has 400 rows"),
        "{small}"
    );
    let none = with_config("{}").unwrap().check_template(&Template::Chat).unwrap_err().to_string();
    assert_eq!(none, "--template: chat: m: the tokenizer has no chat template");
    let unusable = with_config(r#"{"chat_template":"{% if %}"}"#)
        .unwrap()
        .check_template(&Template::Chat)
        .unwrap_err()
        .to_string();
    assert!(unusable.starts_with("--template: chat: m/tokenizer_config.json: chat template, line 1: "), "{unusable}");
}

fn build(rows: &str, template: &Template, max_length: usize, overflow: Overflow) -> Result<Dataset, String> {
    let rows = read(rows, DatasetType::Any, &[])?;
    Dataset::build(&rows, &bpe512(), template, LengthLimits { max_length, overflow }).map_err(|e| {
        assert_eq!(e.exit_status(), 2);
        e.to_string().rsplit('/').next().unwrap().to_string()
    })
}

const PAIRS: &str = r#"{"prompt":"Say hi to the whole wide world","chosen":"Hi there","rejected":"No"}
{"prompt":"Say hi","chosen":"Hi","rejected":"No"}
{"prompt_chosen":"Say hi to the whole wide world","chosen":"Hi","prompt_rejected":"Go","rejected":"No"}
"#;

#[test]
fn overflow_drops_refuses_or_cuts() {
    let whole = build(PAIRS, &Template::None, 1024, Overflow::Error).unwrap();
    assert_eq!(whole.summary(), "3 rows: 3 kept, 0 dropped");
    let length = |data: &Dataset, i: usize, side: usize| data.examples[i].sequences[side].ids.len();
    let (a, b) = (length(&whole, 0, 0), length(&whole, 0, 1));
    let max = a - 3;

    let dropped = build(PAIRS, &Template::None, max, Overflow::Drop).unwrap();
    assert_eq!(dropped.examples.iter().map(|e| e.row).collect::<Vec<_>>()[0], 1);
    assert_eq!(dropped.notes[0].reason, format!("the chosen side has {a} tokens, --max-length is {max}"));
    assert_eq!(dropped.place(0).rsplit('/').next(), Some("rows.jsonl:1"));
    assert_eq!(dropped.lengths, whole.lengths);
    let refused = build(PAIRS, &Template::None, max, Overflow::Error).unwrap_err();
    assert_eq!(refused, format!("rows.jsonl:1: the chosen side has {a} tokens, --max-length is {max}"));

    let cut = build(PAIRS, &Template::None, max, Overflow::TruncatePrompt).unwrap();
    assert_eq!(cut.count(OverflowAction::Truncated), cut.notes.len());
    let (before, after) = (&whole.examples[0], &cut.examples[0]);
    assert_eq!((length(&cut, 0, 0), length(&cut, 0, 1)), (a - 3, b - 3), "the same tokens from both sides");
    for side in 0..2 {
        let (old, new) = (&before.sequences[side], &after.sequences[side]);
        assert_eq!(new.ids[0], 0, "BOS stays");
        assert_eq!(new.ids[new.response_start..], old.ids[old.response_start..], "the response stays");
        assert_eq!(new.ids[1..new.response_start], old.ids[4..old.response_start], "cut from the left");
    }
    assert_eq!(after.shared_prefix(), before.shared_prefix() - 3, "the instruction is still shared");
    let joint = cut.examples.iter().find(|e| e.row == 2).unwrap();
    assert_eq!(
        joint.sequences[1], whole.examples[2].sequences[1],
        "a side that fits, with its own instruction, is left alone"
    );

    let short = build(PAIRS, &Template::None, 4, Overflow::TruncatePrompt).unwrap();
    let note = short.notes.iter().find(|n| n.fate == OverflowAction::Dropped).unwrap();
    assert!(note.reason.contains("tokens of instruction are too few to cut"), "{}", note.reason);
    let none = build(PAIRS, &Template::None, 2, Overflow::Drop).unwrap_err();
    assert_eq!(none, format!("--max-length: no row fits 2 tokens (the longest sequence has {a})"));
    assert!(Overflow::parse("cut").unwrap_err().to_string().starts_with("--on-overflow: `cut`: expected drop"));
}

#[test]
fn rows_that_nothing_can_be_made_of_name_their_line() {
    let rows = read("{\"prompt\":\"\",\"completion\":\"A\"}", DatasetType::Any, &[]).unwrap();
    let bare = with_config("{}").unwrap();
    let error = Dataset::build(&rows, &bare, &Template::None, LIMITS).unwrap_err().to_string();
    assert!(error.ends_with("rows.jsonl:1: the row has no token to score"), "{error}");
    let row = r#"{"messages":[{"role":"system","content":"S"},{"role":"user","content":"Q"},{"role":"assistant","content":"b"}]}"#;
    let error = build(row, &Template::Paper, 99, Overflow::Error).unwrap_err();
    assert_eq!(
        error,
        "rows.jsonl:1: a system message before the response needs --template chat (`--map system=` leaves a column `system` out)"
    );
    let mut narrow = bpe512();
    narrow.check_vocab(300).unwrap_err();
    let rows = read("{\"prompt\":\"Hello world\",\"completion\":\"A\"}", DatasetType::Any, &[]).unwrap();
    let error = Dataset::build(&rows, &narrow, &Template::None, LIMITS).unwrap_err().to_string();
    assert!(
        error.contains("rows.jsonl:1: token `") && error.ends_with("the model's embedding has 300 rows"),
        "{error}"
    );
}

#[test]
fn the_hash_follows_the_tokens() {
    let hash = |text: &str, template| build(text, &template, 99, Overflow::Drop).unwrap().content_hash();
    let base = hash(PAIRS, Template::None);
    assert_eq!(base.len(), 64);
    assert_eq!(base, hash(&format!("\n{PAIRS}"), Template::None));
    assert_ne!(base, hash(PAIRS, Template::Paper));
    assert_ne!(base, hash(&PAIRS.replace("Hi there", "Hi their"), Template::None));
    // The same tokens, another boundary.
    let boundary = |i: &str, r: &str| hash(&format!(r#"{{"prompt":"{i}","completion":"{r}"}}"#), Template::None);
    assert_ne!(boundary("Say", " hi you"), boundary("Say hi", " you"));
}

#[test]
fn check_shows_masks_and_savings() {
    let data = build(PAIRS, &Template::None, 16, Overflow::Drop).unwrap();
    let report = check(&data, &bpe512(), 1);
    let text = report.to_string();
    println!("{text}");
    assert!(text.contains("<|bos|>("), "{text}");
    assert!(text.contains("[<|eos|>]"), "{text}");
    assert!(text.contains(" truncated, ") && !text.contains("skipped"), "{text}");
    assert!(text.contains("dropped: ") && text.contains("rows.jsonl:1 (row 0): the chosen side has"), "{text}");
    assert_eq!(report.n_kept + report.n_dropped, 3);
    assert_eq!(report.rows.len(), 1);
    let side = &report.rows[0].sides[0];
    assert!(!side.tokens[0].joint && !side.tokens[0].conditional);
    assert!(side.tokens[1..].iter().all(|t| t.joint));
    assert_eq!(side.tokens.iter().position(|t| t.conditional), Some(data.examples[0].sequences[0].response_start));
    assert_eq!(
        report.n_tokens - report.n_tokens_shared,
        data.examples.iter().map(Example::shared_prefix).sum::<usize>()
    );
    assert!(serde_json::to_string(&report).unwrap().contains("\"fate\":\"dropped\""));
}
