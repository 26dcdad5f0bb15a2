// The first stage of global_norm.wgsl for GPUs, on buckets of whole vec4s: an invocation has four loads in flight.

import package::shared::global_norm_params::{GlobalNormParams};
import package::shared::reduce::{WG, sum_across};
import package::shared::weight::{weight_vec4};

const FLIGHT = 4u;

@group(0) @binding(1) var<storage, read_write> partial: array<f32>;
// Binding 2: g, one bucket.

// Each workgroup strides over the bucket.
@compute @workgroup_size(WG)
fn global_norm_rows_partial(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let vec4s = params.n / 4u;
    let stride = n_groups.x * WG;
    var sum = 0.0;
    for (var part = group.x * WG; part < vec4s; part += FLIGHT * stride) {
        var values: array<vec4<f32>, FLIGHT>;
        for (var turn = 0u; turn < FLIGHT; turn++) {
            values[turn] = weight_vec4(0u, min(part + turn * stride + local.x, vec4s - 1u));
        }
        for (var turn = 0u; turn < FLIGHT; turn++) {
            let is_inside = part + turn * stride + local.x < vec4s;
            sum += select(0.0, dot(values[turn], values[turn]), is_inside);
        }
    }
    let total = sum_across(local.x, sum);
    if local.x == 0u {
        partial[params.first + group.x] = total;
    }
}
