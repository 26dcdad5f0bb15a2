// The kernels of activation.wgsl for GPUs, where F is a multiple of four: an invocation loads one vec4 of each tensor, all at once.

import package::shared::activate::{activate};
import package::shared::activation_params::{ActivationParams};
import package::shared::grid::{flat_group};

override WG: u32 = 64u;

@group(0) @binding(1) var<storage, read> u: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>; // (T, F)

// f(x) and f'(x) of each component.
struct Activated {
    values: vec4<f32>,
    slopes: vec4<f32>,
}

fn activated(x: vec4<f32>) -> Activated {
    let a = activate(x.x);
    let b = activate(x.y);
    let c = activate(x.z);
    let d = activate(x.w);
    return Activated(vec4<f32>(a.x, b.x, c.x, d.x), vec4<f32>(a.y, b.y, c.y, d.y));
}

// Returns the index of the gate that belongs to y's n-th vec4. Its up lies F values behind it.
fn gate_at(n: u32) -> u32 {
    let vec4s = params.width / 4u;
    return n / vec4s * vec4s + n;
}

@compute @workgroup_size(WG)
fn activation_rows_fwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n >= params.n / 4u {
        return;
    }
    if params.gated == 1u {
        let at = gate_at(n);
        let gate = u[at];
        let up = u[at + params.width / 4u];
        y[n] = activated(gate).values * up;
    } else {
        y[n] = activated(u[n]).values;
    }
}

@group(0) @binding(2) var<storage, read> d_y: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> d_u: array<vec4<f32>>;

@compute @workgroup_size(WG)
fn activation_rows_bwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n >= params.n / 4u {
        return;
    }
    let pull = d_y[n];
    if params.gated == 1u {
        let at = gate_at(n);
        let gate = u[at];
        let up = u[at + params.width / 4u];
        let f = activated(gate);
        d_u[at] = f.slopes * up * pull;
        d_u[at + params.width / 4u] = f.values * pull;
    } else {
        d_u[n] = activated(u[n]).slopes * pull;
    }
}
