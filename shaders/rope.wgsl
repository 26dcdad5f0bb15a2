// Rotates the pairs (i, i + half) of the first 2·half dimensions of each head by the angle position·inverse frequency, in place:
// x'[i] = x[i]·cos − x[i+half]·sin;  x'[i+half] = x[i+half]·cos + x[i]·sin.      Gradients rotate the other way (sign = −1).
// cos and sin come from a table (positions, half) computed in f64, because f32 loses the angle of large positions.

import package::shared::grid::{flat_group};

override WG: u32 = 64u;

struct RopeParams {
    n: u32, // T × heads × half
    heads: u32,
    head_dim: u32,
    half: u32,
    start: u32,
    stride: u32,
    sign: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: RopeParams;
@group(0) @binding(1) var<storage, read> positions: array<u32>;    // (T)
@group(0) @binding(2) var<storage, read> turns: array<vec2<f32>>;  // (positions, half): cos, sin
@group(0) @binding(3) var<storage, read_write> x: array<f32>;      // (T, stride), heads side by side from start

@compute @workgroup_size(WG)
fn rope(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n >= params.n {
        return;
    }
    let i = n % params.half;
    let head = n / params.half % params.heads;
    let t = n / params.half / params.heads;
    let at = params.start + t * params.stride + head * params.head_dim + i;
    let turn = turns[positions[t] * params.half + i];
    let sine = params.sign * turn.y;
    let a = x[at];
    let b = x[at + params.half];
    x[at] = a * turn.x - b * sine;
    x[at + params.half] = b * turn.x + a * sine;
}
