// Sums over a block of rows, of columns in vec4s. A workgroup has COLUMNS vec4s of columns and BLOCK rows; an invocation loads FLIGHT rows
// of one vec4 at once. Loops to FLIGHT are unrolled by the linker.

const COLUMNS = 16u;
const ROWS = 16u; // invocations per column
const FLIGHT = 4u;
const BLOCK = ROWS * FLIGHT;
const INVOCATIONS = COLUMNS * ROWS;

var<workgroup> column_sums: array<vec4<f32>, INVOCATIONS>;

// Returns the sum over the invocations of a column, in a fixed order, to the first COLUMNS invocations.
fn sum_across_rows(lane: u32, value: vec4<f32>) -> vec4<f32> {
    column_sums[lane] = value;
    for (var half = ROWS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half * COLUMNS {
            column_sums[lane] += column_sums[lane + half * COLUMNS];
        }
    }
    return column_sums[lane];
}
