//! Kernels that load whole rows in vec4s ([`Variant::Rows`]): where they can be used, and how a workgroup shares its rows.

use crate::gpu::{Caps, Recording, Shader, Variant, grid_1d};

/// Variants of a case of the baseline.
pub(super) const BASELINE: &[Variant] = &[];
/// Variants of a case of these kernels.
pub(super) const ROWS: &[Variant] = &[Variant::Rows];

/// Returns whether these kernels are allowed, and all starts, strides and widths of `sizes` are whole vec4s.
pub(super) fn in_vec4s(rec: &Recording, sizes: &[usize]) -> bool {
    rec.variants().contains(&Variant::Rows) && sizes.iter().all(|size| size.is_multiple_of(4))
}

/// Returns the elements that an invocation of a kernel over Values ([`super::value`]) loads at once: 4 where these kernels are allowed and sizes
/// are whole vec4s, else 1.
pub(super) fn value_width(rec: &Recording, sizes: &[usize]) -> usize {
    if in_vec4s(rec, sizes) { 4 } else { 1 }
}

/// Returns the variants of cases to time: those that the device takes.
pub(super) fn taken(caps: &Caps) -> &'static [Variant] {
    if caps.variants.contains(&Variant::Rows) { ROWS } else { BASELINE }
}

/// Returns the end of a case's label.
pub(super) fn suffix(allowed: &[Variant]) -> &'static str {
    if allowed.is_empty() { "" } else { " rows" }
}

/// Invocations per workgroup, unless a row is so wide that it needs more.
const WORKGROUP: usize = 64;
/// Largest number of invocations per workgroup.
const MOST_INVOCATIONS: usize = 256;
/// vec4s that an invocation keeps in registers.
const REGISTERS: usize = 16;

/// Rows per workgroup of `shaders/shared/column_blocks.wgsl`: its BLOCK.
pub(super) const BLOCK_ROWS: usize = 64;
/// vec4s of columns per workgroup of `shaders/shared/column_blocks.wgsl`: its COLUMNS.
const BLOCK_COLUMNS: usize = 16;
/// Rows whose loads an invocation has in flight: the shaders' FLIGHT.
pub(super) const FLIGHT: usize = 4;

/// Division of rows among invocations: the constants of `shaders/shared/row_vec4s.wgsl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowLanes {
    /// Invocations per row.
    lanes: usize,
    /// vec4s per invocation that are loaded together.
    kept: usize,
    /// vec4s per row.
    vec4s: usize,
}

impl RowLanes {
    /// Divides rows of `width` elements, of which a kernel keeps `arrays` arrays in registers. A narrow row has so few invocations that each
    /// loads two vec4s. A wide one has so many that the arrays hold it, as far as a workgroup has them: 4096 elements of up to four arrays.
    pub fn new(width: usize, arrays: usize) -> Self {
        let (vec4s, most) = (width / 4, REGISTERS / arrays);
        let mut lanes = WORKGROUP.min(1 << (vec4s / 2).max(1).ilog2());
        while vec4s.div_ceil(lanes) > most && lanes < MOST_INVOCATIONS {
            lanes *= 2;
        }
        let turns = vec4s.div_ceil(lanes);
        Self { lanes, kept: turns.div_ceil(turns.div_ceil(most)), vec4s }
    }

    fn workgroup(self) -> usize {
        self.lanes.max(WORKGROUP)
    }

    /// Returns the specialisation of an entry point of a module that imports `shared/row_vec4s`.
    pub fn shader(self, module: &'static str, entry: &'static str) -> Shader {
        Shader::new(module, entry)
            .with("WG", self.workgroup() as f64)
            .with("LANES", self.lanes as f64)
            .with("KEPT", self.kept as f64)
            .with("VEC4S", self.vec4s as f64)
            .unroll("KEPT", self.kept)
    }

    /// Returns the grid of `rows` rows.
    pub fn grid(self, rows: usize) -> [u32; 3] {
        grid_1d(rows, self.workgroup() / self.lanes)
    }
}

/// Returns the grid of a kernel that imports `shared/column_blocks`, for `rows` rows of `width` columns.
pub(super) fn block_grid(rows: usize, width: usize) -> [u32; 3] {
    [(width / 4).div_ceil(BLOCK_COLUMNS) as u32, rows.div_ceil(BLOCK_ROWS) as u32, 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_by_width() {
        let sizes = |width, arrays| {
            let RowLanes { lanes, kept, .. } = RowLanes::new(width, arrays);
            (lanes, kept)
        };
        // One vec4, heads, models: a row is kept up to 4096.
        assert_eq!([4, 64, 128, 576].map(|width| sizes(width, 2)), [(1, 1), (8, 2), (16, 2), (64, 3)]);
        assert_eq!([2048, 4096, 8192, 8196].map(|width| sizes(width, 2)), [(64, 8), (128, 8), (256, 8), (256, 5)]);
        assert_eq!([2048, 4096, 5120, 5124].map(|width| sizes(width, 3)), [(128, 4), (256, 4), (256, 5), (256, 3)]);
        for (width, arrays) in (4..9000).step_by(4).flat_map(|width| [(width, 1), (width, 2), (width, 3), (width, 4)]) {
            let rows = RowLanes::new(width, arrays);
            assert!(rows.kept * arrays <= REGISTERS, "{width}");
            assert!(width > 4096 || 4 * rows.kept * rows.lanes >= width, "{width}");
            assert!(width < 8 || rows.kept >= 2, "{width}");
        }
    }
}
