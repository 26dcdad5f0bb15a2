//! `jointwise judge` and `jointwise interplay` as programs: against an endpoint that misbehaves, commands that do, a person at a terminal, and
//! a local model.
#![allow(clippy::unwrap_used)]

mod program;
mod server;

use std::fs;
use std::process::{Child, Stdio};
#[cfg(unix)]
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use program::{Ran, Sandbox};
use serde_json::{Value, json};
use server::{Act, Server};

const KEY: &str = "sk-test-0123456789abcdef";
const OUT: &[&str] = &["--output-dir", "out"];

/// `n` rows whose responses are different numbers; of ten, row 3 has the same ones (but for a space) and is a tie.
fn rows(n: usize) -> String {
    let row = |i: usize| {
        let (x, y) = (i * 7 % 11, if i % 10 == 3 { i * 7 % 11 } else { 20 + i });
        let (x, y) = if i.is_multiple_of(2) { (x, y) } else { (y, x) };
        let second = if x == y { format!("{y} ") } else { y.to_string() };
        json!({"instruction": format!("Larger? {i}"), "response_0": x.to_string(), "response_1": second, "id": i})
            .to_string()
    };
    (0..n).map(row).collect::<Vec<_>>().join("\n")
}

fn sandbox(n: usize) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("rows.jsonl", rows(n));
    sandbox
}

/// Asks `server`, with short pauses; `more` wins.
fn args<'a>(server: &'a Server, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["judge", "--data", "rows.jsonl", "--endpoint", &server.url, "--judge-model", "m"];
    if !more.contains(&"--backoff") {
        all.extend(["--backoff", "0.05"]);
    }
    all.extend_from_slice(OUT);
    all.extend_from_slice(more);
    all
}

fn command(s: &Sandbox, args: &[&str]) -> std::process::Command {
    let mut command = s.command(args);
    command.env("JOINTWISE_API_KEY", KEY).env_remove("OPENAI_API_KEY");
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command
}

fn run(s: &Sandbox, args: &[&str]) -> Ran {
    let ran = Ran::of(&mut command(s, args));
    assert!(!ran.stdout.contains(KEY) && !ran.stderr.contains(KEY), "the key is shown: {ran:?}");
    ran
}

fn lines(s: &Sandbox, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(s.path(name)).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn file(s: &Sandbox, name: &str) -> String {
    fs::read_to_string(s.path(name)).unwrap()
}

/// The key is in no file that the program wrote.
fn no_key(s: &Sandbox) {
    for path in s.listing().into_keys().filter(|p| p.is_file()) {
        assert!(!String::from_utf8_lossy(&fs::read(&path).unwrap()).contains(KEY), "{}", path.display());
    }
}

/// What an endpoint that never fails makes of `n` rows.
fn expected(n: usize) -> (String, String) {
    let (s, server) = (sandbox(n), Server::start(|_, _| Act::Judge));
    run(&s, &args(&server, &[])).ok();
    (file(&s, "out/annotated.jsonl"), file(&s, "out/preferences.jsonl"))
}

fn results(s: &Sandbox) -> (String, String) {
    (file(s, "out/annotated.jsonl"), file(s, "out/preferences.jsonl"))
}

// ---------------------------------------------------------------------------------------------------------- endpoint

#[test]
fn an_endpoint_judges_both_orders() {
    let (s, server) = (sandbox(20), Server::start(|_, _| Act::Judge));
    let ran = run(&s, &args(&server, &["--json", "--price-in", "1", "--price-out", "10"])).ok();
    let summary = &ran.lines()[0];
    for (name, value) in [("rows", 20), ("first", 8), ("second", 10), ("ties", 2), ("flips", 2), ("asked", 40)] {
        assert_eq!(summary[name], value, "{name} in {summary}");
    }
    assert_eq!(summary["usage"], json!({"prompt_tokens": 4000, "completion_tokens": 120}));
    assert!((summary["cost"].as_f64().unwrap() - 0.0052).abs() < 1e-12);
    assert!(ran.stderr.contains("40 questions to m: about"), "{}", ran.stderr);
    let requests = server.requests();
    assert_eq!((requests.len(), server.times_asked().len()), (40, 40));
    for request in &requests {
        assert!(request.head.starts_with("POST /v1/chat/completions HTTP/1.1"), "{}", request.head);
        assert!(request.head.to_lowercase().contains(&format!("authorization: bearer {KEY}")), "{}", request.head);
        assert_eq!((&request.body["model"], &request.body["temperature"]), (&json!("m"), &json!(0.0)));
        assert_eq!(request.body["max_tokens"], 1024);
    }
    for row in lines(&s, "out/annotated.jsonl") {
        let [x, y] = ["response_0", "response_1"].map(|n| row[n].as_str().unwrap().trim().parse::<u32>().unwrap());
        let expected = match x.cmp(&y) {
            std::cmp::Ordering::Greater => "first",
            std::cmp::Ordering::Less => "second",
            std::cmp::Ordering::Equal => "tie",
        };
        assert_eq!((&row["verdict"], &row["flip"]), (&json!(expected), &json!(x == y)), "{row}");
        assert!(row["id"].is_number() && row["judge"] == "m");
    }
    let preferences = lines(&s, "out/preferences.jsonl");
    assert_eq!(preferences.len(), 18, "ties are dropped");
    for row in preferences {
        let [chosen, reject] =
            ["r_chosen", "r_reject"].map(|n| row[n].as_str().unwrap().trim().parse::<u32>().unwrap());
        assert!(chosen > reject && row["i_chosen"] == row["i_reject"], "{row}");
    }
    no_key(&s);
}

#[test]
fn what_goes_wrong_once_is_asked_again() {
    let good = expected(4);
    let busy = "{\"error\": {\"message\": \"slow down\", \"code\": \"rate_limit_exceeded\"}}";
    let status = |n, more: &str, body: &str| Act::Status(n, more.into(), body.into());
    for (act, kind, least_wait) in [
        (status(429, "Retry-After: 1\r\n", busy), "HTTP 429", 1.0),
        // To the second: at least two of the three.
        (Act::BusyUntil(3), "HTTP 429", 2.0),
        (status(429, "", busy), "HTTP 429", 0.025),
        (status(500, "", "oh no"), "HTTP 500", 0.025),
        (status(503, "Retry-After: nonsense\r\n", ""), "HTTP 503", 0.025),
        (status(200, "", "{\"error\": {\"message\": \"overloaded\"}}"), "an error", 0.025),
        (status(200, "", "<html>"), "no JSON", 0.025),
        (status(200, "", "{\"choices\": []}"), "no choice", 0.025),
        (status(200, "", "{\"choices\": [{\"mess"), "cut short", 0.025),
        (Act::Cut, "cut short", 0.025),
        (Act::CutHeaders, "connection lost", 0.025),
        (Act::Slow(Duration::from_secs(3)), "timeout", 0.025),
    ] {
        let first = act.clone();
        let server = Server::start(move |n, _| if n == 1 { first.clone() } else { Act::Judge });
        let s = sandbox(4);
        let ran = run(&s, &args(&server, &["--concurrency", "1", "--timeout", "1.5"])).ok();
        assert!(ran.stderr.contains(&format!("asked again: 1 × {kind}")), "{act:?}: {}", ran.stderr);
        assert_eq!(results(&s), good, "{act:?}");
        let at: Vec<Instant> = server.requests().iter().map(|r| r.at).collect();
        assert_eq!(at.len(), 9, "{act:?}: only that one is repeated");
        let waited = (at[2] - at[1]).as_secs_f64();
        assert!(waited >= least_wait && waited < least_wait + 3.5, "{act:?}: waited {waited} s");
    }
}

#[test]
fn pauses_double_and_end() {
    let (s, server) = (sandbox(1), Server::start(|_, _| Act::Status(500, String::new(), "oh\nno".into())));
    let ran = run(&s, &args(&server, &["--concurrency", "1", "--retries", "4", "--backoff", "0.1"]));
    ran.said(1, &["2 questions without an answer", "--resume"]);
    assert!(ran.stderr.contains("rows.jsonl:1, order ab: HTTP 500: oh\\nno (asked 5 times)"), "{}", ran.stderr);
    assert!(ran.stderr.contains("8 × HTTP 500"), "{}", ran.stderr);
    let at: Vec<Instant> = server.requests().iter().map(|r| r.at).collect();
    assert_eq!(at.len(), 10);
    for (i, pair) in at[..5].windows(2).enumerate() {
        let (waited, pause) = ((pair[1] - pair[0]).as_secs_f64(), 0.1 * f64::from(1 << i));
        assert!(waited >= 0.5 * pause && waited < pause + 1.0, "pause {i}: {waited} s");
    }
    // A pause that is longer than one would wait is no pause.
    let server = Server::start(|_, _| Act::Status(429, "Retry-After: 5000\r\n".into(), String::new()));
    let s = sandbox(1);
    let started = Instant::now();
    let ran = run(&s, &args(&server, &["--concurrency", "1"]));
    ran.said(1, &["2 questions"]);
    assert!(ran.stderr.contains("asks to wait for 5000 s, --max-wait is 120"), "{}", ran.stderr);
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn what_was_paid_for_is_kept_when_the_endpoint_breaks_down() {
    let good = expected(20);
    let s = sandbox(20);
    let server = Server::start(|n, _| if n < 13 { Act::Judge } else { Act::Status(500, String::new(), String::new()) });
    let ran = run(&s, &args(&server, &["--retries", "0", "--concurrency", "1"]));
    ran.said(1, &["10 questions in a row have no answer", "rows.jsonl:12", "HTTP 500"]);
    assert!(ran.stderr.contains("--resume goes on"), "{}", ran.stderr);
    assert_eq!(server.requests().len(), 23, "it is left alone");
    assert_eq!(lines(&s, "out/annotated.jsonl").len(), 7);
    let wrong = run(&s, &args(&server, &[]));
    wrong.said(2, &["--output-dir", "not empty"]);
    // Another port is another address of the same judge.
    let other = Server::start(|_, _| Act::Judge);
    let ran = run(&s, &args(&other, &["--resume"])).ok();
    assert!(ran.stderr.contains("13 answers of an earlier run kept, 27 to ask"), "{}", ran.stderr);
    assert_eq!(other.requests().len(), 27);
    assert_eq!(results(&s), good);
}

#[test]
fn refusals_end_at_once_and_show_no_key() {
    let echo = |status: u16| {
        // A server that tells everybody the key.
        let body = json!({"error": {"message": format!("Incorrect API key provided: {KEY}. See the page.")}});
        Server::start(move |_, _| {
            Act::Status(status, format!("Location: http://127.0.0.1:9/{KEY}\r\n"), body.to_string())
        })
    };
    for status in [401, 403, 404, 302] {
        let (s, server) = (sandbox(20), echo(status));
        let ran = run(&s, &args(&server, &["--concurrency", "1"]));
        ran.said(2, &["--endpoint", &format!("HTTP {status}"), "***"]);
        assert_eq!(server.requests().len(), 1, "{status}");
        no_key(&s);
    }
    let empty = Server::start(|_, _| {
        Act::Status(429, String::new(), json!({"error": {"message": "pay", "code": "insufficient_quota"}}).to_string())
    });
    run(&sandbox(20), &args(&empty, &["--concurrency", "1"])).said(2, &["HTTP 429: pay"]);
    assert_eq!(empty.requests().len(), 1);
    // In answers and in errors that are told for a row.
    let said = Server::start(|n, _| match n {
        0 => Act::Say(format!("your key is {KEY}")),
        1 => Act::Status(400, String::new(), format!("{{\"error\": {{\"message\": \"{KEY} is too long\"}}}}")),
        _ => Act::Judge,
    });
    let s = sandbox(2);
    let ran = run(&s, &args(&said, &["--concurrency", "1"]));
    ran.said(1, &["1 question without"]);
    assert!(ran.stderr.contains("your key is ***") && ran.stderr.contains("*** is too long"), "{}", ran.stderr);
    assert!(file(&s, "out/answers.jsonl").contains("your key is ***"));
    no_key(&s);
}

#[test]
fn nonsense_is_counted_and_asked_again_next_time() {
    let good = expected(5);
    let server =
        Server::start(
            |n, _| if [2, 3, 7].contains(&n) { Act::Say("As an AI, I like both.".into()) } else { Act::Judge },
        );
    let s = sandbox(5);
    let warm = |more: &[&'static str]| args(&server, &[&["--temperature", "0.5"], more].concat());
    let ran = run(&s, &warm(&["--concurrency", "1", "--json"])).ok();
    assert_eq!(ran.lines()[0]["no_answer"], 2, "{}", ran.stdout);
    assert!(ran.stderr.contains("rows.jsonl:2, order ab: no answer: `As an AI, I like both.`"), "{}", ran.stderr);
    let row = &lines(&s, "out/annotated.jsonl")[1];
    assert_eq!((&row["verdict"], &row["answers"]), (&json!("no_answer"), &json!([null, null])));
    let ran = run(&s, &warm(&["--resume", "--json"])).ok();
    assert_eq!((&ran.lines()[0]["asked"], &ran.lines()[0]["no_answer"]), (&json!(3), &json!(0)));
    assert_eq!(server.requests().len(), 13);
    assert_eq!(results(&s), good);
}

fn started(s: &Sandbox, args: &[&str]) -> Child {
    command(s, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn wait_for(server: &Server, n: usize) {
    let until = Instant::now() + Duration::from_secs(30);
    while server.requests().len() < n {
        assert!(Instant::now() < until, "no {n} requests");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_kill_loses_nothing_that_was_answered() {
    let good = expected(20);
    let server = Server::start(|_, _| Act::Slow(Duration::from_millis(40)));
    let s = sandbox(20);
    let mut child = started(&s, &args(&server, &["--concurrency", "2"]));
    wait_for(&server, 15);
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = file(&s, "out/answers.jsonl").lines().count() - 1;
    assert!(kept >= 13, "{kept} of 15 and more requests, two of them under way");
    // And in the middle of a line.
    let mut answers = file(&s, "out/answers.jsonl");
    answers.truncate(answers.len() - 20);
    fs::write(s.path("out/answers.jsonl"), answers).unwrap();
    let ran = run(&s, &args(&server, &["--resume"])).ok();
    assert!(ran.stderr.contains("note: out/answers.jsonl:") && ran.stderr.contains("cut short"), "{}", ran.stderr);
    assert_eq!(results(&s), good);
    let asked = server.times_asked();
    assert_eq!(asked.len(), 40);
    assert!(asked.iter().sum::<usize>() <= 40 + 3, "only what was under way or cut is asked twice: {asked:?}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_under_way() {
    let good = expected(20);
    let server = Server::start(|_, _| Act::Slow(Duration::from_millis(100)));
    let s = sandbox(20);
    let child = started(&s, &args(&server, &["--concurrency", "3"]));
    wait_for(&server, 7);
    // SAFETY: a system call on our own child.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    let out = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(130), "{said}");
    assert!(said.contains("under way") && said.contains("--resume goes on") && !said.contains(KEY), "{said}");
    let kept = file(&s, "out/answers.jsonl").lines().count() - 1;
    assert_eq!(kept, server.requests().len(), "every request that went out is kept");
    assert!(kept < 20);
    run(&s, &args(&server, &["--resume"])).ok();
    assert_eq!(results(&s), good);
    assert!(server.times_asked().iter().all(|&n| n == 1) && server.requests().len() == 40);
}

/// A run that waits for its judge has the folder; when it is killed, nobody has it.
#[test]
fn a_second_run_is_refused_while_the_first_lives() {
    let server = Server::start(|n, _| if n == 0 { Act::Slow(Duration::from_secs(60)) } else { Act::Judge });
    let s = sandbox(4);
    let mut child = started(&s, &args(&server, &["--concurrency", "1"]));
    wait_for(&server, 1);
    let held = format!("another run (process {}) is writing there", child.id());
    for more in [&["--resume"][..], &[]] {
        let before = s.listing();
        run(&s, &args(&server, more)).said(2, &["--output-dir: out", &held]);
        assert_eq!(s.listing(), before);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let good = expected(4);
    run(&s, &args(&server, &["--resume"])).ok();
    assert_eq!(results(&s), good);
    assert!(!s.path("out/.jointwise.lock").exists());
}

/// What the folder lacks is told, and links lead nowhere.
#[cfg(unix)]
#[test]
fn journals_that_are_gone_are_told() {
    let server = Server::start(|_, _| Act::Judge);
    let s = sandbox(4);
    run(&s, &args(&server, &[])).ok();
    let whole = file(&s, "out/answers.jsonl");
    assert!(!run(&s, &args(&server, &["--resume"])).ok().stderr.contains("are gone"));
    for text in [None, Some("")] {
        match text {
            Some(text) => fs::write(s.path("out/answers.jsonl"), text).unwrap(),
            None => fs::remove_file(s.path("out/answers.jsonl")).unwrap(),
        }
        let said = run(&s, &args(&server, &["--resume"])).ok().stderr;
        assert!(said.contains("note: out/answers.jsonl: the answers of the earlier run are gone"), "{said}");
    }
    fs::rename(s.path("out/answers.jsonl"), s.path("theirs")).unwrap();
    fs::write(s.path("theirs"), &whole).unwrap();
    std::os::unix::fs::symlink("../theirs", s.path("out/answers.jsonl")).unwrap();
    run(&s, &args(&server, &["--resume"])).said(2, &["out/answers.jsonl: is a link"]);
    assert_eq!(file(&s, "theirs"), whole);
    fs::remove_file(s.path("out/answers.jsonl")).unwrap();
    std::os::unix::fs::symlink("../theirs", s.path("out/annotated.new")).unwrap();
    fs::rename(s.path("out/annotated.new"), s.path("out/annotated.jsonl")).unwrap();
    run(&s, &args(&server, &["--resume"])).said(2, &["out/annotated.jsonl: is a link"]);
    assert_eq!(file(&s, "theirs"), whole);
}

#[test]
fn several_at_a_time_within_limits() {
    let server = Server::start(|_, _| Act::Slow(Duration::from_millis(60)));
    run(&sandbox(20), &args(&server, &["--concurrency", "4"])).ok();
    assert!((2..=4).contains(&server.most_at_once()), "{}", server.most_at_once());
    let server = Server::start(|_, _| Act::Judge);
    let started = Instant::now();
    run(&sandbox(3), &args(&server, &["--requests-per-minute", "300", "--concurrency", "6"])).ok();
    let at: Vec<Instant> = server.requests().iter().map(|r| r.at).collect();
    assert!((at[5] - at[0]).as_secs_f64() > 0.9, "six requests at five a second: {:?}", started.elapsed());
}

#[test]
fn cost_is_told_first_and_bounded() {
    let (s, server) = (sandbox(20), Server::start(|_, _| Act::Judge));
    let before = s.listing();
    let prices = ["--price-in", "1000", "--price-out", "0"];
    let ran = run(&s, &args(&server, &[&prices[..], &["--estimate", "--json"]].concat())).ok();
    let estimate = &ran.lines()[0];
    let tokens = estimate["prompt_tokens"].as_u64().unwrap();
    assert_eq!(
        (&estimate["questions"], estimate["cost"].as_f64().unwrap()),
        (&json!(40), tokens as f64 * 1000.0 / 1e6)
    );
    // Our prompt has some 800 characters.
    assert!((40 * 150..40 * 350).contains(&tokens), "{tokens}");
    let ran = run(&s, &args(&server, &[&prices[..], &["--max-cost", "0.5"]].concat()));
    ran.said(2, &["--max-cost", "above 0.5"]);
    assert!(server.requests().is_empty());
    assert_eq!(s.listing(), before, "nothing is left behind");
    // What the endpoint counts is more than the estimate: it ends on the way, and goes on. 100 tokens a question are 0.1.
    let ran = run(
        &s,
        &args(&server, &["--price-in", "1000", "--price-out", "0", "--max-cost", "9999", "--concurrency", "1"]),
    )
    .ok();
    assert!(ran.stdout.contains("cost 4.0000"), "{}", ran.stdout);
    let dear = Server::start(|_, _| {
        let usage = json!({"prompt_tokens": 100_000, "completion_tokens": 1});
        Act::Status(
            200,
            String::new(),
            json!({"choices": [{"message": {"content": "(a)"}}], "usage": usage}).to_string(),
        )
    });
    let s = sandbox(20);
    let ran = run(&s, &args(&dear, &[&prices[..], &["--max-cost", "450", "--concurrency", "1"]].concat()));
    assert_eq!(ran.status, 130, "{}", ran.stderr);
    assert!(ran.stderr.contains("--max-cost is reached"), "{}", ran.stderr);
    assert_eq!(dear.requests().len(), 5);
}

#[test]
fn requests_may_be_changed() {
    let (s, server) = (sandbox(1), Server::start(|_, _| Act::Judge));
    let more = r#"{"max_tokens": null, "max_completion_tokens": 7, "temperature": null, "seed": 3}"#;
    s.write(
        "run.toml",
        format!("judge-model = \"from-file\"\nretries = 2\nmax-tokens = 5\nextra-body = '{more}'\nbackoff = 0.05\n"),
    );
    let judge =
        ["judge", "--data", "rows.jsonl", "--endpoint", &server.url, "--config", "run.toml", "--output-dir", "out"];
    run(&s, &judge).ok();
    let body = &server.requests()[0].body;
    assert_eq!(
        (&body["model"], &body["seed"], &body["max_completion_tokens"]),
        (&json!("from-file"), &json!(3), &json!(7))
    );
    assert!(body.get("max_tokens").is_none() && body.get("temperature").is_none());
    s.write("bad.toml", "learning-rate = 3\n");
    run(&s, &[&judge[..], &["--config", "bad.toml"]].concat());
    s.refused(&["judge", "--config", "bad.toml", "--grader"], &["bad.toml", "learning-rate", "is not a flag"]);
    s.write("bad.toml", "request = '{}'\nextra-body = '{}'\n");
    s.refused(&["judge", "--config", "bad.toml", "--grader"], &["bad.toml", "request", "is there twice"]);
    s.write("bad.toml", "retries = \"many\"\n");
    s.refused(&["judge", "--config", "bad.toml", "--grader"], &["bad.toml", "retries"]);
}

#[test]
fn bad_input_is_told_and_leaves_nothing() {
    let s = sandbox(2);
    let url = ["judge", "--data", "rows.jsonl", "--endpoint", "http://127.0.0.1:9/v1"];
    let grader = ["judge", "--data", "rows.jsonl", "--grader", "--output-dir", "out"];
    let with = |base: &[&'static str], more: &[&'static str]| [base, more].concat();
    s.refused(&["judge", "--data", "rows.jsonl"], &["who judges?"]);
    s.refused(&with(&grader, &["--person"]), &["--grader", "--person", "one judge"]);
    s.refused(&url, &["--output-dir", "missing"]);
    s.refused(&with(&url, OUT), &["--judge-model", "missing"]);
    s.refused(&with(&grader, &["--retries", "3"]), &["--retries", "needs --endpoint"]);
    s.refused(&with(&grader, &["--template", "chat"]), &["--template", "needs --model"]);
    s.refused(&with(&grader, &["--prompt", "p.txt"]), &["--prompt"]);
    s.refused(&with(&grader, &["--grader-noise", "1.5"]), &["--grader-noise", "not in 0 .. 1"]);
    s.refused(&with(&grader, &["--concurrency", "0"]), &["--concurrency"]);
    s.refused(&with(&grader, &["--sample", "rows.jsonl"]), &["--sample", "--data"]);
    s.refused(&with(&grader, &["--pairs", "3"]), &["--pairs", "--sample"]);
    s.refused(&with(&grader, &["--mode", "pair"]), &["rows.jsonl:1", "--mode is pair"]);
    s.refused(&["judge", "--grader", "--output-dir", "out"], &["--data"]);
    s.refused(&["judge", "--grader", "--output-dir", "out", "--sample", "rows.jsonl"], &["rows.jsonl:1"]);
    let model = ["--judge-model", "m", "--output-dir", "out"];
    let endpoint = |url: &'static str| [&["judge", "--data", "rows.jsonl", "--endpoint", url][..], &model[..]].concat();
    s.refused(&endpoint("ftp://x/v1"), &["--endpoint", "http"]);
    s.refused(&endpoint("x"), &["--endpoint", "URL"]);
    s.refused(&endpoint("http://me:secret@x/v1"), &["--endpoint", "environment"]);
    s.refused(&with(&endpoint("http://x/v1"), &["--timeout", "0"]), &["--timeout"]);
    s.refused(&with(&endpoint("http://x/v1"), &["--request", "[1]"]), &["--request", "JSON"]);
    s.refused(&with(&endpoint("http://x/v1"), &["--max-cost", "1"]), &["--max-cost", "--price-in"]);
    s.refused(&with(&endpoint("http://x/v1"), &["--api-key-env", "NO_SUCH_KEY"]), &["--api-key-env", "NO_SUCH_KEY"]);
    s.refused(&["judge", "--data", "rows.jsonl", "--person", "--output-dir", "out"], &["--person", "terminal"]);
    s.write("p.txt", "{instruction} {response_a}");
    s.refused(&with(&endpoint("http://x/v1"), &["--prompt", "p.txt"]), &["p.txt", "response_b"]);
    for (row, parts) in [
        ("{\"instruction\": \"I\", \"response_0\": \"x\"}", ["rows.jsonl:3", "response_1"]),
        (
            "{\"instruction_0\": \"I\", \"response_0\": \"x\", \"instruction_1\": \"J\", \"response_1\": \"y\"}",
            ["rows.jsonl:3", "single"],
        ),
        ("{\"instruction\": 3, \"response_0\": \"x\", \"response_1\": \"y\"}", ["rows.jsonl:3", "a number"]),
        ("{\"instruc", ["rows.jsonl:3", "malformed"]),
    ] {
        s.write("rows.jsonl", format!("{}\n{row}\n", rows(2)));
        s.refused(&grader, &parts);
    }
    for key in ["", "two words"] {
        let mut command = s.command(&endpoint("http://x/v1"));
        let ran = Ran::of(command.env("THE_KEY", key).args(["--api-key-env", "THE_KEY"]));
        s.write("rows.jsonl", rows(2));
        assert!(!ran.stderr.contains("two words"), "{}", ran.stderr);
        assert_eq!(ran.status, 2);
    }
}

// ----------------------------------------------------------------------------------------------------------- command

#[cfg(unix)]
#[test]
fn a_command_judges_and_its_troubles_are_named() {
    let s = sandbox(6);
    // The larger number, without a JSON parser: what it is told is one line.
    s.write(
        "judge.sh",
        r#"read -r row
a=${row#*\"response_a\":\"}; a=${a%%\"*}
b=${row#*\"response_b\":\"}; b=${b%%\"*}
printf '%s\n' "$row" >> asked
if [ "$a" -gt "$b" ]; then echo "(a)"; elif [ "$a" -eq "$b" ]; then echo tie; else echo "(b)"; fi
"#,
    );
    let judge = |command: &'static str| ["judge", "--data", "rows.jsonl", "--command", command, "--output-dir", "out"];
    let ran = s.run(&judge("sh judge.sh")).ok();
    assert!(ran.stdout.contains("6 rows: 2 first, 3 second, 1 ties (0 of them"), "{}", ran.stdout);
    let asked = lines(&s, "asked");
    assert_eq!(asked.len(), 12);
    assert_eq!(
        (&asked[1]["mode"], &asked[1]["order"], &asked[1]["row"]),
        (&json!("single"), &json!("ba"), &json!("rows.jsonl:1"))
    );
    assert!(asked[0]["prompt"].as_str().unwrap().contains("Larger? 0") && asked[0]["instruction"] == "Larger? 0");

    let trouble = |command: &'static str, parts: &[&str], more: &[&str]| {
        let s = sandbox(1);
        let before = Instant::now();
        let ran = s.run(&[&judge(command)[..], more].concat());
        ran.said(1, &["2 questions without an answer"]);
        for part in parts {
            assert!(ran.stderr.contains(part), "`{part}` is not in {}", ran.stderr);
        }
        assert!(ran.stderr.contains("rows.jsonl:1, order ab") && ran.stderr.contains("rows.jsonl:1, order ba"));
        assert!(before.elapsed() < Duration::from_secs(20));
        assert_eq!(file(&s, "out/answers.jsonl").matches("\"failed\"").count(), 2);
    };
    trouble("echo '(a)'; echo no such model >&2; exit 3", &["ended with status 3: no such model"], &[]);
    trouble("kill -9 $$", &["was killed by signal 9"], &[]);
    trouble("sh -c 'kill -9 $$'; exit $?", &["was killed by signal 9"], &[]);
    trouble("sleep 60", &["timeout: the command did not end in 0.3 s"], &["--timeout", "0.3"]);
    // What it leaves behind holds its output open.
    trouble("sleep 60 & sleep 60", &["timeout"], &["--timeout", "0.3", "--concurrency", "2"]);
    trouble("no-such-program-anywhere", &["status 127"], &[]);

    let s = sandbox(1);
    let ran = s.run(&judge("sleep 60 & echo '(a)'")).ok();
    assert!(ran.stdout.contains("1 ties (1 of them the same letter"), "{}", ran.stdout);
    let s = sandbox(1);
    let ran = s.run(&judge("echo hm")).ok();
    assert!(ran.stdout.contains("1 unclear") && ran.stderr.contains("no answer: `hm`"), "{ran:?}");
}

/// cmd gets quotes as they were typed, and ends with everything that it started.
#[cfg(windows)]
#[test]
fn a_command_of_cmd_is_quoted_as_typed_and_ended_whole() {
    let judge = |command: &'static str| ["judge", "--data", "rows.jsonl", "--command", command, "--output-dir", "out"];
    let s = sandbox(1);
    s.write("words.txt", "two words");
    let ran = s.run(&judge(r#"findstr /C:"two words" "words.txt" >nul && echo (a)"#)).ok();
    assert!(ran.stdout.contains("1 ties (1 of them the same letter"), "{}", ran.stdout);
    let s = sandbox(1);
    let before = Instant::now();
    let ran = s.run(&[&judge("ping -n 60 127.0.0.1 >nul")[..], &["--timeout", "0.5"]].concat());
    ran.said(1, &["2 questions without an answer"]);
    assert!(ran.stderr.contains("timeout: the command did not end in 0.5 s"), "{}", ran.stderr);
    assert!(before.elapsed() < Duration::from_secs(20), "{:?}", before.elapsed());
}

// ------------------------------------------------------------------------------------------------------------ person

/// A terminal with the program in it; what it draws, and the keys that it gets.
#[cfg(unix)]
fn at_a_terminal(s: &Sandbox, args: &[&str], keys: &[u8]) -> (i32, String) {
    use std::io::{Read, Write};
    use std::os::fd::{FromRawFd, OwnedFd};
    let (mut ours, mut theirs) = (0, 0);
    let mut size = libc::winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: both numbers are written by the call, which is checked, and belong to nobody else.
    let (mut ours, theirs) = unsafe {
        let done = libc::openpty(&mut ours, &mut theirs, std::ptr::null_mut(), std::ptr::null_mut(), &raw mut size);
        assert_eq!(done, 0);
        (fs::File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))
    };
    let mut command = s.command(args);
    command.stdin(theirs.try_clone().unwrap()).stderr(theirs).stdout(Stdio::piped());
    let mut child = command.env("TERM", "xterm").spawn().unwrap();
    drop(command);
    let drawn = Arc::new(Mutex::new(String::new()));
    let (mut screen, into) = (ours.try_clone().unwrap(), drawn.clone());
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Some(n) = screen.read(&mut buffer).ok().filter(|&n| n > 0) {
            into.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    });
    let pages = || drawn.lock().unwrap().matches("q: quit").count();
    let wait = |seconds: f64, done: &mut dyn FnMut() -> bool| {
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < until && !done() {
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let mut seen = 0;
    for (i, key) in keys.iter().enumerate() {
        // A person looks first, and the terminal listens a moment after it has drawn. Not every key draws.
        wait(if i == 0 { 30.0 } else { 2.0 }, &mut || pages() > seen);
        std::thread::sleep(Duration::from_millis(200));
        seen = pages();
        let _ = ours.write_all(&[*key]);
    }
    wait(30.0, &mut || child.try_wait().unwrap().is_some());
    let _ = child.kill();
    let status = child.wait().unwrap().code().unwrap_or(-1);
    reader.join().unwrap();
    let drawn = drawn.lock().unwrap().clone();
    (status, drawn)
}

#[cfg(unix)]
#[test]
fn a_person_judges_at_a_terminal() {
    let s = sandbox(3);
    let judge = ["judge", "--data", "rows.jsonl", "--person", "--judge-name", "ann", "--output-dir", "out"];
    let (status, drawn) = at_a_terminal(&s, &judge, b"axbuat\x03");
    assert_eq!(status, 130, "{drawn}");
    for text in ["1 of 6: which response is better?", "Larger?", "(a)", "u: undo", "3 questions left"] {
        assert!(drawn.contains(text), "`{text}` is not in {drawn}");
    }
    let answers = lines(&s, "out/answers.jsonl");
    let letters: Vec<&Value> = answers[1..].iter().map(|a| a.get("choice").unwrap_or(&a["undone"])).collect();
    assert_eq!(letters, [&json!("a"), &json!("b"), &json!(true), &json!("a"), &json!("tie")]);
    assert_eq!(answers[2]["key"], answers[4]["key"], "the question that was undone came again");
    let (status, drawn) = at_a_terminal(&s, &[&judge[..], &["--resume"]].concat(), b"bbb");
    assert_eq!(status, 0, "{drawn}");
    assert!(drawn.contains("1 of 3") && !drawn.contains("of 6"), "{drawn}");
    let rows = lines(&s, "out/annotated.jsonl");
    assert!(rows.len() == 3 && rows.iter().all(|r| r["judge"] == "ann" && r["verdict"] != "no_answer"), "{rows:?}");
}

// -------------------------------------------------------------------------------------------- sampling, and interplay

/// Conditional preferences of the demo's tasks.
fn demo_preferences(n: usize) -> String {
    use jointwise::eval::tasks::{DataSplit, rows::conditional};
    conditional(DataSplit::Train, 3, n).map(|row| serde_json::to_string(&row).unwrap() + "\n").collect()
}

#[test]
fn from_preferences_to_the_report() {
    let s = Sandbox::new();
    s.write("prefs.jsonl", demo_preferences(60));
    let judge =
        ["judge", "--sample", "prefs.jsonl", "--pairs", "90", "--seed", "4", "--grader", "--output-dir", "joint"];
    let ran = s.run(&judge).ok();
    assert!(ran.stdout.contains("90 rows"), "{}", ran.stdout);
    let rows = lines(&s, "joint/annotated.jsonl");
    assert_eq!(rows.iter().filter(|r| r["stratum"] == "mixed").count(), 30);
    assert_eq!(lines(&s, "joint/comparisons.jsonl").len(), 90);
    let mixed: Vec<&Value> = rows.iter().filter(|r| r["stratum"] == "mixed").collect();
    let wins = mixed.iter().filter(|r| match r["verdict"].as_str() {
        Some("first") => r["chosen_0"] == true,
        Some("second") => r["chosen_1"] == true,
        _ => false,
    });
    let wins = wins.count();
    // Its training form is read by the trainer's own commands.
    let preferences = lines(&s, "joint/preferences.jsonl");
    let decided = rows.iter().filter(|r| ["first", "second"].contains(&r["verdict"].as_str().unwrap())).count();
    assert_eq!(preferences.len(), decided);
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");
    s.run(&["check", "--model", model, "--data", "joint/preferences.jsonl"]).ok();

    // The same comparisons by another judge, who prefers what is long: a person's, for the table.
    s.write(
        "long.sh",
        r#"read -r row
a=${row#*\"response_a\":\"}; a=${a%%\"*}; b=${row#*\"response_b\":\"}; b=${b%%\"*}
if [ ${#a} -gt ${#b} ]; then echo "(a)"; elif [ ${#a} -eq ${#b} ]; then echo tie; else echo "(b)"; fi
"#,
    );
    s.run(&[
        "judge",
        "--data",
        "joint/comparisons.jsonl",
        "--command",
        "sh long.sh",
        "--output-dir",
        "long",
        "--concurrency",
        "4",
    ])
    .ok();
    let analysis = ["interplay", "--data", "joint", "--people", "long/annotated.jsonl", "--draws", "300"];
    let ran = s.run(&analysis).ok();
    for text in ["one of each", "C>R, %", "Agreement with people", "grader", "(person)"] {
        assert!(ran.stdout.contains(text), "`{text}` is not in {}", ran.stdout);
    }
    let ran = s.run(&[&analysis[..], &["--json", "--report", "report.html"]].concat()).ok();
    let found: Value = serde_json::from_str(&ran.stdout).unwrap();
    let grader = &found["judges"][0];
    assert_eq!((&grader["judge"], &grader["rows"]), (&json!("grader"), &json!(90)));
    assert_eq!(grader["mixed"][0][1]["value"], wins as f64 / 30.0);
    assert_eq!(grader["decisive"][0][1]["value"], decided as f64 / 90.0);
    // 90 pairs of 60 preferences hang together, and preferences are drawn; in a stratum of 30 each stands once.
    assert_eq!(grader["decisive"][0][1]["units"], "rows");
    assert!((1..=3).all(|i| grader["decisive"][i][1]["units"] == "groups"), "{grader}");
    assert!(!ran.stdout.contains("-0.0,"), "{}", ran.stdout);
    assert_eq!(found["agreement"][0]["verdicts"]["n"], 90);
    assert!(found["agreement"][0]["verdicts"]["value"].as_f64().unwrap() < 1.0);
    let page = file(&s, "report.html");
    assert_eq!(page.matches("<figure").count(), 4);
    let again = s.run(&[&analysis[..], &["--json"]].concat()).ok();
    assert_eq!(again.stdout, ran.stdout, "the same seed, the same intervals");

    // The same draw, on the answers that are there.
    let ran = s.run(&[&judge[..], &["--resume", "--json"]].concat()).ok();
    assert_eq!((&ran.lines()[0]["asked"], &ran.lines()[0]["reused"]), (&json!(0), &json!(180)));
    s.run(&["judge", "--sample", "prefs.jsonl", "--pairs", "9999", "--grader", "--output-dir", "x"])
        .said(2, &["--pairs"]);
    s.refused(&["interplay", "--data", "prefs.jsonl"], &["prefs.jsonl:1", "instruction"]);
    s.refused(&["interplay"], &["--data"]);
    s.refused(&["interplay", "--data", "joint", "--report", "none/x.html"], &["--report", "folder"]);
    s.refused(&["interplay", "--data", "joint", "--report", "-"], &["--report", "standard output"]);
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::{FileTypeExt, symlink};
        s.refused(&["interplay", "--data", "joint", "--report", "/dev/full"], &["/dev/full", "No space left"]);
        assert!(fs::metadata("/dev/full").unwrap().file_type().is_char_device());
        symlink("report.html", s.path("page")).unwrap();
        fs::write(s.path("report.html"), "old").unwrap();
        s.run(&["interplay", "--data", "joint", "--report", "page"]).ok();
        assert!(s.path("page").is_symlink() && file(&s, "report.html").contains("<svg"));
    }
    s.refused(&["interplay", "--data", "joint", "--draws", "0"], &["--draws"]);
}

// ------------------------------------------------------------------------------------------------------- local model

#[test]
fn a_local_model_says_which_letter_it_would_rather_begin_with() {
    let s = Sandbox::new();
    s.write("prefs.jsonl", demo_preferences(6));
    s.write("prompt.txt", "{instruction_a} {response_a} or {instruction_b} {response_b}?");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");
    let judge = |out: &'static str, more: &[&'static str]| {
        let base =
            ["judge", "--sample", "prefs.jsonl", "--model", model, "--prompt", "prompt.txt", "--output-dir", out];
        [&base[..], more].concat()
    };
    s.run(&judge("one", &["--template", "none", "--batch-tokens", "1"])).ok();
    s.run(&judge("many", &["--template", "none"])).ok();
    let rows = lines(&s, "one/annotated.jsonl");
    assert_eq!(rows, lines(&s, "many/annotated.jsonl"), "one at a time, or side by side");
    // The same log-probabilities, from `score`: of each response that is "(a)" or "(b)" and nothing more.
    let mut texts = String::new();
    for row in &rows {
        let part = |name: &str| row[name].as_str().unwrap().to_string();
        let [one, two] =
            [0, 1].map(|i| format!("{} {}", part(&format!("instruction_{i}")), part(&format!("response_{i}"))));
        for prompt in [format!("{one} or {two}?"), format!("{two} or {one}?")] {
            for letter in ["(a)", "(b)"] {
                texts += &(json!({"instruction": prompt, "response": letter}).to_string() + "\n");
            }
        }
    }
    s.write("texts.jsonl", texts);
    let ran = s.run(&["score", "--model", model, "--template", "none", "--data", "texts.jsonl", "--tokens"]).ok();
    let scored: Vec<f64> = ran.lines()[..4 * rows.len()]
        .iter()
        .map(|line| {
            let logps = line["text"]["token_logps"].as_array().unwrap();
            // Without EOS, the last.
            line["text"]["logp_response"].as_f64().unwrap() - logps.last().unwrap().as_f64().unwrap()
        })
        .collect();
    let ours =
        rows.iter().flat_map(|row| row["logps"].as_array().unwrap().iter().flat_map(|pair| pair.as_array().unwrap()));
    let ours: Vec<f64> = ours.map(|x| x.as_f64().unwrap()).collect();
    assert_eq!(ours.len(), scored.len());
    for (i, (x, y)) in ours.iter().zip(&scored).enumerate() {
        assert!((x - y).abs() < 1e-4, "{i}: {x} {y}");
    }
    assert!(
        ours.iter().zip(scored.iter().skip(1)).any(|(x, y)| (x - y).abs() > 1e-2),
        "the wrong ones are told from these"
    );
    for row in &rows {
        for (pair, answer) in row["logps"].as_array().unwrap().iter().zip(row["answers"].as_array().unwrap()) {
            assert_eq!(answer == "a", pair[0].as_f64() > pair[1].as_f64());
        }
    }
    let ran = s.run(&judge("short", &["--max-length", "20"]));
    ran.said(1, &["without an answer"]);
    assert!(ran.stderr.contains("tokens, --max-length is 20"), "{}", ran.stderr);
    let many = s.run(&judge("many-short", &["--max-length", "20", "--pairs", "12"]));
    assert!(many.stderr.contains("4 more of these: many-short/answers.jsonl"), "{}", many.stderr);
    assert_eq!(many.stderr.matches("comparisons.jsonl:").count(), 20);
    s.run(&judge("one", &["--resume", "--template", "paper"])).said(2, &["--resume", "settings"]);
    // Its own chat template where nothing is said.
    s.run(&judge("chat", &[])).ok();
    assert_ne!(lines(&s, "chat/annotated.jsonl")[0]["logps"], rows[0]["logps"]);
}
