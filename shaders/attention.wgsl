// o[i] = Σ_j p[i,j]·v[j];  p[i,j] = exp(s[i,j] − lse[i]);  s[i,j] = cap(scale·q[i]·k[j]);  lse[i] = log Σ_j exp s[i,j]
// cap(s) = c·tanh(s/c), or s without a cap.                                          FlashAttention-2 (arXiv 2307.08691)
//
// d_v[j] = Σ_i p·d_o[i];   d_s = p·(d_o[i]·v[j] − delta[i]) · cap';   delta[i] = d_o[i]·o[i]
// d_q[i] = scale·Σ_j d_s·k[j];   d_k[j] = scale·Σ_i d_s·q[i];   cap' = 1 − (s/c)²
//
// Query i sees keys of its prefix and of its own segment up to itself; shared/scores has the table of these key ranges. Nothing of size T×T
// exists. An invocation owns one query (forward, d_q) or one key (d_k with d_v) and loops over the rows of the other side. All invocations
// of a workgroup loop together, so addresses of the other side depend on the workgroup alone. No atomics: every sum has one owner.

import package::shared::head_vec4s::{E, keys, load_q, load_kv, load_qkv, load_d_o};
import package::shared::scores::{sees, within, next, capped, cap_slope};

override TILE: u32 = 64u;

const MASKED = -1e30;

@group(0) @binding(4) var<storage, read_write> o: array<f32>;   // (T, H·E)
@group(0) @binding(5) var<storage, read_write> lse: array<f32>; // (T, H)

// One row of a head in private memory, as vec4s, in loops that compilers unroll into registers. Dimensions beyond E are zero.
const VEC4S = (E + 3u) / 4u;

fn store_o(at: u32, vec4_at: u32, value: vec4<f32>) {
    for (var c = 0u; c < 4u; c++) {
        if 4u * vec4_at + c < E {
            o[at + 4u * vec4_at + c] = value[c];
        }
    }
}

@compute @workgroup_size(TILE)
fn attention_fwd(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let head = group.y;
    let i = group.x * TILE + local.x;
    let row = min(i, params.t - 1u);
    let view = segments[row];
    let kv_head = head / (params.heads / params.kv_heads);
    let q_at = params.q_start + row * params.q_stride + head * E;
    var mine: array<vec4<f32>, VEC4S>;
    var acc: array<vec4<f32>, VEC4S>;
    for (var d = 0u; d < VEC4S; d++) {
        mine[d] = load_q(q_at, d);
        acc[d] = vec4<f32>();
    }
    var top = MASKED;
    var total = 0.0;
    let ranges = within(keys(), segments[params.query_tiles + group.x]);
    for (var j = ranges.x; j < ranges.w; j = next(ranges, j, 1u)) {
        let k_at = params.k_start + j * params.kv_stride + kv_head * E;
        var product = 0.0;
        for (var d = 0u; d < VEC4S; d++) {
            product += dot(mine[d], load_kv(k_at, d));
        }
        // No branch: invocations whose query does not see the key add zero.
        let seen = sees(view, j);
        let s = capped(product);
        let now = select(top, max(top, s), seen);
        let shrink = exp(top - now);
        let p = select(0.0, exp(s - now), seen);
        total = total * shrink + p;
        top = now;
        let v_at = params.v_start + j * params.kv_stride + kv_head * E;
        for (var d = 0u; d < VEC4S; d++) {
            acc[d] = acc[d] * shrink + p * load_kv(v_at, d);
        }
    }
    if i >= params.t {
        return;
    }
    let o_at = (i * params.heads + head) * E;
    for (var d = 0u; d < VEC4S; d++) {
        store_o(o_at, d, acc[d] / total);
    }
    lse[i * params.heads + head] = top + log(total);
}

@group(0) @binding(1) var<storage, read> o_saved: array<f32>;
@group(0) @binding(2) var<storage, read> d_o_only: array<f32>;
@group(0) @binding(3) var<storage, read_write> delta_out: array<f32>; // (T, H)

@compute @workgroup_size(TILE)
fn attention_bwd_delta(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let i = group.x * TILE + local.x;
    if i >= params.t {
        return;
    }
    let at = (i * params.heads + group.y) * E;
    var sum = 0.0;
    for (var d = 0u; d < E; d++) {
        sum += o_saved[at + d] * d_o_only[at + d];
    }
    delta_out[i * params.heads + group.y] = sum;
}

@group(0) @binding(6) var<storage, read_write> d_qkv: array<f32>;

fn store_d(at: u32, vec4_at: u32, value: vec4<f32>) {
    for (var c = 0u; c < 4u; c++) {
        if 4u * vec4_at + c < E {
            d_qkv[at + 4u * vec4_at + c] = value[c];
        }
    }
}

@compute @workgroup_size(TILE)
fn attention_bwd_q(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let head = group.y;
    let i = group.x * TILE + local.x;
    let row = min(i, params.t - 1u);
    let view = spans[row];
    let kv_head = head / (params.heads / params.kv_heads);
    let q_at = params.q_start + row * params.q_stride + head * E;
    let o_at = (row * params.heads + head) * E;
    var mine: array<vec4<f32>, VEC4S>;
    var d_o_row: array<vec4<f32>, VEC4S>;
    var acc: array<vec4<f32>, VEC4S>;
    for (var d = 0u; d < VEC4S; d++) {
        mine[d] = load_qkv(q_at, d);
        d_o_row[d] = load_d_o(o_at, d);
        acc[d] = vec4<f32>();
    }
    let row_exponent = lse_saved[row * params.heads + head];
    let even = delta[row * params.heads + head];
    let ranges = within(params.t, spans[params.query_tiles + group.x]);
    for (var j = ranges.x; j < ranges.w; j = next(ranges, j, 1u)) {
        let k_at = params.k_start + j * params.kv_stride + kv_head * E;
        let v_at = params.v_start + j * params.kv_stride + kv_head * E;
        var product = 0.0;
        var d_p = 0.0;
        for (var d = 0u; d < VEC4S; d++) {
            product += dot(mine[d], load_qkv(k_at, d));
            d_p += dot(d_o_row[d], load_qkv(v_at, d));
        }
        let s = capped(product);
        let d_s_unmasked = exp(s - row_exponent) * (d_p - even) * cap_slope(s) * params.scale;
        let d_s = select(0.0, d_s_unmasked, sees(view, j));
        for (var d = 0u; d < VEC4S; d++) {
            acc[d] += d_s * load_qkv(k_at, d);
        }
    }
    if i >= params.t {
        return;
    }
    for (var d = 0u; d < VEC4S; d++) {
        store_d(q_at, d, acc[d]);
    }
}

@compute @workgroup_size(TILE)
fn attention_bwd_kv(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let kv_head = group.y;
    let j = group.x * TILE + local.x;
    let row = min(j, params.t - 1u);
    let ratio = params.heads / params.kv_heads;
    let k_at = params.k_start + row * params.kv_stride + kv_head * E;
    let v_at = params.v_start + row * params.kv_stride + kv_head * E;
    var key: array<vec4<f32>, VEC4S>;
    var value: array<vec4<f32>, VEC4S>;
    var d_key: array<vec4<f32>, VEC4S>;
    var d_value: array<vec4<f32>, VEC4S>;
    for (var d = 0u; d < VEC4S; d++) {
        key[d] = load_qkv(k_at, d);
        value[d] = load_qkv(v_at, d);
        d_key[d] = vec4<f32>();
        d_value[d] = vec4<f32>();
    }
    let ranges = within(params.t, spans[params.key_tiles + group.x]);
    for (var i = ranges.x; i < ranges.w; i = next(ranges, i, 1u)) {
        let seen = j < params.t && sees(spans[i], row);
        for (var g = 0u; g < ratio; g++) {
            let head = kv_head * ratio + g;
            let q_at = params.q_start + i * params.q_stride + head * E;
            let o_at = (i * params.heads + head) * E;
            var product = 0.0;
            var d_p = 0.0;
            for (var d = 0u; d < VEC4S; d++) {
                product += dot(key[d], load_qkv(q_at, d));
                d_p += dot(value[d], load_d_o(o_at, d));
            }
            let s = capped(product);
            let p = select(0.0, exp(s - lse_saved[i * params.heads + head]), seen);
            let slope = (d_p - delta[i * params.heads + head]) * cap_slope(s) * params.scale;
            let d_s = select(0.0, p * slope, seen);
            for (var d = 0u; d < VEC4S; d++) {
                d_key[d] += d_s * load_qkv(q_at, d);
                d_value[d] += p * load_d_o(o_at, d);
            }
        }
    }
    if j >= params.t {
        return;
    }
    for (var d = 0u; d < VEC4S; d++) {
        store_d(k_at, d, d_key[d]);
        store_d(v_at, d, d_value[d]);
    }
}
