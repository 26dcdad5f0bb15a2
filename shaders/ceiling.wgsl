// Peak rates of a device. copy: y[n] = x[n];   fma: y[n] = x after 4·ITERATIONS steps x ← a·x + b, over 2 vec4s per invocation, in
// registers.
//
// The benchmarks compare every kernel with these two rates.

import package::shared::grid::{flat_group};

override WG: u32 = 64u;
override ITERATIONS: u32 = 64u;

struct CeilingParams {
    n: u32, // vec4s
    a: f32,
    b: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: CeilingParams;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(WG)
fn ceiling_copy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n < params.n {
        y[n] = x[n];
    }
}

// Eight values in flight hide the latency of a multiply-add and fit the registers of any CPU. Both vec4s start from the same value; their
// mean is stored. The step is written as a product and a sum, as kernels write it; compilers contract it to an fma where that is fast.
@compute @workgroup_size(WG)
fn ceiling_fma(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = min(flat_group(group, n_groups) * WG + local.x, params.n - 1u);
    var v0 = x[n];
    var v1 = v0 + 1.0;
    let a = vec4<f32>(params.a);
    let b = vec4<f32>(params.b);
    for (var i = 0u; i < ITERATIONS; i++) {
        v0 = a * v0 + b;
        v1 = a * v1 + b;
        v0 = a * v0 + b;
        v1 = a * v1 + b;
        v0 = a * v0 + b;
        v1 = a * v1 + b;
        v0 = a * v0 + b;
        v1 = a * v1 + b;
    }
    y[n] = 0.5 * (v0 + v1);
}
