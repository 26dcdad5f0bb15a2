//! Experts' weights in MXFP4 (OCP Microscaling Formats 1.0): codes of four bits (E2M1), the first in the low half of a byte, and for 32 of them
//! a power of two. gpt-oss is published so: `_convert_moe_packed_tensors` in transformers' `integrations/mxfp4.py`.

use half::bf16;
use safetensors::Dtype;

use super::super::checkpoint::Checkpoint;
use super::super::tensor_file::shape_text;
use crate::error::{Error, Result};

/// Ends of the names of a tensor's codes and of its scales.
const BLOCKS: &str = "_blocks";
const SCALES: &str = "_scales";

/// Codes that share a scale, and the bytes that hold them.
const GROUP: usize = 32;
const GROUP_BYTES: usize = GROUP / 2;

/// Values of the codes of E2M1 without sign.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Experts' weights of one projection, (experts, in, out). The file has codes (experts, out, in/32, 16) and scales (experts, out, in/32).
#[derive(Debug)]
pub struct Mxfp4Tensor {
    blocks: String,
    scales: String,
    experts: usize,
    n_out: usize,
    groups: usize,
}

/// Returns the name of the tensor whose codes are stored under this name.
pub fn tensor_name(blocks: &str) -> Option<&str> {
    blocks.strip_suffix(BLOCKS)
}

impl Mxfp4Tensor {
    /// Opens a tensor, given its name without the ends of the names in the files. Returns it with these names.
    ///
    /// # Errors
    /// [`Error::Tensor`] where codes or scales have another shape or type, or scales are missing.
    pub fn open(source: &Checkpoint, name: &str) -> Result<(Self, [String; 2])> {
        let names = [BLOCKS, SCALES].map(|end| format!("{name}{end}"));
        let stored = |name: &str| match source.stored(name) {
            Some((Dtype::U8, shape)) => Ok(shape),
            Some((dtype, _)) => Err(Error::tensor(source.dir(), name, format!("is {dtype:?}, and MXFP4 is U8"))),
            None => Err(Error::tensor(source.dir(), name, "is missing")),
        };
        let (blocks, scales) = (stored(&names[0])?, stored(&names[1])?);
        match (blocks, scales) {
            (&[experts, n_out, groups, GROUP_BYTES], found) if *found == [experts, n_out, groups] => {
                let [blocks, scales] = names.clone();
                Ok((Self { blocks, scales, experts, n_out, groups }, names))
            }
            _ => {
                let (blocks, scales) = (shape_text(blocks), shape_text(scales));
                let reason = format!("is {blocks}, with scales {scales}; (experts, rows, groups, 16) is expected");
                Err(Error::tensor(source.dir(), &names[0], reason))
            }
        }
    }

    /// Returns the shape of the weights.
    pub fn shape(&self) -> Vec<usize> {
        vec![self.experts, GROUP * self.groups, self.n_out]
    }

    /// Returns the bytes of an expert's weights in bf16.
    pub fn expert_bytes(&self) -> usize {
        2 * GROUP * self.groups * self.n_out
    }

    /// Reads the weights of an expert as bf16, (in, out). Every value is exact.
    ///
    /// # Errors
    /// Errors of the files.
    pub fn expert(&self, source: &Checkpoint, index: usize) -> Result<Vec<u8>> {
        let n_groups = self.n_out * self.groups;
        let (mut codes, mut scales) = (vec![0; n_groups * GROUP_BYTES], vec![0; n_groups]);
        source.read_range(&self.blocks, (index * codes.len()) as u64, &mut codes)?;
        source.read_range(&self.scales, (index * n_groups) as u64, &mut scales)?;
        let mut values = vec![0; self.expert_bytes()];
        for (group, (codes, &scale)) in codes.chunks_exact(GROUP_BYTES).zip(&scales).enumerate() {
            let (row, first) = (group / self.groups, group % self.groups * GROUP);
            let codes = codes.iter().flat_map(|byte| [byte & 0xF, byte >> 4]);
            for (i, code) in codes.enumerate() {
                let at = 2 * ((first + i) * self.n_out + row);
                values[at..at + 2].copy_from_slice(&bf16::from_f32(value(code, scale)).to_le_bytes());
            }
        }
        Ok(values)
    }
}

/// Returns the value of a code under a scale, whose exponent is biased by 127; 255 is no number.
fn value(code: u8, scale: u8) -> f32 {
    let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
    let power = if scale == u8::MAX { f32::NAN } else { 2_f32.powi(i32::from(scale) - 127) };
    sign * E2M1[usize::from(code & 7)] * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_values_of_the_standard() {
        // OCP Microscaling Formats 1.0, tables 5 and 7.
        for (code, scale, expected) in
            [(0, 127, 0.0), (1, 127, 0.5), (7, 127, 6.0), (10, 128, -2.0), (15, 120, -0.046_875), (3, 131, 24.0)]
        {
            assert_eq!(value(code, scale), expected, "{code} {scale}");
        }
        assert!(value(1, 255).is_nan());
        // The smallest scale's values are exact in bf16.
        assert_eq!(bf16::from_f32(value(1, 0)).to_f32(), 2_f32.powi(-64) * 2_f32.powi(-64));
    }
}
