// gated: y[t,i] = f(u[t,i])·u[t,F+i], u: (T, 2F) as gate, up;   plain: y[t,i] = f(u[t,i]), u: (T, F)
// d_u = (f'(gate)·up·d_y, f(gate)·d_y);   d_u = f'(u)·d_y

import package::shared::activate::{activate};
import package::shared::activation_params::{ActivationParams};
import package::shared::grid::{flat_group};

override WG: u32 = 64u;

@group(0) @binding(1) var<storage, read> u: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // (T, F)

@compute @workgroup_size(WG)
fn activation_fwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n >= params.n {
        return;
    }
    if params.gated == 1u {
        let at = n / params.width * params.width + n; // row·2F + column
        y[n] = activate(u[at]).x * u[at + params.width];
    } else {
        y[n] = activate(u[n]).x;
    }
}

@group(0) @binding(2) var<storage, read> d_y: array<f32>;
@group(0) @binding(3) var<storage, read_write> d_u: array<f32>;

@compute @workgroup_size(WG)
fn activation_bwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n >= params.n {
        return;
    }
    if params.gated == 1u {
        let at = n / params.width * params.width + n;
        let f = activate(u[at]);
        d_u[at] = f.y * u[at + params.width] * d_y[n];
        d_u[at + params.width] = f.x * d_y[n];
    } else {
        d_u[n] = activate(u[n]).y * d_y[n];
    }
}
