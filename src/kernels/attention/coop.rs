//! Specialisations of `attention_coop.wgsl`, and of `attention_split_f16.wgsl`, which runs before it: sizes by device and head size.

use super::AttentionEntry;
use crate::gpu::{Caps, CooperativeMatrix, CountedWork, MatmulPrecision, Recording, Shader, Slot, grid_1d};

/// Specialisation for a device, a precision and a head size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CoopAttention {
    /// Rows and columns of a fragment: 8 or 16.
    edge: usize,
    /// Invocations per subgroup.
    subgroup: usize,
    is_cpu: bool,
    /// Whether an f32 product is split into three f16 products.
    split: bool,
    head_dim: usize,
}

/// Fragments of own rows per workgroup, where subgroups do not share rows.
const ROW_FRAGMENTS: usize = 4;
/// Invocations per workgroup of `attention_split_f16.wgsl`: one per row.
const ROWS: usize = 64;
/// Largest number of columns of the other side's rows that are loaded at a time.
const SLICE: usize = 128;
/// Workgroup memory that every device with cooperative matrices has.
const WORKGROUP_BYTES: usize = 32 << 10;
/// Largest head size, padded, whose own rows stay in registers in the forward pass.
const HELD_WIDTH: usize = 64;
/// Padding between rows in workgroup memory, in f16 values.
const PAD: usize = 8;
/// Smallest head size: narrower heads fill fragments badly.
const LEAST: usize = 12;
/// Largest number of outputs that an invocation keeps in registers before two subgroups share rows. `MOST_REGISTERS` is the limit with
/// sharing.
const REGISTERS: usize = 80;
/// Largest number of outputs that an invocation of a subgroup of 64 keeps for two fragments of own rows.
const REGISTERS_OF_TWO_ROWS: usize = 64;
const MOST_REGISTERS: usize = 128;
/// Largest number of registers for the part of a slice that an invocation carries from memory to workgroup memory. Every eight outputs take one
/// of them, because NVK spills beyond that line (benches/results/isa.md).
const STAGED_REGISTERS: usize = 25;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct SplitParams {
    t: u32,
    heads: u32,
    start: u32,
    stride: u32,
    first_head: u32,
}

/// Heads in a slot: `n` heads side by side from element `start`, in rows of `stride` elements.
pub(super) struct HeadRows<'a> {
    pub slot: &'a Slot,
    pub n: usize,
    pub start: usize,
    pub stride: usize,
}

/// Heads split into f16, which `attention_coop.wgsl` reads instead of q, k, v and d_o.
pub(super) struct SplitF16 {
    /// (heads, planes, T, WIDTH) f16.
    pub values: Slot,
    /// (heads, T), exponent of the power of two that scales each row.
    pub row_exponents: Slot,
}

impl CoopAttention {
    /// Returns the specialisation, if the precision asks for it, and the head size and the device's workgroup memory allow it.
    pub fn choose(caps: &Caps, precision: MatmulPrecision, head_dim: usize) -> Option<Self> {
        let CooperativeMatrix { edge, subgroup } = caps.cooperative?;
        let split = match precision {
            MatmulPrecision::Highest => return None,
            MatmulPrecision::High => true,
            MatmulPrecision::Medium => false,
        };
        let (edge, subgroup) = (edge as usize, subgroup as usize);
        let coop = Self { edge, subgroup, is_cpu: caps.is_cpu, split, head_dim };
        coop.fits(caps.workgroup_bytes as usize).then_some(coop)
    }

    /// Returns whether registers and workgroup memory suffice. Registers do not count on CPUs, where no head fits them.
    fn fits(self, workgroup_bytes: usize) -> bool {
        let in_registers = |entry| self.is_cpu || self.registers(entry) <= MOST_REGISTERS;
        let fits = |entry| in_registers(entry) && self.workgroup_bytes(entry) <= workgroup_bytes;
        self.head_dim >= LEAST && self.head_dim.is_multiple_of(4) && AttentionEntry::ALL.into_iter().all(fits)
    }

    /// Returns the shader's BLOCK: rows of the other side per block. CPUs get fewer rows, because their compilers take long for large
    /// blocks; they get fewer columns per slice for the same reason.
    fn block(self) -> usize {
        if self.is_cpu { 16 } else { 32 }
    }

    /// Returns the outputs per invocation, if subgroups did not share rows.
    fn unshared(self, entry: AttentionEntry) -> usize {
        let outputs = if matches!(entry, AttentionEntry::BackwardKv) { 2 } else { 1 };
        outputs * self.head_dim.div_ceil(self.edge) * self.edge * self.edge / self.subgroup
    }

    /// Returns the shader's SHARE: subgroups that own the same rows.
    fn share(self, entry: AttentionEntry) -> usize {
        // On CPUs, sharing halves the unrolled products of the outputs: it saves more compile time than it costs.
        if self.is_cpu || self.unshared(entry) > REGISTERS { 2 } else { 1 }
    }

    fn registers(self, entry: AttentionEntry) -> usize {
        self.unshared(entry) / self.share(entry)
    }

    /// Returns the shader's WIDTH, which all kernels share: whole fragments for each subgroup that shares rows.
    fn width(self) -> usize {
        let share = AttentionEntry::ALL.into_iter().map(|entry| self.share(entry)).max().unwrap_or(1);
        self.head_dim.next_multiple_of(self.edge * share)
    }

    /// Returns the shader's ROWS: fragments of own rows per subgroup. Two of them use each fragment of the other side twice, and fill the 64
    /// invocations of AMD's subgroups. CPUs have both, so that tests on lavapipe run both.
    fn row_fragments(self, entry: AttentionEntry) -> usize {
        if self.is_cpu {
            return if matches!(entry, AttentionEntry::Forward) && !self.split { 2 } else { 1 };
        }
        let fits = self.subgroup == 64 && self.share(entry) == 1 && 2 * self.unshared(entry) <= REGISTERS_OF_TWO_ROWS;
        if fits { 2 } else { 1 }
    }

    /// Returns the subgroups per workgroup.
    fn subgroups(self, entry: AttentionEntry) -> usize {
        ROW_FRAGMENTS / self.row_fragments(entry)
    }

    /// Returns the shader's HELD: whether own rows stay in registers.
    fn is_held(self, entry: AttentionEntry) -> bool {
        matches!(entry, AttentionEntry::Forward) && !self.split && self.width() <= HELD_WIDTH
    }

    /// Returns the shader's SLICE: the most columns of the other side's rows whose slices fit into workgroup memory, and into the registers
    /// that carry them there. CPUs get few columns, because their compilers take long for large slices.
    fn slice(self, entry: AttentionEntry) -> usize {
        let least = self.edge * self.share(entry);
        let most = if self.is_cpu { least } else { SLICE };
        let most_staged = STAGED_REGISTERS.saturating_sub(self.registers(entry) / 8);
        let fits = |slice: &usize| {
            self.width().is_multiple_of(*slice)
                && self.bytes_with_slice(entry, *slice) <= WORKGROUP_BYTES
                && (self.is_cpu || self.staged_registers(entry, *slice) <= most_staged)
        };
        (1..=most / least).rev().map(|n| n * least).find(fits).unwrap_or(least)
    }

    /// Returns the registers that hold an invocation's part of a slice, two f16 each.
    fn staged_registers(self, entry: AttentionEntry, slice: usize) -> usize {
        (self.planes() * self.block() * slice / 2).div_ceil(self.subgroups(entry) * self.subgroup)
    }

    /// Returns the rows that a workgroup owns.
    pub fn rows(self, entry: AttentionEntry) -> usize {
        ROW_FRAGMENTS / self.share(entry) * self.edge
    }

    /// Returns the bytes of workgroup memory that the shader declares.
    fn workgroup_bytes(self, entry: AttentionEntry) -> usize {
        self.bytes_with_slice(entry, self.slice(entry))
    }

    fn bytes_with_slice(self, entry: AttentionEntry, slice: usize) -> usize {
        let (rows, block) = (self.rows(entry), self.block());
        // A slice lies by rows or by columns.
        let f16s = (block * (slice + PAD)).max(slice * (block + PAD)) + rows * (block + PAD);
        let facts = if matches!(entry, AttentionEntry::BackwardKv) { 8 } else { 3 };
        let words = rows * (block + PAD / 2) + facts * block + 1 + if self.split { 0 } else { 2 };
        2 * self.planes() * f16s + 4 * words
    }

    fn planes(self) -> usize {
        if self.split { 2 } else { 1 }
    }

    pub fn shader(self, entry: AttentionEntry) -> Shader {
        let names = ["attention_coop_fwd", "attention_coop_bwd_q", "attention_coop_bwd_kv"];
        let shader = Shader::new("attention_coop", names[entry as usize])
            .with("SPLIT", f64::from(u8::from(self.split)))
            .with("WIDTH", self.width() as f64)
            .with("LANES", (self.subgroups(entry) * self.subgroup) as f64)
            .with("SUBGROUPS", self.subgroups(entry) as f64)
            .with("ROWS", self.row_fragments(entry) as f64)
            .with("HELD", f64::from(u8::from(self.is_held(entry))))
            .with("SHARE", self.share(entry) as f64)
            .with("BLOCK", self.block() as f64)
            .with("SLICE", self.slice(entry) as f64)
            .enable(&["f16", "wgpu_cooperative_matrix"]);
        if self.edge == 16 { shader.substitute("shared/fragment8", "shared/fragment16") } else { shader }
    }

    fn split_shader(self) -> Shader {
        Shader::new("attention_split_f16", "attention_split_f16")
            .with("SPLIT", f64::from(u8::from(self.split)))
            .with("E", self.head_dim as f64)
            .with("WIDTH", self.width() as f64)
    }

    /// Returns every specialisation of a head size for lavapipe, and for GPUs with subgroups of 32 and (AMD) 64.
    pub fn all(head_dim: usize) -> Vec<Self> {
        let devices = [(8, 8, true), (8, 32, false), (16, 32, false), (16, 64, false)];
        let of = |(edge, subgroup, is_cpu)| [false, true].map(|split| Self { edge, subgroup, is_cpu, split, head_dim });
        devices.into_iter().flat_map(of).collect()
    }

    /// Returns the specialisations of `attention_split_f16.wgsl` for heads of 64.
    pub fn split_shaders() -> Vec<Shader> {
        Self::all(64).into_iter().map(Self::split_shader).collect()
    }

    /// Splits heads of `t` rows each into f16, one head after the other in the result.
    pub fn split_heads(self, rec: &mut Recording, t: usize, all: &[HeadRows]) -> SplitF16 {
        let n_heads: usize = all.iter().map(|heads| heads.n).sum();
        // The fragments of a tile may begin at the last row, and are read whole.
        let rows = n_heads * self.planes() * t + ROW_FRAGMENTS * self.edge;
        let heads_f16 = SplitF16 {
            values: rec.gpu().alloc_activation(rows * self.width() / 2),
            row_exponents: rec.gpu().alloc_activation(n_heads * t),
        };
        let mut first_head = 0;
        for heads in all {
            let params = SplitParams {
                t: t as u32,
                heads: heads.n as u32,
                start: heads.start as u32,
                stride: heads.stride as u32,
                first_head,
            };
            let slots = [heads.slot, &heads_f16.values, &heads_f16.row_exponents];
            let bytes_per_row = 4 * self.head_dim + 2 * self.planes() * self.width() + 4;
            let work = CountedWork::new(0, (heads.n * t * bytes_per_row) as u64);
            rec.dispatch(&self.split_shader(), &params, &slots, grid_1d(heads.n * t, ROWS), work);
            first_head += heads.n as u32;
        }
        heads_f16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(edge: u32, subgroup: u32, workgroup_bytes: u32) -> Caps {
        Caps { cooperative: Some(CooperativeMatrix { edge, subgroup }), workgroup_bytes, ..Caps::baseline() }
    }

    /// Every model's head size has a specialisation with the usual 32 KiB of workgroup memory, and none with the baseline's 16 KiB.
    #[test]
    fn sizes_by_device_and_head_size() {
        let high = MatmulPrecision::High;
        let shares = |caps: &Caps, e| {
            CoopAttention::choose(caps, high, e).map(|c| AttentionEntry::ALL.map(|entry| c.share(entry)))
        };
        let tensor_cores = device(16, 32, 32 << 10);
        assert_eq!(shares(&tensor_cores, 64), Some([1, 1, 1]));
        assert_eq!(shares(&tensor_cores, 80), Some([1, 1, 1]));
        assert_eq!(shares(&tensor_cores, 128), Some([1, 1, 2]));
        assert_eq!(shares(&tensor_cores, 256), Some([2, 2, 2]));
        assert_eq!(shares(&device(8, 32, 32 << 10), 256), Some([1, 1, 2]));
        assert!((12..=256).step_by(4).all(|e| shares(&tensor_cores, e).is_some_and(|s| s[0] == s[1])));
        assert_eq!([8, 66, 512].map(|e| shares(&tensor_cores, e)), [None; 3]);
        assert_eq!(shares(&device(16, 32, 16 << 10), 64), None);
        assert_eq!(CoopAttention::choose(&tensor_cores, MatmulPrecision::Highest, 64), None);
        assert_eq!(CoopAttention::choose(&Caps::baseline(), high, 64), None);
    }

    /// Wide heads with large slices spill on NVK.
    #[test]
    fn slices_leave_registers_to_the_outputs() {
        let slices = |subgroup, split, head_dim| {
            let coop = CoopAttention { edge: 16, subgroup, is_cpu: false, split, head_dim };
            AttentionEntry::ALL.map(|entry| coop.slice(entry))
        };
        assert_eq!([64, 80, 128, 256].map(|e| slices(32, true, e)), [[64; 3], [80, 80, 16], [64; 3], [64, 64, 32]]);
        assert_eq!([64, 80, 128, 256].map(|e| slices(32, false, e)), [[64; 3], [80; 3], [128; 3], [128, 128, 64]]);
        assert_eq!(slices(64, false, 256), [128; 3]);
    }

    /// The shader relies on these divisions having no remainder.
    #[test]
    fn sizes_are_whole() {
        for coop in (12..=256).step_by(4).flat_map(CoopAttention::all).filter(|c| c.fits(32 << 10)) {
            for entry in AttentionEntry::ALL {
                let fragments = coop.edge * coop.share(entry);
                let (rows, slice) = (coop.rows(entry), coop.slice(entry));
                assert!([coop.block(), slice, coop.width()].iter().all(|n| n.is_multiple_of(fragments)), "{coop:?}");
                assert!(coop.width().is_multiple_of(slice) && coop.width() >= coop.head_dim, "{coop:?}");
                let lanes = coop.subgroups(entry) * coop.subgroup;
                assert!(lanes.is_multiple_of(rows) && coop.block().is_multiple_of(lanes / rows), "{coop:?}");
                // A row's invocations are in one subgroup, and the facts of a block have an invocation each.
                assert!(coop.subgroup.is_multiple_of(lanes / rows) && coop.block() <= lanes, "{coop:?}");
            }
        }
    }
}
