// Parameters of column sums.

struct ColumnSumParams {
    rows: u32,
    width: u32,
    start: u32,  // first element of x
    stride: u32, // elements per row of x
    block: u32,  // rows per partial sum
    accumulate: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: ColumnSumParams;
