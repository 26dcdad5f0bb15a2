//! Where buffers lie in the driver's memory. wgpu asks Vulkan and DX12 for blocks of one size (through the crate gpu-allocator), and puts buffers into the
//! gaps of these; a buffer that is larger than a block gets memory of its own. A plan places its buffers in the same way, and so knows what is asked for.

use std::ops::Range;

/// The size of a block, where the device has memory of its own. What is empty in a block nothing else gets, and buffers of more than half a block leave much of
/// it empty: of 4, 8 and 16 MiB, 8 and 16 plan the least for small models (2 x 512 tokens of SmolLM2-135M: 1,608, 1,504 and 1,451 MiB), and large ones have
/// buffers that are larger than any.
pub(super) const BLOCK_BYTES: u64 = 16 << 20;

/// The size of a block in memory that the host sees, too: wgpu halves it there.
pub(super) const HOST_VISIBLE_BLOCK_BYTES: u64 = BLOCK_BYTES / 2;

/// Blocks, and the gaps in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocks {
    block_bytes: u64,
    /// In the order in which they are searched, backwards; `None` where one was given back.
    blocks: Vec<Option<Block>>,
    bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    size: u64,
    /// Gaps, in no order: apart, and never next to each other.
    gaps: Vec<Range<u64>>,
}

/// Where a buffer lies: its block, and its offset there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Place {
    block: usize,
    offset: u64,
}

impl Block {
    /// Takes the smallest gap that is large enough.
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
        self.gaps == [0..self.size]
    }
}

impl Blocks {
    /// None yet.
    pub fn new(block_bytes: u64) -> Self {
        Self { block_bytes, blocks: Vec::new(), bytes: 0 }
    }

    /// Bytes of all blocks.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Finds a place for a buffer.
    pub fn add(&mut self, bytes: u64) -> Place {
        let block_bytes = self.block_bytes;
        let blocks = self.blocks.iter_mut().enumerate().rev().filter(|_| bytes <= block_bytes);
        let mut shared = blocks.filter_map(|(i, block)| Some((i, block.as_mut().filter(|b| b.size == block_bytes)?)));
        if let Some((block, offset)) = shared.find_map(|(i, block)| Some((i, block.add(bytes)?))) {
            return Place { block, offset };
        }
        let size = bytes.max(block_bytes);
        let rest = if bytes < size { vec![bytes..size] } else { Vec::new() };
        let new = Some(Block { size, gaps: rest });
        self.bytes += size;
        let block = self.blocks.iter().position(Option::is_none).unwrap_or(self.blocks.len());
        match self.blocks.get_mut(block) {
            Some(given_back) => *given_back = new,
            None => self.blocks.push(new),
        }
        Place { block, offset: 0 }
    }

    /// Frees a buffer's place. An empty block is given back, but for the last one that several buffers may share.
    pub fn remove(&mut self, place: Place, bytes: u64) {
        let block_bytes = self.block_bytes;
        let is_shared = |block: &Block| block.size == block_bytes;
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
        let mut blocks = Blocks::new(4 * MIB);
        let places = [3, 2, 1, 2, 9].map(|mib| blocks.add(mib * MIB));
        // 3 and 1; 2 and 2; 9 alone: the 1 goes where its gap is, in the latest block that has one.
        let at = |block, mib| Place { block, offset: mib * MIB };
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
        let mut blocks = Blocks::new(4 * MIB);
        let [small, large] = [256, 5 * MIB].map(|bytes| blocks.add(bytes));
        blocks.remove(small, 256);
        assert_eq!(blocks.bytes(), 9 * MIB);
        blocks.remove(large, 5 * MIB);
        assert_eq!(blocks.bytes(), 4 * MIB);
    }
}
