//! Model of the driver's memory allocator. wgpu requests memory from Vulkan and DX12 in blocks of one size (through the crate
//! gpu-allocator), and places buffers in their gaps. A buffer larger than a block gets memory of its own. A plan places its buffers in the
//! same way, and therefore knows how much memory is requested.

use std::ops::Range;

/// Bytes of a block in device-local memory. No other program can use the empty part of a block, and buffers above half a block leave much
/// of it empty. Of 4, 8 and 16 MiB, 16 requests the least memory for small models (2 x 512 tokens of SmolLM2-135M: 1,608, 1,504 and 1,451
/// MiB). Large models have buffers larger than any of these blocks.
pub(super) const BLOCK_BYTES: u64 = 16 << 20;

/// Bytes of a block in memory that the host can access too, where wgpu halves the size.
pub(super) const HOST_VISIBLE_BLOCK_BYTES: u64 = BLOCK_BYTES / 2;

/// Blocks of memory, and the gaps in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockAllocator {
    block_bytes: u64,
    /// Blocks, searched from the last to the first; `None` where one was freed.
    blocks: Vec<Option<MemoryBlock>>,
    bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct MemoryBlock {
    size: u64,
    /// Gaps in any order; adjacent gaps are merged.
    gaps: Vec<Range<u64>>,
}

/// Place of a buffer: its block, and its offset in the block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct BlockPlace {
    block: usize,
    offset: u64,
}

impl MemoryBlock {
    /// Allocates `bytes` in the smallest gap that fits, and returns the offset.
    fn add(&mut self, bytes: u64) -> Option<u64> {
        let len = |gap: &Range<u64>| gap.end - gap.start;
        let fits = (0..self.gaps.len()).filter(|&i| len(&self.gaps[i]) >= bytes);
        let best = fits.min_by_key(|&i| len(&self.gaps[i]))?;
        let offset = self.gaps[best].start;
        self.gaps[best].start += bytes;
        if self.gaps[best].is_empty() {
            self.gaps.swap_remove(best);
        }
        Some(offset)
    }

    fn remove(&mut self, mut freed: Range<u64>) {
        self.gaps.retain(|gap| {
            let is_next = gap.end == freed.start || gap.start == freed.end;
            if is_next {
                freed = freed.start.min(gap.start)..freed.end.max(gap.end);
            }
            !is_next
        });
        self.gaps.push(freed);
    }

    fn is_empty(&self) -> bool {
        matches!(self.gaps[..], [Range { start: 0, end }] if end == self.size)
    }
}

impl BlockAllocator {
    /// Creates an empty list of blocks of `block_bytes` bytes.
    pub fn new(block_bytes: u64) -> Self {
        Self { block_bytes, blocks: Vec::new(), bytes: 0 }
    }

    /// Returns a list like this one when it was empty.
    pub fn emptied(&self) -> Self {
        Self::new(self.block_bytes)
    }

    /// Returns the bytes of all blocks.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Places a buffer in a gap of a block, else in a new block.
    pub fn add(&mut self, bytes: u64) -> BlockPlace {
        let block_bytes = self.block_bytes;
        let blocks = self.blocks.iter_mut().enumerate().rev().filter(|_| bytes <= block_bytes);
        let mut shared = blocks.filter_map(|(i, block)| Some((i, block.as_mut().filter(|b| b.size == block_bytes)?)));
        if let Some((block, offset)) = shared.find_map(|(i, block)| Some((i, block.add(bytes)?))) {
            return BlockPlace { block, offset };
        }
        let size = bytes.max(block_bytes);
        let rest = std::iter::once(bytes..size).filter(|gap| !gap.is_empty());
        let new = Some(MemoryBlock { size, gaps: rest.collect() });
        self.bytes += size;
        let block = self.blocks.iter().position(Option::is_none).unwrap_or(self.blocks.len());
        match self.blocks.get_mut(block) {
            Some(given_back) => *given_back = new,
            None => self.blocks.push(new),
        }
        BlockPlace { block, offset: 0 }
    }

    /// Frees a buffer's place. An empty block is freed too, except the last one of the shared size.
    pub fn remove(&mut self, place: BlockPlace, bytes: u64) {
        let block_bytes = self.block_bytes;
        let is_shared = |block: &MemoryBlock| block.size == block_bytes;
        let n_shared = self.blocks.iter().flatten().filter(|block| is_shared(block)).count();
        let Some(Some(block)) = self.blocks.get_mut(place.block) else { return };
        block.remove(place.offset..place.offset + bytes);
        if block.is_empty() && (n_shared > 1 || !is_shared(block)) {
            self.bytes -= block.size;
            self.blocks[place.block] = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn buffers_fill_the_gaps_of_blocks() {
        let mut blocks = BlockAllocator::new(4 * MIB);
        let places = [3, 2, 1, 2, 9].map(|mib| blocks.add(mib * MIB));
        // Buffers per block, in MiB: 3; 2 and 1; 2; 9. The 1 goes into the latest block that has a gap for it.
        let at = |block, mib| BlockPlace { block, offset: mib * MIB };
        assert_eq!(places, [at(0, 0), at(1, 0), at(1, 2), at(2, 0), at(3, 0)]);
        assert_eq!(blocks.bytes(), 21 * MIB);
        blocks.remove(places[1], 2 * MIB);
        assert_eq!(blocks.bytes(), 21 * MIB, "the block holds another buffer");
        assert_eq!(blocks.add(MIB), at(2, 2));
        blocks.remove(places[2], MIB);
        assert_eq!(blocks.bytes(), 17 * MIB, "gaps that meet are one");
        blocks.remove(places[4], 9 * MIB);
        assert_eq!(blocks.bytes(), 8 * MIB);
        assert_eq!(blocks.add(4 * MIB), at(1, 0), "where one was given back");
    }

    #[test]
    fn the_last_block_that_is_shared_stays() {
        let mut blocks = BlockAllocator::new(4 * MIB);
        let [small, large] = [256, 5 * MIB].map(|bytes| blocks.add(bytes));
        blocks.remove(small, 256);
        assert_eq!(blocks.bytes(), 9 * MIB);
        blocks.remove(large, 5 * MIB);
        assert_eq!(blocks.bytes(), 4 * MIB);
    }
}
