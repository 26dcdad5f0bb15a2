// norm = scale·√(Σ g²) over all buckets of gradients (or of parameters). Two stages in a fixed order make the result bit-identical every
// time.

import package::shared::global_norm_params::{GlobalNormParams};
import package::shared::reduce::{WG, sum_across};
import package::shared::weight::{weight_value};

@group(0) @binding(1) var<storage, read_write> partial: array<f32>;
// Binding 2: g, one bucket.

// Each workgroup strides over the bucket.
@compute @workgroup_size(WG)
fn global_norm_partial(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    var sum = 0.0;
    for (var i = group.x * WG + local.x; i < params.n; i += n_groups.x * WG) {
        let g = weight_value(0u, i);
        sum += g * g;
    }
    let total = sum_across(local.x, sum);
    if local.x == 0u {
        partial[params.first + group.x] = total;
    }
}

@group(0) @binding(1) var<storage, read> sums: array<f32>;
@group(0) @binding(2) var<storage, read_write> norm: array<f32>; // (1)

@compute @workgroup_size(WG)
fn global_norm_total(@builtin(local_invocation_id) local: vec3<u32>) {
    var sum = 0.0;
    for (var i = local.x; i < params.n; i += WG) {
        sum += sums[i];
    }
    let total = sum_across(local.x, sum);
    if local.x == 0u {
        norm[0] = params.scale * sqrt(total);
    }
}
