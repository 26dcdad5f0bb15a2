// m = signed[code]·absmax[block]      v = unsigned[code]·absmax[block]      blocks of 256 elements (arXiv 2110.02861)
//
// A code is the index of the map's value nearest to m/absmax; ties take the lower index. Four codes per word, the first in the low byte, in
// whole blocks, whatever the bucket's length. `src/kernels/storage.rs` has the maps.

import package::shared::reduce::{WG};

@group(0) @binding(4) var<storage, read_write> m: array<u32>;
@group(0) @binding(5) var<storage, read_write> v: array<u32>;
@group(0) @binding(6) var<storage, read_write> absmax: array<vec2<f32>>; // (blocks): of m, of v
@group(0) @binding(7) var<storage, read> maps: array<f32>;               // (2, 256), rising: signed, unsigned

const SIGNED = 0u;
const UNSIGNED = 256u;

// Smallest normal number. A block whose absmax is below it is zero, because devices may flush subnormal numbers to zero.
const TINIEST = 1.17549435e-38;

struct Moments {
    m: vec4<f32>,
    v: vec4<f32>,
}

var<workgroup> largest: array<vec2<f32>, WG>;

fn dequantize4(map: u32, word: u32) -> vec4<f32> {
    return vec4<f32>(
        maps[map + (word & 255u)],
        maps[map + ((word >> 8u) & 255u)],
        maps[map + ((word >> 16u) & 255u)],
        maps[map + (word >> 24u)],
    );
}

fn load_moments(vec4_at: u32) -> Moments {
    let scale = absmax[vec4_at / WG];
    return Moments(dequantize4(SIGNED, m[vec4_at]) * scale.x, dequantize4(UNSIGNED, v[vec4_at]) * scale.y);
}

// Counts by bisection the map's middles between neighbours that are below x. The count is the index of the nearest value.
fn quantize(map: u32, x: f32) -> u32 {
    var code = 0u;
    for (var half = 128u; half > 0u; half /= 2u) {
        let at = map + code + half;
        if x > (maps[at - 1u] + maps[at]) / 2.0 {
            code += half;
        }
    }
    return code;
}

fn quantize4(map: u32, value: vec4<f32>, scale: f32) -> u32 {
    let per = select(0.0, 1.0 / scale, scale >= TINIEST);
    let x = clamp(value * per, vec4<f32>(-1.0), vec4<f32>(1.0));
    return quantize(map, x.x) | (quantize(map, x.y) << 8u) | (quantize(map, x.z) << 16u) | (quantize(map, x.w) << 24u);
}

// All invocations of a workgroup must call this together. Elements outside the bucket count as zero.
fn store_moments(vec4_at: u32, lane: u32, inside: bool, now: Moments) {
    let pairs = max(abs(now.m.xy), abs(now.m.zw));
    let squares = max(now.v.xy, now.v.zw);
    largest[lane] = vec2<f32>(max(pairs.x, pairs.y), max(squares.x, squares.y));
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            largest[lane] = max(largest[lane], largest[lane + half]);
        }
    }
    // Wait until every invocation has read the block's old scales.
    storageBarrier();
    workgroupBarrier();
    let scale = largest[0];
    if lane == 0u {
        absmax[vec4_at / WG] = scale;
    }
    m[vec4_at] = quantize4(SIGNED, now.m, scale.x);
    v[vec4_at] = quantize4(UNSIGNED, now.v, scale.y);
}
