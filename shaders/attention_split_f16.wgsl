// x[h,i,:] = (high + low)·2^row_exponent[h,i]: the rows of heads as f16, for attention_coop.wgsl. Without SPLIT there is no `low`.
//
// A row's exponent brings its absmax to [2¹⁴, 2¹⁵): f16's range does not matter, and a row's f16 values do not depend on other rows. One
// invocation writes one row of one head, with zeros behind E.

import package::shared::grid::{flat_group};
import package::shared::split_f16::{SPLIT, rounded};
import package::shared::head_split_f16::{E, WIDTH, head_row_at};

struct SplitParams {
    t: u32,
    heads: u32,
    start: u32,      // of the first head; a multiple of four, like `stride`
    stride: u32,     // elements from a row to the next
    first_head: u32, // index of the first head in `heads_f16` and `row_exponents`
}

@group(0) @binding(0) var<uniform> params: SplitParams;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> heads_f16: array<vec2<u32>>; // four f16 each
@group(0) @binding(3) var<storage, read_write> row_exponents: array<i32>;       // (heads, T)

const WG = 64u;
const VEC4S = E / 4u;

fn packed(v: vec4<f32>) -> vec2<u32> {
    return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
}

@compute @workgroup_size(WG)
fn attention_split_f16(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, n_groups) * WG + lane;
    if i >= params.heads * params.t {
        return;
    }
    let head = i / params.t;
    let row = i % params.t;
    let source = (params.start + row * params.stride + head * E) / 4u;
    var most = 0.0;
    for (var d = 0u; d < VEC4S; d++) {
        let size = abs(x[source + d]);
        most = max(most, max(max(size.x, size.y), max(size.z, size.w)));
    }
    // Keeps 2^exponent and its inverse normal numbers, with room for products of two row exponents.
    let row_exponent = clamp(i32(bitcast<u32>(most) >> 23u) - 141, -100, 114);
    let factor = bitcast<f32>(u32(127 - row_exponent) << 23u);
    let to = head_row_at(params.t, params.first_head + head, row) / 4u;
    for (var d = 0u; d < WIDTH / 4u; d++) {
        var value = vec4<f32>();
        if d < VEC4S {
            value = x[source + d] * factor;
        }
        let high = rounded(value);
        heads_f16[to + d] = packed(high);
        if SPLIT {
            heads_f16[to + params.t * (WIDTH / 4u) + d] = packed(rounded(value - high));
        }
    }
    row_exponents[params.first_head * params.t + i] = row_exponent;
}
