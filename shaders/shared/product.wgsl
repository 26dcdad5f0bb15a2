// What a product C = alpha·A·B (+ C) is told: the matrices' sizes and places. A is (M, K), B (K, N), either stored transposed.

struct MatmulParams {
    m: u32,
    n: u32,
    k: u32,
    accumulate: u32, // 1: add to C; where there is an override ACCUMULATE, that says it
    a_start: u32,    // first element, and elements a row, as stored
    a_stride: u32,
    b_start: u32,
    b_stride: u32,
    c_start: u32,
    c_stride: u32,
    alpha: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: MatmulParams;
