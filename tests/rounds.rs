//! Online rounds through the program: what each round samples from, what training is compared with, what a kill leaves, files that are wrong.

mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use jointwise::eval::tasks::{DataSplit, rows};
use jointwise::rng::Rng;
use program::Sandbox;
use serde_json::{Value, json};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

/// Two rounds that take seconds.
fn smallest_rounds() -> String {
    format!(
        r#"
        model = {:?}
        rounds = 2
        reference = "round"
        [tasks]
        prompts = 16
        test = 6
        [sample]
        temperature = 1.0
        max-new-tokens = 12
        [judge]
        grader = true
        [joint]
        pairs = 4
        [train]
        batch-size = 4
        max-steps = 2
        save-steps = 1
        learning-rate = 1e-3
        lora-r = 4
        [evaluate]
        temperatures = [0.0]
        max-new-tokens = 12
        "#,
        model()
    )
}

fn bytes(dir: &str, file: &str) -> Vec<u8> {
    let path = PathBuf::from(dir).join(file);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn results(dir: &str) -> Value {
    serde_json::from_slice(&bytes(dir, "results.json")).expect("JSON")
}

fn lines(dir: &str, file: &str) -> usize {
    String::from_utf8(bytes(dir, file)).expect("UTF-8").lines().count()
}

/// Files whose bytes show that two runs are one: what was sampled, what it was trained on, what came out.
const OUTCOME: [&str; 7] = [
    "round-1/sample/comparisons.jsonl",
    "round-1/preferences.jsonl",
    "round-1/train/adapter_model.safetensors",
    "round-2/sample/comparisons.jsonl",
    "round-2/joint/preferences.jsonl",
    "round-2/preferences.jsonl",
    "round-2/train/adapter_model.safetensors",
];

#[test]
fn two_rounds_run_to_their_report() {
    let sandbox = Sandbox::new();
    let (file, out) = (sandbox.write("rounds.toml", smallest_rounds()), sandbox.text("out"));
    let ran = sandbox.run(&["iterate", &file, "--output-dir", &out, "--json"]).ok();
    let found = results(&out);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).expect("nothing but JSON"), found);
    let rounds = found["rounds"].as_array().expect("rounds");
    assert_eq!(rounds.len(), 2);
    for (i, round) in rounds.iter().enumerate() {
        let n = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("a count: {round}"));
        let stage = |name: &str| format!("round-{}/{name}", i + 1);
        // All that was sampled is accounted for.
        let conditional = &round["conditional"];
        let judged = n(&conditional["decided"]) + n(&conditional["ties"]) + n(&conditional["no_verdict"]);
        assert_eq!(n(&round["prompts"]), 16);
        let left_out = ["too_long", "same_response_twice", "empty_response"].map(|key| n(&round[key]));
        assert_eq!(n(&round["prompts"]), left_out.iter().sum::<u64>() + judged, "{round}");
        assert_eq!(judged as usize, lines(&out, &stage("sample/comparisons.jsonl")));
        assert_eq!(n(&conditional["decided"]) as usize, lines(&out, &stage("conditional/preferences.jsonl")));
        let joint = n(&round["joint"]["decided"]);
        assert_eq!(n(&round["joint"]["decided"]) as usize, lines(&out, &stage("joint/preferences.jsonl")));
        assert_eq!(n(&round["preferences"]), n(&conditional["decided"]) + joint, "{round}");
        // The reference is the start of the round.
        let metrics = String::from_utf8(bytes(&out, &stage("train/metrics.jsonl"))).expect("UTF-8");
        let first: Value = serde_json::from_str(metrics.lines().next().expect("a step")).expect("JSON");
        assert!((first["loss"].as_f64().expect("a loss") - std::f64::consts::LN_2).abs() < 1e-5, "{first}");
        // The win rate follows from what the judge said.
        let evaluated = &round["evaluated"];
        let [wins, ties, losses] = ["wins", "ties", "losses"].map(|key| n(&evaluated[key]) as f64);
        assert_eq!(evaluated["name"], format!("round-{}", i + 1));
        assert_eq!(wins + ties + losses + n(&evaluated["no_answer"]) as f64, 6.0, "{evaluated}");
        let rate = evaluated["win_rate"]["mean"]["value"].as_f64().expect("a rate");
        assert!((rate - (wins + ties / 2.0) / (wins + ties + losses)).abs() < 1e-9, "{evaluated}");
    }
    assert_eq!(found["evaluation"]["against"], "start");
    let page = String::from_utf8(bytes(&out, "report.html")).expect("UTF-8");
    for part in ["Win rate against the start policy, by round", "Reward accuracy", "round 2", "same response twice"] {
        assert!(page.contains(part), "{part}");
    }
    // Nothing is done again.
    let again = sandbox.run(&["iterate", &file, "--output-dir", &out, "--resume"]).ok();
    assert!(!again.stderr.contains("iterate: "), "{}", again.stderr);
    assert_eq!(results(&out), found);

    // The second round samples from the policy of the first, with seeds of its own.
    let sampled = |checkpoint: &str, name: &str| {
        let (data, to) = (format!("{out}/tasks/prompts.jsonl"), sandbox.text(name));
        let model = model().display().to_string();
        let checkpoint = format!("policy={checkpoint}");
        let own = ["evaluate", "--model", &model, "--checkpoint", &checkpoint, "--data", &data, "--no-judge"];
        let sampling = ["--temperatures", "1", "--seeds", "2,3", "--max-new-tokens", "12", "--output-dir", &to];
        sandbox.run(&[&own[..], &sampling].concat()).ok();
        bytes(&to, "responses/policy-t1-s3.jsonl")
    };
    let second = bytes(&out, "round-2/sample/responses/policy-t1-s3.jsonl");
    assert_eq!(second, sampled(&format!("{out}/round-1/train"), "again"));
    assert_ne!(second, sampled(&model().display().to_string(), "start"), "the comparison sees the policy of the start");

    // A third round is added; a round that is done is not changed.
    let more = sandbox.write("more.toml", smallest_rounds().replace("rounds = 2", "rounds = 3"));
    sandbox.run(&["iterate", &more, "--output-dir", &out, "--resume"]).ok();
    assert_eq!(results(&out)["rounds"].as_array().map(Vec::len), Some(3));
    assert_eq!(results(&out)["rounds"][1]["last"], found["rounds"][1]["last"]);
    let changed = sandbox.write("changed.toml", smallest_rounds().replace("temperature = 1.0", "temperature = 0.9"));
    let refused = sandbox.run(&["iterate", &changed, "--output-dir", &out, "--resume"]);
    refused.said(2, &["--resume", "round-1-sample.json", "0.9"]);
}

/// Killed again and again, rounds end with the same bits as rounds that were left alone.
#[test]
fn killed_at_any_moment_they_end_the_same() {
    let sandbox = Sandbox::new();
    let (file, whole, out) =
        (sandbox.write("rounds.toml", smallest_rounds()), sandbox.text("whole"), sandbox.text("killed"));
    let started = Instant::now();
    sandbox.run(&["iterate", &file, "--output-dir", &whole]).ok();
    let length = started.elapsed();
    let mut rng = Rng::new(2_312, 11_456);
    for _ in 0..7 {
        let mut command = sandbox.command(&["iterate", &file, "--output-dir", &out, "--resume"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
        std::thread::sleep(length.mul_f32(0.35 * rng.next_f32()).max(Duration::from_millis(50)));
        child.kill().expect("killed");
        child.wait().expect("waited for");
    }
    sandbox.run(&["iterate", &file, "--output-dir", &out, "--resume"]).ok();
    for file in OUTCOME {
        assert_eq!(bytes(&out, file), bytes(&whole, file), "{file}");
    }
    assert_eq!(results(&out), results(&whole));
    // The comparison sees a difference: another seed samples, draws and trains otherwise.
    let other = sandbox.write("other.toml", smallest_rounds().replace("rounds = 2", "rounds = 1\n        seed = 1"));
    sandbox.run(&["iterate", &other, "--output-dir", &sandbox.text("other")]).ok();
    for file in &OUTCOME[..3] {
        assert_ne!(bytes(&sandbox.text("other"), file), bytes(&whole, file), "{file}");
    }
}

/// The reference of the first round is the start either way. In the second it is another policy, also where the start is an adapter.
#[test]
fn the_reference_is_the_start_of_the_round_or_of_all() {
    let sandbox = Sandbox::new();
    rows::write(&sandbox.path("sft.jsonl"), rows::sft(DataSplit::Train, 1, 8)).expect("written");
    let (model, sft) = (model().display().to_string(), sandbox.text("sft"));
    let train = ["--max-steps", "2", "--lora-r", "4", "--learning-rate", "1e-3", "--output-dir", &sft];
    sandbox.run(&[&["sft", "--model", &model, "--data", "sft.jsonl"][..], &train].concat()).ok();
    let dpo = smallest_rounds()
        .replace("[joint]\n        pairs = 4", "")
        .replace("[train]", "[train]\n        objective = \"dpo\"");
    for (name, start) in [("base", String::new()), ("adapter", format!("adapter = {sft:?}\n"))] {
        let done = |reference: &str| {
            let text = start.clone() + &dpo.replace("reference = \"round\"", &format!("reference = \"{reference}\""));
            let (file, out) = (sandbox.write("rounds.toml", text), sandbox.text(&format!("{name}-{reference}")));
            sandbox.run(&["iterate", &file, "--output-dir", &out]).ok();
            assert!(!Path::new(&out).join("round-1/joint").exists(), "DPO asks for no joint preferences");
            out
        };
        let (round, all) = (done("round"), done("start"));
        for file in ["round-1/train/adapter_model.safetensors", "round-2/preferences.jsonl"] {
            assert_eq!(bytes(&round, file), bytes(&all, file), "{name}: {file}");
        }
        let first_loss = |out: &str| -> f64 {
            let text = String::from_utf8(bytes(out, "round-2/train/metrics.jsonl")).expect("UTF-8");
            let line: Value = serde_json::from_str(text.lines().next().expect("a step")).expect("JSON");
            line["loss"].as_f64().expect("a loss")
        };
        assert!((first_loss(&round) - std::f64::consts::LN_2).abs() < 1e-5, "{name}");
        assert!((first_loss(&all) - std::f64::consts::LN_2).abs() > 1e-4, "{name}: {}", first_loss(&all));
        // The loss of the first step against the start, computed alone.
        let against = if start.is_empty() { model.clone() } else { sft.clone() };
        let score = |reference: &str| {
            let (data, adapter) = (format!("{all}/round-2/preferences.jsonl"), format!("{all}/round-1/train"));
            let own = ["score", "--model", &model, "--adapter", &adapter, "--data", &data, "--reference", reference];
            let ran = sandbox.run(&[&own[..], &["--objective", "dpo"]].concat()).ok();
            let rows = ran.lines();
            let of = |row: &Value| (row["reference_chosen_logp"].as_f64(), row["chosen"]["logp"].as_f64());
            let loss = rows.iter().find_map(|row| row["summary"]["loss"].as_f64()).expect("a loss");
            (rows.iter().map(of).collect::<Vec<_>>(), loss)
        };
        let (scores, alone) = score(&against);
        assert!(scores.iter().any(|(reference, own)| reference.is_some() && reference != own), "{name}: {scores:?}");
        if !start.is_empty() {
            assert_ne!(scores, score("base").0, "the adapter of the start is not the model");
            // The copy of the start beside the trained adapter scores like the start that is loaded alone.
            let loss = |reference: &str| {
                let (data, adapter) = (format!("{all}/round-2/preferences.jsonl"), format!("{all}/round-1/train"));
                let out = sandbox.text(&format!("one-step-{}", reference == sft));
                let own =
                    ["train", "--model", &model, "--adapter", &adapter, "--data", &data, "--reference", reference];
                let step = ["--objective", "dpo", "--batch-size", "64", "--max-steps", "1", "--output-dir", &out];
                sandbox.run(&[&own[..], &step].concat()).ok();
                let line: Value = serde_json::from_slice(&bytes(&out, "metrics.jsonl")).expect("one step");
                line["loss"].as_f64().expect("a loss")
            };
            let beside = loss(&sft);
            assert!((beside - alone).abs() < 1e-6, "{beside} and {alone}");
            assert!((loss("base") - alone).abs() > 1e-6, "the comparison sees another reference");
        }
    }
}

/// A judge that prefers nothing leaves nothing to train on: the run ends with the counts, and trains no step.
#[test]
fn a_round_without_a_preference_ends_the_run() {
    let sandbox = Sandbox::new();
    let text = smallest_rounds().replacen("grader = true", "command = \"echo tie\"", 1);
    let (file, out) = (sandbox.write("rounds.toml", text), sandbox.text("out"));
    let ran = sandbox.run(&["iterate", &file, "--output-dir", &out]);
    ran.said(2, &["round-1/conditional", "nothing to train on: 0 of ", " ties", "0 without a verdict"]);
    assert!(!Path::new(&out).join("round-1/train").exists());
}

/// A conversation would be sampled to with another template than training has.
#[test]
fn prompts_are_texts() {
    let sandbox = Sandbox::new();
    let prompts = [json!({"instruction": "Q"}), json!({"prompt": [{"role": "user", "content": "R"}]})];
    rows::write(&sandbox.path("prompts.jsonl"), prompts).expect("written");
    let text = smallest_rounds().replace("[sample]", "[sample]\n        data = [\"prompts.jsonl\"]");
    let file = sandbox.write("rounds.toml", text);
    let out = sandbox.text("out");
    sandbox.refused(&["iterate", &file, "--output-dir", &out], &["prompts.jsonl:2", "conversation", "template"]);
}

/// Rounds take their prompts one after the other, from files, and are told where test prompts are not held out.
#[test]
fn rounds_take_the_next_prompts() {
    let sandbox = Sandbox::new();
    let prompts: Vec<Value> =
        rows::held_out(4, 8).into_iter().map(|row| json!({"instruction": row.instruction})).collect();
    rows::write(&sandbox.path("prompts.jsonl"), &prompts).expect("written");
    rows::write(&sandbox.path("test.jsonl"), prompts.iter().take(3)).expect("written");
    let text = smallest_rounds()
        .replace("[tasks]\n        prompts = 16\n        test = 6", "")
        .replace("reference = \"round\"", "prompts-per-round = 6")
        .replace("[sample]", "[sample]\n        data = [\"prompts.jsonl\"]")
        .replace("[evaluate]", "[evaluate]\n        data = [\"test.jsonl\"]");
    let (file, out) = (sandbox.write("rounds.toml", text), sandbox.text("out"));
    let ran = sandbox.run(&["iterate", &file, "--output-dir", &out]).ok();
    assert!(ran.stderr.contains("3 of 3 test prompts are also prompts of [sample]"), "{}", ran.stderr);
    let of = |round: usize| String::from_utf8(bytes(&out, &format!("round-{round}/prompts.jsonl"))).expect("UTF-8");
    let (first, second) = (of(1), of(2));
    let mut all: Vec<&str> = first.lines().chain(second.lines()).collect();
    assert_eq!((first.lines().count(), all.len()), (6, 12));
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 8, "every prompt comes up before one comes up again");
}

#[test]
fn a_dry_run_tells_and_does_nothing() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("rounds.toml", smallest_rounds());
    let before = sandbox.listing();
    let told = sandbox.run(&["iterate", &file, "--output-dir", &sandbox.text("out"), "--dry-run", "--json"]).ok();
    assert_eq!(sandbox.listing(), before);
    let told = &told.lines()[0];
    let names: Vec<&str> =
        told["stages"].as_array().expect("stages").iter().filter_map(|stage| stage["stage"].as_str()).collect();
    let round =
        |n: usize| ["sample", "conditional", "joint", "train", "evaluate"].map(|name| format!("round-{n}/{name}"));
    assert_eq!(names, [vec!["tasks".to_string()], round(1).into(), round(2).into()].concat());
    assert!(told["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{told}");
    assert!(told["peak_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{told}");
}

#[test]
fn a_rounds_file_that_is_wrong_is_refused_by_its_key() {
    let sandbox = Sandbox::new();
    let out = sandbox.text("out");
    let refused = |from: &str, to: &str, parts: &[&str]| {
        let text = smallest_rounds();
        assert!(text.contains(from), "{from}");
        let file = sandbox.write("rounds.toml", text.replacen(from, to, 1));
        sandbox.refused(&["iterate", &file, "--output-dir", &out], &[&["rounds.toml"], parts].concat());
    };
    refused("rounds = 2", "rounds = 0", &["rounds"]);
    refused("rounds = 2", "runds = 2", &["line 3", "runds"]);
    refused("reference = \"round\"", "reference = \"base\"", &["line 4", "base", "`round` or `start`"]);
    refused("reference = \"round\"", "prompts-per-round = 0", &["prompts-per-round"]);
    refused("temperature = 1.0", "temperature = -1.0", &["sample.temperature"]);
    refused("temperature = 1.0", "temperature = 1.0\n        top-p = 2.0", &["sample.top-p"]);
    refused("temperature = 1.0", "temprature = 1.0", &["line", "temprature"]);
    refused("max-steps = 2", "max-stepz = 2", &["train.max-stepz", "is not a flag"]);
    refused("max-steps = 2", "reference = \"base\"", &["train.reference", "set by the rounds file"]);
    refused("learning-rate = 1e-3", "learning-rate = -1.0", &["train.learning-rate"]);
    refused("max-steps = 2", "joint = 1.5", &["train", "shares"]);
    refused("max-steps = 2", "objective = \"dpo\"", &["joint", "dpo"]);
    refused("[judge]\n        grader = true", "[judge]", &["judge.endpoint", "who judges"]);
    refused("[judge]\n        grader = true", "[judge]\n        gradr = true", &["judge.gradr"]);
    refused("temperatures = [0.0]", "against = \"gald\"", &["evaluate.against", "gold"]);
    refused("[tasks]\n        prompts = 16\n        test = 6", "", &["sample.data", "is missing"]);
    refused("rounds = 2", "rounds = 2\n        adapter = \"nowhere\"", &["adapter", "nowhere"]);
}
