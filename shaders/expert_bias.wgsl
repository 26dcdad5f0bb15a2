// expert_bias_fwd: y[r, start + i] += bias[e, first + step·i]       e: the expert of row r; rows are in the order of experts
// expert_bias_bwd: d_bias[e, first + step·i] += Σ_r w·d_y[r, start + i]        r: the rows of e; w = 1 where not WEIGHTED
// expert_bias_bwd_w: d_w[source[r]] += Σ_i bias[e,i]·d_y[r,i]       d_y: the gradient of the weighted value, w·(.. + bias)

import package::shared::row_sums::{LANES, ROWS_PER_WORKGROUP, WG, sums_across_row};
import package::shared::weight::{weight_value};

override WEIGHTED: bool = false;

struct ExpertBiasParams {
    first_group: vec2<u32>, // first workgroup of this dispatch: long grids are split (src/gpu/submission_budget.rs)
    rows: u32,              // T × k
    width: u32,             // columns that have biases
    start: u32,             // first column of y, and columns of y
    stride: u32,
    bias_width: u32, // elements of an expert's bias
    bias_first: u32, // element of the first column, and elements from column to column
    bias_step: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: ExpertBiasParams;
@group(0) @binding(1) var<storage, read> source: array<u32>; // (T × k)
// Binding 2: the biases (X, bias_width).
@group(0) @binding(3) var<storage, read> chosen: array<u32>; // (T, k)
@group(0) @binding(4) var<storage, read_write> y: array<f32>; // (T × k, stride)

// Workgroups: along x columns, along y rows.
@compute @workgroup_size(WG)
fn expert_bias_fwd(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let i = group.x * WG + local.x;
    if i < params.width {
        let e = chosen[source[group.y]];
        let at = e * params.bias_width + params.bias_first + params.bias_step * i;
        y[group.y * params.stride + params.start + i] += weight_value(e, at);
    }
}

@group(0) @binding(2) var<storage, read> offsets: array<u32>;          // (X + 1)
@group(0) @binding(3) var<storage, read> d_y: array<f32>;               // (T × k, stride)
@group(0) @binding(4) var<storage, read> w: array<f32>;              // (T, k)
@group(0) @binding(5) var<storage, read_write> d_bias: array<f32>; // (X, bias_width)

// Workgroups: along x columns, along y experts. An invocation sums a column of an expert's rows, in their order.
@compute @workgroup_size(WG)
fn expert_bias_bwd(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let i = group.x * WG + local.x;
    if i >= params.width {
        return;
    }
    var sum = 0.0;
    let end = min(offsets[group.y + 1u], params.rows);
    for (var row = offsets[group.y]; row < end; row++) {
        let value = d_y[row * params.stride + params.start + i];
        if WEIGHTED {
            sum += w[source[row]] * value;
        } else {
            sum += value;
        }
    }
    d_bias[group.y * params.bias_width + params.bias_first + params.bias_step * i] += sum;
}

@group(0) @binding(4) var<storage, read> d_y_whole: array<f32>;   // (T × k, width)
@group(0) @binding(5) var<storage, read_write> d_w: array<f32>; // (T, k)

// LANES invocations share a row.
@compute @workgroup_size(WG)
fn expert_bias_bwd_w(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let row = (params.first_group.x + in_part.x) * ROWS_PER_WORKGROUP + local.x / LANES;
    let last = min(row, params.rows - 1u);
    let c = source[last];
    let e = chosen[c];
    var along = 0.0;
    for (var i = local.x % LANES; i < params.width; i += LANES) {
        along += weight_value(e, e * params.width + i) * d_y_whole[last * params.width + i];
    }
    let sum = sums_across_row(local.x, vec2<f32>(along, 0.0)).x;
    if row < params.rows && local.x % LANES == 0u {
        d_w[c] += sum;
    }
}
