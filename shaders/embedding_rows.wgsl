// The kernels of embedding.wgsl for GPUs, where rows are whole vec4s: an invocation has the loads of FLIGHT tokens in flight.

import package::shared::embedding_params::{EmbeddingParams};
import package::shared::weight::{weight_vec4};

override WG: u32 = 64u;

const COLUMNS = 16u;
const ROWS = WG / COLUMNS; // embedding_rows_fwd: invocations per column
const FLIGHT = 4u;

@group(0) @binding(1) var<storage, read> ids: array<u32>;           // (T)
// Binding 2: w (rows, D).
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>; // (T, D)

// Workgroups: along x COLUMNS vec4s, along y blocks of ROWS · FLIGHT tokens.
@compute @workgroup_size(WG)
fn embedding_rows_fwd(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let vec4s = params.width / 4u;
    let column = group.x * COLUMNS + local.x % COLUMNS;
    let first = group.y * ROWS * FLIGHT + local.x / COLUMNS;
    if column >= vec4s {
        return;
    }
    var row: array<u32, FLIGHT>; // within the shard; params.rows or more where the token is outside it
    for (var turn = 0u; turn < FLIGHT; turn++) {
        row[turn] = ids[min(first + turn * ROWS, params.tokens - 1u)] - params.first;
    }
    var values: array<vec4<f32>, FLIGHT>;
    for (var turn = 0u; turn < FLIGHT; turn++) {
        let there = min(row[turn], params.rows - 1u);
        values[turn] = params.scale * weight_vec4(there, there * vec4s + column);
    }
    if params.accumulate == 1u {
        for (var turn = 0u; turn < FLIGHT; turn++) {
            values[turn] += y[min(first + turn * ROWS, params.tokens - 1u) * vec4s + column];
        }
    }
    for (var turn = 0u; turn < FLIGHT; turn++) {
        let token = first + turn * ROWS;
        if token < params.tokens && row[turn] < params.rows {
            y[token * vec4s + column] = values[turn];
        }
    }
}

@group(0) @binding(1) var<storage, read> buckets: array<u32>; // (buckets, 3): id, first and last index into `order`
@group(0) @binding(2) var<storage, read> order: array<u32>;   // (T): tokens sorted by id
@group(0) @binding(3) var<storage, read> d_y: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> d_w: array<vec4<f32>>;

// Workgroups: along x vec4s of columns, along y buckets. Tokens are added in their order.
@compute @workgroup_size(WG)
fn embedding_rows_bwd_w(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let vec4s = params.width / 4u;
    let column = group.x * WG + local.x;
    if column >= vec4s {
        return;
    }
    let bucket = (params.bucket + group.y) * 3u;
    let to = (buckets[bucket] - params.first) * vec4s + column;
    let before = d_w[to];
    var sum = vec4<f32>();
    let end = min(buckets[bucket + 2u], arrayLength(&order)); // never beyond the end, even where the upload was lost
    for (var n = buckets[bucket + 1u]; n < end; n += FLIGHT) {
        var values: array<vec4<f32>, FLIGHT>;
        for (var turn = 0u; turn < FLIGHT; turn++) {
            values[turn] = d_y[order[min(n + turn, end - 1u)] * vec4s + column];
        }
        for (var turn = 0u; turn < FLIGHT; turn++) {
            sum += select(vec4<f32>(), values[turn], n + turn < end);
        }
    }
    d_w[to] = before + params.scale * sum;
}
