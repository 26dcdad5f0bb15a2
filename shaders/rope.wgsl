// Rotates the pairs (a, b) of the first 2·half dimensions of each head by the angle position·inverse frequency, in place:
// a' = a·cos − b·sin;  b' = b·cos + a·sin.      Gradients rotate the other way (sign = −1).
// A pair is (x[i], x[i+half]), or with `interleaved` (x[2i], x[2i+1]).
// cos and sin come from a table (rows, half) computed in f64, because f32 loses the angle of large positions. They include the factors of
// YaRN, of LongRoPE and of queries; a row is a position, or with LongRoPE 2·position + (1 in a long sequence).

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
    interleaved: u32,
}

@group(0) @binding(0) var<uniform> params: RopeParams;
@group(0) @binding(1) var<storage, read> rows: array<u32>;         // (T)
@group(0) @binding(2) var<storage, read> turns: array<vec2<f32>>;  // (rows, half): cos, sin
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
    let neighbours = params.interleaved == 1u;
    let first = params.start + t * params.stride + head * params.head_dim + select(i, 2u * i, neighbours);
    let second = first + select(params.half, 1u, neighbours);
    let turn = turns[rows[t] * params.half + i];
    let sine = params.sign * turn.y;
    let a = x[first];
    let b = x[second];
    x[first] = a * turn.x - b * sine;
    x[second] = b * turn.x + a * sine;
}
