// The attention of attention.wgsl on cooperative matrices (tensor cores): f16 operands, f32 sums. Heads' rows are of whole, aligned vec4s.
//
// q, k, v and d_o arrive as f16 with one exponent per row (attention_split_f16.wgsl). With SPLIT, a value is the sum of two f16, and three
// products replace one, as in matmul_coop.wgsl. A workgroup of SUBGROUPS subgroups owns a tile of rows of one segment (queries; keys in bwd_kv)
// and loops over the other side in blocks of BLOCK rows. A subgroup owns ROWS·EDGE rows. Where SHARE is 2, two subgroups own the same rows and
// divide the columns.
//
// Scores, and d_o·v, are summed over E in fragments and pass through workgroup memory. Each invocation then takes COLUMNS neighbouring
// values of one row, undoes the row exponents, and computes the softmax in f32. The resulting weights (p, d_s) are stored as f16 and
// multiplied with the other side's rows into outputs, which stay in fragments for the whole loop.
//
// The other side's rows pass through workgroup memory in slices of SLICE columns. A slice is loaded into registers while the slice before
// it is multiplied. Facts about a block's rows (row, factors, visible keys) are loaded once per block, too. With HELD, the own rows stay in
// fragments for the whole loop.
//
// Fragments cannot be scaled row by row, so the weights are scaled instead, by a power of two per row: the row exponent. The row exponents
// of the other side's rows go into the same scale. f16's range therefore does not matter for d_s either, which is about 1e-6 in training.
// Where a block's weights exceed 2¹⁵, the outputs pass through workgroup memory once to be rescaled. The new row exponent leaves HEADROOM,
// so that rescaling is rare. The softmax's running maximum is rounded up to an integer, so that it scales sums by powers of two.
//
// Results are bit-identical whatever is packed beside a row, and whatever order a tensor core sums in. Blocks start at multiples of BLOCK
// in positions, counted from 0, not in rows; a position's row is in the prefix or in the segment itself. The fragments of a sum are
// therefore equal whether a sequence is alone, behind others, or behind a shared prefix. Keys that are not seen have zero weights. Own rows
// are rows of fragments, which do not mix. Row exponents are powers of two. Should a driver divide the workgroup into other subgroups than
// the shader was written for, results are NaN.
//
// With 16×16 fragments and E = 64, a block of the forward pass computes 2·64·32·64 multiply-adds (with SPLIT three times as many on tensor
// cores) and reads 2·32·64 values of the other side from memory: 64 operations per byte, with SPLIT 32. A fragment read from workgroup
// memory serves ROWS products (with SPLIT, two fragments serve 3·ROWS). An invocation keeps 8·E/16 outputs, twice as many in bwd_kv. A block
// of bwd_q is three such products, a block of bwd_kv four. The sizes follow from these counts; they were not measured on a GPU.

import package::shared::scores::{sees, capped, cap_slope};
import package::shared::exponents::{LOG2_E, LN_2, LOWEST};
import package::shared::split_f16::{SPLIT, rounded};
import package::shared::head_split_f16::{E, WIDTH, PLANES, head_row_at};
import package::shared::fragment8::{EDGE, Left, Right, Sum, begin_slice, end_slice};

override LANES: u32 = 128u; // SUBGROUPS subgroups
override SUBGROUPS: u32 = 4u;
override SHARE: u32 = 1u;   // 1 or 2
override ROWS: u32 = 1u;    // fragments of own rows per subgroup
override BLOCK: u32 = 32u;  // whole fragments for each of the SHARE subgroups
override SLICE: u32 = 32u;  // likewise; divides WIDTH
override HELD: bool = false; // whether own rows stay in fragments

const TILE = SUBGROUPS / SHARE * ROWS * EDGE;
const PARTS = LANES / TILE; // invocations per row: neighbours in a subgroup
const COLUMNS = BLOCK / PARTS;
const SCORES = BLOCK / EDGE / SHARE;  // fragments per subgroup along a row
const OUTPUTS = WIDTH / EDGE / SHARE; // likewise
const SLICE_PAIRS = BLOCK * SLICE / 8u; // pairs of vec4s, of two rows
const TURNS = (SLICE_PAIRS + LANES - 1u) / LANES; // pairs per invocation
const OWN = select(1u, ROWS * PLANES * WIDTH / EDGE, HELD); // own fragments that are held
const PAD = 8u; // rows begin at multiples of 16 bytes, and in different banks
const WEIGHTS_ROW = BLOCK + PAD;
const OTHER_ROW = SLICE + PAD;
const OTHER_COLUMN = BLOCK + PAD;
const OTHER = max(BLOCK * OTHER_ROW, SLICE * OTHER_COLUMN);
const VALUES_ROW = BLOCK + PAD / 2u;

const HIGHEST_HALF = 15; // log2 of the largest weight
const HEADROOM = 6;
const NO_LEVEL = -10000; // row exponent of a row that has seen no key
const NO_ROW = 0xffffffffu;
const NAN = 0x7fc00000u;

@group(0) @binding(1) var<storage, read> heads_f16: array<f16>;
@group(0) @binding(2) var<storage, read> vec4s: array<vec4<f16>>; // `heads_f16` by vec4s
@group(0) @binding(4) var<storage, read_write> o: array<vec4<f32>>; // (T, H·E)
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;     // (T, H)
@group(0) @binding(6) var<storage, read> row_exponents: array<i32>;        // (heads, T)
@group(0) @binding(7) var<storage, read_write> d_qkv: array<vec4<f32>>;

var<workgroup> other_high: array<f16, OTHER>; // a slice, by rows (BLOCK, SLICE) or by columns (SLICE, BLOCK)
var<workgroup> other_low: array<f16, select(1u, OTHER, SPLIT)>;
var<workgroup> weights_high: array<f16, TILE * WEIGHTS_ROW>;
var<workgroup> weights_low: array<f16, select(1u, TILE * WEIGHTS_ROW, SPLIT)>;
var<workgroup> values: array<f32, TILE * VALUES_ROW>;
var<workgroup> rises: atomic<u32>;
// Facts about a block's rows. Keys have a row (NO_ROW outside the range) and the factors of k and v; queries have the keys that they see, the
// factors of q and d_o, the log-sum-exp to base 2, and delta.
var<workgroup> row_of: array<u32, BLOCK>;
var<workgroup> view_of: array<vec4<u32>, BLOCK>;
var<workgroup> first_factor: array<f32, BLOCK>;
var<workgroup> second_factor: array<f32, BLOCK>;
var<workgroup> top_of: array<f32, BLOCK>;
var<workgroup> delta_of: array<f32, BLOCK>;

// Place of an invocation. Its subgroup's fragments begin at row `block` of the tile and column `part`. Its own values are in row `row`, in
// COLUMNS columns from `column` on.
struct Lane {
    index: u32,
    block: u32,
    part: u32,
    row: u32,
    column: u32,
}

fn lane_of(subgroup: u32, member: u32) -> Lane {
    let index = subgroup * (LANES / SUBGROUPS) + member;
    return Lane(index, subgroup / SHARE * ROWS * EDGE, subgroup % SHARE * EDGE, index / PARTS, index % PARTS * COLUMNS);
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

// Returns n such that x < 2^n, for x > 0.
fn exponent(x: f32) -> i32 {
    return i32(bitcast<u32>(x) >> 23u) - 126;
}

// Reduces values of a row's invocations. All of them get the same bits.
fn row_max(x: f32) -> f32 {
    var most = x;
    for (var mask = 1u; mask < PARTS; mask *= 2u) {
        most = max(most, subgroupShuffleXor(most, mask));
    }
    return most;
}

fn row_sum(x: f32) -> f32 {
    var sum = x;
    for (var mask = 1u; mask < PARTS; mask *= 2u) {
        sum += subgroupShuffleXor(sum, mask);
    }
    return sum;
}

// Part of a slice that an invocation carries from memory to workgroup memory: pairs of vec4s of two rows, first their high parts.
alias Staged = array<vec4<f16>, PLANES * TURNS * 2u>;

// Returns a pair's first row and first column in a slice. Neighbouring invocations load neighbouring columns; where the slice will lie by
// columns, they put neighbouring rows.
fn place(pair: u32, by_columns: bool) -> vec2<u32> {
    if by_columns {
        return vec2<u32>(pair % (BLOCK / 2u) * 2u, pair / (BLOCK / 2u) * 4u);
    }
    return vec2<u32>(pair / (SLICE / 4u) * 2u, pair % (SLICE / 4u) * 4u);
}

// Slice of a block's rows of a head.
struct Slice {
    head: u32,
    at: u32,     // position of the block
    column: u32, // first column
    by_columns: bool,
}

// Loads an invocation's part of a slice.
fn load_slice(lane: u32, range: KeyRange, slice: Slice) -> Staged {
    var staged: Staged;
    for (var turn = 0u; turn < TURNS; turn++) {
        let in_slice = place(min(lane + turn * LANES, SLICE_PAIRS - 1u), slice.by_columns);
        for (var s = 0u; s < 2u; s++) {
            let row = row_at(range, slice.at + in_slice.x + s);
            let source = (head_row_at(params.t, slice.head, row) + slice.column + in_slice.y) / 4u;
            staged[2u * turn + s] = vec4s[source];
            if SPLIT {
                staged[2u * ((PLANES - 1u) * TURNS + turn) + s] = vec4s[source + params.t * (WIDTH / 4u)];
            }
        }
    }
    return staged;
}

fn put_slice(lane: u32, staged: Staged, by_columns: bool) {
    for (var turn = 0u; turn < TURNS; turn++) {
        let pair = lane + turn * LANES;
        if SLICE_PAIRS % LANES == 0u || pair < SLICE_PAIRS {
            let at = place(pair, by_columns);
            let first = 2u * turn;
            let first_low = 2u * ((PLANES - 1u) * TURNS + turn);
            if by_columns {
                for (var s = 0u; s < 4u; s++) {
                    let to = (at.y + s) * OTHER_COLUMN + at.x;
                    other_high[to] = staged[first][s];
                    other_high[to + 1u] = staged[first + 1u][s];
                    if SPLIT {
                        other_low[to] = staged[first_low][s];
                        other_low[to + 1u] = staged[first_low + 1u][s];
                    }
                }
            } else {
                for (var row = 0u; row < 2u; row++) {
                    let to = (at.x + row) * OTHER_ROW + at.y;
                    for (var s = 0u; s < 4u; s++) {
                        other_high[to + s] = staged[first + row][s];
                        if SPLIT {
                            other_low[to + s] = staged[first_low + row][s];
                        }
                    }
                }
            }
        }
    }
}

fn clear_rises(me: Lane) {
    if me.index == 0u {
        atomicStore(&rises, 0u);
    }
}

// Own rows of a head. With HELD, the fragments are loaded already.
struct OwnRows {
    head: u32,
    row: u32, // where the subgroup's rows begin
    fragments: array<Left, OWN>,
}

// Returns a fragment of own rows, the r-th of the subgroup. Rows beyond the tile or T are other rows of the slot, or its padding; their
// products are not used.
fn load_own(head: u32, row: u32, r: u32, plane: u32, column: u32) -> Left {
    let at = head_row_at(params.t, head, row + r * EDGE) + plane * params.t * WIDTH + column;
    return coopLoadT<Left>(&heads_f16[at], WIDTH);
}

fn own_rows(me: Lane, head: u32, tile_row: u32) -> OwnRows {
    var own: OwnRows;
    own.head = head;
    own.row = tile_row + me.block;
    for (var i = 0u; i < OWN; i++) {
        own.fragments[i] = Left();
        if HELD {
            let plane = i / (WIDTH / EDGE) % PLANES;
            own.fragments[i] = load_own(head, own.row, i / (PLANES * WIDTH / EDGE), plane, i % (WIDTH / EDGE) * EDGE);
        }
    }
    return own;
}

fn own_fragment(own: ptr<function, OwnRows>, r: u32, plane: u32, column: u32) -> Left {
    if HELD {
        return (*own).fragments[(r * PLANES + plane) * (WIDTH / EDGE) + column / EDGE];
    }
    return load_own((*own).head, (*own).row, r, plane, column);
}

// Returns the index into `values` where fragment n of the r-th own rows begins.
fn value_at(me: Lane, r: u32, n: u32) -> u32 {
    return (me.block + r * EDGE) * VALUES_ROW + n * SHARE * EDGE + me.part;
}

// Returns the dot products of the invocation's row with its columns of a block of head `other`, without their factors. `staged` is the
// block's first slice, to lie by rows, and becomes slice `next`.
fn tile_dots(
    me: Lane,
    own: ptr<function, OwnRows>,
    other: u32,
    range: KeyRange,
    at: u32,
    staged: ptr<function, Staged>,
    next: Slice,
) -> array<f32, COLUMNS> {
    var sums: array<Sum, ROWS * SCORES>;
    for (var n = 0u; n < ROWS * SCORES; n++) {
        sums[n] = Sum();
    }
    for (var column = 0u; column < WIDTH; column += SLICE) {
        workgroupBarrier();
        put_slice(me.index, *staged, false);
        workgroupBarrier();
        if column + SLICE < WIDTH {
            *staged = load_slice(me.index, range, Slice(other, at, column + SLICE, false));
        } else {
            *staged = load_slice(me.index, range, next);
        }
        for (var k = 0u; k < SLICE; k += EDGE) {
            var lefts: array<Left, ROWS>;
            var left_lows: array<Left, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                lefts[r] = own_fragment(own, r, 0u, column + k);
                if SPLIT {
                    left_lows[r] = own_fragment(own, r, PLANES - 1u, column + k);
                }
            }
            for (var n = 0u; n < SCORES; n++) {
                let other_at = (n * SHARE * EDGE + me.part) * OTHER_ROW + k;
                let right = coopLoad<Right>(&other_high[other_at], OTHER_ROW);
                var right_low = Right();
                if SPLIT {
                    right_low = coopLoad<Right>(&other_low[other_at], OTHER_ROW);
                }
                for (var r = 0u; r < ROWS; r++) {
                    let i = r * SCORES + n;
                    var part = begin_slice(sums[i]);
                    if SPLIT {
                        part = coopMultiplyAdd(left_lows[r], right, part);
                        part = coopMultiplyAdd(lefts[r], right_low, part);
                    }
                    part = coopMultiplyAdd(lefts[r], right, part);
                    sums[i] = end_slice(sums[i], part);
                }
            }
        }
    }
    for (var i = 0u; i < ROWS * SCORES; i++) {
        coopStoreT(sums[i], &values[value_at(me, i / SCORES, i % SCORES)], VALUES_ROW);
    }
    workgroupBarrier();
    var results: array<f32, COLUMNS>;
    for (var n = 0u; n < COLUMNS; n++) {
        results[n] = values[me.row * VALUES_ROW + me.column + n];
    }
    return results;
}

alias Outputs = array<Sum, ROWS * OUTPUTS>;

// Stores outputs from fragment `first` of a row on to `values`, multiplied by 2^n·factor of their row. n may be below f32's range.
fn store_outputs_scaled(me: Lane, first: u32, outputs: ptr<function, Outputs>, n: i32, factor: f32) {
    workgroupBarrier();
    for (var r = 0u; r < ROWS; r++) {
        for (var f = first; f < min(first + SCORES, OUTPUTS); f++) {
            coopStoreT((*outputs)[r * OUTPUTS + f], &values[value_at(me, r, f - first)], VALUES_ROW);
        }
    }
    workgroupBarrier();
    for (var c = 0u; c < COLUMNS; c++) {
        let at = me.row * VALUES_ROW + me.column + c;
        values[at] = values[at] * two_to(n / 2) * two_to(n - n / 2) * factor;
    }
    workgroupBarrier();
}

fn value_vec4(row: u32, column: u32) -> vec4<f32> {
    let x = row * VALUES_ROW + column;
    return vec4<f32>(values[x], values[x + 1u], values[x + 2u], values[x + 3u]);
}

// Stores the invocation's weights, which are in units of 2^base, as f16 in units of 2^(row exponent). Returns the row exponent, raised where
// the weights would not fit; then the outputs are rescaled. `rises` is
// 0 before and after.
fn put_weights(
    me: Lane,
    weights: array<f32, COLUMNS>,
    base: i32,
    row_exponent: i32,
    outputs: ptr<function, Outputs>,
) -> i32 {
    var most = 0.0;
    for (var n = 0u; n < COLUMNS; n++) {
        most = max(most, abs(weights[n]));
    }
    most = row_max(most);
    let needed = select(exponent(most) + base, NO_LEVEL, most == 0.0);
    let is_higher = needed > row_exponent + HIGHEST_HALF;
    let now = select(row_exponent, needed - HIGHEST_HALF + HEADROOM, is_higher);
    // A row's outputs are zero before it has a row exponent.
    if is_higher && row_exponent != NO_LEVEL {
        atomicStore(&rises, 1u);
    }
    if workgroupUniformLoad(&rises) != 0u {
        for (var first = 0u; first < OUTPUTS; first += SCORES) {
            store_outputs_scaled(me, first, outputs, row_exponent - now, 1.0);
            for (var r = 0u; r < ROWS; r++) {
                for (var f = first; f < min(first + SCORES, OUTPUTS); f++) {
                    let source = value_at(me, r, f - first);
                    (*outputs)[r * OUTPUTS + f] = coopLoadT<Sum>(&values[source], VALUES_ROW);
                }
            }
        }
    }
    clear_rises(me);
    let factor = two_to(base - now);
    let to = me.row * WEIGHTS_ROW + me.column;
    for (var n = 0u; n < COLUMNS; n++) {
        let weight = weights[n] * factor;
        if SPLIT {
            let high = rounded(vec4<f32>(weight)).x;
            weights_high[to + n] = f16(high);
            weights_low[to + n] = f16(rounded(vec4<f32>(weight - high)).x);
        } else {
            weights_high[to + n] = f16(weight);
        }
    }
    return now;
}

// Adds the rows of a block of head `other`, times their weights, to the outputs. `staged` is the block's first slice, to lie by columns, and
// becomes slice `next`.
fn add_weighted(
    me: Lane,
    other: u32,
    range: KeyRange,
    at: u32,
    outputs: ptr<function, Outputs>,
    staged: ptr<function, Staged>,
    next: Slice,
) {
    for (var column = 0u; column < WIDTH; column += SLICE) {
        if column > 0u {
            workgroupBarrier();
        }
        put_slice(me.index, *staged, true);
        workgroupBarrier();
        if column + SLICE < WIDTH {
            *staged = load_slice(me.index, range, Slice(other, at, column + SLICE, true));
        } else {
            *staged = load_slice(me.index, range, next);
        }
        for (var k = 0u; k < BLOCK; k += EDGE) {
            var lefts: array<Left, ROWS>;
            var left_lows: array<Left, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                let weights_at = (me.block + r * EDGE) * WEIGHTS_ROW + k;
                lefts[r] = coopLoadT<Left>(&weights_high[weights_at], WEIGHTS_ROW);
                if SPLIT {
                    left_lows[r] = coopLoadT<Left>(&weights_low[weights_at], WEIGHTS_ROW);
                }
            }
            for (var j = 0u; j < SLICE / EDGE / SHARE; j++) {
                let other_at = (j * SHARE * EDGE + me.part) * OTHER_COLUMN + k;
                let right = coopLoad<Right>(&other_high[other_at], OTHER_COLUMN);
                var right_low = Right();
                if SPLIT {
                    right_low = coopLoad<Right>(&other_low[other_at], OTHER_COLUMN);
                }
                for (var r = 0u; r < ROWS; r++) {
                    let output = r * OUTPUTS + column / EDGE / SHARE + j;
                    var part = begin_slice((*outputs)[output]);
                    if SPLIT {
                        part = coopMultiplyAdd(left_lows[r], right, part);
                        part = coopMultiplyAdd(lefts[r], right_low, part);
                    }
                    part = coopMultiplyAdd(lefts[r], right, part);
                    (*outputs)[output] = end_slice((*outputs)[output], part);
                }
            }
        }
    }
}

// Returns a score in units of ln 2 from a dot product and its factor.
fn score_of(dot: f32, factor: f32) -> f32 {
    if SOFTCAP {
        return capped(dot * factor) * LOG2_E;
    }
    return dot * (factor * (params.scale * LOG2_E));
}

fn slope_of(score: f32) -> f32 {
    if SOFTCAP {
        return cap_slope(score * LN_2) * params.scale;
    }
    return params.scale;
}

// Returns a factor, or NaN where the workgroup is not divided into SUBGROUPS subgroups.
fn checked(factor: f32, n_subgroups: u32) -> f32 {
    return bitcast<f32>(select(NAN, bitcast<u32>(factor), n_subgroups == SUBGROUPS));
}

// Facts about a key of a block, as loaded.
struct KeyFacts {
    row: u32,
    key: i32,
    value: i32,
}

fn load_facts_of_key(lane: u32, kv_head: u32, range: KeyRange, at: u32) -> KeyFacts {
    let position = at + lane % BLOCK;
    let row = row_at(range, position);
    let keys = row_exponent_of(key_head(kv_head), row);
    return KeyFacts(select(NO_ROW, row, is_on(range, position)), keys, row_exponent_of(value_head(kv_head), row));
}

fn put_facts_of_key(lane: u32, facts: KeyFacts) {
    if lane < BLOCK {
        row_of[lane] = facts.row;
        first_factor[lane] = two_to(facts.key);
        second_factor[lane] = two_to(facts.value);
    }
}

// Tells whether a query sees all keys of a block, by its first and last row: most blocks are such.
fn sees_block(view: vec4<u32>, range: KeyRange, at: u32) -> bool {
    let first = row_at(range, at);
    let last = row_at(range, at + BLOCK - 1u);
    let is_whole = is_on(range, at) && is_on(range, at + BLOCK - 1u) && last - first == BLOCK - 1u;
    return is_whole && ((first >= view.x && last < view.y) || (first >= view.z && last < view.w));
}

@compute @workgroup_size(LANES)
fn attention_coop_fwd(
    @builtin(workgroup_id) in_part: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) member: u32,
    @builtin(num_subgroups) n_subgroups: u32,
) {
    let group = params.first_group + in_part.xy;
    let me = lane_of(subgroup, member);
    clear_rises(me);
    let head = group.y;
    let kv_head = head / (params.heads / params.kv_heads);
    let tile = segments[params.query_tiles + 2u * group.x];
    let rows = segments[params.query_tiles + 2u * group.x + 1u];
    let range = KeyRange(rows.x, rows.y, rows.z, tile.z, min(tile.w, params.t));
    let view = select(vec4<u32>(), segments[min(tile.x + me.row, params.t - 1u)], me.row < tile.y);
    let factor = checked(two_to(row_exponent_of(head, tile.x + me.row)), n_subgroups);
    var queries = own_rows(me, head, tile.x);
    var outputs: Outputs;
    for (var n = 0u; n < ROWS * OUTPUTS; n++) {
        outputs[n] = Sum();
    }
    var row_exponent = NO_LEVEL;
    var top = f32(NO_LEVEL); // the softmax's running maximum
    var total = 0.0;
    let start = range.begin / BLOCK * BLOCK;
    var facts = load_facts_of_key(me.index, kv_head, range, start);
    var staged = load_slice(me.index, range, Slice(key_head(kv_head), start, 0u, false));
    for (var at = start; at < range.end; at += BLOCK) {
        put_facts_of_key(me.index, facts);
        facts = load_facts_of_key(me.index, kv_head, range, at + BLOCK);
        let next = Slice(value_head(kv_head), at, 0u, true);
        var s = tile_dots(me, &queries, key_head(kv_head), range, at, &staged, next);
        var most = f32(NO_LEVEL);
        for (var n = 0u; n < COLUMNS; n++) {
            s[n] = score_of(s[n] * first_factor[me.column + n], factor);
        }
        if !sees_block(view, range, at) {
            for (var n = 0u; n < COLUMNS; n++) {
                s[n] = select(LOWEST, s[n], sees(view, row_of[me.column + n]));
            }
        }
        for (var n = 0u; n < COLUMNS; n++) {
            most = max(most, s[n]);
        }
        let before = top;
        top = max(top, ceil(row_max(most)));
        total *= two_to(i32(before - top));
        for (var n = 0u; n < COLUMNS; n++) {
            let p = exp2(s[n] - top);
            total += p;
            s[n] = p * second_factor[me.column + n];
        }
        row_exponent = put_weights(me, s, i32(top), row_exponent, &outputs);
        let next_block = Slice(key_head(kv_head), at + BLOCK, 0u, false);
        add_weighted(me, value_head(kv_head), range, at, &outputs, &staged, next_block);
    }
    total = row_sum(total);
    if me.column == 0u && me.row < tile.y {
        lse[(tile.x + me.row) * params.heads + head] = top * LN_2 + log(total);
    }
    for (var first = 0u; first < OUTPUTS; first += SCORES) {
        store_outputs_scaled(me, first, &outputs, row_exponent - i32(top), 1.0 / total);
        for (var i = me.index; i < TILE * (BLOCK / 4u); i += LANES) {
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
    outputs: ptr<function, Outputs>,
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
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) member: u32,
    @builtin(num_subgroups) n_subgroups: u32,
) {
    let group = params.first_group + in_part.xy;
    let me = lane_of(subgroup, member);
    clear_rises(me);
    let head = group.y;
    let kv_head = head / (params.heads / params.kv_heads);
    let tile = spans[params.query_tiles + 2u * group.x];
    let rows = spans[params.query_tiles + 2u * group.x + 1u];
    let range = KeyRange(rows.x, rows.y, rows.z, tile.z, min(tile.w, params.t));
    let query = min(tile.x + me.row, params.t - 1u);
    let view = select(vec4<u32>(), spans[query], me.row < tile.y);
    let top = lse_saved[query * params.heads + head] * LOG2_E;
    let even = delta[query * params.heads + head];
    let factor = checked(two_to(row_exponent_of(head, query)), n_subgroups);
    let d_o_factor = two_to(row_exponent_of(d_o_head(head), query));
    var queries = own_rows(me, head, tile.x);
    var d_o_rows = own_rows(me, d_o_head(head), tile.x);
    var outputs: Outputs;
    for (var n = 0u; n < ROWS * OUTPUTS; n++) {
        outputs[n] = Sum();
    }
    var row_exponent = NO_LEVEL;
    let start = range.begin / BLOCK * BLOCK;
    var facts = load_facts_of_key(me.index, kv_head, range, start);
    var staged = load_slice(me.index, range, Slice(value_head(kv_head), start, 0u, false));
    for (var at = start; at < range.end; at += BLOCK) {
        put_facts_of_key(me.index, facts);
        facts = load_facts_of_key(me.index, kv_head, range, at + BLOCK);
        let keys = key_head(kv_head);
        let value_rows = value_head(kv_head);
        var d_s = tile_dots(me, &d_o_rows, value_rows, range, at, &staged, Slice(keys, at, 0u, false));
        let s = tile_dots(me, &queries, keys, range, at, &staged, Slice(keys, at, 0u, true));
        for (var n = 0u; n < COLUMNS; n++) {
            let c = me.column + n;
            let score = score_of(s[n] * first_factor[c], factor);
            let slope = exp2(score - top) * slope_of(score);
            d_s[n] = slope * (d_s[n] * second_factor[c] * d_o_factor - even) * first_factor[c];
        }
        if !sees_block(view, range, at) {
            for (var n = 0u; n < COLUMNS; n++) {
                d_s[n] = select(0.0, d_s[n], sees(view, row_of[me.column + n]));
            }
        }
        row_exponent = put_weights(me, d_s, 0, row_exponent, &outputs);
        add_weighted(me, keys, range, at, &outputs, &staged, Slice(value_rows, at + BLOCK, 0u, false));
    }
    store_d(me, &outputs, row_exponent, tile.x, tile.y, params.q_start + head * E, params.q_stride);
}

// Facts about a query of a block, as loaded.
struct QueryFacts {
    view: vec4<u32>,
    query: i32,
    d_o: i32,
    top: f32,
    delta: f32,
}

fn load_facts_of_query(lane: u32, head: u32, range: KeyRange, at: u32) -> QueryFacts {
    let position = at + lane % BLOCK;
    let row = row_at(range, position);
    let i = row * params.heads + head;
    let exponents = vec2<i32>(row_exponent_of(head, row), row_exponent_of(d_o_head(head), row));
    let view = select(vec4<u32>(), spans[row], is_on(range, position));
    return QueryFacts(view, exponents.x, exponents.y, lse_saved[i], delta[i]);
}

fn put_facts_of_query(lane: u32, facts: QueryFacts) {
    if lane < BLOCK {
        view_of[lane] = facts.view;
        first_factor[lane] = two_to(facts.query);
        second_factor[lane] = two_to(facts.d_o);
        top_of[lane] = facts.top * LOG2_E;
        delta_of[lane] = facts.delta;
    }
}

@compute @workgroup_size(LANES)
fn attention_coop_bwd_kv(
    @builtin(workgroup_id) in_part: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) member: u32,
    @builtin(num_subgroups) n_subgroups: u32,
) {
    let group = params.first_group + in_part.xy;
    let me = lane_of(subgroup, member);
    clear_rises(me);
    let kv_head = group.y;
    let ratio = params.heads / params.kv_heads;
    let tile = spans[params.key_tiles + group.x];
    let key = select(NO_ROW, tile.x + me.row, me.row < tile.y);
    let factor = checked(two_to(row_exponent_of(key_head(kv_head), tile.x + me.row)), n_subgroups);
    let value_factor = two_to(row_exponent_of(value_head(kv_head), tile.x + me.row));
    var keys = own_rows(me, key_head(kv_head), tile.x);
    var value_rows = own_rows(me, value_head(kv_head), tile.x);
    var d_key: Outputs;
    var d_value: Outputs;
    for (var n = 0u; n < ROWS * OUTPUTS; n++) {
        d_key[n] = Sum();
        d_value[n] = Sum();
    }
    var row_exponent_of_key = NO_LEVEL;
    var row_exponent_of_value = NO_LEVEL;
    for (var head = kv_head * ratio; head < (kv_head + 1u) * ratio; head++) {
        for (var run = tile.z; run < min(tile.w, arrayLength(&spans)); run++) {
            let queries = spans[run];
            let range = KeyRange(0u, 0u, queries.x, queries.y, min(queries.z, params.t));
            let start = range.begin / BLOCK * BLOCK;
            var facts = load_facts_of_query(me.index, head, range, start);
            var staged = load_slice(me.index, range, Slice(head, start, 0u, false));
            for (var at = start; at < range.end; at += BLOCK) {
                put_facts_of_query(me.index, facts);
                facts = load_facts_of_query(me.index, head, range, at + BLOCK);
                let d_o = d_o_head(head);
                var p = tile_dots(me, &keys, head, range, at, &staged, Slice(d_o, at, 0u, false));
                var d_s = tile_dots(me, &value_rows, d_o, range, at, &staged, Slice(d_o, at, 0u, true));
                for (var n = 0u; n < COLUMNS; n++) {
                    let c = me.column + n;
                    let seen = sees(view_of[c], key);
                    let score = score_of(p[n] * first_factor[c], factor);
                    let weight = exp2(score - top_of[c]);
                    let d = weight * slope_of(score) * (d_s[n] * second_factor[c] * value_factor - delta_of[c]);
                    p[n] = select(0.0, weight * second_factor[c], seen);
                    d_s[n] = select(0.0, d * first_factor[c], seen);
                }
                row_exponent_of_value = put_weights(me, p, 0, row_exponent_of_value, &d_value);
                add_weighted(me, d_o, range, at, &d_value, &staged, Slice(head, at, 0u, true));
                row_exponent_of_key = put_weights(me, d_s, 0, row_exponent_of_key, &d_key);
                add_weighted(me, head, range, at, &d_key, &staged, Slice(head, at + BLOCK, 0u, false));
            }
        }
    }
    store_d(me, &d_key, row_exponent_of_key, tile.x, tile.y, params.k_start + kv_head * E, params.kv_stride);
    store_d(me, &d_value, row_exponent_of_value, tile.x, tile.y, params.v_start + kv_head * E, params.kv_stride);
}
