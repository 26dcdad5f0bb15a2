//! One safetensors file, read tensor by tensor. The file is untrusted: its header is checked against its size first, and no allocation is
//! larger than the file (than twice the tensor, when 16-bit values become f32).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use half::{bf16, f16};
use safetensors::Dtype;

use super::tensor_header::read_header;
use crate::error::{Error, Result};

/// Opened safetensors file.
pub struct TensorFile {
    path: PathBuf,
    content: Box<dyn TensorContent>,
    tensors: BTreeMap<String, StoredTensor>,
}

impl std::fmt::Debug for TensorFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorFile").field("path", &self.path).field("tensors", &self.tensors).finish_non_exhaustive()
    }
}

/// Contents of a file, for files with and without a path (a browser has no paths to open).
pub trait TensorContent {
    /// Returns the length in bytes.
    fn n_bytes(&self) -> u64;
    /// Fills `into` with the bytes from `offset` on.
    ///
    /// # Errors
    /// The reason of a failed read; "truncated" for a range beyond the end.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::result::Result<(), String>;
}

impl TensorContent for Vec<u8> {
    fn n_bytes(&self) -> u64 {
        self.len() as u64
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::result::Result<(), String> {
        let from = usize::try_from(offset).ok().and_then(|o| self.get(o..)?.get(..into.len()));
        into.copy_from_slice(from.ok_or("truncated")?);
        Ok(())
    }
}

/// File on disk. It is not memory-mapped: a mapping would count as this process's memory, and access to a file that another process has
/// truncated would kill it.
struct OnDisk {
    file: Mutex<File>,
    n_bytes: u64,
    /// Time of the last write when the file was opened.
    modified: Option<SystemTime>,
}

impl OnDisk {
    /// Opens a file. A file that later takes the same name is a different file and is not read.
    fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        Ok(Self { file: Mutex::new(file), n_bytes: meta.len(), modified: meta.modified().ok() })
    }
}

impl TensorContent for OnDisk {
    fn n_bytes(&self) -> u64 {
        self.n_bytes
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::result::Result<(), String> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(into));
        // A mixture of two versions of a file must not pass for a model.
        let now = file.metadata().map_err(|e| e.to_string())?;
        if now.len() != self.n_bytes || now.modified().ok() != self.modified {
            return Err("was changed after it was opened: start again".into());
        }
        read.map_err(|e| e.to_string())
    }
}

/// Opens a regular file.
///
/// # Errors
/// [`Error::File`].
pub(super) fn open_content(path: &Path) -> Result<Box<dyn TensorContent>> {
    let at = |e: std::io::Error| Error::file(path, e);
    if !std::fs::metadata(path).map_err(at)?.is_file() {
        return Err(Error::file(path, "is not a file"));
    }
    Ok(Box::new(OnDisk::open(path).map_err(at)?))
}

/// Data type, shape and place of a tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Data type in the header. Only F32, F16 and BF16 can be read as numbers.
    pub dtype: Dtype,
    /// Dimensions in the header.
    pub shape: Vec<usize>,
    /// Byte range in the file.
    range: Range<u64>,
}

/// Largest header, in bytes. The safetensors crate has the same limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const CHUNK_BYTES: usize = 1 << 18;

impl StoredTensor {
    /// Returns the length in bytes.
    pub fn n_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Returns whether the values can be read as f32.
    pub fn is_float(&self) -> bool {
        matches!(self.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }
}

/// Formats a shape as `(576, 192)`.
pub fn shape_text(shape: &[usize]) -> String {
    format!("({})", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
}

impl TensorFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`Error::File`] where the file is missing, truncated, too long, or not safetensors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_content(path, open_content(path)?)
    }

    /// Reads the header of a file's content; `path` is for messages.
    ///
    /// # Errors
    /// Fails like [`TensorFile::open`].
    pub fn from_content(path: impl AsRef<Path>, content: Box<dyn TensorContent>) -> Result<Self> {
        let (path, n_bytes) = (path.as_ref(), content.n_bytes());
        let mut file = Self { path: path.into(), content, tensors: BTreeMap::new() };
        let bad = |reason: String| Error::file(path, reason);
        if n_bytes < 8 {
            return Err(bad(format!("truncated or no safetensors file: it has {n_bytes} bytes")));
        }
        let mut header_len = [0; 8];
        file.read_at(0, &mut header_len)?;
        let header_len = u64::from_le_bytes(header_len);
        if header_len > MAX_HEADER_BYTES || header_len > n_bytes - 8 {
            let reason = format!("a header of {header_len} bytes in a file of {n_bytes}");
            return Err(bad(format!("truncated or no safetensors file: {reason}")));
        }
        let mut header = vec![0; header_len as usize];
        file.read_at(8, &mut header)?;
        let (tensors, data_len) = read_header(&header).map_err(|e| bad(format!("no safetensors header: {e}")))?;
        let start = 8 + header_len;
        let end = start.saturating_add(data_len);
        if end > n_bytes {
            return Err(bad(format!("truncated: its header promises {end} bytes, it has {n_bytes}")));
        }
        if end < n_bytes {
            return Err(bad(format!("{} bytes follow its last tensor", n_bytes - end)));
        }
        for (name, entry) in tensors {
            let range = start + entry.range().start..start + entry.range().end;
            file.tensors.insert(name, StoredTensor { dtype: entry.dtype, shape: entry.shape, range });
        }
        Ok(file)
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, StoredTensor> {
        &self.tensors
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.content.read_at(offset, into).map_err(|e| Error::file(&self.path, e))
    }

    /// Passes a tensor's bytes to `each`, one piece at a time.
    ///
    /// # Errors
    /// [`Error::File`]; errors of `each`.
    pub fn pieces(&self, stored: &StoredTensor, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut piece = vec![0; stored.n_bytes().min(CHUNK_BYTES as u64) as usize];
        let mut at = stored.range.start;
        while at < stored.range.end {
            let n = (stored.range.end - at).min(piece.len() as u64) as usize;
            self.read_at(at, &mut piece[..n])?;
            each(&piece[..n])?;
            at += n as u64;
        }
        Ok(())
    }

    /// Fills `into` with a tensor's bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::Tensor`] where the tensor ends before; [`Error::File`].
    pub fn read_range(&self, name: &str, stored: &StoredTensor, offset: u64, into: &mut [u8]) -> Result<()> {
        if offset.checked_add(into.len() as u64).is_none_or(|end| end > stored.n_bytes()) {
            return Err(Error::tensor(&self.path, name, format!("has {} bytes, and more are read", stored.n_bytes())));
        }
        self.read_at(stored.range.start + offset, into)
    }

    /// Reads a tensor's bytes as stored, little-endian.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn bytes(&self, stored: &StoredTensor) -> Result<Vec<u8>> {
        let n_bytes = usize::try_from(stored.n_bytes()).map_err(|e| Error::file(&self.path, e))?;
        let mut bytes = vec![0; n_bytes];
        self.read_at(stored.range.start, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a tensor's values as f32, without rounding: F32, F16 and BF16 are exact.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Tensor`] for another type.
    pub fn values(&self, name: &str, stored: &StoredTensor) -> Result<Vec<f32>> {
        self.check_float(name, stored)?;
        let width = if stored.dtype == Dtype::F32 { 4 } else { 2 };
        let mut values = Vec::with_capacity((stored.n_bytes() / width) as usize);
        self.pieces(stored, |bytes| {
            extend_f32(&mut values, stored.dtype, bytes);
            Ok(())
        })?;
        Ok(values)
    }

    /// Fails with [`Error::Tensor`] unless the tensor is F32, F16 or BF16.
    pub(crate) fn check_float(&self, name: &str, stored: &StoredTensor) -> Result<()> {
        if stored.is_float() {
            return Ok(());
        }
        Err(Error::tensor(&self.path, name, format!("expected F32, F16 or BF16, file has {:?}", stored.dtype)))
    }

    /// Returns whether two tensors, of this file and another one, have the same bytes.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn same(&self, a: &StoredTensor, other: &Self, b: &StoredTensor) -> Result<bool> {
        if a.dtype != b.dtype || a.shape != b.shape || a.n_bytes() != b.n_bytes() {
            return Ok(false);
        }
        let (mut at, mut equal) = (b.range.start, true);
        let mut theirs = vec![0; CHUNK_BYTES];
        self.pieces(a, |ours| {
            let theirs = &mut theirs[..ours.len()];
            other.read_at(at, theirs)?;
            at += ours.len() as u64;
            equal &= *ours == *theirs;
            Ok(())
        })?;
        Ok(equal)
    }
}

fn extend_f32(values: &mut Vec<f32>, dtype: Dtype, bytes: &[u8]) {
    let halves = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        Dtype::F16 => values.extend(halves.map(|b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => values.extend(halves.map(|b| bf16::from_le_bytes(b).to_f32())),
        _ => values.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
    }
}

/// Converts stored bytes to f32: exact for F32, F16 and BF16.
pub fn to_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let mut values = Vec::new();
    extend_f32(&mut values, dtype, bytes);
    values
}
