// What a product C = alpha·(A·B + A2·B2) (+ C) (+ bias) (+ residual) is told: the matrices' sizes and places. A is (M, K), B (K, N), either
// stored transposed. A2 (M, K2) and B2 (K2, N, stored transposed where B is) are there where shared/low_rank is, a bias (N) and a residual,
// laid out as C, where shared/epilogue is.

struct MatmulParams {
    first_group: vec2<u32>, // of the part of the grid that a dispatch runs: long ones are split (src/gpu/submission_budget.rs)
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
    k2: u32,
    low_rank_x_start: u32,
    low_rank_x_stride: u32,
    low_rank_w_start: u32,
    low_rank_w_stride: u32,
    bias_start: u32,
}

@group(0) @binding(0) var<uniform> params: MatmulParams;
