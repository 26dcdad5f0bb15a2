// Parameters of RMSNorm's kernels. A row is `width` values at `start + t·stride + group·width`; with `groups` > 1, a row is one head of a
// slot of heads.

struct RmsnormParams {
    rows: u32,  // tokens × groups
    groups: u32,
    width: u32,
    block: u32, // rmsnorm_bwd_w: rows per partial sum
    x_start: u32,
    x_stride: u32,
    y_start: u32,
    y_stride: u32,
    eps: f32,
    offset: f32,
    accumulate: u32, // rmsnorm_bwd_x: 1: add to d_x
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: RmsnormParams;
