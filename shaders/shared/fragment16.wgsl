// Fragments of 16×16 for matmul_coop.wgsl and attention_coop.wgsl (NVIDIA, AMD). `shared/fragment8` defines the same names.

const EDGE = 16u;
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;

// Tensor cores truncate when they add, which over a long sum is an error of its own (arXiv 2203.03341): a slice of K is summed by
// itself, and added outside of them, where f32 is rounded.
fn begin_slice(sum: Sum) -> Sum {
    return Sum();
}

fn end_slice(sum: Sum, slice: Sum) -> Sum {
    return sum + slice;
}
