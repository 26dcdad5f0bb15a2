// The products of matmul.wgsl for adapters that are CPUs: no workgroup memory, no barriers, eight rows an invocation, loads of A
// that depend on the workgroup alone (one scalar load, broadcast), loads of B as quads. Strides and starts are multiples of four.
//
//   matmul_rows: B is (K, N): an invocation owns 8 rows × 4 columns
//   matmul_dots: B is stored (N, K): an invocation owns 8 rows × 1 column, quads along K
//   matmul_transpose: C (K, N) = B stored (N, K), so that a product with many rows can take matmul_rows, which is 2.6 times as fast

import package::shared::weight::{WeightQuad, weight_values};

override A_TRANSPOSED: bool = false;
override WG: u32 = 16u;

struct MatmulParams {
    m: u32,
    n: u32,
    k: u32,
    accumulate: u32,
    a_start: u32,
    a_stride: u32,
    b_start: u32,
    b_stride: u32,
    c_start: u32,
    c_stride: u32,
    alpha: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: MatmulParams;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<WeightQuad>;
@group(0) @binding(3) var<storage, read_write> c: array<f32>;

const ROWS = 8u;

@compute @workgroup_size(WG)
fn matmul_rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let m0 = group.y * ROWS;
    let n = (group.x * WG + local.x) * 4u;
    let column = min(n, params.n - 4u) / 4u; // past the edge: read something, write nothing
    var rows: array<u32, 8>;
    for (var r = 0u; r < ROWS; r++) {
        rows[r] = params.a_start + min(m0 + r, params.m - 1u) * select(params.a_stride, 1u, A_TRANSPOSED);
    }
    let step = select(1u, params.a_stride, A_TRANSPOSED);
    var acc: array<vec4<f32>, 8>;
    for (var k = 0u; k < params.k; k++) {
        let bs = weight_values(b[(params.b_start + k * params.b_stride) / 4u + column]);
        acc[0] += a[rows[0] + k * step] * bs;
        acc[1] += a[rows[1] + k * step] * bs;
        acc[2] += a[rows[2] + k * step] * bs;
        acc[3] += a[rows[3] + k * step] * bs;
        acc[4] += a[rows[4] + k * step] * bs;
        acc[5] += a[rows[5] + k * step] * bs;
        acc[6] += a[rows[6] + k * step] * bs;
        acc[7] += a[rows[7] + k * step] * bs;
    }
    if n >= params.n {
        return;
    }
    for (var r = 0u; r < ROWS; r++) {
        if m0 + r < params.m {
            let i = params.c_start + (m0 + r) * params.c_stride + n;
            for (var s = 0u; s < 4u; s++) {
                let value = params.alpha * acc[r][s];
                if params.accumulate == 1u {
                    c[i + s] += value;
                } else {
                    c[i + s] = value;
                }
            }
        }
    }
}

fn quad_of_a(i: u32) -> vec4<f32> {
    return vec4<f32>(a[i], a[i + 1u], a[i + 2u], a[i + 3u]);
}

@compute @workgroup_size(WG)
fn matmul_dots(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let m0 = group.y * ROWS;
    let n = group.x * WG + local.x;
    let column = (params.b_start + min(n, params.n - 1u) * params.b_stride) / 4u;
    var rows: array<u32, 8>;
    for (var r = 0u; r < ROWS; r++) {
        rows[r] = params.a_start + min(m0 + r, params.m - 1u) * params.a_stride;
    }
    var acc: array<f32, 8>;
    for (var k = 0u; k < params.k; k += 4u) {
        let bs = weight_values(b[column + k / 4u]);
        acc[0] += dot(quad_of_a(rows[0] + k), bs);
        acc[1] += dot(quad_of_a(rows[1] + k), bs);
        acc[2] += dot(quad_of_a(rows[2] + k), bs);
        acc[3] += dot(quad_of_a(rows[3] + k), bs);
        acc[4] += dot(quad_of_a(rows[4] + k), bs);
        acc[5] += dot(quad_of_a(rows[5] + k), bs);
        acc[6] += dot(quad_of_a(rows[6] + k), bs);
        acc[7] += dot(quad_of_a(rows[7] + k), bs);
    }
    if n >= params.n {
        return;
    }
    for (var r = 0u; r < ROWS; r++) {
        if m0 + r < params.m {
            let i = params.c_start + (m0 + r) * params.c_stride + n;
            let value = params.alpha * acc[r];
            if params.accumulate == 1u {
                c[i] += value;
            } else {
                c[i] = value;
            }
        }
    }
}

@group(0) @binding(1) var<storage, read> b_stored: array<WeightQuad>;
@group(0) @binding(2) var<storage, read_write> b_transposed: array<f32>;

// An invocation a quad of B; workgroups along y are rows of B.
@compute @workgroup_size(WG)
fn matmul_transpose(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let k = (group.x * WG + local.x) * 4u;
    if k >= params.k {
        return;
    }
    let values = weight_values(b_stored[(params.b_start + group.y * params.b_stride + k) / 4u]);
    for (var s = 0u; s < 4u; s++) {
        b_transposed[(k + s) * params.n + group.y] = values[s];
    }
}
