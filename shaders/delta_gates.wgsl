// β = σ(b);   g = −exp(A_log)·softplus(a + dt_bias)                                            per token and value head
// d_b = d_β·β·(1 − β);   d_a = −d_g·exp(A_log)·σ(a + dt_bias);   d_dt_bias = Σ_t d_a;   d_A_log = Σ_t d_g·g

import package::shared::grid::{flat_group};

override WG: u32 = 64u;

struct DeltaGatesParams {
    n: u32, // T × heads
    heads: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: DeltaGatesParams;
@group(0) @binding(1) var<storage, read> a: array<f32>;       // (T, Hv)
@group(0) @binding(2) var<storage, read> a_log: array<f32>;   // (Hv)
@group(0) @binding(3) var<storage, read> dt_bias: array<f32>; // (Hv)
@group(0) @binding(4) var<storage, read> b: array<f32>;       // (T, Hv)
@group(0) @binding(5) var<storage, read_write> gates: array<f32>; // (T, 2·Hv): β, g

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-clamp(x, -80.0, 80.0)));
}

// log(1 + eˣ). A small e keeps its digits in the series.
fn softplus(x: f32) -> f32 {
    let e = exp(-min(abs(x), 80.0));
    let series = e * (1.0 - e * (0.5 - e * (0.33333333 - 0.25 * e)));
    return max(x, 0.0) + select(log(1.0 + e), series, e < 0.02);
}

@compute @workgroup_size(WG)
fn delta_gates_fwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n >= params.n {
        return;
    }
    let head = n % params.heads;
    let at = n / params.heads * 2u * params.heads + head;
    gates[at] = sigmoid(b[n]);
    gates[at + params.heads] = -exp(a_log[head]) * softplus(a[n] + dt_bias[head]);
}

@group(0) @binding(4) var<storage, read> gates_saved: array<f32>;
@group(0) @binding(5) var<storage, read> d_gates: array<f32>;          // (T, 2·Hv)
@group(0) @binding(6) var<storage, read_write> d_a: array<f32>;        // (T, Hv)
@group(0) @binding(7) var<storage, read_write> d_b: array<f32>;        // (T, Hv)
@group(0) @binding(8) var<storage, read_write> d_a_log_terms: array<f32>; // (T, Hv): column_sum adds them up

@compute @workgroup_size(WG)
fn delta_gates_bwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n >= params.n {
        return;
    }
    let head = n % params.heads;
    let at = n / params.heads * 2u * params.heads + head;
    let beta = gates_saved[at];
    let d_g = d_gates[at + params.heads];
    d_b[n] = d_gates[at] * beta * (1.0 - beta);
    d_a[n] = -d_g * exp(a_log[head]) * sigmoid(a[n] + dt_bias[head]);
    d_a_log_terms[n] = d_g * gates_saved[at + params.heads];
}
