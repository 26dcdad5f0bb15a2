// Tables of shared/weight_nf4 in workgroup memory (1,088 bytes), for GPUs: a lookup then does not wait for memory. In software drivers workgroup
// memory is slow. `shared/nf4_lookup` defines the same names.

const NF4 = 4u;
const DYNAMIC = 20u;

var<workgroup> nf4_values: array<f32, 16>;
var<workgroup> dynamic_values: array<f32, 256>;

fn prepare_lookup(lane: u32, invocations: u32) {
    for (var i = lane; i < 256u; i += invocations) {
        dynamic_values[i] = bitcast<f32>(weights[DYNAMIC + i]);
        if i < 16u {
            nf4_values[i] = bitcast<f32>(weights[NF4 + i]);
        }
    }
    workgroupBarrier();
}

// The values of four codes, the first in the low bits.
fn nf4_vec4(codes: u32) -> vec4<f32> {
    let at = (vec4<u32>(codes) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
    return vec4<f32>(nf4_values[at.x], nf4_values[at.y], nf4_values[at.z], nf4_values[at.w]);
}

// The value of a scale's code.
fn dynamic_value(code: u32) -> f32 {
    return dynamic_values[code];
}
