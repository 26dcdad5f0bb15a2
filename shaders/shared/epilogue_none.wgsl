// No epilogue: defines the names of `shared/epilogue` without bindings.

fn with_epilogue(value: f32, n: u32, at: u32) -> f32 {
    return value;
}

fn bias_vec4(n: u32) -> vec4<f32> {
    return vec4<f32>();
}

fn with_epilogue_vec4(values: vec4<f32>, columns_bias: vec4<f32>, vec4_at: u32) -> vec4<f32> {
    return values;
}
