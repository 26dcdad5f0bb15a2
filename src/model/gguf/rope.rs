//! Rotary table of Llama 3.1 and later. A GGUF file stores it as a tensor of divisors of the frequencies, not as parameters:
//! `generate_extra_tensors` in llama.cpp's `conversion/llama.py`.

use super::super::description::{RopeConfig, RopeScaling};
use crate::kernels::rope::inverse_frequencies;

/// Name of the tensor of divisors.
pub const ROPE_FREQS: &str = "rope_freqs.weight";

/// Largest relative difference of two divisors that count as equal: they are stored as f32.
const DIVISOR_TOLERANCE: f64 = 1e-5;

/// Computes the divisors of a table's frequencies, (rotary_dim/2).
pub fn frequency_divisors(rope: &RopeConfig) -> Vec<f32> {
    let plain = inverse_frequencies(&RopeConfig::plain(rope.theta, rope.rotary_dim), false);
    plain.iter().zip(inverse_frequencies(rope, false)).map(|(plain, scaled)| (plain / scaled) as f32).collect()
}

/// Returns parameters of Llama 3.1's scaling that give these divisors. `None` where none of the usual ones does: an original context of a
/// power of two, and high frequencies from 2, 4 or 8 rotations over it.
pub fn scaling_of_divisors(divisors: &[f32], theta: f64, rotary_dim: usize) -> Option<RopeScaling> {
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    let candidates = (4..=20).flat_map(|power| [4.0, 2.0, 8.0].map(|high| (f64::from(1 << power), high)));
    let scalings = candidates.map(|(original_max_positions, high)| RopeScaling::Llama3 {
        factor,
        low: 1.0,
        high,
        original_max_positions,
    });
    let fits = |scaling: &RopeScaling| {
        let rope = RopeConfig { scaling: scaling.clone(), ..RopeConfig::plain(theta, rotary_dim) };
        let computed = frequency_divisors(&rope);
        let is_close =
            |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).abs() <= DIVISOR_TOLERANCE * f64::from(*b);
        computed.len() == divisors.len() && divisors.iter().zip(&computed).all(is_close)
    };
    scalings.into_iter().find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_by_their_divisors() {
        for (factor, original_max_positions, theta, dim) in
            [(8.0, 8192.0, 5e5, 128), (32.0, 8192.0, 5e5, 64), (4.0, 32.0, 1e4, 16)]
        {
            let scaling = RopeScaling::Llama3 { factor, low: 1.0, high: 4.0, original_max_positions };
            let rope = RopeConfig { scaling, ..RopeConfig::plain(theta, dim) };
            let mut divisors = frequency_divisors(&rope);
            let found = scaling_of_divisors(&divisors, theta, dim);
            let again = RopeConfig { scaling: found.unwrap_or(RopeScaling::Default), ..rope.clone() };
            assert_eq!(frequency_divisors(&again), divisors, "{factor} {original_max_positions}");
            // A table of another kind is not taken for one of Llama 3.1.
            divisors[1] = 1.5;
            assert_eq!(scaling_of_divisors(&divisors, theta, dim), None);
        }
    }
}
