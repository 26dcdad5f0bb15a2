// y[t,i] = x[t,i]·(w[i] + offset)·r[t];   r[t] = 1/√(mean_i x[t,i]² + eps)
// d_x[t,i] = r·g[i] − x[t,i]·r³/D·Σ_j g[j]·x[t,j],  g[i] = d_y[t,i]·(w[i] + offset);   d_w[i] = Σ_t d_y[t,i]·x[t,i]·r[t]
//
// One workgroup per row.

import package::shared::grid::{flat_group};
import package::shared::reduce::{WG, sum_across};
import package::shared::rmsnorm_params::{RmsnormParams};

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<f32>;
@group(0) @binding(3) var<storage, read_write> r_out: array<f32>; // (rows)
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

fn x_row(row: u32) -> u32 {
    return params.x_start + row / params.groups * params.x_stride + row % params.groups * params.width;
}

fn y_row(row: u32) -> u32 {
    return params.y_start + row / params.groups * params.y_stride + row % params.groups * params.width;
}

@compute @workgroup_size(WG)
fn rmsnorm_fwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = flat_group(group, n_groups);
    let last = min(row, params.rows - 1u);
    let x0 = x_row(last);
    var squares = 0.0;
    for (var i = local.x; i < params.width; i += WG) {
        squares += x[x0 + i] * x[x0 + i];
    }
    let r = inverseSqrt(sum_across(local.x, squares) / f32(params.width) + params.eps);
    if row >= params.rows {
        return;
    }
    let y0 = y_row(row);
    for (var i = local.x; i < params.width; i += WG) {
        y[y0 + i] = x[x0 + i] * (w[i] + params.offset) * r;
    }
    if local.x == 0u {
        r_out[row] = r;
    }
}

@group(0) @binding(3) var<storage, read> r_saved: array<f32>;
@group(0) @binding(4) var<storage, read> d_y: array<f32>;
@group(0) @binding(5) var<storage, read_write> d_x: array<f32>;

@compute @workgroup_size(WG)
fn rmsnorm_bwd_x(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = flat_group(group, n_groups);
    let last = min(row, params.rows - 1u);
    let x0 = x_row(last);
    let y0 = y_row(last);
    var along = 0.0;
    for (var i = local.x; i < params.width; i += WG) {
        along += d_y[y0 + i] * (w[i] + params.offset) * x[x0 + i];
    }
    let r = r_saved[last];
    let pull = sum_across(local.x, along) * r * r * r / f32(params.width);
    if row >= params.rows {
        return;
    }
    for (var i = local.x; i < params.width; i += WG) {
        let value = r * d_y[y0 + i] * (w[i] + params.offset) - x[x0 + i] * pull;
        d_x[x0 + i] = select(value, d_x[x0 + i] + value, params.accumulate == 1u);
    }
}

@group(0) @binding(2) var<storage, read> r_rows: array<f32>;
@group(0) @binding(3) var<storage, read> d_y_rows: array<f32>;
@group(0) @binding(4) var<storage, read_write> d_w_partial: array<f32>; // (blocks, width): column_sum adds them up

// One invocation per column; workgroups along y are blocks of rows.
@compute @workgroup_size(WG)
fn rmsnorm_bwd_w(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let i = group.x * WG + local.x;
    if i >= params.width {
        return;
    }
    var sum = 0.0;
    let end = min((group.y + 1u) * params.block, params.rows);
    for (var row = group.y * params.block; row < end; row++) {
        sum += d_y_rows[y_row(row) + i] * x[x_row(row) + i] * r_rows[row];
    }
    d_w_partial[group.y * params.width + i] = sum;
}
