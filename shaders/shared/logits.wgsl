// Parameters of log-probabilities' kernels, and the soft cap of logits.

import package::shared::reduce::{WG, partials};

override SOFTCAP: bool = false;
override SQUARES: bool = false; // also sum squared probabilities

struct LogprobParams {
    rows: u32,
    n: u32,     // columns of this tile
    first: u32, // token id of the first column
    softcap: f32,
}

const BELOW = -1e30;

@group(0) @binding(0) var<uniform> params: LogprobParams;

fn capped(l: f32) -> f32 {
    if SOFTCAP {
        return params.softcap * tanh(clamp(l / params.softcap, -15.0, 15.0));
    }
    return l;
}

fn capped_vec4(l: vec4<f32>) -> vec4<f32> {
    if SOFTCAP {
        return params.softcap * tanh(clamp(l / params.softcap, vec4<f32>(-15.0), vec4<f32>(15.0)));
    }
    return l;
}

// Adds a tile's maximum, sum and sum of squares to a row's state: maximum, sum of exp(z − maximum), z[target] unchanged, sum of
// exp(z − maximum)² with SQUARES.
fn with_tile(state: vec4<f32>, tile_top: f32, tile_sum: f32, tile_squares: f32) -> vec4<f32> {
    let top = max(state.x, tile_top);
    let before = exp(state.x - top);
    let now = exp(tile_top - top);
    var added = vec4<f32>(top, state.y * before + tile_sum * now, state.zw);
    if SQUARES {
        added.w = state.w * before * before + tile_squares * now * now;
    }
    return added;
}

// Returns the largest of a workgroup's values.
fn max_across(lane: u32, value: f32) -> f32 {
    workgroupBarrier();
    partials[lane] = value;
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            partials[lane] = max(partials[lane], partials[lane + half]);
        }
    }
    workgroupBarrier();
    return partials[0];
}
