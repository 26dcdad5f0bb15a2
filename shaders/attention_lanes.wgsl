// The attention of attention.wgsl for CPU adapters with subgroups.
//
// A workgroup is one subgroup. A lane owns ROWS queries (forward, d_q) or keys (d_k with d_v). The other side arrives in blocks of 8: each
// lane loads one row of a block and broadcasts it (shared/lanes). No workgroup memory, no barriers.
//
// A query's result must not depend on how its keys are divided into blocks, because that depends on the rows packed beside it: see
// shared/exponents.

import package::shared::head_vec4s::{E, keys, load_q, load_kv, load_qkv, load_d_o};
import package::shared::scores::{sees, within, part_end, next, capped, cap_slope};
import package::shared::exponents::{LOG2_E, LN_2, LOWEST, pow2};
import package::shared::lanes::{LANES, broadcast_lanes_f32, broadcast_lanes_u32, broadcast_lanes_vec4};

override ROWS: u32 = 2u;

const TILE = LANES * ROWS;
const VEC4S = (E + 3u) / 4u;

@group(0) @binding(4) var<storage, read_write> o: array<f32>;   // (T, H·E)
@group(0) @binding(5) var<storage, read_write> lse: array<f32>; // (T, H)

@compute @workgroup_size(LANES)
fn attention_lanes_fwd(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let head = group.y;
    let first = group.x * TILE + local.x;
    let kv_head = head / (params.heads / params.kv_heads);
    var views: array<vec4<u32>, ROWS>;
    var mine: array<array<vec4<f32>, VEC4S>, ROWS>;
    var acc: array<array<vec4<f32>, VEC4S>, ROWS>;
    var row_exponent: array<f32, ROWS>;
    var total: array<f32, ROWS>;
    for (var q = 0u; q < ROWS; q++) {
        let row = min(first + q * LANES, params.t - 1u);
        views[q] = segments[row];
        row_exponent[q] = LOWEST;
        total[q] = 0.0;
        for (var d = 0u; d < VEC4S; d++) {
            mine[q][d] = load_q(params.q_start + row * params.q_stride + head * E, d);
            acc[q][d] = vec4<f32>();
        }
    }
    let ranges = within(keys(), segments[params.query_tiles + group.x]);
    for (var j = ranges.x; j < ranges.w; j = next(ranges, j, LANES)) {
        let end = part_end(ranges, j);
        let row = min(j + local.x, end - 1u);
        let k_at = params.k_start + row * params.kv_stride + kv_head * E;
        let v_at = params.v_start + row * params.kv_stride + kv_head * E;
        var s: array<array<f32, LANES>, ROWS>;
        for (var d = 0u; d < VEC4S; d++) {
            let keys = broadcast_lanes_vec4(load_kv(k_at, d));
            for (var u = 0u; u < LANES; u++) {
                for (var q = 0u; q < ROWS; q++) {
                    s[q][u] += dot(mine[q][d], keys[u]);
                }
            }
        }
        var shrink: array<f32, ROWS>;
        for (var q = 0u; q < ROWS; q++) {
            var top = row_exponent[q];
            for (var u = 0u; u < LANES; u++) {
                let seen = j + u < end && sees(views[q], j + u);
                s[q][u] = select(LOWEST, capped(s[q][u]) * LOG2_E, seen);
                top = max(top, ceil(s[q][u]));
            }
            shrink[q] = pow2(row_exponent[q] - top);
            row_exponent[q] = top;
            total[q] *= shrink[q];
            for (var u = 0u; u < LANES; u++) {
                let whole = floor(s[q][u]);
                let p = select(exp2(s[q][u] - whole) * pow2(whole - top), 0.0, s[q][u] == LOWEST);
                s[q][u] = p;
                total[q] += p;
            }
        }
        for (var d = 0u; d < VEC4S; d++) {
            let values = broadcast_lanes_vec4(load_kv(v_at, d));
            for (var q = 0u; q < ROWS; q++) {
                var sum = acc[q][d] * shrink[q];
                for (var u = 0u; u < LANES; u++) {
                    sum += s[q][u] * values[u];
                }
                acc[q][d] = sum;
            }
        }
    }
    for (var q = 0u; q < ROWS; q++) {
        let i = first + q * LANES;
        if i < params.t {
            for (var d = 0u; d < VEC4S; d++) {
                let value = acc[q][d] / total[q];
                for (var c = 0u; c < 4u; c++) {
                    if 4u * d + c < E {
                        o[(i * params.heads + head) * E + 4u * d + c] = value[c];
                    }
                }
            }
            lse[i * params.heads + head] = row_exponent[q] * LN_2 + log(total[q]);
        }
    }
}

@group(0) @binding(6) var<storage, read_write> d_qkv: array<f32>;

fn store_d(at: u32, vec4_at: u32, value: vec4<f32>) {
    for (var c = 0u; c < 4u; c++) {
        if 4u * vec4_at + c < E {
            d_qkv[at + 4u * vec4_at + c] = value[c];
        }
    }
}

@compute @workgroup_size(LANES)
fn attention_lanes_bwd_q(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let head = group.y;
    let first = group.x * TILE + local.x;
    let kv_head = head / (params.heads / params.kv_heads);
    var views: array<vec4<u32>, ROWS>;
    var mine: array<array<vec4<f32>, VEC4S>, ROWS>;
    var d_o_row: array<array<vec4<f32>, VEC4S>, ROWS>;
    var acc: array<array<vec4<f32>, VEC4S>, ROWS>;
    var row_exponent: array<f32, ROWS>;
    var even: array<f32, ROWS>;
    for (var q = 0u; q < ROWS; q++) {
        let row = min(first + q * LANES, params.t - 1u);
        views[q] = spans[row];
        row_exponent[q] = lse_saved[row * params.heads + head];
        even[q] = delta[row * params.heads + head];
        for (var d = 0u; d < VEC4S; d++) {
            mine[q][d] = load_qkv(params.q_start + row * params.q_stride + head * E, d);
            d_o_row[q][d] = load_d_o((row * params.heads + head) * E, d);
            acc[q][d] = vec4<f32>();
        }
    }
    let ranges = within(params.t, spans[params.query_tiles + group.x]);
    for (var j = ranges.x; j < ranges.w; j = next(ranges, j, LANES)) {
        let end = part_end(ranges, j);
        let row = min(j + local.x, end - 1u);
        let k_at = params.k_start + row * params.kv_stride + kv_head * E;
        let v_at = params.v_start + row * params.kv_stride + kv_head * E;
        var s: array<array<f32, LANES>, ROWS>;
        var d_p: array<array<f32, LANES>, ROWS>;
        for (var d = 0u; d < VEC4S; d++) {
            let keys = broadcast_lanes_vec4(load_qkv(k_at, d));
            let values = broadcast_lanes_vec4(load_qkv(v_at, d));
            for (var u = 0u; u < LANES; u++) {
                for (var q = 0u; q < ROWS; q++) {
                    s[q][u] += dot(mine[q][d], keys[u]);
                    d_p[q][u] += dot(d_o_row[q][d], values[u]);
                }
            }
        }
        for (var q = 0u; q < ROWS; q++) {
            for (var u = 0u; u < LANES; u++) {
                let seen = j + u < end && sees(views[q], j + u);
                let score = capped(s[q][u]);
                let d_s = exp(score - row_exponent[q]) * (d_p[q][u] - even[q]) * cap_slope(score) * params.scale;
                s[q][u] = select(0.0, d_s, seen);
            }
        }
        for (var d = 0u; d < VEC4S; d++) {
            let keys = broadcast_lanes_vec4(load_qkv(k_at, d));
            for (var q = 0u; q < ROWS; q++) {
                var sum = acc[q][d];
                for (var u = 0u; u < LANES; u++) {
                    sum += s[q][u] * keys[u];
                }
                acc[q][d] = sum;
            }
        }
    }
    for (var q = 0u; q < ROWS; q++) {
        let i = first + q * LANES;
        if i < params.t {
            for (var d = 0u; d < VEC4S; d++) {
                store_d(params.q_start + i * params.q_stride + head * E, d, acc[q][d]);
            }
        }
    }
}

@compute @workgroup_size(LANES)
fn attention_lanes_bwd_kv(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let kv_head = group.y;
    let first = group.x * TILE;
    let ratio = params.heads / params.kv_heads;
    var owned: array<u32, ROWS>;
    var key: array<array<vec4<f32>, VEC4S>, ROWS>;
    var value: array<array<vec4<f32>, VEC4S>, ROWS>;
    var d_key: array<array<vec4<f32>, VEC4S>, ROWS>;
    var d_value: array<array<vec4<f32>, VEC4S>, ROWS>;
    for (var n = 0u; n < ROWS; n++) {
        owned[n] = first + n * LANES + local.x;
        let at = min(owned[n], params.t - 1u) * params.kv_stride + kv_head * E;
        for (var d = 0u; d < VEC4S; d++) {
            key[n][d] = load_qkv(params.k_start + at, d);
            value[n][d] = load_qkv(params.v_start + at, d);
            d_key[n][d] = vec4<f32>();
            d_value[n][d] = vec4<f32>();
        }
    }
    let ranges = within(params.t, spans[params.key_tiles + group.x]);
    // The loop over heads is the outer one, because the order of a sum must not depend on where blocks begin.
    for (var g = 0u; g < ratio; g++) {
        let head = kv_head * ratio + g;
        for (var i = ranges.x; i < ranges.w; i = next(ranges, i, LANES)) {
            let end = part_end(ranges, i);
            let row = min(i + local.x, end - 1u);
            let q_at = params.q_start + row * params.q_stride + head * E;
            let o_at = (row * params.heads + head) * E;
            var s: array<array<f32, LANES>, ROWS>;
            var d_p: array<array<f32, LANES>, ROWS>;
            for (var d = 0u; d < VEC4S; d++) {
                let queries = broadcast_lanes_vec4(load_qkv(q_at, d));
                let d_o_rows = broadcast_lanes_vec4(load_d_o(o_at, d));
                for (var u = 0u; u < LANES; u++) {
                    for (var n = 0u; n < ROWS; n++) {
                        s[n][u] += dot(key[n][d], queries[u]);
                        d_p[n][u] += dot(value[n][d], d_o_rows[u]);
                    }
                }
            }
            let mine = spans[row];
            let prefix_start = broadcast_lanes_u32(mine.x);
            let prefix_end = broadcast_lanes_u32(mine.y);
            let own_start = broadcast_lanes_u32(mine.z);
            let own_end = broadcast_lanes_u32(mine.w);
            let row_exponent = broadcast_lanes_f32(lse_saved[row * params.heads + head]);
            let even = broadcast_lanes_f32(delta[row * params.heads + head]);
            for (var u = 0u; u < LANES; u++) {
                let view = vec4<u32>(prefix_start[u], prefix_end[u], own_start[u], own_end[u]);
                for (var n = 0u; n < ROWS; n++) {
                    let seen = owned[n] < params.t && i + u < end && sees(view, owned[n]);
                    let score = capped(s[n][u]);
                    let p = select(0.0, exp(score - row_exponent[u]), seen);
                    s[n][u] = select(0.0, p * (d_p[n][u] - even[u]) * cap_slope(score) * params.scale, seen);
                    d_p[n][u] = p;
                }
            }
            for (var d = 0u; d < VEC4S; d++) {
                let queries = broadcast_lanes_vec4(load_qkv(q_at, d));
                let d_o_rows = broadcast_lanes_vec4(load_d_o(o_at, d));
                for (var n = 0u; n < ROWS; n++) {
                    var d_k = d_key[n][d];
                    var d_v = d_value[n][d];
                    for (var u = 0u; u < LANES; u++) {
                        d_k += s[n][u] * queries[u];
                        d_v += d_p[n][u] * d_o_rows[u];
                    }
                    d_key[n][d] = d_k;
                    d_value[n][d] = d_v;
                }
            }
        }
    }
    for (var n = 0u; n < ROWS; n++) {
        if owned[n] < params.t {
            let at = owned[n] * params.kv_stride + kv_head * E;
            for (var d = 0u; d < VEC4S; d++) {
                store_d(params.k_start + at, d, d_key[n][d]);
                store_d(params.v_start + at, d, d_value[n][d]);
            }
        }
    }
}
