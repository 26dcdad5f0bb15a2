//! Guards around slots, for tests: elements that are no numbers before and behind each slot, within reach of its bindings. Neither wgpu's
//! checked modules nor a driver's robust access tell of an index that is out of a slot and in its binding, or of one that a driver turns
//! into zero. A kernel that reads a guard shows it in its results, and one that writes there is counted.

use super::{Gpu, Role, Slot};
use crate::error::Result;

/// Elements of a guard; a multiple of what bindings are aligned to.
const GUARD: usize = 1024;

/// A NaN in f32, and two in bf16; as an index far beyond every table.
const NO_NUMBER: u32 = 0x7fc0_7fc0;

/// Slots with guards, each with its guards as slots of their own.
#[derive(Default)]
pub(super) struct Guards(Option<Vec<[Slot; 2]>>);

impl Guards {
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }
}

impl Gpu {
    /// Returns the same device, whose slots have guards and are not used again. Slow, and for tests.
    #[must_use]
    pub fn with_guards(self) -> Self {
        *self.guards() = Guards(Some(Vec::new()));
        self
    }

    /// Counts the guards that were written since this was asked last.
    ///
    /// # Errors
    /// As [`Gpu::read`]'s.
    pub async fn damaged_guards(&self) -> Result<usize> {
        let known = self.guards().0.as_mut().map(std::mem::take).unwrap_or_default();
        let all: Vec<&Slot> = known.iter().flatten().collect();
        let words = self.read::<u32>(&all).await?;
        Ok(words.iter().filter(|guard| guard.iter().any(|word| *word != NO_NUMBER)).count())
    }

    /// Allocates `len` elements between guards: zeros where they last, and no numbers where their contents are undefined.
    pub(super) fn guarded(&self, role: Role, len: usize) -> Slot {
        let whole = self.unguarded(role, GUARD + len + GUARD);
        let mut words = vec![NO_NUMBER; whole.len()];
        if role != Role::Activations {
            words[GUARD..GUARD + len].fill(0);
        }
        self.write(&whole, &words);
        let guards = [whole.piece(0, GUARD), whole.piece(GUARD + len, GUARD)];
        if let Some(known) = &mut self.guards().0 {
            known.push(guards);
        }
        whole.between_guards(GUARD, len)
    }
}
