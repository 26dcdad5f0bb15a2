//! Interrupted at any moment, a run goes on to the same bits.

mod program;

use std::f64::consts::LN_2;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use program::{Ran, Sandbox, fixture, metrics, rows};
use serde_json::{Value, json};

const STEPS: usize = 6;

struct Setting {
    sandbox: Sandbox,
    model: String,
    data: String,
    extra: Vec<&'static str>,
    /// Steps of a whole run: [`STEPS`], or more where it must not end before something is done to it.
    steps: String,
    /// The file that holds what was trained.
    result: &'static str,
}

impl Setting {
    fn full() -> Self {
        Self::new(vec!["--full", "--learning-rate", "1e-3", "--weight-decay", "0.1"], "model.safetensors")
    }

    fn lora() -> Self {
        Self::new(vec!["--lora-r", "4", "--learning-rate", "1e-2", "--seed", "3"], "adapter_model.safetensors")
    }

    fn new(extra: Vec<&'static str>, result: &'static str) -> Self {
        let sandbox = Sandbox::new();
        let model = fixture("mistral-odd/model").to_str().expect("UTF-8").to_string();
        let data = sandbox.write("rows.jsonl", rows("mistral-odd").join("\n"));
        Self { sandbox, model, data, extra, steps: STEPS.to_string(), result }
    }

    fn args<'a>(&'a self, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut all = vec!["train", "--model", &self.model, "--data", &self.data, "--output-dir", out];
        all.extend(["--max-steps", &self.steps, "--save-steps", "2", "--batch-size", "4"]);
        all.extend(["--gradient-accumulation-steps", "2"]);
        all.extend(&self.extra);
        all.extend(more);
        all
    }

    fn run(&self, out: &str, more: &[&str]) -> Ran {
        self.sandbox.run(&self.args(out, more))
    }

    fn start(&self, out: &str, more: &[&str]) -> Child {
        let mut command = self.sandbox.command(&self.args(out, more));
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts")
    }

    /// The same log and the same trained bits.
    fn same(&self, a: &str, b: &str) {
        let [a, b] = [a, b].map(|name| self.sandbox.path(name));
        assert_eq!(metrics(&a).len().to_string(), self.steps);
        assert_eq!(metrics(&a), metrics(&b));
        let bits = |dir: &Path| fs::read(dir.join(self.result)).expect("a result");
        assert!(bits(&a) == bits(&b), "{} differs", self.result);
    }
}

/// Waits until the log has `n` whole lines.
fn wait_for_lines(log: &Path, n: usize, child: &mut Child) {
    let started = Instant::now();
    while fs::read_to_string(log).map_or(0, |t| t.matches('\n').count()) < n {
        assert!(child.try_wait().expect("a child").is_none(), "the run ended before line {n}");
        assert!(started.elapsed() < Duration::from_secs(240), "no line {n}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn killed_and_resumed(setting: &Setting) {
    setting.run("whole", &[]).ok();
    let log = setting.sandbox.path("killed/metrics.jsonl");
    let mut child = setting.start("killed", &[]);
    wait_for_lines(&log, 3, &mut child);
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert!(!setting.sandbox.path("killed").join(setting.result).exists(), "the run ended before it was killed");
    let lock = setting.sandbox.path("killed/.jointwise.lock");
    assert!(lock.is_file(), "its file is left, and locks nothing");
    // As a kill in the middle of a write leaves it: half a line, half a checkpoint.
    let text = fs::read_to_string(&log).expect("a log");
    fs::write(&log, text + "{\"step\":9,\"lo").expect("a log");
    let half = setting.sandbox.path("killed/.checkpoint-6.tmp");
    fs::create_dir(&half).expect("a folder");
    fs::write(half.join("state.safetensors"), b"half").expect("a file");

    setting.run("killed", &["--resume"]).ok();
    setting.same("whole", "killed");
    assert!(!lock.exists() && !setting.sandbox.path("whole/.jointwise.lock").exists());
}

#[test]
fn killed_full() {
    killed_and_resumed(&Setting::full());
}

#[test]
fn killed_lora() {
    killed_and_resumed(&Setting::lora());
}

/// Tensors that are trained beside the matrices: the tied embedding whole, or rows of it.
#[test]
fn killed_lora_with_whole_modules_and_tokens() {
    for extra in [["--modules-to-save", "embed_tokens,lm_head"], ["--train-tokens", "e,a"]] {
        let mut setting = Setting::lora();
        setting.extra.extend(extra);
        killed_and_resumed(&setting);
    }
}

/// Moments in eight bits (of the head: nothing else here is large enough), values in bf16, the rest in f32.
#[test]
fn killed_full_in_few_bits() {
    let mut setting = Setting::full();
    setting.extra.extend(["--optim", "adamw8bit", "--param-dtype", "bf16", "--seed", "3"]);
    killed_and_resumed(&setting);
}

#[test]
fn killed_lora_in_few_bits() {
    let mut setting = Setting::lora();
    setting.extra.extend(["--optim", "adamw8bit", "--param-dtype", "bf16"]);
    killed_and_resumed(&setting);
}

#[cfg(unix)]
#[test]
fn interrupted_ends_after_the_step_with_a_checkpoint() {
    let setting = Setting::lora();
    setting.run("whole", &[]).ok();
    let out = setting.sandbox.path("stopped");
    let mut child = setting.start("stopped", &[]);
    wait_for_lines(&out.join("metrics.jsonl"), 1, &mut child);
    signal(&child, libc::SIGINT);
    assert_eq!(child.wait().expect("ended").code(), Some(130));
    let steps = metrics(&out).len();
    assert!((1..STEPS).contains(&steps), "{steps} steps");
    assert!(out.join(format!("checkpoint-{steps}/state.safetensors")).is_file());
    assert!(!out.join(setting.result).exists());
    setting.run("stopped", &["--resume"]).ok();
    setting.same("whole", "stopped");
}

#[test]
fn resume_from_nothing_starts_and_two_runs_are_the_same() {
    let setting = Setting::lora();
    setting.run("one", &[]).ok();
    setting.run("two", &["--resume"]).ok();
    setting.same("one", "two");
    // A third, finished already, ends the same way.
    setting.run("two", &["--resume"]).ok();
    setting.same("one", "two");
    // Another seed is another run: the comparison can fail.
    let other = Setting { extra: vec!["--lora-r", "4", "--learning-rate", "1e-2", "--seed", "4"], ..setting };
    other.run("three", &[]).ok();
    assert_ne!(metrics(&other.sandbox.path("one")), metrics(&other.sandbox.path("three")));

    // Other settings, data or weights are refused, and the folder is left as it was.
    let before = other.sandbox.listing();
    other.run("two", &["--resume"]).said(2, &["two/checkpoint-4", "other settings, data or model"]);
    let setting = Setting { extra: vec!["--lora-r", "4", "--learning-rate", "1e-2", "--seed", "3"], ..other };
    for other in [["--optim", "adamw8bit"], ["--param-dtype", "bf16"], ["--saved-dtype", "bf16"]] {
        setting.run("two", &[&["--resume"], &other[..]].concat()).said(2, &["checkpoint-4", "other settings"]);
    }
    setting.run("two", &["--resume", "--beta", "0.2"]).said(2, &["checkpoint-4", "other settings"]);
    let fewer = setting.sandbox.write("rows.jsonl", rows("mistral-odd")[..20].join("\n"));
    assert_eq!(fewer, setting.data);
    setting.run("two", &["--resume"]).said(2, &["checkpoint-4", "other settings, data"]);
    setting.sandbox.write("rows.jsonl", rows("mistral-odd").join("\n"));
    assert_eq!(setting.sandbox.listing(), before);

    // A damaged checkpoint is told by its file, and the one before it serves; where none is whole, nothing is guessed.
    let state = |step: usize, file: &str| setting.sandbox.path(&format!("two/checkpoint-{step}/state.{file}"));
    let bytes = fs::read(state(4, "safetensors")).expect("a state");
    fs::write(state(4, "safetensors"), &bytes[..bytes.len() / 2]).expect("a file");
    let ran = setting.run("two", &["--resume"]).ok();
    assert!(
        ran.stderr.contains("checkpoint-4/state.safetensors") && ran.stderr.contains("older checkpoint"),
        "{}",
        ran.stderr
    );
    setting.same("one", "two");
    for step in [2, 4] {
        fs::write(state(step, "json"), "{").expect("a file");
    }
    setting.run("two", &["--resume"]).said(2, &["checkpoint-4/state.json"]);
}

/// `best/` holds the adapter of the lowest evaluation loss, not the last one: scored again, it has that loss.
#[test]
fn the_best_can_be_loaded() {
    let mut setting = Setting::lora();
    // Trained on one preference and evaluated on its opposite: every step is worse than the one before.
    setting.extra = vec!["--learning-rate", "1e-2"];
    let swapped = |line: &String| {
        let row: Value = serde_json::from_str(line).expect("a row");
        let side = |i: &str, r: &str| (row[i].clone(), row[r].clone());
        let ((i_chosen, r_chosen), (i_reject, r_reject)) = (side("i_reject", "r_reject"), side("i_chosen", "r_chosen"));
        json!({"i_chosen": i_chosen, "r_chosen": r_chosen, "i_reject": i_reject, "r_reject": r_reject}).to_string()
    };
    let opposite: Vec<String> = rows("mistral-odd").iter().map(swapped).collect();
    let held_out = setting.sandbox.write("held-out.jsonl", opposite.join("\n"));
    setting.run("out", &["--eval-data", &held_out, "--eval-steps", "1", "--lr-scheduler-type", "constant"]).ok();
    let evaluations: Vec<(u64, f64)> = metrics(&setting.sandbox.path("out"))
        .iter()
        .filter_map(|l| Some((l["step"].as_u64()?, l.get("eval_loss")?.as_f64()?)))
        .collect();
    assert_eq!(evaluations.len(), STEPS);
    let best = evaluations.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).expect("an evaluation");
    assert!(best.0 < STEPS as u64, "{evaluations:?}");
    let loss = |adapter: &str| {
        let score =
            ["score", "--model", &setting.model, "--data", &held_out, "--reference", "base", "--adapter", adapter];
        let summary = setting.sandbox.run(&score).ok().lines().pop().expect("a summary");
        summary["summary"]["loss"].as_f64().expect("a loss")
    };
    let (kept, last) = (loss("out/best"), loss("out"));
    assert!((kept / best.1 - 1.0).abs() < 1e-5, "{kept}, {best:?}");
    assert!((last / best.1 - 1.0).abs() > 1e-2, "{last}, {best:?}");
}

/// Reference scores are kept under all that they depend on: with one cache, each run begins at its own reference. And a run goes on
/// only with what it began with.
#[test]
fn other_adapters_and_configurations_are_other_runs() {
    let s = Sandbox::new();
    s.write("rows.jsonl", rows("mistral-odd").join("\n"));
    let adapter = s.copy("lora-mistral/adapter", "adapter").join("adapter_config.json");
    let model = s.copy("mistral-odd/model", "model").join("config.json");
    let change = |file: &Path, field: &str, value: Value| {
        let mut json: Value = serde_json::from_slice(&fs::read(file).expect("a file")).expect("JSON");
        json[field] = value;
        fs::write(file, json.to_string()).expect("a file");
    };
    let train = ["train", "--model", "model", "--adapter", "adapter", "--data", "rows.jsonl", "--max-steps", "2"];
    let first_loss = |out: &str, more: &[&str]| {
        s.run(&[&train, more, &["--save-steps", "1", "--output-dir", out]].concat()).ok();
        metrics(&s.path(out))[0]["loss"].as_f64().expect("a loss")
    };
    let free = first_loss("free", &["--reference-free"]);
    assert!((free - LN_2).abs() > 1e-2, "the adapter must show: {free}");
    let is_reference = |loss: f64| assert!((loss - LN_2).abs() < 1e-5, "{loss}");
    is_reference(first_loss("first", &[]));
    change(&adapter, "lora_alpha", json!(80));
    is_reference(first_loss("alpha", &[]));
    change(&model, "rope_theta", json!(123.0));
    is_reference(first_loss("theta", &[]));
    let resume = [&train[..], &["--output-dir", "theta", "--resume"]].concat();
    s.run(&resume).ok();
    let refused = || s.refused(&resume, &["theta/checkpoint-1", "other settings, data or model"]);
    change(&model, "rope_theta", json!(321.0));
    refused();
    change(&model, "rope_theta", json!(123.0));
    change(&adapter, "lora_alpha", json!(40));
    refused();
}

/// Sends a signal at once: another process to send it might come after the run's end.
#[cfg(unix)]
fn signal(child: &Child, number: libc::c_int) {
    // SAFETY: a system call with two numbers. The child was not waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, number) }, 0);
}

/// A run, stopped in the middle, still has its folder: nobody else writes there until it ends.
#[cfg(unix)]
#[test]
fn a_second_run_is_refused_while_the_first_lives() {
    let setting = Setting::lora();
    setting.run("whole", &[]).ok();
    let mut child = setting.start("out", &[]);
    wait_for_lines(&setting.sandbox.path("out/metrics.jsonl"), 3, &mut child);
    signal(&child, libc::SIGSTOP);
    let held = format!("another run (process {}) is writing there", child.id());
    for more in [&["--resume"][..], &[]] {
        setting.sandbox.refused(&setting.args("out", more), &["--output-dir: ", "out", &held]);
    }
    assert!(child.try_wait().expect("a child").is_none(), "it lived all the time");
    signal(&child, libc::SIGCONT);
    assert!(child.wait().expect("ended").success());
    setting.same("whole", "out");
    // The control: it is the first run that was in the way.
    setting.run("out", &["--resume"]).ok();
    setting.same("whole", "out");
}

/// Where a flip of a bit changes numbers, and leaves a file that can be read.
fn flipped(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("a file");
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("a file");
}

/// The first byte of a tensor of this role.
fn first_byte(path: &Path, role: &str) -> usize {
    let bytes = fs::read(path).expect("a file");
    let n = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + n]).expect("a header");
    let (_, tensor) =
        header.as_object().expect("an object").iter().find(|(name, _)| name.starts_with(role)).expect(role);
    8 + n + tensor["data_offsets"][0].as_u64().expect("an offset") as usize
}

#[test]
fn a_flipped_bit_is_found_and_the_older_checkpoint_taken() {
    let setting = Setting::lora();
    setting.run("whole", &[]).ok();
    setting.run("out", &[]).ok();
    let file = |name: &str| setting.sandbox.path("out/checkpoint-4").join(name);
    let resumed = || setting.run("out", &["--resume"]).ok().stderr;
    // The control: a whole checkpoint is not complained of.
    let said = resumed();
    assert!(!said.contains("note: out/") && !said.contains("older checkpoint"), "{said}");
    let tensors = file("state.safetensors");
    let digit = |field: &str| {
        let text = fs::read_to_string(file("state.json")).expect("a state");
        let at = text.find(field).expect("the field") + field.len() + 2;
        at + text[at..].find(|c: char| c.is_ascii_digit()).expect("a digit")
    };
    for (name, at) in [
        ("state.safetensors", first_byte(&tensors, "param/")),
        ("state.safetensors", first_byte(&tensors, "m/")),
        ("state.safetensors", first_byte(&tensors, "v/")),
        ("state.json", digit("num_tokens")),
        ("state.json", digit("fingerprint")),
        ("B3SUMS", 3),
    ] {
        flipped(&file(name), at);
        let said = resumed();
        assert!(said.contains("note: out/checkpoint-4/") && said.contains("damaged"), "{name}: {said}");
        assert!(said.contains("going on from an older checkpoint"), "{name}: {said}");
        setting.same("whole", "out");
    }

    // Versions that wrote no checksums are resumed from, which is said; what they cannot find goes unseen.
    fs::remove_file(file("B3SUMS")).expect("removed");
    let said = resumed();
    assert!(said.contains("note: out/checkpoint-4 has no checksums"), "{said}");
    setting.same("whole", "out");
    flipped(&tensors, first_byte(&tensors, "m/") + 2);
    assert!(!resumed().contains("older checkpoint"));
    let bits = |dir: &str| fs::read(setting.sandbox.path(dir).join(setting.result)).expect("a result");
    assert!(bits("whole") != bits("out"), "the flip is one that matters");

    // The only one: what is wrong, and what can be done.
    fs::remove_dir_all(setting.sandbox.path("out/checkpoint-2")).expect("removed");
    fs::write(&tensors, "").expect("emptied");
    let args = setting.args("out", &["--resume"]);
    setting
        .sandbox
        .refused(&args, &["out: no checkpoint is whole", "checkpoint-4/state.safetensors", "begin anew in another"]);
}

/// What is left of steps that a run does not go on from is in nobody's way: a checkpoint that was just written stays.
#[test]
fn checkpoints_of_later_steps_give_way() {
    let setting = Setting::lora();
    setting.run("whole", &[]).ok();
    setting.run("out", &[]).ok();
    flipped(&setting.sandbox.path("out/checkpoint-4/state.json"), 20);
    let mut args = setting.args("out", &["--resume", "--save-total-limit", "1"]);
    let save_steps = args.iter().position(|arg| *arg == "--save-steps").expect("the flag");
    args[save_steps + 1] = "3";
    setting.sandbox.run(&args).ok();
    let left = |name: &str| setting.sandbox.path("out").join(name).exists();
    assert_eq!(["checkpoint-2", "checkpoint-3", "checkpoint-4"].map(left), [false, true, false]);
    setting.same("whole", "out");

    // Killed between the two renames that replace a checkpoint by another one of its step: the old one comes back.
    let out = setting.sandbox.path("out");
    fs::rename(out.join("checkpoint-3"), out.join(".checkpoint-3.old")).expect("renamed");
    fs::create_dir(out.join(".checkpoint-3.tmp")).expect("a folder");
    let said = setting.run("out", &["--resume"]).ok().stderr;
    assert!(!said.contains("no checkpoint"), "{said}");
    assert!(left("checkpoint-3") && !left(".checkpoint-3.old") && !left(".checkpoint-3.tmp"));
    setting.same("whole", "out");
}

#[test]
fn missing_lines_of_the_log_are_told() {
    let setting = Setting::lora();
    setting.run("out", &[]).ok();
    let log = setting.sandbox.path("out/metrics.jsonl");
    let whole = fs::read_to_string(&log).expect("a log");
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    for (text, missing) in
        [(None, 4), (Some(String::new()), 4), (Some(lines[1..3].concat()), 2), (Some(whole.clone()), 0)]
    {
        match text {
            Some(text) => fs::write(&log, text).expect("a log"),
            None => fs::remove_file(&log).expect("removed"),
        }
        let said = setting.run("out", &["--resume"]).ok().stderr;
        let note = format!("note: out/metrics.jsonl: {missing} of 4 steps are missing");
        assert_eq!(said.contains(&note), missing > 0, "{said}");
        assert_eq!(metrics(&setting.sandbox.path("out")).len(), STEPS - missing);
    }
    // Without a checkpoint there is nothing to go on from.
    for step in [2, 4] {
        fs::remove_dir_all(setting.sandbox.path(&format!("out/checkpoint-{step}"))).expect("removed");
    }
    let said = setting.run("out", &["--resume"]).ok().stderr;
    assert!(said.contains("no checkpoint yet: the run starts at step 1"), "{said}");
    assert_eq!(metrics(&setting.sandbox.path("out")).len(), STEPS);
}

/// `nohup` is obeyed, and a shell that starts a run in the background of a script: a signal that was ignored when the program started stays ignored.
#[cfg(unix)]
#[test]
fn a_run_under_nohup_outlives_its_terminal() {
    let setting = Setting { steps: "24".into(), ..Setting::lora() };
    setting.run("whole", &[]).ok();
    let signalled = |out: &str, before: &[&str], number: libc::c_int| {
        let plain = setting.sandbox.command(&setting.args(out, &[]));
        let mut all = before.iter().map(std::ffi::OsStr::new).chain([plain.get_program()]).chain(plain.get_args());
        let mut command = std::process::Command::new(all.next().expect("a program"));
        command.args(all).current_dir(setting.sandbox.path(""));
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        program::take_signals(&mut command);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
        wait_for_lines(&setting.sandbox.path(out).join("metrics.jsonl"), 1, &mut child);
        // Stopped, it cannot end before the signal is there.
        [libc::SIGSTOP, number, libc::SIGCONT].into_iter().for_each(|number| signal(&child, number));
        child.wait().expect("ended").code()
    };
    let ignored = |trap: &'static str| ["sh", "-c", trap];
    for (out, before, number) in [
        ("nohup", &["nohup"][..], libc::SIGHUP),
        ("background", &ignored("trap '' INT; exec \"$0\" \"$@\""), libc::SIGINT),
        ("unterminated", &ignored("trap '' TERM; exec \"$0\" \"$@\""), libc::SIGTERM),
    ] {
        assert_eq!(signalled(out, before, number), Some(0), "{out}");
        setting.same("whole", out);
    }
    // The controls: without it a run ends, with a checkpoint. A signal that is not the ignored one ends it too.
    for (out, before, number) in [
        ("hung-up", &[][..], libc::SIGHUP),
        ("terminated", &[], libc::SIGTERM),
        ("other", &ignored("trap '' INT; exec \"$0\" \"$@\""), libc::SIGTERM),
    ] {
        assert_eq!(signalled(out, before, number), Some(130), "{out}");
        let steps = metrics(&setting.sandbox.path(out)).len();
        assert!((1..24).contains(&steps), "{out}: {steps}");
    }
    setting.run("hung-up", &["--resume"]).ok();
    setting.same("whole", "hung-up");
}

/// A run writes to its own folder, wherever links in it lead.
#[cfg(unix)]
#[test]
fn links_out_of_the_folder_are_not_followed() {
    use std::os::unix::fs::symlink;
    let setting = Setting::lora();
    setting.run("whole", &[]).ok();
    setting.run("out", &[]).ok();
    let (out, theirs) = (setting.sandbox.path("out"), setting.sandbox.path("theirs"));
    fs::create_dir(&theirs).expect("a folder");
    let resume = setting.args("out", &["--resume"]);
    for name in ["metrics.jsonl", "report.html", "runs"] {
        fs::rename(out.join(name), theirs.join(name)).expect("moved");
        symlink(theirs.join(name), out.join(name)).expect("a link");
        setting.sandbox.refused(&resume, &[&format!("out/{name}: is a link")]);
        fs::remove_file(out.join(name)).expect("removed");
        fs::rename(theirs.join(name), out.join(name)).expect("moved back");
    }
    symlink(&theirs, out.join("best")).expect("a link");
    setting.sandbox.refused(&resume, &["out/best: is a link"]);
    fs::remove_file(out.join("best")).expect("removed");

    fs::rename(out.join("checkpoint-4"), theirs.join("checkpoint-4")).expect("moved");
    symlink(theirs.join("checkpoint-4"), out.join("checkpoint-4")).expect("a link");
    let said = setting.run("out", &["--resume"]).ok().stderr;
    assert!(said.contains("out/checkpoint-4: is a link") && said.contains("older checkpoint"), "{said}");
    setting.same("whole", "out");
    assert!(theirs.join("checkpoint-4/state.json").is_file() && !out.join("checkpoint-4").is_symlink());
}
