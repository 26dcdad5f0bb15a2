// y = o·r·w·silu(z);   r = 1/√(mean o² + eps), over a head's dv values
// d_o = r·g − o·r³/dv·Σ g·o,  g = d_y·w·silu(z);   d_z = d_y·o·r·w·silu'(z);   d_w = Σ_rows d_y·o·r·silu(z)
//
// Rows are tokens × value heads, side by side. LANES invocations share a row.

import package::shared::grid::{flat_group};
import package::shared::row_sums::{LANES, ROWS_PER_WORKGROUP, WG, sums_across_row};
import package::shared::sigmoid::{sigmoid};
import package::shared::value_f32::{Value, WIDTH, sum_of_value};

struct GatedRmsnormParams {
    rows: u32,  // T × Hv
    width: u32, // dv
    eps: f32,
    block: u32, // gated_rmsnorm_bwd_w: rows per partial sum
}

@group(0) @binding(0) var<uniform> params: GatedRmsnormParams;
@group(0) @binding(1) var<storage, read> o: array<Value>; // (rows, dv)
@group(0) @binding(2) var<storage, read> z: array<Value>; // (rows, dv)
@group(0) @binding(3) var<storage, read> w: array<Value>; // (dv)
@group(0) @binding(4) var<storage, read_write> r_out: array<f32>; // (rows)
@group(0) @binding(5) var<storage, read_write> y: array<Value>; // (rows, dv)

@compute @workgroup_size(WG)
fn gated_rmsnorm_fwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = flat_group(group, n_groups) * ROWS_PER_WORKGROUP + local.x / LANES;
    let values = params.width / WIDTH;
    let start = min(row, params.rows - 1u) * values;
    var squares = 0.0;
    for (var i = local.x % LANES; i < values; i += LANES) {
        squares += sum_of_value(o[start + i] * o[start + i]);
    }
    let sum = sums_across_row(local.x, vec2<f32>(squares, 0.0)).x;
    let r = inverseSqrt(sum / f32(params.width) + params.eps);
    if row >= params.rows {
        return;
    }
    for (var i = local.x % LANES; i < values; i += LANES) {
        let gate = z[start + i];
        y[start + i] = o[start + i] * r * w[i] * gate * sigmoid(gate);
    }
    if local.x % LANES == 0u {
        r_out[row] = r;
    }
}

@group(0) @binding(4) var<storage, read> r_saved: array<f32>;
@group(0) @binding(5) var<storage, read> d_y: array<Value>; // (rows, dv)
@group(0) @binding(6) var<storage, read_write> d_o: array<Value>; // (rows, dv)
@group(0) @binding(7) var<storage, read_write> d_z: array<Value>; // (rows, dv)

@compute @workgroup_size(WG)
fn gated_rmsnorm_bwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = flat_group(group, n_groups) * ROWS_PER_WORKGROUP + local.x / LANES;
    let last = min(row, params.rows - 1u);
    let values = params.width / WIDTH;
    let start = last * values;
    var along = 0.0;
    for (var i = local.x % LANES; i < values; i += LANES) {
        let gate = z[start + i];
        along += sum_of_value(d_y[start + i] * w[i] * gate * sigmoid(gate) * o[start + i]);
    }
    let r = r_saved[last];
    let pull = sums_across_row(local.x, vec2<f32>(along, 0.0)).x * r * r * r / f32(params.width);
    if row >= params.rows {
        return;
    }
    for (var i = local.x % LANES; i < values; i += LANES) {
        let gate = z[start + i];
        let s = sigmoid(gate);
        let scaled = d_y[start + i] * w[i] * r;
        let value = o[start + i];
        d_o[start + i] = scaled * gate * s - value * pull;
        d_z[start + i] = scaled * value * s * (1.0 + gate * (1.0 - s));
    }
}

@group(0) @binding(3) var<storage, read> r_rows: array<f32>;
@group(0) @binding(4) var<storage, read> d_y_rows: array<Value>;
@group(0) @binding(5) var<storage, read_write> d_w_partial: array<Value>; // (blocks, dv): column_sum adds them up

// One invocation per Value of columns; workgroups along y are blocks of rows.
@compute @workgroup_size(WG)
fn gated_rmsnorm_bwd_w(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let i = group.x * WG + local.x;
    let values = params.width / WIDTH;
    if i >= values {
        return;
    }
    var sum = Value();
    let end = min((group.y + 1u) * params.block, params.rows);
    for (var row = group.y * params.block; row < end; row++) {
        let at = row * values + i;
        sum += d_y_rows[at] * o[at] * r_rows[row] * z[at] * sigmoid(z[at]);
    }
    d_w_partial[group.y * values + i] = sum;
}
