//! Weights in FP8 (E4M3: one sign bit, four exponent bits, three mantissa bits, no infinities) with scales of tensors, rows or blocks.

use std::sync::LazyLock;

use half::bf16;
use safetensors::Dtype;

use super::super::checkpoint::Checkpoint;
use super::super::tensor_file::{shape_text, to_f32};
use crate::error::{Error, Result};

/// Ends of the names of scales: a value is the code times the scale. `weight_scale_inv` is DeepSeek's name for the same.
const SCALES: [&str; 2] = ["_scale_inv", "_scale"];

/// Tensor in FP8.
#[derive(Debug)]
pub struct Fp8Tensor {
    /// Columns of the matrix.
    columns: usize,
    /// Rows and columns that share a scale.
    block: [usize; 2],
    /// Scales (rows / block rows, columns / block columns).
    scales: Vec<f32>,
    /// Columns of `scales`.
    scale_columns: usize,
}

impl Fp8Tensor {
    /// Opens a tensor, given its name in the files. Returns it with the name of its scales. `blocks` are the rows and columns of a block by config.json.
    ///
    /// # Errors
    /// [`Error::Tensor`] where it has no scales, or they have a shape that does not divide it.
    pub fn open(
        source: &Checkpoint,
        name: &str,
        shape: &[usize],
        blocks: Option<[usize; 2]>,
    ) -> Result<(Self, String)> {
        let bad = |reason: String| Error::tensor(source.dir(), name, reason);
        let names = SCALES.map(|end| format!("{name}{end}"));
        let Some(scale) = names.iter().find(|scale| source.stored(scale).is_some()) else {
            return Err(bad(format!("is FP8, and has no {}", names.join(" or "))));
        };
        let &[rows, columns] = shape else { return Err(bad(format!("is FP8 with the shape {}", shape_text(shape)))) };
        let (dtype, found) = source.stored(scale).unwrap_or((Dtype::F32, &[]));
        if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(bad(format!("has scales of type {dtype:?}; F32, F16 and BF16 are read")));
        }
        // A scale of the tensor, of each row, or of each block, of which those at the edges may be smaller.
        let block = match (found, blocks) {
            ([] | [1] | [1, 1], _) => [rows, columns],
            (&[n] | &[n, 1], _) if n == rows => [1, columns],
            (&[n, m], Some([height, width])) if [n, m] == [rows.div_ceil(height), columns.div_ceil(width)] => {
                [height, width]
            }
            _ => {
                let (shape, found) = (shape_text(shape), shape_text(found));
                let size = blocks.map_or("no weight_block_size".into(), |block| format!("weight_block_size {block:?}"));
                return Err(bad(format!("is {shape}, with scales {found} and {size}")));
            }
        };
        let mut bytes = Vec::new();
        source.read_stored(scale, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        let (scales, scale_columns) = (to_f32(dtype, &bytes), columns.div_ceil(block[1].max(1)));
        Ok((Self { columns, block: block.map(|n| n.max(1)), scales, scale_columns }, scale.clone()))
    }

    /// Appends the values of codes from element `first` on as bf16, rounded to the nearest.
    pub fn decode(&self, first: usize, codes: &[u8], into: &mut Vec<u8>) {
        for (i, &code) in codes.iter().enumerate() {
            let (row, column) = ((first + i) / self.columns, (first + i) % self.columns);
            let scale = self.scales[row / self.block[0] * self.scale_columns + column / self.block[1]];
            into.extend(bf16::from_f32(E4M3[code as usize] * scale).to_le_bytes());
        }
    }
}

/// Values of the codes.
static E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| {
    std::array::from_fn(|code| {
        let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
        let (exponent, mantissa) = (code >> 3 & 0xF, (code & 7) as f32);
        sign * match (exponent, code & 7) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa / 8.0 * 2_f32.powi(-6),
            (exponent, _) => (1.0 + mantissa / 8.0) * 2_f32.powi(exponent as i32 - 7),
        }
    })
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_values_of_the_standard() {
        // OCP 8-bit floating point specification 1.0, table 2.
        for (code, value) in
            [(0x7E, 448.0), (0x08, 0.015_625), (0x07, 0.013_671_875), (0x01, 0.001_953_125), (0x38, 1.0), (0xB8, -1.0)]
        {
            assert_eq!(E4M3[code], value, "{code:#x}");
        }
        assert!(E4M3[0x7F].is_nan() && E4M3[0xFF].is_nan() && E4M3[0x80] == 0.0);
    }
}
