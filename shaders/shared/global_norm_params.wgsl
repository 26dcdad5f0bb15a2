// Parameters of the global norm's kernels.

struct GlobalNormParams {
    n: u32,     // elements of this bucket; in global_norm_total, partial sums
    first: u32, // index of this bucket's first partial sum
    scale: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: GlobalNormParams;
