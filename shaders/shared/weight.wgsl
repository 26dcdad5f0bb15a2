// Weights stored as f32. `shared/weight_bf16` defines the same names over packed bf16.

alias WeightWord = f32;
alias WeightQuad = vec4<f32>;

// The word that holds element i.
fn weight_word(i: u32) -> u32 {
    return i;
}

fn weight_value(word: WeightWord, i: u32) -> f32 {
    return word;
}

fn weight_values(quad: WeightQuad) -> vec4<f32> {
    return quad;
}
