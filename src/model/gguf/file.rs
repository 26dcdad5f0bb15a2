//! Reading of a GGUF file's header: metadata, and the place of each tensor. The file is untrusted. Counts, lengths and offsets are checked
//! against its size first, so no allocation is larger than a small multiple of the bytes that are there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::tensor_file::{TensorContent, open_content};
use super::ggml_type::GgmlType;
use super::metadata::{GgufMetadata, MetaValue};
use super::quants::dequantize;
use crate::error::{Error, Result};

/// First bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// Largest header, in bytes: metadata and the table of tensors. The vocabulary of Gemma 3 takes 7 MB.
const MAX_HEADER_BYTES: u64 = 256 << 20;
/// Bytes of the header that are read at once.
const HEADER_PIECE: usize = 1 << 16;
/// Largest number of dimensions of a tensor: `GGML_MAX_DIMS`.
const MAX_DIMS: u32 = 4;
/// Offset of each tensor is a multiple of this number of bytes, where the file names no other.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// Largest alignment that is read.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// Tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Name in the file, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Data type.
    pub kind: GgmlType,
    /// Dimensions as in Hugging Face's files, the longest stride first: the reverse of the order in the file.
    pub shape: Vec<usize>,
    /// First byte in the file.
    pub start: u64,
    /// Number of elements.
    pub n_values: u64,
}

impl GgufTensor {
    /// Returns the length in bytes.
    pub fn n_bytes(&self) -> u64 {
        self.n_values / self.kind.block_len() as u64 * self.kind.block_bytes() as u64
    }
}

/// GGUF file whose header was read and checked. Tensors stay on disk.
pub struct GgufFile {
    path: PathBuf,
    content: Box<dyn TensorContent>,
    /// Metadata by key.
    pub metadata: GgufMetadata,
    /// Tensors in the order of the file's table.
    pub tensors: Vec<GgufTensor>,
}

impl std::fmt::Debug for GgufFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GgufFile").field("path", &self.path).field("tensors", &self.tensors).finish_non_exhaustive()
    }
}

/// Reader of a header, piece by piece.
struct HeaderReader<'a> {
    path: &'a Path,
    content: &'a dyn TensorContent,
    /// Number of bytes that a header may have: the file's, or [`MAX_HEADER_BYTES`].
    end: u64,
    /// Position behind `piece`.
    at: u64,
    piece: Vec<u8>,
    /// First byte of `piece` that is not read yet.
    next: usize,
}

impl HeaderReader<'_> {
    fn bad(&self, reason: impl ToString) -> Error {
        Error::file(self.path, reason)
    }

    /// Returns the number of bytes that follow.
    fn left(&self) -> u64 {
        self.end - self.at + (self.piece.len() - self.next) as u64
    }

    fn position(&self) -> u64 {
        self.at - (self.piece.len() - self.next) as u64
    }

    /// Returns the next `n` bytes.
    fn bytes(&mut self, n: u64, what: &str) -> Result<Vec<u8>> {
        if n > self.left() {
            let (at, left) = (self.position(), self.left());
            return Err(self.bad(format!("truncated: {what} at byte {at} needs {n} bytes, {left} follow")));
        }
        let mut all = Vec::with_capacity(n as usize);
        while (all.len() as u64) < n {
            if self.next == self.piece.len() {
                let length = (self.end - self.at).min(HEADER_PIECE as u64) as usize;
                self.piece.resize(length, 0);
                self.content.read_at(self.at, &mut self.piece).map_err(|e| Error::file(self.path, e))?;
                (self.at, self.next) = (self.at + length as u64, 0);
            }
            let some = (n as usize - all.len()).min(self.piece.len() - self.next);
            all.extend_from_slice(&self.piece[self.next..self.next + some]);
            self.next += some;
        }
        Ok(all)
    }

    /// Returns the next N bytes.
    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        let bytes = self.bytes(length, what)?;
        String::from_utf8(bytes).map_err(|e| self.bad(format!("{what}: {}", e.utf8_error())))
    }

    /// Reads a count of items that have at least `least` bytes each.
    fn count(&mut self, what: &str, least: u64) -> Result<u64> {
        let n = self.u64(what)?;
        let left = self.left();
        if n > left / least {
            return Err(self.bad(format!("{what}: {n} do not fit into the {left} bytes that follow")));
        }
        Ok(n)
    }

    /// Reads a value of metadata that is not a list.
    fn scalar(&mut self, kind: u32, key: &str) -> Result<MetaValue> {
        Ok(match kind {
            0 => MetaValue::U32(u32::from(self.array::<1>(key)?[0])),
            1 => MetaValue::I128(i128::from(i8::from_le_bytes(self.array(key)?))),
            2 => MetaValue::U32(u32::from(u16::from_le_bytes(self.array(key)?))),
            3 => MetaValue::I128(i128::from(i16::from_le_bytes(self.array(key)?))),
            4 => MetaValue::U32(self.u32(key)?),
            5 => MetaValue::I128(i128::from(i32::from_le_bytes(self.array(key)?))),
            6 => MetaValue::F32(f32::from_le_bytes(self.array(key)?)),
            7 => match self.array::<1>(key)? {
                [bit @ 0..=1] => MetaValue::Bool(bit == 1),
                [other] => return Err(self.bad(format!("field `{key}`: {other} is neither true (1) nor false (0)"))),
            },
            8 => MetaValue::Text(self.text(key)?),
            10 => MetaValue::I128(i128::from(self.u64(key)?)),
            11 => MetaValue::I128(i128::from(i64::from_le_bytes(self.array(key)?))),
            12 => MetaValue::F64(f64::from_le_bytes(self.array(key)?)),
            other => return Err(self.bad(format!("field `{key}`: type {other} of a value is not known"))),
        })
    }

    fn value(&mut self, key: &str) -> Result<MetaValue> {
        match self.u32(key)? {
            9 => self.list(key),
            kind => self.scalar(kind, key),
        }
    }

    fn list(&mut self, key: &str) -> Result<MetaValue> {
        let kind = self.u32(key)?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            other => return Err(self.bad(format!("field `{key}`: a list of type {other} is not supported"))),
        };
        let n = self.count(key, least)?;
        let (mut texts, mut integers, mut floats, mut bools) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..n {
            match self.scalar(kind, key)? {
                MetaValue::Text(text) => texts.push(text),
                MetaValue::U32(n) => integers.push(i64::from(n)),
                MetaValue::I128(n) => integers.push(
                    i64::try_from(n).map_err(|_| self.bad(format!("field `{key}`: {n} is too large for a list")))?,
                ),
                MetaValue::F32(x) => floats.push(f64::from(x)),
                MetaValue::F64(x) => floats.push(x),
                MetaValue::Bool(bit) => bools.push(bit),
                _ => return Err(self.bad(format!("field `{key}`: a list of lists is not supported"))),
            }
        }
        Ok(match kind {
            8 => MetaValue::Texts(texts),
            6 | 12 => MetaValue::Floats(floats),
            7 => MetaValue::Bools(bools),
            _ => MetaValue::Integers(integers),
        })
    }

    /// Reads an entry of the table of tensors. Its `start` is counted from the first tensor's place.
    fn tensor(&mut self) -> Result<GgufTensor> {
        let name = self.text("a tensor's name")?;
        let path = self.path;
        let bad = |reason: String| Error::tensor(path, &name, reason);
        let n_dims = self.u32(&name)?;
        if !(1..=MAX_DIMS).contains(&n_dims) {
            return Err(bad(format!("has {n_dims} dimensions, expected 1 ..= {MAX_DIMS}")));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dims {
            let n = self.u64(&name)?;
            let size = usize::try_from(n).ok().filter(|n| *n > 0);
            shape.push(size.ok_or_else(|| bad(format!("has a dimension of {n}")))?);
        }
        let kind = GgmlType::from_number(self.u32(&name)?).map_err(&bad)?;
        let start = self.u64(&name)?;
        let n_values = shape.iter().try_fold(1_u64, |n, &dim| n.checked_mul(dim as u64));
        // No type has more than four bytes per element.
        let n_values = n_values.filter(|n| n.checked_mul(4).is_some());
        let n_values = n_values.ok_or_else(|| bad(format!("its dimensions {shape:?} overflow")))?;
        if !shape[0].is_multiple_of(kind.block_len()) {
            let (columns, block, name) = (shape[0], kind.block_len(), kind.name());
            return Err(bad(format!("has rows of {columns}, which is no multiple of the {block} of {name}'s blocks")));
        }
        shape.reverse();
        Ok(GgufTensor { name, kind, shape, start, n_values })
    }
}

impl GgufFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`Error::File`] where the file is missing, truncated or malformed, or of another version; [`Error::Tensor`] for a tensor whose type
    /// is not read or whose bytes are not in the file; [`Error::Field`] for a file that is a part of a model.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_content(path, open_content(path)?)
    }

    /// Reads the header of a file's content; `path` is for messages.
    ///
    /// # Errors
    /// Fails like [`GgufFile::open`].
    pub fn from_content(path: &Path, content: Box<dyn TensorContent>) -> Result<Self> {
        let n_bytes = content.n_bytes();
        let end = n_bytes.min(MAX_HEADER_BYTES);
        let mut reader = HeaderReader { path, content: &*content, end, at: 0, piece: Vec::new(), next: 0 };
        if reader.array("the first bytes").ok() != Some(MAGIC) {
            return Err(Error::file(path, "does not begin with `GGUF`: it is not a GGUF file"));
        }
        match reader.u32("the version")? {
            2 | 3 => {}
            version if version.swap_bytes() < 256 => {
                return Err(Error::file(path, "is a GGUF file of a big-endian machine, which is not supported"));
            }
            version => return Err(Error::file(path, format!("GGUF version {version} is not supported (2 and 3 are)"))),
        }
        // A tensor has a name, its number of dimensions, one dimension, a type and an offset. A value has a key, a type and a byte.
        let n_tensors = reader.count("the number of tensors", 8 + 4 + 8 + 4 + 8)?;
        let n_values = reader.count("the number of metadata values", 8 + 4 + 1)?;
        let mut values = BTreeMap::new();
        for _ in 0..n_values {
            let key = reader.text("a metadata key")?;
            let value = reader.value(&key)?;
            if values.contains_key(&key) {
                return Err(Error::field(path, key, "is there twice"));
            }
            values.insert(key, value);
        }
        let metadata = GgufMetadata::new(path, values);
        if let Some(n) = metadata.size("split.count")?.filter(|n| *n > 1) {
            let reason = format!("{n} files hold this model: join them with `llama-gguf-split --merge`");
            return Err(metadata.bad("split.count", reason));
        }
        let mut tensors = Vec::new();
        for _ in 0..n_tensors {
            tensors.push(reader.tensor()?);
        }
        let alignment = metadata.size("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
            let reason = format!("expected a power of two up to {MAX_ALIGNMENT}, found {alignment}");
            return Err(metadata.bad("general.alignment", reason));
        }
        let data = reader.position().next_multiple_of(alignment);
        place(path, &mut tensors, data, alignment, n_bytes)?;
        Ok(Self { path: path.into(), content, metadata, tensors })
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `into` with a tensor's bytes from `offset` on.
    ///
    /// # Errors
    /// The reason of a failed read.
    pub fn read_at(&self, tensor: &GgufTensor, offset: u64, into: &mut [u8]) -> std::result::Result<(), String> {
        self.content.read_at(tensor.start + offset, into)
    }

    /// Reads a tensor's bytes as stored.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn bytes(&self, tensor: &GgufTensor) -> Result<Vec<u8>> {
        let mut stored = vec![0; tensor.n_bytes() as usize];
        self.read_at(tensor, 0, &mut stored).map_err(|e| Error::file(&self.path, e))?;
        Ok(stored)
    }

    /// Reads a tensor's values as f32, in the file's order.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn values(&self, tensor: &GgufTensor) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        dequantize(tensor.kind, &self.bytes(tensor)?, &mut values);
        Ok(values)
    }

    /// Returns the tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// Moves the tensors' places behind the header, which ends at `data`. Checks that they are inside the file and do not overlap.
fn place(path: &Path, tensors: &mut [GgufTensor], data: u64, alignment: u64, n_bytes: u64) -> Result<()> {
    for tensor in tensors.iter_mut() {
        let bad = |reason: String| Error::tensor(path, &tensor.name, reason);
        if !tensor.start.is_multiple_of(alignment) {
            return Err(bad(format!("its offset {} is no multiple of the alignment {alignment}", tensor.start)));
        }
        let start = data.checked_add(tensor.start);
        let end = start.and_then(|start| start.checked_add(tensor.n_bytes()));
        match (start, end) {
            (Some(start), Some(end)) if end <= n_bytes => tensor.start = start,
            _ => {
                let (offset, length) = (tensor.start, tensor.n_bytes());
                let reason = format!("{length} bytes at offset {offset} from byte {data}, the file has {n_bytes}");
                return Err(bad(format!("truncated file: {reason}")));
            }
        }
    }
    let mut order: Vec<&GgufTensor> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.start);
    for two in order.windows(2) {
        if two[0].start + two[0].n_bytes() > two[1].start {
            return Err(Error::tensor(path, &two[1].name, format!("overlaps tensor `{}`", two[0].name)));
        }
    }
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|two| two[0] == two[1]) {
        Some(two) => Err(Error::tensor(path, two[0], "is there twice")),
        None => Ok(()),
    }
}

/// Tells whether a path is a regular file that begins like a GGUF file, or whose name ends like one. Ollama's files have no ending.
pub fn is_gguf(path: &Path) -> bool {
    use std::io::Read;
    if !path.is_file() {
        return false;
    }
    let mut first = [0; 4];
    let begins = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == MAGIC;
    begins || path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
}
