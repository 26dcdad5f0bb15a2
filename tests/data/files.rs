//! Files of rows: Parquet as others write it, broken ones, data sets of the hub.

use super::*;

#[test]
fn parquet_holds_the_rows_of_json_lines() {
    let joint = read_rows(fixture("parquet/joint.parquet"), &FieldMap::default(), Purpose::Preference).unwrap();
    assert_eq!(joint.len(), 7, "of three row groups");
    for (n, row) in joint.iter().enumerate() {
        let chosen = plain(&format!("Add {n} and {n}"), &(2 * n).to_string());
        assert_eq!(row.content, preference(chosen, plain(&format!("Übersetze {n} 漢"), "no\n\"idea\"")));
        assert_eq!(row.place.line, n + 1);
    }
    let chats = read_rows(fixture("parquet/chats.parquet"), &FieldMap::default(), Purpose::Preference).unwrap();
    for (n, row) in chats.iter().enumerate() {
        let question = format!("Q{n}");
        let [good, bad] = ["good", "bad"].map(|answer| chat(&[("user", &question)], &format!("{answer} {n}")));
        assert_eq!(row.content, preference(good, bad));
    }
    let gzip = read_rows(fixture("parquet/gzip.parquet"), &FieldMap::default(), Purpose::Sft).unwrap();
    assert_eq!(gzip[0].content, Content::Single(plain("P", "C")));
    assert_eq!(read_prompts(fixture("parquet/joint.parquet"), &FieldMap::default()).unwrap().len(), 7);
}

#[test]
fn what_parquet_lacks_is_named_with_its_row() {
    let told = |name: &str, map: &[&str], purpose| {
        let error = read_rows(fixture(name), &FieldMap::parse(map).unwrap(), purpose).unwrap_err().to_string();
        error.rsplit('/').next().unwrap().to_string()
    };
    assert_eq!(told("parquet/empty.parquet", &[], Purpose::Any), "empty.parquet: the file holds no rows");
    let other = told("parquet/gzip.parquet", &["completion=answer"], Purpose::Sft);
    assert!(
        other.starts_with("gzip.parquet:1: no form of row has these fields (the row has `prompt`, `completion`)"),
        "{other}"
    );
    let kind = told("parquet/joint.parquet", &["i_chosen=score"], Purpose::Any);
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
        if let Err(error) = read_rows(&path, &FieldMap::default(), Purpose::Any) {
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
    assert_eq!((fewer.notes[0].row, fewer.notes[0].fate, &fewer.notes[0].reason), (0, Fate::Dropped, &reason));
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
    assert_eq!((cut.notes[0].row, cut.notes[0].fate), (0, Fate::Truncated));
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
