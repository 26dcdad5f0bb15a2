// The attention of attention.wgsl on cooperative matrices (tensor cores): f16 operands, f32 sums. Heads' rows are of whole, aligned vec4s.
//
// q, k, v and d_o arrive as f16 with one exponent per row (attention_split_f16.wgsl). With SPLIT, a value is the sum of two f16, and three
// products replace one, as in matmul_coop.wgsl. A workgroup of four subgroups owns a tile of rows of one segment (queries; keys in bwd_kv)
// and loops over the other side in blocks of BLOCK rows. A subgroup owns EDGE rows. Where SHARE is 2, two subgroups own the same rows and
// divide the columns.
//
// Scores, and d_o·v, are summed over E in fragments and pass through workgroup memory. Each invocation then takes COLUMNS values of one
// row, undoes the row exponents, and computes the softmax in f32. The resulting weights (p, d_s) are stored as f16 and multiplied with the
// other side's rows into outputs, which stay in fragments for the whole loop.
//
// Fragments cannot be scaled row by row, so the weights are scaled instead, by a power of two per row: the row exponent. The row exponents
// of the other side's rows go into the same scale. f16's range therefore does not matter for d_s either, which is about 1e-6 in training.
// Where a block's weights exceed 2¹⁵, the outputs pass through workgroup memory once to be rescaled. The new row exponent leaves HEADROOM,
// so that rescaling is rare. The forward softmax needs no other running maximum.
//
// Results are bit-identical whatever is packed beside a row, and whatever order a tensor core sums in. Blocks start at multiples of BLOCK
// in positions, counted from 0, not in rows; a position's row is in the prefix or in the segment itself. The fragments of a sum are
// therefore equal whether a sequence is alone, behind others, or behind a shared prefix. Keys that are not seen have zero weights. Own rows
// are rows of fragments, which do not mix. Row exponents are powers of two.
//
// With 16×16 fragments and E = 64, a block of the forward pass computes 2·64·32·64 multiply-adds (with SPLIT three times as many on tensor
// cores), reads 2·32·64 values of the other side from memory and 64·64 own values from a cache: 16 operations per byte with SPLIT, else 32.
// A fragment read from workgroup memory serves one product (with SPLIT, two fragments serve three). An invocation keeps 8·E/16 outputs,
// twice as many in bwd_kv. A block of bwd_q is three such products over 3·32·64 values and 2·64·64 own ones; a block of bwd_kv is four over
// 4·32·64 and 2·64·64. Workgroup memory: 25 KiB with SPLIT; 15 KiB with 8×8 fragments. The sizes follow from these counts; they were not
// measured on a GPU.

import package::shared::scores::{sees, capped, cap_slope};
import package::shared::exponents::{LOG2_E, LN_2, LOWEST};
import package::shared::split_f16::{SPLIT, rounded};
import package::shared::head_split_f16::{E, WIDTH, head_row_at};
import package::shared::fragment8::{EDGE, Left, Right, Sum, begin_slice, end_slice};

override LANES: u32 = 128u; // four subgroups
override SHARE: u32 = 1u;   // 1 or 2
override BLOCK: u32 = 32u;  // whole fragments for each of the SHARE subgroups
override SLICE: u32 = 32u;  // likewise; divides WIDTH

const SUBGROUPS = 4u;
const TILE = SUBGROUPS / SHARE * EDGE;
const PARTS = LANES / TILE; // invocations per row
const COLUMNS = BLOCK / PARTS;
const SCORES = BLOCK / EDGE / SHARE;  // fragments per subgroup
const OUTPUTS = WIDTH / EDGE / SHARE; // fragments per subgroup
const PAD = 8u; // rows begin at multiples of 16 bytes, and in different banks
const WEIGHTS_ROW = BLOCK + PAD;
const OTHER_ROW = SLICE + PAD;
const VALUES_ROW = BLOCK + PAD / 2u;

const HIGHEST_HALF = 15; // log2 of the largest weight
const HEADROOM = 6;
const NO_LEVEL = -10000; // row exponent of a row that has seen no key

@group(0) @binding(1) var<storage, read> heads_f16: array<f16>;
@group(0) @binding(2) var<storage, read> vec4s: array<vec4<f16>>; // `heads_f16` by vec4s
@group(0) @binding(4) var<storage, read_write> o: array<vec4<f32>>; // (T, H·E)
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;     // (T, H)
@group(0) @binding(6) var<storage, read> row_exponents: array<i32>;        // (heads, T)
@group(0) @binding(7) var<storage, read_write> d_qkv: array<vec4<f32>>;

var<workgroup> other_high: array<f16, BLOCK * OTHER_ROW>;
var<workgroup> other_low: array<f16, select(1u, BLOCK * OTHER_ROW, SPLIT)>;
var<workgroup> weights_high: array<f16, TILE * WEIGHTS_ROW>;
var<workgroup> weights_low: array<f16, select(1u, TILE * WEIGHTS_ROW, SPLIT)>;
var<workgroup> values: array<f32, TILE * VALUES_ROW>;
var<workgroup> tops: array<i32, LANES>;
var<workgroup> rises: atomic<u32>;

// Place of an invocation. Its subgroup's fragments begin at row `block` of the tile and column `part`. Its own values are in row `row`, in
// every PARTS-th column from `column` on.
struct Lane {
    index: u32,
    block: u32,
    part: u32,
    row: u32,
    column: u32,
}

fn lane_of(index: u32, subgroup: u32) -> Lane {
    return Lane(index, subgroup / SHARE * EDGE, subgroup % SHARE * EDGE, index / PARTS, index % PARTS);
}

// Positions `begin` to `end` of the other side. Those below n_prefix are rows of the prefix; the others are rows of a segment whose
// position 0 would be row `own`.
struct KeyRange {
    prefix: u32,
    n_prefix: u32,
    own: u32,
    begin: u32,
    end: u32,
}

fn is_on(range: KeyRange, position: u32) -> bool {
    return position >= range.begin && position < range.end;
}

// Returns the row at a position, or some row of the range where the position is outside.
fn row_at(range: KeyRange, position: u32) -> u32 {
    let p = clamp(position, range.begin, range.end - 1u);
    return select(range.own + p, range.prefix + p, p < range.n_prefix);
}

// Indices of heads in `heads_f16`.
fn key_head(kv_head: u32) -> u32 {
    return params.heads + kv_head;
}

fn value_head(kv_head: u32) -> u32 {
    return params.heads + params.kv_heads + kv_head;
}

fn d_o_head(head: u32) -> u32 {
    return params.heads + 2u * params.kv_heads + head;
}

fn row_exponent_of(head: u32, row: u32) -> i32 {
    return row_exponents[head * params.t + min(row, params.t - 1u)];
}

// Returns 2^n, at least 2^-126.
fn two_to(n: i32) -> f32 {
    return bitcast<f32>(u32(clamp(n, -126, 127) + 127) << 23u);
}

// Returns n such that |x| < 2^n; NO_LEVEL for zero.
fn exponent(x: f32) -> i32 {
    return select(i32(bitcast<u32>(abs(x)) >> 23u) - 126, NO_LEVEL, x == 0.0);
}

// Loads a slice of a block's rows of a head into workgroup memory, from column `column` on.
fn load_other(lane: u32, head: u32, range: KeyRange, at: u32, column: u32) {
    workgroupBarrier();
    for (var i = lane; i < BLOCK * (SLICE / 4u); i += LANES) {
        let row = i / (SLICE / 4u);
        let d = i % (SLICE / 4u) * 4u;
        let source = (head_row_at(params.t, head, row_at(range, at + row)) + column + d) / 4u;
        let to = row * OTHER_ROW + d;
        let high = vec4s[source];
        other_high[to] = high.x;
        other_high[to + 1u] = high.y;
        other_high[to + 2u] = high.z;
        other_high[to + 3u] = high.w;
        if SPLIT {
            let low = vec4s[source + params.t * (WIDTH / 4u)];
            other_low[to] = low.x;
            other_low[to + 1u] = low.y;
            other_low[to + 2u] = low.z;
            other_low[to + 3u] = low.w;
        }
    }
    workgroupBarrier();
}

// Returns the index into `values` where a fragment of the own rows begins.
fn value_at(me: Lane, fragment: u32) -> u32 {
    return me.block * VALUES_ROW + fragment * SHARE * EDGE + me.part;
}

// Returns the dot products of the invocation's row of head `mine` with its columns of a block of head `other`.
fn tile_dots(me: Lane, mine: u32, own: u32, other: u32, range: KeyRange, at: u32) -> array<f32, COLUMNS> {
    var sums: array<Sum, SCORES>;
    for (var n = 0u; n < SCORES; n++) {
        sums[n] = Sum();
    }
    for (var column = 0u; column < WIDTH; column += SLICE) {
        load_other(me.index, other, range, at, column);
        var parts: array<Sum, SCORES>;
        for (var n = 0u; n < SCORES; n++) {
            parts[n] = begin_slice(sums[n]);
        }
        for (var k = 0u; k < SLICE; k += EDGE) {
            // Rows beyond the tile or T are other rows of the slot, or its padding; their products are not used.
            let own_at = head_row_at(params.t, mine, own + me.block) + column + k;
            let left = coopLoadT<Left>(&heads_f16[own_at], WIDTH);
            var left_low = Left();
            if SPLIT {
                left_low = coopLoadT<Left>(&heads_f16[own_at + params.t * WIDTH], WIDTH);
            }
            for (var n = 0u; n < SCORES; n++) {
                let other_at = (n * SHARE * EDGE + me.part) * OTHER_ROW + k;
                let right = coopLoad<Right>(&other_high[other_at], OTHER_ROW);
                if SPLIT {
                    parts[n] = coopMultiplyAdd(left_low, right, parts[n]);
                    parts[n] = coopMultiplyAdd(left, coopLoad<Right>(&other_low[other_at], OTHER_ROW), parts[n]);
                }
                parts[n] = coopMultiplyAdd(left, right, parts[n]);
            }
        }
        for (var n = 0u; n < SCORES; n++) {
            sums[n] = end_slice(sums[n], parts[n]);
        }
    }
    for (var n = 0u; n < SCORES; n++) {
        coopStoreT(sums[n], &values[value_at(me, n)], VALUES_ROW);
    }
    workgroupBarrier();
    let factor = two_to(row_exponent_of(mine, own + me.row));
    var results: array<f32, COLUMNS>;
    for (var n = 0u; n < COLUMNS; n++) {
        let c = me.column + n * PARTS;
        results[n] = values[me.row * VALUES_ROW + c] * factor * two_to(row_exponent_of(other, row_at(range, at + c)));
    }
    return results;
}

// Stores outputs from fragment `first` on to `values`, multiplied by 2^n·factor of their row. n may be below f32's range.
fn store_outputs_scaled(me: Lane, first: u32, outputs: ptr<function, array<Sum, OUTPUTS>>, n: i32, factor: f32) {
    workgroupBarrier();
    for (var f = first; f < min(first + SCORES, OUTPUTS); f++) {
        coopStoreT((*outputs)[f], &values[value_at(me, f - first)], VALUES_ROW);
    }
    workgroupBarrier();
    for (var c = me.column; c < BLOCK; c += PARTS) {
        let at = me.row * VALUES_ROW + c;
        values[at] = values[at] * two_to(n / 2) * two_to(n - n / 2) * factor;
    }
    workgroupBarrier();
}

fn value_vec4(row: u32, column: u32) -> vec4<f32> {
    let x = row * VALUES_ROW + column;
    return vec4<f32>(values[x], values[x + 1u], values[x + 2u], values[x + 3u]);
}

// Returns a row exponent at which weights below 2^needed fit f16, for the row that PARTS invocations share. Rescales the outputs to the new
// exponent.
fn raise_exponent(me: Lane, needed: i32, row_exponent: i32, outputs: ptr<function, array<Sum, OUTPUTS>>) -> i32 {
    tops[me.index] = needed;
    if me.index == 0u {
        atomicStore(&rises, 0u);
    }
    workgroupBarrier();
    var top = needed;
    for (var n = 0u; n < PARTS; n++) {
        top = max(top, tops[me.row * PARTS + n]);
    }
    let is_higher = top > row_exponent + HIGHEST_HALF;
    if is_higher {
        atomicStore(&rises, 1u);
    }
    let now = select(row_exponent, top - HIGHEST_HALF + HEADROOM, is_higher);
    if workgroupUniformLoad(&rises) != 0u {
        for (var first = 0u; first < OUTPUTS; first += SCORES) {
            store_outputs_scaled(me, first, outputs, row_exponent - now, 1.0);
            for (var f = first; f < min(first + SCORES, OUTPUTS); f++) {
                (*outputs)[f] = coopLoadT<Sum>(&values[value_at(me, f - first)], VALUES_ROW);
            }
        }
    }
    return now;
}

fn store_weight(me: Lane, n: u32, weight: f32) {
    let at = me.row * WEIGHTS_ROW + me.column + n * PARTS;
    let high = rounded(vec4<f32>(weight)).x;
    weights_high[at] = f16(high);
    if SPLIT {
        weights_low[at] = f16(rounded(vec4<f32>(weight - high)).x);
    }
}

// Adds the rows of a block of head `other`, times their weights, to the outputs.
fn add_weighted(me: Lane, other: u32, range: KeyRange, at: u32, outputs: ptr<function, array<Sum, OUTPUTS>>) {
    for (var column = 0u; column < WIDTH; column += SLICE) {
        load_other(me.index, other, range, at, column);
        for (var j = 0u; j < SLICE / EDGE / SHARE; j++) {
            let output = column / EDGE / SHARE + j;
            var part = begin_slice((*outputs)[output]);
            for (var k = 0u; k < BLOCK; k += EDGE) {
                let weights_at = me.block * WEIGHTS_ROW + k;
                let other_at = k * OTHER_ROW + j * SHARE * EDGE + me.part;
                let left = coopLoadT<Left>(&weights_high[weights_at], WEIGHTS_ROW);
                let right = coopLoadT<Right>(&other_high[other_at], OTHER_ROW);
                if SPLIT {
                    part = coopMultiplyAdd(coopLoadT<Left>(&weights_low[weights_at], WEIGHTS_ROW), right, part);
                    part = coopMultiplyAdd(left, coopLoadT<Right>(&other_low[other_at], OTHER_ROW), part);
                }
                part = coopMultiplyAdd(left, right, part);
            }
            (*outputs)[output] = end_slice((*outputs)[output], part);
        }
    }
}

@compute @workgroup_size(LANES)
fn attention_coop_fwd(
    @builtin(workgroup_id) in_part: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let group = params.first_group + in_part.xy;
    let me = lane_of(lane, subgroup);
    let head = group.y;
    let kv_head = head / (params.heads / params.kv_heads);
    let tile = segments[params.query_tiles + 2u * group.x];
    let rows = segments[params.query_tiles + 2u * group.x + 1u];
    let range = KeyRange(rows.x, rows.y, rows.z, tile.z, min(tile.w, params.t));
    let view = select(vec4<u32>(), segments[min(tile.x + me.row, params.t - 1u)], me.row < tile.y);
    var outputs: array<Sum, OUTPUTS>;
    for (var n = 0u; n < OUTPUTS; n++) {
        outputs[n] = Sum();
    }
    var row_exponent = NO_LEVEL;
    var total = 0.0;
    for (var at = range.begin / BLOCK * BLOCK; at < range.end; at += BLOCK) {
        var s = tile_dots(me, head, tile.x, key_head(kv_head), range, at);
        var needed = NO_LEVEL;
        for (var n = 0u; n < COLUMNS; n++) {
            let position = at + me.column + n * PARTS;
            let row = row_at(range, position);
            let seen = is_on(range, position) && sees(view, row);
            s[n] = select(LOWEST, capped(s[n]) * LOG2_E, seen);
            needed = max(needed, select(NO_LEVEL, i32(ceil(s[n])) + row_exponent_of(value_head(kv_head), row), seen));
        }
        let now = raise_exponent(me, needed, row_exponent, &outputs);
        total *= two_to(row_exponent - now);
        row_exponent = now;
        for (var n = 0u; n < COLUMNS; n++) {
            let row = row_at(range, at + me.column + n * PARTS);
            let whole = floor(s[n]);
            let p = select(exp2(s[n] - whole), 0.0, s[n] == LOWEST);
            let above = i32(whole) - row_exponent;
            total += p * two_to(above);
            store_weight(me, n, p * two_to(above + row_exponent_of(value_head(kv_head), row)));
        }
        add_weighted(me, value_head(kv_head), range, at, &outputs);
    }
    workgroupBarrier();
    values[lane] = total;
    workgroupBarrier();
    total = 0.0;
    for (var n = 0u; n < PARTS; n++) {
        total += values[me.row * PARTS + n];
    }
    if me.column == 0u && me.row < tile.y {
        // The total's power of two is split off before the logarithm, whose error would otherwise be that of a large number.
        let shift = exponent(total);
        lse[(tile.x + me.row) * params.heads + head] = f32(row_exponent + shift) * LN_2 + log(total * two_to(-shift));
    }
    for (var first = 0u; first < OUTPUTS; first += SCORES) {
        store_outputs_scaled(me, first, &outputs, 0, 1.0 / total);
        for (var i = lane; i < TILE * (BLOCK / 4u); i += LANES) {
            let row = i / (BLOCK / 4u);
            let c = i % (BLOCK / 4u) * 4u;
            let column = first * SHARE * EDGE + c;
            if row < tile.y && column < E {
                o[(((tile.x + row) * params.heads + head) * E + column) / 4u] = value_vec4(row, c);
            }
        }
    }
}

// Stores the outputs of a tile of `n_rows` rows from row `own` on, at a start and stride of d_qkv.
fn store_d(
    me: Lane,
    outputs: ptr<function, array<Sum, OUTPUTS>>,
    row_exponent: i32,
    own: u32,
    n_rows: u32,
    start: u32,
    stride: u32,
) {
    for (var first = 0u; first < OUTPUTS; first += SCORES) {
        store_outputs_scaled(me, first, outputs, row_exponent, 1.0);
        for (var i = me.index; i < TILE * (BLOCK / 4u); i += LANES) {
            let row = i / (BLOCK / 4u);
            let c = i % (BLOCK / 4u) * 4u;
            let column = first * SHARE * EDGE + c;
            if row < n_rows && column < E {
                d_qkv[(start + (own + row) * stride + column) / 4u] = value_vec4(row, c);
            }
        }
    }
}

@compute @workgroup_size(LANES)
fn attention_coop_bwd_q(
    @builtin(workgroup_id) in_part: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let group = params.first_group + in_part.xy;
    let me = lane_of(lane, subgroup);
    let head = group.y;
    let kv_head = head / (params.heads / params.kv_heads);
    let tile = spans[params.query_tiles + 2u * group.x];
    let rows = spans[params.query_tiles + 2u * group.x + 1u];
    let range = KeyRange(rows.x, rows.y, rows.z, tile.z, min(tile.w, params.t));
    let query = min(tile.x + me.row, params.t - 1u);
    let view = select(vec4<u32>(), spans[query], me.row < tile.y);
    let top = lse_saved[query * params.heads + head];
    let even = delta[query * params.heads + head];
    var outputs: array<Sum, OUTPUTS>;
    for (var n = 0u; n < OUTPUTS; n++) {
        outputs[n] = Sum();
    }
    var row_exponent = NO_LEVEL;
    for (var at = range.begin / BLOCK * BLOCK; at < range.end; at += BLOCK) {
        var s = tile_dots(me, head, tile.x, key_head(kv_head), range, at);
        var d_s = tile_dots(me, d_o_head(head), tile.x, value_head(kv_head), range, at);
        var needed = NO_LEVEL;
        for (var n = 0u; n < COLUMNS; n++) {
            let position = at + me.column + n * PARTS;
            let row = row_at(range, position);
            let seen = is_on(range, position) && sees(view, row);
            let score = capped(s[n]);
            let slope = exp(score - top) * cap_slope(score) * params.scale;
            d_s[n] = select(0.0, slope * (d_s[n] - even), seen);
            needed = max(needed, exponent(d_s[n]) + row_exponent_of(key_head(kv_head), row));
        }
        row_exponent = raise_exponent(me, needed, row_exponent, &outputs);
        for (var n = 0u; n < COLUMNS; n++) {
            let row = row_at(range, at + me.column + n * PARTS);
            store_weight(me, n, d_s[n] * two_to(row_exponent_of(key_head(kv_head), row) - row_exponent));
        }
        add_weighted(me, key_head(kv_head), range, at, &outputs);
    }
    store_d(me, &outputs, row_exponent, tile.x, tile.y, params.q_start + head * E, params.q_stride);
}

@compute @workgroup_size(LANES)
fn attention_coop_bwd_kv(
    @builtin(workgroup_id) in_part: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let group = params.first_group + in_part.xy;
    let me = lane_of(lane, subgroup);
    let kv_head = group.y;
    let ratio = params.heads / params.kv_heads;
    let tile = spans[params.key_tiles + group.x];
    let key = select(0xffffffffu, tile.x + me.row, me.row < tile.y);
    var d_key: array<Sum, OUTPUTS>;
    var d_value: array<Sum, OUTPUTS>;
    for (var n = 0u; n < OUTPUTS; n++) {
        d_key[n] = Sum();
        d_value[n] = Sum();
    }
    var row_exponent_of_key = NO_LEVEL;
    var row_exponent_of_value = NO_LEVEL;
    for (var head = kv_head * ratio; head < (kv_head + 1u) * ratio; head++) {
        for (var run = tile.z; run < min(tile.w, arrayLength(&spans)); run++) {
            let queries = spans[run];
            let range = KeyRange(0u, 0u, queries.x, queries.y, min(queries.z, params.t));
            for (var at = range.begin / BLOCK * BLOCK; at < range.end; at += BLOCK) {
                var p = tile_dots(me, key_head(kv_head), tile.x, head, range, at);
                var d_s = tile_dots(me, value_head(kv_head), tile.x, d_o_head(head), range, at);
                var needed_by_value = NO_LEVEL;
                var needed_by_key = NO_LEVEL;
                for (var n = 0u; n < COLUMNS; n++) {
                    let position = at + me.column + n * PARTS;
                    let query = row_at(range, position);
                    let seen = is_on(range, position) && sees(spans[query], key);
                    let score = capped(p[n]);
                    p[n] = select(0.0, exp(score - lse_saved[query * params.heads + head]), seen);
                    let d_o_row = d_s[n] - delta[query * params.heads + head];
                    d_s[n] = select(0.0, p[n] * cap_slope(score) * params.scale * d_o_row, seen);
                    needed_by_value = max(needed_by_value, exponent(p[n]) + row_exponent_of(d_o_head(head), query));
                    needed_by_key = max(needed_by_key, exponent(d_s[n]) + row_exponent_of(head, query));
                }
                row_exponent_of_value = raise_exponent(me, needed_by_value, row_exponent_of_value, &d_value);
                for (var n = 0u; n < COLUMNS; n++) {
                    let query = row_at(range, at + me.column + n * PARTS);
                    store_weight(me, n, p[n] * two_to(row_exponent_of(d_o_head(head), query) - row_exponent_of_value));
                }
                add_weighted(me, d_o_head(head), range, at, &d_value);
                row_exponent_of_key = raise_exponent(me, needed_by_key, row_exponent_of_key, &d_key);
                for (var n = 0u; n < COLUMNS; n++) {
                    let query = row_at(range, at + me.column + n * PARTS);
                    store_weight(me, n, d_s[n] * two_to(row_exponent_of(head, query) - row_exponent_of_key));
                }
                add_weighted(me, head, range, at, &d_key);
            }
        }
    }
    store_d(me, &d_key, row_exponent_of_key, tile.x, tile.y, params.k_start + kv_head * E, params.kv_stride);
    store_d(me, &d_value, row_exponent_of_value, tile.x, tile.y, params.v_start + kv_head * E, params.kv_stride);
}
