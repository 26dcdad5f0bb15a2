// No second pair of operands: defines the names of `shared/low_rank` without bindings; the functions are never called.

const LOW_RANK = false;

fn low_rank_x_value(row: u32, column: u32) -> f32 {
    return 0.0;
}

fn low_rank_x_vec4(row: u32, column: u32) -> vec4<f32> {
    return vec4<f32>();
}

fn low_rank_w_value(row: u32, column: u32) -> f32 {
    return 0.0;
}

fn low_rank_w_vec4(row: u32, column: u32) -> vec4<f32> {
    return vec4<f32>();
}
