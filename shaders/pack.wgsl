// pack_bf16: words[i] = bf16(x[2i]) | bf16(x[2i + 1])·2¹⁶, rounded to the nearest, ties to even. The upper half is zero behind an odd last
// element.
// unpack_bf16: x[n], from its half of words[n / 2].
//
// f32 values are handled as bits throughout, so that results for NaN and subnormal numbers do not depend on the driver.

import package::shared::grid::{flat_group};

override WG: u32 = 64u;
override MANTISSA: u32 = 7u; // bits that are kept: bf16's, or fewer

struct PackParams {
    n: u32, // elements of x
}

@group(0) @binding(0) var<uniform> params: PackParams;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> words: array<u32>;

// Rounds the magnitude as the integer that its bits are: a carry out of the mantissa goes into the exponent, up to infinity.
fn rounded(bits: u32) -> u32 {
    let cut = 23u - MANTISSA;
    let nearest = ((bits + (1u << (cut - 1u)) - 1u + ((bits >> cut) & 1u)) >> cut) << cut; // Tint wants these brackets
    let is_nan = (bits & 0x7fffffffu) > 0x7f800000u; // rounding could carry it to zero, or cut it to infinity
    return select(nearest, 0x7fc00000u, is_nan) >> 16u;
}

@compute @workgroup_size(WG)
fn pack_bf16(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let i = flat_group(group, n_groups) * WG + local.x;
    let first = 2u * i;
    if first >= params.n {
        return;
    }
    var word = rounded(x[first]);
    if first + 1u < params.n {
        word |= rounded(x[first + 1u]) << 16u;
    }
    words[i] = word;
}

@group(0) @binding(1) var<storage, read> packed: array<u32>;
@group(0) @binding(2) var<storage, read_write> unpacked: array<u32>;

@compute @workgroup_size(WG)
fn unpack_bf16(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let n = flat_group(group, n_groups) * WG + local.x;
    if n < params.n {
        let word = packed[n >> 1u];
        unpacked[n] = select(word << 16u, word & 0xffff0000u, (n & 1u) == 1u);
    }
}
