//! Specialisations of `attention_tiles.wgsl`: sizes by head size.

use super::AttentionEntry;
use crate::gpu::Shader;

/// Rows of the other side per block: the shader's BLOCK.
const BLOCK: usize = 32;
/// vec4s of the other side's rows that are loaded at a time: 8 KiB.
const RIGHT: usize = 512;
/// Largest number of invocations per workgroup. `DOWN` is the largest number of groups of invocations that own 4 rows of a tile each.
const INVOCATIONS: usize = 256;
const DOWN: usize = 16;
/// Largest number of invocations that share 4 rows.
const MOST_ACROSS: usize = 32;

/// Limits of what an invocation keeps in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RegisterBudget {
    /// Largest number of outputs and scores.
    values: usize,
    /// Largest number of vec4s of E per slice, by [`AttentionEntry`]. Slices of own rows must fit where the weights are stored afterwards, so
    /// it is at most 8.
    slice: [usize; 3],
    /// Largest number of the other side's rows that are loaded at a time.
    rows: usize,
}

const WIDE: RegisterBudget = RegisterBudget { values: 80, slice: [8; 3], rows: BLOCK };
/// Limits for 128 registers of 8 lanes (Intel), found by compiling all divisions with ANV of Mesa 26: none of these spills (benches/results/isa.md).
const NARROW: RegisterBudget = RegisterBudget { values: 48, slice: [4, 2, 2], rows: 8 };

/// Division of a workgroup's tile among invocations, for a head size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AttentionTiles {
    head_dim: usize,
    /// Whether registers are few: [`NARROW`], and a kernel of its own for d_k and for d_v, as for heads above [`LARGEST_JOINT`].
    narrow: bool,
}

/// Largest head size for which an invocation keeps the outputs of d_k and of d_v together.
const LARGEST_JOINT: usize = 256;

impl AttentionTiles {
    /// Returns the tiles for heads of whole vec4s; `None` for heads so wide that an invocation would keep too many values.
    pub fn for_head_dim(head_dim: usize, narrow: bool) -> Option<Self> {
        let tiles = Self { head_dim, narrow };
        let fits = head_dim.is_multiple_of(4)
            && head_dim > 0
            && AttentionEntry::ALL.iter().all(|&e| tiles.across(e).is_some());
        fits.then_some(tiles)
    }

    /// Returns whether d_k and d_v have a kernel each.
    fn splits_kv(self) -> bool {
        self.narrow || self.head_dim > LARGEST_JOINT
    }

    fn budget(self) -> RegisterBudget {
        if self.narrow { NARROW } else { WIDE }
    }

    /// Returns the shader's ACROSS: the smallest number of invocations sharing 4 rows that have enough registers.
    fn across(self, entry: AttentionEntry) -> Option<usize> {
        let (outputs, scores) = match entry {
            AttentionEntry::Forward => (1, 1),
            AttentionEntry::BackwardQ => (1, 2),
            AttentionEntry::BackwardKv => (if self.splits_kv() { 1 } else { 2 }, 2),
        };
        let wide = |across| (self.head_dim / 4).div_ceil(across);
        let kept = |across| outputs * 16 * wide(across) + scores * 4 * BLOCK / across;
        let least = if self.narrow && scores == 2 { 16 } else { 8 };
        [8, 16, MOST_ACROSS].into_iter().find(|&across| across >= least && kept(across) <= self.budget().values)
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
        let rows = 1u32 << self.budget().rows.min(RIGHT / vec4s).ilog2();
        Shader::new("attention_tiles", names[entry as usize])
            .with("SLICE", self.slice(self.budget().slice[entry as usize]) as f64)
            .with("ROWS", f64::from(rows))
            .with("ACROSS", across as f64)
            .with("DOWN", down as f64)
            // Two sets of outputs of wide heads leave few scores, and so little to multiply, per slice.
            .with("PREFETCH", f64::from(u8::from(!self.narrow && across == MOST_ACROSS)))
    }

    /// Returns the largest slice that divides a head's vec4s. Compilers unroll a loop over two or three slices and load them together, which few
    /// registers don't allow.
    fn slice(self, most: usize) -> usize {
        let vec4s = self.head_dim / 4;
        let fits = |&s: &usize| vec4s.is_multiple_of(s) && !(self.narrow && (2..=3).contains(&(vec4s / s)));
        (1..=most).rfind(fits).unwrap_or(1)
    }

    /// Returns the kernels of d_k and d_v, each with its operations per pair and value of a head. In kernels of their own, scores are computed
    /// twice. `both` is [`Self::shader`] of [`AttentionEntry::BackwardKv`].
    pub fn kv_shaders(self, both: &Shader) -> Vec<(Shader, u64)> {
        match self.splits_kv() {
            true => vec![(both.clone().with("OF_KEYS", 0.0), 4), (both.clone().with("OF_VALUES", 0.0), 6)],
            false => vec![(both.clone(), 8)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every model's head size has tiles; sizes without tiles fall back to the baseline.
    #[test]
    fn sizes_by_head_size() {
        let of = |e: usize, narrow| {
            let tiles = AttentionTiles::for_head_dim(e, narrow)?;
            Some(AttentionEntry::ALL.map(|entry| tiles.across_and_down(entry)))
        };
        let sizes = |e| of(e, false);
        assert_eq!(sizes(64), Some([[8, 16], [8, 16], [16, 16]]));
        assert_eq!(sizes(80), Some([[8, 16], [8, 16], [16, 16]]));
        assert_eq!(sizes(128), Some([[8, 16], [16, 16], [16, 16]]));
        assert_eq!(sizes(256), Some([[16, 16], [16, 16], [32, 8]]));
        assert_eq!(of(64, true), Some([[8, 16], [16, 16], [16, 16]]));
        assert_eq!(of(128, true), Some([[16, 16]; 3]));
        assert_eq!(of(256, true), Some([[32, 8]; 3]));
        assert_eq!(sizes(512), Some([[32, 8]; 3]));
        assert_eq!([sizes(0), sizes(66), sizes(1024), of(512, true)], [None; 4]);
        for e in (4..=256).step_by(4) {
            // A tile of queries has the same size in both passes, because both use the same key ranges.
            for narrow in [false, true] {
                assert!(of(e, narrow).is_some_and(|s| s[0][1] == s[1][1]), "{e}");
            }
        }
    }
}
