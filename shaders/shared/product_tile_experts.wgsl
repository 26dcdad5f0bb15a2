// Tiles of the products of many experts at once. Rows of A and C are in the order of experts (shaders/router.wgsl).
//
//   C[r,n] = Σ_k A[r,k]·B_e[k,n]             e: the expert of row r; tile i has rows routing[4i+1] .. routing[4i+2] of expert routing[4i]
//   C_e[m,n] (+)= Σ_r A[r,m]·B[r,n]          A_TRANSPOSED: r: the rows of e, routing[e] .. routing[e+1]
//
// The binding of B, or of C, holds `n_experts` matrices from `first_expert` on; other experts' tiles have nothing to compute. The importing
// module defines A_TRANSPOSED. Defines the names of `shared/weight_base`, too.

import package::shared::product::{MatmulParams, ProductTile};

@group(0) @binding(4) var<storage, read> routing: array<u32>;

var<private> first_word: u32 = 0u;

// Returns the first word of the expert's own matrix, where it is quantised.
fn weight_base() -> u32 {
    return first_word;
}

fn product_tile(index: u32, rows: u32) -> ProductTile {
    if A_TRANSPOSED {
        let tiles = (params.m + rows - 1u) / rows;
        let local = index / tiles;
        let first = routing[params.first_expert + local];
        // At most all rows, whatever the memory holds.
        let end = min(routing[params.first_expert + local + 1u], params.k);
        let has_rows = first < end;
        return ProductTile(
            index % tiles * rows,
            select(0u, params.m, has_rows),
            select(0u, end - first, has_rows),
            params.a_start + first * params.a_stride,
            params.b_start + first * params.b_stride,
            params.c_start + local * params.expert_stride,
        );
    }
    let local = routing[4u * index] - params.first_expert; // beyond n_experts where the expert is before the first
    first_word = local * params.expert_words;
    return ProductTile(
        routing[4u * index + 1u],
        select(0u, min(routing[4u * index + 2u], params.m), local < params.n_experts),
        params.k,
        params.a_start,
        params.b_start + local * params.expert_stride,
        params.c_start,
    );
}
