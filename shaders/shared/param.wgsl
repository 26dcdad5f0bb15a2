// Parameters as f32, in binding 3 of the importing module. `shared/param_bf16` defines the same names over bf16.

@group(0) @binding(3) var<storage, read_write> p: array<vec4<f32>>;

fn param_vec4(vec4_at: u32) -> vec4<f32> {
    return p[vec4_at];
}

// `counter` and `key` determine the random bits of `shared/param_bf16`; f32 needs none.
fn store_param_vec4(vec4_at: u32, value: vec4<f32>, counter: vec2<u32>, key: u32) {
    p[vec4_at] = value;
}
