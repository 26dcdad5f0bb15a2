//! Storage formats of weights: f32, bf16, int8 with a scale per row, and 4-bit NormalFloat (NF4). `shaders/shared/weight*.wgsl` read this
//! layout. Weights are quantised on the host, as bitsandbytes 0.50 does.

use std::sync::LazyLock;

use crate::gpu::Shader;

/// Storage format of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormat {
    /// f32, one word per value.
    F32,
    /// bf16, two values per word.
    Bf16,
    /// int8, four values per word, and a scale per row: the layout of LLM.int8 (arXiv 2208.07339), without its outlier columns.
    Int8,
    /// NF4 with double quantisation, eight values per word, as in QLoRA (arXiv 2305.14314).
    Nf4,
}

/// Words before int8's codes: the start of the scales, and padding.
const INT8_HEAD: usize = 4;
/// Words before NF4's codes: starts of block scales and of group scales, offset, phase, and both tables.
const NF4_HEAD: usize = 4 + 16 + 256;
/// Bytes of NF4's tables where kernels look them up in workgroup memory: 16 values and 256 scales.
pub(super) const NF4_TABLE_BYTES: usize = (16 + 256) * size_of::<f32>();
/// Values per NF4 block, which share a scale.
pub const NF4_BLOCK: usize = 64;
/// Blocks per NF4 group. A group's block scales are quantised with one scale.
pub const NF4_GROUP: usize = 256;

impl WeightFormat {
    /// All storage formats.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Nf4];

    /// Returns the largest number of four-byte words that a matrix (rows, cols), or a part of its rows, needs.
    pub fn words(self, rows: usize, cols: usize) -> usize {
        let n = rows * cols;
        match self {
            Self::F32 => n,
            Self::Bf16 => n.div_ceil(2),
            Self::Int8 => INT8_HEAD + n.div_ceil(4) + rows,
            // One group more, because a part of the rows may begin inside a group.
            Self::Nf4 => {
                let blocks = n.div_ceil(NF4_BLOCK);
                NF4_HEAD + n.div_ceil(8) + blocks.div_ceil(4) + blocks.div_ceil(NF4_GROUP) + 1
            }
        }
    }

    /// Returns the number that columns must be a multiple of, so that rows begin at words and at blocks.
    pub fn columns(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Int8 => 8,
            Self::Nf4 => NF4_BLOCK,
        }
    }

    /// Returns whether the format consists of codes and scales. Kernels read such formats, but do not write them.
    pub fn is_quantised(self) -> bool {
        matches!(self, Self::Int8 | Self::Nf4)
    }

    /// Makes a shader import the module for this format.
    pub fn select(self, shader: Shader) -> Shader {
        match self {
            Self::F32 => shader,
            Self::Bf16 => shader.substitute("shared/weight", "shared/weight_bf16"),
            Self::Int8 => shader.substitute("shared/weight", "shared/weight_int8"),
            Self::Nf4 => shader.substitute("shared/weight", "shared/weight_nf4"),
        }
    }

    /// Dequantises a matrix (rows, cols), or a part of its rows, from its words.
    pub fn unpack(self, words: &[u32], rows: usize, cols: usize) -> Vec<f32> {
        let float = |i: usize| f32::from_bits(words[i]);
        // Code i, `bits` wide, of the codes that begin at word `at`.
        let code = |at: usize, i: usize, bits: usize| {
            let per_word = 32 / bits;
            (words[at + i / per_word] >> (bits * (i % per_word))) & ((1 << bits) - 1)
        };
        match self {
            Self::F32 => (0..rows * cols).map(float).collect(),
            Self::Bf16 => (0..rows * cols).map(|i| f32::from_bits(code(0, i, 16) << 16)).collect(),
            Self::Int8 => {
                let value = |i| f32::from(code(INT8_HEAD, i, 8) as u8 as i8) * float(words[0] as usize + i / cols);
                (0..rows * cols).map(value).collect()
            }
            Self::Nf4 => {
                let absmax = |block| {
                    let group = float(words[1] as usize + (words[3] as usize + block) / NF4_GROUP);
                    float(20 + code(words[0] as usize, block, 8) as usize) * group + float(2)
                };
                let blocks: Vec<f32> = (0..rows * cols / NF4_BLOCK).map(absmax).collect();
                (0..rows * cols).map(|i| float(4 + code(NF4_HEAD, i, 4) as usize) * blocks[i / NF4_BLOCK]).collect()
            }
        }
    }
}

/// Matrix on the host in a storage format, ready to be uploaded in parts of its rows.
#[derive(Debug, Clone)]
pub enum PackedWeight {
    /// Unchanged values.
    F32(Vec<f32>),
    /// Values rounded to the nearest bf16, ties to even.
    Bf16(Vec<half::bf16>),
    /// Codes, and one scale per row.
    Int8(Vec<i8>, Vec<f32>),
    /// Codes, one per byte; codes of (absmax − offset) of each block; absmax of each group of these; the offset.
    Nf4(Vec<u8>, Vec<u8>, Vec<f32>, f32),
}

impl PackedWeight {
    /// Quantises a matrix of `cols` columns, which must be a multiple of [`WeightFormat::columns`].
    pub fn new(storage: WeightFormat, values: Vec<f32>, cols: usize) -> Self {
        match storage {
            WeightFormat::F32 => Self::F32(values),
            WeightFormat::Bf16 => Self::Bf16(values.iter().map(|&v| half::bf16::from_f32(v)).collect()),
            WeightFormat::Int8 => int8(&values, cols),
            WeightFormat::Nf4 => nf4(&values),
        }
    }

    /// Packs rows `first` to `first + rows` of `cols` columns into at most [`WeightFormat::words`] words.
    pub fn part(&self, first: usize, rows: usize, cols: usize) -> Vec<u32> {
        let range = first * cols..(first + rows) * cols;
        match self {
            Self::F32(values) => bytemuck::cast_slice(&values[range]).to_vec(),
            Self::Bf16(values) => words(bytemuck::cast_slice(&values[range])).collect(),
            Self::Int8(codes, scales) => {
                let mut out = vec![(INT8_HEAD + rows * cols / 4) as u32, 0, 0, 0];
                out.extend(words(bytemuck::cast_slice(&codes[range])));
                out.extend(scales[first..first + rows].iter().map(|s| s.to_bits()));
                out
            }
            Self::Nf4(codes, scales, groups, offset) => {
                let blocks = range.start / NF4_BLOCK..range.end / NF4_BLOCK;
                let at_scales = NF4_HEAD + range.len() / 8;
                let at_groups = at_scales + blocks.len().div_ceil(4);
                let mut out =
                    vec![at_scales as u32, at_groups as u32, offset.to_bits(), (blocks.start % NF4_GROUP) as u32];
                out.extend(NF4.iter().chain(DYNAMIC.iter()).map(|v| v.to_bits()));
                out.extend(codes[range].chunks(8).map(|c| c.iter().rev().fold(0, |word, &q| word << 4 | u32::from(q))));
                out.extend(words(&scales[blocks.clone()]));
                out.extend(
                    groups[blocks.start / NF4_GROUP..blocks.end.div_ceil(NF4_GROUP)].iter().map(|g| g.to_bits()),
                );
                out
            }
        }
    }
}

/// Packs bytes into words, the first into the low byte; zeros fill the last word.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks(4).map(|c| c.iter().rev().fold(0, |word, &b| word << 8 | u32::from(b)))
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// Quantises each row: q = round(127·w / absmax), ties to even; the scale is absmax/127.
fn int8(values: &[f32], cols: usize) -> PackedWeight {
    let scales: Vec<f32> = values.chunks(cols.max(1)).map(largest).collect();
    // Adding and then subtracting 1.5·2²³ rounds to an integer, ties to even, without a function call for each value.
    const WHOLE: f32 = 12_582_912.0;
    let mut codes = vec![0; values.len()];
    for ((values, codes), &absmax) in values.chunks(cols.max(1)).zip(codes.chunks_mut(cols.max(1))).zip(&scales) {
        let per = if absmax > 0.0 { 127.0 / absmax } else { 0.0 };
        codes.iter_mut().zip(values).for_each(|(code, v)| *code = ((v * per + WHOLE) - WHOLE) as i8);
    }
    PackedWeight::Int8(codes, scales.iter().map(|s| s * (1.0 / 127.0)).collect())
}

/// NF4's 16 values: QLoRA's appendix E, as in bitsandbytes.
#[expect(clippy::excessive_precision, reason = "as published")]
pub const NF4: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// Signed dynamic map of eight bits (arXiv 2110.02861), ascending.
pub static DYNAMIC: LazyLock<[f32; 256]> = LazyLock::new(|| dynamic(true));

/// Unsigned dynamic map of eight bits, ascending.
pub static DYNAMIC_UNSIGNED: LazyLock<[f32; 256]> = LazyLock::new(|| dynamic(false));

/// Builds an ascending dynamic map: 0, 1, and ±10^(i − 6) times the midpoints of 2^i equal parts of 0.1 .. 1, for i in 0 .. 7. The unsigned
/// map has no negative values and twice as many parts.
fn dynamic(signed: bool) -> [f32; 256] {
    let mut all = vec![0.0, 1.0];
    for i in 0..7 {
        let parts = if signed { 1 } else { 2 } << i;
        let step = (1.0 - 0.1_f32) / parts as f32;
        // Each half is computed from its own end, with fused multiply-adds: bit-identical to PyTorch's linspace.
        let bound = |n: usize| match 2 * n < parts + 1 {
            true => step.mul_add(n as f32, 0.1),
            false => (-step).mul_add((parts - n) as f32, 1.0),
        };
        let power = 10_f64.powi(i - 6) as f32;
        let middles = (0..parts).map(|n| power * ((bound(n) + bound(n + 1)) / 2.0));
        match signed {
            true => all.extend(middles.flat_map(|m| [m, -m])),
            false => all.extend(middles),
        }
    }
    all.sort_by(f32::total_cmp);
    std::array::from_fn(|i| all[i])
}

/// Returns the midpoints between neighbours of a table.
pub(super) fn middles(table: &[f32]) -> Vec<f32> {
    table.windows(2).map(|w| (w[0] + w[1]) / 2.0).collect()
}

/// Quantises blocks in units of their absmax. Returns the codes, and the absmax of each block. A code is the index of the nearest value in
/// the ascending table; ties take the lower index.
pub(super) fn blockwise(values: &[f32], block: usize, table: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let middles = middles(table);
    let absmax: Vec<f32> = values.chunks(block).map(largest).collect();
    let (mut codes, mut scaled) = (vec![0; values.len()], vec![0.0; block]);
    for ((values, codes), m) in values.chunks(block).zip(codes.chunks_mut(block)).zip(&absmax) {
        let per = 1.0 / m.max(1e-38);
        scaled.iter_mut().zip(values).for_each(|(s, v)| *s = (v * per).clamp(-1.0, 1.0));
        // Counts the midpoints below each value, one midpoint at a time over the whole block: several times as fast as a search per value.
        for middle in &middles {
            codes.iter_mut().zip(&scaled).for_each(|(code, s)| *code += u8::from(s > middle));
        }
    }
    (codes, absmax)
}

fn nf4(values: &[f32]) -> PackedWeight {
    let (codes, absmax) = blockwise(values, NF4_BLOCK, &NF4);
    let offset = (absmax.iter().map(|&m| f64::from(m)).sum::<f64>() / absmax.len().max(1) as f64) as f32;
    let centred: Vec<f32> = absmax.iter().map(|m| m - offset).collect();
    let (scales, groups) = blockwise(&centred, NF4_GROUP, &*DYNAMIC);
    PackedWeight::Nf4(codes, scales, groups, offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn random(n: usize) -> Vec<f32> {
        let mut rng = Rng::new(7, 7);
        (0..n).map(|_| rng.normal()).collect()
    }

    /// Parts may begin inside a group, and at any row.
    #[test]
    fn parts_hold_what_the_whole_holds() {
        let (rows, cols) = (151, 192);
        for storage in WeightFormat::ALL {
            let packed = PackedWeight::new(storage, random(rows * cols), cols);
            let whole = packed.part(0, rows, cols);
            assert!(whole.len() <= storage.words(rows, cols), "{storage:?}");
            let whole = storage.unpack(&whole, rows, cols);
            for first in [1, 70, 150] {
                let part = packed.part(first, rows - first, cols);
                assert!(part.len() <= storage.words(rows - first, cols), "{storage:?}");
                assert_eq!(storage.unpack(&part, rows - first, cols), whole[first * cols..], "{storage:?} {first}");
            }
        }
    }

    #[test]
    fn values_are_near_and_what_is_zero_stays() {
        let cols = 64;
        let mut values = random(6 * cols);
        values[..cols].fill(0.0);
        // Tolerances relative to the row's absmax: half a step of int8; half the widest gap of NF4, plus the error of the scale's eight
        // bits.
        for (storage, step) in [
            (WeightFormat::F32, 0.0),
            (WeightFormat::Bf16, 0.004),
            (WeightFormat::Int8, 0.004),
            (WeightFormat::Nf4, 0.17),
        ] {
            let words = PackedWeight::new(storage, values.clone(), cols).part(0, 6, cols);
            let got = storage.unpack(&words, 6, cols);
            assert_eq!(got[..cols], values[..cols], "{storage:?}");
            for (got, want) in got.chunks(cols).zip(values.chunks(cols)) {
                let worst = got.iter().zip(want).fold(0.0, |m: f32, (g, w)| m.max((g - w).abs()));
                assert!(worst <= step * largest(want), "{storage:?}: {worst}");
                assert!(
                    storage == WeightFormat::F32 || largest(want) == 0.0 || worst > 0.0,
                    "{storage:?}: nothing was rounded"
                );
            }
        }
    }

    #[test]
    fn bits_a_weight() {
        // Shape of Mistral's (14336, 4096) projection.
        let bits = |s: WeightFormat| 32.0 * s.words(14_336, 4096) as f64 / (14_336.0 * 4096.0);
        let want = [
            (WeightFormat::F32, 32.0),
            (WeightFormat::Bf16, 16.0),
            (WeightFormat::Int8, 8.008),
            (WeightFormat::Nf4, 4.127),
        ];
        assert!(want.iter().all(|&(s, b)| (bits(s) - b).abs() < 5e-4), "{:?}", want.map(|w| bits(w.0)));
    }
}
