//! Conversations: every key of a message, every turn of the assistant, chat templates by name. `turns/cases.json` is transformers' answers
//! (`turns/make.py`).

use super::*;

/// bpe512 with this chat template.
fn with_template(source: &str) -> Tokenizer {
    let mut config = json(fixture("bpe512/tokenizer_config.json"));
    config["chat_template"] = source.into();
    with_config(&config.to_string()).unwrap()
}

fn single(row: &Value) -> PromptResponse {
    match one(&row.to_string()) {
        RowContent::Single(text) => text,
        other => panic!("{other:?}"),
    }
}

fn mask(sequence: &Sequence) -> Vec<bool> {
    (0..sequence.ids.len()).map(|i| sequence.is_response(i)).collect()
}

#[test]
fn ids_and_masks_are_those_of_apply_chat_template() {
    let cases = json(fixture("turns/cases.json"));
    let mut masks = [0, 0];
    for case in cases.as_array().unwrap() {
        let (name, row) = (&case["name"], &case["row"]);
        let text = single(row);
        let tokenizer = with_template(case["template"].as_str().unwrap());
        let got = tokenizer.encode(&text, &Template::Chat).unwrap();
        assert_eq!(got.ids, ids(&case["ids"]), "{name} {row}");
        let mut last = text.clone();
        last.keep_last_turn();
        assert_eq!(
            tokenizer.encode_prompt(&last.instruction, &Template::Chat).unwrap(),
            ids(&case["asks"]),
            "{name} {row}"
        );
        let Some(assistant) = case["assistant"].as_array() else { continue };
        let expected: Vec<bool> = assistant.iter().map(|scored| *scored == 1).collect();
        if case["by_prefixes"] != false {
            let mut expected = expected.clone();
            if case["by_prefixes"] == "end" {
                let last = tokenizer.decode_all(&got.ids[got.ids.len() - 1..]).unwrap();
                assert_eq!((expected.pop(), last.as_str()), (Some(false), "<|eos|>"), "{name} {row}");
                expected.push(true);
            }
            assert_eq!(mask(&got), expected, "by prefixes: {name} {row}");
            masks[0] += 1;
        }
        let tagged = with_template(case["tagged"].as_str().unwrap());
        let by_tags = tagged.encode(&text, &Template::Chat).unwrap();
        assert_eq!((&by_tags.ids, mask(&by_tags)), (&got.ids, expected.clone()), "by tags: {name} {row}");
        masks[1] += 1;
        // The last turn alone: what was scored last, and nothing before it.
        let alone = tokenizer.encode(&last, &Template::Chat).unwrap();
        let n_turns = row["messages"].as_array().unwrap().iter().filter(|m| m["role"] == "assistant").count();
        assert_eq!(alone.ids, got.ids);
        assert!(alone.between.is_empty() && (n_turns > 1) == (alone.n_response() < got.n_response()), "{name} {row}");
        assert_eq!(got.n_response(), mask(&got).iter().filter(|scored| **scored).count());
    }
    assert!(masks[0] > 15 && masks[1] > masks[0], "{masks:?}");
}

/// A template whose earlier answers cannot be told apart is refused, with the way out; a greeting is context, and noted.
#[test]
fn answers_that_cannot_be_found_are_refused() {
    // Written anew where more follows: in capitals, without what stands around it.
    let source = "{% for m in messages %}{% if loop.last and m.role == 'assistant' %}<{{ m.content }}>{% else %}{{ m.content | upper }}{% endif %}{% endfor %}{% if add_generation_prompt %}?{% endif %}";
    let row = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"},{"role":"user","content":"r"},{"role":"assistant","content":"b"}]}"#;
    let rows = read(row, DatasetType::Sft, &[]).unwrap();
    let error = Dataset::build(&rows, &with_template(source), &Template::Chat, LIMITS).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl:1: ") && error.contains("--last-turn-only"), "{error}");
    let mut last = rows.clone();
    last[0].content.keep_last_turn();
    assert!(Dataset::build(&last, &with_template(source), &Template::Chat, LIMITS).is_ok());

    let row = r#"{"messages":[{"role":"assistant","content":"hello"},{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;
    let rows = read(row, DatasetType::Sft, &[]).unwrap();
    let greeted = |tokenizer: &Tokenizer| {
        let data = Dataset::build(&rows, tokenizer, &Template::Chat, LIMITS).unwrap();
        let begins = |line: &String| line.starts_with("1 row: the conversation begins with the assistant");
        let side = &data.examples[0].sequences[0];
        let scored: Vec<u32> = (0..side.ids.len()).filter(|&i| side.is_response(i)).map(|i| side.ids[i]).collect();
        (tokenizer.decode_all(&scored).unwrap(), data.remarks.lines().iter().any(begins))
    };
    assert_eq!(greeted(&bpe512()), ("hello<|im_end|>\na<|im_end|>\n".into(), false));
    let needs_one = "{% if messages[0].role == 'system' %}s{% endif %}{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}";
    assert_eq!(greeted(&with_template(needs_one)), ("a;".into(), true));
}

#[test]
fn remarks_count_rows() {
    let row = |more: &str| {
        format!(r#"{{"messages":[{{"role":"user","content":"q"{more}}},{{"role":"assistant","content":"a"}}]}}"#)
    };
    let text = [row(""), row(r#","name":"Ann""#), row(r#","name":"Bo","id":null"#)].join("\n");
    let data = build(&text, &Template::Chat, 99, Overflow::Error).unwrap();
    let lines = data.remarks.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    // bpe512 closes with another token than its EOS.
    assert!(
        lines[0].starts_with("3 rows: the last scored answer does not end in a token that ends a response"),
        "{lines:?}"
    );
    assert_eq!(lines[1], "2 rows: `name` is given to the chat template, which does not mention it");
    let mut closed = bpe512();
    closed.set_stop_ids(vec![4]);
    let rows = read(&row(""), DatasetType::Any, &[]).unwrap();
    assert_eq!(Dataset::build(&rows, &closed, &Template::Chat, LIMITS).unwrap().remarks.lines(), [""; 0]);
    let lines = build(&text, &Template::Paper, 99, Overflow::Error).unwrap().remarks.lines();
    assert_eq!(lines, ["2 rows: `name` of messages is left out: only --template chat can show it"]);
    let parts = r#"{"prompt":[{"role":"user","content":[{"type":"text","text":"q"}]}],"completion":"a"}"#;
    let lines = build(parts, &Template::Paper, 99, Overflow::Error).unwrap().remarks.lines();
    assert_eq!(lines, [""; 0], "parts are joined in a plain template");
}

/// An end that stands behind the generation tag is printed, and not learnt.
#[test]
fn an_end_outside_of_the_generation_tag_is_told() {
    let row = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;
    let rows = read(row, DatasetType::Any, &[]).unwrap();
    let told = |answer: &str| {
        let asks = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n";
        let source = format!(
            "{{% for m in messages %}}{{% if m.role == 'assistant' %}}<|im_start|>assistant\n{answer}{{% else %}}{asks}{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
        );
        let mut tokenizer = with_template(&source);
        tokenizer.set_stop_ids(vec![4]);
        let data = Dataset::build(&rows, &tokenizer, &Template::Chat, LIMITS).unwrap();
        data.remarks
            .lines()
            .iter()
            .filter(|line| line.starts_with("1 row: the last scored answer does not end"))
            .count()
    };
    assert_eq!(told("{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n"), 1);
    assert_eq!(told("{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}"), 0);
    assert_eq!(told("{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"), 0);
    assert_eq!(told("{{ m.content }}<|im_end|>\n"), 0);
}

#[test]
fn texts_that_the_template_leaves_out_are_told() {
    let only = |roles: &str| {
        format!(
            "{{% for m in messages if m.role in {roles} %}}<|im_start|>{{{{ m.role }}}}\n{{{{ m.content.split('</think>')[-1] | trim }}}}<|im_end|>\n{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
        )
    };
    let told = |roles: &str, row: &str| {
        let rows = read(row, DatasetType::Any, &[]).unwrap();
        let mut tokenizer = with_template(&only(roles));
        tokenizer.set_stop_ids(vec![4]);
        let lines = Dataset::build(&rows, &tokenizer, &Template::Chat, LIMITS).unwrap().remarks.lines();
        let kinds = ["leaves the text of", "both sides have the same tokens"];
        lines.into_iter().filter(|line| kinds.iter().any(|kind| line.contains(kind))).collect::<Vec<_>>()
    };
    let system = r#"{"system":"Rhyme.","prompt":"q","chosen":"b","rejected":"c"}"#;
    let lost = told("['user', 'assistant']", system);
    assert!(lost.len() == 1 && lost[0].starts_with("1 row: ") && lost[0].contains("`system`"), "{lost:?}");
    assert_eq!(told("['system', 'user', 'assistant']", system), [""; 0]);

    let thoughts =
        r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"<think>\nhm\n</think>\n\n a "}]}"#;
    let lost = told("['user', 'assistant']", thoughts);
    assert!(lost.len() == 1 && lost[0].contains("`<think>`"), "{lost:?}");

    let same = r#"{"prompt":[{"role":"user","content":"q"}],"chosen":"b","rejected":"b "}"#;
    let lost = told("['user', 'assistant']", same);
    assert!(lost.len() == 1 && lost[0].starts_with("1 row: both sides"), "{lost:?}");
}

#[test]
fn what_only_a_chat_template_can_show_needs_one() {
    for (key, row) in [
        ("tools", r#"{"prompt":"q","completion":"a","tools":[{"type":"function"}]}"#),
        ("chat_template_kwargs", r#"{"prompt":"q","completion":"a","chat_template_kwargs":{"enable_thinking":false}}"#),
        (
            "reasoning_content",
            r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a","reasoning_content":"r"}]}"#,
        ),
        (
            "tool_calls",
            r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":null,"tool_calls":[{"type":"function"}]}]}"#,
        ),
    ] {
        let error = build(row, &Template::Paper, 99, Overflow::Error).unwrap_err();
        assert!(error.contains(&format!("`{key}`")) && error.ends_with("--template chat"), "{error}");
    }
    for (row, reason) in [
        (r#"{"prompt":"q","completion":"a","tools":"[{"}"#, "field `tools`: is text, not a JSON list"),
        (r#"{"prompt":"q","completion":"a","tools":7}"#, "field `tools`: expected a list, found a number"),
        (
            r#"{"prompt":"q","completion":"a","chat_template_kwargs":[]}"#,
            "field `chat_template_kwargs`: expected an object, found a list",
        ),
        (
            r#"{"prompt":"q","completion":"a","chat_template_kwargs":{"documents":[]}}"#,
            "field `chat_template_kwargs.documents`: is set by the program, not by a row",
        ),
        (
            r#"{"prompt":"q","completion":"a","chat_template_kwargs":{"tokenize":true}}"#,
            "field `chat_template_kwargs.tokenize`: is set by the program, not by a row",
        ),
        (
            r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":null}]}"#,
            "field `messages[1].content`: expected text, found null",
        ),
        (
            r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":" "},{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#,
            "the response is empty",
        ),
        (
            r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"","tool_calls":[]}]}"#,
            "the response is empty",
        ),
    ] {
        assert_eq!(read(row, DatasetType::Any, &[]).unwrap_err(), format!("rows.jsonl:1: {reason}"));
    }
    // Under the file's own names.
    let maps = ["tools=functions", "chat_template_kwargs=options"];
    for (more, reason) in [
        (r#""functions":"[{""#, "field `functions`: is text, not a JSON list"),
        (r#""functions":7"#, "field `functions`: expected a list, found a number"),
        (r#""options":[]"#, "field `options`: expected an object, found a list"),
        (r#""options":{"tools":[]}"#, "field `options.tools`: is set by the program, not by a row"),
    ] {
        let row = format!(r#"{{"prompt":"q","completion":"a",{more}}}"#);
        assert_eq!(read(&row, DatasetType::Any, &maps).unwrap_err(), format!("rows.jsonl:1: {reason}"));
    }
}

/// Two messages are one prompt only where all their keys agree.
#[test]
fn implicit_prompts_compare_every_key() {
    let side = |name: &str, answer: &str| {
        format!(r#"[{{"role":"user","content":"q","name":"{name}"}},{{"role":"assistant","content":"{answer}"}}]"#)
    };
    let row = |a: &str, b: &str| format!(r#"{{"chosen":{},"rejected":{}}}"#, side(a, "x"), side(b, "y"));
    let RowContent::Preference { chosen, rejected } = one(&row("Ann", "Ann")) else { panic!() };
    assert_eq!(chosen.instruction, rejected.instruction);
    assert_eq!(chosen.instruction.conversation().messages.len(), 1);
    let error = read(&row("Ann", "Bo"), DatasetType::Preference, &[]).unwrap_err();
    assert!(error.contains("share their first 0"), "{error}");
}

/// A completion of several messages scores the assistant's, on both sides, by what prefixes say even where the template has tags.
#[test]
fn completions_of_several_messages() {
    let said = |word: &str| {
        format!(
            r#"[{{"role":"assistant","content":"{word}"}},{{"role":"tool","content":"t"}},{{"role":"assistant","content":"{word}{word}"}}]"#
        )
    };
    let row =
        format!(r#"{{"prompt":[{{"role":"user","content":"q"}}],"chosen":{},"rejected":{}}}"#, said("x"), said("y"));
    let data = build(&row, &Template::Chat, 99, Overflow::Error).unwrap();
    for side in &data.examples[0].sequences {
        let scored: Vec<u32> =
            side.ids.iter().enumerate().filter(|(i, _)| side.is_response(*i)).map(|(_, id)| *id).collect();
        let text = bpe512().decode_all(&scored).unwrap();
        assert!(["x<|im_end|>\nxx<|im_end|>\n", "y<|im_end|>\nyy<|im_end|>\n"].contains(&text.as_str()), "{text}");
        assert_eq!(side.between.len(), 1);
    }
    // A prompt that the sides repeat is no part of them.
    let again = |word: &str| said(word).replacen('[', r#"[{"role":"user","content":"q"},"#, 1);
    let repeated =
        format!(r#"{{"prompt":[{{"role":"user","content":"q"}}],"chosen":{},"rejected":{}}}"#, again("x"), again("y"));
    assert_eq!(one(&repeated), one(&row));
    // A label is of the whole completion, and of a conversation's last answer.
    let labelled = format!(r#"{{"prompt":[{{"role":"user","content":"q"}}],"completion":{},"label":true}}"#, said("x"));
    let RowContent::Labelled(text, true) = one(&labelled) else { panic!() };
    assert_eq!(text.response.messages().len(), 3);
    let RowContent::Labelled(text, true) = one(&format!(r#"{{"messages":{},"label":true}}"#, again("x"))) else {
        panic!()
    };
    assert_eq!((text.response.messages().len(), text.instruction.conversation().messages.len()), (1, 3));
    // The same tokens with another mask are other data.
    let mut changed = data.clone();
    changed.examples[0].sequences[0].between.clear();
    assert_ne!(data.content_hash(), changed.content_hash());
}

/// What is scored stays scored where the prompt is cut, and the paper's cut of a response takes its turns along.
#[test]
fn cuts_keep_the_turns() {
    let row = r#"{"messages":[{"role":"user","content":"A long question with many words"},{"role":"assistant","content":"one"},{"role":"user","content":"more"},{"role":"assistant","content":"two"}]}"#;
    let whole = build(row, &Template::Chat, 999, Overflow::Error).unwrap().examples.remove(0).sequences.remove(0);
    let max = whole.ids.len() - 5;
    let cut =
        build(row, &Template::Chat, max, Overflow::TruncatePrompt).unwrap().examples.remove(0).sequences.remove(0);
    assert_eq!(cut.ids, whole.ids[5..]);
    assert_eq!(mask(&cut), mask(&whole)[5..]);
    assert_eq!((cut.n_response(), cut.between.len()), (whole.n_response(), 1));
    // No more than stands before the first answer.
    let error =
        build(row, &Template::Chat, whole.ids.len() - whole.response_start, Overflow::TruncatePrompt).unwrap_err();
    assert!(error.contains("no row fits"), "{error}");

    let said = r#"[{"role":"assistant","content":"one"},{"role":"user","content":"more words than fit into it"},{"role":"assistant","content":"two"}]"#;
    let pair = format!(
        r#"{{"prompt":[{{"role":"user","content":"Q"}}],"chosen":{said},"rejected":[{{"role":"assistant","content":"x"}}]}}"#
    );
    let whole = build(&pair, &Template::Chat, 999, Overflow::Paper).unwrap().examples.remove(0).sequences.remove(0);
    let characters = bpe512().decode_all(&whole.ids).unwrap().chars().count();
    // The fewest characters that are not too many; far more tokens than half of them.
    let limit = characters.max(whole.ids.len());
    let kept = build(&pair, &Template::Chat, limit, Overflow::Paper).unwrap().examples.remove(0).sequences.remove(0);
    assert!(kept.between.iter().all(|range| range.end <= kept.ids.len()), "{kept:?}");
    assert_eq!(mask(&kept), mask(&whole)[..kept.ids.len()]);
}

#[test]
fn check_shows_every_turn() {
    let row = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"one"},{"role":"user","content":"r"},{"role":"assistant","content":"two"}]}"#;
    let data = build(row, &Template::Chat, 99, Overflow::Error).unwrap();
    let report = check(&data, &bpe512(), 1);
    let tokens = &report.rows[0].sides[0].tokens;
    let scored: String = tokens.iter().filter(|t| t.conditional).map(|t| t.text.as_str()).collect();
    assert_eq!(scored, "one<|im_end|>\\ntwo<|im_end|>\\n");
    assert_eq!(report.n_scored_conditional, tokens.iter().filter(|t| t.conditional).count());
    assert!(tokens[1..].iter().all(|t| t.joint) && report.n_scored_joint == tokens.len() - 1);
    assert_eq!(report.remarks.len(), 1);
}

/// A model folder with these files beside bpe512's tokenizer.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("bpe512/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[test]
fn templates_have_names() {
    let prints = |word: &str| format!("{word}{{{{ messages[0].content }}}}");
    let (a, b, c) = (prints("a"), prints("b"), prints("c"));
    let list = |names: &[(&str, &str)]| {
        let list: Vec<Value> = names.iter().map(|(n, t)| serde_json::json!({"name": n, "template": t})).collect();
        serde_json::json!({"bos_token": "<|bos|>", "chat_template": list}).to_string()
    };
    let said = |tokenizer: &Tokenizer, instruction: &Instruction| {
        let ids = tokenizer.encode_prompt(instruction, &Template::Chat);
        ids.map(|ids| tokenizer.decode_all(&ids).unwrap())
    };
    let plain = asked(&[("user", "x")]);
    let with_tools = plain.clone().with_inputs(jointwise::data::rows::TemplateInputs {
        tools: Some(serde_json::json!([])),
        ..Default::default()
    });

    // transformers: the default; rows with tools go to `tool_use` where there is one.
    let two = list(&[("tool_use", &b), ("default", &a)]);
    let dir = folder(&[("tokenizer_config.json", &two)]);
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(said(&tokenizer, &plain).as_deref(), Ok("ax"));
    assert_eq!(said(&tokenizer, &with_tools).as_deref(), Ok("bx"));
    let digest = tokenizer.chat_templates().digest();
    let mut chosen = Tokenizer::load(dir.path()).unwrap();
    chosen.choose_chat_template("tool_use").unwrap();
    assert_eq!(said(&chosen, &plain).as_deref(), Ok("bx"));
    assert_ne!(chosen.chat_templates().digest(), digest);

    // Files win over tokenizer_config.json, and lie by name in a folder.
    let dir = folder(&[
        ("tokenizer_config.json", &two),
        ("additional_chat_templates/rag.jinja", &c),
        ("chat_template.jinja", &b),
    ]);
    let mut tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(said(&tokenizer, &plain).as_deref(), Ok("bx"));
    tokenizer.choose_chat_template("rag").unwrap();
    assert_eq!(said(&tokenizer, &with_tools).as_deref(), Ok("cx"));
    // Several and no default: refused with the names.
    let dir = folder(&[("tokenizer_config.json", &list(&[("rag", &a), ("tool_use", &b)]))]);
    let mut tokenizer = Tokenizer::load(dir.path()).unwrap();
    let error = tokenizer.check_template(&Template::Chat).unwrap_err().to_string();
    assert!(error.contains("rag, tool_use") && error.contains("--chat-template"), "{error}");
    let error = tokenizer.choose_chat_template("rga").unwrap_err().to_string();
    assert_eq!(
        error,
        "--chat-template: `rga` is neither a file nor a template's name; the tokenizer has rag, tool_use"
    );
    // A file of one's own, and its content alone in the digest.
    let own: Vec<PathBuf> = ["one.jinja", "two.jinja"].map(|name| dir.path().join(name)).into();
    own.iter().for_each(|path| std::fs::write(path, &c).unwrap());
    let digests: Vec<String> = own
        .iter()
        .map(|path| {
            tokenizer.choose_chat_template(path.to_str().unwrap()).unwrap();
            assert_eq!(said(&tokenizer, &plain).as_deref(), Ok("cx"));
            assert_eq!(tokenizer.chat_templates().chosen_source(), Some(c.as_str()));
            tokenizer.chat_templates().digest()
        })
        .collect();
    assert_eq!(digests[0], digests[1]);
    std::fs::write(&own[0], "{% if %}").unwrap();
    let error = tokenizer.choose_chat_template(own[0].to_str().unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("--chat-template: ") && error.contains("one.jinja: chat template, line 1"), "{error}");
    // A processor's file, where there is no other.
    let processor = serde_json::json!({"chat_template": c}).to_string();
    let dir = folder(&[("chat_template.json", &processor)]);
    assert_eq!(said(&Tokenizer::load(dir.path()).unwrap(), &plain).as_deref(), Ok("cx"));
}

#[test]
fn a_date_stands_still() {
    let tokenizer = with_template("{{ strftime_now('%Y-%m-%d %H:%M:%S') }}{{ messages[0].content }}");
    assert!(tokenizer.chat_templates().prints_time() && !bpe512().chat_templates().prints_time());
    let said = || tokenizer.encode_prompt(&asked(&[("user", "x")]), &Template::Chat).unwrap();
    let first = said();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(said(), first);
    tokenizer.chat_templates().set_time(86_400);
    assert_eq!(tokenizer.decode_all(&said()).unwrap(), "1970-01-02 00:00:00x");
}
