// C = alpha·A·B (+ C) (+ bias + residual) as in matmul.wgsl, with B (K, N), for CPU adapters with subgroups.
//
// A workgroup is one subgroup and computes 32 rows (8 where there are few) × 32 columns; an invocation computes one vec4 of each row. Each
// lane loads one value of A and broadcasts it, so that a load of A or B serves 32 vector multiply-adds. B's start and stride are multiples
// of four. Sums are in the order of K, as in matmul.wgsl.

import package::shared::epilogue_none::{with_epilogue};
import package::shared::lanes::{LANES, broadcast_lanes_f32};
import package::shared::product::{MatmulParams};
import package::shared::low_rank_none::{LOW_RANK, low_rank_x_value, low_rank_w_vec4};
import package::shared::weight::{weight_vec4};

override A_TRANSPOSED: bool = false;
override ACCUMULATE: bool = false;

@group(0) @binding(1) var<storage, read> a: array<f32>;
// Binding 2: B.
@group(0) @binding(3) var<storage, read_write> c: array<f32>;

override VECTORS: u32 = 4u; // vectors of rows

const ROWS = VECTORS * LANES;
const COLUMNS = 4u * LANES; // one vec4 per lane

@compute @workgroup_size(LANES)
fn matmul_lanes(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    // Consecutive workgroups share the tile of the larger matrix, which stays in a core's cache while tiles of the smaller one change.
    let tile = select(group.xy, group.yx, params.m <= params.n);
    let m0 = tile.y * ROWS;
    let n0 = tile.x * COLUMNS + 4u * local.x;
    // Loads beyond the last column read an arbitrary value, which is never written.
    let vec4_at = params.b_start / 4u + min(n0 / 4u, (params.n - 1u) / 4u);
    var rows: array<u32, VECTORS>;
    for (var v = 0u; v < VECTORS; v++) {
        let row = min(m0 + v * LANES + local.x, params.m - 1u);
        rows[v] = params.a_start + row * select(params.a_stride, 1u, A_TRANSPOSED);
    }
    let step = select(1u, params.a_stride, A_TRANSPOSED);
    var acc: array<vec4<f32>, ROWS>; // a row's values in this lane's columns
    // Two steps of K per iteration, both added to a sum before the next sum: loop-carried values cost as much as the arithmetic.
    for (var k = 0u; k < params.k; k += 2u) {
        let next = min(k + 1u, params.k - 1u);
        let bs = weight_vec4(k, k * params.b_stride / 4u + vec4_at);
        let bs_next = weight_vec4(next, next * params.b_stride / 4u + vec4_at);
        for (var v = 0u; v < VECTORS; v++) {
            let mine = broadcast_lanes_f32(a[rows[v] + k * step]);
            let mine_next = broadcast_lanes_f32(select(0.0, a[rows[v] + next * step], next > k));
            for (var r = 0u; r < LANES; r++) {
                acc[v * LANES + r] = acc[v * LANES + r] + mine[r] * bs + mine_next[r] * bs_next;
            }
        }
    }
    if LOW_RANK {
        for (var k = 0u; k < params.k2; k++) {
            let bs = low_rank_w_vec4(k, min(n0, (params.n - 1u) / 4u * 4u));
            for (var v = 0u; v < VECTORS; v++) {
                let mine = broadcast_lanes_f32(low_rank_x_value(min(m0 + v * LANES + local.x, params.m - 1u), k));
                for (var r = 0u; r < LANES; r++) {
                    acc[v * LANES + r] += mine[r] * bs;
                }
            }
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        for (var s = 0u; s < 4u; s++) {
            if m0 + r < params.m && n0 + s < params.n {
                let n = n0 + s;
                let i = params.c_start + (m0 + r) * params.c_stride + n;
                var value = params.alpha * acc[r][s];
                if ACCUMULATE {
                    value += c[i];
                }
                c[i] = with_epilogue(value, n, i);
            }
        }
    }
}
