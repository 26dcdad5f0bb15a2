//! Files of rows: Parquet as others write it, compressed text, lists, files of other forms, broken ones.

use jointwise::data::bad_rows::{BadRowLimit, BadRows};
use jointwise::data::rows::read_row_file;

use super::*;

#[test]
fn parquet_holds_the_rows_of_json_lines() {
    let joint = read_rows(fixture("parquet/joint.parquet"), &FieldMap::default(), DatasetType::Preference).unwrap();
    assert_eq!(joint.len(), 7, "of three row groups");
    for (n, row) in joint.iter().enumerate() {
        let chosen = plain(&format!("Add {n} and {n}"), &(2 * n).to_string());
        assert_eq!(row.content, preference(chosen, plain(&format!("Übersetze {n} 漢"), "no\n\"idea\"")));
        assert_eq!(row.place.line, n + 1);
    }
    let chats = read_rows(fixture("parquet/chats.parquet"), &FieldMap::default(), DatasetType::Preference).unwrap();
    for (n, row) in chats.iter().enumerate() {
        let question = format!("Q{n}");
        let [good, bad] = ["good", "bad"].map(|answer| chat(&[("user", &question)], &format!("{answer} {n}")));
        assert_eq!(row.content, preference(good, bad));
    }
    let gzip = read_rows(fixture("parquet/gzip.parquet"), &FieldMap::default(), DatasetType::Sft).unwrap();
    assert_eq!(gzip[0].content, RowContent::Single(plain("P", "C")));
    assert_eq!(read_prompts(fixture("parquet/joint.parquet"), &FieldMap::default()).unwrap().len(), 7);
}

#[test]
fn what_parquet_lacks_is_named_with_its_row() {
    let told = |name: &str, map: &[&str], purpose| {
        let error = read_rows(fixture(name), &FieldMap::parse(map).unwrap(), purpose).unwrap_err().to_string();
        error.rsplit('/').next().unwrap().to_string()
    };
    assert_eq!(told("parquet/empty.parquet", &[], DatasetType::Any), "empty.parquet: the file holds no rows");
    let other = told("parquet/gzip.parquet", &["completion=answer"], DatasetType::Sft);
    assert!(
        other.starts_with(
            "gzip.parquet:1: field `answer` is missing (the row has `prompt`, `completion`); a row is one of: "
        ),
        "{other}"
    );
    let kind = told("parquet/joint.parquet", &["i_chosen=score"], DatasetType::Any);
    assert_eq!(kind, "joint.parquet:1: field `score`: expected text, found a number");
}

/// Cut anywhere, or with any byte changed: rows, or one line that names the file.
#[test]
fn broken_parquet_is_told_not_panicked_over() {
    let whole = std::fs::read(fixture("parquet/joint.parquet")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.parquet");
    let mut refused = 0;
    let mut try_one = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        if let Err(error) = read_rows(&path, &FieldMap::default(), DatasetType::Any) {
            let text = error.to_string();
            assert!(text.contains("rows.parquet") && !text.contains('\n'), "{text}");
            refused += 1;
        }
    };
    for length in (4..whole.len()).step_by(7) {
        try_one(&whole[..length]);
    }
    for at in 4..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x41;
        try_one(&changed);
    }
    assert!(refused > whole.len() / 7, "{refused}");
}

#[test]
fn the_paper_s_limit_counts_characters_and_the_chosen_response() {
    // Without a template: far fewer tokens.
    let characters = "Say hi to the whole wide worldHi there".chars().count();
    let kept = build(PAIRS, &Template::None, characters, Overflow::Paper).unwrap();
    assert_eq!(kept.summary(), "3 rows: 3 kept, 0 dropped");
    let fewer = build(PAIRS, &Template::None, characters - 1, Overflow::Paper).unwrap();
    let reason = format!("the chosen side has {characters} characters, --max-length is {}", characters - 1);
    assert_eq!(
        (fewer.notes[0].row, fewer.notes[0].fate, &fewer.notes[0].reason),
        (0, OverflowAction::Dropped, &reason)
    );
    assert_eq!(fewer.notes.len(), 1);

    // A character of four tokens: 18 characters, far more tokens. The rejected side is measured by the chosen response.
    let limit = 20;
    let rows = |chosen: &str, rejected: &str| {
        format!(
            "{}\n",
            serde_json::json!({"i_chosen": "🙂🙂🙂🙂🙂🙂", "r_chosen": chosen, "i_reject": "no", "r_reject": rejected})
        )
    };
    let whole = build(&rows("🙂🙂", "x"), &Template::None, 1024, Overflow::Error).unwrap();
    let [chosen, rejected] = [0, 1].map(|side| &whole.examples[0].sequences[side]);
    assert!(chosen.ids.len() > limit && rejected.ids.len() < limit);
    let cut = build(&rows("🙂🙂", "x"), &Template::None, limit, Overflow::Paper).unwrap();
    let side = &cut.examples[0].sequences[0];
    assert_eq!(side.response_start, limit / 2, "the instruction keeps half the limit");
    assert_eq!(side.ids[0], chosen.ids[0], "BOS stays");
    let kept = chosen.response_start - (limit / 2 - 1);
    assert_eq!(side.ids[1..], chosen.ids[kept..], "its end, then the whole response");
    assert_eq!(&cut.examples[0].sequences[1], rejected);
    assert_eq!((cut.notes[0].row, cut.notes[0].fate), (0, OverflowAction::Truncated));
    // A side that fits is cut all the same where the chosen response would not fit behind its instruction.
    let row = r#"{"i_chosen":"no","r_chosen":"🙂🙂","i_reject":"🙂🙂🙂","r_reject":"x"}"#;
    let [whole, cut] = [(1024, Overflow::Error), (limit, Overflow::Paper)]
        .map(|(max, overflow)| build(row, &Template::None, max, overflow).unwrap().examples.remove(0));
    assert!(whole.sequences.iter().all(|side| side.ids.len() <= limit));
    assert_eq!(cut.sequences[0], whole.sequences[0]);
    assert_eq!(cut.sequences[1].response_start, limit / 2);
    // Too long by itself, but the chosen response is short.
    let error = build(&rows("x", "🙂🙂🙂🙂🙂🙂"), &Template::None, limit, Overflow::Paper).unwrap_err();
    assert!(error.starts_with("--max-length: no row fits 20 characters a side"), "{error}");
}

#[test]
fn parquet_of_other_writers() {
    let read = |name: &str, purpose| read_rows(fixture("parquet").join(name), &FieldMap::default(), purpose);
    let plain_rows = read("plain.parquet", DatasetType::Sft).unwrap();
    let contents = |rows: Vec<Row>| rows.into_iter().map(|row| row.content).collect::<Vec<_>>();
    let expected = contents(plain_rows);
    assert_eq!(expected[0], RowContent::Single(plain("Say hello é", "hello")));
    for name in ["binary", "brotli", "lz4"] {
        assert_eq!(contents(read(&format!("{name}.parquet"), DatasetType::Sft).unwrap()), expected, "{name}");
    }
    // Large strings, a dictionary, labels of eight bits, and an image that nobody reads.
    let wide =
        read_row_file(fixture("parquet/wide.parquet"), &FieldMap::default(), DatasetType::Any, BadRows::Error).unwrap();
    assert!(wide.notes[0].ends_with("columns that are not read: `image` (3 rows)"), "{:?}", wide.notes);
    let labels: Vec<_> = wide.rows.iter().map(|row| row.content.label()).collect();
    assert_eq!(labels, [Some(true), Some(false), Some(true)]);
    assert_eq!(wide.rows[0].content.texts()[0], &plain("Say hello é", "hello"));
    // Bytes that are no text, where text is read.
    let error = read("bytes.parquet", DatasetType::Sft).unwrap_err().to_string();
    let reason = "field `prompt`: expected text or a list of messages, found bytes that are not UTF-8";
    assert!(error.ends_with(&format!("bytes.parquet:2: {reason}")), "{error}");
    let skip = BadRows::Skip(BadRowLimit::default());
    let rows =
        read_row_file(fixture("parquet/bytes.parquet"), &FieldMap::default(), DatasetType::Sft, skip).unwrap().rows;
    assert_eq!(rows[0].content, RowContent::Single(plain("Say hello", "hello")));
    assert_eq!(rows[1].content, RowContent::Unreadable(reason.into()));
    // Messages of bytes in large lists; pandas' NaN of a label is none.
    let nested = read("nested.parquet", DatasetType::Any).unwrap();
    let (conversation, _) = nested[0].content.texts()[0].conversation();
    let said: Vec<_> = conversation.messages.iter().map(|m| (m.role().to_string(), m.text())).collect();
    assert_eq!(said, [("user".into(), "Q0".into()), ("assistant".into(), "A".into())]);
    assert_eq!(nested[0].content.label(), Some(true));
    assert_eq!(nested[1].content.label(), None);
}

#[test]
fn compressed_files_and_lists_hold_the_rows_of_json_lines() {
    let lines = concat!(
        "{\"instruction\":\"a\",\"response\":\"b\"}\n\n",
        "{\"instruction\":\"c, [d]\",\"response\":\"é \\\"]},{[\\\\\"}\r\n"
    );
    let expected = read(lines, DatasetType::Sft, &[]).unwrap().into_iter().map(|row| row.content).collect::<Vec<_>>();
    let contents = |bytes: &[u8], name: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let rows = read_rows(&path, &FieldMap::default(), DatasetType::Sft);
        rows.map_err(|e| e.to_string().rsplit('/').next().unwrap().to_string())
    };
    let texts = |rows: Vec<Row>| rows.into_iter().map(|row| row.content).collect::<Vec<_>>();
    let list = "\u{feff}\n [\n{\"instruction\":\"a\",\n\"response\":\"b\"}\n ,{\"instruction\":\"c, [d]\",\"response\":\"é \\\"]},{[\\\\\"}]\n";
    let rows = contents(list.as_bytes(), "rows.json").unwrap();
    assert_eq!(rows.iter().map(|row| row.place.line).collect::<Vec<_>>(), [3, 5]);
    assert_eq!(texts(rows), expected);
    for (n, text) in [lines, list].iter().enumerate() {
        let (first, second) = text.as_bytes().split_at(20);
        let members = [gzip(first), gzip(second)].concat();
        assert_eq!(texts(contents(&members, "rows.jsonl.gz").unwrap()), expected, "{n}");
        let frames = [first, second].map(|part| zstd::encode_all(part, 3).unwrap()).concat();
        // The name says nothing.
        assert_eq!(texts(contents(&frames, "rows").unwrap()), expected, "{n}");
    }
    // Cut anywhere, an archive is told by its file's name.
    let noise: String = (0..400)
        .map(|i: u32| format!("{{\"instruction\":\"{}\",\"response\":\"b\"}}\n", i.wrapping_mul(2_654_435_761)))
        .collect();
    for (form, name, whole) in [
        ("gzip", "rows.jsonl.gz", gzip(noise.as_bytes())),
        ("Zstandard", "rows.jsonl.zst", zstd::encode_all(noise.as_bytes(), 3).unwrap()),
    ] {
        assert_eq!(contents(&whole, name).unwrap().len(), 400);
        for length in [whole.len() - 1, whole.len() - 9, whole.len() / 2, 12] {
            let error = contents(&whole[..length], name).unwrap_err();
            assert!(
                error.starts_with(&format!("{name}: the {form} archive is damaged or cut short: ")),
                "{length}: {error}"
            );
        }
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 0x55;
        // Our Zstandard has no checksum.
        assert!(form == "Zstandard" || contents(&damaged, name).is_err());
    }
    for (text, reason) in [
        ("[]", "rows.json: the file holds no rows"),
        (
            "[{\"instruction\":\"a\",\"response\":\"b\"}",
            "rows.json:1: row 1: the file ends inside of its list: it is cut short",
        ),
        (
            "[{\"instruction\":\"a\",\"response\":\"b\"}]\n{}",
            "rows.json:2: more stands behind the end of the file's list",
        ),
        ("[\n1]", "rows.json:2: row 1: expected a JSON object, found a number"),
        (
            "[{\"instruction\":\"a\",\n\"response\":x}]",
            "rows.json:1: row 1: malformed JSON: expected value, line 2 of the row, column 12",
        ),
    ] {
        assert_eq!(contents(text.as_bytes(), "rows.json").unwrap_err(), reason);
    }
}

/// One gzip member.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut out, bytes).unwrap();
    out.finish().unwrap()
}

/// An archive of one endless line takes no more memory than a line may.
#[test]
fn archives_that_grow_without_end_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl.gz");
    let long = [b"{\"prompt\":\"".to_vec(), vec![b'a'; 65 << 20]].concat();
    for (head, what) in [(&b""[..], "the line"), (b"[", "row 1: the element")] {
        std::fs::write(&path, gzip(&[head, &long].concat())).unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < 1 << 20);
        let error = read_rows(&path, &FieldMap::default(), DatasetType::Any).unwrap_err().to_string();
        assert!(error.ends_with(&format!("rows.jsonl.gz:1: {what} is longer than 64 MiB")), "{error}");
    }
}

#[test]
fn files_of_other_forms_are_named_with_the_way_out() {
    let told = |name: &str, bytes: &[u8]| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = read_rows(&path, &FieldMap::default(), DatasetType::Any).unwrap_err();
        assert_eq!(error.exit_status(), 2);
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        text.split_once(&format!("{name}: ")).map(|(_, reason)| reason.to_string()).unwrap_or(text)
    };
    let row = r#"{"prompt":"é","completion":"b"}"#;
    let wide = |big: bool, mark: bool| -> Vec<u8> {
        let units = mark.then_some(0xfeff).into_iter().chain(row.encode_utf16());
        units.flat_map(|unit: u16| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
    };
    for (big, mark) in [(true, true), (false, true), (true, false), (false, false)] {
        let reason = told("rows.jsonl", &wide(big, mark));
        assert!(reason.starts_with("is UTF-16 text, as PowerShell's `>` writes it: convert it to UTF-8"), "{reason}");
        assert!(
            reason.contains("iconv -f UTF-16 -t UTF-8") && reason.contains("Set-Content -Encoding utf8"),
            "{reason}"
        );
        let reason = told("rows.jsonl.gz", &gzip(&wide(big, mark)));
        assert!(reason.starts_with("is UTF-16 text"), "{reason}");
    }
    let utf_32: Vec<u8> = row.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
    assert!(told("rows.jsonl", &utf_32).starts_with("is UTF-32 text"));
    for (bytes, form) in [
        (&b"PK\x03\x04rest"[..], "is a ZIP archive"),
        (b"BZh91AY", "is a bzip2 archive"),
        (b"\xfd7zXZ\0", "is an xz archive"),
        (b"ARROW1\0\0", "is an Arrow file"),
    ] {
        assert!(told("rows.jsonl", bytes).starts_with(form));
    }
    assert!(told("rows.gz", &gzip(&gzip(row.as_bytes()))).starts_with("is an archive in another one"));
    let parquet = std::fs::read(fixture("parquet/plain.parquet")).unwrap();
    assert!(told("rows.parquet.gz", &gzip(&parquet)).starts_with("is Parquet inside of a gzip archive: unpack it"));
    let pretty = serde_json::to_string_pretty(&serde_json::json!({"prompt": "a", "completion": "b"})).unwrap();
    assert!(
        told("rows.json", pretty.as_bytes()).contains("one list of objects"),
        "{}",
        told("rows.json", pretty.as_bytes())
    );
}
