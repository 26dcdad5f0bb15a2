// The kernels of logprob.wgsl for GPUs, on tiles of whole vec4s: an invocation has four loads of 16 bytes in flight, and a tile's maximum and
// sum take one pass.

import package::shared::grid::{flat_group};
import package::shared::logits::{BELOW, LogprobParams, SOFTCAP, SQUARES, capped, capped_vec4, max_across, with_tile};
import package::shared::reduce::{WG, sum_across};

const FLIGHT = 4u;
const NOTHING = 2.0 * BELOW; // below any maximum: its exponential is 0

@group(0) @binding(1) var<storage, read> logits: array<vec4<f32>>; // (rows, n)
@group(0) @binding(2) var<storage, read> targets: array<u32>;      // (rows)
@group(0) @binding(3) var<storage, read_write> state: array<vec4<f32>>; // (rows): maximum, sum, z[target], sum of squares

@compute @workgroup_size(WG)
fn logprob_rows_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = flat_group(group, n_groups);
    let vec4s = params.n / 4u;
    let at = min(row, params.rows - 1u) * vec4s;
    var top = BELOW;
    var sum = 0.0;     // Σ exp(z − top)
    var squares = 0.0; // Σ exp(z − top)²
    for (var part = 0u; part < vec4s; part += FLIGHT * WG) {
        var z: array<vec4<f32>, FLIGHT>;
        for (var turn = 0u; turn < FLIGHT; turn++) {
            z[turn] = logits[at + min(part + turn * WG + local.x, vec4s - 1u)];
        }
        var raised = top;
        for (var turn = 0u; turn < FLIGHT; turn++) {
            z[turn] = select(vec4<f32>(NOTHING), capped_vec4(z[turn]), part + turn * WG + local.x < vec4s);
            raised = max(raised, max(max(z[turn].x, z[turn].y), max(z[turn].z, z[turn].w)));
        }
        let lowered = exp(top - raised);
        sum *= lowered;
        if SQUARES {
            squares *= lowered * lowered;
        }
        for (var turn = 0u; turn < FLIGHT; turn++) {
            let terms = exp(z[turn] - raised);
            sum += (terms.x + terms.y) + (terms.z + terms.w);
            if SQUARES {
                squares += dot(terms, terms);
            }
        }
        top = raised;
    }
    let tile_top = max_across(local.x, top);
    let lowered_to_tile = exp(top - tile_top);
    let tile_sum = sum_across(local.x, sum * lowered_to_tile);
    if SQUARES {
        squares = sum_across(local.x, squares * lowered_to_tile * lowered_to_tile);
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
        let column = target_id - params.first;
        s.z = capped(logits[at + column / 4u][column % 4u]);
    }
    state[row] = s;
}

@group(0) @binding(1) var<storage, read> targets_bwd: array<u32>;
@group(0) @binding(2) var<storage, read> lse_saved: array<f32>;
@group(0) @binding(3) var<storage, read> d_logp: array<f32>;               // (rows)
@group(0) @binding(4) var<storage, read_write> d_logits: array<vec4<f32>>; // (rows, n): logits on entry

// A row has as many workgroups as hold its vec4s, FLIGHT per invocation: the Rust side is `bwd_grid`.
@compute @workgroup_size(WG)
fn logprob_rows_bwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let vec4s = params.n / 4u;
    let per_row = (vec4s + FLIGHT * WG - 1u) / (FLIGHT * WG);
    let flat = flat_group(group, n_groups);
    let row = flat / per_row;
    if row >= params.rows {
        return;
    }
    let first = flat % per_row * FLIGHT * WG + local.x;
    let at = row * vec4s;
    let lse = lse_saved[row];
    let weight = d_logp[row];
    let hit = targets_bwd[row] - params.first; // of another tile, beyond n
    var z: array<vec4<f32>, FLIGHT>;
    for (var turn = 0u; turn < FLIGHT; turn++) {
        z[turn] = d_logits[at + min(first + turn * WG, vec4s - 1u)];
    }
    for (var turn = 0u; turn < FLIGHT; turn++) {
        let column = 4u * (first + turn * WG);
        let capped_z = capped_vec4(z[turn]);
        let is_target = vec4<u32>(hit) == column + vec4<u32>(0u, 1u, 2u, 3u);
        var d = weight * (select(vec4<f32>(), vec4<f32>(1.0), is_target) - exp(capped_z - lse));
        if SOFTCAP {
            let ratio = capped_z / params.softcap;
            d *= 1.0 - ratio * ratio;
        }
        if first + turn * WG < vec4s {
            d_logits[at + first + turn * WG] = d;
        }
    }
}
