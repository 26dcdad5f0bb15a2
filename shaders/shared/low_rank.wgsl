// The second pair of operands of a product, of low rank: both in f32; K2, starts and strides are multiples of four. `shared/low_rank_none`
// defines the same names for products of one pair. Rows and columns are those of the matrices as stored.

import package::shared::product::{MatmulParams};

const LOW_RANK = true;

@group(0) @binding(4) var<storage, read> a2: array<f32>;
@group(0) @binding(4) var<storage, read> low_rank_x_vec4s: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> b2: array<f32>;
@group(0) @binding(5) var<storage, read> low_rank_w_vec4s: array<vec4<f32>>;

// An entry point uses values or vec4s of a matrix, not both. vec4s begin at multiples of four.
fn low_rank_x_value(row: u32, column: u32) -> f32 {
    return a2[params.low_rank_x_start + row * params.low_rank_x_stride + column];
}

fn low_rank_x_vec4(row: u32, column: u32) -> vec4<f32> {
    return low_rank_x_vec4s[(params.low_rank_x_start + row * params.low_rank_x_stride + column) / 4u];
}

fn low_rank_w_value(row: u32, column: u32) -> f32 {
    return b2[params.low_rank_w_start + row * params.low_rank_w_stride + column];
}

fn low_rank_w_vec4(row: u32, column: u32) -> vec4<f32> {
    return low_rank_w_vec4s[(params.low_rank_w_start + row * params.low_rank_w_stride + column) / 4u];
}
