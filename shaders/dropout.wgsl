// y[n] = m[n]·x[n]/(1 − p), or added to y: dropout of a linear layer's input before its low-rank addition. m[n] is 0 with probability p,
// else 1. Element i = first + n is kept where word i mod 2 of Philox((⌊i/2⌋, stream), key) is at least p·2³². The mask needs no memory: the
// backward pass, which is the same product, draws it again.

import package::shared::grid::{flat_group};
import package::shared::philox::{philox2x32};

override WG: u32 = 64u;

struct DropoutParams {
    n: u32,          // elements
    first: u32,      // number of the first element; even
    stream: u32,     // with key: the layer, the step and the micro-batch
    key: u32,
    threshold: u32,  // p·2³²
    scale: f32,      // 1/(1 − p)
    accumulate: u32, // 1: add to y
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: DropoutParams;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

fn store(n: u32, word: u32) {
    if n < params.n {
        let value = select(0.0, x[n] * params.scale, word >= params.threshold);
        if params.accumulate == 1u {
            y[n] += value;
        } else {
            y[n] = value;
        }
    }
}

@compute @workgroup_size(WG)
fn dropout(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let pair = flat_group(group, n_groups) * WG + local.x;
    let words = philox2x32(vec2<u32>(params.first / 2u + pair, params.stream), params.key);
    store(2u * pair, words.x);
    store(2u * pair + 1u, words.y);
}
