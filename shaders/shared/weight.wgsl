// Weights stored as f32, in binding 2 of whoever imports this. `shared/weight_bf16`, `shared/weight_int8` and `shared/weight_nf4` define
// the same names over other storage. Elements are counted from the beginning of the binding; `row` is the stored row that they lie in.

@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> weight_vec4s: array<vec4<f32>>;

// Nothing has to be prepared; `shared/weight_nf4_tables` copies its tables.
fn prepare_weight(lane: u32, invocations: u32) {}

fn weight_value(row: u32, i: u32) -> f32 {
    return weights[i];
}

// Elements i to i + 3, i being a multiple of four. An entry point may use it beside `weight_value`.
fn weight_values(row: u32, i: u32) -> vec4<f32> {
    return vec4<f32>(weights[i], weights[i + 1u], weights[i + 2u], weights[i + 3u]);
}

// Elements 4·vec4 to 4·vec4 + 3 in one load. An entry point that uses it uses neither of the others.
fn weight_vec4(row: u32, vec4_at: u32) -> vec4<f32> {
    return weight_vec4s[vec4_at];
}
