//! Device buffers by role, slots in them, and the count of their bytes.
//!
//! WebGPU tracks usage by whole buffer, so that a buffer cannot be read-only and read-write in one dispatch. Each role, and each
//! activation, therefore has its own buffer. An activation's buffer returns to a pool when its last slot is dropped. Commands run in the
//! order of recording, so a slot may be reused as soon as nothing *recorded later* needs it: a slot lives as long as its Rust value.

use std::sync::{Arc, Mutex};

use super::Gpu;
use super::blocks::BlockPlace;
use super::failure::refused;
use super::guards::SlotGuards;
use super::ledger::{Ledger, Role};
use super::open_device::OpenDevice;

pub(super) struct MemoryPool {
    state: Mutex<PoolState>,
    guards: Mutex<SlotGuards>,
}

struct PoolState {
    ledger: Ledger,
    /// Bytes that were uploaded since the last wait for uploads.
    staged_bytes: u64,
    /// Activation buffers that no slot uses.
    free: Vec<Memory>,
    /// Buffers freed so far, except those of [`Role::Batch`].
    freed_buffers: u64,
    /// Whether the pool is being filled; see [`Gpu::while_reserving`].
    reserving: bool,
}

impl MemoryPool {
    /// Creates an empty pool whose ledger has blocks of `block_bytes` bytes.
    pub fn new(block_bytes: u64) -> Self {
        let ledger = Ledger::new(block_bytes);
        let state = PoolState { ledger, staged_bytes: 0, free: Vec::new(), freed_buffers: 0, reserving: false };
        Self { state: Mutex::new(state), guards: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
    fn guards(&self) -> std::sync::MutexGuard<'_, SlotGuards> {
        self.guards.lock().unwrap_or_else(|e| e.into_inner())
    }
    pub fn ledger(&self) -> Ledger {
        self.state().ledger.clone()
    }
    /// Returns the number of buffers freed so far, except those of [`Role::Batch`].
    pub fn freed_buffers(&self) -> u64 {
        self.state().freed_buffers
    }
    /// Takes the smallest free activation buffer of at least `bytes`; while reserving, of at most 1.5 times `bytes`.
    fn take(&self, bytes: u64) -> Option<Memory> {
        let mut state = self.state();
        let most = if state.reserving { bytes + bytes / 2 } else { u64::MAX };
        let fits = state.free.iter().enumerate().filter(|(_, f)| (bytes..=most).contains(&f.bytes));
        let best = fits.min_by_key(|(_, f)| f.bytes).map(|(i, _)| i)?;
        Some(state.free.swap_remove(best))
    }
}

/// Device buffer and its place in the blocks. A plan has only the place.
#[derive(Default)]
struct Memory {
    raw: Option<wgpu::Buffer>,
    bytes: u64,
    place: BlockPlace,
}

struct PooledBuffer {
    memory: Memory,
    role: Role,
    pool: Arc<MemoryPool>,
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        // Slots with guards are not reused.
        let is_pooled = self.role == Role::Activations && !self.pool.guards().is_on();
        let mut state = self.pool.state();
        let memory = std::mem::take(&mut self.memory);
        if is_pooled {
            state.free.push(memory);
        } else {
            state.ledger.sub(self.role, memory.bytes, memory.place);
            state.freed_buffers += u64::from(self.role != Role::Batch);
        }
    }
}

/// Range of a device buffer, in elements of four bytes (f32, u32, or two packed bf16).
#[derive(Clone)]
pub struct Slot {
    buffer: Arc<PooledBuffer>,
    offset: usize,
    len: usize,
    /// Elements behind the slot that its bindings include: a guard, or none.
    reach: usize,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({:?}, {}..{})", self.buffer.role, self.offset, self.offset + self.len)
    }
}

impl Slot {
    /// Returns the number of elements, of four bytes each.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Returns whether the slot has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Returns the size in bytes.
    pub fn bytes(&self) -> u64 {
        self.len as u64 * 4
    }
    /// Returns a part of this slot. `start` must be a multiple of 64 elements, the alignment of a binding's offset.
    pub fn slice(&self, start: usize, len: usize) -> Self {
        assert!(start.is_multiple_of(64) && start + len <= self.len, "slice {start}+{len} of {self:?}");
        let reach = if start + len == self.len { self.reach } else { 0 };
        Self { buffer: self.buffer.clone(), offset: self.offset + start, len, reach }
    }
    /// Returns a part that may begin at any element. Only the host may read and write it, because it cannot be bound.
    pub fn slice_unaligned(&self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.len, "piece {start}+{len} of {self:?}");
        Self { buffer: self.buffer.clone(), offset: self.offset + start, len, reach: 0 }
    }
    /// Returns the elements from the beginning of this slot to that of a later one in the same buffer; `None` for any other slot.
    pub fn distance_to(&self, later: &Slot) -> Option<usize> {
        if self.shares_buffer(later) { later.offset.checked_sub(self.offset) } else { None }
    }
    /// Returns the slot from the beginning of this one to the end of a later one in the same buffer.
    pub fn through(&self, later: &Slot) -> Self {
        let distance = self.distance_to(later);
        let len = distance.unwrap_or_else(|| panic!("{later:?} is not behind {self:?}")) + later.len;
        Self { buffer: self.buffer.clone(), offset: self.offset, len, reach: later.reach }
    }
    /// Returns the slot between two guards; its bindings reach the guard behind.
    pub(super) fn between_guards(&self, guard: usize, len: usize) -> Self {
        Self { reach: guard, ..self.slice(guard, len) }
    }
    pub(super) fn binding(&self) -> Option<(wgpu::Buffer, u64, u64)> {
        let bytes = 4 * (self.len + self.reach) as u64;
        self.buffer.memory.raw.clone().map(|raw| (raw, self.offset as u64 * 4, bytes))
    }
    /// Returns whether the buffer outlives a recording.
    pub(super) fn is_lasting(&self) -> bool {
        self.buffer.role != Role::Batch
    }
    /// Returns whether two slots are ranges of one buffer.
    pub fn shares_buffer(&self, other: &Slot) -> bool {
        Arc::ptr_eq(&self.buffer, &other.buffer)
    }
}

impl Gpu {
    /// Fills the pool. Inside `record`, a request reuses a free buffer of at most 1.5 times its size, or allocates a new one. Without this
    /// limit, narrow slots that are saved for the backward pass would occupy the wide buffers of a layer's temporaries, and each layer
    /// would need new ones. Afterwards, a request takes the smallest free buffer that fits.
    pub fn while_reserving<T>(&self, record: impl FnOnce() -> T) -> T {
        self.pool.state().reserving = true;
        let done = record();
        self.pool.state().reserving = false;
        done
    }

    /// Frees the activations that no slot uses. Where no buffer is left, counting begins anew: what a self-test takes is not part of a run.
    pub fn release_free_memory(&self) {
        let mut state = self.pool.state();
        for memory in std::mem::take(&mut state.free) {
            state.ledger.sub(Role::Activations, memory.bytes, memory.place);
            state.freed_buffers += 1;
        }
        state.ledger.restart();
    }

    /// Allocates `len` elements with undefined contents for a recording. The buffer returns to the pool when the last clone is dropped.
    /// Recordings of a device must therefore be submitted in the order in which they were recorded: record and submit from one thread.
    pub fn alloc_activation(&self, len: usize) -> Slot {
        if self.guards().is_on() { self.guarded(Role::Activations, len) } else { self.pooled(len) }
    }

    fn pooled(&self, len: usize) -> Slot {
        let bytes = (len.max(1) as u64 * 4).next_multiple_of(256);
        let memory = self.pool.take(bytes).unwrap_or_else(|| {
            let mut state = self.pool.state();
            // Batches differ in length. Frees the largest of the buffers that are too small, so that the pool becomes that of the longest
            // batch.
            let largest = (0..state.free.len()).max_by_key(|&i| state.free[i].bytes);
            if let Some(largest) = largest.filter(|_| !state.reserving) {
                let too_small = state.free.swap_remove(largest);
                state.ledger.sub(Role::Activations, too_small.bytes, too_small.place);
                state.freed_buffers += 1;
            }
            let place = state.ledger.add(Role::Activations, bytes);
            drop(state);
            // A plan does not count wgpu's copies of uploads, so these copies must be freed before a step's memory is allocated.
            self.live.as_ref().into_iter().for_each(|live| self.settle_uploads(live, SMALL_UPLOADS_BYTES));
            Memory { raw: self.create(Role::Activations, bytes), bytes, place }
        });
        let buffer = PooledBuffer { memory, role: Role::Activations, pool: self.pool.clone() };
        Slot { buffer: Arc::new(buffer), offset: 0, len, reach: 0 }
    }

    /// Allocates `len` zeros with a role that outlives a step.
    pub fn alloc_persistent(&self, role: Role, len: usize) -> Slot {
        if self.guards().is_on() { self.guarded(role, len) } else { self.unguarded(role, len) }
    }

    pub(super) fn guards(&self) -> std::sync::MutexGuard<'_, SlotGuards> {
        self.pool.guards()
    }

    /// Allocates a slot in a buffer of its own, without guards.
    pub(super) fn unguarded(&self, role: Role, len: usize) -> Slot {
        let bytes = (len.max(1) as u64 * 4).next_multiple_of(256);
        let place = self.pool.state().ledger.add(role, bytes);
        let memory = Memory { raw: self.create(role, bytes), bytes, place };
        let buffer = PooledBuffer { memory, role, pool: self.pool.clone() };
        Slot { buffer: Arc::new(buffer), offset: 0, len, reach: 0 }
    }

    /// Allocates slots of a persistent role in shared buffers of at most `PACKED_BYTES`; a larger slot gets a buffer of its own. Drivers
    /// provide memory in blocks: many buffers of a few MiB leave much of their blocks unused, while a few large ones have memory of their
    /// own.
    pub fn lasting_packed(&self, role: Role, lens: &[usize]) -> Vec<Slot> {
        let aligned = |len: usize| len.max(1).next_multiple_of(64);
        let mut all = Vec::with_capacity(lens.len());
        while let Some(&first) = lens.get(all.len()) {
            let mut sum = aligned(first);
            let fits = lens[all.len() + 1..].iter().take_while(|&&len| {
                let is_full = 4 * (sum + aligned(len)) as u64 > PACKED_BYTES;
                sum += if is_full { 0 } else { aligned(len) };
                !is_full
            });
            let n = 1 + fits.count();
            let (page, mut at) = (self.alloc_persistent(role, sum), 0);
            for &len in &lens[all.len()..all.len() + n] {
                all.push(page.slice(at, len));
                at += aligned(len);
            }
        }
        all
    }

    /// Allocates a small input of a recording, and writes `data` to it.
    pub fn upload<T: bytemuck::Pod>(&self, data: &[T]) -> Slot {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let slot = self.alloc_persistent(Role::Batch, bytes.len().div_ceil(4));
        self.write_bytes(&slot, bytes);
        slot
    }

    /// Writes to a slot at once, before all recordings that are submitted later. No recording that is still to be submitted may need the
    /// slot's old contents.
    pub fn write<T: bytemuck::Pod>(&self, slot: &Slot, data: &[T]) {
        self.write_bytes(slot, bytemuck::cast_slice(data));
    }

    fn write_bytes(&self, slot: &Slot, bytes: &[u8]) {
        assert!(bytes.len() as u64 <= slot.bytes(), "{} bytes into {slot:?}", bytes.len());
        if let (Some(live), Some((raw, offset, _))) = (&self.live, slot.binding()) {
            let (words, last) = bytes.split_at(bytes.len() / 4 * 4);
            let pieces = words.chunks(STAGED_BYTES as usize);
            for (at, piece) in
                pieces.scan(offset, |at, piece| Some((std::mem::replace(at, *at + piece.len() as u64), piece)))
            {
                self.stage(live, &raw, at, piece);
            }
            if !last.is_empty() {
                let mut word = [0; 4];
                word[..last.len()].copy_from_slice(last);
                self.stage(live, &raw, offset + words.len() as u64, &word);
            }
        }
    }

    /// Writes a piece of an upload. wgpu keeps a copy of each piece until the next submission has ended, which would double a model's
    /// weights. The function therefore waits for uploads before more than [`STAGED_BYTES`] are pending.
    fn stage(&self, live: &OpenDevice, raw: &wgpu::Buffer, offset: u64, piece: &[u8]) {
        if live.failure.is_set() {
            return;
        }
        let n_bytes = piece.len() as u64;
        self.settle_uploads(live, STAGED_BYTES.saturating_sub(n_bytes));
        self.pool.state().staged_bytes += n_bytes;
        live.queue.write_buffer(raw, offset, piece);
        live.failure.name_refusal(|| refused("an upload's copy", n_bytes, self.ledger().total()));
    }

    /// Waits for pending uploads if they exceed `most` bytes, so that wgpu frees its copies.
    fn settle_uploads(&self, live: &OpenDevice, most: u64) {
        if self.pool.state().staged_bytes <= most {
            return;
        }
        let encoder = live.device.create_command_encoder(&Default::default());
        if let Some(submitted) = live.submit(encoder, None, || "upload".into()) {
            live.wait(Some(submitted.index));
        }
        self.uploads_have_ended();
    }

    /// Notes that all pending uploads have ended.
    pub(super) fn uploads_have_ended(&self) {
        self.pool.state().staged_bytes = 0;
    }

    fn create(&self, role: Role, bytes: u64) -> Option<wgpu::Buffer> {
        let descriptor = wgpu::BufferDescriptor {
            label: None,
            size: bytes,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        let what = || {
            let ledger = self.ledger();
            refused(&ledger.last_added(role), bytes, ledger.total().saturating_sub(bytes))
        };
        self.live.as_ref().map(|live| live.create_buffer(&descriptor, what))
    }
}

/// Largest size of a buffer that several lasting slots share, in bytes.
const PACKED_BYTES: u64 = 64 << 20;

/// Largest sum of pending uploads, in bytes.
const STAGED_BYTES: u64 = 16 << 20;

/// Largest size of pending uploads, in bytes, while a step's memory is allocated: the inputs of a batch.
const SMALL_UPLOADS_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// A slot that does not fit begins a new buffer. The expected bytes count only the slots.
    #[test]
    fn lasting_slots_share_buffers() {
        let gpu = Gpu::plan(super::super::Caps::baseline());
        let mib = 1 << 18;
        let slots = gpu.lasting_packed(Role::Frozen, &[30 * mib, 34 * mib, 1, 70, 100 * mib, 63 * mib, mib]);
        let shares: Vec<bool> = slots.windows(2).map(|w| w[0].shares_buffer(&w[1])).collect();
        assert_eq!(shares, [true, false, true, false, false, true]);
        assert_eq!(slots.iter().map(|s| s.offset).collect::<Vec<_>>(), [0, 30 * mib, 0, 64, 0, 0, 63 * mib]);
        assert_eq!(gpu.ledger().total(), (228 << 20) + 256 + 512);
        assert!(gpu.lasting_packed(Role::Frozen, &[]).is_empty());
    }
}
