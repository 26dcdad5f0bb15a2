// Rows that LANES invocations of a workgroup of WG share, and sums over a row in a fixed order, which depends on LANES alone.

override WG: u32 = 64u;    // a multiple of LANES
override LANES: u32 = 16u; // a power of two

const ROWS_PER_WORKGROUP = WG / LANES;

var<workgroup> row_partials: array<vec2<f32>, WG>;

// Returns two sums over the invocations of a row.
fn sums_across_row(lane: u32, values: vec2<f32>) -> vec2<f32> {
    row_partials[lane] = values;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane % LANES < half {
            row_partials[lane] += row_partials[lane + half];
        }
    }
    workgroupBarrier();
    return row_partials[lane / LANES * LANES];
}
