// Rows of VEC4S vec4s, each of which LANES invocations of a workgroup share. An invocation loads KEPT vec4s of a row at once and keeps them
// in registers: vec4s `lane`, `lane + LANES`, ... of a part of KEPT·LANES vec4s. A row of one part is read once.
//
// Loops to KEPT are unrolled by the linker. Their loads have no condition, because a load inside a branch is waited for there: where a row
// has no vec4, its last one is loaded, and left out of sums and stores.

override WG: u32 = 64u;    // a multiple of LANES
override LANES: u32 = 64u; // a power of two
override KEPT: u32 = 1u;
override VEC4S: u32 = 64u;

const PART = KEPT * LANES;
const ROWS_PER_WORKGROUP = WG / LANES;

var<workgroup> partials: array<f32, WG>;

// Return an invocation's row within its workgroup, and its number among the invocations of that row. Where a row has the whole workgroup,
// its number is a constant, which compilers know to be uniform.
fn row_of_lane(lane: u32) -> u32 {
    return select(lane / LANES, 0u, WG == LANES);
}

fn lane_in_row(lane: u32) -> u32 {
    return select(lane % LANES, lane, WG == LANES);
}

// Returns the number of an invocation's vec4 in its row, if the row has that many.
fn own_vec4(lane: u32, part: u32, turn: u32) -> u32 {
    return part + turn * LANES + lane_in_row(lane);
}

fn has_vec4(lane: u32, part: u32, turn: u32) -> bool {
    return (part + (turn + 1u) * LANES <= VEC4S) | (own_vec4(lane, part, turn) < VEC4S);
}

// Returns the number of the vec4 to load: `own_vec4`, or the row's last one.
fn loaded_vec4(lane: u32, part: u32, turn: u32) -> u32 {
    return min(own_vec4(lane, part, turn), VEC4S - 1u);
}

// Returns the sum over the invocations that share a row, in an order that depends on LANES alone.
fn sum_across_row(lane: u32, value: f32) -> f32 {
    workgroupBarrier();
    partials[lane] = value;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane_in_row(lane) < half {
            partials[lane] += partials[lane + half];
        }
    }
    workgroupBarrier();
    return partials[row_of_lane(lane) * LANES];
}

fn sum_of_vec4(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}
