// Tables of shared/weight_nf4 in memory, where its binding has them. `shared/nf4_lookup_workgroup` defines the same names.

const NF4 = 4u;
const DYNAMIC = 20u;

// Nothing has to be prepared.
fn prepare_lookup(lane: u32, invocations: u32) {}

// The values of four codes, the first in the low bits.
fn nf4_vec4(codes: u32) -> vec4<f32> {
    let values = vec4<u32>(
        weights[NF4 + (codes & 15u)],
        weights[NF4 + ((codes >> 4u) & 15u)],
        weights[NF4 + ((codes >> 8u) & 15u)],
        weights[NF4 + ((codes >> 12u) & 15u)],
    );
    return bitcast<vec4<f32>>(values);
}

// The value of a scale's code.
fn dynamic_value(code: u32) -> f32 {
    return bitcast<f32>(weights[DYNAMIC + code]);
}
