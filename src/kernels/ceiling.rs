//! Peak rates of a device: a copy, and multiply-adds in registers alone. Benchmarks are compared with them.

use super::shapes::ModelShape;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct CeilingParams {
    n: u32,
    a: f32,
    b: f32,
    pad: u32,
}

/// Chains of multiply-adds per invocation, each of four values. `UNROLLED` is the number of steps of each chain in the loop's body.
const CHAINS: usize = 2;
const UNROLLED: usize = 4;
/// Constants of a chain's step x ← a·x + b. Values go to 1 so slowly that a few steps more or less are visible in the result.
const A: f32 = 0.9;
const B: f32 = 0.1;

fn shader(ceiling: PeakCase) -> Shader {
    match ceiling {
        PeakCase::Copy => Shader::new("ceiling", "ceiling_copy").with("WG", 64.0),
        PeakCase::Fma { iterations } => {
            Shader::new("ceiling", "ceiling_fma").with("WG", 64.0).with("ITERATIONS", iterations as f64)
        }
    }
}

/// Quantity that a kernel measures: bandwidth, or arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PeakCase {
    Copy,
    Fma { iterations: usize },
}

/// Peak-rate kernels: `ceiling_copy`, `ceiling_fma`.
pub struct PeakKernels;

impl Kernel for PeakKernels {
    fn name(&self) -> &'static str {
        "ceiling"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["ceiling"]
    }
    fn variants(&self) -> Vec<Shader> {
        vec![shader(PeakCase::Copy), shader(PeakCase::Fma { iterations: 4 })]
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("CeilingParams", size_of::<CeilingParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let case = |ceiling, vec4s| Box::new(CeilingCase { ceiling, vec4s }) as Box<dyn Case>;
        let fma = PeakCase::Fma { iterations: 4 };
        vec![case(PeakCase::Copy, 1), case(PeakCase::Copy, 130), case(fma, 3), case(fma, 65)]
    }
    fn benches(&self, _: &ModelShape, _: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        Vec::new() // none by model: `copy` and `fma` have fixed shapes
    }
}

/// Returns the case of a copy, 64 MiB in and 64 MiB out: beyond the caches of most devices.
pub fn copy() -> Box<dyn Case> {
    Box::new(CeilingCase { ceiling: PeakCase::Copy, vec4s: 4 << 20 })
}

/// Returns the case of multiply-adds: 2.1 GFLOP on a CPU, 137 GFLOP elsewhere, so that either takes milliseconds.
pub fn fma(caps: &Caps) -> Box<dyn Case> {
    let (iterations, vec4s) = if caps.is_cpu { (1024, 1 << 15) } else { (4096, 1 << 19) };
    Box::new(CeilingCase { ceiling: PeakCase::Fma { iterations }, vec4s })
}

struct CeilingCase {
    ceiling: PeakCase,
    vec4s: usize,
}

impl Case for CeilingCase {
    fn label(&self) -> String {
        format!("{:?} vec4s={}", self.ceiling, self.vec4s)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        vec![HostTensor::normal(rng, 4 * self.vec4s)]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let PeakCase::Fma { iterations } = self.ceiling else { return x.to_vec() };
        let (a, b) = (f64::from(A), f64::from(B));
        let chain = |x: f64| (0..UNROLLED * iterations).fold(x, |x, _| a * x + b);
        let value = |&x: &f64| (0..CHAINS).map(|c| chain(x + c as f64)).sum::<f64>() / CHAINS as f64;
        vec![x[0].iter().map(value).collect()]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        let y = rec.gpu().alloc_activation(4 * self.vec4s);
        let params = CeilingParams { n: self.vec4s as u32, a: A, b: B, pad: 0 };
        let grid = grid_1d(self.vec4s, 64);
        rec.dispatch(&shader(self.ceiling), &params, &[&x[0], &y], grid, self.cost().flops);
        CaseOutputs { y: vec![y], d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        match self.ceiling {
            PeakCase::Copy => 1,
            PeakCase::Fma { iterations } => UNROLLED * iterations,
        }
    }
    fn cost(&self) -> Cost {
        let n = 4 * self.vec4s as u64;
        let flops = match self.ceiling {
            PeakCase::Copy => 0,
            PeakCase::Fma { iterations } => 2 * n * (CHAINS * UNROLLED * iterations) as u64,
        };
        Cost { bytes: 2 * 4 * n, flops }
    }
}
