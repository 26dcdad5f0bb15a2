// Weights stored as bf16, two per word, the even element in the low half. bf16 is the upper half of an f32, so unpacking is exact.

@group(0) @binding(2) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read> weight_vec4s: array<vec2<u32>>;

fn prepare_weight(lane: u32, invocations: u32) {}

fn weight_value(row: u32, i: u32) -> f32 {
    let word = weights[i >> 1u];
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (i & 1u) == 1u));
}

fn weight_values(row: u32, i: u32) -> vec4<f32> {
    return unpack(vec2<u32>(weights[i >> 1u], weights[(i >> 1u) + 1u]));
}

fn weight_vec4(row: u32, vec4_at: u32) -> vec4<f32> {
    return unpack(weight_vec4s[vec4_at]);
}

const STORED_AS_VALUES = false;

// Has zeros in the place of `before`: RADV then loads into the place of the next slice, and does not wait in order to copy.
fn stored_vec4(vec4_at: u32, before: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(weight_vec4s[vec4_at], 0u, 0u);
}

// Rows have no scales.
fn row_scale(row: u32) -> f32 {
    return 0.0;
}

fn decoded_vec4(stored: vec4<u32>, scale: f32, vec4_at: u32) -> vec4<f32> {
    return unpack(stored.xy);
}

fn unpack(words: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(
        bitcast<f32>(words.x << 16u),
        bitcast<f32>(words.x & 0xffff0000u),
        bitcast<f32>(words.y << 16u),
        bitcast<f32>(words.y & 0xffff0000u),
    );
}
