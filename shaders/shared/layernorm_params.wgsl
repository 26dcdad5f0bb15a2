// Parameters of LayerNorm's kernels.

struct LayernormParams {
    rows: u32,
    width: u32,
    block: u32, // layernorm_bwd_w: rows per partial sum
    accumulate: u32, // layernorm_bwd_x: 1: add to d_x
    eps: f32,
    offset: f32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: LayernormParams;
