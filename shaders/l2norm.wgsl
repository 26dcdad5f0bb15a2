// y = scale·x·r;   r = 1/√(Σ x² + eps);   scale is q_scale for queries, 1 for keys
// d_x = r·(scale·d_y − y·(y·d_y)/scale)
//
// Normalises in place the heads of q and k that begin each token's row of q, k and v. LANES invocations share a head.

import package::shared::grid::{flat_group};
import package::shared::row_sums::{LANES, ROWS_PER_WORKGROUP, WG, sums_across_row};
import package::shared::value_f32::{Value, WIDTH, sum_of_value};

struct L2normParams {
    rows: u32,      // tokens × 2·Hk
    key_heads: u32, // Hk
    width: u32,     // dk
    stride: u32,    // elements per token
    eps: f32,
    q_scale: f32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: L2normParams;
@group(0) @binding(1) var<storage, read_write> x: array<Value>; // (T, stride): x, then y
@group(0) @binding(2) var<storage, read_write> r_out: array<f32>; // (T, 2·Hk)

// Returns the index of a head's first Value.
fn head_start(row: u32) -> u32 {
    let heads = 2u * params.key_heads;
    return (row / heads * params.stride + row % heads * params.width) / WIDTH;
}

fn scale_of(row: u32) -> f32 {
    return select(1.0, params.q_scale, row % (2u * params.key_heads) < params.key_heads);
}

@compute @workgroup_size(WG)
fn l2norm_fwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = flat_group(group, n_groups) * ROWS_PER_WORKGROUP + local.x / LANES;
    let start = head_start(min(row, params.rows - 1u));
    var squares = 0.0;
    for (var i = local.x % LANES; i < params.width / WIDTH; i += LANES) {
        squares += sum_of_value(x[start + i] * x[start + i]);
    }
    let r = inverseSqrt(sums_across_row(local.x, vec2<f32>(squares, 0.0)).x + params.eps);
    if row >= params.rows {
        return;
    }
    for (var i = local.x % LANES; i < params.width / WIDTH; i += LANES) {
        x[start + i] *= r * scale_of(row);
    }
    if local.x % LANES == 0u {
        r_out[row] = r;
    }
}

@group(0) @binding(1) var<storage, read> y: array<Value>; // (T, stride)
@group(0) @binding(2) var<storage, read> r_saved: array<f32>;
@group(0) @binding(3) var<storage, read_write> d_x: array<Value>; // (T, stride): d_y, then d_x

@compute @workgroup_size(WG)
fn l2norm_bwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = flat_group(group, n_groups) * ROWS_PER_WORKGROUP + local.x / LANES;
    let start = head_start(min(row, params.rows - 1u));
    var along = 0.0;
    for (var i = local.x % LANES; i < params.width / WIDTH; i += LANES) {
        along += sum_of_value(y[start + i] * d_x[start + i]);
    }
    along = sums_across_row(local.x, vec2<f32>(along, 0.0)).x;
    if row >= params.rows {
        return;
    }
    let scale = scale_of(row);
    for (var i = local.x % LANES; i < params.width / WIDTH; i += LANES) {
        d_x[start + i] = r_saved[row] * (scale * d_x[start + i] - y[start + i] * (along / scale));
    }
}
