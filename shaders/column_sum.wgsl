// out[i] += Σ_t x[t,i]: gradients of biases and of norm weights. Two stages keep the order of the sum fixed: the first adds blocks of rows,
// the second adds the blocks' sums.

import package::shared::column_sum_params::{ColumnSumParams};

override WG: u32 = 64u;

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>; // (blocks, width)

// One invocation per column; workgroups along y are blocks of rows.
@compute @workgroup_size(WG)
fn column_sum(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let i = group.x * WG + local.x;
    if i >= params.width {
        return;
    }
    var sum = 0.0;
    let end = min((group.y + 1u) * params.block, params.rows);
    for (var row = group.y * params.block; row < end; row++) {
        sum += x[params.start + row * params.stride + i];
    }
    let to = group.y * params.width + i;
    sums[to] = select(sum, sums[to] + sum, params.accumulate == 1u);
}
