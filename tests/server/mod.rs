//! An OpenAI-compatible endpoint that a test starts, and that misbehaves as it is told.
#![allow(dead_code, reason = "each test crate uses a part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

/// What it does with a request.
#[derive(Debug, Clone)]
pub enum Act {
    /// Answers with the larger number, as it should.
    Judge,
    /// Answers with this text.
    Say(String),
    /// A status, more header lines, a body.
    Status(u16, String, String),
    /// 429, with the HTTP date in so many seconds as `Retry-After`.
    BusyUntil(u64),
    /// Promises the whole answer and closes in its middle.
    Cut,
    /// Closes in the middle of the headers.
    CutHeaders,
    /// Waits, then answers as it should.
    Slow(Duration),
    /// Takes so long for each answer, and makes them one behind the other.
    Alone(Duration),
    /// Status 200, more header lines, and a body that may be no text.
    Bytes(String, Vec<u8>),
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub head: String,
    pub body: Value,
    pub at: Instant,
}

pub struct Server {
    pub url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    most_at_once: Arc<AtomicUsize>,
}

/// The text behind a heading of our prompt.
pub fn behind<'a>(prompt: &'a str, heading: &str) -> &'a str {
    let rest = prompt.split_once(heading).unwrap_or_else(|| panic!("`{heading}` in {prompt}")).1;
    rest.split("\n\n").next().unwrap_or_default().trim()
}

/// (a) where its number is larger, (b) otherwise.
pub fn judged(body: &Value) -> &'static str {
    let prompt = body["messages"][0]["content"].as_str().expect("a prompt");
    let [a, b] = ["Output (a):\n", "Output (b):\n"].map(|h| behind(prompt, h).parse::<i64>().expect("a number"));
    if a > b { "Output (a)" } else { "Output (b)" }
}

/// The body of an answer with this text.
pub fn completion(text: &str) -> String {
    json!({
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 3},
    })
    .to_string()
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream);
    let mut head = String::new();
    loop {
        let start = head.len();
        lines.read_line(&mut head).ok().filter(|&n| n > 0)?;
        if head[start..].trim().is_empty() {
            break;
        }
    }
    let length =
        head.to_lowercase().lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    lines.read_exact(&mut body).ok()?;
    Some(Request { head, body: serde_json::from_slice(&body).ok()?, at: Instant::now() })
}

/// Takes `most` requests in each `window` from the first one on, and refuses the others with these header lines. With `{left}` in them it is
/// the time to the window's end, in whole seconds.
pub fn limited(most: usize, window: Duration, more: &'static str) -> impl Fn(usize, &Value) -> Act + Send + Sync {
    let taken = Mutex::new((Instant::now(), 0));
    move |_, _| {
        let mut taken = taken.lock().expect("a lock");
        if taken.0.elapsed() >= window || taken.1 == 0 {
            *taken = (Instant::now(), 0);
        }
        taken.1 += 1;
        if taken.1 <= most {
            return Act::Judge;
        }
        let left = (window.saturating_sub(taken.0.elapsed()).as_secs_f64()).ceil();
        Act::Status(
            429,
            more.replace("{left}", &left.to_string()),
            json!({"error": {"message": "slow down"}}).to_string(),
        )
    }
}

/// The bytes of a response, after what it takes.
fn response(act: Act, request: &Request, alone: &Mutex<()>) -> Vec<u8> {
    let bytes = |status: u16, more: &str, body: &[u8]| {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nConnection: close\r\n{more}Content-Length: {length}\r\n\r\n"
        );
        [head.as_bytes(), body].concat()
    };
    let whole = |status: u16, more: &str, body: &str| bytes(status, more, body.as_bytes());
    let good = || whole(200, "", &completion(judged(&request.body)));
    match act {
        Act::Judge => good(),
        Act::Say(text) => whole(200, "", &completion(&text)),
        Act::Status(status, more, body) => whole(status, &more, &body),
        Act::BusyUntil(seconds) => {
            let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(seconds));
            whole(429, &format!("Retry-After: {date}\r\n"), "")
        }
        Act::Cut => good()[..good().len() - 40].to_vec(),
        Act::CutHeaders => good()[..30].to_vec(),
        Act::Slow(pause) => {
            std::thread::sleep(pause);
            good()
        }
        Act::Alone(pause) => {
            let _alone = alone.lock().expect("a lock");
            std::thread::sleep(pause);
            good()
        }
        Act::Bytes(more, body) => bytes(200, &more, &body),
    }
}

impl Server {
    /// `act(number of the request from 0, its body)`.
    pub fn start(act: impl Fn(usize, &Value) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let most_at_once = Arc::new(AtomicUsize::new(0));
        let (kept, most, act, now) =
            (requests.clone(), most_at_once.clone(), Arc::new(act), Arc::new(AtomicUsize::new(0)));
        let alone = Arc::new(Mutex::new(()));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (kept, most, act, now) = (kept.clone(), most.clone(), act.clone(), now.clone());
                let alone = alone.clone();
                std::thread::spawn(move || {
                    let Some(request) = read(&stream) else { return };
                    let number = {
                        let mut kept = kept.lock().expect("a lock");
                        kept.push(request.clone());
                        kept.len() - 1
                    };
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let text = response(act(number, &request.body), &request, &alone);
                    // Before the answer, behind which the next request comes.
                    now.fetch_sub(1, Ordering::SeqCst);
                    let _ = (&stream).write_all(&text);
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        Self { url, requests, most_at_once }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("a lock").clone()
    }

    /// Requests that were under way together, at most.
    pub fn most_at_once(&self) -> usize {
        self.most_at_once.load(Ordering::SeqCst)
    }

    /// How often each prompt was asked.
    pub fn times_asked(&self) -> Vec<usize> {
        let mut counts = std::collections::BTreeMap::<String, usize>::new();
        for request in self.requests() {
            *counts.entry(request.body["messages"].to_string()).or_default() += 1;
        }
        counts.into_values().collect()
    }
}
