//! Chunks of a batch's segments, as `shaders/shared/delta_rule.wgsl` reads them.

use std::collections::BTreeMap;
use std::ops::Range;

use super::DeltaHeads;
use crate::gpu::{Gpu, Slot};
use crate::kernels::packed_batch::PackedBatch;

/// Tokens per chunk: the shaders' C.
pub(super) const CHUNK: usize = 64;
/// Word of a slot that does not exist: the shaders' NONE.
const NONE: u32 = u32::MAX;

/// Run of packed tokens that one state goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First packed token.
    pub start: usize,
    /// Number of tokens, at least 1.
    pub len: usize,
    /// Index of the segment whose last state this one continues from; that segment has no prefix itself.
    pub prefix: Option<usize>,
}

impl Segment {
    /// Lists the segments of a packed batch in the order of their tokens.
    pub fn of_batch(batch: &PackedBatch) -> Vec<Self> {
        let mut segments: Vec<Self> = Vec::new();
        let mut of_start = BTreeMap::new();
        for &[prefix, prefix_end, own, own_end] in &batch.ranges {
            let n = segments.len();
            match segments.last_mut() {
                Some(last) if last.start == own as usize => last.len = (own_end - own) as usize,
                _ => {
                    let prefix = (prefix < prefix_end).then(|| of_start[&prefix]);
                    segments.push(Self { start: own as usize, len: (own_end - own) as usize, prefix });
                    of_start.insert(own, n);
                }
            }
        }
        segments
    }
}

/// States that a caller gives or wants, beside those between chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OuterStates {
    /// Whether the states behind the S segments are kept, in slots 0 to S − 1.
    pub last: bool,
    /// Whether segments without a prefix start from given states, in the S slots behind those of `last`. Else they start from zeros.
    pub first: bool,
}

/// Chunks, chains and state slots of a batch, on the device.
#[derive(Debug)]
pub struct DeltaChunks {
    pub(super) table: Slot,
    pub(super) t: usize,
    pub(super) n: usize,
    /// Indices in the table of the chains without a prefix, and of those with one, which need the former's states.
    pub(super) chains: [Range<usize>; 2],
    /// Indices in the table of the sums of branches' state gradients.
    pub(super) branch_sums: Range<usize>,
    slots: usize,
    d_slots: usize,
}

impl DeltaChunks {
    /// Builds the chunks of a packed batch, for training.
    pub fn of_batch(gpu: &Gpu, batch: &PackedBatch) -> Self {
        Self::new(gpu, &Segment::of_batch(batch), OuterStates::default())
    }

    /// Builds the chunks of segments.
    pub fn new(gpu: &Gpu, segments: &[Segment], outer: OuterStates) -> Self {
        let is_prefix = |s: usize| segments.iter().any(|other| other.prefix == Some(s));
        let n_outer = |is_kept: bool| if is_kept { segments.len() } else { 0 };
        let mut slots = n_outer(outer.last) + n_outer(outer.first);
        let mut new_slot = || {
            slots += 1;
            slots as u32 - 1
        };
        // Slots of states: of each chunk [before, after], and of each segment's last state.
        let mut chunks: Vec<[u32; 8]> = Vec::new();
        let mut chains = [Vec::new(), Vec::new()];
        let mut last_slots = vec![NONE; segments.len()];
        let with_prefix = |with: bool| (0..segments.len()).filter(move |&s| segments[s].prefix.is_some() == with);
        // Branches of each prefix.
        let mut branches: BTreeMap<usize, usize> = BTreeMap::new();
        let mut extra_branches = Vec::new();
        for s in with_prefix(false).chain(with_prefix(true)) {
            let Segment { start, len, prefix } = segments[s];
            let count = len.div_ceil(CHUNK);
            let first = chunks.len();
            let mut before = match prefix {
                Some(prefix) => last_slots[prefix],
                None if outer.first => (n_outer(outer.last) + s) as u32,
                None => NONE,
            };
            for c in 0..count {
                let is_last = c + 1 == count;
                let after = match is_last {
                    true if outer.last => s as u32,
                    true if !is_prefix(s) => NONE,
                    _ => new_slot(),
                };
                let tokens = CHUNK.min(len - c * CHUNK);
                chunks.push([(start + c * CHUNK) as u32, tokens as u32, before, after, before, 0, 0, 0]);
                before = after;
            }
            last_slots[s] = before;
            chains[usize::from(prefix.is_some())].push([first as u32, count as u32, 0, 0]);
            if let Some(prefix) = prefix {
                let n = branches.entry(prefix).or_default();
                if *n > 0 || outer.last {
                    extra_branches.push((prefix, first));
                }
                *n += 1;
            }
        }
        // The gradient of a prefix's last state: its first branch writes to the state's own slot, unless the caller fills that one. Each other
        // branch writes to a further slot.
        let mut d_slots = slots;
        let mut sums = Vec::new();
        for (&prefix, _) in branches.iter().filter(|(_, n)| **n > 1 || outer.last) {
            let own = d_slots;
            for &(_, first) in extra_branches.iter().filter(|(of, _)| *of == prefix) {
                chunks[first][4] = d_slots as u32;
                d_slots += 1;
            }
            sums.push([last_slots[prefix], own as u32, (d_slots - own) as u32, 0]);
        }
        let n = chunks.len();
        let [roots, others] = &chains;
        let branch_start = 2 * n + roots.len();
        let sums_start = branch_start + others.len();
        let words = [chunks.as_flattened(), roots.as_flattened(), others.as_flattened(), sums.as_flattened()].concat();
        Self {
            table: gpu.upload(&words),
            t: segments.iter().map(|s| s.start + s.len).max().unwrap_or(0),
            n,
            chains: [2 * n..branch_start, branch_start..sums_start],
            branch_sums: sums_start..sums_start + sums.len(),
            slots: slots.max(1),
            d_slots: d_slots.max(1),
        }
    }

    /// Returns the number of elements of all states between chunks: (slots, Hv, dk, dv).
    pub fn states_len(&self, heads: &DeltaHeads) -> usize {
        self.slots * heads.state_len()
    }

    /// Returns the number of elements of the gradients of all states.
    pub fn d_states_len(&self, heads: &DeltaHeads) -> usize {
        self.d_slots * heads.state_len()
    }
}
