//! Verdicts in texts, end to end: endpoints that think, programs that chat, answers that are cut, refused or formatted, in `judge`, `evaluate`
//! and `study`.
#![allow(clippy::unwrap_used)]

mod program;
mod server;

use std::fs;

use program::{Ran, Sandbox};
use serde_json::{Value, json};
use server::{Act, Server, behind, judged};

/// Rows whose first response is the larger number.
fn sandbox(n: usize) -> Sandbox {
    let sandbox = Sandbox::new();
    let row = |i: usize| json!({"instruction": format!("Larger? {i}"), "response_0": (20 + i).to_string(), "response_1": i.to_string()});
    sandbox.write("rows.jsonl", (0..n).map(|i| row(i).to_string() + "\n").collect::<String>());
    sandbox
}

fn run(s: &Sandbox, args: &[&str]) -> Ran {
    let mut command = s.command(args);
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "JOINTWISE_API_KEY", "OPENAI_API_KEY"] {
        command.env_remove(name);
    }
    Ran::of(&mut command)
}

fn args<'a>(server: &'a Server, more: &[&'a str]) -> Vec<&'a str> {
    let all = ["judge", "--data", "rows.jsonl", "--endpoint", &server.url, "--judge-model", "m"];
    let out: &[&str] = if more.contains(&"--output-dir") { &[] } else { &["--output-dir", "out"] };
    [&all[..], &["--retries", "0", "--concurrency", "1"], out, more].concat()
}

fn lines(s: &Sandbox, name: &str) -> Vec<Value> {
    fs::read_to_string(s.path(name)).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn verdicts(s: &Sandbox) -> Vec<String> {
    lines(s, "out/annotated.jsonl").iter().map(|row| row["verdict"].as_str().unwrap().into()).collect()
}

/// A completion with this message, and how it ended.
fn completion(message: Value, finish_reason: &str) -> Act {
    let body = json!({
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 50},
    });
    Act::Status(200, String::new(), body.to_string())
}

/// Letters of the better and of the worse output, small and large.
fn letters(body: &Value) -> [&'static str; 4] {
    if judged(body) == "Output (a)" { ["a", "b", "A", "B"] } else { ["b", "a", "B", "A"] }
}

/// How a judge answers: with the letters of [`letters`], a message and how it ended.
type Style = fn([&str; 4]) -> (Value, &'static str);

#[test]
fn answers_of_every_kind_are_read_rightly_or_not_at_all() {
    let text = |content: String| json!({"role": "assistant", "content": content});
    // Styles that must be read.
    let certain: &[Style] = &[
        |[g, o, ..]| (json!({"content": format!("<think>\n({o}) leaves out half.\n</think>\n\nOutput ({g})")}), "stop"),
        |[_, o, large, _]| {
            (json!({"content": format!("<think>\nOutput ({o}) is better, no.\n</think>\n\n{large}")}), "stop")
        },
        |[g, o, ..]| (json!({"content": format!("({o}) is short.\n</think>\n\nOutput ({g})")}), "stop"),
        |[_, o, large, _]| (json!({"content": format!("Output ({o}) leaves out half. \\boxed{{{large}}}")}), "stop"),
        |[_, _, large, other]| {
            (json!({"content": format!("Assistant {other} is fluent.\n\nFinal verdict: [[{large}]]")}), "stop")
        },
        |[_, _, large, _]| (json!({"content": format!("Feedback: It is right. [RESULT] {large}")}), "eos"),
        |[g, o, ..]| (json!({"content": format!("({g})"), "reasoning_content": format!("Output ({o})")}), "stop"),
        |[g, o, ..]| (json!({"content": format!("({g})"), "reasoning": format!("Output ({o})")}), "STOP"),
        |[g, o, ..]| {
            let parts = json!([
                {"type": "thinking", "thinking": [{"type": "text", "text": format!("Output ({o})")}]},
                {"type": "text", "text": format!("Output ({g})")},
            ]);
            (json!({"content": parts}), "stop")
        },
        |[g, o, ..]| (json!({"content": format!("{{\"reason\": \"({o}) is wrong\", \"winner\": \"{g}\"}}")}), "stop"),
        // Servers that enforce JSON may go on with white space.
        |[g, ..]| (json!({"content": format!("{{\"winner\": \"Output ({g})\"}}\n\n\n")}), "length"),
        |[_, _, large, _]| (json!({"content": format!("最终答案：（{large}）")}), "stop"),
    ];
    for (i, style) in certain.iter().enumerate() {
        let style = *style;
        let server = Server::start(move |_, body| {
            let (message, ended) = style(letters(body));
            completion(message, ended)
        });
        let s = sandbox(2);
        let ran = run(&s, &args(&server, &[])).ok();
        assert_eq!(verdicts(&s), ["first", "first"], "style {i}: {}", ran.stderr);
        assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
    }
    // Styles that are no answer, why, and how many of two answers count as cut.
    let unsure: &[(Style, &str, u64)] = &[
        (
            |[_, o, ..]| (json!({"content": format!("<think>\nLet me begin with output ({o}). It")}), "length"),
            "cut off",
            2,
        ),
        (|[_, o, ..]| (json!({"content": format!("Output ({o})")}), "length"), "cut off", 2),
        (|_| (json!({"content": null, "reasoning_content": "Output (a)"}), "length"), "cut off", 2),
        (|_| (json!({"content": "<think>Output (a)"}), "stop"), "cut off", 2),
        (|_| (json!({"content": "", "reasoning_content": "Output (a)"}), "stop"), "no text", 0),
        (|_| (json!({"content": null, "refusal": "I can't judge (a)."}), "stop"), "a refusal", 0),
        (|_| (json!({"content": [{"type": "refusal", "refusal": "(a)"}]}), "stop"), "a refusal", 0),
        (|_| (json!({"content": "Output (a)"}), "content_filter"), "ended by the endpoint", 0),
        (
            |_| {
                (
                    json!({"content": null, "tool_calls": [{"function": {"name": "judge", "arguments": "{\"winner\": \"a\"}"}}]}),
                    "tool_calls",
                )
            },
            "a tool call",
            0,
        ),
        (|[_, o, ..]| (json!({"content": format!("Not ({o}).")}), "stop"), "no answer: `Not (", 0),
        (|[g, o, ..]| (json!({"content": format!("Output ({o}) is worse than output ({g})")}), "stop"), "no answer", 0),
        (|[g, o, ..]| (json!({"content": format!("Answer: ({o})\nAnswer: ({g})")}), "stop"), "no answer", 0),
    ];
    for (i, (style, why, cut)) in unsure.iter().enumerate() {
        let style = *style;
        let server = Server::start(move |_, body| {
            let (message, ended) = style(letters(body));
            completion(message, ended)
        });
        let s = sandbox(1);
        let ran = run(&s, &args(&server, &["--json"])).ok();
        assert_eq!(verdicts(&s), ["no_answer"], "style {i}");
        let summary = &ran.lines()[0];
        assert_eq!((&summary["cut"], &summary["no_answer"]), (&json!(cut), &json!(1)), "style {i}: {summary}");
        assert!(ran.stderr.contains(why), "style {i}: {}", ran.stderr);
        assert_eq!(
            ran.stderr.contains("2 answers were cut off before a verdict: raise --max-tokens"),
            *cut > 0,
            "{}",
            ran.stderr
        );
        assert!(ran.stderr.contains("warning: 2 of 2 answers (100 %) have no verdict"), "style {i}: {}", ran.stderr);
        assert!(!fs::read_to_string(s.path("out/answers.jsonl")).unwrap().contains("\"choice\":\""), "style {i}");
    }
    // A few are no reason for a warning, and an example is no way to write to a terminal.
    let evil = text("I like both.\u{1b}[2J\u{202e}".into());
    for (n, warns) in [(2, true), (1, false)] {
        let evil = evil.clone();
        let server = Server::start(move |i, _| if i < n { completion(evil.clone(), "stop") } else { Act::Judge });
        let ran = run(&sandbox(3), &args(&server, &[])).ok();
        assert_eq!(ran.stderr.contains("warning: 2 of 6 answers (33 %)"), warns, "{}", ran.stderr);
        assert!(ran.stderr.contains("\\u{1b}[2J\\u{202e}`") && !ran.stderr.contains('\u{1b}'), "{}", ran.stderr);
    }
}

#[test]
fn what_has_no_verdict_costs_all_the_same() {
    let server = Server::start(|_, _| {
        let usage = json!({"prompt_tokens": 0, "completion_tokens": 1_000_000});
        let body = json!({"choices": [{"message": {"content": null}, "finish_reason": "length"}], "usage": usage});
        Act::Status(200, String::new(), body.to_string())
    });
    let ran = run(&sandbox(5), &args(&server, &["--price-in", "0", "--price-out", "1", "--max-cost", "3"]));
    assert_eq!((ran.status, server.requests().len()), (130, 3), "{}", ran.stderr);
}

#[test]
fn the_format_is_asked_for_where_it_is_taken() {
    let in_json = |body: &Value| body["response_format"]["type"] == "json_schema";
    let formatted = move |body: &Value| match in_json(body) {
        true => completion(json!({"content": json!({"winner": judged(body)}).to_string()}), "stop"),
        false => completion(json!({"content": judged(body)}), "stop"),
    };
    // Our prompt, in JSON.
    let (s, server) = (sandbox(2), Server::start(move |_, body| formatted(body)));
    run(&s, &args(&server, &[])).ok();
    let body = &server.requests()[0].body;
    assert!(in_json(body) && body["max_tokens"] == 1024, "{body}");
    assert_eq!(
        body["response_format"]["json_schema"]["schema"]["properties"]["winner"]["enum"],
        json!(["Output (a)", "Output (b)"])
    );
    assert_eq!(verdicts(&s), ["first", "first"]);
    for (format, tokens, is_json) in [("json", 64, true), ("letter", 16, false), ("auto", 1024, true)] {
        let (s, server) = (sandbox(1), Server::start(move |_, body| formatted(body)));
        let ran = run(&s, &args(&server, &["--answer-format", format])).ok();
        let body = &server.requests()[0].body;
        assert_eq!((in_json(body), &body["max_tokens"]), (is_json, &json!(tokens)), "{format}");
        assert!(ran.stderr.contains(&format!("at most {} out", 2 * tokens)), "{}", ran.stderr);
        assert_eq!(verdicts(&s), ["first"], "{format}");
    }
    // A prompt of one's own says how it is answered; a request of one's own as well.
    let (s, server) = (sandbox(1), Server::start(move |_, body| formatted(body)));
    s.write("own.txt", "Output (a):\n{response_a}\n\nOutput (b):\n{response_b}\n\nThink first. {instruction}");
    run(&s, &args(&server, &["--prompt", "own.txt"])).ok();
    let own = r#"{"response_format": {"type": "text"}, "max_tokens": null, "max_completion_tokens": 500}"#;
    let ran = run(&s, &args(&server, &["--output-dir", "two", "--request", own])).ok();
    assert!(ran.stderr.contains("at most 1000 out"), "{}", ran.stderr);
    let bodies: Vec<Value> = server.requests().into_iter().map(|request| request.body).collect();
    assert!(bodies[0].get("response_format").is_none() && bodies[2]["response_format"]["type"] == "text");
    // Without a limit there is no cost to hold.
    let unlimited = ["--request", r#"{"max_tokens": null}"#, "--price-in", "1", "--price-out", "1"];
    let ran = run(&s, &args(&server, &[&unlimited[..], &["--output-dir", "three"]].concat())).ok();
    assert!(ran.stderr.contains("no limit on tokens out; cost unknown"), "{}", ran.stderr);
    let more = ["--output-dir", "four", "--max-cost", "9"];
    run(&s, &args(&server, &[&unlimited[..], &more].concat())).said(2, &["--max-cost", "--request"]);
}

#[test]
fn an_endpoint_without_formats_is_asked_in_text() {
    for (status, message) in [
        (400, json!({"error": {"message": "Unrecognized request argument supplied: response_format"}})),
        (422, json!({"detail": [{"loc": ["body", "response_format", "type"], "msg": "unexpected value"}]})),
        (400, json!({"error": {"message": "This response_format type is unavailable now"}})),
        // Of llama-cpp-python's server 0.3.
        (
            500,
            json!({"error": {"message": "1 validation error:\n  {'type': 'literal_error', 'loc': ('body', 'response_format', 'type'), 'msg': \"Input should be 'text' or 'json_object'\"}", "type": "internal_server_error"}}),
        ),
    ] {
        let said = message.to_string();
        let refuses = move |_: usize, body: &Value| match body.get("response_format") {
            Some(_) => Act::Status(status, String::new(), said.clone()),
            None => Act::Judge,
        };
        let (s, server) = (sandbox(3), Server::start(refuses.clone()));
        let ran = run(&s, &args(&server, &[])).ok();
        assert_eq!(server.requests().len(), 7, "one question is asked twice");
        assert_eq!(ran.stderr.matches("note: the endpoint does not take response_format").count(), 1, "{}", ran.stderr);
        assert_eq!(verdicts(&s), ["first"; 3]);
        let (s, server) = (sandbox(3), Server::start(refuses));
        run(&s, &args(&server, &["--answer-format", "json"]))
            .said(2, &["--answer-format", "response_format", "auto or letter"]);
        assert_eq!(server.requests().len(), 1);
    }
    // Another error is another error.
    let server =
        Server::start(|_, _| Act::Status(400, String::new(), json!({"error": {"message": "too long"}}).to_string()));
    let ran = run(&sandbox(1), &args(&server, &[]));
    ran.said(1, &["2 questions without an answer"]);
    assert_eq!(server.requests().len(), 2);
    let s = sandbox(1);
    s.refused(
        &["judge", "--data", "rows.jsonl", "--grader", "--answer-format", "json", "--output-dir", "out"],
        &["--answer-format", "--endpoint"],
    );
    s.refused(
        &["judge", "--data", "rows.jsonl", "--grader", "--answer", "generate", "--output-dir", "out"],
        &["--answer", "--model"],
    );
}

#[test]
fn answers_that_an_earlier_version_kept_are_read_anew() {
    let (s, server) = (sandbox(3), Server::start(|_, _| Act::Judge));
    let letter = args(&server, &["--answer-format", "letter"]);
    run(&s, &letter).ok();
    // As the first version kept what thinking models say: the side that occurs in the thoughts, and whatever stands in a text that was cut.
    let path = s.path("out/answers.jsonl");
    let mut kept: Vec<Value> = lines(&s, "out/answers.jsonl");
    // Nor had its lines checksums.
    kept[1..].iter_mut().for_each(|line| drop(line.as_object_mut().unwrap().remove("crc32c")));
    assert!(kept[0]["judge"].get("answer_format").is_none(), "the first version had no formats, and its runs go on");
    for (line, good) in [(1, "A"), (2, "B")] {
        let other = if good == "A" { "b" } else { "a" };
        kept[line]["text"] = format!("<think>\nOutput ({other}) leaves out half.\n</think>\n\n{good}").into();
        kept[line]["choice"] = other.into();
    }
    kept[3]["text"] = "<think>\nLet me begin with output (b). It".into();
    kept[3]["choice"] = "b".into();
    // As many tokens as it might have: what would have followed is not known.
    kept[4]["text"] = "Output (b) is better".into();
    kept[4]["choice"] = "b".into();
    kept[4]["usage"]["completion_tokens"] = 16.into();
    fs::write(&path, kept.iter().map(|line| line.to_string() + "\n").collect::<String>()).unwrap();
    let before = server.requests().len();
    let ran = run(&s, &[&letter[..], &["--resume"]].concat()).ok();
    assert!(ran.stderr.contains("2 verdicts are another one, 2 are no answer now, 0 were none"), "{}", ran.stderr);
    assert_eq!(server.requests().len() - before, 0, "what was cut would be cut again");
    run(&s, &[&letter[..], &["--resume", "--max-tokens", "32"]].concat()).ok();
    assert_eq!(server.requests().len() - before, 2, "what was cut is asked again with more tokens");
    assert_eq!(verdicts(&s), ["first"; 3]);
    run(&s, &[&args(&server, &[])[..], &["--resume"]].concat()).said(2, &["--resume", "answer_format", "auto"]);
}

#[cfg(unix)]
#[test]
fn a_command_may_think_aloud() {
    let s = sandbox(2);
    s.write(
        "judge.sh",
        r#"read -r row
a=${row#*\"response_a\":\"}; a=${a%%\"*}
b=${row#*\"response_b\":\"}; b=${b%%\"*}
if [ "$a" -gt "$b" ]; then g=A; o=B; else g=B; o=A; fi
printf '<think>\nOutput (%s) is better?\n</think>\n\n**Answer:** %s\n\nI hope this helps!\n' $o $g
"#,
    );
    s.run(&["judge", "--data", "rows.jsonl", "--command", "sh judge.sh", "--output-dir", "out"]).ok();
    assert_eq!(verdicts(&s), ["first", "first"]);
}

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");

/// Thinks of the shorter output, and answers with the longer.
fn longer(_: usize, body: &Value) -> Act {
    let prompt = body["messages"][0]["content"].as_str().unwrap();
    let [a, b] = ["Output (a):\n", "Output (b):\n"].map(|heading| behind(prompt, heading).chars().count());
    let [good, other] = if a > b { ["a", "b"] } else { ["b", "a"] };
    Act::Say(format!("<think>\nOutput ({other}) is shorter, so it is better.\n</think>\n\nOutput ({good}) is better."))
}

#[test]
fn evaluate_reads_the_same_answers() {
    let s = Sandbox::new();
    let rows = ["What is 2 plus 3?", "Spell the word fox."]
        .map(|text| json!({"instruction": text, "gold_response": "x".repeat(400)}));
    s.write("test.jsonl", rows.map(|row| row.to_string() + "\n").concat());
    let server = Server::start(longer);
    let base = ["evaluate", "--model", MODEL, "--data", "test.jsonl", "--temperatures", "0", "--max-new-tokens", "8"];
    let endpoint = ["--endpoint", &server.url, "--judge-model", "m", "--output-dir", "out"];
    let ran = run(&s, &[&base[..], &endpoint].concat()).ok();
    assert!(ran.stderr.contains("at most 4096 out"), "{}", ran.stderr);
    let found: Value = serde_json::from_str(&fs::read_to_string(s.path("out/results.json")).unwrap()).unwrap();
    assert_eq!(found["methods"][0]["losses"], 2, "gold is longer, always: {}", found["methods"][0]);
    // What was cut is told with this command's flag.
    let cut = Server::start(|_, _| completion(json!({"content": "<think>Output (a)"}), "length"));
    let more = [
        "--endpoint",
        &cut.url,
        "--judge-model",
        "m",
        "--output-dir",
        "two",
        "--judge-max-tokens",
        "7",
        "--answer-format",
        "letter",
    ];
    let ran = run(&s, &[&base[..], &more].concat()).ok();
    assert!(ran.stderr.contains("4 answers were cut off before a verdict: raise --judge-max-tokens"), "{}", ran.stderr);
    assert!(
        cut.requests()
            .iter()
            .all(|request| request.body["max_tokens"] == 7 && request.body.get("response_format").is_none())
    );
}

#[test]
fn a_study_reads_the_same_answers() {
    let s = Sandbox::new();
    let server = Server::start(longer);
    let study = |more: &str| {
        let url = &server.url;
        format!(
            "model = {MODEL:?}\nseeds = [0]\n[tasks]\nprompts = 8\ntest = 4\n[sample]\ntemperature = 1.0\nmax-new-tokens = 12\n\
             [judge]\nendpoint = \"{url}\"\njudge-model = \"m\"\n{more}\n[train]\nbatch-size = 4\nmax-steps = 1\n\
             [[methods]]\nname = \"DPO\"\nobjective = \"dpo\"\nconditional = 1.0\n[evaluate]\ngrader = true\ntemperatures = [0.0]\n\
             max-new-tokens = 12\n"
        )
    };
    s.write("study.toml", study("answer-format = \"xml\""));
    s.refused(&["study", "study.toml", "--output-dir", "bad"], &["study.toml", "judge.answer-format"]);
    s.write("study.toml", study("answer-format = \"letter\"\nmax-tokens = 300"));
    run(&s, &["study", "study.toml", "--output-dir", "out"]).ok();
    let rows = lines(&s, "out/conditional/annotated.jsonl");
    let length = |row: &Value, name: &str| row[name].as_str().unwrap().trim().chars().count();
    let mut decided = 0;
    for row in &rows {
        let expected = match length(row, "response_0").cmp(&length(row, "response_1")) {
            std::cmp::Ordering::Greater => "first",
            std::cmp::Ordering::Less => "second",
            std::cmp::Ordering::Equal => "tie",
        };
        decided += usize::from(expected != "tie");
        assert_eq!(row["verdict"], expected, "{row}");
    }
    assert!(decided > 0, "nothing was decided");
    assert!(server.requests().iter().all(|request| request.body["max_tokens"] == 300));
}

#[test]
fn a_local_model_may_write_its_answer() {
    let s = sandbox(1);
    s.write("ask.txt", "{instruction} {response_a} {response_b}");
    let judge = ["judge", "--data", "rows.jsonl", "--model", MODEL, "--prompt", "ask.txt"];
    let ran =
        run(&s, &[&judge[..], &["--answer", "generate", "--max-tokens", "12", "--output-dir", "out"]].concat()).ok();
    // It has learnt to say something else, which is no verdict, and no log-probabilities are compared.
    assert!(ran.stderr.contains("no answer") && ran.stderr.contains("warning: 2 of 2 answers"), "{}", ran.stderr);
    let answers = lines(&s, "out/answers.jsonl");
    assert_eq!(answers[0]["judge"]["max_tokens"], 12);
    assert!(
        answers[1]["text"].as_str().is_some_and(|text| !text.is_empty()) && answers[1].get("logps").is_none(),
        "{}",
        answers[1]
    );
    assert!(answers[1]["usage"]["completion_tokens"].as_u64().is_some_and(|n| (1..=12).contains(&n)), "{}", answers[1]);
    // A template that opens a thought: what is written is a thought until it is closed, and a first letter is none of the answer.
    s.write("thinks.jinja", "{{ messages[0].content }}<think>\n");
    let thinks = [&judge[..], &["--chat-template", "thinks.jinja"]].concat();
    let ran = run(
        &s,
        &[&thinks[..], &["--answer", "generate", "--max-tokens", "12", "--output-dir", "two", "--json"]].concat(),
    )
    .ok();
    assert_eq!(ran.lines()[0]["cut"], 2, "{}", ran.stdout);
    assert!(lines(&s, "two/answers.jsonl")[1]["text"].as_str().unwrap().starts_with("<think>"));
    for (judge, more, is_told) in [
        (&thinks[..], &["--output-dir", "three"][..], true),
        (&judge[..], &["--output-dir", "four", "--template", "none"][..], false),
    ] {
        let ran = run(&s, &[judge, more].concat()).ok();
        assert_eq!(ran.stderr.contains("thinks before it answers"), is_told, "{}", ran.stderr);
    }
    // A mark in a row's text opens no thought of the answer.
    s.write("marked.jsonl", "{\"instruction\": \"I\", \"response_0\": \"<think> x\", \"response_1\": \"y\"}\n");
    let marked = ["judge", "--data", "marked.jsonl", "--model", MODEL, "--prompt", "ask.txt", "--answer", "generate"];
    run(&s, &[&marked[..], &["--max-tokens", "12", "--output-dir", "six"]].concat()).ok();
    let answers = lines(&s, "six/answers.jsonl");
    assert!(answers[1..].iter().all(|line| !line["text"].as_str().unwrap().starts_with("<think>")), "{answers:?}");
    s.refused(
        &[&judge[..], &["--max-tokens", "3", "--output-dir", "five"]].concat(),
        &["--max-tokens", "--answer generate"],
    );
    s.refused(
        &[&judge[..], &["--answer", "generate", "--max-tokens", "100000", "--output-dir", "five"]].concat(),
        &["--max-tokens", "positions"],
    );
}
