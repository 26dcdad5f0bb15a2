// Parameters of gathers and scatters.

struct GatherParams {
    first_group: vec2<u32>,
    width: u32,
    start: u32,  // gather_scatter: first column of x
    stride: u32, // gather_scatter: elements per row of x
    n: u32,      // rows that are written
}

@group(0) @binding(0) var<uniform> params: GatherParams;
