// columns_copy: y[t, y_start + i] = x[t, x_start + i];   columns_add: y[t, y_start + i] += x[t, x_start + i];   i < width
//
// The other columns of y stay as they are.

import package::shared::grid::{flat_group};
import package::shared::value_f32::{Value, WIDTH};

override WG: u32 = 64u;

struct ColumnsParams {
    n: u32,        // T × width, in Values
    width: u32,    // elements per token
    x_start: u32,  // first element
    x_stride: u32, // elements from token to token
    y_start: u32,
    y_stride: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: ColumnsParams;
@group(0) @binding(1) var<storage, read> x: array<Value>;
@group(0) @binding(2) var<storage, read_write> y: array<Value>;

// Returns the index of the n-th Value of the columns of a slot.
fn strided(n: u32, start: u32, stride: u32) -> u32 {
    let values = params.width / WIDTH;
    return (start + n / values * stride) / WIDTH + n % values;
}

@compute @workgroup_size(WG)
fn columns_copy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n < params.n {
        y[strided(n, params.y_start, params.y_stride)] = x[strided(n, params.x_start, params.x_stride)];
    }
}

@compute @workgroup_size(WG)
fn columns_add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n < params.n {
        y[strided(n, params.y_start, params.y_stride)] += x[strided(n, params.x_start, params.x_stride)];
    }
}
