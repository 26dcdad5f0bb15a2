// m = signed[code]·absmax[block]      v = unsigned[code]·absmax[block]      blocks of 256 elements (arXiv 2110.02861)
//
// A code is the index of the map's value nearest to m/absmax; ties take the lower index. Four codes per word, the first in the low byte, in
// whole blocks, whatever the bucket's length. `src/kernels/storage.rs` has the maps.

import package::shared::reduce::{WG};

@group(0) @binding(4) var<storage, read_write> m: array<u32>;
@group(0) @binding(5) var<storage, read_write> v: array<u32>;
@group(0) @binding(6) var<storage, read_write> absmax: array<vec2<f32>>; // (blocks): of m, of v
@group(0) @binding(7) var<storage, read> maps: array<vec4<f32>>;         // (2, 256) f32, rising: signed, unsigned

const SIGNED = 0u;
const UNSIGNED = 256u;

// Smallest normal number. A block whose absmax is below it is zero, because devices may flush subnormal numbers to zero.
const TINIEST = 1.17549435e-38;

struct Moments {
    m: vec4<f32>,
    v: vec4<f32>,
}

// The maps, in workgroup memory, because a load's latency is waited for where the next load depends on it. One element more, because the code
// of a NaN may be 255, and the value after it is read.
var<workgroup> map_values: array<f32, 513>;
// Bits of the largest |m|, and of the largest v, of every fourth invocation: bits of positive numbers have the numbers' order.
const LARGEST = 4u;
var<workgroup> largest: array<atomic<u32>, 2u * LARGEST>;

// All invocations of a workgroup must call this together, before the others.
fn prepare_moments(lane: u32) {
    for (var turn = 0u; turn < 128u / WG; turn++) {
        let vec4_at = turn * WG + lane;
        let values = maps[vec4_at];
        map_values[4u * vec4_at] = values.x;
        map_values[4u * vec4_at + 1u] = values.y;
        map_values[4u * vec4_at + 2u] = values.z;
        map_values[4u * vec4_at + 3u] = values.w;
    }
    if lane < 2u * LARGEST {
        atomicStore(&largest[lane], 0u);
    }
    workgroupBarrier();
}

fn values_at(at: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(map_values[at.x], map_values[at.y], map_values[at.z], map_values[at.w]);
}

fn dequantize4(map: u32, word: u32) -> vec4<f32> {
    return values_at(map + ((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u)));
}

fn load_moments(vec4_at: u32) -> Moments {
    let scale = absmax[vec4_at / WG];
    return Moments(dequantize4(SIGNED, m[vec4_at]) * scale.x, dequantize4(UNSIGNED, v[vec4_at]) * scale.y);
}

// Returns about how many middles between neighbouring values of the signed map are less than x ≥ 0, where `doubled` is 2x: as the bits of a
// float, plus `offset`.
//
// From 10^(i-7) to 10^(i-6) the signed map has 2^i values at equal distances, for i = 0 to 6. So the number of middles below x rises along a
// line there, and these lines have falling slopes: the right one is the lowest. Each line is lowered by a part of a step, such that the count
// rounded down is the code or the code less one, however devices round. The unsigned map has twice as many values.
fn count_below(doubled: vec4<f32>, offset: f32) -> vec4<u32> {
    var count = doubled * (32.0 / 0.9) + (offset + 56.0);
    count = min(count, doubled * (160.0 / 0.9) + (offset + 27.5));
    count = min(count, doubled * (800.0 / 0.9) + (offset + 13.25));
    count = min(count, doubled * (4000.0 / 0.9) + (offset + 6.25));
    count = min(count, doubled * (20000.0 / 0.9) + (offset + 2.5));
    count = min(count, doubled * (100000.0 / 0.9) + (offset + 0.75));
    return bitcast<vec4<u32>>(min(count, doubled * (500000.0 / 0.9) + offset));
}

// Offsets of `count_below`. A float from 2^21 on has quarters in its lowest bits, one from 2^20 on eighths, which are quarters of the unsigned
// map's count.
const QUARTER_STEPS = 2097152.0 + 0.25;
const EIGHTH_STEPS = 1048576.0;

// Returns the codes of x, four in a word: each is the code of `quarters`, which is its bits 2 to 9, or the one after.
fn nearest4(map: u32, quarters: vec4<u32>, doubled: vec4<f32>) -> u32 {
    let first = (quarters >> vec4<u32>(2u)) & vec4<u32>(255u);
    // x > (value + next) / 2
    let after = doubled > values_at(map + first) + values_at(map + first + 1u);
    let codes = (first + select(vec4<u32>(0u), vec4<u32>(1u), after)) << vec4<u32>(0u, 8u, 16u, 24u);
    return codes.x | codes.y | codes.z | codes.w;
}

fn doubled_reciprocal(scale: f32) -> f32 {
    return select(0.0, 2.0 * (1.0 / scale), scale >= TINIEST);
}

// All codes of a negative x below the lowest middle, -0.986, are 0.
fn quantize4_signed(value: vec4<f32>, scale: f32) -> u32 {
    let doubled = max(value * doubled_reciprocal(scale), vec4<f32>(-2.0 * 0.9875));
    let minus = bitcast<vec4<u32>>(bitcast<vec4<i32>>(doubled) >> vec4<u32>(31u)); // all bits, or none
    // Code 127 is zero. A complement is one less than the negative number.
    return nearest4(SIGNED, (count_below(abs(doubled), QUARTER_STEPS) ^ minus) + 4u * 127u, doubled);
}

fn quantize4_unsigned(value: vec4<f32>, scale: f32) -> u32 {
    let doubled = value * doubled_reciprocal(scale);
    return nearest4(UNSIGNED, count_below(doubled, EIGHTH_STEPS), doubled);
}

fn largest_bits(magnitudes: vec4<f32>) -> u32 {
    let pairs = max(magnitudes.xy, magnitudes.zw);
    return bitcast<u32>(max(pairs.x, pairs.y));
}

// All invocations of a workgroup must call this together. Elements outside the bucket count as zero.
fn store_moments(vec4_at: u32, lane: u32, inside: bool, now: Moments) {
    atomicMax(&largest[lane % LARGEST], largest_bits(abs(now.m)));
    atomicMax(&largest[LARGEST + lane % LARGEST], largest_bits(now.v));
    // Wait until every invocation has read the block's old scales, too.
    storageBarrier();
    workgroupBarrier();
    var scale = vec2<f32>();
    for (var i = 0u; i < LARGEST; i++) {
        scale = max(scale, bitcast<vec2<f32>>(vec2<u32>(atomicLoad(&largest[i]), atomicLoad(&largest[LARGEST + i]))));
    }
    if lane == 0u {
        absmax[vec4_at / WG] = scale;
    }
    m[vec4_at] = quantize4_signed(now.m, scale.x);
    v[vec4_at] = quantize4_unsigned(now.v, scale.y);
}
