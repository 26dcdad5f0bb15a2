// One token of the gated delta rule per sequence, with states in a cache (rows, Hv, dk, dv):
//   S <- e^g S;  S <- S + k (β (v − Sᵀk))ᵀ;  o = Sᵀq
//
// A workgroup owns a sequence, a value head and 4·X columns of values; Y lanes share the rows of a column.
// delta_rule_resize copies heads into wider or narrower ones: sizes that are not whole vec4s are padded with zeros.

import package::shared::grid::{flat_group};

override DK: u32 = 128u;
override DV: u32 = 128u; // multiples of 4

const X = 8u;
const Y = 8u;
const WG = X * Y;
const DV4 = DV / 4u;
const TILES = (DV4 + X - 1u) / X;

struct DeltaStepParams {
    first_group: vec2<u32>, // first workgroup of this dispatch: long grids are split (src/gpu/submission_budget.rs)
    key_heads: u32,
    value_heads: u32,
}

@group(0) @binding(0) var<uniform> params: DeltaStepParams;
@group(0) @binding(1) var<storage, read> rows: array<u32>;           // (sequences), rows of the cache
@group(0) @binding(2) var<storage, read> qkv: array<f32>;            // (sequences, 2·Hk·dk + Hv·dv)
@group(0) @binding(3) var<storage, read> gates: array<f32>;          // (sequences, 2·Hv): β, g
@group(0) @binding(4) var<storage, read_write> cache: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> o: array<vec4<f32>>;  // (sequences, Hv·dv)

var<workgroup> k_sums: array<vec4<f32>, WG>;
var<workgroup> q_sums: array<vec4<f32>, WG>;
var<workgroup> qk_sums: array<f32, WG>;

// Workgroups: along x sequences and columns, along y value heads.
@compute @workgroup_size(WG)
fn delta_rule_step(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let sequence = group.x / TILES;
    let head = group.y;
    let lane = local.x;
    let own = group.x % TILES * X + lane % X;
    let column = min(own, DV4 - 1u);
    let stride = 2u * params.key_heads * DK + params.value_heads * DV;
    let q_at = sequence * stride + head / (params.value_heads / params.key_heads) * DK;
    let k_at = q_at + params.key_heads * DK;
    let v_at = sequence * stride + 2u * params.key_heads * DK + head * DV + 4u * column;
    let state = (rows[sequence] * params.value_heads + head) * DK * DV4 + column;
    var k_sum = vec4<f32>();
    var q_sum = vec4<f32>();
    var qk_sum = 0.0;
    for (var d = lane / X; d < DK; d += Y) {
        let s = cache[state + d * DV4];
        let k = qkv[k_at + d];
        let q = qkv[q_at + d];
        k_sum += k * s;
        q_sum += q * s;
        qk_sum += q * k;
    }
    k_sums[lane] = k_sum;
    q_sums[lane] = q_sum;
    qk_sums[lane] = qk_sum;
    for (var half = Y / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half * X {
            k_sums[lane] += k_sums[lane + half * X];
            q_sums[lane] += q_sums[lane + half * X];
            qk_sums[lane] += qk_sums[lane + half * X];
        }
    }
    workgroupBarrier();
    if own >= DV4 {
        return;
    }
    let gate = sequence * 2u * params.value_heads + head;
    let fade = exp(min(gates[gate + params.value_heads], 0.0));
    let v = vec4<f32>(qkv[v_at], qkv[v_at + 1u], qkv[v_at + 2u], qkv[v_at + 3u]);
    let u = gates[gate] * (v - fade * k_sums[lane % X]);
    for (var d = lane / X; d < DK; d += Y) {
        cache[state + d * DV4] = fade * cache[state + d * DV4] + qkv[k_at + d] * u;
    }
    if lane < X {
        o[(sequence * params.value_heads + head) * DV4 + column] = fade * q_sums[lane] + qk_sums[lane] * u;
    }
}

struct DeltaResizeParams {
    n: u32,         // elements of y
    key_heads: u32, // of q and k together; 0 where there are only value heads
    value_heads: u32,
    key_from: u32, // elements per head of x, and of y
    key_to: u32,
    value_from: u32,
    value_to: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> resize: DeltaResizeParams;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn delta_rule_resize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n >= resize.n {
        return;
    }
    let keys_to = resize.key_heads * resize.key_to;
    let stride = keys_to + resize.value_heads * resize.value_to;
    let column = n % stride;
    let token = n / stride * (resize.key_heads * resize.key_from + resize.value_heads * resize.value_from);
    var source = column / max(resize.key_to, 1u) * resize.key_from + column % max(resize.key_to, 1u);
    var inside = column % max(resize.key_to, 1u) < resize.key_from;
    if column >= keys_to {
        let i = column - keys_to;
        source = resize.key_heads * resize.key_from + i / resize.value_to * resize.value_from + i % resize.value_to;
        inside = i % resize.value_to < resize.value_from;
    }
    y[n] = select(0.0, x[token + select(0u, source, inside)], inside);
}
