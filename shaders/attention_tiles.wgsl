// The attention of attention.wgsl for GPUs, where rows of heads are whole, aligned vec4s.
//
// A workgroup owns TILE = 4·DOWN rows (queries; keys in bwd_kv) and loops over the other side in blocks of BLOCK rows. For scores, and for
// d_o·v, slices of SLICE vec4s of E of both sides pass through workgroup memory, as in matmul_tiles.wgsl, and an invocation computes 4 ×
// PART values in registers. The resulting weights replace the own slices in workgroup memory. The other side's rows are then loaded a
// second time, whole, ROWS at a time, and an invocation adds them into 4 rows × WIDE vec4s of outputs. ACROSS invocations therefore share 4
// rows.
//
// At E = 64, a forward block costs a workgroup of 64 rows 2·64·32·64 multiply-adds for (64 + 2·32)·64 values from memory or its caches: 16
// operations per byte. A vec4 from workgroup memory serves 8 multiply-adds in scores and 11 in outputs; in attention.wgsl each loaded vec4
// serves 4. An invocation there keeps more than 2·E values in registers; here it keeps 56 at E = 64 (32 outputs, 16 scores, 8 exponents and
// totals) and 88 at most, besides operands. Workgroup memory: 2 × 8 KiB. The sizes follow from these counts; they were not measured on a
// GPU.
//
// A row's result must not depend on how the other side is divided into blocks, because that depends on the rows packed beside it. One
// invocation adds the terms of a sum in the order of the other side's rows; terms that are not seen are zeros. Sums over E are likewise in
// a fixed order, and shared/exponents scales by powers of two. Invocations combine values only for maxima, whose order does not matter.
//
// Rows in workgroup memory are swizzled by their index, so that neighbours along either axis lie in different banks.
//
// Loops that load from memory count their turns, which are the same for all invocations: compilers then issue all loads of a loop together and
// wait once. Where the loop's variable depends on the lane, each load becomes a branch of its own with a wait inside (benches/results/isa.md).

import package::shared::scores::{sees, within, part_end, next, capped, cap_slope};
import package::shared::exponents::{LOG2_E, LN_2, LOWEST, pow2_vec4};

override E: u32 = 64u;
override SLICE: u32 = 8u;   // at most 8; divides E's vec4s
override ROWS: u32 = 32u;   // divides BLOCK; the most that 512 vec4s hold
override ACROSS: u32 = 8u;  // 8, 16 or 32
override DOWN: u32 = 16u;   // 16 or 8: at most 256 invocations
override PREFETCH: bool = false; // whether a slice is loaded while the slice before it is multiplied
override OF_KEYS: bool = true;   // whether bwd_kv computes the gradient of keys
override OF_VALUES: bool = true; // whether bwd_kv computes the gradient of values

const VEC4S = E / 4u;
const TILE = 4u * DOWN;
const BLOCK = 32u;
const PART = BLOCK / ACROSS;
const WIDE = (VEC4S + ACROSS - 1u) / ACROSS;
const INVOCATIONS = ACROSS * DOWN;

// Turns of the loops that fill workgroup memory, and whether each turn has a value for every invocation.
const LEFT = TILE * SLICE;
const LEFT_TURNS = (LEFT + INVOCATIONS - 1u) / INVOCATIONS;
const RIGHT = BLOCK * SLICE;
const RIGHT_TURNS = (RIGHT + INVOCATIONS - 1u) / INVOCATIONS;
const WHOLE_ROWS = ROWS * VEC4S;
const WHOLE_ROWS_TURNS = (WHOLE_ROWS + INVOCATIONS - 1u) / INVOCATIONS;

@group(0) @binding(1) var<storage, read> first: array<vec4<f32>>;   // q; in the backward pass q, k and v
@group(0) @binding(2) var<storage, read> second: array<vec4<f32>>;  // k and v; in the backward pass d_o (T, H·E)
@group(0) @binding(4) var<storage, read_write> o: array<vec4<f32>>; // (T, H·E)
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;     // (T, H)
@group(0) @binding(6) var<storage, read_write> d_qkv: array<vec4<f32>>;

var<workgroup> left: array<vec4<f32>, BLOCK * DOWN>; // own slices (SLICE, TILE), then weights (BLOCK, DOWN): one vec4 holds 4 own rows
var<workgroup> right: array<vec4<f32>, max(BLOCK * SLICE, ROWS * VEC4S)>; // the other side's slices (SLICE, BLOCK), then rows

// Rows of a head's matrix: the first vec4, and vec4s from a row to the next.
struct Rows {
    in_second: bool,
    start: u32,
    stride: u32,
}

fn head_vec4(rows: Rows, row: u32, column: u32) -> vec4<f32> {
    let at = rows.start + row * rows.stride + column;
    if rows.in_second {
        return second[at];
    }
    return first[at];
}

fn queries_of(head: u32) -> Rows {
    return Rows(false, (params.q_start + head * E) / 4u, params.q_stride / 4u);
}

fn d_o_rows(head: u32) -> Rows {
    return Rows(true, head * VEC4S, params.heads * VEC4S);
}

fn keys_of(head: u32, in_second: bool) -> Rows {
    return Rows(in_second, (params.k_start + head * E) / 4u, params.kv_stride / 4u);
}

fn values_of(head: u32, in_second: bool) -> Rows {
    return Rows(in_second, (params.v_start + head * E) / 4u, params.kv_stride / 4u);
}

// Returns the position of element x among `width` neighbours of a row, swizzled by the row's index.
fn swizzle(x: u32, row: u32, width: u32) -> u32 {
    return (x + row) & (width - 1u);
}

// Returns the index into `left` of the weights of 4 own rows for a row of the other side.
fn weight_at(row: u32, down: u32) -> u32 {
    return row * DOWN + swizzle(down, row, DOWN);
}

// Returns the i-th row of an invocation whose tile begins at row `own`; the tile may have fewer rows.
fn own_row(own: u32, lane: u32, i: u32) -> u32 {
    return own + lane / ACROSS + i * DOWN;
}

fn clamp_row(row: u32) -> u32 {
    return min(row, params.t - 1u);
}

// Returns the row, or from `end` on a row that no query sees.
fn mask_row(end: u32, row: u32) -> u32 {
    return select(0xffffffffu, row, row < end);
}

// An invocation's part of a slice of both sides, on its way to workgroup memory.
struct StagedSlice {
    left: array<vec4<f32>, LEFT_TURNS>,
    right: array<vec4<f32>, RIGHT_TURNS>,
}

fn left_vec4(lane: u32, turn: u32, mine: Rows, own: u32, slice: u32) -> vec4<f32> {
    let i = lane + turn * INVOCATIONS;
    return head_vec4(mine, clamp_row(own + i / SLICE), slice + i % SLICE);
}

fn right_vec4(lane: u32, turn: u32, other: Rows, at: u32, end: u32, slice: u32) -> vec4<f32> {
    let i = lane + turn * INVOCATIONS;
    return head_vec4(other, min(at + i / SLICE, end - 1u), slice + i % SLICE);
}

fn stage_slice(lane: u32, mine: Rows, own: u32, other: Rows, at: u32, end: u32, slice: u32) -> StagedSlice {
    var staged: StagedSlice;
    for (var turn = 0u; turn < LEFT_TURNS; turn++) {
        staged.left[turn] = left_vec4(lane, turn, mine, own, slice);
    }
    for (var turn = 0u; turn < RIGHT_TURNS; turn++) {
        staged.right[turn] = right_vec4(lane, turn, other, at, end, slice);
    }
    return staged;
}

// Returns the dot products of 4 own rows with PART rows of the other side from `at` on. Products beyond `end` are arbitrary.
fn tile_dots(lane: u32, mine: Rows, own: u32, other: Rows, at: u32, end: u32) -> array<vec4<f32>, PART> {
    let across = lane % ACROSS;
    let down = lane / ACROSS;
    var sums: array<vec4<f32>, PART>;
    for (var n = 0u; n < PART; n++) {
        sums[n] = vec4<f32>();
    }
    var staged: StagedSlice;
    if PREFETCH {
        staged = stage_slice(lane, mine, own, other, at, end, 0u);
    }
    for (var slice = 0u; slice < VEC4S; slice += SLICE) {
        for (var turn = 0u; turn < LEFT_TURNS; turn++) {
            let i = lane + turn * INVOCATIONS;
            if LEFT % INVOCATIONS == 0u || i < LEFT {
                let d = i % SLICE;
                let row = i / SLICE;
                let group = row / DOWN * DOWN;
                var value = staged.left[turn];
                if !PREFETCH {
                    value = left_vec4(lane, turn, mine, own, slice);
                }
                left[d * TILE + group + swizzle(row, d, DOWN)] = value;
            }
        }
        for (var turn = 0u; turn < RIGHT_TURNS; turn++) {
            let i = lane + turn * INVOCATIONS;
            if RIGHT % INVOCATIONS == 0u || i < RIGHT {
                let d = i % SLICE;
                let row = i / SLICE;
                let group = row / ACROSS * ACROSS;
                var value = staged.right[turn];
                if !PREFETCH {
                    value = right_vec4(lane, turn, other, at, end, slice);
                }
                right[d * BLOCK + group + swizzle(row, d, ACROSS)] = value;
            }
        }
        workgroupBarrier();
        if PREFETCH {
            // The last turn loads its own slice again, which nobody uses.
            staged = stage_slice(lane, mine, own, other, at, end, min(slice + SLICE, VEC4S - SLICE));
        }
        for (var d = 0u; d < SLICE; d++) {
            let from_left = d * TILE + swizzle(down, d, DOWN);
            let from_right = d * BLOCK + swizzle(across, d, ACROSS);
            let row_0 = left[from_left];
            let row_1 = left[from_left + DOWN];
            let row_2 = left[from_left + 2u * DOWN];
            let row_3 = left[from_left + 3u * DOWN];
            for (var n = 0u; n < PART; n++) {
                let other = right[from_right + n * ACROSS];
                sums[n] += vec4<f32>(dot(row_0, other), dot(row_1, other), dot(row_2, other), dot(row_3, other));
            }
        }
        workgroupBarrier();
    }
    return sums;
}

// Adds the other side's rows from `at` on, times the weights in `left`, to `outputs` (4 own rows, WIDE vec4s). Returns the total plus these
// weights.
fn add_weighted(
    lane: u32,
    other: Rows,
    at: u32,
    end: u32,
    outputs: ptr<function, array<vec4<f32>, 4u * WIDE>>,
    total: vec4<f32>,
) -> vec4<f32> {
    let across = lane % ACROSS;
    let down = lane / ACROSS;
    var sum = total;
    for (var row = 0u; row < BLOCK; row += ROWS) {
        for (var turn = 0u; turn < WHOLE_ROWS_TURNS; turn++) {
            let i = lane + turn * INVOCATIONS;
            if WHOLE_ROWS % INVOCATIONS == 0u || i < WHOLE_ROWS {
                right[i] = head_vec4(other, min(at + row + i / VEC4S, end - 1u), i % VEC4S);
            }
        }
        workgroupBarrier();
        for (var r = 0u; r < ROWS; r++) {
            let weight = left[weight_at(row + r, down)];
            sum += weight;
            for (var w = 0u; w < WIDE; w++) {
                // Beyond E, the value is arbitrary and is not stored.
                let value = right[r * VEC4S + min(across + w * ACROSS, VEC4S - 1u)];
                (*outputs)[4u * w] += weight.x * value;
                (*outputs)[4u * w + 1u] += weight.y * value;
                (*outputs)[4u * w + 2u] += weight.z * value;
                (*outputs)[4u * w + 3u] += weight.w * value;
            }
        }
        workgroupBarrier();
    }
    return sum;
}

// Returns the maximum of each own row's values over the invocations that share the row.
fn largest(lane: u32, values: vec4<f32>) -> vec4<f32> {
    left[weight_at(lane % ACROSS, lane / ACROSS)] = values;
    workgroupBarrier();
    var top = values;
    for (var n = 0u; n < ACROSS; n++) {
        top = max(top, left[weight_at(n, lane / ACROSS)]);
    }
    workgroupBarrier();
    return top;
}

fn capped_vec4(raw: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(capped(raw.x), capped(raw.y), capped(raw.z), capped(raw.w));
}

fn slopes(s: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(cap_slope(s.x), cap_slope(s.y), cap_slope(s.z), cap_slope(s.w));
}

@compute @workgroup_size(INVOCATIONS)
fn attention_tiles_fwd(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = params.first_group + in_part.xy;
    let head = group.y;
    let kv_head = head / (params.heads / params.kv_heads);
    let own = group.x * TILE;
    let across = lane % ACROSS;
    let down = lane / ACROSS;
    var acc: array<vec4<f32>, 4u * WIDE>;
    for (var n = 0u; n < 4u * WIDE; n++) {
        acc[n] = vec4<f32>();
    }
    var row_exponent = vec4<f32>(LOWEST);
    var total = vec4<f32>();
    let ranges = within(4u * arrayLength(&second) / params.kv_stride, segments[params.query_tiles + group.x]);
    for (var j = ranges.x; j < ranges.w; j = next(ranges, j, BLOCK)) {
        let end = part_end(ranges, j);
        var s = tile_dots(lane, queries_of(head), own, keys_of(kv_head, true), j, end);
        var top = row_exponent;
        let a = segments[clamp_row(own_row(own, lane, 0u))];
        let b = segments[clamp_row(own_row(own, lane, 1u))];
        let c = segments[clamp_row(own_row(own, lane, 2u))];
        let d = segments[clamp_row(own_row(own, lane, 3u))];
        for (var n = 0u; n < PART; n++) {
            let key = mask_row(end, j + across + n * ACROSS);
            let seen = vec4<bool>(sees(a, key), sees(b, key), sees(c, key), sees(d, key));
            s[n] = select(vec4<f32>(LOWEST), capped_vec4(s[n]) * LOG2_E, seen);
            top = max(top, ceil(s[n]));
        }
        top = largest(lane, top);
        let shrink = pow2_vec4(row_exponent - top);
        row_exponent = top;
        for (var n = 0u; n < PART; n++) {
            let whole = floor(s[n]);
            let p = exp2(s[n] - whole) * pow2_vec4(whole - top);
            left[weight_at(across + n * ACROSS, down)] = select(p, vec4<f32>(), s[n] == vec4<f32>(LOWEST));
        }
        for (var w = 0u; w < WIDE; w++) {
            acc[4u * w] *= shrink.x;
            acc[4u * w + 1u] *= shrink.y;
            acc[4u * w + 2u] *= shrink.z;
            acc[4u * w + 3u] *= shrink.w;
        }
        total = add_weighted(lane, values_of(kv_head, true), j, end, &acc, total * shrink);
    }
    for (var i = 0u; i < 4u; i++) {
        let row = own_row(own, lane, i);
        if row < params.t {
            for (var w = 0u; w < WIDE; w++) {
                if across + w * ACROSS < VEC4S {
                    o[(row * params.heads + head) * VEC4S + across + w * ACROSS] = acc[4u * w + i] / total[i];
                }
            }
            if across == 0u {
                lse[row * params.heads + head] = row_exponent[i] * LN_2 + log(total[i]);
            }
        }
    }
}

// Stores WIDE vec4s of each of 4 own rows.
fn store_d(lane: u32, own: u32, rows: Rows, values: ptr<function, array<vec4<f32>, 4u * WIDE>>) {
    let across = lane % ACROSS;
    for (var w = 0u; w < WIDE; w++) {
        for (var i = 0u; i < 4u; i++) {
            let row = own_row(own, lane, i);
            if row < params.t && across + w * ACROSS < VEC4S {
                d_qkv[rows.start + row * rows.stride + across + w * ACROSS] = (*values)[4u * w + i];
            }
        }
    }
}

@compute @workgroup_size(INVOCATIONS)
fn attention_tiles_bwd_q(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = params.first_group + in_part.xy;
    let head = group.y;
    let kv_head = head / (params.heads / params.kv_heads);
    let own = group.x * TILE;
    let across = lane % ACROSS;
    let down = lane / ACROSS;
    var d_q: array<vec4<f32>, 4u * WIDE>;
    for (var n = 0u; n < 4u * WIDE; n++) {
        d_q[n] = vec4<f32>();
    }
    let rows = vec4<u32>(
        clamp_row(own_row(own, lane, 0u)),
        clamp_row(own_row(own, lane, 1u)),
        clamp_row(own_row(own, lane, 2u)),
        clamp_row(own_row(own, lane, 3u)),
    );
    let at = rows * params.heads + head;
    let row_exponent = vec4<f32>(lse_saved[at.x], lse_saved[at.y], lse_saved[at.z], lse_saved[at.w]);
    let even = vec4<f32>(delta[at.x], delta[at.y], delta[at.z], delta[at.w]);
    let ranges = within(params.t, spans[params.query_tiles + group.x]);
    for (var j = ranges.x; j < ranges.w; j = next(ranges, j, BLOCK)) {
        let end = part_end(ranges, j);
        var s = tile_dots(lane, queries_of(head), own, keys_of(kv_head, false), j, end);
        var d_p = tile_dots(lane, d_o_rows(head), own, values_of(kv_head, false), j, end);
        let a = spans[rows.x];
        let b = spans[rows.y];
        let c = spans[rows.z];
        let d = spans[rows.w];
        for (var n = 0u; n < PART; n++) {
            let key = mask_row(end, j + across + n * ACROSS);
            let seen = vec4<bool>(sees(a, key), sees(b, key), sees(c, key), sees(d, key));
            let score = capped_vec4(s[n]);
            let d_s = exp(score - row_exponent) * (d_p[n] - even) * slopes(score) * params.scale;
            left[weight_at(across + n * ACROSS, down)] = select(vec4<f32>(), d_s, seen);
        }
        _ = add_weighted(lane, keys_of(kv_head, false), j, end, &d_q, vec4<f32>());
    }
    store_d(lane, own, queries_of(head), &d_q);
}

@compute @workgroup_size(INVOCATIONS)
fn attention_tiles_bwd_kv(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = params.first_group + in_part.xy;
    let kv_head = group.y;
    let ratio = params.heads / params.kv_heads;
    let own = group.x * TILE;
    let across = lane % ACROSS;
    let down = lane / ACROSS;
    var d_key: array<vec4<f32>, 4u * WIDE>;
    var d_value: array<vec4<f32>, 4u * WIDE>;
    for (var n = 0u; n < 4u * WIDE; n++) {
        d_key[n] = vec4<f32>();
        d_value[n] = vec4<f32>();
    }
    let ranges = within(params.t, spans[params.key_tiles + group.x]);
    // The loop over heads is the outer one, because the order of a sum must not depend on where blocks begin.
    for (var head = kv_head * ratio; head < (kv_head + 1u) * ratio; head++) {
        for (var i = ranges.x; i < ranges.w; i = next(ranges, i, BLOCK)) {
            let end = part_end(ranges, i);
            var s = tile_dots(lane, keys_of(kv_head, false), own, queries_of(head), i, end);
            var p: array<vec4<f32>, PART>;
            for (var n = 0u; n < PART; n++) {
                let row = i + across + n * ACROSS;
                let query = min(row, end - 1u);
                let view = select(vec4<u32>(), spans[query], row < end);
                let seen = vec4<bool>(
                    sees(view, own_row(own, lane, 0u)),
                    sees(view, own_row(own, lane, 1u)),
                    sees(view, own_row(own, lane, 2u)),
                    sees(view, own_row(own, lane, 3u)),
                );
                s[n] = capped_vec4(s[n]);
                p[n] = select(vec4<f32>(), exp(s[n] - lse_saved[query * params.heads + head]), seen);
            }
            if OF_VALUES {
                for (var n = 0u; n < PART; n++) {
                    left[weight_at(across + n * ACROSS, down)] = p[n];
                }
                _ = add_weighted(lane, d_o_rows(head), i, end, &d_value, vec4<f32>());
            }
            if OF_KEYS {
                var d_p = tile_dots(lane, values_of(kv_head, false), own, d_o_rows(head), i, end);
                for (var n = 0u; n < PART; n++) {
                    let at = min(i + across + n * ACROSS, end - 1u) * params.heads + head;
                    // Where a key is not seen, p is zero, and so is this unless d_p is infinite.
                    let d_s = p[n] * (d_p[n] - delta[at]) * slopes(s[n]) * params.scale;
                    left[weight_at(across + n * ACROSS, down)] = select(d_s, vec4<f32>(), p[n] == vec4<f32>());
                }
                _ = add_weighted(lane, queries_of(head), i, end, &d_key, vec4<f32>());
            }
        }
    }
    if OF_KEYS {
        store_d(lane, own, keys_of(kv_head, false), &d_key);
    }
    if OF_VALUES {
        store_d(lane, own, values_of(kv_head, false), &d_value);
    }
}
