// Tiles of a product of two matrices: `rows` rows each. `shared/product_tile_experts` defines the same names for rows of many experts, each
// with a matrix B of its own.

import package::shared::product::{MatmulParams, ProductTile};

fn product_tile(index: u32, rows: u32) -> ProductTile {
    return ProductTile(index * rows, params.m, params.k, params.a_start, params.b_start, params.c_start);
}
