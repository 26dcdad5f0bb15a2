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
// Two rows of ACROSS subgroups compute a tile of C, each a block of ROW_FRAGMENTS×COLUMN_FRAGMENTS fragments of EDGE×EDGE: a fragment of A or
// B that was loaded serves that many products. Slices of K pass through workgroup memory as f16, in rows along K however the matrix is
// stored, because matrix units load such rows fastest. The next slice is loaded while the current one is multiplied.
//
// The loop over K has no conditions, and values stay as they were stored until they are put into the tiles: a compiler waits for a load
// where its branch ends or its value is first used, which must not be before the products that hide it. Rows of A and columns of B beyond
// the edge are clamped to the last ones, since they contribute only to outputs that are not stored. Where K is no multiple of K_TILE, the
// first slice begins before K does, and is zero there.
//
// Should a driver divide the workgroup into other subgroups than the shader was written for, C is NaN.
//
// A second pair (LoRA) has other scales, so it cannot share the sums. Its few terms are added in f32 while C is stored, which saves a pass
// over C.
//
// Neither the tile's size nor K_TILE changes a result: fragments are summed in the order of K, EDGE columns at a time.

import package::shared::epilogue_none::{with_epilogue};
import package::shared::low_rank_none::{LOW_RANK, low_rank_x_vec4, low_rank_w_vec4};
import package::shared::product::{MatmulParams};
import package::shared::weight::{decoded_vec4, prepare_weight, row_scale, stored_vec4};
import package::shared::split_f16::{SPLIT, rounded};
import package::shared::fragment8::{EDGE, Left, Right, Sum, begin_slice, end_slice};

override A_TRANSPOSED: bool = false; // A is stored (K, M), and has one scale
override B_TRANSPOSED: bool = false; // B is stored (N, K)
override LANES: u32 = 128u; // 2·ACROSS subgroups
override ACROSS: u32 = 2u; // subgroups along a row of the tile
override ROW_FRAGMENTS: u32 = 2u; // along a column of a subgroup's block
override K_TILE: u32 = 16u;
override ABSMAX: u32 = 4u; // first binding behind those of the pairs

@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
// Binding 2: B.
@group(0) @binding(3) var<storage, read_write> c: array<f32>;
@group(0) @binding(ABSMAX) var<storage, read> absmax: array<u32>; // bits of the absmax: of B, and of A or of each of its rows

const TILE = 2u * ROW_FRAGMENTS * EDGE;
const COLUMN_FRAGMENTS = TILE / ACROSS / EDGE;
const FRAGMENTS = ROW_FRAGMENTS * COLUMN_FRAGMENTS;
const PAD = 8u; // a tile's rows begin at multiples of 16 bytes, and in different banks
const ROW = K_TILE + PAD;
const VEC4S = TILE * K_TILE / 4u / LANES; // vec4s of a tile per invocation
const DEPTH = min(VEC4S, 4u); // stored rows of a block, where they do not run along K
const B_BEGIN = TILE * ROW;
const SUBGROUPS = 2u * ACROSS;
const STEP = LANES / SUBGROUPS; // invocations per subgroup
const STORED = EDGE * EDGE / STEP; // values of a fragment that an invocation stores
const NAN = 0x7fc00000u;

var<workgroup> high: array<f16, 2u * TILE * ROW>; // A's tile (TILE, K_TILE), then B's
var<workgroup> low: array<f16, select(1u, 2u * TILE * ROW, SPLIT)>;
var<workgroup> values: array<f32, SUBGROUPS * EDGE * EDGE>; // a fragment of C for each subgroup

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

// Returns the place of an invocation's i-th vec4 in a tile: first k, first row or column of C. Vec4s run along K, or lie in blocks of DEPTH
// of them, which will be transposed. Neighbouring invocations then put neighbouring columns of a tile's row.
fn place(lane: u32, i: u32, along_k: bool) -> vec2<u32> {
    if along_k {
        let at = lane + i * LANES;
        return vec2<u32>(at % (K_TILE / 4u) * 4u, at / (K_TILE / 4u));
    }
    let at = lane + i / DEPTH * LANES;
    return vec2<u32>(at % (K_TILE / DEPTH) * DEPTH + i % DEPTH, at / (K_TILE / DEPTH) * 4u);
}

// Where vec4s lie: their stored rows, and their indices from the beginning of the binding.
struct Places {
    rows: array<u32, VEC4S>,
    vec4s: array<u32, VEC4S>,
}

// Returns where an invocation's vec4s of the first slice lie. That slice begins `lead` before K does: such places wrap around, or are clamped
// to K's beginning. The matrix has `end` rows or columns of C, of which the tile begins at `first`.
fn first_places(lane: u32, along_k: bool, first: u32, end: u32, start: u32, stride: u32, lead: u32, clamped: bool) -> Places {
    var places: Places;
    for (var i = 0u; i < VEC4S; i++) {
        let at = place(lane, i, along_k);
        let k = max(at.x, select(0u, lead, clamped));
        let row = select(k, min(first + at.y, end - 1u), along_k);
        let column = select(min(first + at.y, end - 4u), k, along_k);
        places.rows[i] = row - select(lead, 0u, along_k);
        places.vec4s[i] = (start + row * stride + column) / 4u - select(lead * stride, lead, along_k) / 4u;
    }
    return places;
}

fn places_of_a(lane: u32, m0: u32, lead: u32, clamped: bool) -> Places {
    return first_places(lane, !A_TRANSPOSED, m0, params.m, params.a_start, params.a_stride, lead, clamped);
}

fn places_of_b(lane: u32, n0: u32, lead: u32, clamped: bool) -> Places {
    return first_places(lane, B_TRANSPOSED, n0, params.n, params.b_start, params.b_stride, lead, clamped);
}

fn load_a(places: Places) -> array<vec4<f32>, VEC4S> {
    var loaded: array<vec4<f32>, VEC4S>;
    for (var i = 0u; i < VEC4S; i++) {
        loaded[i] = a[places.vec4s[i]];
    }
    return loaded;
}

// Vec4s of B as they are stored, and the scales of their rows.
struct StoredB {
    vec4s: array<vec4<u32>, VEC4S>,
    scales: array<f32, VEC4S>,
}

fn load_b(places: Places, before: StoredB) -> StoredB {
    var loaded = before;
    for (var i = 0u; i < VEC4S; i++) {
        loaded.vec4s[i] = stored_vec4(places.vec4s[i], before.vec4s[i]);
        loaded.scales[i] = row_scale(places.rows[i]);
    }
    return loaded;
}

// Four values as f16, rounded as the device rounds; with SPLIT, as high + low.
struct Halves {
    high: vec4<f16>,
    low: vec4<f16>,
}

fn halves(v: vec4<f32>) -> Halves {
    if SPLIT {
        let near = rounded(v);
        return Halves(vec4<f16>(near), vec4<f16>(rounded(v - near)));
    }
    return Halves(vec4<f16>(v), vec4<f16>());
}

// Puts an invocation's vec4s into the tile that begins at `tile`, as f16.
fn put(tile: u32, lane: u32, vec4s: array<vec4<f32>, VEC4S>, along_k: bool) {
    if along_k {
        for (var i = 0u; i < VEC4S; i++) {
            let at = place(lane, i, true);
            let split = halves(vec4s[i]);
            let to = tile + at.y * ROW + at.x;
            for (var s = 0u; s < 4u; s++) {
                high[to + s] = split.high[s];
                if SPLIT {
                    low[to + s] = split.low[s];
                }
            }
        }
        return;
    }
    for (var block = 0u; block < VEC4S; block += DEPTH) {
        let at = place(lane, block, false);
        var split: array<Halves, DEPTH>;
        for (var i = 0u; i < DEPTH; i++) {
            split[i] = halves(vec4s[block + i]);
        }
        for (var s = 0u; s < 4u; s++) {
            let to = tile + (at.y + s) * ROW + at.x;
            for (var i = 0u; i < DEPTH; i++) {
                high[to + i] = split[i].high[s];
                if SPLIT {
                    low[to + i] = split[i].low[s];
                }
            }
        }
    }
}

// Returns the row of C of the s-th value that an invocation of a subgroup stores of a fragment.
fn row_of_value(m_fragment: u32, member: u32, s: u32) -> u32 {
    return m_fragment + (member + s * STEP) / EDGE;
}

// Returns the second pair's terms of the values that an invocation stores, in the order of K2. Its subgroup's block begins at (m0, n0).
fn second_sums(m0: u32, n0: u32, member: u32) -> array<f32, FRAGMENTS * STORED> {
    var sums: array<f32, FRAGMENTS * STORED>;
    for (var k = 0u; k < params.k2; k += 4u) {
        var w: array<vec4<f32>, COLUMN_FRAGMENTS>;
        for (var j = 0u; j < COLUMN_FRAGMENTS; j++) {
            let n = min(n0 + j * EDGE + member % EDGE, params.n - 1u);
            if B_TRANSPOSED {
                w[j] = low_rank_w_vec4(n, k);
            } else {
                let lane = n % 4u;
                w[j] = vec4<f32>(
                    low_rank_w_vec4(k, n - lane)[lane],
                    low_rank_w_vec4(k + 1u, n - lane)[lane],
                    low_rank_w_vec4(k + 2u, n - lane)[lane],
                    low_rank_w_vec4(k + 3u, n - lane)[lane],
                );
            }
        }
        for (var i = 0u; i < ROW_FRAGMENTS; i++) {
            for (var s = 0u; s < STORED; s++) {
                let x = low_rank_x_vec4(min(row_of_value(m0 + i * EDGE, member, s), params.m - 1u), k);
                for (var j = 0u; j < COLUMN_FRAGMENTS; j++) {
                    let at = (i * COLUMN_FRAGMENTS + j) * STORED + s;
                    sums[at] += x.x * w[j].x;
                    sums[at] += x.y * w[j].y;
                    sums[at] += x.z * w[j].z;
                    sums[at] += x.w * w[j].w;
                }
            }
        }
    }
    return sums;
}

@compute @workgroup_size(LANES)
fn matmul_coop(
    @builtin(workgroup_id) in_part: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) member: u32,
    @builtin(num_subgroups) n_subgroups: u32,
) {
    let group = params.first_group + in_part.xy;
    let m0 = group.y * TILE;
    let n0 = group.x * TILE;
    let m_block = subgroup / ACROSS * ROW_FRAGMENTS * EDGE;
    let n_block = subgroup % ACROSS * COLUMN_FRAGMENTS * EDGE;
    let slices = (params.k + K_TILE - 1u) / K_TILE;
    let lead = slices * K_TILE - params.k;
    var a_scales: array<f32, VEC4S>;
    for (var i = 0u; i < VEC4S; i++) {
        a_scales[i] = scale(absmax[absmax_of_a(m0 + place(lane, i, true).y)]);
    }
    let b_scale = scale(absmax[0]);
    var a_vec4s = load_a(places_of_a(lane, m0, lead, true));
    var b_stored = load_b(places_of_b(lane, n0, lead, true), StoredB());
    for (var i = 0u; i < VEC4S; i++) {
        // A product is zero before K's beginning. B has values there that the sum contains, too.
        if place(lane, i, !A_TRANSPOSED).x < lead {
            a_vec4s[i] = vec4<f32>();
        }
    }
    // Of a single slice, the loop loads the same vec4s again.
    var a_at = places_of_a(lane, m0, lead, slices == 1u);
    var b_at = places_of_b(lane, n0, lead, slices == 1u);
    let a_step = select(K_TILE, K_TILE * params.a_stride, A_TRANSPOSED) / 4u;
    let b_step = select(K_TILE * params.b_stride, K_TILE, B_TRANSPOSED) / 4u;
    prepare_weight(lane, LANES);
    var sums: array<Sum, FRAGMENTS>;
    for (var i = 0u; i < FRAGMENTS; i++) {
        sums[i] = Sum();
    }
    for (var slice = 0u; slice < slices; slice++) {
        workgroupBarrier();
        var of_a: array<vec4<f32>, VEC4S>;
        var of_b: array<vec4<f32>, VEC4S>;
        for (var i = 0u; i < VEC4S; i++) {
            of_a[i] = a_vec4s[i] * a_scales[i];
            of_b[i] = decoded_vec4(b_stored.vec4s[i], b_stored.scales[i], b_at.vec4s[i]) * b_scale;
        }
        put(0u, lane, of_a, !A_TRANSPOSED);
        put(B_BEGIN, lane, of_b, B_TRANSPOSED);
        workgroupBarrier();
        // The last turn loads its own vec4s again, which nobody uses.
        let go = select(0u, 1u, slice + 1u < slices);
        for (var i = 0u; i < VEC4S; i++) {
            a_at.vec4s[i] += go * a_step;
            b_at.vec4s[i] += go * b_step;
            b_at.rows[i] += go * select(K_TILE, 0u, B_TRANSPOSED);
        }
        a_vec4s = load_a(a_at);
        b_stored = load_b(b_at, b_stored);
        for (var k = 0u; k < K_TILE; k += EDGE) {
            var lefts: array<Left, ROW_FRAGMENTS>;
            var left_lows: array<Left, ROW_FRAGMENTS>;
            for (var i = 0u; i < ROW_FRAGMENTS; i++) {
                let at = (m_block + i * EDGE) * ROW + k;
                lefts[i] = coopLoadT<Left>(&high[at], ROW);
                if SPLIT {
                    left_lows[i] = coopLoadT<Left>(&low[at], ROW);
                }
            }
            for (var j = 0u; j < COLUMN_FRAGMENTS; j++) {
                let at_right = B_BEGIN + (n_block + j * EDGE) * ROW + k;
                let right = coopLoad<Right>(&high[at_right], ROW);
                var right_low = Right();
                if SPLIT {
                    right_low = coopLoad<Right>(&low[at_right], ROW);
                }
                for (var i = 0u; i < ROW_FRAGMENTS; i++) {
                    let at = i * COLUMN_FRAGMENTS + j;
                    var part = begin_slice(sums[at]);
                    if SPLIT {
                        part = coopMultiplyAdd(left_lows[i], right, part);
                        part = coopMultiplyAdd(lefts[i], right_low, part);
                    }
                    part = coopMultiplyAdd(lefts[i], right, part);
                    sums[at] = end_slice(sums[at], part);
                }
            }
        }
    }
    // Each invocation stores every STEP-th value of its subgroup's fragments.
    let b_inverse = bitcast<f32>(select(NAN, bitcast<u32>(inverse_scale(absmax[0])), n_subgroups == SUBGROUPS));
    var second: array<f32, FRAGMENTS * STORED>;
    if LOW_RANK {
        second = second_sums(m0 + m_block, n0 + n_block, member);
    }
    var a_inverse: array<f32, STORED>;
    for (var f = 0u; f < FRAGMENTS; f++) {
        let m_fragment = m0 + m_block + f / COLUMN_FRAGMENTS * EDGE;
        let n = n0 + n_block + f % COLUMN_FRAGMENTS * EDGE + member % EDGE;
        if f % COLUMN_FRAGMENTS == 0u {
            for (var s = 0u; s < STORED; s++) {
                a_inverse[s] = inverse_scale(absmax[absmax_of_a(row_of_value(m_fragment, member, s))]);
            }
        }
        workgroupBarrier();
        coopStoreT(sums[f], &values[subgroup * EDGE * EDGE], EDGE);
        workgroupBarrier();
        for (var s = 0u; s < STORED; s++) {
            let m = row_of_value(m_fragment, member, s);
            if m < params.m && n < params.n {
                let at = params.c_start + m * params.c_stride + n;
                let sum = values[subgroup * EDGE * EDGE + member + s * STEP] * a_inverse[s] * b_inverse;
                var value = params.alpha * sum;
                if LOW_RANK {
                    value += params.alpha * second[f * STORED + s];
                }
                if params.accumulate == 1u {
                    value += c[at];
                }
                c[at] = with_epilogue(value, n, at);
            }
        }
    }
}
