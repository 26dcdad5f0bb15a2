//! Specialisations of `matmul_tiles.wgsl`: three sizes of tiles.

use super::{LinearPass, MatmulDesc, OperandMatrix, WeightFormat, oriented};
use crate::gpu::{Shader, Variant};

/// Size of tiles: TILE, ROW_VEC4S and COLUMN_VEC4S of the shader.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct TiledMatmul {
    pub variant: Variant,
    tile: usize,
    row_vec4s: usize,
    column_vec4s: usize,
}

/// Bytes of NF4's tables in workgroup memory: 16 values and 256 scales.
const NF4_TABLE_BYTES: usize = (16 + 256) * size_of::<f32>();

/// Workgroups that keep a GPU busy: the default choice is the largest tiles that give at least this many.
const ENOUGH_WORKGROUPS: usize = 128;

impl TiledMatmul {
    /// Sizes from the smallest. An invocation computes TILE/2 values of a tile: 4×4, 8×4, 8×8.
    pub const ALL: [Self; 3] = [
        Self { variant: Variant::Tiles32, tile: 32, row_vec4s: 1, column_vec4s: 1 },
        Self { variant: Variant::Tiles64, tile: 64, row_vec4s: 2, column_vec4s: 1 },
        Self { variant: Variant::Tiles128, tile: 128, row_vec4s: 2, column_vec4s: 2 },
    ];

    /// Returns the sizes for a product, the default choice first; empty unless everything is aligned.
    pub fn candidates(p: &MatmulDesc, matrices: [OperandMatrix; 3], allowed: &[Variant]) -> Vec<Self> {
        let stored_columns = match p.orientation {
            LinearPass::Forward => [p.k, p.k, p.n],
            LinearPass::BackwardX => [p.k, p.n, p.n],
            LinearPass::BackwardW => [p.m, p.n, p.n],
        };
        if !matrices.iter().all(OperandMatrix::in_vec4s) || !stored_columns.iter().all(|c| c.is_multiple_of(4)) {
            return Vec::new();
        }
        let mut sizes: Vec<Self> = Self::ALL.into_iter().filter(|t| allowed.contains(&t.variant)).collect();
        // The largest tiles that give enough workgroups come first, then the others from the smallest.
        if let Some(best) = sizes.iter().rposition(|t| t.workgroups(p) >= ENOUGH_WORKGROUPS) {
            sizes[..=best].rotate_right(1);
        }
        sizes
    }

    fn workgroups(self, p: &MatmulDesc) -> usize {
        p.m.div_ceil(self.tile) * p.n.div_ceil(self.tile)
    }

    /// Returns the specialisation for a device with so much workgroup memory. NF4's tables lie there where they fit beside the tiles.
    pub fn shader(self, orientation: LinearPass, storage: WeightFormat, workgroup_bytes: u32) -> Shader {
        let shader = oriented(Shader::new("matmul_tiles", "matmul_tiles"), orientation)
            .with("TILE", self.tile as f64)
            .with("ROW_VEC4S", self.row_vec4s as f64)
            .with("COLUMN_VEC4S", self.column_vec4s as f64);
        let tables_fit = self.tile_bytes() + NF4_TABLE_BYTES <= workgroup_bytes as usize;
        let shader = storage.select(shader);
        match storage {
            WeightFormat::Nf4 if tables_fit => shader.substitute("shared/nf4_lookup", "shared/nf4_lookup_workgroup"),
            _ => shader,
        }
    }

    /// Returns every specialisation for a product: NF4's tables in workgroup memory, and in memory where they may not fit.
    pub fn shaders(orientation: LinearPass, storage: WeightFormat) -> Vec<Shader> {
        let mut all = Vec::new();
        for workgroup_bytes in [16 << 10, 32 << 10] {
            for shader in Self::ALL.map(|tiles| tiles.shader(orientation, storage, workgroup_bytes)) {
                if !all.contains(&shader) {
                    all.push(shader);
                }
            }
        }
        all
    }

    /// Returns the bytes of both tiles in workgroup memory: 16 rows of K each.
    fn tile_bytes(self) -> usize {
        2 * 16 * self.tile * size_of::<f32>()
    }

    pub fn grid(self, p: &MatmulDesc) -> [u32; 2] {
        [p.n.div_ceil(self.tile) as u32, p.m.div_ceil(self.tile) as u32]
    }
}
