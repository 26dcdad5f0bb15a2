//! Fuel that a rendering consumes for bytes.

use minijinja::{Error, State};

/// Consumes fuel for bytes that are about to be produced.
pub(super) fn charge(state: &State, n_bytes: usize) -> Result<(), Error> {
    state.consume_fuel(n_bytes as u64 / 64)
}
