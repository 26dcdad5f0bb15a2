//! FlashAttention-2 over a segment table: causal, grouped queries, sliding window, soft-cap, shared prefixes.
//!
//! Four implementations: the baseline, with one query or key per invocation (`attention.wgsl`); tiles in workgroup memory, for GPUs
//! (`attention_tiles.wgsl`); lanes, for CPU adapters with subgroups (`attention_lanes.wgsl`); cooperative matrices, for precisions below
//! the highest (`attention_coop.wgsl`). The device, the precision and the head size choose.

mod attention_impl;
mod cases;
mod coop;
mod segment_tiles;
mod segments;
mod tiles;

pub use segments::{SegmentTable, WindowedHeads};

use attention_impl::{AttentionImpl, LANES, TILE};
use cases::{case, segments};
use coop::{CoopAttention, HeadRows, SplitF16};
use tiles::AttentionTiles;

use super::row_vec4s::{self, RowLanes};
use super::shapes::ModelShape;
use super::{Case, Kernel};
use crate::gpu::{Caps, CountedWork, MatmulPrecision, Recording, Shader, Slot, Variant, uniform_bytes_in_parts};

/// Heads and mask of a layer's attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionConfig {
    /// H, the number of query heads.
    pub heads: usize,
    /// K, the number of key and value heads; divides H.
    pub kv_heads: usize,
    /// E, the size of a head.
    pub head_dim: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// c of the soft cap s ← c·tanh(s/c).
    pub softcap: Option<f32>,
    /// Sliding window: key j is visible to query i iff their positions differ by less than this.
    pub window: Option<usize>,
}

/// Layout of q, k and v in their slots, in elements: a token's heads lie side by side from a start, and tokens are a stride apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QkvLayout {
    /// First query element.
    pub q_start: usize,
    /// Elements per query.
    pub q_stride: usize,
    /// First key element.
    pub k_start: usize,
    /// First value element.
    pub v_start: usize,
    /// Elements per key.
    pub kv_stride: usize,
}

impl AttentionConfig {
    /// Returns the layout of q, k and v side by side in one slot of (T, (H + 2K)·E).
    pub fn packed(&self) -> QkvLayout {
        let (q, k) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        QkvLayout { q_start: 0, q_stride: q + 2 * k, k_start: q, v_start: q + k, kv_stride: q + 2 * k }
    }

    /// Returns the head size and the window, by which [`SegmentTable`] has its tables.
    pub fn windowed_heads(&self) -> WindowedHeads {
        WindowedHeads { head_dim: self.head_dim, window: self.window }
    }
}

impl QkvLayout {
    /// Returns the heads of q, k and v in their slots.
    fn heads<'a>(&self, a: &AttentionConfig, q: &'a Slot, kv: &'a Slot) -> [HeadRows<'a>; 3] {
        let of_kv = |start| HeadRows { slot: kv, n: a.kv_heads, start, stride: self.kv_stride };
        let q = HeadRows { slot: q, n: a.heads, start: self.q_start, stride: self.q_stride };
        [q, of_kv(self.k_start), of_kv(self.v_start)]
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AttentionParams {
    t: u32,
    heads: u32,
    kv_heads: u32,
    q_start: u32,
    q_stride: u32,
    k_start: u32,
    v_start: u32,
    kv_stride: u32,
    query_tiles: u32,
    key_tiles: u32,
    scale: f32,
    softcap: f32,
}

fn params(a: &AttentionConfig, l: &QkvLayout, s: &SegmentTable) -> AttentionParams {
    AttentionParams {
        t: s.t as u32,
        heads: a.heads as u32,
        kv_heads: a.kv_heads as u32,
        q_start: l.q_start as u32,
        q_stride: l.q_stride as u32,
        k_start: l.k_start as u32,
        v_start: l.v_start as u32,
        kv_stride: l.kv_stride as u32,
        query_tiles: s.t as u32,
        key_tiles: s.table(a.windowed_heads()).key_tiles as u32,
        scale: a.scale,
        softcap: a.softcap.unwrap_or(1.0),
    }
}

/// Returns whether every head's row has whole, aligned vec4s.
fn in_vec4s(a: &AttentionConfig, l: &QkvLayout) -> bool {
    [a.head_dim, l.q_start, l.q_stride, l.k_start, l.v_start, l.kv_stride].iter().all(|n| n.is_multiple_of(4))
}

/// Kernel of attention; each implementation's file has an entry point for it.
#[derive(Debug, Clone, Copy)]
enum AttentionEntry {
    Forward,
    BackwardQ,
    BackwardKv,
}

impl AttentionEntry {
    const ALL: [Self; 3] = [Self::Forward, Self::BackwardQ, Self::BackwardKv];
}

fn delta_shader(head_dim: usize) -> Shader {
    Shader::new("attention", "attention_bwd_delta").with("TILE", TILE as f64).with("E", head_dim as f64)
}

/// Returns the division of rows of o and d_o in `attention_delta_rows.wgsl`.
fn delta_lanes(head_dim: usize) -> RowLanes {
    RowLanes::new(head_dim, 2)
}

fn delta_rows_shader(head_dim: usize) -> Shader {
    delta_lanes(head_dim).shader("attention_delta_rows", "attention_delta_rows")
}

/// Computes delta (T, H), the product d_o·o of each head's row.
fn attention_bwd_delta(
    rec: &mut Recording,
    a: &AttentionConfig,
    t: usize,
    params: &AttentionParams,
    o: &Slot,
    d_o: &Slot,
    delta: &Slot,
) {
    if row_vec4s::in_vec4s(rec, &[a.head_dim]) {
        let rows = t * a.heads;
        let grid = delta_lanes(a.head_dim).grid(rows);
        return rec.dispatch(&delta_rows_shader(a.head_dim), &(rows as u32), &[o, d_o, delta], grid, 0);
    }
    let grid = [t.div_ceil(TILE) as u32, a.heads as u32];
    rec.dispatch_in_parts(&delta_shader(a.head_dim), params, &[o, d_o, delta], grid, 0);
}

/// Computes o (T, H·E), and saves the log-sum-exp (T, H). `q` and `kv` may be one slot.
#[expect(clippy::too_many_arguments, reason = "a launcher's arguments are the kernel's bindings, in order")]
pub fn attention_fwd(
    rec: &mut Recording,
    a: &AttentionConfig,
    l: &QkvLayout,
    q: &Slot,
    kv: &Slot,
    s: &SegmentTable,
    o: &Slot,
    lse: &Slot,
) {
    let table = s.table(a.windowed_heads());
    let shader = table.implementation.shader(AttentionEntry::Forward, a.head_dim, a.softcap.is_some(), in_vec4s(a, l));
    let grid = [table.groups[0] as u32, a.heads as u32];
    let flops = 4 * table.pairs * (a.heads * a.head_dim) as u64;
    let params = params(a, l, s);
    match table.implementation {
        AttentionImpl::Coop(coop) => {
            let SplitF16 { values, row_exponents } = coop.split_heads(rec, s.t, &l.heads(a, q, kv));
            rec.dispatch_in_parts(
                &shader,
                &params,
                &[&values, &values, &table.vec4s, o, lse, &row_exponents],
                grid,
                flops,
            );
        }
        _ => rec.dispatch_in_parts(&shader, &params, &[q, kv, &table.vec4s, o, lse], grid, flops),
    }
}

/// Values of the forward pass that the backward pass needs.
#[derive(Clone, Copy)]
pub struct AttentionSaved<'a> {
    /// (T, (H + 2K)·E), laid out as the call's [`QkvLayout`] says.
    pub qkv: &'a Slot,
    /// (T, H·E), outputs.
    pub o: &'a Slot,
    /// (T, H), log-sum-exp.
    pub lse: &'a Slot,
}

/// Computes d_qkv from d_o (T, H·E); all of d_qkv is written. Returns delta (T, H), the product d_o·o of each head's row, from which the
/// gradient of sinks follows.
pub fn attention_bwd(
    rec: &mut Recording,
    a: &AttentionConfig,
    l: &QkvLayout,
    saved: AttentionSaved,
    s: &SegmentTable,
    d_o: &Slot,
    d_qkv: &Slot,
) -> Slot {
    let (params, table) = (params(a, l, s), s.table(a.windowed_heads()));
    let make = |entry| table.implementation.shader(entry, a.head_dim, a.softcap.is_some(), in_vec4s(a, l));
    let flops = table.pairs * (a.heads * a.head_dim) as u64;
    let delta = rec.gpu().alloc_activation(s.t * a.heads);
    attention_bwd_delta(rec, a, s.t, &params, saved.o, d_o, &delta);
    let heads_f16 = match table.implementation {
        AttentionImpl::Coop(coop) => {
            let [q, k, v] = l.heads(a, saved.qkv, saved.qkv);
            let pulls = HeadRows { slot: d_o, n: a.heads, start: 0, stride: a.heads * a.head_dim };
            Some(coop.split_heads(rec, s.t, &[q, k, v, pulls]))
        }
        _ => None,
    };
    let slots = match &heads_f16 {
        Some(SplitF16 { values, row_exponents }) => {
            vec![values, values, saved.lse, &delta, &table.vec4s, row_exponents, d_qkv]
        }
        None => vec![saved.qkv, d_o, saved.lse, &delta, &table.vec4s, d_qkv],
    };
    let [queries, keys] = table.groups.map(|n| n as u32);
    // q, k, v, d_o, lse and delta are read; of d_qkv, a kernel writes its columns.
    let read = s.t * ((2 * a.heads + 2 * a.kv_heads) * a.head_dim + 2 * a.heads);
    let work =
        |per_pair, heads: usize| CountedWork::new(per_pair * flops, 4 * (read + s.t * heads * a.head_dim) as u64);
    let shader = make(AttentionEntry::BackwardQ);
    rec.dispatch_in_parts(&shader, &params, &slots, [queries, a.heads as u32], work(6, a.heads));
    let softcap = a.softcap.is_some();
    for (shader, per_pair) in table.implementation.kv_shaders(a.head_dim, softcap, in_vec4s(a, l)) {
        let work = work(per_pair, 2 * a.kv_heads);
        rec.dispatch_in_parts(&shader, &params, &slots, [keys, a.kv_heads as u32], work);
    }
    delta
}

/// Attention kernels: forward, delta, d_q, and d_k with d_v, in four implementations.
pub struct FlashAttention;

impl Kernel for FlashAttention {
    fn name(&self) -> &'static str {
        "attention"
    }
    fn modules(&self) -> &'static [&'static str] {
        &[
            "attention",
            "attention_coop",
            "attention_delta_rows",
            "attention_split_f16",
            "attention_lanes",
            "attention_tiles",
        ]
    }
    fn variants(&self) -> Vec<Shader> {
        let mut all = vec![
            delta_shader(64),
            delta_rows_shader(64),
            AttentionImpl::Rows(1).shader(AttentionEntry::Forward, 64, false, true),
        ];
        for implementation in [
            AttentionImpl::Rows(TILE),
            AttentionImpl::Rows(LANES),
            AttentionImpl::Lanes { long: false },
            AttentionImpl::Lanes { long: true },
        ] {
            for vec4s in [true, false] {
                for entry in AttentionEntry::ALL {
                    all.extend([false, true].map(|softcap| implementation.shader(entry, 64, softcap, vec4s)));
                }
            }
        }
        for e in [8, 64, 80, 128, 256, 512] {
            let tiles = [false, true].into_iter().filter_map(|narrow| AttentionTiles::for_head_dim(e, narrow));
            for (tiles, softcap) in tiles.flat_map(|t| [false, true].map(|softcap| (AttentionImpl::Tiles(t), softcap)))
            {
                let first = [AttentionEntry::Forward, AttentionEntry::BackwardQ];
                all.extend(first.map(|entry| tiles.shader(entry, e, softcap, true)));
                all.extend(tiles.kv_shaders(e, softcap, true).into_iter().map(|(shader, _)| shader));
            }
        }
        for e in [64, 80, 128, 256] {
            for (entry, coop) in AttentionEntry::ALL
                .into_iter()
                .flat_map(|entry| CoopAttention::all(e).into_iter().map(move |c| (entry, c)))
            {
                all.extend([false, true].map(|softcap| AttentionImpl::Coop(coop).shader(entry, e, softcap, true)));
            }
        }
        all.extend(CoopAttention::split_shaders());
        all
    }
    fn uniforms(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("AttentionParams", uniform_bytes_in_parts::<AttentionParams>()),
            ("SplitParams", size_of::<coop::SplitParams>()),
            ("DeltaParams", size_of::<u32>()),
        ]
    }
    fn cases(&self) -> Vec<Box<dyn Case>> {
        cases::all()
    }
    fn benches(&self, model: &ModelShape, t: usize, caps: &Caps) -> Vec<Box<dyn Case>> {
        let (heads, kv_heads, head_dim) = (model.n_heads, model.n_kv_heads, model.head_dim);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let a = AttentionConfig { heads, kv_heads, head_dim, scale, softcap: None, window: None };
        // Two sequences, as in a pair.
        let batch = segments(&[(0, &[t / 2]), (0, &[t - t / 2])]);
        vec![case(a, batch, &caps.variants, caps.matmul_precision)]
    }
    fn variant_cases(&self, variant: Variant, caps: &Caps) -> Vec<Box<dyn Case>> {
        cases::of_variant(variant, caps)
    }
    fn precision_cases(&self, precision: MatmulPrecision) -> Vec<Box<dyn Case>> {
        cases::of_precision(precision)
    }
}
