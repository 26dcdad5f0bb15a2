// gather_fwd and gather_bwd of gather.wgsl for GPUs, where rows are whole vec4s. A workgroup has COLUMNS vec4s of columns and BLOCK rows; an
// invocation has the loads of FLIGHT rows in flight.

import package::shared::gather_params::{GatherParams};

const COLUMNS = 16u;
const ROWS = 4u; // invocations per column
const FLIGHT = 4u;
const BLOCK = ROWS * FLIGHT;
const INVOCATIONS = COLUMNS * ROWS;

@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

// Workgroups: along x columns, along y blocks of rows.
@compute @workgroup_size(INVOCATIONS)
fn gather_rows_fwd(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let vec4s = params.width / 4u;
    let column = group.x * COLUMNS + local.x % COLUMNS;
    let first = group.y * BLOCK + local.x / COLUMNS;
    if column >= vec4s {
        return;
    }
    if (group.y + 1u) * BLOCK > params.n {
        for (var row = first; row < params.n; row += ROWS) {
            y[row * vec4s + column] = x[rows[row] * vec4s + column];
        }
        return;
    }
    // No condition on a store: compilers would move its load into the branch.
    var taken: array<u32, FLIGHT>;
    for (var turn = 0u; turn < FLIGHT; turn++) {
        taken[turn] = rows[first + turn * ROWS];
    }
    var values: array<vec4<f32>, FLIGHT>;
    for (var turn = 0u; turn < FLIGHT; turn++) {
        values[turn] = x[taken[turn] * vec4s + column];
    }
    for (var turn = 0u; turn < FLIGHT; turn++) {
        y[(first + turn * ROWS) * vec4s + column] = values[turn];
    }
}

@group(0) @binding(1) var<storage, read> starts: array<u32>; // (T + 1)
@group(0) @binding(2) var<storage, read> uses: array<u32>;   // the r of each t, in the order of t
@group(0) @binding(3) var<storage, read> d_y: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> d_x: array<vec4<f32>>;

// The first use of each row is loaded at once: few rows have more.
@compute @workgroup_size(INVOCATIONS)
fn gather_rows_bwd(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let vec4s = params.width / 4u;
    let column = group.x * COLUMNS + local.x % COLUMNS;
    let first = group.y * BLOCK + local.x / COLUMNS;
    if column >= vec4s {
        return;
    }
    let n_uses = arrayLength(&uses); // ends are never beyond it, even where the upload was lost
    var start: array<u32, FLIGHT>;
    var end: array<u32, FLIGHT>;
    for (var turn = 0u; turn < FLIGHT; turn++) {
        let row = min(first + turn * ROWS, params.n - 1u);
        start[turn] = starts[row];
        end[turn] = min(starts[row + 1u], n_uses);
    }
    var used: array<u32, FLIGHT>;
    for (var turn = 0u; turn < FLIGHT; turn++) {
        let r = uses[min(start[turn], max(n_uses, 1u) - 1u)];
        used[turn] = select(0u, r, start[turn] < end[turn]);
    }
    var sums: array<vec4<f32>, FLIGHT>;
    for (var turn = 0u; turn < FLIGHT; turn++) {
        sums[turn] = d_y[used[turn] * vec4s + column];
    }
    // Before the loops of later uses: compilers would move a load behind the loops of the rows before.
    for (var turn = 0u; turn < FLIGHT; turn++) {
        sums[turn] = select(vec4<f32>(), sums[turn], start[turn] < end[turn]);
    }
    for (var turn = 0u; turn < FLIGHT; turn++) {
        for (var n = start[turn] + 1u; n < end[turn]; n++) {
            sums[turn] += d_y[uses[n] * vec4s + column];
        }
        let row = first + turn * ROWS;
        if row < params.n {
            d_x[row * vec4s + column] = sums[turn];
        }
    }
}
