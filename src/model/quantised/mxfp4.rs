//! Weights in MXFP4 (OCP Microscaling formats 1.0), as gpt-oss has its experts: codes of four bits (E2M1), the first of two in the low half of a
//! byte, and a power of two (E8M0, bias 127) for each block of 32 codes.

use std::cell::RefCell;
use std::ops::Range;

use fancy_regex::Regex;
use half::bf16;
use safetensors::Dtype;

use super::super::checkpoint::Checkpoint;
use super::super::tensor_file::shape_text;
use crate::error::{Error, Result};

/// Codes that share a scale.
const BLOCK: usize = 32;
/// Bytes of a block.
const BLOCK_BYTES: usize = BLOCK / 2;
/// Ends of the names of codes and scales.
const ENDS: [&str; 2] = ["_blocks", "_scales"];

/// Values of the codes.
const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Returns the value of a scale: 2^(code − 127). A code of 255, which stands for no number, gives infinity, as in transformers.
fn scale(code: u8) -> f32 {
    f32::from_bits(if code == 0 { 1 << 22 } else { u32::from(code) << 23 })
}

/// Experts' matrices in MXFP4: (E, rows, columns / 32, 16) and (E, rows, columns / 32), which stand for (E, columns, rows): transformers
/// transposes them (`convert_moe_packed_tensors`, integrations/mxfp4.py).
#[derive(Debug)]
pub struct Mxfp4Tensor {
    /// Name of the tensor of floats.
    name: String,
    /// Dimensions of the tensor of floats.
    pub shape: Vec<usize>,
    rows: usize,
    /// Blocks of a row.
    n_blocks: usize,
}

/// Codes and scales of the expert that was read last. A reader takes the floats in order, and each column of them comes from all of its expert's
/// rows.
#[derive(Debug, Default)]
pub struct ExpertCache(RefCell<Option<Expert>>);

#[derive(Debug)]
struct Expert {
    tensor: String,
    number: usize,
    blocks: Vec<u8>,
    scales: Vec<u8>,
}

/// Returns the name of the tensor of floats, given the name of its codes; `None` for other tensors.
pub fn float_name(name: &str) -> Option<&str> {
    name.strip_suffix(ENDS[0])
}

/// Compiles `modules_to_not_convert`, whose entries are ends of modules' names, or regular expressions at their beginning that end at a border
/// of the name's parts (`should_convert_module` of transformers 5.24, quantizers/quantizers_utils.py).
///
/// # Errors
/// The entry that is no regular expression.
pub fn kept_modules(entries: &[String]) -> std::result::Result<Vec<(String, Regex)>, String> {
    let compiled = |entry: &String| {
        let regex = Regex::new(&format!(r"^(?:{entry})(?:(?<=\.)|(?=\.|$))"));
        let regex = regex.map_err(|e| format!("modules_to_not_convert: {entry:?} is not a regular expression: {e}"))?;
        Ok((entry.clone(), regex))
    };
    entries.iter().map(compiled).collect()
}

impl Mxfp4Tensor {
    /// Opens a tensor, given the name of its floats. Returns it with the names of the tensors that it is made of. `kept`: modules that are
    /// not quantised by config.json.
    ///
    /// # Errors
    /// [`Error::Tensor`] where parts of it are missing, or of another type or shape, where the files have its floats, too, or its module is
    /// one of `kept`.
    pub fn open(source: &Checkpoint, name: &str, kept: &[(String, Regex)]) -> Result<(Self, [String; 2])> {
        let parts = ENDS.map(|end| format!("{name}{end}"));
        let [blocks, scales] = &parts;
        let bad = |reason: String| Error::tensor(source.dir(), blocks, reason);
        let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
        for (entry, regex) in kept {
            let matches =
                regex.is_match(module).map_err(|e| bad(format!("{entry:?} cannot be matched with {module}: {e}")))?;
            if matches || module.ends_with(entry.as_str()) {
                let list = "modules_to_not_convert of config.json";
                return Err(bad(format!("is in MXFP4, and {list} has {entry:?}, which is {module}")));
            }
        }
        if source.stored(name).is_some() {
            return Err(bad(format!("is in MXFP4, and {name} is in the files, too")));
        }
        let Some((scale_dtype, scale_shape)) = source.stored(scales) else {
            return Err(bad(format!("is in MXFP4, and has no {scales}")));
        };
        let (dtype, shape) = source.stored(blocks).ok_or_else(|| bad("is missing".into()))?;
        if dtype != Dtype::U8 || scale_dtype != Dtype::U8 {
            return Err(bad(format!("is {dtype:?} with scales of type {scale_dtype:?}; U8 and U8 are read")));
        }
        let &[experts, rows, n_blocks, BLOCK_BYTES] = shape else {
            let shape = shape_text(shape);
            return Err(bad(format!(
                "is MXFP4 with the shape {shape}; (experts, rows, blocks, {BLOCK_BYTES}) is read"
            )));
        };
        if scale_shape != [experts, rows, n_blocks] {
            return Err(bad(format!("is {}, with scales {}", shape_text(shape), shape_text(scale_shape))));
        }
        let columns = n_blocks.checked_mul(BLOCK).ok_or_else(|| bad("is too large".into()))?;
        Ok((Self { name: name.into(), shape: vec![experts, columns, rows], rows, n_blocks }, parts))
    }

    /// Appends values as bf16, which holds them without rounding.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn decode(
        &self,
        source: &Checkpoint,
        cache: &ExpertCache,
        elements: Range<usize>,
        into: &mut Vec<u8>,
    ) -> Result<()> {
        let (rows, of_expert) = (self.rows, self.rows * self.n_blocks * BLOCK);
        let mut at = elements.start;
        while at < elements.end {
            let number = at / of_expert;
            let cached = &mut *cache.0.borrow_mut();
            let expert = match cached {
                Some(expert) if expert.number == number && expert.tensor == self.name => expert,
                _ => cached.insert(self.read(source, number)?),
            };
            // The rows of one column.
            let (column, row) = (at % of_expert / rows, at % rows);
            let n = (rows - row).min(elements.end - at);
            let shift = if column.is_multiple_of(2) { 0 } else { 4 };
            for row in row..row + n {
                let block = row * self.n_blocks + column / BLOCK;
                let code = expert.blocks[block * BLOCK_BYTES + column % BLOCK / 2] >> shift & 0xF;
                let value = E2M1[usize::from(code)] * scale(expert.scales[block]);
                into.extend(bf16::from_f32(value).to_le_bytes());
            }
            at += n;
        }
        Ok(())
    }

    /// Reads an expert's codes and scales.
    fn read(&self, source: &Checkpoint, number: usize) -> Result<Expert> {
        let n_blocks = self.rows * self.n_blocks;
        let read = |end: &str, n_bytes: usize| {
            let mut bytes = vec![0; n_bytes];
            source.read_range(&format!("{}{end}", self.name), (number * n_bytes) as u64, &mut bytes)?;
            Ok(bytes)
        };
        let [blocks, scales] = [read(ENDS[0], n_blocks * BLOCK_BYTES)?, read(ENDS[1], n_blocks)?];
        Ok(Expert { tensor: self.name.clone(), number, blocks, scales })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn scales_are_powers_of_two() {
        let exact = |exponent: i32| 2_f64.powi(exponent) as f32;
        for (code, exponent) in [(127, 0), (126, -1), (140, 13), (254, 127), (1, -126), (0, -127)] {
            assert_eq!(scale(code), exact(exponent), "{code}");
        }
        assert!(scale(255).is_infinite());
        // The smallest and the largest value are not rounded.
        assert_eq!(bf16::from_f32(0.5 * scale(0)).to_f64(), 2_f64.powi(-128));
        assert_eq!(bf16::from_f32(6.0 * scale(252)).to_f64(), 6.0 * 2_f64.powi(125));
    }

    #[test]
    fn kept_modules_are_found_as_in_transformers() {
        let entries = ["model.layers.*.self_attn", "model.layers.1", "lm_head", r"model\.layers\.\d+\.mlp\.router"];
        let kept = kept_modules(&entries.map(String::from)).unwrap();
        let is_kept =
            |module: &str| kept.iter().any(|(entry, regex)| module.ends_with(entry) || regex.is_match(module).unwrap());
        for module in ["model.layers.3.self_attn", "model.layers.3.self_attn.q_proj", "model.layers.1.mlp", "lm_head"] {
            assert!(is_kept(module), "{module}");
        }
        for module in ["model.layers.3.mlp.experts", "model.layers.11.mlp.experts", "model.layers.0.mlp.routers"] {
            assert!(!is_kept(module), "{module}");
        }
        assert!(kept_modules(&["(".into()]).unwrap_err().contains("\"(\""));
    }
}
