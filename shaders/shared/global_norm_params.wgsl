// Parameters of the global norm's kernels.

struct GlobalNormParams {
    n: u32,     // elements of this page; partial sums in global_norm_total
    first: u32, // where this page's partial sums begin
    scale: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: GlobalNormParams;
