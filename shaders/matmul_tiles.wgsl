// The products of matmul.wgsl where everything is aligned to vec4s: starts, strides, the stored columns of A and B, and N.
//
// A workgroup computes a tile of TILE×TILE values, each invocation 4·ROW_VEC4S rows × 4·COLUMN_VEC4S columns of it in registers. Slices of A
// (K_TILE, TILE) and B (K_TILE, TILE) pass through workgroup memory (2 × 16·TILE × 4 bytes: 16 KiB for TILE = 128). To fill both, each
// invocation loads one block of 4×4 from memory, or one of A and one of B, while the previous slice is being multiplied, and transposes it
// where the matrix is stored along K. Each sum has one owner, which adds its terms in the order of K: bit-identical to matmul.wgsl.
//
// The loop over K has no conditions, and a block stays as it was stored until it is put into its tile: a compiler waits for a load where its
// branch ends or its value is first used, which must not be before the multiplication that hides it. Rows of A and columns of B beyond the edge
// are clamped to the last ones, since they contribute only to outputs that are not stored. Where K is no multiple of K_TILE, the first slice
// begins before K does, and is zero there.
//
// Each four rows of a tile lie PADDING vec4s behind the four before: invocations that put transposed blocks side by side then write to different
// banks. PADDING is 0 where workgroup memory has no room for it.

import package::shared::epilogue_none::{bias_vec4, with_epilogue_vec4};
import package::shared::product::{MatmulParams, ProductTile};
import package::shared::product_tile::{product_tile};
import package::shared::low_rank_none::{LOW_RANK, low_rank_x_vec4, low_rank_w_vec4};
import package::shared::weight::{STORED_AS_VALUES, decoded_vec4, prepare_weight, row_scale, stored_vec4};

override A_TRANSPOSED: bool = false; // A is stored (K, M)
override B_TRANSPOSED: bool = false; // B is stored (N, K)
override TILE: u32 = 64u;
override ROW_VEC4S: u32 = 2u;
override COLUMN_VEC4S: u32 = 1u;
override PADDING: u32 = 2u;

@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
// Binding 2: B.
@group(0) @binding(3) var<storage, read_write> c: array<vec4<f32>>;

const K_TILE = 16u;
const VEC4S = TILE / 4u; // vec4s per row of a tile
const ACROSS = VEC4S / COLUMN_VEC4S; // invocations along a row of C
const DOWN = VEC4S / ROW_VEC4S;
const INVOCATIONS = ACROSS * DOWN;
const BLOCKS = 2u * TILE / INVOCATIONS; // blocks per invocation: 1 of A or of B, or 2, the first of A
const FOUR_ROWS = 4u * VEC4S + PADDING; // vec4s from a tile's row k to its row k + 4
const TILE_VEC4S = 4u * FOUR_ROWS - PADDING;
// Whether the stored rows of A and B run along K.
const A_ALONG_K = !A_TRANSPOSED;
const B_ALONG_K = B_TRANSPOSED;

var<workgroup> tiles: array<vec4<f32>, 2u * TILE_VEC4S>; // A's (K_TILE, TILE), vec4s along M, then B's (K_TILE, TILE), vec4s along N

// Tells whether an invocation's block n is one of A.
fn is_in_a(lane: u32, n: u32) -> bool {
    return select(n == 0u, lane < TILE, BLOCKS == 1u);
}

// Returns the place of an invocation's block in its tile: vec4 along K, vec4 along M or N. Neighbouring invocations load neighbouring
// blocks.
fn place(lane: u32, along_k: bool) -> vec2<u32> {
    let i = lane % TILE;
    return select(vec2<u32>(i / VEC4S, i % VEC4S), vec2<u32>(i % (K_TILE / 4u), i / (K_TILE / 4u)), along_k);
}

fn transpose4x4(b: array<vec4<f32>, 4>) -> array<vec4<f32>, 4> {
    return array<vec4<f32>, 4>(
        vec4<f32>(b[0].x, b[1].x, b[2].x, b[3].x),
        vec4<f32>(b[0].y, b[1].y, b[2].y, b[3].y),
        vec4<f32>(b[0].z, b[1].z, b[2].z, b[3].z),
        vec4<f32>(b[0].w, b[1].w, b[2].w, b[3].w),
    );
}

fn transposed_where(along_k: bool, block: array<vec4<f32>, 4>) -> array<vec4<f32>, 4> {
    if along_k {
        return transpose4x4(block);
    }
    return block;
}

// Puts a block, whose stored rows run along K or not, into the tile that begins at `tile`.
fn put_into(tile: u32, lane: u32, block: array<vec4<f32>, 4>, along_k: bool) {
    let at = place(lane, along_k);
    let rows = transposed_where(along_k, block);
    let start = tile + at.x * FOUR_ROWS + at.y;
    for (var s = 0u; s < 4u; s++) {
        tiles[start + s * VEC4S] = rows[s];
    }
}

// Where the four stored rows of a block of A or B lie.
struct BlockPlace {
    rows: array<u32, 4>,  // their indices
    vec4s: array<u32, 4>, // their vec4s, counted from the beginning of the binding
}

// Returns where an invocation's block n of the first slice lies. That slice begins `lead` before K does: such places wrap around, or are clamped
// to K's beginning.
fn first_place(tile: ProductTile, lane: u32, n: u32, n0: u32, lead: u32, clamped: bool) -> BlockPlace {
    let in_a = is_in_a(lane, n);
    let along_k = select(B_ALONG_K, A_ALONG_K, in_a);
    let at = 4u * place(lane, along_k);
    let outer = select(n0, tile.m0, in_a) + at.y;
    let end = select(params.n, tile.m_end, in_a);
    let start = select(tile.b_start, tile.a_start, in_a);
    let stride = select(params.b_stride, params.a_stride, in_a);
    let before = vec2<u32>(select(lead, 0u, along_k), select(lead * stride, lead, along_k) / 4u);
    var block: BlockPlace;
    for (var s = 0u; s < 4u; s++) {
        let k = max(at.x + select(s, 0u, along_k), select(0u, lead, clamped));
        let row = select(k, min(outer + s, end - 1u), along_k);
        let column = select(min(outer, end - 4u), k, along_k);
        block.rows[s] = row - before.x;
        block.vec4s[s] = (start + row * stride + column) / 4u - before.y;
    }
    return block;
}

// A block as it is stored.
struct StoredBlock {
    vec4s: array<vec4<u32>, 4>,
    scales: array<f32, 4>, // of B's stored rows, where they have any
}

// Loads an invocation's block n. What a format does not need stays as it was `before`, or becomes zero: whichever lets compilers load without
// copying the rest, and so waiting for it.
fn load_block(lane: u32, n: u32, at: BlockPlace, before: StoredBlock) -> StoredBlock {
    var block = before;
    if is_in_a(lane, n) {
        for (var s = 0u; s < 4u; s++) {
            block.vec4s[s] = bitcast<vec4<u32>>(a[at.vec4s[s]]);
        }
    } else {
        for (var s = 0u; s < 4u; s++) {
            block.vec4s[s] = stored_vec4(at.vec4s[s], block.vec4s[s]);
            if !B_ALONG_K {
                block.scales[s] = row_scale(at.rows[s]);
            }
        }
    }
    return block;
}

// Loads an invocation's block n of the first slice, and the scales of rows along K. A is zero before K's beginning. B is zero or, in NF4, some
// finite number.
fn load_first(lane: u32, n: u32, at: BlockPlace, lead: u32) -> StoredBlock {
    let in_a = is_in_a(lane, n);
    let along_k = select(B_ALONG_K, A_ALONG_K, in_a);
    let k = 4u * place(lane, along_k).x;
    var block = load_block(lane, n, at, StoredBlock());
    for (var s = 0u; s < 4u; s++) {
        if k + select(s, 0u, along_k) < lead {
            block.vec4s[s] = vec4<u32>();
        }
        if B_ALONG_K && !in_a {
            block.scales[s] = row_scale(at.rows[s]);
        }
    }
    return block;
}

// Puts an invocation's block n into its tile.
fn put_block(lane: u32, n: u32, block: StoredBlock, at: BlockPlace) {
    let in_a = is_in_a(lane, n);
    var values: array<vec4<f32>, 4>;
    // One path for both where that is possible: invocations of A and of B may share a wave.
    if in_a || (STORED_AS_VALUES && A_ALONG_K == B_ALONG_K) {
        for (var s = 0u; s < 4u; s++) {
            values[s] = bitcast<vec4<f32>>(block.vec4s[s]);
        }
        put_into(select(TILE_VEC4S, 0u, in_a), lane, values, A_ALONG_K);
    } else {
        for (var s = 0u; s < 4u; s++) {
            values[s] = decoded_vec4(block.vec4s[s], block.scales[s], at.vec4s[s]);
        }
        put_into(TILE_VEC4S, lane, values, B_ALONG_K);
    }
}

// Loads an invocation's block n of the second pair's slice that begins at k0, zeros beyond the edge. A2 is stored like an A that is not
// transposed.
fn load_second(tile: ProductTile, lane: u32, n: u32, n0: u32, k0: u32) -> array<vec4<f32>, 4> {
    var row: u32;
    var column: u32;
    var end: vec2<u32>;
    if is_in_a(lane, n) {
        let at = 4u * place(lane, true);
        row = tile.m0 + at.y;
        column = k0 + at.x;
        end = vec2<u32>(tile.m_end, params.k2);
    } else {
        let at = 4u * place(lane, B_TRANSPOSED);
        row = select(k0 + at.x, n0 + at.y, B_TRANSPOSED);
        column = select(n0 + at.y, k0 + at.x, B_TRANSPOSED);
        end = select(vec2<u32>(params.k2, params.n), vec2<u32>(params.n, params.k2), B_TRANSPOSED);
    }
    var block: array<vec4<f32>, 4>;
    for (var s = 0u; s < 4u; s++) {
        block[s] = vec4<f32>();
        if row + s < end.x && column < end.y {
            if is_in_a(lane, n) {
                block[s] = low_rank_x_vec4(row + s, column);
            } else {
                block[s] = low_rank_w_vec4(row + s, column);
            }
        }
    }
    return block;
}

alias Sums = array<vec4<f32>, 4u * ROW_VEC4S * COLUMN_VEC4S>;

// Adds the product of the slices to `acc`, in the order of K.
fn multiply_tiles(acc: ptr<function, Sums>, across: u32, down: u32) {
    for (var k = 0u; k < K_TILE; k++) {
        let row = k / 4u * FOUR_ROWS + k % 4u * VEC4S;
        let a_at = row + down;
        let b_at = TILE_VEC4S + row + across;
        var bs: array<vec4<f32>, COLUMN_VEC4S>;
        for (var s = 0u; s < COLUMN_VEC4S; s++) {
            bs[s] = tiles[b_at + s * ACROSS];
        }
        for (var r = 0u; r < ROW_VEC4S; r++) {
            let rows = tiles[a_at + r * DOWN];
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

@compute @workgroup_size(INVOCATIONS)
fn matmul_tiles(@builtin(workgroup_id) in_part: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let group = params.first_group + in_part.xy;
    let tile = product_tile(group.y, TILE);
    if tile.m0 >= tile.m_end {
        return;
    }
    let n0 = group.x * TILE;
    let across = lane % ACROSS;
    let down = lane / ACROSS;
    var acc: Sums;
    for (var i = 0u; i < 4u * ROW_VEC4S * COLUMN_VEC4S; i++) {
        acc[i] = vec4<f32>();
    }
    let slices = (tile.k + K_TILE - 1u) / K_TILE;
    let lead = slices * K_TILE - tile.k;
    var at: array<BlockPlace, BLOCKS>;
    var blocks: array<StoredBlock, BLOCKS>;
    var row_step: array<u32, BLOCKS>;
    var vec4_step: array<u32, BLOCKS>;
    for (var n = 0u; n < BLOCKS; n++) {
        let in_a = is_in_a(lane, n);
        let along_k = select(B_ALONG_K, A_ALONG_K, in_a);
        row_step[n] = select(K_TILE, 0u, along_k);
        vec4_step[n] = select(K_TILE * select(params.b_stride, params.a_stride, in_a), K_TILE, along_k) / 4u;
        blocks[n] = load_first(lane, n, first_place(tile, lane, n, n0, lead, true), lead);
        // Of a single slice, the loop loads the same block again.
        at[n] = first_place(tile, lane, n, n0, lead, slices == 1u);
    }
    prepare_weight(lane, INVOCATIONS);
    for (var slice = 0u; slice < slices; slice++) {
        workgroupBarrier();
        for (var n = 0u; n < BLOCKS; n++) {
            put_block(lane, n, blocks[n], at[n]);
        }
        workgroupBarrier();
        // The last turn loads its own block again, which nobody uses.
        let go = select(0u, 1u, slice + 1u < slices);
        for (var n = 0u; n < BLOCKS; n++) {
            for (var s = 0u; s < 4u; s++) {
                at[n].rows[s] += go * row_step[n];
                at[n].vec4s[s] += go * vec4_step[n];
            }
            blocks[n] = load_block(lane, n, at[n], blocks[n]);
        }
        multiply_tiles(&acc, across, down);
    }
    if LOW_RANK {
        for (var k0 = 0u; k0 < params.k2; k0 += K_TILE) {
            workgroupBarrier();
            for (var n = 0u; n < BLOCKS; n++) {
                let block = load_second(tile, lane, n, n0, k0);
                if is_in_a(lane, n) {
                    put_into(0u, lane, block, true);
                } else {
                    put_into(TILE_VEC4S, lane, block, B_ALONG_K);
                }
            }
            workgroupBarrier();
            multiply_tiles(&acc, across, down);
        }
    }
    // The bias is loaded once per column: with it in the inner body, compilers do not unroll both loops, and keep the sums in memory.
    for (var s = 0u; s < COLUMN_VEC4S; s++) {
        let n = n0 + 4u * (across + s * ACROSS);
        if n < params.n {
            let columns_bias = bias_vec4(n);
            for (var r = 0u; r < ROW_VEC4S; r++) {
                for (var i = 0u; i < 4u; i++) {
                    let m = tile.m0 + 4u * (down + r * DOWN) + i;
                    if m < tile.m_end {
                        let at = (tile.c_start + m * params.c_stride + n) / 4u;
                        var value = params.alpha * acc[4u * (r * COLUMN_VEC4S + s) + i];
                        if params.accumulate == 1u {
                            value += c[at];
                        }
                        c[at] = with_epilogue_vec4(value, columns_bias, at);
                    }
                }
            }
        }
    }
}
