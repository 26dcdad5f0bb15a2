// An f32 as one or two f16, for cooperative matrices: x = high + low, 11 bits each.

override SPLIT: bool = true;

// Rounds to f16's 11 bits, in integers: no compiler reorders them, and the result does not depend on a device's rounding of conversions.
fn rounded(v: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>((bitcast<vec4<u32>>(v) + vec4<u32>(0x1000u)) & vec4<u32>(0xffffe000u));
}
