//! Specialisations of `matmul_coop.wgsl`, and of `matmul_absmax.wgsl`, which runs before it.

use super::operands::{with_epilogues, with_second};
use super::{LinearPass, MatmulDesc, MatmulOperands, OperandMatrix, WeightFormat, oriented};
use crate::gpu::{Caps, CooperativeMatrix, CountedWork, MatmulPrecision, Recording, Shader, Slot, Variant, grid_1d};
use crate::kernels::storage::NF4_TABLE_BYTES;

/// Specialisation for a device and a precision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CoopMatmul {
    /// Rows and columns of a fragment: 8 or 16.
    edge: usize,
    /// Invocations per subgroup.
    subgroup: usize,
    /// Rows and columns of a workgroup's tile of C.
    tile: usize,
    /// Whether an f32 product is split into three f16 products.
    split: bool,
}

/// Smallest number of rows and columns of a weight that fill fragments well enough. The batch's size does not count, because a row's result
/// must not depend on other rows.
const LEAST: usize = 32;
/// Rows and columns of a workgroup's tile on CPUs.
const CPU_TILE: usize = 32;
/// Workgroups that keep a GPU busy: the largest tiles that give at least this many are chosen.
const ENOUGH_WORKGROUPS: usize = 128;
/// Largest rank of a second pair whose terms are added while C is stored. A pass of its own is faster for larger ones.
pub(super) const MOST_RANK: usize = 16;
/// Padding between rows in workgroup memory, in f16 values: the shader's PAD.
const PAD: usize = 8;
/// Workgroup memory that every device with cooperative matrices has.
const WORKGROUP_BYTES: usize = 32 << 10;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct AbsmaxParams {
    rows: u32,
    columns: u32,
    start: u32,
    stride: u32,
}

/// Returns the shader that computes the absmax of a matrix, or of each of its rows.
fn largest(storage: WeightFormat, whole: bool, first: usize) -> Shader {
    let shader = Shader::new("matmul_absmax", "matmul_absmax");
    storage.select(shader.with("WHOLE", f64::from(u8::from(whole))).with("FIRST", first as f64))
}

impl CoopMatmul {
    /// Returns the specialisation for a product, if the precision asks for it, the weight is large enough, and the loads of A and B are
    /// aligned. Tests choose the tile by the variants that they allow. All tiles give bit-identical results, so the batch's size may decide.
    pub fn choose(
        p: &MatmulDesc,
        [a, b]: [OperandMatrix; 2],
        caps: &Caps,
        allowed: &[Variant],
        precision: MatmulPrecision,
    ) -> Option<Self> {
        let CooperativeMatrix { edge, subgroup } = caps.cooperative?;
        let (stored_columns, weight) = match p.orientation {
            LinearPass::Forward => ([p.k, p.k], [p.n, p.k]),
            LinearPass::BackwardX => ([p.k, p.n], [p.k, p.n]),
            LinearPass::BackwardW => ([p.m, p.n], [p.m, p.n]),
        };
        let aligned = a.in_vec4s() && b.in_vec4s() && stored_columns.iter().all(|c| c.is_multiple_of(4));
        let fits = aligned && weight.iter().all(|&n| n >= LEAST);
        let split = match precision {
            MatmulPrecision::Highest => return None,
            MatmulPrecision::High => true,
            MatmulPrecision::Medium => false,
        };
        let (edge, subgroup) = (edge as usize, subgroup as usize);
        let tiles = Self::tiles(edge, subgroup, caps.is_cpu);
        let is_enough = |&tile: &usize| match allowed {
            [Variant::Tiles128] => true,
            _ => p.m.div_ceil(tile) * p.n.div_ceil(tile) >= ENOUGH_WORKGROUPS,
        };
        let tile = tiles.iter().copied().rev().find(is_enough).unwrap_or(tiles[0]);
        fits.then_some(Self { edge, subgroup, tile, split })
    }

    /// Returns the sides of a workgroup's tile of C, from the smallest. CPUs get small tiles, because their compilers take minutes for large
    /// ones. An invocation keeps 32 or 64 sums of a tile of 128 in registers.
    fn tiles(edge: usize, subgroup: usize, is_cpu: bool) -> &'static [usize] {
        match (edge, subgroup) {
            _ if is_cpu => &[CPU_TILE],
            (16, 32..) => &[64, 128],
            _ => &[64],
        }
    }

    /// Returns the subgroups along a row of the tile: twice as many where the smaller subgroups of NVIDIA's GPUs would have to keep 128 sums
    /// per invocation. CPUs have both, so that tests on lavapipe run both.
    fn across(self) -> usize {
        match (self.edge, self.subgroup) {
            (16, 32) => 4,
            _ if self.tile == CPU_TILE && !self.split => 4,
            _ => 2,
        }
    }

    fn lanes(self) -> usize {
        2 * self.across() * self.subgroup
    }

    fn planes(self) -> usize {
        if self.split { 2 } else { 1 }
    }

    /// Returns the shader's K_TILE: an invocation loads two vec4s of each operand at a time. With four, compilers for AMD run out of registers
    /// and move values about.
    fn k_tile(self) -> usize {
        (8 * self.lanes() / self.tile).max(self.edge)
    }

    /// Returns the bytes of workgroup memory that the shader declares, without NF4's tables.
    fn workgroup_bytes(self) -> usize {
        let f16s = self.planes() * 2 * self.tile * (self.k_tile() + PAD);
        2 * f16s + 4 * (2 * self.across() * self.edge * self.edge + usize::from(!self.split))
    }

    fn shader(self, orientation: LinearPass, storage: WeightFormat) -> Shader {
        let shader = oriented(Shader::new("matmul_coop", "matmul_coop"), orientation)
            .with("SPLIT", f64::from(u8::from(self.split)))
            .with("LANES", self.lanes() as f64)
            .with("ACROSS", self.across() as f64)
            .with("ROW_FRAGMENTS", (self.tile / 2 / self.edge) as f64)
            .with("K_TILE", self.k_tile() as f64)
            .enable(&["f16", "wgpu_cooperative_matrix"]);
        let shader = if self.edge == 16 { shader.substitute("shared/fragment8", "shared/fragment16") } else { shader };
        let shader = storage.select(shader);
        match storage {
            WeightFormat::Nf4 if self.workgroup_bytes() + NF4_TABLE_BYTES <= WORKGROUP_BYTES => {
                shader.substitute("shared/nf4_lookup", "shared/nf4_lookup_workgroup")
            }
            _ => shader,
        }
    }

    /// Returns every size and precision for lavapipe, and for GPUs with subgroups of 32 and (AMD) 64.
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for (edge, subgroup, is_cpu) in [(8, 8, true), (8, 32, false), (16, 32, false), (16, 64, false)] {
            for &tile in Self::tiles(edge, subgroup, is_cpu) {
                all.extend([false, true].map(|split| Self { edge, subgroup, tile, split }));
            }
        }
        all
    }

    /// Returns every specialisation for a product.
    pub fn shaders(orientation: LinearPass, storage: WeightFormat) -> Vec<Shader> {
        let mut all = vec![largest(storage, true, 0)];
        for coop in Self::all() {
            let shader = coop.shader(orientation, storage);
            let two = for_pairs(shader.clone(), true);
            let shader = for_pairs(shader, false);
            match orientation {
                LinearPass::Forward => {
                    all.extend(with_epilogues(shader.clone(), 4).chain(with_epilogues(two.clone(), 6)));
                    all.extend([two, shader]);
                }
                LinearPass::BackwardX => all.extend([two, shader]),
                LinearPass::BackwardW => all.push(shader),
            }
        }
        if storage == WeightFormat::F32 {
            all.push(largest(storage, orientation == LinearPass::BackwardW, 1));
        }
        all
    }

    /// Launches a product, whose second pair has at most [`MOST_RANK`] columns.
    pub fn launch(self, rec: &mut Recording, p: &MatmulDesc, o: MatmulOperands) {
        let MatmulOperands { a, b, second, c, .. } = o;
        // Only d_W stores A as (K, M), and sums over the batch: there A has one scale. Otherwise each row of x or d_y has its own scale.
        let a_transposed = p.orientation == LinearPass::BackwardW;
        let (a_rows, a_columns) = if a_transposed { (p.k, p.m) } else { (p.m, p.k) };
        let (b_rows, b_columns) = if p.orientation == LinearPass::Forward { (p.n, p.k) } else { (p.k, p.n) };
        let known_rows = a.absmax.filter(|_| !a_transposed);
        let own = match known_rows {
            Some(_) => None,
            None => {
                let own = rec.gpu().alloc_activation(1 + if a_transposed { 1 } else { a_rows });
                rec.clear(&own);
                let f32 = WeightFormat::F32;
                find_largest(rec, largest(f32, a_transposed, 1), f32, a, (a_rows, a_columns), &own);
                Some(own)
            }
        };
        // The first element is B's. Products that share A's rows follow each other, and each sets it anew.
        let magnitudes = own.as_ref().or(known_rows).expect("either the caller's or its own");
        match b.absmax {
            Some(known) => rec.copy(known, magnitudes),
            None => {
                if known_rows.is_some() {
                    rec.clear(&magnitudes.slice(0, 1));
                }
                find_largest(rec, largest(p.storage, true, 0), p.storage, b, (b_rows, b_columns), magnitudes);
            }
        }
        let grid = [p.n.div_ceil(self.tile) as u32, p.m.div_ceil(self.tile) as u32];
        let shader = self.shader(p.orientation, p.storage);
        let mut slots = vec![a.slot, b.slot, c.slot];
        slots.extend(second.iter().flat_map(|second| [second.a.slot, second.b.slot]));
        slots.push(magnitudes);
        o.dispatch_to(rec, for_pairs(shader, second.is_some()), p, slots, grid);
    }
}

/// Returns a shader for one pair or two; the absmax's binding is behind theirs.
fn for_pairs(shader: Shader, has_second: bool) -> Shader {
    if has_second { with_second(shader).with("ABSMAX", 6.0) } else { shader.with("ABSMAX", 4.0) }
}

/// Returns whether products of the device's precision scale their operands by absmax.
pub fn scales_operands(caps: &Caps) -> bool {
    caps.cooperative.is_some() && caps.matmul_precision != MatmulPrecision::Highest
}

/// Computes the absmax of each row of x (rows, columns), once for all products whose A is x. The result (1 + rows) has a free element before the rows. `None`
/// where no product would read it.
pub fn row_absmax(rec: &mut Recording, x: &Slot, rows: usize, columns: usize) -> Option<Slot> {
    if !scales_operands(rec.gpu().caps()) || columns < LEAST || !columns.is_multiple_of(4) {
        return None;
    }
    let absmax = rec.gpu().alloc_activation(1 + rows);
    rec.clear(&absmax);
    let x = OperandMatrix::new(x, columns);
    find_largest(rec, largest(WeightFormat::F32, false, 1), WeightFormat::F32, x, (rows, columns), &absmax);
    Some(absmax)
}

/// Computes the absmax of a weight (rows, columns) into `absmax` (1), once for all its products.
pub fn weight_absmax(
    rec: &mut Recording,
    storage: WeightFormat,
    w: &Slot,
    (rows, columns): (usize, usize),
    absmax: &Slot,
) {
    rec.clear(absmax);
    let w = OperandMatrix::new(w, columns);
    find_largest(rec, largest(storage, true, 0), storage, w, (rows, columns), absmax);
}

fn find_largest(
    rec: &mut Recording,
    shader: Shader,
    storage: WeightFormat,
    m: OperandMatrix,
    (rows, columns): (usize, usize),
    magnitudes: &Slot,
) {
    let params =
        AbsmaxParams { rows: rows as u32, columns: columns as u32, start: m.start as u32, stride: m.stride as u32 };
    let work = CountedWork::new(0, 4 * storage.words(rows, columns) as u64);
    rec.dispatch(&shader, &params, &[magnitudes, m.slot], grid_1d(rows, 1), work);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shader relies on these divisions having no remainder, and devices on the workgroup memory.
    #[test]
    fn sizes_are_whole() {
        for coop in CoopMatmul::all() {
            let (lanes, k_tile) = (coop.lanes(), coop.k_tile());
            let vec4s = coop.tile * k_tile / 4 / lanes;
            assert!(
                coop.tile.is_multiple_of(coop.across() * coop.edge) && k_tile.is_multiple_of(coop.edge),
                "{coop:?}"
            );
            assert!(vec4s * 4 * lanes == coop.tile * k_tile && [2, 4].contains(&vec4s), "{coop:?}");
            assert!(coop.workgroup_bytes() <= WORKGROUP_BYTES && lanes <= 256, "{coop:?}");
        }
    }
}
