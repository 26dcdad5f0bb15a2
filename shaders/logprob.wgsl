// logp[r] = z[target] − lse;   lse = log Σ_v exp z[v];   z = cap(logits[r, :]),  cap(l) = c·tanh(l/c) or l
// log_squares[r] = log Σ_v p[v]²,   p[v] = exp(z[v] − lse)
// d_logits[r,v] = d_logp[r]·([v = target] − exp(z[v] − lse))·cap';   cap' = 1 − (z/c)²
//
// The LM head is computed in tiles of the vocabulary: matmul fills `logits` (rows, n) for columns first .. first + n, and logprob_tile
// folds them into a running maximum and sum. Logits of T×V never exist. The backward pass recomputes each tile and turns it into its
// gradient in place.

import package::shared::grid::{flat_group};
import package::shared::logits::{BELOW, LogprobParams, SOFTCAP, SQUARES, capped, max_across, with_tile};
import package::shared::reduce::{WG, sum_across};

@group(0) @binding(1) var<storage, read> logits: array<f32>;  // (rows, n)
@group(0) @binding(2) var<storage, read> targets: array<u32>; // (rows)
@group(0) @binding(3) var<storage, read_write> state: array<vec4<f32>>; // (rows): maximum, sum, z[target], sum of squares

@compute @workgroup_size(WG)
fn logprob_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = flat_group(group, n_groups);
    let at = min(row, params.rows - 1u) * params.n;
    var top = BELOW;
    for (var v = local.x; v < params.n; v += WG) {
        top = max(top, capped(logits[at + v]));
    }
    let tile_top = max_across(local.x, top);
    var sum = 0.0;
    var squares = 0.0;
    for (var v = local.x; v < params.n; v += WG) {
        let term = exp(capped(logits[at + v]) - tile_top);
        sum += term;
        if SQUARES {
            squares += term * term;
        }
    }
    let tile_sum = sum_across(local.x, sum);
    if SQUARES {
        squares = sum_across(local.x, squares);
    }
    if local.x != 0u || row >= params.rows {
        return;
    }
    var s = vec4<f32>(BELOW, 0.0, 0.0, 0.0);
    if params.first > 0u {
        s = state[row];
    }
    s = with_tile(s, tile_top, tile_sum, squares);
    let target_id = targets[row];
    if target_id >= params.first && target_id - params.first < params.n {
        s.z = capped(logits[at + target_id - params.first]);
    }
    state[row] = s;
}

@group(0) @binding(1) var<storage, read> state_done: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> logp: array<f32>; // (rows)
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;  // (rows)

@compute @workgroup_size(WG)
fn logprob_finish(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = flat_group(group, n_groups) * WG + local.x;
    if row >= params.rows {
        return;
    }
    let s = state_done[row];
    // The maximum is subtracted from both first, because z and lse are large and only their difference counts.
    logp[row] = (s.z - s.x) - log(s.y);
    lse[row] = s.x + log(s.y);
}

@group(0) @binding(2) var<storage, read_write> log_squares: array<f32>; // (rows)

@compute @workgroup_size(WG)
fn logprob_squares(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = flat_group(group, n_groups) * WG + local.x;
    if row >= params.rows {
        return;
    }
    let s = state_done[row];
    log_squares[row] = log(s.w) - 2.0 * log(s.y);
}

@group(0) @binding(1) var<storage, read> targets_bwd: array<u32>;
@group(0) @binding(2) var<storage, read> lse_saved: array<f32>;
@group(0) @binding(3) var<storage, read> d_logp: array<f32>;             // (rows)
@group(0) @binding(4) var<storage, read_write> d_logits: array<f32>; // (rows, n): logits on entry

@compute @workgroup_size(WG)
fn logprob_bwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let i = flat_group(group, n_groups) * WG + local.x;
    if i >= params.rows * params.n {
        return;
    }
    let row = i / params.n;
    let z = capped(d_logits[i]);
    let hit = select(0.0, 1.0, params.first + i % params.n == targets_bwd[row]);
    var d = d_logp[row] * (hit - exp(z - lse_saved[row]));
    if SOFTCAP {
        let ratio = z / params.softcap;
        d *= 1.0 - ratio * ratio;
    }
    d_logits[i] = d;
}
