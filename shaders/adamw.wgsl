// AdamW (arXiv 1711.05101) in torch's form, over one bucket of parameters:
//   g ← g·scale·min(1, max_norm/(norm + 1e-6));   p ← p − lr·wd·p;   m ← β1·m + (1−β1)·g;   v ← β2·v + (1−β2)·g²
//   p ← p − (lr/c1)·m / (√v/√c2 + eps),   c = 1 − βᵗ
// Only elements below decay_end have weight decay: norm weights and biases lie behind it. Nothing is updated where the norm is not finite.
//
// One invocation updates a vec4 (four neighbours), one workgroup 256 elements, which are one block of the eight-bit moments. The modules
// imported as `shared/param` and `shared/moments` decide how parameters and moments are stored.

import package::shared::grid::{flat_group};
import package::shared::moments::{Moments, load_moments, prepare_moments, store_moments};
import package::shared::param::{param_vec4, store_param_vec4};
import package::shared::reduce::{WG};

struct AdamwParams {
    n: u32, // a multiple of four
    decay_end: u32,
    scale: f32,     // one over the number of terms that the gradient was summed over
    max_norm: f32,  // 0: no clipping
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32, // rounded once, on the host: 1 − 0.999 loses digits in f32
    one_minus_beta2: f32,
    lr_decay: f32, // lr·wd
    step: f32,     // lr/c1
    root_c2: f32,  // √c2
    eps: f32,
    first_vec4: u32, // of the bucket, among the vec4s of all trained parameters
    number: u32,     // of this update
    key: u32,        // key of the random bits
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: AdamwParams;
@group(0) @binding(1) var<storage, read> norm: array<f32>; // (1)
@group(0) @binding(2) var<storage, read> g: array<vec4<f32>>;
// Binding 3: parameters. Bindings from 4 on: moments.

@compute @workgroup_size(WG)
fn adamw(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let block = flat_group(group, n_groups);
    let vec4_at = block * WG + local.x;
    // Tests the bits, because compilers may assume that there are no NaNs. A workgroup returns as a whole, because storing has barriers.
    if 4u * block * WG >= params.n || (bitcast<u32>(norm[0]) & 0x7f800000u) == 0x7f800000u {
        return;
    }
    prepare_moments(local.x);
    var now: Moments;
    let inside = 4u * vec4_at < params.n;
    if inside {
        var factor = params.scale;
        if params.max_norm > 0.0 {
            factor *= min(1.0, params.max_norm / (norm[0] + 1e-6));
        }
        let gradient = g[vec4_at] * factor;
        let before = load_moments(vec4_at);
        now.m = params.beta1 * before.m + params.one_minus_beta1 * gradient;
        now.v = params.beta2 * before.v + params.one_minus_beta2 * gradient * gradient;
        let p = param_vec4(vec4_at);
        let decayed = p - select(0.0, params.lr_decay, 4u * vec4_at < params.decay_end) * p;
        let updated = decayed - params.step * now.m / (sqrt(now.v) / params.root_c2 + params.eps);
        store_param_vec4(vec4_at, updated, vec2<u32>(params.first_vec4 + vec4_at, params.number), params.key);
    }
    store_moments(vec4_at, local.x, inside, now);
}
