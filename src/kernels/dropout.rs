//! Dropout of a linear layer's input before its low-rank addition (LoRA), with a mask that is a function of a seed: it is drawn again in the
//! backward pass, when activations are recomputed, and when a run is resumed.

use super::shapes::ModelShape;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, Recording, Shader, Slot, grid_1d};
use crate::rng::{Rng, hash64, philox2x32};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DropoutParams {
    n: u32,
    first: u32,
    stream: u32,
    key: u32,
    threshold: u32,
    scale: f32,
    accumulate: u32,
    pad: u32,
}

/// Mask of one layer's input in one micro-batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DropoutMask {
    /// Probability p that an element is dropped, below 1.
    pub p: f64,
    /// Philox' stream and key.
    pub words: [u32; 2],
    /// Number of the first element, which is even: not 0 where a slot holds a part of the micro-batch's tokens.
    pub first: usize,
}

impl DropoutMask {
    /// Returns the mask of a layer. `seed` is that of the step and the micro-batch: see [`micro_batch_seed`].
    pub fn new(p: f64, seed: u64, module: &str, first: usize) -> Self {
        let hash = hash64([&seed.to_le_bytes()[..], module.as_bytes()]);
        Self { p, words: [hash as u32, (hash >> 32) as u32], first }
    }

    /// Returns p·2³².
    fn threshold(&self) -> u32 {
        (self.p * 2f64.powi(32)) as u32
    }

    /// Returns 1/(1 − p).
    fn scale(&self) -> f32 {
        (1.0 / (1.0 - self.p)) as f32
    }

    /// Returns whether element `n` of a slot is kept.
    fn keeps(&self, n: usize) -> bool {
        let (i, [stream, key]) = (self.first + n, self.words);
        philox2x32([(i / 2) as u32, stream], key)[i % 2] >= self.threshold()
    }
}

/// Returns the seed of a micro-batch's masks, from the run's seed, the number of the step and the micro-batch's number in it.
pub fn micro_batch_seed(seed: u64, step: usize, micro_batch: usize) -> u64 {
    let numbers = [seed, step as u64, micro_batch as u64].map(u64::to_le_bytes);
    hash64(numbers.iter().map(|bytes| &bytes[..]))
}

fn shader() -> Shader {
    Shader::new("dropout", "dropout").with("WG", 64.0)
}

/// Computes y = m·x/(1 − p), elementwise over y's length, or adds it to y when `accumulate`. The gradient of x from that of y is the same
/// product.
pub fn dropout(rec: &mut Recording, mask: &DropoutMask, accumulate: bool, x: &Slot, y: &Slot) {
    assert!(mask.first.is_multiple_of(2), "elements are drawn in pairs");
    let n = y.len();
    let params = DropoutParams {
        n: n as u32,
        first: mask.first as u32,
        stream: mask.words[0],
        key: mask.words[1],
        threshold: mask.threshold(),
        scale: mask.scale(),
        accumulate: u32::from(accumulate),
        pad: 0,
    };
    rec.dispatch(&shader(), &params, &[x, y], grid_1d(n.div_ceil(2), 64), n as u64);
}

/// Dropout kernel: `dropout`.
pub struct DropoutKernels;

impl Kernel for DropoutKernels {
    fn name(&self) -> &'static str {
        "dropout"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["dropout"]
    }
    fn variants(&self) -> Vec<Shader> {
        vec![shader()]
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("DropoutParams", size_of::<DropoutParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let sizes = [(1, 0), (2, 128), (3, 0), (127, 2), (128, 0), (129, 64), (4001, 0)];
        let masks = sizes.into_iter().zip([0.1, 0.5, 0.9].into_iter().cycle());
        let case = |((n, first), p): ((usize, usize), f64)| {
            let mask = DropoutMask::new(p, n as u64, "q_proj", first);
            [false, true].map(|accumulate| Box::new(DropoutCase { n, mask, accumulate }) as Box<dyn Case>)
        };
        masks.flat_map(case).collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        let mask = DropoutMask::new(0.1, 1, "q_proj", 0);
        vec![Box::new(DropoutCase { n: t * model.d_model, mask, accumulate: false })]
    }
}

/// Case of y = m·x/(1 − p), or of that added to a second input.
struct DropoutCase {
    n: usize,
    mask: DropoutMask,
    accumulate: bool,
}

impl DropoutCase {
    fn masked(&self, x: &[f64]) -> Vec<f64> {
        let scale = f64::from(self.mask.scale());
        x.iter().enumerate().map(|(n, x)| if self.mask.keeps(n) { x * scale } else { 0.0 }).collect()
    }
}

impl Case for DropoutCase {
    fn label(&self) -> String {
        let more = if self.accumulate { " added" } else { "" };
        format!("n={} first={} p={}{more}", self.n, self.mask.first, self.mask.p)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        (0..1 + usize::from(self.accumulate)).map(|_| HostTensor::normal(rng, self.n)).collect()
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let y = self.masked(&x[0]);
        vec![match x.get(1) {
            Some(before) => y.iter().zip(before).map(|(y, before)| y + before).collect(),
            None => y,
        }]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        // The gradient of what was there before is d_y itself.
        std::iter::once(self.masked(&d_y[0])).chain(x.iter().skip(1).map(|_| Vec::new())).collect()
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.n]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let [y, d_x] = [(); 2].map(|()| rec.gpu().alloc_activation(self.n));
        if let Some(before) = x.get(1) {
            rec.copy(before, &y);
        }
        dropout(rec, &self.mask, self.accumulate, &x[0], &y);
        if let Some(d_y) = d_y.first() {
            dropout(rec, &self.mask, false, d_y, &d_x);
        }
        let without = x.iter().skip(1).map(|_| None);
        CaseOutputs { y: vec![y], d_x: std::iter::once(Some(d_x)).chain(without).collect() }
    }
    fn reduction_len(&self) -> usize {
        1
    }
    fn cost(&self) -> Cost {
        let n = self.n as u64;
        Cost { bytes: 4 * n * (2 + u64::from(self.accumulate)), flops: n }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(mask: &DropoutMask, n: usize) -> Vec<bool> {
        (0..n).map(|n| mask.keeps(n)).collect()
    }

    /// Checks the share of dropped elements, and that neighbours, layers, steps and micro-batches are independent of each other.
    #[test]
    fn masks_have_their_statistics() {
        let n = 40_000;
        for p in [0.05, 0.1, 0.5] {
            let all: Vec<Vec<bool>> = [(1, 1, 0, "q"), (1, 1, 0, "k"), (1, 2, 0, "q"), (1, 1, 1, "q"), (2, 1, 0, "q")]
                .map(|(seed, step, micro, module)| {
                    kept(&DropoutMask::new(p, micro_batch_seed(seed, step, micro), module, 0), n)
                })
                .into();
            // Five standard deviations.
            let near = |part: f64, want: f64| (part - want).abs() < 5.0 * (want * (1.0 - want) / n as f64).sqrt();
            let share = |hits: usize| hits as f64 / n as f64;
            for (i, mask) in all.iter().enumerate() {
                assert!(near(share(mask.iter().filter(|kept| !**kept).count()), p), "{p} {i}");
                for lag in [1, 2, 36] {
                    let both = mask.iter().zip(&mask[lag..]).filter(|(a, b)| !**a && !**b).count();
                    assert!(near(share(both), p * p), "{p} {i} {lag}");
                }
                for other in &all[..i] {
                    let both = mask.iter().zip(other).filter(|(a, b)| !**a && !**b).count();
                    assert!(near(share(both), p * p), "{p} {i}");
                }
            }
            assert!(!near(share(all[0].iter().filter(|kept| !**kept).count()), p + 0.02), "an expectation that fails");
        }
        assert!(kept(&DropoutMask::new(0.0, 1, "q", 0), 1000).into_iter().all(|kept| kept));
    }

    /// Checks that a range of tokens has its part of the whole mask.
    #[test]
    fn parts_have_their_part() {
        let (whole, part) = (DropoutMask::new(0.3, 5, "q", 0), DropoutMask::new(0.3, 5, "q", 128));
        assert_eq!(kept(&whole, 256)[128..], kept(&part, 128));
    }
}
