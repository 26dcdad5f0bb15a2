// AdamW (arXiv 1711.05101), torch's form, over a page of parameters at once:
//   g ← g·scale·min(1, max_norm/(norm + 1e-6));   p ← p − lr·wd·p;   m ← β1·m + (1−β1)·g;   v ← β2·v + (1−β2)·g²
//   p ← p − (lr/c1)·m / (√v/√c2 + eps),   c = 1 − βᵗ
// Elements below decay_end decay; the others (norm weights, biases) do not. A norm that is not finite leaves everything as it was.

import package::shared::grid::{flat_group};

override WG: u32 = 64u;

struct AdamwParams {
    n: u32,
    decay_end: u32,
    scale: f32,     // one over what the gradient was summed over
    max_norm: f32,  // 0: no clipping
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32, // rounded once, on the host: 1 − 0.999 loses digits in f32
    one_minus_beta2: f32,
    lr_decay: f32, // lr·wd
    step: f32,     // lr/c1
    root_c2: f32,  // √c2
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: AdamwParams;
@group(0) @binding(1) var<storage, read> norm: array<f32>; // (1)
@group(0) @binding(2) var<storage, read> g: array<f32>;
@group(0) @binding(3) var<storage, read_write> p: array<f32>;
@group(0) @binding(4) var<storage, read_write> m: array<f32>;
@group(0) @binding(5) var<storage, read_write> v: array<f32>;

@compute @workgroup_size(WG)
fn adamw(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let i = flat_group(group, n_groups) * WG + local.x;
    // Compilers may assume that there are no NaNs: look at the bits.
    if i >= params.n || (bitcast<u32>(norm[0]) & 0x7f800000u) == 0x7f800000u {
        return;
    }
    var factor = params.scale;
    if params.max_norm > 0.0 {
        factor *= min(1.0, params.max_norm / (norm[0] + 1e-6));
    }
    let gradient = g[i] * factor;
    let m_now = params.beta1 * m[i] + params.one_minus_beta1 * gradient;
    let v_now = params.beta2 * v[i] + params.one_minus_beta2 * gradient * gradient;
    m[i] = m_now;
    v[i] = v_now;
    let decayed = p[i] - select(0.0, params.lr_decay * p[i], i < params.decay_end);
    p[i] = decayed - params.step * m_now / (sqrt(v_now) / params.root_c2 + params.eps);
}
