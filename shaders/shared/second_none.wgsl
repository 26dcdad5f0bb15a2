// Products of one pair of operands: what `shared/second` defines, without bindings and never called.

const SECOND = false;

fn a2_value(row: u32, column: u32) -> f32 {
    return 0.0;
}

fn a2_quad(row: u32, column: u32) -> vec4<f32> {
    return vec4<f32>();
}

fn b2_value(row: u32, column: u32) -> f32 {
    return 0.0;
}

fn b2_quad(row: u32, column: u32) -> vec4<f32> {
    return vec4<f32>();
}
