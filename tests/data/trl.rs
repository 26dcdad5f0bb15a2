//! Token sequences, and where their responses begin, against what TRL's own trainers prepare (trl/make.py).

use std::path::Path;

use jointwise::data::dataset::{Dataset, LengthLimits, Overflow};
use jointwise::data::like_trl::{TrlComparison, trl_sequences};
use jointwise::data::prompt_template::Template;
use jointwise::data::rows::{DatasetType, FieldMap, Row, parse_rows};
use jointwise::data::tokens::Tokenizer;
use jointwise::model::side_files::SideFiles;
use serde_json::Value;

use super::{fixture, ids, json};

/// `--max-length` of the rows that TRL cuts.
const CUT: usize = 24;

/// The tokenizer of a case: a folder's files, with another post-processor and other settings.
fn tokenizer(case: &Value) -> Tokenizer {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(case["folder"].as_str().unwrap());
    let mut files: Vec<(String, String)> = Vec::new();
    for name in
        ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json", "chat_template.jinja"]
    {
        if let Ok(text) = std::fs::read_to_string(dir.join(name)) {
            files.push((name.into(), text));
        }
    }
    let mut edit = |file: &str, edit: &dyn Fn(&mut Value)| {
        let (_, text) = files.iter_mut().find(|(name, _)| name == file).unwrap();
        let mut value: Value = serde_json::from_str(text).unwrap();
        edit(&mut value);
        *text = value.to_string();
    };
    edit("tokenizer_config.json", &|config| {
        let more = case["config"].as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(more);
    });
    if case["post_processor"] != "same" {
        edit("tokenizer.json", &|tokenizer| tokenizer["post_processor"] = case["post_processor"].clone());
    }
    let files = files.iter().map(|(name, text)| (name.as_str(), text.as_bytes()));
    Tokenizer::from_side_files(&SideFiles::from_contents(&dir, files)).unwrap()
}

fn rows(of: &Value, purpose: DatasetType) -> Vec<Row> {
    let lines: Vec<String> = of.as_array().unwrap().iter().map(Value::to_string).collect();
    parse_rows(Path::new("rows.jsonl"), lines.join("\n").as_bytes(), &FieldMap::default(), purpose).unwrap()
}

#[test]
fn sequences_and_masks_are_those_of_trl() {
    let all = json(fixture("trl/sequences.json"));
    let (mut n_sequences, mut n_later, mut n_compared_same) = (0, 0, 0);
    for case in all["cases"].as_array().unwrap() {
        let tokenizer = tokenizer(case);
        assert_eq!(tokenizer.start_ids(), ids(&case["before"]), "{} {}", case["folder"], case["config"]);
        for (form, expected) in case["forms"].as_object().unwrap() {
            let (kind, overflow) = match form.strip_prefix("cut ") {
                Some(kind) => (kind, Overflow::TruncateResponse),
                None => (form.as_str(), Overflow::Error),
            };
            let purpose = if ["texts", "chats"].contains(&kind) { DatasetType::Preference } else { DatasetType::Sft };
            let mut rows = rows(&all["rows"][kind], purpose);
            let expected = expected.as_array().unwrap();
            if overflow == Overflow::Error {
                rows.truncate(expected.len());
            }
            let max_length = if overflow == Overflow::Error { 4096 } else { CUT };
            let data =
                Dataset::build(&rows, &tokenizer, &Template::Trl, LengthLimits { max_length, overflow }).unwrap();
            let as_trl = TrlComparison::new(&rows, &data, &tokenizer, max_length);
            assert_eq!(data.examples.len(), expected.len(), "{form}");
            n_compared_same += as_trl.n_scored_same;
            for (example, row) in data.examples.iter().zip(expected) {
                let row = row.as_array().unwrap();
                assert_eq!(example.sequences.len(), row.len());
                let modelled = trl_sequences(&rows[example.row].content, &tokenizer, max_length).unwrap();
                for ((sequence, modelled), theirs) in example.sequences.iter().zip(&modelled).zip(row) {
                    let name = format!("{} {} {form}, row {}", case["folder"], case["config"], example.row);
                    assert_eq!(sequence.ids, ids(&theirs[1]), "{name}");
                    let start = theirs[0].as_u64().unwrap() as usize;
                    // `check --like-trl` compares with this: ids and masks.
                    assert_eq!(
                        (&modelled.ids, modelled.response_start.max(1)),
                        (&sequence.ids, start.max(1)),
                        "{name}"
                    );
                    assert_eq!(modelled.n_response(), modelled.ids.len() - start.max(1), "{name}");
                    n_sequences += 1;
                    // TRL gives both sides the earlier of two places, and begins where tokens of the prompt alone would be others.
                    n_later += usize::from(sequence.response_start.max(1) != start.max(1));
                    assert!(sequence.response_start >= start, "{name}: {} {start}", sequence.response_start);
                }
            }
        }
    }
    assert_eq!(n_compared_same, n_sequences - n_later);
    assert!(n_sequences >= 256, "{n_sequences}");
    assert_eq!(n_later, 7, "of {n_sequences}");
}
