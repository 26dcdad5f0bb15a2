//! A checkpoint with quantised tensors as the content of one safetensors file of floats. Values are computed when they are read.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::super::checkpoint::Checkpoint;
use super::super::tensor_file::TensorContent;
use super::fp8::Fp8Tensor;
use super::method::QuantMethod;
use super::nf4::{self, Nf4Tensor};
use crate::error::{Error, Result};

/// Tensors that belong to a quantised one and are not used: scales of activations, which stay floats here.
const UNUSED: [&str; 3] = ["input_scale", "activation_scale", "input_scale_ub"];

/// Source of a tensor's values.
#[derive(Debug)]
enum Source {
    /// The file's bytes.
    Verbatim,
    Fp8(Fp8Tensor),
    Nf4(Nf4Tensor),
}

/// Tensor as the file of floats would hold it.
#[derive(Debug)]
struct FloatTensor {
    name: String,
    source: Source,
    /// Bytes of a value; 1 where the bytes are the file's.
    width: u64,
    /// Bytes in the file of floats.
    start: u64,
    end: u64,
}

/// Content of the file of floats.
#[derive(Debug)]
pub struct DequantisedContent {
    checkpoint: Checkpoint,
    /// Length and JSON, as at the beginning of a safetensors file.
    header: Vec<u8>,
    /// Tensors in the order of their bytes.
    tensors: Vec<FloatTensor>,
    place: BTreeMap<String, usize>,
}

/// Computes which floats a checkpoint's tensors stand for.
///
/// # Errors
/// Those of [`super::open_quantised`].
pub fn dequantised(checkpoint: Checkpoint, method: QuantMethod) -> Result<DequantisedContent> {
    let names: Vec<String> = checkpoint.names().map(String::from).collect();
    let (mut found, mut taken) = (BTreeMap::new(), BTreeSet::new());
    for name in &names {
        let Some((dtype, shape)) = checkpoint.stored(name) else { continue };
        match (method, dtype) {
            (QuantMethod::Fp8 { blocks }, Dtype::F8_E4M3) => {
                let (tensor, scales) = Fp8Tensor::open(&checkpoint, name, shape, blocks)?;
                found.insert(name.clone(), (Dtype::BF16, shape.to_vec(), Source::Fp8(tensor)));
                taken.insert(scales);
            }
            (QuantMethod::Bnb4bit, _) if nf4::is_quantised(&checkpoint, name) => {
                let (tensor, parts) = Nf4Tensor::open(&checkpoint, name)?;
                found.insert(name.clone(), (tensor.dtype, tensor.shape.clone(), Source::Nf4(tensor)));
                taken.extend(parts);
            }
            _ => {}
        }
    }
    if found.is_empty() {
        let reason =
            "quantization_config says that weights are quantised, and no tensor is: take it out of config.json";
        return Err(Error::file(checkpoint.dir(), reason));
    }
    let belongs = |name: &str| {
        let module = name.rsplit_once('.');
        taken.contains(name)
            || module
                .is_some_and(|(module, last)| UNUSED.contains(&last) && found.contains_key(&format!("{module}.weight")))
    };
    let left: Vec<String> = names.into_iter().filter(|name| !belongs(name)).collect();
    DequantisedContent::new(checkpoint, &left, found)
}

impl DequantisedContent {
    fn new(
        checkpoint: Checkpoint,
        names: &[String],
        mut found: BTreeMap<String, (Dtype, Vec<usize>, Source)>,
    ) -> Result<Self> {
        let (mut entries, mut tensors, mut place, mut offset) = (Map::new(), Vec::new(), BTreeMap::new(), 0_u64);
        for name in names {
            let stored = || checkpoint.stored(name).map(|(dtype, shape)| (dtype, shape.to_vec(), Source::Verbatim));
            let Some((dtype, shape, source)) = found.remove(name).or_else(stored) else { continue };
            let n = shape.iter().try_fold(1_u64, |n, &dim| n.checked_mul(dim as u64));
            let n_bytes = n.and_then(|n| n.checked_mul(dtype.bitsize() as u64)).map(|bits| bits / 8);
            let end = n_bytes.and_then(|n| offset.checked_add(n));
            let end = end.ok_or_else(|| Error::tensor(checkpoint.dir(), name, "is too large"))?;
            let dtype_name = serde_json::to_value(dtype).map_err(|e| Error::file(checkpoint.dir(), e))?;
            entries.insert(name.clone(), json!({"dtype": dtype_name, "shape": shape, "data_offsets": [offset, end]}));
            let width = if matches!(source, Source::Verbatim) { 1 } else { dtype.bitsize() as u64 / 8 };
            place.insert(name.clone(), tensors.len());
            tensors.push(FloatTensor { name: name.clone(), source, width, start: offset, end });
            offset = end;
        }
        let json = Value::Object(entries).to_string().into_bytes();
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend(json);
        let shift = header.len() as u64;
        for tensor in &mut tensors {
            (tensor.start, tensor.end) = (tensor.start + shift, tensor.end + shift);
        }
        Ok(Self { checkpoint, header, tensors, place })
    }

    /// Returns the checkpoint with the quantised tensors.
    pub fn source(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Returns a tensor that is stored in NF4, given its name in the files.
    pub fn nf4(&self, name: &str) -> Option<&Nf4Tensor> {
        match &self.tensors[*self.place.get(name)?].source {
            Source::Nf4(tensor) => Some(tensor),
            Source::Verbatim | Source::Fp8(_) => None,
        }
    }

    /// Makes the remark for the user.
    pub fn note(&self, dir: &str, method: QuantMethod) -> String {
        let n = self.tensors.iter().filter(|tensor| !matches!(tensor.source, Source::Verbatim)).count();
        match method {
            QuantMethod::Fp8 { .. } => {
                format!("{dir}: {n} tensors in FP8 are read as bf16; --base-dtype int8 or nf4 takes less memory")
            }
            QuantMethod::Bnb4bit => {
                let packable =
                    self.tensors.iter().filter(|t| matches!(&t.source, Source::Nf4(t) if t.is_packable())).count();
                format!(
                    "{dir}: {n} tensors in bitsandbytes' NF4, of which {packable} are held as they are (--base-dtype auto, nf4)"
                )
            }
        }
    }

    /// Fills `into` with a tensor's bytes from `offset` on, counted from the tensor's beginning.
    fn read_tensor(&self, tensor: &FloatTensor, offset: u64, into: &mut [u8]) -> Result<(), String> {
        let told = |error: Error| error.to_string();
        if matches!(tensor.source, Source::Verbatim) {
            return self.checkpoint.read_range(&tensor.name, offset, into).map_err(told);
        }
        // A reader may begin or end inside a value, and a byte of NF4 has two values.
        let (first, last) = (offset / tensor.width, (offset + into.len() as u64).div_ceil(tensor.width));
        let mut values = Vec::new();
        let first = match &tensor.source {
            Source::Verbatim => first,
            Source::Fp8(fp8) => {
                let mut codes = vec![0; (last - first) as usize];
                self.checkpoint.read_range(&tensor.name, first, &mut codes).map_err(told)?;
                fp8.decode(first as usize, &codes, &mut values);
                first
            }
            Source::Nf4(nf4) => {
                let bytes = first / 2..last.div_ceil(2);
                let mut codes = vec![0; (bytes.end - bytes.start) as usize];
                self.checkpoint.read_range(&tensor.name, bytes.start, &mut codes).map_err(told)?;
                nf4.decode(2 * bytes.start as usize, &codes, &mut values);
                2 * bytes.start
            }
        };
        into.copy_from_slice(&values[(offset - first * tensor.width) as usize..][..into.len()]);
        Ok(())
    }
}

/// Content that a checkpoint's file and its quantised tensors share.
#[derive(Debug)]
pub struct Shared(pub Rc<DequantisedContent>);

impl TensorContent for Shared {
    fn n_bytes(&self) -> u64 {
        self.0.tensors.last().map_or(self.0.header.len() as u64, |last| last.end)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::result::Result<(), String> {
        let (content, mut at, mut into) = (&self.0, offset, into);
        while !into.is_empty() {
            if at < content.header.len() as u64 {
                let from = &content.header[at as usize..];
                let (part, rest) = into.split_at_mut(from.len().min(into.len()));
                part.copy_from_slice(&from[..part.len()]);
                (at, into) = (at + part.len() as u64, rest);
                continue;
            }
            let next = content.tensors.partition_point(|tensor| tensor.end <= at);
            let tensor = content.tensors.get(next).ok_or("truncated")?;
            let length = (tensor.end - at).min(into.len() as u64) as usize;
            let (part, rest) = into.split_at_mut(length);
            content.read_tensor(tensor, at - tensor.start, part)?;
            (at, into) = (at + length as u64, rest);
        }
        Ok(())
    }
}
