//! Gates of the gated delta rule: β = σ(b) and g = −exp(A_log)·softplus(a + dt_bias), per token and value head.

use super::shapes::ModelShape;
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel, column_sum};
use crate::gpu::{Caps, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DeltaGatesParams {
    n: u32,
    heads: u32,
    pad: [u32; 2],
}

fn shader(entry: &'static str) -> Shader {
    Shader::new("delta_gates", entry).with("WG", 64.0)
}

fn run(rec: &mut Recording, entry: &'static str, t: usize, heads: usize, slots: &[&Slot]) {
    let params = DeltaGatesParams { n: (t * heads) as u32, heads: heads as u32, pad: [0; 2] };
    rec.dispatch(&shader(entry), &params, slots, grid_1d(t * heads, 64), 16 * (t * heads) as u64);
}

/// Inputs of the decay: a (T, Hv), A_log (Hv), dt_bias (Hv).
#[derive(Debug, Clone, Copy)]
pub struct DecayInputs<'a> {
    /// (T, Hv), output of `in_proj_a`.
    pub a: &'a Slot,
    /// (Hv), logarithm of the decay rate.
    pub a_log: &'a Slot,
    /// (Hv), added to a.
    pub dt_bias: &'a Slot,
}

/// Computes `gates` (T, 2·Hv), β and then g of a token's heads, from b (T, Hv), the output of `in_proj_b`, and the decay's inputs.
pub fn delta_gates_fwd(rec: &mut Recording, t: usize, heads: usize, decay: DecayInputs, b: &Slot, gates: &Slot) {
    run(rec, "delta_gates_fwd", t, heads, &[decay.a, decay.a_log, decay.dt_bias, b, gates]);
}

/// Gradients that [`delta_gates_bwd`] computes.
#[derive(Debug, Clone, Copy)]
pub struct DeltaGatesGradients<'a> {
    /// (T, Hv), written.
    pub d_a: &'a Slot,
    /// (T, Hv), written.
    pub d_b: &'a Slot,
    /// (Hv), d_A_log and d_dt_bias, to which their gradients are added; `None` where they are frozen.
    pub params: Option<[&'a Slot; 2]>,
}

/// Computes the gradients from d_gates (T, 2·Hv) and the forward pass's inputs and gates.
pub fn delta_gates_bwd(
    rec: &mut Recording,
    t: usize,
    heads: usize,
    decay: DecayInputs,
    gates: &Slot,
    d_gates: &Slot,
    gradients: DeltaGatesGradients,
) {
    let DeltaGatesGradients { d_a, d_b, params } = gradients;
    let terms = rec.gpu().alloc_activation(t * heads);
    let slots = [decay.a, decay.a_log, decay.dt_bias, gates, d_gates, d_a, d_b, &terms];
    run(rec, "delta_gates_bwd", t, heads, &slots);
    if let Some([d_a_log, d_dt_bias]) = params {
        column_sum::column_sum(rec, &terms, t, heads, 0, heads, d_a_log);
        column_sum::column_sum(rec, d_a, t, heads, 0, heads, d_dt_bias);
    }
}

/// Gate kernels: `delta_gates_fwd`, `delta_gates_bwd`.
pub struct DeltaGatesKernels;

impl Kernel for DeltaGatesKernels {
    fn name(&self) -> &'static str {
        "delta_gates"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["delta_gates"]
    }
    fn variants(&self) -> Vec<Shader> {
        ["delta_gates_fwd", "delta_gates_bwd"].map(shader).into()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("DeltaGatesParams", size_of::<DeltaGatesParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let cases = [(1, 1), (3, 5), (64, 4), (65, 3), (200, 16)];
        cases.map(|(t, heads)| Box::new(GatesCase { t, heads }) as Box<dyn Case>).into()
    }
    fn benches(&self, model: &ModelShape, t: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        vec![Box::new(GatesCase { t, heads: model.n_heads })]
    }
}

struct GatesCase {
    t: usize,
    heads: usize,
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

impl Case for GatesCase {
    fn label(&self) -> String {
        format!("T={} Hv={}", self.t, self.heads)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let n = self.t * self.heads;
        // Wide enough for both branches of softplus.
        let a = (0..n).map(|_| 4.0 * rng.normal()).collect();
        let a_log = (0..self.heads).map(|_| 1.0 + 0.7 * rng.normal()).collect();
        let dt_bias = HostTensor::normal(rng, self.heads);
        vec![HostTensor::F32(a), HostTensor::F32(a_log), dt_bias, HostTensor::normal(rng, n)]
    }
    /// Computes the gates as `Qwen3NextGatedDeltaNet.forward` of transformers 5.24.0, models/qwen3_next/modeling_qwen3_next.py (and
    /// `Qwen3_5GatedDeltaNet`, models/qwen3_5/modular_qwen3_5.py): beta = b.sigmoid(), g = -A_log.exp() * softplus(a + dt_bias).
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let n = self.heads;
        let g = |t: usize, h: usize| -x[1][h].exp() * (x[0][t * n + h] + x[2][h]).exp().ln_1p();
        let token = |t: usize| {
            let beta = (0..n).map(move |h| sigmoid(x[3][t * n + h]));
            beta.chain((0..n).map(move |h| g(t, h)))
        };
        vec![(0..self.t).flat_map(token).collect()]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let n = self.heads;
        let mut d: Vec<Vec<f64>> = x.iter().map(|x| vec![0.0; x.len()]).collect();
        for t in 0..self.t {
            for h in 0..n {
                let (d_beta, d_g) = (d_y[0][2 * t * n + h], d_y[0][2 * t * n + n + h]);
                let (at, beta) = (x[0][t * n + h] + x[2][h], sigmoid(x[3][t * n + h]));
                d[0][t * n + h] = -d_g * x[1][h].exp() * sigmoid(at);
                d[1][h] -= d_g * x[1][h].exp() * at.exp().ln_1p();
                d[2][h] += d[0][t * n + h];
                d[3][t * n + h] = d_beta * beta * (1.0 - beta);
            }
        }
        d
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![2 * self.t * self.heads]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let n = self.t * self.heads;
        let [gates, d_a, d_a_log, d_dt_bias, d_b] =
            [2 * n, n, self.heads, self.heads, n].map(|n| rec.gpu().alloc_activation(n));
        [&d_a_log, &d_dt_bias].iter().for_each(|s| rec.clear(s));
        let decay = DecayInputs { a: &x[0], a_log: &x[1], dt_bias: &x[2] };
        delta_gates_fwd(rec, self.t, self.heads, decay, &x[3], &gates);
        let gradients = DeltaGatesGradients { d_a: &d_a, d_b: &d_b, params: Some([&d_a_log, &d_dt_bias]) };
        delta_gates_bwd(rec, self.t, self.heads, decay, &gates, &d_y[0], gradients);
        CaseOutputs { y: vec![gates], d_x: vec![Some(d_a), Some(d_a_log), Some(d_dt_bias), Some(d_b)] }
    }
    fn reduction_len(&self) -> usize {
        self.t
    }
    fn cost(&self) -> Cost {
        let n = (self.t * self.heads) as u64;
        Cost { bytes: 4 * 12 * n, flops: 32 * n }
    }
}
