//! Rows as data sets of the hub have them: Alpaca, Dolly, ShareGPT, OpenOrca, UltraFeedback, hh-rlhf, LLaMA-Factory's, SHP.

use jointwise::data::bad_rows::{BadRowLimit, BadRows};
use jointwise::data::prompts::read_prompt_file;
use jointwise::data::rows::{FileRows, read_row_file};

use super::*;

fn whole(before: &str, response: &str) -> PromptResponse {
    PromptResponse { instruction: Instruction::Verbatim(before.into()), response: response.into() }
}

/// A conversation, answered by a text.
fn spoken(before: &[(&str, &str)], response: &str) -> PromptResponse {
    PromptResponse { response: response.into(), ..chat(before, response) }
}

fn told(content: &str, purpose: DatasetType, maps: &[&str]) -> FileRows<Row> {
    let (_dir, path) = file(content.as_bytes());
    read_row_file(&path, &FieldMap::parse(maps).unwrap(), purpose, BadRows::Error).unwrap()
}

fn refused(row: &str, purpose: DatasetType) -> String {
    let error = read(row, purpose, &[]).unwrap_err();
    error.strip_prefix("rows.jsonl:1: ").unwrap().to_string()
}

#[test]
fn columns_with_a_meaning_are_a_part_of_the_prompt() {
    let single = |instruction: &str, response: &str| RowContent::Single(plain(instruction, response));
    let asked = [("system", "S"), ("user", "Q")];
    for (row, expected) in [
        // Alpaca, with its text in full beside it.
        (
            r#"{"instruction":"Sort.","input":"b a","output":"a b","text":"Sort. b a: a b"}"#,
            single("Sort.\nb a", "a b"),
        ),
        (r#"{"instruction":"Sort.","input":"","output":"a b"}"#, single("Sort.", "a b")),
        (r#"{"instruction":"","input":"b a","output":"a b"}"#, single("b a", "a b")),
        (r#"{"instruction":"Sort.","input":"b a","response":"a b","output":"x"}"#, single("Sort.\nb a", "a b")),
        (r#"{"prompt":"Sort.","input":"b a","completion":"a b"}"#, single("Sort.\nb a", "a b")),
        (r#"{"instruction":"Sort.","input":"b a","output":"a b","prompt":"long"}"#, single("Sort.\nb a", "a b")),
        (r#"{"prompt":"Q","response":"a"}"#, single("Q", "a")),
        // Joined as LLaMA-Factory does, whatever the texts are.
        (r#"{"prompt":"Q","input":"Q","completion":"a"}"#, single("Q\nQ", "a")),
        (
            r#"{"instruction":"Q","response":"a","conversations":[{"from":"human","value":"x"},{"from":"gpt","value":"y"}]}"#,
            single("Q", "a"),
        ),
        // Dolly.
        (
            r#"{"instruction":"Who?","context":"Ann wrote it.","response":"Ann","category":"qa"}"#,
            single("Who?\nAnn wrote it.", "Ann"),
        ),
        (r#"{"instruction":"Who?","context":"x","input":"x","response":"Ann"}"#, single("Who?\nx", "Ann")),
        // OpenOrca, orca_dpo_pairs.
        (r#"{"id":"1","system_prompt":"S","question":"Q","response":"a"}"#, RowContent::Single(spoken(&asked, "a"))),
        (
            r#"{"system":"S","question":"Q","chosen":"a","rejected":"b"}"#,
            preference(spoken(&asked, "a"), spoken(&asked, "b")),
        ),
        (r#"{"system":"","question":"Q","chosen":"a","rejected":"b"}"#, preference(plain("Q", "a"), plain("Q", "b"))),
        // LLaMA-Factory.
        (
            r#"{"instruction":"Q","input":"more","chosen":"a","rejected":"b"}"#,
            preference(plain("Q\nmore", "a"), plain("Q\nmore", "b")),
        ),
        (r#"{"system":"S","history":[["one","1"],["two","2"]],"prompt":"Q","chosen":"a","rejected":"b"}"#, {
            let before = [
                ("system", "S"),
                ("user", "one"),
                ("assistant", "1"),
                ("user", "two"),
                ("assistant", "2"),
                ("user", "Q"),
            ];
            preference(spoken(&before, "a"), spoken(&before, "b"))
        }),
        (r#"{"instruction":"Q","history":[],"output":"a"}"#, single("Q", "a")),
        // A system message beside other forms.
        (
            r#"{"system":"S","messages":[{"role":"system","content":"S"},{"role":"user","content":"Q"},{"role":"assistant","content":"a"}]}"#,
            turns(&asked, "a"),
        ),
        (
            r#"{"system":"S","messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"a"}]}"#,
            turns(&asked, "a"),
        ),
        (
            r#"{"system":"S","i_chosen":"Q","r_chosen":"a","i_reject":"Q","r_reject":"b"}"#,
            preference(spoken(&asked, "a"), spoken(&asked, "b")),
        ),
    ] {
        assert_eq!(one(row), expected, "{row}");
    }
    // A history's answers are learnt like those of a conversation.
    let row = r#"{"instruction":"Q","history":[["one","1"]],"output":"a"}"#;
    let as_messages = r#"{"messages":[{"role":"user","content":"one"},{"role":"assistant","content":"1"},{"role":"user","content":"Q"},{"role":"assistant","content":"a"}]}"#;
    assert_eq!(one(row), one(as_messages));
    // What a template for plain texts has no place for is refused.
    for row in [
        r#"{"system":"S","prompt":"Q","completion":"a"}"#,
        r#"{"history":[["one","1"]],"prompt":"Q","completion":"a"}"#,
    ] {
        let error = build(row, &Template::Paper, 99, Overflow::Error).unwrap_err();
        assert!(error.starts_with("rows.jsonl:1: ") && error.contains("--template chat"), "{error}");
    }
    let error =
        build(r#"{"system":"S","prompt":"Q","completion":"a"}"#, &Template::None, 99, Overflow::Error).unwrap_err();
    assert!(error.contains("system message") && error.contains("--map system="), "{error}");
    for (row, reason) in [
        (
            r#"{"instruction":"Q","input":3,"output":"a"}"#,
            "field `input`: expected text, found a number (--map input= leaves it out)",
        ),
        (
            r#"{"instruction":"Q","input":"x","context":"y","output":"a"}"#,
            "fields `input` and `context` say different things (--map context= leaves it out)",
        ),
        (
            r#"{"prompt":[{"role":"user","content":"Q"}],"input":"x","completion":"a"}"#,
            "field `input` is text, and `prompt` a list of messages, which it cannot stand behind (--map input= leaves it out)",
        ),
        (
            r#"{"system":"S","messages":[{"role":"system","content":"T"},{"role":"user","content":"Q"},{"role":"assistant","content":"a"}]}"#,
            "field `system` and the messages' own system message differ (--map system= leaves it out)",
        ),
        (
            r#"{"instruction":"Q","history":[["one"]],"output":"a"}"#,
            "field `history`: expected a list of [user's text, assistant's text], found a list (--map history= leaves it out)",
        ),
        (
            r#"{"instruction":"Q","history":"one","output":"a"}"#,
            "field `history`: expected a list of [user's text, assistant's text], found text (--map history= leaves it out)",
        ),
    ] {
        assert_eq!(refused(row, DatasetType::Any), reason, "{row}");
    }
    let left = read(r#"{"instruction":"Q","input":3,"output":"a"}"#, DatasetType::Any, &["input="]).unwrap();
    assert_eq!(left[0].content, single("Q", "a"));
}

/// A conversation of one answer, of which `sft` learns every answer.
fn turns(before: &[(&str, &str)], answer: &str) -> RowContent {
    let PromptResponse { instruction, .. } = chat(before, answer);
    RowContent::Single(PromptResponse {
        instruction,
        response: ResponseText::Turns(vec![Message::new("assistant", answer)]),
    })
}

#[test]
fn sharegpt_and_rankings() {
    let asked = [("system", "S"), ("user", "Q")];
    let conversation = r#"[{"from":"system","value":"S"},{"from":"human","value":"Q"},{"from":"gpt","value":"a"}]"#;
    assert_eq!(one(&format!(r#"{{"conversations":{conversation}}}"#)), turns(&asked, "a"));
    assert_eq!(one(&format!(r#"{{"messages":{conversation},"id":1}}"#)), turns(&asked, "a"));
    assert_eq!(
        read(&format!(r#"{{"talk":{conversation}}}"#), DatasetType::Sft, &["conversations=talk"]).unwrap()[0].content,
        turns(&asked, "a")
    );
    assert_eq!(
        one(r#"{"system":"S","conversations":[{"from":"user","value":"Q"},{"from":"assistant","value":"a"}]}"#),
        turns(&asked, "a")
    );
    let both = |before: &[(&str, &str)]| preference(chat(before, "a"), chat(before, "b"));
    for row in [
        r#"{"conversations":[{"from":"human","value":"Q"}],"chosen":{"from":"gpt","value":"a"},"rejected":{"from":"gpt","value":"b"}}"#,
        r#"{"messages":[{"role":"user","content":"Q"}],"chosen":{"role":"assistant","content":"a"},"rejected":{"role":"assistant","content":"b"}}"#,
        r#"{"conversations":[{"from":"human","value":"Q"}],"chosen":[{"from":"gpt","value":"a"}],"rejected":{"from":"gpt","value":"b"}}"#,
        // What a column says of a whole conversation is no prompt.
        r#"{"instruction":"about Q","question":"x","chosen":[{"role":"user","content":"Q"},{"role":"assistant","content":"a"}],"rejected":[{"role":"user","content":"Q"},{"role":"assistant","content":"b"}]}"#,
        // UltraFeedback, binarized.
        r#"{"prompt":"Q","prompt_id":"x","chosen":[{"content":"Q","role":"user"},{"content":"a","role":"assistant"}],"rejected":[{"content":"Q","role":"user"},{"content":"b","role":"assistant"}],"messages":[{"content":"Q","role":"user"},{"content":"a","role":"assistant"}],"score_chosen":8.5,"score_rejected":4.0}"#,
    ] {
        assert_eq!(one(row), both(&[("user", "Q")]), "{row}");
    }
    let labelled = one(r#"{"conversations":[{"from":"human","value":"Q"},{"from":"gpt","value":"a"}],"label":false}"#);
    assert_eq!(labelled, RowContent::Labelled(chat(&[("user", "Q")], "a"), false));
    let reason =
        refused(r#"{"conversations":[{"from":"human","value":"Q"},{"from":"sensei","value":"a"}]}"#, DatasetType::Sft);
    assert!(reason.starts_with("field `conversations[1].from`: `sensei` is none of human, user, gpt"), "{reason}");
    let call = r#"{"conversations":[{"from":"human","value":"2+2?"},{"from":"function_call","value":"{\"name\":\"add\",\"arguments\":{\"a\":2,\"b\":2}}"},{"from":"observation","value":"4"},{"from":"gpt","value":"It is 4."}]}"#;
    let RowContent::Single(text) = one(call) else { panic!("one text") };
    let (conversation, _) = text.conversation();
    assert_eq!(
        conversation.messages.iter().map(Message::role).collect::<Vec<_>>(),
        ["user", "assistant", "tool", "assistant"]
    );
    assert_eq!(conversation.messages[1].to_value()["tool_calls"][0]["function"]["name"], "add");
}

/// A label that is null among labels is told where the text is imitated; a column of nulls is empty.
#[test]
fn rows_without_a_label_among_labelled_ones_are_told() {
    let row = |label: &str| format!(r#"{{"prompt":"q","completion":"a","label":{label}}}"#);
    let notes = |labels: &[&str]| {
        let text: Vec<String> = labels.iter().map(|label| row(label)).collect();
        told(&text.join("\n"), DatasetType::Sft, &[]).notes
    };
    let lines = notes(&["true", "null", "null"]);
    assert!(
        lines.len() == 1
            && lines[0]
                .ends_with("rows.jsonl: 2 rows beside labelled ones have no label (`label`: null): they are imitated"),
        "{lines:?}"
    );
    assert_eq!(notes(&["null", "null"]), [""; 0]);
    assert_eq!(notes(&["true", "true"]), [""; 0]);
}

#[test]
fn whole_texts_get_no_template() {
    let rows = told("{\"text\":\"All of it.\",\"meta\":{}}\n{\"text\":\"More.\",\"meta\":{}}\n", DatasetType::Sft, &[]);
    assert_eq!(rows.rows[0].content, RowContent::Single(whole("", "All of it.")));
    assert_eq!(rows.notes.len(), 2);
    assert!(rows.notes[0].ends_with("rows.jsonl: columns that are not read: `meta` (2 rows)"), "{:?}", rows.notes);
    assert!(
        rows.notes[1].ends_with("rows.jsonl: 2 rows hold whole texts: no template is put around them"),
        "{:?}",
        rows.notes
    );
    // Text and EOS under every template, and before them what the tokenizer puts there: nothing.
    let tokenizer = bpe512();
    let alone = tokenizer.encode_text("All of it.").unwrap();
    for template in [Template::Paper, Template::None, Template::Chat] {
        let data = Dataset::build(&rows.rows[..1], &tokenizer, &template, LIMITS).unwrap();
        let sequence = &data.examples[0].sequences[0];
        assert_eq!(sequence.ids, [&alone[..], &[1]].concat(), "{template:?}");
        assert_eq!(sequence.response_start, 0);
    }
    let reason = refused(r#"{"text":"x"}"#, DatasetType::Preference);
    assert!(reason.starts_with("the row holds one text, not a preference"), "{reason}");
    for (label, purpose) in
        [("1", DatasetType::Judgement), ("1", DatasetType::Any), ("0", DatasetType::Sft), ("2", DatasetType::Sft)]
    {
        let reason = refused(&format!(r#"{{"text":"x","label":{label}}}"#), purpose);
        assert!(reason.contains("label"), "{reason}");
        let is_way_out = reason.ends_with("(`label`; --map label= leaves it out)");
        assert_eq!(is_way_out, purpose != DatasetType::Sft, "{reason}");
    }
    let left = told(r#"{"text":"x","label":1}"#, DatasetType::Any, &["label="]);
    assert_eq!(left.rows[0].content, RowContent::Single(whole("", "x")));
}

/// The prompt as TRL 1.16's `extract_prompt` cuts it, but for words that both responses begin with.
#[test]
fn hh_rlhf_is_cut_before_the_last_turn() {
    let turn = "\n\nHuman: Hi\n\nAssistant:";
    let row = |chosen: &str, rejected: &str| serde_json::json!({"chosen": chosen, "rejected": rejected}).to_string();
    let pair = |before: &str, chosen: &str, rejected: &str| {
        assert_eq!(
            one(&row(&format!("{before}{chosen}"), &format!("{before}{rejected}"))),
            preference(whole(before, chosen), whole(before, rejected)),
            "{before}"
        );
    };
    pair(turn, " Hello", " No");
    pair(turn, " I am well", " I am not");
    let longer = format!("{turn} Hello\n\nHuman: And?\n\nAssistant:");
    pair(&longer, " Yes", " Why?");
    pair(turn, " a\n\nHuman: b\n\nAssistant: c", " d");
    pair("The sky is", " blue.", " green.");
    pair("2+2=", "4", "5");
    let rows = told(&row(&format!("{turn} Hello"), &format!("{turn} No")), DatasetType::Preference, &[]);
    assert!(rows.notes[0].contains("1 row holds whole texts"), "{:?}", rows.notes);
    // TRL's tokens: prompt, response, EOS, whatever the template.
    let tokenizer = bpe512();
    for template in [Template::Chat, Template::None, Template::Paper] {
        let data = Dataset::build(&rows.rows, &tokenizer, &template, LIMITS).unwrap();
        let chosen = &data.examples[0].sequences[0];
        assert_eq!(tokenizer.decode_all(&chosen.ids[..chosen.ids.len() - 1]).unwrap(), format!("{turn} Hello"));
        assert_eq!(tokenizer.decode_all(&chosen.ids[..chosen.response_start]).unwrap(), turn);
    }
    let reason = refused(&row("a", "b"), DatasetType::Preference);
    assert_eq!(
        reason,
        "fields `chosen` and `rejected` are texts that don't begin alike, so field `prompt` is needed too (the row has `chosen`, `rejected`)"
    );
    let reason = refused(&row(turn, &format!("{turn} x")), DatasetType::Preference);
    assert_eq!(reason, "the chosen response is empty");
    let reason = refused(r#"{"problem":"Q","chosen":"A b","rejected":"A c"}"#, DatasetType::Preference);
    assert!(reason.ends_with("`rejected`); it may be `--map prompt=problem`"), "{reason}");
    let mixed = refused(r#"{"chosen":"A b","rejected":[{"role":"assistant","content":"x"}]}"#, DatasetType::Preference);
    assert_eq!(mixed, "field `chosen` is text, so field `prompt` is needed too (the row has `chosen`, `rejected`)");
}

#[test]
fn errors_suggest_the_map() {
    for (row, suggestion) in [
        (
            r#"{"question":"Q","answer":"a"}"#,
            "field `completion` is missing (the row has `question`, `answer`); it may be `--map completion=answer`; a row is one of",
        ),
        (
            r#"{"query":"Q","response":"a","type":"x"}"#,
            "field `instruction` is missing (the row has `query`, `response`, `type`); it may be `--map instruction=query`;",
        ),
        (r#"{"problem":"Q","solution":"a","answer":"b"}"#, "it may be `--map prompt=problem --map completion=answer`;"),
        (
            r#"{"instruction":"Q","solution":"a","answer":"b"}"#,
            "it may be `--map response=answer` or `--map response=solution`;",
        ),
        (r#"{"input":"Q","output":"a"}"#, "it may be `--map instruction=input`;"),
        (r#"{"Question":"Q","Answer":"a"}"#, "it may be `--map prompt=Question --map completion=Answer`;"),
        (r#"{"conversation":[{"role":"user","content":"Q"}]}"#, "it may be `--map messages=conversation`;"),
        (
            r#"{"question":"Q","chosen_response":"a","rejected-response":"b"}"#,
            "field `completion` is missing (the row has `question`, `chosen_response`, `rejected-response`); it may be `--map chosen=chosen_response --map rejected=rejected-response`;",
        ),
        (
            r#"{"prompt":"Q","chosen":"a","rejected_response":"b"}"#,
            "field `rejected` is missing (the row has `prompt`, `chosen`, `rejected_response`); it may be `--map rejected=rejected_response`;",
        ),
        (r#"{"a":1}"#, "no form of row has these fields (the row has `a`); a row is one of"),
        (r#"{"question":"Q"}"#, "field `completion` is missing (the row has `question`); a row is one of"),
        (
            r#"{"post_id":"p","history":"Q","human_ref_A":"a","human_ref_B":"b","labels":1}"#,
            "the row has Stanford SHP's form, which is not read: `labels` is 1 where `human_ref_A` is preferred",
        ),
        (r#"{"prompt":"Q","completions":["a","b"],"labels":[true,false]}"#, "the row labels steps"),
    ] {
        let reason = refused(row, DatasetType::Any);
        assert!(reason.contains(suggestion), "{row}: {reason}");
    }
    // What is suggested is taken.
    let rows = read(r#"{"query":"Q","answer":"a"}"#, DatasetType::Sft, &["prompt=query", "completion=answer"]).unwrap();
    assert_eq!(rows[0].content, RowContent::Single(plain("Q", "a")));
    let rows =
        read(r#"{"instruction":"Q","input":"b a","output":"a b"}"#, DatasetType::Sft, &["response=output"]).unwrap();
    assert_eq!(rows[0].content, RowContent::Single(plain("Q\nb a", "a b")));
    let rows = read(r#"{"input":"Q","output":"a"}"#, DatasetType::Sft, &["instruction=input"]).unwrap();
    assert_eq!(rows[0].content, RowContent::Single(plain("Q", "a")), "a column is read once");
}

#[test]
fn unread_columns_are_told_once_a_file() {
    let notes = |rows: &str, purpose, maps: &[&str]| told(rows, purpose, maps).notes;
    let rows = concat!(
        r#"{"prompt":"Q","completion":"a","source":"x","empty":null}"#,
        "\n",
        r#"{"prompt":"Q","completion":"a","source":"y","license":"MIT","label":1}"#,
        "\n"
    );
    let [note] = &notes(rows, DatasetType::Sft, &[])[..] else { panic!("one note") };
    assert!(note.ends_with("rows.jsonl: columns that are not read: `source` (2 rows), `license` (1 row)"), "{note}");
    let [note] = &notes(rows, DatasetType::Sft, &["label="])[..] else { panic!("one note") };
    assert!(note.ends_with("`source` (2 rows), `license` (1 row), `label` (1 row)"), "{note}");
    assert_eq!(notes(r#"{"prompt":"Q","completion":"a"}"#, DatasetType::Sft, &[]), [""; 0]);
    let pair = r#"{"instruction":"Q","prompt":"P","chosen":"a","rejected":"b","messages":[],"text":"T","output":"o"}"#;
    let [note] = &notes(pair, DatasetType::Preference, &[])[..] else { panic!("one note") };
    assert!(
        note.ends_with("not read: `instruction` (1 row), `messages` (1 row), `text` (1 row), `output` (1 row)"),
        "{note}"
    );
    let names =
        ["prompt", "completion"].map(String::from).into_iter().chain((0..200).map(|i| format!("column number {i}")));
    let row = Value::Object(names.map(|name| (name, "x".into())).collect()).to_string();
    let [note] = &notes(&row, DatasetType::Any, &[])[..] else { panic!("one note") };
    let listed = note.matches("(1 row)").count();
    assert!(note.len() < 1000 && note.ends_with(&format!(", and {} more", 200 - listed)), "{note}");
    let (_dir, path) = file(br#"{"prompt":"Q","id":7}"#);
    let prompts = read_prompt_file(&path, &FieldMap::default()).unwrap();
    assert!(prompts.notes[0].ends_with("columns that are not read: `id` (1 row)"), "{:?}", prompts.notes);
}

#[test]
fn labels_have_one_meaning() {
    let row = |label: &str| format!(r#"{{"prompt":"Q","completion":"a","label":{label}}}"#);
    for (label, expected) in [
        ("true", true),
        ("1", true),
        ("1.0", true),
        ("\"true\"", true),
        ("\"TRUE\"", true),
        ("\"True\"", true),
        ("false", false),
        ("0", false),
        ("0.0", false),
        ("-1", false),
        ("-1.0", false),
        ("\"1\"", true),
        ("\"0\"", false),
        ("\"-1\"", false),
        ("\"false\"", false),
        ("\"False\"", false),
    ] {
        for purpose in [DatasetType::Judgement, DatasetType::Any] {
            let rows = read(&row(label), purpose, &[]).unwrap();
            assert_eq!(rows[0].content, RowContent::Labelled(plain("Q", "a"), expected), "{label}");
        }
        match read(&row(label), DatasetType::Sft, &[]) {
            Ok(rows) => assert!(expected && rows[0].content == RowContent::Single(plain("Q", "a")), "{label}"),
            Err(error) => assert!(!expected && error.contains("`label`: false"), "{label}: {error}"),
        }
    }
    for (label, found) in [
        ("2", "2"),
        ("0.5", "0.5"),
        ("-2", "-2"),
        ("\"yes\"", "`yes`"),
        ("\"2\"", "`2`"),
        ("\"\"", "``"),
        ("[]", "a list"),
        ("{}", "an object"),
    ] {
        for purpose in [DatasetType::Sft, DatasetType::Judgement, DatasetType::Any] {
            let reason = format!(
                "field `label`: expected true or false (or 1 or 0, 1 or -1), found {found} (--map label= leaves it out)"
            );
            assert_eq!(refused(&row(label), purpose), reason);
        }
    }
    let liked = r#"{"prompt":"Q","completion":"a","desirable":false}"#;
    let reason = refused(liked, DatasetType::Judgement);
    assert!(reason.ends_with("found nothing; it may be `--map label=desirable`"), "{reason}");
    assert_eq!(read(liked, DatasetType::Judgement, &["label=desirable"]).unwrap()[0].content.label(), Some(false));
    assert_eq!(refused(&row("null"), DatasetType::Judgement), "field `label`: expected true or false, found nothing");
    let left = read(&row("2"), DatasetType::Sft, &["label="]).unwrap();
    assert_eq!(left[0].content, RowContent::Single(plain("Q", "a")));
}

#[test]
fn bad_rows_are_skipped_within_a_limit() {
    let good = r#"{"prompt":"Say hi","completion":"Hi"}"#;
    let bad = [
        (r#"{"prompt":"Q","completion":""}"#, "the response is empty"),
        (
            r#"{"prompt":"Q","completion":"a","score":NaN}"#,
            "malformed JSON: NaN is not a JSON number (null says that there is none), column 40",
        ),
        (
            r#"{"prompt":"Q","completion":"a","score":-Infinity}"#,
            "malformed JSON: Infinity is not a JSON number (null says that there is none), column 41",
        ),
        (
            r#"{"prompt":"Q \ud83d","completion":"a"}"#,
            "malformed JSON: half of a surrogate pair (\\ud800 to \\udfff) is not a character, column ",
        ),
        (
            r#"{"prompt":"Q","completion":"\udc00"}"#,
            "malformed JSON: half of a surrogate pair (\\ud800 to \\udfff) is not a character, column ",
        ),
        (r#"{"prompt":"Q","completion":"a""#, "malformed JSON: EOF while parsing an object, column 30"),
        (r#"{"prompt":"Q"}"#, "field `completion` is missing"),
        ("[1]", "expected a JSON object, found a list"),
        (r#"{"system":"S","prompt":"Q","completion":"a"}"#, "system message"),
    ];
    let mut lines = vec![good.to_string(); 100];
    for (i, (line, _)) in bad.iter().enumerate() {
        lines[10 * i + 1] = (*line).into();
    }
    let (_dir, path) = file(lines.join("\n").as_bytes());
    let skip = |limit| {
        let rows = read_row_file(&path, &FieldMap::default(), DatasetType::Sft, BadRows::Skip(limit)).unwrap().rows;
        Dataset::build_with(&rows, &bpe512(), &Template::None, LIMITS, BadRows::Skip(limit)).map_err(|e| {
            assert_eq!(e.exit_status(), 2);
            e.to_string()
        })
    };
    let data = skip(BadRowLimit::Count(9)).unwrap();
    assert_eq!(data.summary(), "100 rows: 91 kept, 0 dropped, 9 bad rows skipped");
    assert_eq!(data.count(OverflowAction::Skipped), 9);
    for (note, (i, (line, reason))) in data.notes.iter().zip(bad.iter().enumerate()) {
        assert_eq!((note.row, note.fate), (10 * i + 1, OverflowAction::Skipped));
        assert!(note.reason.contains(reason), "{line}: {}", note.reason);
        assert!(data.place(note.row).ends_with(&format!("rows.jsonl:{}", 10 * i + 2)));
    }
    assert_eq!(data.examples[1].row, 2, "rows keep their numbers");
    let mut report = check(&data, &bpe512(), 0);
    report.tokenizer_notes.push("told once".into());
    let text = report.to_string();
    assert!(text.contains("rows: 100 read, 91 kept, 0 truncated, 0 dropped, 9 skipped\n"), "{text}");
    assert!(!text.contains("told once") && serde_json::to_string(&report).unwrap().contains("told once"), "{text}");
    let error = skip(BadRowLimit::Count(8)).unwrap_err();
    assert!(error.starts_with("--max-bad-rows: 9 of 100 rows are bad, more than 8; the first is "), "{error}");
    assert!(error.ends_with("rows.jsonl:2: the response is empty"), "{error}");
    let error = skip(BadRowLimit::default()).unwrap_err();
    assert!(error.starts_with("--max-bad-rows: 9 of 100 rows are bad, more than 1%"), "{error}");
    assert!(skip(BadRowLimit::Share(0.09)).is_ok() && skip(BadRowLimit::Share(0.08)).is_err());
    // Nothing but bad rows, however many may be skipped: no length is to blame.
    let limits = BadRows::Skip(BadRowLimit::Share(1.0));
    let only = |lines: &str| {
        let (_dir, path) = file(lines.as_bytes());
        let rows = read_row_file(&path, &FieldMap::default(), DatasetType::Sft, limits).unwrap().rows;
        let fit = LengthLimits { overflow: Overflow::Drop, ..LIMITS };
        Dataset::build_with(&rows, &bpe512(), &Template::None, fit, limits).unwrap_err().to_string()
    };
    let error = only("{\"prompt\":\"Q\"}\n7\n");
    assert!(error.starts_with("--max-bad-rows: every row is bad; the first: "), "{error}");
    assert!(error.contains("rows.jsonl:1: field `completion` is missing"), "{error}");
    // The control: a row that is too long is told by its length.
    let error = only(&format!("{{}}\n{{\"prompt\":\"Q\",\"completion\":\"{}\"}}\n", "word ".repeat(20_000)));
    assert!(error.starts_with("--max-length: no row fits"), "{error}");
    // By default the first one stops the program.
    let error = read_rows(&path, &FieldMap::default(), DatasetType::Sft).unwrap_err().to_string();
    assert!(error.ends_with("rows.jsonl:2: the response is empty"), "{error}");
}

#[test]
fn prompts_of_every_form_that_readme_names() {
    const U: &str = r#"{"role":"user","content":"Q"}"#;
    let answer = |text: &str| format!(r#"{{"role":"assistant","content":"{text}"}}"#);
    let (a, b) = (answer("a"), answer("b"));
    let asked = chat(&[("user", "Q")], "").instruction;
    let text = plain("Q", "").instruction;
    for (row, instruction, gold) in [
        (r#"{"i_chosen":"Q","r_chosen":"a","i_reject":"P","r_reject":"b"}"#.to_string(), &text, Some("a")),
        (r#"{"prompt_chosen":"Q","chosen":"a","prompt_rejected":"P","rejected":"b"}"#.into(), &text, Some("a")),
        (r#"{"prompt":"Q","chosen":"a","rejected":"b"}"#.into(), &text, Some("a")),
        (format!(r#"{{"prompt":[{U}],"chosen":[{a}],"rejected":[{b}]}}"#), &asked, Some("a")),
        (format!(r#"{{"chosen":[{U},{a}],"rejected":[{U},{b}]}}"#), &asked, Some("a")),
        (format!(r#"{{"prompt":"Q","chosen":[{U},{a}],"rejected":[{U},{b}]}}"#), &asked, Some("a")),
        (r#"{"conversations":[{"from":"human","value":"Q"}],"chosen":{"from":"gpt","value":"a"},"rejected":{"from":"gpt","value":"b"}}"#.into(), &asked, Some("a")),
        (format!(r#"{{"prompt":[{U}],"completion":[{a}]}}"#), &asked, Some("a")),
        (format!(r#"{{"instruction":"x","chosen":[{U},{a}],"rejected":[{U},{b}]}}"#), &asked, Some("a")),
        (r#"{"instruction":"Q","response":"a"}"#.into(), &text, Some("a")),
        (format!(r#"{{"messages":[{U},{a}]}}"#), &asked, Some("a")),
        (format!(r#"{{"messages":[{U}]}}"#), &asked, None),
        (r#"{"conversations":[{"from":"human","value":"Q"},{"from":"gpt","value":"a"}]}"#.into(), &asked, Some("a")),
        (r#"{"prompt":"Q","completion":"a","label":0}"#.into(), &text, Some("a")),
        (r#"{"instruction":"Q"}"#.into(), &text, None),
        (r#"{"prompt":"Q"}"#.into(), &text, None),
        (r#"{"instruction":"Q","output":"x","gold_response":"g"}"#.into(), &text, Some("g")),
        (r#"{"instruction":"Q","input":"in","output":"a"}"#.into(), &plain("Q\nin", "").instruction, Some("a")),
        (r#"{"system":"S","question":"Q","chosen":"a","rejected":"b"}"#.into(), &chat(&[("system", "S"), ("user", "Q")], "").instruction, Some("a")),
        (r#"{"chosen":"\n\nHuman: Q\n\nAssistant: a","rejected":"\n\nHuman: Q\n\nAssistant: b"}"#.into(), &whole("\n\nHuman: Q\n\nAssistant:", "").instruction, Some(" a")),
    ] {
        let (_dir, path) = file(row.as_bytes());
        let prompts = read_prompts(&path, &FieldMap::default()).unwrap_or_else(|e| panic!("{row}: {e}"));
        assert_eq!((&prompts[0].instruction, prompts[0].gold.as_deref()), (instruction, gold), "{row}");
        assert!(bpe512().encode_prompt(&prompts[0].instruction, &Template::Chat).is_ok());
    }
    for (row, reason) in [
        (r#"{"text":"T"}"#, "field `text` is a whole text, not a prompt (--map prompt=text reads it as one)"),
        (
            r#"{"query":"Q"}"#,
            "no field `instruction`, `prompt` or `messages` (the row has `query`); it may be `--map prompt=query`",
        ),
    ] {
        let (_dir, path) = file(row.as_bytes());
        let error = read_prompts(&path, &FieldMap::default()).unwrap_err().to_string();
        assert!(error.ends_with(&format!("rows.jsonl:1: {reason}")), "{error}");
    }
}
