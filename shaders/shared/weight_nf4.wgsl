// w[i] = NF4[q[i]]·absmax[b], b = i / 64      absmax[b] = DYNAMIC[s[b]]·group[(phase + b) / 256] + offset
//
// 4-bit NormalFloat with double quantisation (QLoRA, arXiv 2305.14314), blocks running over the matrix as stored, row after row. The matrix
// may be a part of a larger one, which begins `phase` blocks into a group. Eight codes to a word, the first in the low bits; four s to a
// word. Words of the binding (`src/kernels/storage.rs` writes them):
//   0: where s begins    1: where the groups begin    2: offset, f32    3: phase    4 .. 20: NF4, f32    20 .. 276: DYNAMIC, f32
//   276 ..: q    then: s    then: group, f32

@group(0) @binding(2) var<storage, read> weights: array<u32>;

const NF4 = 4u;
const DYNAMIC = 20u;
const CODES = 276u;

// Nothing has to be prepared; `shared/weight_nf4_tables` copies its tables.
fn prepare_weight(lane: u32, invocations: u32) {}

fn absmax_of(block: u32) -> f32 {
    let s = (weights[weights[0] + (block >> 2u)] >> (8u * (block & 3u))) & 255u;
    let group = bitcast<f32>(weights[weights[1] + ((weights[3] + block) >> 8u)]);
    return bitcast<f32>(weights[DYNAMIC + s]) * group + bitcast<f32>(weights[2]);
}

fn weight_value(row: u32, i: u32) -> f32 {
    let q = (weights[CODES + (i >> 3u)] >> (4u * (i & 7u))) & 15u;
    return bitcast<f32>(weights[NF4 + q]) * absmax_of(i >> 6u);
}

fn weight_values(row: u32, i: u32) -> vec4<f32> {
    return weight_vec4(row, i >> 2u);
}

fn weight_vec4(row: u32, vec4_at: u32) -> vec4<f32> {
    let q = weights[CODES + (vec4_at >> 1u)] >> (16u * (vec4_at & 1u));
    let values = vec4<u32>(
        weights[NF4 + (q & 15u)],
        weights[NF4 + ((q >> 4u) & 15u)],
        weights[NF4 + ((q >> 8u) & 15u)],
        weights[NF4 + ((q >> 12u) & 15u)],
    );
    return bitcast<vec4<f32>>(values) * absmax_of(vec4_at >> 4u);
}
