//! Counts of buffer bytes by role, and of the device memory that holds the buffers. A run and its memory plan count in the same way.

use super::blocks::{BlockAllocator, BlockPlace};

/// Role of a buffer: a column of the memory plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Trained weights, f32 or bf16.
    Params,
    /// Gradients of trained weights, f32.
    Grads,
    /// AdamW's two moments, f32 or eight bits with their scales.
    Moments,
    /// Weights that are not trained, in any storage.
    Frozen,
    /// Activations saved for the backward pass, and scratch.
    Activations,
    /// Token ids, tables, and other small inputs of a micro-batch.
    Batch,
}

impl Role {
    /// Returns the role's name for messages.
    fn name(self) -> &'static str {
        match self {
            Self::Params => "parameters",
            Self::Grads => "gradients",
            Self::Moments => "moments",
            Self::Frozen => "frozen weights",
            Self::Activations => "activations",
            Self::Batch => "inputs of a batch",
        }
    }
}

const ROLES: [Role; 6] = [Role::Params, Role::Grads, Role::Moments, Role::Frozen, Role::Activations, Role::Batch];

/// Bytes of buffers by role, and of the memory that holds them; current values and peaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    now: [u64; ROLES.len()],
    peak: [u64; ROLES.len()],
    /// Number of buffers that exist now, by role.
    n_buffers: [u64; ROLES.len()],
    blocks: BlockAllocator,
    /// Largest sum of the blocks' bytes so far.
    peak_of_blocks: u64,
    largest_activation: u64,
}

impl Ledger {
    /// Creates an empty ledger whose blocks have `block_bytes` bytes.
    pub(super) fn new(block_bytes: u64) -> Self {
        let none = [0; ROLES.len()];
        let blocks = BlockAllocator::new(block_bytes);
        Self { now: none, peak: none, n_buffers: none, blocks, peak_of_blocks: 0, largest_activation: 0 }
    }

    /// Forgets all peaks, where no buffer exists now.
    pub(super) fn restart(&mut self) {
        if self.total() == 0 {
            *self = Self { blocks: self.blocks.emptied(), ..Self::new(0) };
        }
    }

    /// Counts a new buffer, and returns its place in the blocks.
    pub(super) fn add(&mut self, role: Role, bytes: u64) -> BlockPlace {
        let i = role as usize;
        self.now[i] += bytes;
        self.n_buffers[i] += 1;
        self.peak[i] = self.peak[i].max(self.now[i]);
        if role == Role::Activations {
            self.largest_activation = self.largest_activation.max(bytes);
        }
        let place = self.blocks.add(bytes);
        self.peak_of_blocks = self.peak_of_blocks.max(self.blocks.bytes());
        place
    }

    /// Removes a buffer from the counts and the blocks.
    pub(super) fn sub(&mut self, role: Role, bytes: u64, place: BlockPlace) {
        self.now[role as usize] -= bytes;
        self.n_buffers[role as usize] -= 1;
        self.blocks.remove(place, bytes);
    }

    /// Describes the buffer that was added last: "parameters, page 3".
    pub(super) fn last_added(&self, role: Role) -> String {
        match role {
            Role::Activations | Role::Batch => role.name().into(),
            _ => format!("{}, page {}", role.name(), self.n_buffers[role as usize]),
        }
    }

    /// Returns the bytes of all buffers that exist now.
    pub fn total(&self) -> u64 {
        self.now.iter().sum()
    }

    /// Returns the largest amount of memory, in bytes, that was requested from the driver at one time: whole blocks, some of them partly
    /// empty.
    pub fn peak_bytes(&self) -> u64 {
        self.peak_of_blocks
    }

    /// Returns the bytes of the largest single activation. It must fit a binding.
    pub fn largest_activation(&self) -> u64 {
        self.largest_activation
    }

    /// Returns the peak of each role, in bytes.
    pub fn peak_by_role(&self) -> Vec<(Role, u64)> {
        ROLES.iter().map(|&r| (r, self.peak[r as usize])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_begins_anew_where_nothing_is_left() {
        let mut ledger = Ledger::new(1 << 20);
        let place = ledger.add(Role::Activations, 3 << 20);
        ledger.restart();
        assert_eq!((ledger.peak_bytes(), ledger.total()), (3 << 20, 3 << 20));
        ledger.sub(Role::Activations, 3 << 20, place);
        ledger.restart();
        assert_eq!(ledger, Ledger::new(1 << 20));
    }

    #[test]
    fn the_peak_is_of_then_and_in_blocks() {
        let mut ledger = Ledger::new(1 << 20);
        let small = ledger.add(Role::Params, 512);
        let large = ledger.add(Role::Activations, 3 << 20);
        assert_eq!((ledger.peak_bytes(), ledger.total()), (4 << 20, (3 << 20) + 512));
        ledger.sub(Role::Activations, 3 << 20, large);
        ledger.add(Role::Activations, 1 << 20);
        assert_eq!((ledger.peak_bytes(), ledger.total()), (4 << 20, (1 << 20) + 512));
        assert_eq!(ledger.largest_activation(), 3 << 20);
        ledger.sub(Role::Params, 512, small);
        assert_eq!(ledger.peak_by_role()[..2], [(Role::Params, 512), (Role::Grads, 0)]);
    }
}
