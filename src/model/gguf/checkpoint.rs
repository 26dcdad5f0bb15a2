//! GGUF file as the content of a safetensors file, so that everything that reads a checkpoint reads it: names and rows in Hugging Face's
//! order, quantised blocks as f32. Values are computed when they are read.

use super::super::checkpoint::Checkpoint;
use super::super::computed_file::{ComputedFile, ComputedTensor};
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
    layout: ComputedFile,
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
        let (mut names, mut tensors) = (Vec::new(), Vec::new());
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
            let rows = architecture.row_order(&name, tensor.shape[0], heads);
            tensors.push(ConvertedTensor { source, rows, added, is_verbatim });
            names.push(name);
        }
        let layout = ComputedFile::new(names.iter().zip(&tensors).map(|(name, converted)| {
            let tensor = &file.tensors[converted.source];
            let dtype = if converted.is_verbatim { tensor.kind.name() } else { "F32" };
            let n_bytes = tensor.n_values.saturating_mul(converted.width(tensor.kind));
            ComputedTensor { name, dtype, shape: &tensor.shape, n_bytes }
        }));
        let layout = layout.ok_or_else(|| Error::file(file.path(), "has tensors of more than 2^64 bytes"))?;
        Ok(Self { file, layout, tensors })
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
        self.layout.n_bytes()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::result::Result<(), String> {
        self.layout.read_at(offset, into, &|tensor, at, into| self.read_tensor(&self.tensors[tensor], at, into))
    }
}

/// Returns the names of the quantised types of a file, such as `Q4_1, Q8_0`.
pub fn quantised_types(file: &GgufFile) -> Vec<&'static str> {
    let mut kinds: Vec<GgmlType> = file.tensors.iter().map(|t| t.kind).filter(|kind| kind.is_quantised()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds.into_iter().map(GgmlType::name).collect()
}
