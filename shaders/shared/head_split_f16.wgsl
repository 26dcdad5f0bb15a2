// Where heads' rows are in f16: (heads, planes, T, WIDTH) f16; the high parts are plane 0, the low ones plane 1 where there are any. Heads are
// q's, k's, v's, and in the backward pass d_o's.

import package::shared::split_f16::{SPLIT};

override E: u32 = 64u;
override WIDTH: u32 = 64u; // E and zeros, to whole fragments

const PLANES = select(1u, 2u, SPLIT);

// Of a row's high parts; its low ones lie t·WIDTH behind.
fn head_row_at(t: u32, head: u32, row: u32) -> u32 {
    return (head * PLANES * t + row) * WIDTH;
}
