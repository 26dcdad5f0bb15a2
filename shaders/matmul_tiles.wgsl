// The products of matmul.wgsl where everything is aligned to vec4s: starts, strides, the stored columns of A and B, and N.
//
// 2·TILE invocations compute a tile of TILE×TILE values, each 4·ROW_VEC4S rows × 4·COLUMN_VEC4S columns of it in registers. Tiles of A
// (K_TILE, TILE) and B (K_TILE, TILE) pass through workgroup memory (2 × 16·TILE × 4 bytes: 16 KiB for TILE = 128). To fill both, each
// invocation loads one block of 4×4 from memory while the previous block is being multiplied, and transposes it where the matrix is stored
// along K. Each sum has one owner, which adds its terms in the order of K: bit-identical to matmul.wgsl.
//
// Loads of whole tiles have no condition, and a block stays as it was stored until it is put into its tile: a compiler waits for a load where its
// branch ends or its value is first used, which must not be before the multiplication that hides it. Rows of A and columns of B beyond the edge
// are clamped to the last ones, since they contribute only to outputs that are not stored; what is clamped along K becomes zero in its tile.
//
// A row k of a tile has its vec4s at their index XOR 2·(k / 4): invocations that put transposed blocks side by side then write to different banks.

import package::shared::epilogue_none::{with_epilogue_vec4};
import package::shared::product::{MatmulParams};
import package::shared::low_rank_none::{LOW_RANK, low_rank_x_vec4, low_rank_w_vec4};
import package::shared::weight::{decoded_vec4, prepare_weight, stored_vec4};

override A_TRANSPOSED: bool = false; // A is stored (K, M)
override B_TRANSPOSED: bool = false; // B is stored (N, K)
override TILE: u32 = 64u;
override ROW_VEC4S: u32 = 2u;
override COLUMN_VEC4S: u32 = 1u;

@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
// Binding 2: B.
@group(0) @binding(3) var<storage, read_write> c: array<vec4<f32>>;

const K_TILE = 16u;
const VEC4S = TILE / 4u; // vec4s per row of a tile
const ACROSS = VEC4S / COLUMN_VEC4S; // invocations along a row of C
const DOWN = VEC4S / ROW_VEC4S;
const TILE_VEC4S = 16u * VEC4S; // vec4s of a tile
// Whether the stored rows of A and B run along K.
const A_ALONG_K = !A_TRANSPOSED;
const B_ALONG_K = B_TRANSPOSED;

var<workgroup> tiles: array<vec4<f32>, 2u * TILE_VEC4S>; // A's (K_TILE, TILE), vec4s along M, then B's (K_TILE, TILE), vec4s along N

// Returns the place of an invocation's block in its tile: vec4 along K, vec4 along M or N. Neighbouring invocations load neighbouring
// blocks.
fn place(i: u32, along_k: bool) -> vec2<u32> {
    return select(vec2<u32>(i / VEC4S, i % VEC4S), vec2<u32>(i % (K_TILE / 4u), i / (K_TILE / 4u)), along_k);
}

// Loads this invocation's block of the second pair's tiles that begin at k0, zeros beyond the edge. A2 is stored like an A that is not
// transposed.
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

fn transposed_where(along_k: bool, block: array<vec4<f32>, 4>) -> array<vec4<f32>, 4> {
    if along_k {
        return transpose4x4(block);
    }
    return block;
}

// Puts this invocation's block, whose stored rows run along K or not, into its tile.
fn put_block(lane: u32, block: array<vec4<f32>, 4>, along_k: bool) {
    let at = place(lane % TILE, along_k);
    let rows = transposed_where(along_k, block);
    let start = lane / TILE * TILE_VEC4S + 4u * at.x * VEC4S + (at.y ^ (2u * at.x));
    for (var s = 0u; s < 4u; s++) {
        tiles[start + s * VEC4S] = rows[s];
    }
}

fn store_block(lane: u32, block: array<vec4<f32>, 4>) {
    // One path for both where that is possible: invocations of A and of B may share a wave.
    if A_ALONG_K == B_ALONG_K {
        put_block(lane, block, A_ALONG_K);
    } else if lane < TILE {
        put_block(lane, block, A_ALONG_K);
    } else {
        put_block(lane, block, B_ALONG_K);
    }
}

// Place of an invocation's block of four stored rows in memory.
struct BlockPlace {
    rows: array<u32, 4>,  // stored rows
    vec4s: array<u32, 4>, // their vec4s, counted from the beginning of the binding
}

// Returns the place of this invocation's block of the tiles that begin at k0, rows and columns clamped to the last ones.
fn place_of_block(lane: u32, m0: u32, n0: u32, k0: u32) -> BlockPlace {
    let is_a = lane < TILE;
    let along_k = select(B_ALONG_K, A_ALONG_K, is_a);
    let at = 4u * place(lane % TILE, along_k);
    let k = k0 + at.x;
    let outer = select(n0, m0, is_a) + at.y;
    let end = select(params.n, params.m, is_a);
    let start = select(params.b_start, params.a_start, is_a);
    let stride = select(params.b_stride, params.a_stride, is_a);
    var block: BlockPlace;
    for (var s = 0u; s < 4u; s++) {
        let row = select(min(k + s, params.k - 1u), min(outer + s, end - 1u), along_k);
        let column = select(min(outer, end - 4u), min(k, params.k - 4u), along_k);
        block.rows[s] = row;
        block.vec4s[s] = (start + row * stride + column) / 4u;
    }
    return block;
}

// A block with zeros beyond K, as its values are loaded: clamped rows or columns are there.
fn zeroed_beyond_k(lane: u32, loaded: array<vec4<f32>, 4>, k0: u32) -> array<vec4<f32>, 4> {
    let along_k = select(B_ALONG_K, A_ALONG_K, lane < TILE);
    let k = k0 + 4u * place(lane % TILE, along_k).x;
    var block = loaded;
    for (var s = 0u; s < 4u; s++) {
        if select(k + s, k, along_k) >= params.k {
            block[s] = vec4<f32>();
        }
    }
    return block;
}

// A block of A or B as it is stored.
alias StoredBlock = array<vec4<u32>, 4>;

// Loads a block that lies inside A or B.
fn load_stored(lane: u32, at: BlockPlace) -> StoredBlock {
    var block: StoredBlock;
    if lane < TILE {
        for (var s = 0u; s < 4u; s++) {
            block[s] = bitcast<vec4<u32>>(a[at.vec4s[s]]);
        }
    } else {
        for (var s = 0u; s < 4u; s++) {
            block[s] = stored_vec4(at.rows[s], at.vec4s[s]);
        }
    }
    return block;
}

fn decoded_block(lane: u32, stored: StoredBlock, at: BlockPlace) -> array<vec4<f32>, 4> {
    var block: array<vec4<f32>, 4>;
    if lane < TILE {
        for (var s = 0u; s < 4u; s++) {
            block[s] = bitcast<vec4<f32>>(stored[s]);
        }
    } else {
        for (var s = 0u; s < 4u; s++) {
            block[s] = decoded_vec4(stored[s], at.vec4s[s]);
        }
    }
    return block;
}

alias Sums = array<vec4<f32>, 4u * ROW_VEC4S * COLUMN_VEC4S>;

// Adds the product of the tiles to `acc`, in the order of K.
fn multiply_tiles(acc: ptr<function, Sums>, across: u32, down: u32) {
    for (var four = 0u; four < K_TILE / 4u; four++) {
        let a_at = 4u * four * VEC4S + (down ^ (2u * four));
        let b_at = TILE_VEC4S + 4u * four * VEC4S + (across ^ (2u * four));
        for (var k = 0u; k < 4u; k++) {
            var bs: array<vec4<f32>, COLUMN_VEC4S>;
            for (var s = 0u; s < COLUMN_VEC4S; s++) {
                bs[s] = tiles[b_at + k * VEC4S + s * ACROSS];
            }
            for (var r = 0u; r < ROW_VEC4S; r++) {
                let rows = tiles[a_at + k * VEC4S + r * DOWN];
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
    let along_k = select(B_ALONG_K, A_ALONG_K, lane < TILE);
    let stride = select(params.b_stride, params.a_stride, lane < TILE);
    let row_step = select(K_TILE, 0u, along_k);
    let vec4_step = select(K_TILE * stride, K_TILE, along_k) / 4u;
    var at = place_of_block(lane, m0, n0, 0u);
    prepare_weight(lane, 2u * TILE);
    var stored = load_stored(lane, at);
    for (var k0 = 0u; k0 < params.k; k0 += K_TILE) {
        var block = decoded_block(lane, stored, at);
        if k0 + K_TILE > params.k {
            block = zeroed_beyond_k(lane, block, k0);
        }
        workgroupBarrier();
        store_block(lane, block);
        workgroupBarrier();
        let next = k0 + K_TILE;
        if next + K_TILE <= params.k {
            for (var s = 0u; s < 4u; s++) {
                at.rows[s] += row_step;
                at.vec4s[s] += vec4_step;
            }
        } else {
            // The last tile; behind it, some block that nobody uses.
            at = place_of_block(lane, m0, n0, next);
        }
        stored = load_stored(lane, at);
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
