// Sums across a workgroup of WG invocations (a power of two), in a fixed order: bit-identical every time.

override WG: u32 = 64u;

var<workgroup> partials: array<f32, WG>;

fn sum_across(lane: u32, value: f32) -> f32 {
    workgroupBarrier();
    partials[lane] = value;
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            partials[lane] += partials[lane + half];
        }
    }
    workgroupBarrier();
    return partials[0];
}
