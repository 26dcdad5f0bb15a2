//! Cases of the gated delta rule, and their f64 twin: the recurrence, token by token.

use super::chunks::Segment;
use super::{DeltaChunks, DeltaHeads, DeltaRuleSaved, OuterStates, delta_rule_bwd, delta_rule_fwd, delta_rule_step};
use crate::gpu::{Caps, Recording, Slot, Variant};
use crate::kernels::gather::gather_scatter;
use crate::kernels::row_vec4s::BASELINE;
use crate::kernels::shapes::ModelShape;
use crate::kernels::{Case, CaseOutputs, Cost, HostTensor};
use crate::rng::Rng;

/// Segments of a case: (length of a prefix, lengths of its branches). A prefix of length 0 has one branch.
type DeltaShape = &'static [(usize, &'static [usize])];

/// Variants of a case for CPUs.
const ON_CPU: &[Variant] = &[Variant::Cpu];

fn heads(key_heads: usize, value_heads: usize, key_dim: usize, value_dim: usize) -> DeltaHeads {
    DeltaHeads { key_heads, value_heads, key_dim, value_dim }
}

/// Returns the segments of a shape: prefixes precede their branches.
pub(super) fn segments(shape: &[(usize, &[usize])]) -> Vec<Segment> {
    let mut all: Vec<Segment> = Vec::new();
    let mut start = 0;
    let mut push = |all: &mut Vec<Segment>, len, prefix| {
        all.push(Segment { start, len, prefix });
        start += len;
    };
    for &(prefix, branches) in shape {
        let of_prefix = (prefix > 0).then_some(all.len());
        if prefix > 0 {
            push(&mut all, prefix, None);
        }
        for &len in branches {
            push(&mut all, len, of_prefix);
        }
    }
    all
}

/// Returns cases on both sides of chunks, of columns per workgroup, and of whole vec4s.
pub(super) fn all() -> Vec<Box<dyn Case>> {
    // Few head sizes, because each is compiled once, which is slow in software.
    let shapes: [(DeltaHeads, DeltaShape); 8] = [
        (heads(1, 1, 5, 8), &[(0, &[1])]),
        (heads(2, 4, 6, 8), &[(0, &[5]), (0, &[63])]),
        (heads(2, 2, 6, 5), &[(70, &[2, 65, 1])]),
        (heads(1, 2, 8, 8), &[(4, &[3, 70]), (0, &[9])]),
        (heads(1, 1, 8, 8), &[(0, &[64]), (0, &[65]), (64, &[64, 1])]),
        (heads(1, 3, 8, 8), &[(0, &[200])]),
        (heads(1, 2, 68, 132), &[(66, &[1, 64])]),
        (heads(1, 1, 128, 128), &[(0, &[66])]),
    ];
    let outer: [(DeltaHeads, DeltaShape); 2] =
        [(heads(1, 2, 8, 8), &[(0, &[65]), (3, &[2, 64])]), (heads(2, 2, 8, 8), &[(0, &[1]), (0, &[129])])];
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    for allowed in [BASELINE, ON_CPU] {
        let case = |heads, shape: DeltaShape, outer| {
            Box::new(DeltaCase { heads, segments: segments(shape), outer, allowed }) as Box<dyn Case>
        };
        cases.extend(shapes.iter().map(|&(heads, shape)| case(heads, shape, false)));
        cases.extend(outer.iter().map(|&(heads, shape)| case(heads, shape, true)));
    }
    let steps = [(heads(1, 1, 5, 8), 1), (heads(2, 4, 6, 8), 3), (heads(1, 2, 128, 128), 2), (heads(1, 1, 68, 132), 2)];
    cases.extend(steps.map(|(heads, n)| Box::new(StepCase { heads, n }) as Box<dyn Case>));
    cases
}

/// Returns the cases to time: a layer with the model's query heads, and a token of it, in two sequences.
pub(super) fn benches(model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
    let heads = heads(model.n_heads, model.n_heads, model.head_dim, model.head_dim);
    let halves = segments(&[(0, &[t / 2]), (0, &[t - t / 2])]);
    let allowed = if caps.variants.contains(&Variant::Cpu) { ON_CPU } else { BASELINE };
    vec![
        Box::new(DeltaCase { heads, segments: halves, outer: false, allowed }),
        Box::new(StepCase { heads, n: (t / 128).max(1) }),
    ]
}

/// Draws q and k of norm 1/√dk and 1, as [`super::super::l2norm`] leaves them, and v, for `t` tokens.
fn draw_qkv(rng: &mut Rng, heads: &DeltaHeads, t: usize) -> HostTensor {
    let mut qkv = Vec::new();
    for _ in 0..t {
        for head in 0..2 * heads.key_heads {
            let x: Vec<f32> = (0..heads.key_dim).map(|_| rng.normal()).collect();
            let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt();
            let scale = if head < heads.key_heads { 1.0 / (heads.key_dim as f32).sqrt() } else { 1.0 };
            qkv.extend(x.iter().map(|x| scale * x / norm));
        }
        qkv.extend((0..heads.value_width()).map(|_| rng.normal()));
    }
    HostTensor::F32(qkv)
}

/// Draws β and g of `t` tokens: heads that remember long, heads that forget soon, and tokens at which a head forgets everything.
fn draw_gates(rng: &mut Rng, heads: &DeltaHeads, t: usize) -> HostTensor {
    let n = heads.value_heads;
    let mut gates = Vec::new();
    for token in 0..t {
        gates.extend((0..n).map(|_| 1.0 / (1.0 + (-rng.normal()).exp())));
        for head in 0..n {
            let g = -(rng.normal() - 1.0 - 2.0 * (head % 3) as f32).exp();
            gates.push(if token % 29 == 17 && head % 2 == 0 { -70.0 } else { g });
        }
    }
    HostTensor::F32(gates)
}

/// q, k, v, β and g of a token and value head.
struct TokenHead<'x> {
    q: &'x [f64],
    k: &'x [f64],
    v: &'x [f64],
    beta: f64,
    g: f64,
}

fn token_head<'x>(heads: &DeltaHeads, qkv: &'x [f64], gates: &[f64], t: usize, h: usize) -> TokenHead<'x> {
    let (e, f) = (heads.key_dim, heads.value_dim);
    let token = &qkv[t * heads.width()..][..heads.width()];
    let key = h / (heads.value_heads / heads.key_heads);
    let gates = &gates[2 * t * heads.value_heads..];
    TokenHead {
        q: &token[key * e..][..e],
        k: &token[(heads.key_heads + key) * e..][..e],
        v: &token[heads.key_width() + h * f..][..f],
        beta: gates[h],
        g: gates[heads.value_heads + h],
    }
}

impl TokenHead<'_> {
    /// Steps a state (dk, dv): `torch_recurrent_gated_delta_rule` of transformers 5.24.0, models/qwen3_next/modeling_qwen3_next.py (which
    /// models/qwen3_5 imports). Returns v − Sᵀk and o.
    fn step(&self, s: &mut [f64]) -> (Vec<f64>, Vec<f64>) {
        let f = self.v.len();
        s.iter_mut().for_each(|s| *s *= self.g.exp());
        let mut r = self.v.to_vec();
        for (row, k) in s.chunks(f).zip(self.k) {
            r.iter_mut().zip(row).for_each(|(r, s)| *r -= s * k);
        }
        let mut o = vec![0.0; f];
        for ((row, k), q) in s.chunks_mut(f).zip(self.k).zip(self.q) {
            for c in 0..f {
                row[c] += k * self.beta * r[c];
                o[c] += q * row[c];
            }
        }
        (r, o)
    }
}

/// Case of a layer over packed segments, without or with outer states.
struct DeltaCase {
    heads: DeltaHeads,
    segments: Vec<Segment>,
    outer: bool,
    allowed: &'static [Variant],
}

impl DeltaCase {
    fn t(&self) -> usize {
        self.segments.iter().map(|s| s.len).sum()
    }
    fn state(&self) -> usize {
        self.heads.key_dim * self.heads.value_dim
    }
    /// Returns a segment's tokens behind those of its prefix.
    fn tokens(&self, s: usize) -> Vec<usize> {
        let own = |s: &Segment| s.start..s.start + s.len;
        let prefix = self.segments[s].prefix.map(|p| own(&self.segments[p]));
        prefix.into_iter().flatten().chain(own(&self.segments[s])).collect()
    }
    /// Returns the state before a segment's tokens, of a head.
    fn first_state(&self, x: &[Vec<f64>], s: usize, h: usize) -> Vec<f64> {
        let n = self.state();
        let root = self.segments[s].prefix.unwrap_or(s);
        if self.outer { x[2][(root * self.heads.value_heads + h) * n..][..n].to_vec() } else { vec![0.0; n] }
    }
}

impl Case for DeltaCase {
    fn label(&self) -> String {
        let DeltaHeads { key_heads, value_heads, key_dim, value_dim } = self.heads;
        let lens: Vec<String> =
            self.segments.iter().map(|s| format!("{}{}", if s.prefix.is_some() { "+" } else { "" }, s.len)).collect();
        let states = if self.outer { " states" } else { "" };
        let variant = if self.allowed.is_empty() { "" } else { " cpu" };
        format!(
            "T={} Hk={key_heads} Hv={value_heads} dk={key_dim} dv={value_dim}{states}{variant} ({})",
            self.t(),
            lens.join(" ")
        )
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let mut all = vec![draw_qkv(rng, &self.heads, self.t()), draw_gates(rng, &self.heads, self.t())];
        if self.outer {
            all.push(HostTensor::normal(rng, self.segments.len() * self.heads.value_heads * self.state()));
        }
        all
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (f, n) = (self.heads.value_dim, self.heads.value_heads);
        let mut o = vec![0.0; self.t() * self.heads.value_width()];
        let mut last = Vec::new();
        for s in 0..self.segments.len() {
            for h in 0..n {
                let mut state = self.first_state(x, s, h);
                for t in self.tokens(s) {
                    let (_, out) = token_head(&self.heads, &x[0], &x[1], t, h).step(&mut state);
                    o[(t * n + h) * f..][..f].copy_from_slice(&out);
                }
                last.extend(state);
            }
        }
        if self.outer { vec![o, last] } else { vec![o] }
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (heads, n, f, e) = (&self.heads, self.heads.value_heads, self.heads.value_dim, self.heads.key_dim);
        let (mut d_qkv, mut d_gates) = (vec![0.0; x[0].len()], vec![0.0; x[1].len()]);
        let mut d_first = vec![0.0; if self.outer { x[2].len() } else { 0 }];
        // Each path from a first state to the last token of a segment that nothing continues; a prefix's outputs count once, on its own path.
        for s in 0..self.segments.len() {
            for h in 0..n {
                let tokens = self.tokens(s);
                let mut state = self.first_state(x, s, h);
                // Decayed states, v − Sᵀk, and states behind each token.
                let mut saved = Vec::new();
                for &t in &tokens {
                    let token = token_head(heads, &x[0], &x[1], t, h);
                    let decayed: Vec<f64> = state.iter().map(|s| s * token.g.exp()).collect();
                    let (r, _) = token.step(&mut state);
                    saved.push((decayed, r, state.clone()));
                }
                let mut d: Vec<f64> =
                    if self.outer { d_y[1][(s * n + h) * e * f..][..e * f].to_vec() } else { vec![0.0; e * f] };
                for (&t, (decayed, r, behind)) in tokens.iter().zip(&saved).rev() {
                    let token = token_head(heads, &x[0], &x[1], t, h);
                    let key = h / (n / heads.key_heads);
                    let q_at = t * heads.width() + key * e;
                    let k_at = q_at + heads.key_heads * e;
                    let v_at = t * heads.width() + heads.key_width() + h * f;
                    let is_own = t >= self.segments[s].start;
                    let d_o = |c: usize| if is_own { d_y[0][(t * n + h) * f + c] } else { 0.0 };
                    let mut d_r = vec![0.0; f];
                    for i in 0..e {
                        for c in 0..f {
                            d_qkv[q_at + i] += behind[i * f + c] * d_o(c);
                            d[i * f + c] += token.q[i] * d_o(c);
                            d_qkv[k_at + i] += d[i * f + c] * token.beta * r[c];
                            d_r[c] += d[i * f + c] * token.k[i];
                        }
                    }
                    for c in 0..f {
                        d_gates[2 * t * n + h] += d_r[c] * r[c];
                        d_r[c] *= token.beta;
                        d_qkv[v_at + c] += d_r[c];
                    }
                    for i in 0..e {
                        for c in 0..f {
                            d_qkv[k_at + i] -= decayed[i * f + c] * d_r[c];
                            d[i * f + c] -= token.k[i] * d_r[c];
                            d_gates[2 * t * n + n + h] += d[i * f + c] * decayed[i * f + c];
                            d[i * f + c] *= token.g.exp();
                        }
                    }
                }
                if self.outer {
                    let root = self.segments[s].prefix.unwrap_or(s);
                    d_first[(root * n + h) * e * f..][..e * f].iter_mut().zip(&d).for_each(|(sum, d)| *sum += d);
                }
            }
        }
        let first = self.outer.then_some(d_first);
        [d_qkv, d_gates].into_iter().chain(first).collect()
    }
    fn differentiable(&self) -> usize {
        if self.outer { 2 } else { 1 }
    }
    fn d_y_lens(&self) -> Vec<usize> {
        let o = self.t() * self.heads.value_width();
        let last = self.segments.len() * self.heads.value_heads * self.state();
        if self.outer { vec![o, last] } else { vec![o] }
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let gpu = rec.gpu();
        let chunks = DeltaChunks::new(gpu, &self.segments, OuterStates { last: self.outer, first: self.outer });
        let states = gpu.alloc_activation(chunks.states_len(&self.heads));
        let d_states = gpu.alloc_activation(chunks.d_states_len(&self.heads));
        let o = gpu.alloc_activation(self.t() * self.heads.value_width());
        let (d_qkv, d_gates) = (gpu.alloc_activation(x[0].len()), gpu.alloc_activation(x[1].len()));
        let (s, width) = (self.segments.len(), self.heads.state_len());
        let rows = |from: usize| gpu.upload(&(from as u32..(from + s) as u32).collect::<Vec<_>>());
        if self.outer {
            gather_scatter(rec, &rows(s), s, &x[2], 0, width, width, &states);
            gather_scatter(rec, &rows(0), s, &d_y[1], 0, width, width, &d_states);
        }
        rec.with_variants(self.allowed, |rec| {
            delta_rule_fwd(rec, &self.heads, &chunks, &x[0], &x[1], &o, &states);
            let saved = DeltaRuleSaved { qkv: &x[0], gates: &x[1], o: &o, states: &states };
            delta_rule_bwd(rec, &self.heads, &chunks, saved, &d_y[0], &d_states, &d_qkv, &d_gates);
        });
        if !self.outer {
            return CaseOutputs { y: vec![o], d_x: vec![Some(d_qkv), Some(d_gates)] };
        }
        let d_first = gpu.alloc_activation(x[2].len());
        rec.clear(&d_first);
        let roots: Vec<u32> = (0..s as u32).filter(|&s| self.segments[s as usize].prefix.is_none()).collect();
        for root in roots {
            let to = gpu.upload(&[root]);
            gather_scatter(rec, &to, 1, &d_states, (s + root as usize) * width, width, width, &d_first);
        }
        CaseOutputs { y: vec![o, states], d_x: vec![Some(d_qkv), Some(d_gates), Some(d_first)] }
    }
    fn reduction_len(&self) -> usize {
        let most = self.heads.key_dim.max(self.heads.value_dim).max(self.t());
        most * self.heads.value_heads / self.heads.key_heads
    }
    fn is_supported(&self, caps: &Caps) -> bool {
        self.allowed.iter().all(|variant| caps.variants.contains(variant))
    }
    fn cost(&self) -> Cost {
        let h = &self.heads;
        let tokens = self.t() * (2 * h.width() + 3 * h.value_width() + 4 * h.value_heads);
        // Forward, and the backward pass with what it recomputes, in the recurrence: S'k, the update and Sᵀq, each twice as much backward.
        Cost { bytes: 4 * tokens as u64, flops: (18 * self.t() * h.value_heads * self.state()) as u64 }
    }
}

/// Case of one token for each of `n` sequences, whose states are every other row of a cache.
struct StepCase {
    heads: DeltaHeads,
    n: usize,
}

impl StepCase {
    /// Returns the index of an element of a sequence's state, in which dk and dv are padded, in the cache.
    fn at(&self, sequence: usize, h: usize, i: usize, c: usize) -> usize {
        let wide = self.heads.padded();
        2 * sequence * wide.state_len() + (h * wide.key_dim + i) * wide.value_dim + c
    }
}

impl Case for StepCase {
    fn label(&self) -> String {
        let DeltaHeads { key_heads, value_heads, key_dim, value_dim } = self.heads;
        format!("step n={} Hk={key_heads} Hv={value_heads} dk={key_dim} dv={value_dim}", self.n)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let mut cache = vec![0.0; 2 * self.n * self.heads.state_len()];
        for s in 0..self.n {
            for h in 0..self.heads.value_heads {
                for i in 0..self.heads.key_dim {
                    (0..self.heads.value_dim).for_each(|c| cache[self.at(s, h, i, c)] = rng.normal());
                }
            }
        }
        vec![draw_qkv(rng, &self.heads, self.n), draw_gates(rng, &self.heads, self.n), HostTensor::F32(cache)]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (n, e, f) = (self.heads.value_heads, self.heads.key_dim, self.heads.value_dim);
        let (mut o, mut cache) = (Vec::new(), x[2].clone());
        for s in 0..self.n {
            for h in 0..n {
                let places: Vec<usize> =
                    (0..e).flat_map(|i| (0..f).map(move |c| (i, c))).map(|(i, c)| self.at(s, h, i, c)).collect();
                let mut state: Vec<f64> = places.iter().map(|&p| cache[p]).collect();
                o.extend(token_head(&self.heads, &x[0], &x[1], s, h).step(&mut state).1);
                places.iter().zip(state).for_each(|(&p, s)| cache[p] = s);
            }
        }
        vec![o, cache]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], _: &[Slot]) -> CaseOutputs {
        let gpu = rec.gpu();
        let o = gpu.alloc_activation(self.n * self.heads.value_width());
        let cache = gpu.alloc_activation(x[2].len());
        rec.copy(&x[2], &cache);
        let rows = gpu.upload(&(0..self.n as u32).map(|s| 2 * s).collect::<Vec<_>>());
        delta_rule_step(rec, &self.heads, self.n, &rows, &x[0], &x[1], &cache, &o);
        CaseOutputs { y: vec![o, cache], d_x: Vec::new() }
    }
    fn reduction_len(&self) -> usize {
        self.heads.key_dim
    }
    fn cost(&self) -> Cost {
        let state = self.n * self.heads.state_len();
        Cost {
            bytes: 4 * (2 * state + self.n * (self.heads.width() + self.heads.value_width())) as u64,
            flops: 8 * state as u64,
        }
    }
}
