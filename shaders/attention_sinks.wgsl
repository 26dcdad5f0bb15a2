// Attention sinks: one learnt logit per head joins the softmax of each row and has no value.     GptOssAttention, modeling_gpt_oss.py
//
// o[t,h] *= σ(lse_keys[t,h] − sink[h]);   lse[t,h] = log(e^lse_keys[t,h] + e^sink[h])
// d_sink[h] = −Σ_t p[t,h]·delta[t,h];   p[t,h] = e^(sink[h] − lse[t,h]);   delta[t,h] = d_o[t,h]·o[t,h]
//
// The kernels of attention compute o and lse_keys over the keys alone. With the new lse, their backward passes give the right probabilities
// of keys, and with the new o, the right delta. attention_sinks_bwd computes the terms of d_sink; column_sum adds them.

import package::shared::grid::{flat_group};
import package::shared::value_f32::{Value, WIDTH};

override WG: u32 = 64u;

struct SinksParams {
    n: u32,     // T × H × E in Values; in the backward pass T × H
    heads: u32,
    width: u32, // E
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: SinksParams;
@group(0) @binding(1) var<storage, read> sinks: array<f32>;          // (H)
@group(0) @binding(2) var<storage, read> lse_keys: array<f32>;       // (T, H)
@group(0) @binding(3) var<storage, read_write> o: array<Value>;      // (T, H·E)
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;      // (T, H)

@compute @workgroup_size(WG)
fn attention_sinks_fwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n >= params.n {
        return;
    }
    let values = params.width / WIDTH;
    let row = n / values;
    let sink = sinks[row % params.heads];
    let keys = lse_keys[row];
    // The larger of the two has the weight 1, so that nothing overflows.
    let top = max(keys, sink);
    let of_keys = exp(keys - top);
    let total = of_keys + exp(sink - top);
    o[n] *= of_keys / total;
    if n % values == 0u {
        lse[row] = top + log(total);
    }
}

@group(0) @binding(2) var<storage, read> lse_saved: array<f32>;     // (T, H)
@group(0) @binding(3) var<storage, read_write> delta: array<f32>;   // (T, H), replaced by the terms of d_sink

@compute @workgroup_size(WG)
fn attention_sinks_bwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = flat_group(group, n_groups) * WG + local.x;
    if row < params.n {
        delta[row] *= -exp(sinks[row % params.heads] - lse_saved[row]);
    }
}
