//! Whole models against PyTorch in float64: the command line on every family of `tests/oracle` (see its README) and, where it
//! lies beside the repository, of the public set `../shared/oracle`. Scores, losses, gradients, ten AdamW steps, LoRA, merging,
//! generation. Each comparison is made a second time with a nudged expectation, which must be refused.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use half::{bf16, f16};
use jointwise::data::batch::Example;
use jointwise::data::dataset::{Dataset, Limits, Overflow};
use jointwise::data::rows::{FieldMap, Purpose, read_rows};
use jointwise::data::template::Template;
use jointwise::data::tokens::Tokenizer;
use jointwise::gpu::{DeviceChoice, Gpu};
use jointwise::kernels::objective::Goal;
use jointwise::model::checkpoint::Checkpoint;
use jointwise::model::decoder::Decoder;
use jointwise::model::description::Description;
use jointwise::model::load::{LoadOptions, Trained};
use jointwise::model::peft::Adapter;
use jointwise::model::trace::{Keep, SavedDtype};
use jointwise::model::weights::{BaseDtype, Source, Training};
use jointwise::objective::{Objective, Preference};
use jointwise::train::outcome::Reference;
use jointwise::train::trainer::{Trainer, score};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What `generate` is called with, besides `--model`, `--adapter` and `--prompt TEXT` (repeatable). It prints an object a prompt
/// with `prompt_ids` and `ids`, the new ones.
const GENERATE: &[&str] =
    &["--template", "none", "--max-new-tokens", "32", "--temperature", "0", "--ignore-eos", "--json"];

/// The optimiser of the fixtures (README there, "Formulas").
const OPTIMIZER: &[&str] = &[
    "--learning-rate",
    "1e-3",
    "--weight-decay",
    "0.05",
    "--max-grad-norm",
    "1.0",
    "--lr-scheduler-type",
    "cosine",
    "--warmup-steps",
    "2",
    "--max-steps",
    "10",
    "--no-shuffle",
];

/// Variants of the loss in the fixtures, and their flags.
const LOSSES: &[(&str, &[&str])] = &[
    ("sigmoid", &["--loss", "sigmoid"]),
    ("sigmoid_ls0.1", &["--loss", "sigmoid", "--label-smoothing", "0.1"]),
    ("hinge", &["--loss", "hinge"]),
    ("ipo", &["--loss", "ipo"]),
    ("kto_pair", &["--loss", "kto_pair"]),
    ("sigmoid_reffree", &["--loss", "sigmoid", "--reference-free"]),
];

/// The score that each objective minimises, by the fixtures' names.
const MODES: &[(&str, &str)] = &[("joint", "jpo"), ("cond", "dpo")];

/// Tolerances: those of `tools/parity.py`, or tighter. Stock float32 PyTorch stays 10 times or more below each.
mod tolerance {
    /// Sequence log-probs, relative.
    pub const SEQUENCE: f64 = 5e-6;
    /// Token log-probs, absolute.
    pub const TOKEN: f64 = 5e-5;
    /// β times a difference of sequence log-probs, absolute.
    pub const REWARD: f64 = 5e-4;
    /// Parts of a sequence's log-prob, absolute.
    pub const PART: f64 = 1e-3;
    /// Mean losses, relative.
    pub const LOSS: f64 = 3e-4;
    /// A row's loss, relative, absolute below 1.
    pub const ROW_LOSS: f64 = 5e-4;
    /// A gradient tensor, relative L2; see [`super::gradients`] for tensors of almost no gradient.
    pub const GRADIENT: f64 = 3e-4;
    /// The same with fewer bits: products of `--matmul-precision medium`, `--saved-dtype bf16`; it leaves a cosine above 0.9999.
    pub const GRADIENT_MEDIUM: f64 = 1e-2;
    /// Weights after ten steps, L2 of the error relative to the update.
    pub const UPDATE: f64 = 5e-3;
    /// The same for a bias of K, whose gradient is small against its noise.
    pub const UPDATE_K_BIAS: f64 = 3e-2;
    /// The same for adapters.
    pub const UPDATE_LORA: f64 = 1e-3;
    /// Losses of the ten steps, absolute.
    pub const STEP_LOSS: f64 = 5e-4;
    /// Their gradient norms, relative.
    pub const STEP_NORM: f64 = 1e-3;
    /// Their learning rates, absolute.
    pub const STEP_RATE: f64 = 1e-9;
    /// Sequence log-probs after ten steps, relative L2.
    pub const TRAINED: f64 = 1e-5;
    /// Merged weights, absolute.
    pub const MERGED: f64 = 1e-6;
    /// A directional derivative against differences of the loss, relative.
    pub const SLOPE: f64 = 1e-2;
}

// ------------------------------------------------------------------------------------------------------- comparing

/// How two arrays are compared.
#[derive(Clone, Copy)]
enum Metric {
    /// max |a − b|
    Abs,
    /// max |a − b| / |b|
    Rel,
    /// max |a − b| / max(|b|, 1)
    Mixed,
    /// ‖a − b‖ / ‖b‖
    L2,
    /// ‖a − b‖ / the number
    L2Over(f64),
}

impl Metric {
    /// Infinity for arrays of different lengths and for NaN.
    fn error(self, got: &[f64], want: &[f64]) -> f64 {
        if got.len() != want.len() || got.is_empty() {
            return f64::INFINITY;
        }
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let l2 = || norm(&mut got.iter().zip(want).map(|(g, w)| g - w));
        let worst = |scale: fn(f64) -> f64| {
            got.iter().zip(want).fold(0.0, |m: f64, (g, w)| {
                let e = (g - w).abs() / scale(*w);
                if e.is_nan() { f64::INFINITY } else { m.max(e) }
            })
        };
        let e = match self {
            Self::Abs => worst(|_| 1.0),
            Self::Rel => worst(|w| w.abs().max(1e-12)),
            Self::Mixed => worst(|w| w.abs().max(1.0)),
            Self::L2 => l2() / norm(&mut want.iter().copied()).max(1e-30),
            Self::L2Over(scale) => l2() / scale.max(1e-12),
        };
        if e.is_nan() { f64::INFINITY } else { e }
    }

    /// `want` with its largest element moved by ten tolerances.
    fn nudged(self, want: &[f64], tol: f64) -> Vec<f64> {
        let mut out = want.to_vec();
        let norm = want.iter().map(|v| v * v).sum::<f64>().sqrt();
        if let Some(x) = out.iter_mut().max_by(|a, b| a.abs().total_cmp(&b.abs())) {
            *x += 10.0
                * tol
                * match self {
                    Self::Abs => 1.0,
                    Self::Rel => x.abs().max(1e-12),
                    Self::Mixed => x.abs().max(1.0),
                    Self::L2 => norm.max(1e-30),
                    Self::L2Over(scale) => scale.max(1e-12),
                };
        }
        out
    }
}

/// The checks of one family; reports all failures at its end.
struct Checks {
    family: String,
    ran: usize,
    failed: Vec<String>,
}

impl Checks {
    fn new(family: &str) -> Self {
        Self { family: family.into(), ran: 0, failed: Vec::new() }
    }

    /// `got` within `tol` of `want`, and not of a nudged `want`.
    fn close(&mut self, name: impl Display, metric: Metric, got: &[f64], want: &[f64], tol: f64) {
        self.ran += 1;
        let e = metric.error(got, want);
        println!("{} {name}: {e:.3e} (<= {tol:.0e})", self.family);
        if e > tol {
            self.failed.push(format!("{name}: {e:.3e} > {tol:.0e}"));
        } else if metric.error(got, &metric.nudged(want, tol)) <= tol {
            self.failed.push(format!("{name}: the nudged expectation passes too"));
        }
    }

    /// Exact equality; a changed `want` could not pass.
    fn equal<T: PartialEq + std::fmt::Debug + ?Sized>(&mut self, name: impl Display, got: &T, want: &T) {
        self.ran += 1;
        if got != want {
            self.failed.push(format!("{name}: {got:?}, expected {want:?}"));
        }
    }

    fn finish(self) {
        assert!(self.ran > 0, "{}: nothing was checked", self.family);
        let n = self.failed.len();
        assert!(n == 0, "{}: {n} of {} checks failed:\n  {}", self.family, self.ran, self.failed.join("\n  "));
    }
}

#[test]
fn comparators_refuse_what_they_should() {
    for m in [Metric::Abs, Metric::Rel, Metric::Mixed, Metric::L2, Metric::L2Over(3.0)] {
        let want = [1.0, -2.0, 0.5];
        assert!(m.error(&want, &want) < 1e-15);
        assert!(m.error(&want, &m.nudged(&want, 1e-4)) > 1e-4);
        assert!(m.error(&[1.0, f64::NAN, 0.5], &want).is_infinite());
        assert!(m.error(&want[..2], &want).is_infinite());
        assert!(m.error(&[], &[]).is_infinite());
    }
}

// --------------------------------------------------------------------------------------------------------- reading

struct Tensor {
    shape: Vec<usize>,
    data: Vec<f64>,
}

impl Tensor {
    /// Row `i` of a matrix, up to `n` elements.
    fn row(&self, i: usize, n: usize) -> &[f64] {
        let width = self.shape[1];
        &self.data[i * width..i * width + n]
    }

    fn rows(&self, rows: &[usize]) -> Vec<f64> {
        rows.iter().flat_map(|&r| self.row(r, self.shape[1]).iter().copied()).collect()
    }

    fn usizes(&self) -> Vec<usize> {
        self.data.iter().map(|&x| x as usize).collect()
    }
}

type Tensors = BTreeMap<String, Tensor>;

fn read_tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let widen = |view: &TensorView<'_>| -> Vec<f64> {
        let b = view.data();
        match view.dtype() {
            Dtype::F32 => b.as_chunks().0.iter().map(|&c: &[u8; 4]| f64::from(f32::from_le_bytes(c))).collect(),
            Dtype::F16 => b.as_chunks().0.iter().map(|&c| f16::from_le_bytes(c).to_f64()).collect(),
            Dtype::BF16 => b.as_chunks().0.iter().map(|&c| bf16::from_le_bytes(c).to_f64()).collect(),
            Dtype::I32 => b.as_chunks().0.iter().map(|&c| f64::from(i32::from_le_bytes(c))).collect(),
            other => panic!("{}: {other:?} is not expected", path.display()),
        }
    };
    file.iter().map(|(k, v)| (k.to_owned(), Tensor { shape: v.shape().to_vec(), data: widen(&v) })).collect()
}

/// Every tensor of a checkpoint, one file or shards.
fn read_checkpoint(dir: &Path) -> Tensors {
    let mut files: Vec<_> = files_of(dir).filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    assert!(!files.is_empty(), "{}: no safetensors", dir.display());
    files.iter().flat_map(|f| read_tensors(f)).collect()
}

fn files_of(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries.map(|e| e.expect("a readable folder").path()).filter(|p| p.is_file())
}

/// A tensor by its name with or without GPT-2's `transformer.`.
fn find<'a>(tensors: &'a Tensors, name: &str) -> Option<&'a Tensor> {
    let short = name.strip_prefix("transformer.").unwrap_or(name);
    tensors.get(name).or_else(|| tensors.get(short)).or_else(|| tensors.get(&format!("transformer.{short}")))
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn read_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let parse = |l: &str| serde_json::from_str(l).unwrap_or_else(|e| panic!("{}: {e}: {l}", path.display()));
    text.lines().filter(|l| !l.is_empty()).map(parse).collect()
}

/// A number; NaN, which no comparison passes, where there is none.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().map(|a| a.iter().map(number).collect()).unwrap_or_default()
}

fn indices(value: &Value) -> Vec<usize> {
    numbers(value).iter().map(|&x| x as usize).collect()
}

// ---------------------------------------------------------------------------------------------------------- running

/// Runs the program, or the one that `JOINTWISE_BIN` names; its standard output.
fn run(args: &[&str]) -> String {
    let program = std::env::var("JOINTWISE_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_jointwise").into());
    let out = Command::new(program).args(args).output().expect("the program starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "jointwise {}\n{}: {stdout}{stderr}", args.join(" "), out.status);
    stdout.into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// A family's folder, or none where the public set is absent.
fn family(set: &str, name: &str) -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(set).join(name);
    if dir.join("expected.json").is_file() {
        return Some(dir);
    }
    assert_ne!(set, OURS, "{} is missing", dir.display());
    println!("{} is not here: skipped", dir.display());
    None
}

const OURS: &str = "tests/oracle";
const PUBLIC: &str = "../shared/oracle";

/// A family's files and a folder for what the program makes of them.
struct Fixture {
    dir: PathBuf,
    /// The folder whose sequences, rows and model these are: its own, or a LoRA family's base.
    base: PathBuf,
    meta: Value,
    expected: Tensors,
    /// Token ids and lengths; the base's.
    sequences: Tensors,
    temp: TempDir,
}

impl Fixture {
    fn new(dir: PathBuf) -> Self {
        let meta = read_json(&dir.join("expected.json"));
        let base = match meta["base"].as_str() {
            Some(model) => dir.join(model).parent().expect("a model's folder lies in a family's").to_owned(),
            None => dir.clone(),
        };
        let expected = read_tensors(&dir.join("expected.safetensors"));
        let sequences = read_tensors(&base.join("expected.safetensors"));
        let temp = tempfile::tempdir().expect("a temporary folder");
        Self { dir, base, meta, expected, sequences, temp }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// A path in the temporary folder, as text.
    fn out(&self, name: &str) -> String {
        text(&self.path(name)).to_owned()
    }

    fn model(&self) -> String {
        text(&self.base.join("model")).to_owned()
    }

    fn tensor(&self, name: &str) -> &[f64] {
        &self.expected.get(name).unwrap_or_else(|| panic!("{}: no {name}", self.dir.display())).data
    }

    fn scalar(&self, name: &str) -> f64 {
        number(&self.meta["scalars"][name]["f64"])
    }

    fn rows(&self) -> Vec<Value> {
        read_lines(&self.base.join("prefs.jsonl"))
    }

    /// A JSONL file with some rows of the data, in this order.
    fn data(&self, name: &str, rows: &[usize]) -> String {
        let all = self.rows();
        self.write_lines(name, rows.iter().map(|&r| all[r].clone()))
    }

    fn write_lines(&self, name: &str, rows: impl Iterator<Item = Value>) -> String {
        let lines: Vec<String> = rows.map(|r| r.to_string() + "\n").collect();
        std::fs::write(self.path(name), lines.concat()).expect("a writable temporary folder");
        self.out(name)
    }

    fn all(&self) -> String {
        text(&self.base.join("prefs.jsonl")).to_owned()
    }

    fn batch(&self) -> Vec<usize> {
        indices(&self.meta["batch_rows"])
    }

    /// A copy of the model's folder, without weights if `weights` is false.
    fn copy_model(&self, name: &str, weights: bool) -> PathBuf {
        let to = self.path(name);
        std::fs::create_dir(&to).expect("a fresh folder");
        for f in files_of(&self.base.join("model")) {
            let file = f.file_name().expect("a file has a name");
            if weights || !file.to_string_lossy().contains(".safetensors") {
                std::fs::write(to.join(file), std::fs::read(&f).expect("a readable model")).expect("a copy");
            }
        }
        to
    }

    /// policy = float32(initial + delta), as a checkpoint.
    fn policy(&self) -> PathBuf {
        let to = self.copy_model("policy", false);
        let mut weights = read_checkpoint(&self.base.join("model"));
        for (name, d) in &read_tensors(&self.dir.join("delta.safetensors")) {
            let short = name.strip_prefix("transformer.").unwrap_or(name);
            let key = if weights.contains_key(name) { name } else { short };
            let w = weights.get_mut(key).unwrap_or_else(|| panic!("delta of an unknown {name}"));
            assert_eq!(w.shape, d.shape);
            for (w, d) in w.data.iter_mut().zip(&d.data) {
                *w = f64::from(*w as f32 + *d as f32);
            }
        }
        write_checkpoint(&weights, &to);
        to
    }
}

fn write_checkpoint(weights: &Tensors, dir: &Path) {
    let bytes: Vec<(&String, Vec<u8>)> =
        weights.iter().map(|(k, t)| (k, t.data.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect())).collect();
    let views = bytes
        .iter()
        .map(|(k, b)| (k.as_str(), TensorView::new(Dtype::F32, weights[*k].shape.clone(), b).expect("a whole tensor")));
    let meta = Some([("format".to_owned(), "pt".to_owned())].into());
    safetensors::serialize_to_file(views, meta, &dir.join("model.safetensors")).expect("a written checkpoint");
}

/// What `score` wrote: rows and the summary.
struct Scores {
    rows: Vec<Value>,
    summary: Value,
}

impl Scores {
    fn run(fixture: &Fixture, args: &[&str]) -> Self {
        let out = fixture.out("scores.jsonl");
        run(&[&["score", "--out", &out], args].concat());
        let (rows, rest): (Vec<_>, Vec<_>) =
            read_lines(Path::new(&out)).into_iter().partition(|l| l.get("row").is_some());
        assert_eq!(rest.len(), 1, "one summary");
        Self { rows, summary: rest[0]["summary"].clone() }
    }

    /// Chosen and rejected sides in turn.
    fn sides(&self) -> Vec<&Value> {
        self.rows.iter().flat_map(|r| [&r["chosen"], &r["rejected"]]).collect()
    }

    fn side(&self, field: &str) -> Vec<f64> {
        self.sides().iter().map(|s| number(&s[field])).collect()
    }

    fn reference(&self) -> Vec<f64> {
        let both = |r: &Value| [number(&r["reference_chosen_logp"]), number(&r["reference_rejected_logp"])];
        self.rows.iter().flat_map(both).collect()
    }

    fn field(&self, field: &str) -> Vec<f64> {
        self.rows.iter().map(|r| number(&r[field])).collect()
    }
}

// ----------------------------------------------------------------------------------------------------------- checks

/// Scores, rewards, tokens and losses under both objectives. `models`: the flags that name policy and reference.
fn scores(c: &mut Checks, f: &Fixture, models: &[&str]) {
    let lengths = f.sequences["seq_len"].usizes();
    let prompts = f.sequences["prompt_len"].usizes();
    for (mode, objective) in MODES {
        let base = [models, &["--objective", objective, "--beta", "0.1"]].concat();
        let s = Scores::run(f, &[&base[..], &["--data", &f.all(), "--tokens"]].concat());
        c.equal(
            format!("{mode} row numbers"),
            &s.field("row"),
            &(0..lengths.len() / 2).map(|i| i as f64).collect::<Vec<_>>(),
        );
        let scored = |i: usize| lengths[i] - if *mode == "joint" { 1 } else { prompts[i] };
        let want: Vec<_> = (0..lengths.len()).map(|i| (lengths[i] as f64, scored(i) as f64)).collect();
        let got: Vec<_> = s.side("n_tokens").into_iter().zip(s.side("n_scored")).collect();
        c.equal(format!("{mode} n_tokens, n_scored"), &got, &want);

        let policy = f.tensor(&format!("policy/seq_logps_{mode}"));
        let reference = f.tensor(&format!("ref/seq_logps_{mode}"));
        let seq = tolerance::SEQUENCE;
        c.close(format!("{mode} policy sequence log-probs"), Metric::Rel, &s.side("logp"), policy, seq);
        c.close(format!("{mode} reference sequence log-probs"), Metric::Rel, &s.reference(), reference, seq);
        let rewards: Vec<f64> = policy.iter().zip(reference).map(|(p, r)| 0.1 * (p - r)).collect();
        let chosen: Vec<f64> = rewards.iter().copied().step_by(2).collect();
        let rejected: Vec<f64> = rewards.iter().copied().skip(1).step_by(2).collect();
        let margins: Vec<f64> = chosen.iter().zip(&rejected).map(|(a, b)| a - b).collect();
        for (name, want) in [("rewards_chosen", chosen), ("rewards_rejected", rejected), ("margin", margins)] {
            c.close(format!("{mode} {name}"), Metric::Abs, &s.field(name), &want, tolerance::REWARD);
        }
        let cond = f.tensor("policy/seq_logps_cond");
        let joint = f.tensor("policy/seq_logps_joint");
        let instruction: Vec<f64> = joint.iter().zip(cond).map(|(j, c)| j - c).collect();
        for (name, want) in [("logp_instruction", &instruction[..]), ("logp_response", cond)] {
            c.close(format!("{mode} {name}"), Metric::Abs, &s.side(name), want, tolerance::PART);
        }
        tokens(c, f, &s, &lengths);
        losses(c, f, mode, &base);
    }
}

/// Ids and log-probs of every token.
fn tokens(c: &mut Checks, f: &Fixture, s: &Scores, lengths: &[usize]) {
    let (ids, want) = (&f.sequences["input_ids"], &f.expected["policy/token_logps"]);
    let (mut got_all, mut want_all) = (Vec::new(), Vec::new());
    for (i, side) in s.sides().into_iter().enumerate() {
        c.equal(format!("ids of sequence {i}"), &numbers(&side["ids"])[..], ids.row(i, lengths[i]));
        let got = side["token_logps"].as_array().cloned().unwrap_or_default();
        c.equal(format!("first token_logps of sequence {i}"), &got.first(), &Some(&Value::Null));
        got_all.extend(got.iter().skip(1).map(number));
        want_all.extend_from_slice(want.row(i, lengths[i] - 1));
    }
    c.close("token log-probs", Metric::Abs, &got_all, &want_all, tolerance::TOKEN);
}

/// Every variant of the loss on the batch, mean and by row.
fn losses(c: &mut Checks, f: &Fixture, mode: &str, base: &[&str]) {
    let batch = f.data("batch.jsonl", &f.batch());
    for (name, flags) in LOSSES {
        let s = Scores::run(f, &[base, flags, &["--data", &batch]].concat());
        let key = format!("loss/{mode}/{name}");
        c.close(
            format!("{mode} {name}"),
            Metric::Rel,
            &[number(&s.summary["loss"])],
            &[f.scalar(&key)],
            tolerance::LOSS,
        );
        let mut want = f.tensor(&format!("{key}/losses")).to_vec();
        if *name == "kto_pair" {
            let rejected = want.split_off(want.len() / 2);
            want = want.iter().zip(rejected).map(|(a, b)| (a + b) / 2.0).collect();
        }
        c.close(format!("{mode} {name} of rows"), Metric::Mixed, &s.field("loss"), &want, tolerance::ROW_LOSS);
        if (mode, *name) == ("joint", "sigmoid") {
            for (name, key) in [("rewards/margins", "reward_margin_mean"), ("rewards/accuracies", "accuracy")] {
                let want = f.scalar(&format!("jpo/{key}"));
                c.close(name, Metric::Abs, &[number(&s.summary[name])], &[want], tolerance::REWARD);
            }
        }
    }
}

/// Each tensor of a gradient file, those stored by rows too, and their global norm.
fn gradients(c: &mut Checks, f: &Fixture, file: &str, prefix: &str, tol: f64) {
    let got = read_tensors(Path::new(file));
    let rows = f.expected.get("vocab_rows").map(Tensor::usizes).unwrap_or_default();
    let norm = f.scalar(&format!("{prefix}/norm"));
    let global = got.values().flat_map(|t| &t.data).map(|x| x * x).sum::<f64>().sqrt();
    c.close(format!("{prefix} global norm"), Metric::Rel, &[global], &[norm], tol);
    let mut n = 0;
    for (key, want) in &f.expected {
        let by_rows = key.strip_prefix(prefix).and_then(|k| k.strip_prefix("_rows/"));
        let Some(name) = by_rows.or_else(|| key.strip_prefix(prefix).and_then(|k| k.strip_prefix('/'))) else {
            continue;
        };
        n += 1;
        let Some(g) = find(&got, name) else {
            c.equal(format!("{key} is there"), &false, &true);
            continue;
        };
        let picked;
        let g = if by_rows.is_some() {
            picked = g.rows(&rows);
            &picked
        } else {
            c.equal(format!("{key} shape"), &g.shape, &want.shape);
            &g.data
        };
        let size = want.data.iter().map(|x| x * x).sum::<f64>().sqrt();
        if size < 1e-3 * norm {
            c.close(key, Metric::Abs, g, &want.data, 1e-2 * tol * norm);
        } else {
            c.close(key, Metric::L2, g, &want.data, tol);
        }
    }
    c.equal(format!("{prefix} number of tensors"), &got.len(), &n);
}

/// metrics.jsonl of ten steps.
fn metrics(c: &mut Checks, f: &Fixture, dir: &str, key: &str) {
    let lines = read_lines(&Path::new(dir).join("metrics.jsonl"));
    let steps: Vec<&Value> = lines.iter().filter(|l| l.get("loss").is_some() && l.get("step").is_some()).collect();
    let get = |name: &str| steps.iter().map(|l| number(&l[name])).collect::<Vec<f64>>();
    let want = |name: &str| numbers(&f.meta["scalars"][format!("{key}/{name}")]["f64"]);
    c.equal(format!("{key} steps"), &get("step"), &(1..=10).map(f64::from).collect());
    c.close(format!("{key} losses"), Metric::Abs, &get("loss"), &want("loss"), tolerance::STEP_LOSS);
    c.close(format!("{key} gradient norms"), Metric::Rel, &get("grad_norm"), &want("grad_norm"), tolerance::STEP_NORM);
    c.close(format!("{key} learning rates"), Metric::Abs, &get("learning_rate"), &want("lr"), tolerance::STEP_RATE);
}

/// Weights after ten steps against the expected, relative to how far they moved.
fn updates(c: &mut Checks, f: &Fixture, got: &Tensors, start: &Tensors, tol: f64) {
    let rows = f.expected.get("vocab_rows").map(Tensor::usizes).unwrap_or_default();
    for (key, want) in &f.expected {
        let by_rows = key.starts_with("after10_rows/");
        let Some(name) = key.strip_prefix("after10/").or_else(|| key.strip_prefix("after10_rows/")) else { continue };
        let (Some(g), Some(s)) = (find(got, name), find(start, name)) else {
            c.equal(format!("{key} is there"), &false, &true);
            continue;
        };
        let pick = |t: &Tensor| if by_rows { t.rows(&rows) } else { t.data.clone() };
        let (mut g, mut s, mut w) = (pick(g), pick(s), want.data.clone());
        if name.ends_with("attn.c_attn.bias") {
            // K's bias has no true gradient: Adam amplifies the noise.
            let third = w.len() / 3;
            for x in [&mut g, &mut s, &mut w] {
                x.drain(third..2 * third);
            }
        }
        let moved = w.iter().zip(&s).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
        let tol = if name.ends_with("k_proj.bias") { tolerance::UPDATE_K_BIAS } else { tol };
        c.close(key, Metric::L2Over(moved), &g, &w, tol);
    }
}

/// The loss along its own gradient, for the losses of which no fixture holds gradients.
fn slopes(c: &mut Checks, f: &Fixture, policy: &Path) {
    let ratio = |i: usize| f.tensor("policy/seq_logps_joint")[i] - f.tensor("ref/seq_logps_joint")[i];
    let mut order: Vec<usize> = (0..f.rows().len()).collect();
    // The largest sums: both means well above kto_pair's max(0, ·), so that gradient flows through them.
    order.sort_by(|&a, &b| (ratio(2 * b) + ratio(2 * b + 1)).total_cmp(&(ratio(2 * a) + ratio(2 * a + 1))));
    order.truncate(4);
    order.sort_unstable();
    let data = f.data("high.jsonl", &order);
    let weights = read_checkpoint(policy);
    for loss in ["hinge", "ipo", "kto_pair"] {
        let model = f.model();
        let common = ["--reference", &model, "--data", &data, "--objective", "jpo", "--beta", "0.1", "--loss", loss];
        let out = f.out("slope.safetensors");
        run(&[&["grad", "--model", text(policy), "--out", &out], &common[..]].concat());
        let g = read_tensors(Path::new(&out));
        let norm = g.values().flat_map(|t| &t.data).map(|x| x * x).sum::<f64>().sqrt();
        let step = 1e-3;
        let ends = [1.0, -1.0].map(|sign| {
            let mut moved = Tensors::new();
            for (k, w) in &weights {
                let mut data = w.data.clone();
                if let Some(g) = find(&g, k) {
                    data.iter_mut().zip(&g.data).for_each(|(w, g)| *w += sign * step / norm * g);
                }
                moved.insert(k.clone(), Tensor { shape: w.shape.clone(), data });
            }
            let dir = f.copy_model(&format!("moved-{loss}{sign}"), false);
            write_checkpoint(&moved, &dir);
            number(&Scores::run(f, &[&["--model", text(&dir)], &common[..]].concat()).summary["loss"])
        });
        let slope = (ends[0] - ends[1]) / (2.0 * step);
        c.close(format!("{loss}: slope along the gradient"), Metric::Rel, &[slope], &[norm], tolerance::SLOPE);
    }
}

/// The same configuration in other forms (`config_*.json`) gives the same scores.
fn config_forms(c: &mut Checks, f: &Fixture) {
    for form in files_of(&f.base.join("model")) {
        let name = form.file_name().expect("a file has a name").to_string_lossy().into_owned();
        if !name.starts_with("config_") {
            continue;
        }
        let dir = f.copy_model(&name, true);
        std::fs::copy(&form, dir.join("config.json")).expect("a copied config");
        let data = f.data("form.jsonl", &f.batch());
        let s = Scores::run(f, &["--model", text(&dir), "--reference", "initial", "--data", &data]);
        let all = f.tensor("ref/seq_logps_joint");
        let want: Vec<f64> = f.batch().iter().flat_map(|&r| [all[2 * r], all[2 * r + 1]]).collect();
        c.close(name, Metric::Rel, &s.side("logp"), &want, tolerance::SEQUENCE);
    }
}

/// All checks of a family of full models.
fn full(set: &str, name: &str) {
    let Some(dir) = family(set, name) else { return };
    let (f, mut c) = (Fixture::new(dir), Checks::new(name));
    let (policy, reference) = (f.policy(), f.model());
    let models = ["--model", text(&policy), "--reference", &reference];
    scores(&mut c, &f, &models);
    config_forms(&mut c, &f);

    let batch = f.data("batch.jsonl", &f.batch());
    let s = Scores::run(&f, &["--model", &reference, "--reference", "initial", "--data", &batch, "--beta", "0.1"]);
    let ln2 = std::f64::consts::LN_2;
    c.close("loss against the starting policy", Metric::Abs, &[number(&s.summary["loss"])], &[ln2], 1e-6);

    let jpo = ["--objective", "jpo", "--beta", "0.1"];
    let g = f.out("g.safetensors");
    run(&[&["grad", "--data", &batch, "--out", &g], &models[..], &jpo].concat());
    gradients(&mut c, &f, &g, "grad_jpo", tolerance::GRADIENT);
    if f.meta["reduced"] != json!(true) {
        let dpo = f.data("dpo.jsonl", &indices(&f.meta["dpo_rows"]));
        run(&[&["grad", "--data", &dpo, "--out", &g, "--objective", "dpo", "--beta", "0.1"], &models[..]].concat());
        gradients(&mut c, &f, &g, "grad_dpo", tolerance::GRADIENT);
        let all = f.rows();
        let sft =
            f.batch().into_iter().map(|r| json!({"instruction": all[r]["i_chosen"], "response": all[r]["r_chosen"]}));
        let sft = f.write_lines("sft.jsonl", sft);
        run(&["grad", "--sft", "--data", &sft, "--out", &g, "--model", text(&policy)]);
        gradients(&mut c, &f, &g, "grad_sft", tolerance::GRADIENT);
        full_training(&mut c, &f, &policy, &models, &jpo);
    }
    c.finish();
}

fn full_training(c: &mut Checks, f: &Fixture, policy: &Path, models: &[&str], jpo: &[&str]) {
    let steps = f.meta["train_rows"].as_array().cloned().unwrap_or_default();
    let data = f.data("train.jsonl", &steps.iter().flat_map(indices).collect::<Vec<_>>());
    let pairs = indices(&steps[0]).len().to_string();
    let train = [&["train", "--full", "--output-dtype", "f32", "--data", &data], models, jpo, OPTIMIZER].concat();
    let all = f.all();
    let final_scores = |dir: &str| {
        let s = Scores::run(f, &[&["--model", dir, "--reference", dir, "--data", &all], jpo].concat());
        s.side("logp")
    };
    let out = f.out("trained");
    run(&[&train[..], &["--decay-all", "--batch-size", &pairs, "--output-dir", &out]].concat());
    metrics(c, f, &out, "train");
    updates(c, f, &read_checkpoint(Path::new(&out)), &read_checkpoint(policy), tolerance::UPDATE);
    let key = "train/final_seq_logps_joint";
    c.close(key, Metric::L2, &final_scores(&out), f.tensor(key), tolerance::TRAINED);

    // The default decay groups; one pair a micro-batch, accumulated to the same batch.
    let out = f.out("trained-hf-groups");
    let one = ["--batch-size", "1", "--gradient-accumulation-steps", &pairs, "--output-dir", &out];
    run(&[&train[..], &one].concat());
    metrics(c, f, &out, "train_hf_groups");
    let key = "train_hf_groups/final_seq_logps_joint";
    c.close(key, Metric::L2, &final_scores(&out), f.tensor(key), tolerance::TRAINED);
}

/// All checks of a LoRA family.
fn lora(set: &str, name: &str) {
    let Some(dir) = family(set, name) else { return };
    let (f, mut c) = (Fixture::new(dir), Checks::new(name));
    let (base, adapter) = (f.model(), text(&f.dir.join("adapter")).to_owned());
    let models = ["--model", &base, "--adapter", &adapter, "--reference", "base"];
    scores(&mut c, &f, &models);

    let jpo = ["--objective", "jpo", "--beta", "0.1"];
    let g = f.out("g.safetensors");
    for (prefix, objective, rows) in [("grad_jpo", "jpo", "batch_rows"), ("grad_dpo", "dpo", "dpo_rows")] {
        let data = f.data("rows.jsonl", &indices(&f.meta[rows]));
        let rest = ["--objective", objective, "--beta", "0.1"];
        run(&[&["grad", "--data", &data, "--out", &g], &models[..], &rest].concat());
        gradients(&mut c, &f, &g, prefix, tolerance::GRADIENT);
    }

    let steps = f.meta["train_rows"].as_array().cloned().unwrap_or_default();
    let data = f.data("train.jsonl", &steps.iter().flat_map(indices).collect::<Vec<_>>());
    let pairs = indices(&steps[0]).len().to_string();
    let out = f.out("trained");
    let rest = ["--decay-all", "--batch-size", &pairs, "--output-dir", &out];
    run(&[&["train", "--data", &data], &models[..], &jpo, OPTIMIZER, &rest].concat());
    metrics(&mut c, &f, &out, "train");
    let file = "adapter_model.safetensors";
    let start = read_tensors(&f.dir.join("adapter").join(file));
    updates(&mut c, &f, &read_tensors(&Path::new(&out).join(file)), &start, tolerance::UPDATE_LORA);
    let config = read_json(&Path::new(&out).join("adapter_config.json"));
    for (key, want) in [("r", "r"), ("lora_alpha", "alpha")] {
        c.close(key, Metric::Abs, &[number(&config[key])], &[number(&f.meta["lora"][want])], 1e-9);
    }
    // The program's own adapter and PEFT's, after ten steps.
    let peft = text(&f.dir.join("adapter_after10")).to_owned();
    for (what, adapter) in [("its own", &out), ("PEFT's", &peft)] {
        let s = Scores::run(
            &f,
            &[&["--model", &base, "--adapter", adapter, "--reference", "base", "--data", &f.all()], &jpo[..]].concat(),
        );
        let key = "train/final_seq_logps_joint";
        c.close(format!("{key}, {what} adapter"), Metric::L2, &s.side("logp"), f.tensor(key), tolerance::TRAINED);
    }

    let merged = f.out("merged");
    run(&["merge", "--model", &base, "--adapter", &adapter, "--output-dtype", "f32", "--output-dir", &merged]);
    let (got, initial) = (read_checkpoint(Path::new(&merged)), read_checkpoint(Path::new(&base)));
    let changed = read_tensors(&f.dir.join("merged.safetensors"));
    c.equal("merged tensors", &got.keys().collect::<Vec<_>>(), &initial.keys().collect());
    for (key, want) in &initial {
        let (want, g) = (changed.get(key).unwrap_or(want), got.get(key).map(|t| &t.data[..]).unwrap_or_default());
        c.close(format!("merged {key}"), Metric::Abs, g, &want.data, tolerance::MERGED);
    }
    let s = Scores::run(&f, &[&["--model", &merged, "--reference", &base, "--data", &f.all()], &jpo[..]].concat());
    let want = f.tensor("policy/seq_logps_joint");
    c.close("log-probs of the merged model", Metric::Rel, &s.side("logp"), want, tolerance::SEQUENCE);
    c.finish();
}

/// Greedy continuations: each prompt by itself, then all in one call.
fn generation(set: &str, name: &str) {
    let Some(dir) = family(set, name) else { return };
    let (f, mut c) = (Fixture::new(dir), Checks::new(name));
    let (model, adapter) = (f.model(), text(&f.dir.join("adapter")).to_owned());
    let mut base = vec!["generate", "--model", &model];
    if f.meta.get("base").is_some() {
        base.extend(["--adapter", &adapter]);
    }
    base.extend(GENERATE);

    let (ids, lengths) = (&f.sequences["input_ids"], f.sequences["prompt_len"].usizes());
    let rows = f.rows();
    let want: Vec<(Vec<f64>, Vec<f64>)> = f.meta["generation"]["prompts"]
        .as_array()
        .into_iter()
        .flatten()
        .map(numbers)
        .zip(f.meta["generation"]["tokens"].as_array().into_iter().flatten().map(numbers))
        .collect();
    // The fixtures hold a prompt's ids; its text is that of a sequence that begins with them.
    let texts: Vec<String> = want
        .iter()
        .map(|(p, _)| {
            let s = (0..lengths.len()).find(|&s| lengths[s] == p.len() && ids.row(s, p.len()) == p);
            let s = s.unwrap_or_else(|| panic!("{name}: a prompt that no sequence begins with"));
            let instruction = rows[s / 2][if s % 2 == 0 { "i_chosen" } else { "i_reject" }].as_str();
            format!("### Instructions: {}\n\n### Response:", instruction.expect("an instruction is a text"))
        })
        .collect();
    let objects = |args: &[&str]| -> Vec<(Vec<f64>, Vec<f64>)> {
        let out = run(args);
        let parse = |l: &str| serde_json::from_str::<Value>(l).unwrap_or_else(|e| panic!("{e}: {l}"));
        out.lines().map(parse).map(|o| (numbers(&o["prompt_ids"]), numbers(&o["ids"]))).collect()
    };
    for (i, prompt) in texts.iter().enumerate() {
        let got = objects(&[&base[..], &["--prompt", prompt]].concat());
        c.equal(format!("prompt {i} alone"), &got, &want[i..=i].to_vec());
    }
    let flags: Vec<&str> = texts.iter().flat_map(|t| ["--prompt", t.as_str()]).collect();
    c.equal("prompts side by side", &objects(&[&base[..], &flags].concat()), &want);
    c.finish();
}

macro_rules! families {
    ($($test:ident: $kind:ident($set:ident, $name:expr);)*) => {$(
        mod $test {
            #[test]
            fn scores_gradients_training() {
                super::$kind(super::$set, $name);
            }

            #[test]
            fn generation() {
                super::generation(super::$set, $name);
            }
        }
    )*};
}

families! {
    qwen3: full(OURS, "qwen3");
    gemma2: full(OURS, "gemma2");
    gemma3: full(OURS, "gemma3");
    phi3: full(OURS, "phi3");
    llama3_scaling: full(OURS, "llama3-scaling");
    mistral_odd: full(OURS, "mistral-odd");
    lora_mistral: lora(OURS, "lora-mistral");
    public_gpt2: full(PUBLIC, "gpt2");
    public_llama: full(PUBLIC, "llama");
    public_mistral: full(PUBLIC, "mistral");
    public_qwen2: full(PUBLIC, "qwen2");
    public_lora_llama: lora(PUBLIC, "lora-llama");
}

/// A loss's gradient is also the one it climbs along.
#[test]
fn gradients_are_slopes() {
    let Some(dir) = family(OURS, "mistral-odd") else { return };
    let (f, mut c) = (Fixture::new(dir), Checks::new("mistral-odd"));
    let policy = f.policy();
    slopes(&mut c, &f, &policy);
    c.finish();
}

/// The gate of `--matmul-precision medium`, whose operands have 11 bits: every gradient of the models, where the device has cooperative
/// matrices (Mesa 26 in CI).
#[test]
fn medium_precision_keeps_gradients() {
    let info: Value = serde_json::from_str(&run(&["info", "--json"])).expect("JSON");
    if info["device"]["cooperative"].is_null() {
        println!("no cooperative matrices: skipped");
        return;
    }
    let families = ["gemma2", "gemma3", "llama3-scaling", "mistral-odd", "phi3", "qwen3"].map(|name| (OURS, name));
    for (set, name) in families.into_iter().chain(["gpt2", "llama", "qwen2"].map(|name| (PUBLIC, name))) {
        let Some(dir) = family(set, name) else { continue };
        let (f, mut c) = (Fixture::new(dir), Checks::new(name));
        let (policy, reference, data) = (f.policy(), f.model(), f.data("batch.jsonl", &f.batch()));
        let gradient_file = |precision: &str| {
            let out = f.out(precision);
            let models = ["grad", "--model", text(&policy), "--reference", &reference, "--data", &data, "--out", &out];
            run(&[&models[..], &["--objective", "jpo", "--beta", "0.1", "--matmul-precision", precision]].concat());
            out
        };
        let (highest, medium) = (gradient_file("highest"), gradient_file("medium"));
        assert!(std::fs::read(highest).ok() != std::fs::read(&medium).ok(), "{name}: medium is highest");
        gradients(&mut c, &f, &medium, "grad_jpo", tolerance::GRADIENT_MEDIUM);
        c.finish();
    }
}

/// A model as the library has it.
fn decoder(gpu: &Gpu, dir: &Path, adapter: Option<&Path>, trained: bool) -> Decoder {
    let config = dir.join("config.json");
    let text = std::fs::read_to_string(&config).expect("a configuration");
    let d = Description::from_json(&config, &text).expect("a configuration");
    let lora = adapter.map(|dir| Adapter::open(dir, &d).expect("an adapter").lora);
    let trained = match (trained, &lora) {
        (false, _) => Trained::Nothing,
        (true, None) => Trained::Full,
        (true, Some(_)) => Trained::Lora,
    };
    let options =
        LoadOptions { trained, lora, training: Training::NONE, n_positions: d.max_positions, base: BaseDtype::Auto };
    let source: Rc<dyn Source> = Rc::new(Checkpoint::open(dir).expect("a checkpoint"));
    Decoder::load(gpu, &d, &source, &options).expect("weights")
}

/// The gate of `--saved-dtype bf16`: every gradient of the models, whatever is computed again to the same bits. With 4 bits of mantissa instead
/// of 7 it must fail.
#[test]
fn saved_in_bf16_keeps_gradients() {
    let ours = ["gemma2", "gemma3", "llama3-scaling", "mistral-odd", "phi3", "qwen3", "lora-mistral"];
    let public = ["gpt2", "llama", "mistral", "qwen2", "lora-llama"];
    let gpu = pollster::block_on(Gpu::open(&DeviceChoice::Best)).expect("a device");
    for (set, name) in ours.map(|name| (OURS, name)).into_iter().chain(public.map(|name| (PUBLIC, name))) {
        let Some(dir) = family(set, name) else { continue };
        let f = Fixture::new(dir);
        let lora = f.meta.get("base").map(|_| f.dir.join("adapter"));
        let initial = f.base.join("model");
        let policy = if lora.is_some() { initial.clone() } else { f.policy() };
        let policy = decoder(&gpu, &policy, lora.as_deref(), true);

        let tokenizer = Tokenizer::load(&initial).expect("a tokenizer");
        let file = f.data("batch.jsonl", &f.batch());
        let map = FieldMap::default();
        let rows = read_rows(Path::new(&file), &map, Purpose::Preference).expect("rows");
        let limits = Limits { max_length: policy.description.max_positions, overflow: Overflow::Error };
        let data = Dataset::build(&rows, &tokenizer, &Template::Paper, limits).expect("tokens");
        let examples: Vec<&Example> = data.examples.iter().collect();
        let scored = pollster::block_on(score(
            &gpu,
            &decoder(&gpu, &initial, None, false),
            &examples,
            false,
            true,
            4096,
            &mut |_| (),
        ));
        let scored = scored.expect("scores");
        let reference: Vec<Reference> =
            scored.chunks(2).map(|pair| [0, 1].map(|i| pair[i].sums.score(Objective::Jpo)).into()).collect();

        let goal = Goal::Preference(Preference { objective: Objective::Jpo, beta: 0.1, ..Preference::default() });
        let mut trainer =
            Trainer { gpu: &gpu, decoder: policy, goal, share_prefix: true, keep: Keep::Everything, seed: 0 };
        let mut gradient_file = |keep: Keep, dtype: SavedDtype| {
            (trainer.keep, trainer.decoder.saved_dtype) = (keep, dtype);
            pollster::block_on(trainer.gradients(&examples, &reference, examples.len())).expect("gradients");
            let all = pollster::block_on(trainer.read_gradients(&examples)).expect("gradients");
            let all: Tensors = all
                .into_iter()
                .map(|(name, shape, values)| {
                    (name, Tensor { shape, data: values.into_iter().map(f64::from).collect() })
                })
                .collect();
            let dir = f.path(&format!("{keep:?}-{dtype:?}"));
            std::fs::create_dir(&dir).expect("a fresh folder");
            write_checkpoint(&all, &dir);
            dir.join("model.safetensors")
        };
        let check = |file: &Path, tol: f64| {
            let mut c = Checks::new(name);
            gradients(&mut c, &f, text(file), "grad_jpo", tol);
            c
        };
        let exact = gradient_file(Keep::Everything, SavedDtype::F32);
        check(&exact, tolerance::GRADIENT).finish();
        let bf16 = Keep::TRAINING.map(|keep| gradient_file(keep, SavedDtype::Bf16));
        check(&bf16[0], tolerance::GRADIENT_MEDIUM).finish();
        let [bf16, others @ ..] = bf16.map(|file| std::fs::read(file).expect("gradients"));
        assert!(others.iter().all(|other| *other == bf16), "{name}: --recompute gives other bits");
        assert!(std::fs::read(exact).expect("gradients") != bf16, "{name}: bf16 is f32");
        let coarse = check(&gradient_file(Keep::Everything, SavedDtype::Coarse), tolerance::GRADIENT_MEDIUM);
        assert!(!coarse.failed.is_empty(), "{name}: 4 bits pass");
    }
}

/// Every folder of the set is tested.
#[test]
fn no_family_is_forgotten() {
    let source = include_str!("oracle.rs");
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(OURS);
    for entry in std::fs::read_dir(&dir).expect("the fixtures") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() && path.join("expected.json").is_file() {
            let name = path.file_name().expect("a folder has a name").to_string_lossy().into_owned();
            assert!(source.contains(&format!("(OURS, \"{name}\");")), "{name} has no test");
        }
    }
}
