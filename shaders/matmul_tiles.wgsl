// The products of matmul.wgsl where everything is aligned in vec4s (starts, strides, stored columns of A and B, and N).
//
// 2·TILE invocations compute a tile of TILE×TILE values, each ROW_VEC4S·4 rows × COLUMN_VEC4S·4 columns of it in registers. Tiles of A
// (K_TILE, TILE) and B (K_TILE, TILE) pass through workgroup memory (2 × 16·TILE × 4 bytes: 16 KiB for TILE = 128). To fill both, an
// invocation loads one block of 4×4 from memory, while the block before is being multiplied, and transposes it where the matrix is stored along K.
//
// Loads of whole tiles have no condition: a compiler waits for a load that stands in a branch where the branch ends, which is before the
// multiplication that should hide it. Rows of A and columns of B beyond the edge are clamped to the last ones, since they feed outputs that are not
// stored. What is left of K behind whole tiles is a turn of its own, with zeros beyond the edge.
// Each sum has one owner and adds its terms in the order of K, as matmul.wgsl does: the same bits.

import package::shared::epilogue_none::{with_epilogue_vec4};
import package::shared::product::{MatmulParams};
import package::shared::low_rank_none::{LOW_RANK, low_rank_x_vec4, low_rank_w_vec4};
import package::shared::weight::{prepare_weight, weight_vec4};

override A_TRANSPOSED: bool = false; // A is stored (K, M)
override B_TRANSPOSED: bool = false; // B is stored (N, K)
override TILE: u32 = 64u;
override ROW_VEC4S: u32 = 2u;
override COLUMN_VEC4S: u32 = 1u;

@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
// Binding 2: B.
@group(0) @binding(3) var<storage, read_write> c: array<vec4<f32>>;

const K_TILE = 16u;
const VEC4S = TILE / 4u; // of a tile's row
const ACROSS = VEC4S / COLUMN_VEC4S; // invocations along a row of C
const DOWN = VEC4S / ROW_VEC4S;

var<workgroup> a_tile: array<vec4<f32>, 16u * TILE / 4u>; // (K_TILE, TILE), vec4s along M
var<workgroup> b_tile: array<vec4<f32>, 16u * TILE / 4u>; // (K_TILE, TILE), vec4s along N

// Where an invocation's block is in its tile: vec4 along K, vec4 along M or N. Neighbours are neighbours in memory.
fn place(i: u32, along_k: bool) -> vec2<u32> {
    return select(vec2<u32>(i / VEC4S, i % VEC4S), vec2<u32>(i % (K_TILE / 4u), i / (K_TILE / 4u)), along_k);
}

// Rows row .. row + 3 of A as stored, one vec4 of each; zeros beyond the edge.
fn block_of_a(row: u32, column: u32) -> array<vec4<f32>, 4> {
    let end = select(vec2<u32>(params.m, params.k), vec2<u32>(params.k, params.m), A_TRANSPOSED);
    var block: array<vec4<f32>, 4>;
    for (var s = 0u; s < 4u; s++) {
        block[s] = vec4<f32>();
        if row + s < end.x && column < end.y {
            block[s] = a[(params.a_start + (row + s) * params.a_stride + column) / 4u];
        }
    }
    return block;
}

fn block_of_b(row: u32, column: u32) -> array<vec4<f32>, 4> {
    let end = select(vec2<u32>(params.k, params.n), vec2<u32>(params.n, params.k), B_TRANSPOSED);
    var block: array<vec4<f32>, 4>;
    for (var s = 0u; s < 4u; s++) {
        block[s] = vec4<f32>();
        if row + s < end.x && column < end.y {
            block[s] = weight_vec4(row + s, (params.b_start + (row + s) * params.b_stride + column) / 4u);
        }
    }
    return block;
}

// This invocation's block of the tiles that begin at k0: of A in the first TILE invocations, of B in the others.
fn load_block(lane: u32, m0: u32, n0: u32, k0: u32) -> array<vec4<f32>, 4> {
    if lane < TILE {
        let at = 4u * place(lane, !A_TRANSPOSED);
        return block_of_a(select(m0 + at.y, k0 + at.x, A_TRANSPOSED), select(k0 + at.x, m0 + at.y, A_TRANSPOSED));
    }
    let at = 4u * place(lane - TILE, B_TRANSPOSED);
    return block_of_b(select(k0 + at.x, n0 + at.y, B_TRANSPOSED), select(n0 + at.y, k0 + at.x, B_TRANSPOSED));
}

// The same of the second pair, A2 as A is stored where it is not transposed.
fn load_second(lane: u32, m0: u32, n0: u32, k0: u32) -> array<vec4<f32>, 4> {
    var row: u32;
    var column: u32;
    var end: vec2<u32>;
    if lane < TILE {
        let at = 4u * place(lane, true);
        row = m0 + at.y;
        column = k0 + at.x;
        end = vec2<u32>(params.m, params.k2);
    } else {
        let at = 4u * place(lane - TILE, B_TRANSPOSED);
        row = select(k0 + at.x, n0 + at.y, B_TRANSPOSED);
        column = select(n0 + at.y, k0 + at.x, B_TRANSPOSED);
        end = select(vec2<u32>(params.k2, params.n), vec2<u32>(params.n, params.k2), B_TRANSPOSED);
    }
    var block: array<vec4<f32>, 4>;
    for (var s = 0u; s < 4u; s++) {
        block[s] = vec4<f32>();
        if row + s < end.x && column < end.y {
            if lane < TILE {
                block[s] = low_rank_x_vec4(row + s, column);
            } else {
                block[s] = low_rank_w_vec4(row + s, column);
            }
        }
    }
    return block;
}

fn transpose4x4(b: array<vec4<f32>, 4>) -> array<vec4<f32>, 4> {
    return array<vec4<f32>, 4>(
        vec4<f32>(b[0].x, b[1].x, b[2].x, b[3].x),
        vec4<f32>(b[0].y, b[1].y, b[2].y, b[3].y),
        vec4<f32>(b[0].z, b[1].z, b[2].z, b[3].z),
        vec4<f32>(b[0].w, b[1].w, b[2].w, b[3].w),
    );
}

fn store_block(lane: u32, loaded: array<vec4<f32>, 4>) {
    if lane < TILE {
        let at = place(lane, !A_TRANSPOSED);
        var block = loaded;
        if !A_TRANSPOSED {
            block = transpose4x4(loaded);
        }
        for (var s = 0u; s < 4u; s++) {
            a_tile[(4u * at.x + s) * VEC4S + at.y] = block[s];
        }
    } else {
        let at = place(lane - TILE, B_TRANSPOSED);
        var block = loaded;
        if B_TRANSPOSED {
            block = transpose4x4(loaded);
        }
        for (var s = 0u; s < 4u; s++) {
            b_tile[(4u * at.x + s) * VEC4S + at.y] = block[s];
        }
    }
}

// Where an invocation's block of four stored rows is in memory.
struct BlockPlace {
    rows: array<u32, 4>,  // stored rows
    vec4s: array<u32, 4>, // their first vec4s in the binding
}

// This invocation's block of the first tiles, rows and columns clamped to the last ones along M and N.
fn first_place(lane: u32, m0: u32, n0: u32) -> BlockPlace {
    let is_a = lane < TILE;
    let along_k = select(B_TRANSPOSED, !A_TRANSPOSED, is_a); // the stored row runs along K
    let at = 4u * place(select(lane - TILE, lane, is_a), along_k);
    let outer = select(n0, m0, is_a) + at.y;
    let end = select(params.n, params.m, is_a);
    let start = select(params.b_start, params.a_start, is_a);
    let stride = select(params.b_stride, params.a_stride, is_a);
    var block: BlockPlace;
    for (var s = 0u; s < 4u; s++) {
        let row = select(at.x + s, min(outer + s, end - 1u), along_k);
        let column = select(min(outer, end - 4u), at.x, along_k);
        block.rows[s] = row;
        block.vec4s[s] = (start + row * stride + column) / 4u;
    }
    return block;
}

// Loads a block that lies inside A or B.
fn load_whole(lane: u32, at: BlockPlace) -> array<vec4<f32>, 4> {
    var block: array<vec4<f32>, 4>;
    if lane < TILE {
        for (var s = 0u; s < 4u; s++) {
            block[s] = a[at.vec4s[s]];
        }
    } else {
        for (var s = 0u; s < 4u; s++) {
            block[s] = weight_vec4(at.rows[s], at.vec4s[s]);
        }
    }
    return block;
}

alias Sums = array<vec4<f32>, 4u * ROW_VEC4S * COLUMN_VEC4S>;

// Adds the product of the tiles, in the order of K.
fn multiply_tiles(acc: ptr<function, Sums>, across: u32, down: u32) {
    for (var k = 0u; k < K_TILE; k++) {
        var bs: array<vec4<f32>, COLUMN_VEC4S>;
        for (var s = 0u; s < COLUMN_VEC4S; s++) {
            bs[s] = b_tile[k * VEC4S + across + s * ACROSS];
        }
        for (var r = 0u; r < ROW_VEC4S; r++) {
            let rows = a_tile[k * VEC4S + down + r * DOWN];
            for (var s = 0u; s < COLUMN_VEC4S; s++) {
                let at = 4u * (r * COLUMN_VEC4S + s);
                (*acc)[at] += rows.x * bs[s];
                (*acc)[at + 1u] += rows.y * bs[s];
                (*acc)[at + 2u] += rows.z * bs[s];
                (*acc)[at + 3u] += rows.w * bs[s];
            }
        }
    }
}

@compute @workgroup_size(2u * TILE)
fn matmul_tiles(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = params.first_group + in_part.xy;
    let m0 = group.y * TILE;
    let n0 = group.x * TILE;
    let across = lane % ACROSS;
    let down = lane / ACROSS;
    var acc: Sums;
    for (var i = 0u; i < 4u * ROW_VEC4S * COLUMN_VEC4S; i++) {
        acc[i] = vec4<f32>();
    }
    let along_k = select(B_TRANSPOSED, !A_TRANSPOSED, lane < TILE);
    let stride = select(params.b_stride, params.a_stride, lane < TILE);
    let row_step = select(K_TILE, 0u, along_k);
    let vec4_step = select(K_TILE * stride, K_TILE, along_k) / 4u;
    let whole = params.k / K_TILE * K_TILE;
    var at = first_place(lane, m0, n0);
    prepare_weight(lane, 2u * TILE);
    var block: array<vec4<f32>, 4>;
    if whole > 0u {
        block = load_whole(lane, at);
    }
    for (var k0 = 0u; k0 < whole; k0 += K_TILE) {
        workgroupBarrier();
        store_block(lane, block);
        workgroupBarrier();
        // The last turn loads its own block again, which nobody uses.
        let is_last = k0 + K_TILE >= whole;
        for (var s = 0u; s < 4u; s++) {
            at.rows[s] += select(row_step, 0u, is_last);
            at.vec4s[s] += select(vec4_step, 0u, is_last);
        }
        block = load_whole(lane, at);
        multiply_tiles(&acc, across, down);
    }
    if whole < params.k {
        workgroupBarrier();
        store_block(lane, load_block(lane, m0, n0, whole));
        workgroupBarrier();
        multiply_tiles(&acc, across, down);
    }
    if LOW_RANK {
        for (var k0 = 0u; k0 < params.k2; k0 += K_TILE) {
            workgroupBarrier();
            store_block(lane, load_second(lane, m0, n0, k0));
            workgroupBarrier();
            multiply_tiles(&acc, across, down);
        }
    }
    for (var r = 0u; r < ROW_VEC4S; r++) {
        for (var s = 0u; s < COLUMN_VEC4S; s++) {
            let n = n0 + 4u * (across + s * ACROSS);
            for (var i = 0u; i < 4u; i++) {
                let m = m0 + 4u * (down + r * DOWN) + i;
                if m < params.m && n < params.n {
                    let at = (params.c_start + m * params.c_stride + n) / 4u;
                    var value = params.alpha * acc[4u * (r * COLUMN_VEC4S + s) + i];
                    if params.accumulate == 1u {
                        value += c[at];
                    }
                    c[at] = with_epilogue_vec4(value, n, at);
                }
            }
        }
    }
}
