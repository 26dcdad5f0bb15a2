//! `matmul_lanes.wgsl`: CPUs with subgroups of 8 or more.

use super::cpu::{NARROW, UNPACK_FROM, last_quad_is_inside, with_unpacked};
use super::{Matrix, Orientation, Product, Storage, params};
use crate::gpu::{Caps, Recording, Shader, Variant};

/// Rows and columns of a tile.
const TILE: usize = 32;

/// Whether it serves a product, and is the fastest.
pub(super) fn fits(p: &Product, b: Matrix, caps: &Caps, allowed: &[Variant]) -> bool {
    let unpacks = p.orientation == Orientation::Forward || p.storage.is_quantised();
    allowed.contains(&Variant::Lanes)
        && caps.has_lanes()
        && p.m >= UNPACK_FROM
        && p.n > NARROW
        && b.in_quads()
        // Of a copy, all is its own; else a last quad beyond N is read, and must be B's.
        && if unpacks { p.stored_columns().is_multiple_of(4) } else { last_quad_is_inside(p, b) }
}

pub(super) fn launch(rec: &mut Recording, p: &Product, a: Matrix, b: Matrix, c: Matrix) {
    if p.orientation == Orientation::Forward || p.storage.is_quantised() {
        let (p, unpacked, stride) = with_unpacked(rec, p, b);
        return dispatch(rec, &p, a, Matrix::new(&unpacked, stride), c);
    }
    dispatch(rec, p, a, b, c);
}

fn dispatch(rec: &mut Recording, p: &Product, a: Matrix, b: Matrix, c: Matrix) {
    let grid = [p.n.div_ceil(TILE) as u32, p.m.div_ceil(TILE) as u32, 1];
    let shader = shader(p.orientation == Orientation::BackwardW, p.storage, p.accumulate);
    rec.dispatch(&shader, &params(p, a, b, c), &[a.slot, b.slot, c.slot], grid, p.flops());
}

fn shader(a_transposed: bool, storage: Storage, accumulate: bool) -> Shader {
    let flag = |on| f64::from(u8::from(on));
    let shader = Shader::new("matmul_lanes", "matmul_lanes")
        .with("A_TRANSPOSED", flag(a_transposed))
        .with("ACCUMULATE", flag(accumulate));
    storage.select(shader)
}

/// Every specialisation: quantised weights come unpacked.
pub(super) fn shaders() -> Vec<Shader> {
    let both = [false, true];
    let of = |storage| both.into_iter().flat_map(move |a| both.map(|accumulate| shader(a, storage, accumulate)));
    [Storage::F32, Storage::Bf16].into_iter().flat_map(of).collect()
}
