//! What rows are read from: lists, objects that hold a list, tables, archives, folders, patterns.

use jointwise::data::bad_rows::{BadRowLimit, BadRows};
use jointwise::data::rows::{FileRows, parse_objects, read_row_file};

use super::*;

fn rows_of(path: impl AsRef<Path>, purpose: DatasetType) -> FileRows<Row> {
    let path = path.as_ref();
    read_row_file(path, &FieldMap::default(), purpose, BadRows::Error).unwrap_or_else(|e| panic!("{e}"))
}

fn contents(rows: &[Row]) -> Vec<&RowContent> {
    rows.iter().map(|row| &row.content).collect()
}

fn told(name: &str) -> String {
    let error = read_rows(fixture("files").join(name), &FieldMap::default(), DatasetType::Any).unwrap_err();
    assert_eq!(error.exit_status(), 2);
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    text.rsplit('/').next().unwrap_or_default().to_string()
}

/// A text read under a name: rows as JSON, or the error.
fn parsed(name: &str, text: &str) -> Result<Vec<Value>, String> {
    let read = parse_objects(Path::new(name), text.as_bytes()).map_err(|e| e.to_string())?;
    Ok(read.rows.into_iter().map(Value::Object).collect())
}

#[test]
fn every_form_holds_the_same_rows() {
    let expected = rows_of(fixture("files/rows.jsonl"), DatasetType::Preference).rows;
    assert_eq!(expected.len(), 3);
    assert_eq!(
        expected[1].content,
        preference(plain("Say \"hi\", please; now", "hi"), plain("Say \"hi\", please; now", "Über\talles, 漢"))
    );
    for (name, places) in [
        ("rows.jsonl", ["1", "2", "3"]),
        ("list.json", ["1 (row 1)", "1 (row 2)", "1 (row 3)"]),
        ("data.json", ["3 (row 1)", "8 (row 2)", "13 (row 3)"]),
        ("train.json", ["1 (row 1)", "1 (row 2)", "1 (row 3)"]),
        ("rows.csv", ["2", "4", "5"]),
        ("semicolons.csv", ["2", "4", "5"]),
        ("rows.tsv", ["2", "4", "5"]),
        ("index.csv", ["2", "4", "5"]),
        ("list.json.gz", ["1 (row 1)", "1 (row 2)", "1 (row 3)"]),
        ("rows.jsonl.gz", ["1", "2", "3"]),
        ("rows.csv.gz", ["2", "4", "5"]),
        ("rows.jsonl.zst", ["1", "2", "3"]),
        ("rows.csv.zst", ["2", "4", "5"]),
    ] {
        let read = rows_of(fixture("files").join(name), DatasetType::Preference);
        assert_eq!(contents(&read.rows), contents(&expected), "{name}");
        let found: Vec<String> = read.rows.iter().map(|row| row.place.to_string()).collect();
        let places = places.map(|place| format!("{}:{place}", fixture("files").join(name).display()));
        assert_eq!(found, places, "{name}");
        let note = read.notes.iter().map(|note| note.rsplit('/').next().unwrap()).collect::<Vec<_>>().join(" ");
        let expected = match name {
            "train.json" => {
                "train.json: the rows are the list `train`; not read beside it: `version`, `sizes`, `about`"
            }
            "semicolons.csv" => {
                "semicolons.csv: is read as a table, its cells parted by semicolons as in its first line"
            }
            "index.csv" => "index.csv: columns that are not read: `Unnamed: 0` (3 rows)",
            _ => "",
        };
        assert_eq!(note, expected, "{name}");
    }
    let alpaca = rows_of(fixture("files/alpaca_data.json"), DatasetType::Sft).rows;
    assert_eq!(alpaca[0].content, RowContent::Single(plain("Sort the letters.\nb a", "a b")));
    assert_eq!((&alpaca[1].content, alpaca[1].place.line), (&RowContent::Single(plain("Say hi.", "Hi")), 7));
    let labels = rows_of(fixture("files/labels.csv"), DatasetType::Judgement).rows;
    assert_eq!(labels.iter().map(|row| row.content.label()).collect::<Vec<_>>(), [true, false, true, false].map(Some));
}

#[test]
fn faults_name_the_row_and_the_line() {
    assert_eq!(told("ragged.csv"), "ragged.csv:6: the row has 2 cells, the header 3 columns");
    assert_eq!(
        told("several.json"),
        "several.json: holds several lists of objects (`train`, `test`), and rows are those of one: `jq '.train' FILE > NEW` takes one of them"
    );
    // A bad row is skipped alone.
    let skip = BadRows::Skip(BadRowLimit::Count(1));
    let read = read_row_file(fixture("files/ragged.csv"), &FieldMap::default(), DatasetType::Any, skip).unwrap().rows;
    assert!(
        read.len() == 4
            && matches!(&read[3].content, RowContent::Unreadable(reason) if reason.starts_with("the row has 2"))
    );

    let row = r#"{"prompt":"a","completion":"b"}"#;
    for (name, text, reason) in [
        ("x.json", format!("[{row},\n{row},3]"), "x.json:2: row 3: expected a JSON object, found a number"),
        (
            "x.json",
            format!("{{\"data\":[{row},\n{{\"prompt\":}}]}}"),
            "x.json:2: row 2: malformed JSON: expected value, column 11",
        ),
        ("x.json", format!("{{\"data\":[{row}"), "x.json:1: row 1: the file ends inside of its list: it is cut short"),
        (
            "x.json",
            format!("{{\"data\":[{row}],\n\"more\": 3"),
            "x.json:2: the file ends inside of its object: it is cut short",
        ),
        (
            "x.json",
            format!("{{\"data\":[{row}], more}}"),
            "x.json:1: malformed JSON behind the list `data`: expected a name, a comma or the object's end",
        ),
        (
            "x.json",
            format!("{{\"data\":[{row}],\"b\":x}}"),
            "x.json:1: malformed JSON behind the list `data`: expected a name, a comma or the object's end",
        ),
        (
            "x.json",
            format!("{{\n\"data\":[{row}]}} {row}"),
            "x.json:2: more stands behind the end of the file's object",
        ),
        ("x.csv", "prompt,completion\na,\"b\n\n".into(), "x.csv:2: a cell's quotes are never closed"),
        ("x.csv", "prompt,completion,prompt\na,b,c\n".into(), "x.csv:1: the header has the column `prompt` twice"),
        ("x.csv", "\n , \na,b\n".into(), "x.csv:2: the header names no column"),
        ("x.csv", "prompt,completion\n".into(), "x.csv: the file holds no rows"),
        ("x.csv", " \n\n".into(), "x.csv: the file holds no rows"),
    ] {
        assert_eq!(parsed(name, &text).unwrap_err(), reason, "{text}");
    }
    let messages = "messages,id\n\"[{'role': 'user', 'content': 'Q'}]\",3\n";
    let error = parsed("x.csv", messages).unwrap_err();
    assert!(error.starts_with("x.csv:2: column `messages` holds a list of messages as text"), "{error}");
    // Empty cells are absent, and told so where they are needed.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x.csv"), "prompt,completion,system\nQ,,\n").unwrap();
    let error = read_rows(dir.path().join("x.csv"), &FieldMap::default(), DatasetType::Any).unwrap_err().to_string();
    assert!(error.contains("x.csv:2: field `completion` is null or an empty cell (the row has"), "{error}");
}

/// A line of JSON is a row, unless nothing stands behind it and it holds nothing but a list of rows.
#[test]
fn an_object_with_a_list_is_told_from_a_row() {
    let messages = r#"{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}"#;
    let turns = r#"{"turns":[{"role":"user","content":"Q"}]}"#;
    for (name, text, n) in [
        ("x.json", messages.to_string(), 1),
        ("x.jsonl", turns.into(), 1),
        ("x.json", format!("{turns}\n{turns}\n"), 2),
        ("x", format!("{turns}\n\n\n  {turns}\n"), 2),
        ("x.json", turns.into(), 1),
        ("x.json", r#"{"prompt":"Q","spans":[{"a":1},{"a":2},{"a":3}]}"#.into(), 1),
        ("x.json", r#"{"about":{"x":[{"y":1}]},"rows":[{"a":1},{"a":2}]}"#.into(), 2),
        (
            "x.json",
            "{\"rows\" :\n[ {\"a\":\"],}\"} ,\n {\"a\":2},{\"a\":3} ] , \"n\" : [ 1, [2], \"]\" ]\n}\n".into(),
            3,
        ),
    ] {
        assert_eq!(parsed(name, &text).map(|rows| rows.len()), Ok(n), "{name}: {text}");
    }
    assert_eq!(parsed("x.json", turns).unwrap()[0]["content"], "Q");
    assert!(parsed("x.json", messages).unwrap()[0]["messages"].is_array());
    // The lines of rows behind blank lines keep their numbers.
    let error = parsed("x.json", &format!("{turns}\n\n\n{{\"a\":\n")).unwrap_err();
    assert!(error.starts_with("x.json:4: malformed JSON"), "{error}");
}

/// No more than a row is held: the list is longer than what a row may be.
#[test]
fn long_lists_are_read_as_they_come() {
    let row = format!(r#"{{"prompt":"{}","completion":"b"}},"#, "a".repeat(10_000));
    let n = 7000;
    let rows = row.repeat(n);
    assert!(rows.len() > 64 << 20);
    let text = std::io::Read::chain(&b"{\"data\": ["[..], rows.as_bytes());
    let text = std::io::Read::chain(text, &b"{\"prompt\":\"Q\"}]}"[..]);
    let error = jointwise::data::rows::parse_rows(Path::new("x.json"), text, &FieldMap::default(), DatasetType::Sft)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "x.json:1: row {}: field `completion` is missing (the row has `prompt`); a row is one of: {}",
            n + 1,
            jointwise::data::rows::FORMS
        )
    );
}

#[test]
fn folders_and_patterns_are_read_in_the_order_of_names() {
    let expected = rows_of(fixture("files/rows.jsonl"), DatasetType::Preference).rows;
    let folder = rows_of(fixture("files/shards"), DatasetType::Preference);
    assert_eq!(contents(&folder.rows), contents(&expected));
    let names: Vec<_> =
        folder.rows.iter().map(|row| row.place.path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["0.jsonl", "1.csv", "2.json.gz"]);
    assert!(
        folder.notes[0].ends_with("files/shards: 1 of the folder's entries are not read: README.md"),
        "{:?}",
        folder.notes
    );
    let pattern = rows_of(fixture("files/shards/[0-2].*"), DatasetType::Preference);
    assert_eq!((contents(&pattern.rows), pattern.notes.len()), (contents(&expected), 0));
    let two = rows_of(fixture("files/shards/*[!1].js*"), DatasetType::Preference);
    assert_eq!(contents(&two.rows), [&expected[0].content, &expected[2].content]);
    // Parquet among them, and the file of an error.
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("parquet/plain.parquet"), dir.path().join("a.parquet")).unwrap();
    std::fs::write(dir.path().join("b.jsonl"), "{\"prompt\":\"P\",\"completion\":\"C\"}\n{\"prompt\":\"P\"}\n")
        .unwrap();
    let error = read_rows(dir.path(), &FieldMap::default(), DatasetType::Sft).unwrap_err().to_string();
    assert!(error.contains("b.jsonl:2: field `completion` is missing"), "{error}");
    let rows = read_rows(dir.path().join("*.parquet"), &FieldMap::default(), DatasetType::Sft).unwrap();
    assert_eq!(rows.len(), 3);
    std::fs::write(dir.path().join("b.jsonl"), "").unwrap();
    let error = read_rows(dir.path(), &FieldMap::default(), DatasetType::Sft).unwrap_err().to_string();
    assert!(error.ends_with("b.jsonl: the file holds no rows"), "{error}");
    let prompts = read_prompts(fixture("files/shards"), &FieldMap::default()).unwrap();
    assert_eq!(prompts.len(), 3);
}

#[test]
fn one_field_may_be_the_prompt_by_another_name() {
    let query = rows_of(fixture("files/query.jsonl"), DatasetType::Preference);
    let expected = rows_of(fixture("files/rows.jsonl"), DatasetType::Preference).rows;
    assert_eq!(contents(&query.rows), contents(&expected));
    assert_eq!(query.notes.len(), 1);
    assert!(query.notes[0].ends_with("query.jsonl: `query` is read as the prompt (3 rows)"), "{:?}", query.notes);
    assert_eq!(read_prompts(fixture("files/query.jsonl"), &FieldMap::default()).unwrap().len(), 3);

    let chosen = |fields: &str, map: &[&str]| {
        let row = format!(r#"{{{fields},"chosen":"a","rejected":"b"}}"#);
        read(&row, DatasetType::Preference, map).map(|rows| rows[0].content.texts()[0].instruction.clone())
    };
    let plain = |text: &str| Ok(Instruction::Plain(text.into()));
    for field in ["question", "instruction", "query", "input"] {
        assert_eq!(chosen(&format!(r#""{field}":"Q""#), &[]), plain("Q"), "{field}");
        let framed = chosen(&format!(r#""system":"S","{field}":"Q""#), &[]).unwrap();
        assert_eq!(framed, asked(&[("system", "S"), ("user", "Q")]), "{field}");
    }
    assert_eq!(chosen(r#""query":"Q","input":"x""#, &[]), plain("Q\nx"));
    assert_eq!(chosen(r#""input":"Q","context":"x""#, &[]), plain("Q\nx"));
    assert_eq!(chosen(r#""prompt":"P","query":"Q","question":"R""#, &[]), plain("P"));
    let two = chosen(r#""query":"Q","question":"R""#, &[]).unwrap_err();
    assert_eq!(
        two,
        "rows.jsonl:1: more than one field may be the prompt (the row has `query`, `question`, `chosen`, `rejected`): \
         `--map prompt=question` or `--map prompt=query`"
    );
    assert_eq!(chosen(r#""query":"Q","question":"R""#, &["prompt=query"]), plain("Q"));
    assert_eq!(chosen(r#""query":"Q","question":"R""#, &["query="]), plain("R"));
    let none = chosen(r#""topic":"Q","id":3"#, &[]).unwrap_err();
    assert_eq!(
        none,
        "rows.jsonl:1: fields `chosen` and `rejected` are texts that don't begin alike, so field `prompt` is needed too \
         (the row has `topic`, `id`, `chosen`, `rejected`); it may be `--map prompt=topic`"
    );
    assert_eq!(chosen(r#""topic":"Q","id":3"#, &["prompt=topic"]), plain("Q"));
}
