// add: y[n] = scale·(a[n] + b[n]): the residual stream, where a norm follows the branch. Elsewhere the matmul adds the residual
// (shared/epilogue). scale: x[n] *= scale, with which the gradient begins.

import package::shared::grid::{flat_group};
import package::shared::value_f32::{Value, WIDTH};

override WG: u32 = 64u;

struct AddParams {
    n: u32, // elements
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: AddParams;
@group(0) @binding(1) var<storage, read> a: array<Value>;
@group(0) @binding(2) var<storage, read> b: array<Value>;
@group(0) @binding(3) var<storage, read_write> y: array<Value>;

@compute @workgroup_size(WG)
fn add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n < params.n / WIDTH {
        y[n] = params.scale * (a[n] + b[n]);
    }
}

@group(0) @binding(1) var<storage, read_write> x: array<Value>;

@compute @workgroup_size(WG)
fn scale(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n < params.n / WIDTH {
        x[n] *= params.scale;
    }
}
