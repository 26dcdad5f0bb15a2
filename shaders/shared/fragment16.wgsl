// Fragments of 16×16 for matmul_coop.wgsl and attention_coop.wgsl (NVIDIA, AMD). `shared/fragment8` defines the same names.

import package::shared::split_f16::{SPLIT};

const EDGE = 16u;
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;

// Tensor cores truncate when they add, and over a long sum the error grows (arXiv 2203.03341): a bit of 2⁻²⁴ for each fragment of K. With
// SPLIT, each slice of K is therefore summed from zero, and the slices are added in ordinary f32 arithmetic, which rounds. Without SPLIT,
// the operands were rounded to 2⁻¹¹, and a slice is added to the sum directly.
fn begin_slice(sum: Sum) -> Sum {
    if SPLIT {
        return Sum();
    }
    return sum;
}

fn end_slice(sum: Sum, slice: Sum) -> Sum {
    if SPLIT {
        return sum + slice;
    }
    return slice;
}
