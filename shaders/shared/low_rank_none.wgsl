// Products of one pair of operands: what `shared/low_rank` defines, without bindings and never called.

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
