// Weights as shared/weight_nf4 has them, with both tables in workgroup memory (1,088 bytes): a product waits once for the codes, the block's scale
// and the group's, which do not depend on each other. For GPUs; workgroup memory is slow in software drivers.

@group(0) @binding(2) var<storage, read> weights: array<u32>;

const NF4 = 4u;
const DYNAMIC = 20u;
const CODES = 276u;

var<workgroup> nf4_values: array<f32, 16>;
var<workgroup> dynamic_values: array<f32, 256>;

// All of a workgroup call it together, before the others.
fn prepare_weight(lane: u32, invocations: u32) {
    for (var i = lane; i < 256u; i += invocations) {
        dynamic_values[i] = bitcast<f32>(weights[DYNAMIC + i]);
        if i < 16u {
            nf4_values[i] = bitcast<f32>(weights[NF4 + i]);
        }
    }
    workgroupBarrier();
}

fn weight_vec4(row: u32, vec4_at: u32) -> vec4<f32> {
    let block = vec4_at >> 4u;
    let codes = weights[CODES + (vec4_at >> 1u)] >> (16u * (vec4_at & 1u));
    let scale_codes = weights[weights[0] + (block >> 2u)] >> (8u * (block & 3u));
    let group = bitcast<f32>(weights[weights[1] + ((weights[3] + block) >> 8u)]);
    let absmax = dynamic_values[scale_codes & 255u] * group + bitcast<f32>(weights[2]);
    let at = (vec4<u32>(codes) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
    return vec4<f32>(nf4_values[at.x], nf4_values[at.y], nf4_values[at.z], nf4_values[at.w]) * absmax;
}
