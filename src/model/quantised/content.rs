//! A checkpoint with quantised tensors as the content of one safetensors file of floats. Values are computed when they are read.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use safetensors::Dtype;

use super::super::checkpoint::Checkpoint;
use super::super::computed_file::{ComputedFile, ComputedTensor};
use super::super::tensor_file::TensorContent;
use super::fp8::Fp8Tensor;
use super::method::QuantMethod;
use super::mxfp4::{self, ExpertCache, Mxfp4Tensor};
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
    Mxfp4(Mxfp4Tensor),
}

/// Tensor as the file of floats would hold it.
#[derive(Debug)]
struct FloatTensor {
    name: String,
    source: Source,
    /// Bytes of a value; 1 where the bytes are the file's.
    width: u64,
}

/// Content of the file of floats.
#[derive(Debug)]
pub struct DequantisedContent {
    checkpoint: Checkpoint,
    layout: ComputedFile,
    /// Tensors in the order of their bytes.
    tensors: Vec<FloatTensor>,
    place: BTreeMap<String, usize>,
    experts: ExpertCache,
}

/// Computes which floats a checkpoint's tensors stand for.
///
/// # Errors
/// Those of [`super::open_quantised`].
pub fn dequantised(checkpoint: Checkpoint, method: &QuantMethod) -> Result<DequantisedContent> {
    let names: Vec<String> = checkpoint.names().map(String::from).collect();
    let (mut found, mut taken, mut made) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
    let kept = match method {
        QuantMethod::Mxfp4 { kept } => {
            mxfp4::kept_modules(kept).map_err(|reason| Error::file(checkpoint.dir(), reason))?
        }
        QuantMethod::Fp8 { .. } | QuantMethod::Bnb4bit => Vec::new(),
    };
    for name in &names {
        let Some((dtype, shape)) = checkpoint.stored(name) else { continue };
        match (method, dtype) {
            (QuantMethod::Fp8 { blocks }, Dtype::F8_E4M3) => {
                let (tensor, scales) = Fp8Tensor::open(&checkpoint, name, shape, *blocks)?;
                found.insert(name.clone(), (Dtype::BF16, shape.to_vec(), Source::Fp8(tensor)));
                taken.insert(scales);
            }
            (QuantMethod::Bnb4bit, _) if nf4::is_quantised(&checkpoint, name) => {
                let (tensor, parts) = Nf4Tensor::open(&checkpoint, name)?;
                found.insert(name.clone(), (tensor.dtype, tensor.shape.clone(), Source::Nf4(tensor)));
                taken.extend(parts);
            }
            (QuantMethod::Mxfp4 { .. }, _) => {
                let Some(float_name) = mxfp4::float_name(name) else { continue };
                let (tensor, parts) = Mxfp4Tensor::open(&checkpoint, float_name, &kept)?;
                found.insert(float_name.to_string(), (Dtype::BF16, tensor.shape.clone(), Source::Mxfp4(tensor)));
                taken.extend(parts);
                made.push(float_name.to_string());
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
    let left: Vec<String> = names.iter().filter(|name| !belongs(name)).cloned().chain(made).collect();
    DequantisedContent::new(checkpoint, &left, found)
}

impl DequantisedContent {
    fn new(
        checkpoint: Checkpoint,
        names: &[String],
        mut found: BTreeMap<String, (Dtype, Vec<usize>, Source)>,
    ) -> Result<Self> {
        let (mut entries, mut tensors, mut place) = (Vec::new(), Vec::new(), BTreeMap::new());
        for name in names {
            let stored = || checkpoint.stored(name).map(|(dtype, shape)| (dtype, shape.to_vec(), Source::Verbatim));
            let Some((dtype, shape, source)) = found.remove(name).or_else(stored) else { continue };
            let n = shape.iter().try_fold(1_u64, |n, &dim| n.checked_mul(dim as u64));
            let n_bits = n.and_then(|n| n.checked_mul(dtype.bitsize() as u64));
            let n_bytes = n_bits.ok_or_else(|| Error::tensor(checkpoint.dir(), name, "is too large"))? / 8;
            let width = if matches!(source, Source::Verbatim) { 1 } else { dtype.bitsize() as u64 / 8 };
            place.insert(name.clone(), tensors.len());
            entries.push((format!("{dtype:?}"), shape, n_bytes));
            tensors.push(FloatTensor { name: name.clone(), source, width });
        }
        let layout = ComputedFile::new(tensors.iter().zip(&entries).map(|(tensor, (dtype, shape, n_bytes))| {
            ComputedTensor { name: &tensor.name, dtype, shape, n_bytes: *n_bytes }
        }));
        let layout = layout.ok_or_else(|| Error::file(checkpoint.dir(), "has tensors of more than 2^64 bytes"))?;
        Ok(Self { checkpoint, layout, tensors, place, experts: ExpertCache::default() })
    }

    /// Returns the checkpoint with the quantised tensors.
    pub fn source(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Returns a tensor that is stored in NF4, given its name in the files.
    pub fn nf4(&self, name: &str) -> Option<&Nf4Tensor> {
        match &self.tensors[*self.place.get(name)?].source {
            Source::Nf4(tensor) => Some(tensor),
            Source::Verbatim | Source::Fp8(_) | Source::Mxfp4(_) => None,
        }
    }

    /// Makes the remark for the user.
    pub fn note(&self, dir: &str, method: &QuantMethod) -> String {
        let n = self.tensors.iter().filter(|tensor| !matches!(tensor.source, Source::Verbatim)).count();
        match method {
            QuantMethod::Fp8 { .. } => {
                format!("{dir}: {n} tensors in FP8 are read as bf16; --base-dtype int8 or nf4 takes less memory")
            }
            QuantMethod::Mxfp4 { .. } => format!("{dir}: {n} tensors of experts in MXFP4 are read as bf16"),
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
            Source::Mxfp4(experts) => {
                let elements = first as usize..last as usize;
                experts.decode(&self.checkpoint, &self.experts, elements, &mut values).map_err(told)?;
                first
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
        self.0.layout.n_bytes()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::result::Result<(), String> {
        let content = &self.0;
        content
            .layout
            .read_at(offset, into, &|tensor, at, into| content.read_tensor(&content.tensors[tensor], at, into))
    }
}
