//! Weights in bitsandbytes' NF4: codes of four bits, the first in the high half of a byte, and scales (absmax) of blocks, which may be quantised too.

use half::{bf16, f16};
use safetensors::Dtype;
use serde::Deserialize;

use super::super::checkpoint::Checkpoint;
use super::super::tensor_file::to_f32;
use crate::error::{Error, Result};
use crate::kernels::storage::{DYNAMIC, NF4, NF4_BLOCK, NF4_GROUP, PackedWeight};

/// End of the name of the tensor that describes a quantised one.
const STATE: &str = ".quant_state.bitsandbytes__nf4";
/// End of the name of that tensor for a format that is not read.
const FP4_STATE: &str = ".quant_state.bitsandbytes__fp4";
/// Largest description, in bytes.
const MOST_STATE_BYTES: u64 = 1 << 16;

/// Description of a quantised tensor, JSON in the bytes of a tensor.
#[derive(Debug, Deserialize)]
struct QuantState {
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    #[serde(default)]
    nested_blocksize: usize,
    #[serde(default)]
    nested_offset: f32,
}

/// Tensor in NF4.
#[derive(Debug)]
pub struct Nf4Tensor {
    name: String,
    /// Dimensions of the tensor.
    pub shape: Vec<usize>,
    /// Type that the values had before they were quantised.
    pub dtype: Dtype,
    block: usize,
    /// Values of the codes.
    table: Vec<f32>,
    absmax: BlockScales,
}

/// Scales of blocks.
#[derive(Debug)]
enum BlockScales {
    /// Values, as they are.
    Plain(Vec<f32>),
    /// Codes in units of their groups' scales, plus an offset.
    Nested { codes: Vec<u8>, table: Vec<f32>, groups: Vec<f32>, group: usize, offset: f32 },
}

impl BlockScales {
    fn get(&self, block: usize) -> f32 {
        match self {
            Self::Plain(values) => values[block],
            Self::Nested { codes, table, groups, group, offset } => {
                table[codes[block] as usize] * groups[block / group] + offset
            }
        }
    }
}

/// Tells whether a tensor is quantised by bitsandbytes to four bits, given its name in the files.
pub fn is_quantised(source: &Checkpoint, name: &str) -> bool {
    [STATE, FP4_STATE].iter().any(|state| source.stored(&format!("{name}{state}")).is_some())
}

impl Nf4Tensor {
    /// Opens a tensor, given its name in the files. Returns it with the names of the tensors that belong to it.
    ///
    /// # Errors
    /// [`Error::Tensor`] where it is of another format, or parts of it are missing or of another size; [`Error::File`].
    pub fn open(source: &Checkpoint, name: &str) -> Result<(Self, Vec<String>)> {
        let bad = |reason: String| Error::tensor(source.dir(), name, reason);
        let mut used = Vec::new();
        let mut read = |end: &str, most: u64| {
            let name = format!("{name}{end}");
            let Some((dtype, shape)) = source.stored(&name) else { return Ok(None) };
            let n_bytes = shape.iter().product::<usize>() as u64 * dtype.bitsize() as u64 / 8;
            if n_bytes > most {
                return Err(bad(format!("{name} has {n_bytes} bytes")));
            }
            let mut bytes = Vec::new();
            source.read_stored(&name, |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })?;
            used.push(name);
            Ok(Some((dtype, bytes)))
        };
        if source.stored(&format!("{name}{FP4_STATE}")).is_some() {
            return Err(bad("is FP4 by bitsandbytes, and NF4 alone is read".into()));
        }
        let (_, state) = read(STATE, MOST_STATE_BYTES)?.ok_or_else(|| bad(format!("has no {STATE}")))?;
        let state: QuantState = serde_json::from_slice(&state).map_err(|e| bad(format!("{STATE}: {e}")))?;
        let dtype = match state.dtype.as_str() {
            "bfloat16" => Dtype::BF16,
            "float16" => Dtype::F16,
            "float32" => Dtype::F32,
            other => return Err(bad(format!("{STATE}: dtype {other}; bfloat16, float16 and float32 are read"))),
        };
        let n = state.shape.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim));
        let n = n.filter(|_| state.blocksize > 0).ok_or_else(|| bad(format!("{STATE}: no shape, or no blocks")))?;
        let (stored, shape) = source.stored(name).ok_or_else(|| bad("is missing".into()))?;
        if stored != Dtype::U8 || shape.iter().product::<usize>() != n.div_ceil(2) {
            return Err(bad(format!("has {} bytes of {stored:?} for {n} values", shape.iter().product::<usize>())));
        }
        let most = n as u64 * 4;
        let floats = |found: Option<(Dtype, Vec<u8>)>, what: &str, len: usize| match found {
            Some((Dtype::F32, bytes)) if bytes.len() == 4 * len => Ok(to_f32(Dtype::F32, &bytes)),
            Some((dtype, bytes)) => {
                Err(bad(format!("has {} bytes of {dtype:?} in {what}, and {len} F32 are expected", bytes.len())))
            }
            None => Err(bad(format!("has no {what}"))),
        };
        let table = floats(read(".quant_map", most.max(64))?, ".quant_map", 16)?;
        let n_blocks = n.div_ceil(state.blocksize);
        let absmax = match read(".absmax", most)? {
            Some((Dtype::U8, codes)) if codes.len() == n_blocks && state.nested_blocksize > 0 => BlockScales::Nested {
                codes,
                table: floats(read(".nested_quant_map", most.max(1024))?, ".nested_quant_map", 256)?,
                groups: floats(
                    read(".nested_absmax", most)?,
                    ".nested_absmax",
                    n_blocks.div_ceil(state.nested_blocksize),
                )?,
                group: state.nested_blocksize,
                offset: state.nested_offset,
            },
            found => BlockScales::Plain(floats(found, ".absmax", n_blocks)?),
        };
        let tensor = Self { name: name.into(), shape: state.shape, dtype, block: state.blocksize, table, absmax };
        Ok((tensor, used))
    }

    /// Appends the values of the codes in `bytes`, two in each, from the even element `first` on, in the tensor's type.
    pub fn decode(&self, first: usize, bytes: &[u8], into: &mut Vec<u8>) {
        for (i, &byte) in bytes.iter().enumerate() {
            for (element, code) in [(first + 2 * i, byte >> 4), (first + 2 * i + 1, byte & 0xF)] {
                // The last byte of an odd number of values has one.
                let scale =
                    if element / self.block < self.n_blocks() { self.absmax.get(element / self.block) } else { 0.0 };
                let value = self.table[code as usize] * scale;
                match self.dtype {
                    Dtype::BF16 => into.extend(bf16::from_f32(value).to_le_bytes()),
                    Dtype::F16 => into.extend(f16::from_f32(value).to_le_bytes()),
                    _ => into.extend(value.to_le_bytes()),
                }
            }
        }
    }

    fn n_blocks(&self) -> usize {
        self.shape.iter().product::<usize>().div_ceil(self.block)
    }

    /// Tells whether the tensor has the blocks, groups and tables of [`PackedWeight::Nf4`], which then holds it without a loss.
    pub fn is_packable(&self) -> bool {
        let BlockScales::Nested { table, group, .. } = &self.absmax else { return false };
        let is_same = |a: &[f32], b: &[f32]| a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits()));
        self.shape.len() == 2
            && self.shape[1].is_multiple_of(NF4_BLOCK)
            && (self.block, *group) == (NF4_BLOCK, NF4_GROUP)
            && is_same(&self.table, &NF4)
            && is_same(table, &*DYNAMIC)
    }

    /// Reads the codes and scales as they are, where the tensor is packable.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Tensor`] where it is not packable.
    pub fn packed(&self, source: &Checkpoint) -> Result<PackedWeight> {
        let BlockScales::Nested { codes, groups, offset, .. } = &self.absmax else {
            return Err(Error::tensor(source.dir(), &self.name, "has scales that are not quantised"));
        };
        let mut values = Vec::with_capacity(self.shape.iter().product());
        source.read_stored(&self.name, |bytes| {
            values.extend(bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xF]));
            Ok(())
        })?;
        Ok(PackedWeight::Nf4(values, codes.clone(), groups.clone(), *offset))
    }
}
