//! A family's fixture, as `make.py` wrote it, and the program run on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

impl Tensor {
    /// Row `i` of a matrix, up to `n` elements.
    pub fn row(&self, i: usize, n: usize) -> &[f64] {
        let width = self.shape[1];
        &self.data[i * width..i * width + n]
    }

    pub fn rows(&self, rows: &[usize]) -> Vec<f64> {
        rows.iter().flat_map(|&r| self.row(r, self.shape[1]).iter().copied()).collect()
    }

    pub fn usizes(&self) -> Vec<usize> {
        self.data.iter().map(|&x| x as usize).collect()
    }
}

pub type Tensors = BTreeMap<String, Tensor>;

pub fn read_tensors(path: &Path) -> Tensors {
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
pub fn read_checkpoint(dir: &Path) -> Tensors {
    let mut files: Vec<_> = files_of(dir).filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    assert!(!files.is_empty(), "{}: no safetensors", dir.display());
    files.iter().flat_map(|f| read_tensors(f)).collect()
}

pub fn files_of(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries.map(|e| e.expect("a readable folder").path()).filter(|p| p.is_file())
}

/// A tensor by its name with or without GPT-2's `transformer.`.
pub fn find<'a>(tensors: &'a Tensors, name: &str) -> Option<&'a Tensor> {
    let short = name.strip_prefix("transformer.").unwrap_or(name);
    tensors.get(name).or_else(|| tensors.get(short)).or_else(|| tensors.get(&format!("transformer.{short}")))
}

pub fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn read_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let parse = |l: &str| serde_json::from_str(l).unwrap_or_else(|e| panic!("{}: {e}: {l}", path.display()));
    text.lines().filter(|l| !l.is_empty()).map(parse).collect()
}

/// A number; NaN, which no comparison passes, where there is none.
pub fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().map(|a| a.iter().map(number).collect()).unwrap_or_default()
}

pub fn indices(value: &Value) -> Vec<usize> {
    numbers(value).iter().map(|&x| x as usize).collect()
}

/// Runs the program, or the one that `JOINTWISE_BIN` names, with the tests' own caches, which its runs share; its standard output.
pub fn run(args: &[&str]) -> String {
    let program = std::env::var("JOINTWISE_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_jointwise").into());
    let out = Command::new(program)
        .args(args)
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .expect("the program starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "jointwise {}\n{}: {stdout}{stderr}", args.join(" "), out.status);
    stdout.into_owned()
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// A family's folder, or none where the public set is absent.
pub fn family(set: &str, name: &str) -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(set).join(name);
    if dir.join("expected.json").is_file() {
        return Some(dir);
    }
    assert_ne!(set, OURS, "{} is missing", dir.display());
    println!("{} is not here: skipped", dir.display());
    None
}

pub const OURS: &str = "tests/oracle";
pub const PUBLIC: &str = "../shared/oracle";

/// A family's files and a folder for what the program makes of them.
pub struct Fixture {
    pub dir: PathBuf,
    /// The folder whose sequences, rows and model these are: its own, or a LoRA family's base.
    pub base: PathBuf,
    pub meta: Value,
    pub expected: Tensors,
    /// Token ids and lengths; the base's.
    pub sequences: Tensors,
    temp: TempDir,
}

impl Fixture {
    pub fn new(dir: PathBuf) -> Self {
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// A path in the temporary folder, as text.
    pub fn out(&self, name: &str) -> String {
        text(&self.path(name)).to_owned()
    }

    pub fn model(&self) -> String {
        text(&self.base.join("model")).to_owned()
    }

    pub fn tensor(&self, name: &str) -> &[f64] {
        &self.expected.get(name).unwrap_or_else(|| panic!("{}: no {name}", self.dir.display())).data
    }

    pub fn scalar(&self, name: &str) -> f64 {
        number(&self.meta["scalars"][name]["f64"])
    }

    pub fn rows(&self) -> Vec<Value> {
        read_lines(&self.base.join("prefs.jsonl"))
    }

    /// A JSONL file with some rows of the data, in this order.
    pub fn data(&self, name: &str, rows: &[usize]) -> String {
        let all = self.rows();
        self.write_lines(name, rows.iter().map(|&r| all[r].clone()))
    }

    pub fn write_lines(&self, name: &str, rows: impl Iterator<Item = Value>) -> String {
        let lines: Vec<String> = rows.map(|r| r.to_string() + "\n").collect();
        std::fs::write(self.path(name), lines.concat()).expect("a writable temporary folder");
        self.out(name)
    }

    pub fn all(&self) -> String {
        text(&self.base.join("prefs.jsonl")).to_owned()
    }

    pub fn batch(&self) -> Vec<usize> {
        indices(&self.meta["batch_rows"])
    }

    /// A copy of the model's folder, without weights if `weights` is false.
    pub fn copy_model(&self, name: &str, weights: bool) -> PathBuf {
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
    pub fn policy(&self) -> PathBuf {
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

pub fn write_checkpoint(weights: &Tensors, dir: &Path) {
    let bytes: Vec<(&String, Vec<u8>)> =
        weights.iter().map(|(k, t)| (k, t.data.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect())).collect();
    let views = bytes
        .iter()
        .map(|(k, b)| (k.as_str(), TensorView::new(Dtype::F32, weights[*k].shape.clone(), b).expect("a whole tensor")));
    let meta = Some([("format".to_owned(), "pt".to_owned())].into());
    safetensors::serialize_to_file(views, meta, &dir.join("model.safetensors")).expect("a written checkpoint");
}

/// What `score` wrote: rows and the summary.
pub struct Scores {
    pub rows: Vec<Value>,
    pub summary: Value,
}

impl Scores {
    pub fn run(fixture: &Fixture, args: &[&str]) -> Self {
        let out = fixture.out("scores.jsonl");
        run(&[&["score", "--out", &out], args].concat());
        let (rows, rest): (Vec<_>, Vec<_>) =
            read_lines(Path::new(&out)).into_iter().partition(|l| l.get("row").is_some());
        assert_eq!(rest.len(), 1, "one summary");
        Self { rows, summary: rest[0]["summary"].clone() }
    }

    /// Chosen and rejected sides in turn.
    pub fn sides(&self) -> Vec<&Value> {
        self.rows.iter().flat_map(|r| [&r["chosen"], &r["rejected"]]).collect()
    }

    pub fn side(&self, field: &str) -> Vec<f64> {
        self.sides().iter().map(|s| number(&s[field])).collect()
    }

    pub fn reference(&self) -> Vec<f64> {
        let both = |r: &Value| [number(&r["reference_chosen_logp"]), number(&r["reference_rejected_logp"])];
        self.rows.iter().flat_map(both).collect()
    }

    pub fn field(&self, field: &str) -> Vec<f64> {
        self.rows.iter().map(|r| number(&r[field])).collect()
    }
}
