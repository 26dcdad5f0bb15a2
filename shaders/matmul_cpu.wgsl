// The products of matmul.wgsl for CPU adapters: no workgroup memory, no barriers, a workgroup as wide as a vector. Load addresses depend on
// the workgroup alone wherever possible, because such a load is one scalar load and a broadcast; others cost one load per lane. Each lane
// computes many columns, so that each load serves many of them. Starts and strides of B are multiples of four.
//
//   matmul_rows: B is (K, N); an invocation owns 8 rows × 8 columns, lanes along the columns
//   matmul_narrow: for few columns; 4 rows × 8 columns, lanes along the rows
//   matmul_dots: B is stored (N, K); an invocation owns 8 rows × 1 column, vec4s along K
//   matmul_unpack: C (K, N) = B in f32, where B is stored (N, K) if B_TRANSPOSED; dequantises B once for the other entry points

import package::shared::epilogue_none::{with_epilogue};
import package::shared::product::{MatmulParams, ProductTile};
import package::shared::product_tile::{product_tile};
import package::shared::low_rank_none::{LOW_RANK, low_rank_x_value, low_rank_w_vec4};
import package::shared::weight::{weight_vec4};

override A_TRANSPOSED: bool = false;
override B_TRANSPOSED: bool = false;
override ACCUMULATE: bool = false;

@group(0) @binding(1) var<storage, read> a: array<f32>;
// Binding 2: B.
@group(0) @binding(3) var<storage, read_write> c: array<f32>;

const LANES = 8u;
const ROWS = 8u;

// Element (row, k) of A is at a_row(row) + k·a_step().
fn a_row(tile: ProductTile, row: u32) -> u32 {
    return tile.a_start + min(row, tile.m_end - 1u) * select(params.a_stride, 1u, A_TRANSPOSED);
}

fn a_step() -> u32 {
    return select(1u, params.a_stride, A_TRANSPOSED);
}

// Returns the index of B's vec4 at column n, at most the last one. Results beyond the edge are never written.
fn b_vec4(tile: ProductTile, n: u32) -> u32 {
    return tile.b_start / 4u + min(n / 4u, (params.n - 1u) / 4u);
}

// Returns the column of B2 (K2, N), clamped like `b_vec4`.
fn low_rank_w_column(n: u32) -> u32 {
    return min(n, (params.n - 1u) / 4u * 4u);
}

fn store(tile: ProductTile, row: u32, n: u32, value: f32) {
    let i = tile.c_start + row * params.c_stride + n;
    var sum = params.alpha * value;
    if ACCUMULATE {
        sum += c[i];
    }
    c[i] = with_epilogue(sum, n, i);
}

fn store_vec4(tile: ProductTile, row: u32, n: u32, values: vec4<f32>) {
    if row < tile.m_end {
        for (var s = 0u; s < 4u; s++) {
            if n + s < params.n {
                store(tile, row, n + s, values[s]);
            }
        }
    }
}

@compute @workgroup_size(LANES)
fn matmul_rows(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let tile = product_tile(group.y, ROWS);
    let m0 = tile.m0;
    if m0 >= tile.m_end {
        return;
    }
    let n0 = (group.x * LANES * 2u + local.x) * 4u;
    let n1 = n0 + LANES * 4u;
    let vec4s = vec2<u32>(b_vec4(tile, n0), b_vec4(tile, n1));
    var rows: array<u32, 8>;
    for (var r = 0u; r < ROWS; r++) {
        rows[r] = a_row(tile, m0 + r);
    }
    let step = a_step();
    var acc0: array<vec4<f32>, 8>;
    var acc1: array<vec4<f32>, 8>;
    for (var k = 0u; k < tile.k; k++) {
        let at = k * params.b_stride / 4u;
        let b0 = weight_vec4(k, at + vec4s.x);
        let b1 = weight_vec4(k, at + vec4s.y);
        for (var r = 0u; r < ROWS; r++) {
            let value = a[rows[r] + k * step];
            acc0[r] += value * b0;
            acc1[r] += value * b1;
        }
    }
    if LOW_RANK {
        for (var k = 0u; k < params.k2; k++) {
            let b0 = low_rank_w_vec4(k, low_rank_w_column(n0));
            let b1 = low_rank_w_vec4(k, low_rank_w_column(n1));
            for (var r = 0u; r < ROWS; r++) {
                let value = low_rank_x_value(min(m0 + r, tile.m_end - 1u), k);
                acc0[r] += value * b0;
                acc1[r] += value * b1;
            }
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        store_vec4(tile, m0 + r, n0, acc0[r]);
        store_vec4(tile, m0 + r, n1, acc1[r]);
    }
}

@compute @workgroup_size(LANES)
fn matmul_narrow(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let tile = product_tile(group.y, LANES * 4u);
    let m0 = tile.m0 + local.x;
    let n0 = group.x * 8u;
    let n1 = n0 + 4u;
    let vec4s = vec2<u32>(b_vec4(tile, n0), b_vec4(tile, n1));
    var rows: array<u32, 4>;
    for (var r = 0u; r < 4u; r++) {
        rows[r] = a_row(tile, m0 + r * LANES);
    }
    let step = a_step();
    var acc0: array<vec4<f32>, 4>;
    var acc1: array<vec4<f32>, 4>;
    for (var k = 0u; k < tile.k; k++) {
        let at = k * params.b_stride / 4u;
        let b0 = weight_vec4(k, at + vec4s.x);
        let b1 = weight_vec4(k, at + vec4s.y);
        for (var r = 0u; r < 4u; r++) {
            let value = a[rows[r] + k * step];
            acc0[r] += value * b0;
            acc1[r] += value * b1;
        }
    }
    if LOW_RANK {
        for (var k = 0u; k < params.k2; k++) {
            let b0 = low_rank_w_vec4(k, low_rank_w_column(n0));
            let b1 = low_rank_w_vec4(k, low_rank_w_column(n1));
            for (var r = 0u; r < 4u; r++) {
                let value = low_rank_x_value(min(m0 + r * LANES, tile.m_end - 1u), k);
                acc0[r] += value * b0;
                acc1[r] += value * b1;
            }
        }
    }
    for (var r = 0u; r < 4u; r++) {
        store_vec4(tile, m0 + r * LANES, n0, acc0[r]);
        store_vec4(tile, m0 + r * LANES, n1, acc1[r]);
    }
}

// Adds elements i to i + 3 of A times those of B to a sum, one after the other: the order of matmul.wgsl.
fn plus_vec4(sum: f32, i: u32, bs: vec4<f32>) -> f32 {
    return sum + a[i] * bs.x + a[i + 1u] * bs.y + a[i + 2u] * bs.z + a[i + 3u] * bs.w;
}

@compute @workgroup_size(LANES)
fn matmul_dots(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let tile = product_tile(group.y, ROWS);
    let m0 = tile.m0;
    if m0 >= tile.m_end {
        return;
    }
    let n = group.x * LANES + local.x;
    let row = min(n, params.n - 1u);
    let vec4s = (tile.b_start + row * params.b_stride) / 4u;
    var rows: array<u32, 8>;
    for (var r = 0u; r < ROWS; r++) {
        rows[r] = tile.a_start + min(m0 + r, tile.m_end - 1u) * params.a_stride;
    }
    var acc: array<f32, 8>;
    for (var k = 0u; k < tile.k; k += 4u) {
        let bs = weight_vec4(row, vec4s + k / 4u);
        acc[0] = plus_vec4(acc[0], rows[0] + k, bs);
        acc[1] = plus_vec4(acc[1], rows[1] + k, bs);
        acc[2] = plus_vec4(acc[2], rows[2] + k, bs);
        acc[3] = plus_vec4(acc[3], rows[3] + k, bs);
        acc[4] = plus_vec4(acc[4], rows[4] + k, bs);
        acc[5] = plus_vec4(acc[5], rows[5] + k, bs);
        acc[6] = plus_vec4(acc[6], rows[6] + k, bs);
        acc[7] = plus_vec4(acc[7], rows[7] + k, bs);
    }
    if LOW_RANK {
        for (var k = 0u; k < params.k2; k += 4u) {
            let bs = low_rank_w_vec4(row, k);
            for (var r = 0u; r < ROWS; r++) {
                let m = min(m0 + r, tile.m_end - 1u);
                acc[r] += low_rank_x_value(m, k) * bs.x;
                acc[r] += low_rank_x_value(m, k + 1u) * bs.y;
                acc[r] += low_rank_x_value(m, k + 2u) * bs.z;
                acc[r] += low_rank_x_value(m, k + 3u) * bs.w;
            }
        }
    }
    if n >= params.n {
        return;
    }
    for (var r = 0u; r < ROWS; r++) {
        if m0 + r < tile.m_end {
            store(tile, m0 + r, n, acc[r]);
        }
    }
}

@group(0) @binding(1) var<storage, read_write> b_unpacked: array<f32>;

// One invocation unpacks one vec4 of B; `k` is B's number of columns as stored; workgroup y is B's row. Rows of C are `c_stride` apart.
@compute @workgroup_size(LANES)
fn matmul_unpack(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let column = (group.x * LANES + local.x) * 4u;
    if column >= params.k {
        return;
    }
    let values = weight_vec4(group.y, (params.b_start + group.y * params.b_stride + column) / 4u);
    for (var s = 0u; s < 4u; s++) {
        let at = select(vec2<u32>(group.y, column + s), vec2<u32>(column + s, group.y), B_TRANSPOSED);
        b_unpacked[at.x * params.c_stride + at.y] = values[s];
    }
}
