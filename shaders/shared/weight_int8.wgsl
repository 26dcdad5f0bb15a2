// w[r,k] = q[r,k]·scale[r]      int8, the row's largest magnitude being 127
//
// Four codes to a word, the first in the low byte. Words of the binding (`src/kernels/storage.rs` writes them):
//   0: where the scales begin    4 ..: codes    then: scale (rows) f32

@group(0) @binding(2) var<storage, read> weights: array<u32>;

const CODES = 4u;

// Nothing has to be prepared; `shared/weight_nf4_tables` copies its tables.
fn prepare_weight(lane: u32, invocations: u32) {}

fn scale_of(row: u32) -> f32 {
    return bitcast<f32>(weights[weights[0] + row]);
}

fn weight_value(row: u32, i: u32) -> f32 {
    let word = weights[CODES + (i >> 2u)];
    return f32(bitcast<i32>(word << (24u - 8u * (i & 3u))) >> 24u) * scale_of(row);
}

fn weight_values(row: u32, i: u32) -> vec4<f32> {
    return weight_vec4(row, i >> 2u);
}

fn weight_vec4(row: u32, vec4_at: u32) -> vec4<f32> {
    let word = weights[CODES + vec4_at];
    let codes = bitcast<vec4<i32>>(vec4<u32>(word << 24u, word << 16u, word << 8u, word)) >> vec4<u32>(24u);
    return vec4<f32>(codes) * scale_of(row);
}
