// norm = scale·√(Σ g²) over all pages of gradients. Two stages in a fixed order: the same bits every time.

import package::shared::reduce::{WG, sum_across};

struct GlobalNormParams {
    n: u32,     // elements of this page; partial sums in global_norm_total
    first: u32, // where this page's partial sums begin
    scale: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: GlobalNormParams;
@group(0) @binding(1) var<storage, read> g: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

// Each of the workgroups strides over the page.
@compute @workgroup_size(WG)
fn global_norm_partial(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    var sum = 0.0;
    for (var i = group.x * WG + local.x; i < params.n; i += n_groups.x * WG) {
        sum += g[i] * g[i];
    }
    let total = sum_across(local.x, sum);
    if local.x == 0u {
        out[params.first + group.x] = total;
    }
}

@compute @workgroup_size(WG)
fn global_norm_total(@builtin(local_invocation_id) local: vec3<u32>) {
    var sum = 0.0;
    for (var i = local.x; i < params.n; i += WG) {
        sum += g[i];
    }
    let total = sum_across(local.x, sum);
    if local.x == 0u {
        out[0] = params.scale * sqrt(total);
    }
}
