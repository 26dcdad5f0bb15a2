// Parameters, sizes and chunk table of the gated delta rule's kernels.
//
// A chunk has at most C tokens of one segment, and begins at the segment's start or behind the segment's chunk before it. All head sizes are
// multiples of 4. An invocation computes blocks of R rows × 4 columns; X lanes of a workgroup lie along columns, Y along rows. With Y = 1,
// addresses of the row operand depend on the workgroup alone, which CPUs load once per vector. Loops to R and RV are unrolled by the linker.

override DK: u32 = 128u; // elements of a key head
override DV: u32 = 128u; // elements of a value head
override X: u32 = 16u;
override Y: u32 = 16u;
override R: u32 = 4u; // a multiple of 4
override RV: u32 = 1u; // R / 4

const C = 64u; // tokens per chunk
const WG = X * Y;
const DK4 = DK / 4u;
const DV4 = DV / 4u;
const NONE = 0xffffffffu;

struct DeltaRuleParams {
    first_group: vec2<u32>, // first workgroup of this dispatch: long grids are split (src/gpu/submission_budget.rs)
    t: u32,
    chunks: u32,
    key_heads: u32,
    value_heads: u32,
    stride: u32,  // elements per token of q, k, v side by side
    first: u32,   // index in `table` of the first chain, or of the first branch sum
    y_start: u32, // index of the first vec4 of y in `values`, behind r
    single: u32,  // 1: every chunk is a chain of its own, and no state is stored
}

@group(0) @binding(0) var<uniform> params: DeltaRuleParams;
// Per chunk two vec4s, of which the launcher's `DeltaChunks` fills five words: first token, tokens, slot of the state before the chunk (NONE:
// zeros), slot of the state after it (NONE: it is not kept), slot for the gradient of the state before it. Then per chain: first chunk and
// number of chunks.
@group(0) @binding(1) var<storage, read> table: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> decay: array<f32>; // (T, 3·Hv): see `decay_at`

struct Chunk {
    start: u32,
    len: u32, // 1 to C
    before: u32,
    after: u32,
    d_before: u32,
}

// A device may lose an upload; the memory's earlier contents must not lead a loop or an index out of its range.
fn chunk_at(index: u32) -> Chunk {
    let words = table[2u * index];
    let start = min(words.x, params.t - 1u);
    return Chunk(start, clamp(words.y, 1u, min(C, params.t - start)), words.z, words.w, table[2u * index + 1u].x);
}

// First chunk and number of chunks of a chain. It has one return: FXC takes the result of an early one for uninitialised, and refuses barriers in
// loops that depend on it.
fn chain_at(index: u32) -> vec2<u32> {
    let is_single = params.single == 1u;
    let words = table[select(params.first + index, 0u, is_single)];
    let first = min(select(words.x, index, is_single), params.chunks - 1u);
    return vec2<u32>(first, min(select(words.y, 1u, is_single), params.chunks - first));
}

fn key_head(value_head: u32) -> u32 {
    return value_head / (params.value_heads / params.key_heads);
}

// Return DK4 and DV4 as bounds that compilers do not know: unrolled loops over a head take minutes to compile in software.
fn dk_vec4s() -> u32 {
    return min(DK4, params.stride);
}

fn dv_vec4s() -> u32 {
    return min(DV4, params.stride);
}

// A lane's number along columns, and along rows. With Y = 1, the latter is a constant, which compilers know to be uniform.
fn lane_x(lane: u32) -> u32 {
    return lane % X;
}

fn lane_y(lane: u32) -> u32 {
    return select(lane / X, 0u, Y == 1u);
}

// Return the index of the first vec4 of a token's q and k of a key head, and of its v of a value head.
fn q_vec4(token: u32, head: u32) -> u32 {
    return token * (params.stride / 4u) + head * DK4;
}

fn k_vec4(token: u32, head: u32) -> u32 {
    return token * (params.stride / 4u) + (params.key_heads + head) * DK4;
}

fn v_vec4(token: u32, head: u32) -> u32 {
    return token * (params.stride / 4u) + 2u * params.key_heads * DK4 + head * DV4;
}

// Returns the index of the first vec4 of a token's value head in (T, Hv·dv).
fn head_vec4(token: u32, head: u32) -> u32 {
    return (token * params.value_heads + head) * DV4;
}

// Returns the index of a chunk's matrix (C, C), in vec4s: of (chunks, Hv, C, C).
fn square_vec4(chunk: u32, head: u32) -> u32 {
    return (chunk * params.value_heads + head) * (C * C / 4u);
}

// Returns the index of a head's state (dk, dv), in vec4s: of (slots, Hv, dk, dv).
fn state_vec4(slot: u32, head: u32) -> u32 {
    return (slot * params.value_heads + head) * (DK * DV4);
}

// `decay` (T, 3·Hv) has per token β, and G in two parts, value_heads apart: sums of multiples of 1/64, which are exact, and of what remains of
// each g. Where a token forgets everything, G is so large that f32 could not tell its small differences.
fn decay_at(token: u32, head: u32) -> u32 {
    return token * 3u * params.value_heads + head;
}

// Returns β of a chunk's row; rows behind the last token have the last one's.
fn beta(start: u32, len: u32, row: u32, head: u32) -> f32 {
    return decay[decay_at(start + min(row, len - 1u), head)];
}

// Returns the two parts of G of a chunk's row.
fn log_decay(start: u32, len: u32, row: u32, head: u32) -> vec2<f32> {
    let at = decay_at(start + min(row, len - 1u), head) + params.value_heads;
    return vec2<f32>(decay[at], decay[at + params.value_heads]);
}

// Returns e^G of a chunk's row.
fn decay_from_start(start: u32, len: u32, row: u32, head: u32) -> f32 {
    let parts = log_decay(start, len, row, head);
    return exp(parts.x + parts.y);
}

// Returns e^(G − G') of two rows, of which the second has the larger G.
fn decay_between(g: vec2<f32>, g_before: vec2<f32>) -> f32 {
    return exp(min((g.x - g_before.x) + (g.y - g_before.y), 0.0));
}
