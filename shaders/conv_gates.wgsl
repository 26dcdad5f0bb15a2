// gated = (b, c, x), D columns each;   m = b·x;   y = c·(s + bias), where s is the convolution of m (causal_conv)
// d_c = d_y·(s + bias);   d_s = d_y·c;   d_b = d_m·x;   d_x = d_m·b
//
// Gates before and behind the convolution of a short-convolution layer. d_bias is the sum of d_s over tokens.

import package::shared::grid::{flat_group};
import package::shared::value_f32::{Value, WIDTH};

override WG: u32 = 64u;
override BIAS: bool = true; // whether the convolution has a bias

struct ConvGatesParams {
    n: u32,     // T × D, in Values
    width: u32, // D
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: ConvGatesParams;
@group(0) @binding(1) var<storage, read> gated: array<Value>; // (T, 3·D)
@group(0) @binding(2) var<storage, read_write> m: array<Value>; // (T, D)

// Returns the index of the b that belongs to the n-th Value of (T, D): row·3D + column. Its c and x lie D and 2D elements behind it.
fn b_at(n: u32) -> u32 {
    let values = params.width / WIDTH;
    return n / values * 2u * values + n;
}

@compute @workgroup_size(WG)
fn conv_gates_in_fwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n < params.n {
        let at = b_at(n);
        m[n] = gated[at] * gated[at + 2u * params.width / WIDTH];
    }
}

@group(0) @binding(2) var<storage, read> s: array<Value>; // (T, D)
@group(0) @binding(3) var<storage, read> bias: array<Value>; // (D); without a bias, whatever is bound
@group(0) @binding(4) var<storage, read_write> y: array<Value>; // (T, D)

// Returns the n-th Value of the convolution with its bias.
fn convolved(n: u32) -> Value {
    if BIAS {
        return s[n] + bias[n % (params.width / WIDTH)];
    }
    return s[n];
}

@compute @workgroup_size(WG)
fn conv_gates_out_fwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n < params.n {
        y[n] = gated[b_at(n) + params.width / WIDTH] * convolved(n);
    }
}

@group(0) @binding(4) var<storage, read> d_y: array<Value>; // (T, D)
@group(0) @binding(5) var<storage, read_write> d_s: array<Value>; // (T, D)
@group(0) @binding(6) var<storage, read_write> d_gated: array<Value>; // (T, 3·D): the columns of c are written

@compute @workgroup_size(WG)
fn conv_gates_out_bwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n >= params.n {
        return;
    }
    let at = b_at(n) + params.width / WIDTH;
    let pull = d_y[n];
    d_s[n] = pull * gated[at];
    d_gated[at] = pull * convolved(n);
}

@group(0) @binding(2) var<storage, read> d_m: array<Value>; // (T, D)
@group(0) @binding(3) var<storage, read_write> d_gates: array<Value>; // (T, 3·D): the columns of b and x are written

@compute @workgroup_size(WG)
fn conv_gates_in_bwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n >= params.n {
        return;
    }
    let b = b_at(n);
    let x = b + 2u * params.width / WIDTH;
    let pull = d_m[n];
    d_gates[b] = pull * gated[x];
    d_gates[x] = pull * gated[b];
}
