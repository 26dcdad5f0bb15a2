// Parameters of a product C = alpha·(A·B + A2·B2) (+ C) (+ bias) (+ residual): sizes and places of its matrices. A is (M, K), B (K, N), and
// either may be stored transposed. A2 (M, K2) and B2 (K2, N; stored transposed where B is) exist with shared/low_rank. The bias (N) and the
// residual, laid out like C, exist with shared/epilogue.

struct MatmulParams {
    first_group: vec2<u32>, // first workgroup of this dispatch: long grids are split (src/gpu/submission_budget.rs)
    m: u32,
    n: u32,
    k: u32,
    accumulate: u32, // 1: add to C; an override ACCUMULATE, where there is one, replaces this
    a_start: u32,    // first element, and elements per row as stored
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
    first_expert: u32, // of `shared/product_tile_experts`: first expert whose matrix is bound, and how many of them are
    n_experts: u32,
    expert_stride: u32, // elements from an expert's matrix to the next one's, where they are counted from the binding's beginning
    expert_words: u32,  // words from an expert's matrix to the next one's, where each is quantised alone
}

// Part of a product that a workgroup computes (`shared/product_tile`).
struct ProductTile {
    m0: u32,    // first row of A and C
    m_end: u32, // end of the rows; at most m0 where there is nothing to compute
    k: u32,     // terms of each sum
    a_start: u32,
    b_start: u32,
    c_start: u32,
}

@group(0) @binding(0) var<uniform> params: MatmulParams;
