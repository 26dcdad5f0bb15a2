//! Specialisations of `matmul_coop.wgsl`, and of `matmul_absmax.wgsl`, which runs before it.

use super::operands::with_epilogues;
use super::{LinearPass, MatmulDesc, MatmulOperands, OperandMatrix, WeightFormat, oriented};
use crate::gpu::{Caps, CooperativeMatrix, MatmulPrecision, Recording, Shader, Slot, grid_1d};

/// Specialisation for a device and a precision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CoopMatmul {
    /// Rows and columns of a fragment: 8 or 16.
    edge: u32,
    /// Invocations per workgroup.
    lanes: u32,
    /// Fragments along a side of a subgroup's block.
    fragments: u32,
    /// Whether an f32 product is split into three f16 products.
    split: bool,
}

/// Subgroups per workgroup: two by two.
const SUBGROUPS: u32 = 4;
/// Smallest number of rows and columns of a weight that fill fragments well enough. The batch's size does not count, because a row's result
/// must not depend on other rows.
const LEAST: usize = 32;

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
    /// aligned.
    pub fn choose(p: &MatmulDesc, [a, b]: [OperandMatrix; 2], caps: &Caps, precision: MatmulPrecision) -> Option<Self> {
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
        fits.then_some(Self { edge, lanes: SUBGROUPS * subgroup, fragments: Self::fragments(edge, caps.is_cpu), split })
    }

    /// Returns the fragments along a side of a subgroup's block of 32×32. CPUs get smaller blocks, because their compilers take minutes for
    /// blocks of 32×32.
    fn fragments(edge: u32, is_cpu: bool) -> u32 {
        if is_cpu { 2 } else { 32 / edge }
    }

    /// Returns the side of a workgroup's tile of C.
    fn tile(self) -> usize {
        (2 * self.fragments * self.edge) as usize
    }

    fn shader(self, orientation: LinearPass, storage: WeightFormat) -> Shader {
        let shader = oriented(Shader::new("matmul_coop", "matmul_coop"), orientation)
            .with("SPLIT", f64::from(u8::from(self.split)))
            .with("LANES", f64::from(self.lanes))
            .with("FRAGMENTS", f64::from(self.fragments))
            .enable(&["f16", "wgpu_cooperative_matrix"]);
        let shader = if self.edge == 16 { shader.substitute("shared/fragment8", "shared/fragment16") } else { shader };
        storage.select(shader)
    }

    /// Returns every specialisation for lavapipe, and for GPUs with subgroups of 32 and (AMD) 64.
    pub fn shaders(orientation: LinearPass, storage: WeightFormat) -> Vec<Shader> {
        let mut all = vec![largest(storage, true, 0)];
        for (edge, subgroup, is_cpu) in [(8, 8, true), (8, 32, false), (16, 32, false), (16, 64, false)] {
            let (lanes, fragments) = (SUBGROUPS * subgroup, Self::fragments(edge, is_cpu));
            for shader in [false, true].map(|split| Self { edge, lanes, fragments, split }.shader(orientation, storage))
            {
                if orientation == LinearPass::Forward {
                    all.extend(with_epilogues(shader.clone(), 4));
                }
                all.push(shader);
            }
        }
        if storage == WeightFormat::F32 {
            all.push(largest(storage, orientation == LinearPass::BackwardW, 1));
        }
        all
    }

    /// Launches a product of one pair of operands.
    pub fn launch(self, rec: &mut Recording, p: &MatmulDesc, o: MatmulOperands) {
        let MatmulOperands { a, b, c, .. } = o;
        // Only d_W stores A as (K, M), and sums over the batch: there A has one scale. Otherwise each row of x or d_y has its own scale.
        let a_transposed = p.orientation == LinearPass::BackwardW;
        let (a_rows, a_columns) = if a_transposed { (p.k, p.m) } else { (p.m, p.k) };
        let (b_rows, b_columns) = if p.orientation == LinearPass::Forward { (p.n, p.k) } else { (p.k, p.n) };
        let magnitudes = rec.gpu().alloc_activation(1 + if a_transposed { 1 } else { a_rows });
        rec.clear(&magnitudes);
        find_largest(rec, &largest(p.storage, true, 0), b, (b_rows, b_columns), &magnitudes);
        find_largest(rec, &largest(WeightFormat::F32, a_transposed, 1), a, (a_rows, a_columns), &magnitudes);
        let grid = [p.n.div_ceil(self.tile()) as u32, p.m.div_ceil(self.tile()) as u32];
        let slots = vec![a.slot, b.slot, c.slot, &magnitudes];
        o.dispatch_to(rec, self.shader(p.orientation, p.storage), p, slots, grid, p.flops());
    }
}

fn find_largest(
    rec: &mut Recording,
    shader: &Shader,
    m: OperandMatrix,
    (rows, columns): (usize, usize),
    magnitudes: &Slot,
) {
    let params =
        AbsmaxParams { rows: rows as u32, columns: columns as u32, start: m.start as u32, stride: m.stride as u32 };
    rec.dispatch(shader, &params, &[magnitudes, m.slot], grid_1d(rows, 1), 0);
}
