//! Specialisations of `attention_tiles.wgsl`: sizes by head size.

use super::AttentionEntry;
use crate::gpu::Shader;

/// Rows of the other side per block: the shader's BLOCK.
const BLOCK: usize = 32;
/// Largest number of vec4s of E per slice. Slices of own rows then fit where the weights are stored afterwards.
const SLICE: usize = 8;
/// vec4s of the other side's rows that are loaded at a time: 8 KiB.
const RIGHT: usize = 512;
/// Largest number of invocations per workgroup. `DOWN` is the largest number of groups of invocations that own 4 rows of a tile each.
const INVOCATIONS: usize = 256;
const DOWN: usize = 16;
/// Largest number of outputs and scores that an invocation keeps in registers.
const REGISTERS: usize = 80;

/// Division of a workgroup's tile among invocations, for a head size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AttentionTiles {
    head_dim: usize,
}

impl AttentionTiles {
    /// Returns the tiles for heads of whole vec4s; `None` for heads so wide that an invocation would keep too many values.
    pub fn for_head_dim(head_dim: usize) -> Option<Self> {
        let tiles = Self { head_dim };
        let fits = head_dim.is_multiple_of(4)
            && head_dim > 0
            && AttentionEntry::ALL.iter().all(|&e| tiles.across(e).is_some());
        fits.then_some(tiles)
    }

    /// Returns the shader's ACROSS: the smallest number of invocations sharing 4 rows that have enough registers.
    fn across(self, entry: AttentionEntry) -> Option<usize> {
        let (outputs, scores) = match entry {
            AttentionEntry::Forward => (1, 1),
            AttentionEntry::BackwardQ => (1, 2),
            AttentionEntry::BackwardKv => (2, 2),
        };
        let wide = |across| (self.head_dim / 4).div_ceil(across);
        let kept = |across| outputs * 16 * wide(across) + scores * 4 * BLOCK / across;
        [8, 16, 32].into_iter().find(|&across| kept(across) <= REGISTERS)
    }

    fn across_and_down(self, entry: AttentionEntry) -> [usize; 2] {
        let across = self.across(entry).expect("for_head_dim found one");
        [across, DOWN.min(INVOCATIONS / across)]
    }

    /// Returns the rows that a workgroup owns.
    pub fn rows(self, entry: AttentionEntry) -> usize {
        4 * self.across_and_down(entry)[1]
    }

    pub fn shader(self, entry: AttentionEntry) -> Shader {
        let names = ["attention_tiles_fwd", "attention_tiles_bwd_q", "attention_tiles_bwd_kv"];
        let (vec4s, [across, down]) = (self.head_dim / 4, self.across_and_down(entry));
        let slice = (1..=SLICE).rfind(|&s| vec4s.is_multiple_of(s)).expect("1 divides all");
        let rows = 1u32 << BLOCK.min(RIGHT / vec4s).ilog2();
        Shader::new("attention_tiles", names[entry as usize])
            .with("SLICE", slice as f64)
            .with("ROWS", f64::from(rows))
            .with("ACROSS", across as f64)
            .with("DOWN", down as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every model's head size has tiles; sizes without tiles fall back to the baseline.
    #[test]
    fn sizes_by_head_size() {
        let sizes = |e: usize| {
            let tiles = AttentionTiles::for_head_dim(e)?;
            Some(AttentionEntry::ALL.map(|entry| tiles.across_and_down(entry)))
        };
        assert_eq!(sizes(64), Some([[8, 16], [8, 16], [16, 16]]));
        assert_eq!(sizes(80), Some([[8, 16], [8, 16], [16, 16]]));
        assert_eq!(sizes(128), Some([[8, 16], [16, 16], [16, 16]]));
        assert_eq!(sizes(256), Some([[16, 16], [16, 16], [32, 8]]));
        // A tile of queries has the same size in both passes, because both use the same key ranges.
        assert!((4..=256).step_by(4).all(|e| sizes(e).is_some_and(|s| s[0][1] == s[1][1])));
        assert_eq!([sizes(0), sizes(66), sizes(512)], [None; 3]);
    }
}
