//! Job arrays: a study and an evaluation whose parts are done by processes of their own have the results of one process.

mod program;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use jointwise::eval::tasks::rows;
use jointwise::files::FileLock;
use program::{Ran, Sandbox, smallest_study};
use serde_json::{Value, json};

/// Runs some jobs at the same time, each in a process of its own. Returns what they left.
fn together(sandbox: &Sandbox, args: &[&str], jobs: impl IntoIterator<Item = u64>) -> Vec<Ran> {
    let start = |job: u64| {
        let mut command = sandbox.command(&[args, &["--job", &job.to_string()]].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
    };
    let children: Vec<_> = jobs.into_iter().map(start).collect();
    children.into_iter().map(|child| Ran::from(child.wait_with_output().expect("ended"))).collect()
}

/// Reads the list of jobs, and checks that nothing was written for it.
fn list(sandbox: &Sandbox, args: &[&str]) -> Value {
    let before = sandbox.listing();
    let ran = sandbox.run(&[args, &["--list-jobs", "--json"]].concat()).ok();
    assert_eq!(sandbox.listing(), before);
    let lines = ran.lines();
    assert_eq!(lines.len(), 1, "one object");
    lines[0].clone()
}

fn array<'a>(list: &'a Value, key: &str) -> &'a Vec<Value> {
    list[key].as_array().expect("an array")
}

fn is_done(list: &Value) -> Vec<bool> {
    array(list, "jobs").iter().map(|job| job["done"] == true).collect()
}

/// Numbers of the jobs of a list, by their stage: those of one stage run at the same time.
fn stages(list: &Value) -> Vec<Vec<u64>> {
    let numbers = |array: &Value| {
        let text = array["jobs"].as_str().expect("a range");
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        (first.parse().expect("a number")..=last.parse().expect("a number")).collect()
    };
    array(list, "arrays").iter().map(numbers).collect()
}

fn read(sandbox: &Sandbox, file: &str) -> String {
    fs::read_to_string(sandbox.path(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

#[test]
fn the_jobs_of_a_study_are_the_study() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("study.toml", smallest_study());
    let args = ["study", &file, "--output-dir", "jobs"];
    let jobs = list(&sandbox, &args);
    let names: Vec<&str> = array(&jobs, "jobs").iter().filter_map(|job| job["name"].as_str()).collect();
    let trained = ["train/DPO-seed-0", "train/JPO-seed-0"];
    let answered = ["evaluate/SFT-t0-s0", "evaluate/DPO-seed-0-t0-s0", "evaluate/JPO-seed-0-t0-s0"];
    let expected = [&["tasks", "sample", "conditional", "joint"], &trained[..], &answered, &["evaluate"]].concat();
    assert_eq!(names, expected);
    let needs = |number: usize| jobs["jobs"][number - 1]["needs"].clone();
    assert_eq!([1, 2, 4, 5, 6].map(needs), [json!([]), json!([1]), json!([3]), json!([3]), json!([3, 4])]);
    assert_eq!([7, 8, 10].map(needs), [json!([1]), json!([1, 5]), json!([7, 8, 9])]);
    assert!(!is_done(&jobs).contains(&true));
    assert_eq!(stages(&jobs).len(), 7);

    // What cannot be done is refused, and leaves nothing behind.
    let refused = |job: &str, parts: &[&str]| sandbox.refused(&[&args[..], &["--job", job]].concat(), parts);
    refused("0", &["--job: 0: there are jobs 1 to 10", "--list-jobs"]);
    refused("11", &["--job: 11: there are jobs 1 to 10"]);
    refused(
        "6",
        &["--job: 6 (train/JPO-seed-0) needs 3 (conditional), 4 (joint), which are not done", "each with --job"],
    );
    for (number, numbers) in stages(&jobs).into_iter().enumerate() {
        if number == 4 {
            // Another process is doing a training: nobody else begins it.
            let lock = sandbox.path("jobs/stages/train-DPO-seed-0.json.lock");
            let _lock = FileLock::acquire(&lock).expect("a file").expect("not locked");
            let other = format!("another run (process {}) is doing train/DPO-seed-0", std::process::id());
            refused("5", &["jobs", &other]);
            refused("8", &["8 (evaluate/DPO-seed-0-t0-s0) needs 5 (train/DPO-seed-0), which is not done"]);
        }
        for ran in together(&sandbox, &args, numbers) {
            ran.ok();
        }
    }
    sandbox.run(&["study", &file, "--output-dir", "one"]).ok();
    // results.json holds those of evaluate, without the paths of their files.
    for file in ["results.json", "data/JPO.jsonl", "train/JPO-seed-0/adapter_model.safetensors"] {
        let [jobs, one] = ["jobs", "one"].map(|out| fs::read(sandbox.path(out).join(file)).expect(file));
        assert!(jobs == one, "{file}");
    }
    // The control: another study has other results.
    let other = sandbox.write("other.toml", smallest_study().replace("seeds = [0]", "seeds = [1]"));
    sandbox.run(&["study", &other, "--output-dir", "other"]).ok();
    assert_ne!(read(&sandbox, "other/results.json"), read(&sandbox, "one/results.json"));

    // Nothing is left to do, for a job or for the study as one process.
    assert!(!is_done(&list(&sandbox, &args)).contains(&false));
    assert!(!is_done(&list(&sandbox, &["study", &file, "--output-dir", "one"])).contains(&false));
    let again = sandbox.run(&[&args[..], &["--job", "5"]].concat()).ok();
    assert!(again.stderr.contains("job 5 (train/DPO-seed-0) is done already"), "{}", again.stderr);
    let again = sandbox.run(&[&args[..], &["--resume"]].concat()).ok();
    assert!(!again.stderr.contains("study: "), "{}", again.stderr);
    assert_eq!(read(&sandbox, "jobs/results.json"), read(&sandbox, "one/results.json"));
    // A job of a study that has changed is not mixed with what was done.
    let changed = sandbox.write("changed.toml", smallest_study().replace("temperature = 1.0", "temperature = 0.9"));
    sandbox.refused(&["study", &changed, "--output-dir", "jobs", "--job", "5"], &["sample.json", "has changed"]);
    // Text for a person.
    let text = sandbox.run(&[&args[..], &["--list-jobs"]].concat()).ok().stdout;
    assert!(text.contains(&format!("   10  {:25}  done  needs 7-9\n", "evaluate")), "{text}");
    assert!(text.ends_with("job arrays, one after the other: 1, 2, 3, 4, 5-6, 7-9, 10\n"), "{text}");
}

/// Two processes that begin a job at the same time: one does it, and the other one is refused, or finds it done.
#[test]
fn a_job_is_done_once() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("study.toml", smallest_study());
    let args = ["study", &file, "--output-dir", "out"];
    for job in 1..=3 {
        let both = together(&sandbox, &args, [job, job]);
        let refused: Vec<&Ran> = both.iter().filter(|ran| ran.status != 0).collect();
        assert!(refused.len() < 2, "{both:?}");
        refused.iter().for_each(|ran| ran.said(2, &["another run", "is doing"]));
        let done = is_done(&list(&sandbox, &args));
        assert!(done[job as usize - 1] && !done[job as usize], "{done:?}");
    }
    // A folder of other things is left alone.
    fs::create_dir(sandbox.path("foreign")).expect("a folder");
    sandbox.write("foreign/file", "");
    sandbox.refused(&["study", &file, "--output-dir", "foreign", "--job", "1"], &["foreign exists and is not empty"]);
}

#[test]
fn the_jobs_of_an_evaluation_are_the_evaluation() {
    let sandbox = Sandbox::new();
    rows::write(&sandbox.path("test.jsonl"), rows::held_out(4, 6)).expect("written");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let model = model.to_str().expect("UTF-8");
    let args = |out: &'static str, seeds: &'static str| {
        let mut args = vec!["evaluate", "--model", model, "--data", "test.jsonl", "--grader", "--output-dir", out];
        args.extend(["--max-new-tokens", "12", "--temperatures", "0,1", "--seeds", seeds]);
        args
    };
    let jobs = list(&sandbox, &args("jobs", "0"));
    let names: Vec<&str> = array(&jobs, "jobs").iter().filter_map(|job| job["name"].as_str()).collect();
    assert_eq!(names, ["demo-t0-s0", "demo-t1-s0", "judge"]);
    assert_eq!(jobs["arrays"], json!([{"stage": "respond", "jobs": "1-2"}, {"stage": "judge", "jobs": "3"}]));
    let job = |number: &'static str| [args("jobs", "0"), vec!["--job", number]].concat();
    sandbox.refused(&job("4"), &["--job: 4: there are jobs 1 to 3"]);
    sandbox.refused(&job("3"), &["3 (judge) needs 1 (demo-t0-s0), 2 (demo-t1-s0), which are not done"]);
    for ran in together(&sandbox, &args("jobs", "0"), [1, 2]) {
        ran.ok();
    }
    assert_eq!(is_done(&list(&sandbox, &args("jobs", "0"))), [true, true, false]);
    together(&sandbox, &args("jobs", "0"), [3]).remove(0).ok();
    assert_eq!(is_done(&list(&sandbox, &args("jobs", "0"))), [true; 3]);
    sandbox.run(&args("one", "0")).ok();
    assert_eq!(read(&sandbox, "jobs/results.json"), read(&sandbox, "one/results.json"));
    // The control, and a list that has grown.
    sandbox.run(&args("other", "1")).ok();
    assert_ne!(read(&sandbox, "other/results.json"), read(&sandbox, "one/results.json"));
    assert_eq!(is_done(&list(&sandbox, &args("jobs", "0,1"))), [true, false, true, false, false]);
    // Somebody else is writing a run's responses.
    let file = fs::File::create(sandbox.path("jobs/responses/demo-t0-s1.jsonl")).expect("a file");
    file.lock().expect("locked");
    let more = [args("jobs", "0,1"), vec!["--job", "2"]].concat();
    sandbox.run(&more).said(2, &["demo-t0-s1.jsonl", "another run is writing to it"]);
    drop(file);
    for ran in together(&sandbox, &args("jobs", "0,1"), [2, 4]) {
        ran.ok();
    }
    together(&sandbox, &args("jobs", "0,1"), [5]).remove(0).ok();
    sandbox.run(&[args("one", "0,1"), vec!["--resume"]].concat()).ok();
    assert_eq!(read(&sandbox, "jobs/results.json"), read(&sandbox, "one/results.json"));
}
