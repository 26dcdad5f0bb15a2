// absmax[at(r)] = max_k |B[r,k]|, at(r) = FIRST + r, or FIRST for all rows where WHOLE      B: (rows, columns) in vec4s
//
// Serves the scales of matmul_coop.wgsl. The bits of magnitudes are ordered as the magnitudes are, with NaN above all. An integer maximum
// of the bits therefore suffices, and its result does not depend on the order. `absmax` must begin as zeros.

import package::shared::grid::{flat_group};
import package::shared::weight::{weight_vec4};

override WHOLE: bool = false;
override FIRST: u32 = 0u;

struct AbsmaxParams {
    rows: u32,
    columns: u32, // a multiple of four
    start: u32,   // a multiple of four, like `stride`
    stride: u32,
}

@group(0) @binding(0) var<uniform> params: AbsmaxParams;
@group(0) @binding(1) var<storage, read_write> absmax: array<atomic<u32>>;
// Binding 2: B.

const WG = 64u;
const LOADS = 4u; // vec4s per turn

var<workgroup> of_row: atomic<u32>;

@compute @workgroup_size(WG)
fn matmul_absmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = flat_group(group, n_groups);
    if lane == 0u {
        atomicStore(&of_row, 0u);
    }
    var mine = vec4<u32>();
    if row < params.rows {
        let first = (params.start + row * params.stride) / 4u;
        let last = params.columns / 4u - 1u;
        for (var vec4_at = lane; vec4_at <= last; vec4_at += LOADS * WG) {
            // The loads do not wait for each other. Some load the last vec4 again, which does not change a maximum.
            var loaded: array<vec4<f32>, LOADS>;
            for (var i = 0u; i < LOADS; i++) {
                loaded[i] = weight_vec4(row, first + min(vec4_at + i * WG, last));
            }
            for (var i = 0u; i < LOADS; i++) {
                mine = max(mine, bitcast<vec4<u32>>(abs(loaded[i])));
            }
        }
    }
    workgroupBarrier();
    atomicMax(&of_row, max(max(mine.x, mine.y), max(mine.z, mine.w)));
    workgroupBarrier();
    if lane == 0u && row < params.rows {
        atomicMax(&absmax[FIRST + select(row, 0u, WHOLE)], atomicLoad(&of_row));
    }
}
