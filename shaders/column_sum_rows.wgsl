// column_sum.wgsl for GPUs, where rows are whole, aligned vec4s: an invocation has four loads of 16 bytes in flight.

import package::shared::column_blocks::{BLOCK, COLUMNS, FLIGHT, INVOCATIONS, ROWS, sum_across_rows};
import package::shared::column_sum_params::{ColumnSumParams};

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> sums: array<vec4<f32>>; // (blocks, width)

// Workgroups: along x columns, along y blocks of rows.
@compute @workgroup_size(INVOCATIONS)
fn column_sum_rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let lane = local.x;
    let vec4s = params.width / 4u;
    let column = group.x * COLUMNS + lane % COLUMNS;
    let x0 = params.start / 4u + min(column, vec4s - 1u);
    let stride = params.stride / 4u;
    let first = group.y * BLOCK + lane / COLUMNS;
    var values: array<vec4<f32>, FLIGHT>;
    for (var turn = 0u; turn < FLIGHT; turn++) {
        values[turn] = x[x0 + min(first + turn * ROWS, params.rows - 1u) * stride];
    }
    var sum = vec4<f32>();
    for (var turn = 0u; turn < FLIGHT; turn++) {
        sum += select(vec4<f32>(), values[turn], first + turn * ROWS < params.rows);
    }
    sum = sum_across_rows(lane, sum);
    if lane < COLUMNS && column < vec4s {
        let to = group.y * vec4s + column;
        if params.accumulate == 1u {
            sum += sums[to];
        }
        sums[to] = sum;
    }
}
