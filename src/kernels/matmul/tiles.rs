//! Specialisations of `matmul_tiles.wgsl`: three sizes of tiles, two of them with more or fewer invocations.

use super::{LinearPass, MatmulDesc, OperandMatrix, WeightFormat, oriented};
use crate::gpu::{Shader, Variant};
use crate::kernels::storage::NF4_TABLE_BYTES;

/// Size of tiles: TILE, ROW_VEC4S and COLUMN_VEC4S of the shader.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct TiledMatmul {
    pub variant: Variant,
    tile: usize,
    row_vec4s: usize,
    column_vec4s: usize,
}

/// Bytes between the rows of both tiles that keep stores apart in workgroup memory: the shader's PADDING of 2 vec4s, three times a tile.
const PADDING_BYTES: usize = 2 * 3 * 2 * 16;

/// Workgroups that keep a GPU busy: the default choice is the largest tiles that give at least this many, and twice as many where an invocation
/// computes twice the outputs.
const ENOUGH_WORKGROUPS: usize = 128;

impl TiledMatmul {
    /// Sizes from the smallest. An invocation computes 4×4, 8×4, 8×8, 8×8 and 16×8 values of a tile, and loads 2, 1.5, 1, 1 and 0.75 bytes from
    /// workgroup memory per multiplication.
    pub const ALL: [Self; 5] = [
        Self { variant: Variant::Tiles32, tile: 32, row_vec4s: 1, column_vec4s: 1 },
        Self { variant: Variant::Tiles64, tile: 64, row_vec4s: 2, column_vec4s: 1 },
        Self { variant: Variant::Tiles64Wide, tile: 64, row_vec4s: 2, column_vec4s: 2 },
        Self { variant: Variant::Tiles128, tile: 128, row_vec4s: 2, column_vec4s: 2 },
        Self { variant: Variant::Tiles128Wide, tile: 128, row_vec4s: 4, column_vec4s: 2 },
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
        Self::by_preference(p, allowed)
    }

    /// Returns the allowed sizes: the largest tiles that give enough workgroups come first, then the others from the smallest.
    fn by_preference(p: &MatmulDesc, allowed: &[Variant]) -> Vec<Self> {
        let mut sizes: Vec<Self> = Self::ALL.into_iter().filter(|t| allowed.contains(&t.variant)).collect();
        if let Some(best) = sizes.iter().rposition(|t| t.gives_enough_workgroups(p)) {
            sizes[..=best].rotate_right(1);
        }
        sizes
    }

    fn gives_enough_workgroups(self, p: &MatmulDesc) -> bool {
        let is_wide = matches!(self.variant, Variant::Tiles64Wide | Variant::Tiles128Wide);
        let enough = if is_wide { 2 * ENOUGH_WORKGROUPS } else { ENOUGH_WORKGROUPS };
        p.m.div_ceil(self.tile) * p.n.div_ceil(self.tile) >= enough
    }

    /// Returns the specialisation for a device with so much workgroup memory. Padding, and NF4's tables, lie there where they fit beside the tiles.
    pub fn shader(self, orientation: LinearPass, storage: WeightFormat, workgroup_bytes: u32) -> Shader {
        let fits = |bytes| self.tile_bytes() + bytes <= workgroup_bytes as usize;
        let shader = oriented(Shader::new("matmul_tiles", "matmul_tiles"), orientation)
            .with("TILE", self.tile as f64)
            .with("ROW_VEC4S", self.row_vec4s as f64)
            .with("COLUMN_VEC4S", self.column_vec4s as f64)
            .with("PADDING", if fits(PADDING_BYTES) { 2.0 } else { 0.0 })
            // FXC (DX12) does not end with the loops over blocks and their rows inside of the loop over K.
            .unroll("BLOCKS", self.blocks())
            .unroll("4u", 4);
        let shader = storage.select(shader);
        match storage {
            WeightFormat::Nf4 if fits(PADDING_BYTES + NF4_TABLE_BYTES) => {
                shader.substitute("shared/nf4_lookup", "shared/nf4_lookup_workgroup")
            }
            _ => shader,
        }
    }

    /// Returns the blocks that an invocation loads per slice: the shader's BLOCKS.
    fn blocks(self) -> usize {
        2 * self.tile * 16 * self.row_vec4s * self.column_vec4s / (self.tile * self.tile)
    }

    /// Returns every specialisation for a product: with padding and NF4's tables in workgroup memory, and without what may not fit.
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
    pub fn tile_bytes(self) -> usize {
        2 * 16 * self.tile * size_of::<f32>()
    }

    /// Returns the rows of a tile, and its columns.
    pub fn rows(self) -> usize {
        self.tile
    }

    pub fn grid(self, p: &MatmulDesc) -> [u32; 2] {
        [p.n.div_ceil(self.tile) as u32, p.m.div_ceil(self.tile) as u32]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sides of square C from which each size is chosen where a GPU has many registers: 128 workgroups, or 256 of the wide sizes.
    #[test]
    fn larger_products_have_larger_tiles() {
        let chosen = |side| {
            let (orientation, storage) = (LinearPass::Forward, WeightFormat::F32);
            let p = MatmulDesc { orientation, storage, m: side, n: side, k: 64, alpha: 1.0, accumulate: false };
            TiledMatmul::by_preference(&p, &TiledMatmul::ALL.map(|tiles| tiles.variant))[0].variant
        };
        for (from, variant) in [
            (4, Variant::Tiles32),
            (708, Variant::Tiles64),
            (964, Variant::Tiles64Wide),
            (1412, Variant::Tiles128),
            (1924, Variant::Tiles128Wide),
        ] {
            assert_eq!(chosen(from), variant, "{from}");
            assert!(from == 4 || chosen(from - 4) != variant, "{from}");
        }
    }
}
