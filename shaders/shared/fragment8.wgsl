// Fragments of 8×8 for matmul_coop.wgsl and attention_coop.wgsl (Apple's GPUs, lavapipe). `shared/fragment16` defines the same names.

const EDGE = 8u;
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sum = coop_mat8x8<f32, C>;

// These matrices add as f32 does, so a slice of K is added to the sum directly.
fn begin_slice(sum: Sum) -> Sum {
    return sum;
}

fn end_slice(sum: Sum, slice: Sum) -> Sum {
    return slice;
}
