// The kernels of rmsnorm.wgsl for GPUs, where rows are whole, aligned vec4s: loads of 16 bytes, all of an invocation's at once. A row of at
// most 4096 values stays in registers for its second pass.

import package::shared::column_blocks::{BLOCK, COLUMNS, FLIGHT, INVOCATIONS, ROWS, sum_across_rows};
import package::shared::grid::{flat_group};
import package::shared::rmsnorm_params::{RmsnormParams};
import package::shared::row_vec4s::{KEPT, PART, ROWS_PER_WORKGROUP, VEC4S, WG, has_vec4, lane_in_row, loaded_vec4, row_of_lane, sum_across_row};

override GROUPS: u32 = 1u; // as in the parameters: by a constant, the division is cheap

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> r_out: array<f32>; // (rows)
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

// First vec4s of a row.
fn x_row(row: u32) -> u32 {
    return (params.x_start + row / GROUPS * params.x_stride) / 4u + row % GROUPS * VEC4S;
}

fn y_row(row: u32) -> u32 {
    return (params.y_start + row / GROUPS * params.y_stride) / 4u + row % GROUPS * VEC4S;
}

@compute @workgroup_size(WG)
fn rmsnorm_rows_fwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let lane = local.x;
    let row = flat_group(group, n_groups) * ROWS_PER_WORKGROUP + row_of_lane(lane);
    let last = min(row, params.rows - 1u);
    let x0 = x_row(last);
    var values: array<vec4<f32>, KEPT>;
    var weights: array<vec4<f32>, KEPT>;
    var squares = 0.0;
    for (var part = 0u; part < VEC4S; part += PART) {
        for (var turn = 0u; turn < KEPT; turn++) {
            values[turn] = x[x0 + loaded_vec4(lane, part, turn)];
        }
        for (var turn = 0u; turn < KEPT; turn++) {
            weights[turn] = w[loaded_vec4(lane, part, turn)];
        }
        for (var turn = 0u; turn < KEPT; turn++) {
            squares += select(0.0, dot(values[turn], values[turn]), has_vec4(lane, part, turn));
            values[turn] *= weights[turn] + params.offset;
        }
    }
    let r = inverseSqrt(sum_across_row(lane, squares) / f32(params.width) + params.eps);
    if row >= params.rows {
        return;
    }
    let y0 = y_row(row);
    for (var part = 0u; part < VEC4S; part += PART) {
        if PART < VEC4S {
            for (var turn = 0u; turn < KEPT; turn++) {
                values[turn] = x[x0 + loaded_vec4(lane, part, turn)];
            }
            for (var turn = 0u; turn < KEPT; turn++) {
                values[turn] *= w[loaded_vec4(lane, part, turn)] + params.offset;
            }
        }
        for (var turn = 0u; turn < KEPT; turn++) {
            if has_vec4(lane, part, turn) {
                y[y0 + loaded_vec4(lane, part, turn)] = values[turn] * r;
            }
        }
    }
    if lane_in_row(lane) == 0u {
        r_out[row] = r;
    }
}

@group(0) @binding(3) var<storage, read> r_saved: array<f32>;
@group(0) @binding(4) var<storage, read> d_y: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> d_x: array<vec4<f32>>;

// Loads a part of a row's x, and of g = d_y·(w + offset), all at once.
fn load_for_bwd_x(
    lane: u32,
    part: u32,
    x0: u32,
    y0: u32,
    values: ptr<function, array<vec4<f32>, KEPT>>,
    scaled: ptr<function, array<vec4<f32>, KEPT>>,
) {
    var weights: array<vec4<f32>, KEPT>;
    for (var turn = 0u; turn < KEPT; turn++) {
        (*scaled)[turn] = d_y[y0 + loaded_vec4(lane, part, turn)];
    }
    for (var turn = 0u; turn < KEPT; turn++) {
        weights[turn] = w[loaded_vec4(lane, part, turn)];
    }
    for (var turn = 0u; turn < KEPT; turn++) {
        (*values)[turn] = x[x0 + loaded_vec4(lane, part, turn)];
    }
    for (var turn = 0u; turn < KEPT; turn++) {
        (*scaled)[turn] *= weights[turn] + params.offset;
    }
}

@compute @workgroup_size(WG)
fn rmsnorm_rows_bwd_x(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let lane = local.x;
    let row = flat_group(group, n_groups) * ROWS_PER_WORKGROUP + row_of_lane(lane);
    let last = min(row, params.rows - 1u);
    let x0 = x_row(last);
    let y0 = y_row(last);
    let r = r_saved[last];
    var values: array<vec4<f32>, KEPT>;
    var scaled: array<vec4<f32>, KEPT>; // g
    var along = 0.0;
    for (var part = 0u; part < VEC4S; part += PART) {
        load_for_bwd_x(lane, part, x0, y0, &values, &scaled);
        for (var turn = 0u; turn < KEPT; turn++) {
            along += select(0.0, dot(scaled[turn], values[turn]), has_vec4(lane, part, turn));
        }
    }
    let pull = sum_across_row(lane, along) * r * r * r / f32(params.width);
    if row >= params.rows {
        return;
    }
    for (var part = 0u; part < VEC4S; part += PART) {
        if PART < VEC4S {
            load_for_bwd_x(lane, part, x0, y0, &values, &scaled);
        }
        for (var turn = 0u; turn < KEPT; turn++) {
            values[turn] = r * scaled[turn] - values[turn] * pull;
        }
        if params.accumulate == 1u {
            for (var turn = 0u; turn < KEPT; turn++) {
                values[turn] += d_x[x0 + loaded_vec4(lane, part, turn)];
            }
        }
        for (var turn = 0u; turn < KEPT; turn++) {
            if has_vec4(lane, part, turn) {
                d_x[x0 + loaded_vec4(lane, part, turn)] = values[turn];
            }
        }
    }
}

@group(0) @binding(2) var<storage, read> r_rows: array<f32>;
@group(0) @binding(3) var<storage, read> d_y_rows: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> d_w_partial: array<vec4<f32>>; // (blocks, width): column_sum adds them up

// Workgroups: along x columns, along y blocks of rows.
@compute @workgroup_size(INVOCATIONS)
fn rmsnorm_rows_bwd_w(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let lane = local.x;
    let column = group.x * COLUMNS + lane % COLUMNS;
    let i = min(column, VEC4S - 1u);
    let first = group.y * BLOCK + lane / COLUMNS;
    var values: array<vec4<f32>, FLIGHT>;
    var d_ys: array<vec4<f32>, FLIGHT>;
    var rs: array<f32, FLIGHT>;
    for (var turn = 0u; turn < FLIGHT; turn++) {
        let row = min(first + turn * ROWS, params.rows - 1u);
        values[turn] = x[x_row(row) + i];
        d_ys[turn] = d_y_rows[y_row(row) + i];
        rs[turn] = r_rows[row];
    }
    var sum = vec4<f32>();
    for (var turn = 0u; turn < FLIGHT; turn++) {
        let term = d_ys[turn] * values[turn] * rs[turn];
        sum += select(vec4<f32>(), term, first + turn * ROWS < params.rows);
    }
    sum = sum_across_rows(lane, sum);
    if lane < COLUMNS && column < VEC4S {
        d_w_partial[group.y * VEC4S + column] = sum;
    }
}
