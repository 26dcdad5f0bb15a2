//! Reading of safetensors: one file, or shards with an index. Checkpoints are untrusted: nothing outside the folder is read, and no
//! allocation exceeds a file's size.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use safetensors::Dtype;
use serde_json::Value;

use super::description::{ModelConfig, TensorSpec};
pub use super::folder::inside;
use super::folder::{MAX_CONFIG_BYTES, read_inside};
pub use super::tensor_file::to_f32;
use super::tensor_file::{StoredTensor, TensorContent, TensorFile, shape_text};
use super::weights::{Nf4Tensors, WeightSource};
use crate::error::{Error, Result};
use crate::kernels::storage::PackedWeight;

/// Opened files of a checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<TensorFile>,
    /// Index of the file that holds each tensor, by the tensor's name in the files.
    place: BTreeMap<String, usize>,
    /// Prefix of the description's tensor names that the files' names have in another form.
    prefix: PrefixForm,
    /// Whether the head is stored and differs from the embedding, although `config.json` ties them.
    untied: bool,
    /// Names (description's, file's) of the embedding's weight, where the files have it under the tied head's name.
    embedding_as: Option<(String, String)>,
    /// Remarks on the files for the user.
    notes: Vec<String>,
    /// Tensors that are stored in NF4, and are read as floats here.
    quantised: Option<Rc<dyn Nf4Tensors>>,
}

/// Tensor as stored in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointTensor<'a> {
    /// Data type: F32, F16 or BF16 in a checkpoint that was verified.
    pub dtype: Dtype,
    /// Dimensions as stored in the file.
    pub shape: &'a [usize],
    /// Little-endian values.
    pub bytes: Vec<u8>,
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Prefix of tensor names in the description, and in the files.
#[derive(Debug, Clone, Copy, Default)]
struct PrefixForm {
    /// Prefix in the description.
    described: &'static str,
    /// Prefix in the files.
    stored: &'static str,
    /// Name of the embedding, without the prefix, by which such files are recognised.
    embedding: &'static str,
}

/// Forms of prefixes: GPT-2 on the hub, a Llama saved without its head; wrapped language models as on the hub, or saved without their head.
const PREFIXES: [PrefixForm; 4] = [
    PrefixForm { described: "transformer.", stored: "", embedding: "wte.weight" },
    PrefixForm { described: "model.", stored: "", embedding: "embed_tokens.weight" },
    PrefixForm {
        described: "model.language_model.",
        stored: "language_model.model.",
        embedding: "embed_tokens.weight",
    },
    PrefixForm { described: "model.language_model.", stored: "language_model.", embedding: "embed_tokens.weight" },
];
/// Prefix of a wrapped language model's head in files that have `language_model.model.`.
const WRAPPED_HEAD: &str = "language_model.";
/// Largest number of names that a note lists.
const NAMED: usize = 8;

/// Joins names into "a, b, c and 4 more".
fn name_list<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let mut text = names.take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text += &format!(" and {more} more");
    }
    text
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards of `model.safetensors.index.json`. As in transformers, the index decides which files are
    /// read, and the files decide which tensors there are.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is missing, truncated or not safetensors, or for a link out of the folder; [`Error::Field`] for an
    /// index that names a file outside the folder; [`Error::Tensor`] for two shards that hold different values of one tensor.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        if !dir.is_dir() {
            return Err(Error::file(dir, if dir.exists() { "is not a folder" } else { "no such folder" }));
        }
        if dir.join(SINGLE).exists() {
            return Self::new(dir, vec![TensorFile::open(inside(dir, SINGLE)?)?], None);
        }
        if !dir.join(INDEX).exists() {
            let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().find(|n| dir.join(n).exists());
            let reason = match pickled {
                Some(name) => format!("holds {name}, which is not read: convert it to {SINGLE}"),
                None => format!("holds neither {SINGLE} nor {INDEX}"),
            };
            return Err(Error::file(dir, reason));
        }
        let (path, text) = (dir.join(INDEX), read_inside(dir, INDEX, MAX_CONFIG_BYTES)?);
        let index = read_index(&path, &text)?;
        let names: BTreeSet<&String> = index.values().collect();
        let files = names.into_iter().map(|name| TensorFile::open(inside(dir, name)?));
        Self::new(dir, files.collect::<Result<_>>()?, Some((&path, index)))
    }

    /// Opens the contents of safetensors files, each with its name, for callers without folders, such as a browser.
    ///
    /// # Errors
    /// Fails like [`Checkpoint::open`].
    pub fn from_contents(files: Vec<(String, Box<dyn TensorContent>)>) -> Result<Self> {
        let files = files.into_iter().map(|(name, content)| TensorFile::from_content(name, content));
        Self::new(Path::new(""), files.collect::<Result<_>>()?, None)
    }

    /// Opens the floats that a checkpoint with quantised tensors stands for.
    ///
    /// # Errors
    /// Fails like [`Checkpoint::open`].
    pub(super) fn from_quantised(
        dir: &Path,
        content: Box<dyn TensorContent>,
        quantised: Rc<dyn Nf4Tensors>,
        notes: Vec<String>,
    ) -> Result<Self> {
        let opened = Self::new(dir, vec![TensorFile::from_content(dir, content)?], None)?;
        Ok(Self { notes, quantised: Some(quantised), ..opened })
    }

    fn new(dir: &Path, files: Vec<TensorFile>, index: Option<(&Path, BTreeMap<String, String>)>) -> Result<Self> {
        let mut place: BTreeMap<String, usize> = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for (name, stored) in file.tensors() {
                let Some(first) = place.insert(name.clone(), i) else { continue };
                let other = &files[first];
                if !other.same(&other.tensors()[name], file, stored)? {
                    let reason = format!("is also in {}, with other values", other.path().display());
                    return Err(Error::tensor(file.path(), name, reason));
                }
            }
        }
        let mut notes = Vec::new();
        if let Some((path, index)) = index {
            let tied_head = |name: &str| name.ends_with("lm_head.weight");
            let absent: Vec<&String> = index.keys().filter(|n| !place.contains_key(*n) && !tied_head(n)).collect();
            if !absent.is_empty() {
                let (path, n, names) = (path.display(), absent.len(), name_list(absent.into_iter()));
                let noun = if n == 1 { "tensor" } else { "tensors" };
                notes.push(format!("{path} names {n} {noun} that no shard holds: {names}"));
            }
        }
        let has = |prefix: &str, name: &str| place.contains_key(&format!("{prefix}{name}"));
        let differs = |form: &PrefixForm| has(form.stored, form.embedding) && !has(form.described, form.embedding);
        let prefix = PREFIXES.into_iter().find(differs).unwrap_or_default();
        Ok(Self { dir: dir.into(), files, place, prefix, untied: false, embedding_as: None, notes, quantised: None })
    }

    /// Decides whether the head is tied, as transformers 5 does. The head is untied where `config.json` ties it, but the files hold head
    /// and embedding with different values. Where the files hold the head alone, it also serves as the embedding. Must be called before
    /// [`Checkpoint::verify`].
    /// # Errors
    /// [`Error::File`].
    pub fn settle_tying(&mut self, d: &mut ModelConfig) -> Result<()> {
        let head_name = format!("{}.weight", d.head.name);
        if !d.tied || self.entry(&head_name).is_none() {
            return Ok(());
        }
        let Some((embedding, a)) = self.entry(&d.embedding) else {
            self.embedding_as = Some((d.embedding.clone(), self.file_name(&head_name).into_owned()));
            return Ok(());
        };
        let (head, b) = self.expect(&head_name)?;
        if a.shape == b.shape && !embedding.same(a, head, b)? {
            let (path, names) = (head.path().display(), [self.file_name(&head_name), self.file_name(&d.embedding)]);
            let note = format!(
                "{path}: {} differs from {}, so the head is not tied to it, as in transformers 5, though tie_word_embeddings is on",
                names[0], names[1]
            );
            self.notes.push(note);
            (self.untied, d.tied) = (true, false);
        }
        Ok(())
    }

    /// Returns whether the files untie a head that `config.json` ties.
    pub fn is_untied(&self) -> bool {
        self.untied
    }

    /// Returns notes for the user: names of an index that no shard holds, and a head that the files untie.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns the checkpoint's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the safetensors files.
    pub fn files(&self) -> impl Iterator<Item = &TensorFile> {
        self.files.iter()
    }

    /// Returns a tensor's name in the files, given the description's name.
    pub fn file_name<'a>(&'a self, name: &'a str) -> Cow<'a, str> {
        if let Some((embedding, stored)) = &self.embedding_as
            && embedding == name
        {
            return stored.into();
        }
        let PrefixForm { described, stored, .. } = self.prefix;
        match name.strip_prefix(described) {
            Some(rest) if stored.is_empty() => rest.into(),
            Some(rest) => format!("{stored}{rest}").into(),
            // The head of a wrapped model, which has the prefix of neither.
            None if stored.starts_with(WRAPPED_HEAD) => {
                let wrapped = format!("{WRAPPED_HEAD}{name}");
                if self.place.contains_key(&wrapped) { wrapped.into() } else { name.into() }
            }
            None => name.into(),
        }
    }

    /// Returns the names of tensors that belong to the models around a wrapped language model, such as a vision tower, to heads that
    /// predict more than one token (`mtp.`), and of buffers ([`ModelConfig::buffers`]). They are left as they are, and written back with the model.
    pub fn carried<'a>(&'a self, d: &ModelConfig) -> Vec<&'a str> {
        let buffers: BTreeSet<String> = d.buffers().iter().map(|s| self.file_name(&s.name).into_owned()).collect();
        let names = || self.place.keys().map(String::as_str);
        if !d.wrapped {
            return names().filter(|name| buffers.contains(*name)).collect();
        }
        let mut own: BTreeSet<String> = d.tensors().iter().map(|s| self.file_name(&s.name).into_owned()).collect();
        own.insert(self.file_name(&format!("{}.weight", d.head.name)).into_owned());
        let norm = self.file_name(&format!("{}.weight", d.final_norm)).into_owned();
        let language_model = norm.strip_suffix("norm.weight").unwrap_or(&norm);
        let is_own = |name: &&str| own.contains(*name) || name.starts_with(language_model);
        names().filter(|name| buffers.contains(*name) || !is_own(name)).collect()
    }

    /// Returns the data type and shape of a tensor, given its name in the files.
    pub fn stored(&self, name: &str) -> Option<(Dtype, &[usize])> {
        let stored = self.files[*self.place.get(name)?].tensors().get(name)?;
        Some((stored.dtype, stored.shape.as_slice()))
    }

    /// Returns the names of all tensors in the files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.place.keys().map(String::as_str)
    }

    /// Fills `into` with the bytes of a tensor from `offset` on, given its name in the files.
    ///
    /// # Errors
    /// [`Error::Tensor`] where the tensor is missing or shorter; [`Error::File`].
    pub(super) fn read_range(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<()> {
        let missing = || Error::tensor(&self.dir, name, "is missing");
        let file = &self.files[*self.place.get(name).ok_or_else(missing)?];
        file.read_range(name, &file.tensors()[name], offset, into)
    }

    /// Tells whether a tensor is held without a loss in four bits, given the description's name.
    fn is_nf4(&self, name: &str) -> bool {
        self.quantised.as_ref().is_some_and(|quantised| quantised.is_nf4(&self.file_name(name)))
    }

    /// Tells whether any tensor is held without a loss in four bits.
    pub fn has_nf4(&self) -> bool {
        self.quantised.as_ref().is_some_and(|quantised| self.place.keys().any(|name| quantised.is_nf4(name)))
    }

    /// Reads the bytes of a tensor piece by piece, given its name in the files.
    ///
    /// # Errors
    /// [`Error::File`]; errors of `each`.
    pub fn read_stored(&self, name: &str, each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let missing = || Error::tensor(&self.dir, name, "is missing");
        let file = &self.files[*self.place.get(name).ok_or_else(missing)?];
        file.pieces(&file.tensors()[name], each)
    }

    fn entry(&self, name: &str) -> Option<(&TensorFile, &StoredTensor)> {
        let name = self.file_name(name);
        let file = &self.files[*self.place.get(name.as_ref())?];
        Some((file, file.tensors().get(name.as_ref())?))
    }

    fn expect(&self, name: &str) -> Result<(&TensorFile, &StoredTensor)> {
        // A single file is named in the message. Of several files, none can be blamed.
        let path = if let [file] = self.files.as_slice() { file.path() } else { &self.dir };
        self.entry(name).ok_or_else(|| Error::tensor(path, self.file_name(name), "is missing"))
    }

    /// Returns a tensor's data type and shape, given the description's name, without reading its values.
    pub fn info(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.entry(name).map(|(_, stored)| (stored.dtype, stored.shape.as_slice()))
    }

    /// Reads a tensor as stored, given the description's name.
    ///
    /// # Errors
    /// [`Error::Tensor`] where the tensor is missing; [`Error::File`].
    pub fn tensor(&self, name: &str) -> Result<CheckpointTensor<'_>> {
        let (file, stored) = self.expect(name)?;
        Ok(CheckpointTensor { dtype: stored.dtype, shape: &stored.shape, bytes: file.bytes(stored)? })
    }

    /// Reads a tensor's values as f32, in the file's order, without rounding.
    ///
    /// # Errors
    /// Fails like [`Checkpoint::tensor`]; also [`Error::Tensor`] where the tensor is neither F32, F16 nor BF16.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (file, stored) = self.expect(name)?;
        file.values(name, stored)
    }

    /// Reads the bits of a tensor stored as bf16, in the file's order; `None` for a tensor of another type.
    ///
    /// # Errors
    /// Fails like [`Checkpoint::tensor`].
    pub fn read_bf16(&self, name: &str) -> Result<Option<Vec<u16>>> {
        let (file, stored) = self.expect(name)?;
        if stored.dtype != Dtype::BF16 {
            return Ok(None);
        }
        let mut bits = Vec::with_capacity(stored.n_bytes() as usize / 2);
        file.pieces(stored, |bytes| {
            bits.extend(bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])));
            Ok(())
        })?;
        Ok(Some(bits))
    }

    /// Checks that every tensor of the description exists with its shape and a supported type. Returns notes: on tensors around a wrapped
    /// language model ([`Checkpoint::carried`]), and on tensors that the model does not use, which transformers leaves unused, too. The
    /// notes omit buffers that hold no weights, and a tied head's copy.
    ///
    /// # Errors
    /// [`Error::Tensor`], which shows the expected and the found shape of a mismatch.
    pub fn verify(&self, d: &ModelConfig) -> Result<Vec<String>> {
        let mut expected = BTreeSet::new();
        for spec in d.tensors().into_iter().chain(d.buffers()) {
            let (file, stored) = self.expect(&spec.name)?;
            let name = self.file_name(&spec.name).to_string();
            if stored.shape != spec.shape {
                let reason = format!("expected {}, file has {}", shape_text(&spec.shape), shape_text(&stored.shape));
                return Err(Error::tensor(file.path(), name, reason));
            }
            file.check_float(&name, stored)?;
            expected.insert(name);
        }
        let mut unknown = Vec::new();
        let carried: Vec<&str> = self.carried(d).into_iter().filter(|name| !expected.contains(*name)).collect();
        expected.extend(carried.iter().map(|name| (*name).to_string()));
        for (name, &i) in self.place.iter().filter(|(name, _)| !expected.contains(*name)) {
            if is_buffer(name, d) {
                continue;
            }
            if !(d.tied && *name == self.file_name(&format!("{}.weight", d.head.name))) {
                unknown.push(name);
                continue;
            }
            let ((embedding, a), head) = (self.expect(&d.embedding)?, &self.files[i]);
            if !embedding.same(a, head, &head.tensors()[name])? {
                let reason = format!("differs from {}, though tie_word_embeddings is on", self.file_name(&d.embedding));
                return Err(Error::tensor(head.path(), name, reason));
            }
        }
        let (n, dir, architecture) = (unknown.len(), self.dir.display(), &d.architecture);
        let noun = if n == 1 { "tensor is" } else { "tensors are" };
        let names = name_list(unknown.into_iter());
        let unused = (n > 0).then(|| {
            format!("{dir}: {n} {noun} no part of this {architecture} and not used, as in transformers: {names}")
        });
        let (n, noun) = (carried.len(), if carried.len() == 1 { "tensor" } else { "tensors" });
        let groups: BTreeSet<String> =
            carried.iter().map(|name| name.split('.').next().unwrap_or(name).into()).collect();
        let untouched = (n > 0).then(|| {
            let groups = name_list(groups.iter());
            format!("{dir}: the language model is used; {n} {noun} of other parts are left as they are: {groups}")
        });
        Ok(untouched.into_iter().chain(unused).collect())
    }

    /// Returns the data type of the embedding, which is typical of the weights.
    pub fn dtype(&self, d: &ModelConfig) -> Dtype {
        self.entry(&d.embedding).map_or(Dtype::F32, |(_, stored)| stored.dtype)
    }

    /// Computes SHA-256 of the names, types, shapes and bytes of all tensors, in hexadecimal. Scores cached on disk are keyed by this
    /// digest. The division into shards does not change it.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn digest(&self) -> Result<String> {
        use sha2::Digest;
        let mut hash = sha2::Sha256::new();
        for (name, &i) in &self.place {
            let (file, stored) = (&self.files[i], &self.files[i].tensors()[name]);
            hash.update(format!("{name}\0{:?}{:?}\0", stored.dtype, stored.shape));
            file.pieces(stored, |bytes| {
                hash.update(bytes);
                Ok(())
            })?;
        }
        Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }
}

impl WeightSource for Checkpoint {
    fn is_bf16(&self, spec: &TensorSpec) -> bool {
        self.info(&spec.name).is_some_and(|(dtype, _)| dtype == Dtype::BF16)
    }
    fn values(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        self.read_f32(&spec.name)
    }
    fn is_nf4(&self, spec: &TensorSpec) -> bool {
        !spec.transposed && Checkpoint::is_nf4(self, &spec.name)
    }
    fn packed(&self, spec: &TensorSpec) -> Result<Option<PackedWeight>> {
        match &self.quantised {
            Some(quantised) if WeightSource::is_nf4(self, spec) => quantised.packed(&self.file_name(&spec.name)),
            _ => Ok(None),
        }
    }
}

/// Returns whether a tensor is a buffer of old checkpoints that follows from the configuration: rotary frequencies, positions, GPT-2's
/// causal mask.
fn is_buffer(name: &str, d: &ModelConfig) -> bool {
    let mask = name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
    let computed = ["inv_freq", "cos_cached", "sin_cached"].map(|buffer| format!("rotary_emb.{buffer}"));
    let is_computed = computed.iter().any(|buffer| name.ends_with(buffer)) || name.ends_with("position_ids");
    is_computed || (mask && d.position_embedding.is_some())
}

/// Reads an index: the file of each tensor, which must lie inside the index's folder.
fn read_index(path: &Path, text: &str) -> Result<BTreeMap<String, String>> {
    let index: Value = serde_json::from_str(text).map_err(|e| Error::line(path, e.line(), format!("not JSON: {e}")))?;
    let map = index.get("weight_map").ok_or_else(|| Error::field(path, "weight_map", "is missing"))?;
    let map = map.as_object().ok_or_else(|| Error::field(path, "weight_map", "expected an object"))?;
    let entry = |(tensor, file): (&String, &Value)| {
        let bad = |reason: String| Error::field(path, format!("weight_map.{tensor}"), reason);
        let file = file.as_str().ok_or_else(|| bad(format!("expected a file name, found {file}")))?;
        let is_inside = file.split('/').all(|part| ![".", "..", ""].contains(&part));
        if !is_inside || file.contains(['\\', ':', '\0']) {
            return Err(bad(format!("`{file}` is not a file of this folder")));
        }
        Ok((tensor.clone(), file.to_string()))
    };
    map.iter().map(entry).collect()
}
