//! One file a kernel family: launchers, f64 twin, cases, cost. [`REGISTRY`] lists them all; tests and benches iterate it.
//!
//! A family's WGSL has the same stem in `shaders/`. Launchers append to a [`Recording`] and choose variants from its device's caps.

pub mod activation;
pub mod adamw;
pub mod add;
pub mod attention;
mod case;
pub mod column_sum;
pub mod embedding;
pub mod gather;
pub mod global_norm;
pub mod layernorm;
pub mod logprob;
pub mod matmul;
pub mod objective;
pub mod rmsnorm;
pub mod rope;
pub mod sample;

pub use case::{Case, Cost, Host, Outputs, tolerance};

use crate::gpu::Shader;

/// A kernel family.
pub trait Kernel: Sync {
    /// Stem of its Rust file and of its main WGSL file.
    fn name(&self) -> &'static str;
    /// Its files in `shaders/`.
    fn modules(&self) -> &'static [&'static str];
    /// Every specialisation that some device may be given.
    fn variants(&self) -> Vec<Shader>;
    /// The uniform structs: WGSL's name, Rust's size in bytes.
    fn uniforms(&self) -> Vec<(&'static str, usize)>;
    /// Shapes on both sides of every tile edge.
    fn cases(&self) -> Vec<Box<dyn Case>>;
}

/// Every kernel family, in the order of a forward pass.
pub const REGISTRY: &[&dyn Kernel] = &[
    &embedding::Embedding,
    &rmsnorm::Rmsnorm,
    &layernorm::Layernorm,
    &matmul::Matmul,
    &rope::RotaryPositions,
    &attention::FlashAttention,
    &add::Add,
    &activation::Activations,
    &gather::Gather,
    &logprob::Logprob,
    &objective::PairLosses,
    &column_sum::ColumnSum,
    &global_norm::GlobalNorm,
    &adamw::Optimiser,
    &sample::Sample,
];

/// Every kernel's first cases on a device against their twins: (kernel, largest error as a multiple of the tolerance).
///
/// # Errors
/// [`crate::Error::Gpu`].
pub async fn self_test(gpu: &crate::gpu::Gpu) -> crate::Result<Vec<(&'static str, f64)>> {
    let mut rng = crate::rng::Rng::new(0, 0);
    let mut results = Vec::new();
    for kernel in REGISTRY {
        let mut worst: f64 = 0.0;
        for case in kernel.cases().iter().take(3) {
            let inputs = case.inputs(&mut rng);
            let y = case.forward(&inputs.iter().map(Host::to_f64).collect::<Vec<_>>());
            let slots: Vec<_> = inputs.iter().map(|h| h.upload(gpu)).collect();
            let d_y: Vec<_> =
                y.iter().take(case.differentiable()).map(|y| gpu.upload(&vec![0.0f32; y.len()])).collect();
            let mut rec = gpu.record();
            let out = case.launch(&mut rec, &slots, &d_y);
            rec.submit();
            for (slot, want) in out.y.iter().zip(&y) {
                worst = worst.max(if case.exact() {
                    let got = gpu.read::<u32>(&[slot]).await?.concat();
                    f64::from(u8::from(got.iter().zip(want).any(|(&g, &w)| f64::from(g) != w))) * 2.0
                } else {
                    let got = gpu.read::<f32>(&[slot]).await?.concat();
                    excess(&got.iter().map(|&g| f64::from(g)).collect::<Vec<_>>(), want, case.reduction())
                });
            }
        }
        results.push((kernel.name(), worst));
    }
    Ok(results)
}

/// The largest error of `got`, as a multiple of what the tolerance allows; infinite where a value is no number.
pub fn excess(got: &[f64], want: &[f64], reduction: usize) -> f64 {
    let scale = want.iter().fold(1e-30, |m: f64, x| m.max(x.abs()));
    let worst = got.iter().zip(want).fold(0.0, |m: f64, (g, w)| {
        let e = (g - w).abs();
        if e.is_nan() { f64::INFINITY } else { m.max(e) }
    });
    worst / scale / tolerance(reduction)
}
