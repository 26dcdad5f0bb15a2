//! The whole experiment through the program: the miniature study of the recipes, what a kill leaves, files that are wrong.

mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use jointwise::eval::tasks::{DataSplit, rows};
use jointwise::rng::Rng;
use program::{Ran, Sandbox, smallest_study};
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(dir: &str, file: &str) -> String {
    let path = PathBuf::from(dir).join(file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn results(dir: &str) -> Value {
    serde_json::from_str(&read(dir, "results.json")).expect("JSON")
}

fn lines(dir: &str, file: &str) -> usize {
    read(dir, file).lines().count()
}

#[test]
fn the_miniature_study_runs_to_its_report() {
    let sandbox = Sandbox::new();
    let (recipe, out) = (root().join("examples/recipes/miniature.toml"), sandbox.text("out"));
    let recipe = recipe.to_str().expect("UTF-8");
    Ran::of(sandbox.command(&["study", recipe, "--output-dir", &out]).current_dir(root())).ok();

    let found = results(&out);
    let methods: Vec<&str> =
        found["methods"].as_array().expect("methods").iter().filter_map(|m| m["name"].as_str()).collect();
    assert_eq!(methods, ["DPO", "JPO conditional", "JPO joint", "JPO both"]);
    let trainings = found["trainings"].as_array().expect("trainings");
    assert_eq!(trainings.len(), 4 * 2 * 2, "methods × fractions × seeds");
    // What each method saw, by the files that it was judged into.
    let [conditional, joint] =
        ["conditional", "joint"].map(|kind| lines(&out, &format!("{kind}/preferences.jsonl")) as f64);
    let rows = |method: &str, fraction: f64| {
        let is = |t: &&Value| t["method"] == method && t["fraction"] == fraction;
        trainings.iter().find(is).and_then(|t| t["rows"].as_f64()).expect("a training")
    };
    assert_eq!(rows("DPO", 1.0), conditional);
    assert_eq!(rows("JPO joint", 1.0), joint);
    assert_eq!(rows("JPO both", 1.0), (conditional / 2.0).round() + (joint / 2.0).round());
    assert_eq!(rows("DPO", 0.5), (conditional / 2.0).round());
    // Parts are parts of larger ones.
    let half = read(&out, "data/DPO-0.5.jsonl");
    assert!(read(&out, "data/DPO.jsonl").starts_with(&half) && !half.is_empty());

    // Win rates follow from what the judge said.
    let evaluated = found["evaluation"]["methods"].as_array().expect("methods");
    assert_eq!(evaluated.len(), 1 + 4 * 2, "SFT, and every method by fraction");
    for method in evaluated {
        let count = |key: &str| method[key].as_f64().expect("a count");
        let runs = method["win_rate"]["runs"].as_f64().expect("runs");
        assert_eq!(count("wins") + count("ties") + count("losses") + count("no_answer"), 24.0 * runs, "{method}");
        let want = (count("wins") + count("ties") / 2.0) / (count("wins") + count("ties") + count("losses"));
        let got = method["win_rate"]["mean"]["value"].as_f64().expect("a rate");
        assert!((got - want).abs() < 1e-9, "{method}");
    }
    let page = read(&out, "report.html");
    for part in ["JPO in miniature", "by method", "identical", "by amount of data", "DPO", "JPO both"] {
        assert!(page.contains(part), "{part}");
    }
    // Nothing is done again: the same command changes no file of a stage.
    let before = fs::metadata(sandbox.path("out/evaluate/results.json")).and_then(|m| m.modified()).expect("a file");
    let again = Ran::of(sandbox.command(&["study", recipe, "--output-dir", &out, "--resume"]).current_dir(root())).ok();
    assert!(!again.stderr.contains("study: train"), "{}", again.stderr);
    let after = fs::metadata(sandbox.path("out/evaluate/results.json")).and_then(|m| m.modified()).expect("a file");
    assert_eq!(before, after);
    assert_eq!(results(&out), found);
}

/// Killed ten times at random, it ends with the same numbers as a study that was left alone.
#[test]
fn killed_at_any_moment_it_ends_the_same() {
    let sandbox = Sandbox::new();
    let (file, whole, out) =
        (sandbox.write("study.toml", smallest_study()), sandbox.text("whole"), sandbox.text("killed"));
    let started = Instant::now();
    sandbox.run(&["study", &file, "--output-dir", &whole]).ok();
    let length = started.elapsed();
    let mut rng = Rng::new(2_404, 530);
    for _ in 0..10 {
        let mut command = sandbox.command(&["study", &file, "--output-dir", &out, "--resume"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
        std::thread::sleep(length.mul_f32(0.4 * rng.next_f32()).max(Duration::from_millis(50)));
        child.kill().expect("killed");
        child.wait().expect("waited for");
    }
    sandbox.run(&["study", &file, "--output-dir", &out, "--resume"]).ok();
    assert_eq!(results(&out), results(&whole));
    for file in ["data/DPO.jsonl", "joint/preferences.jsonl", "sample/comparisons.jsonl"] {
        assert_eq!(read(&out, file), read(&whole, file), "{file}");
    }
    // The comparison sees a difference.
    let other = sandbox.write("other.toml", smallest_study().replace("seeds = [0]", "seeds = [1]"));
    sandbox.run(&["study", &other, "--output-dir", &sandbox.text("other")]).ok();
    assert_ne!(results(&sandbox.text("other")), results(&whole));
    // And a study that has changed is not mixed with what was done.
    let resumed = sandbox.run(&["study", &other, "--output-dir", &whole, "--resume"]);
    assert_eq!(resumed.status, 0, "other seeds are other trainings: {}", resumed.stderr);
    let changed = sandbox.write("changed.toml", smallest_study().replace("temperature = 1.0", "temperature = 0.9"));
    sandbox.run(&["study", &changed, "--output-dir", &whole, "--resume"]).said(2, &["--resume", "sample.json", "0.9"]);
}

/// Rows of its own instead of sampling and judging, after supervised tuning: an adapter that methods go on with, or the whole model.
#[test]
fn preferences_at_hand_take_the_place_of_a_judge() {
    let sandbox = Sandbox::new();
    let model = root().join("models/demo");
    rows::write(&sandbox.path("sft.jsonl"), rows::sft(DataSplit::Train, 1, 8)).expect("written");
    rows::write(&sandbox.path("conditional.jsonl"), rows::conditional(DataSplit::Train, 2, 8)).expect("written");
    rows::write(&sandbox.path("joint.jsonl"), rows::joint(DataSplit::Train, 3, 6)).expect("written");
    rows::write(&sandbox.path("test.jsonl"), rows::held_out(4, 4)).expect("written");
    let study = |sft: &str, train: &str| {
        format!(
            r#"
            model = {model:?}
            seeds = [0]
            [sft]
            data = ["sft.jsonl"]
            max-steps = 2
            {sft}
            [conditional]
            data = ["conditional.jsonl"]
            [joint]
            data = ["joint.jsonl"]
            [train]
            max-steps = 1
            {train}
            [[methods]]
            name = "DPO"
            objective = "dpo"
            conditional = 1.0
            [[methods]]
            name = "JPO"
            conditional = 0.5
            joint = 1.0
            [evaluate]
            data = ["test.jsonl"]
            grader = true
            temperatures = [0.0]
            max-new-tokens = 12
            "#
        )
    };
    let file = sandbox.write("adapter.toml", study("lora-r = 4", ""));
    let out = sandbox.text("out");
    sandbox.run(&["study", &file, "--output-dir", &out]).ok();
    let found = results(&out);
    let rows: Vec<u64> =
        found["trainings"].as_array().expect("trainings").iter().filter_map(|t| t["rows"].as_u64()).collect();
    assert_eq!(rows, [8, 4 + 6]);
    assert_eq!(found["interplay"], Value::Null, "nobody was asked");
    for training in found["trainings"].as_array().expect("trainings") {
        let loss = training["last"]["loss"].as_f64().expect("a loss");
        assert!((loss - std::f64::consts::LN_2).abs() < 1e-5, "the reference is what it starts from: {training}");
    }
    let adapter = |name: &str| -> Value { serde_json::from_str(&read(&out, name)).expect("JSON") };
    assert_eq!(adapter("train/DPO-seed-0/adapter_config.json")["r"], 4, "it goes on with the adapter of [sft]");
    let names: Vec<&str> =
        found["evaluation"]["methods"].as_array().expect("methods").iter().filter_map(|m| m["name"].as_str()).collect();
    assert_eq!(names, ["SFT", "DPO", "JPO"]);
    // Moved, it has nothing to do.
    let moved = sandbox.text("moved");
    fs::rename(&out, &moved).expect("moved");
    let again = sandbox.run(&["study", &file, "--output-dir", &moved, "--resume"]).ok();
    assert!(!again.stderr.contains("study: "), "{}", again.stderr);
    assert_eq!(results(&moved)["trainings"], found["trainings"]);
    fs::rename(&moved, &out).expect("moved");
    // Preferences that have changed since are another study's.
    fs::write(sandbox.path("joint.jsonl"), read(&out, "data/JPO.jsonl")).expect("written");
    sandbox
        .run(&["study", &file, "--output-dir", &out, "--resume"])
        .said(2, &["--resume", "joint.jsonl", "has changed"]);

    let file = sandbox.write("full.toml", study("full = true", "full = true"));
    let out = sandbox.text("full");
    sandbox.run(&["study", &file, "--output-dir", &out]).ok();
    assert!(
        Path::new(&out).join("sft/model.safetensors").is_file()
            && Path::new(&out).join("train/JPO-seed-0/model.safetensors").is_file()
    );
    assert_ne!(results(&out)["trainings"], found["trainings"]);
}

#[test]
fn a_dry_run_tells_and_does_nothing() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("study.toml", smallest_study());
    let before = sandbox.listing();
    let told = sandbox.run(&["study", &file, "--output-dir", &sandbox.text("out"), "--dry-run", "--json"]).ok();
    assert_eq!(sandbox.listing(), before);
    let told = &told.lines()[0];
    let stages: Vec<&str> =
        told["stages"].as_array().expect("stages").iter().filter_map(|s| s["stage"].as_str()).collect();
    assert_eq!(stages, ["tasks", "sample", "conditional", "joint", "train/DPO-seed-0", "train/JPO-seed-0", "evaluate"]);
    assert!(told["peak_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{told}");
    // What computes has a time, in all the sum; what a judge does has none.
    let seconds = |stage: &Value| stage["seconds"].as_f64();
    let stages = told["stages"].as_array().expect("stages");
    let sum: f64 = stages.iter().filter_map(seconds).sum();
    assert!(seconds(told).is_some_and(|total| (total - sum).abs() < 1e-9 && (0.01..1000.0).contains(&total)), "{told}");
    assert_eq!(stages.iter().filter(|s| seconds(s).is_none()).count(), 2, "{told}");
    assert!(stages.iter().filter(|s| s["stage"] != "tasks").filter_map(seconds).all(|s| s > 1e-3), "{told}");

    // Of rows at hand, one at a time, the first of which is too long; and where none fits.
    let row = |words: usize| json!({"prompt": "Say", "chosen": "a ".repeat(words), "rejected": "b"}).to_string();
    let own = |rows: &[usize]| {
        sandbox.write("own.jsonl", rows.iter().map(|&words| row(words)).collect::<Vec<_>>().join("\n"));
        let model = root().join("models/demo");
        let file = format!(
            r#"
            model = {model:?}
            seeds = [0]
            [tasks]
            prompts = 6
            test = 6
            [conditional]
            data = ["own.jsonl"]
            [train]
            batch-size = 1
            max-length = 64
            [[methods]]
            name = "DPO"
            objective = "dpo"
            conditional = 1.0
            [evaluate]
            grader = true
            "#
        );
        let file = sandbox.write("own.toml", file);
        let out = sandbox.text("out");
        sandbox.run(&["study", &file, "--output-dir", &out, "--dry-run", "--json"]).ok().lines().remove(0)
    };
    assert!(own(&[200, 3, 4, 5])["seconds"].as_f64().is_some_and(|total| total > 0.0));
    assert_eq!(own(&[200, 300])["seconds"], Value::Null);
}

#[test]
fn a_study_that_is_wrong_is_refused_by_its_key() {
    let sandbox = Sandbox::new();
    let out = sandbox.text("out");
    let refused = |from: &str, to: &str, parts: &[&str]| {
        let text = smallest_study();
        assert!(text.contains(from), "{from}");
        let file = sandbox.write("study.toml", text.replacen(from, to, 1));
        sandbox.refused(&["study", &file, "--output-dir", &out], &[&["study.toml"], parts].concat());
    };
    refused("seeds = [0]", "seeds = []", &["seeds"]);
    refused("seeds = [0]", "seeds = [0]\nfractions = [0.5, 1.5]", &["fractions"]);
    refused("seeds = [0]", "sedes = [0]", &["sedes"]);
    refused("max-steps = 2", "max-stepz = 2", &["max-stepz", "is not a flag"]);
    refused("max-steps = 2", "max-steps = \"two\"", &["max-steps"]);
    refused("max-steps = 2", "seed = 2", &["seed", "set by the study"]);
    refused("conditional = 1.0", "conditional = 1.2", &["DPO", "shares"]);
    refused("name = \"JPO\"", "name = \"DPO\"", &["methods.name"]);
    refused("max-steps = 2", "learning-rate = -1.0", &["methods.DPO.learning-rate"]);
    refused("[judge]\n        grader = true", "[judge]", &["judge.endpoint", "who judges"]);
    refused(
        "temperatures = [0.0]",
        "temperatures = [0.0]\n        endpoint = \"http://localhost\"",
        &["evaluate.grader"],
    );
    refused(
        "batch-size = 4",
        "batch-size = 4\n        full = true\n        [sft]\n        data = [\"x.jsonl\"]",
        &["sft.full"],
    );
    refused("[judge]\n        grader = true", "", &["judge", "is missing"]);
    refused("[tasks]\n        prompts = 12\n        test = 6", "", &["data", "is missing"]);
    // Rows that are read after the first stages are looked at before them.
    let named = |section: &str, data: &str| format!("[{section}]\n        data = [\"{data}\"]");
    let conditional = |data: &str, rest: &[&str]| {
        let text = smallest_study();
        let (before, after) = text.split_once("[sample]").expect("a sample");
        let after = after.split_once("[joint]").expect("joint").1.split_once("[train]").expect("train").1;
        let after = after.replace("joint = 0.5", "on-bad-row = \"skip\"");
        let text = format!("{before}{}\n        [train]{after}", named("conditional", data));
        sandbox.refused(&["study", &sandbox.write("study.toml", text), "--output-dir", &out], rest);
    };
    let pair = r#"{"prompt":"Q","chosen":"a","rejected":"b"}"#;
    sandbox.write("own.jsonl", format!("{pair}\n{{\"prompt\n{pair}\n"));
    conditional("own.jsonl", &["own.jsonl:2", "malformed JSON"]);
    #[cfg(unix)]
    conditional("/dev/zero", &["/dev/zero", "is not a regular file"]);
    let with_data = |from: &str, parts: &[&str]| {
        let file = sandbox.write(
            "study.toml",
            smallest_study().replacen(from, &format!("{from}\n        data = [\"own.jsonl\"]"), 1),
        );
        sandbox.refused(&["study", &file, "--output-dir", &out], parts);
    };
    with_data("[sample]", &["own.jsonl:2", "malformed JSON"]);
    sandbox.write("own.jsonl", "{\"instruction\": \"Q\"}\n");
    with_data("[evaluate]", &["own.jsonl:1", "`gold_response` is missing"]);
    let gone = sandbox.text("gone.toml");
    sandbox.refused(&["study", &gone, "--output-dir", &out], &["gone.toml"]);
}
