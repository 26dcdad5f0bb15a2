//! Writing of a GGUF file, version 3, tensor by tensor.

use std::io::Write;
use std::path::Path;

use half::{bf16, f16};

use super::file::{DEFAULT_ALIGNMENT, MAGIC};
use super::ggml_type::GgmlType;
use super::metadata::MetaValue;
use super::quants::quantize_q8_0;
use crate::error::{Error, Result};
use crate::files::write_atomic;

/// Tensor to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensorToWrite {
    /// Name in the file.
    pub name: String,
    /// Dimensions as in Hugging Face's files, the longest stride first.
    pub shape: Vec<usize>,
    /// Type in the file: F32, F16, BF16 or Q8_0.
    pub kind: GgmlType,
}

impl GgufTensorToWrite {
    fn n_values(&self) -> usize {
        self.shape.iter().product()
    }

    fn n_bytes(&self) -> u64 {
        (self.n_values() / self.kind.block_len()) as u64 * self.kind.block_bytes() as u64
    }

    /// Encodes values; a piece has whole blocks. Fails with the first value that f16 cannot represent.
    fn encode(&self, values: &[f32], into: &mut Vec<u8>) -> Result<(), f32> {
        match self.kind {
            GgmlType::F16 => {
                if let Some(&v) = values.iter().find(|v| v.is_finite() && f16::from_f32(**v).is_infinite()) {
                    return Err(v);
                }
                into.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()));
            }
            GgmlType::Bf16 => into.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
            GgmlType::Q8_0 => quantize_q8_0(values, into),
            _ => into.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        }
        Ok(())
    }
}

fn put_text(into: &mut Vec<u8>, text: &str) {
    into.extend((text.len() as u64).to_le_bytes());
    into.extend(text.as_bytes());
}

/// Appends a list's type, the type of its elements, and their number.
fn put_list(into: &mut Vec<u8>, element: u32, n: usize) {
    into.extend(9_u32.to_le_bytes());
    into.extend(element.to_le_bytes());
    into.extend((n as u64).to_le_bytes());
}

/// Appends a value with its type.
fn put_value(into: &mut Vec<u8>, value: &MetaValue) {
    let mut put = |kind: u32, bytes: &[u8]| {
        into.extend(kind.to_le_bytes());
        into.extend(bytes);
    };
    match value {
        MetaValue::U32(n) => put(4, &n.to_le_bytes()),
        MetaValue::I128(n) => put(11, &(*n as i64).to_le_bytes()),
        MetaValue::F32(x) => put(6, &x.to_le_bytes()),
        MetaValue::F64(x) => put(12, &x.to_le_bytes()),
        MetaValue::Bool(b) => put(7, &[u8::from(*b)]),
        MetaValue::Text(text) => {
            put(8, &[]);
            put_text(into, text);
        }
        MetaValue::Texts(texts) => {
            put_list(into, 8, texts.len());
            texts.iter().for_each(|text| put_text(into, text));
        }
        MetaValue::Integers(all) => {
            put_list(into, 5, all.len());
            into.extend(all.iter().flat_map(|n| (*n as i32).to_le_bytes()));
        }
        MetaValue::Floats(all) => {
            put_list(into, 6, all.len());
            into.extend(all.iter().flat_map(|x| (*x as f32).to_le_bytes()));
        }
        MetaValue::Bools(all) => {
            put_list(into, 7, all.len());
            into.extend(all.iter().map(|b| u8::from(*b)));
        }
    }
}

/// Writes a file: it appears completely or not at all. `values` returns the values of the i-th tensor and is called for one at a time.
///
/// # Errors
/// [`Error::File`]; [`Error::Tensor`] for a value that does not fit, or a number of values that is not the shape's; errors of `values`.
pub fn write_gguf(
    path: &Path,
    metadata: &[(String, MetaValue)],
    tensors: &[GgufTensorToWrite],
    values: &mut dyn FnMut(usize) -> Result<Vec<f32>>,
) -> Result<()> {
    let mut header = MAGIC.to_vec();
    header.extend(3_u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut header, key);
        put_value(&mut header, value);
    }
    let mut offset = 0_u64;
    for tensor in tensors {
        put_text(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        header.extend(tensor.shape.iter().rev().flat_map(|n| (*n as u64).to_le_bytes()));
        header.extend(tensor.kind.number().to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset = (offset + tensor.n_bytes()).next_multiple_of(DEFAULT_ALIGNMENT);
    }
    write_atomic(path, |file| {
        let at = |e: std::io::Error| Error::file(path, e);
        pad(&mut header);
        file.write_all(&header).map_err(at)?;
        for (i, tensor) in tensors.iter().enumerate() {
            let bad = |reason: String| Error::tensor(path, &tensor.name, reason);
            let all = values(i)?;
            if all.len() != tensor.n_values() {
                return Err(bad(format!("expected {} values, was given {}", tensor.n_values(), all.len())));
            }
            let mut bytes = Vec::new();
            // A piece is a multiple of every block.
            for piece in all.chunks(1 << 16) {
                bytes.clear();
                let fits = tensor.encode(piece, &mut bytes);
                fits.map_err(|v| bad(format!("{v} does not fit float16: take --type bf16")))?;
                file.write_all(&bytes).map_err(at)?;
            }
            let rest = tensor.n_bytes().next_multiple_of(DEFAULT_ALIGNMENT) - tensor.n_bytes();
            file.write_all(&[0; DEFAULT_ALIGNMENT as usize][..rest as usize]).map_err(at)?;
        }
        Ok(())
    })
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
}
