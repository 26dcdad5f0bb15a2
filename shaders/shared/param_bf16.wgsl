// Parameters as bf16, two to a word, the even element in the low half; stored with stochastic rounding: to one of the two neighbours, the
// nearer the likelier, so that the mean over chance is the value. An update below half a step is then not lost, as it is when rounded to
// the nearest. Chance is a function of (key, update, vec4): a run that is resumed draws the same.

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
    // Of magnitudes, 2¹⁶ steps of f32 to one of bf16: a carry goes up with the probability of the part that is cut off. What is not
    // finite stays what it is.
    let finite = (bits & vec4<u32>(0x7f800000u)) != vec4<u32>(0x7f800000u);
    let halves = (bits + select(vec4<u32>(0u), chance, finite)) >> vec4<u32>(16u);
    // A NaN whose low half alone says so.
    let lost = (bits & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    let kept = halves | select(vec4<u32>(0u), vec4<u32>(0x40u), lost);
    p[vec4_at] = vec2<u32>(kept.x | (kept.y << 16u), kept.z | (kept.w << 16u));
}
