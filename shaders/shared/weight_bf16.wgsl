// Weights stored as bf16, two to a u32, the even element in the low half. bf16 is the upper half of an f32: exact.

alias WeightWord = u32;
alias WeightQuad = vec2<u32>;

fn weight_word(i: u32) -> u32 {
    return i >> 1u;
}

fn weight_value(word: WeightWord, i: u32) -> f32 {
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (i & 1u) == 1u));
}

fn weight_values(quad: WeightQuad) -> vec4<f32> {
    return vec4<f32>(
        bitcast<f32>(quad.x << 16u),
        bitcast<f32>(quad.x & 0xffff0000u),
        bitcast<f32>(quad.y << 16u),
        bitcast<f32>(quad.y & 0xffff0000u),
    );
}
