//! One safetensors file, read tensor by tensor. Untrusted: its header is checked against its size before anything is believed,
//! and nothing larger than the file is allocated (f32 from 16 bits: than twice the tensor).

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

/// An opened safetensors file.
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

/// Contents of a file, wherever the file is: a browser has no paths to open.
pub trait TensorContent {
    /// Length.
    fn n_bytes(&self) -> u64;
    /// Fills `into` from `offset` on.
    ///
    /// # Errors
    /// Reason of a failed read; a range beyond the end is "truncated".
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

/// File on disk. It is not mapped, because a mapping counts as memory of ours, and a file cut short by another process would kill us.
struct OnDisk {
    file: Mutex<File>,
    n_bytes: u64,
    /// Time of the last write, as seen when the file was opened.
    modified: Option<SystemTime>,
}

impl OnDisk {
    /// Opens a file; one that takes its name later is another file, which is not read.
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
        // Parts of two versions of a file are no model.
        let now = file.metadata().map_err(|e| e.to_string())?;
        if now.len() != self.n_bytes || now.modified().ok() != self.modified {
            return Err("was changed after it was opened: start again".into());
        }
        read.map_err(|e| e.to_string())
    }
}

/// A tensor's place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Data type in the header. Only F32, F16 and BF16 can be read as numbers.
    pub dtype: Dtype,
    /// Dimensions in the header.
    pub shape: Vec<usize>,
    /// Bytes of the file.
    range: Range<u64>,
}

/// The crate's own limit, by which it refuses headers too.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const CHUNK_BYTES: usize = 1 << 18;

impl StoredTensor {
    /// Length in bytes.
    pub fn n_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether values can be read as f32.
    pub fn is_float(&self) -> bool {
        matches!(self.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }
}

/// `(576, 192)`.
pub fn shape_text(shape: &[usize]) -> String {
    format!("({})", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
}

impl TensorFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`Error::File`]: missing, truncated, too long, or not safetensors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let at = |e: std::io::Error| Error::file(path, e);
        if !std::fs::metadata(path).map_err(at)?.is_file() {
            return Err(Error::file(path, "is not a file"));
        }
        Self::from_content(path, Box::new(OnDisk::open(path).map_err(at)?))
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

    /// A tensor's bytes, a piece at a time.
    ///
    /// # Errors
    /// [`Error::File`]; whatever `each` says.
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

    /// A tensor's bytes as stored, little-endian.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn bytes(&self, stored: &StoredTensor) -> Result<Vec<u8>> {
        let n_bytes = usize::try_from(stored.n_bytes()).map_err(|e| Error::file(&self.path, e))?;
        let mut bytes = vec![0; n_bytes];
        self.read_at(stored.range.start, &mut bytes)?;
        Ok(bytes)
    }

    /// A tensor's values: exact for all three types.
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

    /// [`Error::Tensor`] unless the tensor is F32, F16 or BF16.
    pub(crate) fn check_float(&self, name: &str, stored: &StoredTensor) -> Result<()> {
        if stored.is_float() {
            return Ok(());
        }
        Err(Error::tensor(&self.path, name, format!("expected F32, F16 or BF16, file has {:?}", stored.dtype)))
    }

    /// Whether two tensors of this and another file have the same bytes.
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

/// Values of stored bytes as f32: exact for F32, F16 and BF16.
pub fn to_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let mut values = Vec::new();
    extend_f32(&mut values, dtype, bytes);
    values
}
