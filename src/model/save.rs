//! Writing of safetensors files and Hugging Face folders, tensor by tensor.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Value, json};

use super::checkpoint::Checkpoint;
use super::description::{ModelConfig, TensorSpec};
use super::side_files::{CONFIG, SideFiles};
use crate::error::{Error, Result};
use crate::files::{check_name, not_a_link, rename};
pub use crate::files::{write_atomic, write_text};

/// Data type of weights in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputDtype {
    /// float32.
    F32,
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// float16, rounded to nearest even; a value beyond 65,504 is an error.
    F16,
}

impl OutputDtype {
    /// Returns the output type for a checkpoint's tensors of type `dtype`. Types other than BF16 and F16 give f32.
    pub fn from_stored(dtype: Dtype) -> Self {
        match dtype {
            Dtype::BF16 => Self::Bf16,
            Dtype::F16 => Self::F16,
            _ => Self::F32,
        }
    }
    fn bytes(self) -> u64 {
        if self == Self::F32 { 4 } else { 2 }
    }
    fn stored(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }
    /// Returns the type's name in `config.json`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }
    /// Appends values to `into`. Fails with the first value that f16 cannot represent.
    fn encode(self, values: &[f32], into: &mut Vec<u8>) -> Result<(), f32> {
        match self {
            Self::F32 => into.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Self::Bf16 => into.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
            Self::F16 => {
                if let Some(&v) = values.iter().find(|v| v.is_finite() && f16::from_f32(**v).is_infinite()) {
                    return Err(v);
                }
                into.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()));
            }
        }
        Ok(())
    }
}

/// Tensor to write.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorToWrite {
    /// Name in the file.
    pub name: String,
    /// Dimensions in the file.
    pub shape: Vec<usize>,
    /// Type in the file.
    pub dtype: OutputDtype,
}

impl TensorToWrite {
    fn n_values(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    /// Returns the tensor's entry in a file.
    fn entry(&self) -> TensorEntry {
        let (name, shape, dtype) = (self.name.clone(), self.shape.clone(), self.dtype.stored());
        TensorEntry { name, shape, dtype, n_bytes: self.n_values() * self.dtype.bytes() }
    }

    /// Encodes the tensor's values into `out`. `path` is for messages.
    fn write(&self, path: &Path, all: &[f32], out: &mut dyn Write) -> Result<()> {
        let bad = |reason: String| Error::tensor(path, &self.name, reason);
        if all.len() as u64 != self.n_values() {
            return Err(bad(format!("expected {} values, was given {}", self.n_values(), all.len())));
        }
        let mut bytes = Vec::new();
        for piece in all.chunks(1 << 16) {
            bytes.clear();
            let fits = self.dtype.encode(piece, &mut bytes);
            fits.map_err(|v| bad(format!("{v} does not fit float16: take --output-dtype bf16 or f32")))?;
            out.write_all(&bytes).map_err(|e| Error::file(path, e))?;
        }
        Ok(())
    }
}

/// Tensor of any data type in a file to write.
#[derive(Debug, Clone)]
struct TensorEntry {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    n_bytes: u64,
}

/// Function that writes the bytes of the i-th tensor of a file. The path is for messages.
type TensorWriter<'a> = dyn FnMut(usize, &Path, &mut dyn Write) -> Result<()> + 'a;

/// Function that returns the values of the i-th tensor. It is called for one tensor at a time.
pub type TensorValues<'a> = dyn FnMut(usize) -> Result<Vec<f32>> + 'a;

/// Writes a safetensors file.
///
/// # Errors
/// Fails like [`encode_safetensors`].
pub fn write_safetensors(path: &Path, tensors: &[TensorToWrite], values: &mut TensorValues) -> Result<()> {
    write_atomic(path, |file| encode_safetensors(path, file, tensors, values))
}

/// Encodes a safetensors file. Wider types come first, so that every tensor is aligned. `path` is for messages.
///
/// # Errors
/// [`Error::File`]; [`Error::Tensor`] for a value that does not fit; errors of `values`.
pub fn encode_safetensors(
    path: &Path,
    out: &mut impl Write,
    tensors: &[TensorToWrite],
    values: &mut TensorValues,
) -> Result<()> {
    let entries: Vec<TensorEntry> = tensors.iter().map(TensorToWrite::entry).collect();
    encode_entries(path, out, &entries, &mut |i, path, out| tensors[i].write(path, &values(i)?, out))
}

/// Encodes a safetensors file of tensors of any types, the wider types first.
fn encode_entries(
    path: &Path,
    out: &mut impl Write,
    entries: &[TensorEntry],
    write: &mut TensorWriter<'_>,
) -> Result<()> {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(entries[i].dtype.bitsize()));
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut offset = 0;
    for &i in &order {
        let t = &entries[i];
        let end = offset + t.n_bytes;
        let entry = json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [offset, end]});
        header.insert(t.name.clone(), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let at = |e: std::io::Error| Error::file(path, e);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(at)?;
    out.write_all(&header).map_err(at)?;
    order.iter().try_for_each(|&i| write(i, path, out))
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Largest size of a shard, in bytes, as in transformers.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// Writes `model.safetensors`, or shards of at most `shard_bytes` with their index, into `dir`.
///
/// # Errors
/// Fails like [`write_safetensors`].
pub fn write_model(dir: &Path, tensors: &[TensorToWrite], shard_bytes: u64, values: &mut TensorValues) -> Result<()> {
    let entries: Vec<TensorEntry> = tensors.iter().map(TensorToWrite::entry).collect();
    write_entries(dir, &entries, shard_bytes, &mut |i, path, out| tensors[i].write(path, &values(i)?, out))
}

/// Writes tensors of any types like [`write_model`].
fn write_entries(dir: &Path, entries: &[TensorEntry], shard_bytes: u64, write: &mut TensorWriter<'_>) -> Result<()> {
    let mut shards: Vec<std::ops::Range<usize>> = Vec::new();
    let mut size = 0;
    for (i, t) in entries.iter().enumerate() {
        match shards.last_mut().filter(|_| size + t.n_bytes <= shard_bytes) {
            Some(shard) => shard.end = i + 1,
            None => {
                shards.push(i..i + 1);
                size = 0;
            }
        }
        size += t.n_bytes;
    }
    let mut write_file = |name: &str, shard: std::ops::Range<usize>| {
        let (path, first) = (dir.join(name), shard.start);
        write_atomic(&path, |file| {
            encode_entries(&path, file, &entries[shard], &mut |i, path, out| write(first + i, path, out))
        })
    };
    if shards.len() <= 1 {
        return write_file(SINGLE, 0..entries.len());
    }
    let mut weight_map = serde_json::Map::new();
    for (n, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", n + 1, shards.len());
        write_file(&name, shard.clone())?;
        weight_map.extend(entries[shard.clone()].iter().map(|t| (t.name.clone(), json!(name))));
    }
    let total: u64 = entries.iter().map(|t| t.n_bytes).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    write_text(&dir.join(INDEX), &format!("{index:#}\n"))
}

/// Writes the tokenizer and the model's other side files, as they were when they were read.
///
/// # Errors
/// [`Error::File`].
pub fn write_side_files(side: &SideFiles, to: &Path) -> Result<()> {
    for name in side.copied() {
        let target = to.join(name);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::file(folder, e))?;
        }
        let bytes = side.bytes(name)?.unwrap_or_default();
        write_atomic(&target, |file| file.write_all(bytes).map_err(|e| Error::file(&target, e)))?;
    }
    Ok(())
}

/// Writes `config.json`: with the weights' type where `dtype` is given, and with the head untied where `untied`.
///
/// # Errors
/// [`Error::File`].
fn write_config(side: &SideFiles, to: &Path, dtype: Option<OutputDtype>, untied: bool) -> Result<()> {
    let path = side.path(CONFIG);
    let text = side.required(CONFIG)?;
    let mut config: Value = serde_json::from_str(text).map_err(|e| Error::line(&path, e.line(), e))?;
    if let (Some(fields), Some(dtype)) = (config.as_object_mut(), dtype) {
        // transformers 4 reads `torch_dtype` up to 4.55; later versions prefer `dtype`.
        let old = fields.contains_key("torch_dtype");
        if old {
            fields.insert("torch_dtype".into(), json!(dtype.torch_name()));
        }
        if !old || fields.contains_key("dtype") {
            fields.insert("dtype".into(), json!(dtype.torch_name()));
        }
    }
    if let (Some(fields), true) = (config.as_object_mut(), untied) {
        fields.insert("tie_word_embeddings".into(), json!(false));
        if let Some(text) = fields.get_mut("text_config").and_then(Value::as_object_mut) {
            text.insert("tie_word_embeddings".into(), json!(false));
        }
    }
    write_text(&to.join(CONFIG), &format!("{config:#}\n"))
}

/// Name of the folder inside an existing one in which files are written before they are moved to their places.
pub const PARTIAL: &str = ".partial";

/// Folder that is filled under another name and renamed only when it is complete. Where the target exists, its files are moved into the
/// target one by one instead. Dropping it before [`StagedFolder::commit`] removes everything.
#[derive(Debug)]
pub struct StagedFolder {
    out: PathBuf,
    dir: PathBuf,
    /// Whether `out` existed before: files are then moved one by one.
    into_existing: bool,
}

impl StagedFolder {
    /// Creates the folder, and removes one that an earlier, killed run left.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn new(out: impl AsRef<Path>) -> Result<Self> {
        let out = out.as_ref();
        check_name(out).map_err(|reason| Error::file(out, reason))?;
        let into_existing = out.exists();
        let dir = if into_existing {
            out.join(PARTIAL)
        } else {
            let name = out.file_name().ok_or_else(|| Error::file(out, "is not the name of a folder"))?;
            out.with_file_name(format!(".{}.partial", name.to_string_lossy()))
        };
        let at = |e: std::io::Error| Error::file(out, e);
        if into_existing && !out.is_dir() {
            return Err(Error::file(out, "exists and is not a folder"));
        }
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(at(e)),
            _ => fs::create_dir_all(&dir).map_err(at)?,
        }
        Ok(Self { out: out.into(), dir, into_existing })
    }

    /// Creates a folder completely or not at all. `fill` writes into the path that it is given. Errors name the final path instead.
    ///
    /// # Errors
    /// [`Error::File`]; errors of `fill`.
    pub fn filled(out: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let staging = Self::new(out)?;
        fill(staging.dir()).map_err(|e| e.moved(staging.dir(), out))?;
        staging.commit()
    }

    /// Returns the folder to write into until [`StagedFolder::commit`].
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves the finished files into place.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn commit(self) -> Result<()> {
        let at = |e: std::io::Error| Error::file(&self.out, e);
        if !self.into_existing {
            return rename(&self.dir, &self.out).map_err(at);
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(at)? {
            names.push(entry.map_err(at)?.file_name());
        }
        // config.json is moved last, because a folder without it does not count as a model.
        names.sort_by_key(|n| n == "config.json");
        for name in &names {
            not_a_link(&self.out.join(name))?;
        }
        for name in &names {
            let target = self.out.join(name);
            // A folder (of chat templates) cannot be renamed over one that is not empty.
            if target.is_dir() {
                fs::remove_dir_all(&target).map_err(at)?;
            }
            rename(&self.dir.join(name), &target).map_err(at)?;
        }
        if names.iter().any(|n| n == INDEX) && self.out.join(SINGLE).exists() {
            fs::remove_file(self.out.join(SINGLE)).map_err(at)?;
        }
        Ok(())
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Writes a model as a Hugging Face folder: weights under the names of the checkpoint that they came from (each in its type there, or all
/// in `dtype`), the configuration, the side files of `side`, and `texts` (name, content). Buffers and a tied head's copy are left out, as
/// in transformers. Tensors around a wrapped language model are written as they are ([`Checkpoint::carried`]). A new folder appears
/// completely or not at all; in an existing folder, files are replaced one by one.
///
/// # Errors
/// [`Error::File`]; [`Error::Tensor`] for a value that does not fit; errors of `values`.
pub fn save_model(
    out: &Path,
    source: &Checkpoint,
    side: &SideFiles,
    d: &ModelConfig,
    dtype: Option<OutputDtype>,
    texts: &[(&str, String)],
    values: &mut dyn FnMut(&TensorSpec) -> Result<Vec<f32>>,
) -> Result<()> {
    let specs = d.tensors();
    let planned = |spec: &TensorSpec| {
        let stored = source.info(&spec.name).map_or(Dtype::F32, |(dtype, _)| dtype);
        TensorToWrite {
            name: source.file_name(&spec.name).into_owned(),
            shape: spec.shape.clone(),
            dtype: dtype.unwrap_or(OutputDtype::from_stored(stored)),
        }
    };
    let tensors: Vec<TensorToWrite> = specs.iter().map(planned).collect();
    let carried = source.carried(d);
    let as_stored = |name: &&str| {
        let (dtype, shape) = source.stored(name)?;
        let n_bits = shape.iter().product::<usize>() as u64 * dtype.bitsize() as u64;
        Some(TensorEntry { name: (*name).into(), shape: shape.into(), dtype, n_bytes: n_bits / 8 })
    };
    let entries = tensors.iter().map(TensorToWrite::entry).chain(carried.iter().filter_map(as_stored));
    let entries: Vec<TensorEntry> = entries.collect();
    StagedFolder::filled(out, |dir| {
        write_entries(dir, &entries, SHARD_BYTES, &mut |i, path, out| match specs.get(i) {
            Some(spec) => tensors[i].write(path, &values(spec)?, out),
            None => source
                .read_stored(carried[i - specs.len()], |bytes| out.write_all(bytes).map_err(|e| Error::file(path, e))),
        })?;
        write_side_files(side, dir)?;
        for (name, text) in texts {
            write_text(&dir.join(name), text)?;
        }
        write_config(side, dir, dtype, source.is_untied())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tensor_file::TensorFile;

    fn planned(name: &str, shape: &[usize], dtype: OutputDtype) -> TensorToWrite {
        TensorToWrite { name: name.into(), shape: shape.into(), dtype }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let tensors = [
            planned("half", &[1], OutputDtype::F16),
            planned("a", &[2, 3], OutputDtype::F32),
            planned("none", &[0], OutputDtype::Bf16),
        ];
        let data = [vec![7.0], vec![1.0, -2.5, 0.1, 3.0, 4.0, 1e-3], vec![]];
        write_safetensors(&path, &tensors, &mut |i| Ok(data[i].clone())).unwrap();
        let file = TensorFile::open(&path).unwrap();
        for (t, data) in tensors.iter().zip(&data) {
            let stored = &file.tensors()[&t.name];
            assert_eq!((&stored.shape, &file.values(&t.name, stored).unwrap()), (&t.shape, data));
        }
        let bytes = fs::read(&path).unwrap();
        assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().len(), 3);
    }

    #[test]
    fn halves_round_to_nearest_even() {
        let mut bytes = Vec::new();
        // 1 + 2^-8 lies between two bf16 numbers, 1 + 2^-11 between two f16 numbers; ties go to the even one, which is 1.
        OutputDtype::Bf16.encode(&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0], &mut bytes).unwrap();
        OutputDtype::F16.encode(&[1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0], &mut bytes).unwrap();
        let bits: Vec<u16> = bytes.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        assert_eq!(bits, [0x3f80, 0x3f82, 0x3c00, 0x3c02]);
    }

    #[test]
    fn a_value_too_large_for_f16_names_its_tensor_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let tensors = [planned("big", &[1], OutputDtype::F16)];
        let error = write_safetensors(&path, &tensors, &mut |_| Ok(vec![1e6])).unwrap_err();
        assert!(error.to_string().contains("tensor `big`: 1000000 does not fit float16"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_staged_folder_is_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        drop(StagedFolder::new(&out).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        for text in ["one", "two"] {
            let staging = StagedFolder::new(&out).unwrap();
            write_text(&staging.dir().join("x"), text).unwrap();
            staging.commit().unwrap();
            assert_eq!(fs::read_to_string(out.join("x")).unwrap(), text);
            assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_folder_stays_and_nothing_is_moved() {
        let dir = tempfile::tempdir().unwrap();
        let (out, theirs) = (dir.path().join("out"), dir.path().join("theirs"));
        fs::create_dir(&out).unwrap();
        fs::write(&theirs, "theirs").unwrap();
        std::os::unix::fs::symlink(&theirs, out.join("x")).unwrap();
        let fill = |dir: &Path| write_text(&dir.join("a"), "a").and_then(|()| write_text(&dir.join("x"), "x"));
        let error = StagedFolder::filled(&out, fill).unwrap_err().to_string();
        assert!(error.contains("out/x: is a link"), "{error}");
        assert!(out.join("x").is_symlink() && !out.join("a").exists());
        assert_eq!(fs::read_to_string(&theirs).unwrap(), "theirs");
    }
}
