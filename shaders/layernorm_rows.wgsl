// The kernels of layernorm.wgsl for GPUs, where rows are whole vec4s: loads of 16 bytes, all of an invocation's at once. A row of at most
// 4096 values stays in registers for its later passes.

import package::shared::column_blocks::{BLOCK, COLUMNS, FLIGHT, INVOCATIONS, ROWS, sum_across_rows};
import package::shared::grid::{flat_group};
import package::shared::layernorm_params::{LayernormParams};
import package::shared::row_vec4s::{KEPT, PART, ROWS_PER_WORKGROUP, VEC4S, WG, has_vec4, lane_in_row, loaded_vec4, row_of_lane, sum_across_row, sum_of_vec4};

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> stats: array<vec2<f32>>; // (rows): mean, r
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(WG)
fn layernorm_rows_fwd(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let lane = local.x;
    let row = flat_group(group, n_groups) * ROWS_PER_WORKGROUP + row_of_lane(lane);
    let x0 = min(row, params.rows - 1u) * VEC4S;
    var values: array<vec4<f32>, KEPT>;
    var sum = 0.0;
    for (var part = 0u; part < VEC4S; part += PART) {
        for (var turn = 0u; turn < KEPT; turn++) {
            values[turn] = x[x0 + loaded_vec4(lane, part, turn)];
        }
        for (var turn = 0u; turn < KEPT; turn++) {
            sum += select(0.0, sum_of_vec4(values[turn]), has_vec4(lane, part, turn));
        }
    }
    let mean = sum_across_row(lane, sum) / f32(params.width);
    var squares = 0.0;
    for (var part = 0u; part < VEC4S; part += PART) {
        if PART < VEC4S {
            for (var turn = 0u; turn < KEPT; turn++) {
                values[turn] = x[x0 + loaded_vec4(lane, part, turn)];
            }
        }
        for (var turn = 0u; turn < KEPT; turn++) {
            let away = values[turn] - mean;
            squares += select(0.0, dot(away, away), has_vec4(lane, part, turn));
        }
    }
    let r = inverseSqrt(sum_across_row(lane, squares) / f32(params.width) + params.eps);
    if row >= params.rows {
        return;
    }
    for (var part = 0u; part < VEC4S; part += PART) {
        if PART < VEC4S {
            for (var turn = 0u; turn < KEPT; turn++) {
                values[turn] = x[x0 + loaded_vec4(lane, part, turn)];
            }
        }
        var weights: array<vec4<f32>, KEPT>;
        var biases: array<vec4<f32>, KEPT>;
        for (var turn = 0u; turn < KEPT; turn++) {
            weights[turn] = w[loaded_vec4(lane, part, turn)];
            biases[turn] = b[loaded_vec4(lane, part, turn)];
        }
        for (var turn = 0u; turn < KEPT; turn++) {
            values[turn] = (values[turn] - mean) * r * (weights[turn] + params.offset) + biases[turn];
        }
        for (var turn = 0u; turn < KEPT; turn++) {
            if has_vec4(lane, part, turn) {
                y[x0 + loaded_vec4(lane, part, turn)] = values[turn];
            }
        }
    }
    if lane_in_row(lane) == 0u {
        stats[row] = vec2<f32>(mean, r);
    }
}

@group(0) @binding(3) var<storage, read> stats_saved: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read> d_y: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> d_x: array<vec4<f32>>;

// Loads a part of a row's h = (x − mean)·r, and of g = d_y·(w + offset), all at once; `s` is mean and r.
fn load_for_bwd_x(
    lane: u32,
    part: u32,
    x0: u32,
    s: vec2<f32>,
    values: ptr<function, array<vec4<f32>, KEPT>>,
    scaled: ptr<function, array<vec4<f32>, KEPT>>,
) {
    var weights: array<vec4<f32>, KEPT>;
    for (var turn = 0u; turn < KEPT; turn++) {
        (*scaled)[turn] = d_y[x0 + loaded_vec4(lane, part, turn)];
    }
    for (var turn = 0u; turn < KEPT; turn++) {
        weights[turn] = w[loaded_vec4(lane, part, turn)];
    }
    for (var turn = 0u; turn < KEPT; turn++) {
        (*values)[turn] = x[x0 + loaded_vec4(lane, part, turn)];
    }
    for (var turn = 0u; turn < KEPT; turn++) {
        (*scaled)[turn] *= weights[turn] + params.offset;
        (*values)[turn] = ((*values)[turn] - s.x) * s.y;
    }
}

@compute @workgroup_size(WG)
fn layernorm_rows_bwd_x(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let lane = local.x;
    let row = flat_group(group, n_groups) * ROWS_PER_WORKGROUP + row_of_lane(lane);
    let last = min(row, params.rows - 1u);
    let x0 = last * VEC4S;
    let s = stats_saved[last];
    var values: array<vec4<f32>, KEPT>; // h, then d_x
    var scaled: array<vec4<f32>, KEPT>; // g
    var even = 0.0;
    var along = 0.0;
    for (var part = 0u; part < VEC4S; part += PART) {
        load_for_bwd_x(lane, part, x0, s, &values, &scaled);
        for (var turn = 0u; turn < KEPT; turn++) {
            even += select(0.0, sum_of_vec4(scaled[turn]), has_vec4(lane, part, turn));
            along += select(0.0, dot(scaled[turn], values[turn]), has_vec4(lane, part, turn));
        }
    }
    let mean_g = sum_across_row(lane, even) / f32(params.width);
    let mean_gh = sum_across_row(lane, along) / f32(params.width);
    if row >= params.rows {
        return;
    }
    for (var part = 0u; part < VEC4S; part += PART) {
        if PART < VEC4S {
            load_for_bwd_x(lane, part, x0, s, &values, &scaled);
        }
        for (var turn = 0u; turn < KEPT; turn++) {
            values[turn] = s.y * (scaled[turn] - mean_g - values[turn] * mean_gh);
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

@group(0) @binding(2) var<storage, read> stats_rows: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> d_y_rows: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> d_w_partial: array<vec4<f32>>; // (blocks, width)

// Workgroups: along x columns, along y blocks of rows.
@compute @workgroup_size(INVOCATIONS)
fn layernorm_rows_bwd_w(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let lane = local.x;
    let column = group.x * COLUMNS + lane % COLUMNS;
    let i = min(column, VEC4S - 1u);
    let first = group.y * BLOCK + lane / COLUMNS;
    var values: array<vec4<f32>, FLIGHT>;
    var d_ys: array<vec4<f32>, FLIGHT>;
    var ss: array<vec2<f32>, FLIGHT>;
    for (var turn = 0u; turn < FLIGHT; turn++) {
        let row = min(first + turn * ROWS, params.rows - 1u);
        values[turn] = x[row * VEC4S + i];
        d_ys[turn] = d_y_rows[row * VEC4S + i];
        ss[turn] = stats_rows[row];
    }
    var sum = vec4<f32>();
    for (var turn = 0u; turn < FLIGHT; turn++) {
        let term = d_ys[turn] * (values[turn] - ss[turn].x) * ss[turn].y;
        sum += select(vec4<f32>(), term, first + turn * ROWS < params.rows);
    }
    sum = sum_across_rows(lane, sum);
    if lane < COLUMNS && column < VEC4S {
        d_w_partial[group.y * VEC4S + column] = sum;
    }
}
