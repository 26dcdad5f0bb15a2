//! `jointwise evaluate` as a program, on the demo's model: against its grader, and against judges whose win rates are known beforehand.
#![allow(clippy::unwrap_used)]

mod program;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
#[cfg(unix)]
use std::process::Stdio;
use std::time::Duration;
#[cfg(unix)]
use std::time::Instant;

use jointwise::eval::tasks::{grade, read, rows};
use jointwise::model::description::ModelConfig;
use jointwise::model::lora_config::LoraConfig;
use jointwise::model::peft::{Adapter, write_adapter};
use jointwise::model::save::OutputDtype;
use program::{Ran, Sandbox};
use serde_json::{Value, json};
use server::{Act, Server, behind};

const N: usize = 6;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

/// A folder with test rows, and the demo's model in it as `model`.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    let items = rows::held_out(5, N);
    let lines: Vec<String> = items.iter().map(|item| serde_json::to_string(item).unwrap()).collect();
    sandbox.write("test.jsonl", lines.join("\n"));
    copy(&sandbox, "model");
    sandbox
}

fn copy(s: &Sandbox, name: &str) {
    let to = s.path(name);
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(demo()).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|e| e == "json" || e == "safetensors") {
            fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
        }
    }
}

/// Short: a few prompts, few tokens; `more` wins.
fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["evaluate", "--data", "test.jsonl"];
    for (flag, value) in [
        ("--output-dir", "out"),
        ("--model", "model"),
        ("--temperatures", "0"),
        ("--max-new-tokens", "12"),
        ("--draws", "200"),
    ] {
        if !more.contains(&flag) {
            all.extend([flag, value]);
        }
    }
    all.extend_from_slice(more);
    all
}

fn json_of(s: &Sandbox, name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(s.path(name)).unwrap()).unwrap()
}

fn lines(s: &Sandbox, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(s.path(name)).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn text(s: &Sandbox, name: &str) -> String {
    fs::read_to_string(s.path(name)).unwrap()
}

fn rate(results: &Value, method: usize) -> f64 {
    results["methods"][method]["win_rate"]["mean"]["value"].as_f64().unwrap()
}

/// Compares two numbers (lengths in characters) of a line of JSON on standard input, without a parser.
#[cfg(unix)]
fn judge(s: &Sandbox, name: &str, test: &str) -> String {
    s.write(
        name,
        format!(
            "read -r row\na=${{row#*\\\"response_a\\\":\\\"}}; a=${{a%%\\\"*}}\nb=${{row#*\\\"response_b\\\":\\\"}}; b=${{b%%\\\"*}}\n\
             echo x >> asked\nif [ ${{#a}} {test} ${{#b}} ]; then echo '(a)'; elif [ ${{#a}} = ${{#b}} ]; then echo tie; else echo '(b)'; fi\n"
        ),
    );
    format!("sh {name}")
}

#[test]
fn the_grader_judges_two_temperatures_and_seeds() {
    let s = sandbox();
    let more = ["--grader", "--temperatures", "0,1", "--seeds", "0,1", "--json"];
    let ran = s.run(&args(&more)).ok();
    let results: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(results, json_of(&s, "out/results.json"));
    assert_eq!(
        (&results["against"], &results["judge"], &results["prompts"]),
        (&json!("gold"), &json!("grader"), &json!(N))
    );
    let runs = results["runs"].as_array().unwrap();
    let names: Vec<&str> = runs.iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["model-t0-s0", "model-t0-s1", "model-t1-s0", "model-t1-s1"]);
    let mut rates = Vec::new();
    for (name, run) in names.iter().zip(runs) {
        // The same by hand.
        let responses = lines(&s, &format!("out/responses/{name}.jsonl"));
        let (mut won, mut length) = (0.0, 0);
        for (row, gold) in responses.iter().zip(lines(&s, "test.jsonl")) {
            assert_eq!(row["instruction"], gold["instruction"]);
            let [ours, theirs] = [&row["response"], &gold["gold_response"]].map(|text| text.as_str().unwrap().trim());
            let item = read(gold["instruction"].as_str().unwrap()).unwrap();
            won += match grade(&item, ours).score.total_cmp(&grade(&item, theirs).score) {
                std::cmp::Ordering::Greater => 1.0,
                std::cmp::Ordering::Equal => 0.5,
                std::cmp::Ordering::Less => 0.0,
            };
            length += ours.chars().count();
        }
        assert_eq!(run["win_rate"]["value"].as_f64().unwrap(), won / N as f64, "{name}");
        assert_eq!(run["mean_lengths"]["response"].as_f64().unwrap(), length as f64 / N as f64);
        rates.push(won / N as f64);
        // The annotated form of `judge`.
        let judged = lines(&s, &format!("out/judged/{name}.jsonl"));
        assert_eq!(judged.len(), N);
        for field in [
            "instruction",
            "response_0",
            "response_1",
            "verdict",
            "answers",
            "flip",
            "judge",
            "checkpoint",
            "temperature",
        ] {
            assert!(judged[0].get(field).is_some(), "{field} is not in {}", judged[0]);
        }
        let alpaca = json_of(&s, &format!("out/alpaca_eval/{name}.json"));
        let first = &alpaca[0];
        assert_eq!(alpaca.as_array().unwrap().len(), N);
        assert_eq!((&first["generator"], &first["dataset"]), (&json!(name), &json!("test")));
        assert_eq!(first["output"].as_str().unwrap(), responses[0]["response"].as_str().unwrap().trim());
        assert_eq!(first["instruction"], responses[0]["instruction"]);
        assert_eq!(first.as_object().unwrap().len(), 4);
    }
    let mean = rates.iter().sum::<f64>() / 4.0;
    assert!((rate(&results, 0) - mean).abs() < 1e-12);
    assert_eq!(text(&s, "out/responses/model-t0-s0.jsonl"), text(&s, "out/responses/model-t0-s1.jsonl"), "greedy");
    assert_ne!(text(&s, "out/responses/model-t1-s0.jsonl"), text(&s, "out/responses/model-t1-s1.jsonl"));
    let gold = json_of(&s, "out/alpaca_eval/gold.json");
    assert_eq!(
        (&gold[0]["output"], &gold[0]["generator"]),
        (&lines(&s, "test.jsonl")[0]["gold_response"], &json!("gold"))
    );
    let page = text(&s, "out/report.html");
    for part in
        ["Win rate against gold", "By temperature", "By ratio of lengths", "<svg class=\"bars\"", "at equal lengths"]
    {
        assert!(page.contains(part), "`{part}` is not on the page");
    }
    // The tables, and that `interplay` reads the rows.
    let ran = s.run(&["interplay", "--data", "out/judged/model-t0-s0.jsonl", "--json", "--draws", "50"]).ok();
    let interplay: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&interplay["judges"][0]["judge"], &interplay["judges"][0]["rows"]), (&json!("grader"), &json!(N)));
    let again = s.run(&args(&[&more[..5], &["--resume"]].concat())).ok();
    assert!(again.stdout.contains("Win rate by temperature") && again.stdout.contains("Every run"), "{}", again.stdout);
    assert_eq!(results, json_of(&s, "out/results.json"), "nothing was made again");
    s.refused(&args(&more), &["--output-dir", "not empty"]);
    s.refused(
        &args(&[&more[..], &["--resume", "--top-p", "0.5"]].concat()),
        &["--resume", "top_p", "was 1.0, now it is 0.5"],
    );
    fs::copy(s.path("test.jsonl"), s.path("kept.jsonl")).unwrap();
    let mut rows: Vec<String> = text(&s, "test.jsonl").lines().map(String::from).collect();
    rows.rotate_left(1);
    s.write("test.jsonl", rows.join("\n"));
    s.run(&args(&[&more[..], &["--resume"]].concat()))
        .said(2, &["out/responses/model-t0-s0.jsonl:1", "another prompt", "test.jsonl:1"]);
    // Other weights under the same name.
    fs::rename(s.path("kept.jsonl"), s.path("test.jsonl")).unwrap();
    program::perturb_bf16(&s.path("model"));
    s.refused(&args(&[&more[..], &["--resume"]].concat()), &["--resume", "`model` had other weights"]);
}

#[cfg(unix)]
#[test]
fn judges_whose_rates_are_known() {
    let s = sandbox();
    s.run(&args(&["--no-judge", "--temperatures", "1"])).ok();
    assert!(!s.path("out/results.json").exists() && s.path("out/alpaca_eval/model-t1-s0.json").exists());
    let (mut expected, mut n_same) = (0.0, 0);
    for (row, gold) in lines(&s, "out/responses/model-t1-s0.jsonl").iter().zip(lines(&s, "test.jsonl")) {
        let texts = [&row["response"], &gold["gold_response"]].map(|t| t.as_str().unwrap().trim());
        n_same += usize::from(texts[0] == texts[1]);
        let [ours, theirs] = texts.map(|text| text.chars().count());
        expected += if ours > theirs { 1.0 } else { f64::from(u8::from(ours == theirs)) / 2.0 };
    }
    expected /= N as f64;
    let results = |name: &str, command: &str| {
        // The responses of the first run, another judge's answers.
        let _ = fs::remove_file(s.path("out/answers.jsonl"));
        s.run(&args(&["--temperatures", "1", "--resume", "--command", command, "--judge-name", name])).ok();
        json_of(&s, "out/results.json")
    };
    let longer = results("longer", &judge(&s, "longer.sh", "-gt"));
    assert_eq!((rate(&longer, 0), &longer["judge"]), (expected, &json!("longer")));
    let shorter = results("shorter", &judge(&s, "shorter.sh", "-lt"));
    assert_eq!(rate(&shorter, 0), 1.0 - expected);
    assert!(expected != 0.5, "the two cannot be told apart");
    // Whoever always says the same letter, or neither, says nothing: ties are a half, exactly.
    for (command, flips) in [("echo '(a)'", N - n_same), ("echo '(b)'", N - n_same), ("echo tie", 0)] {
        let found = results("half", command);
        let method = &found["methods"][0];
        assert_eq!((rate(&found, 0), &method["ties"], &method["flips"]), (0.5, &json!(N), &json!(flips)), "{command}");
        assert_eq!(method["win_rate"]["mean"]["low"], 0.5);
        let page = text(&s, "out/report.html");
        assert_eq!(page.contains(&format!("{} of {N} ties are flips", N - n_same)), flips > 0, "{command}");
        assert_eq!(method["length_controlled"]["value"].as_f64().map(|x| (x - 0.5).abs() < 1e-9), Some(true));
    }
    // Nonsense has no part in a rate.
    let found = results("mumbler", "echo hm");
    assert_eq!(
        (&found["methods"][0]["no_answer"], &found["methods"][0]["win_rate"]["mean"]["value"]),
        (&json!(N - n_same), &json!(0.5))
    );
    // A judge that breaks down loses nothing, and is told.
    fs::remove_file(s.path("out/answers.jsonl")).unwrap();
    let broken = ["--temperatures", "1", "--resume", "--command", "echo no >&2; exit 3"];
    s.run(&args(&broken)).said(1, &["10 questions in a row"]);
    // Nothing was answered: another judge may go on.
    s.run(&args(&["--temperatures", "1", "--resume", "--grader"])).ok();
    s.run(&args(&["--temperatures", "1", "--resume", "--command", "echo tie"])).said(2, &["--resume", "another judge"]);
}

/// Says that the longer output is better, each time after a while.
fn longer(pause: Duration) -> Server {
    Server::start(move |_, body| {
        std::thread::sleep(pause);
        let prompt = body["messages"][0]["content"].as_str().unwrap();
        let [a, b] = ["Output (a):\n", "Output (b):\n"].map(|heading| behind(prompt, heading).chars().count());
        Act::Say(if a > b { "Output (a)" } else { "Output (b)" }.into())
    })
}

fn asking<'a>(server: &'a Server, more: &[&'a str]) -> Vec<&'a str> {
    args(&[&["--temperatures", "1", "--endpoint", &server.url, "--judge-model", "m"], more].concat())
}

#[test]
fn an_endpoint_is_asked_once_its_cost_is_known() {
    let (s, server) = (sandbox(), longer(Duration::ZERO));
    let prices = ["--price-in", "1000", "--price-out", "0"];
    // Responses cost nothing, and are kept; questions are counted first.
    let ran = s.run(&asking(&server, &[&prices[..], &["--estimate"]].concat())).ok();
    assert!(ran.stdout.contains("questions to m: about"), "{}", ran.stdout);
    let refused = s.run(&asking(&server, &[&prices[..], &["--resume", "--max-cost", "0.01"]].concat()));
    refused.said(2, &["--max-cost", "above 0.01"]);
    assert!(server.requests().is_empty() && !s.path("out/results.json").exists());
    s.run(&asking(&server, &[&prices[..], &["--resume", "--max-cost", "1000"]].concat())).ok();

    let judged = lines(&s, "out/judged/model-t1-s0.jsonl");
    let (mut won, mut same) = (0.0, 0);
    for row in &judged {
        let [ours, gold] = ["response_0", "response_1"].map(|name| row[name].as_str().unwrap().trim());
        won += match ours.chars().count().cmp(&gold.chars().count()) {
            std::cmp::Ordering::Greater => 1.0,
            std::cmp::Ordering::Equal => 0.5,
            std::cmp::Ordering::Less => 0.0,
        };
        same += usize::from(ours == gold);
    }
    let found = json_of(&s, "out/results.json");
    assert_eq!((judged.len(), rate(&found, 0), &found["judge"]), (N, won / N as f64, &json!("m")));
    assert_eq!(server.requests().len(), 2 * (N - same), "both orders, and nobody is asked about two equal texts");
    assert!(server.times_asked().iter().all(|&n| n == 1));
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_answers_and_responses() {
    let (s, server) = (sandbox(), longer(Duration::from_millis(150)));
    let whole = s.run(&asking(&server, &["--output-dir", "whole"])).ok();
    assert!(!whole.stderr.contains("--resume"), "{}", whole.stderr);
    let asked = server.requests().len();
    let interrupt = |more: &[&str], until: &dyn Fn() -> bool| {
        let all = asking(&server, &[&["--concurrency", "1"], more].concat());
        let child = s.command(&all).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let started = Instant::now();
        while !until() {
            assert!(started.elapsed() < Duration::from_secs(240), "it does not come to it");
            std::thread::sleep(Duration::from_millis(2));
        }
        // SAFETY: a system call on our own child.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
        let out = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(130), "{said}");
        assert!(said.contains("--resume goes on"), "{said}");
    };
    // While responses are made, then while they are judged.
    interrupt(&["--batch-size", "1"], &|| lines_of(&s.path("out/responses/model-t1-s0.jsonl")) > 1);
    assert!(server.requests().len() == asked && !s.path("out/results.json").exists());
    interrupt(&["--resume"], &|| server.requests().len() >= asked + 3);
    assert!(server.requests().len() < 2 * asked && !s.path("out/results.json").exists());
    s.run(&asking(&server, &["--resume"])).ok();
    assert_eq!(server.requests().len(), 2 * asked, "nothing was asked twice");
    let [whole, stopped] = ["whole/results.json", "out/results.json"].map(|name| json_of(&s, name));
    assert_eq!(whole["methods"], stopped["methods"]);
    let name = "responses/model-t1-s0.jsonl";
    assert_eq!(text(&s, &format!("whole/{name}")), text(&s, &format!("out/{name}")));
}

#[cfg(unix)]
#[test]
fn two_checkpoints_head_to_head() {
    let s = sandbox();
    for name in ["same", "other"] {
        copy(&s, name);
    }
    program::perturb_bf16(&s.path("other"));
    let more = [
        "--checkpoint",
        "same",
        "--checkpoint",
        "worse=other",
        "--against",
        "base=model",
        "--command",
        &judge(&s, "longer.sh", "-gt"),
    ];
    s.run(&args(&more)).ok();
    let found = json_of(&s, "out/results.json");
    assert_eq!(found["against"], "base");
    let names: Vec<&str> = found["methods"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["same", "worse"]);
    assert_eq!(rate(&found, 0), 0.5, "a checkpoint against itself");
    let [ours, theirs] = ["worse", "base"].map(|name| lines(&s, &format!("out/responses/{name}-t0-s0.jsonl")));
    let length = |row: &Value| row["response"].as_str().unwrap().trim().chars().count();
    let score = |(a, b): (&Value, &Value)| match length(a).cmp(&length(b)) {
        std::cmp::Ordering::Greater => 1.0,
        std::cmp::Ordering::Equal => 0.5,
        std::cmp::Ordering::Less => 0.0,
    };
    let expected = ours.iter().zip(&theirs).map(score).sum::<f64>() / N as f64;
    assert_eq!(rate(&found, 1), expected);
    assert_ne!(text(&s, "out/responses/worse-t0-s0.jsonl"), text(&s, "out/responses/base-t0-s0.jsonl"));
    let difference = &found["differences"][0];
    assert_eq!(difference["methods"], json!(["same", "worse"]));
    assert_eq!(difference["win_rate"]["value"].as_f64().unwrap(), 0.5 - expected);
    let judged = lines(&s, "out/judged/worse-t0-s0.jsonl");
    assert_eq!(
        (&judged[0]["against"], &judged[0]["response_1"]),
        (&json!("base"), &json!(theirs[0]["response"].as_str().unwrap().trim()))
    );
    // Rows without a gold response do.
    s.write("test.jsonl", text(&s, "test.jsonl").replace("gold_response", "something_else"));
    s.run(&args(&["--against", "other", "--grader", "--output-dir", "no_gold"])).ok();
    assert!(!s.path("no_gold/alpaca_eval/gold.json").exists());
}

/// A fresh adapter, which changes nothing.
fn adapter(s: &Sandbox, name: &str, seed: u64) {
    let config = demo().join("config.json");
    let d = ModelConfig::from_json(&config, &fs::read_to_string(&config).unwrap()).unwrap();
    let lora = LoraConfig { rank: 2, ..LoraConfig::default() };
    let adapter = Adapter::new(&d, &lora, "model", seed).unwrap();
    let values = &mut |name: &str| Ok(adapter.lora.values(name).unwrap());
    fs::create_dir_all(s.path(name)).unwrap();
    write_adapter(&s.path(name), &adapter.config, &d, &adapter.lora, OutputDtype::F32, values).unwrap();
}

#[test]
fn adapters_of_several_seeds_are_one_method() {
    let s = sandbox();
    for (name, seed) in [("runs/jpo-0", 1), ("runs/jpo-1", 2), ("runs/dpo", 3), ("old/dpo", 4)] {
        adapter(&s, name, seed);
    }
    s.write("run.toml", "checkpoint = [\"runs/dpo\", \"old/dpo\"]\ngroup = [\"jpo=runs/jpo-0,runs/jpo-1\"]\ntemperatures = [0.0, 0.5]\ngrader = true\nlimit = 4\n");
    let mut all = args(&["--config", "run.toml"]);
    all.retain(|a| !["--temperatures", "0"].contains(a));
    s.run(&all).ok();
    let found = json_of(&s, "out/results.json");
    let methods = found["methods"].as_array().unwrap();
    let names: Vec<&str> = methods.iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["runs-dpo", "old-dpo", "jpo"]);
    let jpo = &methods[2];
    assert_eq!((&jpo["checkpoints"], &jpo["win_rate"]["runs"]), (&json!(["jpo-0", "jpo-1"]), &json!(4)));
    assert_eq!((&found["prompts"], found["runs"].as_array().unwrap().len()), (&json!(4), 8));
    assert_eq!(jpo["by_temperature"][1]["temperature"], 0.5);
    assert_eq!(jpo["by_temperature"][0]["sd"], 0.0, "fresh adapters change nothing, and greedy answers are the same");
    assert_eq!(text(&s, "out/responses/jpo-0-t0.5-s0.jsonl"), text(&s, "out/responses/old-dpo-t0.5-s0.jsonl"));
}

#[cfg(unix)]
fn wait_for(path: &Path, n: usize, child: &mut std::process::Child) {
    let started = Instant::now();
    while fs::read_to_string(path).map_or(0, |t| t.matches('\n').count()) < n {
        assert!(child.try_wait().unwrap().is_none(), "it ended before line {n} of {}", path.display());
        assert!(started.elapsed() < Duration::from_secs(240), "no line {n}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(unix)]
#[test]
fn killed_and_resumed_is_uninterrupted() {
    let s = sandbox();
    let command = format!("sleep 0.05; {}", judge(&s, "longer.sh", "-gt"));
    let of = |out: &'static str| {
        args(&["--temperatures", "1", "--seeds", "3", "--batch-size", "1", "--command", &command, "--output-dir", out])
            .into_iter()
            .map(String::from)
            .collect::<Vec<_>>()
    };
    let run = |all: &[String], more: &[&str]| {
        Ran::of(&mut s.command(&[all.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), more].concat()))
    };
    run(&of("whole"), &[]).ok();
    let n_asked = lines_of(&s.path("asked"));
    // Nobody is asked about what is compared with itself.
    let is_same = |row: &Value| row["response_0"] == row["response_1"];
    let n_same = lines(&s, "whole/judged/model-t1-s3.jsonl").iter().filter(|row| is_same(row)).count();
    assert_eq!(n_asked, 2 * (N - n_same));
    fs::remove_file(s.path("asked")).unwrap();

    let files = [
        "responses/model-t1-s3.jsonl",
        "judged/model-t1-s3.jsonl",
        "results.json",
        "alpaca_eval/model-t1-s3.json",
        "answers.jsonl",
    ];
    let started = |all: &[String], more: &[&str]| {
        let all: Vec<&str> = all.iter().map(String::as_str).chain(more.iter().copied()).collect();
        s.command(&all).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let responses = s.path("killed/responses/model-t1-s3.jsonl");
    let mut child = started(&of("killed"), &[]);
    wait_for(&responses, 2, &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = fs::read_to_string(&responses).unwrap();
    let n_kept = kept.lines().count();
    assert!(n_kept < N, "it had ended");
    // And in the middle of a line.
    fs::write(&responses, format!("{kept}{{\"instruction\": \"Spe")).unwrap();
    let mut child = started(&of("killed"), &["--resume"]);
    wait_for(&s.path("killed/answers.jsonl"), 5, &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(fs::read_to_string(&responses).unwrap().starts_with(&kept), "what was there stays");
    assert!(!s.path("killed/results.json").exists());
    let answers = s.path("killed/answers.jsonl");
    let mut half = fs::read_to_string(&answers).unwrap();
    half.truncate(half.trim_end().len() - 10);
    fs::write(&answers, half).unwrap();
    let ran = run(&of("killed"), &["--resume"]).ok();
    assert!(ran.stderr.contains("answers.jsonl:") && ran.stderr.contains("cut short"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("to make"), "responses were made again: {}", ran.stderr);
    for file in files {
        let [whole, killed] = ["whole", "killed"].map(|out| text(&s, &format!("{out}/{file}")).replace(out, "out"));
        let sorted = |text: &str| {
            // A checksum is of the line with the folder's own name.
            let mut lines: Vec<&str> = text.lines().filter_map(|line| line.split(",\"crc32c\"").next()).collect();
            lines.sort_unstable();
            lines.join("\n")
        };
        // Answers may have been given in another order.
        assert_eq!(sorted(&whole), sorted(&killed), "{file}");
    }
    let asked = lines_of(&s.path("asked"));
    assert!((n_asked..=n_asked + 3).contains(&asked), "asked again: {asked}");
    // Of a response that is another one, this comparison would tell.
    let other = text(&s, "whole/responses/model-t1-s3.jsonl");
    s.run(&args(&["--temperatures", "1", "--seeds", "4", "--no-judge", "--output-dir", "seed4"])).ok();
    assert_ne!(other, text(&s, "seed4/responses/model-t1-s4.jsonl"));
}

#[cfg(unix)]
fn lines_of(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[test]
fn prompts_that_are_too_long_are_named_and_left_out() {
    let s = sandbox();
    let long =
        json!({"instruction": format!("Write {} backwards.", "ab".repeat(260)), "gold_response": "ba"}).to_string();
    let mut rows: Vec<String> = text(&s, "test.jsonl").lines().map(String::from).collect();
    rows.insert(2, long);
    s.write("test.jsonl", rows.join("\n"));
    let ran = s.run(&args(&["--grader", "--json"])).ok();
    let found = json_of(&s, "out/results.json");
    assert!(ran.stderr.contains("note: test.jsonl:3: ") && ran.stderr.contains("left out"), "{}", ran.stderr);
    assert!(ran.stderr.contains("1 of 7 prompts are too long"), "{}", ran.stderr);
    assert_eq!((&found["prompts"], &found["dropped"][0]["line"]), (&json!(N), &json!(3)));
    assert_eq!(lines(&s, "out/responses/model-t0-s0.jsonl").len(), N);
    s.refused(
        &args(&["--grader", "--max-new-tokens", "511", "--output-dir", "none"]),
        &["--max-new-tokens", "no prompt"],
    );
}

/// An adapter's own chat template makes prompts longer than the base's: what is too long for either is left out of both.
#[test]
fn prompts_are_measured_by_each_checkpoints_tokens() {
    let s = sandbox();
    adapter(&s, "tuned", 1);
    s.write("model/chat_template.jinja", "{{ messages[0].content }}");
    s.write("tuned/chat_template.jinja", "{% for i in range(5) %}{{ messages[0].content }}{% endfor %}");
    let long = json!({"instruction": format!("Write {} backwards.", "ab".repeat(80))}).to_string();
    s.write("test.jsonl", format!("{{\"instruction\": \"Say hi\"}}\n{long}\n"));
    let all = ["--no-judge", "--template", "chat", "--checkpoint", "tuned"];
    let left_out = |ran: Ran| ran.stderr.contains("note: test.jsonl:2: ");
    assert!(left_out(s.run(&args(&[&["--checkpoint", "model"], &all[..]].concat())).ok()));
    assert_eq!(["model", "tuned"].map(|name| lines(&s, &format!("out/responses/{name}-t0-s0.jsonl")).len()), [1, 1]);
    let alone = ["--no-judge", "--template", "chat", "--checkpoint", "model", "--output-dir", "alone"];
    assert!(!left_out(s.run(&args(&alone)).ok()));

    // Of a base whose folder has no tokenizer, where adapters have theirs.
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        fs::rename(s.path("model").join(name), s.path("tuned").join(name)).unwrap();
    }
    s.run(&args(&[&all[..], &["--output-dir", "own"]].concat())).ok();
    assert_eq!(lines(&s, "own/responses/tuned-t0-s0.jsonl"), lines(&s, "out/responses/tuned-t0-s0.jsonl"));
    s.refused(&args(&["--no-judge", "--output-dir", "none"]), &["model/tokenizer.json", "No such file"]);
}

#[test]
fn bad_input_is_told_and_leaves_nothing() {
    let s = sandbox();
    adapter(&s, "adapter", 1);
    copy(&s, "twin/model");
    let with = |more: &[&'static str]| args(&[&["--grader"], more].concat());
    let refused = |more: &[&'static str], parts: &[&str]| s.refused(&with(more), parts);
    s.refused(&args(&[]), &["who judges?", "--judge DIR"]);
    refused(&["--person"], &["--grader", "--person", "one judge"]);
    refused(&["--no-judge"], &["--no-judge"]);
    refused(&["--judge", "model"], &["--grader", "--judge", "one judge"]);
    refused(&["--judge-temperature", "1"], &["--judge-temperature", "needs --endpoint"]);
    refused(&["--judge-template", "chat"], &["--judge-template", "needs --judge"]);
    refused(&["--temperatures", "0.5,-1"], &["--temperatures", "-1 is below 0"]);
    refused(&["--temperatures", "0.5,0.5"], &["--temperatures", "twice"]);
    refused(&["--seeds", "1,2,1"], &["--seeds", "twice"]);
    refused(&["--top-p", "0"], &["--top-p"]);
    refused(&["--draws", "0"], &["--draws", "must be at least 1"]);
    refused(&["--limit", "0"], &["--limit", "must be at least 1"]);
    refused(&["--batch-size", "0"], &["--batch-size", "must be at least 1"]);
    refused(&["--checkpoint", "nowhere"], &["nowhere"]);
    refused(&["--checkpoint", "a=model", "--checkpoint", "a=adapter"], &["--checkpoint", "two are called a"]);
    refused(&["--group", "model"], &["--group", "NAME=DIR,DIR"]);
    refused(&["--group", "m=model,"], &["--group"]);
    refused(&["--against", "twin/model"], &["--against", "`model`", "NAME=DIR"]);
    refused(&["--against", "model"], &["--against", "only checkpoint"]);
    refused(&["--template", "{prompt}"], &["--template"]);
    refused(&["--config", "none.toml"], &["none.toml"]);
    s.refused(&["evaluate", "--grader", "--data", "test.jsonl", "--output-dir", "out"], &["--model", "missing"]);
    s.refused(
        &["evaluate", "--grader", "--data", "test.jsonl", "--output-dir", "out", "--checkpoint", "adapter"],
        &["--model", "adapter", "on which model?"],
    );
    s.refused(&["evaluate", "--grader", "--model", "model", "--output-dir", "out"], &["--data", "missing"]);
    s.refused(&["evaluate", "--grader", "--model", "model", "--data", "test.jsonl"], &["--output-dir", "missing"]);
    let good = text(&s, "test.jsonl");
    let first = good.lines().next().unwrap();
    for (row, parts) in [
        ("{\"instruction\": \"B\"}", ["test.jsonl:7", "`gold_response` is missing"]),
        (first, ["test.jsonl:7", "the instruction of test.jsonl:1 again"]),
        ("{\"instruction\": 3, \"gold_response\": \"b\"}", ["test.jsonl:7", "a number"]),
        ("{\"instruc", ["test.jsonl:7", "malformed"]),
    ] {
        s.write("test.jsonl", format!("{good}\n{row}\n"));
        refused(&[], &parts);
    }
    s.write("test.jsonl", "\n");
    refused(&[], &["test.jsonl", "no rows"]);
    // A row that is none of the grader's is told, and counted out.
    s.write("test.jsonl", format!("{good}\n{{\"instruction\": \"Who are you?\", \"gold_response\": \"I\"}}\n"));
    let ran = s.run(&with(&[]));
    ran.said(1, &["2 questions without an answer", "--resume"]);
    assert_eq!(json_of(&s, "out/results.json")["methods"][0]["no_answer"], 1);
}

#[test]
fn a_local_model_judges() {
    let s = sandbox();
    s.write("ask.txt", "{instruction} a {response_a} b {response_b}");
    s.run(&args(&["--judge", "model", "--prompt", "ask.txt", "--judge-template", "none", "--limit", "3"])).ok();
    let found = json_of(&s, "out/results.json");
    assert_eq!((&found["judge"], &found["methods"][0]["no_answer"]), (&json!("model"), &json!(0)));
    assert!(lines(&s, "out/judged/model-t0-s0.jsonl").iter().all(|row| row["logps"][0][0].is_number()));
}
