// w[r,k] = q[r,k]·scale[r]      int8; the row's absmax has the code 127
//
// Four codes per word, the first in the low byte. Words from `weight_base` on (written by `src/kernels/storage.rs`):
//   0: where the scales begin    4 ..: codes    then: scale (rows) f32

import package::shared::weight_base::{weight_base};

@group(0) @binding(2) var<storage, read> weights: array<u32>;

const CODES = 4u;

fn prepare_weight(lane: u32, invocations: u32) {}

fn row_scale(row: u32) -> f32 {
    return bitcast<f32>(weights[weight_base() + weights[weight_base()] + row]);
}

fn weight_value(row: u32, i: u32) -> f32 {
    let word = weights[weight_base() + CODES + (i >> 2u)];
    return f32(bitcast<i32>(word << (24u - 8u * (i & 3u))) >> 24u) * row_scale(row);
}

fn weight_values(row: u32, i: u32) -> vec4<f32> {
    return weight_vec4(row, i >> 2u);
}

fn weight_vec4(row: u32, vec4_at: u32) -> vec4<f32> {
    return decoded_vec4(stored_vec4(vec4_at, vec4<u32>()), row_scale(row), vec4_at);
}

const STORED_AS_VALUES = false;

fn stored_vec4(vec4_at: u32, before: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(weights[weight_base() + CODES + vec4_at], before.yzw);
}

fn decoded_vec4(stored: vec4<u32>, scale: f32, vec4_at: u32) -> vec4<f32> {
    let codes = bitcast<vec4<i32>>(vec4<u32>(stored.x) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u);
    return vec4<f32>(codes) * scale;
}
