// Layout of heads in f16: (heads, planes, T, WIDTH). Plane 0 has the high parts, plane 1 (with SPLIT) the low parts. The heads are those of
// q, k, v, and in the backward pass of d_o.

import package::shared::split_f16::{SPLIT};

override E: u32 = 64u;
override WIDTH: u32 = 64u; // E, padded with zeros to whole fragments

const PLANES = select(1u, 2u, SPLIT);

// Returns the index of a row's high parts; its low parts lie t·WIDTH behind.
fn head_row_at(t: u32, head: u32, row: u32) -> u32 {
    return (head * PLANES * t + row) * WIDTH;
}
