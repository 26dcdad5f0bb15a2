// The attention of attention.wgsl for adapters that are CPUs and have subgroups.
//
// A workgroup is one subgroup. A lane owns ROWS queries (forward, d_q) or keys (d_k with d_v), and the other side comes in blocks of 8:
// a lane loads one row of a block and hands it round (shared/lanes). No workgroup memory, no barriers.
//
// What a query gets must not depend on how keys fall into blocks, which depends on the rows that are packed beside it. So the softmax is taken
// to base 2 over a whole level: p = 2^fract(s)·2^(⌊s⌋ − level), s being in units of ln 2. A higher level scales what was summed
// by a power of two, which changes no digit.

import package::shared::head_quads::{E, load_q, load_kv, load_qkv, load_d_o};
import package::shared::lanes::{LANES, spread, spread_words, spread_quads};

override ROWS: u32 = 2u;
override SOFTCAP: bool = false;

struct AttentionParams {
    t: u32,
    heads: u32,
    kv_heads: u32,
    window: u32, // 0: none
    q_start: u32,
    q_stride: u32,
    k_start: u32,
    v_start: u32,
    kv_stride: u32,
    tiles_start: u32,
    scale: f32,
    softcap: f32,
}

const SEGMENT = 8u;
const LOG2_E = 1.4426950408889634;
const LN_2 = 0.6931471805599453;
const LOWEST = -1e30;
const TILE = LANES * ROWS;
const QUADS = (E + 3u) / 4u;

@group(0) @binding(0) var<uniform> params: AttentionParams;
@group(0) @binding(3) var<storage, read> segments: array<u32>;
@group(0) @binding(4) var<storage, read_write> o: array<f32>;   // (T, H·E)
@group(0) @binding(5) var<storage, read_write> lse: array<f32>; // (T, H)

struct View {
    prefix_start: u32,
    prefix_end: u32,
    own_start: u32,
    own_end: u32,
    position: u32,
}

fn sees(view: View, j: u32) -> bool {
    let own = j >= view.own_start && j < view.own_end;
    let prefix = j >= view.prefix_start && j < view.prefix_end;
    // Own keys end with the query itself; a prefix starts at position 0.
    let distance = select(view.position - (j - view.prefix_start), view.own_end - 1u - j, own);
    return (own || prefix) && (params.window == 0u || distance < params.window);
}

fn capped(raw: f32) -> f32 {
    let s = raw * params.scale;
    if SOFTCAP {
        return params.softcap * tanh(clamp(s / params.softcap, -15.0, 15.0));
    }
    return s;
}

fn cap_slope(s: f32) -> f32 {
    if SOFTCAP {
        let ratio = s / params.softcap;
        return 1.0 - ratio * ratio;
    }
    return 1.0;
}

// 2^n for n of -126 .. 0; lower ones are 2^-126.
fn power(n: f32) -> f32 {
    return bitcast<f32>(u32(max(n, -126.0) + 127.0) << 23u);
}

fn view_of(i: u32) -> View {
    let at = i * SEGMENT;
    return View(segments[at], segments[at + 1u], segments[at + 2u], segments[at + 3u], segments[at + 4u]);
}

@compute @workgroup_size(LANES)
fn attention_lanes_fwd(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let head = group.y;
    let first = group.x * TILE + local.x;
    let kv_head = head / (params.heads / params.kv_heads);
    var views: array<View, ROWS>;
    var mine: array<array<vec4<f32>, QUADS>, ROWS>;
    var acc: array<array<vec4<f32>, QUADS>, ROWS>;
    var level: array<f32, ROWS>;
    var total: array<f32, ROWS>;
    for (var q = 0u; q < ROWS; q++) {
        let row = min(first + q * LANES, params.t - 1u);
        views[q] = view_of(row);
        level[q] = LOWEST;
        total[q] = 0.0;
        for (var d = 0u; d < QUADS; d++) {
            mine[q][d] = load_q(params.q_start + row * params.q_stride + head * E, d);
            acc[q][d] = vec4<f32>();
        }
    }
    let bounds = params.tiles_start + group.x * 2u;
    let end = segments[bounds + 1u];
    for (var j = segments[bounds]; j < end; j += LANES) {
        let row = min(j + local.x, end - 1u);
        let k_at = params.k_start + row * params.kv_stride + kv_head * E;
        let v_at = params.v_start + row * params.kv_stride + kv_head * E;
        var s: array<array<f32, LANES>, ROWS>;
        for (var d = 0u; d < QUADS; d++) {
            let keys = spread_quads(load_kv(k_at, d));
            for (var u = 0u; u < LANES; u++) {
                for (var q = 0u; q < ROWS; q++) {
                    s[q][u] += dot(mine[q][d], keys[u]);
                }
            }
        }
        var shrink: array<f32, ROWS>;
        for (var q = 0u; q < ROWS; q++) {
            var top = level[q];
            for (var u = 0u; u < LANES; u++) {
                let seen = j + u < end && sees(views[q], j + u);
                s[q][u] = select(LOWEST, capped(s[q][u]) * LOG2_E, seen);
                top = max(top, ceil(s[q][u]));
            }
            shrink[q] = power(level[q] - top);
            level[q] = top;
            total[q] *= shrink[q];
            for (var u = 0u; u < LANES; u++) {
                let whole = floor(s[q][u]);
                let p = select(exp2(s[q][u] - whole) * power(whole - top), 0.0, s[q][u] == LOWEST);
                s[q][u] = p;
                total[q] += p;
            }
        }
        for (var d = 0u; d < QUADS; d++) {
            let values = spread_quads(load_kv(v_at, d));
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
            for (var d = 0u; d < QUADS; d++) {
                let value = acc[q][d] / total[q];
                for (var c = 0u; c < 4u; c++) {
                    if 4u * d + c < E {
                        o[(i * params.heads + head) * E + 4u * d + c] = value[c];
                    }
                }
            }
            lse[i * params.heads + head] = level[q] * LN_2 + log(total[q]);
        }
    }
}

@group(0) @binding(3) var<storage, read> lse_saved: array<f32>; // (T, H)
@group(0) @binding(4) var<storage, read> delta: array<f32>;     // (T, H)
@group(0) @binding(5) var<storage, read> spans: array<u32>;     // as `segments`
@group(0) @binding(6) var<storage, read_write> d_qkv: array<f32>;

fn span_of(i: u32) -> View {
    let at = i * SEGMENT;
    return View(spans[at], spans[at + 1u], spans[at + 2u], spans[at + 3u], spans[at + 4u]);
}

fn store_d(at: u32, quad: u32, value: vec4<f32>) {
    for (var c = 0u; c < 4u; c++) {
        if 4u * quad + c < E {
            d_qkv[at + 4u * quad + c] = value[c];
        }
    }
}

@compute @workgroup_size(LANES)
fn attention_lanes_bwd_q(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let head = group.y;
    let first = group.x * TILE + local.x;
    let kv_head = head / (params.heads / params.kv_heads);
    var views: array<View, ROWS>;
    var mine: array<array<vec4<f32>, QUADS>, ROWS>;
    var pull: array<array<vec4<f32>, QUADS>, ROWS>;
    var acc: array<array<vec4<f32>, QUADS>, ROWS>;
    var level: array<f32, ROWS>;
    var even: array<f32, ROWS>;
    for (var q = 0u; q < ROWS; q++) {
        let row = min(first + q * LANES, params.t - 1u);
        views[q] = span_of(row);
        level[q] = lse_saved[row * params.heads + head];
        even[q] = delta[row * params.heads + head];
        for (var d = 0u; d < QUADS; d++) {
            mine[q][d] = load_qkv(params.q_start + row * params.q_stride + head * E, d);
            pull[q][d] = load_d_o((row * params.heads + head) * E, d);
            acc[q][d] = vec4<f32>();
        }
    }
    let bounds = params.tiles_start + group.x * 2u;
    let end = spans[bounds + 1u];
    for (var j = spans[bounds]; j < end; j += LANES) {
        let row = min(j + local.x, end - 1u);
        let k_at = params.k_start + row * params.kv_stride + kv_head * E;
        let v_at = params.v_start + row * params.kv_stride + kv_head * E;
        var s: array<array<f32, LANES>, ROWS>;
        var d_p: array<array<f32, LANES>, ROWS>;
        for (var d = 0u; d < QUADS; d++) {
            let keys = spread_quads(load_qkv(k_at, d));
            let values = spread_quads(load_qkv(v_at, d));
            for (var u = 0u; u < LANES; u++) {
                for (var q = 0u; q < ROWS; q++) {
                    s[q][u] += dot(mine[q][d], keys[u]);
                    d_p[q][u] += dot(pull[q][d], values[u]);
                }
            }
        }
        for (var q = 0u; q < ROWS; q++) {
            for (var u = 0u; u < LANES; u++) {
                let seen = j + u < end && sees(views[q], j + u);
                let score = capped(s[q][u]);
                let d_s = exp(score - level[q]) * (d_p[q][u] - even[q]) * cap_slope(score) * params.scale;
                s[q][u] = select(0.0, d_s, seen);
            }
        }
        for (var d = 0u; d < QUADS; d++) {
            let keys = spread_quads(load_qkv(k_at, d));
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
            for (var d = 0u; d < QUADS; d++) {
                store_d(params.q_start + i * params.q_stride + head * E, d, acc[q][d]);
            }
        }
    }
}

// Queries that may see key j are j .. query_end[j]: its segment's rest, and the branches behind a prefix.
@compute @workgroup_size(LANES)
fn attention_lanes_bwd_kv(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let kv_head = group.y;
    let first = group.x * TILE;
    let ratio = params.heads / params.kv_heads;
    var owned: array<u32, ROWS>;
    var key: array<array<vec4<f32>, QUADS>, ROWS>;
    var value: array<array<vec4<f32>, QUADS>, ROWS>;
    var d_key: array<array<vec4<f32>, QUADS>, ROWS>;
    var d_value: array<array<vec4<f32>, QUADS>, ROWS>;
    for (var n = 0u; n < ROWS; n++) {
        owned[n] = first + n * LANES + local.x;
        let at = min(owned[n], params.t - 1u) * params.kv_stride + kv_head * E;
        for (var d = 0u; d < QUADS; d++) {
            key[n][d] = load_qkv(params.k_start + at, d);
            value[n][d] = load_qkv(params.v_start + at, d);
            d_key[n][d] = vec4<f32>();
            d_value[n][d] = vec4<f32>();
        }
    }
    var end = 0u;
    for (var i = first; i < min(first + TILE, params.t); i++) {
        end = max(end, spans[i * SEGMENT + 5u]);
    }
    // Heads outside: the order of a sum must not depend on where blocks begin.
    for (var g = 0u; g < ratio; g++) {
        let head = kv_head * ratio + g;
        for (var i = first; i < end; i += LANES) {
            let row = min(i + local.x, end - 1u);
            let q_at = params.q_start + row * params.q_stride + head * E;
            let o_at = (row * params.heads + head) * E;
            var s: array<array<f32, LANES>, ROWS>;
            var d_p: array<array<f32, LANES>, ROWS>;
            for (var d = 0u; d < QUADS; d++) {
                let queries = spread_quads(load_qkv(q_at, d));
                let pulls = spread_quads(load_d_o(o_at, d));
                for (var u = 0u; u < LANES; u++) {
                    for (var n = 0u; n < ROWS; n++) {
                        s[n][u] += dot(key[n][d], queries[u]);
                        d_p[n][u] += dot(value[n][d], pulls[u]);
                    }
                }
            }
            let mine = span_of(row);
            let prefix_start = spread_words(mine.prefix_start);
            let prefix_end = spread_words(mine.prefix_end);
            let own_start = spread_words(mine.own_start);
            let own_end = spread_words(mine.own_end);
            let position = spread_words(mine.position);
            let level = spread(lse_saved[row * params.heads + head]);
            let even = spread(delta[row * params.heads + head]);
            for (var u = 0u; u < LANES; u++) {
                let view = View(prefix_start[u], prefix_end[u], own_start[u], own_end[u], position[u]);
                for (var n = 0u; n < ROWS; n++) {
                    let seen = owned[n] < params.t && i + u < end && sees(view, owned[n]);
                    let score = capped(s[n][u]);
                    let p = select(0.0, exp(score - level[u]), seen);
                    s[n][u] = select(0.0, p * (d_p[n][u] - even[u]) * cap_slope(score) * params.scale, seen);
                    d_p[n][u] = p;
                }
            }
            for (var d = 0u; d < QUADS; d++) {
                let queries = spread_quads(load_qkv(q_at, d));
                let pulls = spread_quads(load_d_o(o_at, d));
                for (var n = 0u; n < ROWS; n++) {
                    var d_k = d_key[n][d];
                    var d_v = d_value[n][d];
                    for (var u = 0u; u < LANES; u++) {
                        d_k += s[n][u] * queries[u];
                        d_v += d_p[n][u] * pulls[u];
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
            for (var d = 0u; d < QUADS; d++) {
                store_d(params.k_start + at, d, d_key[n][d]);
                store_d(params.v_start + at, d, d_value[n][d]);
            }
        }
    }
}
