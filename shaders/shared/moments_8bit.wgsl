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
// The maps, and the middle of each value and the one below it: lookups depend on each other, and a load from memory would be waited for each time.
var<workgroup> map_values: array<f32, 512>;
var<workgroup> middles: array<f32, 512>;

// All of a workgroup call it together, before the others.
fn prepare_moments(lane: u32) {
    for (var turn = 0u; turn < 512u / WG; turn++) {
        let at = turn * WG + lane;
        let value = maps[at];
        map_values[at] = value;
        middles[at] = (maps[max(at, 1u) - 1u] + value) / 2.0;
    }
    workgroupBarrier();
}

fn dequantize4(map: u32, word: u32) -> vec4<f32> {
    let at = vec4<u32>(map) + ((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u));
    return vec4<f32>(map_values[at.x], map_values[at.y], map_values[at.z], map_values[at.w]);
}

fn load_moments(vec4_at: u32) -> Moments {
    let scale = absmax[vec4_at / WG];
    return Moments(dequantize4(SIGNED, m[vec4_at]) * scale.x, dequantize4(UNSIGNED, v[vec4_at]) * scale.y);
}

// Returns the indices of the nearest values: counts by bisection the middles that are below each x.
fn quantize4(map: u32, value: vec4<f32>, scale: f32) -> u32 {
    let per = select(0.0, 1.0 / scale, scale >= TINIEST);
    let x = clamp(value * per, vec4<f32>(-1.0), vec4<f32>(1.0));
    var at = vec4<u32>(map);
    for (var half = 128u; half > 0u; half /= 2u) {
        let next = at + half;
        let middle = vec4<f32>(middles[next.x], middles[next.y], middles[next.z], middles[next.w]);
        at = select(at, next, x > middle);
    }
    let codes = (at - map) << vec4<u32>(0u, 8u, 16u, 24u);
    return codes.x | codes.y | codes.z | codes.w;
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
