//! Cases of attention over arbitrary segments, and their f64 twin.

use super::attention_impl::AttentionImpl;
use super::segments::longest;
use super::{AttentionConfig, AttentionSaved, SegmentTable, attention_bwd, attention_fwd};
use crate::gpu::{Caps, MatmulPrecision, Recording, Slot, Variant};
use crate::kernels::attention_sinks::{SinkRows, attention_sinks_bwd, attention_sinks_fwd};
use crate::kernels::packed_batch::PackedBatch;
use crate::kernels::row_vec4s::{BASELINE, ROWS};
use crate::kernels::{Case, CaseOutputs, Cost, HostTensor};
use crate::rng::Rng;

/// Segments of a case: (length of a prefix, lengths of its branches). A prefix of length 0 has one branch.
type AttentionShape = &'static [(usize, &'static [usize])];

fn plain(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionConfig {
    AttentionConfig { heads, kv_heads, head_dim, scale: 0.4, softcap: None, window: None }
}

const SHAPES: [AttentionShape; 5] =
    [&[(0, &[1])], &[(0, &[5]), (0, &[3])], &[(0, &[64])], &[(4, &[3, 70]), (0, &[9])], &[(70, &[2, 5])]];

/// Returns cases on both sides of every implementation's tiles and blocks.
pub(super) fn all() -> Vec<Box<dyn Case>> {
    let mut any: Vec<(AttentionConfig, AttentionShape)> = SHAPES.map(|shape| (plain(4, 2, 6), shape)).into();
    any.push((AttentionConfig { window: Some(3), ..plain(2, 1, 4) }, SHAPES[3]));
    any.push((AttentionConfig { softcap: Some(0.7), window: Some(40), ..plain(3, 3, 5) }, SHAPES[4]));
    any.push((AttentionConfig { softcap: Some(2.0), ..plain(6, 2, 32) }, SHAPES[1]));
    let ways = [None, Some(Variant::Cpu), Some(Variant::Lanes)];
    let each = any.into_iter().flat_map(|(a, shape)| ways.map(|variant| (a, shape, variant)));
    let flash = in_tiles().into_iter().map(|(a, shape)| (a, shape, Some(Variant::Flash)));
    // Long enough for several rows per lane: with an aligned head size (whole vec4s), and with an unaligned one (half a vec4 more).
    let long: AttentionShape = &[(500, &[530, 3]), (0, &[20])];
    let heads = [AttentionConfig { softcap: Some(2.0), window: Some(700), ..plain(2, 1, 8) }, plain(2, 2, 10)];
    let flash = flash.chain(heads.map(|a| (a, long, Some(Variant::Lanes))));
    let case =
        |(a, shape, variant): (_, _, Option<_>)| case(a, segments(shape), variant.as_slice(), MatmulPrecision::Highest);
    // Of attention's kernels, only delta's loads rows: one invocation per row, several, and a whole workgroup.
    let rows = [4, 68, 256].map(|head_dim| (plain(4, 2, head_dim), SHAPES[3], Some(Variant::Rows)));
    each.chain(flash).chain(rows).map(case).chain(with_sinks()).collect()
}

/// Returns cases with sinks for every implementation: packed and prefix-shared sequences, with and without a window.
fn with_sinks() -> impl Iterator<Item = Box<dyn Case>> {
    let masked = |a| AttentionConfig { window: Some(3), softcap: Some(2.0), ..a };
    let ways = [None, Some(Variant::Cpu), Some(Variant::Lanes), Some(Variant::Rows)].map(|variant| (8, variant));
    let ways = ways.into_iter().chain([(6, None), (8, Some(Variant::Flash)), (64, Some(Variant::Flash))]);
    ways.flat_map(move |(head_dim, variant)| {
        let heads = plain(4, 2, head_dim);
        [(heads, SHAPES[1]), (masked(heads), SHAPES[3])].map(|(a, shape)| -> Box<dyn Case> {
            let allowed = variant.into_iter().collect();
            Box::new(AttentionCase {
                a,
                sinks: true,
                batch: segments(shape),
                allowed,
                precision: MatmulPrecision::Highest,
            })
        })
    })
}

/// Returns (attention, segments) for `attention_tiles.wgsl`: around tiles of 64, tiles of 32 for wide heads, and blocks of 32. There are
/// few head sizes, because each is compiled once, which is slow in software. 8 has fewer vec4s than invocations share, 68 has seventeen
/// slices, 80 and 128 have several, 256 has its own tiles of keys, 512 has d_k and d_v in kernels of their own.
fn in_tiles() -> Vec<(AttentionConfig, AttentionShape)> {
    let of = |head_dim| AttentionConfig { scale: 1.0 / (head_dim as f32).sqrt(), ..plain(2, 1, head_dim) };
    let edges: [AttentionShape; 4] = [&[(0, &[31]), (0, &[33])], &[(0, &[63])], &[(0, &[65])], &[(0, &[129])]];
    let mut all: Vec<(AttentionConfig, AttentionShape)> = SHAPES.map(|shape| (plain(4, 2, 8), shape)).into();
    all.extend([edges[0], edges[3]].map(|shape| (AttentionConfig { window: Some(33), ..plain(3, 3, 8) }, shape)));
    all.extend(edges.map(|shape| (of(64), shape)));
    all.push((AttentionConfig { heads: 6, kv_heads: 2, ..of(64) }, SHAPES[3]));
    all.push((AttentionConfig { window: Some(3), ..of(64) }, SHAPES[3]));
    all.push((AttentionConfig { softcap: Some(0.7), window: Some(40), ..of(80) }, SHAPES[4]));
    all.push((of(68), SHAPES[4]));
    all.extend([edges[2], SHAPES[3]].map(|shape| (of(128), shape)));
    all.extend([edges[0], edges[2]].map(|shape| (AttentionConfig { softcap: Some(2.0), ..of(256) }, shape)));
    all.extend([edges[0], SHAPES[3]].map(|shape| (of(512), shape)));
    all
}

/// Returns the cases of a variant that [`super::AttentionImpl`] may choose, at both sides of a tile's edge.
pub(super) fn of_variant(variant: Variant, caps: &Caps) -> Vec<Box<dyn Case>> {
    let (narrow, wide, shape): (_, _, AttentionShape) = match variant {
        Variant::Flash | Variant::FlashNarrow => (plain(4, 2, 64), plain(4, 2, 80), SHAPES[3]),
        Variant::Cpu if caps.has_lanes() => return Vec::new(),
        Variant::Lanes if !caps.has_lanes() => return Vec::new(),
        Variant::Cpu | Variant::Lanes => (plain(4, 2, 6), plain(4, 2, 8), &[(4, &[3, 21])]),
        Variant::Tiles32 | Variant::Tiles64 | Variant::Tiles64Wide | Variant::Tiles128 | Variant::Tiles128Wide => {
            return Vec::new();
        }
        // Of attention's kernels, only delta's loads rows.
        Variant::Rows => (plain(4, 2, 8), plain(4, 2, 68), SHAPES[3]),
    };
    let masked = AttentionConfig { softcap: Some(2.0), window: Some(3), ..wide };
    [narrow, masked].map(|a| case(a, segments(shape), &[variant], MatmulPrecision::Highest)).into()
}

/// Returns the cases of a precision, on both sides of fragments, blocks and tiles. There are only two head sizes, because each is compiled
/// once, which is slow in software: 20 and 36 are not whole fragments, and have several slices.
pub(super) fn of_precision(precision: MatmulPrecision) -> Vec<Box<dyn Case>> {
    let of = |head_dim| AttentionConfig { scale: 1.0 / (head_dim as f32).sqrt(), ..plain(2, 1, head_dim) };
    let edges: [AttentionShape; 2] = [&[(0, &[31]), (0, &[33])], &[(0, &[129])]];
    let mut all: Vec<(AttentionConfig, AttentionShape)> =
        [edges[1], edges[0]].map(|shape| (AttentionConfig { window: Some(33), ..of(20) }, shape)).into();
    all.extend(SHAPES.map(|shape| (of(20), shape)));
    all.push((AttentionConfig { heads: 6, kv_heads: 2, ..of(20) }, SHAPES[3]));
    all.push((AttentionConfig { softcap: Some(0.7), window: Some(40), ..of(36) }, SHAPES[4]));
    let sinks = [of(20), AttentionConfig { window: Some(33), ..of(20) }].map(|a| -> Box<dyn Case> {
        Box::new(AttentionCase { a, sinks: true, batch: segments(SHAPES[3]), allowed: Vec::new(), precision })
    });
    all.into_iter().map(|(a, shape)| case(a, segments(shape), &[], precision)).chain(sinks).collect()
}

/// Builds a batch with ranges and positions alone.
pub(super) fn segments(shape: &[(usize, &[usize])]) -> PackedBatch {
    let mut batch = PackedBatch::default();
    for &(prefix, branches) in shape {
        let start = batch.ranges.len() as u32;
        let n = prefix as u32;
        for i in 0..n {
            batch.ranges.push([start, start, start, start + i + 1]);
            batch.positions.push(i);
        }
        for &len in branches {
            let own = batch.ranges.len() as u32;
            for i in 0..len as u32 {
                batch.ranges.push([start, start + n, own, own + i + 1]);
                batch.positions.push(n + i);
            }
        }
    }
    batch
}

struct AttentionCase {
    a: AttentionConfig,
    /// Whether each head has a sink.
    sinks: bool,
    batch: PackedBatch,
    allowed: Vec<Variant>,
    precision: MatmulPrecision,
}

pub(super) fn case(
    a: AttentionConfig,
    batch: PackedBatch,
    allowed: &[Variant],
    precision: MatmulPrecision,
) -> Box<dyn Case> {
    Box::new(AttentionCase { a, sinks: false, batch, allowed: allowed.to_vec(), precision })
}

impl AttentionCase {
    fn t(&self) -> usize {
        self.batch.ranges.len()
    }
    /// Returns whether query i sees key j, by definition: positions of keys are looked up, independently of the kernel's arithmetic.
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
    /// Returns e^sink of a head, the sink's part of a row's total; 0 where there are no sinks.
    fn sink(&self, x: &[Vec<f64>], h: usize) -> f64 {
        if self.sinks { x[1][h].exp() } else { 0.0 }
    }
    /// Computes the total of e^score over the keys that query i of head h sees, and the sink; and for each key (key, probability p, slope of
    /// the soft cap).
    fn row(&self, x: &[Vec<f64>], i: usize, h: usize) -> (f64, Vec<(usize, f64, f64)>) {
        let (e, l, sink, x) = (self.a.head_dim, self.a.packed(), self.sink(x, h), &x[0]);
        let q = &x[i * l.q_stride + h * e..][..e];
        let kv = h / (self.a.heads / self.a.kv_heads);
        let score = |j: usize| {
            let k = &x[l.k_start + j * l.kv_stride + kv * e..][..e];
            self.cap(q.iter().zip(k).map(|(a, b)| a * b).sum())
        };
        let seen: Vec<usize> = (0..self.t()).filter(|&j| self.sees(i, j)).collect();
        let scores: Vec<(f64, f64)> = seen.iter().map(|&j| score(j)).collect();
        let total: f64 = sink + scores.iter().map(|s| s.0.exp()).sum::<f64>();
        (total, seen.into_iter().zip(scores).map(|(j, (s, slope))| (j, s.exp() / total, slope)).collect())
    }
}

impl Case for AttentionCase {
    fn label(&self) -> String {
        let AttentionConfig { heads, kv_heads, head_dim, softcap, window, .. } = self.a;
        let mut label = format!("T={} H={heads} K={kv_heads} E={head_dim}", self.t());
        label += &softcap.map_or(String::new(), |c| format!(" cap={c}"));
        label += &window.map_or(String::new(), |w| format!(" window={w}"));
        label += if self.sinks { " sinks" } else { "" };
        let variants: Vec<&str> = self.allowed.iter().map(|v| v.name()).collect();
        let variants = if variants.is_empty() { "baseline".into() } else { variants.join(",") };
        format!("{label} {variants} {}", self.precision.name())
    }
    /// Draws q, k and v, and then the sinks.
    fn inputs(&self, rng: &mut Rng) -> Vec<HostTensor> {
        let qkv = HostTensor::normal(rng, self.t() * self.a.packed().q_stride);
        [qkv].into_iter().chain(self.sinks.then(|| HostTensor::normal(rng, self.a.heads))).collect()
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (e, l) = (self.a.head_dim, self.a.packed());
        let mut o = vec![0.0; self.t() * self.a.heads * e];
        for i in 0..self.t() {
            for h in 0..self.a.heads {
                let kv = h / (self.a.heads / self.a.kv_heads);
                for (j, p, _) in self.row(x, i, h).1 {
                    for d in 0..e {
                        o[(i * self.a.heads + h) * e + d] += p * x[0][l.v_start + j * l.kv_stride + kv * e + d];
                    }
                }
            }
        }
        vec![o]
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (e, l, inputs, x) = (self.a.head_dim, self.a.packed(), x, &x[0]);
        let (mut d, mut d_sinks) = (vec![0.0; x.len()], vec![0.0; if self.sinks { self.a.heads } else { 0 }]);
        for i in 0..self.t() {
            for h in 0..self.a.heads {
                let kv = h / (self.a.heads / self.a.kv_heads);
                let d_o = &d_y[0][(i * self.a.heads + h) * e..][..e];
                let (total, row) = self.row(inputs, i, h);
                let value = |j: usize| &x[l.v_start + j * l.kv_stride + kv * e..][..e];
                let d_p: Vec<f64> = row.iter().map(|r| value(r.0).iter().zip(d_o).map(|(a, b)| a * b).sum()).collect();
                let mean: f64 = row.iter().zip(&d_p).map(|(r, d)| r.1 * d).sum();
                // The sink's value is zero.
                d_sinks.get_mut(h).into_iter().for_each(|d| *d -= self.sink(inputs, h) / total * mean);
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
        [d].into_iter().chain(self.sinks.then_some(d_sinks)).collect()
    }
    fn d_y_lens(&self) -> Vec<usize> {
        vec![self.t() * self.a.heads * self.a.head_dim]
    }
    fn launch(&self, rec: &mut Recording, x: &[Slot], d_y: &[Slot]) -> CaseOutputs {
        let gpu = rec.gpu();
        let (n, l) = (self.t() * self.a.heads, self.a.packed());
        let (o, lse, d_qkv) =
            (gpu.alloc_activation(n * self.a.head_dim), gpu.alloc_activation(n), gpu.alloc_activation(x[0].len()));
        let b = &self.batch;
        let implementation =
            AttentionImpl::choose(gpu.caps(), &self.allowed, self.precision, self.a.head_dim, longest(&b.ranges));
        let heads = [(self.a.windowed_heads(), implementation)];
        let s = SegmentTable::new(gpu, &b.ranges, &b.positions, &heads, true);
        let rows = SinkRows { tokens: self.t(), heads: self.a.heads, head_dim: self.a.head_dim };
        let lse_keys = if self.sinks { gpu.alloc_activation(n) } else { lse.clone() };
        attention_fwd(rec, &self.a, &l, &x[0], &x[0], &s, &o, &lse_keys);
        x.get(1).into_iter().for_each(|sinks| attention_sinks_fwd(rec, &rows, sinks, &lse_keys, &o, &lse));
        let saved = AttentionSaved { qkv: &x[0], o: &o, lse: &lse };
        let of_delta = if self.allowed.contains(&Variant::Rows) { ROWS } else { BASELINE };
        let delta = rec.with_variants(of_delta, |rec| attention_bwd(rec, &self.a, &l, saved, &s, &d_y[0], &d_qkv));
        let d_sinks = x.get(1).map(|sinks| {
            let d_sinks = gpu.alloc_activation(self.a.heads);
            rec.clear(&d_sinks);
            attention_sinks_bwd(rec, &rows, sinks, &lse, &delta, &d_sinks);
            Some(d_sinks)
        });
        CaseOutputs { y: vec![o], d_x: [Some(d_qkv)].into_iter().chain(d_sinks).collect() }
    }
    fn reduction_len(&self) -> usize {
        (self.t() * self.a.heads / self.a.kv_heads).max(self.a.head_dim)
    }
    fn precision(&self) -> MatmulPrecision {
        self.precision
    }
    fn is_supported(&self, caps: &Caps) -> bool {
        self.allowed.iter().all(|variant| caps.variants.contains(variant))
    }
    fn cost(&self) -> Cost {
        let seen: usize = (0..self.t()).map(|i| (0..self.t()).filter(|&j| self.sees(i, j)).count()).sum();
        let bytes = 4 * self.t() * (2 * self.a.packed().q_stride + 3 * self.a.heads * self.a.head_dim);
        Cost { bytes: bytes as u64, flops: (18 * seen * self.a.heads * self.a.head_dim) as u64 }
    }
}
