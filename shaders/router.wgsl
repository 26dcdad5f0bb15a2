// chosen[t,:] = the k experts with the largest logits[t,:], the largest first; of equal logits, the lowest expert first
// w[t,j] = exp(logits[t,chosen[t,j]]) / Σ exp(logits[t,e]), over the chosen e, or over all X experts where OVER_ALL
// d_logits[t,e] = Σ_j w[t,j]·d_w[t,j]·([e = chosen[t,j]] − p[t,e]), p: the softmax over the same e
//
// Choices c = t·k + j are then sorted by expert, in the order of c: source[row] = c, row_of[c] = row; rows of expert e are offsets[e] ..
// offsets[e+1]. Sorting is by counting in chunks of CHUNK choices: router_count counts each chunk's choices by expert, router_offsets adds
// the counts up in one workgroup, router_rows places each choice behind the equal ones before it. tiles[i] is (e, first row, end row, 0): at
// most `tile_rows` rows of one expert. There are `n_tiles` of them, of which the last ones may have no rows.

override OVER_ALL: bool = false;

struct RouterParams {
    t: u32,
    experts: u32, // X
    top_k: u32,   // k
    n: u32,       // t × k
    chunks: u32,
    tile_rows: u32,
    n_tiles: u32,
    pad: u32,
}

const WG = 64u;
const CHUNK = 256u;
const MOST_EXPERTS = 1024u;
const NONE = 0xffffffffu;

@group(0) @binding(0) var<uniform> params: RouterParams;
@group(0) @binding(1) var<storage, read> logits: array<f32>;         // (T, X)
@group(0) @binding(2) var<storage, read_write> chosen_out: array<u32>; // (T, k)
@group(0) @binding(3) var<storage, read_write> w_out: array<f32>;      // (T, k)

// Returns the sum of exp(logits − top) over all experts of a token, in their order.
fn sum_over_all(start: u32, top: f32) -> f32 {
    var sum = 0.0;
    for (var e = 0u; e < params.experts; e++) {
        sum += exp(logits[start + e] - top);
    }
    return sum;
}

// One invocation per token.
@compute @workgroup_size(WG)
fn router_fwd(@builtin(global_invocation_id) id: vec3<u32>) {
    let t = id.x;
    if t >= params.t {
        return;
    }
    let start = t * params.experts;
    let out = t * params.top_k;
    var top = 0.0;
    var sum = 0.0;
    var last = 0.0;
    var last_expert = NONE;
    for (var j = 0u; j < params.top_k; j++) {
        // Where logits are NaN, no expert is larger than another, and the j-th is taken.
        var best = 0.0;
        var best_expert = NONE;
        for (var e = 0u; e < params.experts; e++) {
            let logit = logits[start + e];
            let is_left = last_expert == NONE || logit < last || (logit == last && e > last_expert);
            if is_left && (best_expert == NONE || logit > best) {
                best = logit;
                best_expert = e;
            }
        }
        best_expert = select(best_expert, j, best_expert == NONE);
        last = logits[start + best_expert];
        last_expert = best_expert;
        top = select(top, last, j == 0u);
        let value = exp(last - top);
        chosen_out[out + j] = best_expert;
        w_out[out + j] = value;
        sum += value;
    }
    if OVER_ALL {
        sum = sum_over_all(start, top);
    }
    for (var j = 0u; j < params.top_k; j++) {
        w_out[out + j] = w_out[out + j] / sum;
    }
}

@group(0) @binding(2) var<storage, read> chosen: array<u32>;
@group(0) @binding(3) var<storage, read> w: array<f32>;
@group(0) @binding(4) var<storage, read> d_w: array<f32>;              // (T, k)
@group(0) @binding(5) var<storage, read_write> d_logits: array<f32>; // (T, X)

// One invocation per token.
@compute @workgroup_size(WG)
fn router_bwd(@builtin(global_invocation_id) id: vec3<u32>) {
    let t = id.x;
    if t >= params.t {
        return;
    }
    let start = t * params.experts;
    let at = t * params.top_k;
    var pull = 0.0;
    for (var j = 0u; j < params.top_k; j++) {
        pull += w[at + j] * d_w[at + j];
    }
    if OVER_ALL {
        let top = logits[start + chosen[at]];
        let scale = -pull / sum_over_all(start, top);
        for (var e = 0u; e < params.experts; e++) {
            d_logits[start + e] = exp(logits[start + e] - top) * scale;
        }
        for (var j = 0u; j < params.top_k; j++) {
            d_logits[start + chosen[at + j]] += w[at + j] * d_w[at + j];
        }
    } else {
        for (var e = 0u; e < params.experts; e++) {
            d_logits[start + e] = 0.0;
        }
        for (var j = 0u; j < params.top_k; j++) {
            d_logits[start + chosen[at + j]] = w[at + j] * (d_w[at + j] - pull);
        }
    }
}

@group(0) @binding(1) var<storage, read> choices: array<u32>;        // (T, k), `chosen`
@group(0) @binding(2) var<storage, read_write> counts: array<u32>; // (chunks, X)

var<workgroup> chunk_experts: array<u32, CHUNK>;

// Loads a chunk's choices; NONE behind the last.
fn load_chunk(chunk: u32, lane: u32) {
    for (var i = lane; i < CHUNK; i += WG) {
        let c = chunk * CHUNK + i;
        chunk_experts[i] = select(NONE, choices[min(c, params.n - 1u)], c < params.n);
    }
    workgroupBarrier();
}

// One workgroup per chunk; an invocation counts the choices of every WG-th expert.
@compute @workgroup_size(WG)
fn router_count(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    load_chunk(group.x, lane);
    for (var e = lane; e < params.experts; e += WG) {
        var count = 0u;
        for (var i = 0u; i < CHUNK; i++) {
            count += select(0u, 1u, chunk_experts[i] == e);
        }
        counts[group.x * params.experts + e] = count;
    }
}

@group(0) @binding(1) var<storage, read_write> offsets: array<u32>; // (X + 1)
@group(0) @binding(3) var<storage, read_write> tiles: array<u32>;   // (tiles, 4)

var<workgroup> first_rows: array<u32, MOST_EXPERTS>;  // first an expert's number of rows
var<workgroup> first_tiles: array<u32, MOST_EXPERTS>;
var<workgroup> used_tiles: u32;

// One workgroup. Replaces each count by the number of choices of the same expert in earlier chunks.
@compute @workgroup_size(WG)
fn router_offsets(@builtin(local_invocation_index) lane: u32) {
    for (var e = lane; e < params.experts; e += WG) {
        var before = 0u;
        for (var chunk = 0u; chunk < params.chunks; chunk++) {
            let at = chunk * params.experts + e;
            let count = counts[at];
            counts[at] = before;
            before += count;
        }
        first_rows[e] = before;
    }
    workgroupBarrier();
    if lane == 0u {
        var row = 0u;
        var tile = 0u;
        for (var e = 0u; e < params.experts; e++) {
            let rows = first_rows[e];
            first_rows[e] = row;
            first_tiles[e] = tile;
            offsets[e] = row;
            row += rows;
            tile += (rows + params.tile_rows - 1u) / params.tile_rows;
        }
        offsets[params.experts] = row;
        used_tiles = min(tile, params.n_tiles);
    }
    workgroupBarrier();
    for (var e = lane; e < params.experts; e += WG) {
        let is_last = e + 1u == params.experts;
        var end = params.n;
        if !is_last {
            end = first_rows[e + 1u];
        }
        var tile = first_tiles[e];
        for (var row = first_rows[e]; row < end && tile < params.n_tiles; row += params.tile_rows) {
            tiles[4u * tile] = e;
            tiles[4u * tile + 1u] = row;
            tiles[4u * tile + 2u] = min(row + params.tile_rows, end);
            tiles[4u * tile + 3u] = 0u;
            tile++;
        }
    }
    for (var i = 4u * used_tiles + lane; i < 4u * params.n_tiles; i += WG) {
        tiles[i] = 0u;
    }
}

@group(0) @binding(2) var<storage, read> counts_before: array<u32>; // (chunks, X), of earlier chunks
@group(0) @binding(3) var<storage, read> first_row: array<u32>;     // (X + 1), `offsets`
@group(0) @binding(4) var<storage, read_write> row_of: array<u32>;  // (T, k)
@group(0) @binding(5) var<storage, read_write> source: array<u32>;  // (T × k)

// One workgroup per chunk.
@compute @workgroup_size(WG)
fn router_rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    load_chunk(group.x, lane);
    for (var i = lane; i < CHUNK; i += WG) {
        let c = group.x * CHUNK + i;
        if c < params.n {
            let e = chunk_experts[i];
            var row = first_row[e] + counts_before[group.x * params.experts + e];
            for (var before = 0u; before < i; before++) {
                row += select(0u, 1u, chunk_experts[before] == e);
            }
            row = min(row, params.n - 1u);
            row_of[c] = row;
            source[row] = c;
        }
    }
}
