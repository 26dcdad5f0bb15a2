// Weights stored as f32, in binding 2 of the importing module. `shared/weight_bf16`, `shared/weight_int8` and `shared/weight_nf4` define
// the same names over other formats. Elements are counted from the beginning of the binding; `row` is their stored row.

@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> weight_vec4s: array<vec4<f32>>;

// All invocations of a workgroup call it together, before the other functions. Only NF4 has something to prepare.
fn prepare_weight(lane: u32, invocations: u32) {}

fn weight_value(row: u32, i: u32) -> f32 {
    return weights[i];
}

// Returns elements i to i + 3, where i is a multiple of four. An entry point may use this beside `weight_value`.
fn weight_values(row: u32, i: u32) -> vec4<f32> {
    return vec4<f32>(weights[i], weights[i + 1u], weights[i + 2u], weights[i + 3u]);
}

// Returns elements 4·vec4 to 4·vec4 + 3 in one load. An entry point that uses this uses neither of the others.
fn weight_vec4(row: u32, vec4_at: u32) -> vec4<f32> {
    return weight_vec4s[vec4_at];
}

// Whether values are stored as they are; `decoded_vec4` is then a bitcast.
const STORED_AS_VALUES = true;

// Loads the same four elements as they are stored, without using them yet. Components that the format does not need are those of
// `before`, or zeros.
fn stored_vec4(vec4_at: u32, before: vec4<u32>) -> vec4<u32> {
    return bitcast<vec4<u32>>(weight_vec4s[vec4_at]);
}

// Loads what a stored row's elements are multiplied by; here nothing.
fn row_scale(row: u32) -> f32 {
    return 0.0;
}

// Returns the values of four elements as `stored_vec4` loaded them.
fn decoded_vec4(stored: vec4<u32>, scale: f32, vec4_at: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(stored);
}
