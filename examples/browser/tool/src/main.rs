//! Builds the page's bindings and serves the page, so that nothing but cargo has to be installed.
//! `tool bind IN.wasm OUT_DIR` does the work of `wasm-bindgen --target web`. `tool serve DIR [PORT]` serves a folder on this machine.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["bind", input, out] => bind(input, out),
        ["serve", dir] => serve(Path::new(dir), 8000),
        ["serve", dir, port] => serve(Path::new(dir), port.parse()?),
        _ => Err("usage: tool bind IN.wasm OUT_DIR | tool serve DIR [PORT]".into()),
    }
}

fn bind(input: &str, out: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut bindgen = wasm_bindgen_cli_support::Bindgen::new();
    bindgen.input_path(input).web(true)?.typescript(false).omit_default_module_path(false);
    bindgen.remove_name_section(true).remove_producers_section(true);
    Ok(bindgen.generate(out)?)
}

/// Serves a folder, on 127.0.0.1 only. Port 0 takes any free port.
fn serve(dir: &Path, port: u16) -> Result<(), Box<dyn std::error::Error>> {
    let dir = dir.canonicalize()?;
    let listener = TcpListener::bind(("127.0.0.1", port)).map_err(|e| format!("port {port}: {e}"))?;
    println!("http://{}/", listener.local_addr()?.to_string().replace("127.0.0.1", "localhost"));
    for stream in listener.incoming().flatten() {
        let dir = dir.clone();
        std::thread::spawn(move || {
            // A browser may close the connection early, which is harmless.
            let _ = answer(&dir, stream);
        });
    }
    Ok(())
}

fn answer(dir: &Path, mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = String::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let found = path(dir, &request).and_then(|p| Some((std::fs::read(&p).ok()?, kind(&p))));
    let (status, body, kind) = match found {
        Some((body, kind)) => ("200 OK", body, kind),
        None => ("404 Not Found", b"not found".to_vec(), "text/plain"),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\ncache-control: no-cache\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)
}

/// Returns the path of the requested file, or `None` if it would be outside the folder.
fn path(dir: &Path, request: &str) -> Option<PathBuf> {
    let target = request.strip_prefix("GET /")?.split([' ', '?']).next()?;
    let inside = Path::new(target).components().all(|c| matches!(c, Component::Normal(_)));
    let path = dir.join(target);
    inside.then(|| if path.is_dir() { path.join("index.html") } else { path })
}

fn kind(path: &Path) -> &'static str {
    match path.extension().and_then(|e| e.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("txt") => "text/plain; charset=utf-8",
        Some("js") => "text/javascript",
        Some("css") => "text/css",
        Some("json") => "application/json",
        Some("wasm") => "application/wasm",
        _ => "application/octet-stream",
    }
}
