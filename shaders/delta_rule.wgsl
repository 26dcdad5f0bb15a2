// Gated delta rule in chunks (arXiv 2412.06464), per value head, which uses key head floor(h / (Hv/Hk)); S is (dk, dv):
//   S <- e^g S;  S <- S + k (β (v − Sᵀk))ᵀ;  o = Sᵀq
// Within a chunk whose state before is S0, with G the cumulative sum of g:
//   A[i,j] = e^(G_i − G_j) k_i·k_j (j < i);  P[i,j] = e^(G_i − G_j) q_i·k_j (j ≤ i);  M = (1 + A·diag β)⁻¹
//   r = M (v − e^G K S0);  u = β r;  o = e^G Q S0 + P u;  S = e^(G_C) S0 + Σ_j e^(G_C − G_j) k_j u_jᵀ
// Backward, with dS the gradient of the chunk's last state:
//   z = Pᵀ d_o + e^(G_C − G) K dS;  y = Mᵀ β z;  d_v = y;  d_β = y·r / β
//   dP = e^(G_i − G_j) d_o_i·u_j (j ≤ i);  dA = −e^(G_i − G_j) y_i·u_j (j < i)
//   d_q = e^G d_o S0ᵀ + dP K;  d_k = −e^G y S0ᵀ + e^(G_C − G) u dSᵀ + dPᵀ Q + dA K + dAᵀ K
//   d_g[i] = Σ_{j ≥ i} (d_o_j·o_j − y_j·v_j) + <S, dS>;  d_S0 = e^(G_C) dS + Σ_i e^(G_i) (q_i d_o_iᵀ − k_i y_iᵀ)
// Exponents are never positive, because g is not. These kernels run over all chunks at once; delta_rule_scan.wgsl goes from chunk to chunk.
// No atomics: every sum has one owner.

import package::shared::delta_rule::{C, DK, DK4, DV4, NONE, R, RV, WG, X, Y, beta, chunk_at, decay_at, decay_between};
import package::shared::delta_rule::{decay_from_start, dk_vec4s, dv_vec4s, head_vec4, k_vec4, key_head, lane_x};
import package::shared::delta_rule::{lane_y, log_decay, q_vec4, square_vec4, state_vec4, v_vec4};

@group(0) @binding(2) var<storage, read> gates: array<f32>;            // (T, 2·Hv): β, g
@group(0) @binding(3) var<storage, read_write> decay_out: array<f32>;  // (T, 3·Hv): see `decay_at`

// One invocation per chunk and head.
@compute @workgroup_size(WG)
fn delta_rule_decay(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let n = (params.first_group.x + in_part.x) * WG + local.x;
    if n >= params.chunks * params.value_heads {
        return;
    }
    let chunk = chunk_at(n / params.value_heads);
    let head = n % params.value_heads;
    var coarse = 0.0;
    var fine = 0.0;
    for (var i = 0u; i < chunk.len; i++) {
        let gate = (chunk.start + i) * 2u * params.value_heads + head;
        let at = decay_at(chunk.start + i, head);
        let g = max(gates[gate + params.value_heads], -4000.0); // sums of a chunk are below 2¹⁸, and multiples of 1/64 exact
        let rounded = round(64.0 * g) / 64.0;
        coarse += rounded;
        fine += g - rounded;
        decay_out[at] = gates[gate];
        decay_out[at + params.value_heads] = coarse;
        decay_out[at + 2u * params.value_heads] = fine;
    }
}

const TILES = (C + 4u * X - 1u) / (4u * X);      // workgroups along the columns of a matrix (C, C)
const DK_TILES = (DK4 + X - 1u) / X;             // of keys
const DV_TILES = (DV4 + X - 1u) / X;             // of values

@group(0) @binding(2) var<storage, read> qkv: array<vec4<f32>>; // (T, stride)
@group(0) @binding(4) var<storage, read_write> scores_out: array<vec4<f32>>; // (2, chunks, Hv, C, C): P, A

// Returns e^(G_row − G_column) for four columns.
fn decay_vec4(start: u32, len: u32, row: u32, column: u32, head: u32) -> vec4<f32> {
    let g = log_decay(start, len, row, head);
    return vec4<f32>(
        decay_between(g, log_decay(start, len, column, head)),
        decay_between(g, log_decay(start, len, column + 1u, head)),
        decay_between(g, log_decay(start, len, column + 2u, head)),
        decay_between(g, log_decay(start, len, column + 3u, head)),
    );
}

// Stores four columns of P and A, or of their gradients, with decay and mask.
fn store_scores(start: u32, len: u32, to: u32, row: u32, column: u32, head: u32, p: vec4<f32>, a: vec4<f32>) {
    let decays = decay_vec4(start, len, row, column, head);
    let columns = column + vec4<u32>(0u, 1u, 2u, 3u);
    let rows = vec4<u32>(row);
    let inside = vec4<bool>(row < len);
    let at = to + row * (C / 4u) + column / 4u;
    scores_out[at] = select(vec4<f32>(), p * decays, inside & (columns <= rows));
    scores_out[at + params.chunks * params.value_heads * (C * C / 4u)] =
        select(vec4<f32>(), a * decays, inside & (columns < rows));
}

// Workgroups: along x chunks and columns, along y value heads.
@compute @workgroup_size(WG)
fn delta_rule_scores(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let chunk = chunk_at(group.x / TILES);
    let head = group.y;
    let key = key_head(head);
    let column = 4u * (group.x % TILES * X + lane_x(local.x));
    let to = square_vec4(group.x / TILES, head);
    let last = chunk.len - 1u;
    let k0 = k_vec4(chunk.start + min(column, last), key);
    let k1 = k_vec4(chunk.start + min(column + 1u, last), key);
    let k2 = k_vec4(chunk.start + min(column + 2u, last), key);
    let k3 = k_vec4(chunk.start + min(column + 3u, last), key);
    let q_to_k = params.key_heads * DK4;
    for (var row = lane_y(local.x) * R; row < C; row += Y * R) {
        var p: array<vec4<f32>, R>;
        var a: array<vec4<f32>, R>;
        var rows: array<u32, R>;
        for (var r = 0u; r < R; r++) {
            p[r] = vec4<f32>();
            a[r] = vec4<f32>();
            rows[r] = q_vec4(chunk.start + min(row + r, last), key);
        }
        // Blocks above the diagonal, and behind the last token, stay zero.
        let is_used = row + R > group.x % TILES * X * 4u && row < chunk.len;
        for (var d = 0u; d < select(0u, dk_vec4s(), is_used); d++) {
            let b0 = qkv[k0 + d];
            let b1 = qkv[k1 + d];
            let b2 = qkv[k2 + d];
            let b3 = qkv[k3 + d];
            for (var r = 0u; r < R; r++) {
                let q = qkv[rows[r] + d];
                let k = qkv[rows[r] + q_to_k + d];
                p[r] += vec4<f32>(dot(q, b0), dot(q, b1), dot(q, b2), dot(q, b3));
                a[r] += vec4<f32>(dot(k, b0), dot(k, b1), dot(k, b2), dot(k, b3));
            }
        }
        for (var r = 0u; r < R; r++) {
            store_scores(chunk.start, chunk.len, to, row + r, column, head, p[r], a[r]);
        }
    }
}

@group(0) @binding(2) var<storage, read> scores_of_solve: array<f32>;
@group(0) @binding(4) var<storage, read_write> solve_out: array<f32>; // (chunks, Hv, C, C): M

const SOLVE_WG = 256u;
const LEVELS = 6u; // log2 C
const TURNS = 4u; // elements per invocation of the widest step: C·C/4 / SOLVE_WG
// Strictly lower triangle of A·diag β, row after row, which becomes that of its inverse.
var<workgroup> triangle: array<f32, 2016>;

fn triangle_at(row: u32, column: u32) -> u32 {
    return row * (row - 1u) / 2u + column;
}

// Row and column of a step's n-th element. Step `level` inverts blocks on the diagonal of twice the size s = 2^level; the element is below both
// halves' inverses.
fn element_of_step(n: u32, level: u32) -> vec2<u32> {
    let s = 1u << level;
    let block = (n >> (2u * level)) << (level + 1u);
    return vec2<u32>(block + s + ((n & (s * s - 1u)) >> level), block + (n & (s - 1u)));
}

// Inverts 1 + A·diag β: the inverse of (1+a, 0; b, 1+c) is (a', 0; −c' b a', c'), with a' and c' the inverses of 1+a and 1+c.
@compute @workgroup_size(SOLVE_WG)
fn delta_rule_solve(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let chunk = chunk_at(group.x);
    let head = group.y;
    let lane = local.x;
    let source = 4u * square_vec4(params.chunks + group.x, head);
    for (var n = lane; n < C * C; n += SOLVE_WG) {
        let column = n % C;
        if column < n / C {
            triangle[triangle_at(n / C, column)] = scores_of_solve[source + n] * beta(chunk.start, chunk.len, column, head);
        }
    }
    let levels = min(LEVELS, LEVELS * params.chunks); // LEVELS, which compilers must not unroll
    for (var level = 0u; level < levels; level++) {
        let n_elements = (C / 2u) << level;
        workgroupBarrier();
        var kept: array<f32, TURNS>;
        for (var turn = 0u; turn < TURNS; turn++) {
            kept[turn] = 0.0;
            let n = lane + turn * SOLVE_WG;
            if n < n_elements {
                let at = element_of_step(n, level);
                let end = ((at.y >> level) + 1u) << level;
                var sum = triangle[triangle_at(at.x, at.y)];
                for (var m = at.y + 1u; m < end; m++) {
                    sum += triangle[triangle_at(at.x, m)] * triangle[triangle_at(m, at.y)];
                }
                kept[turn] = sum;
            }
        }
        workgroupBarrier();
        for (var turn = 0u; turn < TURNS; turn++) {
            let n = lane + turn * SOLVE_WG;
            if n < n_elements {
                let at = element_of_step(n, level);
                triangle[triangle_at(at.x, at.y)] = kept[turn];
            }
        }
        workgroupBarrier();
        for (var turn = 0u; turn < TURNS; turn++) {
            let n = lane + turn * SOLVE_WG;
            if n < n_elements {
                let at = element_of_step(n, level);
                var sum = kept[turn];
                for (var m = (at.x >> level) << level; m < at.x; m++) {
                    sum += triangle[triangle_at(at.x, m)] * triangle[triangle_at(m, at.y)];
                }
                kept[turn] = -sum;
            }
        }
        workgroupBarrier();
        for (var turn = 0u; turn < TURNS; turn++) {
            let n = lane + turn * SOLVE_WG;
            if n < n_elements {
                let at = element_of_step(n, level);
                triangle[triangle_at(at.x, at.y)] = kept[turn];
            }
        }
    }
    workgroupBarrier();
    let to = 4u * square_vec4(group.x, head);
    for (var n = lane; n < C * C; n += SOLVE_WG) {
        let row = n / C;
        let column = n % C;
        var value = select(0.0, 1.0, row == column);
        if column < row {
            value = triangle[triangle_at(row, column)];
        }
        solve_out[to + n] = value;
    }
}

@group(0) @binding(4) var<storage, read> scores: array<vec4<f32>>; // (2, chunks, Hv, C, C): P, A, or dP, dA
@group(0) @binding(5) var<storage, read> values: array<vec4<f32>>; // (2, T, Hv·dv): r; y, in the backward pass
@group(0) @binding(6) var<storage, read> states: array<vec4<f32>>; // (slots, Hv, dk, dv)
@group(0) @binding(7) var<storage, read_write> o: array<vec4<f32>>; // (T, Hv·dv)

// Workgroups: along x chunks and columns of values, along y value heads.
@compute @workgroup_size(WG)
fn delta_rule_out(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let index = group.x / DV_TILES;
    let chunk = chunk_at(index);
    let head = group.y;
    let key = key_head(head);
    let own = group.x % DV_TILES * X + lane_x(local.x);
    let column = min(own, DV4 - 1u);
    let last = chunk.len - 1u;
    let state = state_vec4(select(chunk.before, 0u, chunk.before == NONE), head) + column;
    let score = square_vec4(index, head);
    for (var row = lane_y(local.x) * R; row < chunk.len; row += Y * R) {
        var acc: array<vec4<f32>, R>;
        var rows: array<u32, R>;
        for (var r = 0u; r < R; r++) {
            acc[r] = vec4<f32>();
            rows[r] = q_vec4(chunk.start + min(row + r, last), key);
        }
        for (var d = 0u; d < select(dk_vec4s(), 0u, chunk.before == NONE); d++) {
            let b0 = states[state + 4u * d * DV4];
            let b1 = states[state + (4u * d + 1u) * DV4];
            let b2 = states[state + (4u * d + 2u) * DV4];
            let b3 = states[state + (4u * d + 3u) * DV4];
            for (var r = 0u; r < R; r++) {
                let q = qkv[rows[r] + d];
                acc[r] += q.x * b0 + q.y * b1 + q.z * b2 + q.w * b3;
            }
        }
        for (var r = 0u; r < R; r++) {
            acc[r] *= decay_from_start(chunk.start, chunk.len, row + r, head);
            rows[r] = score + (row + r) * (C / 4u);
        }
        for (var j = 0u; j < (min(row + R, chunk.len) + 3u) / 4u; j++) {
            let at = 4u * j;
            let b0 = beta(chunk.start, chunk.len, at, head) * values[head_vec4(chunk.start + min(at, last), head) + column];
            let b1 = beta(chunk.start, chunk.len, at + 1u, head) * values[head_vec4(chunk.start + min(at + 1u, last), head) + column];
            let b2 = beta(chunk.start, chunk.len, at + 2u, head) * values[head_vec4(chunk.start + min(at + 2u, last), head) + column];
            let b3 = beta(chunk.start, chunk.len, at + 3u, head) * values[head_vec4(chunk.start + min(at + 3u, last), head) + column];
            for (var r = 0u; r < R; r++) {
                let p = scores[rows[r] + j];
                acc[r] += p.x * b0 + p.y * b1 + p.z * b2 + p.w * b3;
            }
        }
        for (var r = 0u; r < R; r++) {
            if row + r < chunk.len && own < DV4 {
                o[head_vec4(chunk.start + row + r, head) + column] = acc[r];
            }
        }
    }
}

@group(0) @binding(2) var<storage, read> d_o: array<vec4<f32>>; // (T, Hv·dv)
@group(0) @binding(3) var<storage, read> scores_of_u: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> values_out: array<vec4<f32>>;

// Computes Pᵀ d_o, which delta_rule_scan_bwd adds to, into y. Workgroups are those of delta_rule_out.
@compute @workgroup_size(WG)
fn delta_rule_bwd_u(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let index = group.x / DV_TILES;
    let chunk = chunk_at(index);
    let head = group.y;
    let own = group.x % DV_TILES * X + lane_x(local.x);
    let column = min(own, DV4 - 1u);
    let score = square_vec4(index, head);
    for (var row = lane_y(local.x) * R; row < chunk.len; row += Y * R) {
        var acc: array<vec4<f32>, R>;
        for (var r = 0u; r < R; r++) {
            acc[r] = vec4<f32>();
        }
        for (var i = row; i < chunk.len; i++) {
            let b = d_o[head_vec4(chunk.start + i, head) + column];
            for (var part = 0u; part < RV; part++) {
                let p = scores_of_u[score + i * (C / 4u) + row / 4u + part];
                acc[4u * part] += p.x * b;
                acc[4u * part + 1u] += p.y * b;
                acc[4u * part + 2u] += p.z * b;
                acc[4u * part + 3u] += p.w * b;
            }
        }
        for (var r = 0u; r < R; r++) {
            if row + r < chunk.len && own < DV4 {
                values_out[params.y_start + head_vec4(chunk.start + row + r, head) + column] = acc[r];
            }
        }
    }
}

// Computes dP and dA. Workgroups are those of delta_rule_scores.
@compute @workgroup_size(WG)
fn delta_rule_bwd_scores(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let chunk = chunk_at(group.x / TILES);
    let head = group.y;
    let column = 4u * (group.x % TILES * X + lane_x(local.x));
    let to = square_vec4(group.x / TILES, head);
    let last = chunk.len - 1u;
    let u0 = head_vec4(chunk.start + min(column, last), head);
    let u1 = head_vec4(chunk.start + min(column + 1u, last), head);
    let u2 = head_vec4(chunk.start + min(column + 2u, last), head);
    let u3 = head_vec4(chunk.start + min(column + 3u, last), head);
    let betas = vec4<f32>(
        beta(chunk.start, chunk.len, column, head),
        beta(chunk.start, chunk.len, column + 1u, head),
        beta(chunk.start, chunk.len, column + 2u, head),
        beta(chunk.start, chunk.len, column + 3u, head),
    );
    for (var row = lane_y(local.x) * R; row < C; row += Y * R) {
        var p: array<vec4<f32>, R>;
        var a: array<vec4<f32>, R>;
        var rows: array<u32, R>;
        for (var r = 0u; r < R; r++) {
            p[r] = vec4<f32>();
            a[r] = vec4<f32>();
            rows[r] = head_vec4(chunk.start + min(row + r, last), head);
        }
        let is_used = row + R > group.x % TILES * X * 4u && row < chunk.len;
        for (var d = 0u; d < select(0u, dv_vec4s(), is_used); d++) {
            let b0 = values[u0 + d];
            let b1 = values[u1 + d];
            let b2 = values[u2 + d];
            let b3 = values[u3 + d];
            for (var r = 0u; r < R; r++) {
                let pull = d_o[rows[r] + d];
                let y = values[params.y_start + rows[r] + d];
                p[r] += vec4<f32>(dot(pull, b0), dot(pull, b1), dot(pull, b2), dot(pull, b3));
                a[r] -= vec4<f32>(dot(y, b0), dot(y, b1), dot(y, b2), dot(y, b3));
            }
        }
        for (var r = 0u; r < R; r++) {
            store_scores(chunk.start, chunk.len, to, row + r, column, head, p[r] * betas, a[r] * betas);
        }
    }
}

@group(0) @binding(5) var<storage, read> d_o_of_q: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> d_qkv_of_q: array<vec4<f32>>; // (T, stride)

// Workgroups: along x chunks and columns of keys, along y key heads, whose value heads are added up in order.
@compute @workgroup_size(WG)
fn delta_rule_bwd_q(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let index = group.x / DK_TILES;
    let chunk = chunk_at(index);
    let key = group.y;
    let own = group.x % DK_TILES * X + lane_x(local.x);
    let column = min(own, DK4 - 1u);
    let last = chunk.len - 1u;
    let heads = params.value_heads / params.key_heads;
    for (var row = lane_y(local.x) * R; row < chunk.len; row += Y * R) {
        var acc: array<vec4<f32>, R>;
        for (var r = 0u; r < R; r++) {
            acc[r] = vec4<f32>();
        }
        for (var head = key * heads; head < (key + 1u) * heads; head++) {
            if chunk.before != NONE {
                var sum: array<vec4<f32>, R>;
                var rows: array<u32, R>;
                for (var r = 0u; r < R; r++) {
                    sum[r] = vec4<f32>();
                    rows[r] = head_vec4(chunk.start + min(row + r, last), head);
                }
                let state = state_vec4(chunk.before, head) + 4u * column * DV4;
                for (var d = 0u; d < dv_vec4s(); d++) {
                    let b0 = states[state + d];
                    let b1 = states[state + DV4 + d];
                    let b2 = states[state + 2u * DV4 + d];
                    let b3 = states[state + 3u * DV4 + d];
                    for (var r = 0u; r < R; r++) {
                        let pull = d_o_of_q[rows[r] + d];
                        sum[r] += vec4<f32>(dot(pull, b0), dot(pull, b1), dot(pull, b2), dot(pull, b3));
                    }
                }
                for (var r = 0u; r < R; r++) {
                    acc[r] += decay_from_start(chunk.start, chunk.len, row + r, head) * sum[r];
                }
            }
            let score = square_vec4(index, head) + row * (C / 4u);
            for (var j = 0u; j < (min(row + R, chunk.len) + 3u) / 4u; j++) {
                let b0 = qkv[k_vec4(chunk.start + min(4u * j, last), key) + column];
                let b1 = qkv[k_vec4(chunk.start + min(4u * j + 1u, last), key) + column];
                let b2 = qkv[k_vec4(chunk.start + min(4u * j + 2u, last), key) + column];
                let b3 = qkv[k_vec4(chunk.start + min(4u * j + 3u, last), key) + column];
                for (var r = 0u; r < R; r++) {
                    let p = scores[score + r * (C / 4u) + j];
                    acc[r] += p.x * b0 + p.y * b1 + p.z * b2 + p.w * b3;
                }
            }
        }
        for (var r = 0u; r < R; r++) {
            if row + r < chunk.len && own < DK4 {
                d_qkv_of_q[q_vec4(chunk.start + row + r, key) + column] = acc[r];
            }
        }
    }
}

@group(0) @binding(7) var<storage, read> d_states: array<vec4<f32>>; // (slots, Hv, dk, dv)
@group(0) @binding(8) var<storage, read_write> d_qkv: array<vec4<f32>>; // (T, stride)

// Workgroups are those of delta_rule_bwd_q.
@compute @workgroup_size(WG)
fn delta_rule_bwd_k(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let index = group.x / DK_TILES;
    let chunk = chunk_at(index);
    let key = group.y;
    let own = group.x % DK_TILES * X + lane_x(local.x);
    let column = min(own, DK4 - 1u);
    let last = chunk.len - 1u;
    let heads = params.value_heads / params.key_heads;
    for (var row = lane_y(local.x) * R; row < chunk.len; row += Y * R) {
        var acc: array<vec4<f32>, R>;
        for (var r = 0u; r < R; r++) {
            acc[r] = vec4<f32>();
        }
        for (var head = key * heads; head < (key + 1u) * heads; head++) {
            var sum: array<vec4<f32>, R>;
            var rows: array<u32, R>;
            for (var r = 0u; r < R; r++) {
                sum[r] = vec4<f32>();
                rows[r] = head_vec4(chunk.start + min(row + r, last), head);
            }
            if chunk.before != NONE {
                let state = state_vec4(chunk.before, head) + 4u * column * DV4;
                for (var d = 0u; d < dv_vec4s(); d++) {
                    let b0 = states[state + d];
                    let b1 = states[state + DV4 + d];
                    let b2 = states[state + 2u * DV4 + d];
                    let b3 = states[state + 3u * DV4 + d];
                    for (var r = 0u; r < R; r++) {
                        let y = values[params.y_start + rows[r] + d];
                        sum[r] += vec4<f32>(dot(y, b0), dot(y, b1), dot(y, b2), dot(y, b3));
                    }
                }
            }
            for (var r = 0u; r < R; r++) {
                acc[r] -= decay_from_start(chunk.start, chunk.len, row + r, head) * sum[r];
                sum[r] = vec4<f32>();
            }
            if chunk.after != NONE {
                let state = state_vec4(chunk.after, head) + 4u * column * DV4;
                for (var d = 0u; d < dv_vec4s(); d++) {
                    let b0 = d_states[state + d];
                    let b1 = d_states[state + DV4 + d];
                    let b2 = d_states[state + 2u * DV4 + d];
                    let b3 = d_states[state + 3u * DV4 + d];
                    for (var r = 0u; r < R; r++) {
                        let v = values[rows[r] + d];
                        sum[r] += vec4<f32>(dot(v, b0), dot(v, b1), dot(v, b2), dot(v, b3));
                    }
                }
            }
            let end = log_decay(chunk.start, chunk.len, last, head);
            for (var r = 0u; r < R; r++) {
                let fade = decay_between(end, log_decay(chunk.start, chunk.len, row + r, head));
                acc[r] += beta(chunk.start, chunk.len, row + r, head) * fade * sum[r];
            }
            let score = square_vec4(index, head);
            let to_a = params.chunks * params.value_heads * (C * C / 4u);
            for (var i = row; i < chunk.len; i++) {
                let q = qkv[q_vec4(chunk.start + i, key) + column];
                let k = qkv[k_vec4(chunk.start + i, key) + column];
                for (var part = 0u; part < RV; part++) {
                    let at = score + i * (C / 4u) + row / 4u + part;
                    let p = scores[at];
                    let a = scores[at + to_a];
                    acc[4u * part] += p.x * q + a.x * k;
                    acc[4u * part + 1u] += p.y * q + a.y * k;
                    acc[4u * part + 2u] += p.z * q + a.z * k;
                    acc[4u * part + 3u] += p.w * q + a.w * k;
                }
            }
            for (var j = 0u; j < (min(row + R, chunk.len) + 3u) / 4u; j++) {
                let b0 = qkv[k_vec4(chunk.start + min(4u * j, last), key) + column];
                let b1 = qkv[k_vec4(chunk.start + min(4u * j + 1u, last), key) + column];
                let b2 = qkv[k_vec4(chunk.start + min(4u * j + 2u, last), key) + column];
                let b3 = qkv[k_vec4(chunk.start + min(4u * j + 3u, last), key) + column];
                for (var r = 0u; r < R; r++) {
                    let a = scores[score + to_a + (row + r) * (C / 4u) + j];
                    acc[r] += a.x * b0 + a.y * b1 + a.z * b2 + a.w * b3;
                }
            }
        }
        for (var r = 0u; r < R; r++) {
            if row + r < chunk.len && own < DK4 {
                d_qkv[k_vec4(chunk.start + row + r, key) + column] = acc[r];
            }
        }
    }
}

@group(0) @binding(1) var<storage, read> d_o_of_v: array<vec4<f32>>; // (T, Hv·dv)
@group(0) @binding(4) var<storage, read> o_saved: array<vec4<f32>>;  // (T, Hv·dv)
@group(0) @binding(6) var<storage, read_write> d_qkv_of_v: array<vec4<f32>>; // (T, stride)
@group(0) @binding(7) var<storage, read_write> d_gates_of_v: array<f32>;     // (T, 2·Hv): d_β, and d_o·o − y·v

// Computes d_β and d_v, and the terms of d_g. One invocation per token and value head.
@compute @workgroup_size(WG)
fn delta_rule_bwd_v(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let n = (params.first_group.x + in_part.x) * WG + local.x;
    if n >= params.t * params.value_heads {
        return;
    }
    let token = n / params.value_heads;
    let head = n % params.value_heads;
    let at = head_vec4(token, head);
    let v_at = v_vec4(token, head);
    var d_beta = 0.0;
    var d_log = 0.0;
    for (var d = 0u; d < dv_vec4s(); d++) {
        let y = values[params.y_start + at + d];
        d_beta += dot(y, values[at + d]);
        d_log += dot(d_o_of_v[at + d], o_saved[at + d]) - dot(y, qkv[v_at + d]);
        d_qkv_of_v[v_at + d] = y;
    }
    let gate = token * 2u * params.value_heads + head;
    d_gates_of_v[gate] = d_beta / max(decay[decay_at(token, head)], 1e-37); // y has the factor β
    d_gates_of_v[gate + params.value_heads] = d_log;
}

@group(0) @binding(2) var<storage, read> states_of_sum: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> d_states_of_sum: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> d_gates: array<f32>; // (T, 2·Hv)

var<workgroup> terms: array<f32, C>;
var<workgroup> products: array<f32, C>;

// Adds up the terms of d_g. One workgroup per chunk and value head.
@compute @workgroup_size(C)
fn delta_rule_bwd_g(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let chunk = chunk_at(group.x);
    let head = group.y;
    let lane = local.x;
    var product = 0.0;
    if chunk.after != NONE {
        let state = state_vec4(chunk.after, head);
        for (var i = lane; i < DK * dv_vec4s(); i += C) {
            product += dot(states_of_sum[state + i], d_states_of_sum[state + i]);
        }
    }
    let at = (2u * (chunk.start + min(lane, chunk.len - 1u)) + 1u) * params.value_heads + head;
    terms[lane] = select(0.0, d_gates[at], lane < chunk.len);
    products[lane] = product;
    for (var half = C / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            products[lane] += products[lane + half];
        }
    }
    workgroupBarrier();
    if lane >= chunk.len {
        return;
    }
    var sum = products[0];
    for (var i = C; i > lane; i--) {
        sum += terms[i - 1u];
    }
    d_gates[at] = sum;
}
