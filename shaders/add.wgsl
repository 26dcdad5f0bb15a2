// add: y[n] = a[n] + b[n];   add_into: y[n] += a[n];   bias_fwd: y[t, start + i] += b[i]       (residuals, biases)

import package::shared::grid::{flat_group};

override WG: u32 = 64u;

struct AddParams {
    n: u32,
    width: u32,  // bias_fwd: columns
    start: u32,  // bias_fwd: first column of y
    stride: u32, // bias_fwd: elements a row of y
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

@group(0) @binding(2) var<storage, read_write> sum: array<f32>;

@compute @workgroup_size(WG)
fn add_into(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n < params.n {
        sum[n] += a[n];
    }
}

@compute @workgroup_size(WG)
fn bias_fwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n < params.n {
        let i = n % params.width;
        sum[n / params.width * params.stride + params.start + i] += a[i];
    }
}
