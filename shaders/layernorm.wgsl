// y[t,i] = h[t,i]·(w[i] + offset) + b[i];   h[t,i] = (x[t,i] − mean[t])·r[t];   r[t] = 1/√(var_i x[t,i] + eps)
// d_x[t,i] = r·(g[i] − mean_j g[j] − h[i]·mean_j(g[j]·h[j])),  g[i] = d_y[t,i]·(w[i] + offset)
// d_w[i] = Σ_t d_y[t,i]·h[t,i];   d_b[i] = Σ_t d_y[t,i]  (column_sum)

import package::shared::grid::{flat_group};
import package::shared::layernorm_params::{LayernormParams};
import package::shared::reduce::{WG, sum_across};

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<f32>;
@group(0) @binding(3) var<storage, read> b: array<f32>;
@group(0) @binding(4) var<storage, read_write> stats: array<vec2<f32>>; // (rows): mean, r
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn layernorm_fwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = flat_group(group, n_groups);
    let x0 = min(row, params.rows - 1u) * params.width;
    var sum = 0.0;
    for (var i = local.x; i < params.width; i += WG) {
        sum += x[x0 + i];
    }
    let mean = sum_across(local.x, sum) / f32(params.width);
    var squares = 0.0;
    for (var i = local.x; i < params.width; i += WG) {
        let away = x[x0 + i] - mean;
        squares += away * away;
    }
    let r = inverseSqrt(sum_across(local.x, squares) / f32(params.width) + params.eps);
    if row >= params.rows {
        return;
    }
    for (var i = local.x; i < params.width; i += WG) {
        y[x0 + i] = (x[x0 + i] - mean) * r * (w[i] + params.offset) + b[i];
    }
    if local.x == 0u {
        stats[row] = vec2<f32>(mean, r);
    }
}

@group(0) @binding(3) var<storage, read> stats_saved: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read> d_y: array<f32>;
@group(0) @binding(5) var<storage, read_write> d_x: array<f32>;

@compute @workgroup_size(WG)
fn layernorm_bwd_x(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = flat_group(group, n_groups);
    let last = min(row, params.rows - 1u);
    let x0 = last * params.width;
    let s = stats_saved[last];
    var even = 0.0;
    var along = 0.0;
    for (var i = local.x; i < params.width; i += WG) {
        let g = d_y[x0 + i] * (w[i] + params.offset);
        even += g;
        along += g * (x[x0 + i] - s.x) * s.y;
    }
    let mean_g = sum_across(local.x, even) / f32(params.width);
    let mean_gh = sum_across(local.x, along) / f32(params.width);
    if row >= params.rows {
        return;
    }
    for (var i = local.x; i < params.width; i += WG) {
        let h = (x[x0 + i] - s.x) * s.y;
        let value = s.y * (d_y[x0 + i] * (w[i] + params.offset) - mean_g - h * mean_gh);
        d_x[x0 + i] = select(value, d_x[x0 + i] + value, params.accumulate == 1u);
    }
}

@group(0) @binding(2) var<storage, read> stats_rows: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> d_y_rows: array<f32>;
@group(0) @binding(4) var<storage, read_write> d_w_partial: array<f32>; // (blocks, width)

// One invocation per column; workgroups along y are blocks of rows.
@compute @workgroup_size(WG)
fn layernorm_bwd_w(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let i = group.x * WG + local.x;
    if i >= params.width {
        return;
    }
    var sum = 0.0;
    let end = min((group.y + 1u) * params.block, params.rows);
    for (var row = group.y * params.block; row < end; row++) {
        let s = stats_rows[row];
        sum += d_y_rows[row * params.width + i] * (x[row * params.width + i] - s.x) * s.y;
    }
    d_w_partial[group.y * params.width + i] = sum;
}
