//! Fuel of a rendering that is paid for bytes.

use minijinja::{Error, State};

/// Pays for bytes ahead.
pub(super) fn charge(state: &State, n_bytes: usize) -> Result<(), Error> {
    state.consume_fuel(n_bytes as u64 / 64)
}
