// C[m,n] = alpha·(Σ_k A[m,k]·B[k,n] + Σ_k A2[m,k]·B2[k,n]) (+ C[m,n]) + bias[n] + residual[m,n]
// A: (M, K), or stored transposed (K, M). B: (K, N), or stored transposed (N, K). A2 and B2 come from shared/low_rank, bias and residual
// from shared/epilogue; each module has a `_none` form for products without.
//
// The three products of a linear layer y = x·Wᵀ:  y = x·Wᵀ (B transposed),  d_x = d_y·W (neither),  d_W = d_yᵀ·x (A transposed).
// A workgroup of 16×16 computes a tile of 64×64 and each invocation 4×4 values at a stride of 16. Tiles of A and B pass through workgroup
// memory (2 × 16 × 65 × 4 = 8,320 bytes). Any M, N, K. Quantised weights are dequantised into the tile, four at a time.

import package::shared::epilogue_none::{with_epilogue};
import package::shared::product::{MatmulParams, ProductTile};
import package::shared::product_tile::{product_tile};
import package::shared::low_rank_none::{LOW_RANK, low_rank_x_value, low_rank_w_value};
import package::shared::weight::{weight_value, weight_values};

override A_TRANSPOSED: bool = false;
override B_TRANSPOSED: bool = false;
override B_VEC4S: bool = false; // B's start, stride and stored columns are multiples of four

@group(0) @binding(1) var<storage, read> a: array<f32>;
// Binding 2: B.
@group(0) @binding(3) var<storage, read_write> c: array<f32>;

const TILE = 64u;
const TILE_K = 16u;
const ROW = 65u; // one more than the tile, so that rows begin in different banks

var<workgroup> a_tile: array<f32, 1040>; // (TILE_K, ROW)
var<workgroup> b_tile: array<f32, 1040>;

fn load_a(tile: ProductTile, m: u32, k: u32) -> f32 {
    if m >= tile.m_end || k >= tile.k {
        return 0.0;
    }
    return a[tile.a_start + select(m * params.a_stride + k, k * params.a_stride + m, A_TRANSPOSED)];
}

fn load_b(tile: ProductTile, k: u32, n: u32) -> f32 {
    if k >= tile.k || n >= params.n {
        return 0.0;
    }
    let at = stored_b(k, n);
    return weight_value(at.x, tile.b_start + at.x * params.b_stride + at.y);
}

// Returns the row and column of B as stored.
fn stored_b(k: u32, n: u32) -> vec2<u32> {
    return select(vec2<u32>(k, n), vec2<u32>(n, k), B_TRANSPOSED);
}

// Loads four elements of B, neighbours as stored, into their places in the tile.
fn load_b_vec4(tile: ProductTile, k0: u32, n0: u32, lane: u32) {
    let along_n = vec2<u32>(lane / (TILE / 4u), lane % (TILE / 4u) * 4u);
    let along_k = vec2<u32>(lane % (TILE_K / 4u) * 4u, lane / (TILE_K / 4u));
    let place = select(along_n, along_k, B_TRANSPOSED);
    let k = k0 + place.x;
    let n = n0 + place.y;
    var values = vec4<f32>();
    if k < tile.k && n < params.n {
        let at = stored_b(k, n);
        values = weight_values(at.x, tile.b_start + at.x * params.b_stride + at.y);
    }
    let step = select(1u, ROW, B_TRANSPOSED);
    for (var s = 0u; s < 4u; s++) {
        b_tile[place.x * ROW + place.y + s * step] = values[s];
    }
}

// Adds the product of the tiles to `acc`, in the order of K.
fn multiply_tiles(acc: ptr<function, array<vec4<f32>, 4>>, local: vec2<u32>) {
    for (var k = 0u; k < TILE_K; k++) {
        let row = k * ROW;
        let bs = vec4<f32>(
            b_tile[row + local.x],
            b_tile[row + local.x + 16u],
            b_tile[row + local.x + 32u],
            b_tile[row + local.x + 48u],
        );
        for (var r = 0u; r < 4u; r++) {
            (*acc)[r] += a_tile[row + local.y + 16u * r] * bs;
        }
    }
}

// Loads the second pair's tiles that begin at k0. A2 is never transposed.
fn load_second(tile: ProductTile, lane: u32, m0: u32, n0: u32, k0: u32) {
    for (var i = lane; i < TILE * TILE_K; i += 256u) {
        let at = vec2<u32>(i % TILE_K, i / TILE_K);
        let k = k0 + at.x;
        let m = m0 + at.y;
        let n = n0 + at.y;
        let place = at.x * ROW + at.y;
        a_tile[place] = 0.0;
        b_tile[place] = 0.0;
        if k < params.k2 && m < tile.m_end {
            a_tile[place] = low_rank_x_value(m, k);
        }
        if k < params.k2 && n < params.n {
            let stored = stored_b(k, n);
            b_tile[place] = low_rank_w_value(stored.x, stored.y);
        }
    }
}

@compute @workgroup_size(16, 16)
fn matmul(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let group = params.first_group + in_part.xy;
    let tile = product_tile(group.y, TILE);
    let m0 = tile.m0;
    if m0 >= tile.m_end {
        return;
    }
    let n0 = group.x * TILE;
    let lane = local.y * 16u + local.x;
    var acc: array<vec4<f32>, 4>;
    for (var k0 = 0u; k0 < tile.k; k0 += TILE_K) {
        workgroupBarrier();
        for (var i = lane; i < TILE * TILE_K; i += 256u) {
            // Neighbouring invocations read neighbouring elements, however the matrix is stored.
            let along_k = vec2<u32>(i % TILE_K, i / TILE_K);
            let along_tile = vec2<u32>(i / TILE, i % TILE);
            let at_a = select(along_k, along_tile, A_TRANSPOSED);
            let at_b = select(along_tile, along_k, B_TRANSPOSED);
            a_tile[at_a.x * ROW + at_a.y] = load_a(tile, m0 + at_a.y, k0 + at_a.x);
            if !B_VEC4S {
                b_tile[at_b.x * ROW + at_b.y] = load_b(tile, k0 + at_b.x, n0 + at_b.y);
            }
        }
        if B_VEC4S {
            load_b_vec4(tile, k0, n0, lane);
        }
        workgroupBarrier();
        multiply_tiles(&acc, local.xy);
    }
    if LOW_RANK {
        for (var k0 = 0u; k0 < params.k2; k0 += TILE_K) {
            workgroupBarrier();
            load_second(tile, lane, m0, n0, k0);
            workgroupBarrier();
            multiply_tiles(&acc, local.xy);
        }
    }
    for (var r = 0u; r < 4u; r++) {
        let m = m0 + local.y + 16u * r;
        for (var s = 0u; s < 4u; s++) {
            let n = n0 + local.x + 16u * s;
            if m < tile.m_end && n < params.n {
                let i = tile.c_start + m * params.c_stride + n;
                var value = params.alpha * acc[r][s];
                if params.accumulate == 1u {
                    value += c[i];
                }
                c[i] = with_epilogue(value, n, i);
            }
        }
    }
}
