//! Every form of row, and every way to get one wrong.

use super::*;

#[test]
fn every_form_of_row() {
    let user = [("user", "Q")];
    let forms = [
        (
            r#"{"i_chosen":"a","r_chosen":"b","i_reject":"c","r_reject":"d","x":1}"#,
            preference(plain("a", "b"), plain("c", "d")),
        ),
        (r#"{"prompt":"Q","chosen":"b","rejected":"d"}"#, preference(plain("Q", "b"), plain("Q", "d"))),
        (
            r#"{"prompt":[{"role":"user","content":"Q"}],"chosen":[{"role":"assistant","content":"b"}],"rejected":[{"role":"assistant","content":"d"}]}"#,
            preference(chat(&user, "b"), chat(&user, "d")),
        ),
        (
            r#"{"prompt":[{"role":"user","content":"Q"}],"chosen":"b","rejected":"d"}"#,
            preference(
                PromptResponse { instruction: asked(&user), response: "b".into() },
                PromptResponse { instruction: asked(&user), response: "d".into() },
            ),
        ),
        (
            r#"{"chosen":[{"role":"user","content":"Q"},{"role":"assistant","content":"b"}],"rejected":[{"role":"user","content":"Q"},{"role":"assistant","content":"d"}]}"#,
            preference(chat(&user, "b"), chat(&user, "d")),
        ),
        (
            r#"{"prompt":"Q","chosen":[{"role":"user","content":"Q"},{"role":"assistant","content":"b"}],"rejected":[{"role":"assistant","content":"d"}]}"#,
            preference(chat(&user, "b"), chat(&user, "d")),
        ),
        (
            r#"{"prompt_chosen":"a","chosen":"b","prompt_rejected":"c","rejected":"d"}"#,
            preference(plain("a", "b"), plain("c", "d")),
        ),
        (r#"{"instruction":"a","response":"b","prompt":null}"#, RowContent::Single(plain("a", "b"))),
        (r#"{"prompt":"a","completion":"b"}"#, RowContent::Single(plain("a", "b"))),
        (
            r#"{"prompt":[{"role":"user","content":"Q"}],"completion":[{"role":"assistant","content":"b"}]}"#,
            RowContent::Single(chat(&user, "b")),
        ),
        (
            r#"{"messages":[{"role":"system","content":"S"},{"role":"user","content":"Q"},{"role":"assistant","content":"b"}]}"#,
            RowContent::Single(PromptResponse {
                instruction: asked(&[("system", "S"), ("user", "Q")]),
                response: ResponseText::Turns(vec![Message::new("assistant", "b")]),
            }),
        ),
        (r#"{"prompt":"a","completion":"b","label":true}"#, RowContent::Labelled(plain("a", "b"), true)),
        (r#"{"instruction":"a","response":"b","label":false}"#, RowContent::Labelled(plain("a", "b"), false)),
    ];
    for (row, expected) in forms {
        assert_eq!(one(row), expected, "{row}");
    }
}

#[test]
fn lines_are_read_as_they_come() {
    let text = "\u{feff}{\"instruction\":\"a\",\"response\":\"b\"}\r\n\r\n  \n{\"instruction\":\"c\",\"response\":\"d\\u00e9\"}";
    let rows = read(text, DatasetType::Sft, &[]).unwrap();
    assert_eq!(rows.iter().map(|r| r.place.line).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(rows[1].content, RowContent::Single(plain("c", "dé")));
    let rows = read(r#"{"i_chosen":"a","r_chosen":"b","i_reject":"c","r_reject":"d"}"#, DatasetType::Sft, &[]).unwrap();
    assert_eq!(rows[0].content, RowContent::Single(plain("a", "b")));
    let rows = read(
        r#"{"question":"a","good":"b","bad":"d"}"#,
        DatasetType::Preference,
        &["prompt=question", "chosen=good", "rejected=bad"],
    )
    .unwrap();
    assert_eq!(rows[0].content, preference(plain("a", "b"), plain("a", "d")));
}

#[test]
fn bad_rows_name_their_line() {
    const FORMS: &str = jointwise::data::rows::FORMS;
    let good = r#"{"i_chosen":"a","r_chosen":"b","i_reject":"c","r_reject":"d"}"#;
    let cases = [
        ("{\"i_chosen\":", "malformed JSON: EOF while parsing a value, column 12".to_string()),
        ("{\"a\":1,}", "malformed JSON: trailing comma, column 8".into()),
        ("{", "malformed JSON: expected one object a line (JSONL) or one list of objects, found the start of an object that spans lines: \
             `jq -c .` puts each on a line"
                .into()),
        ("[1]", "expected a JSON object, found a list".into()),
        (
            r#"{"i_chosen":"a","r_chosen":"b","i_reject":"c"}"#,
            format!("field `r_reject` is missing (the row has `i_chosen`, `r_chosen`, `i_reject`); a row is one of: {FORMS}"),
        ),
        ("{}", format!("no form of row has these fields (the row is empty); a row is one of: {FORMS}")),
        (r#"{"text":7}"#, "field `text`: expected text, found a number".into()),
        (r#"{"i_chosen":"a","r_chosen":7,"i_reject":"c","r_reject":"d"}"#, "field `r_chosen`: expected text, found a number".into()),
        (r#"{"i_chosen":"a","r_chosen":"b","i_reject":"c","r_reject":""}"#, "the rejected response is empty".into()),
        (r#"{"prompt":"a","chosen":true,"rejected":"d"}"#, "field `chosen`: expected text or a list of messages, found true or false".into()),
        (
            r#"{"chosen":"b","rejected":"d"}"#,
            "fields `chosen` and `rejected` are texts that don't begin alike, so field `prompt` is needed too (the row has `chosen`, `rejected`)".into(),
        ),
        (
            r#"{"chosen":[{"role":"user","content":"Q"},{"role":"assistant","content":"b"}],"rejected":[{"role":"user","content":"R"},{"role":"assistant","content":"d"}]}"#,
            "`chosen` (2 messages) and `rejected` (2) share their first 0; what follows must begin with an assistant message on both sides".into(),
        ),
        (
            r#"{"prompt":[{"role":"user","content":"Q"}],"chosen":[{"role":"user","content":"b"}],"rejected":"d"}"#,
            "field `chosen`: the last message must be the assistant's, its role is `user`".into(),
        ),
        (r#"{"prompt":[{"content":"Q"}],"chosen":"b","rejected":"d"}"#, "field `prompt[0].role`: expected text, found nothing".into()),
        (r#"{"prompt":[],"chosen":"b","rejected":"d"}"#, "field `prompt`: the list of messages is empty".into()),
        (
            r#"{"prompt":[{"role":"user","content":[{"type":"image"}]}],"chosen":"b","rejected":"d"}"#,
            "field `prompt[0].content`: only parts of text are supported".into(),
        ),
        (
            r#"{"prompt":[{"role":"assistant","content":"Q"}],"chosen":"b","rejected":"d"}"#,
            "field `prompt`: ends with an assistant message, which belongs to the response".into(),
        ),
        (r#"{"messages":[{"role":"assistant","content":"Q"}]}"#, "field `messages`: no message stands before the response".into()),
        (
            r#"{"instruction":"a","response":"b"}"#,
            "the row holds one text, not a preference (the row has `instruction`, `response`); a preference is one of: \
             {i_chosen, r_chosen, i_reject, r_reject}, {prompt, chosen, rejected}, {chosen, rejected} as conversations or whole texts, \
             {conversations, chosen, rejected}, {prompt_chosen, chosen, prompt_rejected, rejected}"
                .into(),
        ),
    ];
    for (row, reason) in cases {
        let text = format!("{good}\n\n{row}\n{good}\n");
        assert_eq!(read(&text, DatasetType::Preference, &[]).unwrap_err(), format!("rows.jsonl:3: {reason}"));
    }
    assert_eq!(read(" \n\n", DatasetType::Any, &[]).unwrap_err(), "rows.jsonl: the file holds no rows");
    let empty = r#"{"instruction":"a","response":""}"#;
    assert_eq!(read(empty, DatasetType::Sft, &[]).unwrap_err(), "rows.jsonl:1: the response is empty");
    let (_dir, path) = file(b"{\"instruction\":\"a\xff\"}");
    let error = read_rows(&path, &FieldMap::default(), DatasetType::Any).unwrap_err().to_string();
    assert!(error.ends_with("rows.jsonl:1: not UTF-8 from byte 18"), "{error}");
    let error = read_rows("/nowhere/x.jsonl", &FieldMap::default(), DatasetType::Any).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/x.jsonl: No such file"), "{error}");
    for (value, reason) in [
        ("prompt", "`prompt`: expected field=name, such as prompt=question"),
        ("promt=q", "`promt` is not a field; fields are i_chosen, "),
    ] {
        let error = FieldMap::parse(&[value]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("--map: {reason}")), "{error}");
    }
    assert_eq!(
        FieldMap::parse(&["prompt=a", "prompt=b"]).unwrap_err().to_string(),
        "--map: field `prompt` is mapped twice"
    );
}

#[test]
fn prompts_of_every_form() {
    let (_dir, path) = file(
        br#"{"instruction":"a","gold_response":"g"}
{"prompt":"b"}
{"messages":[{"role":"user","content":"c"},{"role":"assistant","content":"g"}]}
{"i_chosen":"d","r_chosen":"g","i_reject":"x","r_reject":"y"}
"#,
    );
    let prompts = read_prompts(&path, &FieldMap::default()).unwrap();
    let expected = [plain("a", ""), plain("b", ""), chat(&[("user", "c")], ""), plain("d", "")].map(|t| t.instruction);
    assert_eq!(prompts.iter().map(|p| p.instruction.clone()).collect::<Vec<_>>(), expected);
    assert_eq!(prompts.iter().map(|p| p.gold.as_deref()).collect::<Vec<_>>(), [Some("g"), None, Some("g"), Some("g")]);
    let (_dir, path) = file(br#"{"prompt":"a","chosen":"b","rejected":"c","gold_response":["g"]}"#);
    let error = read_prompts(&path, &FieldMap::default()).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl:1: field `gold_response`: expected text, found a list"), "{error}");
    let without = FieldMap::parse(&["gold_response="]).unwrap();
    assert_eq!(read_prompts(&path, &without).unwrap()[0].gold.as_deref(), Some("b"));
    let (_dir, path) = file(b"{\"x\":1}");
    let error = read_prompts(&path, &FieldMap::default()).unwrap_err().to_string();
    assert!(
        error.ends_with("rows.jsonl:1: no field `instruction`, `prompt` or `messages` (the row has `x`)"),
        "{error}"
    );
}
