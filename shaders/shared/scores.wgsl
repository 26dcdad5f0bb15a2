// Parts that all attention shaders share: parameters, visible keys of each query, soft cap of scores.

override SOFTCAP: bool = false;

struct AttentionParams {
    first_group: vec2<u32>, // first workgroup of this dispatch: long grids are split (src/gpu/submission_budget.rs)
    t: u32,
    heads: u32,
    kv_heads: u32,
    q_start: u32,
    q_stride: u32,
    k_start: u32,
    v_start: u32,
    kv_stride: u32,
    query_tiles: u32, // index in `segments` of the first tile of queries
    key_tiles: u32,   // index in `segments` of the first tile of keys
    scale: f32,
    softcap: f32,
}

@group(0) @binding(0) var<uniform> params: AttentionParams;
// First one vec4 per query: the keys that it sees, [x, y) ∪ [z, w), of its prefix and of its own segment, less those outside the window.
// Then one vec4 per tile of queries: the keys that any of its queries sees, as [x, y) ∪ [z, w), which leave out the widest gap. Then one
// vec4 per tile of keys: likewise the queries that see any of its keys. (attention_coop.wgsl has tiles of its own, which
// src/kernels/attention/segment_tiles.rs describes.)
@group(0) @binding(3) var<storage, read> segments: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> spans: array<vec4<u32>>; // `segments`, in the backward pass
@group(0) @binding(3) var<storage, read> lse_saved: array<f32>;   // (T, H)
@group(0) @binding(4) var<storage, read> delta: array<f32>;       // (T, H)

fn sees(view: vec4<u32>, j: u32) -> bool {
    return (j >= view.x && j < view.y) || (j >= view.z && j < view.w);
}

// Limits ranges to `rows` rows. A device may lose an upload; the memory's earlier contents must not make a loop endless.
fn within(rows: u32, ranges: vec4<u32>) -> vec4<u32> {
    return min(ranges, vec4<u32>(rows));
}

// Returns the end of the part of the ranges that j is in.
fn part_end(ranges: vec4<u32>, j: u32) -> u32 {
    return select(ranges.w, ranges.y, j < ranges.y);
}

// Returns the next j of the ranges, `step` later; the second part begins at its own start.
fn next(ranges: vec4<u32>, j: u32, step: u32) -> u32 {
    let end = part_end(ranges, j);
    return select(max(end, ranges.z), j + step, j + step < end);
}

fn capped(raw: f32) -> f32 {
    let s = raw * params.scale;
    if SOFTCAP {
        return params.softcap * tanh(clamp(s / params.softcap, -15.0, 15.0));
    }
    return s;
}

fn cap_slope(s: f32) -> f32 {
    if SOFTCAP {
        let ratio = s / params.softcap;
        return 1.0 - ratio * ratio;
    }
    return 1.0;
}
