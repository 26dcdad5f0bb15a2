// expert_rows_gather: y[r,:] = x[source[r] / k, :]                  rows in the order of experts (shaders/router.wgsl); r < T·k
// expert_rows_sum:    y[t,:] (+)= Σ_j w[t,j]·x[row_of[t,j],:] (+ residual[t,:])       w = 1 where not WEIGHTED
// expert_rows_weigh:  y[r,:] = w[source[r]]·x[r,:]
// expert_rows_bwd:    d_w[source[r]] = Σ_i a[r,i]·d[r,i];   d[r,:] ← w[source[r]]·d[r,:]
//
// expert_rows_bwd is the gradient of y = Σ_j w_j·(a_j·Wᵀ): with d = d_y·W, unweighted, it needs no output of the product.

import package::shared::row_sums::{LANES, ROWS_PER_WORKGROUP, WG, sums_across_row};
import package::shared::value_f32::{Value, WIDTH, sum_of_value};

override WEIGHTED: bool = false;
override RESIDUAL: bool = false;
override ACCUMULATE: bool = false;

struct ExpertRowsParams {
    first_group: vec2<u32>, // first workgroup of this dispatch: long grids are split (src/gpu/submission_budget.rs)
    rows: u32,              // rows of the output
    width: u32,
    top_k: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: ExpertRowsParams;
@group(0) @binding(1) var<storage, read> source: array<u32>; // (T × k)
@group(0) @binding(2) var<storage, read> x: array<Value>;
@group(0) @binding(3) var<storage, read_write> y: array<Value>;

// Workgroups: along x columns, along y rows.
@compute @workgroup_size(WG)
fn expert_rows_gather(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let i = group.x * WG + local.x;
    let values = params.width / WIDTH;
    if i < values {
        y[group.y * values + i] = x[source[group.y] / params.top_k * values + i];
    }
}

@group(0) @binding(1) var<storage, read> row_of: array<u32>; // (T, k)
@group(0) @binding(4) var<storage, read> w: array<f32>;        // (T, k)
@group(0) @binding(5) var<storage, read> residual: array<Value>; // (T, width)

@compute @workgroup_size(WG)
fn expert_rows_sum(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let i = group.x * WG + local.x;
    let values = params.width / WIDTH;
    if i >= values {
        return;
    }
    var sum = Value();
    for (var j = 0u; j < params.top_k; j++) {
        let c = group.y * params.top_k + j;
        let row = x[row_of[c] * values + i];
        if WEIGHTED {
            sum += w[c] * row;
        } else {
            sum += row;
        }
    }
    let at = group.y * values + i;
    if RESIDUAL {
        sum += residual[at];
    }
    if ACCUMULATE {
        sum += y[at];
    }
    y[at] = sum;
}

// Workgroups: along x columns, along y rows.
@compute @workgroup_size(WG)
fn expert_rows_weigh(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let i = group.x * WG + local.x;
    let values = params.width / WIDTH;
    if i < values {
        let at = group.y * values + i;
        y[at] = w[source[group.y]] * x[at];
    }
}

@group(0) @binding(2) var<storage, read> w_saved: array<f32>;           // (T, k)
@group(0) @binding(3) var<storage, read> a: array<Value>;               // (T × k, width)
@group(0) @binding(4) var<storage, read_write> d: array<Value>;         // (T × k, width)
@group(0) @binding(5) var<storage, read_write> d_w: array<f32>;         // (T, k)

// LANES invocations share a row.
@compute @workgroup_size(WG)
fn expert_rows_bwd(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let row = (params.first_group.x + in_part.x) * ROWS_PER_WORKGROUP + local.x / LANES;
    let values = params.width / WIDTH;
    let start = min(row, params.rows - 1u) * values;
    var along = 0.0;
    for (var i = local.x % LANES; i < values; i += LANES) {
        along += sum_of_value(a[start + i] * d[start + i]);
    }
    let sum = sums_across_row(local.x, vec2<f32>(along, 0.0)).x;
    if row >= params.rows {
        return;
    }
    let c = source[row];
    let weight = w_saved[c];
    for (var i = local.x % LANES; i < values; i += LANES) {
        d[start + i] = weight * d[start + i];
    }
    if local.x % LANES == 0u {
        d_w[c] = sum;
    }
}
