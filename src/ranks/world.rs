//! The calls of MPI, through rsmpi.

use std::sync::OnceLock;
use std::time::Duration;

use ::mpi::Threading;
use ::mpi::environment::{initialize_with_threading, processor_name, threading_support};
use ::mpi::topology::SimpleCommunicator;
/// Type of values that can be sent.
pub use ::mpi::traits::Equivalence as Sendable;
use ::mpi::traits::{Communicator, CommunicatorCollectives, Root};

/// Rank and number of ranks, once MPI was started; `None` where it could not be.
static STARTED: OnceLock<Option<(usize, usize)>> = OnceLock::new();

/// Time between two looks for ranks that are waited for.
const PAUSE: Duration = Duration::from_millis(10);

fn world() -> SimpleCommunicator {
    SimpleCommunicator::world()
}

/// Starts MPI, which a process can do once. Returns the rank and the number of ranks; `None` where MPI does not start.
pub fn start() -> Option<(usize, usize)> {
    *STARTED.get_or_init(|| {
        let (universe, _) = initialize_with_threading(Threading::Multiple)?;
        // Its end would be that of MPI, which [`finish`] is.
        std::mem::forget(universe);
        Some((world().rank() as usize, world().size() as usize))
    })
}

/// Tells whether another thread than the main one may call MPI, while the main one does not.
pub fn allows_threads() -> bool {
    threading_support() >= Threading::Serialized
}

/// Returns the name of the machine.
pub fn host() -> String {
    processor_name().unwrap_or_default()
}

/// Sends equal slices of `own` to the ranks. `all` gets the slices that the ranks sent here, in their order.
pub fn all_to_all<T: Sendable>(own: &[T], all: &mut [T]) {
    world().all_to_all_into(own, all);
}

/// Collects the values of all ranks, in order.
pub fn all_gather<T: Sendable>(own: &[T], all: &mut [T]) {
    world().all_gather_into(own, all);
}

/// Replaces bytes by rank 0's.
pub fn broadcast(bytes: &mut [u8]) {
    world().process_at_rank(0).broadcast_into(bytes);
}

/// Waits for all ranks.
pub fn barrier() {
    world().barrier();
}

/// Waits for all ranks without the busy loop of [`barrier`], for hours if need be.
pub fn wait() {
    let mut request = world().immediate_barrier();
    while let Err(pending) = request.test() {
        request = pending;
        std::thread::sleep(PAUSE);
    }
}

/// Ends all processes.
pub fn abort(status: i32) {
    world().abort(status);
}

/// Ends MPI, where it was started.
pub fn finish() {
    if matches!(STARTED.get(), Some(Some(_))) {
        // SAFETY: MPI was started by this thread, and nothing of it is used afterwards.
        unsafe { ::mpi::ffi::MPI_Finalize() };
    }
}
