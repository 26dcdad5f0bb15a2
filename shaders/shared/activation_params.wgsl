// Parameters of the kernels of activation.wgsl and activation_rows.wgsl.

struct ActivationParams {
    n: u32, // T × F
    width: u32,
    gated: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: ActivationParams;
