// y[t,i] = scale·w[ids[t], i] (+ y[t,i])          d_w[v,i] += scale·Σ_{t: ids[t] = v} d_y[t,i]
//
// The weight may be a shard of a larger table, its rows [first, first + rows). Tokens outside the shard are skipped.
// Backward: the host sorts tokens by id into buckets; a bucket has one owner, so there are no atomics.

import package::shared::embedding_params::{EmbeddingParams};
import package::shared::weight::{weight_value};

override WG: u32 = 64u;

@group(0) @binding(1) var<storage, read> ids: array<u32>;     // (T)
// Binding 2: w (rows, D).
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // (T, D)

// Workgroups: along x columns, along y tokens.
@compute @workgroup_size(WG)
fn embedding_fwd(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let i = group.x * WG + local.x;
    let id = ids[group.y];
    if i >= params.width || id < params.first || id - params.first >= params.rows {
        return;
    }
    let row = id - params.first;
    let value = params.scale * weight_value(row, row * params.width + i);
    let out = group.y * params.width + i;
    y[out] = select(value, y[out] + value, params.accumulate == 1u);
}

@group(0) @binding(1) var<storage, read> buckets: array<u32>; // (buckets, 3): id, first and last index into `order`
@group(0) @binding(2) var<storage, read> order: array<u32>;   // (T): tokens sorted by id
@group(0) @binding(3) var<storage, read> d_y: array<f32>;
@group(0) @binding(4) var<storage, read_write> d_w: array<f32>;

// Workgroups: along x columns, along y buckets.
@compute @workgroup_size(WG)
fn embedding_bwd_w(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let i = group.x * WG + local.x;
    if i >= params.width {
        return;
    }
    let bucket = (params.bucket + group.y) * 3u;
    var sum = 0.0;
    let end = min(buckets[bucket + 2u], arrayLength(&order)); // never beyond the end, even where the upload was lost
    for (var n = buckets[bucket + 1u]; n < end; n++) {
        sum += d_y[order[n] * params.width + i];
    }
    d_w[(buckets[bucket] - params.first) * params.width + i] += params.scale * sum;
}
