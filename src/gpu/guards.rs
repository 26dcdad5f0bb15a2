//! Guards for tests: NaNs before and behind each slot. Bindings include the guard behind. Neither wgpu's checked modules nor a driver's
//! robust access detect an index that leaves a slot but stays inside its binding, or an index whose read the driver turns into zero. With
//! guards, a kernel that reads outside its slot gets NaN results, and overwritten guards are counted.

use super::{Gpu, Role, Slot};
use crate::error::Result;

/// Elements per guard: a multiple of the alignment of bindings.
const GUARD: usize = 1024;

/// Value of guards: NaN as f32 and as each bf16 half, and as an index beyond the end of every table.
const NO_NUMBER: u32 = 0x7fc0_7fc0;

/// Guards `[before, behind]` of each slot that was allocated since the last check; `None` where guards are off.
#[derive(Default)]
pub(super) struct SlotGuards(Option<Vec<[Slot; 2]>>);

impl SlotGuards {
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }
}

impl Gpu {
    /// Returns this device with guards around each new slot, and without reuse of slots. Slow; for tests.
    #[must_use]
    pub fn with_guards(self) -> Self {
        *self.guards() = SlotGuards(Some(Vec::new()));
        self
    }

    /// Counts the guards that were overwritten since the last call.
    ///
    /// # Errors
    /// See [`Gpu::read`].
    pub async fn damaged_guards(&self) -> Result<usize> {
        let known = self.guards().0.as_mut().map(std::mem::take).unwrap_or_default();
        let all: Vec<&Slot> = known.iter().flatten().collect();
        let words = self.read::<u32>(&all).await?;
        Ok(words.iter().filter(|guard| guard.iter().any(|word| *word != NO_NUMBER)).count())
    }

    /// Allocates `len` elements between guards: NaNs for activations, whose contents are undefined, and zeros for other roles.
    pub(super) fn guarded(&self, role: Role, len: usize) -> Slot {
        let whole = self.unguarded(role, GUARD + len + GUARD);
        let mut words = vec![NO_NUMBER; whole.len()];
        if role != Role::Activations {
            words[GUARD..GUARD + len].fill(0);
        }
        self.write(&whole, &words);
        let guards = [whole.slice_unaligned(0, GUARD), whole.slice_unaligned(GUARD + len, GUARD)];
        if let Some(known) = &mut self.guards().0 {
            known.push(guards);
        }
        whole.between_guards(GUARD, len)
    }
}
