//! One AdamW update over a page of parameters, with clipping by the global norm.

use super::shapes::ModelShape;
use super::{Case, Cost, Host, Kernel, Outputs};
use crate::gpu::{Caps, Recording, Shader, Slot, grid_1d};
use crate::rng::Rng;

/// Constants of an update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Rate of this step.
    pub learning_rate: f64,
    /// β1.
    pub beta1: f64,
    /// β2.
    pub beta2: f64,
    /// Added to the root.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global norm; 0: no clipping.
    pub max_norm: f64,
    /// Update number t, from 1.
    pub step: u32,
    /// One over what the gradient was summed over (pairs, or tokens).
    pub scale: f64,
}

/// A page of trained parameters with its state: equal offsets in all four.
#[derive(Debug, Clone)]
pub struct Page {
    /// Values.
    pub params: Slot,
    /// Gradients.
    pub grads: Slot,
    /// First moments.
    pub m: Slot,
    /// Second moments.
    pub v: Slot,
    /// Elements before this one decay.
    pub decay_end: usize,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AdamwParams {
    n: u32,
    decay_end: u32,
    scale: f32,
    max_norm: f32,
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    lr_decay: f32,
    step: f32,
    root_c2: f32,
    eps: f32,
}

fn shader() -> Shader {
    Shader::new("adamw", "adamw").with("WG", 64.0)
}

/// Updates the page; `norm` (1) is the norm of scaled gradients.
pub fn adamw(rec: &mut Recording, a: &AdamW, page: &Page, norm: &Slot) {
    let t = a.step as i32;
    let params = AdamwParams {
        n: page.params.len() as u32,
        decay_end: page.decay_end as u32,
        scale: a.scale as f32,
        max_norm: a.max_norm as f32,
        beta1: a.beta1 as f32,
        beta2: a.beta2 as f32,
        one_minus_beta1: (1.0 - a.beta1) as f32,
        one_minus_beta2: (1.0 - a.beta2) as f32,
        lr_decay: (a.learning_rate * a.weight_decay) as f32,
        step: (a.learning_rate / (1.0 - a.beta1.powi(t))) as f32,
        root_c2: (1.0 - a.beta2.powi(t)).sqrt() as f32,
        eps: a.eps as f32,
    };
    let slots = [norm, &page.grads, &page.params, &page.m, &page.v];
    rec.dispatch(&shader(), &params, &slots, grid_1d(page.params.len(), 64), 15 * page.params.len() as u64);
}

/// The family.
pub struct Optimiser;

impl Kernel for Optimiser {
    fn name(&self) -> &'static str {
        "adamw"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["adamw"]
    }
    fn variants(&self) -> Vec<Shader> {
        vec![shader()]
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("AdamwParams", size_of::<AdamwParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let base = AdamW {
            learning_rate: 0.02,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.05,
            max_norm: 1.0,
            step: 3,
            scale: 0.25,
        };
        let case = |n, decay_end, a, norm| Box::new(AdamwCase { n, decay_end, a, norm }) as Box<dyn Case>;
        vec![
            case(1, 1, base, 4.0),
            case(65, 40, base, 0.5),
            case(300, 0, AdamW { max_norm: 0.0, step: 1, ..base }, 7.0),
            case(64, 64, base, f32::NAN),
        ]
    }
    fn benches(&self, model: &ModelShape, _: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        let n = model.layer_parameters();
        let a = AdamW {
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            max_norm: 1.0,
            step: 3,
            scale: 1.0,
        };
        vec![Box::new(AdamwCase { n, decay_end: n, a, norm: 0.5 })]
    }
}

struct AdamwCase {
    n: usize,
    decay_end: usize,
    a: AdamW,
    norm: f32,
}

impl Case for AdamwCase {
    fn label(&self) -> String {
        format!("n={} decay_end={} norm={} {:?}", self.n, self.decay_end, self.norm, self.a)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<Host> {
        let square = |h: Host| match h {
            Host::F32(v) => Host::F32(v.into_iter().map(|x| x * x).collect()),
            other => other,
        };
        let [g, p, m, v] = [(); 4].map(|()| Host::normal(rng, self.n));
        vec![g, p, m, square(v)]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let a = &self.a;
        let [g, p, m, v] = [0, 1, 2, 3].map(|i| x[i].clone());
        if !self.norm.is_finite() {
            return vec![p, m, v];
        }
        let clip = if a.max_norm > 0.0 { (a.max_norm / (f64::from(self.norm) + 1e-6)).min(1.0) } else { 1.0 };
        let g: Vec<f64> = g.iter().map(|g| g * a.scale * clip).collect();
        let m: Vec<f64> = m.iter().zip(&g).map(|(m, g)| a.beta1 * m + (1.0 - a.beta1) * g).collect();
        let v: Vec<f64> = v.iter().zip(&g).map(|(v, g)| a.beta2 * v + (1.0 - a.beta2) * g * g).collect();
        let (c1, c2) = (1.0 - a.beta1.powi(a.step as i32), 1.0 - a.beta2.powi(a.step as i32));
        let update = |i: usize| {
            let decay = if i < self.decay_end { a.weight_decay } else { 0.0 };
            p[i] * (1.0 - a.learning_rate * decay) - a.learning_rate * (m[i] / c1) / ((v[i] / c2).sqrt() + a.eps)
        };
        vec![(0..self.n).map(update).collect(), m, v]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> Outputs {
        let gpu = rec.gpu();
        let [params, m, v] = [1, 2, 3].map(|i| {
            let slot = gpu.slot(self.n);
            rec.copy(&x[i], &slot);
            slot
        });
        let page = Page { params, grads: x[0].clone(), m, v, decay_end: self.decay_end };
        adamw(rec, &self.a, &page, &gpu.upload(&[self.norm]));
        Outputs { y: vec![page.params, page.m, page.v], d_x: Vec::new() }
    }
    fn reduction(&self) -> usize {
        4
    }
    fn cost(&self) -> Cost {
        Cost { bytes: 4 * 7 * self.n as u64, flops: 15 * self.n as u64 }
    }
}
