//! Studies and evaluations over MPI: several ranks have the results of one process, also after one of them was killed or interrupted.
//!
//!     cargo test --release --features mpi --test mpi_sweeps

mod launched;
mod program;

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use jointwise::eval::tasks::rows;
use launched::{Program, ends, has_mpirun, mpirun, rank};
use program::{Ran, Sandbox, metrics, smallest_study};

/// A study of four trainings with as many steps, answered at two temperatures.
fn study(sandbox: &Sandbox, steps: usize) -> String {
    let changes = [
        ("seeds = [0]", "seeds = [0, 1]".to_string()),
        ("max-steps = 2", format!("max-steps = {steps}")),
        ("temperatures = [0.0]", "temperatures = [0.0, 1.0]".to_string()),
    ];
    let text = changes.iter().fold(smallest_study(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    });
    sandbox.write("study.toml", text)
}

fn study_args<'a>(file: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["study", file, "--output-dir", out], more].concat()
}

fn several<'a>(n: usize, args: Vec<&'a str>) -> Program<'a> {
    Program { n, variables: Vec::new(), args }
}

fn over(sandbox: &Sandbox, n: usize, args: Vec<&str>) -> Ran {
    Ran::of(&mut mpirun(sandbox, &[several(n, args)]))
}

fn results(sandbox: &Sandbox, out: &str) -> String {
    fs::read_to_string(sandbox.path(out).join("results.json")).expect("results.json")
}

/// Two studies have the same results, and in them the same adapters, metrics and responses.
#[track_caller]
fn same(sandbox: &Sandbox, a: &str, b: &str) {
    assert!(results(sandbox, a) == results(sandbox, b), "{a}, {b}: results.json");
    let mut n = 0;
    for (folder, file) in [("train", "adapter_model.safetensors"), ("train", "metrics"), ("evaluate/responses", "")] {
        let names = fs::read_dir(sandbox.path(a).join(folder)).expect("a folder").map(|entry| entry.expect("an entry"));
        for name in names.map(|entry| entry.file_name()) {
            let [a, b] = [a, b].map(|out| sandbox.path(out).join(folder).join(&name));
            n += 1;
            match file {
                "metrics" => assert_eq!(metrics(&a), metrics(&b), "{}", b.display()),
                "" => assert!(fs::read(&a).expect("a file") == fs::read(&b).expect("a file"), "{}", b.display()),
                file => assert!(fs::read(a.join(file)).expect(file) == fs::read(b.join(file)).expect(file), "{file}"),
            }
        }
    }
    assert_eq!(n, 4 + 4 + 5 * 2, "trainings, their metrics, and responses at two temperatures");
}

/// Files of a folder and of all folders in it that locks or ranks left.
fn left_over(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        let name = entry.file_name().expect("a name").to_string_lossy().into_owned();
        match entry.is_dir() {
            true => found.extend(left_over(&entry)),
            false if name.starts_with('.') || name.ends_with(".lock") => found.push(name),
            false => {}
        }
    }
    found
}

#[test]
fn a_study_over_ranks_is_that_of_one_process() {
    if !has_mpirun() {
        return;
    }
    let sandbox = Sandbox::new();
    let file = study(&sandbox, 2);
    sandbox.run(&study_args(&file, "one", &[])).ok();
    for n in [2, 3] {
        let out = format!("ranks-{n}");
        let ran = over(&sandbox, n, study_args(&file, &out, &["--json"])).ok();
        same(&sandbox, "one", &out);
        assert_eq!(ran.stdout, results(&sandbox, &out), "rank 0 alone prints, and nothing else");
        let said = |part: String| assert!(ran.stderr.contains(&part), "`{part}` is not in {}", ran.stderr);
        let first = ran.stderr.lines().next().unwrap_or_default();
        assert!(first.starts_with(&format!("{n} ranks: ranks 0-{} on ", n - 1)), "{first}");
        // Trainings and responses are divided, and each line says whose it is.
        for rank in 0..n {
            said(format!("rank {rank}, train/"));
            said(format!("rank {rank}, evaluate: "));
        }
        assert_eq!(ran.stderr.matches("step 2/2").count(), 4, "each training is one rank's: {}", ran.stderr);
        assert!(!ran.stderr.contains("rank 1, sample"), "{}", ran.stderr);
        assert_eq!(left_over(&sandbox.path(&out)), [""; 0]);
    }
    // The control: a study of other trainings has other results.
    let other = study(&sandbox, 3);
    sandbox.run(&study_args(&other, "other", &[])).ok();
    assert!(results(&sandbox, "other") != results(&sandbox, "one"));
    // What is done is done: nothing is left for three ranks, or for one process.
    let file = study(&sandbox, 2);
    let again = over(&sandbox, 3, study_args(&file, "ranks-2", &["--resume"])).ok();
    assert!(!again.stderr.contains("train/") && !again.stderr.contains("evaluate: "), "{}", again.stderr);
    let again = sandbox.run(&study_args(&file, "ranks-3", &["--resume"])).ok();
    assert!(!again.stderr.contains("study: "), "{}", again.stderr);
}

/// Waits until some trainings of a study have written as many lines of metrics.
fn wait_for_lines(sandbox: &Sandbox, out: &str, lines: usize, run: &mut Child) {
    let begun = Instant::now();
    let count = || -> usize {
        let trainings = fs::read_dir(sandbox.path(out).join("train")).into_iter().flatten().flatten();
        let of = |path: &Path| fs::read_to_string(path).map_or(0, |text| text.matches('\n').count());
        trainings.map(|training| of(&training.path().join("metrics.jsonl"))).sum()
    };
    while count() < lines {
        assert!(run.try_wait().expect("a child").is_none(), "the run ended before line {lines}");
        assert!(begun.elapsed() < Duration::from_secs(120), "no line {lines}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Killed twice and interrupted once in the middle of its trainings, it ends with the results of one process, whatever the number of ranks.
#[cfg(target_os = "linux")]
#[test]
fn a_study_that_lost_a_rank_goes_on() {
    use launched::{kill_rank, signal_rank};
    if !has_mpirun() {
        return;
    }
    let sandbox = Sandbox::new();
    let file = study(&sandbox, 24);
    sandbox.run(&study_args(&file, "one", &[])).ok();
    let start = |n: usize, lines: usize| {
        let mut run = mpirun(&sandbox, &[several(n, study_args(&file, "killed", &["--resume"]))]);
        let mut run = run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("mpirun starts");
        wait_for_lines(&sandbox, "killed", lines, &mut run);
        run
    };
    kill_rank(start(2, 12), (1, 2));
    kill_rank(start(3, 30), (0, 3));
    // One rank is interrupted: all end in order, and say so.
    let run = start(2, 45);
    signal_rank(&run, (1, 2), libc::SIGINT);
    let ended = run.wait_with_output().expect("ended");
    let text = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{text}");
    assert!(text.contains("another rank was interrupted") && text.contains("with --resume goes on"), "{text}");
    assert!(!text.contains("error:"), "{text}");
    assert!(!sandbox.path("killed/results.json").exists());
    over(&sandbox, 2, study_args(&file, "killed", &["--resume"])).ok();
    same(&sandbox, "one", "killed");
}

#[test]
fn an_evaluation_over_ranks_is_that_of_one_process() {
    if !has_mpirun() {
        return;
    }
    let sandbox = Sandbox::new();
    rows::write(&sandbox.path("test.jsonl"), rows::held_out(4, 6)).expect("written");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let model = model.to_str().expect("UTF-8");
    let args = |out: &'static str, seeds: &'static str| {
        let mut args = vec!["evaluate", "--model", model, "--data", "test.jsonl", "--grader", "--output-dir", out];
        args.extend(["--max-new-tokens", "12", "--temperatures", "0,1", "--seeds", seeds]);
        args
    };
    sandbox.run(&args("one", "0,1")).ok();
    let ran = over(&sandbox, 2, [args("two", "0,1"), vec!["--json"]].concat()).ok();
    assert!(results(&sandbox, "two") == results(&sandbox, "one"));
    assert_eq!(ran.stdout, results(&sandbox, "two"));
    for rank in 0..2 {
        assert!(ran.stderr.contains(&format!("rank {rank}: demo: 12 responses to make")), "{}", ran.stderr);
    }
    // More ranks than runs are left.
    let more = over(&sandbox, 3, [args("two", "0,1,2"), vec!["--resume"]].concat()).ok();
    assert_eq!(more.stderr.matches("6 responses to make").count(), 2, "{}", more.stderr);
    sandbox.run(&[args("one", "0,1,2"), vec!["--resume"]].concat()).ok();
    assert!(results(&sandbox, "two") == results(&sandbox, "one"));
    // The control.
    over(&sandbox, 2, args("other", "0,2")).ok();
    assert!(results(&sandbox, "other") != results(&sandbox, "one"));
    // Ranks that would evaluate different things.
    let both = [rank(args("differ", "0,1")), rank(args("differ", "0,3"))];
    ends(mpirun(&sandbox, &both), 2, &["rank 1 has other checkpoints, temperatures or seeds than rank 0"]);
}

/// Rank 1 works in another folder, where the output folder has the same name.
#[test]
fn a_rank_that_does_not_see_the_folder_is_refused() {
    if !has_mpirun() {
        return;
    }
    let sandbox = Sandbox::new();
    let file = study(&sandbox, 2);
    fs::create_dir(sandbox.path("elsewhere")).expect("a folder");
    let program = sandbox.command(&[]);
    let mut apart = mpirun(&sandbox, &[rank(study_args(&file, "out", &[]))]);
    apart.args([":", "-n", "1", "-wdir", &sandbox.text("elsewhere")]).arg(program.get_program());
    apart.args(study_args(&file, "out", &[]));
    ends(apart, 2, &["rank 1 at ", "does not see rank 0's folder out", "on a file system that they share"]);
    assert_eq!(sandbox.listing().keys().filter(|path| path.starts_with(sandbox.path("elsewhere"))).count(), 1);
    // Another study on rank 1.
    let other =
        sandbox.write("other.toml", fs::read_to_string(&file).expect("a study").replace("pairs = 6", "pairs = 5"));
    let both = [rank(study_args(&file, "out", &["--resume"])), rank(study_args(&other, "out", &["--resume"]))];
    ends(mpirun(&sandbox, &both), 2, &["rank 1 has another study file than rank 0"]);
    // Online rounds are one after the other.
    let rounds = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/rounds/demo.toml");
    let rounds = rounds.to_str().expect("UTF-8");
    let ran = over(&sandbox, 2, vec!["iterate", rounds, "--output-dir", "rounds"]);
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("start `iterate` once") && !sandbox.path("rounds").exists(), "{}", ran.stderr);
}
