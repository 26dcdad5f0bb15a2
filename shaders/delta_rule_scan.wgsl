// The parts of delta_rule.wgsl that go from chunk to chunk. A workgroup owns a chain (the chunks of a segment), a value head, and 4·X
// columns of values. It writes only these columns, so workgroups do not depend on each other.

import package::shared::delta_rule::{C, DK, DK4, DV4, NONE, R, RV, WG, X, Y, beta, chain_at, chunk_at, decay_between};
import package::shared::delta_rule::{decay_from_start, dk_vec4s, head_vec4, k_vec4, key_head, lane_x, lane_y};
import package::shared::delta_rule::{log_decay, q_vec4, square_vec4, state_vec4, v_vec4};

const DV_TILES = (DV4 + X - 1u) / X;

@group(0) @binding(2) var<storage, read> qkv: array<vec4<f32>>;   // (T, stride)
@group(0) @binding(4) var<storage, read> solve: array<vec4<f32>>; // (chunks, Hv, C, C): M
@group(0) @binding(5) var<storage, read_write> values: array<vec4<f32>>; // (T, Hv·dv): r; then, in the backward pass, (T, Hv·dv): y
@group(0) @binding(6) var<storage, read_write> states: array<vec4<f32>>; // (slots, Hv, dk, dv)

// Computes r and the states behind chunks. Workgroups: along x chains and columns, along y value heads.
@compute @workgroup_size(WG)
fn delta_rule_scan_fwd(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let chain = chain_at(group.x / DV_TILES);
    let head = group.y;
    let key = key_head(head);
    let own = group.x % DV_TILES * X + lane_x(local.x);
    let column = min(own, DV4 - 1u);
    let first_row = lane_y(local.x) * R;
    for (var n = 0u; n < chain.y; n++) {
        let index = chain.x + n;
        let chunk = chunk_at(index);
        let last = chunk.len - 1u;
        let before = state_vec4(select(chunk.before, 0u, chunk.before == NONE), head) + column;
        // v − e^G K S0
        for (var row = first_row; row < chunk.len; row += Y * R) {
            var acc: array<vec4<f32>, R>;
            var rows: array<u32, R>;
            for (var r = 0u; r < R; r++) {
                acc[r] = vec4<f32>();
                rows[r] = k_vec4(chunk.start + min(row + r, last), key);
            }
            for (var d = 0u; d < select(dk_vec4s(), 0u, chunk.before == NONE); d++) {
                let b0 = states[before + 4u * d * DV4];
                let b1 = states[before + (4u * d + 1u) * DV4];
                let b2 = states[before + (4u * d + 2u) * DV4];
                let b3 = states[before + (4u * d + 3u) * DV4];
                for (var r = 0u; r < R; r++) {
                    let k = qkv[rows[r] + d];
                    acc[r] += k.x * b0 + k.y * b1 + k.z * b2 + k.w * b3;
                }
            }
            for (var r = 0u; r < R; r++) {
                if row + r < chunk.len && own < DV4 {
                    let token = chunk.start + row + r;
                    let fade = decay_from_start(chunk.start, chunk.len, row + r, head);
                    values[head_vec4(token, head) + column] = qkv[v_vec4(token, head) + column] - fade * acc[r];
                }
            }
        }
        storageBarrier();
        // r = M of that, in place: a row needs only itself and those above it, so blocks of rows go from the last to the first.
        for (var end = (chunk.len + Y * R - 1u) / (Y * R) * (Y * R); end > 0u; end -= Y * R) {
            let row = end - Y * R + first_row;
            var acc: array<vec4<f32>, R>;
            for (var r = 0u; r < R; r++) {
                acc[r] = vec4<f32>();
            }
            let source = square_vec4(index, head) + row * (C / 4u);
            for (var j = 0u; j < (min(row + R, chunk.len) + 3u) / 4u; j++) {
                let b0 = values[head_vec4(chunk.start + min(4u * j, last), head) + column];
                let b1 = values[head_vec4(chunk.start + min(4u * j + 1u, last), head) + column];
                let b2 = values[head_vec4(chunk.start + min(4u * j + 2u, last), head) + column];
                let b3 = values[head_vec4(chunk.start + min(4u * j + 3u, last), head) + column];
                for (var r = 0u; r < R; r++) {
                    let m = solve[source + r * (C / 4u) + j];
                    acc[r] += m.x * b0 + m.y * b1 + m.z * b2 + m.w * b3;
                }
            }
            storageBarrier();
            for (var r = 0u; r < R; r++) {
                if row + r < chunk.len && own < DV4 {
                    values[head_vec4(chunk.start + row + r, head) + column] = acc[r];
                }
            }
        }
        storageBarrier();
        if chunk.after != NONE && params.single == 0u {
            let end_of_decay = log_decay(chunk.start, chunk.len, last, head);
            let fade_of_state = decay_from_start(chunk.start, chunk.len, last, head);
            let after = state_vec4(chunk.after, head) + column;
            for (var row = first_row; row < DK; row += Y * R) {
                var acc: array<vec4<f32>, R>;
                for (var r = 0u; r < R; r++) {
                    acc[r] = vec4<f32>();
                    if chunk.before != NONE {
                        acc[r] = fade_of_state * states[before + min(row + r, DK - 1u) * DV4];
                    }
                }
                for (var j = 0u; j < chunk.len; j++) {
                    let fade = decay_between(end_of_decay, log_decay(chunk.start, chunk.len, j, head));
                    let b = beta(chunk.start, chunk.len, j, head) * fade * values[head_vec4(chunk.start + j, head) + column];
                    for (var part = 0u; part < RV; part++) {
                        let k = qkv[k_vec4(chunk.start + j, key) + min(row / 4u + part, DK4 - 1u)];
                        acc[4u * part] += k.x * b;
                        acc[4u * part + 1u] += k.y * b;
                        acc[4u * part + 2u] += k.z * b;
                        acc[4u * part + 3u] += k.w * b;
                    }
                }
                for (var r = 0u; r < R; r++) {
                    if row + r < DK && own < DV4 {
                        states[after + (row + r) * DV4] = acc[r];
                    }
                }
            }
        }
        storageBarrier();
    }
}

@group(0) @binding(6) var<storage, read> d_o: array<vec4<f32>>; // (T, Hv·dv)
@group(0) @binding(7) var<storage, read_write> d_states: array<vec4<f32>>; // (slots, Hv, dk, dv)

// Computes y, from Pᵀ d_o in its place, and the gradients of the states before chunks. Workgroups are those of the forward pass.
@compute @workgroup_size(WG)
fn delta_rule_scan_bwd(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let chain = chain_at(group.x / DV_TILES);
    let head = group.y;
    let key = key_head(head);
    let own = group.x % DV_TILES * X + lane_x(local.x);
    let column = min(own, DV4 - 1u);
    let first_row = lane_y(local.x) * R;
    let y = params.y_start + column;
    for (var n = chain.y; n > 0u; n--) {
        let index = chain.x + n - 1u;
        let chunk = chunk_at(index);
        let last = chunk.len - 1u;
        let end_of_decay = log_decay(chunk.start, chunk.len, last, head);
        let after = state_vec4(select(chunk.after, 0u, chunk.after == NONE), head) + column;
        // β z
        for (var row = first_row; row < chunk.len; row += Y * R) {
            var acc: array<vec4<f32>, R>;
            var rows: array<u32, R>;
            for (var r = 0u; r < R; r++) {
                acc[r] = vec4<f32>();
                rows[r] = k_vec4(chunk.start + min(row + r, last), key);
            }
            for (var d = 0u; d < select(dk_vec4s(), 0u, chunk.after == NONE); d++) {
                let b0 = d_states[after + 4u * d * DV4];
                let b1 = d_states[after + (4u * d + 1u) * DV4];
                let b2 = d_states[after + (4u * d + 2u) * DV4];
                let b3 = d_states[after + (4u * d + 3u) * DV4];
                for (var r = 0u; r < R; r++) {
                    let k = qkv[rows[r] + d];
                    acc[r] += k.x * b0 + k.y * b1 + k.z * b2 + k.w * b3;
                }
            }
            for (var r = 0u; r < R; r++) {
                if row + r < chunk.len && own < DV4 {
                    let at = y + head_vec4(chunk.start + row + r, head);
                    let fade = decay_between(end_of_decay, log_decay(chunk.start, chunk.len, row + r, head));
                    values[at] = beta(chunk.start, chunk.len, row + r, head) * (values[at] + fade * acc[r]);
                }
            }
        }
        storageBarrier();
        // y = Mᵀ of that, in place: a row needs only itself and those below it, so blocks of rows go from the first to the last.
        for (var begin = 0u; begin < chunk.len; begin += Y * R) {
            let row = begin + first_row;
            var acc: array<vec4<f32>, R>;
            for (var r = 0u; r < R; r++) {
                acc[r] = vec4<f32>();
            }
            for (var i = row; i < chunk.len; i++) {
                let b = values[y + head_vec4(chunk.start + i, head)];
                for (var part = 0u; part < RV; part++) {
                    let m = solve[square_vec4(index, head) + i * (C / 4u) + row / 4u + part];
                    acc[4u * part] += m.x * b;
                    acc[4u * part + 1u] += m.y * b;
                    acc[4u * part + 2u] += m.z * b;
                    acc[4u * part + 3u] += m.w * b;
                }
            }
            storageBarrier();
            for (var r = 0u; r < R; r++) {
                if row + r < chunk.len && own < DV4 {
                    values[y + head_vec4(chunk.start + row + r, head)] = acc[r];
                }
            }
        }
        storageBarrier();
        if chunk.before != NONE {
            let before = state_vec4(chunk.d_before, head) + column;
            let fade_of_state = decay_from_start(chunk.start, chunk.len, last, head);
            for (var row = first_row; row < DK; row += Y * R) {
                var acc: array<vec4<f32>, R>;
                for (var r = 0u; r < R; r++) {
                    acc[r] = vec4<f32>();
                    if chunk.after != NONE {
                        acc[r] = fade_of_state * d_states[after + min(row + r, DK - 1u) * DV4];
                    }
                }
                for (var i = 0u; i < chunk.len; i++) {
                    let fade = decay_from_start(chunk.start, chunk.len, i, head);
                    let at = head_vec4(chunk.start + i, head);
                    let b_q = fade * d_o[at + column];
                    let b_k = fade * values[y + at];
                    for (var part = 0u; part < RV; part++) {
                        let vec4_at = min(row / 4u + part, DK4 - 1u);
                        let q = qkv[q_vec4(chunk.start + i, key) + vec4_at];
                        let k = qkv[k_vec4(chunk.start + i, key) + vec4_at];
                        acc[4u * part] += q.x * b_q - k.x * b_k;
                        acc[4u * part + 1u] += q.y * b_q - k.y * b_k;
                        acc[4u * part + 2u] += q.z * b_q - k.z * b_k;
                        acc[4u * part + 3u] += q.w * b_q - k.w * b_k;
                    }
                }
                for (var r = 0u; r < R; r++) {
                    if row + r < DK && own < DV4 {
                        d_states[before + (row + r) * DV4] = acc[r];
                    }
                }
            }
        }
        storageBarrier();
    }
}

@group(0) @binding(2) var<storage, read_write> d_states_of_branches: array<vec4<f32>>;

// Adds to a slot of state gradients those of a prefix's other branches, in order: (slot, first other slot, number of other slots) of the
// table. Workgroups: along x a state's vec4s, along y sums.
@compute @workgroup_size(WG)
fn delta_rule_branches(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let size = params.value_heads * DK * DV4;
    let i = group.x * WG + local.x;
    if i >= size {
        return;
    }
    let words = table[params.first + group.y];
    var sum = d_states_of_branches[words.x * size + i];
    for (var n = 0u; n < min(words.z, params.t); n++) {
        sum += d_states_of_branches[(words.y + n) * size + i];
    }
    d_states_of_branches[words.x * size + i] = sum;
}
