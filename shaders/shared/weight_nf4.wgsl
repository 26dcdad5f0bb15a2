// w[i] = NF4[q[i]]·absmax[b], b = i / 64      absmax[b] = DYNAMIC[s[b]]·group[(phase + b) / 256] + offset
//
// 4-bit NormalFloat with double quantisation (QLoRA, arXiv 2305.14314). Blocks run over the matrix as stored, row after row. The matrix may
// be a part of a larger one; its first block is then the `phase`-th of a group. Eight codes per word, the first in the low bits; four s per
// word. Words from `weight_base` on (written by `src/kernels/storage.rs`):
//   0: where s begins    1: where the groups begin    2: offset, f32    3: phase    4 .. 20: NF4, f32    20 .. 276: DYNAMIC, f32
//   276 ..: q    then: s    then: group, f32

// Its tables are looked up in memory, or in workgroup memory: `shared/nf4_lookup`, `shared/nf4_lookup_workgroup`.

import package::shared::nf4_lookup::{dynamic_value, nf4_vec4, prepare_lookup};
import package::shared::weight_base::{weight_base};

@group(0) @binding(2) var<storage, read> weights: array<u32>;

const CODES = 276u;

fn prepare_weight(lane: u32, invocations: u32) {
    prepare_lookup(lane, invocations);
}

// Codes of a block's scale from that of the block on, the first in the low byte, and the scale of its group. Neither load waits for the other.
fn stored_absmax(block: u32) -> vec2<u32> {
    let base = weight_base();
    let groups = base + weights[base + 1u];
    return vec2<u32>(
        weights[base + weights[base] + (block >> 2u)],
        weights[groups + ((weights[base + 3u] + block) >> 8u)],
    );
}

fn absmax_of(stored: vec2<u32>, block: u32) -> f32 {
    let s = (stored.x >> (8u * (block & 3u))) & 255u;
    return dynamic_value(s) * bitcast<f32>(stored.y) + bitcast<f32>(weights[weight_base() + 2u]);
}

fn weight_value(row: u32, i: u32) -> f32 {
    let q = weights[weight_base() + CODES + (i >> 3u)] >> (4u * (i & 7u));
    return nf4_vec4(q).x * absmax_of(stored_absmax(i >> 6u), i >> 6u);
}

fn weight_values(row: u32, i: u32) -> vec4<f32> {
    return weight_vec4(row, i >> 2u);
}

fn weight_vec4(row: u32, vec4_at: u32) -> vec4<f32> {
    return decoded_vec4(stored_vec4(vec4_at, vec4<u32>()), 0.0, vec4_at);
}

const STORED_AS_VALUES = false;

fn stored_vec4(vec4_at: u32, before: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(weights[weight_base() + CODES + (vec4_at >> 1u)], stored_absmax(vec4_at >> 4u), before.w);
}

// Blocks have scales; rows have none.
fn row_scale(row: u32) -> f32 {
    return 0.0;
}

fn decoded_vec4(stored: vec4<u32>, scale: f32, vec4_at: u32) -> vec4<f32> {
    return nf4_vec4(stored.x >> (16u * (vec4_at & 1u))) * absmax_of(stored.yz, vec4_at >> 4u);
}
