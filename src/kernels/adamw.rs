//! AdamW update of a bucket of parameters, with clipping by the global norm.

use super::moments::{BLOCK, MomentFormat, eight_bits, maps};
use super::shapes::ModelShape;
use super::storage::{DYNAMIC, DYNAMIC_UNSIGNED, WeightFormat, blockwise, middles, words};
use super::{Case, CaseOutputs, Cost, HostTensor, Kernel};
use crate::gpu::{Caps, Recording, Shader, Slot, grid_1d};
use crate::rng::{Rng, philox2x32};

/// Constants of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamwStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// β1, decay rate of the first moment.
    pub beta1: f64,
    /// β2, decay rate of the second moment.
    pub beta2: f64,
    /// ε, added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global norm of the gradients; 0 disables clipping.
    pub max_norm: f64,
    /// Update number t, from 1.
    pub step: u32,
    /// Factor on gradients: one over the number of pairs, or tokens, that they were summed over.
    pub scale: f64,
    /// Random seed: parameters in bf16 are rounded stochastically.
    pub seed: u64,
}

/// Bucket of trained parameters with its state; all slots have the bucket's elements in one order.
#[derive(Debug, Clone)]
pub struct ParamBucket {
    /// Elements, a multiple of four.
    pub len: usize,
    /// Index of the first element among all trained elements, a multiple of four. Stochastic rounding depends on this index, and so not on
    /// how elements are split into buckets.
    pub first: usize,
    /// Values of the parameters.
    pub params: Slot,
    /// Storage format of the values: f32 or bf16.
    pub storage: WeightFormat,
    /// Gradients, f32.
    pub grads: Slot,
    /// First and second moments.
    pub moments: MomentFormat,
    /// End of the elements that have weight decay; a multiple of four.
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
    first_vec4: u32,
    number: u32,
    key: u32,
    pad: u32,
}

fn shader(storage: WeightFormat) -> Shader {
    let shader = Shader::new("adamw", "adamw").with("WG", (BLOCK / 4) as f64);
    if storage == WeightFormat::Bf16 { shader.substitute("shared/param", "shared/param_bf16") } else { shader }
}

/// Folds a 64-bit seed into the one-word key of `shared/philox`.
fn key(seed: u64) -> u32 {
    (seed ^ seed >> 32) as u32
}

/// Updates the bucket. `norm` (1) is the norm of the scaled gradients. Does nothing without moments.
pub fn adamw(rec: &mut Recording, a: &AdamwStep, page: &ParamBucket, norm: &Slot) {
    if let MomentFormat::None = page.moments {
        return;
    }
    let t = a.step as i32;
    let params = AdamwParams {
        n: page.len as u32,
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
        first_vec4: (page.first / 4) as u32,
        number: a.step,
        key: key(a.seed),
        pad: 0,
    };
    let slots = [vec![norm, &page.grads, &page.params], page.moments.slots()].concat();
    let shader = page.moments.select(shader(page.storage));
    rec.dispatch(&shader, &params, &slots, grid_1d(page.len, BLOCK), 15 * page.len as u64);
}

/// AdamW kernel: `adamw`, for parameters in f32 or bf16 and moments in f32 or eight bits.
pub struct AdamwKernels;

impl Kernel for AdamwKernels {
    fn name(&self) -> &'static str {
        "adamw"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["adamw"]
    }
    fn variants(&self) -> Vec<Shader> {
        let variant = |(storage, few)| if few { eight_bits(shader(storage)) } else { shader(storage) };
        VARIANTS.map(variant).into()
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("AdamwParams", size_of::<AdamwParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let base = AdamwStep { learning_rate: 0.02, weight_decay: 0.05, scale: 0.25, ..BENCH };
        let unclipped = AdamwStep { max_norm: 0.0, step: 1, ..base };
        let mut all: Vec<Box<dyn Case>> = Vec::new();
        let mut variants = |n, decay_end, a, norm| {
            let first = 12_345 * BLOCK;
            for (storage, eight_bits) in VARIANTS {
                all.push(Box::new(AdamwCase { n, first, decay_end, a, norm, storage, eight_bits }));
            }
        };
        variants(780, 0, unclipped, 7.0);
        variants(4, 4, base, 4.0);
        variants(256, 40, base, 0.5);
        variants(1024, 1024, AdamwStep { seed: 1 << 40, ..base }, 0.5);
        variants(260, 64, base, f32::NAN);
        all
    }
    fn benches(&self, model: &ModelShape, _: usize, _: &Caps) -> Vec<Box<dyn Case>> {
        let n = model.layer_parameters().next_multiple_of(4);
        let case = |(storage, eight_bits)| -> Box<dyn Case> {
            Box::new(AdamwCase { n, first: 0, decay_end: n, a: BENCH, norm: 0.5, storage, eight_bits })
        };
        VARIANTS.map(case).into()
    }
}

/// Variants: (storage format of parameters, whether moments have eight bits).
const VARIANTS: [(WeightFormat, bool); 4] =
    [(WeightFormat::F32, false), (WeightFormat::F32, true), (WeightFormat::Bf16, false), (WeightFormat::Bf16, true)];

const BENCH: AdamwStep = AdamwStep {
    learning_rate: 1e-4,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.01,
    max_norm: 1.0,
    step: 3,
    scale: 1.0,
    seed: 7,
};

/// Relative f32 error, 16 ulp, within which the device may choose either of two neighbouring values.
const ULPS: f64 = 16.0 * f32::EPSILON as f64;

struct AdamwCase {
    n: usize,
    first: usize,
    decay_end: usize,
    a: AdamwStep,
    norm: f32,
    storage: WeightFormat,
    eight_bits: bool,
}

/// Result of an update in f64.
struct UpdatedBucket {
    p: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
    /// Sums of the magnitudes of the terms of p, m and v: f32 errors are relative to these sums.
    sizes: [Vec<f64>; 3],
}

impl AdamwCase {
    /// Computes the update in f64 from `[gradients, values, m, v]`.
    fn update(&self, [g, p, m, v]: [&[f64]; 4]) -> UpdatedBucket {
        let a = &self.a;
        let clip = if a.max_norm > 0.0 { (a.max_norm / (f64::from(self.norm) + 1e-6)).min(1.0) } else { 1.0 };
        let (c1, c2) = (1.0 - a.beta1.powi(a.step as i32), 1.0 - a.beta2.powi(a.step as i32));
        let mut all = UpdatedBucket { p: Vec::new(), m: Vec::new(), v: Vec::new(), sizes: Default::default() };
        for i in 0..self.n {
            let g = g[i] * a.scale * clip;
            let (m_old, m_new) = (a.beta1 * m[i], (1.0 - a.beta1) * g);
            let v = a.beta2 * v[i] + (1.0 - a.beta2) * g * g;
            let decay = if i < self.decay_end { a.weight_decay } else { 0.0 };
            let step = |m: f64| a.learning_rate * (m / c1) / ((v / c2).sqrt() + a.eps);
            all.p.push(p[i] * (1.0 - a.learning_rate * decay) - step(m_old + m_new));
            all.m.push(m_old + m_new);
            all.v.push(v);
            let m_size = m_old.abs() + m_new.abs();
            let sizes = [p[i].abs() + step(m_size), m_size, v];
            all.sizes.iter_mut().zip(sizes).for_each(|(all, size)| all.push(size));
        }
        all
    }

    /// Returns both moments, dequantised where they have eight bits.
    fn moments(&self, x: &[Vec<f64>]) -> [Vec<f64>; 2] {
        if !self.eight_bits {
            return [x[2].clone(), x[3].clone()];
        }
        [0, 1].map(|i| (0..self.n).map(|k| x[2 + i][k] * x[4][k / BLOCK * 2 + i]).collect())
    }

    /// Returns a value's bf16 neighbour towards zero, as bits, and its position between both neighbours, 0 to 1.
    fn between(value: f64) -> (u16, f64) {
        let nearest = half::bf16::from_f64(value);
        let below = nearest.to_bits() - u16::from(nearest.to_f64().abs() > value.abs());
        let [low, high] = [below, below + 1].map(|bits| half::bf16::from_bits(bits).to_f64().abs());
        (below, (value.abs() - low) / (high - low))
    }

    /// Draws element `i`'s 16 random bits, 0 to 65,535, as the device does.
    fn chance(&self, i: usize) -> f64 {
        let drawn = philox2x32([((self.first + i) / 4) as u32, self.a.step], key(self.a.seed));
        f64::from(drawn[i % 4 / 2] >> (16 * (i % 2)) & 0xffff)
    }

    /// Rounds values as the device stores them. In bf16 that is stochastic: the random bits are added to the bits that are cut off, and a
    /// carry rounds up.
    fn stored(&self, p: &[f64]) -> Vec<f64> {
        if self.storage == WeightFormat::F32 {
            return p.to_vec();
        }
        let half = |(i, &value): (usize, &f64)| {
            let (below, part) = Self::between(value);
            below + u16::from(part * 65_536.0 + self.chance(i) >= 65_536.0)
        };
        let halves: Vec<u8> = p.iter().enumerate().map(half).flat_map(u16::to_le_bytes).collect();
        words(&halves).map(f64::from).collect()
    }

    /// Returns the indices of the elements where f32 errors may decide: a moment in the middle between two codes, or a value whose random
    /// bits barely carry or barely do not. Either choice of the device is right there.
    fn open(&self, x: &[Vec<f64>]) -> Vec<usize> {
        if !self.norm.is_finite() {
            return Vec::new();
        }
        let [m, v] = self.moments(x);
        let new = self.update([&x[0], &x[1], &m, &v]);
        let near_code = |moments: &[f64], map: &[f32], sizes: &[f64]| -> Vec<bool> {
            let (middles, largest) = (middles(map), largest(moments));
            let near = |i: usize| {
                let largest = largest[i / BLOCK].max(1e-300);
                let at = below(&middles, moments[i] / largest);
                let around = &middles[at.saturating_sub(1)..middles.len().min(at + 1)];
                around.iter().any(|m| (moments[i] - f64::from(*m) * largest).abs() < ULPS * sizes[i])
            };
            (0..self.n).map(near).collect()
        };
        let near_carry = |i: usize| {
            let (below, part) = Self::between(new.p[i]);
            let step = (half::bf16::from_bits(below + 1).to_f64() - half::bf16::from_bits(below).to_f64()).abs();
            (part + self.chance(i) / 65_536.0 - 1.0).abs() * step < ULPS * new.sizes[0][i]
        };
        let mut open: Vec<bool> = (0..self.n).map(|i| self.storage == WeightFormat::Bf16 && near_carry(i)).collect();
        if self.eight_bits {
            let of_m = near_code(&new.m, &*DYNAMIC, &new.sizes[1]);
            let of_v = near_code(&new.v, &*DYNAMIC_UNSIGNED, &new.sizes[2]);
            open.iter_mut().zip(of_m).zip(of_v).for_each(|((open, m), v)| *open |= m || v);
        }
        (0..self.n).filter(|&i| open[i]).collect()
    }
}

/// Counts the ascending middles below x: the code of the nearest value.
fn below(middles: &[f32], x: f64) -> usize {
    middles.partition_point(|m| f64::from(*m) < x)
}

/// Quantises values, given in units of their block's absmax, and packs the codes into words.
fn coded(values: impl Iterator<Item = f64>, map: &[f32]) -> Vec<f64> {
    let middles = middles(map);
    let codes: Vec<u8> = values.map(|x| below(&middles, x) as u8).collect();
    words(&codes).map(f64::from).collect()
}

/// Computes each block's absmax.
fn largest(moments: &[f64]) -> Vec<f64> {
    moments.chunks(BLOCK).map(|block| block.iter().fold(0.0, |m: f64, x| m.max(x.abs()))).collect()
}

impl Case for AdamwCase {
    fn label(&self) -> String {
        let Self { n, first, decay_end, a, norm, storage, .. } = self;
        let moments = if self.eight_bits { "8-bit" } else { "f32" };
        let (step, seed, max_norm) = (a.step, a.seed, a.max_norm);
        format!(
            "{storage:?} moments={moments} n={n} first={first} decay_end={decay_end} norm={norm}/{max_norm} step={step} seed={seed}"
        )
    }
    /// Redraws elements so close to a rounding boundary that f32 errors could flip the device's choice.
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let draw = |rng: &mut Rng| (0..self.n).map(|_| rng.normal()).collect::<Vec<f32>>();
        let in_storage = |p: f32| if self.storage == WeightFormat::Bf16 { half::bf16::from_f32(p).to_f32() } else { p };
        let [mut g, mut p, mut m, v] = [(); 4].map(|()| draw(rng));
        let mut v: Vec<f32> = v.iter().map(|v| v * v).collect();
        p.iter_mut().for_each(|p| *p = in_storage(*p));
        // The second block was never touched: its moments are zero.
        let untouched = BLOCK..self.n.min(2 * BLOCK);
        for all in [&mut g, &mut m, &mut v] {
            all.iter_mut().take(untouched.end).skip(BLOCK).for_each(|x| *x = 0.0);
        }
        let moments = if self.eight_bits {
            let hold = |values: &[f32], map: &[f32]| {
                let (mut codes, absmax) = blockwise(values, BLOCK, map);
                codes[BLOCK.min(self.n)..untouched.end].fill(0);
                codes.resize(self.n.next_multiple_of(BLOCK), 0);
                let values = codes.iter().map(|&c| map[usize::from(c)]).collect();
                (HostTensor::Packed { values, words: words(&codes).collect() }, absmax)
            };
            let ((m, m_absmax), (v, v_absmax)) = (hold(&m, &*DYNAMIC), hold(&v, &*DYNAMIC_UNSIGNED));
            let absmax = m_absmax.iter().zip(&v_absmax).flat_map(|(m, v)| [*m, *v]).collect();
            vec![m, v, HostTensor::F32(absmax)]
        } else {
            vec![HostTensor::F32(m), HostTensor::F32(v)]
        };
        loop {
            let params = if self.storage == WeightFormat::Bf16 {
                HostTensor::Bf16(p.clone())
            } else {
                HostTensor::F32(p.clone())
            };
            let all = [vec![HostTensor::F32(g.clone()), params], moments.clone()].concat();
            let open = self.open(&all.iter().map(HostTensor::to_f64).collect::<Vec<_>>());
            if open.is_empty() {
                return all;
            }
            for i in open {
                p[i] = in_storage(rng.normal());
                if !untouched.contains(&i) {
                    g[i] = rng.normal();
                }
            }
        }
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let [m, v] = self.moments(x);
        let new = self.update([&x[0], &x[1], &m, &v]);
        let (p, m, v) = if self.norm.is_finite() { (&new.p, &new.m, &new.v) } else { (&x[1], &m, &v) };
        if !self.eight_bits {
            return vec![self.stored(p), m.clone(), v.clone()];
        }
        if !self.norm.is_finite() {
            let codes = |i: usize, map| coded(x[2 + i].iter().copied(), map);
            return vec![self.stored(p), codes(0, &*DYNAMIC), codes(1, &*DYNAMIC_UNSIGNED), x[4].clone()];
        }
        let absmax = [largest(m), largest(v)];
        let codes = |i: usize, moments: &[f64], map| {
            let relative = moments.iter().enumerate().map(|(k, x)| x / absmax[i][k / BLOCK].max(1e-300));
            coded(relative.chain(std::iter::repeat_n(0.0, self.n.next_multiple_of(BLOCK) - self.n)), map)
        };
        let scales = absmax[0].iter().zip(&absmax[1]).flat_map(|(m, v)| [*m, *v]).collect();
        vec![self.stored(p), codes(0, m, &*DYNAMIC), codes(1, v, &*DYNAMIC_UNSIGNED), scales]
    }
    fn exact(&self, output: usize) -> bool {
        match output {
            0 => self.storage == WeightFormat::Bf16,
            1 | 2 => self.eight_bits,
            _ => false,
        }
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        let gpu = rec.gpu();
        let copies: Vec<Slot> = x[1..].iter().map(|x| gpu.alloc_activation(x.len())).collect();
        x[1..].iter().zip(&copies).for_each(|(x, copy)| rec.copy(x, copy));
        let moments = match copies.as_slice() {
            [_, m, v] => MomentFormat::F32 { m: m.clone(), v: v.clone() },
            [_, m, v, absmax] => {
                MomentFormat::EightBits { m: m.clone(), v: v.clone(), absmax: absmax.clone(), maps: maps(gpu) }
            }
            _ => MomentFormat::None,
        };
        let page = ParamBucket {
            len: self.n,
            first: self.first,
            params: copies[0].clone(),
            storage: self.storage,
            grads: x[0].clone(),
            moments,
            decay_end: self.decay_end,
        };
        adamw(rec, &self.a, &page, &gpu.upload(&[self.norm]));
        CaseOutputs { y: copies, d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        4
    }
    fn cost(&self) -> Cost {
        let (n, blocks) = (self.n as u64, self.n.div_ceil(BLOCK) as u64);
        let params = if self.storage == WeightFormat::Bf16 { 2 * n } else { 4 * n };
        let moments = if self.eight_bits { 2 * n + 8 * blocks } else { 8 * n };
        Cost { bytes: 4 * n + 2 * (params + moments), flops: 15 * n }
    }
}
