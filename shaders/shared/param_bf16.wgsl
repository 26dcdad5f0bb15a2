// Parameters as bf16, two per word, the even element in the low half. Stores with stochastic rounding to one of the two neighbours, the
// nearer being likelier, so that the expected value is exact. An update below half a step is then not lost, as it would be in rounding to
// the nearest. The random bits are a function of (key, update, vec4), so a resumed run draws the same bits.

import package::shared::philox::{philox2x32};

@group(0) @binding(3) var<storage, read_write> p: array<vec2<u32>>;

fn param_vec4(vec4_at: u32) -> vec4<f32> {
    let w = p[vec4_at];
    return bitcast<vec4<f32>>(vec4<u32>(w.x << 16u, w.x & 0xffff0000u, w.y << 16u, w.y & 0xffff0000u));
}

fn store_param_vec4(vec4_at: u32, value: vec4<f32>, counter: vec2<u32>, key: u32) {
    let drawn = philox2x32(counter, key);
    let chance = vec4<u32>(drawn.x & 0xffffu, drawn.x >> 16u, drawn.y & 0xffffu, drawn.y >> 16u);
    let bits = bitcast<vec4<u32>>(value);
    // One bf16 step of the magnitude is 2¹⁶ f32 steps, so random low bits carry with the probability of the part that is cut off. Values
    // that are not finite stay as they are.
    let finite = (bits & vec4<u32>(0x7f800000u)) != vec4<u32>(0x7f800000u);
    let halves = (bits + select(vec4<u32>(0u), chance, finite)) >> vec4<u32>(16u);
    // A NaN whose only mantissa bits are in the low half would become infinity.
    let lost = (bits & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    let kept = halves | select(vec4<u32>(0u), vec4<u32>(0x40u), lost);
    p[vec4_at] = vec2<u32>(kept.x | (kept.y << 16u), kept.z | (kept.w << 16u));
}
