//! Cases for tests and benchmarks: a kernel on concrete shapes, with its inputs, f64 twin, launch and cost.

use crate::gpu::{Caps, Gpu, MatmulPrecision, Recording, Slot};
use crate::rng::Rng;

/// Input of a case on the host.
#[derive(Debug, Clone)]
pub enum HostTensor {
    /// Values in f32.
    F32(Vec<f32>),
    /// Values representable in bf16, two per word on the device.
    Bf16(Vec<f32>),
    /// Indices.
    U32(Vec<u32>),
    /// Weight in a storage format.
    Packed {
        /// Dequantised values, for the twin.
        values: Vec<f32>,
        /// Packed words, for the kernel.
        words: Vec<u32>,
    },
}

impl HostTensor {
    /// Draws normally distributed f32.
    pub fn normal(rng: &mut Rng, n: usize) -> Self {
        Self::F32((0..n).map(|_| rng.normal()).collect())
    }
    /// Draws normally distributed values, rounded to bf16.
    pub fn normal_bf16(rng: &mut Rng, n: usize) -> Self {
        Self::Bf16((0..n).map(|_| half::bf16::from_f32(rng.normal()).to_f32()).collect())
    }
    /// Converts the values to f64, for the twin.
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Self::F32(v) | Self::Bf16(v) | Self::Packed { values: v, .. } => v.iter().map(|&x| f64::from(x)).collect(),
            Self::U32(v) => v.iter().map(|&x| f64::from(x)).collect(),
        }
    }
    /// Uploads the values in the layout that the kernel reads.
    pub fn upload(&self, gpu: &Gpu) -> Slot {
        match self {
            Self::F32(v) => gpu.upload(v),
            Self::U32(v) | Self::Packed { words: v, .. } => gpu.upload(v),
            Self::Bf16(v) => gpu.upload(&v.iter().map(|&x| half::bf16::from_f32(x)).collect::<Vec<_>>()),
        }
    }
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) | Self::Bf16(v) | Self::Packed { values: v, .. } => v.len(),
            Self::U32(v) => v.len(),
        }
    }
    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Slots that a launch returns.
#[derive(Debug, Default)]
pub struct CaseOutputs {
    /// Outputs, in the order of [`Case::forward`].
    pub y: Vec<Slot>,
    /// Gradient of each input, in the order of [`Case::backward`]; `None` where there is none.
    pub d_x: Vec<Option<Slot>>,
}

/// Work that every implementation of a case must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Bytes read and written, each once.
    pub bytes: u64,
    /// Floating-point operations, a multiply-add counting two.
    pub flops: u64,
}

/// Case: a kernel on concrete shapes.
pub trait Case {
    /// Returns the shapes and the variant, for messages.
    fn label(&self) -> String;
    /// Draws the inputs. Inputs of floats may have a gradient.
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor>;
    /// Computes the outputs from the inputs in f64: the twin.
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>>;
    /// Computes the twin's gradient of Σ d_y·y over the first `d_y.len()` outputs: one vector per input, empty for an input without a
    /// gradient. Returns no vectors where the case is not differentiable.
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let _ = (x, d_y);
        Vec::new()
    }
    /// Returns the number of elements of each output that carries a gradient.
    fn d_y_lens(&self) -> Vec<usize> {
        Vec::new()
    }
    /// Returns how many leading outputs carry a gradient.
    fn differentiable(&self) -> usize {
        1
    }
    /// Returns whether an output is u32 and must equal the twin's exactly.
    fn exact(&self, output: usize) -> bool {
        let _ = output;
        false
    }
    /// Records the forward kernels, and the backward ones where there are any. `d_y` has [`Case::differentiable`] slots.
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs;
    /// Returns the number of terms of the longest sum.
    fn reduction_len(&self) -> usize;
    /// Returns the precision of the case's matrix products.
    fn precision(&self) -> MatmulPrecision {
        MatmulPrecision::Highest
    }
    /// Returns whether the device supports the case's variants.
    fn is_supported(&self, caps: &Caps) -> bool {
        let _ = caps;
        true
    }
    /// Returns the allowed error, from [`tolerance()`].
    fn tolerance(&self) -> f64 {
        tolerance(self.precision(), self.reduction_len())
    }
    /// Returns the work of one run.
    fn cost(&self) -> Cost;
}

/// Returns the largest error allowed on an element, relative to the largest magnitude of its tensor. One table serves all kernels.
///
/// f32 rounds after each term of a sum of `reduction` terms, so errors grow with the square root of `reduction`.
/// [`MatmulPrecision::Medium`] also rounds both operands of a term to f16, by at most half of f16's epsilon each. These errors add up in
/// the same way.
pub fn tolerance(precision: MatmulPrecision, reduction: usize) -> f64 {
    let f32s = f64::from(f32::EPSILON) * (8.0 + 2.0 * (reduction as f64).sqrt());
    match precision {
        MatmulPrecision::Highest | MatmulPrecision::High => f32s,
        MatmulPrecision::Medium => f32s + half::f16::EPSILON.to_f64(),
    }
}
