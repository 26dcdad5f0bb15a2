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
            // A content may be asked for by its commit, too.
            let revision = ["main", "refs%2Fconvert%2Fparquet"].map(|name| path.replace(COMMIT, name));
            let _ = match files.iter().position(|(name, _)| name == path || revision.contains(name)) {
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

/// Server of one model, `org/tiny`, as the hub serves a gated repository in Xet storage: small files by the hub itself, behind a redirect within it, and
/// weights by a second server, which knows no tokens and serves ranges.
struct ModelHub {
    endpoint: String,
    /// Request lines of the second server, each with its `Range` header.
    requests: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

const TOKEN: &str = "hf_secret";

/// Reads a request's head: its first line, and the value of each of these headers.
fn read_head<const N: usize>(stream: &std::net::TcpStream, headers: [&str; N]) -> (String, [Option<String>; N]) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let value = |name: &str| {
        let is_named = |(key, value): (&str, &str)| key.eq_ignore_ascii_case(name).then(|| value.trim().to_string());
        head.iter().filter_map(|line| line.split_once(':')).find_map(is_named)
    };
    (first, headers.map(value))
}

fn serve(answer: impl Fn(&mut std::net::TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || listener.incoming().for_each(|stream| answer(&mut stream.unwrap())));
    address
}

impl ModelHub {
    /// `cut`: the second server's first answer ends after so many bytes.
    fn start(cut: Option<usize>) -> Self {
        use sha2::{Digest, Sha256};
        let read = |name: &str| fs::read(program::fixture("mistral-odd/model").join(name)).unwrap();
        let weights = read("model.safetensors");
        let sha256: String = Sha256::digest(&weights).iter().map(|byte| format!("{byte:02x}")).collect();
        let small: Vec<(&str, Vec<u8>)> =
            ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
                .map(|name| (name, read(name)))
                .into();
        let n_weights = weights.len();
        let requests = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();

        let (told, cut) = (requests.clone(), std::sync::Mutex::new(cut));
        let storage = serve(move |stream| {
            let (first, [range, token]) = read_head(stream, ["range", "authorization"]);
            told.lock().unwrap().push(format!("{first} {}", range.clone().unwrap_or_default()));
            let start: usize = range.map_or(0, |r| r["bytes=".len()..].trim_end_matches('-').parse().unwrap());
            let status = match (token, start) {
                (Some(_), _) => "400 Bad Request",
                (None, 0) => "200 OK",
                (None, _) => "206 Partial Content",
            };
            let body = &weights[start..];
            let sent = cut.lock().unwrap().take().map_or(body, |n| &body[..n]);
            let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())
                .and_then(|()| stream.write_all(sent));
        });

        let file =
            |path: &str, size: usize| serde_json::json!({"type": "file", "oid": "0", "size": size, "path": path});
        let pages = [
            serde_json::json!([file("model.safetensors", n_weights), file("../config.json", 9), file("pytorch_model.bin", 9), {"type": "directory", "oid": "0", "path": "onnx"}]),
            small.iter().map(|(name, bytes)| file(name, bytes.len())).collect(),
        ];
        let endpoint = serve(move |stream| {
            let (first, [token]) = read_head(stream, ["authorization"]);
            let (method, path) = first.split_once(' ').unwrap();
            let path = path.split(' ').next().unwrap();
            let mut answer = |status: &str, head: String, body: &[u8]| {
                let head =
                    format!("HTTP/1.1 {status}\r\n{head}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let body = if method == "HEAD" { &[][..] } else { body };
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
            };
            if token.as_deref() != Some(&format!("Bearer {TOKEN}")) {
                return answer(
                    "401 Unauthorized",
                    "X-Error-Code: GatedRepo\r\nX-Error-Message: Access to model org/tiny is restricted.\r\n".into(),
                    b"",
                );
            }
            let tree = format!("/api/models/org/tiny/tree/{COMMIT}?recursive=true");
            let named = format!("X-Repo-Commit: {COMMIT}\r\n");
            let resolved =
                |prefix: &str| path.strip_prefix(&format!("{prefix}/org/tiny/resolve/{COMMIT}/")).map(String::from);
            let found = |name: &str| small.iter().position(|(there, _)| *there == name);
            if path == "/api/models/org/tiny/revision/main" {
                answer("200 OK", String::new(), format!("{{\"sha\": \"{COMMIT}\"}}").as_bytes());
            } else if path == tree {
                answer("200 OK", format!("Link: <{tree}&cursor=2>; rel=\"next\"\r\n"), pages[0].to_string().as_bytes());
            } else if path == format!("{tree}&cursor=2") {
                answer("200 OK", String::new(), pages[1].to_string().as_bytes());
            } else if resolved("").as_deref() == Some("model.safetensors") {
                let linked = format!(
                    "X-Linked-Etag: \"{sha256}\"\r\nX-Linked-Size: {n_weights}\r\nX-Xet-Hash: 0\r\nETag: \"other\"\r\n"
                );
                answer("302 Found", format!("{named}{linked}Location: {storage}/blob?signed=1\r\n"), b"elsewhere");
            } else if let Some(name) = resolved("") {
                let place = format!("/cached/org/tiny/resolve/{COMMIT}/{name}");
                answer("307 Temporary Redirect", format!("{named}Location: {place}\r\n"), b"here");
            } else if let Some(i) = resolved("/cached").and_then(|name| found(&name)) {
                answer("200 OK", format!("{named}ETag: W/\"small-{i}\"\r\n"), &small[i].1);
            } else {
                answer("404 Not Found", "X-Error-Code: EntryNotFound\r\n".into(), b"");
            }
        });
        Self { endpoint, requests }
    }

    fn check(&self, s: &Sandbox) -> Command {
        let mut command = s.command(&["check", "--model", "org/tiny", "--json", "--data", "rows.jsonl"]);
        command.env("HF_HOME", s.path("hf")).env("HF_ENDPOINT", &self.endpoint).env("HF_TOKEN", TOKEN);
        command.env_remove("HF_HUB_OFFLINE").env_remove("HF_HUB_CACHE");
        command
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

/// Returns a folder with rows, and the places of the weights in the hub's cache: their blob, what arrived of it, their link.
fn model_sandbox() -> (Sandbox, [std::path::PathBuf; 3]) {
    use sha2::{Digest, Sha256};
    let s = Sandbox::new();
    s.write("rows.jsonl", rows("mistral-odd").join("\n"));
    let weights = fs::read(program::fixture("mistral-odd/model/model.safetensors")).unwrap();
    let sha256: String = Sha256::digest(weights).iter().map(|byte| format!("{byte:02x}")).collect();
    let repository = s.path("hf/hub/models--org--tiny");
    let blobs = repository.join("blobs");
    let places = [
        blobs.join(&sha256),
        blobs.join(format!("{sha256}.incomplete")),
        repository.join(format!("snapshots/{COMMIT}/model.safetensors")),
    ];
    (s, places)
}

#[test]
fn a_gated_model_is_fetched_over_http_and_kept() {
    let (hub, (s, [blob, part, link])) = (ModelHub::start(None), model_sandbox());
    let ran = Ran::of(&mut hub.check(&s)).ok();
    assert!(ran.stderr.contains("fetching 0.2 MB from the hub"), "{}", ran.stderr);
    // The second server got no token, or it would have answered with an error.
    assert_eq!(hub.requests(), ["GET /blob?signed=1 HTTP/1.1 "]);
    assert!(blob.is_file() && !part.exists() && fs::read(&link).unwrap() == fs::read(&blob).unwrap());
    #[cfg(unix)]
    assert!(link.is_symlink() && fs::read_link(&link).unwrap().is_relative());
    let folder = link.parent().unwrap();
    assert!(!folder.join("pytorch_model.bin").exists() && !folder.parent().unwrap().join("config.json").exists());
    assert_eq!(fs::read_to_string(s.path("hf/hub/models--org--tiny/refs/main")).unwrap(), COMMIT);
    // What is there is not fetched again, and serves without the hub.
    let ran = Ran::of(&mut hub.check(&s)).ok();
    assert!(!ran.stderr.contains("fetching") && hub.requests().is_empty(), "{}", ran.stderr);
    let ran = Ran::of(hub.check(&s).env("HF_ENDPOINT", "http://127.0.0.1:9")).ok();
    assert!(
        ran.stderr.contains("org/tiny: the hub cannot be reached; going on with what its cache holds"),
        "{}",
        ran.stderr
    );
    Ran::of(hub.check(&s).env("HF_HUB_OFFLINE", "1")).ok();
}

#[test]
fn the_token_may_be_in_a_file_and_none_is_refused() {
    let (hub, (s, _)) = (ModelHub::start(None), model_sandbox());
    let refused = Ran::of(hub.check(&s).env_remove("HF_TOKEN"));
    refused.said(
        2,
        &["--model: org/tiny", "the hub refuses (HTTP 401, GatedRepo: Access to model org/tiny", "set HF_TOKEN"],
    );
    fs::create_dir_all(s.path("hf")).unwrap();
    s.write("hf/token", format!("{TOKEN}\n"));
    Ran::of(hub.check(&s).env("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")).said(2, &["the hub refuses"]);
    Ran::of(hub.check(&s).env_remove("HF_TOKEN")).ok();
}

#[test]
fn a_download_goes_on_where_it_ended() {
    // The connection ends within one run.
    let (hub, (s, [blob, ..])) = (ModelHub::start(Some(70_000)), model_sandbox());
    Ran::of(&mut hub.check(&s)).ok();
    assert_eq!(hub.requests(), ["GET /blob?signed=1 HTTP/1.1 ", "GET /blob?signed=1 HTTP/1.1 bytes=70000-"]);
    // An earlier run ended.
    let whole = fs::read(&blob).unwrap();
    let (hub, (s, [blob, part, _])) = (ModelHub::start(None), model_sandbox());
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    fs::write(&part, &whole[..50_000]).unwrap();
    Ran::of(&mut hub.check(&s)).ok();
    assert_eq!(hub.requests(), ["GET /blob?signed=1 HTTP/1.1 bytes=50000-"]);
    assert_eq!(fs::read(&blob).unwrap(), whole);
    // What an earlier run left is damaged: it is not used, and the next run begins anew.
    let (hub, (s, [blob, part, _])) = (ModelHub::start(None), model_sandbox());
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    fs::write(&part, vec![0; 50_000]).unwrap();
    Ran::of(&mut hub.check(&s)).said(2, &["--model: org/tiny", "model.safetensors", "SHA-256"]);
    assert!(!blob.exists() && !part.exists());
    Ran::of(&mut hub.check(&s)).ok();
}
