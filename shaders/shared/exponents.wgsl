// A softmax to base 2 with whole exponents: p = 2^fract(s)·2^(⌊s⌋ − exponent), where s is in units of ln 2. Raising the exponent scales
// earlier sums by a power of two, which changes no digit. A row's result therefore does not depend on how its keys are divided into blocks.

const LOG2_E = 1.4426950408889634;
const LN_2 = 0.6931471805599453;
const LOWEST = -1e30; // score of a key that is not seen

// Returns 2^n for n in -126 .. 0, and 2^-126 below. Uses signed integers, because CPU vectors have no unsigned conversion.
fn pow2(n: f32) -> f32 {
    return bitcast<f32>(i32(max(n, -126.0) + 127.0) << 23u);
}

fn pow2_vec4(n: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(pow2(n.x), pow2(n.y), pow2(n.z), pow2(n.w));
}
