//! Running the program in a folder of its own, on copies of the fixtures of `tests/oracle`; safetensors taken apart and put together.
#![allow(dead_code, reason = "each test crate uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

/// A family of `tests/oracle`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle").join(name)
}

/// What the program left.
#[derive(Debug)]
pub struct Ran {
    /// -1: ended by a signal.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(command: &mut Command) -> Self {
        Self::from(command.output().expect("the program starts"))
    }

    pub fn from(out: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        // Paths in messages as tests write them.
        let messages = if cfg!(windows) { text(&out.stderr).replace('\\', "/") } else { text(&out.stderr) };
        Self { status: out.status.code().unwrap_or(-1), stdout: text(&out.stdout), stderr: messages }
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.status, 0, "{}", self.stderr);
        self
    }

    /// The objects of standard output.
    pub fn lines(&self) -> Vec<Value> {
        self.stdout.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect()
    }

    /// Ended with this status and one line `error: ...` that holds every part; nothing panicked.
    #[track_caller]
    pub fn said(&self, status: i32, parts: &[&str]) {
        let text = &self.stderr;
        assert_eq!(self.status, status, "expected {parts:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
        let is_error = |l: &&str| l.starts_with("error:");
        assert_eq!(text.lines().filter(is_error).count(), 1, "{text}");
        let last = text.lines().last().unwrap_or_default();
        assert!(is_error(&last), "not the last line: {text}");
        for part in parts {
            assert!(last.contains(part), "`{part}` is not in: {last}");
        }
    }
}

/// Lets a program take signals that the tests' own start may have ignored: by `nohup`, or in a script's background.
pub fn take_signals(command: &mut Command) {
    #[cfg(unix)]
    // SAFETY: between fork and exec `signal` alone is called, which is safe there.
    unsafe {
        use std::os::unix::process::CommandExt;
        command.pre_exec(|| {
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
    #[cfg(not(unix))]
    let _ = command;
}

/// A folder for one test: its model, its data, what the program writes.
pub struct Sandbox {
    dir: TempDir,
}

impl Sandbox {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_string()
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), contents).expect("a writable folder");
        self.text(name)
    }

    /// A copy of a fixture's folder, such as `mistral-odd/model`, under a name.
    pub fn copy(&self, from: &str, name: &str) -> PathBuf {
        let to = self.path(name);
        fs::create_dir_all(&to).expect("a folder");
        for entry in fs::read_dir(fixture(from)).expect("a fixture") {
            let file = entry.expect("an entry").path();
            fs::copy(&file, to.join(file.file_name().expect("a name"))).expect("a copy");
        }
        to
    }

    /// The program, or the one that `JOINTWISE_BIN` names, with its caches in this folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let program = std::env::var("JOINTWISE_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_jointwise").into());
        let mut command = Command::new(program);
        command.args(args).current_dir(self.dir.path()).env("XDG_CACHE_HOME", self.path("cache"));
        take_signals(&mut command);
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(args))
    }

    /// Every path with its size, caches left out.
    pub fn listing(&self) -> BTreeMap<PathBuf, u64> {
        let mut all = BTreeMap::new();
        list(self.dir.path(), &mut all);
        all.retain(|path, _| !path.starts_with(self.path("cache")));
        all
    }

    /// Status 2, one line with every part, and the folder as it was.
    #[track_caller]
    pub fn refused(&self, args: &[&str], parts: &[&str]) {
        let before = self.listing();
        self.run(args).said(2, parts);
        assert_eq!(self.listing(), before, "something was left behind: {args:?}");
    }
}

fn list(dir: &Path, into: &mut BTreeMap<PathBuf, u64>) {
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        into.insert(path.clone(), fs::metadata(&path).map_or(0, |m| if m.is_file() { m.len() } else { 0 }));
        if path.is_dir() {
            list(&path, into);
        }
    }
}

/// The rows of a family's `prefs.jsonl` as lines; 0-11 conditional, 12-23 joint.
pub fn rows(family: &str) -> Vec<String> {
    let text = fs::read_to_string(fixture(family).join("prefs.jsonl")).expect("rows");
    text.lines().map(String::from).collect()
}

#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// Of an F32 tensor.
    pub fn values(&self) -> Vec<f32> {
        assert_eq!(self.dtype, Dtype::F32);
        self.bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    pub fn set(&mut self, values: &[f32]) {
        self.bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    }
}

pub type Tensors = BTreeMap<String, Tensor>;

pub fn read_tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let own = |v: TensorView<'_>| Tensor { dtype: v.dtype(), shape: v.shape().to_vec(), bytes: v.data().to_vec() };
    file.iter().map(|(name, view)| (name.to_string(), own(view))).collect()
}

pub fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, t)| (name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).expect("a whole tensor")));
    safetensors::serialize_to_file(views, None, path).expect("a written file");
}

/// Reads, changes and writes a safetensors file.
pub fn edit(path: &Path, change: impl FnOnce(&mut Tensors)) {
    let mut tensors = read_tensors(path);
    change(&mut tensors);
    write_tensors(path, &tensors);
}

/// Moves every weight by up to a tenth: a policy that is not its reference.
pub fn perturb(model: &Path) {
    edit(&model.join("model.safetensors"), |tensors| {
        for tensor in tensors.values_mut() {
            let moved: Vec<f32> =
                tensor.values().iter().enumerate().map(|(i, w)| w * (1.0 + 0.1 * (i as f32 * 0.7).sin())).collect();
            tensor.set(&moved);
        }
    });
}

/// Changes a bf16 model: every fourth weight's sign.
pub fn perturb_bf16(model: &Path) {
    edit(&model.join("model.safetensors"), |tensors| {
        for tensor in tensors.values_mut().filter(|t| t.shape.len() == 2) {
            assert_eq!(tensor.dtype, Dtype::BF16);
            tensor.bytes.iter_mut().skip(1).step_by(8).for_each(|high| *high ^= 0x80);
        }
    });
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// ‖a − b‖ / ‖b‖; infinity for NaN or different lengths.
pub fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    relative_to(a, b, norm(b.iter().map(|&v| f64::from(v))))
}

/// ‖a − b‖ / scale.
pub fn relative_to(a: &[f32], b: &[f32], scale: f64) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let error = norm(a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b))) / scale.max(1e-30);
    if error.is_nan() { f64::INFINITY } else { error }
}

/// The largest error of the tensors of two runs from one start, relative to the whole update.
pub fn update_error(a: &Tensors, b: &Tensors, start: &Tensors) -> f64 {
    assert_eq!(a.len(), start.len());
    let all = |t: &Tensors| -> Vec<f32> { start.keys().flat_map(|name| t[name].values()).collect() };
    let (a, b, start) = (all(a), all(b), all(start));
    let update = norm(b.iter().zip(&start).map(|(b, s)| f64::from(*b) - f64::from(*s)));
    assert!(update > 1e-3, "the update is too small to compare: {update}");
    relative_to(&a, &b, update)
}

/// `metrics.jsonl` without what it says of time, as text: equal bits give equal text.
pub fn metrics(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).expect("metrics.jsonl");
    let mut lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    for line in &mut lines {
        line.as_object_mut().expect("an object").retain(|name, _| !name.ends_with("seconds"));
    }
    lines
}

/// A study in which nothing takes long: one training a method, of two steps.
pub fn smallest_study() -> String {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    format!(
        r#"
        model = {model:?}
        seeds = [0]
        [tasks]
        prompts = 12
        test = 6
        [sample]
        temperature = 1.0
        max-new-tokens = 12
        [judge]
        grader = true
        [joint]
        pairs = 6
        [train]
        batch-size = 4
        max-steps = 2
        save-steps = 1
        [[methods]]
        name = "DPO"
        objective = "dpo"
        conditional = 1.0
        [[methods]]
        name = "JPO"
        conditional = 0.5
        joint = 0.5
        [evaluate]
        grader = true
        temperatures = [0.0]
        max-new-tokens = 12
        "#
    )
}
