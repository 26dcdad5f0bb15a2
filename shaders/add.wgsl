// y[n] = a[n] + b[n]: the residual stream, where a norm follows the branch. Elsewhere the matmul adds the residual (shared/epilogue).

import package::shared::grid::{flat_group};

override WG: u32 = 64u;

struct AddParams {
    n: u32,
}

@group(0) @binding(0) var<uniform> params: AddParams;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n < params.n {
        y[n] = a[n] + b[n];
    }
}

@group(0) @binding(1) var<storage, read> a_vec4s: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b_vec4s: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y_vec4s: array<vec4<f32>>;

// Adds vec4s, on GPUs where n is a multiple of four.
@compute @workgroup_size(WG)
fn add_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n < params.n / 4u {
        y_vec4s[n] = a_vec4s[n] + b_vec4s[n];
    }
}
