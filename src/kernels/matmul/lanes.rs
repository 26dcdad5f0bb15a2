//! Specialisations of `matmul_lanes.wgsl`, for CPUs with subgroups of 8 or more.

use super::cpu::{NARROW, UNPACK_FROM, UnpackedWeight};
use super::operands::{last_vec4_is_inside, with_all};
use super::{LinearPass, MatmulDesc, MatmulOperands, OperandMatrix, WeightFormat, with_second};
use crate::gpu::{Caps, Recording, Shader, Variant};

/// Lanes per workgroup.
const LANES: usize = 8;
/// Columns per tile: one vec4 per lane.
const COLUMNS: usize = 4 * LANES;
/// Vectors of rows per tile: where there are many rows, and where there are few.
const VECTORS: [usize; 2] = [4, 1];

/// Returns the vectors of rows per tile for `m` rows.
fn vectors(m: usize) -> usize {
    if m > LANES * VECTORS[0] / 2 { VECTORS[0] } else { VECTORS[1] }
}

/// Returns whether the kernel supports a product, and is the fastest for it.
pub(super) fn fits(p: &MatmulDesc, b: OperandMatrix, caps: &Caps, allowed: &[Variant]) -> bool {
    let unpacks = p.orientation == LinearPass::Forward || p.storage.is_quantised();
    allowed.contains(&Variant::Lanes)
        && caps.has_lanes()
        && (p.m >= UNPACK_FROM || p.orientation != LinearPass::Forward)
        && p.n > NARROW
        && b.in_vec4s()
        // An unpacked copy has rows of whole vec4s. Otherwise the last vec4 is read even beyond N, and must lie inside B.
        && if unpacks { p.stored_columns().is_multiple_of(4) } else { last_vec4_is_inside(p, b) }
}

pub(super) fn launch(rec: &mut Recording, p: &MatmulDesc, o: MatmulOperands) {
    if p.orientation == LinearPass::Forward || p.storage.is_quantised() {
        let unpacked = UnpackedWeight::new(rec, p, &o);
        return dispatch(rec, &unpacked.product(p), unpacked.operands(o));
    }
    dispatch(rec, p, o);
}

fn dispatch(rec: &mut Recording, p: &MatmulDesc, o: MatmulOperands) {
    let vectors = vectors(p.m);
    let (columns, rows) = (p.n.div_ceil(COLUMNS) as u32, p.m.div_ceil(LANES * vectors) as u32);
    // The shader decides by the same comparison which tiles consecutive workgroups compute.
    let grid = if p.m <= p.n { [rows, columns] } else { [columns, rows] };
    let shader = shader(vectors, p.orientation == LinearPass::BackwardW, p.storage, p.accumulate);
    o.dispatch(rec, &shader, p, grid);
}

fn shader(vectors: usize, a_transposed: bool, storage: WeightFormat, accumulate: bool) -> Shader {
    let flag = |on| f64::from(u8::from(on));
    let shader = Shader::new("matmul_lanes", "matmul_lanes")
        .with("VECTORS", vectors as f64)
        .with("A_TRANSPOSED", flag(a_transposed))
        .with("ACCUMULATE", flag(accumulate));
    storage.select(shader)
}

/// Returns every specialisation. Quantised weights are unpacked beforehand.
pub(super) fn shaders() -> Vec<Shader> {
    let mut all = Vec::new();
    for vectors in VECTORS {
        for storage in [WeightFormat::F32, WeightFormat::Bf16] {
            for accumulate in [false, true] {
                let of_weights = shader(vectors, false, storage, accumulate);
                // Forward products of these formats read an unpacked weight.
                match storage {
                    WeightFormat::F32 => all.extend(with_all(of_weights)),
                    _ => all.extend([with_second(of_weights.clone()), of_weights]),
                }
                all.push(shader(vectors, true, storage, accumulate));
            }
        }
    }
    all
}
