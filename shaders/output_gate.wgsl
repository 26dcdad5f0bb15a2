// y = o·σ(gate);   d_o = d_y·σ(gate);   d_gate = d_y·o·σ(gate)·(1 − σ(gate))
//
// The projection of queries gives, per head, a query and then its gate. output_gate_copy takes the queries out of it, and their gradients
// back into it.

import package::shared::grid::{flat_group};
import package::shared::sigmoid::{sigmoid};
import package::shared::value_f32::{Value, WIDTH};

override WG: u32 = 64u;

struct OutputGateParams {
    n: u32,           // T × heads × width, in Values
    heads: u32,
    width: u32,       // elements per head
    x_start: u32,     // output_gate_copy: first element of x
    x_stride: u32,    // elements per token
    x_head: u32,      // elements from head to head
    y_start: u32,     // of y; in the other kernels, of gate and d_gate
    y_stride: u32,
    y_head: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: OutputGateParams;
@group(0) @binding(1) var<storage, read> o: array<Value>;    // (T, heads·width)
@group(0) @binding(2) var<storage, read> gate: array<Value>;
@group(0) @binding(3) var<storage, read_write> y: array<Value>; // (T, heads·width)

// Returns the index of the n-th Value of heads that begin at `start`.
fn strided(n: u32, start: u32, stride: u32, head_stride: u32) -> u32 {
    let values = params.width / WIDTH;
    let head = n / values;
    return (start + head / params.heads * stride + head % params.heads * head_stride) / WIDTH + n % values;
}

fn gate_at(n: u32) -> u32 {
    return strided(n, params.y_start, params.y_stride, params.y_head);
}

@compute @workgroup_size(WG)
fn output_gate_fwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n < params.n {
        y[n] = o[n] * sigmoid(gate[gate_at(n)]);
    }
}

@group(0) @binding(3) var<storage, read> d_y: array<Value>; // (T, heads·width)
@group(0) @binding(4) var<storage, read_write> d_o: array<Value>; // (T, heads·width)
@group(0) @binding(5) var<storage, read_write> d_gate: array<Value>; // laid out like gate

@compute @workgroup_size(WG)
fn output_gate_bwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n >= params.n {
        return;
    }
    let at = gate_at(n);
    let s = sigmoid(gate[at]);
    let pull = d_y[n] * s;
    d_o[n] = pull;
    d_gate[at] = pull * o[n] * (1.0 - s);
}

@group(0) @binding(1) var<storage, read> heads_in: array<Value>;
@group(0) @binding(2) var<storage, read_write> heads_out: array<Value>;

@compute @workgroup_size(WG)
fn output_gate_copy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n < params.n {
        heads_out[gate_at(n)] = heads_in[strided(n, params.x_start, params.x_stride, params.x_head)];
    }
}
