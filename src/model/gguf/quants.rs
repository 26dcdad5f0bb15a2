//! Quantised blocks to f32, and f32 to blocks of Q8_0, in the operations and their order of `ggml-quants.c`.

use half::{bf16, f16};

use super::ggml_type::GgmlType;

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Appends the values of whole blocks, as f32. `bytes` holds a whole number of blocks.
pub fn dequantize(kind: GgmlType, bytes: &[u8], into: &mut Vec<f32>) {
    into.reserve(bytes.len() / kind.block_bytes() * kind.block_len());
    for block in bytes.chunks_exact(kind.block_bytes()) {
        match kind {
            GgmlType::F32 => into.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
            GgmlType::F16 => into.push(half(block, 0)),
            GgmlType::Bf16 => into.push(bf16::from_le_bytes([block[0], block[1]]).to_f32()),
            GgmlType::Q4_0 => {
                let d = half(block, 0);
                into.extend(nibbles(&block[2..]).map(|q| (f32::from(q) - 8.0) * d));
            }
            GgmlType::Q4_1 => {
                let (d, m) = (half(block, 0), half(block, 2));
                into.extend(nibbles(&block[4..]).map(|q| f32::from(q) * d + m));
            }
            GgmlType::Q5_0 => {
                let d = half(block, 0);
                into.extend(five_bits(&block[2..]).map(|q| (f32::from(q) - 16.0) * d));
            }
            GgmlType::Q5_1 => {
                let (d, m) = (half(block, 0), half(block, 2));
                into.extend(five_bits(&block[4..]).map(|q| f32::from(q) * d + m));
            }
            GgmlType::Q8_0 => {
                let d = half(block, 0);
                into.extend(block[2..].iter().map(|q| f32::from(q.cast_signed()) * d));
            }
            GgmlType::Q4K => q4_k(block, into),
            GgmlType::Q5K => q5_k(block, into),
            GgmlType::Q6K => q6_k(block, into),
        }
    }
}

/// Returns the low four bits of all bytes, then the high ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|b| b & 15).chain(bytes.iter().map(|b| b >> 4))
}

/// Returns 32 numbers of five bits: their highest bits are in the first four bytes, the others in the 16 bytes behind.
fn five_bits(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    nibbles(&bytes[4..]).enumerate().map(move |(i, low)| low | (((high >> i) & 1) << 4) as u8)
}

/// Returns the j-th of 8 pairs (scale, minimum) of 6 bits, packed in 12 bytes: `get_scale_min_k4`.
fn scale_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let (low, high) = (packed[j + 4], [packed[j - 4] >> 6, packed[j] >> 6]);
        ((low & 15) | (high[0] << 4), (low >> 4) | (high[1] << 4))
    };
    (f32::from(scale), f32::from(min))
}

fn q4_k(block: &[u8], into: &mut Vec<f32>) {
    let (d, d_min, packed, quants) = (half(block, 0), half(block, 2), &block[4..16], &block[16..144]);
    for (pair, bytes) in quants.chunks_exact(32).enumerate() {
        for (j, shift) in [(2 * pair, 0), (2 * pair + 1, 4)] {
            let (scale, min) = scale_min(packed, j);
            let (scale, min) = (d * scale, d_min * min);
            into.extend(bytes.iter().map(|b| scale * f32::from((b >> shift) & 15) - min));
        }
    }
}

fn q5_k(block: &[u8], into: &mut Vec<f32>) {
    let (d, d_min, packed) = (half(block, 0), half(block, 2), &block[4..16]);
    let (high, quants) = (&block[16..48], &block[48..176]);
    for (pair, bytes) in quants.chunks_exact(32).enumerate() {
        for (j, shift) in [(2 * pair, 0), (2 * pair + 1, 4)] {
            let (scale, min) = scale_min(packed, j);
            let (scale, min) = (d * scale, d_min * min);
            let value = |(b, h): (&u8, &u8)| ((b >> shift) & 15) + 16 * ((h >> j) & 1);
            into.extend(bytes.iter().zip(high).map(|both| scale * f32::from(value(both)) - min));
        }
    }
}

fn q6_k(block: &[u8], into: &mut Vec<f32>) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    for half_block in 0..2 {
        let (low, high) = (&low[64 * half_block..][..64], &high[32 * half_block..][..32]);
        let scales = &scales[8 * half_block..][..8];
        for part in 0..4 {
            let (low, shift) = (&low[32 * (part % 2)..][..32], if part < 2 { 0 } else { 4 });
            for (i, (l, h)) in low.iter().zip(high).enumerate() {
                let q = ((l >> shift) & 15) | (((h >> (2 * part)) & 3) << 4);
                let scale = d * f32::from(scales[i / 16 + 2 * part].cast_signed());
                into.push(scale * (f32::from(q) - 32.0));
            }
        }
    }
}

/// Appends blocks of Q8_0: each scale is max |x| / 127, and elements round to nearest, ties away from zero. The number of values is a
/// multiple of 32.
pub fn quantize_q8_0(values: &[f32], into: &mut Vec<u8>) {
    for block in values.chunks_exact(GgmlType::Q8_0.block_len()) {
        let largest = block.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
        let d = largest / 127.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        into.extend(f16::from_f32(d).to_le_bytes());
        into.extend(block.iter().map(|v| ((v * inverse).round() as i8).cast_unsigned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(kind: GgmlType, bytes: &[u8]) -> Vec<f32> {
        let mut all = Vec::new();
        dequantize(kind, bytes, &mut all);
        all
    }

    #[test]
    fn q8_0_is_read_as_it_was_written() {
        let given: Vec<f32> = (0..64).map(|i| (i as f32 - 20.0) * if i < 32 { 0.25 } else { 0.0 }).collect();
        let mut bytes = Vec::new();
        quantize_q8_0(&given, &mut bytes);
        assert_eq!(bytes.len(), 68);
        for (a, b) in given.iter().zip(values(GgmlType::Q8_0, &bytes)) {
            // Half a step of the largest value, 5, and the rounding of the scale to f16.
            assert!((a - b).abs() <= 5.0 / 127.0 * 0.5 + 5.0 / 1024.0, "{a} {b}");
        }
    }

    #[test]
    fn blocks_of_four_bits_have_low_halves_first() {
        let scale = f16::from_f32(0.5).to_le_bytes();
        let mut block = [scale[0], scale[1]].to_vec();
        block.extend([0x9f; 16]);
        assert_eq!(values(GgmlType::Q4_0, &block), [[3.5; 16], [0.5; 16]].concat());
        let min = f16::from_f32(-1.0).to_le_bytes();
        block.splice(2..2, min);
        assert_eq!(values(GgmlType::Q4_1, &block), [[6.5; 16], [3.5; 16]].concat());
    }
}
