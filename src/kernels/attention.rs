//! FlashAttention-2 over a segment table: causal, grouped queries, sliding window, soft-cap, shared prefixes.

use super::shapes::ModelShape;
use super::{Case, Cost, Host, Kernel, Outputs};
use crate::data::batch::Batch;
use crate::gpu::{Caps, Gpu, Recording, Shader, Slot, Variant};
use crate::rng::Rng;

/// Heads and mask of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// H.
    pub heads: usize,
    /// K, divides H.
    pub kv_heads: usize,
    /// E.
    pub head_dim: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// s ← c·tanh(s/c).
    pub softcap: Option<f32>,
    /// Key j is visible to query i iff their positions differ by less than this.
    pub window: Option<usize>,
}

/// Where q, k, v are: rows of `q_stride` and `kv_stride` elements, heads side by side from the starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Layout {
    /// First query element.
    pub q_start: usize,
    /// Elements a token.
    pub q_stride: usize,
    /// First key element.
    pub k_start: usize,
    /// First value element.
    pub v_start: usize,
    /// Elements a key.
    pub kv_stride: usize,
}

impl Attention {
    /// q, k, v side by side in one slot of (T, (H + 2K)·E).
    pub fn packed(&self) -> Layout {
        let (q, k) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        Layout { q_start: 0, q_stride: q + 2 * k, k_start: q, v_start: q + k, kv_stride: q + 2 * k }
    }
}

/// Which shader walks the keys, and by how many queries a workgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walk {
    /// `attention.wgsl`: a query, or a key, an invocation.
    Rows(usize),
    /// `attention_lanes.wgsl`.
    Lanes,
}

impl Walk {
    fn of(caps: &Caps, allowed: &[Variant]) -> Self {
        if allowed.contains(&Variant::Lanes) && caps.has_lanes() {
            Self::Lanes
        } else if allowed.contains(&Variant::Cpu) {
            Self::Rows(LANES)
        } else {
            Self::Rows(TILE)
        }
    }

    fn tile(self) -> usize {
        match self {
            Self::Rows(tile) => tile,
            Self::Lanes => LANES * ROWS,
        }
    }
}

/// The keys that each query sees, on the device.
#[derive(Debug)]
pub struct Segments {
    words: Slot,
    t: usize,
    walk: Walk,
}

const WORDS: usize = 8;
/// Queries (or keys) a workgroup walks the other side with.
const TILE: usize = 64;
/// The same on a CPU: as wide as its vectors, because short segments leave wider tiles mostly masked.
const LANES: usize = 8;
/// Queries, or keys, a lane of `attention_lanes.wgsl`. Two take a quarter less time, and three times as long to compile (16 s for E = 48).
const ROWS: usize = 1;

impl Segments {
    /// For training: queries and keys are the batch's tokens.
    pub fn of_batch(gpu: &Gpu, batch: &Batch) -> Self {
        let walk = Walk::of(gpu.caps(), &gpu.caps().variants);
        Self::new(gpu, &batch.ranges, &batch.positions, &batch.query_end, walk)
    }

    /// For generation: `ranges` index a cache. Queries of different sequences see different keys, so tiles are one query.
    pub fn of_cache(gpu: &Gpu, ranges: &[[u32; 4]], positions: &[u32]) -> Self {
        Self::new(gpu, ranges, positions, &vec![0; positions.len()], Walk::Rows(1))
    }

    fn new(gpu: &Gpu, ranges: &[[u32; 4]], positions: &[u32], query_end: &[u32], walk: Walk) -> Self {
        let mut words = Vec::with_capacity(ranges.len() * (WORDS + 1));
        for ((range, &position), &end) in ranges.iter().zip(positions).zip(query_end) {
            words.extend_from_slice(range);
            words.extend([position, end, 0, 0]);
        }
        for queries in ranges.chunks(walk.tile()) {
            let first = |r: &[u32; 4]| if r[0] < r[1] { r[0].min(r[2]) } else { r[2] };
            words.push(queries.iter().map(first).min().unwrap_or(0));
            words.push(queries.iter().map(|r| r[1].max(r[3])).max().unwrap_or(0));
        }
        Self { words: gpu.upload(&words), t: ranges.len(), walk }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AttentionParams {
    t: u32,
    heads: u32,
    kv_heads: u32,
    window: u32,
    q_start: u32,
    q_stride: u32,
    k_start: u32,
    v_start: u32,
    kv_stride: u32,
    tiles_start: u32,
    scale: f32,
    softcap: f32,
}

fn params(a: &Attention, l: &Layout, s: &Segments) -> AttentionParams {
    AttentionParams {
        t: s.t as u32,
        heads: a.heads as u32,
        kv_heads: a.kv_heads as u32,
        window: a.window.unwrap_or(0) as u32,
        q_start: l.q_start as u32,
        q_stride: l.q_stride as u32,
        k_start: l.k_start as u32,
        v_start: l.v_start as u32,
        kv_stride: l.kv_stride as u32,
        tiles_start: (s.t * WORDS) as u32,
        scale: a.scale,
        softcap: a.softcap.unwrap_or(1.0),
    }
}

/// Whether every head's row is of whole, aligned quads.
fn in_quads(a: &Attention, l: &Layout) -> bool {
    [a.head_dim, l.q_start, l.q_stride, l.k_start, l.v_start, l.kv_stride].iter().all(|n| n.is_multiple_of(4))
}

/// A kernel: its entry points in both files.
#[derive(Debug, Clone, Copy)]
enum Entry {
    Forward,
    BackwardQ,
    BackwardKv,
}

fn shader(entry: Entry, head_dim: usize, softcap: bool, walk: Walk, quads: bool) -> Shader {
    let shader = match (walk, entry) {
        (Walk::Rows(_), Entry::Forward) => Shader::new("attention", "attention_fwd"),
        (Walk::Rows(_), Entry::BackwardQ) => Shader::new("attention", "attention_bwd_q"),
        (Walk::Rows(_), Entry::BackwardKv) => Shader::new("attention", "attention_bwd_kv"),
        (Walk::Lanes, Entry::Forward) => Shader::new("attention_lanes", "attention_lanes_fwd"),
        (Walk::Lanes, Entry::BackwardQ) => Shader::new("attention_lanes", "attention_lanes_bwd_q"),
        (Walk::Lanes, Entry::BackwardKv) => Shader::new("attention_lanes", "attention_lanes_bwd_kv"),
    };
    let shader = match walk {
        Walk::Rows(tile) => shader.with("TILE", tile as f64),
        Walk::Lanes => shader.with("ROWS", ROWS as f64),
    };
    let shader = shader.with("E", head_dim as f64).with("SOFTCAP", f64::from(u8::from(softcap)));
    if quads { shader } else { shader.substitute("shared/head_quads", "shared/head_values") }
}

fn delta_shader(head_dim: usize) -> Shader {
    Shader::new("attention", "attention_bwd_delta").with("TILE", TILE as f64).with("E", head_dim as f64)
}

/// Scores computed, at most: for the count of operations.
fn pairs(s: &Segments) -> u64 {
    (s.t * s.t / 2) as u64
}

/// o (T, H·E) and the saved log-sum-exp (T, H). `q` and `kv` may be one slot.
#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's bindings, in order")]
pub fn attention_fwd(
    rec: &mut Recording,
    a: &Attention,
    l: &Layout,
    q: &Slot,
    kv: &Slot,
    s: &Segments,
    o: &Slot,
    lse: &Slot,
) {
    let shader = shader(Entry::Forward, a.head_dim, a.softcap.is_some(), s.walk, in_quads(a, l));
    let grid = [s.t.div_ceil(s.walk.tile()) as u32, a.heads as u32, 1];
    let flops = 4 * pairs(s) * (a.heads * a.head_dim) as u64;
    rec.dispatch(&shader, &params(a, l, s), &[q, kv, &s.words, o, lse], grid, flops);
}

/// What the backward pass needs from the forward one.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// (T, (H + 2K)·E), as `layout` says.
    pub qkv: &'a Slot,
    /// (T, H·E).
    pub o: &'a Slot,
    /// (T, H).
    pub lse: &'a Slot,
}

/// d_qkv from d_o (T, H·E): all of it is written.
pub fn attention_bwd(
    rec: &mut Recording,
    a: &Attention,
    l: &Layout,
    saved: Saved,
    s: &Segments,
    d_o: &Slot,
    d_qkv: &Slot,
) {
    let params = params(a, l, s);
    let make = |entry| shader(entry, a.head_dim, a.softcap.is_some(), s.walk, in_quads(a, l));
    let groups = |tile| s.t.div_ceil(tile) as u32;
    let flops = pairs(s) * (a.heads * a.head_dim) as u64;
    let delta = rec.gpu().slot(s.t * a.heads);
    let grid = [groups(TILE), a.heads as u32, 1];
    rec.dispatch(&delta_shader(a.head_dim), &params, &[saved.o, d_o, &delta], grid, 0);
    let slots = [saved.qkv, d_o, saved.lse, &delta, &s.words, d_qkv];
    let grid = [groups(s.walk.tile()), a.heads as u32, 1];
    rec.dispatch(&make(Entry::BackwardQ), &params, &slots, grid, 6 * flops);
    let grid = [groups(s.walk.tile()), a.kv_heads as u32, 1];
    rec.dispatch(&make(Entry::BackwardKv), &params, &slots, grid, 8 * flops);
}

/// The family.
pub struct FlashAttention;

impl Kernel for FlashAttention {
    fn name(&self) -> &'static str {
        "attention"
    }
    fn modules(&self) -> &'static [&'static str] {
        &["attention", "attention_lanes"]
    }
    fn variants(&self) -> Vec<Shader> {
        let mut all = vec![delta_shader(64), shader(Entry::Forward, 64, false, Walk::Rows(1), true)];
        for walk in [Walk::Rows(TILE), Walk::Rows(LANES), Walk::Lanes] {
            for quads in [true, false] {
                for entry in [Entry::Forward, Entry::BackwardQ, Entry::BackwardKv] {
                    all.extend([false, true].map(|softcap| shader(entry, 64, softcap, walk, quads)));
                }
            }
        }
        all
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![("AttentionParams", size_of::<AttentionParams>())]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        let plain = |heads, kv_heads, head_dim| Attention {
            heads,
            kv_heads,
            head_dim,
            scale: 0.4,
            softcap: None,
            window: None,
        };
        let mut all = Vec::new();
        // Segments: (length of a prefix, lengths of its branches); no prefix: one branch.
        let shapes: [&[(usize, &[usize])]; 5] =
            [&[(0, &[1])], &[(0, &[5]), (0, &[3])], &[(0, &[64])], &[(4, &[3, 70]), (0, &[9])], &[(70, &[2, 5])]];
        for segments in shapes {
            all.push((plain(4, 2, 6), segments));
        }
        all.push((Attention { window: Some(3), ..plain(2, 1, 4) }, shapes[3]));
        all.push((Attention { softcap: Some(0.7), window: Some(40), ..plain(3, 3, 5) }, shapes[4]));
        all.push((Attention { softcap: Some(2.0), ..plain(6, 2, 32) }, shapes[1]));
        let ways = [None, Some(Variant::Cpu), Some(Variant::Lanes)];
        let each = all.into_iter().flat_map(|(a, s)| ways.map(|variant| (a, s, variant)));
        each.map(|(a, s, variant)| case(a, segments(s), variant.as_slice())).collect()
    }
    fn benches(&self, model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
        let (heads, kv_heads, head_dim) = (model.n_heads, model.n_kv_heads, model.head_dim);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let a = Attention { heads, kv_heads, head_dim, scale, softcap: None, window: None };
        // Two sequences, as of a pair.
        let batch = segments(&[(0, &[t / 2]), (0, &[t - t / 2])]);
        vec![case(a, batch, &caps.variants)]
    }
    fn variant_cases(&self, variant: Variant, caps: &Caps) -> Vec<Box<dyn Case>> {
        if !matches!((variant, caps.has_lanes()), (Variant::Cpu, false) | (Variant::Lanes, true)) {
            return Vec::new();
        }
        let a = |head_dim, softcap, window| Attention { heads: 4, kv_heads: 2, head_dim, scale: 0.4, softcap, window };
        [a(6, None, None), a(8, Some(2.0), Some(3))].map(|a| case(a, segments(&[(4, &[3, 21])]), &[variant])).into()
    }
}

/// A batch's table alone.
fn segments(shape: &[(usize, &[usize])]) -> Batch {
    let mut batch = Batch::default();
    for &(prefix, branches) in shape {
        let start = batch.ranges.len() as u32;
        let n = prefix as u32;
        let end = start + n + branches.iter().sum::<usize>() as u32;
        for i in 0..n {
            batch.ranges.push([start, start, start, start + i + 1]);
            batch.positions.push(i);
            batch.query_end.push(end);
        }
        for &len in branches {
            let own = batch.ranges.len() as u32;
            for i in 0..len as u32 {
                batch.ranges.push([start, start + n, own, own + i + 1]);
                batch.positions.push(n + i);
                batch.query_end.push(own + len as u32);
            }
        }
    }
    batch
}

struct AttentionCase {
    a: Attention,
    batch: Batch,
    allowed: Vec<Variant>,
}

fn case(a: Attention, batch: Batch, allowed: &[Variant]) -> Box<dyn Case> {
    Box::new(AttentionCase { a, batch, allowed: allowed.to_vec() })
}

impl AttentionCase {
    fn t(&self) -> usize {
        self.batch.ranges.len()
    }
    /// By its definition, not by the kernel's arithmetic: positions of keys are looked up.
    fn sees(&self, i: usize, j: usize) -> bool {
        let r = self.batch.ranges[i].map(|x| x as usize);
        let in_range = (r[0]..r[1]).contains(&j) || (r[2]..r[3]).contains(&j);
        let distance = self.batch.positions[i] as i64 - i64::from(self.batch.positions[j]);
        in_range && self.a.window.is_none_or(|w| distance < w as i64)
    }
    fn cap(&self, raw: f64) -> (f64, f64) {
        let s = raw * f64::from(self.a.scale);
        match self.a.softcap.map(f64::from) {
            Some(c) => (c * (s / c).tanh(), 1.0 - (s / c).tanh().powi(2)),
            None => (s, 1.0),
        }
    }
    /// (key, p, slope of the cap) for each key that query i of head h sees.
    fn row(&self, x: &[f64], i: usize, h: usize) -> Vec<(usize, f64, f64)> {
        let (e, l) = (self.a.head_dim, self.a.packed());
        let q = &x[i * l.q_stride + h * e..][..e];
        let kv = h / (self.a.heads / self.a.kv_heads);
        let score = |j: usize| {
            let k = &x[l.k_start + j * l.kv_stride + kv * e..][..e];
            self.cap(q.iter().zip(k).map(|(a, b)| a * b).sum())
        };
        let seen: Vec<usize> = (0..self.t()).filter(|&j| self.sees(i, j)).collect();
        let scores: Vec<(f64, f64)> = seen.iter().map(|&j| score(j)).collect();
        let total: f64 = scores.iter().map(|s| s.0.exp()).sum();
        seen.into_iter().zip(scores).map(|(j, (s, slope))| (j, s.exp() / total, slope)).collect()
    }
}

impl Case for AttentionCase {
    fn label(&self) -> String {
        format!("T={} {:?} {:?}", self.t(), self.a, self.allowed)
    }
    fn inputs(&self, rng: &mut Rng) -> Vec<Host> {
        vec![Host::normal(rng, self.t() * self.a.packed().q_stride)]
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (e, l) = (self.a.head_dim, self.a.packed());
        let mut o = vec![0.0; self.t() * self.a.heads * e];
        for i in 0..self.t() {
            for h in 0..self.a.heads {
                let kv = h / (self.a.heads / self.a.kv_heads);
                for (j, p, _) in self.row(&x[0], i, h) {
                    for d in 0..e {
                        o[(i * self.a.heads + h) * e + d] += p * x[0][l.v_start + j * l.kv_stride + kv * e + d];
                    }
                }
            }
        }
        vec![o]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (e, l, x) = (self.a.head_dim, self.a.packed(), &x[0]);
        let mut d = vec![0.0; x.len()];
        for i in 0..self.t() {
            for h in 0..self.a.heads {
                let kv = h / (self.a.heads / self.a.kv_heads);
                let d_o = &d_y[0][(i * self.a.heads + h) * e..][..e];
                let row = self.row(x, i, h);
                let value = |j: usize| &x[l.v_start + j * l.kv_stride + kv * e..][..e];
                let d_p: Vec<f64> = row.iter().map(|r| value(r.0).iter().zip(d_o).map(|(a, b)| a * b).sum()).collect();
                let mean: f64 = row.iter().zip(&d_p).map(|(r, d)| r.1 * d).sum();
                for (&(j, p, slope), d_p) in row.iter().zip(d_p) {
                    let d_s = p * (d_p - mean) * slope * f64::from(self.a.scale);
                    for c in 0..e {
                        let (q, k) = (i * l.q_stride + h * e + c, l.k_start + j * l.kv_stride + kv * e + c);
                        d[q] += d_s * x[k];
                        d[k] += d_s * x[q];
                        d[l.v_start + j * l.kv_stride + kv * e + c] += p * d_o[c];
                    }
                }
            }
        }
        vec![d]
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.t() * self.a.heads * self.a.head_dim]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> Outputs {
        let gpu = rec.gpu();
        let (n, l) = (self.t() * self.a.heads, self.a.packed());
        let (o, lse, d_qkv) = (gpu.slot(n * self.a.head_dim), gpu.slot(n), gpu.slot(x[0].len()));
        let b = &self.batch;
        let s = Segments::new(gpu, &b.ranges, &b.positions, &b.query_end, Walk::of(gpu.caps(), &self.allowed));
        attention_fwd(rec, &self.a, &l, &x[0], &x[0], &s, &o, &lse);
        let saved = Saved { qkv: &x[0], o: &o, lse: &lse };
        attention_bwd(rec, &self.a, &l, saved, &s, &d_y[0], &d_qkv);
        Outputs { y: vec![o], d_x: vec![Some(d_qkv)] }
    }
    fn reduction(&self) -> usize {
        (self.t() * self.a.heads / self.a.kv_heads).max(self.a.head_dim)
    }
    fn cost(&self) -> Cost {
        let seen: usize = (0..self.t()).map(|i| (0..self.t()).filter(|&j| self.sees(i, j)).count()).sum();
        let bytes = 4 * self.t() * (2 * self.a.packed().q_stride + 3 * self.a.heads * self.a.head_dim);
        Cost { bytes: bytes as u64, flops: (18 * seen * self.a.heads * self.a.head_dim) as u64 }
    }
}
