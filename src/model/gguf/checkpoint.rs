//! GGUF file as the content of a safetensors file, so that everything that reads a checkpoint reads it: names and rows in Hugging Face's
//! order, quantised blocks as f32. Values are computed when they are read.

use serde_json::{Map, json};

use super::super::checkpoint::Checkpoint;
use super::super::tensor_file::TensorContent;
use super::architecture::{GgufArchitecture, RopeRows};
use super::file::{GgufFile, GgufTensor};
use super::ggml_type::GgmlType;
use super::quants::dequantize;
use super::rope::ROPE_FREQS;
use crate::error::{Error, Result};

/// Tensor as the safetensors file would hold it.
struct ConvertedTensor {
    /// Index in [`GgufFile::tensors`].
    source: usize,
    /// Bytes in the safetensors file.
    start: u64,
    end: u64,
    /// Order of the rows in the GGUF file, where it is not Hugging Face's.
    rows: Option<RopeRows>,
    /// Number added to each value: −1 for Gemma's norms.
    added: f32,
    /// Whether the bytes are those of the GGUF file.
    is_verbatim: bool,
}

impl ConvertedTensor {
    /// Returns the bytes per element in the safetensors file.
    fn width(&self, kind: GgmlType) -> u64 {
        if self.is_verbatim { kind.block_bytes() as u64 } else { 4 }
    }
}

/// Content of the safetensors file.
struct ConvertedContent {
    file: GgufFile,
    /// Length and JSON, as at the beginning of a safetensors file.
    header: Vec<u8>,
    /// Tensors in the order of their bytes.
    tensors: Vec<ConvertedTensor>,
}

/// Makes a checkpoint of a file. `heads` is (H, K), query heads and key heads.
///
/// # Errors
/// [`Error::Tensor`] for a tensor that this architecture does not have.
pub fn open_checkpoint(file: GgufFile, architecture: GgufArchitecture, heads: (usize, usize)) -> Result<Checkpoint> {
    let path = file.path().display().to_string();
    let content = ConvertedContent::new(file, architecture, heads)?;
    Checkpoint::from_contents(vec![(path, Box::new(content))])
}

impl ConvertedContent {
    fn new(file: GgufFile, architecture: GgufArchitecture, heads: (usize, usize)) -> Result<Self> {
        let (mut entries, mut tensors, mut offset) = (Map::new(), Vec::new(), 0_u64);
        for (source, tensor) in file.tensors.iter().enumerate() {
            // The rotary table is a part of the configuration.
            if tensor.name == ROPE_FREQS {
                continue;
            }
            let name = architecture.hf_name(&tensor.name).ok_or_else(|| {
                let reason =
                    format!("is not a tensor of the architecture `{}` that is known here", architecture.name());
                Error::tensor(file.path(), &tensor.name, reason)
            })?;
            let added = if architecture.adds_one_to_norms() && name.ends_with("norm.weight") { -1.0 } else { 0.0 };
            let is_verbatim = !tensor.kind.is_quantised() && added == 0.0;
            let dtype = if is_verbatim { tensor.kind.name() } else { "F32" };
            let rows = architecture.row_order(&name, tensor.shape[0], heads);
            let mut converted = ConvertedTensor { source, start: offset, end: 0, rows, added, is_verbatim };
            // At most four times the values, which fits u64: see the reader of the table.
            offset += tensor.n_values * converted.width(tensor.kind);
            converted.end = offset;
            let entry =
                json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [converted.start, converted.end]});
            entries.insert(name, entry);
            tensors.push(converted);
        }
        let json = serde_json::Value::Object(entries).to_string().into_bytes();
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend(json);
        let shift = header.len() as u64;
        for tensor in &mut tensors {
            (tensor.start, tensor.end) = (tensor.start + shift, tensor.end + shift);
        }
        Ok(Self { file, header, tensors })
    }

    /// Fills `into` with the bytes of a tensor from element `first` on, in the GGUF file's order of elements.
    fn read_run(
        &self,
        converted: &ConvertedTensor,
        tensor: &GgufTensor,
        first: u64,
        into: &mut [u8],
    ) -> Result<(), String> {
        if converted.is_verbatim {
            return self.file.read_at(tensor, first * converted.width(tensor.kind), into);
        }
        let (length, bytes) = (tensor.kind.block_len() as u64, tensor.kind.block_bytes() as u64);
        let n_values = into.len() / 4;
        let blocks = first / length..(first + n_values as u64).div_ceil(length);
        let mut stored = vec![0; ((blocks.end - blocks.start) * bytes) as usize];
        self.file.read_at(tensor, blocks.start * bytes, &mut stored)?;
        let mut values = Vec::new();
        dequantize(tensor.kind, &stored, &mut values);
        let from = (first - blocks.start * length) as usize;
        for (value, place) in values[from..from + n_values].iter().zip(into.chunks_exact_mut(4)) {
            place.copy_from_slice(&(value + converted.added).to_le_bytes());
        }
        Ok(())
    }

    /// Fills `into` with the bytes of elements from `first` on, in Hugging Face's order.
    fn read_elements(&self, converted: &ConvertedTensor, first: u64, into: &mut [u8]) -> Result<(), String> {
        let tensor = &self.file.tensors[converted.source];
        let Some(rows) = converted.rows else { return self.read_run(converted, tensor, first, into) };
        let (columns, width) = (tensor.shape[1..].iter().product::<usize>(), converted.width(tensor.kind) as usize);
        let (mut at, mut into) = (first, into);
        while !into.is_empty() {
            let (row, column) = ((at / columns as u64) as usize, (at % columns as u64) as usize);
            let n_bytes = ((columns - column) * width).min(into.len());
            let (part, rest) = into.split_at_mut(n_bytes);
            self.read_run(converted, tensor, (rows.in_gguf(row) * columns + column) as u64, part)?;
            (at, into) = (at + (n_bytes / width) as u64, rest);
        }
        Ok(())
    }

    /// Fills `into` with a tensor's bytes from `offset` on, counted from the tensor's beginning.
    fn read_tensor(&self, converted: &ConvertedTensor, offset: u64, into: &mut [u8]) -> Result<(), String> {
        let width = converted.width(self.file.tensors[converted.source].kind);
        if offset.is_multiple_of(width) && (into.len() as u64).is_multiple_of(width) {
            return self.read_elements(converted, offset / width, into);
        }
        // A reader may begin or end inside an element.
        let (first, last) = (offset / width, (offset + into.len() as u64).div_ceil(width));
        let mut whole = vec![0; ((last - first) * width) as usize];
        self.read_elements(converted, first, &mut whole)?;
        into.copy_from_slice(&whole[(offset - first * width) as usize..][..into.len()]);
        Ok(())
    }
}

impl TensorContent for ConvertedContent {
    fn n_bytes(&self) -> u64 {
        self.tensors.last().map_or(self.header.len() as u64, |last| last.end)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::result::Result<(), String> {
        let (mut at, mut into) = (offset, into);
        while !into.is_empty() {
            if at < self.header.len() as u64 {
                let from = &self.header[at as usize..];
                let (part, rest) = into.split_at_mut(from.len().min(into.len()));
                part.copy_from_slice(&from[..part.len()]);
                (at, into) = (at + part.len() as u64, rest);
                continue;
            }
            let next = self.tensors.partition_point(|tensor| tensor.end <= at);
            let converted = self.tensors.get(next).ok_or("truncated")?;
            let length = (converted.end - at).min(into.len() as u64) as usize;
            let (part, rest) = into.split_at_mut(length);
            self.read_tensor(converted, at - converted.start, part)?;
            (at, into) = (at + length as u64, rest);
        }
        Ok(())
    }
}

/// Returns the names of the quantised types of a file, such as `Q4_1, Q8_0`.
pub fn quantised_types(file: &GgufFile) -> Vec<&'static str> {
    let mut kinds: Vec<GgmlType> = file.tensors.iter().map(|t| t.kind).filter(|kind| kind.is_quantised()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds.into_iter().map(GgmlType::name).collect()
}
