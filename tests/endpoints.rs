//! `jointwise judge` against servers as people run them: ones that refuse what is too long, count requests, answer slowly, move, compress,
//! stream, or say what nobody can read.
#![allow(clippy::unwrap_used)]

mod program;
mod server;

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use program::{Ran, Sandbox};
use serde_json::{Value, json};
use server::{Act, Server, behind, completion, judged, limited};

/// Rows whose first response is the larger number.
fn sandbox(n: usize) -> Sandbox {
    let sandbox = Sandbox::new();
    let row = |i: usize| json!({"instruction": format!("Larger? {i}"), "response_0": (1000 + i).to_string(), "response_1": i.to_string()});
    sandbox.write("rows.jsonl", (0..n).map(|i| row(i).to_string() + "\n").collect::<String>());
    sandbox
}

fn command(s: &Sandbox, args: &[&str]) -> std::process::Command {
    let mut command = s.command(args);
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "JOINTWISE_API_KEY", "OPENAI_API_KEY"] {
        command.env_remove(name);
    }
    command
}

fn run(s: &Sandbox, args: &[&str]) -> Ran {
    Ran::of(&mut command(s, args))
}

/// Asks `url`, one question at a time and with short pauses, unless `more` says otherwise.
fn args_of<'a>(url: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["judge", "--data", "rows.jsonl", "--endpoint", url];
    for (flag, value) in
        [("--judge-model", "m"), ("--backoff", "0.05"), ("--concurrency", "1"), ("--output-dir", "out")]
    {
        if !more.contains(&flag) {
            all.extend([flag, value]);
        }
    }
    all.extend_from_slice(more);
    all
}

fn args<'a>(server: &'a Server, more: &[&'a str]) -> Vec<&'a str> {
    args_of(&server.url, more)
}

fn file(s: &Sandbox, name: &str) -> String {
    fs::read_to_string(s.path(name)).unwrap()
}

fn verdicts(s: &Sandbox) -> Vec<String> {
    let verdict = |line: &str| serde_json::from_str::<Value>(line).unwrap()["verdict"].as_str().unwrap().to_string();
    file(s, "out/annotated.jsonl").lines().map(verdict).collect()
}

/// The number of the row that a request is about.
fn row_of(body: &Value) -> usize {
    let prompt = body["messages"][0]["content"].as_str().unwrap();
    let [a, b] = ["Output (a):\n", "Output (b):\n"].map(|heading| behind(prompt, heading).parse::<usize>().unwrap());
    a.min(b)
}

#[test]
fn questions_that_never_fit_keep_no_others_from_being_asked() {
    let too_long = json!({"error": {"message": "Requested tokens exceed context window of 2048", "code": "context"}});
    let refuse = move |body: &Value, ids: std::ops::Range<usize>| match ids.contains(&row_of(body)) {
        true => Act::Status(400, String::new(), too_long.to_string()),
        false => Act::Judge,
    };
    // Ten questions of five rows come first. The endpoint has answered nothing then: it may be at fault.
    let first = refuse.clone();
    let (s, server) = (sandbox(13), Server::start(move |_, body| first(body, 0..5)));
    run(&s, &args(&server, &[])).said(1, &["10 questions in a row have no answer", "context window"]);
    let ran = run(&s, &args(&server, &["--resume"]));
    ran.said(1, &["10 questions without an answer"]);
    assert_eq!(server.requests().len(), 10 + 26, "all of the others are asked, and the ten once more, behind them");
    assert_eq!(verdicts(&s), ["first"; 8]);
    // Once it has answered, a row that it refuses is a row's fault, however many there are.
    let (s, server) = (sandbox(13), Server::start(move |_, body| refuse(body, 1..12)));
    run(&s, &args(&server, &[])).said(1, &["22 questions without an answer"]);
    assert_eq!((server.requests().len(), verdicts(&s).len()), (26, 2));
    assert!(!file(&s, "out/answers.jsonl").contains("in a row"));
}

#[test]
fn answers_that_cannot_be_read_are_paid_for() {
    let unread = || {
        let body = json!({"choices": [], "usage": {"prompt_tokens": 10_000, "completion_tokens": 0}});
        Act::Status(200, String::new(), body.to_string())
    };
    let prices = ["--price-in", "1", "--price-out", "0", "--json"];
    // A cent each, of which every second is lost.
    let half = Server::start(move |n, body| match n % 2 {
        0 => unread(),
        _ => {
            let message = json!({"message": {"content": judged(body)}, "finish_reason": "stop"});
            let usage = json!({"prompt_tokens": 10_000, "completion_tokens": 0});
            Act::Status(200, String::new(), json!({"choices": [message], "usage": usage}).to_string())
        }
    });
    let s = sandbox(40);
    let ran = run(&s, &args(&half, &[&prices[..], &["--max-cost", "0.30"]].concat()));
    assert_eq!((ran.status, half.requests().len()), (130, 30), "{}", ran.stderr);
    assert!((ran.lines()[0]["cost"].as_f64().unwrap() - 0.30).abs() < 1e-9, "{}", ran.stdout);
    // A server that does not say what an answer took: the estimate counts, which a run without repeats stays within.
    let silent = Server::start(move |_, body| {
        let message = json!({"message": {"content": judged(body)}, "finish_reason": "stop"});
        Act::Status(200, String::new(), json!({"choices": [message]}).to_string())
    });
    let dear = ["--price-in", "100", "--price-out", "0", "--max-cost", "2"];
    let ran = run(&sandbox(40), &args(&silent, &dear)).ok();
    assert_eq!(ran.stderr.matches("--max-cost counts the estimate").count(), 1, "{}", ran.stderr);
    // A run in which nothing can be read ends.
    let none = Server::start(move |_, _| unread());
    let ran = run(&sandbox(40), &args(&none, &prices));
    ran.said(1, &["20 answers in a row cannot be read", "`choices[0].message` is missing", "--answer-format"]);
    assert_eq!((none.requests().len(), ran.lines()[0]["usage"]["prompt_tokens"].as_u64()), (20, Some(200_000)));
    // The same of texts without a verdict, but not where one in between has one.
    let vague = Server::start(|n, _| if n == 10 { Act::Judge } else { Act::Say("Both have merits.".into()) });
    let ran = run(&sandbox(40), &args(&vague, &[]));
    ran.said(1, &["20 answers in a row cannot be read", "`Both have merits.`"]);
    assert_eq!(vague.requests().len(), 31);
    // An error may cost as well.
    let error = Server::start(move |n, _| match n {
        0 => Act::Status(500, String::new(), json!({"error": "oh", "usage": {"prompt_tokens": 7}}).to_string()),
        _ => Act::Judge,
    });
    let ran = run(&sandbox(1), &args(&error, &["--json"])).ok();
    assert_eq!(ran.lines()[0]["usage"]["prompt_tokens"], 207, "{}", ran.stdout);
}

#[test]
fn a_limit_on_requests_uses_up_no_retries() {
    for more in [
        "Retry-After: {left}\r\n",
        "llm_provider-retry-after: {left}\r\n",
        "x-ratelimit-reset-requests: {left}s\r\n",
        "",
    ] {
        let (s, server) = (sandbox(12), Server::start(limited(6, Duration::from_secs(1), more)));
        let ran = run(&s, &args(&server, &["--concurrency", "8", "--retries", "0", "--max-wait", "20"])).ok();
        assert_eq!(verdicts(&s), ["first"; 12], "{more}: {}", ran.stderr);
        assert_eq!(ran.stderr.matches("HTTP 429: it is asked again, as soon").count(), 1, "{more}: {}", ran.stderr);
        // Eight at a time would be refused some thirty times.
        if !more.is_empty() {
            assert!(server.requests().len() <= 24 + 16, "{more}: {} requests", server.requests().len());
        }
    }
    // After a pause they come one by one, at the pace of those that were accepted.
    let server = Server::start(limited(10, Duration::from_secs(2), "Retry-After: {left}\r\n"));
    run(&sandbox(8), &args(&server, &["--concurrency", "8"])).ok();
    let at: Vec<Instant> = server.requests().iter().map(|request| request.at).collect();
    let last = at.windows(2).rev().take(3).map(|pair| (pair[1] - pair[0]).as_secs_f64()).fold(9.0, f64::min);
    assert!(last > 0.05, "ten in two seconds are 0.2 s apart: {last} s");
    // An endpoint that only refuses is given up after a while.
    let server = Server::start(|_, _| Act::Status(429, String::new(), "later".into()));
    let begun = Instant::now();
    let ran = run(&sandbox(1), &args(&server, &["--concurrency", "2", "--max-wait", "1"]));
    ran.said(1, &["2 questions without an answer"]);
    assert!(
        ran.stderr.contains("HTTP 429: later (asked ") && ran.stderr.contains("--max-wait is 1 s"),
        "{}",
        ran.stderr
    );
    assert!(begun.elapsed() > Duration::from_secs(1) && begun.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_slow_endpoint_is_asked_less_at_a_time() {
    // Eight at once would take 3.2 s, of which one has 1.2.
    let server = Server::start(|_, _| Act::Alone(Duration::from_millis(400)));
    let s = sandbox(6);
    let ran = run(&s, &args(&server, &["--concurrency", "8", "--timeout", "1.2", "--retries", "8"])).ok();
    assert_eq!(verdicts(&s), ["first"; 6]);
    assert_eq!(
        ran.stderr.matches("timeout: it is asked again, with half as many at a time").count(),
        1,
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("--timeout") && ran.stderr.contains("--concurrency"), "{}", ran.stderr);
}

#[test]
fn a_proxy_stands_before_no_judge_of_this_machine_and_is_named() {
    let (server, proxy) = (Server::start(|_, _| Act::Judge), Server::start(|_, _| Act::Judge));
    let through = |s: &Sandbox, args: &[&str], name: &str, value: &str| {
        let mut command = command(s, args);
        Ran::of(command.env("JOINTWISE_API_KEY", "sk-secret-123").env(name, value))
    };
    let address = server.url.replace("127.0.0.1", "localhost");
    for name in ["http_proxy", "all_proxy"] {
        let s = sandbox(1);
        through(&s, &args_of(&address, &[]), name, proxy.url.trim_end_matches("/v1")).ok();
        assert_eq!((proxy.requests().len(), verdicts(&s)), (0, vec!["first".to_string()]), "{name}");
    }
    // Elsewhere it is asked, and told with what goes wrong there, but not its password.
    let ran = through(
        &sandbox(1),
        &args_of("http://judge.example/v1", &["--retries", "0"]),
        "http_proxy",
        "http://me:hidden@127.0.0.1:9",
    );
    ran.said(1, &["2 questions without an answer"]);
    assert!(ran.stderr.contains("http_proxy in the environment names the proxy 127.0.0.1:9"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("hidden") && !ran.stderr.contains("sk-secret"), "{}", ran.stderr);
}

#[test]
fn bodies_are_read_however_they_are_sent_or_shown() {
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let stream = |text: &str| {
        let event = |delta: Value, reason: Value| {
            let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
            format!("data: {}\n\n", json!({"choices": [choice]}))
        };
        let (first, second) = text.split_at(4);
        let words = [first, second].map(|word| event(json!({"content": word}), Value::Null)).concat();
        let usage = json!({"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 3}});
        format!("{words}{}data: {usage}\n\ndata: [DONE]\n\n", event(json!({}), "stop".into())).into_bytes()
    };
    type Sent<'s> = Box<dyn Fn(&Value) -> (String, Vec<u8>) + Send + Sync + 's>;
    let kinds: Vec<(&str, Sent<'static>)> = vec![
        ("gzip", Box::new(move |body| ("Content-Encoding: gzip\r\n".into(), gzip(&completion(judged(body)))))),
        ("gzip, unnamed", Box::new(move |body| (String::new(), gzip(&completion(judged(body)))))),
        ("gzip in name", Box::new(|body| ("Content-Encoding: gzip\r\n".into(), completion(judged(body)).into()))),
        ("mark", Box::new(|body| (String::new(), format!("\u{feff}{}", completion(judged(body))).into()))),
        ("stream", Box::new(move |body| ("Content-Type: text/event-stream\r\n".into(), stream(judged(body))))),
    ];
    for (kind, sent) in kinds {
        let server = Server::start(move |_, body| {
            let (more, bytes) = sent(body);
            Act::Bytes(more, bytes)
        });
        let s = sandbox(2);
        let ran = run(&s, &args(&server, &["--retries", "0", "--json"]));
        assert_eq!((ran.status, verdicts(&s)), (0, vec!["first".into(); 2]), "{kind}: {}", ran.stderr);
        assert_eq!(ran.lines()[0]["usage"]["prompt_tokens"], 400, "{kind}");
    }
    // What is not read is shown.
    for (more, body, shown) in [
        ("", "<html><body>Welcome".to_string(), "not JSON: `<html><body>Welcome`"),
        ("", "[1, 2]".into(), "not a JSON object: `[1, 2]`"),
        ("", "word ".repeat(40), "word …`"),
        ("Content-Encoding: br\r\n", "\u{1}\u{2}".into(), "compressed as `br`"),
        ("", format!("data: {}", json!({"choices": [{"delta": {"content": "Output (a)"}}]})), "cut short"),
    ] {
        let sent = body.clone();
        let server = Server::start(move |_, _| Act::Bytes(more.into(), sent.clone().into()));
        let ran = run(&sandbox(1), &args(&server, &["--retries", "0"]));
        ran.said(1, &["2 questions without an answer"]);
        assert!(ran.stderr.contains(shown), "{body}: {}", ran.stderr);
    }
    let s = sandbox(1);
    s.refused(&args_of("http://127.0.0.1:9/v1#chat", &[]), &["--endpoint", "#chat"]);
    // Another model than the one that was asked for is told once, a date behind its name is not.
    for (model, is_told) in [("other-7b", true), ("m-2026-01-01", false), ("provider/m", false)] {
        let server = Server::start(move |_, body| {
            let choice = json!({"message": {"content": judged(body)}, "finish_reason": "stop"});
            Act::Status(200, String::new(), json!({"choices": [choice], "model": model}).to_string())
        });
        let ran = run(&sandbox(2), &args(&server, &[])).ok();
        let told = ran.stderr.matches("the answers come from the model `other-7b`, and `m` was asked for").count();
        assert_eq!(told, usize::from(is_told), "{model}: {}", ran.stderr);
    }
}

#[test]
fn an_unclear_answer_is_bought_once_at_temperature_0() {
    let vague = || Server::start(|n, _| if n == 1 { Act::Say("Both have merits.".into()) } else { Act::Judge });
    for (temperature, more) in [("0", 0), ("0.7", 1)] {
        let (s, server) = (sandbox(2), vague());
        let args = args(&server, &["--temperature", temperature]);
        run(&s, &args).ok();
        let ran = run(&s, &[&args[..], &["--resume"]].concat()).ok();
        assert_eq!(server.requests().len(), 4 + more, "{temperature}");
        assert_eq!(ran.stderr.contains("1 without a verdict, kept and not asked again"), more == 0, "{}", ran.stderr);
    }
}

#[test]
fn a_folder_goes_on_with_the_same_judge_elsewhere_and_with_longer_answers() {
    // A model that is not there, before anything was answered.
    let server = Server::start(|_, body| match body["model"] == "right" {
        true => Act::Judge,
        false => Act::Status(404, String::new(), json!({"error": {"message": "no such model"}}).to_string()),
    });
    let s = sandbox(2);
    run(&s, &args(&server, &["--judge-model", "wrong"])).said(2, &["no such model"]);
    let ran = run(&s, &args(&server, &["--judge-model", "right", "--resume"])).ok();
    assert!(ran.stderr.contains("no question was answered yet") && ran.stderr.contains("`model`"), "{}", ran.stderr);
    assert_eq!(verdicts(&s), ["first"; 2]);
    // Now it is bound.
    run(&s, &args(&server, &["--judge-model", "wrong", "--resume"])).said(2, &["another judge", "`model`"]);
    // Another name of the same place.
    s.write("rows.jsonl", file(&sandbox(3), "rows.jsonl"));
    let address = server.url.replace("127.0.0.1", "localhost");
    let moved = args_of(&address, &["--judge-model", "right", "--resume"]);
    let ran = run(&s, &moved).ok();
    assert!(ran.stderr.contains("its answers came from http://127.0.0.1"), "{}", ran.stderr);
    assert_eq!((server.requests().len(), verdicts(&s).len()), (1 + 6, 3), "what was answered is not asked again");
    assert!(!run(&s, &moved).ok().stderr.contains("its answers came from"), "it is told once");

    // Answers that were too long are asked again with more tokens, and read by the limit that they had.
    let server = Server::start(|_, body| {
        let longest = body["max_tokens"].as_u64().unwrap();
        let text = match longest < 100 && row_of(body) == 1 {
            // Without `finish_reason`: as many tokens as it may have are the only sign that it was cut.
            true => "Output (a) and Output (b) differ.\n\nOutput (b)".to_string(),
            false => judged(body).to_string(),
        };
        let usage = json!({"prompt_tokens": 100, "completion_tokens": longest.min(64)});
        let choice = json!({"message": {"content": text}, "finish_reason": if longest < 100 { Value::Null } else { "stop".into() }});
        Act::Status(200, String::new(), json!({"choices": [choice], "usage": usage}).to_string())
    });
    let s = sandbox(2);
    let short = ["--max-tokens", "64"];
    run(&s, &args(&server, &short)).ok();
    assert_eq!(verdicts(&s), ["no_answer"; 2], "every answer has as many tokens as it may have");
    assert_eq!(server.requests().len(), 4);
    run(&s, &args(&server, &[&short[..], &["--resume"]].concat())).ok();
    assert_eq!(server.requests().len(), 4, "the same question would be cut again");
    let ran = run(&s, &args(&server, &["--max-tokens", "1000", "--resume"])).ok();
    assert!(ran.stderr.contains("4 without a verdict are asked again"), "{}", ran.stderr);
    assert_eq!((server.requests().len(), verdicts(&s)), (8, vec!["first".to_string(); 2]));
    run(&s, &args(&server, &["--max-tokens", "1000", "--resume"])).ok();
    run(&s, &args(&server, &["--max-tokens", "64", "--resume"])).said(2, &["`max_tokens`", "1000", "64"]);
    assert_eq!(server.requests().len(), 8);
    // What was cut at 64 tokens is no whole answer because 1000 are allowed now.
    let s = sandbox(1);
    let cut = Server::start(|n, body| match n {
        0 => {
            let choice = json!({"message": {"content": "Output (b)"}});
            let usage = json!({"prompt_tokens": 1, "completion_tokens": 64});
            Act::Status(200, String::new(), json!({"choices": [choice], "usage": usage}).to_string())
        }
        _ => completion_of(judged(body)),
    });
    run(&s, &args(&cut, &short)).ok();
    assert_eq!(verdicts(&s), ["no_answer"]);
    run(&s, &args(&cut, &["--max-tokens", "1000", "--resume"])).ok();
    assert_eq!((cut.requests().len(), verdicts(&s)), (3, vec!["first".to_string()]));
}

fn completion_of(text: &str) -> Act {
    Act::Status(200, String::new(), completion(text))
}

#[test]
fn identical_texts_are_a_tie_about_which_nobody_is_asked() {
    let (s, server) = (sandbox(2), Server::start(|_, _| Act::Judge));
    let same = json!({"instruction": "Larger?", "response_0": "7", "response_1": "7"});
    s.write("rows.jsonl", format!("{same}\n{}", file(&s, "rows.jsonl")));
    let ran = run(&s, &args(&server, &[])).ok();
    assert!(ran.stderr.contains("1 comparison of the same text twice is a tie, and not asked about"), "{}", ran.stderr);
    assert_eq!((server.requests().len(), verdicts(&s)), (4, ["tie", "first", "first"].map(String::from).into()));
    let row: Value = serde_json::from_str(file(&s, "out/annotated.jsonl").lines().next().unwrap()).unwrap();
    assert_eq!((&row["answers"], &row["flip"]), (&json!(["tie", "tie"]), &json!(false)));
}

#[test]
fn a_first_look_shows_a_prompt_and_its_answer_and_keeps_nothing() {
    let (s, server) = (sandbox(3), Server::start(|_, _| Act::Say("Output (a) is better than Output (b).".into())));
    let before = s.listing();
    let look = ["judge", "--data", "rows.jsonl", "--endpoint", &server.url, "--judge-model", "m", "--dry-run", "1"];
    let ran = run(&s, &look).ok();
    for part in
        ["rows.jsonl:1, order ab", "Larger? 0", "Answer:\nOutput (a) is better than Output (b).\n", "Read as: (a)"]
    {
        assert!(ran.stdout.contains(part), "`{part}` is not in {}", ran.stdout);
    }
    assert_eq!((server.requests().len(), s.listing()), (1, before.clone()));
    let ran = run(&s, &[&look[..], &["--json"]].concat()).ok();
    assert_eq!(ran.lines()[0]["answer"]["choice"], "a", "{}", ran.stdout);
    let broken = Server::start(|_, _| Act::Status(400, String::new(), "no".into()));
    let look = ["judge", "--data", "rows.jsonl", "--endpoint", &broken.url, "--judge-model", "m", "--dry-run", "1"];
    run(&s, &look).said(1, &["rows.jsonl:1, order ab", "HTTP 400"]);
    assert_eq!(s.listing(), before);
    s.refused(&["judge", "--data", "rows.jsonl", "--grader", "--dry-run", "1"], &["--dry-run", "models and commands"]);
}

#[test]
fn a_judge_of_one_letter_is_told() {
    let server = Server::start(|_, _| Act::Say("Output (b)".into()));
    let ran = run(&sandbox(12), &args(&server, &[])).ok();
    assert_eq!(ran.stderr.matches("the first 20 verdicts are all (b)").count(), 1, "{}", ran.stderr);
    let server = Server::start(|_, _| Act::Judge);
    assert!(!run(&sandbox(12), &args(&server, &[])).ok().stderr.contains("the first 20 verdicts"));
}
