// expert_bias_fwd:   y[r,:] += b[e(r),:]                        e(r): the expert of row r; rows are in the order of experts (shaders/router.wgsl)
// expert_bias_bwd_b: d_b[e,:] += Σ_r s[r]·d_y[r,:]              over the rows of e, in their order; s[r] = w[source[r]], or 1 where not WEIGHTED
// expert_bias_bwd_s: d_w[source[r]] += Σ_i b[e(r),i]·d_y[r,i]
//
// The last is the bias's part of the gradient of w in y[t] = Σ_j w[t,j]·(a_j·W + b), whose other part is expert_rows_bwd's.

import package::shared::row_sums::{LANES, ROWS_PER_WORKGROUP, WG, sums_across_row};
import package::shared::value_f32::{Value, WIDTH, sum_of_value};

override WEIGHTED: bool = false;

struct ExpertBiasParams {
    first_group: vec2<u32>, // first workgroup of this dispatch: long grids are split (src/gpu/submission_budget.rs)
    rows: u32,              // T × k
    width: u32,             // columns of a bias
    stride: u32,            // elements from a row of y to the next
    experts: u32,
}

@group(0) @binding(0) var<uniform> params: ExpertBiasParams;
@group(0) @binding(1) var<storage, read> b: array<Value>;       // (X, width)
@group(0) @binding(2) var<storage, read> tiles: array<u32>;     // (tiles, 4): an expert, its first row and end row
@group(0) @binding(3) var<storage, read_write> y: array<Value>; // (T × k, stride)

// Workgroups: along x columns, along y tiles.
@compute @workgroup_size(WG)
fn expert_bias_fwd(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let i = group.x * WG + local.x;
    let values = params.width / WIDTH;
    if i >= values {
        return;
    }
    let expert = min(tiles[4u * group.y], params.experts - 1u);
    let bias = b[expert * values + i];
    let end = min(tiles[4u * group.y + 2u], params.rows);
    for (var row = tiles[4u * group.y + 1u]; row < end; row++) {
        y[row * (params.stride / WIDTH) + i] += bias;
    }
}

@group(0) @binding(1) var<storage, read> offsets: array<u32>;     // (X + 1), the first row of each expert
@group(0) @binding(2) var<storage, read> source: array<u32>;      // (T × k)
@group(0) @binding(3) var<storage, read> w: array<f32>;           // (T, k)
@group(0) @binding(4) var<storage, read> d_y: array<Value>;       // (T × k, stride)
@group(0) @binding(5) var<storage, read_write> d_b: array<Value>; // (X, width)

// Workgroups: along x columns, along y experts.
@compute @workgroup_size(WG)
fn expert_bias_bwd_b(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let i = group.x * WG + local.x;
    let values = params.width / WIDTH;
    if i >= values {
        return;
    }
    var sum = Value();
    let end = min(offsets[group.y + 1u], params.rows);
    for (var row = offsets[group.y]; row < end; row++) {
        let value = d_y[row * (params.stride / WIDTH) + i];
        if WEIGHTED {
            sum += w[source[row]] * value;
        } else {
            sum += value;
        }
    }
    d_b[group.y * values + i] += sum;
}

@group(0) @binding(3) var<storage, read> chosen: array<u32>;    // (T, k), the expert of each choice
@group(0) @binding(5) var<storage, read_write> d_w: array<f32>; // (T, k)

// LANES invocations share a row.
@compute @workgroup_size(WG)
fn expert_bias_bwd_s(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let row = (params.first_group.x + in_part.x) * ROWS_PER_WORKGROUP + local.x / LANES;
    let values = params.width / WIDTH;
    let clamped = min(row, params.rows - 1u);
    let choice = source[clamped];
    let expert = min(chosen[choice], params.experts - 1u);
    var along = 0.0;
    for (var i = local.x % LANES; i < values; i += LANES) {
        along += sum_of_value(b[expert * values + i] * d_y[clamped * (params.stride / WIDTH) + i]);
    }
    let sum = sums_across_row(local.x, vec2<f32>(along, 0.0)).x;
    if row < params.rows && local.x % LANES == 0u {
        d_w[choice] += sum;
    }
}
