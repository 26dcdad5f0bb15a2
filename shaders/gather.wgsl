// gather_fwd: y[r, :] = x[rows[r], :];   gather_bwd: d_x[t, :] = Σ_{r: rows[r] = t} d_y[r, :], by a table of the r of each t
// gather_scatter: y[rows[r], :] = x[r, start .. start + width]                                  (new keys and values into a cache)

import package::shared::gather_params::{GatherParams};

override WG: u32 = 64u;

@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

// Workgroups: along x columns, along y rows.
@compute @workgroup_size(WG)
fn gather_fwd(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let i = group.x * WG + local.x;
    if i < params.width {
        y[group.y * params.width + i] = x[rows[group.y] * params.width + i];
    }
}

@compute @workgroup_size(WG)
fn gather_scatter(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let i = group.x * WG + local.x;
    if i < params.width {
        y[rows[group.y] * params.width + i] = x[group.y * params.stride + params.start + i];
    }
}

@group(0) @binding(1) var<storage, read> starts: array<u32>; // (T + 1)
@group(0) @binding(2) var<storage, read> uses: array<u32>;   // the r of each t, in the order of t
@group(0) @binding(3) var<storage, read> d_y: array<f32>;
@group(0) @binding(4) var<storage, read_write> d_x: array<f32>;

@compute @workgroup_size(WG)
fn gather_bwd(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let i = group.x * WG + local.x;
    if i >= params.width {
        return;
    }
    var sum = 0.0;
    let end = min(starts[group.y + 1u], arrayLength(&uses)); // never beyond the end, even where the upload was lost
    for (var n = starts[group.y]; n < end; n++) {
        sum += d_y[uses[n] * params.width + i];
    }
    d_x[group.y * params.width + i] = sum;
}
