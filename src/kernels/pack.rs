//! Packing of f32 as bf16, two per word, and unpacking. A forward pass may save activations in this form for the backward pass.

use super::shapes::ModelShape;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

/// Bits of bf16's mantissa.
pub const BF16_MANTISSA: u32 = 7;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct PackParams {
    n: u32,
}

fn params(n: usize) -> PackParams {
    PackParams { n: n as u32 }
}

fn pack_shader(mantissa: u32) -> Shader {
    Shader::new("pack", "pack_bf16").with("WG", 64.0).with("MANTISSA", f64::from(mantissa))
}

fn unpack_shader() -> Shader {
    Shader::new("pack", "unpack_bf16").with("WG", 64.0)
}

/// Packs x (n) into words (⌈n/2⌉), rounded to the nearest, ties to even. Keeps `mantissa` bits, at most [`BF16_MANTISSA`].
pub fn pack_bf16(rec: &mut Recording, mantissa: u32, x: &Slot, words: &Slot) {
    let n = x.len();
    rec.dispatch(&pack_shader(mantissa), &params(n), &[x, words], grid_1d(n.div_ceil(2), 64), n as u64);
}

/// Unpacks words (⌈n/2⌉) into x (n).
pub fn unpack_bf16(rec: &mut Recording, words: &Slot, x: &Slot) {
    rec.dispatch(&unpack_shader(), &params(x.len()), &[words, x], grid_1d(x.len(), 64), 0);
}

/// Packing kernels: `pack_bf16`, `unpack_bf16`.
pub struct PackKernels;

/// Bits of mantissa: bf16's, and 4 for tests, so coarse that the gradient tests must fail.
const MANTISSAS: [u32; 2] = [BF16_MANTISSA, 4];

impl Kernel for PackKernels {
    fn name(&self) -> &'static str {
        "pack"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["pack"]
    }
    fn variants(&self) -> Vec<Shader> {
        MANTISSAS.map(pack_shader).into_iter().chain([unpack_shader()]).collect()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("PackParams", size_of::<PackParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let sizes = [1, 2, 63, 64, 129, 4001];
        let case = |mantissa| sizes.map(|n| Box::new(PackCase { n, mantissa }) as Box<dyn Case>);
        MANTISSAS.into_iter().flat_map(case).collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        vec![Box::new(PackCase { n: 2 * t * model.d_ff, mantissa: BF16_MANTISSA })]
    }
}

/// Case that packs values and unpacks them.
struct PackCase {
    n: usize,
    mantissa: u32,
}

/// Bit patterns at the edges: middles between two bf16 values and their neighbours, the ends of f32's range, zeros, NaN.
const EDGES: [u32; 14] = [
    0x3f80_8000, // between two values, the lower one even
    0x3f81_8000, // the upper one
    0x3f80_7fff,
    0x3f80_8001,
    0xbf84_0000, // between two values of 4 bits
    0xbf8c_0000,
    0x3fff_ffff, // a carry into the exponent
    0x7f7f_ffff, // to infinity
    0x7f80_0000,
    0xff80_0000,
    0x7f80_0001, // a NaN whose only mantissa bits are cut off: truncation gives infinity
    0x0000_8001, // subnormal
    0x0000_0000,
    0x8000_0000,
];

impl PackCase {
    /// Rounds by arithmetic, unlike the kernel, which works on bits; returns the f32 result's bits.
    fn rounded(&self, x: f64) -> u32 {
        if x.is_nan() {
            return f32::NAN.to_bits();
        }
        if x == 0.0 || x.is_infinite() {
            return (x as f32).to_bits();
        }
        let exponent = x.abs().log2().floor().max(f64::from(f32::MIN_EXP - 1));
        let step = (exponent - f64::from(self.mantissa)).exp2();
        // Values beyond f32's range become infinity in this conversion.
        (((x / step).round_ties_even() * step) as f32).to_bits()
    }
}

impl Case for PackCase {
    fn label(&self) -> String {
        format!("n={} mantissa={}", self.n, self.mantissa)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let edges = EDGES.map(f32::from_bits).into_iter();
        vec![HostTensor::F32(edges.chain(std::iter::repeat_with(|| rng.normal())).take(self.n).collect())]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let bits: Vec<u32> = x[0].iter().map(|&x| self.rounded(x)).collect();
        let word = |pair: &[u32]| pair[0] >> 16 | pair.get(1).map_or(0, |high| high & 0xffff_0000);
        vec![bits.chunks(2).map(|pair| f64::from(word(pair))).collect(), bits.iter().map(|&b| f64::from(b)).collect()]
    }
    fn exact(&self, _: usize) -> bool {
        true
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        let (words, y) = (rec.gpu().alloc_activation(self.n.div_ceil(2)), rec.gpu().alloc_activation(self.n));
        pack_bf16(rec, self.mantissa, &x[0], &words);
        unpack_bf16(rec, &words, &y);
        CaseOutputs { y: vec![words, y], d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        1
    }
    fn cost(&self) -> Cost {
        Cost { bytes: 12 * self.n as u64, flops: self.n as u64 }
    }
}
