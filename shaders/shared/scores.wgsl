// What all files of attention have in common: parameters, who sees whom, the cap of scores.

override SOFTCAP: bool = false;

struct AttentionParams {
    first_group: vec2<u32>, // of the part of the grid that a dispatch runs: long ones are split (src/gpu/submission_budget.rs)
    t: u32,
    heads: u32,
    kv_heads: u32,
    q_start: u32,
    q_stride: u32,
    k_start: u32,
    v_start: u32,
    kv_stride: u32,
    query_tiles: u32, // first walk of `segments`, over keys
    key_tiles: u32,   // the same, over queries
    scale: f32,
    softcap: f32,
}

@group(0) @binding(0) var<uniform> params: AttentionParams;
// A vec4 a query: the keys that it sees, as [x, y) ∪ [z, w), of its prefix and of its own segment, the window applied. Then a vec4 a tile of
// queries, its walk: the keys that any of them sees, as [x, y) ∪ [z, w) where the widest gap is left out. Then the walks of tiles of keys.
@group(0) @binding(3) var<storage, read> segments: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> spans: array<vec4<u32>>; // as `segments`, in the backward pass
@group(0) @binding(3) var<storage, read> lse_saved: array<f32>;   // (T, H)
@group(0) @binding(4) var<storage, read> delta: array<f32>;       // (T, H)

fn sees(view: vec4<u32>, j: u32) -> bool {
    return (j >= view.x && j < view.y) || (j >= view.z && j < view.w);
}

// A walk that stays within so many rows. A device may lose an upload: what its memory held before must not become a loop without an end.
fn within(rows: u32, ranges: vec4<u32>) -> vec4<u32> {
    return min(ranges, vec4<u32>(rows));
}

// End of the part of a walk that j is in.
fn part_end(ranges: vec4<u32>, j: u32) -> u32 {
    return select(ranges.w, ranges.y, j < ranges.y);
}

// The next of a walk, whose steps begin anew in its second part.
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
