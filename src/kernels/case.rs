//! A kernel on concrete shapes: inputs, f64 twin, launch, cost.

use crate::gpu::{Caps, Gpu, MatmulPrecision, Recording, Slot};
use crate::rng::Rng;

/// An input of a case, as the host holds it.
#[derive(Debug, Clone)]
pub enum Host {
    /// f32.
    F32(Vec<f32>),
    /// Values representable in bf16, two to a word on the device.
    Bf16(Vec<f32>),
    /// Indices.
    U32(Vec<u32>),
    /// A weight in some storage.
    Packed {
        /// What the twin sees.
        values: Vec<f32>,
        /// What the kernel sees.
        words: Vec<u32>,
    },
}

impl Host {
    /// Normally distributed f32.
    pub fn normal(rng: &mut Rng, n: usize) -> Self {
        Self::F32((0..n).map(|_| rng.normal()).collect())
    }
    /// Normally distributed, rounded to bf16.
    pub fn normal_bf16(rng: &mut Rng, n: usize) -> Self {
        Self::Bf16((0..n).map(|_| half::bf16::from_f32(rng.normal()).to_f32()).collect())
    }
    /// What the twin sees.
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Self::F32(v) | Self::Bf16(v) | Self::Packed { values: v, .. } => v.iter().map(|&x| f64::from(x)).collect(),
            Self::U32(v) => v.iter().map(|&x| f64::from(x)).collect(),
        }
    }
    /// What the kernel sees.
    pub fn upload(&self, gpu: &Gpu) -> Slot {
        match self {
            Self::F32(v) => gpu.upload(v),
            Self::U32(v) | Self::Packed { words: v, .. } => gpu.upload(v),
            Self::Bf16(v) => gpu.upload(&v.iter().map(|&x| half::bf16::from_f32(x)).collect::<Vec<_>>()),
        }
    }
    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) | Self::Bf16(v) | Self::Packed { values: v, .. } => v.len(),
            Self::U32(v) => v.len(),
        }
    }
    /// No elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a launch gives back.
#[derive(Debug, Default)]
pub struct Outputs {
    /// As the twin's forward.
    pub y: Vec<Slot>,
    /// As the twin's backward: a gradient for each input, `None` where there is none.
    pub d_x: Vec<Option<Slot>>,
}

/// Work of a case: what it must move and compute, whatever the implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Bytes read and written once.
    pub bytes: u64,
    /// Floating-point operations, a multiply-add counting two.
    pub flops: u64,
}

/// A kernel on concrete shapes.
pub trait Case {
    /// Shapes and variant, for messages.
    fn label(&self) -> String;
    /// Inputs; a gradient may exist for the float ones.
    fn inputs(&self, rng: &mut Rng) -> Vec<Host>;
    /// The twin: outputs from inputs, in f64.
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>>;
    /// The twin's gradient of Σ d_y·y for the first `d_y.len()` outputs: one vector per input, empty where there is none.
    /// No entries at all: not differentiable.
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let _ = (x, d_y);
        Vec::new()
    }
    /// Elements of each output that carries a gradient.
    fn d_y_lens(&self) -> Vec<usize> {
        Vec::new()
    }
    /// Leading outputs that carry a gradient.
    fn differentiable(&self) -> usize {
        1
    }
    /// An output is u32 and equals the twin's exactly.
    fn exact(&self, output: usize) -> bool {
        let _ = output;
        false
    }
    /// Records forward, and backward where there is one (`d_y` is then as long as [`Case::differentiable`]).
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> Outputs;
    /// Longest sum, in terms.
    fn reduction(&self) -> usize;
    /// Of its products.
    fn precision(&self) -> MatmulPrecision {
        MatmulPrecision::Highest
    }
    /// Whether the device takes the variant that it is of, where it is of one.
    fn is_taken(&self, caps: &Caps) -> bool {
        let _ = caps;
        true
    }
    /// From the table.
    fn tolerance(&self) -> f64 {
        tolerance(self.precision(), self.reduction())
    }
    /// Work.
    fn cost(&self) -> Cost;
}

/// Largest error allowed on an element, relative to the largest magnitude of its tensor. One table for all kernels.
///
/// f32 rounds after each term of a sum of `reduction` terms: the errors grow with its square root. [`MatmulPrecision::Medium`] also rounds
/// both operands of a term to f16, by half of its epsilon each at most: errors of terms that add up as the terms themselves do.
pub fn tolerance(precision: MatmulPrecision, reduction: usize) -> f64 {
    let f32s = f64::from(f32::EPSILON) * (8.0 + 2.0 * (reduction as f64).sqrt());
    match precision {
        MatmulPrecision::Highest | MatmulPrecision::High => f32s,
        MatmulPrecision::Medium => f32s + half::f16::EPSILON.to_f64(),
    }
}
