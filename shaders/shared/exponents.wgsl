// A softmax to base 2 over whole exponents: p = 2^fract(s)·2^(⌊s⌋ − exponent), s being in units of ln 2. A higher exponent scales what was summed by
// a power of two, which changes no digit: so a row's result does not depend on how what it sees falls into blocks.

const LOG2_E = 1.4426950408889634;
const LN_2 = 0.6931471805599453;
const LOWEST = -1e30; // of what is not seen

// 2^n for n of -126 .. 0; lower ones are 2^-126. Of a signed integer: CPUs' vectors have no unsigned conversion.
fn pow2(n: f32) -> f32 {
    return bitcast<f32>(i32(max(n, -126.0) + 127.0) << 23u);
}

fn pow2_vec4(n: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(pow2(n.x), pow2(n.y), pow2(n.z), pow2(n.w));
}
