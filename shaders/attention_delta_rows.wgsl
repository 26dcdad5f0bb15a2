// delta[r] = d_o[r]·o[r] for the (T·H) rows of o and d_o, which lie one behind the other: attention.wgsl's attention_bwd_delta for GPUs, where
// rows are whole vec4s. Loads of 16 bytes, all of an invocation's at once; neighbouring invocations load neighbouring vec4s.

import package::shared::grid::{flat_group};
import package::shared::row_vec4s::{KEPT, PART, ROWS_PER_WORKGROUP, VEC4S, WG, has_vec4, lane_in_row, loaded_vec4, row_of_lane, sum_across_row};

struct DeltaParams {
    rows: u32,
}

@group(0) @binding(0) var<uniform> params: DeltaParams;
@group(0) @binding(1) var<storage, read> o: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> d_o: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> delta: array<f32>;

@compute @workgroup_size(WG)
fn attention_delta_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let lane = local.x;
    let row = flat_group(group, n_groups) * ROWS_PER_WORKGROUP + row_of_lane(lane);
    let start = min(row, params.rows - 1u) * VEC4S;
    var outputs: array<vec4<f32>, KEPT>;
    var pulls: array<vec4<f32>, KEPT>;
    var sum = 0.0;
    for (var part = 0u; part < VEC4S; part += PART) {
        for (var turn = 0u; turn < KEPT; turn++) {
            outputs[turn] = o[start + loaded_vec4(lane, part, turn)];
        }
        for (var turn = 0u; turn < KEPT; turn++) {
            pulls[turn] = d_o[start + loaded_vec4(lane, part, turn)];
        }
        for (var turn = 0u; turn < KEPT; turn++) {
            sum += select(0.0, dot(outputs[turn], pulls[turn]), has_vec4(lane, part, turn));
        }
    }
    sum = sum_across_row(lane, sum);
    if row < params.rows && lane_in_row(lane) == 0u {
        delta[row] = sum;
    }
}
