//! Data sets of the hub, read through `hf://`: from a server that the test starts, and from the cache without one.
#![expect(clippy::unwrap_used, reason = "tests")]

mod program;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::Command;

use program::{Ran, Sandbox, rows};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const ROWS: &str = "hf://datasets/org/prefs/data/rows.jsonl";
const CONVERTED: &str = "hf://datasets/org/prefs@~parquet/default/train/0000.parquet";

/// Lists the files that the hub converted, as its tree does.
fn tree(paths: &[&str]) -> Vec<u8> {
    let entry = |path: &&str| serde_json::json!({"type": "file", "oid": "0", "size": 1, "path": path});
    serde_json::to_vec(&paths.iter().map(entry).collect::<Vec<_>>()).unwrap()
}

/// Serves two files of `org/prefs` as the hub does, what it converted of three data sets, and `org/gated` to nobody; its address.
fn hub() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let parquet = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parquet/joint.parquet")).unwrap();
    let plain = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parquet/plain.parquet")).unwrap();
    let converted =
        |data_set: &str, path: &str| format!("/datasets/org/{data_set}/resolve/refs%2Fconvert%2Fparquet/{path}");
    let listed = |data_set: &str| format!("/api/datasets/org/{data_set}/tree/refs%2Fconvert%2Fparquet?recursive=true");
    let files = [
        ("/datasets/org/prefs/resolve/main/data/rows.jsonl".to_string(), rows("mistral-odd").join("\n").into_bytes()),
        (converted("prefs", "default/train/0000.parquet"), parquet),
        (converted("many", "default/train/0000.parquet"), plain.clone()),
        (converted("many", "default/train/0001.parquet"), plain.clone()),
        (converted("many", "default/test/0000.parquet"), plain),
        (listed("prefs"), tree(&[".gitattributes", "default/train/0000.parquet"])),
        (
            listed("many"),
            tree(&["default/train/0001.parquet", "default/test/0000.parquet", "default/train/0000.parquet"]),
        ),
        (listed("configured"), tree(&["en/train/0000.parquet", "de/train/0000.parquet"])),
    ];
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let first = lines.next().unwrap_or_default();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let (method, path) = first.split_once(' ').unwrap_or_default();
            let path = path.split(' ').next().unwrap_or_default();
            let close = "Connection: close\r\n";
            let _ = match files.iter().position(|(name, _)| name == path) {
                Some(i) => {
                    let body = &files[i].1;
                    let head =
                        format!("ETag: \"file-{i}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Length: {}\r\n", body.len());
                    let sent = if method == "HEAD" { &[][..] } else { body };
                    write!(stream, "HTTP/1.1 200 OK\r\n{head}{close}\r\n").and_then(|()| stream.write_all(sent))
                }
                None if path.contains("/gated/") => {
                    write!(
                        stream,
                        "HTTP/1.1 403 Forbidden\r\nX-Error-Code: GatedRepo\r\nContent-Length: 0\r\n{close}\r\n"
                    )
                }
                None if path.contains("/tree/") => {
                    write!(
                        stream,
                        "HTTP/1.1 404 Not Found\r\nX-Error-Code: RevisionNotFound\r\nContent-Length: 0\r\n{close}\r\n"
                    )
                }
                None => {
                    write!(
                        stream,
                        "HTTP/1.1 404 Not Found\r\nX-Error-Code: EntryNotFound\r\nContent-Length: 0\r\n{close}\r\n"
                    )
                }
            };
        }
    });
    address
}

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.copy("mistral-odd/model", "model");
    sandbox
}

fn check(s: &Sandbox, endpoint: &str, data: &str) -> Command {
    let mut command = s.command(&["check", "--model", "model", "--json", "--data", data]);
    command
        .env("HF_HOME", s.path("hf"))
        .env("HF_ENDPOINT", endpoint)
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("HF_HUB_CACHE");
    command
}

#[test]
fn a_file_of_a_data_set_is_fetched_once_and_kept() {
    let (s, endpoint) = (sandbox(), hub());
    let count = |ran: Ran| ran.ok().lines()[0]["n_rows"].as_u64().unwrap();
    let there = rows("mistral-odd").len() as u64;
    assert_eq!(count(Ran::of(&mut check(&s, &endpoint, ROWS))), there);
    assert_eq!(count(Ran::of(&mut check(&s, &endpoint, CONVERTED))), 7);
    // Nobody answers there; then nobody is asked.
    let gone = "http://127.0.0.1:9";
    assert_eq!(count(Ran::of(&mut check(&s, gone, ROWS))), there);
    assert_eq!(count(Ran::of(check(&s, gone, CONVERTED).env("HF_HUB_OFFLINE", "1"))), 7);
}

#[test]
fn what_the_hub_does_not_give_is_one_line_with_the_way_out() {
    let (s, endpoint) = (sandbox(), hub());
    let told = |data: &str, parts: &[&str]| {
        let parts: Vec<&str> = [&[data], parts].concat();
        Ran::of(&mut check(&s, &endpoint, data)).said(2, &parts);
    };
    told("hf://datasets/org/prefs/data/absent.jsonl", &["from the hub", "absent.jsonl"]);
    told("hf://datasets/org/gated/rows.jsonl", &["the hub refuses", "gated or private data set set HF_TOKEN"]);
    told(
        "hf://org/prefs/rows.jsonl",
        &["expected hf://datasets/org/name, hf://datasets/org/name:split, hf://datasets/org/name/file"],
    );
    let gone = Ran::of(&mut check(&s, "http://127.0.0.1:9", ROWS));
    gone.said(2, &[ROWS, "the hub cannot be reached", "give a local file instead"]);
    let offline = Ran::of(check(&s, &endpoint, ROWS).env("HF_HUB_OFFLINE", "1"));
    offline.said(2, &[ROWS, "not in the hub's cache: give a local file instead"]);
}

#[test]
fn a_data_set_without_a_file_is_what_the_hub_converted() {
    let (s, endpoint) = (sandbox(), hub());
    let count = |ran: &Ran| {
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        ran.lines()[0]["n_rows"].as_u64().unwrap()
    };
    let read = |endpoint: &str, data: &str| Ran::of(check(&s, endpoint, data).args(["--sft"]));
    let one = read(&endpoint, "hf://datasets/org/prefs");
    assert_eq!(count(&one), 7);
    assert!(
        one.stderr.contains("hf://datasets/org/prefs: the split train of the configuration default is read"),
        "{}",
        one.stderr
    );
    // Two files of one split; the other split by its name.
    let many = read(&endpoint, "hf://datasets/org/many");
    assert_eq!(count(&many), 6);
    let note =
        "the split train of the configuration default is read, not test (such as hf://datasets/org/many:default/test)";
    assert!(many.stderr.contains(note), "{}", many.stderr);
    for address in ["hf://datasets/org/many:test", "hf://datasets/org/many:default/test"] {
        assert_eq!(count(&read(&endpoint, address)), 3, "{address}");
    }
    let told = |address: &str, parts: &[&str]| read(&endpoint, address).said(2, &[&[address], parts].concat());
    told("hf://datasets/org/many:dev", &["no split `dev`", "test, train"]);
    told("hf://datasets/org/configured", &["the configurations de, en", "hf://datasets/org/configured:de/train"]);
    told("hf://datasets/org/unconverted", &["has not converted", "hf://datasets/org/unconverted/FILE"]);
    told("hf://datasets/org/gated", &["the hub refuses", "set HF_TOKEN"]);
    told("hf://datasets/org/many@main", &["expected hf://datasets/org/name"]);
    // What is in the cache serves without the hub, if it is whole.
    let gone = "http://127.0.0.1:9";
    assert_eq!(count(&read(gone, "hf://datasets/org/many:train")), 6);
    let kept = s.path(&format!("hf/hub/datasets--org--many/snapshots/{COMMIT}/default/train/0000.parquet"));
    fs::remove_file(kept).unwrap();
    read(gone, "hf://datasets/org/many:train").said(2, &["0000.parquet", "give a local file instead"]);
    read(gone, "hf://datasets/org/other").said(2, &["the hub cannot be reached"]);
}

/// An adapter in the hub's cache, at a revision and in a folder of its repository.
#[cfg(unix)]
#[test]
fn an_adapter_of_the_hub_is_read_from_its_cache() {
    let s = sandbox();
    s.write("rows.jsonl", rows("mistral-odd").join("\n"));
    s.copy("lora-mistral/adapter", "adapter");
    let repository = s.path("hf/hub/models--org--tuned");
    let (blobs, snapshot) = (repository.join("blobs"), repository.join(format!("snapshots/{COMMIT}")));
    for folder in [blobs.clone(), snapshot.join("runs/dpo"), repository.join("refs")] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    for (name, depth) in [("adapter_config.json", 2), ("adapter_model.safetensors", 2)] {
        fs::copy(s.path("adapter").join(name), blobs.join(name)).unwrap();
        let up = |n: usize| format!("{}blobs/{name}", "../".repeat(n));
        std::os::unix::fs::symlink(up(depth), snapshot.join(name)).unwrap();
        std::os::unix::fs::symlink(up(depth + 2), snapshot.join("runs/dpo").join(name)).unwrap();
    }
    let score = |adapter: &str| {
        let mut command = s.command(&["score", "--model", "model", "--data", "rows.jsonl", "--adapter", adapter]);
        command.env("HF_HOME", s.path("hf")).env("HF_HUB_OFFLINE", "1").env_remove("HF_HUB_CACHE");
        Ran::of(&mut command)
    };
    let here = score("adapter").ok().stdout;
    for id in ["org/tuned".into(), format!("org/tuned@{COMMIT}"), "org/tuned/runs/dpo".into()] {
        assert_eq!(score(&id).ok().stdout, here, "{id}");
    }
    score("org/other")
        .said(2, &["--adapter: org/other", "not in the hub's cache: give a local folder (adapter_config.json"]);
    score("org/tuned/runs/absent").said(2, &["--adapter: org/tuned/runs/absent"]);
    score("nowhere").said(2, &["--adapter: nowhere: no such folder, and no hub id"]);

    // The same as a checkpoint.
    s.write("test.jsonl", "{\"instruction\": \"Say hi\"}\n");
    let evaluate = |place: &str, out: &str| {
        let args = ["evaluate", "--model", "model", "--data", "test.jsonl", "--no-judge", "--max-new-tokens", "4"];
        let mut command = s.command(&[&args[..], &["--checkpoint", place, "--output-dir", out]].concat());
        command.env("HF_HOME", s.path("hf")).env("HF_HUB_OFFLINE", "1").env_remove("HF_HUB_CACHE");
        Ran::of(command.args(["--temperatures", "0"]))
    };
    let responses = |place: &str, out: &str, name: &str| {
        evaluate(place, out).ok();
        fs::read_to_string(s.path(out).join("responses").join(name)).unwrap()
    };
    let here = responses("adapter", "here", "adapter-t0-s0.jsonl");
    assert_eq!(responses("org/tuned/runs/dpo", "there", "dpo-t0-s0.jsonl"), here);
    evaluate("org/tuned/runs/absent", "absent").said(2, &["--checkpoint: org/tuned/runs/absent: there is no adapter"]);
}
