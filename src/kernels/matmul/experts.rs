//! Products of many experts at once. The dense kernels compute them: `shared/product_tile_experts` gives each tile the matrix of its expert.
//!
//! Rows of activations are in the order of experts ([`SortedRows`]), so a tile has rows of one expert. Matrices of experts are separate
//! tensors that lie in one buffer at equal distances. A device may hold them in several buffers: each launch has a range of the experts, and
//! returns at once in tiles of others.

use super::cpu::CpuMatmul;
use super::tiles::TiledMatmul;
use super::{LinearPass, MatmulDesc, MatmulOperands, OperandMatrix, WeightFormat, baseline};
use crate::gpu::{Caps, CountedWork, Recording, Shader, Slot, Variant};
use crate::kernels::router::SortedRows;

/// Rows of the baseline's tiles.
const BASELINE_ROWS: usize = 64;

/// Implementation of experts' products. All give bit-identical results.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertTiling(ExpertMatmul);

#[derive(Debug, Clone, Copy, PartialEq)]
enum ExpertMatmul {
    Baseline,
    Cpu,
    Tiles(TiledMatmul),
}

impl ExpertTiling {
    /// Chooses the implementation for `rows` rows in all, by the widths of all activations that the products read and write.
    pub fn new(caps: &Caps, allowed: &[Variant], rows: usize, experts: usize, widths: &[usize]) -> Self {
        if !widths.iter().all(|width| width.is_multiple_of(4)) {
            return Self(ExpertMatmul::Baseline);
        }
        if allowed.contains(&Variant::Cpu) {
            return Self(ExpertMatmul::Cpu);
        }
        let size = |variant| TiledMatmul::ALL.into_iter().find(|t| t.variant == variant && allowed.contains(&variant));
        let (small, large) = (size(Variant::Tiles32), size(Variant::Tiles64));
        // Tiles of 64 are worth it where most of them are full.
        let is_large = rows >= 64 * experts;
        let found = if is_large { large.or(small) } else { small.or(large) };
        let found = found.filter(|t| t.tile_bytes() <= caps.workgroup_bytes as usize);
        Self(found.map_or(ExpertMatmul::Baseline, ExpertMatmul::Tiles))
    }

    /// Returns the rows of a tile, in which rows must be sorted.
    pub fn tile_rows(self) -> usize {
        match self.0 {
            ExpertMatmul::Baseline => BASELINE_ROWS,
            ExpertMatmul::Cpu => CpuMatmul::ROWS,
            ExpertMatmul::Tiles(tiles) => tiles.rows(),
        }
    }

    fn shader(self, p: &MatmulDesc, workgroup_bytes: u32) -> Shader {
        let shader = match self.0 {
            ExpertMatmul::Baseline => baseline(p.orientation, p.storage),
            ExpertMatmul::Cpu => CpuMatmul::for_experts(p.orientation).shader(
                p.orientation == LinearPass::BackwardW,
                p.storage,
                p.accumulate,
            ),
            ExpertMatmul::Tiles(tiles) => tiles.shader(p.orientation, p.storage, workgroup_bytes),
        };
        shader
            .substitute("shared/product_tile", "shared/product_tile_experts")
            .substitute("shared/weight_base", "shared/product_tile_experts")
    }

    /// Returns the tiles along the columns of C.
    fn columns(self, p: &MatmulDesc) -> usize {
        let width = match self.0 {
            ExpertMatmul::Baseline => BASELINE_ROWS,
            ExpertMatmul::Cpu => CpuMatmul::for_experts(p.orientation).columns(),
            ExpertMatmul::Tiles(tiles) => tiles.rows(),
        };
        p.n.div_ceil(width)
    }

    /// Returns every specialisation for a storage format.
    pub(super) fn shaders(storage: WeightFormat) -> Vec<Shader> {
        let tiles = TiledMatmul::ALL.into_iter().take(2).map(ExpertMatmul::Tiles);
        let all: Vec<Self> = [ExpertMatmul::Baseline, ExpertMatmul::Cpu].into_iter().chain(tiles).map(Self).collect();
        let mut shaders = Vec::new();
        for &orientation in super::orientations(storage) {
            for (tiling, accumulate) in all.iter().flat_map(|tiling| [false, true].map(|adds| (tiling, adds))) {
                let p = MatmulDesc { orientation, storage, m: 1, n: 1, k: 1, alpha: 1.0, accumulate };
                for workgroup_bytes in [16 << 10, 32 << 10] {
                    let shader = tiling.shader(&p, workgroup_bytes);
                    if !shaders.contains(&shader) {
                        shaders.push(shader);
                    }
                }
            }
        }
        shaders
    }
}

/// Matrices of neighbouring experts in one buffer: W (n_out, n_in) of each, or their gradients.
#[derive(Debug, Clone)]
pub struct ExpertMatrices<'a> {
    /// Number of the first expert.
    pub first: usize,
    /// Number of experts.
    pub n: usize,
    /// Slot of all of them.
    pub slot: &'a Slot,
    /// Words from an expert's matrix to the next one's; a multiple of 64.
    pub stride_words: usize,
}

impl<'a> ExpertMatrices<'a> {
    fn operand(&self, [start, stride]: [usize; 2]) -> OperandMatrix<'a> {
        OperandMatrix { start, ..OperandMatrix::new(self.slot, stride) }
    }
}

/// Rows of all experts, and the tiling that they are sorted for.
#[derive(Debug, Clone, Copy)]
pub struct ExpertRows<'a> {
    /// Order of the rows.
    pub sorted: &'a SortedRows,
    /// Implementation of the products.
    pub tiling: ExpertTiling,
    /// Number of rows, T·k.
    pub rows: usize,
}

/// Computes C (rows, n) = A (rows, k)·B_e (+ C), with the B_e of each row's expert, in the orientation of y or of d_x. `p.m` is the number of
/// rows. `place`: first element of each B_e in its matrix, and elements from row to row.
pub fn experts_matmul(
    rec: &mut Recording,
    p: &MatmulDesc,
    rows: &ExpertRows,
    a: OperandMatrix,
    (b, place): (&ExpertMatrices, [usize; 2]),
    c: OperandMatrix,
) {
    let per_word = if p.storage == WeightFormat::Bf16 { 2 } else { 1 };
    let is_quantised = p.storage.is_quantised();
    let strides = if is_quantised { [0, b.stride_words] } else { [b.stride_words * per_word, 0] };
    launch(rec, p, rows, b, strides, (a, b.operand(place), c), &rows.sorted.tiles);
}

/// Computes C_e (m, n) += Σ_r A[r]ᵀ·B[r] over each expert's rows, the gradient of W. `p.k` is the number of rows. `place`: that of each
/// C_e in its matrix.
pub fn experts_matmul_bwd_w(
    rec: &mut Recording,
    p: &MatmulDesc,
    rows: &ExpertRows,
    a: OperandMatrix,
    b: OperandMatrix,
    (c, place): (&ExpertMatrices, [usize; 2]),
) {
    let strides = [c.stride_words, 0];
    launch(rec, p, rows, c, strides, (a, b, c.operand(place)), &rows.sorted.offsets);
}

fn launch(
    rec: &mut Recording,
    p: &MatmulDesc,
    rows: &ExpertRows,
    experts: &ExpertMatrices,
    strides: [usize; 2],
    (a, b, c): (OperandMatrix, OperandMatrix, OperandMatrix),
    routing: &Slot,
) {
    assert!(rows.sorted.tile_rows == rows.tiling.tile_rows(), "rows are sorted for other tiles");
    let by_expert = p.orientation == LinearPass::BackwardW;
    let shader = rows.tiling.shader(p, rec.gpu().caps().workgroup_bytes);
    let tiles = if by_expert { experts.n * p.m.div_ceil(rows.tiling.tile_rows()) } else { rows.sorted.n_tiles };
    let params = MatmulOperands::new(a, b, c).params(p).with_experts([experts.first, experts.n], strides);
    // The host counts an even share of the rows for each expert.
    let share = |n: usize| n * experts.n / (rows.sorted.offsets.len() - 1);
    let width = p.n + if by_expert { p.m } else { p.k };
    let words = share(rows.rows * width) + experts.n * experts.stride_words;
    let work = CountedWork::new(2 * share(p.m * p.n * p.k) as u64, 4 * words as u64);
    let grid = [rows.tiling.columns(p) as u32, tiles as u32];
    rec.dispatch_in_parts(&shader, &params, &[a.slot, b.slot, c.slot, routing], grid, work);
}
