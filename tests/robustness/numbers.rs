//! Numbers that ask for more than any machine has, and inputs without an end: refused by name, at once, with nothing allocated for them.

use std::fs;
use std::process::Command;

use serde_json::json;

use super::program::{Ran, Sandbox};

/// The program with 12 GB of address space and 60 s, so that what is allocated or looped over fails.
fn within_limits(s: &Sandbox, args: &[&str]) -> Ran {
    let inner = s.command(args);
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -v 12000000; exec timeout 60 \"$0\" \"$@\""]).arg(inner.get_program()).args(args);
    shell.current_dir(s.path("")).env("XDG_CACHE_HOME", s.path("cache"));
    Ran::of(&mut shell)
}

#[track_caller]
fn refused(s: &Sandbox, args: &[&str], parts: &[&str]) {
    let before = s.listing();
    within_limits(s, args).said(2, parts);
    assert_eq!(s.listing(), before, "something was left behind: {args:?}");
}

fn lines(row: impl Fn(usize) -> serde_json::Value) -> String {
    (0..4).map(|i| row(i).to_string() + "\n").collect()
}

fn sandbox() -> Sandbox {
    let s = Sandbox::new();
    let conditional =
        |i| json!({"i_chosen": format!("i{i}"), "r_chosen": "a", "i_reject": format!("i{i}"), "r_reject": "b"});
    s.write("prefs.jsonl", lines(conditional));
    s.write("c.jsonl", lines(|i| json!({"instruction": format!("i{i}"), "response_0": "a", "response_1": "b"})));
    s.write("test.jsonl", lines(|i| json!({"instruction": format!("i{i}"), "gold_response": "a"})));
    s
}

const TOO_MANY: [&str; 3] = ["2147483648", "9223372036854775808", "18446744073709551615"];

#[test]
fn counts_that_no_memory_holds() {
    let s = sandbox();
    let judged = ["judge", "--data", "c.jsonl", "--command", "echo '(a)'", "--output-dir", "judged"];
    s.run(&judged).ok();
    let cases: [(&[&str], &str); 7] = [
        (&["judge", "--sample", "prefs.jsonl", "--command", "echo '(a)'", "--output-dir", "out"], "pairs"),
        (&["interplay", "--data", "judged"], "draws"),
        (
            &[
                "evaluate",
                "--data",
                "test.jsonl",
                "--model",
                "absent",
                "--command",
                "echo '(a)'",
                "--output-dir",
                "out",
            ],
            "draws",
        ),
        (&["demo", "--output-dir", "out"], "prompts"),
        (
            &[
                "judge",
                "--data",
                "c.jsonl",
                "--endpoint",
                "http://127.0.0.1:9/v1",
                "--judge-model",
                "m",
                "--output-dir",
                "out",
            ],
            "retries",
        ),
        (&["bench"], "tokens"),
        (&["tune"], "tokens"),
    ];
    for (command, flag) in cases {
        let typed = format!("--{flag}");
        for value in TOO_MANY {
            refused(&s, &[command, &[&typed, value]].concat(), &[&typed, value, "is above", "the most"]);
        }
    }
    for (args, parts) in [
        (["bench", "--product", "2147483648,1,1"], ["--product", "2147483648 is above"]),
        (["bench", "--product", "4294967296,4294967296,4294967296"], ["--product", "is above"]),
        (["bench", "--seconds", "1e30"], ["--seconds", "is above"]),
        (["tune", "--seconds", "1e30"], ["--seconds", "is above"]),
        (["tune", "--seconds", "inf"], ["--seconds", "range of f32"]),
    ] {
        refused(&s, &args, &parts);
    }
    // What is not too much is not refused.
    let ran = within_limits(&s, &["interplay", "--data", "judged", "--draws", "100"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
}

#[test]
fn sizes_of_a_study_that_no_memory_holds() {
    let s = sandbox();
    let study = |tasks: &str, joint: &str, evaluate: &str| {
        s.write(
            "study.toml",
            format!(
                "model = \"m\"\nseeds = [0]\n[tasks]\n{tasks}\n[sft]\nfull = true\n[sample]\ntemperature = 1.0\n[joint]\nseed = 0\n{joint}\n[judge]\ngrader = true\n\
                 [evaluate]\ngrader = true\n{evaluate}\n[[methods]]\nname = \"JPO\"\njoint = 1.0\n"
            ),
        );
    };
    let good = "sft = 8\nprompts = 8\ntest = 8";
    for (tasks, joint, evaluate, key) in [
        ("sft = 8\nprompts = 8\ntest = 9223372036854775807", "", "", "tasks.test"),
        ("sft = 8\nprompts = 2147483648\ntest = 8", "", "", "tasks.prompts"),
        ("sft = 9223372036854775807\nprompts = 8\ntest = 8", "", "", "tasks.sft"),
        (good, "pairs = 2147483648", "", "joint.pairs"),
        (good, "", "draws = 2147483648", "evaluate.draws"),
        (good, "", "draws = 0", "evaluate.draws"),
    ] {
        study(tasks, joint, evaluate);
        refused(&s, &["study", "study.toml", "--output-dir", "out"], &["study.toml", key]);
    }
    study("sft = 8\nprompts = 8\ntest = 9223372036854775808", "", "");
    refused(&s, &["study", "study.toml", "--output-dir", "out"], &["study.toml", "test"]);
    // The rest of the file is right: the next that is missing is the model.
    study(good, "", "");
    refused(&s, &["study", "study.toml", "--output-dir", "out"], &["m: no such folder"]);
}

#[test]
fn inputs_without_an_end() {
    let s = sandbox();
    for device in ["/dev/zero", "/dev/urandom", "/dev/null"] {
        for flag in ["--people", "--data"] {
            refused(&s, &["interplay", flag, device], &[device, "is neither a file nor a pipe"]);
        }
    }
    // Sparse: its length is known before anything of it is read.
    let long = fs::File::create(s.path("long.jsonl")).expect("a file");
    long.set_len(1 << 40).expect("a sparse file");
    refused(&s, &["interplay", "--people", "long.jsonl"], &["long.jsonl", "longer than"]);
}
