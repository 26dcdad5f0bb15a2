// The second pair of operands of a product, of low rank: both f32; K2, starts and strides are multiples of four. `shared/second_none` defines
// the same names for products of one pair. Rows and columns are those of the matrices as stored.

import package::shared::product::{MatmulParams};

const SECOND = true;

@group(0) @binding(4) var<storage, read> a2: array<f32>;
@group(0) @binding(4) var<storage, read> a2_quads: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> b2: array<f32>;
@group(0) @binding(5) var<storage, read> b2_quads: array<vec4<f32>>;

// An entry point uses values or quads of a matrix, not both; quads begin at multiples of four.
fn a2_value(row: u32, column: u32) -> f32 {
    return a2[params.a2_start + row * params.a2_stride + column];
}

fn a2_quad(row: u32, column: u32) -> vec4<f32> {
    return a2_quads[(params.a2_start + row * params.a2_stride + column) / 4u];
}

fn b2_value(row: u32, column: u32) -> f32 {
    return b2[params.b2_start + row * params.b2_stride + column];
}

fn b2_quad(row: u32, column: u32) -> vec4<f32> {
    return b2_quads[(params.b2_start + row * params.b2_stride + column) / 4u];
}
