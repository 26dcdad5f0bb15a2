// The products of matmul.wgsl on cooperative matrices (tensor cores): f16 operands, f32 sums. The starts, strides and stored columns of A
// and B are multiples of four.
//
// f16 has 11 bits and a narrow range. Range: each row of A (in d_W, A as a whole) and B as a whole are multiplied by powers of two that
// bring their absmax to [2¹⁴, 2¹⁵), which is exact; C is divided by both. matmul_absmax.wgsl finds the absmax. Each row of x has its own,
// so the rest of the batch does not matter. Precision: with SPLIT, an operand is the sum of two f16, x = high + low, which keeps 22 bits,
// and
//   x·y ≈ high·high + high·low + low·high
// so that three products give f32's accuracy except for low·low (2⁻²² of the product). Without SPLIT, an operand is rounded to f16 once.
//
// Four subgroups compute a tile of C, each a block of FRAGMENTS×FRAGMENTS fragments of EDGE×EDGE. Slices of K pass through workgroup memory
// as f16, laid out as stored; the next slice is loaded while the current one is multiplied. Any M, N, K: beyond an edge there are zeros.

import package::shared::epilogue_none::{with_epilogue};
import package::shared::product::{MatmulParams};
import package::shared::weight::{weight_vec4};
import package::shared::split_f16::{SPLIT, rounded};
import package::shared::fragment8::{EDGE, Left, Right, Sum, begin_slice, end_slice};

override A_TRANSPOSED: bool = false; // A is stored (K, M), and has one scale
override B_TRANSPOSED: bool = false; // B is stored (N, K)
override LANES: u32 = 128u; // four subgroups
override FRAGMENTS: u32 = 2u;

@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
// Binding 2: B.
@group(0) @binding(3) var<storage, read_write> c: array<f32>;
@group(0) @binding(4) var<storage, read> absmax: array<u32>; // bits of the absmax: of B, and of A or of each of its rows

const BLOCK = FRAGMENTS * EDGE; // rows and columns of a subgroup's block
const ACROSS = 2u; // subgroups along a row of the tile
const TILE = ACROSS * BLOCK;
const K_TILE = 2u * EDGE;
const PAD = 8u; // rows begin at multiples of 16 bytes, and in different banks

// Rows and columns of the tiles, as stored.
const A_ROWS = select(TILE, K_TILE, A_TRANSPOSED);
const A_COLUMNS = select(K_TILE, TILE, A_TRANSPOSED);
const B_ROWS = select(K_TILE, TILE, B_TRANSPOSED);
const B_COLUMNS = select(TILE, K_TILE, B_TRANSPOSED);
const A_ROW = A_COLUMNS + PAD;
const B_ROW = B_COLUMNS + PAD;
const B_BEGIN = A_ROWS * A_ROW;
const TILES = B_BEGIN + B_ROWS * B_ROW;
const VEC4S = TILE * K_TILE / 4u / LANES; // vec4s of a tile per invocation

var<workgroup> high: array<f16, TILES>; // A's tile, then B's
var<workgroup> low: array<f16, select(1u, TILES, SPLIT)>;
var<workgroup> a_scale: array<f32, TILE>;
var<workgroup> values: array<f32, ACROSS * ACROSS * EDGE * EDGE>; // a fragment of C for each subgroup

// Returns the exponent bits of a scale: a power of two whose inverse is normal, too.
fn exponent_of_scale(bits: u32) -> u32 {
    return clamp(268u - (bits >> 23u), 1u, 253u);
}

fn scale(bits: u32) -> f32 {
    return bitcast<f32>(exponent_of_scale(bits) << 23u);
}

fn inverse_scale(bits: u32) -> f32 {
    return bitcast<f32>((254u - exponent_of_scale(bits)) << 23u);
}

// Returns the index into `absmax` for row m of A.
fn absmax_of_a(m: u32) -> u32 {
    return select(1u + min(m, params.m - 1u), 1u, A_TRANSPOSED);
}

// Loads this invocation's vec4s of the slice that begins at k0: those of A, then those of B. Neighbouring invocations load neighbouring
// vec4s.
fn load_slice(lane: u32, m0: u32, n0: u32, k0: u32) -> array<vec4<f32>, 2u * VEC4S> {
    let a_at = select(vec2<u32>(m0, k0), vec2<u32>(k0, m0), A_TRANSPOSED);
    let a_end = select(vec2<u32>(params.m, params.k), vec2<u32>(params.k, params.m), A_TRANSPOSED);
    let b_at = select(vec2<u32>(k0, n0), vec2<u32>(n0, k0), B_TRANSPOSED);
    let b_end = select(vec2<u32>(params.k, params.n), vec2<u32>(params.n, params.k), B_TRANSPOSED);
    var vec4s: array<vec4<f32>, 2u * VEC4S>;
    for (var i = 0u; i < VEC4S; i++) {
        let vec4_at = lane + i * LANES;
        let at_a = a_at + vec2<u32>(vec4_at / (A_COLUMNS / 4u), vec4_at % (A_COLUMNS / 4u) * 4u);
        vec4s[i] = vec4<f32>();
        if all(at_a < a_end) {
            vec4s[i] = a[(params.a_start + at_a.x * params.a_stride + at_a.y) / 4u];
        }
        let at_b = b_at + vec2<u32>(vec4_at / (B_COLUMNS / 4u), vec4_at % (B_COLUMNS / 4u) * 4u);
        vec4s[VEC4S + i] = vec4<f32>();
        if all(at_b < b_end) {
            vec4s[VEC4S + i] = weight_vec4(at_b.x, (params.b_start + at_b.x * params.b_stride + at_b.y) / 4u);
        }
    }
    return vec4s;
}

fn store_vec4(at: u32, value: vec4<f32>) {
    let near = rounded(value);
    let highs = vec4<f16>(near);
    high[at] = highs.x;
    high[at + 1u] = highs.y;
    high[at + 2u] = highs.z;
    high[at + 3u] = highs.w;
    if SPLIT {
        let lows = vec4<f16>(rounded(value - near));
        low[at] = lows.x;
        low[at + 1u] = lows.y;
        low[at + 2u] = lows.z;
        low[at + 3u] = lows.w;
    }
}

fn store_slice(lane: u32, vec4s: array<vec4<f32>, 2u * VEC4S>, b_scale: f32) {
    for (var i = 0u; i < VEC4S; i++) {
        let vec4_at = lane + i * LANES;
        let row = vec4_at / (A_COLUMNS / 4u);
        let factor = a_scale[select(row, 0u, A_TRANSPOSED)];
        store_vec4(row * A_ROW + vec4_at % (A_COLUMNS / 4u) * 4u, vec4s[i] * factor);
        let at_b = vec4_at / (B_COLUMNS / 4u) * B_ROW + vec4_at % (B_COLUMNS / 4u) * 4u;
        store_vec4(B_BEGIN + at_b, vec4s[VEC4S + i] * b_scale);
    }
}

// Returns the index where a fragment at (m, k), or (k, n) in `right_at`, of the tiles begins.
fn left_at(m: u32, k: u32) -> u32 {
    return select(m * A_ROW + k, k * A_ROW + m, A_TRANSPOSED);
}

fn right_at(k: u32, n: u32) -> u32 {
    return B_BEGIN + select(k * B_ROW + n, n * B_ROW + k, B_TRANSPOSED);
}

fn left_high(at: u32) -> Left {
    if A_TRANSPOSED {
        return coopLoad<Left>(&high[at], A_ROW);
    }
    return coopLoadT<Left>(&high[at], A_ROW);
}

fn left_low(at: u32) -> Left {
    if A_TRANSPOSED {
        return coopLoad<Left>(&low[at], A_ROW);
    }
    return coopLoadT<Left>(&low[at], A_ROW);
}

fn right_high(at: u32) -> Right {
    if B_TRANSPOSED {
        return coopLoad<Right>(&high[at], B_ROW);
    }
    return coopLoadT<Right>(&high[at], B_ROW);
}

fn right_low(at: u32) -> Right {
    if B_TRANSPOSED {
        return coopLoad<Right>(&low[at], B_ROW);
    }
    return coopLoadT<Right>(&low[at], B_ROW);
}

@compute @workgroup_size(LANES)
fn matmul_coop(
    @builtin(workgroup_id) in_part: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) member: u32,
) {
    let group = params.first_group + in_part.xy;
    let m0 = group.y * TILE;
    let n0 = group.x * TILE;
    let m_block = subgroup / ACROSS * BLOCK;
    let n_block = subgroup % ACROSS * BLOCK;
    for (var i = lane; i < TILE; i += LANES) {
        a_scale[i] = scale(absmax[absmax_of_a(m0 + i)]);
    }
    let b_scale = scale(absmax[0]);
    var sums: array<Sum, FRAGMENTS * FRAGMENTS>;
    for (var i = 0u; i < FRAGMENTS * FRAGMENTS; i++) {
        sums[i] = Sum();
    }
    var slice = load_slice(lane, m0, n0, 0u);
    for (var k0 = 0u; k0 < params.k; k0 += K_TILE) {
        workgroupBarrier();
        store_slice(lane, slice, b_scale);
        workgroupBarrier();
        slice = load_slice(lane, m0, n0, k0 + K_TILE);
        var parts: array<Sum, FRAGMENTS * FRAGMENTS>;
        for (var i = 0u; i < FRAGMENTS * FRAGMENTS; i++) {
            parts[i] = begin_slice(sums[i]);
        }
        for (var k = 0u; k < K_TILE; k += EDGE) {
            for (var j = 0u; j < FRAGMENTS; j++) {
                let at_right = right_at(k, n_block + j * EDGE);
                let right = right_high(at_right);
                for (var i = 0u; i < FRAGMENTS; i++) {
                    let at = i * FRAGMENTS + j;
                    let at_left = left_at(m_block + i * EDGE, k);
                    let left = left_high(at_left);
                    if SPLIT {
                        parts[at] = coopMultiplyAdd(left_low(at_left), right, parts[at]);
                        parts[at] = coopMultiplyAdd(left, right_low(at_right), parts[at]);
                    }
                    parts[at] = coopMultiplyAdd(left, right, parts[at]);
                }
            }
        }
        for (var i = 0u; i < FRAGMENTS * FRAGMENTS; i++) {
            sums[i] = end_slice(sums[i], parts[i]);
        }
    }
    let b_inverse = inverse_scale(absmax[0]);
    for (var f = 0u; f < FRAGMENTS * FRAGMENTS; f++) {
        workgroupBarrier();
        coopStoreT(sums[f], &values[subgroup * EDGE * EDGE], EDGE);
        workgroupBarrier();
        for (var i = member; i < EDGE * EDGE; i += LANES / (ACROSS * ACROSS)) {
            let m = m0 + m_block + f / FRAGMENTS * EDGE + i / EDGE;
            let n = n0 + n_block + f % FRAGMENTS * EDGE + i % EDGE;
            if m < params.m && n < params.n {
                let at = params.c_start + m * params.c_stride + n;
                let sum = values[subgroup * EDGE * EDGE + i] * inverse_scale(absmax[absmax_of_a(m)]) * b_inverse;
                var value = params.alpha * sum;
                if params.accumulate == 1u {
                    value += c[at];
                }
                c[at] = with_epilogue(value, n, at);
            }
        }
    }
}
