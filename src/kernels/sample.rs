//! Sampling of next tokens from logits: greedy, temperature, top-k, top-p.

use super::shapes::ModelShape;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

/// Parameters of sampling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Temperature; at 0 the largest logit is taken.
    pub temperature: f32,
    /// Top-k: keeps the k largest logits; 0 keeps all.
    pub top_k: usize,
    /// Top-p, applied after top-k: keeps the fewest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
}

/// Result in place of a token where the largest logit is not finite.
pub const NOT_FINITE: u32 = u32::MAX;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SampleParams {
    rows: u32,
    vocab: u32,
    top_k: u32,
    greedy: u32,
    inverse_temperature: f32,
    top_p: f32,
    softcap: f32,
    pad: u32,
}

fn shader() -> Shader {
    Shader::new("sample", "sample").with("WG", 64.0)
}

/// Samples tokens (rows, u32) from logits (rows, V). `uniforms` (rows) are random numbers in [0, 1).
#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's parameters and bindings")]
pub fn sample(
    rec: &mut Recording,
    s: &Sampling,
    softcap: Option<f32>,
    rows: usize,
    vocab: usize,
    logits: &Slot,
    uniforms: &Slot,
    tokens: &Slot,
) {
    let params = SampleParams {
        rows: rows as u32,
        vocab: vocab as u32,
        top_k: if s.top_k < vocab { s.top_k as u32 } else { 0 },
        greedy: u32::from(s.temperature == 0.0),
        inverse_temperature: if s.temperature == 0.0 { 1.0 } else { 1.0 / s.temperature },
        top_p: s.top_p,
        softcap: softcap.unwrap_or(0.0),
        pad: 0,
    };
    rec.dispatch(&shader(), &params, &[logits, uniforms, tokens], grid_1d(rows, 1), 4 * (rows * vocab) as u64);
}

/// Sampling kernel: `sample`.
pub struct SampleKernels;

impl Kernel for SampleKernels {
    fn name(&self) -> &'static str {
        "sample"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["sample"]
    }
    fn variants(&self) -> Vec<Shader> {
        vec![shader()]
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("SampleParams", size_of::<SampleParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let make = |rows, vocab, temperature, top_k, top_p, softcap| {
            let sampling = Sampling { temperature, top_k, top_p };
            Box::new(SampleCase { rows, vocab, sampling, softcap }) as Box<dyn Case>
        };
        vec![
            make(1, 1, 0.0, 0, 1.0, None),
            make(5, 65, 0.0, 0, 1.0, Some(0.5)),
            make(40, 63, 1.0, 0, 1.0, None),
            make(40, 200, 0.7, 5, 1.0, None),
            make(40, 130, 1.3, 0, 0.6, Some(2.0)),
            make(40, 64, 1.0, 20, 0.8, None),
            make(20, 300, 1.0, 1, 0.5, None),
        ]
    }
    fn benches(&self, model: &ModelShape, _: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        let sampling = Sampling { temperature: 0.7, top_k: 0, top_p: 0.9 };
        vec![Box::new(SampleCase { rows: 16, vocab: model.vocab, sampling, softcap: None })]
    }
}

struct SampleCase {
    rows: usize,
    vocab: usize,
    sampling: Sampling,
    softcap: Option<f32>,
}

impl Case for SampleCase {
    fn label(&self) -> String {
        let Sampling { temperature, top_k, top_p } = self.sampling;
        let cap = self.softcap.map_or(String::new(), |c| format!(" cap={c}"));
        format!("rows={} V={} temperature={temperature} top_k={top_k} top_p={top_p}{cap}", self.rows, self.vocab)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let uniforms = (0..self.rows).map(|_| rng.next_f32()).collect();
        vec![HostTensor::normal(rng, self.rows * self.vocab), HostTensor::F32(uniforms)]
    }
    /// Samples by sorting, independently of the kernel's bisection.
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let s = &self.sampling;
        let row = |(logits, u): (&[f64], &f64)| {
            let cap = |l: &f64| self.softcap.map_or(*l, |c| f64::from(c) * (l / f64::from(c)).tanh());
            let z: Vec<f64> = logits.iter().map(cap).collect();
            let mut order: Vec<usize> = (0..z.len()).collect();
            order.sort_by(|&a, &b| z[b].total_cmp(&z[a]));
            if s.temperature == 0.0 {
                return order[0] as f64;
            }
            if s.top_k > 0 {
                order.truncate(s.top_k);
            }
            let p = |v: usize| (z[v] / f64::from(s.temperature)).exp();
            let total: f64 = order.iter().map(|&v| p(v)).sum();
            let mut mass = 0.0;
            let fewest = order.iter().position(|&v| {
                mass += p(v);
                mass >= f64::from(s.top_p) * total
            });
            order.truncate(fewest.map_or(order.len(), |n| n + 1));
            order.sort_unstable();
            let point = u * order.iter().map(|&v| p(v)).sum::<f64>();
            let mut mass = 0.0;
            let drawn = order.iter().find(|&&v| {
                mass += p(v);
                point < mass
            });
            *drawn.unwrap_or(&order[order.len() - 1]) as f64
        };
        vec![x[0].chunks(self.vocab).zip(&x[1]).map(row).collect()]
    }
    fn exact(&self, _: usize) -> bool {
        true
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        let tokens = rec.gpu().alloc_activation(self.rows);
        sample(rec, &self.sampling, self.softcap, self.rows, self.vocab, &x[0], &x[1], &tokens);
        CaseOutputs { y: vec![tokens], d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        self.vocab
    }
    fn cost(&self) -> Cost {
        let n = (self.rows * self.vocab) as u64;
        Cost { bytes: 4 * n, flops: 4 * n }
    }
}
