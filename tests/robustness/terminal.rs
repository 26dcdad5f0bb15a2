//! Names and texts from outside on a terminal: none of their characters acts on it.

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::process::{Command, Stdio};

use serde_json::json;

use super::program::Sandbox;

const EVIL: &str = "evil\u{1b}[2J\u{9b}31m\u{202e}\nrow";

/// Runs a command with its standard output on a pseudo-terminal; what it wrote there.
fn on_a_terminal(mut command: Command) -> String {
    let (mut ours, mut theirs) = (0, 0);
    let null = std::ptr::null_mut();
    // SAFETY: both places outlive the call, and name, modes and size may be null.
    let opened = unsafe { libc::openpty(&mut ours, &mut theirs, null, null.cast(), null.cast()) };
    assert_eq!(opened, 0, "no pseudo-terminal");
    // SAFETY: both descriptors were opened above and have no other owner.
    let (mut ours, theirs) = unsafe { (File::from_raw_fd(ours), File::from_raw_fd(theirs)) };
    let mut child = command.stdout(Stdio::from(theirs)).stderr(Stdio::null()).spawn().expect("it starts");
    // The command holds the other end too, and with it gone reading fails at the end.
    drop(command);
    let mut bytes = Vec::new();
    let _ = ours.read_to_end(&mut bytes);
    assert!(child.wait().expect("it ends").success());
    String::from_utf8_lossy(&bytes).into_owned()
}

fn comparison() -> Sandbox {
    let s = Sandbox::new();
    s.write("c.jsonl", json!({"instruction": "i", "response_0": "a", "response_1": "b"}).to_string());
    s
}

/// Elsewhere than on a terminal the text is as it is.
#[test]
fn a_name_does_not_act_on_a_terminal() {
    let s = comparison();
    let ask = [
        "judge",
        "--data",
        "c.jsonl",
        "--endpoint",
        "http://127.0.0.1:9/v1",
        "--judge-model",
        EVIL,
        "--estimate",
        "--output-dir",
        "out",
    ];
    assert!(s.run(&ask).ok().stdout.contains(EVIL));
    let shown = on_a_terminal(s.command(&ask));
    assert!(shown.contains(r"evil\u{1b}[2J\u{9b}31m\u{202e}") && shown.contains("row"), "{shown:?}");
    assert!(!shown.chars().any(|c| c.is_control() && !"\r\n".contains(c) || c == '\u{202e}'), "{shown:?}");
}

#[test]
fn a_judge_s_name_keeps_its_row_of_a_table() {
    let s = comparison();
    let ask = ["judge", "--data", "c.jsonl", "--command", "echo '(a)'", "--judge-name", EVIL, "--output-dir", "out"];
    s.run(&ask).ok();
    let annotated = std::fs::read_to_string(s.path("out/annotated.jsonl")).expect("rows");
    assert!(annotated.contains(r"evil\u001b[2J"), "files hold the name itself: {annotated}");
    let tables = s.run(&["interplay", "--data", "out"]).ok().stdout;
    assert!(tables.contains(r"evil\u{1b}[2J\u{9b}31m\u{202e}\nrow"), "{tables}");
    assert!(!tables.contains('\u{1b}') && !tables.contains('\u{202e}'), "{tables}");
}
